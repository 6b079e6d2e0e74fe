// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/doctor"
	"vmux.app/toolkit/internal/safetext"
)

const (
	// maxText bounds what is printed of one text; some are from outside.
	maxText = 1000
	// plainWidth is the width of what is no terminal: lines are for programs there, and are not broken.
	plainWidth = 1 << 20
)

// jsonReport is what --json prints.
type jsonReport struct {
	Level   doctor.Level `json:"level"` // the worst of the checks
	Checks  []jsonCheck  `json:"checks"`
	Seconds float64      `json:"seconds"`
}

type jsonCheck struct {
	ID      string       `json:"id"`
	Title   string       `json:"title"`
	Level   doctor.Level `json:"level"`
	Found   string       `json:"found"`
	Why     string       `json:"why,omitzero"`
	Do      string       `json:"do,omitzero"`
	Lines   []string     `json:"lines,omitzero"`
	Because string       `json:"because,omitzero"`
	Seconds float64      `json:"seconds"`
}

// report prints the results.
func report(c *cli.Context, results []doctor.Result, ids []string, took time.Duration) {
	t := cli.From(c)
	j := jsonReport{Level: doctor.Worst(results), Checks: []jsonCheck{}, Seconds: took.Seconds()}
	for _, r := range results {
		valid := func(s string) string { return strings.ToValidUTF8(s, "\ufffd") }
		k := jsonCheck{ID: r.ID, Title: r.Title, Level: r.Level, Found: valid(r.Found), Why: valid(r.Why), Do: valid(r.Do), Because: r.Because, Seconds: r.Took.Seconds()}
		for _, l := range r.Lines {
			k.Lines = append(k.Lines, valid(l))
		}
		j.Checks = append(j.Checks, k)
	}
	width, colour := t.Screen()
	if width == 0 {
		width = plainWidth
	}
	p := printer{width: width, colour: colour, short: len(ids) == 0, quiet: c.Bool("quiet"), took: took}
	t.Result(j, func(w io.Writer) { p.print(w, results) })
}

// printer prints for people.
type printer struct {
	width  int
	colour bool
	short  bool // healthy checks of no interest share a line
	quiet  bool // print what is not well only
	took   time.Duration
}

// styles are the colour of a level, as SGR (ECMA-48).
var styles = map[doctor.Level]string{doctor.OK: "32", doctor.Skipped: "2", doctor.Warning: "33;1", doctor.Failure: "31;1"}

// words are how levels begin a line, of one length.
var words = map[doctor.Level]string{doctor.OK: "ok", doctor.Skipped: "-", doctor.Warning: "WARN", doctor.Failure: "FAIL"}

const (
	wordWidth = 4
	textAt    = wordWidth + 2 // below the id
)

func (p printer) print(w io.Writer, results []doctor.Result) {
	var shown []doctor.Result
	var routine, reasons []string
	skipped := make(map[string][]string) // by reason
	for _, r := range results {
		switch {
		case r.Level == doctor.Skipped && r.Because != "":
			if skipped[r.Because] == nil {
				reasons = append(reasons, r.Because)
			}
			skipped[r.Because] = append(skipped[r.Because], r.ID)
		case r.Level == doctor.OK && r.Routine && p.short:
			routine = append(routine, r.ID)
		case p.quiet && (r.Level == doctor.OK || r.Level == doctor.Skipped):
		default:
			shown = append(shown, r)
		}
	}
	width := 0
	for _, r := range shown {
		width = max(width, len(r.ID))
	}
	for _, r := range shown {
		p.line(w, r.Level, fmt.Sprintf("%-*s  ", width, r.ID), r.Found)
		if r.Why != "" {
			p.note(w, "why:  ", r.Why)
		}
		// What is to be pasted is not broken.
		if r.Do != "" {
			fmt.Fprintf(w, "%*shint: %s\n", textAt, "", safetext.Line(r.Do, maxText))
		}
		for _, l := range r.Lines {
			fmt.Fprintf(w, "%*s%s\n", textAt, "", safetext.Line(l, maxLine))
		}
	}
	if p.quiet {
		return
	}
	if len(routine) > 0 {
		p.line(w, doctor.OK, fmt.Sprintf("%-*s  ", width, "and"), strings.Join(routine, ", "))
	}
	for _, because := range reasons {
		p.line(w, doctor.Skipped, "", fmt.Sprintf("skipped because of %s: %s", because, strings.Join(skipped[because], ", ")))
	}
	p.summary(w, results)
}

func (p printer) summary(w io.Writer, results []doctor.Result) {
	s := ""
	for _, l := range []doctor.Level{doctor.Failure, doctor.Warning} {
		var ids []string
		for _, r := range results {
			if r.Level == l {
				ids = append(ids, r.ID)
			}
		}
		if len(ids) > 0 {
			s += fmt.Sprintf("%s (%s), ", plural(len(ids), l.String()), strings.Join(ids, ", "))
		}
	}
	if s == "" {
		s = "all is well, "
	}
	s += fmt.Sprintf("%s in %.1f s", plural(len(results), "check"), p.took.Seconds())
	for _, part := range wrap(s, p.width) {
		fmt.Fprintln(w, part)
	}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// maxLine bounds a line to be copied; keys of RSA 16384 fit.
const maxLine = 8192

// line prints a level, a label and a text, which goes on below itself.
func (p printer) line(w io.Writer, l doctor.Level, label, text string) {
	word := fmt.Sprintf("%-*s", wordWidth, words[l])
	if p.colour {
		word = "\x1b[" + styles[l] + "m" + word + "\x1b[0m"
	}
	indent := textAt + len(label)
	for i, part := range wrap(safetext.Line(text, maxText), p.width-indent) {
		if i == 0 {
			fmt.Fprintf(w, "%s  %s%s\n", word, label, part)
		} else {
			fmt.Fprintf(w, "%*s%s\n", indent, "", part)
		}
	}
}

// note prints a text below a line.
func (p printer) note(w io.Writer, label, text string) {
	indent := textAt + len(label)
	for i, part := range wrap(safetext.Line(text, maxText), p.width-indent) {
		if i > 0 {
			label = strings.Repeat(" ", len(label))
		}
		fmt.Fprintf(w, "%*s%s%s\n", textAt, "", label, part)
	}
}

// wrap breaks a text that is longer than width characters at its spaces, into lines that are not, where words allow it.
func wrap(s string, width int) []string {
	if utf8.RuneCountInString(s) <= width {
		return []string{s}
	}
	var lines []string
	line, n := "", 0
	for word := range strings.FieldsSeq(s) {
		length := utf8.RuneCountInString(word)
		switch {
		case line == "":
			line, n = word, length
		case n+1+length > width:
			lines = append(lines, line)
			line, n = word, length
		default:
			line, n = line+" "+word, n+1+length
		}
	}
	return append(lines, line)
}
