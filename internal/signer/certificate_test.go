// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"fmt"
	"log/slog"
	"maps"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/keyfile"
)

// ephemeral is a key that somebody wants certified.
func ephemeral(t testing.TB) ssh.PublicKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return publicOf(t, k.Public())
}

func publicOf(t testing.TB, k any) ssh.PublicKey {
	t.Helper()
	p, err := ssh.NewPublicKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// usual is an honest certificate request.
func usual(t testing.TB) *envelope.CertificateRequest {
	return &envelope.CertificateRequest{
		PublicKeyBlob: ephemeral(t).Marshal(), Principals: []string{"anna", "root"}, Validity: 28800, KeyID: "vmux:anna@laptop:{serial}",
		CriticalOptions: []envelope.Option{{Name: "force-command", Value: `make "all"`}, {Name: "source-address", Value: "192.0.2.0/24,2001:db8::1"}},
		Extensions:      []envelope.Option{{Name: "permit-agent-forwarding"}, {Name: "permit-port-forwarding"}, {Name: "permit-pty"}},
		CreatedAt:       envelope.At(time.Now()),
		Context: envelope.Context{Device: "not the laptop", Operation: "harmless", Reason: "nightly deploy", WorkingDirectory: "/home/anna/site",
			Limits:    []string{"host deploy SHA256:" + strings.Repeat("d", 43), "10 signatures"},
			Processes: []envelope.Process{{PID: 4242, Executable: "/usr/bin/vmux-cert"}, {PID: 41, Executable: "/bin/bash"}}},
	}
}

func startCertificate(ctx context.Context, s *server, id string, r *envelope.CertificateRequest) <-chan result {
	c := make(chan result, 1)
	go func() {
		p, err := s.handle(ctx, testPin, id, r)
		c <- result{p, err}
	}()
	return c
}

// wantCertificate is wantCode for certificates.
func wantCertificate(t *testing.T, p envelope.Payload, err error, want envelope.Code) *ssh.Certificate {
	t.Helper()
	if codeOf(err) != want {
		t.Errorf("%v, want %q", err, want)
	}
	r, ok := p.(*envelope.CertificateResponse)
	if ok != (want == "") {
		t.Errorf("answer %v with code %q", p, codeOf(err))
	}
	if !ok {
		return nil
	}
	k, err := ssh.ParsePublicKey(r.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	return k.(*ssh.Certificate)
}

// C03: the certificate says what was asked, is signed by the CA, and real
// OpenSSH reads it.
func TestThreat_C03_CertificateSaysWhatWasAsked(t *testing.T) {
	t.Parallel()
	s := testServer(t, yes{})
	moment := time.Now().Truncate(time.Second).Add(700 * time.Millisecond)
	s.now = func() time.Time { return moment }
	weak, err := rsa.GenerateKey(rand.Reader, minRSA)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]ssh.PublicKey{"ecdsa": ephemeral(t), "ed25519": hostSigner(t, true).PublicKey(), "rsa": publicOf(t, weak.Public())}
	nonces, serials := map[string]bool{}, map[uint64]bool{}
	for name, key := range keys {
		for _, bare := range []bool{false, true} {
			r := usual(t)
			r.PublicKeyBlob, r.CreatedAt = key.Marshal(), envelope.At(moment)
			if bare {
				r.CriticalOptions, r.Extensions, r.Validity, r.Principals, r.KeyID = []envelope.Option{}, []envelope.Option{}, 15, []string{"x"}, "plain {id}"
			}
			p, err := s.handle(t.Context(), testPin, fmt.Sprint(name, bare), r)
			c := wantCertificate(t, p, err, "")
			if c == nil {
				continue
			}
			if !bytes.Equal(c.Key.Marshal(), key.Marshal()) || c.CertType != ssh.UserCert || !slices.Equal(c.ValidPrincipals, r.Principals) || len(c.Reserved) != 0 {
				t.Errorf("%s: %+v", name, c)
			}
			if want := strings.ReplaceAll(r.KeyID, "{serial}", strconv.FormatUint(c.Serial, 10)); c.KeyId != want {
				t.Errorf("%s: key id %q, want %q", name, c.KeyId, want)
			}
			if c.Serial == 0 || c.Serial >= 1<<63 || serials[c.Serial] || nonces[string(c.Nonce)] || len(c.Nonce) < 16 {
				t.Errorf("%s: serial %d, nonce %x", name, c.Serial, c.Nonce)
			}
			serials[c.Serial], nonces[string(c.Nonce)] = true, true
			// Backdated without shortening.
			if c.ValidAfter != uint64(moment.Unix()-60) || c.ValidBefore != uint64(moment.Unix()+r.Validity) {
				t.Errorf("%s: valid %d to %d at %d", name, c.ValidAfter, c.ValidBefore, moment.Unix())
			}
			if !maps.Equal(c.CriticalOptions, optionMap(r.CriticalOptions)) || !maps.Equal(c.Extensions, optionMap(r.Extensions)) {
				t.Errorf("%s: options %v %v", name, c.CriticalOptions, c.Extensions)
			}
			checker := ssh.CertChecker{SupportedCriticalOptions: []string{"force-command", "source-address"}, IsUserAuthority: func(k ssh.PublicKey) bool {
				return bytes.Equal(k.Marshal(), s.current().ca.Public.Marshal())
			}}
			for _, at := range []struct {
				unix int64
				ok   bool
			}{{moment.Unix() - 61, false}, {moment.Unix() - 60, true}, {moment.Unix() + r.Validity - 1, true}, {moment.Unix() + r.Validity, false}} {
				checker.Clock = func() time.Time { return time.Unix(at.unix, 0) }
				if err := checker.CheckCert(r.Principals[0], c); (err == nil) != at.ok {
					t.Errorf("%s at %d: %v", name, at.unix-moment.Unix(), err)
				}
			}
			checker.Clock = func() time.Time { return moment }
			if err := checker.CheckCert("somebody", c); err == nil {
				t.Errorf("%s: accepted for another principal", name)
			}
			if !checker.IsUserAuthority(c.SignatureKey) {
				t.Errorf("%s: signed by %s", name, fingerprint(c.SignatureKey))
			}
			keygenReads(t, c, r)
		}
	}
}

// keygenReads makes sure that ssh-keygen -L shows the certificate as r asks for
// it, and complains of nothing.
func keygenReads(t *testing.T, c *ssh.Certificate, r *envelope.CertificateRequest) {
	t.Helper()
	if _, err := exec.LookPath("ssh-keygen"); err != nil {
		t.Skip("no ssh-keygen")
	}
	path := filepath.Join(t.TempDir(), "x-cert.pub")
	if err := os.WriteFile(path, ssh.MarshalAuthorizedKey(c), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("ssh-keygen", "-L", "-f", path)
	cmd.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C")
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	b, err := cmd.Output()
	if err != nil || complaints.Len() > 0 {
		t.Errorf("ssh-keygen: %v: %s", err, complaints.String())
	}
	when := func(n uint64) string { return time.Unix(int64(n), 0).UTC().Format("2006-01-02T15:04:05") }
	want := []string{path + ":", "Type: " + c.Type() + " user certificate",
		"Public key: " + map[string]string{ssh.KeyAlgoECDSA256: "ECDSA", ssh.KeyAlgoED25519: "ED25519", ssh.KeyAlgoRSA: "RSA"}[c.Key.Type()] + "-CERT " + ssh.FingerprintSHA256(c.Key),
		"Signing CA: ECDSA " + ssh.FingerprintSHA256(c.SignatureKey) + " (using ecdsa-sha2-nistp256)",
		fmt.Sprintf("Key ID: %q", c.KeyId), fmt.Sprintf("Serial: %d", c.Serial),
		fmt.Sprintf("Valid: from %s to %s", when(c.ValidAfter), when(c.ValidBefore)), "Principals:"}
	want = append(want, r.Principals...)
	list := func(name string, options []envelope.Option) {
		if len(options) == 0 {
			want = append(want, name+": (none)")
			return
		}
		want = append(want, name+":")
		for _, o := range options {
			want = append(want, strings.TrimSpace(o.Name+" "+o.Value))
		}
	}
	list("Critical Options", r.CriticalOptions)
	list("Extensions", r.Extensions)
	var got []string
	for l := range strings.Lines(string(b)) {
		got = append(got, strings.TrimSpace(l))
	}
	if !slices.Equal(got, want) {
		t.Errorf("ssh-keygen -L shows\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// C03: what may be asked for, from both sides of each limit, by default and as
// certificates.toml sets it. Nobody is asked for what is refused.
func TestThreat_C03_Limits(t *testing.T) {
	t.Parallel()
	option := func(name, value string) []envelope.Option { return []envelope.Option{{Name: name, Value: value}} }
	type change = func(*envelope.CertificateRequest)
	validity := func(n int64) change { return func(r *envelope.CertificateRequest) { r.Validity = n } }
	principals := func(p ...string) change { return func(r *envelope.CertificateRequest) { r.Principals = p } }
	critical := func(name, value string) change {
		return func(r *envelope.CertificateRequest) { r.CriticalOptions = option(name, value) }
	}
	extension := func(name, value string) change {
		return func(r *envelope.CertificateRequest) { r.Extensions = option(name, value) }
	}
	const denied, bad = envelope.CodeDenied, envelope.CodeBadRequest
	for i, c := range []struct {
		limits string
		change change
		want   envelope.Code
		why    string
	}{
		{"", validity(15), "", ""}, {"", validity(14), denied, "14 s is not between 15s and 24h0m0s"},
		{"", validity(86400), "", ""}, {"", validity(86401), denied, "86401 s is not between"},
		{"", validity(0), denied, "0 s"}, {"", validity(-1), denied, "-1 s"}, {"", validity(1<<63 - 1), denied, "9223372036854775807 s"},
		{`max-validity = "1h"`, validity(3600), "", ""}, {`max-validity = "1h"`, validity(3601), denied, "15s and 1h0m0s"},
		{`min-validity = "1m"`, validity(60), "", ""}, {`min-validity = "1m"`, validity(59), denied, "1m0s and 24h0m0s"},
		{`max-validity = "8784h"`, validity(envelope.MaxValidity), "", ""}, {`max-validity = "8784h"`, validity(envelope.MaxValidity + 1), denied, "not between"},

		{"", principals("*"), "", ""}, {"", principals("anyone@EXAMPLE.ORG", `CORP\anna`, "jürgen"), "", ""},
		{`principals = ["anna", "root"]`, principals("root", "anna"), "", ""},
		{`principals = ["anna", "root"]`, principals("anna", "toor"), denied, "principal toor"},
		{`principals = ["anna"]`, principals("*"), denied, "principal *"},
		{`principals = ["anna"]`, principals("Anna"), denied, "principal Anna"},
		{`principals = ["anna"]`, principals("anna2"), denied, "principal anna2"},
		{`principals = []`, principals("anna"), denied, "principal anna"},
		{"", principals(), bad, "needs a principal"}, {"", principals(""), bad, "a principal has"},
		{"", principals("anna,root"), bad, "a principal has"}, {"", principals("anna root"), bad, "a principal has"},
		{"", principals("anna\u00a0root"), bad, "a principal has"},
		{"", principals("anna\n"), bad, "a principal has"}, {"", principals("anna\u202e"), bad, "a principal has"},

		{"", func(r *envelope.CertificateRequest) { r.KeyID = "a b {x}" }, "", ""},
		{"", func(r *envelope.CertificateRequest) { r.KeyID = "a\x1b[2J" }, bad, "key id"},

		{"", critical("force-command", "/bin/true"), "", ""}, {"", critical("verify-required", ""), "", ""},
		{"", critical("source-address", "192.0.2.1"), "", ""}, {"", critical("source-address", "10.0.0.0/8,::/0"), "", ""},
		{"", critical("no-touch-required", ""), denied, "critical option no-touch-required"},
		{"", critical("Force-Command", "x"), denied, "critical option Force-Command"},
		{"", critical("permit-pty", ""), denied, "critical option permit-pty"},
		{`critical-options = ["source-address"]`, critical("source-address", "192.0.2.1"), "", ""},
		{`critical-options = ["source-address"]`, critical("force-command", "x"), denied, "critical option force-command"},
		{`critical-options = ["x@example.org"]`, critical("x@example.org", "any value"), "", ""},
		{"", critical("force-command", ""), bad, "force-command is empty"}, {"", critical("force-command", "  "), bad, "force-command is empty"},
		{"", critical("force-command", "true\nfalse"), bad, "does not print"},
		{"", critical("verify-required", "yes"), bad, "takes no value"},
		{"", critical("source-address", ""), bad, "source-address has"}, {"", critical("source-address", "192.0.2.1/24"), bad, "source-address has"},
		{"", critical("source-address", "192.0.2.0/33"), bad, "source-address has"}, {"", critical("source-address", "192.0.2.1, 192.0.2.2"), bad, "source-address has"},
		{"", critical("source-address", "!192.0.2.1"), bad, "source-address has"}, {"", critical("source-address", "fe80::1%eth0"), bad, "source-address has"},
		{"", critical("source-address", "192.0.2.1,"), bad, "source-address has"}, {"", critical("source-address", "host.example"), bad, "source-address has"},

		{"", extension("permit-X11-forwarding", ""), "", ""}, {"", extension("permit-user-rc", ""), "", ""},
		{"", extension("no-touch-required", ""), denied, "extension no-touch-required"},
		{"", extension("force-command", "x"), denied, "extension force-command"},
		{"", extension("permit-pty", "yes"), bad, "takes no value"},
		{`extensions = ["permit-pty"]`, extension("permit-pty", ""), "", ""},
		{`extensions = ["permit-pty"]`, extension("permit-user-rc", ""), denied, "extension permit-user-rc"},
		{`extensions = []`, func(r *envelope.CertificateRequest) { r.Extensions = nil }, "", ""},
		{`extensions = ["login@github.com"]`, extension("login@github.com", "anna"), "", ""},
		{`extensions = ["login@github.com"]`, extension("login@github.com", "an\u200bna"), bad, "does not print"},

		{`max-validity = "a day"`, validity(15), denied, "cannot be read"}, {`max-vality = "1h"`, validity(15), denied, "cannot be read"},
		{"\xff", validity(15), denied, "cannot be read"}, {"", func(r *envelope.CertificateRequest) {}, "", ""},

		{"", func(r *envelope.CertificateRequest) { r.Identity = "work" }, "", ""},
		{"", func(r *envelope.CertificateRequest) { r.Identity = "play" }, envelope.CodeUnknownKey, "no such key"},
		{"", func(r *envelope.CertificateRequest) { r.Identity = "Work" }, envelope.CodeUnknownKey, "no such key"},
		{"", func(r *envelope.CertificateRequest) { r.Identity = "../ca" }, envelope.CodeUnknownKey, "no such key"},
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			asked := newAnswers()
			s := testServer(t, asked)
			var log bytes.Buffer
			s.log = slog.New(slog.NewTextHandler(&log, nil))
			if c.limits != "" {
				writeLimits(t, s.home, c.limits)
			}
			r := usual(t)
			c.change(r)
			done := startCertificate(t.Context(), s, "a", r)
			if c.want == "" {
				select {
				case q := <-asked.asked:
					q.reply <- nil
				case got := <-done:
					t.Fatalf("%s: %v", c.limits, got.err)
				}
			}
			got := <-done
			wantCertificate(t, got.payload, got.err, c.want)
			if got.err != nil && !strings.Contains(got.err.Error(), c.why) {
				t.Errorf("%v, want %q", got.err, c.why)
			}
			if len(asked.asked) > 0 {
				t.Error("the owner was asked")
			}
			// The owner's paths and file are not the device's business; the log has them.
			if c.why == "cannot be read" && (strings.Contains(got.err.Error(), s.home.Dir()) || !strings.Contains(log.String(), s.home.path(limitsName))) {
				t.Errorf("device: %v; log: %s", got.err, log.String())
			}
		})
	}
}

// C03: keys that the CA does not certify, the signer's own among them.
func TestThreat_C03_KeysThatAreNotCertified(t *testing.T) {
	t.Parallel()
	asked := newAnswers()
	s := testServer(t, asked)
	if err := s.home.EnableKey("work", false); err != nil {
		t.Fatal(err)
	}
	if err := s.reload(); err != nil {
		t.Fatal(err)
	}
	long := ssh.Marshal(struct {
		Name string
		E, N []byte
	}{ssh.KeyAlgoRSA, []byte{0, 1, 0, 1}, append([]byte{0, 0, 0x80}, append(make([]byte, 254), 1)...)})
	if k, err := ssh.ParsePublicKey(long); err != nil || bytes.Equal(k.Marshal(), long) {
		t.Fatalf("not another form of a key: %v", err)
	}
	// A modulus is not tested for being one.
	modulus := func(bits uint) ssh.PublicKey {
		n := new(big.Int).Lsh(big.NewInt(1), bits-1)
		return publicOf(t, &rsa.PublicKey{N: n.SetBit(n, 0, 1), E: 65537})
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &ssh.Certificate{Key: ephemeral(t), CertType: ssh.UserCert, ValidPrincipals: []string{"x"}, ValidBefore: ssh.CertTimeInfinity}
	if err := cert.SignCert(rand.Reader, hostSigner(t, true)); err != nil {
		t.Fatal(err)
	}
	good := ephemeral(t).Marshal()
	sk := ssh.Marshal(struct {
		Name string
		Key  []byte
		App  string
	}{ssh.KeyAlgoSKED25519, make([]byte, 32), "ssh:"})
	now := s.current()
	for name, c := range map[string]struct {
		blob []byte
		want envelope.Code
		why  string
	}{
		"identity":          {now.keys[0].Public.Marshal(), envelope.CodeDenied, "own key default"},
		"disabled identity": {now.keys[1].Public.Marshal(), envelope.CodeDenied, "own key work"},
		"CA":                {now.ca.Public.Marshal(), envelope.CodeDenied, "certificate authority's"},
		"certificate":       {cert.Marshal(), envelope.CodeBadRequest, "certificate already"},
		"RSA 2047":          {modulus(2047).Marshal(), envelope.CodeDenied, "not 2047"},
		"RSA 1024":          {modulus(1024).Marshal(), envelope.CodeDenied, "not 1024"},
		"RSA 16385":         {modulus(16385).Marshal(), envelope.CodeBadRequest, "cannot be read"},
		"P-384":             {publicOf(t, p384.Public()).Marshal(), envelope.CodeDenied, "ecdsa-sha2-nistp384"},
		"security key":      {sk, envelope.CodeDenied, "sk-ssh-ed25519@openssh.com"},
		"another form":      {long, envelope.CodeBadRequest, "cannot be read"},
		"trailing byte":     {append(slices.Clone(good), 0), envelope.CodeBadRequest, "cannot be read"},
		"cut":               {good[:len(good)-1], envelope.CodeBadRequest, "cannot be read"},
		"junk":              {[]byte("junk"), envelope.CodeBadRequest, "cannot be read"},
		"nothing":           {nil, envelope.CodeBadRequest, "cannot be read"},
	} {
		r := usual(t)
		r.PublicKeyBlob = c.blob
		p, err := s.handle(t.Context(), testPin, strings.ReplaceAll(name, " ", "-"), r)
		if wantCertificate(t, p, err, c.want); err == nil || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v, want %q", name, err, c.why)
		}
	}
	r := usual(t)
	r.Identity = "work"
	p, err := s.handle(t.Context(), testPin, "disabled", r)
	wantCertificate(t, p, err, envelope.CodeUnknownKey)
	if len(asked.asked) != 0 {
		t.Errorf("%d prompts were shown", len(asked.asked))
	}
	for _, bits := range []uint{minRSA, 16384} {
		r := usual(t)
		r.PublicKeyBlob = modulus(bits).Marshal()
		done := startCertificate(t.Context(), s, fmt.Sprint(bits), r)
		(<-asked.asked).reply <- nil
		got := <-done
		wantCertificate(t, got.payload, got.err, "")
	}
}

// C03, C05: freshness and ids are as for signatures.
func TestThreat_C05_CertificateFreshness(t *testing.T) {
	t.Parallel()
	s := testServer(t, yes{})
	now := time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
	s.now = func() time.Time { return now }
	for i, c := range []struct {
		age  time.Duration
		want envelope.Code
	}{{0, ""}, {59 * time.Second, ""}, {61 * time.Second, envelope.CodeExpired}, {-59 * time.Second, ""}, {-61 * time.Second, envelope.CodeExpired}} {
		r := usual(t)
		r.CreatedAt = envelope.At(now.Add(-c.age))
		p, err := s.handle(t.Context(), testPin, fmt.Sprint(i), r)
		wantCertificate(t, p, err, c.want)
		p, err = s.handle(t.Context(), testPin, fmt.Sprint(i), r)
		wantCertificate(t, p, err, envelope.CodeBadRequest)
	}
	// One memory of ids for both kinds of request.
	r := request(s, "work", 1)
	r.CreatedAt = envelope.At(now)
	p, err := s.handle(t.Context(), testPin, "0", r)
	wantCode(t, p, err, envelope.CodeBadRequest)
	r2 := usual(t)
	r2.CreatedAt = envelope.At(now)
	_, err = s.handle(t.Context(), [32]byte{8}, "z", r2)
	wantCode(t, nil, err, envelope.CodeNotPaired)
}

// C03, C05: what changes while the owner thinks counts, and a no is a no.
func TestThreat_C03_LateApproval(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		identity string
		change   func(t *testing.T, s *server, r *envelope.CertificateRequest, cancel func())
		want     envelope.Code
	}{
		"nothing": {"work", func(*testing.T, *server, *envelope.CertificateRequest, func()) {}, ""},
		"cancel":  {"", func(_ *testing.T, _ *server, _ *envelope.CertificateRequest, cancel func()) { cancel() }, envelope.CodeDenied},
		"expiry":  {"", func(*testing.T, *server, *envelope.CertificateRequest, func()) { <-time.After(Freshness) }, envelope.CodeExpired},
		"almost":  {"", func(*testing.T, *server, *envelope.CertificateRequest, func()) { <-time.After(Freshness - time.Second) }, ""},
		"other limit": {"", func(t *testing.T, s *server, _ *envelope.CertificateRequest, _ func()) {
			writeLimits(t, s.home, `max-validity = "8h"`)
		}, ""},
		"limits": {"", func(t *testing.T, s *server, _ *envelope.CertificateRequest, _ func()) {
			writeLimits(t, s.home, `max-validity = "7h"`)
		}, envelope.CodeDenied},
		"damaged limits": {"", func(t *testing.T, s *server, _ *envelope.CertificateRequest, _ func()) { writeLimits(t, s.home, "x") }, envelope.CodeDenied},
		"forget": {"", func(t *testing.T, s *server, _ *envelope.CertificateRequest, _ func()) {
			s.home.Forget("laptop")
			s.reload()
		}, envelope.CodeNotPaired},
		"another key disabled": {"work", func(t *testing.T, s *server, _ *envelope.CertificateRequest, _ func()) {
			s.home.EnableKey("default", false)
			s.reload()
		}, ""},
		"identity disabled": {"work", func(t *testing.T, s *server, _ *envelope.CertificateRequest, _ func()) {
			s.home.EnableKey("work", false)
			s.reload()
		}, envelope.CodeUnknownKey},
		"no identity, key disabled": {"", func(t *testing.T, s *server, _ *envelope.CertificateRequest, _ func()) {
			s.home.EnableKey("work", false)
			s.reload()
		}, ""},
		"CA on disk": {"", func(t *testing.T, s *server, _ *envelope.CertificateRequest, _ func()) { otherCA(t, s.home) }, envelope.CodeInternal},
		"CA": {"", func(t *testing.T, s *server, _ *envelope.CertificateRequest, _ func()) {
			otherCA(t, s.home)
			s.reload()
		}, envelope.CodeInternal},
		"key becomes an identity": {"", func(t *testing.T, s *server, r *envelope.CertificateRequest, _ func()) {
			key, err := ssh.ParsePublicKey(r.PublicKeyBlob)
			if err != nil {
				t.Fatal(err)
			}
			now := *s.current()
			now.keys = append(slices.Clone(now.keys), Key{Label: "new", Public: key})
			s.snap.Store(&now)
		}, envelope.CodeDenied},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				// It says yes whatever happened to its prompt.
				a := stubborn{make(chan *question, 1)}
				s := testServer(t, a)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				r := usual(t)
				r.Identity = c.identity
				done := startCertificate(ctx, s, "a", r)
				q := <-a.asked
				c.change(t, s, r, cancel)
				synctest.Wait()
				q.reply <- nil
				got := <-done
				cert := wantCertificate(t, got.payload, got.err, c.want)
				// The end that was shown is not passed.
				if cert != nil && int64(cert.ValidBefore) > q.prompt.Verified.Certificate.Latest.Unix() {
					t.Errorf("ends %d, shown %v", cert.ValidBefore, q.prompt.Verified.Certificate.Latest)
				}
				if cert != nil && int64(cert.ValidBefore) != time.Now().Unix()+r.Validity {
					t.Errorf("the owner's time shortened it: %d", cert.ValidBefore)
				}
				s.prompts.wait()
			})
		})
	}
	// The timer does not run while the computer sleeps; the clock does.
	t.Run("asleep", func(t *testing.T) {
		t.Parallel()
		a := newAnswers()
		s := testServer(t, a)
		var mu sync.Mutex
		now := time.Now()
		s.now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
		done := startCertificate(t.Context(), s, "a", usual(t))
		q := <-a.asked
		mu.Lock()
		now = now.Add(Freshness + time.Second)
		mu.Unlock()
		q.reply <- nil
		got := <-done
		wantCertificate(t, got.payload, got.err, envelope.CodeExpired)
	})
	for want, answer := range map[envelope.Code]error{envelope.CodeDenied: ErrDenied, envelope.CodeInternal: ErrNoTerminal} {
		a := newAnswers()
		s := testServer(t, a)
		done := startCertificate(t.Context(), s, "a", usual(t))
		(<-a.asked).reply <- answer
		got := <-done
		wantCertificate(t, got.payload, got.err, want)
	}
}

// stubborn is an Approver that does not heed its context.
type stubborn struct{ asked chan *question }

func (a stubborn) Approve(ctx context.Context, p *Prompt) error {
	q := &question{ctx, p, make(chan error, 1)}
	a.asked <- q
	return <-q.reply
}

func otherCA(t *testing.T, h *Home) {
	t.Helper()
	if err := os.Remove(h.path(caName)); err != nil {
		t.Fatal(err)
	}
	if _, err := h.writeNewKey(h.path(caName), func() ([]byte, error) { return keyfile.New(keyfile.Ed25519, "other", nil) }); err != nil {
		t.Fatal(err)
	}
}

// N02: each certificate has its own approval, and they count among the eight
// that may wait.
func TestThreat_N02_CertificatesShareNoPrompt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAnswers()
		s := testServer(t, a)
		r := usual(t)
		var all []<-chan result
		for i := range maxPrompts {
			all = append(all, startCertificate(t.Context(), s, fmt.Sprint(i), r))
		}
		synctest.Wait()
		if len(a.asked) != maxPrompts {
			t.Fatalf("%d prompts", len(a.asked))
		}
		p, err := s.handle(t.Context(), testPin, "ninth", r)
		wantCertificate(t, p, err, envelope.CodeTooMany)
		p, err = s.handle(t.Context(), testPin, "signature", request(s, "work", 1))
		wantCode(t, p, err, envelope.CodeTooMany)
		serials := map[uint64]bool{}
		for range maxPrompts - 1 {
			q := <-a.asked
			serials[q.prompt.Verified.Certificate.Serial] = true
			q.reply <- nil
		}
		(<-a.asked).reply <- ErrDenied
		denied := 0
		for _, c := range all {
			got := <-c
			if got.err != nil {
				denied++
				wantCertificate(t, got.payload, got.err, envelope.CodeDenied)
				continue
			}
			c := wantCertificate(t, got.payload, got.err, "")
			if !serials[c.Serial] {
				t.Errorf("serial %d was not shown, or twice", c.Serial)
			}
			delete(serials, c.Serial)
		}
		if denied != 1 || len(s.prompts.open) != 0 {
			t.Errorf("%d denied, left %v", denied, s.prompts.open)
		}
	})
}

// I03: log and events tell what was decided, and have neither key nor
// certificate.
func TestThreat_I03_CertificateLog(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	s := testServer(t, yes{})
	s.log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var events []Event
	s.onEvent = func(e Event) { events = append(events, e) }
	r := usual(t)
	p, err := s.handle(t.Context(), testPin, "a", r)
	c := wantCertificate(t, p, err, "")
	key, ca := fingerprint(c.Key), fingerprint(c.SignatureKey)
	want := fmt.Sprintf("device=laptop operation=certificate key=%s outcome=signed after=0s principals=anna,root validity=28800 serial=%d keyId=vmux:anna@laptop:%[2]d until=%s "+
		"options=force-command,source-address extensions=permit-agent-forwarding,permit-port-forwarding,permit-pty ca=%s\n",
		key, c.Serial, time.Unix(int64(c.ValidBefore), 0).UTC().Format(time.RFC3339), ca)
	line := strings.ReplaceAll(log.String(), `"`, "")
	line = line[:strings.Index(line, "after=")] + "after=0s" + line[strings.Index(line, " principals="):]
	if !strings.HasSuffix(line, want) || strings.Count(line, "\n") != 1 || !strings.Contains(line, "level=INFO") {
		t.Errorf("log\n%s\nwant\n%s", line, want)
	}
	serial := strconv.FormatUint(c.Serial, 10)
	if e := (Event{Event: EventRequest, Device: "laptop", Operation: "certificate", Key: key, Serial: serial, KeyID: c.KeyId, Outcome: "signed"}); len(events) != 1 || events[0] != e {
		t.Errorf("%+v, want %+v", events, e)
	}
	r.Validity, r.Principals = 1, []string{"anna"}
	s.handle(t.Context(), testPin, "b", r)
	if e := events[1]; e.Outcome != "denied" || e.Key != key || !strings.Contains(e.Reason, "validity") || e.Serial != "" {
		t.Errorf("%+v", e)
	}
	r.PublicKeyBlob = []byte("junk")
	s.handle(t.Context(), testPin, "c", r)
	if e := events[2]; e.Outcome != "badRequest" || e.Key != "" {
		t.Errorf("%+v", e)
	}
	text := log.String() + fmt.Sprint(events)
	for _, secret := range [][]byte{c.Marshal(), c.Key.Marshal(), c.Nonce, c.Signature.Blob, []byte("make"), []byte("192.0.2")} {
		for _, form := range []string{string(secret), fmt.Sprintf("%x", secret), base64.StdEncoding.EncodeToString(secret)} {
			if strings.Contains(text, form) {
				t.Errorf("log has %q", form)
			}
		}
	}
}

func TestCertificateCapability(t *testing.T) {
	t.Parallel()
	if got := testServer(t, yes{}).hello().Capabilities; !slices.Equal(got, []string{"certificate"}) {
		t.Error(got)
	}
}

// A damaged file is said at the start already.
func TestDamagedLimitsAreSaidAtStart(t *testing.T) {
	t.Parallel()
	h := testHome(t)
	writeLimits(t, h, "x")
	var log bytes.Buffer
	if _, err := newServer(h, Options{Approver: yes{}, Log: slog.New(slog.NewTextHandler(&log, nil))}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "level=ERROR") || !strings.Contains(log.String(), h.path(limitsName)) {
		t.Errorf("%q", log.String())
	}
}

func TestInWords(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		time.Second: "1 second", 15 * time.Second: "15 seconds", time.Minute: "1 minute", 8 * time.Hour: "8 hours", 90 * time.Minute: "1 hour 30 minutes",
		24 * time.Hour: "1 day", 49*time.Hour + 2*time.Minute + time.Second: "2 days 1 hour 2 minutes 1 second", envelope.MaxValidity * time.Second: "366 days",
	} {
		if got := inWords(d); got != want {
			t.Errorf("%d: %q, want %q", d, got, want)
		}
	}
}

// C03: the same over a real link, whose phone says that it has a CA, and a
// cancel withdraws the prompt.
func TestThreat_C03_CertificateOverTheLink(t *testing.T) {
	t.Parallel()
	a := newAnswers()
	r := serve(t, testHome(t), a)
	d := newDevice(t, "laptop")
	pairByURL(t, r, d)
	l, err := d.link(t, r)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(l.Peer().Capabilities, envelope.CapabilityCertificate) {
		t.Errorf("capabilities %q", l.Peer().Capabilities)
	}
	p, err := l.Call(t.Context(), "keys", &envelope.KeyListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(ctx context.Context, id string) <-chan result {
		c := make(chan result, 1)
		go func() {
			p, err := l.Call(ctx, id, usual(t))
			c <- result{p, err}
		}()
		return c
	}
	done := ask(t.Context(), "one")
	select {
	case q := <-a.asked:
		q.reply <- nil
	case got := <-done:
		t.Fatal(got.err)
	}
	got := <-done
	if c := wantCertificate(t, got.payload, got.err, ""); c != nil && !bytes.Equal(c.SignatureKey.Marshal(), p.(*envelope.KeyListResponse).CAKey) {
		t.Errorf("signed by %s", fingerprint(c.SignatureKey))
	}
	ctx, cancel := context.WithCancel(t.Context())
	done = ask(ctx, "two")
	q := <-a.asked
	cancel()
	<-q.ctx.Done()
	if got := <-done; got.err == nil {
		t.Errorf("answer %v", got.payload)
	}
}
