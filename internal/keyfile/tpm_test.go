// SPDX-License-Identifier: BSD-3-Clause

package keyfile

import (
	"bytes"
	"crypto/rand"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/tpm"
	"vmux.app/toolkit/internal/tpm/tpmtest"
)

var tpmPassphrase = []byte("correct horse battery staple")

// inTestTPM is a key of m.
func inTestTPM(t *testing.T, m *tpmtest.TPM) *File {
	t.Helper()
	text, err := NewInTPM(m.Path(), tpmPassphrase)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if f.Device != tpm.Default {
		t.Errorf("the device of a file that was read is %s", f.Device)
	}
	f.Device = m.Path()
	return f
}

// usable says whether the file gives valid signatures with the passphrase.
func usable(f *File, passphrase []byte) error {
	k, err := f.Open(passphrase)
	if err != nil {
		return err
	}
	defer k.Wipe()
	data := []byte("data")
	sig, err := k.Sign(rand.Reader, data)
	if err != nil {
		return err
	}
	return f.Public.Verify(data, sig)
}

func TestTPMKey(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	f := inTestTPM(t, m)
	if !f.InTPM() || !f.Encrypted || f.Public.Type() != ssh.KeyAlgoECDSA256 {
		t.Errorf("in a TPM %v, encrypted %v, of type %s", f.InTPM(), f.Encrypted, f.Public.Type())
	}
	if err := usable(f, tpmPassphrase); err != nil {
		t.Error(err)
	}
	m.Restart()
	if err := usable(f, tpmPassphrase); err != nil {
		t.Errorf("after the TPM's restart: %v", err)
	}
	if other := inTestTPM(t, m); other.Same(f) || bytes.Equal(other.Public.Marshal(), f.Public.Marshal()) {
		t.Error("two keys are the same")
	}

	// What it takes is no secret that the file has.
	if bytes.Contains(f.text, tpmPassphrase) {
		t.Error("the file has the passphrase")
	}
	for _, wrong := range [][]byte{nil, {}, []byte("wrong"), bytes.Repeat([]byte("x"), MaxPassphrase+1)} {
		if _, err := f.Open(wrong); !errors.Is(err, ErrPassphrase) {
			t.Errorf("%d bytes of a wrong passphrase: %v", len(wrong), err)
		}
	}
	k, err := f.Open(tpmPassphrase)
	if err != nil {
		t.Fatal(err)
	}
	kept := k.private.(*inTPM).passphrase
	k.Wipe()
	if !bytes.Equal(kept, make([]byte, len(tpmPassphrase))) {
		t.Errorf("Wipe leaves %q", kept)
	}
	if _, err := k.Sign(rand.Reader, nil); !errors.Is(err, tpm.ErrWrongAuth) {
		t.Errorf("signing with a wiped key: %v", err)
	}
	if n := m.Loaded(); n != 0 {
		t.Errorf("%d things are left in the TPM", n)
	}
}

// An empty passphrase, or one that is too long, never gets to the TPM: it would count
// it for all keys.
func TestTPMCountsNoPassphraseThatCannotBe(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	f := inTestTPM(t, m)
	m.LockAfter(2, time.Hour)
	for range 5 {
		for _, wrong := range [][]byte{nil, bytes.Repeat([]byte("x"), MaxPassphrase+1)} {
			if _, err := f.Open(wrong); !errors.Is(err, ErrPassphrase) {
				t.Fatal(err)
			}
			if _, err := f.Reprotect(wrong, "", tpmPassphrase); !errors.Is(err, ErrPassphrase) {
				t.Fatal(err)
			}
		}
	}
	if err := usable(f, tpmPassphrase); err != nil {
		t.Error(err)
	}
	// What the TPM says of those that it does count is what the owner should see.
	for _, want := range []string{"; the TPM locks after 1 more", ", and the TPM is locked now for at most 1h0m0s"} {
		if _, err := f.Open([]byte("wrong")); !errors.Is(err, ErrPassphrase) || err.Error() != ErrPassphrase.Error()+want {
			t.Fatalf("%v, want %v%s", err, ErrPassphrase, want)
		}
	}
	if _, err := f.Open(tpmPassphrase); !errors.Is(err, tpm.ErrLockout) || errors.Is(err, ErrPassphrase) {
		t.Errorf("the right passphrase after the lock: %v", err)
	}
	m.Unlock()
	if err := usable(f, tpmPassphrase); err != nil {
		t.Errorf("after the lock's end: %v", err)
	}
}

func TestTPMKeyIsNeverBare(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	long := bytes.Repeat([]byte("x"), MaxPassphrase+1)
	for want, passphrase := range map[error][]byte{ErrBare: nil, ErrTooLong: long} {
		if _, err := NewInTPM(m.Path(), passphrase); !errors.Is(err, want) {
			t.Errorf("made with a passphrase of %d bytes: %v", len(passphrase), err)
		}
		if _, err := inTestTPM(t, m).Reprotect(tpmPassphrase, "", passphrase); !errors.Is(err, want) {
			t.Errorf("changed to one of %d bytes: %v", len(passphrase), err)
		}
	}
}

func TestTPMReprotect(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	f := inTestTPM(t, m)
	next := bytes.Repeat([]byte("n"), MaxPassphrase)
	if _, err := f.Reprotect([]byte("wrong"), "c", next); !errors.Is(err, ErrPassphrase) {
		t.Errorf("with a wrong passphrase: %v", err)
	}
	text, err := f.Reprotect(tpmPassphrase, "c", next)
	if err != nil {
		t.Fatal(err)
	}
	g, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	g.Device = m.Path()
	if !bytes.Equal(g.Public.Marshal(), f.Public.Marshal()) || !g.InTPM() || g.Same(f) {
		t.Error("it is another key, or the same file")
	}
	if err := usable(g, next); err != nil {
		t.Error(err)
	}
	if _, err := g.Open(tpmPassphrase); !errors.Is(err, ErrPassphrase) {
		t.Errorf("the old passphrase: %v", err)
	}
}

func TestTPMErrors(t *testing.T) {
	t.Parallel()
	m, other := tpmtest.Start(t), tpmtest.Start(t)
	f := inTestTPM(t, m)
	all := func(want error) {
		t.Helper()
		if _, err := f.Open(tpmPassphrase); !errors.Is(err, want) {
			t.Errorf("open: %v, want %v", err, want)
		}
		if _, err := f.Reprotect(tpmPassphrase, "", []byte("next")); !errors.Is(err, want) {
			t.Errorf("reprotect: %v, want %v", err, want)
		}
	}
	f.Device = other.Path()
	all(tpm.ErrOtherTPM)
	f.Device = m.Path() + "x"
	all(tpm.ErrNoTPM)
	f.Device = m.Path()
	k, err := f.Open(tpmPassphrase)
	if err != nil {
		t.Fatal(err)
	}
	m.Stop() // while a key is open
	all(tpm.ErrNoTPM)
	if _, err := k.Sign(rand.Reader, nil); !errors.Is(err, tpm.ErrNoTPM) {
		t.Errorf("sign: %v", err)
	}
	m.Restart()
	if _, err := k.Sign(rand.Reader, nil); err != nil {
		t.Errorf("the open key after the TPM's return: %v", err)
	}
	m.SetOwner("somebody's")
	all(tpm.ErrOwner)
	m.Clear()
	all(tpm.ErrOtherTPM)
}

// What is no key of a TPM is damage, and said as that.
func TestTPMFilesDamaged(t *testing.T) {
	t.Parallel()
	f := inTestTPM(t, tpmtest.Start(t))
	for name, text := range map[string]string{
		"cut off":  string(f.text[:len(f.text)/2]),
		"empty":    tpmBegin + "\n",
		"followed": string(f.text) + "more\n",
		"changed":  strings.Replace(string(f.text), "\nM", "\nN", 1),
		"larger":   string(f.text) + strings.Repeat("\n", MaxSize),
	} {
		if _, err := Parse([]byte(text)); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
