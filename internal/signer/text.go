// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// clean makes text from outside safe for a terminal, on one line.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
