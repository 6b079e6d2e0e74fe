// SPDX-License-Identifier: BSD-3-Clause

package store

import (
	"crypto/ecdsa"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Inspect is Load that changes nothing: a damaged state is left where it is, so that SetAside is empty, and a file that
// others can read is a *ModeError. Without a file the state is empty.
func (s *Store) Inspect() (State, error) {
	return s.readAs(func(f *os.File) error { return private(s.path, f, 0o077) })
}

// InspectLinkKey is LinkKey that makes none. The error is fs.ErrNotExist, wrapped, when there is none.
func InspectLinkKey(path string) (*ecdsa.PrivateKey, error) { return readKey(path) }

// Trusted returns a *ModeError when somebody else than this user and root may write the file path or replace it in
// its directory. What is absent is nobody's.
func Trusted(path string) error {
	for _, p := range []string{filepath.Dir(path), path} {
		if err := trusted(p, nil); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
