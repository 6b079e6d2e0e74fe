// SPDX-License-Identifier: BSD-3-Clause

package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/tpm/tpmtest"
)

// signer is a crypto.Signer of a key.
type signer struct {
	k      *Key
	device string
}

func (s signer) Public() crypto.PublicKey { return s.k.Public() }

func (s signer) Sign(_ io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	return s.k.Sign(s.device, pin, digest)
}

func TestSign(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	k := newTestKey(t, m)
	digest := sha256.Sum256([]byte("what is signed"))
	sig, err := k.Sign(m.Path(), pin, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	if !ecdsa.VerifyASN1(k.Public(), digest[:], sig) {
		t.Error("crypto/ecdsa refuses the signature")
	}
	digest[0]++
	if ecdsa.VerifyASN1(k.Public(), digest[:], sig) {
		t.Error("the signature is for another digest too")
	}
	for _, n := range []int{0, 20, 31, 33, 64} {
		if _, err := k.Sign(m.Path(), pin, make([]byte, n)); err == nil || errors.Is(err, ErrTPM) {
			t.Errorf("a digest of %d bytes goes to the TPM: %v", n, err)
		}
	}

	again, err := Parse(k.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromSigner(signer{again, m.Path()})
	if err != nil {
		t.Fatal(err)
	}
	data := []byte("a challenge")
	signature, err := s.Sign(rand.Reader, data)
	if err != nil {
		t.Fatal(err)
	}
	public, err := ssh.NewPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	if signature.Format != ssh.KeyAlgoECDSA256 {
		t.Errorf("a signature of %s", signature.Format)
	}
	if err := public.Verify(data, signature); err != nil {
		t.Errorf("ssh refuses the signature: %v", err)
	}
}

// What the TPM is told about a key, in the words of the specification (part 2, TPMA_OBJECT): fixedTPM, fixedParent,
// sensitiveDataOrigin, userWithAuth and sign, and nothing else.
func TestAttributes(t *testing.T) {
	t.Parallel()
	k := newTestKey(t, tpmtest.Start(t))
	if got, want := binary.BigEndian.Uint32(k.public[4:]), uint32(1<<1|1<<4|1<<5|1<<6|1<<18); got != want {
		t.Errorf("attributes %#x, want %#x", got, want)
	}
	// type ECC, name SHA-256; no policy, no symmetric algorithm, ECDSA with SHA-256, NIST P-256, no KDF.
	if got, want := hex.EncodeToString(k.public[:4])+" "+hex.EncodeToString(k.public[8:20]), "0023000b 000000100018000b00030010"; got != want {
		t.Errorf("public part %s, want %s", got, want)
	}
}

// Another parent, and no key that exists can be used any more, nor by other tools: the command that makes it, byte for
// byte.
func TestParent(t *testing.T) {
	t.Parallel()
	first := make(chan []byte, 1)
	w := tap(t, "", func(_ int, command []byte, _ func([]byte) []byte) []byte {
		first <- command
		return nil
	})
	_, err := Create(w.path, pin)
	want(t, err, ErrNoTPM)
	const expected = "8002 00000043 00000131" + // TPM2_CreatePrimary
		" 40000001 00000009 40000009 0000 00 0000" + // the owner, with an empty password
		" 0004 0000 0000" + // no password, no data
		" 001a 0023 000b 00030472" + // ECC, SHA-256, a storage key that is not under dictionary attack protection
		" 0000 0006 0080 0043 0010 0003 0010 0000 0000" + // no policy, AES-128-CFB, no scheme, P-256, no KDF, empty unique
		" 0000 00000000" // no outside information, no PCRs
	if got, want := hex.EncodeToString(<-first), strings.ReplaceAll(expected, " ", ""); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestEveryKeyIsAnother(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	if newTestKey(t, m).Public().Equal(newTestKey(t, m).Public()) {
		t.Error("the same key twice")
	}
}

func TestRestart(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	k := newTestKey(t, m)
	for _, how := range []func(){m.Restart, func() { m.Stop(); m.Restart() }} {
		how()
		if _, err := k.Sign(m.Path(), pin, make([]byte, 32)); err != nil {
			t.Error(err)
		}
	}
}

func TestPassphrases(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	m.LockAfter(1000, time.Hour)
	for _, p := range [][]byte{nil, {0}, []byte("1"), []byte("ends in zero\x00\x00"), []byte("has a\x00zero"), bytes.Repeat([]byte("long "), 2000)} {
		k, err := Create(m.Path(), p)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Check(m.Path(), p); err != nil {
			t.Errorf("%.20q: %v", p, err)
		}
		want(t, k.Check(m.Path(), append(bytes.Clone(p), 0)), ErrWrongAuth)
		if len(p) > 0 {
			want(t, k.Check(m.Path(), p[:len(p)-1]), ErrWrongAuth)
		}
	}
}

// Keys that exist are lost if the value changes.
func TestAuthValue(t *testing.T) {
	t.Parallel()
	for p, want := range map[string]string{"": "wkZzCHM1k1LRbCPPVyXWUu7ks3b0UkKX", "1234": "D9kw8kInnJoME-rP8y9WKZEB1nVNktgo"} {
		if got := string(authValue([]byte(p))); got != want {
			t.Errorf("%q: %s, want %s", p, got, want)
		}
	}
}

func TestWrongPassphrase(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	m.LockAfter(10, time.Hour)
	k := newTestKey(t, m)
	wrong := []byte("wrong")
	_, err := k.Sign(m.Path(), wrong, make([]byte, 32))
	want(t, err, ErrWrongAuth, "locks after 9 more")
	want(t, k.Check(m.Path(), wrong), ErrWrongAuth, "locks after 8 more")
	_, err = k.ChangeAuth(m.Path(), wrong, pin)
	want(t, err, ErrWrongAuth, "locks after 7 more")
	if n := m.Loaded(); n != 0 {
		t.Errorf("%d things are left in the TPM", n)
	}
}

func TestLockout(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	m.LockAfter(3, 600*time.Second)
	k := newTestKey(t, m)
	for _, words := range []string{"locks after 2 more", "locks after 1 more", "locked now for at most 10m0s"} {
		want(t, k.Check(m.Path(), []byte("wrong")), ErrWrongAuth, words)
	}
	locked := func() {
		t.Helper()
		want(t, k.Check(m.Path(), pin), ErrLockout, "for at most 10m0s")
		_, err := k.Sign(m.Path(), pin, make([]byte, 32))
		want(t, err, ErrLockout, "for at most 10m0s")
		_, err = k.ChangeAuth(m.Path(), pin, []byte("new"))
		want(t, err, ErrLockout, "for at most 10m0s")
		_, err = Create(m.Path(), pin)
		want(t, err, ErrLockout, "for at most 10m0s")
		if n := m.Loaded(); n != 0 {
			t.Errorf("%d things are left in the TPM", n)
		}
	}
	locked()
	m.Restart()
	locked()
	m.Unlock()
	if err := k.Check(m.Path(), pin); err != nil {
		t.Error(err)
	}
}

func TestOwner(t *testing.T) {
	t.Parallel()
	all := func(t *testing.T, m *tpmtest.TPM, k *Key, words string) {
		t.Helper()
		_, err := Create(m.Path(), pin)
		want(t, err, ErrOwner, words)
		_, err = k.Sign(m.Path(), pin, make([]byte, 32))
		want(t, err, ErrOwner, words)
		want(t, k.Check(m.Path(), pin), ErrOwner, words)
		_, err = k.ChangeAuth(m.Path(), pin, pin)
		want(t, err, ErrOwner, words)
	}
	t.Run("password", func(t *testing.T) {
		t.Parallel()
		m := tpmtest.Start(t)
		k := newTestKey(t, m)
		m.SetOwner("somebody")
		all(t, m, k, "has a password")
	})
	t.Run("disabled", func(t *testing.T) {
		t.Parallel()
		m := tpmtest.Start(t)
		k := newTestKey(t, m)
		m.DisableOwner()
		all(t, m, k, "is disabled")
		m.Restart()
		if err := k.Check(m.Path(), pin); err != nil {
			t.Error(err)
		}
	})
}

func TestOtherTPM(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	k := newTestKey(t, m)
	second := newTestKey(t, m)
	all := func(t *testing.T, k *Key, path string) {
		t.Helper()
		_, err := k.Sign(path, pin, make([]byte, 32))
		want(t, err, ErrOtherTPM)
		want(t, k.Check(path, pin), ErrOtherTPM)
		_, err = k.ChangeAuth(path, pin, pin)
		want(t, err, ErrOtherTPM)
	}
	t.Run("another", func(t *testing.T) { all(t, k, tpmtest.Start(t).Path()) })
	t.Run("halves", func(t *testing.T) {
		all(t, &Key{public: k.public, private: second.private, point: k.point}, m.Path())
	})
	t.Run("changed", func(t *testing.T) {
		for i := range k.private {
			changed := &Key{public: k.public, private: bytes.Clone(k.private), point: k.point}
			changed.private[i] ^= 0x80
			want(t, changed.Check(m.Path(), pin), ErrOtherTPM)
		}
	})
	t.Run("cut", func(t *testing.T) {
		for i := 1; i < len(k.private); i++ {
			cut := &Key{public: k.public, private: k.private[:i], point: k.point}
			want(t, cut.Check(m.Path(), pin), ErrOtherTPM)
		}
	})
	t.Run("cleared", func(t *testing.T) {
		m.Clear()
		all(t, k, m.Path())
		if _, err := newTestKey(t, m).Sign(m.Path(), pin, make([]byte, 32)); err != nil {
			t.Error(err)
		}
	})
}

// Codes that this TPM does not give, but others may (part 3 of the specification, at the commands).
func TestCodes(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	k := newTestKey(t, m)
	const createPrimary, load, sign, getCapability = 0x131, 0x157, 0x15d, 0x17a
	for _, c := range []struct {
		at, code uint32
		kind     error
		text     string
	}{
		{createPrimary, 0x98e, ErrOwner, "wrong owner of the TPM: the owner hierarchy has a password"}, // TPM_RC_AUTH_FAIL
		{createPrimary, 0x9a2, ErrOwner, "wrong owner of the TPM: the owner hierarchy has a password"}, // TPM_RC_BAD_AUTH
		{load, 0x1a5, ErrOtherTPM, ""},                    // TPM_RC_BINDING
		{load, 0x155, ErrOtherTPM, ""},                    // TPM_RC_SENSITIVE
		{load, 0x1da, ErrOtherTPM, ""},                    // TPM_RC_INSUFFICIENT
		{load, 0x98e, ErrTPM, ""},                         // TPM_RC_AUTH_FAIL
		{load, 0x902, ErrTPM, ""},                         // TPM_RC_OBJECT_MEMORY
		{sign, 0x98e, ErrWrongAuth, ErrWrongAuth.Error()}, // TPM_RC_AUTH_FAIL
		{sign, 0x9a2, ErrWrongAuth, ErrWrongAuth.Error()}, // TPM_RC_BAD_AUTH
		{sign, 0x921, ErrLockout, ErrLockout.Error()},     // TPM_RC_LOCKOUT
		{sign, 0x12f, ErrTPM, ""},                         // TPM_RC_AUTH_UNAVAILABLE
		{sign, 0x101, ErrTPM, "the TPM failed: signing: TPM_RC_FAILURE: commands not being accepted because of a TPM failure"},
	} {
		w := tap(t, m.Path(), func(_ int, command []byte, forward func([]byte) []byte) []byte {
			switch binary.BigEndian.Uint32(command[6:]) {
			case c.at:
				return code(c.code)
			case getCapability:
				return code(0x143) // TPM_RC_COMMAND_CODE: it does not tell
			}
			return forward(command)
		})
		_, err := k.Sign(w.path, pin, make([]byte, 32))
		want(t, err, c.kind)
		if c.text != "" && (err == nil || err.Error() != c.text) {
			t.Errorf("%#x at %#x: %q, want %q", c.code, c.at, err, c.text)
		}
		if n := m.Loaded(); n != 0 {
			t.Errorf("%#x at %#x: %d things are left in the TPM", c.code, c.at, n)
		}
	}
}

func TestChangeAuth(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	m.LockAfter(100, time.Hour)
	k := newTestKey(t, m)
	next := []byte("another passphrase")
	changed, err := k.ChangeAuth(m.Path(), pin, next)
	if err != nil {
		t.Fatal(err)
	}
	if !changed.Public().Equal(k.Public()) {
		t.Error("the key changed too")
	}
	if changed, err = Parse(changed.Marshal()); err != nil {
		t.Fatal(err)
	}
	if _, err := changed.Sign(m.Path(), next, make([]byte, 32)); err != nil {
		t.Error(err)
	}
	want(t, changed.Check(m.Path(), pin), ErrWrongAuth)
	// What the documentation warns of.
	if err := k.Check(m.Path(), pin); err != nil {
		t.Errorf("the old file with the old passphrase: %v", err)
	}
	want(t, k.Check(m.Path(), next), ErrWrongAuth)
}

// A wrong public part, which only a faulty TPM or program could bring about: the signature does not leave.
func TestSignatureIsVerified(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	k, other := newTestKey(t, m), newTestKey(t, m)
	k = &Key{public: k.public, private: k.private, point: other.point}
	sig, err := k.Sign(m.Path(), pin, make([]byte, 32))
	want(t, err, ErrTPM, "signature it made is wrong")
	if sig != nil {
		t.Error("a signature with an error")
	}
}

// A TPM's socket has no resource manager: it holds three objects, so a single one left over is soon felt.
func TestNothingIsLeftInTheTPM(t *testing.T) {
	t.Parallel()
	m, other := tpmtest.Start(t), tpmtest.Start(t)
	m.LockAfter(1000, time.Hour)
	stranger := newTestKey(t, other)
	k := newTestKey(t, m)
	wrong := []byte("wrong")
	for i := range 12 {
		_, _ = Create(m.Path(), pin)
		_, _ = k.Sign(m.Path(), pin, make([]byte, 32))
		_, _ = k.Sign(m.Path(), wrong, make([]byte, 32))
		_ = k.Check(m.Path(), pin)
		_ = k.Check(m.Path(), wrong)
		_, _ = k.ChangeAuth(m.Path(), pin, wrong)
		_, _ = k.ChangeAuth(m.Path(), wrong, wrong)
		_ = stranger.Check(m.Path(), pin)
		if n := m.Loaded(); n != 0 {
			t.Fatalf("after round %d, %d things are left in the TPM", i, n)
		}
	}
	if err := k.Check(m.Path(), pin); err != nil {
		t.Error(err)
	}
}

func TestParallel(t *testing.T) {
	t.Parallel()
	a, b := tpmtest.Start(t), tpmtest.Start(t)
	var all sync.WaitGroup
	for _, m := range []*tpmtest.TPM{a, b} {
		k := newTestKey(t, m)
		for i := range 12 {
			all.Go(func() {
				digest := sha256.Sum256([]byte{byte(i)})
				sig, err := k.Sign(m.Path(), pin, digest[:])
				if err != nil || !ecdsa.VerifyASN1(k.Public(), digest[:], sig) {
					t.Errorf("signature %d: %v", i, err)
				}
			})
		}
	}
	all.Wait()
}

// Who reads the bus sees neither the passphrase nor what it becomes.
func TestNoPassphraseOnTheWire(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	m.LockAfter(100, time.Hour)
	w := tap(t, m.Path(), pass)
	next := []byte("another passphrase")
	k, err := Create(w.path, pin)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Sign(w.path, pin, make([]byte, 32)); err != nil {
		t.Error(err)
	}
	if _, err := k.ChangeAuth(w.path, pin, next); err != nil {
		t.Error(err)
	}
	want(t, k.Check(w.path, next), ErrWrongAuth)
	w.mu.Lock()
	defer w.mu.Unlock()
	if !bytes.Contains(w.seen, k.private) {
		t.Fatal("not even the key's file was seen")
	}
	for _, secret := range [][]byte{pin, next, authValue(pin), authValue(next)} {
		if bytes.Contains(w.seen, secret) {
			t.Errorf("%q was on the wire", secret)
		}
	}
	// Every session is salted, or its HMACs would let one try passphrases: TPM2_StartAuthSession with a key that is not
	// TPM_RH_NULL. Only the policy of Check has neither, as it has no passphrase.
	sessions := bytes.Count(w.seen, []byte{0, 0, 0x01, 0x76, 0x80})
	unsalted := bytes.Count(w.seen, []byte{0, 0, 0x01, 0x76, 0x40, 0, 0, 7})
	if sessions != 6 || unsalted != 3 {
		t.Errorf("%d salted sessions and %d others, want 6 and 3", sessions, unsalted)
	}
}

func BenchmarkSign(b *testing.B) {
	m := tpmtest.Start(b)
	k := newTestKey(b, m)
	for b.Loop() {
		if _, err := k.Sign(m.Path(), pin, make([]byte, 32)); err != nil {
			b.Fatal(err)
		}
	}
}
