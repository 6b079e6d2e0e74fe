// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/pairing"
	"vmux.app/toolkit/internal/transport"
)

// point gives the curve's point of a P-256 key or of a certificate of one, in
// the form that a private key's is compared with.
func point(t testing.TB, k ssh.PublicKey) []byte {
	t.Helper()
	if c, ok := k.(*ssh.Certificate); ok {
		k = c.Key
	}
	c, ok := k.(ssh.CryptoPublicKey)
	if !ok {
		t.Fatalf("%T", k)
	}
	e, ok := c.CryptoPublicKey().(*ecdsa.PublicKey)
	if !ok {
		t.Fatalf("%T", c.CryptoPublicKey())
	}
	p, err := e.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	return p.Bytes()
}

// Runs of text that may stand for bytes.
var (
	hexText    = regexp.MustCompile(`[0-9a-fA-F]{64,}`)
	base64Text = regexp.MustCompile(`[A-Za-z0-9+/_-]{43,}`)
	decimals   = regexp.MustCompile(`\d{1,3}(?:[ ,]+\d{1,3}){31,}`)
	quotedText = regexp.MustCompile(`"(?:[^"\\\n]|\\.)*"`)
)

// holdsKey says which of the public points has its private half in a text: every
// 32 bytes of it in a row are tried as one, from either end, and those of what
// the text is the hexadecimal, decimal, base64 or quoted form of.
func holdsKey(text string, points map[string]string) (found []string) {
	tried := map[string]bool{}
	try := func(b []byte) {
		for i := 0; i+32 <= len(b); i++ {
			d := b[i : i+32]
			if tried[string(d)] || bytes.Count(d, []byte{0}) > 8 { // 1 in 10^12 keys
				continue
			}
			tried[string(d)] = true
			backwards := slices.Clone(d)
			slices.Reverse(backwards)
			for _, d := range [][]byte{d, backwards} {
				if k, err := ecdh.P256().NewPrivateKey(d); err == nil {
					if what := points[string(k.PublicKey().Bytes())]; what != "" {
						found = append(found, what)
					}
				}
			}
		}
	}
	try([]byte(text))
	for _, run := range quotedText.FindAllString(text, -1) {
		b, _ := strconv.Unquote(run)
		try([]byte(b))
	}
	joined := strings.NewReplacer("\n", "", "\r", "", `\n`, "").Replace(text)
	for _, text := range []string{text, joined} {
		for _, run := range hexText.FindAllString(text, -1) {
			for _, run := range []string{run, run[1:]} {
				b, _ := hex.DecodeString(run[:len(run)/2*2])
				try(b)
			}
		}
		for _, run := range base64Text.FindAllString(text, -1) {
			run = strings.NewReplacer("-", "+", "_", "/").Replace(run)
			for begin := range 4 {
				part := run[begin:]
				b, _ := base64.RawStdEncoding.DecodeString(part[:len(part)/4*4])
				try(b)
				b, _ = base64.RawStdEncoding.DecodeString(part) // with its odd end
				try(b[max(0, len(b)-34):])
			}
		}
		for _, run := range decimals.FindAllString(text, -1) {
			var b []byte
			for _, n := range strings.FieldsFunc(run, func(c rune) bool { return c == ' ' || c == ',' }) {
				v, _ := strconv.Atoi(n)
				b = append(b, byte(v))
			}
			try(b)
		}
	}
	return found
}

// privateBlocks are the PEM blocks with a private key in a text.
func privateBlocks(text string) (types []string) {
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return types
		}
		if strings.Contains(block.Type, "PRIVATE") {
			types = append(types, block.Type)
		}
	}
}

// T01: the private halves of session certificates are in no file and no log, in
// no form, while they live and afterwards. Public halves are where they must be,
// and nothing but the link's key is private.
func TestThreat_T01_SessionKeysAreInNoFile(t *testing.T) {
	t.Parallel()
	p, d := certifier(t), certDevice(t)
	p.serve("--approve", "always")
	pair(t, d, p)
	d.agent("--log-level", "debug")
	s := trusting(t, d.ok("vmux-cert", "ca"))
	d.certify("--key-id", "one")
	d.certify("--key-id", "two", "--host", s.fingerprint())
	s.accepts(d, nil, "true")
	j := d.job([]string{"--key-id", "job"}, `ssh-add -L; echo shown; read -r x <$go`)
	j.release()
	j.wait("^shown$")
	lines := append(d.offered(), regexp.MustCompile(`(?m)^ecdsa-sha2-nistp256-cert-v01@openssh.com \S+ job$`).FindString(j.output()))
	points := map[string]string{}
	for _, line := range lines {
		points[string(point(t, parse(t, line)))] = keyIDs([]string{line})[0]
	}

	started := time.Now()
	files := 0
	look := func(when string) {
		t.Helper()
		for name, content := range tree(t, d.home) {
			files++
			if found := holdsKey(content, points); len(found) > 0 {
				t.Errorf("%s: %s has the private key of %q", when, name, found)
			}
			if blocks := privateBlocks(content); (len(blocks) > 0 || strings.Contains(content, "PRIVATE KEY")) != (name == keyFile) || len(blocks) > 1 {
				t.Errorf("%s: %s has %q", when, name, blocks)
			}
			for _, line := range lines { // public, but session certificates are never written
				if strings.Contains(content, strings.Fields(line)[1]) {
					t.Errorf("%s: %s has a certificate", when, name)
				}
			}
		}
	}
	look("while they live")
	j.release()
	j.ended()
	d.ok("vmux-cert", "drop", "--all")
	d.serving.stop(syscall.SIGTERM)
	look("afterwards")
	for _, log := range []struct{ whose, text string }{{"agent", d.serving.output()}, {"signer", p.serving.output()}, {"job", j.output()}} {
		if found := holdsKey(log.text, points); len(found) > 0 {
			t.Errorf("the %s's log has the private key of %q", log.whose, found)
		}
	}
	if len(points) != 3 || files < 10 {
		t.Errorf("%d keys were looked for in %d files", len(points), files)
	}
	t.Logf("searched in %v", time.Since(started))

	// The search sees a private key in each form, and the authority's at the phone.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := ssh.NewPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	mine := map[string]string{string(point(t, public)): "mine"}
	little := slices.Clone(secret)
	slices.Reverse(little)
	for _, form := range []string{"x" + string(secret) + "y", hex.EncodeToString(append([]byte{1}, secret...)), fmt.Sprint(secret), fmt.Sprintf("key=%q", secret), "key=" + base64.StdEncoding.EncodeToString(secret),
		base64.URLEncoding.EncodeToString(append([]byte("xy"), little...)), string(pem.EncodeToMemory(block))} {
		if !slices.Contains(holdsKey(form, mine), "mine") {
			t.Errorf("the search does not find %q", form)
		}
	}
	authority := map[string]string{string(point(t, parse(t, d.ok("vmux-cert", "ca")))): "CA"}
	seen := false
	for _, content := range tree(t, p.homeDir()) {
		seen = seen || slices.Contains(holdsKey(content, authority), "CA")
	}
	if !seen {
		t.Error("the search does not find the authority's key at the phone")
	}
}

// T01: with a copy of all that the device has written, nobody has its
// certificates.
func TestThreat_T01_StolenStateHasNoSession(t *testing.T) {
	t.Parallel()
	d, p := certifying(t)
	s := trusting(t, d.ok("vmux-cert", "ca"))
	d.certify()
	s.accepts(d, nil, "true")
	p.serving.stop(syscall.SIGTERM)
	d.serving.stop(syscall.SIGKILL)
	thief := certDevice(t)
	for _, dir := range []string{".config", ".local", ".ssh", "tmp"} {
		if err := os.RemoveAll(thief.path(dir)); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(d.path(dir)); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		d.ok("cp", "-a", d.path(dir), thief.path(dir))
	}
	for _, h := range []*host{thief, d} { // its owner has none either
		h.agent()
		if all := h.certificates(); len(all) != 0 || len(h.offered()) != 0 {
			t.Errorf("%+v", all)
		}
		if r := s.login(h, "true"); r.exit == 0 {
			t.Error("logged in")
		}
		h.serving.stop(syscall.SIGTERM)
	}
	// It can ask for one, as the device could, and the owner decides.
	owner := p.askpass()
	p.serveOn(p.address, "--no-advertise", "--approve", "askpass")
	thief.agent()
	c := thief.spawn("vmux-cert")
	prompt := owner.next()
	if !strings.Contains(prompt.prompt, "SSH Certificate Request\nFrom laptop") {
		t.Errorf("the prompt does not name the device that was stolen:\n%s", prompt.prompt)
	}
	prompt.deny()
	if exit := c.ended(); exit != 5 || len(thief.offered()) != 0 {
		t.Errorf("denied: exit %d\n%s", exit, c.output())
	}
}

// C02: no two certificates have a key in common, nor one with the phone, whether
// they are asked for in the same way, renewed, or a job's.
func TestThreat_C02_FreshKeyForEachCertificate(t *testing.T) {
	t.Parallel()
	d, _ := certifying(t)
	keys := map[string]string{}
	add := func(what, line string) {
		t.Helper()
		at := string(point(t, parse(t, line)))
		if keys[at] != "" {
			t.Errorf("%s has the key of %s", what, keys[at])
		}
		keys[at] = what
	}
	for _, line := range strings.Split(strings.TrimSpace(d.ok("ssh-add", "-L")+d.ok("vmux-cert", "ca")), "\n") {
		add("the phone", line)
	}
	serials := map[string]bool{}
	for i, args := range [][]string{{}, {}, {"--validity", "1h"}, {"--principal", "deploy"}, {}} {
		serials[d.certify(append(args, "--key-id", "same")...).Serial] = true
		lines := d.offered()
		if len(lines) == 0 {
			t.Fatal("none is listed")
		}
		for _, line := range lines {
			// The first two requests and the last are the same; what they replace is gone.
			if keys[string(point(t, parse(t, line)))] == "" {
				add(fmt.Sprint("certificate ", i), line)
			}
		}
	}
	d.serving.stop(syscall.SIGTERM)
	d.agent()
	serials[d.certify().Serial] = true
	add("one of a new agent", d.offered()[0])
	for range 2 {
		j := d.job([]string{"--key-id", "job"}, "ssh-add -L; echo end")
		j.release()
		j.wait("^end$")
		j.ended()
		add("a job's", regexp.MustCompile(`(?m)^ecdsa-\S+ \S+ job$`).FindString(j.output()))
	}
	if len(keys) != 2+5+1+2 || len(serials) != 6 {
		t.Errorf("%d keys, %d serials", len(keys), len(serials))
	}
	for at := range keys {
		if _, err := ecdh.P256().NewPublicKey([]byte(at)); err != nil {
			t.Errorf("%s is no key of P-256: %v", keys[at], err)
		}
	}
}

// C03: an OpenSSH user certificate, as OpenSSH says, of 28800 s if nobody says
// otherwise. Which servers accept it, and which do not, is in TestCertificateLogsIn
// and TestServersRefuse.
func TestThreat_C03_OpenSSHCertificate(t *testing.T) {
	t.Parallel()
	p := newPhone(t)
	p.serve("--approve", "always")
	d := newDevice(t, "laptop") // with every setting at its default
	pair(t, d, p)
	d.agent()
	c := d.certify()
	text := d.print(d.offered()[0])
	fields := printed(text)
	for name, want := range map[string]string{
		"Type": "ecdsa-sha2-nistp256-cert-v01@openssh.com user certificate", "Key ID": `"vmux:` + me(t) + "@laptop:" + c.Serial + `"`, "Serial": c.Serial,
		"Principals": me(t), "Critical Options": "(none)", "Extensions": "permit-agent-forwarding permit-port-forwarding permit-pty permit-user-rc",
	} {
		if got := strings.Join(fields[name], " "); got != want {
			t.Errorf("%s: %q, not %q\n%s", name, got, want, text)
		}
	}
	if n, err := strconv.ParseInt(c.Serial, 10, 64); err != nil || n <= 0 {
		t.Errorf("serial %s: %v", c.Serial, err)
	}
	var window []time.Time
	for _, w := range strings.Fields(strings.Join(fields["Valid"], " ")) {
		if at, err := time.ParseInLocation("2006-01-02T15:04:05", w, time.Local); err == nil {
			window = append(window, at)
		}
	}
	if len(window) != 2 || window[1].Sub(window[0]) != (28800+60)*time.Second {
		t.Errorf("valid: %q", fields["Valid"])
	}
	if now := time.Now(); len(window) == 2 && (now.Add(28800*time.Second).Before(window[1]) || window[1].Before(now.Add(28790*time.Second-patience))) {
		t.Errorf("valid: %q at %v", fields["Valid"], now)
	}
	for v, exit := range map[string]int{"14s": 2, "15s": 0, "24h": 0, "24h1s": 2} {
		if r := d.run("vmux-cert", "--validity", v); r.exit != exit {
			t.Errorf("--validity %s: %v", v, r)
		}
	}
	good, bad := trusting(t, d.ok("vmux-cert", "ca")), trusting(t, d.ok("ssh-add", "-L"))
	if _, log := good.accepts(d, nil, "true"); !strings.Contains(log, "Accepted publickey for") {
		t.Errorf("logged in by something else:\n%s", log)
	}
	bad.refuses(d, nil, "Failed publickey")
}

// certPhone is a phone that answers requests for certificates as a test says.
type certPhone struct {
	t       testing.TB
	id      *transport.Identity
	ca      ssh.Signer
	address string
	url     chan string
	running sync.WaitGroup

	mu    sync.Mutex
	make  func(*envelope.CertificateRequest) ([]byte, error)
	asked int
}

func newSigner(t testing.TB) ssh.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newCertPhone(t testing.TB) *certPhone {
	t.Helper()
	link, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	m := &certPhone{t: t, ca: newSigner(t), url: make(chan string, 1)}
	if m.id, err = transport.NewIdentity(link); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m.address = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		l.Close()
		m.running.Wait()
	})
	m.running.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			m.running.Go(func() { m.serve(ctx, raw) })
		}
	})
	return m
}

func (m *certPhone) serve(ctx context.Context, raw net.Conn) {
	c, err := transport.Server(ctx, raw, m.id, func(string, transport.Pin) error { return nil })
	if err != nil {
		return
	}
	defer c.Close()
	hello := envelope.Hello{Name: "Pocket", Software: "test", Capabilities: []string{envelope.CapabilityCertificate}, Clock: envelope.At(time.Now())}
	if c.Proto() == transport.ProtoPair {
		select {
		case text := <-m.url:
			u, err := pairing.ParseURL(text)
			if err == nil {
				_, err = pairing.Phone(ctx, c, m.id.Pin(), hello, pairing.PhoneOptions{Name: hello.Name, Secret: u.Secret[:], Expect: u.Pin,
					Store: func(pairing.Peer) error { return nil }})
			}
			if err != nil {
				m.t.Errorf("pairing: %v", err)
			}
		case <-ctx.Done():
		}
		return
	}
	transport.Serve(ctx, c, hello, func(_ context.Context, _ string, req envelope.Payload) (envelope.Payload, error) {
		switch q := req.(type) {
		case *envelope.KeyListRequest:
			return &envelope.KeyListResponse{Keys: []envelope.PublicKey{}, CAKey: m.ca.PublicKey().Marshal()}, nil
		case *envelope.CertificateRequest:
			m.mu.Lock()
			m.asked++
			make := m.make
			m.mu.Unlock()
			b, err := make(q)
			return &envelope.CertificateResponse{Certificate: b}, err
		}
		return nil, errors.New("unexpected")
	}, nil)
}

// honest is the certificate that was asked for, not yet signed.
func (m *certPhone) honest(q *envelope.CertificateRequest) (*ssh.Certificate, error) {
	key, err := ssh.ParsePublicKey(q.PublicKeyBlob)
	if err != nil {
		return nil, err
	}
	c := &ssh.Certificate{Key: key, Serial: 4711, CertType: ssh.UserCert, KeyId: strings.ReplaceAll(q.KeyID, "{serial}", "4711"), ValidPrincipals: q.Principals,
		ValidAfter: uint64(time.Now().Add(-time.Minute).Unix()), ValidBefore: uint64(time.Now().Unix() + q.Validity),
		Permissions: ssh.Permissions{CriticalOptions: map[string]string{}, Extensions: map[string]string{}}}
	for _, o := range q.CriticalOptions {
		c.CriticalOptions[o.Name] = o.Value
	}
	for _, o := range q.Extensions {
		c.Extensions[o.Name] = o.Value
	}
	return c, nil
}

// C04: whatever a phone changes, the certificate is refused, the field named,
// and nothing kept: not for the socket, nor for a job, nor for another's key.
func TestThreat_C04_WhatComesBackIsWhatWasAsked(t *testing.T) {
	t.Parallel()
	m, d := newCertPhone(t), certDevice(t)
	pairing := d.spawn("vmux-pair", "--url", "--address", m.address)
	m.url <- pairing.wait(`^vmux-pair://\S+`)[0]
	if exit := pairing.ended(); exit != 0 {
		t.Fatalf("vmux-pair: exit %d\n%s", exit, pairing.output())
	}
	d.agent()
	stranger := newSigner(t)
	d.write("runner.pub", string(ssh.MarshalAuthorizedKey(newSigner(t).PublicKey())), 0o600)

	answer := func(change func(*ssh.Certificate), ca ssh.Signer, after func([]byte) []byte) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.make = func(q *envelope.CertificateRequest) ([]byte, error) {
			c, err := m.honest(q)
			if err != nil {
				return nil, err
			}
			change(c)
			if err := c.SignCert(rand.Reader, ca); err != nil {
				return nil, err
			}
			return after(c.Marshal()), nil
		}
	}
	same := func(b []byte) []byte { return b }
	nothing := func(*ssh.Certificate) {}
	flags := []string{"--principal", "deploy", "--validity", "1h", "--source-address", "192.0.2.0/24", "--force-command", "true", "--no-pty"}
	for _, tt := range []struct {
		name   string
		change func(*ssh.Certificate)
		ca     ssh.Signer
		after  func([]byte) []byte
		field  string
	}{
		{"another principal", func(c *ssh.Certificate) { c.ValidPrincipals = []string{"root"} }, m.ca, same, "principals"},
		{"one principal more", func(c *ssh.Certificate) { c.ValidPrincipals = append(c.ValidPrincipals, "root") }, m.ca, same, "principals"},
		{"no principal, which is any", func(c *ssh.Certificate) { c.ValidPrincipals = nil }, m.ca, same, "principals"},
		{"longer", func(c *ssh.Certificate) { c.ValidBefore += 600 }, m.ca, same, "valid before"},
		{"for ever", func(c *ssh.Certificate) { c.ValidBefore = ssh.CertTimeInfinity }, m.ca, same, "valid before"},
		{"since long ago", func(c *ssh.Certificate) { c.ValidAfter = 0 }, m.ca, same, "valid after"},
		{"shorter", func(c *ssh.Certificate) { c.ValidBefore -= 600 }, m.ca, same, "valid before"},
		{"over", func(c *ssh.Certificate) { c.ValidBefore = c.ValidAfter + 1 }, m.ca, same, "valid before"},
		{"without an address", func(c *ssh.Certificate) { delete(c.CriticalOptions, "source-address") }, m.ca, same, "critical options"},
		{"another address", func(c *ssh.Certificate) { c.CriticalOptions["source-address"] = "0.0.0.0/0" }, m.ca, same, "critical options"},
		{"another command", func(c *ssh.Certificate) { c.CriticalOptions["force-command"] = "sh" }, m.ca, same, "critical options"},
		{"one option more", func(c *ssh.Certificate) { c.CriticalOptions["verify-required"] = "" }, m.ca, same, "critical options"},
		{"a terminal", func(c *ssh.Certificate) { c.Extensions["permit-pty"] = "" }, m.ca, same, "extensions"},
		{"the screen", func(c *ssh.Certificate) { c.Extensions["permit-X11-forwarding"] = "" }, m.ca, same, "extensions"},
		{"an extension less", func(c *ssh.Certificate) { delete(c.Extensions, "permit-user-rc") }, m.ca, same, "extensions"},
		{"a host's", func(c *ssh.Certificate) { c.CertType = ssh.HostCert }, m.ca, same, "type"},
		{"another key", func(c *ssh.Certificate) { c.Key = stranger.PublicKey() }, m.ca, same, "public key"},
		{"another CA", nothing, stranger, same, "CA"},
		{"another key id", func(c *ssh.Certificate) { c.KeyId = "somebody else" }, m.ca, same, "key id"},
		{"no serial", func(c *ssh.Certificate) { c.Serial, c.KeyId = 0, strings.ReplaceAll(c.KeyId, "4711", "0") }, m.ca, same, "serial"},
		{"a bad signature", nothing, m.ca, func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, "signature"},
		{"changed after signing", nothing, m.ca, func(b []byte) []byte { return bytes.Replace(b, []byte("deploy"), []byte("deploi"), 1) }, "signature"},
		{"a bare key", nothing, m.ca, func([]byte) []byte { return stranger.PublicKey().Marshal() }, "encoding"},
		// The same to a lenient reader: a flag's value is an empty string in a string.
		{"another encoding", nothing, m.ca, func(b []byte) []byte {
			k, err := ssh.ParsePublicKey(b)
			if err != nil {
				t.Error(err)
				return nil
			}
			c := k.(*ssh.Certificate)
			c.Signature = nil
			body := c.Marshal()
			body = body[:len(body)-4] // the signature's length
			flag := ssh.Marshal(struct{ Name, Value string }{"permit-agent-forwarding", ""})
			i := bytes.Index(body, flag)
			if i < 0 {
				t.Error("no such extension")
				return nil
			}
			binary.BigEndian.PutUint32(body[i-4:], binary.BigEndian.Uint32(body[i-4:])+4)
			lenient := ssh.Marshal(struct{ Name, Value string }{"permit-agent-forwarding", "\x00\x00\x00\x00"})
			body = slices.Concat(body[:i], lenient, body[i+len(flag):])
			sig, err := m.ca.Sign(rand.Reader, body)
			if err != nil {
				t.Error(err)
				return nil
			}
			return append(body, ssh.Marshal(struct{ Signature []byte }{ssh.Marshal(sig)})...)
		}, "encoding"},
		{"more behind it", nothing, m.ca, func(b []byte) []byte { return append(b, 0) }, "encoding"},
	} {
		answer(tt.change, tt.ca, tt.after)
		r := d.run("vmux-cert", flags...)
		if r.exit != 1 || !strings.Contains(r.stderr, "certificate does not match the request: "+tt.field+": asked ") || !strings.Contains(r.stderr, "\nhint: ") || r.stdout != "" {
			t.Errorf("%s: not refused for its %s: %v", tt.name, tt.field, r)
		}
		if !strings.Contains(d.serving.output(), "refused a certificate that is not what was asked for") {
			t.Errorf("%s: the agent's log says nothing", tt.name)
		}
	}
	// Several at once are all named, for a job and for another's key as well.
	answer(func(c *ssh.Certificate) { c.ValidPrincipals, c.KeyId = []string{"root"}, "x" }, stranger, same)
	d.write("out", "", 0o600)
	for i, args := range [][]string{{}, {"run"}, {"--public-key", "runner.pub"}} {
		args = append(args, flags...)
		if i == 1 {
			args = append(args, "--", "touch", "ran")
		}
		r := d.run("vmux-cert", args...)
		for _, field := range []string{"principals", "key id", "CA"} {
			if r.exit == 0 || !strings.Contains(r.stderr, "the request: "+field+": asked ") || r.stdout != "" {
				t.Errorf("%q: %s is not named: %v", args, field, r)
			}
		}
	}
	if _, err := os.Stat(d.path("ran")); err == nil {
		t.Error("a job ran without its certificate")
	}
	if all, dirs := d.certificates(), d.jobDirs(); len(all) != 0 || len(d.offered()) != 0 || len(dirs) != 0 {
		t.Errorf("kept: %+v, %q", all, dirs)
	}
	// And what was asked for is taken.
	answer(nothing, m.ca, same)
	if c := d.certify(flags...); c.Serial != "4711" || len(d.offered()) != 1 {
		t.Errorf("%+v", c)
	}
	if r := d.run("vmux-cert", append([]string{"--public-key", "runner.pub"}, flags...)...); r.exit != 0 {
		t.Errorf("another's key: %v", r)
	}
}

// N05: outside its scope no certificate signs, and none at all when it has ended,
// was dropped, or its phone is not paired any more. A client is asked for each
// that knows the certificate, and signs by the agent's protocol alone.
func TestThreat_N05_NothingOutsideTheWindow(t *testing.T) {
	t.Parallel()
	d, _ := certifying(t)
	in, out := newServer(t, ""), newServer(t, "")
	certificates := map[string]ssh.PublicKey{}
	request := func(name string, args ...string) {
		t.Helper()
		d.certify(append(args, "--key-id", name)...)
		for _, line := range d.offered() {
			if keyIDs([]string{line})[0] == name {
				certificates[name] = parse(t, line)
			}
		}
	}
	request("short", "--validity", shortest)
	request("any")
	request("host", "--host", in.fingerprint())
	request("near", "--no-agent-forwarding")
	request("once", "--uses", "1")
	request("dropped")
	j := d.job([]string{"--key-id", "job"}, "ssh-add -L; echo shown; read -r x <$go; ssh-add -L; echo status $?")
	j.release()
	j.wait("^shown$")
	certificates["job"] = parse(t, regexp.MustCompile(`(?m)^ecdsa-\S+ \S+ job$`).FindString(j.output()))
	if len(certificates) != 7 {
		t.Fatalf("%d certificates", len(certificates))
	}

	n := 0
	// binds: to which server, for forwarding or not.
	type bind struct {
		s          *server
		forwarding bool
	}
	sign := func(name string, binds ...bind) bool {
		t.Helper()
		a := rawAgent(t, d.socket())
		n++
		id, to := session(name, n), []byte(nil)
		for _, b := range binds {
			n++
			id, to = session(name, n), parse(t, b.s.key).Marshal()
			b.s.bind(a, id, b.forwarding)
		}
		_, err := a.Sign(certificates[name], loginData(id, certificates[name], to))
		return err == nil
	}
	hop := bind{out, true}
	for _, tt := range []struct {
		name  string
		binds []bind
		want  bool
	}{
		{"any", nil, true},
		{"any", []bind{{in, false}}, true},
		{"any", []bind{hop, {in, false}}, true},
		{"host", []bind{{in, false}}, true},
		{"host", nil, false},
		{"host", []bind{{out, false}}, false},
		{"host", []bind{hop, {out, false}}, false},
		{"near", nil, true},
		{"near", []bind{hop}, false},
		{"near", []bind{hop, {in, false}}, false},
		{"once", nil, true},
		{"once", nil, false},
		{"once", []bind{{in, false}}, false},
		{"job", nil, false},
		{"job", []bind{{in, false}}, false},
		{"dropped", nil, true},
	} {
		if got := sign(tt.name, tt.binds...); got != tt.want {
			t.Errorf("%s, bound %v: signed: %v", tt.name, tt.binds, got)
		}
	}

	for _, i := range d.certificates() {
		if i.KeyID == "dropped" {
			d.ok("vmux-cert", "drop", i.Serial)
		}
	}
	if sign("dropped") {
		t.Error("signed with a certificate that was dropped")
	}
	end := time.Unix(int64(certificates["short"].(*ssh.Certificate).ValidBefore), 0)
	eventually(t, "the certificate's end", func() bool { return !time.Now().Before(end.Add(time.Second)) })
	if sign("short") {
		t.Error("signed with a certificate that is over")
	}
	if !sign("any") {
		t.Error("the others have ended too")
	}
	d.ok("vmux-pair", "--forget", "Pocket")
	for name := range certificates {
		if sign(name) || sign(name, bind{in, false}) {
			t.Errorf("signed with %s, whose phone was forgotten", name)
		}
	}
	j.gone()
	j.release()
	j.wait("^status 2$")
	if dirs, err := filepath.Glob(d.path("tmp", "*")); err != nil || len(dirs) != 0 {
		t.Errorf("left: %q", dirs)
	}
}

// G01: for its hour a job logs in again and again though the phone is gone for
// good, and another one, whose time is over, cannot.
func TestThreat_G01_UnattendedHour(t *testing.T) {
	t.Parallel()
	d, p := certifying(t)
	s := trusting(t, d.ok("vmux-cert", "ca"))
	login := quoted(append([]string{need(t, "ssh")}, s.args("echo", "in")...))
	short := d.job([]string{"--validity", shortest, "--key-id", "short"}, login+"; echo status $?; read -r x <$go; "+login+"; echo afterwards $?")
	hour := d.job([]string{"--validity", "1h", "--key-id", "hour"}, "for i in 1 2 3; do "+login+" || exit 1; done; read -r x <$go; "+login)
	var end time.Time
	for _, i := range d.certificates() {
		switch v := i.ValidBefore.Sub(i.ValidAfter); {
		case i.KeyID == "short":
			end = i.ValidBefore
		case v != time.Hour+time.Minute:
			t.Errorf("the job's hour is %v", v)
		}
	}
	p.serving.stop(syscall.SIGKILL)
	if err := os.RemoveAll(p.homeDir()); err != nil { // for good
		t.Fatal(err)
	}
	short.release()
	short.wait("^status 0$")
	hour.release()
	eventually(t, "the short certificate's end", func() bool { return !time.Now().Before(end.Add(time.Second)) })
	short.release()
	if m := short.wait(`^afterwards (\d+)$`); m[1] != "255" {
		t.Errorf("after the certificate's end: status %s\n%s", m[1], short.output())
	}
	hour.release()
	if exit := hour.ended(); exit != 0 {
		t.Errorf("the hour's job: exit %d\n%s", exit, hour.output())
	}
	if n := strings.Count(hour.output(), "\nin"); n != 4 {
		t.Errorf("%d logins:\n%s", n, hour.output())
	}
	if n := strings.Count(short.output(), "\nin"); n != 1 {
		t.Errorf("%d logins:\n%s", n, short.output())
	}
	if n := strings.Count(s.log(), "Accepted publickey for "); n != 5 {
		t.Errorf("%d logins at the server:\n%s", n, s.log())
	}
	if n := strings.Count(p.serving.output(), `"event":"request"`); n != 2 {
		t.Errorf("the phone was asked %d times", n)
	}
}
