// SPDX-License-Identifier: BSD-3-Clause

package store

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// maxKeyFile bounds device-key.pem; a P-256 key is about 250 bytes.
const maxKeyFile = 16 << 10

const pemType = "PRIVATE KEY" // PKCS #8, RFC 7468 section 10

// KeyError says that device-key.pem holds no P-256 key. The file is left alone: the phones know
// this device by that key.
type KeyError struct {
	Path string
	Err  error
}

func (e *KeyError) Error() string {
	return fmt.Sprintf("%s is no usable device key: %v", e.Path, e.Err)
}
func (e *KeyError) Unwrap() error { return e.Err }

// LinkKey returns the key by which phones know this device, from the PKCS #8 PEM file path
// (Env.LinkKeyFile). It is made, with mode 0600, if the file is absent. The key authorizes asking a phone, never signing.
// Errors: *ModeError when others can read the file, *KeyError, *UnwritableError.
func LinkKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := readKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if err := makeKey(path); err != nil {
		return nil, &UnwritableError{path, err}
	}
	return readKey(path) // ours, or that of a process that was quicker
}

func readKey(path string) (*ecdsa.PrivateKey, error) {
	f, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the device key: %w", err)
	}
	defer f.Close()
	if err := trusted(filepath.Dir(path), nil); err != nil {
		return nil, err
	}
	if err := private(path, f, 0o077); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read the device key: %w", err)
	}
	key, err := parseKey(b)
	clear(b)
	if err != nil {
		return nil, &KeyError{path, err}
	}
	return key, nil
}

func parseKey(b []byte) (*ecdsa.PrivateKey, error) {
	if len(b) > maxKeyFile {
		return nil, fmt.Errorf("larger than %d bytes", maxKeyFile)
	}
	block, rest := pem.Decode(b)
	if block == nil {
		return nil, errors.New("not PEM")
	}
	defer clear(block.Bytes)
	if block.Type != pemType || len(block.Headers) != 0 {
		return nil, fmt.Errorf("PEM of type %q, not %q", block.Type, pemType)
	}
	if len(rest) != 0 {
		return nil, errors.New("something follows the key")
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("not a P-256 key")
	}
	return key, nil
}

// makeKey writes a new key under a temporary name and links it to path: the file is whole or absent, and
// the first of two processes wins. The error is nil when the other one did.
func makeKey(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	defer clear(der)
	text := pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der})
	defer clear(text)
	if err := writeNew(path, "."+filepath.Base(path), text); !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}
