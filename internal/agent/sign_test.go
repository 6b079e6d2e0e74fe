// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	xagent "golang.org/x/crypto/ssh/agent"

	"vmux.app/toolkit/internal/policy"
	"vmux.app/toolkit/internal/signed"
)

// TestConformance has x/crypto's client list, sign with every kind of key, and take the answers apart.
func TestConformance(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	r.signer.add(newSigner(t, private), "rsa@phone")
	client := r.client()
	keys, err := client.List()
	if err != nil {
		t.Fatal(err)
	}
	if len(keys) != 3 || keys[0].Comment != "ed@phone" || keys[1].Comment != "p256@phone" || keys[2].Comment != "rsa@phone" {
		t.Fatalf("listed %v", keys)
	}
	for _, k := range keys {
		public, err := ssh.ParsePublicKey(k.Blob)
		if err != nil {
			t.Fatal(err)
		}
		for flags, format := range map[xagent.SignatureFlags]string{
			0: k.Format, xagent.SignatureFlagRsaSha256: ssh.KeyAlgoRSASHA256, xagent.SignatureFlagRsaSha512: ssh.KeyAlgoRSASHA512,
		} {
			if k.Format != ssh.KeyAlgoRSA {
				format = k.Format
			} else if flags == 0 {
				continue // SHA-1, which SSHSIG refuses
			}
			data := sshsigData("file")
			sig, err := client.SignWithFlags(public, data, flags)
			if err != nil {
				t.Fatalf("%s, flags %d: %v", k.Format, flags, err)
			}
			if sig.Format != format {
				t.Errorf("%s, flags %d: format %s, want %s", k.Format, flags, sig.Format, format)
			}
			if err := public.Verify(data, sig); err != nil {
				t.Errorf("%s, flags %d: %v", k.Format, flags, err)
			}
		}
	}
}

func TestSignRefusals(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	stranger := newEd25519(t).PublicKey()
	ed, second := r.signer.Keys(nil)[0].Public, r.signer.add(newEd25519(t), "second@phone").Public
	good := loginData(ed, sidA, nil)
	for _, tt := range []struct {
		name, reason string
		msg          []byte
	}{
		{"empty body", "malformed request", []byte{msgSignRequest}},
		{"no flags", "malformed request", signMessage(ed, good, 0)[:len(signMessage(ed, good, 0))-4]},
		{"trailing byte", "malformed request", append(signMessage(ed, good, 0), 0)},
		{"long string", "malformed request", []byte{msgSignRequest, 0xff, 0xff, 0xff, 0xff, 1}},
		{"no key", "not one of the phone's", append([]byte{msgSignRequest, 0, 0, 0, 0}, signMessage(ed, good, 0)[1+4+len(ed.Marshal()):]...)},
		{"unknown key", "not one of the phone's", signMessage(stranger, loginData(stranger, sidA, nil), 0)},
		{"login with another key", "another key", signMessage(second, good, 0)},
		{"unknown flags", "unknown flags", signMessage(ed, good, 8)},
		{"opaque", "opaque", signMessage(ed, []byte("anything"), 0)},
		{"empty data", "opaque", signMessage(ed, nil, 0)},
		{"almost a login", "begins like login", signMessage(ed, append(good, 0), 0)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := len(r.log.lines("outcome=refused", tt.reason))
			if got := r.dial().call(tt.msg...); len(got) != 1 || got[0] != msgFailure {
				t.Errorf("answer % x", got)
			}
			if len(r.log.lines("outcome=refused", tt.reason)) != before+1 {
				t.Errorf("log does not say %q:\n%s", tt.reason, r.log)
			}
		})
	}
	if n := len(r.signer.requests()); n != 0 {
		t.Errorf("asked %d times", n)
	}
}

func TestPolicyTakesEffectAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c, ed := r.dial(), r.signer.Keys(nil)[0].Public
	opaque := signMessage(ed, []byte("anything"), 0)
	for i, want := range []byte{msgFailure, msgSignResponse, msgFailure} {
		if i == 1 {
			r.policy.Store(askFor(policy.Opaque))
		} else {
			r.policy.Store(nil)
		}
		if got := c.call(opaque...)[0]; got != want {
			t.Errorf("answer %d is %d, want %d", i, got, want)
		}
	}
	r.policy.Store(askFor(policy.Opaque))
	if got := c.call(signMessage(ed, append(loginData(ed, sidA, nil), 0), 0)...)[0]; got != msgFailure {
		t.Errorf("what is almost a login: %d", got)
	}
}

func TestCertificateAndBareKey(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ca, user := newEd25519(t), newP256(t)
	cert := &ssh.Certificate{Key: user.PublicKey(), CertType: ssh.UserCert, ValidPrincipals: []string{"u"}, ValidBefore: ssh.CertTimeInfinity}
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}
	both, err := ssh.NewCertSigner(cert, user)
	if err != nil {
		t.Fatal(err)
	}
	listed := r.signer.add(both, "certificate")
	for name, asked := range map[string]ssh.PublicKey{"certificate": cert, "bare key": user.PublicKey()} {
		for _, data := range [][]byte{loginData(cert, sidA, nil), loginData(user.PublicKey(), sidA, nil)} {
			sig, err := r.client().Sign(asked, data)
			if err != nil {
				t.Fatalf("%s: %v\n%s", name, err, r.log)
			}
			if err := user.PublicKey().Verify(data, sig); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	for _, q := range r.signer.requests() {
		if !bytes.Equal(q.Key.Public.Marshal(), listed.Public.Marshal()) {
			t.Errorf("asked with %s instead of the listed certificate", q.Key.Public.Type())
		}
	}
	// With the bare key listed as well, each is asked for by its own name.
	bare := r.signer.add(user, "bare")
	if _, err := r.client().Sign(user.PublicKey(), sshsigData("file")); err != nil {
		t.Fatal(err)
	}
	all := r.signer.requests()
	if got := all[len(all)-1].Key.Comment; got != bare.Comment {
		t.Errorf("asked with %q", got)
	}
}

func TestBadSignaturesGoNowhere(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	other := newEd25519(t)
	ed := r.signer.Keys(nil)[0].Public
	data := sshsigData("file")
	for name, change := range map[string]func(*ssh.Signature) *ssh.Signature{
		"none":         func(*ssh.Signature) *ssh.Signature { return nil },
		"empty":        func(*ssh.Signature) *ssh.Signature { return &ssh.Signature{} },
		"other format": func(s *ssh.Signature) *ssh.Signature { return &ssh.Signature{Format: "ssh-rsa", Blob: s.Blob} },
		"rest": func(s *ssh.Signature) *ssh.Signature {
			return &ssh.Signature{Format: s.Format, Blob: s.Blob, Rest: []byte{1}}
		},
		"bit": func(s *ssh.Signature) *ssh.Signature { s.Blob[9] ^= 1; return s },
		"other key": func(*ssh.Signature) *ssh.Signature {
			s, err := other.Sign(rand.Reader, data)
			if err != nil {
				panic(err)
			}
			return s
		},
		"other data": func(*ssh.Signature) *ssh.Signature {
			s, err := r.signer.private[0].Sign(rand.Reader, []byte("other"))
			if err != nil {
				panic(err)
			}
			return s
		},
	} {
		r.signer.mu.Lock()
		r.signer.change = change
		r.signer.mu.Unlock()
		before := len(r.log.lines("level=ERROR", "outcome=failed"))
		if got := r.dial().call(signMessage(ed, data, 0)...); len(got) != 1 || got[0] != msgFailure {
			t.Errorf("%s: answer % x", name, got)
		}
		if len(r.log.lines("level=ERROR", "outcome=failed")) != before+1 {
			t.Errorf("%s: not logged as an error:\n%s", name, r.log)
		}
	}
}

func TestRefusalSticks(t *testing.T) {
	t.Parallel()
	var clock sync.Mutex
	now := time.Unix(1e9, 0)
	r := newRig(t, func(s *Server) {
		s.now = func() time.Time { clock.Lock(); defer clock.Unlock(); return now }
	})
	deny := true
	r.signer.owner(func(context.Context, Request) error {
		if deny {
			return fmt.Errorf("phone: %w", ErrDenied)
		}
		return nil
	})
	ed, p256 := r.signer.Keys(nil)[0].Public, r.signer.Keys(nil)[1].Public
	step := func(name string, want byte, asked int, msg []byte) {
		t.Helper()
		before := len(r.signer.requests())
		if got := r.dial().call(msg...)[0]; got != want {
			t.Errorf("%s: answer %d, want %d", name, got, want)
		}
		if got := len(r.signer.requests()) - before; got != asked {
			t.Errorf("%s: asked %d times, want %d", name, got, asked)
		}
	}
	login, other := loginData(ed, sidA, nil), loginData(p256, sidA, nil)
	step("denied", msgFailure, 1, signMessage(ed, login, 0))
	step("same session", msgFailure, 0, signMessage(ed, login, 0))
	step("same session, other key", msgFailure, 0, signMessage(p256, other, 0))
	step("denied file", msgFailure, 1, signMessage(ed, sshsigData("file"), 0))
	deny = false
	step("same file", msgFailure, 0, signMessage(ed, sshsigData("file"), 0))
	step("other file", msgSignResponse, 1, signMessage(ed, sshsigData("git"), 0))
	step("other session", msgSignResponse, 1, signMessage(ed, loginData(ed, sidB, nil), 0))
	clock.Lock()
	now = now.Add(refusalLife - time.Millisecond)
	clock.Unlock()
	step("just before the end", msgFailure, 0, signMessage(ed, login, 0))
	clock.Lock()
	now = now.Add(time.Millisecond)
	clock.Unlock()
	step("at the end", msgSignResponse, 1, signMessage(ed, login, 0))

	r.signer.owner(func(context.Context, Request) error { return errors.New("out of reach") })
	step("another failure", msgFailure, 1, signMessage(ed, loginData(ed, "c", nil), 0))
	step("another failure does not stick", msgFailure, 1, signMessage(ed, loginData(ed, "c", nil), 0))

	r.signer.owner(func(context.Context, Request) error { return fmt.Errorf("phone: %w", ErrUnanswered) })
	step("no answer", msgFailure, 1, signMessage(ed, loginData(ed, "d", nil), 0))
	step("no answer for the session", msgFailure, 0, signMessage(p256, loginData(p256, "d", nil), 0))
	step("no answer for a file", msgFailure, 1, signMessage(ed, sshsigData("later"), 0))
	step("which is asked again", msgFailure, 1, signMessage(ed, sshsigData("later"), 0))
}

func TestRefusalsAreBounded(t *testing.T) {
	t.Parallel()
	var r refusals
	now := time.Unix(1e9, 0)
	of := func(i int) subject { return subject{byte(i), byte(i >> 8), byte(i >> 16)} }
	for i := range 3 * maxRefusals {
		r.add(of(i), now)
		r.add(of(i), now)
	}
	if len(r.until) != maxRefusals || len(r.order) != maxRefusals {
		t.Errorf("%d and %d kept, want %d", len(r.until), len(r.order), maxRefusals)
	}
	if r.has(of(2*maxRefusals-1), now) || !r.has(of(2*maxRefusals), now) || !r.has(of(3*maxRefusals-1), now) {
		t.Error("not the oldest went")
	}
	if r.has(of(3*maxRefusals-1), now.Add(refusalLife)) || len(r.until) != 0 || len(r.order) != 0 {
		t.Error("expired ones are kept")
	}
}

// TestDecisionLog: one line for each request to sign, with what it was about and none of its bytes.
func TestDecisionLog(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	host := newEd25519(t)
	c, ed := r.dial(), r.signer.Keys(nil)[0].Public
	sid := "\x01\x02secret-session-id-of-32-bytes!!"
	c.bind(bindOf(t, host, sid, false))
	data := loginData(ed, sid, host.PublicKey())
	answer := c.call(signMessage(ed, data, 0)...)
	c.call(signMessage(ed, []byte("opaque secret"), 0)...)
	lines := r.log.lines(`msg="sign request"`)
	if len(lines) != 2 {
		t.Fatalf("%d lines:\n%s", len(lines), r.log)
	}
	for _, want := range []string{"outcome=signed", "kind=login", ssh.FingerprintSHA256(ed), "ed@phone",
		ssh.FingerprintSHA256(host.PublicKey()), "executable=/usr/bin/ssh", "pid=", "duration="} {
		if !strings.Contains(lines[0], want) {
			t.Errorf("no %q in %s", want, lines[0])
		}
	}
	if !strings.Contains(lines[1], "outcome=refused") || !strings.Contains(lines[1], "kind=opaque") {
		t.Error(lines[1])
	}
	for name, secret := range map[string][]byte{"session id": []byte(sid[2:]), "data": data[8:40], "signature": answer[len(answer)-40:],
		"opaque data": []byte("opaque secret"), "key": ed.Marshal()[20:]} {
		for _, form := range []string{string(secret), hex.EncodeToString(secret), base64.RawStdEncoding.EncodeToString(secret)[:len(secret)]} {
			if strings.Contains(r.log.String(), form) {
				t.Errorf("log has the %s", name)
			}
		}
	}
}

// TestThreat_N06_AgentRefuses: opaque data and certificates to be signed do not reach the phone unless the policy says so.
func TestThreat_N06_AgentRefuses(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ed := r.signer.Keys(nil)[0].Public
	cert := ssh.Certificate{Nonce: make([]byte, 32), Key: newP256(t).PublicKey(), CertType: ssh.UserCert, KeyId: "id",
		ValidPrincipals: []string{"u"}, ValidBefore: 1e9, SignatureKey: ed}
	body := cert.Marshal()
	body = body[:len(body)-4] // the length of the signature to come
	if kind := signed.Parse(body).Kind; kind != signed.Certificate {
		t.Fatalf("certificate is taken for %v", kind)
	}
	for name, tt := range map[string]struct {
		data   []byte
		policy *policy.Policy
	}{
		"opaque":      {[]byte("anything"), askFor(policy.Opaque)},
		"certificate": {body, askFor(policy.Certificate)},
	} {
		r.policy.Store(nil)
		before := len(r.signer.requests())
		if got := r.dial().call(signMessage(ed, tt.data, 0)...)[0]; got != msgFailure || len(r.signer.requests()) != before {
			t.Errorf("%s: answer %d, asked %d times", name, got, len(r.signer.requests())-before)
		}
		r.policy.Store(tt.policy)
		if got := r.dial().call(signMessage(ed, tt.data, 0)...)[0]; got != msgSignResponse {
			t.Errorf("%s with a policy that asks: answer %d", name, got)
		}
	}
}
