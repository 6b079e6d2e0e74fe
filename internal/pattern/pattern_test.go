// SPDX-License-Identifier: BSD-3-Clause

package pattern

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestMatch(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pattern string
		yes, no []string
	}{
		{"", []string{""}, []string{"a"}},
		{"*", []string{"", "a", "a/b", "é\xff"}, nil},
		{"**", []string{"", "a"}, nil},
		{"?", []string{"a", "é", "\xff", "/", "€"}, []string{"", "ab", "\xff\xff"}},
		{"??", []string{"ab", "\xc3("}, []string{"é", "a"}},
		{"*??", []string{"aé", "xaé"}, []string{"é", "€"}},
		{"*??xz", []string{"€€xz"}, []string{"€xz"}},
		{"?*?", []string{"aé"}, []string{"é"}},
		{"abc", []string{"abc"}, []string{"ab", "abcd", "xabc", "ABC"}},
		{"a*c", []string{"ac", "abc", "a/b/c", "accc"}, []string{"a", "acb", "bac"}},
		{"*.example.org", []string{"a.example.org", "a.b.example.org", ".example.org"}, []string{"example.org", "a.example.org.evil"}},
		{"*/node", []string{"/usr/bin/node", "/node"}, []string{"node", "/usr/bin/nodejs"}},
		{"/usr/bin/python3.?", []string{"/usr/bin/python3.9"}, []string{"/usr/bin/python3.11", "/usr/bin/python3."}},
		{"a?*b*", []string{"axb", "axxbb"}, []string{"ab", "axx"}},
		{"[a]", []string{"[a]"}, []string{"a"}},
		{`\*`, []string{`\x`, `\`}, []string{"*"}},
		{"!a", []string{"!a"}, []string{"b", "a"}},
		{"*aab", []string{"aaab", "aabaab"}, []string{"aaba"}},
		{"é*", []string{"é", "éa"}, []string{"\xc3", "\xc3x"}},
	} {
		for _, s := range c.yes {
			if !Match(c.pattern, s, false) {
				t.Errorf("%q does not match %q", c.pattern, s)
			}
		}
		for _, s := range c.no {
			if Match(c.pattern, s, false) {
				t.Errorf("%q matches %q", c.pattern, s)
			}
		}
	}
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"WEB.*", "web.Example", true},
		{"web.*", "WEB.Example", true},
		{"É", "é", false}, // as ssh, which knows the case of A to Z only
		{"[", "{", false}, // differ in the bit that case does
		{"@", "`", false},
	} {
		if Match(c.pattern, c.s, true) != c.want {
			t.Errorf("%q matches %q in any case: not %v", c.pattern, c.s, c.want)
		}
	}
}

// A pattern that makes matchers which try every star anew take longer than there is time.
func TestMatchTime(t *testing.T) {
	t.Parallel()
	if Match(strings.Repeat("*a", 500)+"b", strings.Repeat("a", 4096), false) {
		t.Error("matches")
	}
}

// slow is the definition of match.
func slow(pattern, s []rune) bool {
	if len(pattern) == 0 {
		return len(s) == 0
	}
	if pattern[0] == '*' {
		return slow(pattern[1:], s) || len(s) > 0 && slow(pattern, s[1:])
	}
	return len(s) > 0 && (pattern[0] == '?' || pattern[0] == s[0]) && slow(pattern[1:], s[1:])
}

// characters gives each byte that is not UTF-8 a number of its own.
func characters(s string) (all []rune) {
	for i, r := range s {
		if r == '\uFFFD' && !strings.HasPrefix(s[i:], "\uFFFD") {
			r = 0x110000 + rune(s[i])
		}
		all = append(all, r)
	}
	return all
}

func lowerAll(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, s)
}

func FuzzMatch(f *testing.F) {
	f.Add("*.example.org", "a.Example.org")
	f.Add("a?*b*", "axxbb")
	f.Add("*??", "xé\xff")
	f.Add("*aab*", "aabaab")
	f.Add("*??xz", "€xz")
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if len(pattern) > 12 || len(s) > 24 { // slow is slow
			t.Skip()
		}
		if want := slow(characters(pattern), characters(s)); Match(pattern, s, false) != want {
			t.Errorf("%q matches %q: not %v", pattern, s, want)
		}
		if utf8.ValidString(pattern) && utf8.ValidString(s) { // lowerAll would change the rest
			if want := slow(characters(lowerAll(pattern)), characters(lowerAll(s))); Match(pattern, s, true) != want {
				t.Errorf("%q matches %q in any case: not %v", pattern, s, want)
			}
		}
	})
}
