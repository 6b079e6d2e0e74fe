// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"bytes"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/policy"
	"vmux.app/toolkit/internal/process"
	"vmux.app/toolkit/internal/signed"
)

// askFor is the shipped policy but for one kind, which is asked for.
func askFor(kind string) *policy.Policy {
	return &policy.Policy{Default: policy.Ask, Rules: []policy.Rule{{Action: policy.Ask, Kind: []string{kind}}}}
}

// The policy speaks of kinds by the names that signed has for them.
func TestPolicyKnowsEveryKind(t *testing.T) {
	t.Parallel()
	for kind, name := range map[signed.Kind]string{signed.Login: policy.Login, signed.SSHSIG: policy.SSHSIG, signed.PAM: policy.PAM,
		signed.Certificate: policy.Certificate, signed.Opaque: policy.Opaque} {
		if kind.String() != name {
			t.Errorf("%s is called %s", name, kind)
		}
	}
}

// TestPolicyIsToldTheTruth: each rule here matches exactly one sort of request, by what the agent itself found out.
func TestPolicyIsToldTheTruth(t *testing.T) {
	t.Parallel()
	host, other := newEd25519(t), newEd25519(t)
	var asked atomic.Pointer[[]string] // of HostNames: the names it was to look for
	r := newRig(t, func(s *Server) {
		s.proc.executable = func(int) (string, error) { return "/usr/bin/ssh (deleted)", nil }
		s.proc.chain = func(int) ([]process.Process, error) {
			return []process.Process{{Executable: "/usr/bin/ssh"}, {Executable: "/usr/bin/make (deleted)"}, {PID: 7, Session: 7, Executable: ""}}, nil
		}
		s.hostNames = func(key []byte, _ Peer, also []string) []string {
			asked.Store(&also)
			if bytes.Equal(key, host.PublicKey().Marshal()) {
				return []string{"prod"}
			}
			return nil
		}
	})
	ed, p256 := r.signer.Keys(nil)[0].Public, r.signer.Keys(nil)[1].Public
	login := signMessage(ed, loginData(ed, sidA, nil), 0)
	named := signMessage(ed, loginData(ed, sidA, host.PublicKey()), 0)
	none := []signed.Bind{}
	bound := []signed.Bind{bindOf(t, host, sidA, false)}
	hopped := []signed.Bind{bindOf(t, other, sidB, true)}

	for _, tt := range []struct {
		name  string
		rule  policy.Rule
		binds []signed.Bind
		msg   []byte
		want  bool // that the rule matches
	}{
		{"kind", policy.Rule{Kind: []string{"login"}}, none, login, true},
		{"other kind", policy.Rule{Kind: []string{"sshsig"}}, none, login, false},
		{"namespace", policy.Rule{Kind: []string{"sshsig:git"}}, none, signMessage(ed, sshsigData("git"), 0), true},
		{"other namespace", policy.Rule{Kind: []string{"sshsig:file"}}, none, signMessage(ed, sshsigData("git"), 0), false},
		{"key", policy.Rule{Key: []string{ssh.FingerprintSHA256(ed)}}, none, login, true},
		{"other key", policy.Rule{Key: []string{ssh.FingerprintSHA256(p256)}}, none, login, false},
		{"comment", policy.Rule{Key: []string{"ed@*"}}, none, login, true},
		{"user", policy.Rule{User: []string{"u"}}, none, login, true},
		{"other user", policy.Rule{User: []string{"git"}}, none, login, false},
		{"unverified", policy.Rule{Host: []string{"unverified"}}, none, login, true},
		{"unverified, no name", policy.Rule{Host: []string{"*"}}, none, login, false},
		{"bound", policy.Rule{Host: []string{"prod"}}, bound, login, true},
		{"bound, not unverified", policy.Rule{Host: []string{"unverified"}}, bound, login, false},
		{"bound, fingerprint", policy.Rule{Host: []string{ssh.FingerprintSHA256(host.PublicKey())}}, bound, login, true},
		{"bound, other fingerprint", policy.Rule{Host: []string{ssh.FingerprintSHA256(other.PublicKey())}}, bound, login, false},
		{"named by the data", policy.Rule{Host: []string{"prod"}}, none, named, true},
		{"named by the data, through a hop", policy.Rule{Host: []string{"prod"}, Forwarded: "yes"}, hopped, named, true},
		{"through a hop", policy.Rule{Host: []string{"unverified"}, Forwarded: "yes"}, hopped, login, true},
		{"not forwarded", policy.Rule{Forwarded: "no"}, bound, login, true},
		{"forwarded", policy.Rule{Forwarded: "no"}, hopped, login, false},
		{"executable", policy.Rule{Executable: []string{"/usr/bin/ssh"}}, none, login, true},
		{"other executable", policy.Rule{Executable: []string{"/usr/bin/make"}}, none, login, false},
		{"ancestor", policy.Rule{Ancestor: []string{"/usr/bin/make"}}, none, login, true},
		{"no ancestor of itself", policy.Rule{Ancestor: []string{"/usr/bin/ssh"}}, none, login, false},
		{"ancestor unknown", policy.Rule{Ancestor: []string{"unknown"}}, none, login, true},
	} {
		tt.rule.Action, tt.rule.Line = policy.Refuse, 7
		r.policy.Store(&policy.Policy{Default: policy.Ask, Rules: []policy.Rule{tt.rule}})
		c := r.dial()
		for _, b := range tt.binds {
			if c.bind(b) != msgSuccess {
				t.Fatalf("%s: bind refused", tt.name)
			}
		}
		before := len(r.log.lines("outcome=refused", "policy: rule 1 (line 7)"))
		got := c.call(tt.msg...)[0] == msgFailure
		if got != tt.want || (len(r.log.lines("outcome=refused", "policy: rule 1 (line 7)")) > before) != tt.want {
			t.Errorf("%s: refused is %v", tt.name, got)
		}
		if h := tt.rule.Host; len(h) == 1 && h[0] == "prod" && !slices.Equal(*asked.Load(), h) {
			t.Errorf("%s: looked for %q", tt.name, *asked.Load())
		}
	}
}

// A certificate goes by its key's fingerprint, as in ssh-add -l.
func TestPolicyKnowsCertificatesByTheirKey(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ca, signer := newEd25519(t), newP256(t)
	cert := &ssh.Certificate{Nonce: make([]byte, 32), Key: signer.PublicKey(), CertType: ssh.UserCert, KeyId: "id", ValidPrincipals: []string{"u"}, ValidBefore: ssh.CertTimeInfinity}
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}
	certSigner, err := ssh.NewCertSigner(cert, signer)
	if err != nil {
		t.Fatal(err)
	}
	r.signer.add(certSigner, "certificate")
	print := ssh.FingerprintSHA256(signer.PublicKey())
	r.policy.Store(&policy.Policy{Default: policy.Ask, Rules: []policy.Rule{{Action: policy.Refuse, Key: []string{print}}}})
	if got := r.dial().call(signMessage(cert, loginData(cert, sidA, nil), 0)...)[0]; got != msgFailure {
		t.Errorf("answer %d", got)
	}
	if len(r.log.lines("outcome=refused", "policy: rule 1", "key="+print)) != 1 {
		t.Errorf("log:\n%s", r.log)
	}
}

// A chain that does not reach its session's leader has an unknown end.
func TestPolicyIsToldOfBrokenChains(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		chain []process.Process
		want  bool // that "unknown" matches
	}{
		{"its own leader", []process.Process{{PID: 7, Session: 7}}, false},
		{"up to the leader", []process.Process{{PID: 9, Parent: 7, Session: 7}, {PID: 7, Session: 7, Executable: "/bin/sh"}}, false},
		{"parent ended", []process.Process{{PID: 9, Parent: 1, Session: 7}}, true},
		{"grandparent ended", []process.Process{{PID: 9, Parent: 8, Session: 7}, {PID: 8, Parent: 1, Session: 7, Executable: "/bin/sh"}}, true},
		{"leader in another namespace", []process.Process{{PID: 9, Parent: 8}, {PID: 8, Executable: "/bin/sh"}}, true},
	} {
		r := newRig(t, func(s *Server) {
			s.proc.chain = func(int) ([]process.Process, error) { return c.chain, nil }
		})
		ed := r.signer.Keys(nil)[0].Public
		r.policy.Store(&policy.Policy{Default: policy.Ask, Rules: []policy.Rule{{Action: policy.Refuse, Ancestor: []string{"unknown"}}}})
		if got := r.dial().call(signMessage(ed, loginData(ed, sidA, nil), 0)...)[0] == msgFailure; got != c.want {
			t.Errorf("%s: refused is %v", c.name, got)
		}
	}
}

// What cannot be read is unknown, and matches nothing else.
func TestPolicyIsToldOfTheUnknown(t *testing.T) {
	t.Parallel()
	hidden := errors.New("hardened")
	r := newRig(t, func(s *Server) {
		s.proc.executable = func(int) (string, error) { return "", hidden }
		s.proc.chain = func(int) ([]process.Process, error) { return nil, hidden }
	})
	ed := r.signer.Keys(nil)[0].Public
	for rule, want := range map[*policy.Rule]byte{
		{Executable: []string{"unknown"}, Ancestor: []string{"unknown"}}: msgFailure,
		{Executable: []string{"*"}}:                                      msgSignResponse,
		{Ancestor: []string{"*"}}:                                        msgSignResponse,
	} {
		rule.Action = policy.Refuse
		r.policy.Store(&policy.Policy{Default: policy.Ask, Rules: []policy.Rule{*rule}})
		if got := r.dial().call(signMessage(ed, loginData(ed, sidA, nil), 0)...)[0]; got != want {
			t.Errorf("%+v: answer %d", *rule, got)
		}
	}
}

// The log's host is what the prompt and the rules call so, and the hop has a field of its own.
func TestLogNamesHostAndHop(t *testing.T) {
	t.Parallel()
	host, hop, ca := newEd25519(t), newEd25519(t), newEd25519(t)
	cert := &ssh.Certificate{Nonce: make([]byte, 32), Key: host.PublicKey(), CertType: ssh.HostCert, ValidPrincipals: []string{"h"}, ValidBefore: ssh.CertTimeInfinity}
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}
	certified, err := ssh.NewCertSigner(cert, host)
	if err != nil {
		t.Fatal(err)
	}
	there, through := " host="+ssh.FingerprintSHA256(host.PublicKey())+" ", " via="+ssh.FingerprintSHA256(hop.PublicKey())+" "
	for name, tt := range map[string]struct {
		binds []signed.Bind
		named ssh.PublicKey // by the data
		want  []string
		not   string
	}{
		"nothing known":                      {nil, nil, nil, " host="},
		"named by the data":                  {nil, host.PublicKey(), []string{there}, " via="},
		"bound":                              {[]signed.Bind{bindOf(t, host, sidA, false)}, nil, []string{there}, " via="},
		"host certificate":                   {[]signed.Bind{bindOf(t, certified, sidA, false)}, certified.PublicKey(), []string{there}, " via="},
		"through a hop that says no more":    {[]signed.Bind{bindOf(t, hop, sidB, true)}, nil, []string{through}, " host="},
		"through a hop, named by the data":   {[]signed.Bind{bindOf(t, hop, sidB, true)}, host.PublicKey(), []string{there, through}, "\x00"},
		"through a hop, bound there as well": {[]signed.Bind{bindOf(t, hop, sidB, true), bindOf(t, host, sidA, false)}, nil, []string{there, through}, "\x00"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			ed := r.signer.Keys(nil)[0].Public
			c := r.dial()
			for _, b := range tt.binds {
				if c.bind(b) != msgSuccess {
					t.Fatal("bind refused")
				}
			}
			c.call(signMessage(ed, loginData(ed, sidA, tt.named), 0)...)
			lines := r.log.lines("sign request")
			if len(lines) != 1 || len(r.log.lines(append(tt.want, "sign request")...)) != 1 || strings.Contains(lines[0], tt.not) {
				t.Errorf("%q, wanted %q", lines, tt.want)
			}
		})
	}
}
