// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/audit"
	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/keyfile"
	"vmux.app/toolkit/internal/store"
)

// Errors of identities that their owner can mend.
var (
	ErrLabel     = errors.New("a label is 1 to 64 of the characters A-Z a-z 0-9 . _ - and begins with neither . nor -")
	ErrKeyExists = errors.New("a key of this label exists already")
	ErrNoKey     = errors.New("no key has this label")
	ErrManyKeys  = fmt.Errorf("%d keys exist, no more fit", envelope.MaxKeys)
	// ErrProtected says that a passphrase is missing, ErrNotProtected that there is
	// none to be given.
	ErrProtected    = errors.New("the keys are encrypted, and no passphrase was given")
	ErrNotProtected = errors.New("the keys are not encrypted, they have no passphrase")
)

// newPrefix begins the name of a key file that is being written. It begins no
// label.
const newPrefix = ".new-"

// Key is one identity.
type Key struct {
	Label    string
	Enabled  bool
	Provider envelope.ProviderKind
	Public   ssh.PublicKey // nil when Err is set
	Err      error         // why the key cannot be used

	file *keyfile.File
}

// Encrypted says whether using the key takes a passphrase.
func (k *Key) Encrypted() bool { return k.file != nil && k.file.Encrypted }

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
		keys = append(keys, h.key(s, label))
	}
	return keys, nil
}

func (h *Home) key(s *State, label string) Key {
	k := Key{Label: label, Enabled: s.Keys[label].Enabled, Provider: envelope.Unknown}
	if k.file, k.Err = h.readKey(h.keyPath(label)); k.Err == nil {
		k.Public, k.Provider = k.file.Public, providerOf(k.file)
	}
	return k
}

// Key gives the identity with a label, as Keys does, also where there are too many.
// Error: ErrNoKey.
func (h *Home) Key(label string) (Key, error) {
	s, err := h.Read()
	if err != nil {
		return Key{}, err
	}
	if err := h.haveKey(label); err != nil {
		return Key{}, err
	}
	return h.key(&s, label), nil
}

// AddKey makes an identity and enables it. It is protected as the certificate
// authority is, with the same passphrase. Errors: ErrLabel, keyfile.ErrType,
// ErrKeyExists, ErrManyKeys, ErrPassphrase, ErrProtected, ErrNotProtected.
func (h *Home) AddKey(label string, t keyfile.Type, passphrase []byte) (Key, error) {
	return h.addKey(label, passphrase, func() ([]byte, error) { return keyfile.New(t, label, passphrase) })
}

// AddTPMKey is AddKey for a P-256 key in the home's TPM. Errors beside those: the ones
// of tpm.Create.
func (h *Home) AddTPMKey(label string, passphrase []byte) (Key, error) {
	return h.addKey(label, passphrase, func() ([]byte, error) { return keyfile.NewInTPM(h.tpm, passphrase) })
}

func (h *Home) addKey(label string, passphrase []byte, create func() ([]byte, error)) (Key, error) {
	if err := CheckLabel(label); err != nil {
		return Key{}, err
	}
	k := Key{Label: label, Enabled: true}
	_, err := h.Update(func(s *State) error {
		if err := h.finishRekeyLocked(); err != nil { // else the key would have the old passphrase
			return err
		}
		if err := h.CheckPassphrase(passphrase); err != nil {
			return err
		}
		entries, err := os.ReadDir(h.path(keysName))
		if err != nil {
			return err
		}
		if len(entries) >= envelope.MaxKeys {
			return ErrManyKeys
		}
		// The file comes first: killed in between, it is a disabled key.
		if err := h.freeLabel(label); err != nil { // before the TPM works
			return err
		}
		if k.file, err = h.writeNewKey(h.keyPath(label), create); err != nil {
			if errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("%w: %s", ErrKeyExists, label)
			}
			return err
		}
		k.Public, k.Provider = k.file.Public, providerOf(k.file)
		s.Keys[label] = KeyState{Enabled: true}
		return nil
	})
	if err == nil {
		h.recordDone(audit.Record{Event: recordKey, Key: label, Fingerprint: fingerprint(k.Public), Outcome: "added"})
	}
	return k, err
}

// freeLabel says whether a label is free. Error: ErrKeyExists.
func (h *Home) freeLabel(label string) error {
	if _, err := os.Lstat(h.keyPath(label)); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s", ErrKeyExists, label)
	}
	return nil
}

// providerOf is where a key's private half is, for devices.
func providerOf(f *keyfile.File) envelope.ProviderKind {
	if f.InTPM() {
		return envelope.HardwareToken
	}
	return envelope.Unknown
}

// Protected says whether the keys are encrypted.
func (h *Home) Protected() (bool, error) {
	ca, err := h.authority()
	if err != nil {
		return false, err
	}
	return ca.Encrypted, nil
}

// CheckPassphrase says whether a passphrase is the home's, which is the
// certificate authority's. Errors: ErrPassphrase, ErrProtected, ErrNotProtected.
func (h *Home) CheckPassphrase(passphrase []byte) error {
	ca, err := h.authority()
	if err != nil {
		return err
	}
	switch {
	case ca.Encrypted && len(passphrase) == 0:
		return ErrProtected
	case !ca.Encrypted && len(passphrase) > 0:
		return ErrNotProtected
	}
	k, err := ca.Open(passphrase)
	if err != nil {
		return err
	}
	k.Wipe()
	return nil
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
	if err == nil {
		outcome := "disabled"
		if enabled {
			outcome = "enabled"
		}
		h.recordDone(audit.Record{Event: recordKey, Key: label, Outcome: outcome})
	}
	return err
}

// RemoveKey destroys an identity. Its public half is remembered, see PublicKeys. What
// a link leads to is left, and said. Errors: ErrNoKey, ErrManyRemoved,
// *store.UnwritableError, after which the key may be disabled.
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
		if err := h.rememberRemovedLocked(label); err != nil {
			return err
		}
		delete(s.Keys, label)
		return nil
	})
	if err != nil {
		return err
	}
	left := leadsTo(h.keyPath(label))
	if err := os.Remove(h.keyPath(label)); err != nil {
		return &store.UnwritableError{Path: h.keyPath(label), Err: err}
	}
	for _, path := range left {
		h.warn("not the signer's, and left: " + path)
	}
	h.recordDone(audit.Record{Event: recordKey, Key: label, Outcome: "removed"})
	return store.SyncDir(h.path(keysName))
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

// writeNewKey makes a key and writes it to a file that must not exist. The file
// appears whole or not at all.
func (h *Home) writeNewKey(path string, create func() ([]byte, error)) (*keyfile.File, error) {
	text, err := create()
	if err != nil {
		return nil, err
	}
	file, err := keyfile.Parse(text)
	if err != nil {
		return nil, err
	}
	file.Device = h.tpm
	return file, store.WriteNew(path, newPrefix, text)
}

// readKey reads a key file that must be ours alone. Errors: *PermissionError,
// keyfile.ErrDamaged.
func (h *Home) readKey(path string) (*keyfile.File, error) {
	if err := checkPrivate(path, 0o600); err != nil {
		return nil, err
	}
	f, err := readKeyFile(path)
	if err != nil {
		return nil, err
	}
	f.Device = h.tpm
	return f, nil
}

// readKeyFile reads one that others may be able to read. Error: keyfile.ErrDamaged.
func readKeyFile(path string) (*keyfile.File, error) {
	b, err := store.ReadFile(path, keyfile.MaxSize)
	switch {
	case errors.Is(err, store.ErrTooLarge):
		return nil, fmt.Errorf("%s: %w: %w", path, keyfile.ErrDamaged, err)
	case isDamage(err), errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: %w", keyfile.ErrDamaged, err)
	case err != nil:
		return nil, err
	}
	k, err := keyfile.Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}
