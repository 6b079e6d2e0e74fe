// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/store"
)

// removedName is the file with the public halves of identities that were removed,
// one a line as in authorized_keys, with the label as the comment. Servers may
// still accept them.
const removedName = "removed.pub"

// maxRemoved bounds removed.pub in bytes; it has room for thousands of keys.
const maxRemoved = 1 << 20

// ErrManyRemoved says that removed.pub is full.
var ErrManyRemoved = errors.New(removedName + " has no room for another key")

// PublicKey is a public half that servers may know.
type PublicKey struct {
	CA      bool   // of the certificate authority
	Label   string // of an identity
	Removed bool   // of an identity that was removed
	Public  ssh.PublicKey
}

// UnknownKeyError says that a public half cannot be told.
type UnknownKeyError struct {
	CA    bool
	Label string // of an identity, empty where that is not known either
	Err   error
}

func (e *UnknownKeyError) Error() string {
	switch {
	case e.CA:
		return fmt.Sprintf("the certificate authority's key is not known: %v", e.Err)
	case e.Label != "":
		return fmt.Sprintf("the key %s is not known: %v", e.Label, e.Err)
	}
	return e.Err.Error()
}
func (e *UnknownKeyError) Unwrap() error { return e.Err }

// PublicKeys gives the public halves of the certificate authority and of every
// identity that there is or was, each once, and why others cannot be told. It takes
// no passphrase and changes nothing, and a key that others can read is told, too:
// it is the first that has to be revoked.
func (h *Home) PublicKeys() (keys []PublicKey, unknown []*UnknownKeyError) {
	seen := map[string]bool{}
	add := func(k PublicKey) {
		if blob := string(k.Public.Marshal()); !seen[blob] {
			seen[blob] = true
			keys = append(keys, k)
		}
	}
	if k, err := publicHalf(h.path(caName)); err != nil {
		unknown = append(unknown, &UnknownKeyError{CA: true, Err: err})
	} else {
		add(PublicKey{CA: true, Public: k})
	}
	entries, err := os.ReadDir(h.path(keysName)) // in the order of names
	if err != nil {
		unknown = append(unknown, &UnknownKeyError{Err: err})
	}
	for _, e := range entries {
		label := e.Name()
		if CheckLabel(label) != nil {
			continue // as in keys
		}
		if k, err := publicHalf(h.keyPath(label)); err != nil {
			unknown = append(unknown, &UnknownKeyError{Label: label, Err: err})
		} else {
			add(PublicKey{Label: label, Public: k})
		}
	}
	text, err := h.readRemoved()
	if err != nil {
		return keys, append(unknown, &UnknownKeyError{Err: err})
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		k, err := parseRemoved(strings.TrimSuffix(line, "\n"))
		if err != nil {
			unknown = append(unknown, &UnknownKeyError{Err: fmt.Errorf("%s, line %d: %w", h.path(removedName), n, err)})
			continue
		}
		add(k)
	}
	return keys, unknown
}

// publicHalf is that of a key file, whoever else can read it.
func publicHalf(path string) (ssh.PublicKey, error) {
	f, err := readKeyFile(path)
	if err != nil {
		return nil, err
	}
	return f.Public, nil
}

func (h *Home) readRemoved() ([]byte, error) {
	b, err := store.ReadFile(h.path(removedName), maxRemoved)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, store.ErrTooLarge):
		return nil, fmt.Errorf("%s is %w", h.path(removedName), err)
	}
	return b, err
}

// parseRemoved reads one line of removed.pub.
func parseRemoved(line string) (PublicKey, error) {
	fields := strings.Split(line, " ")
	if len(fields) != 3 {
		return PublicKey{}, errors.New("not a public key and a label")
	}
	if err := CheckLabel(fields[2]); err != nil {
		return PublicKey{}, err
	}
	blob, err := base64.StdEncoding.DecodeString(fields[1])
	if err != nil {
		return PublicKey{}, err
	}
	k, err := ssh.ParsePublicKey(blob)
	if err != nil {
		return PublicKey{}, err
	}
	if k.Type() != fields[0] {
		return PublicKey{}, fmt.Errorf("a key of type %q as %q", k.Type(), fields[0])
	}
	return PublicKey{Label: fields[2], Removed: true, Public: k}, nil
}

// rememberRemovedLocked writes down the public half of an identity that is about to
// be removed. Error: ErrManyRemoved.
func (h *Home) rememberRemovedLocked(label string) error {
	k, err := publicHalf(h.keyPath(label))
	if err != nil {
		h.warn(fmt.Sprintf("\"vmux-signer revoke\" will not name the key %s, which cannot be read: %v", label, err))
		return nil
	}
	text, err := h.readRemoved()
	if err != nil {
		return err
	}
	line := append(bytes.TrimSuffix(ssh.MarshalAuthorizedKey(k), []byte("\n")), ' ')
	for have := range bytes.Lines(text) {
		if bytes.HasPrefix(have, line) {
			return nil
		}
	}
	if len(text) > 0 && text[len(text)-1] != '\n' {
		text = append(text, '\n') // of what somebody has cut off
	}
	text = append(append(text, line...), label+"\n"...)
	if len(text) > maxRemoved {
		return fmt.Errorf("%w: %s", ErrManyRemoved, h.path(removedName))
	}
	return store.WriteFile(h.path(removedName), text)
}
