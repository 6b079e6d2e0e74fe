// SPDX-License-Identifier: BSD-3-Clause

package signed

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

var (
	// ErrOtherKey: the data names another key than the one that is asked to sign.
	ErrOtherKey = errors.New("data to be signed names another key")
	// ErrAlgorithm: the signature would not be of the kind the data names or needs.
	ErrAlgorithm = errors.New("signature algorithm does not fit")
	// ErrKey: the key that is asked to sign is not one of a known type in its one encoding.
	ErrKey = errors.New("key asked to sign is not usable")
	// ErrFlags: flags of a sign request that RFC 9987 does not define.
	ErrFlags = errors.New("unknown flags in sign request")

	errNoForm = errors.New("begins like no known form")
)

// knownFlags are the two flags of a sign request in use; RFC 9987 reserves the bit below.
const knownFlags = uint32(agent.SignatureFlagRsaSha256 | agent.SignatureFlagRsaSha512)

// SignatureAlgorithm gives the format of the signature that a sign request for key with flags
// asks for. Flags choose for RSA only, and SHA-256 wins over SHA-512, as in OpenSSH's agent
// (agent_decode_alg in ssh-agent.c); other keys have one format whatever known flags say. RSA without
// flags is ssh-rsa, which is SHA-1. Flags that are not known are refused with ErrFlags: RFC 9987
// has an agent fail what it does not support, where OpenSSH's ignores them. A key of no known type
// is refused with ErrKey.
func SignatureAlgorithm(key ssh.PublicKey, flags uint32) (string, error) {
	half, err := askedHalf(key)
	if err != nil {
		return "", err
	}
	return signatureAlgorithm(half, flags)
}

// askedHalf gives the public half of a key of any Go type: the one that x/crypto's agent server
// passes on knows its type and its bytes only, and not that it is a certificate.
func askedHalf(asked ssh.PublicKey) (ssh.PublicKey, error) {
	if asked == nil {
		return nil, fmt.Errorf("%w: there is none", ErrKey)
	}
	key, err := parseKey(asked.Marshal())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return publicHalf(key), nil
}

// signatureAlgorithm is SignatureAlgorithm of a public half.
func signatureAlgorithm(half ssh.PublicKey, flags uint32) (string, error) {
	if flags&^knownFlags != 0 {
		return "", fmt.Errorf("%w: %#x", ErrFlags, flags)
	}
	plain := half.Type()
	if plain != ssh.KeyAlgoRSA {
		return plain, nil
	}
	switch {
	case flags&uint32(agent.SignatureFlagRsaSha256) != 0:
		return ssh.KeyAlgoRSASHA256, nil
	case flags&uint32(agent.SignatureFlagRsaSha512) != 0:
		return ssh.KeyAlgoRSASHA512, nil
	}
	return ssh.KeyAlgoRSA, nil
}

// Check compares what is asked with what the data says: the key asked to sign is the one the data
// names (for Certificate its signature key), public halves where one is a certificate, since OpenSSH
// asks for the bare key while the data names the certificate; and the signature that flags ask for
// is the one the data names. SSHSIG (PROTOCOL.sshsig) and Certificate (OpenSSH since 8.2) do not
// take SHA-1. Opaque names nothing, so only flags are checked: whether it is signed at all is
// for the caller's policy. Errors wrap ErrOtherKey, ErrAlgorithm, ErrKey or ErrFlags.
func Check(m Meaning, asked ssh.PublicKey, flags uint32) error {
	half, err := askedHalf(asked)
	if err != nil {
		return err
	}
	return (*Known)(nil).check(m, asked.Marshal(), half, flags)
}

// check is Check of a key that was parsed, with its public half.
func (k *Known) check(m Meaning, asked []byte, half ssh.PublicKey, flags uint32) error {
	format, err := signatureAlgorithm(half, flags)
	if err != nil {
		return err
	}
	named := m.Key
	switch m.Kind {
	case Opaque:
		return nil
	case Login, PAM:
		if want := signatureFormat(m.Algorithm); want != format {
			return fmt.Errorf("%w: data names %s, flags ask for %s", ErrAlgorithm, want, format)
		}
	case SSHSIG, Certificate:
		if format == ssh.KeyAlgoRSA {
			return fmt.Errorf("%w: %s with SHA-1 for %s", ErrAlgorithm, format, m.Kind)
		}
		if m.Kind == SSHSIG {
			return nil
		}
		if m.Certificate == nil {
			return ErrOtherKey
		}
		named = m.Certificate.SignatureKey
	default:
		return fmt.Errorf("%w: %s", ErrAlgorithm, m.Kind)
	}
	if bytes.Equal(named, asked) {
		return nil // one encoding for each key
	}
	key, err := k.parse(named)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrOtherKey, err)
	}
	// Of two certificates of one key either will do: the one the server sees is in the data.
	if !bytes.Equal(publicHalf(key).Marshal(), half.Marshal()) {
		return fmt.Errorf("%w: asked is %s", ErrOtherKey, ssh.FingerprintSHA256(half))
	}
	return nil
}
