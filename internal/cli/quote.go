// SPDX-License-Identifier: BSD-3-Clause

package cli

import "strings"

// quote returns s as one word of a POSIX shell, so that hints can be pasted.
func quote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-./:@%+=,", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// Quote is what hints are written with, for commands that print lines to be pasted.
func Quote(s string) string { return quote(s) }
