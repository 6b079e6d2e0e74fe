// SPDX-License-Identifier: BSD-3-Clause

// Package keyfile is what a private key looks like at rest: OpenSSH's private key
// format (PROTOCOL.key), encrypted with a passphrase or not, with the public half
// in the clear; or the file of a key in a TPM 2.0.
package keyfile

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/tpm"
)

const (
	// MaxSize bounds a key file in bytes: an encrypted P-256 key with a long comment
	// takes a tenth of it.
	MaxSize = 16 << 10
	// maxRounds bounds the work that a file can ask for before its passphrase is
	// known to be wrong, some ten seconds. ssh-keygen writes 16 or 24, and
	// golang.org/x/crypto/ssh opens nothing beyond.
	maxRounds = 2048
	// MaxPassphrase bounds a passphrase in bytes.
	MaxPassphrase = 1024
)

// Errors of a key file.
var (
	ErrDamaged = errors.New("not a private key that can be used here")
	// ErrPassphrase says that a passphrase is wrong. A TPM adds to the text how many
	// more wrong ones lock it.
	ErrPassphrase = tpm.ErrWrongAuth
	ErrType       = errors.New("the key type is neither ecdsa nor ed25519")
	ErrTooLong    = fmt.Errorf("a passphrase has at most %d bytes", MaxPassphrase)
)

// Type is a kind of key.
type Type string

// The kinds: NIST P-256, as hardware has it, and Ed25519.
const (
	ECDSA   Type = "ecdsa"
	Ed25519 Type = "ed25519"
)

// File is a private key at rest.
type File struct {
	// Public is the public half. What an encrypted file says of it is proven when it
	// is opened.
	Public ssh.PublicKey
	// Encrypted says that opening takes a passphrase.
	Encrypted bool
	// Device is the TPM that has the key, tpm.Default unless it is changed before the
	// file is used; of other files it means nothing.
	Device string

	text     []byte
	hardware *tpm.Key // nil when the private key is in the file
}

// Key is an opened private key.
type Key struct {
	ssh.Signer
	private crypto.Signer
}

// scalar is where a private key keeps it.
func scalar(k *ecdsa.PrivateKey) []big.Word {
	//lint:ignore SA1019 PrivateKey.Bytes gives a copy, and what is to be overwritten is the original
	return k.D.Bits()
}

// Wipe overwrites the private key, of which the runtime may have left copies.
func (k *Key) Wipe() {
	switch p := k.private.(type) {
	case *ecdsa.PrivateKey:
		clear(scalar(p))
	case ed25519.PrivateKey:
		clear(p)
	case *inTPM:
		clear(p.passphrase)
	}
}

// New makes a key and gives its file, encrypted unless the passphrase is empty.
// Errors: ErrType, ErrTooLong.
func New(t Type, comment string, passphrase []byte) (text []byte, err error) {
	var private crypto.Signer
	switch t {
	case ECDSA:
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case Ed25519:
		_, private, err = ed25519.GenerateKey(rand.Reader)
	default:
		return nil, fmt.Errorf("%w: %q", ErrType, string(t))
	}
	if err != nil {
		return nil, err
	}
	return marshal(private, comment, passphrase)
}

func marshal(private crypto.PrivateKey, comment string, passphrase []byte) ([]byte, error) {
	var block *pem.Block
	var err error
	switch {
	case len(passphrase) > MaxPassphrase: // nobody could open it
		return nil, ErrTooLong
	case len(passphrase) == 0:
		block, err = ssh.MarshalPrivateKey(private, comment)
	default:
		block, err = ssh.MarshalPrivateKeyWithPassphrase(private, comment, passphrase)
	}
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(block), nil
}

// Parse reads a key file. Error: ErrDamaged.
func Parse(text []byte) (*File, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("%w: larger than %d bytes", ErrDamaged, MaxSize)
	}
	if bytes.HasPrefix(text, []byte(tpmBegin)) {
		return parseTPM(text)
	}
	f := &File{text: bytes.Clone(text)}
	h, err := parseHeader(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	f.Encrypted = h.encrypted
	if f.Public, err = ssh.ParsePublicKey(h.public); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	switch f.Public.Type() {
	case ssh.KeyAlgoECDSA256, ssh.KeyAlgoED25519:
	default:
		return nil, fmt.Errorf("%w: it holds a key of type %s", ErrDamaged, f.Public.Type())
	}
	if !f.Encrypted { // what cannot be opened should not be listed
		k, err := f.Open(nil)
		if err != nil {
			return nil, err
		}
		k.Wipe()
	}
	return f, nil
}

// Same says whether two files have the same content.
func (f *File) Same(other *File) bool { return bytes.Equal(f.text, other.text) }

// Open gives the private key, or the use of it. Errors: ErrPassphrase, ErrDamaged,
// those of tpm.Key.
func (f *File) Open(passphrase []byte) (*Key, error) {
	private, err := f.open(passphrase)
	if err != nil {
		return nil, err
	}
	s, err := ssh.NewSignerFromSigner(private)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	k := &Key{s, private}
	if !bytes.Equal(s.PublicKey().Marshal(), f.Public.Marshal()) {
		k.Wipe()
		return nil, fmt.Errorf("%w: its halves do not belong together", ErrDamaged)
	}
	return k, nil
}

func (f *File) open(passphrase []byte) (crypto.Signer, error) {
	var raw any
	var err error
	switch {
	case f.InTPM():
		return f.openTPM(passphrase)
	case !f.Encrypted:
		raw, err = ssh.ParseRawPrivateKey(f.text)
	case len(passphrase) == 0 || len(passphrase) > MaxPassphrase:
		return nil, ErrPassphrase
	default:
		raw, err = ssh.ParseRawPrivateKeyWithPassphrase(f.text, passphrase)
	}
	switch {
	case errors.Is(err, x509.IncorrectPasswordError):
		return nil, ErrPassphrase
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	switch k := raw.(type) {
	case *ecdsa.PrivateKey:
		return k, nil
	case *ed25519.PrivateKey:
		// Nobody has looked yet whether the public half that it carries is its own:
		// signatures made with another one give the key away.
		if !bytes.Equal(*k, ed25519.NewKeyFromSeed(k.Seed())) {
			return nil, fmt.Errorf("%w: its halves do not belong together", ErrDamaged)
		}
		return *k, nil
	}
	return nil, fmt.Errorf("%w: it holds a %T", ErrDamaged, raw)
}

// Reprotect gives the same key under another passphrase, none when that is empty.
// The comment is set anew. Errors: those of Open, ErrTooLong.
func (f *File) Reprotect(old []byte, comment string, passphrase []byte) (text []byte, err error) {
	if f.InTPM() {
		return f.reprotectTPM(old, passphrase)
	}
	k, err := f.Open(old)
	if err != nil {
		return nil, err
	}
	defer k.Wipe()
	return marshal(k.private, comment, passphrase)
}

// header is what a file of PROTOCOL.key says in the clear.
type header struct {
	encrypted bool
	public    []byte
}

// parseHeader reads the clear part, so that the work of opening is bounded before
// it begins.
func parseHeader(text []byte) (header, error) {
	const magic = "openssh-key-v1\x00"
	block, rest := pem.Decode(text)
	// What stands before it would be lost, with what the owner meant by it.
	if block == nil || !bytes.HasPrefix(text, []byte("-----BEGIN ")) || block.Type != "OPENSSH PRIVATE KEY" || len(block.Headers) > 0 {
		return header{}, errors.New("no OpenSSH private key")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return header{}, errors.New("something follows the key")
	}
	b, ok := bytes.CutPrefix(block.Bytes, []byte(magic))
	if !ok {
		return header{}, errors.New("no OpenSSH private key of version 1")
	}
	var h struct {
		Cipher, KDF, Options string
		Keys                 uint32
		Public               []byte
		Private              []byte
	}
	if err := ssh.Unmarshal(b, &h); err != nil {
		return header{}, err
	}
	if h.Keys != 1 {
		return header{}, fmt.Errorf("it holds %d keys", h.Keys)
	}
	switch {
	case h.Cipher == "none" && h.KDF == "none" && h.Options == "":
		return header{public: h.Public}, nil
	case h.Cipher == "none":
		return header{}, errors.New("it has a passphrase and no cipher")
	case h.KDF != "bcrypt":
		return header{}, fmt.Errorf("its passphrase goes through %.20q, not bcrypt", h.KDF)
	case h.Cipher != "aes256-ctr" && h.Cipher != "aes256-cbc":
		return header{}, fmt.Errorf("it is encrypted with %.40q, not aes256-ctr", h.Cipher)
	case len(h.Private) == 0 || len(h.Private)%aes.BlockSize != 0:
		return header{}, errors.New("its encrypted part is cut off")
	}
	rounds, err := roundsOf(h.Options)
	if err != nil {
		return header{}, err
	}
	if rounds == 0 || rounds > maxRounds {
		return header{}, fmt.Errorf("it asks for %d rounds of bcrypt, more than %d or none", rounds, maxRounds)
	}
	return header{encrypted: true, public: h.Public}, nil
}

// roundsOf reads the options of bcrypt: a salt and the number of rounds.
func roundsOf(options string) (uint32, error) {
	var o struct {
		Salt   string
		Rounds uint32
	}
	if err := ssh.Unmarshal([]byte(options), &o); err != nil || o.Salt == "" {
		return 0, errors.New("its options of bcrypt are damaged or have no salt")
	}
	return o.Rounds, nil
}
