// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"crypto/ed25519"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

func TestCheckPrincipal(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"me@example.org", "me", "o'brien+git@example.org", "me!#@example.org", "ümläut@bücher.example", strings.Repeat("x", maxPrincipal)} {
		if err := checkPrincipal(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for bad, why := range map[string]string{
		"":                                  "empty",
		strings.Repeat("x", maxPrincipal+1): "321 bytes is longer than 320",
		"me me":                             "spaces",
		" me":                               "spaces",
		"me\t":                              "spaces",
		"me\nyou":                           "spaces",
		"me\u00a0you":                       "spaces",
		"me\u202e":                          "do not show",
		"me\x00":                            "do not show",
		"me\xff":                            "do not show",
		"a,b":                               "a list",
		"*@example.org":                     "a pattern",
		"m?@example.org":                    "a pattern",
		"!me":                               "a pattern",
		`"me"`:                              "a quotation",
		`m"e`:                               "a quotation",
		"#me":                               "a comment",
	} {
		if err := checkPrincipal(bad); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := checkPrincipals(make([]string, maxPrincipals+1)); err == nil || !strings.Contains(err.Error(), "65 are more than 64") {
		t.Errorf("too many: %v", err)
	}
}

// A phone's label for a key cannot begin a line of its own.
func TestSignerLine(t *testing.T) {
	t.Parallel()
	public, err := ssh.NewPublicKey(ed25519.PublicKey(make([]byte, ed25519.PublicKeySize)))
	if err != nil {
		t.Fatal(err)
	}
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	for comment, want := range map[string]string{
		"":      `me,you namespaces="git" ` + key,
		"a key": `me,you namespaces="git" ` + key + " a key",
		"x\n* namespaces=\"file\" " + key + "\x1b[2J": `me,you namespaces="git" ` + key + ` x\x0a* namespaces="file" ` + key + `\x1b[2J`,
	} {
		if s := signer([]string{"me", "you"}, public, comment); s.Line != want || s.Fingerprint != ssh.FingerprintSHA256(public) ||
			s.PublicKey != strings.TrimPrefix(want, `me,you namespaces="git" `) {
			t.Errorf("%q: %+v", comment, s)
		}
	}
}
