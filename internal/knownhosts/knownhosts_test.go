// SPDX-License-Identifier: BSD-3-Clause

package knownhosts

import (
	"crypto/ed25519"
	"crypto/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

func hostKey(t *testing.T) (ssh.PublicKey, string) {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return k, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k)))
}

func TestKnownHosts(t *testing.T) {
	t.Parallel()
	a, aLine := hostKey(t)
	b, bLine := hostKey(t)
	c, cLine := hostKey(t)
	dir := t.TempDir()
	one, two := filepath.Join(dir, "known_hosts"), filepath.Join(dir, "known_hosts2")
	for file, lines := range map[string][]string{
		one: {"# a comment", "deploy,192.0.2.7 " + aLine, "not a line at all", "[git.example]:2222 " + bLine, knownhosts.HashHostname("secret") + " " + cLine},
		two: {"deploy,*.example " + aLine, "deploy " + bLine, "@revoked gone " + cLine, "@cert-authority *.example " + cLine},
	} {
		if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	files := []string{one, two, filepath.Join(dir, "none")}
	for name, test := range map[string]struct {
		key  ssh.PublicKey
		want []string
	}{
		"two names": {a, []string{"deploy", "192.0.2.7"}},
		"two files": {b, []string{"[git.example]:2222", "deploy"}},
		"hashed":    {c, nil},
		"of a cert": {&ssh.Certificate{Key: a}, []string{"deploy", "192.0.2.7"}},
		"of nobody": {nobodys{}, nil},
	} {
		if got := Names(files, test.key, Candidates{}); !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}

	// The strict reader wants files without bad lines, as ssh-keygen -F does not.
	clean := filepath.Join(dir, "clean")
	if err := os.WriteFile(clean, []byte("deploy "+aLine+"\ndeploy "+bLine+"\n[git.example]:2222 "+bLine+"\n"+knownhosts.HashHostname("secret")+" "+cLine+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]ssh.PublicKey{
		"deploy": {a, b}, "deploy:22": {a, b}, "git.example:2222": {b}, "[git.example]:2222": {b}, "git.example": nil, "secret": {c}, "nobody": nil,
	} {
		got, err := Keys([]string{clean, filepath.Join(dir, "none")}, name)
		if err != nil || len(got) != len(want) {
			t.Errorf("%s: %v, %v", name, got, err)
			continue
		}
		for i := range want {
			if string(got[i].Marshal()) != string(want[i].Marshal()) {
				t.Errorf("%s: another key", name)
			}
		}
	}
	if _, err := Keys([]string{one}, "deploy"); err == nil {
		t.Error("a bad line is passed over in silence")
	}
	if got, err := Keys([]string{filepath.Join(dir, "none")}, "deploy"); err != nil || got != nil {
		t.Errorf("no file: %v, %v", got, err)
	}
}
