// SPDX-License-Identifier: BSD-3-Clause

package krl

import (
	"crypto/ed25519"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// A label from outside is no line of its own, and ssh-keygen takes the text.
func TestLabels(t *testing.T) {
	t.Parallel()
	seed := byte(0)
	key := func() ssh.PublicKey {
		seed++
		s := make([]byte, ed25519.SeedSize)
		s[0] = seed
		k, err := ssh.NewPublicKey(ed25519.NewKeyFromSeed(s).Public())
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	other := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key())))
	entries := []Entry{{Public: key(), CA: true, Label: "x\n" + other}}
	for _, label := range []string{"", "work", "x\n" + other, "x\r" + other, "\x1b[2J", "\xff", "x\u2028" + other, strings.Repeat("x", 5000), "# #", "\n\n"} {
		entries = append(entries, Entry{Public: key(), Label: label}, Entry{Public: key(), Label: label, Removed: true})
	}
	l := Of(entries)
	lines := strings.Split(l.Text, "\n")
	if len(lines) != 2*len(entries)+1 || lines[len(lines)-1] != "" {
		t.Fatalf("%d lines for %d keys:\n%q", len(lines), len(entries), l.Text)
	}
	for i, e := range entries {
		if about := lines[2*i]; !strings.HasPrefix(about, "# the ") || len(about) > 600 || !strings.HasSuffix(about, ", "+ssh.FingerprintSHA256(e.Public)) {
			t.Errorf("%q", about)
		}
		if lines[2*i+1]+"\n" != string(ssh.MarshalAuthorizedKey(e.Public)) {
			t.Errorf("%q", lines[2*i+1])
		}
	}
	if len(l.Keys) != len(entries)-1 || len(l.AuthorizedKeys) != len(entries) || len(l.TrustedUserCAKeys) != 1 || l.CA == nil || "cert-authority "+l.CA.PublicKey != l.AuthorizedKeys[0] {
		t.Errorf("%+v", l)
	}

	if _, err := exec.LookPath("ssh-keygen"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	krl := filepath.Join(dir, "krl")
	if out, err := exec.Command("ssh-keygen", "-q", "-k", "-f", krl, write("spec", l.Text)).CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("ssh-keygen -k: %v\n%s", err, out)
	}
	revoked := func(line string) bool {
		out, _ := exec.Command("ssh-keygen", "-Q", "-f", krl, write("key.pub", line+"\n")).CombinedOutput()
		if is := strings.Contains(string(out), ": REVOKED"); is || strings.Contains(string(out), ": ok") {
			return is
		}
		t.Fatalf("ssh-keygen -Q: %s", out)
		return false
	}
	for i := range entries {
		if !revoked(lines[2*i+1]) {
			t.Errorf("%s is not revoked", lines[2*i+1])
		}
	}
	if revoked(other) {
		t.Error("a label is a key")
	}
}
