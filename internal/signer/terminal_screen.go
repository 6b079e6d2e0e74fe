// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// showLocked shows the first question in the place of another one or of none.
func (t *Terminal) showLocked() {
	t.putAwayLocked()
	a := t.asks[0]
	t.shown = a
	t.rawLocked()
	t.resumed.Store(false)
	if a.bell {
		a.bell = false
		t.putLocked("\a")
	}
	t.fitLocked(t.size())
	t.turnLocked(0)
}

// fitLocked lays the question out for a screen.
func (t *Terminal) fitLocked(width, height int) {
	t.width, t.height = width, height
	t.small = width < minWidth || height < minHeight
	if t.pages = []string{""}; !t.small {
		t.pages = t.shown.pages(width, height)
	}
}

// putAwayLocked takes the question that is shown from the screen. It waits on.
func (t *Terminal) putAwayLocked() {
	if t.shown != nil {
		t.putLocked("\r\x1b[J" + t.shown.name + " waits\n")
		t.leaveLocked()
	}
}

// leaveLocked forgets the question that is shown and what was typed for it.
func (t *Terminal) leaveLocked() {
	t.shown = nil
	t.forgetLocked()
}

// turnLocked shows a page of the question.
func (t *Terminal) turnLocked(page int) {
	t.page = page
	t.forgetLocked()
	t.putPageLocked()
	t.drawLocked()
}

// forgetLocked begins the answer anew.
func (t *Terminal) forgetLocked() {
	clear(t.typed[:cap(t.typed)])
	t.typed, t.overlong, t.since = nil, false, time.Now()
	if t.shown != nil && t.shown.unlock != nil {
		t.typed = make([]byte, 0, maxAnswer) // it never grows, which would leave copies
	}
}

// refreshLocked draws the seconds left, and all of the question when the screen is
// not as it was.
func (t *Terminal) refreshLocked() {
	width, height := t.size()
	switch {
	case t.resumed.Swap(false) || !t.singleKeys(): // it was stopped and continued
		t.rawLocked()
		t.fitLocked(width, height)
		t.turnLocked(0)
		return
	case width != t.width || height != t.height:
		several, small := len(t.pages) > 1, t.small
		t.fitLocked(width, height)
		if several || len(t.pages) > 1 || small != t.small { // the pages are others now
			t.turnLocked(0)
			return
		}
		t.putPageLocked()
	}
	t.drawLocked()
}

func (t *Terminal) putPageLocked() {
	t.putLocked("\r\x1b[J\n" + t.pages[t.page])
	t.below = 0
}

// aboveLocked puts whole lines above the question that is shown.
func (t *Terminal) aboveLocked(text string) {
	if t.shown == nil {
		t.putLocked(text)
		return
	}
	t.putLocked("\r\x1b[J" + text)
	t.below += rows(text, t.width)
	if t.room() < 0 {
		t.putPageLocked() // a device that causes log lines must not push a question's text off the screen
	}
	t.drawLocked()
}

// room is how many rows of the screen are left for the list.
func (t *Terminal) room() int {
	return t.height - margin - strings.Count(t.pages[t.page], "\n") - t.below
}

// drawLocked draws the line of the question and the list of those that wait.
// Each stays below the terminal's width, since lines that wrap cannot be drawn
// again, and all of it on the screen.
func (t *Terminal) drawLocked() {
	a, others := t.shown, t.othersLocked()
	line := a.question
	switch {
	case t.small:
		line = "The window is too small, n refuses "
	case t.page < len(t.pages)-1:
		line = fmt.Sprintf("Page %d of %d: Enter for the next, n to refuse ", t.page+1, len(t.pages))
	case a.checking:
		line += passphraseEnd + "checking…"
	case a.again != "":
		line = a.again + passphraseEnd
	case a.unlock != nil:
		line += passphraseEnd
	default:
		line += string(t.typed)
	}
	line = clip(line, t.width-1)
	var states []string // the longest first
	if a.expires != nil {
		states = append(states, fmt.Sprintf("%d s left", secondsTo(a.expires())))
	}
	if n := len(others); n > 0 {
		text := fmt.Sprintf("%d more waiting", n)
		if a.door {
			text = fmt.Sprintf("waiting: %d", n)
		}
		if a.expires != nil {
			text = states[0] + ", " + text
		}
		states = append([]string{text}, states...)
		if !a.door {
			states = append([]string{text + " (Tab)"}, states...)
		}
	}
	var b strings.Builder
	b.WriteString("\r\x1b[J" + line)
	const gap = 3
	for _, state := range states {
		if breadth(line)+gap+len(state) < t.width {
			fmt.Fprintf(&b, "%*s%s", gap, "", state)
			break
		}
	}
	list := t.listLocked()
	for _, l := range list {
		b.WriteString("\n" + l)
	}
	// The cursor goes back to where the answer is typed.
	if len(list) > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", len(list))
	}
	fmt.Fprintf(&b, "\r\x1b[%dC", breadth(line))
	t.putLocked(b.String())
}

// listLocked gives the lines of the questions that wait, as many as there is room
// for.
func (t *Terminal) listLocked() (lines []string) {
	others, room := t.othersLocked(), t.room()
	doors := slices.ContainsFunc(t.asks, func(a *ask) bool { return a.door })
	if doors || t.small || room <= 0 || room == 1 && len(others) > 1 {
		return nil
	}
	for i, a := range others {
		if rest := len(others) - i; rest > 1 && i == room-1 {
			return append(lines, clip(fmt.Sprintf("  and %d more", rest), t.width-1))
		}
		lines = append(lines, clip(fmt.Sprintf("  %3d s  %s", secondsTo(a.expires()), a.heading), t.width-1))
	}
	return lines
}

// othersLocked are the questions that wait.
func (t *Terminal) othersLocked() []*ask {
	return slices.DeleteFunc(slices.Clone(t.asks), func(a *ask) bool { return a == t.shown })
}

func secondsTo(end time.Time) int { return max(0, int(math.Ceil(time.Until(end).Seconds()))) }
