// SPDX-License-Identifier: BSD-3-Clause

// Package pattern matches texts with OpenSSH's patterns.
package pattern

import "unicode/utf8"

// Match says whether all of s fits a pattern, in which * is any run of characters and ? any one character, as
// PATTERNS in ssh_config(5). With fold the letters A to Z are the small ones. A byte that is not UTF-8 is a character.
//
// Only the last * seen is ever tried again, so it takes at most len(pattern) times len(s) steps.
func Match(pattern, s string, fold bool) bool {
	p, i := 0, 0        // what is left of both begins here
	star, from := -1, 0 // after the last *; what it has left over begins here
	for i < len(s) {
		_, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case p < len(pattern) && pattern[p] == '*':
			p++
			star, from = p, i
		case p < len(pattern) && pattern[p] == '?':
			p++
			i += size
		case p < len(pattern) && same(pattern[p:], s[i:i+size], fold):
			p += size
			i += size
		case star >= 0:
			_, size := utf8.DecodeRuneInString(s[from:])
			from += size
			p, i = star, from
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// same says whether pattern begins with one character.
func same(pattern, character string, fold bool) bool {
	if _, size := utf8.DecodeRuneInString(pattern); size != len(character) {
		return false
	}
	for i := range len(character) {
		a, b := pattern[i], character[i]
		if fold {
			a, b = lower(a), lower(b)
		}
		if a != b {
			return false
		}
	}
	return true
}

func lower(b byte) byte {
	if 'A' <= b && b <= 'Z' {
		b += 'a' - 'A'
	}
	return b
}
