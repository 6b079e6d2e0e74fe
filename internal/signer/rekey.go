// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"vmux.app/toolkit/internal/audit"
	"vmux.app/toolkit/internal/keyfile"
	"vmux.app/toolkit/internal/store"
)

// A change of the passphrase writes every key file anew. The new ones are first
// written to a directory of their own, which then gets the name that says that
// all of them are there; whoever opens the home next finishes what was begun.
const (
	rekeyingName = "rekey.new" // not complete: as if nothing had happened
	rekeyName    = "rekey"     // complete: to be put in place
	// rekeyKey begins the name of an identity's file in there, caName is that of the
	// certificate authority's.
	rekeyKey = "key-"
)

// ForeignKeyError says that a key has another passphrase than the home's.
type ForeignKeyError struct {
	Label string
	Path  string
	InTPM bool // where ssh-keygen does not get at it
}

func (e *ForeignKeyError) Error() string {
	return fmt.Sprintf("the key %s has another passphrase than the others", e.Label)
}

// ChangePassphrase encrypts all keys with another passphrase, or none when it is
// empty. After a crash either all have the old one or, as soon as the home is
// opened again, all have the new one. A key that cannot be read stays as it is and
// is said. Errors: ErrPassphrase, ErrProtected, ErrNotProtected, *ForeignKeyError,
// keyfile.ErrTooLong.
func (h *Home) ChangePassphrase(old, passphrase []byte) error {
	release, err := h.lock()
	if err != nil {
		return err
	}
	defer release()
	if err := h.finishRekeyLocked(); err != nil { // another command may have died since the home was opened
		return err
	}
	if err := h.CheckPassphrase(old); err != nil {
		return err
	}
	s, err := h.readLocked()
	if err != nil {
		return err
	}
	keys, err := h.keys(&s)
	if err != nil {
		return err
	}
	dir := h.path(rekeyingName)
	h.killed()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return &store.UnwritableError{Path: dir, Err: err}
	}
	defer os.RemoveAll(dir) // gone by its other name when all went well
	put := func(name, comment string, f *keyfile.File) error {
		text, err := f.Reprotect(old, comment, passphrase)
		if errors.Is(err, ErrPassphrase) {
			return &ForeignKeyError{comment, h.keyPath(comment), f.InTPM()}
		}
		if err != nil {
			return fmt.Errorf("the key %s: %w", comment, err)
		}
		h.killed()
		err = store.WriteFile(filepath.Join(dir, name), text)
		if e, ok := errors.AsType[*store.UnwritableError](err); ok {
			err = &store.UnwritableError{Path: dir, Err: e.Err} // what is in it is gone when somebody looks
		}
		return err
	}
	ca, err := h.authority()
	if err != nil {
		return err
	}
	if err := put(caName, "vmux-signer CA "+s.Name, ca); err != nil {
		return err
	}
	for _, k := range keys {
		if k.Err != nil {
			h.warn(fmt.Sprintf("the key %s cannot be used and keeps its passphrase: %v", k.Label, k.Err))
			continue
		}
		if err := put(rekeyKey+k.Label, k.Label, k.file); err != nil {
			return err
		}
	}
	h.killed()
	if err := os.Rename(dir, h.path(rekeyName)); err != nil {
		return err
	}
	h.killed()
	if err := store.SyncDir(h.dir); err != nil {
		return err
	}
	if err := h.finishRekeyLocked(); err != nil {
		return err
	}
	h.recordDone(audit.Record{Event: recordHome, Outcome: "passphrase changed"})
	return nil
}

// dropRekeying removes what a change of the passphrase has left that was cut off
// before it was complete: keys that are not encrypted may be in it. One that goes on
// is left alone.
func (h *Home) dropRekeying() error {
	if _, err := os.Lstat(h.path(rekeyingName)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	release, err := store.TryLock(h.path(lockName))
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	}
	if err != nil {
		return err
	}
	defer release()
	return os.RemoveAll(h.path(rekeyingName))
}

// finishRekey finishes a change of the passphrase that was cut off.
func (h *Home) finishRekey() error {
	if _, err := os.Lstat(h.path(rekeyName)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	release, err := h.lock()
	if err != nil {
		return err
	}
	defer release()
	return h.finishRekeyLocked()
}

func (h *Home) finishRekeyLocked() error {
	dir := h.path(rekeyName)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		to := h.path(caName)
		if label, ok := strings.CutPrefix(e.Name(), rekeyKey); ok && CheckLabel(label) == nil {
			to = h.keyPath(label)
			if _, err := os.Lstat(to); errors.Is(err, fs.ErrNotExist) {
				continue // it was removed since
			}
		} else if e.Name() != caName {
			continue
		}
		from := filepath.Join(dir, e.Name())
		if _, err := h.readKey(from); err != nil {
			return err
		}
		h.killed()
		if err := os.Rename(from, to); err != nil {
			return err
		}
	}
	h.killed()
	if err := errors.Join(store.SyncDir(h.path(keysName)), store.SyncDir(h.dir)); err != nil {
		return err
	}
	h.killed()
	return os.RemoveAll(dir)
}

// killed is where a test ends the process.
func (h *Home) killed() {
	if h.kill != nil {
		h.kill()
	}
}
