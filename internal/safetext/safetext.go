// SPDX-License-Identifier: BSD-3-Clause

// Package safetext makes text from outside fit for one line of a terminal, a log or a prompt. Device
// names, key comments and messages are chosen by somebody else, who must not be able to move the cursor, start a
// line of their own or turn the reading direction around.
package safetext

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Line returns s with everything that does not show as itself written as an escape: control
// characters, line ends, bytes that are not UTF-8 (\x1b, \x0a, \xff), bidirectional and other invisible
// characters (\u202e). At most limit runes come out; what is cut ends in "…". Line of a line is that line.
func Line(s string, limit int) string {
	if limit <= 0 {
		return ""
	}
	var b strings.Builder
	n, keep := 0, 0 // runes written; bytes that leave room for the mark of a cut
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		piece, runes := s[i:i+size], 1
		if e := escape(r, piece); e != "" {
			piece, runes = e, len(e)
		}
		if n+runes > limit {
			return b.String()[:keep] + "…"
		}
		b.WriteString(piece)
		n += runes
		if n < limit {
			keep = b.Len()
		}
		i += size
	}
	return b.String()
}

// escape returns the form in ASCII of a character that does not show, and "" for one that does.
func escape(r rune, raw string) string {
	switch {
	case r == utf8.RuneError && len(raw) == 1:
		return fmt.Sprintf(`\x%02x`, raw[0])
	case Visible(r):
		return ""
	case r <= 0xff:
		return fmt.Sprintf(`\x%02x`, r)
	case r <= 0xffff:
		return fmt.Sprintf(`\u%04x`, r)
	default:
		return fmt.Sprintf(`\U%08x`, r)
	}
}

// Visible says whether a character shows: it is unicode.IsPrint, which leaves out controls, formats (all bidirectional
// marks) and line separators, less the letters, marks and symbols that are blank, such as variation selectors.
func Visible(r rune) bool {
	switch r {
	case '\u2800', '\U0001d159': // empty Braille, null notehead
		return false
	}
	return unicode.IsPrint(r) && !unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}
