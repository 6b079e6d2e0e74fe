// SPDX-License-Identifier: BSD-3-Clause

// Package fingerprint reads and writes SHA-256 fingerprints as ssh-keygen -l prints them: SHA256: and 43 characters of base64.
package fingerprint

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strings"
)

// Prefix begins every fingerprint.
const Prefix = "SHA256:"

// ErrForm says that a text is no fingerprint.
var ErrForm = errors.New("want SHA256: and 43 characters of base64")

// Parse reads a fingerprint. There is one text for each: padding, other characters and bits that count for nothing are ErrForm.
func Parse(text string) (sum [sha256.Size]byte, err error) {
	digits, ok := strings.CutPrefix(text, Prefix)
	b, err := base64.RawStdEncoding.Strict().DecodeString(digits)
	if !ok || err != nil || len(b) != len(sum) || len(digits) != base64.RawStdEncoding.EncodedLen(len(sum)) { // the decoder passes over line ends
		return sum, ErrForm
	}
	return [sha256.Size]byte(b), nil
}

// Valid says whether a text is a fingerprint.
func Valid(text string) bool {
	_, err := Parse(text)
	return err == nil
}

// Format writes a fingerprint.
func Format(sum [sha256.Size]byte) string {
	return Prefix + base64.RawStdEncoding.EncodeToString(sum[:])
}
