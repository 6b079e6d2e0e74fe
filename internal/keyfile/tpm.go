// SPDX-License-Identifier: BSD-3-Clause

package keyfile

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/tpm"
)

// ErrBare says that a key in a TPM cannot be without a passphrase.
var ErrBare = errors.New("a key in a TPM always has a passphrase")

// tpmBegin begins the file of a key in a TPM.
const tpmBegin = "-----BEGIN TSS2 PRIVATE KEY-----"

// NewInTPM makes a P-256 key in the TPM at device and gives its file, which only
// that TPM can use. Errors: ErrBare, ErrTooLong, those of tpm.Create.
func NewInTPM(device string, passphrase []byte) (text []byte, err error) {
	switch {
	case len(passphrase) == 0:
		return nil, ErrBare
	case len(passphrase) > MaxPassphrase:
		return nil, ErrTooLong
	}
	k, err := tpm.Create(device, passphrase)
	if err != nil {
		return nil, err
	}
	return k.Marshal(), nil
}

func parseTPM(text []byte) (*File, error) {
	k, err := tpm.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	public, err := ssh.NewPublicKey(k.Public())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return &File{Public: public, Encrypted: true, Device: tpm.Default, text: bytes.Clone(text), hardware: k}, nil
}

// InTPM says whether the key is in a TPM.
func (f *File) InTPM() bool { return f.hardware != nil }

// openTPM proves the passphrase to the TPM. Errors: ErrPassphrase, those of
// tpm.Key.
func (f *File) openTPM(passphrase []byte) (crypto.Signer, error) {
	if len(passphrase) == 0 || len(passphrase) > MaxPassphrase { // which the TPM need not count
		return nil, ErrPassphrase
	}
	if err := f.hardware.Check(f.Device, passphrase); err != nil {
		return nil, err
	}
	return &inTPM{f.hardware, f.Device, bytes.Clone(passphrase)}, nil
}

// reprotectTPM gives the same key under another passphrase. The old file goes on
// working.
func (f *File) reprotectTPM(old, passphrase []byte) ([]byte, error) {
	switch {
	case len(passphrase) == 0:
		return nil, ErrBare
	case len(passphrase) > MaxPassphrase:
		return nil, ErrTooLong
	case len(old) == 0 || len(old) > MaxPassphrase: // as in openTPM
		return nil, ErrPassphrase
	}
	k, err := f.hardware.ChangeAuth(f.Device, old, passphrase)
	if err != nil {
		return nil, err
	}
	return k.Marshal(), nil
}

// inTPM signs by a TPM.
type inTPM struct {
	key        *tpm.Key
	device     string
	passphrase []byte
}

func (k *inTPM) Public() crypto.PublicKey { return k.key.Public() }

// Sign implements crypto.Signer for SHA-256 digests.
func (k *inTPM) Sign(_ io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	if o.HashFunc() != crypto.SHA256 {
		return nil, fmt.Errorf("a key in a TPM signs SHA-256 digests, not those of %v", o.HashFunc())
	}
	return k.key.Sign(k.device, k.passphrase, digest)
}
