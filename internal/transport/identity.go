// SPDX-License-Identifier: BSD-3-Clause

package transport

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"
)

// Pin names one end of a link for good: the SHA-256 of its certificate's
// SubjectPublicKeyInfo.
type Pin [sha256.Size]byte

const pinPrefix = "SHA256:"

// String gives the pin as ssh-keygen writes fingerprints: "SHA256:" and base64
// without padding.
func (p Pin) String() string { return pinPrefix + base64.RawStdEncoding.EncodeToString(p[:]) }

// ParsePin reads what String gives.
func ParsePin(s string) (Pin, error) {
	var p Pin
	rest, ok := strings.CutPrefix(s, pinPrefix)
	if !ok {
		return p, fmt.Errorf("pin does not begin with %q", pinPrefix)
	}
	b, err := base64.RawStdEncoding.Strict().DecodeString(rest)
	if err != nil || len(b) != len(p) {
		return p, fmt.Errorf("pin is not %d bytes of base64 without padding", len(p))
	}
	copy(p[:], b)
	return p, nil
}

// Identity is what one end shows on every link: a P-256 key and a self-signed
// certificate for it. The certificate says nothing; the pin of its key is all
// that anybody looks at.
type Identity struct {
	cert tls.Certificate
	pin  Pin
}

// NewIdentity makes the certificate for key, which must be on P-256.
func NewIdentity(key *ecdsa.PrivateKey) (*Identity, error) {
	if key == nil || key.Curve != elliptic.P256() {
		return nil, errors.New("link key is not on P-256")
	}
	// The same for everybody, and beyond any clock's error: nobody judges it.
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "vmux"},
		NotBefore:    time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("link certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("link certificate: %w", err)
	}
	return &Identity{
		cert: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf},
		pin:  pinOf(leaf),
	}, nil
}

// Pin is what the other end remembers at pairing.
func (i *Identity) Pin() Pin { return i.pin }

func pinOf(c *x509.Certificate) Pin { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }
