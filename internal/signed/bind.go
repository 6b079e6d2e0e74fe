// SPDX-License-Identifier: BSD-3-Clause

package signed

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"

	"golang.org/x/crypto/ssh"
)

var (
	// ErrMalformed: a session-bind statement is not laid out as PROTOCOL.agent has it.
	ErrMalformed = errors.New("malformed session bind")
	// ErrHostSignature: the host's signature over the session id, or the CA's over the host
	// certificate, does not verify.
	ErrHostSignature = errors.New("host signature does not verify")
)

// Bind is a session-bind@openssh.com statement (PROTOCOL.agent section 1): the host with HostKey
// has signed SessionID in the key exchange, and what follows on this connection comes from there if
// Forwarding, or authenticates there if not. Nothing in it is proven until Verify says so, and
// Forwarding never is.
type Bind struct {
	HostKey    []byte // key or host certificate, wire form
	SessionID  []byte // 1 to 128 bytes
	Signature  []byte // wire form of an ssh.Signature
	Forwarding bool
}

// ParseBind reads the contents of the extension request, which follow its name. It wants a session
// id of 1 to 128 bytes, a boolean that is 0 or 1, nothing after it, and a host key of a known
// type. It does not verify. Errors wrap ErrMalformed. The result shares nothing with contents.
func ParseBind(contents []byte) (Bind, error) {
	if len(contents) > maxData {
		return Bind{}, fmt.Errorf("%w: %d bytes, at most %d", ErrMalformed, len(contents), maxData)
	}
	r := reader{rest: bytes.Clone(contents)}
	var b Bind
	b.HostKey = r.bytes("host key", maxKey)
	b.SessionID = readSessionID(&r)
	b.Signature = r.bytes("signature", maxKey)
	forwarding := r.byte("forwarding")
	if forwarding > 1 {
		r.failf("forwarding: %d is no boolean", forwarding)
	}
	b.Forwarding = forwarding == 1
	err := r.end()
	if err == nil {
		_, err = parseHostKey(b.HostKey)
	}
	if err == nil {
		_, err = parseSignature(b.Signature)
	}
	if err != nil {
		return Bind{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return b, nil
}

// Marshal gives the contents that ParseBind reads. It checks nothing.
func (b Bind) Marshal() []byte {
	out := appendString(nil, b.HostKey)
	out = appendString(out, b.SessionID)
	out = appendString(out, b.Signature)
	if b.Forwarding {
		return append(out, 1)
	}
	return append(out, 0)
}

// Verify reports whether the host has signed the session id. b may come from anywhere: its fields
// are checked as ParseBind checks them (ErrMalformed). RSA signatures with SHA-1 do not verify. Of a
// certificate, which has to be a host's, the key signs, and the CA's signature is verified too; whether
// the CA, the names and the time are good is for whoever knows the host. As in OpenSSH's agent, a
// security key as host key need not have been touched.
func (b Bind) Verify() error {
	if n := len(b.SessionID); n == 0 || n > maxSessionID {
		return fmt.Errorf("%w: session id of %d bytes", ErrMalformed, n)
	}
	key, err := parseHostKey(b.HostKey)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	sig, err := parseSignature(b.Signature)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if cert, ok := key.(*ssh.Certificate); ok {
		if err := verifyCertificate(cert); err != nil {
			return fmt.Errorf("%w: host certificate: %w", ErrHostSignature, err)
		}
		key = cert.Key
	}
	if err := verify(key, b.SessionID, sig); err != nil {
		return fmt.Errorf("%w: %w", ErrHostSignature, err)
	}
	return nil
}

func parseHostKey(blob []byte) (ssh.PublicKey, error) {
	key, err := parseKey(blob)
	if err != nil {
		return nil, fmt.Errorf("host key: %w", err)
	}
	if cert, ok := key.(*ssh.Certificate); ok && cert.CertType != ssh.HostCert {
		return nil, fmt.Errorf("host key: certificate of type %d is not a host's", cert.CertType)
	}
	return key, nil
}

// skRest is what follows the signature of a security key: a byte of flags and a uint32 counter
// (PROTOCOL.u2f, SSH U2F Signatures).
const skRest = 5

// parseSignature reads a format and a blob, and flags and counter for a security key only.
func parseSignature(in []byte) (*ssh.Signature, error) {
	r := reader{rest: in}
	sig := &ssh.Signature{Format: r.text("signature format", maxAlgorithm)}
	sig.Blob = r.bytes("signature blob", maxKey)
	if sig.Format == ssh.KeyAlgoSKED25519 || sig.Format == ssh.KeyAlgoSKECDSA256 {
		sig.Rest = r.take("signature flags and counter", skRest)
	}
	if err := r.end(); err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	return sig, nil
}

// verifyCertificate checks the CA's signature over a certificate that parseKey took, so that
// marshalling it again gives the bytes the CA signed.
func verifyCertificate(cert *ssh.Certificate) error {
	if cert.Signature == nil {
		return errors.New("no signature")
	}
	body := *cert
	body.Signature = nil
	tbs := body.Marshal()
	tbs = tbs[:len(tbs)-4] // the length of the absent signature
	return verify(cert.SignatureKey, tbs, cert.Signature)
}

func verify(key ssh.PublicKey, data []byte, sig *ssh.Signature) error {
	switch key.Type() {
	case ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256:
		return verifySK(key, data, sig)
	case ssh.KeyAlgoRSA:
		if sig.Format != ssh.KeyAlgoRSASHA256 && sig.Format != ssh.KeyAlgoRSASHA512 {
			return fmt.Errorf("signature of format %q by an RSA key", sig.Format)
		}
	}
	return key.Verify(data, sig)
}

// verifySK verifies a security key's signature (PROTOCOL.u2f): over SHA-256 of the application,
// flags, counter and SHA-256 of the data. ssh.PublicKey.Verify does the same but demands that
// the key was touched, which the keys of hosts are not; OpenSSH leaves flags to the caller.
func verifySK(key ssh.PublicKey, data []byte, sig *ssh.Signature) error {
	if sig.Format != key.Type() {
		return fmt.Errorf("signature of format %q by a key of type %s", sig.Format, key.Type())
	}
	if len(sig.Rest) != skRest {
		return errors.New("signature without flags and counter")
	}
	r := reader{rest: key.Marshal()}
	var application []byte // the last string of either type
	for len(r.rest) > 0 && r.err == nil {
		application = r.bytes("key", maxKey)
	}
	if r.err != nil {
		return r.err
	}
	c, ok := key.(ssh.CryptoPublicKey)
	if !ok {
		return fmt.Errorf("key of type %s cannot be used", key.Type())
	}
	app, msg := sha256.Sum256(application), sha256.Sum256(data)
	tbs := append(append(app[:], sig.Rest...), msg[:]...)
	good := false
	switch k := c.CryptoPublicKey().(type) {
	case ed25519.PublicKey:
		good = len(k) == ed25519.PublicKeySize && ed25519.Verify(k, tbs, sig.Blob)
	case *ecdsa.PublicKey:
		var rs struct{ R, S *big.Int }
		if err := ssh.Unmarshal(sig.Blob, &rs); err != nil {
			return err
		}
		digest := sha256.Sum256(tbs)
		good = ecdsa.Verify(k, digest[:], rs.R, rs.S)
	}
	if !good {
		return errors.New("signature does not verify")
	}
	return nil
}
