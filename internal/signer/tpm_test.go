// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/keyfile"
	"vmux.app/toolkit/internal/tpm"
	"vmux.app/toolkit/internal/tpm/tpmtest"
)

var tpmPassphrase = []byte("correct horse")

// tpmHome is a home whose certificate authority and first key are in m, or, with
// inFiles, in files under the same passphrase.
func tpmHome(t *testing.T, m *tpmtest.TPM, inFiles bool) *Home {
	t.Helper()
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m.LockAfter(32, time.Hour) // as chips have it; swtpm begins with 3
	var h *Home
	if inFiles {
		h, err = Init(filepath.Join(dir, "h"), "Pocket", tpmPassphrase)
	} else {
		h, err = InitTPM(filepath.Join(dir, "h"), "Pocket", m.Path(), tpmPassphrase)
	}
	if err != nil {
		t.Fatal(err)
	}
	h.warn = func(s string) { t.Errorf("unexpected warning: %s", s) }
	h.SetTPM(m.Path())
	return h
}

// reopened opens the home as another process does.
func reopened(t *testing.T, h *Home) *Home {
	t.Helper()
	o, err := Open(h.Dir(), func(s string) { t.Errorf("unexpected warning: %s", s) })
	if err != nil {
		t.Fatal(err)
	}
	o.SetTPM(h.tpm)
	return o
}

// logText is a log that is read while it is written.
type logText struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// take gives what was written since the last time.
func (l *logText) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.b.Reset()
	return l.b.String()
}

// tpmServer serves a home to a device without a network.
func tpmServer(t *testing.T, h *Home, o Options) (*server, *logText) {
	t.Helper()
	_, err := h.Update(func(s *State) error {
		_, err := s.addDevice("laptop", testPin, time.Now())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	l := new(logText)
	o.Log = slog.New(slog.NewTextHandler(l, nil))
	o.Hint = func(err error) string {
		if errors.Is(err, tpm.ErrNoTPM) {
			return "plug it in"
		}
		return ""
	}
	s, err := newServer(h, o)
	if err != nil {
		t.Fatal(err)
	}
	return s, l
}

// loginBy asks for a login with a key and says what the device gets.
func loginBy(t *testing.T, s *server, label, id string) error {
	t.Helper()
	r := request(s, label, id[0])
	p, err := s.handle(t.Context(), testPin, id, r)
	if err != nil {
		return err
	}
	var sig ssh.Signature
	if err := ssh.Unmarshal(p.(*envelope.SignResponse).Signature, &sig); err != nil {
		t.Fatal(err)
	}
	return s.key(r.PublicKeyBlob).Public.Verify(r.Data, &sig)
}

// certificateBy asks for a certificate and says what the device gets.
func certificateBy(t *testing.T, s *server, id string) error {
	t.Helper()
	p, err := s.handle(t.Context(), testPin, id, usual(t))
	if err != nil {
		return err
	}
	k, err := ssh.ParsePublicKey(p.(*envelope.CertificateResponse).Certificate)
	if err != nil {
		t.Fatal(err)
	}
	c := k.(*ssh.Certificate)
	if !bytes.Equal(c.SignatureKey.Marshal(), s.current().ca.Public.Marshal()) {
		t.Error("another certificate authority has signed")
	}
	options := []string{forceCommand, sourceAddress, verifyRequired}
	return (&ssh.CertChecker{SupportedCriticalOptions: options}).CheckCert(c.ValidPrincipals[0], c)
}

func TestInitTPM(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	h := tpmHome(t, m, false)
	ca, err := h.authority()
	if err != nil || !ca.InTPM() {
		t.Errorf("the certificate authority is not in the TPM: %v", err)
	}
	keys, err := h.Keys()
	if err != nil || len(keys) != 1 || keys[0].Provider != envelope.HardwareToken || !keys[0].Encrypted() || !keys[0].Enabled {
		t.Errorf("keys %+v, %v", keys, err)
	}
	m.Restart()
	if err := reopened(t, h).CheckPassphrase(tpmPassphrase); err != nil {
		t.Error(err)
	}

	// What fails leaves nothing.
	dir := t.TempDir()
	for want, f := range map[error]func() (*Home, error){
		tpm.ErrNoTPM:    func() (*Home, error) { return InitTPM(filepath.Join(dir, "h"), "x", dir+"/none", tpmPassphrase) },
		keyfile.ErrBare: func() (*Home, error) { return InitTPM(filepath.Join(dir, "h"), "x", m.Path(), nil) },
		tpm.ErrLockout: func() (*Home, error) {
			m.LockAfter(0, time.Hour)
			return InitTPM(filepath.Join(dir, "h"), "x", m.Path(), tpmPassphrase)
		},
		ErrName:       func() (*Home, error) { return InitTPM(filepath.Join(dir, "h"), "", m.Path(), tpmPassphrase) },
		ErrHomeExists: func() (*Home, error) { return InitTPM(h.Dir(), "x", m.Path(), tpmPassphrase) },
		keyfile.ErrTooLong: func() (*Home, error) {
			return InitTPM(filepath.Join(dir, "h"), "x", m.Path(), make([]byte, keyfile.MaxPassphrase+1))
		},
	} {
		if _, err := f(); !errors.Is(err, want) {
			t.Errorf("init: %v, want %v", err, want)
		}
		if left := names(t, dir); len(left) > 0 {
			t.Errorf("%v leaves %v", want, left)
		}
	}
}

// Keys in files and in the TPM live in one home, under one passphrase.
func TestTPMAndFiles(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	for _, inFiles := range []bool{true, false} {
		h := tpmHome(t, m, inFiles)
		if _, err := h.AddTPMKey("hard", tpmPassphrase); err != nil {
			t.Fatal(err)
		}
		if _, err := h.AddKey("soft", keyfile.Ed25519, tpmPassphrase); err != nil {
			t.Fatal(err)
		}
		for want, f := range map[error]func() (Key, error){
			ErrPassphrase: func() (Key, error) { return h.AddTPMKey("new", []byte("wrong")) },
			ErrProtected:  func() (Key, error) { return h.AddTPMKey("new", nil) },
			ErrKeyExists:  func() (Key, error) { return h.AddTPMKey("hard", tpmPassphrase) },
			ErrLabel:      func() (Key, error) { return h.AddTPMKey(".x", tpmPassphrase) },
		} {
			if _, err := f(); !errors.Is(err, want) {
				t.Errorf("add: %v, want %v", err, want)
			}
		}
		m.Restart()
		s, _ := tpmServer(t, reopened(t, h), Options{Approver: yes{}, Passphrase: bytes.Clone(tpmPassphrase)})
		p, err := s.handle(t.Context(), testPin, "list", &envelope.KeyListRequest{})
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]envelope.ProviderKind{}
		for _, k := range p.(*envelope.KeyListResponse).Keys {
			got[k.Comment] = k.ProviderKind
		}
		first := envelope.HardwareToken
		if inFiles {
			first = envelope.Unknown
		}
		if len(got) != 3 || got["default"] != first || got["hard"] != envelope.HardwareToken || got["soft"] != envelope.Unknown {
			t.Errorf("devices see %v", got)
		}
		for i, label := range []string{"default", "hard", "soft"} {
			if err := loginBy(t, s, label, string(rune('a'+i))); err != nil {
				t.Errorf("%s: %v", label, err)
			}
		}
		if err := certificateBy(t, s, "d"); err != nil {
			t.Error(err)
		}

		// The passphrase of all of them changes, or that of none.
		next := []byte("next")
		changed := func(want error, old, passphrase []byte, now []byte) {
			t.Helper()
			before := keyFiles(t, h)
			if err := h.ChangePassphrase(old, passphrase); !errors.Is(err, want) {
				t.Errorf("change: %v, want %v", err, want)
			}
			if want != nil && keyFiles(t, h) != before {
				t.Errorf("%v has changed a file", want)
			}
			ca, err := h.authority()
			if err != nil {
				t.Fatal(err)
			}
			files := []*keyfile.File{ca}
			keys, err := h.Keys()
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range keys {
				files = append(files, k.file)
			}
			for _, f := range files {
				if k, err := f.Open(now); err != nil {
					t.Errorf("after %v: %v", want, err)
				} else {
					k.Wipe()
				}
			}
		}
		changed(keyfile.ErrBare, tpmPassphrase, nil, tpmPassphrase)
		changed(ErrPassphrase, next, next, tpmPassphrase)
		m.Stop()
		if err := h.ChangePassphrase(tpmPassphrase, next); !errors.Is(err, tpm.ErrNoTPM) {
			t.Errorf("without the TPM: %v", err)
		}
		if left := names(t, h.Dir()); strings.Contains(strings.Join(left, " "), "rekey") {
			t.Errorf("it leaves %v", left)
		}
		m.Restart()
		changed(nil, tpmPassphrase, next, next)

		// Destroying them takes no TPM.
		m.Stop()
		if err := h.RemoveKey("hard"); err != nil {
			t.Error(err)
		}
		if keys, unknown := h.PublicKeys(); len(keys) != 4 || len(unknown) > 0 {
			t.Errorf("to revoke: %v, not known %v", keys, unknown)
		}
		e, err := OpenToErase(h.Dir())
		if err != nil {
			t.Fatal(err)
		}
		if left, err := e.Erase(nothingFirst); err != nil || len(left) > 0 {
			t.Errorf("erase: %v, %v", left, err)
		}
		if _, err := os.Lstat(h.Dir()); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after erase: %v", err)
		}
		m.Restart()
	}
}

// keyFiles are the contents of all key files.
func keyFiles(t *testing.T, h *Home) string {
	t.Helper()
	var all strings.Builder
	for _, name := range append([]string{caName}, names(t, h.path(keysName))...) {
		path := h.path(name)
		if name != caName {
			path = h.keyPath(filepath.Base(name))
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(b)
	}
	return all.String()
}

// T06: what is wrong with the TPM is said, to the device without any path, and is
// nobody's failed approval. The signer goes on and works as soon as the TPM does.
func TestThreat_T06_TPMErrorsAreNoFailures(t *testing.T) {
	t.Parallel()
	m, other := tpmtest.Start(t), tpmtest.Start(t)
	h := tpmHome(t, m, false)
	s, log := tpmServer(t, h, Options{Approver: yes{}, Passphrase: bytes.Clone(tpmPassphrase)})
	n := 0
	id := func() string { n++; return string(rune('a' + n)) }
	works := func() {
		t.Helper()
		if err := loginBy(t, s, FirstKey, id()); err != nil {
			t.Errorf("the TPM is as it was: %v", err)
		}
		if err := certificateBy(t, s, id()); err != nil {
			t.Errorf("the TPM is as it was: %v", err)
		}
		log.take()
	}
	works()
	for _, c := range []struct {
		want     error
		hint     string
		do, undo func()
	}{
		{tpm.ErrNoTPM, "plug it in", m.Stop, m.Restart},
		{tpm.ErrLockout, "", func() { m.LockAfter(0, time.Hour) }, func() { m.LockAfter(9, time.Hour); m.Unlock() }},
		{tpm.ErrOwner, "", m.DisableOwner, m.Restart},
		{tpm.ErrOtherTPM, "", func() { h.SetTPM(other.Path()); s.mustReload(t) }, func() { h.SetTPM(m.Path()); s.mustReload(t) }},
	} {
		c.do()
		for what, err := range map[string]error{"login": loginBy(t, s, FirstKey, id()), "certificate": certificateBy(t, s, id())} {
			if codeOf(err) != envelope.CodeInternal || !strings.Contains(err.Error(), c.want.Error()) || strings.Contains(err.Error(), "/") {
				t.Errorf("%v: the device gets for a %s: %v", c.want, what, err)
			}
		}
		text := log.take()
		if strings.Count(text, c.want.Error()) != 2 || (c.want == tpm.ErrNoTPM) != strings.Contains(text, m.Path()) ||
			strings.Count(text, `hint="plug it in"`) != 2*strings.Count(c.hint, "plug") {
			t.Errorf("%v: the log has %s", c.want, text)
		}
		if st, err := h.Read(); err != nil || st.Failures != 0 || s.current().failures() != 0 {
			t.Errorf("%v: %d failures counted, %v", c.want, st.Failures, err)
		}
		if strings.Contains(text, "wrong passphrase\"") {
			t.Errorf("%v: the log speaks of a wrong passphrase: %s", c.want, text)
		}
		c.undo()
		works()
	}
}

// T06: a wrong passphrase is a failure, the same as with keys in files.
func TestThreat_T06_TPMWrongPassphraseCounts(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	h := tpmHome(t, m, false)
	words := filepath.Join(t.TempDir(), "word")
	a, err := askpass(t, script(t, "cat "+words))
	if err != nil {
		t.Fatal(err)
	}
	say := func(word string) {
		if err := os.WriteFile(words, []byte(word+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, _ := tpmServer(t, h, Options{Approver: a})
	say("wrong")
	if err := loginBy(t, s, FirstKey, "a"); codeOf(err) != envelope.CodeLocked {
		t.Errorf("wrong passphrases only: %v", err)
	}
	if st, err := h.Read(); err != nil || st.Failures != maxFailures {
		t.Errorf("%d failures, %v", st.Failures, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.unlock(ctx, bytes.Clone(tpmPassphrase)); err != nil {
		t.Errorf("unlock: %v", err)
	}
	say(string(tpmPassphrase))
	if err := loginBy(t, s, FirstKey, "b"); err != nil {
		t.Errorf("with the right one: %v", err)
	}
	m.Stop()
	if err := s.unlock(ctx, bytes.Clone(tpmPassphrase)); !errors.Is(err, tpm.ErrNoTPM) {
		t.Errorf("unlock without the TPM: %v", err)
	}
	if st, err := h.Read(); err != nil || st.Failures != 0 {
		t.Errorf("%d failures, %v", st.Failures, err)
	}
}

func (s *server) mustReload(t *testing.T) {
	t.Helper()
	if err := s.reload(); err != nil {
		t.Fatal(err)
	}
}

// A copy of a TPM's key file with an earlier passphrase is none that ssh-keygen mends.
func TestTPMForeignKey(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	h := tpmHome(t, m, false)
	text, err := os.ReadFile(h.keyPath(FirstKey))
	if err != nil {
		t.Fatal(err)
	}
	if err := h.ChangePassphrase(bytes.Clone(tpmPassphrase), []byte("another")); err != nil {
		t.Fatal(err)
	}
	h.put(t, string(text), "keys/copy")
	err = h.ChangePassphrase([]byte("another"), bytes.Clone(tpmPassphrase))
	if foreign, ok := errors.AsType[*ForeignKeyError](err); !ok || foreign.Label != "copy" || !foreign.InTPM {
		t.Errorf("%v", err)
	}
}

// The command that unlocks hears what is wrong with the TPM as its own kind of error,
// so that it has the right hint.
func TestTPMErrorsCrossTheControlSocket(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	h := tpmHome(t, m, false)
	serveWith(t, h, Options{Approver: yes{}})
	if err := h.Unlock(t.Context(), bytes.Clone(tpmPassphrase)); err != nil {
		t.Error(err)
	}
	m.Stop()
	if err := h.Unlock(t.Context(), bytes.Clone(tpmPassphrase)); !errors.Is(err, tpm.ErrNoTPM) || errors.Is(err, ErrControl) {
		t.Errorf("unlock without the TPM: %v", err)
	}
	m.Restart()
	m.SetOwner("somebody's")
	if err := h.Unlock(t.Context(), bytes.Clone(tpmPassphrase)); !errors.Is(err, tpm.ErrOwner) {
		t.Errorf("unlock with another owner: %v", err)
	}
}
