// SPDX-License-Identifier: BSD-3-Clause

package knownhosts

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

func hostKey(t testing.TB) (ssh.PublicKey, string) {
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

// nobodys is a key that is in no file.
type nobodys struct{}

func (nobodys) Type() string                        { return "none" }
func (nobodys) Marshal() []byte                     { return []byte("none") }
func (nobodys) Verify([]byte, *ssh.Signature) error { return errors.New("nobody's key") }

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

	for name, want := range map[string][]ssh.PublicKey{
		"deploy": {a, b}, "Deploy:22": {a, b}, "[deploy]:22": {a, b}, "GIT.example:2222": {b}, "[git.example]:2222": {b}, "git.example": {a}, "secret": {c}, "[secret]:2222": nil, "nobody": nil,
		"192.0.2.7": {a},
	} {
		same := func(a, b ssh.PublicKey) bool { return string(a.Marshal()) == string(b.Marshal()) }
		if got := Keys(files, name); !slices.EqualFunc(got, want, same) {
			t.Errorf("%s: %d keys, want %d", name, len(got), len(want))
		}
	}
}

// What ssh would not take is no key of a name, and keeps nothing else from being one.
func TestKeys(t *testing.T) {
	t.Parallel()
	a, aLine := hostKey(t)
	b, bLine := hostKey(t)
	file := write(t, "malformed", "deploy ssh-ed25519 AAAA", "Deploy "+aLine, "deploy "+bLine, "deploy "+aLine, "@revoked dep* "+bLine, "@unknown deploy "+bLine,
		"@cert-authority ca "+aLine, "*.example,!no.example "+bLine, "2001:db8::7 "+bLine)
	for name, want := range map[string]ssh.PublicKey{"deploy": a, "DEPLOY": a, "web.Example": b, "no.example": nil, "ca": nil, "2001:DB8:0::7": b, "[2001:db8::7]:22": b} {
		got := Keys([]string{file, "/nonexistent"}, name)
		if want == nil && got == nil {
			continue
		}
		if len(got) != 1 || want == nil || string(got[0].Marshal()) != string(want.Marshal()) {
			t.Errorf("%s: %d keys", name, len(got))
		}
		hosts, err := Lookup([]string{file}, name)
		if err != nil || len(hosts) != 1 || hosts[0].Fingerprint != ssh.FingerprintSHA256(want) || hosts[0].Key == nil {
			t.Errorf("%s: %+v, %v", name, hosts, err)
		}
	}
	print := ssh.FingerprintSHA256(a)
	if hosts, err := Lookup([]string{file}, print); err != nil || len(hosts) != 1 || hosts[0].Fingerprint != print || string(hosts[0].Key.Marshal()) != string(a.Marshal()) {
		t.Errorf("by fingerprint: %+v, %v", hosts, err)
	}
	if hosts, err := Lookup(nil, print); err != nil || len(hosts) != 1 || hosts[0] != (Host{print, nil}) {
		t.Errorf("by a fingerprint that is nowhere: %+v, %v", hosts, err)
	}
	if _, err := Lookup([]string{file}, "nobody"); err == nil || err.Error() != `"nobody" is not in known_hosts` {
		t.Errorf("nobody: %v", err)
	}
	if _, err := Lookup([]string{file}, print[:20]); !strings.Contains(fmt.Sprint(err), "is no fingerprint") {
		t.Errorf("no fingerprint: %v", err)
	}
}

// Lines with patterns give the candidates that fit, and no pattern.
func TestPatterns(t *testing.T) {
	t.Parallel()
	key, line := hostKey(t)
	all, allLine := hostKey(t)
	file := write(t, "*.Example.org,!no.example.org,plain "+line, "rig?,[*.example.net]:2222 "+line, "* "+allLine, "*.* "+allLine)
	for name, c := range map[string]struct {
		key        ssh.PublicKey
		candidates string
		want       string
	}{
		"none":     {key, "", "plain"},
		"some":     {key, "x rig1 rig web.EXAMPLE.org no.example.org example.org a.example.net", "rig1 web.example.org [a.example.net]:2222 plain"},
		"whatever": {all, "web.example.org", ""},
	} {
		if got := Names([]string{file}, c.key, Candidates{Names: strings.Fields(c.candidates), Ports: []uint16{2222}}); strings.Join(got, " ") != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// A host's certificate has the names that its authority, which known_hosts has for them, has put into it.
func TestAuthorities(t *testing.T) {
	t.Parallel()
	signer := func() (ssh.Signer, string) {
		_, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		s, err := ssh.NewSignerFromKey(private)
		if err != nil {
			t.Fatal(err)
		}
		return s, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.PublicKey())))
	}
	ca, caLine := signer()
	other, _ := signer()
	key, _ := hostKey(t)
	cert := func(by ssh.Signer, change func(*ssh.Certificate), principals ...string) ssh.PublicKey {
		c := &ssh.Certificate{Key: key, CertType: ssh.HostCert, ValidPrincipals: principals, ValidBefore: ssh.CertTimeInfinity}
		if err := c.SignCert(rand.Reader, by); err != nil {
			t.Fatal(err)
		}
		if change != nil {
			change(c)
		}
		return c
	}
	again := func(c *ssh.Certificate) {
		if err := c.SignCert(rand.Reader, ca); err != nil {
			t.Fatal(err)
		}
	}
	const every = "*.example.org,!no.example.org,vault"
	for name, c := range map[string]struct {
		key        ssh.PublicKey
		hosts      string // of the authority
		candidates string
		want       string
	}{
		"a principal":             {cert(ca, nil, "web.example.org"), every, "", "web.example.org"},
		"several":                 {cert(ca, nil, "web.example.org", "vault", "no.example.org", "x"), every, "x", "web.example.org vault"},
		"another one":             {cert(ca, nil, "web.example.org"), every, "db.example.org vault", "web.example.org"},
		"a pattern":               {cert(ca, nil, "w*.example.org"), every, "web.example.org db.example.org", "web.example.org"},
		"whatever host":           {cert(ca, nil, "web.example.org"), "*", "db.example.org", "web.example.org [web.example.org]:2222"},
		"with a port":             {cert(ca, nil, "web.example.org"), "[*.example.org]:2222", "", "[web.example.org]:2222"},
		"no principals":           {cert(ca, nil), every, "db.example.org no.example.org", "db.example.org vault"},
		"no principals, whatever": {cert(ca, nil), "*", "db.example.org", ""},
		"another authority":       {cert(other, nil, "web.example.org"), every, "web.example.org", ""},
		"changed":                 {cert(ca, func(c *ssh.Certificate) { c.Serial++ }, "vault"), every, "vault", ""},
		"said to be its":          {cert(other, func(c *ssh.Certificate) { c.SignatureKey = ca.PublicKey() }, "vault"), every, "vault", ""},
		"expired":                 {cert(ca, func(c *ssh.Certificate) { c.ValidBefore = 1; again(c) }, "vault"), every, "vault", ""},
		"a user's":                {cert(ca, func(c *ssh.Certificate) { c.CertType = ssh.UserCert; again(c) }, "vault"), every, "vault", ""},
		"not signed":              {&ssh.Certificate{Key: key, CertType: ssh.HostCert, SignatureKey: ca.PublicKey()}, every, "vault", ""},
		"the key alone":           {key, every, "vault", ""},
		"the authority's own":     {ca.PublicKey(), every, "vault", ""},
	} {
		file := write(t, "@cert-authority "+c.hosts+" "+caLine, "@revoked gone "+caLine)
		if got := Names([]string{file}, c.key, Candidates{Names: strings.Fields(c.candidates), Ports: []uint16{2222}}); strings.Join(got, " ") != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
