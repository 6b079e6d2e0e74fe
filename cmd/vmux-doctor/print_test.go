// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"vmux.app/toolkit/internal/doctor"
)

func result(id string, routine bool, f doctor.Finding) doctor.Result {
	return doctor.Result{Check: doctor.Check{ID: id, Routine: routine}, Finding: f}
}

var mixed = []doctor.Result{
	result("one", false, doctor.Finding{Found: "it is there"}),
	result("two", true, doctor.Finding{Found: "nothing to say"}),
	result("three", false, doctor.Finding{Level: doctor.Warning, Found: "a text that is longer than a line\x1b[2J\nFAIL  forged", Why: "since a line has forty columns only", Do: "type: what is never broken however long it is", Lines: []string{"a line\x07"}}),
	result("four", true, doctor.Finding{Level: doctor.Failure, Found: "bad", Why: "w", Do: "d"}),
	result("five", false, doctor.Finding{Level: doctor.Skipped, Found: "four is not well", Because: "four"}),
	result("six", false, doctor.Finding{Level: doctor.Skipped, Found: "four is not well", Because: "four"}),
	result("seven", false, doctor.Finding{Level: doctor.Skipped, Found: "does not apply"}),
	result("eight", true, doctor.Finding{Found: "fine"}),
}

func TestPrint(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		p       printer
		results []doctor.Result
		want    string
	}{
		{"narrow", printer{width: 40, short: true}, mixed, `ok    one    it is there
WARN  three  a text that is longer than
             a line\x1b[2J\x0aFAIL
             forged
      why:  since a line has forty
            columns only
      hint: type: what is never broken however long it is
      a line\x07
FAIL  four   bad
      why:  w
      hint: d
-     seven  does not apply
ok    and    two, eight
-     skipped because of four: five, six
1 failure (four), 1 warning (three), 8
checks in 0.1 s
`},
		{"quiet", printer{width: plainWidth, quiet: true}, mixed, `WARN  three  a text that is longer than a line\x1b[2J\x0aFAIL  forged
      why:  since a line has forty columns only
      hint: type: what is never broken however long it is
      a line\x07
FAIL  four   bad
      why:  w
      hint: d
`},
		{"each asked for", printer{width: plainWidth}, []doctor.Result{mixed[1], mixed[7]}, "ok    two    nothing to say\nok    eight  fine\nall is well, 2 checks in 0.1 s\n"},
		{"colours", printer{width: 80, colour: true}, mixed[3:4], "\x1b[31;1mFAIL\x1b[0m  four  bad\n      why:  w\n      hint: d\n1 failure (four), 1 check in 0.1 s\n"},
		{"all routine", printer{width: 80, short: true}, mixed[7:], "ok    and  eight\nall is well, 1 check in 0.1 s\n"},
	} {
		tt.p.took = 120 * time.Millisecond
		var b strings.Builder
		if tt.p.print(&b, tt.results); b.String() != tt.want {
			t.Errorf("%s:\n%s\nwant\n%s", tt.name, b.String(), tt.want)
		}
	}
}

func TestWrap(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		s     string
		width int
		want  []string
	}{
		{"", 10, []string{""}},
		{"a b c", 5, []string{"a b c"}},
		{"a b c", 4, []string{"a b", "c"}},
		{"aaaaaaaaaa b", 4, []string{"aaaaaaaaaa", "b"}},
		{"ää öö", 5, []string{"ää öö"}},
		{"a b", -7, []string{"a", "b"}},
	} {
		if got := wrap(tt.s, tt.width); !slices.Equal(got, tt.want) {
			t.Errorf("%q, %d: %q", tt.s, tt.width, got)
		}
	}
}
