// SPDX-License-Identifier: BSD-3-Clause

package apns

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/sys/unix"
)

// maxKeyFile bounds the key's file; Apple's have 257 bytes.
const maxKeyFile = 16 << 10

// Key is the private key that authorizes pushes. It shows itself to nobody.
type Key struct {
	path    string
	private *ecdsa.PrivateKey
}

// Equal says whether both are the same key.
func (k *Key) Equal(o *Key) bool { return o != nil && k.private.Equal(o.private) }

// KeyProblem is what is wrong with a key's file.
type KeyProblem int

// Problems, in the order in which they are looked for.
const (
	KeyMissing    KeyProblem = iota // there is no such file
	KeyUnreadable                   // it cannot be read, see KeyError.Err
	KeyNoFile                       // a directory, a pipe, a device
	KeyForeign                      // it belongs to another user
	KeyOpen                         // group or others have access
	KeyTooLarge                     //
	KeyNotPEM                       //
	KeyEncrypted                    // with a passphrase
	KeySEC1                         // EC PRIVATE KEY, the form of openssl ecparam and ssh-keygen
	KeyOtherPEM                     // another type of PEM, see KeyError.Found
	KeySeveral                      // something besides one key
	KeyDamaged                      // not PKCS #8 inside, see KeyError.Err
	KeyAlgorithm                    // not of the curve P-256, see KeyError.Found
)

// KeyError says why a file is no key for pushes. Nothing was sent.
type KeyError struct {
	Path    string
	Problem KeyProblem
	Also    string      // KeyMissing: another place where none is, may be empty
	Mode    fs.FileMode // KeyOpen: permission bits
	Owner   int         // KeyForeign: uid
	Found   string      // KeyOtherPEM, KeyAlgorithm: what it is instead, "CERTIFICATE", "P-384"
	Err     error       // KeyUnreadable, KeyDamaged
}

func (e *KeyError) Unwrap() error { return e.Err }

func (e *KeyError) Error() string {
	switch e.Problem {
	case KeyMissing:
		if e.Also != "" {
			return fmt.Sprintf("there is no push key, neither %s nor %s", e.Path, e.Also)
		}
		return fmt.Sprintf("there is no push key %s", e.Path)
	case KeyUnreadable:
		return fmt.Sprintf("the push key %s cannot be read: %v", e.Path, e.Err)
	case KeyNoFile:
		return fmt.Sprintf("the push key %s is no regular file", e.Path)
	case KeyForeign:
		return fmt.Sprintf("the push key %s belongs to user %d, not to user %d", e.Path, e.Owner, os.Geteuid())
	case KeyOpen:
		return fmt.Sprintf("the push key %s is open to other users (mode %#o)", e.Path, e.Mode)
	case KeyTooLarge:
		return fmt.Sprintf("the push key %s is larger than %d bytes", e.Path, maxKeyFile)
	case KeyNotPEM:
		return fmt.Sprintf("the push key %s is not PEM", e.Path)
	case KeyEncrypted:
		return fmt.Sprintf("the push key %s is encrypted with a passphrase", e.Path)
	case KeySEC1:
		return fmt.Sprintf("the push key %s is in the form SEC 1 (EC PRIVATE KEY), not PKCS #8 (PRIVATE KEY)", e.Path)
	case KeyOtherPEM:
		return fmt.Sprintf("the push key %s is PEM of type %q, not \"PRIVATE KEY\"", e.Path, e.Found)
	case KeySeveral:
		return fmt.Sprintf("the push key %s has something besides one key", e.Path)
	case KeyDamaged:
		return fmt.Sprintf("the push key %s is damaged: %v", e.Path, e.Err)
	case KeyAlgorithm:
		return fmt.Sprintf("the push key %s is for %s, not for P-256", e.Path, e.Found)
	}
	return fmt.Sprintf("the push key %s is not usable", e.Path)
}

// LoadKey returns the key in the file path: PKCS #8 in PEM, of P-256, and nobody else's business. It must be a
// regular file that is the user's or root's, with no access for group and others. The error is a *KeyError.
func LoadKey(path string) (*Key, error) {
	b, err := readKey(path)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	private, problem := parseKey(b)
	if problem != nil {
		problem.Path = path
		return nil, problem
	}
	return &Key{path, private}, nil
}

func readKey(path string) ([]byte, error) {
	// O_NONBLOCK keeps a pipe of that name from holding the process.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, &KeyError{Path: path, Problem: KeyMissing}
	case err != nil:
		return nil, unreadable(path, err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, unreadable(path, err)
	}
	mode := fs.FileMode(st.Mode).Perm()
	switch uid := int(st.Uid); {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, &KeyError{Path: path, Problem: KeyNoFile}
	case uid != os.Geteuid() && uid != 0:
		return nil, &KeyError{Path: path, Problem: KeyForeign, Owner: uid}
	case mode&0o077 != 0:
		return nil, &KeyError{Path: path, Problem: KeyOpen, Mode: mode}
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	switch {
	case err != nil:
		return nil, unreadable(path, err)
	case len(b) > maxKeyFile:
		return nil, &KeyError{Path: path, Problem: KeyTooLarge}
	}
	return b, nil
}

func unreadable(path string, err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		err = e.Err // without the path, which the message has
	}
	return &KeyError{Path: path, Problem: KeyUnreadable, Err: err}
}

// parseKey's error has no Path yet.
func parseKey(b []byte) (*ecdsa.PrivateKey, *KeyError) {
	var blocks []*pem.Block
	defer func() {
		for _, p := range blocks {
			clear(p.Bytes)
		}
	}()
	rest := b
	for {
		var p *pem.Block
		if p, rest = pem.Decode(rest); p == nil {
			break
		}
		blocks = append(blocks, p)
	}
	if len(blocks) == 0 {
		return nil, &KeyError{Problem: KeyNotPEM}
	}
	for _, p := range blocks { // openssl ecparam writes another block before the key
		switch {
		case p.Type == "ENCRYPTED PRIVATE KEY", strings.Contains(p.Headers["Proc-Type"], "ENCRYPTED"):
			return nil, &KeyError{Problem: KeyEncrypted}
		case p.Type == "EC PRIVATE KEY":
			return nil, &KeyError{Problem: KeySEC1}
		}
	}
	p := blocks[0]
	switch {
	case p.Type != "PRIVATE KEY":
		return nil, &KeyError{Problem: KeyOtherPEM, Found: p.Type}
	case len(blocks) > 1, len(p.Headers) > 0, len(bytes.TrimSpace(rest)) > 0,
		!bytes.HasPrefix(bytes.TrimSpace(b), []byte("-----BEGIN PRIVATE KEY-----")):
		return nil, &KeyError{Problem: KeySeveral}
	}
	k, err := x509.ParsePKCS8PrivateKey(p.Bytes)
	if err != nil {
		if _, sec1 := x509.ParseECPrivateKey(p.Bytes); sec1 == nil {
			return nil, &KeyError{Problem: KeySEC1} // under the name of the other form
		}
		return nil, &KeyError{Problem: KeyDamaged, Err: err}
	}
	found := fmt.Sprintf("%T", k)
	switch k := k.(type) {
	case *ecdsa.PrivateKey:
		if k.Curve == elliptic.P256() {
			return k, nil
		}
		found = k.Curve.Params().Name
	case *rsa.PrivateKey:
		found = fmt.Sprintf("RSA with %d bits", k.N.BitLen())
	case ed25519.PrivateKey:
		found = "Ed25519"
	}
	return nil, &KeyError{Problem: KeyAlgorithm, Found: found}
}

// Path returns the file that the key is from.
func (k *Key) Path() string { return k.path }

// Public returns the public half.
func (k *Key) Public() *ecdsa.PublicKey { return &k.private.PublicKey }

// Sign returns ES256's signature of data, r and s of 32 bytes each (RFC 7518 section 3.4). It is deterministic
// (RFC 6979): the same data has the same signature in every process.
func (k *Key) Sign(data []byte) ([]byte, error) {
	digest := sha256.Sum256(data)
	der, err := k.private.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("signing the authorization: %w", err)
	}
	var in, seq cryptobyte.String = der, nil
	var r, s []byte
	if !in.ReadASN1(&seq, asn1.SEQUENCE) || !seq.ReadASN1Integer(&r) || !seq.ReadASN1Integer(&s) || len(r) > 32 || len(s) > 32 {
		return nil, errors.New("signing the authorization: not a signature of P-256")
	}
	signature := make([]byte, 64)
	copy(signature[32-len(r):], r)
	copy(signature[64-len(s):], s)
	return signature, nil
}
