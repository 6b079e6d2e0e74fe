// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/envelope"
)

// maxKeyFile bounds a key file in bytes: an encrypted P-256 key with a long
// comment takes a tenth of it.
const maxKeyFile = 16 << 10

// Errors of identities that their owner can mend.
var (
	ErrLabel        = errors.New("a label is 1 to 64 of the characters A-Z a-z 0-9 . _ - and begins with neither . nor -")
	ErrKeyType      = errors.New("the key type is neither ecdsa nor ed25519")
	ErrKeyExists    = errors.New("a key of this label exists already")
	ErrNoKey        = errors.New("no key has this label")
	ErrKeyDamaged   = errors.New("not a private key that vmux-signer can use")
	ErrKeyEncrypted = errors.New("the private key is encrypted")
	ErrManyKeys     = fmt.Errorf("%d keys exist, no more fit", envelope.MaxKeys)
)

// KeyType is a kind of identity.
type KeyType string

// The kinds: NIST P-256, as hardware has it, and Ed25519.
const (
	ECDSA   KeyType = "ecdsa"
	Ed25519 KeyType = "ed25519"
)

// Key is one identity.
type Key struct {
	Label    string
	Enabled  bool
	Provider envelope.ProviderKind
	Public   ssh.PublicKey // nil when Err is set
	Err      error         // why the key cannot be used

	signer ssh.Signer
}

// CheckLabel accepts an identity's label. It is a file's name and an SSH
// comment, so it is kept plain.
func CheckLabel(label string) error {
	const most = 64
	if label == "" || len(label) > most || label[0] == '.' || label[0] == '-' {
		return fmt.Errorf("%w: %q", ErrLabel, label)
	}
	for _, c := range []byte(label) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '_', c == '-':
		default:
			return fmt.Errorf("%w: %q", ErrLabel, label)
		}
	}
	return nil
}

func (h *Home) keyPath(label string) string { return filepath.Join(h.dir, keysName, label) }

// Keys gives every identity in the order of labels. One that cannot be read has
// Err set; the others are not affected.
func (h *Home) Keys() ([]Key, error) {
	s, err := h.Read()
	if err != nil {
		return nil, err
	}
	return h.keys(&s)
}

func (h *Home) keys(s *State) ([]Key, error) {
	entries, err := os.ReadDir(h.path(keysName))
	if err != nil {
		return nil, err
	}
	var keys []Key
	for _, e := range entries {
		label := e.Name()
		if CheckLabel(label) != nil {
			continue // an editor's or a copy's leftover
		}
		if len(keys) == envelope.MaxKeys {
			return nil, ErrManyKeys
		}
		k := Key{Label: label, Enabled: s.Keys[label].Enabled, Provider: envelope.Unknown}
		if k.signer, k.Err = readKey(h.keyPath(label)); k.Err == nil {
			k.Public = k.signer.PublicKey()
		}
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b Key) int {
		switch {
		case a.Label < b.Label:
			return -1
		case a.Label > b.Label:
			return 1
		}
		return 0
	})
	return keys, nil
}

// AddKey makes an identity and enables it. Errors: ErrLabel, ErrKeyType,
// ErrKeyExists, ErrManyKeys.
func (h *Home) AddKey(label string, t KeyType) (Key, error) {
	if err := CheckLabel(label); err != nil {
		return Key{}, err
	}
	k := Key{Label: label, Enabled: true, Provider: envelope.Unknown}
	_, err := h.Update(func(s *State) error {
		entries, err := os.ReadDir(h.path(keysName))
		if err != nil {
			return err
		}
		if len(entries) >= envelope.MaxKeys {
			return ErrManyKeys
		}
		// The file comes first: killed in between, it is a disabled key.
		if k.signer, err = writeNewKey(h.keyPath(label), label, t); err != nil {
			if errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("%w: %s", ErrKeyExists, label)
			}
			return err
		}
		k.Public = k.signer.PublicKey()
		s.Keys[label] = KeyState{Enabled: true}
		return nil
	})
	return k, err
}

// EnableKey enables or disables an identity. Error: ErrNoKey.
func (h *Home) EnableKey(label string, enabled bool) error {
	_, err := h.Update(func(s *State) error {
		if err := h.haveKey(label); err != nil {
			return err
		}
		s.Keys[label] = KeyState{Enabled: enabled}
		return nil
	})
	return err
}

// RemoveKey destroys an identity. Error: ErrNoKey.
func (h *Home) RemoveKey(label string) error {
	release, err := h.lock()
	if err != nil {
		return err
	}
	defer release()
	// The state comes first: killed in between, the file is a disabled key.
	_, err = h.updateLocked(func(s *State) error {
		if err := h.haveKey(label); err != nil {
			return err
		}
		delete(s.Keys, label)
		return nil
	})
	if err != nil {
		return err
	}
	if err := os.Remove(h.keyPath(label)); err != nil {
		return err
	}
	return syncDir(h.path(keysName))
}

func (h *Home) haveKey(label string) error {
	if err := CheckLabel(label); err != nil {
		return err
	}
	if _, err := os.Lstat(h.keyPath(label)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: %s", ErrNoKey, label)
		}
		return err
	}
	return nil
}

// writeNewKey makes a key and writes it in OpenSSH's private key format to a
// file that must not exist.
func writeNewKey(path, comment string, t KeyType) (ssh.Signer, error) {
	var private crypto.Signer
	var err error
	switch t {
	case ECDSA:
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case Ed25519:
		_, private, err = ed25519.GenerateKey(rand.Reader)
	default:
		return nil, fmt.Errorf("%w: %q", ErrKeyType, string(t))
	}
	if err != nil {
		return nil, err
	}
	signer, err := ssh.NewSignerFromSigner(private)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(private, comment)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = f.Write(pem.EncodeToMemory(block))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		os.Remove(path)
		return nil, err
	}
	return signer, syncDir(filepath.Dir(path))
}

// readKey reads a key file that must be ours alone. Errors: *PermissionError,
// ErrKeyDamaged, ErrKeyEncrypted.
func readKey(path string) (ssh.Signer, error) {
	if err := checkPrivate(path, 0o600); err != nil {
		return nil, err
	}
	// A pipe of that name would keep the open waiting.
	if fi, err := os.Stat(path); err != nil || !fi.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("%w: %s is not a file", ErrKeyDamaged, path), err)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxKeyFile {
		return nil, fmt.Errorf("%w: %s is larger than %d bytes", ErrKeyDamaged, path, maxKeyFile)
	}
	raw, err := ssh.ParseRawPrivateKey(b)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		return nil, fmt.Errorf("%w: %s", ErrKeyEncrypted, path)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrKeyDamaged, path, err)
	}
	switch k := raw.(type) {
	case *ecdsa.PrivateKey:
		if k.Curve != elliptic.P256() {
			return nil, fmt.Errorf("%w: %s is on curve %s, not P-256", ErrKeyDamaged, path, k.Params().Name)
		}
		return ssh.NewSignerFromSigner(k)
	case *ed25519.PrivateKey:
		return ssh.NewSignerFromSigner(k)
	}
	return nil, fmt.Errorf("%w: %s holds a %T", ErrKeyDamaged, path, raw)
}
