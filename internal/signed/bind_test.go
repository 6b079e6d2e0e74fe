// SPDX-License-Identifier: BSD-3-Clause

package signed

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/big"
	"testing"

	"golang.org/x/crypto/ssh"
)

// securityKey is a FIDO key in software.
type securityKey struct {
	public      ssh.PublicKey
	application string
	ed          ed25519.PrivateKey
	ec          *ecdsa.PrivateKey
}

func skKey(t testing.TB, typ string) securityKey {
	t.Helper()
	k := securityKey{application: "ssh:"}
	var blob []byte
	switch typ {
	case ssh.KeyAlgoSKED25519:
		pub, priv, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		k.ed = priv
		blob = appendString(appendString(nil, typ), []byte(pub))
	case ssh.KeyAlgoSKECDSA256:
		priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		k.ec = priv
		point, err := priv.PublicKey.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		blob = appendString(appendString(appendString(nil, typ), "nistp256"), point)
	}
	blob = appendString(blob, k.application)
	pub, err := ssh.ParsePublicKey(blob)
	if err != nil {
		t.Fatal(err)
	}
	k.public = pub
	return k
}

// sign follows PROTOCOL.u2f, SSH U2F Signatures.
func (k securityKey) sign(t testing.TB, data []byte, flags byte, counter uint32) []byte {
	t.Helper()
	return k.signRest(t, data, binary.BigEndian.AppendUint32([]byte{flags}, counter))
}

// signRest signs with anything in the place of flags and counter.
func (k securityKey) signRest(t testing.TB, data, rest []byte) []byte {
	t.Helper()
	app, msg := sha256.Sum256([]byte(k.application)), sha256.Sum256(data)
	tbs := append(append(app[:], rest...), msg[:]...)
	out := appendString(nil, k.public.Type())
	if k.ed != nil {
		out = appendString(out, ed25519.Sign(k.ed, tbs))
	} else {
		digest := sha256.Sum256(tbs)
		r, s, err := ecdsa.Sign(rand.Reader, k.ec, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		out = appendString(out, ssh.Marshal(struct{ R, S *big.Int }{r, s}))
	}
	return append(out, rest...)
}

func signWith(t testing.TB, s ssh.Signer, data []byte, algorithm string) []byte {
	t.Helper()
	a, ok := s.(ssh.AlgorithmSigner)
	if !ok {
		t.Fatal("signer has no algorithms")
	}
	sig, err := a.SignWithAlgorithm(rand.Reader, data, algorithm)
	if err != nil {
		t.Fatal(err)
	}
	return ssh.Marshal(sig)
}

func TestVerifySecurityKey(t *testing.T) {
	t.Parallel()
	sid := bytes.Repeat([]byte{7}, 32)
	for _, typ := range []string{ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256} {
		t.Run(typ, func(t *testing.T) {
			t.Parallel()
			k := skKey(t, typ)
			for _, flags := range []byte{0, 1, 5} {
				b := Bind{HostKey: k.public.Marshal(), SessionID: sid, Signature: k.sign(t, sid, flags, 9)}
				if err := b.Verify(); err != nil {
					t.Errorf("flags %d: %v", flags, err)
				}
				if got, err := ParseBind(b.Marshal()); err != nil || got.Verify() != nil {
					t.Errorf("flags %d, parsed: %v", flags, err)
				}
				// What x/crypto verifies and what is verified here is the same but for the touch.
				sig, err := parseSignature(b.Signature)
				if err != nil {
					t.Fatal(err)
				}
				if err := k.public.Verify(sid, sig); (err == nil) != (flags&1 == 1) {
					t.Errorf("flags %d: x/crypto: %v", flags, err)
				}
			}
			good := k.sign(t, sid, 1, 9)
			other := skKey(t, typ)
			for name, b := range map[string]Bind{
				"flags":       {HostKey: k.public.Marshal(), SessionID: sid, Signature: flip(good, len(good)-5)},
				"counter":     {HostKey: k.public.Marshal(), SessionID: sid, Signature: flip(good, len(good)-1)},
				"session id":  {HostKey: k.public.Marshal(), SessionID: flip(sid, 0), Signature: good},
				"other key":   {HostKey: other.public.Marshal(), SessionID: sid, Signature: good},
				"application": {HostKey: flip(k.public.Marshal(), len(k.public.Marshal())-1), SessionID: sid, Signature: good},
			} {
				if err := b.Verify(); !errors.Is(err, ErrHostSignature) {
					t.Errorf("%s: %v", name, err)
				}
			}
			for name, sig := range map[string][]byte{
				"trailing": append(bytes.Clone(good), 0),
				"short":    good[:len(good)-1],
				"no rest":  good[:len(good)-5],
			} {
				b := Bind{HostKey: k.public.Marshal(), SessionID: sid, Signature: sig}
				if err := b.Verify(); !errors.Is(err, ErrMalformed) {
					t.Errorf("%s: %v", name, err)
				}
				if _, err := ParseBind(b.Marshal()); !errors.Is(err, ErrMalformed) {
					t.Errorf("%s, parsed: %v", name, err)
				}
			}
		})
	}
}

// flip gives a copy of b with one bit changed.
func flip(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 1
	return b
}

func TestVerify(t *testing.T) {
	t.Parallel()
	sid := bytes.Repeat([]byte{3}, 64)
	ed := signerOf(t, newKey(t, ssh.KeyAlgoED25519))
	ca := signerOf(t, newKey(t, ssh.KeyAlgoECDSA256))
	rsaKey := signerOf(t, newKey(t, ssh.KeyAlgoRSA))
	edSig := signWith(t, ed, sid, ssh.KeyAlgoED25519)
	hostCert := certify(t, ca, ed.PublicKey(), ssh.HostCert, "h")
	forged := *hostCert
	forged.Signature = &ssh.Signature{Format: hostCert.Signature.Format, Blob: hostCert.Signature.Blob}
	forged.KeyId = "another id"
	sha1Cert := *hostCert
	sha1Cert.SignatureKey = rsaKey.PublicKey()
	sha1Cert.Signature = nil
	tbs := sha1Cert.Marshal()
	sha1, err := parseSignature(signWith(t, rsaKey, tbs[:len(tbs)-4], ssh.KeyAlgoRSA))
	if err != nil {
		t.Fatal(err)
	}
	sha1Cert.Signature = sha1
	sk := skKey(t, ssh.KeyAlgoSKED25519)
	skEC := skKey(t, ssh.KeyAlgoSKECDSA256)
	// certBySK gives a host certificate whose CA is a security key, which signs over rest.
	certBySK := func(rest ...byte) []byte {
		c := *hostCert
		c.SignatureKey, c.Signature = sk.public, nil
		tbs := c.Marshal()
		sig := new(ssh.Signature)
		if err := ssh.Unmarshal(sk.signRest(t, tbs[:len(tbs)-4], rest), sig); err != nil {
			t.Fatal(err)
		}
		c.Signature = sig
		return c.Marshal()
	}
	// otherFormat is a good signature but for the name of its format.
	otherFormat := skEC.sign(t, sid, 1, 2)
	otherFormat = append(appendString(nil, ssh.KeyAlgoSKED25519), otherFormat[4+len(ssh.KeyAlgoSKECDSA256):]...)

	for _, tt := range []struct {
		name string
		bind Bind
		want error
	}{
		{"ed25519", Bind{HostKey: ed.PublicKey().Marshal(), SessionID: sid, Signature: edSig}, nil},
		{"forwarding", Bind{HostKey: ed.PublicKey().Marshal(), SessionID: sid, Signature: edSig, Forwarding: true}, nil},
		{"rsa-sha2-256", Bind{HostKey: rsaKey.PublicKey().Marshal(), SessionID: sid, Signature: signWith(t, rsaKey, sid, ssh.KeyAlgoRSASHA256)}, nil},
		{"rsa-sha2-512", Bind{HostKey: rsaKey.PublicKey().Marshal(), SessionID: sid, Signature: signWith(t, rsaKey, sid, ssh.KeyAlgoRSASHA512)}, nil},
		{"rsa with SHA-1", Bind{HostKey: rsaKey.PublicKey().Marshal(), SessionID: sid, Signature: signWith(t, rsaKey, sid, ssh.KeyAlgoRSA)}, ErrHostSignature},
		{"host certificate", Bind{HostKey: hostCert.Marshal(), SessionID: sid, Signature: edSig}, nil},
		{"user certificate", Bind{HostKey: certify(t, ca, ed.PublicKey(), ssh.UserCert, "u").Marshal(), SessionID: sid, Signature: edSig}, ErrMalformed},
		{"forged certificate", Bind{HostKey: forged.Marshal(), SessionID: sid, Signature: edSig}, ErrHostSignature},
		{"certificate with SHA-1", Bind{HostKey: sha1Cert.Marshal(), SessionID: sid, Signature: edSig}, ErrHostSignature},
		{"certificate of a security key", Bind{HostKey: certify(t, ca, sk.public, ssh.HostCert, "h").Marshal(), SessionID: sid, Signature: sk.sign(t, sid, 0, 1)}, nil},
		{"certificate by a security key", Bind{HostKey: certBySK(1, 0, 0, 0, 9), SessionID: sid, Signature: edSig}, nil},
		{"certificate with trailing bytes in signature", Bind{HostKey: certBySK(1, 0, 0, 0, 9, 0), SessionID: sid, Signature: edSig}, ErrHostSignature},
		{"certificate with no counter in signature", Bind{HostKey: certBySK(1), SessionID: sid, Signature: edSig}, ErrHostSignature},
		{"security key, other format", Bind{HostKey: skEC.public.Marshal(), SessionID: sid, Signature: otherFormat}, ErrHostSignature},
		{"signature of another session", Bind{HostKey: ed.PublicKey().Marshal(), SessionID: flip(sid, 1), Signature: edSig}, ErrHostSignature},
		{"signature of another key", Bind{HostKey: ca.PublicKey().Marshal(), SessionID: sid, Signature: edSig}, ErrHostSignature},
		{"no session id", Bind{HostKey: ed.PublicKey().Marshal(), Signature: signWith(t, ed, nil, ssh.KeyAlgoED25519)}, ErrMalformed},
		{"session id of 129", Bind{HostKey: ed.PublicKey().Marshal(), SessionID: make([]byte, 129), Signature: signWith(t, ed, make([]byte, 129), ssh.KeyAlgoED25519)}, ErrMalformed},
		{"session id of 128", Bind{HostKey: ed.PublicKey().Marshal(), SessionID: make([]byte, 128), Signature: signWith(t, ed, make([]byte, 128), ssh.KeyAlgoED25519)}, nil},
		{"trailing bytes in signature", Bind{HostKey: ed.PublicKey().Marshal(), SessionID: sid, Signature: append(bytes.Clone(edSig), 0)}, ErrMalformed},
		{"trailing bytes in host key", Bind{HostKey: append(ed.PublicKey().Marshal(), 0), SessionID: sid, Signature: edSig}, ErrMalformed},
		{"nothing", Bind{}, ErrMalformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if err := tt.bind.Verify(); !errors.Is(err, tt.want) {
				t.Errorf("Verify: %v, want %v", err, tt.want)
			}
			b, err := ParseBind(tt.bind.Marshal())
			switch {
			case errors.Is(tt.want, ErrMalformed):
				if !errors.Is(err, ErrMalformed) {
					t.Errorf("ParseBind: %v", err)
				}
			case err != nil:
				t.Errorf("ParseBind: %v", err)
			case !bytes.Equal(b.Marshal(), tt.bind.Marshal()) || b.Forwarding != tt.bind.Forwarding:
				t.Error("ParseBind gives something else")
			}
		})
	}
}

func TestParseBindIsStrict(t *testing.T) {
	t.Parallel()
	sid := []byte("session")
	ed := signerOf(t, newKey(t, ssh.KeyAlgoED25519))
	good := Bind{HostKey: ed.PublicKey().Marshal(), SessionID: sid, Signature: signWith(t, ed, sid, ssh.KeyAlgoED25519)}.Marshal()
	if _, err := ParseBind(good); err != nil {
		t.Fatal(err)
	}
	for n := range len(good) {
		if _, err := ParseBind(good[:n]); !errors.Is(err, ErrMalformed) {
			t.Fatalf("%d of %d bytes: %v", n, len(good), err)
		}
	}
	for name, in := range map[string][]byte{
		"trailing": append(bytes.Clone(good), 0),
		"bool 2":   append(bytes.Clone(good[:len(good)-1]), 2),
		"too long": make([]byte, maxData+1),
	} {
		if _, err := ParseBind(in); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The result is not a part of a buffer that is used again.
	in := bytes.Clone(good)
	b, err := ParseBind(in)
	if err != nil {
		t.Fatal(err)
	}
	clear(in)
	if !bytes.Equal(b.Marshal(), good) {
		t.Error("result changes with the input")
	}
}
