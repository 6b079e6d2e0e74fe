// SPDX-License-Identifier: BSD-3-Clause

package fingerprint

import (
	"crypto/sha256"
	"errors"
	"testing"
)

const empty = "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU" // of nothing

func TestParse(t *testing.T) {
	t.Parallel()
	if sum, err := Parse(empty); sum != sha256.Sum256(nil) || err != nil || Format(sum) != empty {
		t.Errorf("%x, %v", sum, err)
	}
	for _, text := range []string{"", "SHA256:", empty[7:], "sha256:" + empty[7:], empty + "=", empty[:len(empty)-1], empty + "A", empty[:len(empty)-1] + "V",
		empty + "\n", empty[:20] + "\n" + empty[20:], empty[:20] + "\r" + empty[21:], " " + empty, "SHA256:-" + empty[8:]} {
		if _, err := Parse(text); !errors.Is(err, ErrForm) || Valid(text) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(empty)
	f.Fuzz(func(t *testing.T, text string) {
		if sum, err := Parse(text); err == nil && Format(sum) != text {
			t.Errorf("%q is written as %q", text, Format(sum))
		}
	})
}
