// SPDX-License-Identifier: BSD-3-Clause

package tpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	encoding "encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

const (
	// maxFile bounds a key's file in bytes. One has about 400.
	maxFile = 4096
	// maxPrivate bounds the encrypted private part in bytes. One has about 120; the widest integrity hash and the longest
	// authorization value make it a little more.
	maxPrivate = 512
	// coordinate is the length of a number of P-256 in bytes.
	coordinate = 32
	// pemType and loadable are of draft-bottomley-tpm2-keys.
	pemType = "TSS2 PRIVATE KEY"
)

// loadable is id-loadablekey.
var loadable = encoding.ObjectIdentifier{2, 23, 133, 10, 1, 3}

// emptyAuth is the tag of the field that says whether the key has no passphrase.
var emptyAuth = asn1.Tag(0).ContextSpecific().Constructed()

// template is the public part of our keys with a point of these coordinates.
func template(x, y []byte) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM:            true,
			FixedParent:         true,
			SensitiveDataOrigin: true,
			UserWithAuth:        true,
			SignEncrypt:         true,
			// NoDA is clear: wrong passphrases are counted. Decrypt is clear: no ECDH.
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull},
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
			KDF:     tpm2.TPMTKDFScheme{Scheme: tpm2.TPMAlgNull},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: x},
			Y: tpm2.TPM2BECCParameter{Buffer: y},
		}),
	}
}

// newKey makes a key of its two parts, of which it checks what can be checked without the TPM: the public part is our
// template with a point of the curve, the private part has a length that can be. It keeps both slices. Its error goes on
// from "… is".
func newKey(public, private []byte) (*Key, error) {
	// The two empty coordinates are at the end, two bytes of length each.
	all := tpm2.Marshal(template(nil, nil))
	rest, ours := bytes.CutPrefix(public, all[:len(all)-4])
	if !ours {
		return nil, errors.New("of another kind of key")
	}
	s := cryptobyte.String(rest)
	var x, y cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&x) || !s.ReadUint16LengthPrefixed(&y) || !s.Empty() {
		return nil, errors.New("damaged in its public part")
	}
	if len(x) > coordinate || len(y) > coordinate {
		return nil, errors.New("of another curve")
	}
	// Some TPMs leave out zeros at the front.
	point := make([]byte, 1+2*coordinate)
	point[0] = 4 // not compressed (SEC 1, 2.3.3)
	copy(point[1+coordinate-len(x):], x)
	copy(point[1+2*coordinate-len(y):], y)
	p, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		return nil, errors.New("not a point of the curve")
	}
	if len(private) == 0 || len(private) > maxPrivate {
		return nil, fmt.Errorf("a private part of %d bytes", len(private))
	}
	return &Key{public: public, private: private, point: p}, nil
}

// Marshal returns the key's file: PEM of a TPMKey (draft-bottomley-tpm2-keys) whose parent is the owner hierarchy's
// storage root key. It is of use only to this TPM with the passphrase, and is to be kept like any private key all the
// same. The passphrase that other tools want is the authorization value that Create describes.
func (k *Key) Marshal() []byte {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(loadable)
		// Optional, but openssl's tpm2 provider does not ask for a passphrase when it is left out.
		b.AddASN1(emptyAuth, func(b *cryptobyte.Builder) { b.AddASN1Boolean(false) })
		b.AddASN1Int64(int64(tpm2.TPMRHOwner))
		for _, part := range [][]byte{k.public, k.private} {
			b.AddASN1(asn1.OCTET_STRING, func(b *cryptobyte.Builder) {
				b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(part) })
			})
		}
	})
	return pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: b.BytesOrPanic()}) // both parts are bounded in newKey
}

// Parse reads what Marshal wrote, byte for byte; it takes no other key that the format allows, such as one of another
// tool with other attributes, or of more than 4096 bytes. Errors: ErrFormat.
func Parse(file []byte) (*Key, error) {
	if len(file) > maxFile {
		return nil, fmt.Errorf("%w: %d bytes", ErrFormat, len(file))
	}
	block, _ := pem.Decode(file)
	if block == nil || block.Type != pemType {
		return nil, fmt.Errorf("%w: no %s", ErrFormat, pemType)
	}
	s := cryptobyte.String(block.Bytes)
	var seq, empty, public, private cryptobyte.String
	var oid encoding.ObjectIdentifier
	var parent int64
	if !s.ReadASN1(&seq, asn1.SEQUENCE) || !s.Empty() || !seq.ReadASN1ObjectIdentifier(&oid) {
		return nil, fmt.Errorf("%w: damaged", ErrFormat)
	}
	if !oid.Equal(loadable) {
		return nil, fmt.Errorf("%w: not a loadable key", ErrFormat)
	}
	if !seq.ReadASN1(&empty, emptyAuth) || !seq.ReadASN1Integer(&parent) || !seq.ReadASN1(&public, asn1.OCTET_STRING) ||
		!seq.ReadASN1(&private, asn1.OCTET_STRING) || !seq.Empty() {
		return nil, fmt.Errorf("%w: damaged, or another tool's", ErrFormat)
	}
	if parent != int64(tpm2.TPMRHOwner) {
		return nil, fmt.Errorf("%w: not below the owner's storage root key", ErrFormat)
	}
	var in, sealed cryptobyte.String
	if !public.ReadUint16LengthPrefixed(&in) || !public.Empty() || !private.ReadUint16LengthPrefixed(&sealed) || !private.Empty() {
		return nil, fmt.Errorf("%w: damaged", ErrFormat)
	}
	k, err := newKey(in, sealed)
	if err != nil {
		return nil, fmt.Errorf("%w: it is %w", ErrFormat, err)
	}
	// Whatever else there may be, before, after, or another spelling of the same.
	if !bytes.Equal(k.Marshal(), file) {
		return nil, fmt.Errorf("%w: not as it was written", ErrFormat)
	}
	return k, nil
}

// encodeSignature returns Ecdsa-Sig-Value (RFC 3279, 2.2.3).
func encodeSignature(r, s []byte) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(new(big.Int).SetBytes(r))
		b.AddASN1BigInt(new(big.Int).SetBytes(s))
	})
	return b.Bytes()
}
