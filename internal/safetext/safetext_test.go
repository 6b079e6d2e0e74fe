// SPDX-License-Identifier: BSD-3-Clause

package safetext

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestLine(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in    string
		limit int
		want  string
	}{
		{"", 10, ""},
		{"laptop", 10, "laptop"},
		{"Jürgen’s Täschchen 📱", 99, "Jürgen’s Täschchen 📱"},
		{"a\x1b[2Kb", 99, `a\x1b[2Kb`},
		{"a\nerror: b\r\t\x00\x7f", 99, `a\x0aerror: b\x0d\x09\x00\x7f`},
		{"\u009b31m\u0085", 99, `\x9b31m\x85`},
		{"a\u202eb\u2066\u200f\u061c", 99, `a\u202eb\u2066\u200f\u061c`},
		{"a\u2028b\u00a0\ufeff\u3164\u2800", 99, `a\u2028b\xa0\ufeff\u3164\u2800`},
		{"a\ufe0f\U000e0100\u034f\u180b\u17b4\U0001d159", 99, `a\ufe0f\U000e0100\u034f\u180b\u17b4\U0001d159`},
		{"\U000e0041", 99, `\U000e0041`},
		{"\xff\xc3", 99, `\xff\xc3`},
		{"\ufffd", 99, "\ufffd"},
		{`C:\new`, 99, `C:\new`},
		{"abcdef", 6, "abcdef"},
		{"abcdefg", 6, "abcde…"},
		{"äöüäöüä", 6, "äöüäö…"},
		{"abc\ndef", 6, "abc…"},
		{"abcde\n", 6, "abcde…"},
		{"ab", 1, "…"},
		{"a", 1, "a"},
		{"\n", 2, "…"},
		{"a", 0, ""},
		{"a", -1, ""},
	} {
		if got := Line(c.in, c.limit); got != c.want {
			t.Errorf("Line(%q, %d) = %q, want %q", c.in, c.limit, got, c.want)
		}
	}
}

func FuzzLine(f *testing.F) {
	f.Add("a\x1b]0;x\x07\u202e\u0085\xff", 5)
	f.Add(strings.Repeat("\n", 100), 100)
	f.Fuzz(func(t *testing.T, s string, limit int) {
		got := Line(s, limit)
		if n := utf8.RuneCountInString(got); !utf8.ValidString(got) || n > max(limit, 0) {
			t.Fatalf("Line(%q, %d) = %q", s, limit, got)
		}
		for _, r := range got {
			if unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Bidi_Control) {
				t.Fatalf("Line(%q, %d) = %q has %U", s, limit, got, r)
			}
		}
		if again := Line(got, limit); again != got {
			t.Fatalf("Line(%q, %d) = %q, of that %q", s, limit, got, again)
		}
	})
}
