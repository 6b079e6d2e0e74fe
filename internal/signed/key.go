// SPDX-License-Identifier: BSD-3-Clause

package signed

import (
	"bytes"
	"crypto/rsa"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
)

// certSuffix ends the name of every certificate type of PROTOCOL.certkeys.
const certSuffix = "-cert-v01@openssh.com"

// keyFields gives the number of strings after the type name in a key of a plain (not
// certificate) type, 0 for a type that is not known. DSA is gone from OpenSSH and not known.
func keyFields(plain string) int {
	switch plain {
	case ssh.KeyAlgoED25519: // RFC 8709 section 4
		return 1
	case ssh.KeyAlgoRSA, // RFC 4253 section 6.6
		ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, // RFC 5656 section 3.1
		ssh.KeyAlgoSKED25519: // PROTOCOL.u2f
		return 2
	case ssh.KeyAlgoSKECDSA256: // PROTOCOL.u2f
		return 3
	}
	return 0
}

// plainType gives the type of the key inside a certificate of type certType.
func plainType(certType string) (plain string, ok bool) {
	base, ok := strings.CutSuffix(certType, certSuffix)
	if !ok {
		return "", false
	}
	switch base {
	case "sk-ssh-ed25519":
		base = ssh.KeyAlgoSKED25519
	case "sk-ecdsa-sha2-nistp256":
		base = ssh.KeyAlgoSKECDSA256
	}
	return base, keyFields(base) > 0
}

// certType is the inverse of plainType.
func certType(plain string) string {
	return strings.TrimSuffix(plain, "@openssh.com") + certSuffix
}

// parseKey parses a public key or certificate of a known type in wire form. It has to be the one
// encoding of that key: two encodings would be two fingerprints.
func parseKey(blob []byte) (ssh.PublicKey, error) {
	if len(blob) > maxKey {
		return nil, fmt.Errorf("%d bytes, at most %d", len(blob), maxKey)
	}
	r := reader{rest: blob}
	name := r.text("type", maxAlgorithm)
	if r.err != nil {
		return nil, r.err
	}
	if _, ok := plainType(name); !ok && keyFields(name) == 0 {
		return nil, fmt.Errorf("type %q is not known", name)
	}
	key, err := ssh.ParsePublicKey(blob)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(key.Marshal(), blob) {
		return nil, fmt.Errorf("not the usual encoding of a key of type %s", name)
	}
	// A negative number has an encoding of its own, and crypto/rsa takes its absolute value.
	if c, ok := publicHalf(key).(ssh.CryptoPublicKey); ok {
		if k, ok := c.CryptoPublicKey().(*rsa.PublicKey); ok && k.N.Sign() <= 0 {
			return nil, fmt.Errorf("modulus is not positive")
		}
	}
	return key, nil
}

// parsePlainKey is parseKey for where a certificate cannot stand.
func parsePlainKey(blob []byte) (ssh.PublicKey, error) {
	key, err := parseKey(blob)
	if err != nil {
		return nil, err
	}
	if _, ok := key.(*ssh.Certificate); ok {
		return nil, fmt.Errorf("a certificate where a key is wanted")
	}
	return key, nil
}

// publicHalf gives the key that a certificate certifies, and any other key as it is.
func publicHalf(key ssh.PublicKey) ssh.PublicKey {
	if c, ok := key.(*ssh.Certificate); ok {
		return c.Key
	}
	return key
}

// SameKey reports whether a and b, in wire form, are the same key. Where either is a certificate
// the keys inside are compared. What is not a key of a known type is the same as nothing.
func SameKey(a, b []byte) bool {
	ka, err := parseKey(a)
	if err != nil {
		return false
	}
	if bytes.Equal(a, b) {
		return true
	}
	kb, err := parseKey(b)
	if err != nil {
		return false
	}
	_, certA := ka.(*ssh.Certificate)
	_, certB := kb.(*ssh.Certificate)
	if !certA && !certB {
		return false // one encoding for each key, and they differ
	}
	return bytes.Equal(publicHalf(ka).Marshal(), publicHalf(kb).Marshal())
}

// algorithmFits reports whether a public key algorithm name can stand in front of a key of type
// keyType: RFC 8332 section 3 for RSA, PROTOCOL.certkeys for its certificates, else the type itself.
func algorithmFits(algorithm, keyType string) bool {
	switch keyType {
	case ssh.KeyAlgoRSA:
		return algorithm == ssh.KeyAlgoRSASHA256 || algorithm == ssh.KeyAlgoRSASHA512 ||
			algorithm == ssh.KeyAlgoRSA
	case ssh.CertAlgoRSAv01:
		return algorithm == ssh.CertAlgoRSASHA256v01 || algorithm == ssh.CertAlgoRSASHA512v01 ||
			algorithm == ssh.CertAlgoRSAv01
	}
	return algorithm == keyType
}

// signatureFormat gives the format of a signature made under a public key algorithm.
func signatureFormat(algorithm string) string {
	switch algorithm {
	case ssh.CertAlgoRSASHA256v01:
		return ssh.KeyAlgoRSASHA256
	case ssh.CertAlgoRSASHA512v01:
		return ssh.KeyAlgoRSASHA512
	}
	if plain, ok := plainType(algorithm); ok {
		return plain
	}
	return algorithm
}
