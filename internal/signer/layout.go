// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"fmt"
	"slices"
	"strings"
)

// The screen that every prompt is made for; on a larger or smaller one it is laid
// out anew.
const (
	screenWidth  = 80
	screenHeight = 24
	// minWidth and minHeight are the smallest screen that prompts are shown on: no
	// heading needs two rows on it, and a page has room for more than headings.
	minWidth  = 40
	minHeight = 8
	// margin are the rows around a page: an empty one above, the question below.
	margin = 2
	// indent is where the values of a prompt begin.
	indent = 13
	// maxPromptLines bounds a prompt of which nothing is shortened: two pages.
	// Nobody reads more within the minute that there is.
	maxPromptLines = 2 * (screenHeight - margin)
)

// Control sequences of the headings and of warnings.
const bold, thin = "\x1b[1m", "\x1b[0m"

// line is one line of a prompt. head is the heading that it stands under, empty
// above the first.
type line struct{ head, text string }

// layout gives the prompt's lines for a terminal of the given width.
func (p *Prompt) layout(width int) []line {
	lines := []line{{text: bold + p.Title() + thin}}
	for _, text := range wrap(p.Heading(), width-1) {
		lines = append(lines, line{text: bold + text + thin})
	}
	verified, claimed := p.Fields()
	for _, half := range []struct {
		head   string
		fields []Field
	}{{headVerified, verified}, {headClaimed, claimed}} {
		if len(half.fields) == 0 {
			continue
		}
		lines = append(lines, line{half.head, half.head})
		last := ""
		for _, f := range half.fields {
			name := f.Name
			if name == last {
				name = ""
			}
			last = f.Name
			for _, text := range wrap(f.Value, width-indent-1) {
				text = fmt.Sprintf("  %-*s%s", indent-2, name, text)
				if f.Name == warning {
					text = bold + text + thin
				}
				lines = append(lines, line{half.head, text})
				name = ""
			}
		}
	}
	return lines
}

// pages lays the prompt out for a terminal of minWidth by minHeight at least: each
// page fits it with the question, and says whose word its lines are.
func (p *Prompt) pages(width, height int) []string {
	lines, room := p.layout(width), height-margin
	if len(lines) <= room {
		return []string{page(lines)}
	}
	var pages [][]line
	for len(lines) > 0 {
		var top []line
		if len(pages) > 0 {
			top = []line{{}} // for the title below
			if first := lines[0]; first.text != first.head {
				top = append(top, line{text: first.head + " (continued)"})
			}
		}
		n := min(len(lines), room-len(top))
		if n < len(lines) && n > 1 && lines[n-1].text == lines[n-1].head {
			n-- // a heading stays with what it heads
		}
		pages = append(pages, slices.Concat(top, lines[:n]))
		lines = lines[n:]
	}
	var out []string
	for i, lines := range pages {
		if i > 0 {
			lines[0].text = fmt.Sprintf("%s%s, page %d of %d%s", bold, p.Title(), i+1, len(pages), thin)
		}
		out = append(out, page(lines))
	}
	return out
}

func page(lines []line) string {
	var b strings.Builder
	for _, l := range lines {
		b.WriteString(l.text + "\n")
	}
	return b.String()
}

// wrap cuts safe text into lines of at most room columns, at a space when there
// is one in a line's second half.
func wrap(s string, room int) []string {
	var lines []string
	value := []rune(s)
	for {
		n, used := 0, 0
		for n < len(value) && used+columns(value[n]) <= room {
			used += columns(value[n])
			n++
		}
		if n < len(value) {
			n = max(n, 1)
			for i := n; i > n/2; i-- {
				if value[i] == ' ' {
					n = i
					break
				}
			}
		}
		lines = append(lines, string(value[:n]))
		value = value[n:]
		for len(value) > 0 && value[0] == ' ' {
			value = value[1:]
		}
		if len(value) == 0 {
			return lines
		}
	}
}

// rows counts the rows that whole lines of log take on a terminal.
func rows(s string, width int) (n int) {
	for l := range strings.Lines(s) {
		n += 1 + max(0, breadth(strings.TrimSuffix(l, "\n"))-1)/width
	}
	return n
}

// breadth is how many columns safe text takes at most.
func breadth(s string) (n int) {
	for _, r := range s {
		n += columns(r)
	}
	return n
}

// columns is how wide a character is at most. Narrow ones that count as wide here
// wrap a line early; the reverse would push a line off the screen.
func columns(r rune) int {
	const (
		firstWide   = 0x1100 // Hangul
		punctuation = 0x2000 // to arrows: …, →, ’
		technical   = 0x2300 // and the symbols behind it, some of which are wide
	)
	if r < firstWide || punctuation <= r && r < technical {
		return 1
	}
	return 2
}

// clip leaves the middle of safe text out where it takes more than room columns,
// so that neither end can be hidden.
func clip(s string, room int) string {
	if breadth(s) <= room {
		return s
	}
	r := []rune(s)
	keep := (room - 1) / 2 // on each side of the mark
	head, tail := 0, len(r)
	for used := columns(r[head]); used <= keep; used += columns(r[head]) {
		head++
	}
	for used := columns(r[tail-1]); used <= keep; used += columns(r[tail-1]) {
		tail--
	}
	return string(r[:head]) + "…" + string(r[tail:])
}
