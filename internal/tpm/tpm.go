// SPDX-License-Identifier: BSD-3-Clause

// Package tpm has P-256 signing keys that never leave a TPM 2.0.
//
// A key is made in the TPM under the storage root key that the TCG's template gives in the owner hierarchy, which is
// derived anew from the owner's seed for each call (TPM2_CreatePrimary) and not stored. What is kept outside is the
// public part and the private part as the TPM encrypted it, in the file format that openssl's tpm2 provider and
// ssh-tpm-agent read. Only that TPM can load it, until its owner clears it.
//
// The passphrase goes to the TPM only within HMAC sessions that are salted with the storage root key and encrypt
// parameters, so who reads the bus learns nothing to try passphrases against. Who can change what is on the bus could
// put another storage root key in its place; no key of the TPM's maker is looked at here, and against such a one there
// is no protection.
//
// The TPM counts wrong passphrases (dictionary attack protection) for all keys at once and locks for some time.
package tpm

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// Default is the device of the kernel's resource manager, which lets several programs use the TPM at once. The bare
// device, /dev/tpm0, is another's while one has it open, and is used only when named.
const Default = "/dev/tpmrm0"

// patience bounds a call: so long it waits for its turn, and so long the TPM has for all of its work, which in a
// slow chip takes some tenths of a second for each of the few operations with keys.
const patience = 10 * time.Second

var (
	// ErrNoTPM says that there is no TPM 2.0 to talk to: absent, not permitted, in use, gone while it worked, silent, or
	// something else than a TPM. The text says which.
	ErrNoTPM = errors.New("no usable TPM")
	// ErrWrongAuth says that the passphrase is wrong. The text says how many more wrong ones lock the TPM, if it tells.
	ErrWrongAuth = errors.New("wrong passphrase")
	// ErrLockout says that the TPM takes no passphrase, right or wrong, because of earlier wrong ones. The text says for
	// how long at most, if the TPM tells.
	ErrLockout = errors.New("the TPM is locked after wrong passphrases")
	// ErrOwner says that the owner hierarchy, below which keys are, has a password or is disabled.
	ErrOwner = errors.New("wrong owner of the TPM")
	// ErrOtherTPM says that this TPM did not make the key, or was cleared since, or that the key's file was changed.
	ErrOtherTPM = errors.New("the key is not of this TPM")
	// ErrFormat says that a file is not a key as Marshal writes it.
	ErrFormat = errors.New("not a file of a TPM's key")
	// ErrTPM is any other refusal. The text is the TPM's.
	ErrTPM = errors.New("the TPM failed")
)

// A Key is a P-256 signing key that only one TPM can use. It is never changed, so it can be used by several goroutines.
type Key struct {
	public  []byte // TPMT_PUBLIC, our template and the point
	private []byte // contents of TPM2B_PRIVATE, which only the TPM reads
	point   *ecdsa.PublicKey
}

// Create makes a key in the TPM at device and returns it when the TPM has shown that it can load it and knows auth.
// The key cannot be exported (fixedTPM, fixedParent), comes from the TPM's own random numbers (sensitiveDataOrigin),
// signs SHA-256 digests with ECDSA and nothing else, and is under dictionary attack protection.
//
// device is the path of a character device (Default) or of a Unix socket on which a TPM serves its commands, as
// "swtpm socket --server type=unixio,path=…" does; a file's mode tells them apart.
//
// auth is the passphrase, of any length. The authorization value is made of it: the SHA-256 of a label and it, cut to
// 192 bits, as 32 characters of base64url. A TPM has no more than 32 bytes there and drops zeros at their end, which a
// passphrase itself could violate; and the label makes it useless elsewhere when the same passphrase protects another
// thing. It is not stretched, since tries are counted by the TPM, which has the only thing to try it on.
//
// Calls for the same device queue in this process. Errors: ErrNoTPM, also after 10 s for the turn or for the work;
// ErrOwner; ErrLockout, since the new key's passphrase is not taken then either; ErrTPM.
func Create(device string, auth []byte) (*Key, error) {
	var k *Key
	err := use(device, patience, func(c *conn) (err error) {
		k, err = create(c, auth)
		return err
	})
	if err != nil {
		return nil, err
	}
	return k, nil
}

func create(c *conn, auth []byte) (*Key, error) {
	root, err := c.root()
	if err != nil {
		return nil, err
	}
	template := template(nil, nil)
	rsp, err := tpm2.Create{
		ParentHandle: c.with(root.handle, root.name, root, nil),
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			UserAuth: tpm2.TPM2BAuth{Buffer: authValue(auth)},
		}},
		InPublic: tpm2.New2B(template),
	}.Execute(c)
	if err != nil {
		return nil, c.failed("making a key", err)
	}
	k, err := newKey(rsp.OutPublic.Bytes(), rsp.OutPrivate.Buffer)
	if err != nil {
		return nil, fmt.Errorf("%w: making a key: the TPM's answer is %w", ErrTPM, err)
	}
	return k, k.prove(c, root, auth)
}

// Public returns the key's public part.
func (k *Key) Public() *ecdsa.PublicKey {
	p := *k.point
	return &p
}

// Sign lets the TPM sign a SHA-256 digest, 32 bytes, and returns an ECDSA signature in ASN.1 DER, as crypto.Signer
// does. It was verified with Public.
//
// Errors: ErrNoTPM, ErrOwner, ErrOtherTPM, ErrWrongAuth, ErrLockout, ErrTPM. For device and auth see Create.
func (k *Key) Sign(device string, auth []byte, digest []byte) ([]byte, error) {
	if len(digest) != sha256.Size {
		return nil, fmt.Errorf("a digest of %d bytes to sign, not the %d of SHA-256", len(digest), sha256.Size)
	}
	var signature []byte
	err := use(device, patience, func(c *conn) (err error) {
		signature, err = k.sign(c, auth, digest)
		return err
	})
	if err != nil {
		return nil, err
	}
	return signature, nil
}

func (k *Key) sign(c *conn, auth, digest []byte) ([]byte, error) {
	root, err := c.root()
	if err != nil {
		return nil, err
	}
	h, err := k.load(c, root)
	if err != nil {
		return nil, err
	}
	rsp, err := tpm2.Sign{
		KeyHandle: c.with(h, k.name(), root, auth),
		Digest:    tpm2.TPM2BDigest{Buffer: digest},
		InScheme: tpm2.TPMTSigScheme{
			Scheme:  tpm2.TPMAlgECDSA,
			Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256}),
		},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
	}.Execute(c)
	if err != nil {
		return nil, c.authorized("signing", err)
	}
	rs, err := rsp.Signature.Signature.ECDSA()
	if err != nil {
		return nil, fmt.Errorf("%w: signing: %w", ErrTPM, err)
	}
	signature, err := encodeSignature(rs.SignatureR.Buffer, rs.SignatureS.Buffer)
	if err != nil || !ecdsa.VerifyASN1(k.point, digest, signature) {
		return nil, fmt.Errorf("%w: signing: the signature it made is wrong", ErrTPM)
	}
	return signature, nil
}

// ChangeAuth returns the same key with another passphrase, which the TPM has accepted once. k itself goes on working
// with the old one: a TPM does not know which files there are, so every copy of the old file is to be deleted.
//
// Errors: as of Sign.
func (k *Key) ChangeAuth(device string, old, new []byte) (*Key, error) {
	var changed *Key
	err := use(device, patience, func(c *conn) (err error) {
		changed, err = k.changeAuth(c, old, new)
		return err
	})
	if err != nil {
		return nil, err
	}
	return changed, nil
}

func (k *Key) changeAuth(c *conn, old, new []byte) (*Key, error) {
	root, err := c.root()
	if err != nil {
		return nil, err
	}
	h, err := k.load(c, root)
	if err != nil {
		return nil, err
	}
	rsp, err := tpm2.ObjectChangeAuth{
		ObjectHandle: c.with(h, k.name(), root, old),
		ParentHandle: tpm2.NamedHandle{Handle: root.handle, Name: root.name},
		NewAuth:      tpm2.TPM2BAuth{Buffer: authValue(new)},
	}.Execute(c)
	if err != nil {
		return nil, c.authorized("changing the passphrase", err)
	}
	changed, err := newKey(k.public, rsp.OutPrivate.Buffer)
	if err != nil {
		return nil, fmt.Errorf("%w: changing the passphrase: the TPM's answer is %w", ErrTPM, err)
	}
	return changed, changed.prove(c, root, new)
}

// Check says whether the TPM can load the key and auth is its passphrase. Nothing is signed. A wrong auth counts.
//
// Errors: as of Sign.
func (k *Key) Check(device string, auth []byte) error {
	return use(device, patience, func(c *conn) error {
		root, err := c.root()
		if err != nil {
			return err
		}
		return k.prove(c, root, auth)
	})
}

// prove loads the key and proves to the TPM that auth is right: TPM2_PolicySecret does nothing else with a policy that
// nobody uses.
func (k *Key) prove(c *conn, root *root, auth []byte) error {
	h, err := k.load(c, root)
	if err != nil {
		return err
	}
	policy, done, err := tpm2.PolicySession(c, tpm2.TPMAlgSHA256, nonceSize)
	if err != nil {
		return c.failed("checking the passphrase", err)
	}
	defer func() { _ = done() }() // the same as with conn.flush
	_, err = tpm2.PolicySecret{
		AuthHandle:    c.with(h, k.name(), root, auth),
		PolicySession: policy.Handle(),
		NonceTPM:      policy.NonceTPM(),
	}.Execute(c)
	if err != nil {
		return c.authorized("checking the passphrase", err)
	}
	return nil
}

// load loads the key below root.
func (k *Key) load(c *conn, root *root) (tpm2.TPMHandle, error) {
	rsp, err := tpm2.Load{
		// The root's password is empty, and what is loaded is encrypted for it.
		ParentHandle: tpm2.AuthHandle{Handle: root.handle, Name: root.name, Auth: tpm2.PasswordAuth(nil)},
		InPrivate:    tpm2.TPM2BPrivate{Buffer: k.private},
		InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](k.public),
	}.Execute(c)
	if err != nil {
		return 0, c.loading(err)
	}
	c.loaded = append(c.loaded, rsp.ObjectHandle)
	return rsp.ObjectHandle, nil
}

// name returns the key's TPM name: the hash algorithm and the hash of the public part (TPM 2.0 part 1, Names). It is
// part of what a session authorizes, so another object under the same handle cannot be used by mistake.
func (k *Key) name() tpm2.TPM2BName {
	sum := sha256.Sum256(k.public)
	return tpm2.TPM2BName{Buffer: append([]byte{byte(tpm2.TPMAlgSHA256 >> 8), byte(tpm2.TPMAlgSHA256 & 0xff)}, sum[:]...)}
}

// authLabel keeps the hash of a passphrase apart from others' hashes of it.
const authLabel = "vmux TPM key authorization value 1\x00"

// authValue returns what the TPM takes for the passphrase; Create says what it is. It has no zero byte anywhere: not at
// the end, where TPMs drop it, and not in between, where go-tpm (v0.9.8, hmacKeyFromAuthValue) cuts off the rest too.
func authValue(passphrase []byte) []byte {
	h := sha256.New()
	h.Write([]byte(authLabel))
	h.Write(passphrase)
	return base64.RawURLEncoding.AppendEncode(nil, h.Sum(nil)[:24])
}
