// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/keyfile"
)

// mpintVectors are signatures by the P-256 key whose scalar is
// SHA-256("vmux mpint vectors"), deterministic as in RFC 6979, over SSHSIG data
// whose hash is the number. Their integers are the edge cases of RFC 4251
// section 5, which RFC 5656 section 3.1.2 asks for: a first bit of 1 takes a zero
// byte before it, and leading zero bytes are left out.
var mpintVectors = []struct {
	what string
	n    uint64
	blob string // RFC 5656 section 3.1.2: mpint r, mpint s
}{
	{"r and s with the first bit set", 0,
		"0000002100d8b102505e0d777476a0527781c2396c3b3f0e8476e2141262ef7784b7c0f1d1" +
			"0000002100f2ef1e3a99597aae6c0ec786699f2eafee2863165f1e7c3f94517b8c2b4b2eaf"},
	{"r and s without", 1,
		"0000002076646ba648c496e555752b2146d99e8c39bf6694b230344a8bf3596888684c1b" +
			"000000203ff34c003efe90d68f9e712822974e6b985e6fa702f8b1659787bdfd9721e10c"},
	{"r shorter by a byte", 229,
		"0000001f453fa45ef4d658fd74aad83fe384b1755cba558c48720414d511c6af317dd2" +
			"0000002008688a2bed1129599601e5956d7e10c59bac4767fdb8bbd9c58f9029cb494331"},
	{"s shorter by a byte", 37,
		"000000204514f5ffd9f53616b7b6862aa342756d754ef94fc85081aab9849f0022b0a221" +
			"0000001f6dc5dacd15a94d140e880b1cf4d01e63cd1e75e36f71cdb2df2fbebc62274a"},
	{"r shorter by a byte, its first bit set", 245,
		"0000002000c195f0e04230bbe2e084f24912e7bb43b1c0ae6031e789158c50e811d9e053" +
			"0000002054350ce9fee465d74d51d2ad5316f480a1b15c7b27dd1ea807b8bfbd93ad2600"},
	{"s shorter by a byte, its first bit set", 78,
		"00000021009ffa2a65db93c612af23868e9c8607e338abc55bcb34039ab93fffc754f295a5" +
			"0000002000ced3b4feee13bcf579009a1aae20b763ee7c3e5ef53ca7d228f2067976e992"},
	{"both shorter by a byte, their first bits set", 160725,
		"0000002000a1d6eb94b4d2c196bfc033376e7fc76429cc1b5d40d0c98dea7c42a7594527" +
			"0000002000a89b96901294ebe13a1b49e3881ee43f19304675a64fb9d94565478766f78b"},
	{"r shorter by two bytes", 108292,
		"0000001e3b3187d5336d663cb31403ce37a834daf5a25102ded333e321580c7199b5" +
			"0000002058e050a0282b62ee7512345f133950b7c321d519a48befa927db519b350f9dfd"},
	{"s shorter by two bytes", 214599,
		"0000002074e121cc4c79c2465790521bdc7a3c3f7d17eed025e151b2e4640f8fa7fd1f7b" +
			"0000001e0f5eae291b2fa7e691ce83e9759cfdf0a8cecbc0a8c52b88285d356b6e1e"},
	{"r shorter by two bytes, its first bit set", 138914,
		"0000001f009d2082e8696974af86e533e94ce0d3d1e0dd89286152bc345c38fdf0f183" +
			"0000002100ac6c4ba218735aefb2a384d4c7c8086f9e25ccabe44c9266ade1e6beb8adf49a"},
	{"s shorter by two bytes, its first bit set", 163482,
		"0000002100cfb0793db6fc0efed702c7594fe3806ea6e0c53c601b2e383b896f8c65dad4d5" +
			"0000001f00a08829ad8b225bb1fd44a19e289c92006ddc3a03a168704c88c1cfe595d7"},
}

// deterministic signs without randomness, which package ecdsa does as RFC 6979
// says.
type deterministic struct{ *ecdsa.PrivateKey }

func (d deterministic) Sign(_ io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	return d.PrivateKey.Sign(nil, digest, o)
}

// C01: the integers of an ECDSA signature leave the signer in their one form.
func TestThreat_C01_MpintEdges(t *testing.T) {
	t.Parallel()
	s := testServer(t, yes{})
	scalar := sha256.Sum256([]byte("vmux mpint vectors"))
	private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar[:])
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromSigner(deterministic{private})
	if err != nil {
		t.Fatal(err)
	}
	with := *s.current()
	with.keys = append(with.keys, Key{Label: "vectors", Enabled: true, Public: signer.PublicKey(), file: &keyfile.File{Public: signer.PublicKey()}})
	s.openKey = func(*keyfile.File, []byte) (*keyfile.Key, error) { return &keyfile.Key{Signer: signer}, nil }
	s.snap.Store(&with)
	for _, v := range mpintVectors {
		want, err := hex.DecodeString(v.blob)
		if err != nil {
			t.Fatal(err)
		}
		data := sshsig("git")
		binary.BigEndian.PutUint64(data[len(data)-8:], v.n)
		p, err := s.handle(t.Context(), testPin, v.what, &envelope.SignRequest{
			PublicKeyBlob: signer.PublicKey().Marshal(), Data: data, CreatedAt: envelope.At(time.Now())})
		if err != nil {
			t.Fatalf("%s: %v", v.what, err)
		}
		got := p.(*envelope.SignResponse).Signature
		if full := ssh.Marshal(struct {
			Format string
			Blob   []byte
		}{ssh.KeyAlgoECDSA256, want}); !bytes.Equal(got, full) {
			t.Errorf("%s:\n got %x\nwant %x", v.what, got, full)
		}
		checkMpints(t, want)
		if err := signer.PublicKey().Verify(data, &ssh.Signature{Format: ssh.KeyAlgoECDSA256, Blob: want}); err != nil {
			t.Errorf("%s: the vector is wrong: %v", v.what, err)
		}
	}
}
