// SPDX-License-Identifier: BSD-3-Clause

package session

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// mismatches gives the fields that a joined error names.
func mismatches(err error) []Field {
	var all []Field
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			all = append(all, mismatches(e)...)
		}
		return all
	}
	var m *MismatchError
	if errors.As(err, &m) {
		all = append(all, m.Field)
	}
	return all
}

// TestThreat_C04_WhatComesBack has each field of a certificate changed by the phone, to both sides of what was asked and of
// what is let through. Each deviation is refused and named, and nothing is kept.
func TestThreat_C04_WhatComesBack(t *testing.T) {
	t.Parallel()
	stranger := newSigner(t)
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	otherKey, err := ssh.NewPublicKey(&p256.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	const now, hour = 946684800, 3600 // epoch, spec's validity
	window := func(after, before int64) func(*ssh.Certificate) {
		return func(c *ssh.Certificate) { c.ValidAfter, c.ValidBefore = uint64(now+after), uint64(now+before) }
	}
	for _, c := range []struct {
		name   string
		change func(*ssh.Certificate)
		want   []Field
	}{
		{"as asked", func(*ssh.Certificate) {}, nil},

		{"host certificate", func(c *ssh.Certificate) { c.CertType = ssh.HostCert }, []Field{FieldType}},
		{"unknown type", func(c *ssh.Certificate) { c.CertType = 3 }, []Field{FieldType}},
		{"no type", func(c *ssh.Certificate) { c.CertType = 0 }, []Field{FieldType}},
		{"another key", func(c *ssh.Certificate) { c.Key = otherKey }, []Field{FieldPublicKey}},
		{"serial 0", func(c *ssh.Certificate) { c.Serial, c.KeyId = 0, "vmux:alice@laptop:0" }, []Field{FieldSerial}},
		{"greatest serial", func(c *ssh.Certificate) { c.Serial, c.KeyId = 1<<64-1, "vmux:alice@laptop:18446744073709551615" }, nil},
		{"reserved data", func(c *ssh.Certificate) { c.Reserved = []byte{0} }, []Field{FieldReserved}},

		{"another key id", func(c *ssh.Certificate) { c.KeyId = "vmux:root@laptop" }, []Field{FieldKeyID}},
		{"serial not replaced", func(c *ssh.Certificate) { c.KeyId = "vmux:alice@laptop:{serial}" }, []Field{FieldKeyID}},
		{"another serial in it", func(c *ssh.Certificate) { c.Serial++ }, []Field{FieldKeyID}},
		{"no key id", func(c *ssh.Certificate) { c.KeyId = "" }, []Field{FieldKeyID}},
		{"longer key id", func(c *ssh.Certificate) { c.KeyId += "0" }, []Field{FieldKeyID}},

		{"principals in another order", func(c *ssh.Certificate) { c.ValidPrincipals = []string{"deploy", "alice"} }, nil},
		{"one principal more", func(c *ssh.Certificate) { c.ValidPrincipals = append(c.ValidPrincipals, "root") }, []Field{FieldPrincipals}},
		{"one principal less", func(c *ssh.Certificate) { c.ValidPrincipals = c.ValidPrincipals[:1] }, []Field{FieldPrincipals}},
		{"one principal instead of another", func(c *ssh.Certificate) { c.ValidPrincipals[0] = "root" }, []Field{FieldPrincipals}},
		{"one principal twice", func(c *ssh.Certificate) { c.ValidPrincipals[0] = "deploy" }, []Field{FieldPrincipals}},
		{"no principals, which is all", func(c *ssh.Certificate) { c.ValidPrincipals = nil }, []Field{FieldPrincipals}},
		{"empty principal", func(c *ssh.Certificate) { c.ValidPrincipals[0] = "" }, []Field{FieldPrincipals}},
		{"principal in capitals", func(c *ssh.Certificate) { c.ValidPrincipals[0] = "Alice" }, []Field{FieldPrincipals}},

		{"not backdated", window(0, hour), nil},
		{"backdated by 1 s more", window(-61, hour), []Field{FieldValidBefore}},
		{"phone's clock 60 s behind", window(-120, hour-60), nil},
		{"61 s behind", window(-121, hour-61), []Field{FieldValidAfter}},
		{"phone's clock 60 s ahead", window(0, hour+60), nil},
		{"61 s ahead", window(1, hour+61), []Field{FieldValidBefore}},
		{"not backdated, 60 s ahead", window(60, hour+60), nil},
		{"not backdated, 61 s ahead", window(61, hour+61), []Field{FieldValidAfter, FieldValidBefore}},
		{"begins later, for as long", window(61, hour+60), []Field{FieldValidAfter, FieldValidBefore}},
		{"ends 1 s later", window(-60, hour+1), []Field{FieldValidBefore}},
		{"ends a day later", window(-60, hour+86400), []Field{FieldValidBefore}},
		{"shorter by 1 s", window(0, hour-1), []Field{FieldValidBefore}},
		{"forever", func(c *ssh.Certificate) { c.ValidBefore = ssh.CertTimeInfinity }, []Field{FieldValidBefore}},
		{"nearly forever", func(c *ssh.Certificate) { c.ValidBefore = ssh.CertTimeInfinity - 1 }, []Field{FieldValidBefore}},
		{"negative as int64", func(c *ssh.Certificate) { c.ValidBefore = 1 << 63 }, []Field{FieldValidBefore}},
		{"from always", func(c *ssh.Certificate) { c.ValidAfter = 0 }, []Field{FieldValidAfter, FieldValidBefore}},
		{"over already", window(-hour-60, 0), []Field{FieldValidAfter, FieldValidBefore}},
		{"ends before it begins", window(0, -1), []Field{FieldValidBefore}},
		{"begins at the end of time", func(c *ssh.Certificate) { c.ValidAfter = 1<<64 - 1 }, []Field{FieldValidAfter, FieldValidBefore}},

		{"no critical options", func(c *ssh.Certificate) { c.CriticalOptions = nil }, []Field{FieldCriticalOptions}},
		{"wider source address", func(c *ssh.Certificate) { c.CriticalOptions["source-address"] = "0.0.0.0/0" }, []Field{FieldCriticalOptions}},
		{"empty source address", func(c *ssh.Certificate) { c.CriticalOptions["source-address"] = "" }, []Field{FieldCriticalOptions}},
		{"one option more", func(c *ssh.Certificate) { c.CriticalOptions["force-command"] = "true" }, []Field{FieldCriticalOptions}},
		{"one extension more", func(c *ssh.Certificate) { c.Extensions["permit-agent-forwarding"] = "" }, []Field{FieldExtensions}},
		{"one extension less", func(c *ssh.Certificate) { delete(c.Extensions, "permit-pty") }, []Field{FieldExtensions}},
		{"extension with a value", func(c *ssh.Certificate) { c.Extensions["permit-pty"] = "yes" }, []Field{FieldExtensions}},
		{"unknown extension", func(c *ssh.Certificate) { c.Extensions = map[string]string{"x@y": "", "permit-pty": ""} }, []Field{FieldExtensions}},

		{"too long", func(c *ssh.Certificate) { c.Extensions["x"] = strings.Repeat("x", maxCertificate) }, []Field{FieldEncoding}},

		{"everything", func(c *ssh.Certificate) {
			*c = ssh.Certificate{Key: otherKey, CertType: ssh.HostCert, Reserved: []byte{1}, ValidBefore: ssh.CertTimeInfinity}
		}, []Field{FieldType, FieldPublicKey, FieldSerial, FieldReserved, FieldKeyID, FieldPrincipals, FieldValidAfter, FieldValidBefore, FieldCriticalOptions, FieldExtensions}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.authority.change = c.change
			_, err := r.Request(t.Context(), spec())
			r.came(err, c.want)
		})
	}

	resign := func(signer ssh.Signer, change func(*ssh.Certificate)) func(blob, ca []byte) ([]byte, []byte) {
		return func(blob, ca []byte) ([]byte, []byte) {
			k, err := ssh.ParsePublicKey(blob)
			if err != nil {
				t.Error(err)
				return nil, nil
			}
			c := k.(*ssh.Certificate)
			if signer != nil {
				if err := c.SignCert(rand.Reader, signer); err != nil {
					t.Error(err)
				}
			}
			if change != nil {
				change(c)
			}
			return c.Marshal(), ca
		}
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rsaCA, err := ssh.NewSignerFromKey(rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	only := func(algorithm string) ssh.Signer {
		s, err := ssh.NewSignerWithAlgorithms(rsaCA.(ssh.AlgorithmSigner), []string{algorithm})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	ofRSA := func(f func(blob, ca []byte) ([]byte, []byte)) func(blob, ca []byte) ([]byte, []byte) {
		return func(blob, _ []byte) ([]byte, []byte) { return f(blob, rsaCA.PublicKey().Marshal()) }
	}
	for _, c := range []struct {
		name   string
		answer func(blob, ca []byte) ([]byte, []byte)
		want   []Field
	}{
		{"signed by another CA", resign(stranger, nil), []Field{FieldCA}},
		{"another CA was pinned", func(blob, _ []byte) ([]byte, []byte) { return blob, stranger.PublicKey().Marshal() }, []Field{FieldCA}},
		{"none was pinned", func(blob, _ []byte) ([]byte, []byte) { return blob, nil }, []Field{FieldCA}},
		{"signed by another CA under this one's name", func(blob, ca []byte) ([]byte, []byte) {
			own, err := ssh.ParsePublicKey(ca)
			if err != nil {
				t.Error(err)
				return nil, nil
			}
			return resign(stranger, func(c *ssh.Certificate) { c.SignatureKey = own })(blob, ca)
		}, []Field{FieldSignature}},
		{"changed after signing", resign(nil, func(c *ssh.Certificate) { c.Nonce[0] ^= 1 }), []Field{FieldSignature}},
		{"principals changed after signing", resign(nil, func(c *ssh.Certificate) { c.ValidPrincipals = []string{"root"} }), []Field{FieldPrincipals, FieldSignature}},
		{"nonce removed", resign(nil, func(c *ssh.Certificate) { c.Nonce = nil }), []Field{FieldNonce, FieldSignature}},
		{"RSA, SHA-512", ofRSA(resign(only(ssh.KeyAlgoRSASHA512), nil)), nil},
		{"RSA, SHA-256", ofRSA(resign(only(ssh.KeyAlgoRSASHA256), nil)), nil},
		{"RSA, SHA-1", ofRSA(resign(only(ssh.KeyAlgoRSA), nil)), []Field{FieldSignature}},

		{"nothing", func(_, ca []byte) ([]byte, []byte) { return nil, ca }, []Field{FieldEncoding}},
		{"a key", func(_, ca []byte) ([]byte, []byte) { return ca, ca }, []Field{FieldEncoding}},
		{"cut off", func(blob, ca []byte) ([]byte, []byte) { return blob[:len(blob)-1], ca }, []Field{FieldEncoding}},
		{"more after it", func(blob, ca []byte) ([]byte, []byte) { return append(blob, 0), ca }, []Field{FieldEncoding}},
		{"flag with an empty string in it", func(blob, ca []byte) ([]byte, []byte) {
			// "permit-pty", data "" becomes "permit-pty", data string "": the same in Go's map.
			return grow(t, blob, "permit-pty"), ca
		}, []Field{FieldEncoding}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.authority.answer = c.answer
			_, err := r.Request(t.Context(), spec())
			r.came(err, c.want)
			_, _, err = r.Certify(t.Context(), otherKey, spec())
			if c.want == nil != (err == nil) {
				t.Errorf("for another's key: %v", err)
			}
		})
	}
}

// came checks what a request gave: the fields, and that nothing is kept when there are any.
func (r *rig) came(err error, want []Field) {
	r.t.Helper()
	got, want := slices.Sorted(slices.Values(mismatches(err))), slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) || (err == nil) != (want == nil) {
		r.t.Errorf("got %v, want %v: %v", got, want, err)
	}
	for _, f := range want {
		if !strings.Contains(err.Error(), ": "+string(f)+": asked ") {
			r.t.Errorf("%s is not named: %v", f, err)
		}
		if !strings.Contains(r.log.String(), string(f)) {
			r.t.Errorf("%s is not logged", f)
		}
	}
	if kept := len(r.Current()); kept != 0 && want != nil {
		r.t.Errorf("%d are kept", kept)
	}
	if len(r.log.String()) > 16<<10 {
		r.t.Error("log is flooded")
	}
}

// grow puts an empty string into the empty data of an option; all lengths around it are mended, the signature
// is not.
func grow(t *testing.T, blob []byte, name string) []byte {
	t.Helper()
	entry := append(binary.BigEndian.AppendUint32(nil, uint32(len(name))), name...)
	at := bytes.Index(blob, entry)
	if at < 0 {
		t.Fatal("no such option")
	}
	at += len(entry)
	grown := slices.Insert(bytes.Clone(blob), at+4, 0, 0, 0, 0)
	grown[at+3] += 4
	// The list that it is in begins before its first name.
	first := bytes.Index(grown, append(binary.BigEndian.AppendUint32(nil, uint32(len("permit-pty"))), "permit-pty"...))
	binary.BigEndian.PutUint32(grown[first-4:], binary.BigEndian.Uint32(grown[first-4:])+4)
	if _, err := ssh.ParsePublicKey(grown); err != nil {
		t.Errorf("the test's certificate is too broken: %v", err)
	}
	return grown
}

func TestShortNonce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.authority.draft(newSigner(t).PublicKey(), spec())
	for n, want := range map[int][]Field{0: {FieldNonce}, 15: {FieldNonce}, 16: nil, 32: nil} {
		c.Nonce, c.SignatureKey, c.Signature = make([]byte, n), r.authority.ca.PublicKey(), nil
		body := c.Marshal()
		var err error
		if c.Signature, err = r.authority.ca.Sign(rand.Reader, body[:len(body)-4]); err != nil {
			t.Fatal(err)
		}
		got := mismatches(Check(c, c.Key, r.authority.ca.PublicKey().Marshal(), spec(), r.clock.Wall()))
		if !slices.Equal(got, want) {
			t.Errorf("%d bytes: got %v, want %v", n, got, want)
		}
	}
	c.Nonce, c.Signature = make([]byte, 32), nil
	if got := mismatches(Check(c, c.Key, r.authority.ca.PublicKey().Marshal(), spec(), r.clock.Wall())); !slices.Equal(got, []Field{FieldSignature}) {
		t.Errorf("without a signature: got %v", got)
	}
}

// TestWindowOfShortest has the shortest validity, which is shorter than the skew.
func TestWindowOfShortest(t *testing.T) {
	t.Parallel()
	for offset, want := range map[time.Duration][]Field{
		0: nil, -14 * time.Second: nil, -15 * time.Second: {FieldValidBefore}, 60 * time.Second: nil, 61 * time.Second: {FieldValidBefore},
	} {
		r := newRig(t)
		r.authority.change = func(c *ssh.Certificate) {
			c.ValidAfter += uint64(offset / time.Second)
			c.ValidBefore += uint64(offset / time.Second)
		}
		_, err := r.Request(t.Context(), spec(validity(15*time.Second)))
		if got := mismatches(err); !slices.Equal(got, want) {
			t.Errorf("%v: got %v, want %v", offset, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	r := newRig(f)
	r.request(spec())
	f.Add(r.authority.made[0].Marshal())
	f.Fuzz(func(t *testing.T, blob []byte) {
		c, err := parse(blob)
		if err != nil {
			return
		}
		if !bytes.Equal(c.Marshal(), blob) {
			t.Error("another encoding")
		}
		_ = Check(c, c.Key, blob, spec(), epoch)
	})
}
