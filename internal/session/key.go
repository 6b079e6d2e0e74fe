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
	"sync/atomic"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/ssh"
)

// key is an ephemeral private key. It is wiped once it has ended and the signatures under way are done.
type key struct {
	public  ssh.PublicKey
	private *ecdsa.PrivateKey
	state   atomic.Int64 // number of signatures under way, and the bits below
}

const (
	ended = 1 << 61
	wiped = 1 << 62
)

func newKey() (*key, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	k := &key{private: private}
	if k.public, err = ssh.NewPublicKey(&private.PublicKey); err != nil {
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
	if k.state.Add(-1) == ended {
		k.wipe()
	}
}

// end lets no further signature begin. It waits for none; the last one under way wipes.
func (k *key) end() {
	if k.state.Or(ended) == 0 {
		k.wipe()
	}
}

// wipe is called when the key has ended and no signature is under way; a failing acquire may call it as well.
func (k *key) wipe() {
	if k.state.CompareAndSwap(ended, ended|wiped) {
		clear(k.private.D.Bits())
		k.private.D.SetInt64(0)
		k.private = nil
	}
}

var errSignature = errors.New("crypto/ecdsa gave a malformed signature")

// sign signs data; the caller has acquired k.
func (k *key) sign(data []byte) (*ssh.Signature, error) {
	digest := sha256.Sum256(data)
	der, err := ecdsa.SignASN1(rand.Reader, k.private, digest[:])
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	// RFC 5656, section 3.1.2: mpint r, mpint s. The contents of a DER INTEGER are those of an mpint.
	in := cryptobyte.String(der)
	var sequence, r, s cryptobyte.String
	if !in.ReadASN1(&sequence, asn1.SEQUENCE) || !sequence.ReadASN1(&r, asn1.INTEGER) || !sequence.ReadASN1(&s, asn1.INTEGER) {
		return nil, errSignature
	}
	blob := make([]byte, 0, 8+len(r)+len(s))
	blob = append(binary.BigEndian.AppendUint32(blob, uint32(len(r))), r...)
	blob = append(binary.BigEndian.AppendUint32(blob, uint32(len(s))), s...)
	return &ssh.Signature{Format: ssh.KeyAlgoECDSA256, Blob: blob}, nil
}
