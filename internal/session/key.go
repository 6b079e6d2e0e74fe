// SPDX-License-Identifier: BSD-3-Clause

package session

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"sync/atomic"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/ssh"
)

// key is an ephemeral private key. It is wiped once it has ended and the signatures under way are done.
//
// What is wiped is our copy. crypto/ecdsa keeps another of its own for as long as ours exists (privateKeyCache in ecdsa.go; one
// that is collected when ours is), and each signature leaves some in memory that is free again: the scalar as bytes
// (privateKeyToFIPS), in the hash that the nonce comes from (hmacDRBG), as limbs on the stack (signGeneric). Free
// memory is overwritten when it is used again, not before. secretly overwrites all of these where it can.
//
// A key that is kept makes fewer copies than one that is made anew for each signature from a locked page: about ten
// against a thousand were found after 68,000 signatures, and none with GOEXPERIMENT=runtimesecret after either. The copy
// of crypto/ecdsa is on the heap in any case, so a page of our own for this one would protect nothing.
type key struct {
	public  ssh.PublicKey
	private *ecdsa.PrivateKey
	state   atomic.Int64 // number of signatures under way, and the bits below
}

// maxDER is the length of a sequence of two integers of 33 bytes.
const maxDER = 72

const (
	ended = 1 << 61
	wiped = 1 << 62
)

func newKey() (*key, error) {
	k := new(key)
	var err error
	secretly(func() { k.private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader) })
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	// A copy: NewPublicKey's result points into the private key, and would keep it from being collected.
	inside, err := ssh.NewPublicKey(&k.private.PublicKey)
	if err == nil {
		k.public, err = ssh.ParsePublicKey(inside.Marshal())
	}
	if err != nil {
		k.end()
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return k, nil
}

// acquire keeps the key from being wiped until release; it fails when the key has ended.
func (k *key) acquire() bool {
	if k.state.Add(1)&ended != 0 {
		k.release()
		return false
	}
	return true
}

func (k *key) release() {
	if k.state.Add(-1)&ended != 0 {
		k.wipe()
	}
}

// end lets no further signature begin. It waits for none; the last one under way wipes.
func (k *key) end() {
	k.state.Or(ended)
	k.wipe()
}

// wipe wipes a key that has ended, unless a signature is under way, whose release calls it again.
func (k *key) wipe() {
	if k.state.CompareAndSwap(ended, ended|wiped) {
		d := scalar(k.private)
		clear(d.Bits())
		d.SetInt64(0)
		k.private = nil
	}
}

// scalar is the secret number itself.
func scalar(k *ecdsa.PrivateKey) *big.Int {
	//lint:ignore SA1019 PrivateKey.Bytes gives a copy, and what is to be overwritten is the original
	return k.D
}

var errSignature = errors.New("crypto/ecdsa gave a malformed signature")

// sign signs data; the caller has acquired k.
func (k *key) sign(data []byte) (*ssh.Signature, error) {
	digest := sha256.Sum256(data)
	var buf [maxDER]byte
	var n int
	var err error
	secretly(func() {
		var der []byte
		der, err = ecdsa.SignASN1(rand.Reader, k.private, digest[:])
		n = copy(buf[:], der)
	})
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	// RFC 5656, section 3.1.2: mpint r, mpint s. The contents of a DER INTEGER are those of an mpint.
	in := cryptobyte.String(buf[:n])
	var sequence, r, s cryptobyte.String
	if !in.ReadASN1(&sequence, asn1.SEQUENCE) || !sequence.ReadASN1(&r, asn1.INTEGER) || !sequence.ReadASN1(&s, asn1.INTEGER) {
		return nil, errSignature
	}
	blob := make([]byte, 0, 8+len(r)+len(s))
	blob = append(binary.BigEndian.AppendUint32(blob, uint32(len(r))), r...)
	blob = append(binary.BigEndian.AppendUint32(blob, uint32(len(s))), s...)
	return &ssh.Signature{Format: ssh.KeyAlgoECDSA256, Blob: blob}, nil
}
