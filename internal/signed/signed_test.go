// SPDX-License-Identifier: BSD-3-Clause

package signed

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// goldens gives the data in testdata by name. The login, sshsig, certificate and bind ones are from
// OpenSSH 9.2, the pam ones from pam_ssh_agent_auth 0.10.3.
func goldens(t testing.TB) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.hex")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no testdata: %v", err)
	}
	all := make(map[string][]byte)
	for _, p := range paths {
		text, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		data, err := hex.DecodeString(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatalf("%s: %v", p, err)
		}
		all[strings.TrimSuffix(filepath.Base(p), ".hex")] = data
	}
	return all
}

func TestGolden(t *testing.T) {
	t.Parallel()
	kinds := map[string]Kind{"login": Login, "sshsig": SSHSIG, "certificate": Certificate, "pam": PAM}
	for name, data := range goldens(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			prefix, _, _ := strings.Cut(name, "-")
			if prefix == "bind" {
				b, err := ParseBind(data)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(b.Marshal(), data) {
					t.Error("prints differently")
				}
				if err := b.Verify(); err != nil {
					t.Error(err)
				}
				if b.Forwarding != (name == "bind-forwarding") {
					t.Errorf("forwarding %v", b.Forwarding)
				}
				return
			}
			m := Parse(data)
			if m.Kind != kinds[prefix] || m.Why != nil {
				t.Fatalf("kind %s: %v", m.Kind, m.Why)
			}
			if !bytes.Equal(m.Marshal(), data) {
				t.Errorf("prints as\n%x, was\n%x", m.Marshal(), data)
			}
			// Nothing may be missing and nothing may follow.
			for n := range len(data) {
				if k := Parse(data[:n]).Kind; k != Opaque {
					t.Fatalf("%d of %d bytes are %s", n, len(data), k)
				}
			}
			if m := Parse(append(bytes.Clone(data), 0)); m.Kind != Opaque || m.Why == nil || m.Like != kinds[prefix] {
				t.Errorf("with a trailing byte: %s like %s, %v", m.Kind, m.Like, m.Why)
			}
			// The result is not a part of a buffer that is used again.
			in := bytes.Clone(data)
			m = Parse(in)
			clear(in)
			if !bytes.Equal(m.Marshal(), data) {
				t.Error("result changes with the input")
			}
		})
	}
}

func TestGoldenPAM(t *testing.T) {
	t.Parallel()
	m := Parse(goldens(t)["pam-ed25519"])
	p := m.PAM
	if p == nil {
		t.Fatal(m.Why)
	}
	if m.User != "root" || m.Service != servicePAM || m.Method != methodPublicKey || m.Algorithm != ssh.KeyAlgoED25519 {
		t.Errorf("%+v", m)
	}
	if p.TargetUser != "nobody" || p.Service != "sudo" || p.WorkingDirectory != "/" || p.HostName != "rig" ||
		!slices.Equal(p.Command, []string{"sudo", "cat", "/etc/a file"}) || time.Unix(int64(p.Time), 0).Year() != 2026 {
		t.Errorf("%+v", p)
	}
}

func loginOf(key, hostKey []byte, algorithm string) Meaning {
	m := Meaning{Kind: Login, SessionID: bytes.Repeat([]byte{1}, 32), User: "alice", Service: service,
		Method: methodPublicKey, Algorithm: algorithm, Key: key}
	if hostKey != nil {
		m.Method, m.HostKey = methodHostbound, hostKey
	}
	return m
}

func sshsigOf(namespace string) Meaning {
	return Meaning{Kind: SSHSIG, Namespace: namespace, HashAlgorithm: "sha512", Hash: make([]byte, 64)}
}

func pamOf(key []byte) Meaning {
	return Meaning{Kind: PAM, User: "alice", Service: servicePAM, Method: methodPublicKey,
		Algorithm: ssh.KeyAlgoED25519, Key: key,
		PAM: &PAMRequest{Cookie: make([]byte, 16), TargetUser: "root", Service: "sudo",
			Command: []string{"sudo", ""}, HostName: "h", Time: 1}}
}

func certificateOf(key, ca []byte) Meaning {
	return Meaning{Kind: Certificate, Key: key, Certificate: &CertificateBody{
		Nonce: make([]byte, 32), Serial: 1, Type: ssh.UserCert, KeyID: "id", Principals: []string{"alice"},
		ValidAfter: 1, ValidBefore: 2, SignatureKey: ca,
		CriticalOptions: []Option{{Name: "force-command", Data: appendString(nil, "true")}},
		Extensions:      []Option{{Name: "permit-pty", Data: []byte{}}},
	}}
}

// TestParseIsStrict takes a good value of each form, changes one thing and wants the word of what
// is wrong; no word means that the change is fine.
func TestParseIsStrict(t *testing.T) {
	t.Parallel()
	ed := signerOf(t, newKey(t, ssh.KeyAlgoED25519)).PublicKey()
	ec := signerOf(t, newKey(t, ssh.KeyAlgoECDSA256)).PublicKey()
	rsaKey := signerOf(t, newKey(t, ssh.KeyAlgoRSA)).PublicKey()
	ca := signerOf(t, newKey(t, ssh.KeyAlgoED25519))
	edCert := certify(t, ca, ed, ssh.UserCert, "alice")
	rsaCert := certify(t, ca, rsaKey, ssh.UserCert, "alice")
	edBlob := ed.Marshal()

	login := func(change func(*Meaning)) Meaning {
		m := loginOf(edBlob, nil, ssh.KeyAlgoED25519)
		change(&m)
		return m
	}
	bound := func(change func(*Meaning)) Meaning {
		m := loginOf(edBlob, ec.Marshal(), ssh.KeyAlgoED25519)
		change(&m)
		return m
	}
	sig := func(change func(*Meaning)) Meaning {
		m := sshsigOf("git")
		change(&m)
		return m
	}
	cert := func(change func(*CertificateBody)) Meaning {
		m := certificateOf(edBlob, ec.Marshal())
		change(m.Certificate)
		return m
	}
	pam := func(change func(*Meaning)) Meaning {
		m := pamOf(edBlob)
		change(&m)
		return m
	}
	n := func(*Meaning) {}

	for _, tt := range []struct {
		name string
		m    Meaning
		why  string
	}{
		{"login", login(n), ""},
		{"session id of 128", login(func(m *Meaning) { m.SessionID = make([]byte, 128) }), ""},
		{"session id of 129", login(func(m *Meaning) { m.SessionID = make([]byte, 129) }), "session id"},
		{"no session id", login(func(m *Meaning) { m.SessionID = nil }), "session id"},
		{"session id is a certificate type", login(func(m *Meaning) { m.SessionID = []byte(ssh.CertAlgoED25519v01) }), ""},
		{"user not UTF-8", login(func(m *Meaning) { m.User = "\xff\x1b[2J" }), ""},
		{"user with NUL", login(func(m *Meaning) { m.User = "root\x00" }), "NUL"},
		{"user of 1024", login(func(m *Meaning) { m.User = strings.Repeat("a", 1024) }), ""},
		{"user of 1025", login(func(m *Meaning) { m.User = strings.Repeat("a", 1025) }), "user"},
		{"other service", login(func(m *Meaning) { m.Service = "ssh-userauth" }), "service"},
		{"other method", login(func(m *Meaning) { m.Method = "hostbased" }), "method"},
		{"hostbound without host key", login(func(m *Meaning) { m.Method = methodHostbound }), "host key"},
		{"other algorithm", login(func(m *Meaning) { m.Algorithm = ssh.KeyAlgoECDSA256 }), "algorithm"},
		{"certificate algorithm for a key", login(func(m *Meaning) { m.Algorithm = ssh.CertAlgoED25519v01 }), "algorithm"},
		{"key algorithm for a certificate", login(func(m *Meaning) { m.Key = edCert.Marshal() }), "algorithm"},
		{"certificate", loginOf(edCert.Marshal(), nil, ssh.CertAlgoED25519v01), ""},
		{"no key", login(func(m *Meaning) { m.Key = nil }), "key"},
		{"key with trailing byte", login(func(m *Meaning) { m.Key = append(bytes.Clone(edBlob), 0) }), "key"},
		{"key of unknown type", login(func(m *Meaning) { m.Key = appendString(nil, "ssh-dss") }), "not known"},
		{"rsa-sha2-512", loginOf(rsaKey.Marshal(), nil, ssh.KeyAlgoRSASHA512), ""},
		{"rsa-sha2-256", loginOf(rsaKey.Marshal(), nil, ssh.KeyAlgoRSASHA256), ""},
		{"ssh-rsa", loginOf(rsaKey.Marshal(), nil, ssh.KeyAlgoRSA), ""},
		{"rsa certificate by 256", loginOf(rsaCert.Marshal(), nil, ssh.CertAlgoRSASHA256v01), ""},
		{"rsa certificate by 1", loginOf(rsaCert.Marshal(), nil, ssh.CertAlgoRSAv01), ""},
		{"rsa certificate as key", loginOf(rsaCert.Marshal(), nil, ssh.KeyAlgoRSASHA512), "algorithm"},
		{"modulus with leading zeros", loginOf(rsaBlob(rsaKey, func(n []byte) []byte { return append([]byte{0}, n...) }), nil, ssh.KeyAlgoRSA), "encoding"},
		{"negative modulus", loginOf(rsaBlob(rsaKey, func([]byte) []byte { return []byte{0xff, 0x01} }), nil, ssh.KeyAlgoRSA), "positive"},
		{"point not on the curve", loginOf(offCurve(ec.Marshal()), nil, ssh.KeyAlgoECDSA256), "curve"},
		{"hostbound", bound(n), ""},
		{"hostbound with certificate", bound(func(m *Meaning) { m.HostKey = certify(t, ca, ec, ssh.HostCert, "h").Marshal() }), ""},
		{"host key with trailing byte", bound(func(m *Meaning) { m.HostKey = append(ec.Marshal(), 0) }), "host key"},
		{"empty host key", bound(func(m *Meaning) { m.HostKey = []byte{} }), "host key"},
		{"plain with host key", Meaning{}, "follow"}, // made below

		{"sshsig", sig(n), ""},
		{"sha256", sig(func(m *Meaning) { m.HashAlgorithm, m.Hash = "sha256", make([]byte, 32) }), ""},
		{"no namespace", sig(func(m *Meaning) { m.Namespace = "" }), "namespace"},
		{"namespace with NUL", sig(func(m *Meaning) { m.Namespace = "git\x00x" }), "NUL"},
		{"sha1", sig(func(m *Meaning) { m.HashAlgorithm, m.Hash = "sha1", make([]byte, 20) }), "hash algorithm"},
		{"short hash", sig(func(m *Meaning) { m.Hash = make([]byte, 63) }), "hash"},
		{"long hash", sig(func(m *Meaning) { m.HashAlgorithm, m.Hash = "sha256", make([]byte, 33) }), "hash"},

		{"certificate body", cert(func(*CertificateBody) {}), ""},
		{"host", cert(func(c *CertificateBody) { c.Type = ssh.HostCert }), ""},
		{"other certificate type", cert(func(c *CertificateBody) { c.Type = 3 }), "certificate type"},
		{"no principals", cert(func(c *CertificateBody) { c.Principals = nil }), ""},
		{"empty principal", cert(func(c *CertificateBody) { c.Principals = []string{""} }), "principal"},
		{"256 principals", cert(func(c *CertificateBody) { c.Principals = slices.Repeat([]string{"a"}, 256) }), ""},
		{"257 principals", cert(func(c *CertificateBody) { c.Principals = slices.Repeat([]string{"a"}, 257) }), "principals"},
		{"principal with NUL", cert(func(c *CertificateBody) { c.Principals = []string{"a\x00"} }), "NUL"},
		{"key id with NUL", cert(func(c *CertificateBody) { c.KeyID = "\x00" }), "NUL"},
		{"options not sorted", cert(func(c *CertificateBody) { c.Extensions = []Option{{Name: "b"}, {Name: "a"}} }), "sorted"},
		{"option twice", cert(func(c *CertificateBody) { c.Extensions = []Option{{Name: "a"}, {Name: "a"}} }), "sorted"},
		{"option without name", cert(func(c *CertificateBody) { c.Extensions = []Option{{}} }), "empty"},
		{"unknown option", cert(func(c *CertificateBody) { c.Extensions = []Option{{Name: "x@y", Data: []byte("any")}} }), ""},
		{"force-command without value", cert(func(c *CertificateBody) { c.CriticalOptions[0].Data = nil }), "force-command"},
		{"force-command of two", cert(func(c *CertificateBody) {
			c.CriticalOptions[0].Data = appendString(appendString(nil, "true"), "false")
		}), "force-command"},
		{"permit-pty with value", cert(func(c *CertificateBody) { c.Extensions[0].Data = []byte{0} }), "permit-pty"},
		{"too many options", cert(func(c *CertificateBody) { c.Extensions = manyOptions(maxOptions + 1) }), "extensions"},
		{"many options", cert(func(c *CertificateBody) { c.Extensions = manyOptions(maxOptions) }), ""},
		{"certificate as CA", cert(func(c *CertificateBody) { c.SignatureKey = edCert.Marshal() }), "signature key"},
		{"no CA", cert(func(c *CertificateBody) { c.SignatureKey = nil }), "signature key"},

		{"pam", pam(n), ""},
		{"pam without command", pam(func(m *Meaning) { m.PAM.Command = nil }), ""},
		{"pam with 256 arguments", pam(func(m *Meaning) { m.PAM.Command = slices.Repeat([]string{"a"}, 256) }), ""},
		{"pam with 257 arguments", pam(func(m *Meaning) { m.PAM.Command = slices.Repeat([]string{"a"}, 257) }), "argument count"},
		{"pam with short cookie", pam(func(m *Meaning) { m.PAM.Cookie = make([]byte, 15) }), "cookie"},
		{"pam with long cookie", pam(func(m *Meaning) { m.PAM.Cookie = make([]byte, 256) }), "cookie"},
		{"pam with NUL", pam(func(m *Meaning) { m.PAM.Command = []string{"a\x00"} }), "NUL"},
		{"pam for ssh-connection", pam(func(m *Meaning) { m.Service = service }), "service"},
		{"pam hostbound", pam(func(m *Meaning) { m.Method = methodHostbound }), "method"},
		{"pam with other algorithm", pam(func(m *Meaning) { m.Algorithm = ssh.KeyAlgoRSA }), "algorithm"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			data, like := tt.m.Marshal(), tt.m.Kind
			if tt.name == "plain with host key" {
				data, like = appendString(login(n).Marshal(), ec.Marshal()), Login
			}
			m := Parse(data)
			if tt.why != "" {
				if m.Kind != Opaque || m.Like != like || m.Why == nil || !strings.Contains(m.Why.Error(), tt.why) {
					t.Errorf("%s like %s, because %v", m.Kind, m.Like, m.Why)
				}
				return
			}
			if m.Kind != like || m.Why != nil {
				t.Fatalf("%s, because %v", m.Kind, m.Why)
			}
			if !bytes.Equal(m.Marshal(), data) {
				t.Error("prints differently")
			}
			if again := Parse(m.Marshal()); !reflect.DeepEqual(again, m) {
				t.Errorf("parses as %+v, then as %+v", m, again)
			}
		})
	}
}

// rsaBlob gives key with the bytes of its modulus changed.
func rsaBlob(key ssh.PublicKey, change func([]byte) []byte) []byte {
	r := reader{rest: key.Marshal()}
	b := appendString(nil, r.bytes("type", maxKey))
	b = appendString(b, r.bytes("e", maxKey))
	return appendString(b, change(r.bytes("n", maxKey)))
}

func offCurve(blob []byte) []byte { return flip(blob, len(blob)-1) }

func manyOptions(n int) []Option {
	var list []Option
	for i := range n {
		list = append(list, Option{Name: fmt.Sprintf("o%04d", i)})
	}
	return list
}

// TestParseOneByte changes what Marshal cannot: the fixed parts of each form.
func TestParseOneByte(t *testing.T) {
	t.Parallel()
	ed := signerOf(t, newKey(t, ssh.KeyAlgoED25519)).PublicKey().Marshal()
	replace := func(data []byte, old, new string) []byte {
		out := bytes.Replace(data, []byte(old), []byte(new), 1)
		if bytes.Equal(out, data) {
			t.Fatalf("%q is not there", old)
		}
		return out
	}
	login := loginOf(ed, nil, ssh.KeyAlgoED25519).Marshal()
	pam := pamOf(ed).Marshal()
	sig := sshsigOf("git").Marshal()
	cert := certificateOf(ed, ed).Marshal()
	for name, tt := range map[string]struct {
		data []byte
		like Kind
	}{
		"login with message 51":   {replace(login, "\x32\x00\x00\x00\x05alice", "\x33\x00\x00\x00\x05alice"), Opaque},
		"login, boolean 0":        {replace(login, "publickey\x01", "publickey\x00"), Login},
		"login, boolean 2":        {replace(login, "publickey\x01", "publickey\x02"), Login},
		"sshsig in lower case":    {replace(sig, "SSHSIG", "SSHSig"), Opaque},
		"sshsig with reserved":    {replace(sig, "git\x00\x00\x00\x00", "git\x00\x00\x00\x01x"), SSHSIG},
		"certificate reserved":    {append(bytes.Clone(cert[:len(cert)-len(ed)-8]), append([]byte{0, 0, 0, 1, 'x', 0, 0, 0, byte(len(ed))}, ed...)...), Certificate},
		"certificate of dss":      {replace(cert, "\x00\x00\x00\x20ssh-ed25519-cert", "\x00\x00\x00\x1cssh-dss-cert"), Certificate},
		"certificate, other name": {replace(cert, "cert-v01@openssh.com", "cert-v02@openssh.com"), Opaque},
		"pam version 2":           {replace(pam, "\x00\x00\x00\x65", "\x00\x00\x00\x66"), PAM},
		"pam, two users":          {replace(pam, "\x36\x00\x00\x00\x05alice", "\x36\x00\x00\x00\x05alicf"), PAM},
		"pam, no arguments": {pamWith(pam, func(request []byte) []byte {
			return replace(request, "\x00\x00\x00\x10\x00\x00\x00\x02\x00\x00\x00\x04sudo\x00\x00\x00\x00", "\x00\x00\x00\x04\x00\x00\x00\x00")
		}), PAM},
		"pam, more after time": {pamWith(pam, func(request []byte) []byte { return append(request, 0) }), PAM},
		"pam, more arguments": {pamWith(pam, func(request []byte) []byte {
			return replace(request, "\x00\x00\x00\x10\x00\x00\x00\x02", "\x00\x00\x00\x10\x00\x00\x00\x01")
		}), PAM},
		"nothing":     {nil, Opaque},
		"too long":    {append(login, make([]byte, maxData)...), Opaque},
		"huge length": {[]byte("\xff\xff\xff\xff2"), Opaque},
		"webauthn":    {[]byte(`{"type":"webauthn.get","challenge":""}`), Opaque},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := Parse(tt.data)
			if m.Kind != Opaque || m.Like != tt.like || m.Why == nil {
				t.Errorf("%s like %s, because %v", m.Kind, m.Like, m.Why)
			}
			if m.Marshal() != nil {
				t.Error("opaque data prints")
			}
		})
	}
}

// pamWith gives data with what stands in the place of a session id changed.
func pamWith(data []byte, change func([]byte) []byte) []byte {
	r := reader{rest: data}
	request := bytes.Clone(r.bytes("request", maxData))
	return append(appendString(nil, change(request)), r.rest...)
}

func TestCheck(t *testing.T) {
	t.Parallel()
	const f256, f512 = uint32(agent.SignatureFlagRsaSha256), uint32(agent.SignatureFlagRsaSha512)
	ed := signerOf(t, newKey(t, ssh.KeyAlgoED25519))
	other := signerOf(t, newKey(t, ssh.KeyAlgoED25519)).PublicKey()
	rsaKey := signerOf(t, newKey(t, ssh.KeyAlgoRSA)).PublicKey()
	otherRSA := signerOf(t, newKey(t, ssh.KeyAlgoRSA+"/2")).PublicKey()
	cert := certify(t, ed, ed.PublicKey(), ssh.UserCert, "alice")
	cert2 := certify(t, ed, ed.PublicKey(), ssh.UserCert, "bob")
	rsaCert := certify(t, ed, rsaKey, ssh.UserCert, "alice")
	wire := func(k ssh.PublicKey) ssh.PublicKey { return &agent.Key{Format: k.Type(), Blob: k.Marshal()} }
	login := func(k ssh.PublicKey, algorithm string) Meaning { return loginOf(k.Marshal(), nil, algorithm) }
	dsa := &agent.Key{Format: "ssh-dss", Blob: appendString(nil, "ssh-dss")}

	for _, tt := range []struct {
		name  string
		m     Meaning
		asked ssh.PublicKey
		flags uint32
		want  error
	}{
		{"same key", login(ed.PublicKey(), ssh.KeyAlgoED25519), ed.PublicKey(), 0, nil},
		{"same key, as on the wire", login(ed.PublicKey(), ssh.KeyAlgoED25519), wire(ed.PublicKey()), 0, nil},
		{"another key", login(ed.PublicKey(), ssh.KeyAlgoED25519), other, 0, ErrOtherKey},
		{"RSA flags for ed25519", login(ed.PublicKey(), ssh.KeyAlgoED25519), ed.PublicKey(), f256 | f512, nil},
		{"unknown flag", login(ed.PublicKey(), ssh.KeyAlgoED25519), ed.PublicKey(), 8, ErrFlags},
		{"reserved flag", login(rsaKey, ssh.KeyAlgoRSA), rsaKey, 1, ErrFlags},
		{"bare key for certificate", login(cert, ssh.CertAlgoED25519v01), ed.PublicKey(), 0, nil},
		{"certificate for bare key", login(ed.PublicKey(), ssh.KeyAlgoED25519), cert, 0, nil},
		{"certificate, as on the wire", login(cert, ssh.CertAlgoED25519v01), wire(cert), 0, nil},
		{"another certificate", login(cert, ssh.CertAlgoED25519v01), cert2, 0, nil},
		{"certificate of another key", login(cert, ssh.CertAlgoED25519v01), other, 0, ErrOtherKey},
		{"rsa 256", login(rsaKey, ssh.KeyAlgoRSASHA256), rsaKey, f256, nil},
		{"rsa 512", login(rsaKey, ssh.KeyAlgoRSASHA512), rsaKey, f512, nil},
		{"rsa both", login(rsaKey, ssh.KeyAlgoRSASHA256), rsaKey, f256 | f512, nil},
		{"rsa both for 512", login(rsaKey, ssh.KeyAlgoRSASHA512), rsaKey, f256 | f512, ErrAlgorithm},
		{"rsa 256 for 512", login(rsaKey, ssh.KeyAlgoRSASHA512), rsaKey, f256, ErrAlgorithm},
		{"rsa SHA-1", login(rsaKey, ssh.KeyAlgoRSA), rsaKey, 0, nil},
		{"rsa SHA-1 for 512", login(rsaKey, ssh.KeyAlgoRSASHA512), rsaKey, 0, ErrAlgorithm},
		{"rsa certificate", login(rsaCert, ssh.CertAlgoRSASHA512v01), wire(rsaCert), f512, nil},
		{"rsa certificate 256 for 512", login(rsaCert, ssh.CertAlgoRSASHA512v01), rsaCert, f256, ErrAlgorithm},
		{"another rsa key", login(rsaKey, ssh.KeyAlgoRSASHA512), otherRSA, f512, ErrOtherKey},
		{"rsa for ed25519", login(ed.PublicKey(), ssh.KeyAlgoED25519), rsaKey, f512, ErrAlgorithm},
		{"sshsig", sshsigOf("git"), ed.PublicKey(), 0, nil},
		{"sshsig rsa", sshsigOf("git"), rsaKey, f512, nil},
		{"sshsig SHA-1", sshsigOf("git"), rsaKey, 0, ErrAlgorithm},
		{"sshsig flags", sshsigOf("git"), ed.PublicKey(), 16, ErrFlags},
		{"certificate by CA", certificateOf(rsaKey.Marshal(), ed.PublicKey().Marshal()), ed.PublicKey(), 0, nil},
		{"certificate by the certified", certificateOf(other.Marshal(), ed.PublicKey().Marshal()), other, 0, ErrOtherKey},
		{"certificate by rsa", certificateOf(other.Marshal(), rsaKey.Marshal()), rsaKey, f256, nil},
		{"certificate with SHA-1", certificateOf(other.Marshal(), rsaKey.Marshal()), rsaKey, 0, ErrAlgorithm},
		{"certificate without body", Meaning{Kind: Certificate}, ed.PublicKey(), 0, ErrOtherKey},
		{"pam", pamOf(ed.PublicKey().Marshal()), ed.PublicKey(), 0, nil},
		{"pam, another key", pamOf(ed.PublicKey().Marshal()), other, 0, ErrOtherKey},
		{"opaque", Meaning{}, ed.PublicKey(), 0, nil},
		{"opaque flags", Meaning{}, ed.PublicKey(), 1 << 31, ErrFlags},
		{"no such kind", Meaning{Kind: 9}, ed.PublicKey(), 0, ErrAlgorithm},
		{"asked is unknown", Meaning{}, dsa, 0, ErrKey},
		{"asked is nothing", Meaning{}, nil, 0, ErrKey},
		{"login without key", loginOf(nil, nil, ssh.KeyAlgoED25519), ed.PublicKey(), 0, ErrOtherKey},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if err := Check(tt.m, tt.asked, tt.flags); !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
		})
	}
}

func TestSameKey(t *testing.T) {
	t.Parallel()
	ca := signerOf(t, newKey(t, ssh.KeyAlgoED25519))
	a := signerOf(t, newKey(t, ssh.KeyAlgoECDSA256)).PublicKey()
	b := signerOf(t, newKey(t, ssh.KeyAlgoECDSA256)).PublicKey()
	certA, certA2, certB := certify(t, ca, a, ssh.UserCert, "x"), certify(t, ca, a, ssh.HostCert, "y"), certify(t, ca, b, ssh.UserCert, "x")
	long := certify(t, ca, a, ssh.UserCert, strings.Repeat("x", maxKey))
	for _, tt := range []struct {
		name string
		a, b []byte
		want bool
	}{
		{"too long", long.Marshal(), long.Marshal(), false},
		{"same", a.Marshal(), a.Marshal(), true},
		{"other", a.Marshal(), b.Marshal(), false},
		{"certificate and key", certA.Marshal(), a.Marshal(), true},
		{"two certificates", certA.Marshal(), certA2.Marshal(), true},
		{"certificates of two keys", certA.Marshal(), certB.Marshal(), false},
		{"certificate and CA", certA.Marshal(), ca.PublicKey().Marshal(), false},
		{"nothing", nil, nil, false},
		{"garbage", []byte("x"), []byte("x"), false},
		{"key and garbage", a.Marshal(), []byte("x"), false},
		{"key and trailing byte", a.Marshal(), append(a.Marshal(), 0), false},
	} {
		if SameKey(tt.a, tt.b) != tt.want || SameKey(tt.b, tt.a) != tt.want {
			t.Errorf("%s: not %v", tt.name, tt.want)
		}
	}
}

func TestKindString(t *testing.T) {
	t.Parallel()
	for k, want := range map[Kind]string{Opaque: "opaque", Login: "login", SSHSIG: "sshsig",
		Certificate: "certificate", PAM: "pam_ssh_agent_auth", 9: "kind 9"} {
		if k.String() != want {
			t.Errorf("%d is %q", int(k), k)
		}
	}
}

func TestWindow(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		after, before         uint64
		wantAfter, wantBefore time.Time
	}{
		{0, ssh.CertTimeInfinity, time.Time{}, time.Time{}},
		{1, 2, time.Unix(1, 0), time.Unix(2, 0)},
		{1 << 63, ssh.CertTimeInfinity - 1, time.Unix(lastTime, 0), time.Unix(lastTime, 0)},
		{0, 0, time.Time{}, time.Unix(0, 0)},
	} {
		c := CertificateBody{ValidAfter: tt.after, ValidBefore: tt.before}
		if a, b := c.Window(); !a.Equal(tt.wantAfter) || !b.Equal(tt.wantBefore) {
			t.Errorf("%d to %d: %v to %v", tt.after, tt.before, a, b)
		}
	}
}

// memoryFactor bounds the memory that parsing takes as a multiple of the input; a certificate with
// as many options as fit, which x/crypto puts in maps and marshals again, comes closest.
const memoryFactor, memoryBase = 64, 64 << 10

// TestMemory is not parallel: it counts what the whole process allocates.
func TestMemory(t *testing.T) {
	ed := signerOf(t, newKey(t, ssh.KeyAlgoED25519))
	options := make(map[string]string)
	for i := range 4000 {
		options[fmt.Sprintf("%04d", i)] = ""
	}
	stuffed := &ssh.Certificate{Key: ed.PublicKey(), CertType: ssh.UserCert, ValidPrincipals: []string{"a"},
		Permissions: ssh.Permissions{Extensions: options}}
	if err := stuffed.SignCert(strings.NewReader(strings.Repeat("n", 64)), ed); err != nil {
		t.Fatal(err)
	}
	principals := certificateOf(ed.PublicKey().Marshal(), ed.PublicKey().Marshal())
	principals.Certificate.Principals = slices.Repeat([]string{"a"}, 40000)
	arguments := pamOf(ed.PublicKey().Marshal())
	arguments.PAM.Command = make([]string, 60000)
	inputs := map[string][]byte{
		"options in certificate": loginOf(stuffed.Marshal(), nil, ssh.CertAlgoED25519v01).Marshal(),
		"principals":             principals.Marshal(),
		"arguments":              arguments.Marshal(),
		"lengths":                bytes.Repeat([]byte{0xff}, 64),
		"nested lengths":         []byte("\x00\x00\x00\x012\x00\x00\x00\x01\x7f\xff\xff\xff"),
		"long":                   make([]byte, 64<<20),
	}
	for name, data := range goldens(t) {
		inputs[name] = data
	}
	for name, data := range inputs {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		Parse(data)
		_, _ = ParseBind(data)
		runtime.ReadMemStats(&after)
		used := after.TotalAlloc - before.TotalAlloc
		if limit := uint64(memoryFactor*min(len(data), maxData) + memoryBase); used > limit {
			t.Errorf("%s: %d bytes of memory for %d bytes of input", name, used, len(data))
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, data := range goldens(f) {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m := Parse(data)
		if m.Kind == Opaque {
			if m.Why == nil || m.Marshal() != nil {
				t.Fatal("opaque without a reason, or printable")
			}
			return
		}
		printed := m.Marshal()
		if !bytes.Equal(printed, data) {
			t.Fatalf("prints as %x", printed)
		}
		if again := Parse(printed); !reflect.DeepEqual(again, m) {
			t.Fatalf("%+v, then %+v", m, again)
		}
	})
}

func FuzzParseBind(f *testing.F) {
	for _, data := range goldens(f) {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := ParseBind(data)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if !bytes.Equal(b.Marshal(), data) {
			t.Fatalf("prints as %x", b.Marshal())
		}
		if err := b.Verify(); err != nil && !errors.Is(err, ErrHostSignature) {
			t.Fatal(err)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	all := goldens(b)
	for _, name := range []string{"login-hostbound-ecdsa", "login-hostbound-ecdsa-cert", "login-hostbound-rsa",
		"sshsig-git", "certificate-user-ecdsa", "pam-ecdsa"} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(all[name])))
			b.ReportAllocs()
			for b.Loop() {
				if Parse(all[name]).Kind == Opaque {
					b.Fatal("opaque")
				}
			}
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	all := goldens(b)
	for _, name := range []string{"bind-ecdsa256", "bind-ed25519", "bind-rsa", "bind-cert-ed25519-by-ecdsa"} {
		bind, err := ParseBind(all[name])
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := bind.Verify(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
