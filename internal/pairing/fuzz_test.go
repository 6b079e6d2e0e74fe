// SPDX-License-Identifier: BSD-3-Clause

package pairing

import (
	"errors"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"vmux.app/toolkit/internal/envelope"
)

func FuzzParseURL(f *testing.F) {
	for _, u := range urls() {
		f.Add(u.String())
	}
	for _, b := range badURLs() {
		f.Add(b.URL)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseURL(s)
		if err != nil {
			if !errors.Is(err, ErrBadURL) || u != (URL{}) {
				t.Fatalf("got %+v, %v", u, err)
			}
			return
		}
		if u.String() != s {
			t.Fatalf("%q came back as %q", s, u)
		}
		if CleanName(u.Name) != u.Name {
			t.Fatalf("name %q is not clean", u.Name)
		}
	})
}

func FuzzCleanName(f *testing.F) {
	for _, s := range []string{"laptop", "", " a ", "a\x1b[31mb", "a\u202eb", "\xff", "\ufffd", strings.Repeat("€", 30), strings.Repeat("a", 62) + " b",
		"\u0301a", "a\u00a0b", "\U000e0001", "👩‍💻"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c := CleanName(s)
		if c == "" || len(c) > envelope.MaxName || !utf8.ValidString(c) {
			t.Fatalf("%q became %q of %d bytes", s, c, len(c))
		}
		for _, r := range c {
			if !unicode.IsPrint(r) || r == utf8.RuneError {
				t.Fatalf("%q became %q", s, c)
			}
		}
		if again := CleanName(c); again != c {
			t.Fatalf("%q became %q, then %q", s, c, again)
		}
		if u := NewURL(s, [32]byte{1}); u.Name != c {
			t.Fatalf("URL for %q names %q", s, u.Name)
		} else if back, err := ParseURL(u.String()); err != nil || back != u {
			t.Fatalf("%s: got %+v, %v", u, back, err)
		}
	})
}
