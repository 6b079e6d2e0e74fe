// SPDX-License-Identifier: BSD-3-Clause

package krl

import (
	"crypto/ed25519"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// private is a key that is always the same for a number.
func private(t *testing.T, n byte) ssh.Signer {
	t.Helper()
	seed := make([]byte, ed25519.SeedSize)
	seed[0] = n
	k, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(seed))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// compiled makes a KRL of a list by ssh-keygen, and asks that about lines of public keys.
func compiled(t *testing.T, l List, options ...string) (revoked func(line string) bool) {
	t.Helper()
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
	args := append([]string{"-q", "-k", "-f", krl}, options...)
	if out, err := exec.Command("ssh-keygen", append(args, write("spec", l.Text))...).CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("ssh-keygen -k: %v\n%s", err, out)
	}
	return func(line string) bool {
		t.Helper()
		out, _ := exec.Command("ssh-keygen", "-Q", "-f", krl, write("key.pub", line+"\n")).CombinedOutput()
		if is := strings.Contains(string(out), ": REVOKED"); is || strings.Contains(string(out), ": ok") {
			return is
		}
		t.Fatalf("ssh-keygen -Q: %s", out)
		return false
	}
}

// A label from outside is no line of its own, and ssh-keygen takes the text.
func TestLabels(t *testing.T) {
	t.Parallel()
	seed := byte(0)
	key := func() ssh.PublicKey { seed++; return private(t, seed).PublicKey() }
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

	revoked := compiled(t, l)
	for i := range entries {
		if !revoked(lines[2*i+1]) {
			t.Errorf("%s is not revoked", lines[2*i+1])
		}
	}
	if revoked(other) {
		t.Error("a label is a key")
	}
}

// With a list of serials ssh-keygen revokes these certificates of this authority, and nothing else.
func TestSerials(t *testing.T) {
	t.Parallel()
	ca, other, user := private(t, 1), private(t, 2), private(t, 3)
	l := OfSerials(ca.PublicKey(), []uint64{7, 1<<64 - 1})
	public := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(ca.PublicKey())))
	if !slices.Equal(l.Serials, []string{"7", "18446744073709551615"}) || l.CA == nil || l.CA.PublicKey != public ||
		len(l.Keys)+len(l.AuthorizedKeys)+len(l.TrustedUserCAKeys) != 0 || !strings.HasPrefix(l.Text, "# certificates that "+ssh.FingerprintSHA256(ca.PublicKey())+" has signed\n") {
		t.Errorf("%+v", l)
	}
	authority := filepath.Join(t.TempDir(), "ca.pub")
	if err := os.WriteFile(authority, []byte(public+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	revoked := compiled(t, l, "-s", authority)
	line := func(by ssh.Signer, serial uint64) string {
		c := &ssh.Certificate{Key: user.PublicKey(), CertType: ssh.UserCert, Serial: serial, ValidPrincipals: []string{"me"}, ValidBefore: ssh.CertTimeInfinity}
		if err := c.SignCert(rand.Reader, by); err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(c)))
	}
	for _, c := range []struct {
		by      ssh.Signer
		serial  uint64
		revoked bool
	}{{ca, 7, true}, {ca, 1<<64 - 1, true}, {ca, 8, false}, {ca, 0, false}, {other, 7, false}} {
		if got := revoked(line(c.by, c.serial)); got != c.revoked {
			t.Errorf("the serial %d of %s: revoked %v", c.serial, ssh.FingerprintSHA256(c.by.PublicKey()), got)
		}
	}
	if revoked(public) || revoked(strings.TrimSpace(string(ssh.MarshalAuthorizedKey(user.PublicKey())))) {
		t.Error("a key is revoked")
	}
}
