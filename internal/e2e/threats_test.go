// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/pairing"
	"vmux.app/toolkit/internal/signed"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/transport"
)

// needles are what must not be found, in every form that somebody could have
// written it: the form, and what it is.
type needles map[string]string

// add takes at least 8 bytes, below which chance finds things.
func (n needles) add(what string, secret []byte) {
	if len(secret) < 8 {
		panic(what + " is too short to be looked for")
	}
	backwards := slices.Clone(secret)
	slices.Reverse(backwards)
	for _, b := range [][]byte{secret, backwards} {
		lower := hex.EncodeToString(b)
		quoted := strconv.Quote(string(b))
		twice := strconv.Quote(quoted[1 : len(quoted)-1]) // as a log quotes an error that quotes
		decimal := strings.Trim(fmt.Sprint(b), "[]")
		colons := strings.TrimSpace(strings.ReplaceAll(fmt.Sprintf("% x", b), " ", ":"))
		for _, form := range []string{string(b), lower, strings.ToUpper(lower), colons, quoted[1 : len(quoted)-1], twice[1 : len(twice)-1], decimal,
			strings.ReplaceAll(decimal, " ", ","), strings.ReplaceAll(decimal, " ", "")} {
			n[form] = what
		}
		for before := range 3 { // as a part of something longer
			for _, e := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
				text := e.EncodeToString(append(make([]byte, before), b...))
				n[text[(before*8+5)/6:(before+len(b))*8/6]] = what // without characters that a neighbour has a part in
			}
		}
	}
}

// find says what is in text, also where line ends break it, as in PEM.
func (n needles) find(text string) []string {
	joined := strings.NewReplacer("\n", "", "\r", "", "\t", "", " ", "", `\n`, "").Replace(text)
	found := map[string]bool{}
	for form, what := range n {
		if strings.Contains(text, form) || strings.Contains(joined, form) {
			found[what] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// all is everything that is looked for.
func (n needles) all() []string {
	return slices.Compact(slices.Sorted(maps.Values(n)))
}

// check makes sure that the search would see each needle in a log.
func (n needles) check(t testing.TB, secrets map[string][]byte) {
	t.Helper()
	for what, secret := range secrets {
		for _, value := range []any{secret, string(secret), hex.EncodeToString(secret), fmt.Sprintf("%X", secret), fmt.Sprint(secret),
			base64.StdEncoding.EncodeToString(append([]byte("x"), secret...)), base64.URLEncoding.EncodeToString(append([]byte("xy"), secret...)),
			fmt.Errorf("it said %q", secret)} {
			var log bytes.Buffer
			slog.New(slog.NewTextHandler(&log, nil)).Info("request", "value", value)
			if found := n.find(log.String()); !slices.Contains(found, what) {
				t.Errorf("%s in %s is not found, only %q", what, log.String(), found)
			}
		}
	}
}

// privateHalves are the secret parts of the phone's keys by file.
func (p *phone) privateHalves() map[string][]byte {
	p.t.Helper()
	halves := map[string][]byte{}
	for name, content := range tree(p.t, p.homeDir()) {
		block, _ := pem.Decode([]byte(content))
		if block == nil {
			continue
		}
		var key any
		var err error
		if block.Type == "PRIVATE KEY" {
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		} else {
			key, err = ssh.ParseRawPrivateKey([]byte(content))
		}
		if err != nil {
			p.t.Fatalf("%s: %v", name, err)
		}
		switch k := key.(type) {
		case *ecdsa.PrivateKey:
			if halves[name], err = k.Bytes(); err != nil {
				p.t.Fatal(err)
			}
		case *ed25519.PrivateKey:
			halves[name] = k.Seed()
		default:
			p.t.Fatalf("%s: %T", name, key)
		}
	}
	if len(halves) < 3 {
		p.t.Fatalf("the phone has no more than %v", slices.Collect(maps.Keys(halves)))
	}
	return halves
}

func looking(secrets map[string][]byte) needles {
	n := needles{}
	for what, secret := range secrets {
		for _, form := range [][]byte{secret, bytes.TrimLeft(secret, "\x00")} { // the second is SSH's
			n.add(what, form)
			n.add(what, form[:min(len(form), 16)]) // as a log that cuts would have it
		}
	}
	return n
}

// linkKey is the device's private key.
func (h *host) linkKey() *ecdsa.PrivateKey {
	h.t.Helper()
	key, err := store.LinkKey(h.path(keyFile))
	if err != nil {
		h.t.Fatal(err)
	}
	return key
}

// recorder keeps what ssh and the agent say to each other.
type recorder struct {
	t       testing.TB
	l       net.Listener
	running sync.WaitGroup
	mu      sync.Mutex
	said    [][]byte // of each direction of each connection
}

// record puts itself between the device's clients and its agent.
func (h *host) record() *recorder {
	h.t.Helper()
	r := &recorder{t: h.t}
	socket := h.path("record.sock")
	var err error
	if r.l, err = net.Listen("unix", socket); err != nil {
		h.t.Fatal(err)
	}
	h.setenv("SSH_AUTH_SOCK", socket)
	agent := h.socket()
	r.running.Go(func() {
		for {
			c, err := r.l.Accept()
			if err != nil {
				return
			}
			a, err := net.Dial("unix", agent)
			if err != nil {
				c.Close()
				continue
			}
			r.running.Go(func() { r.pass(a, c) })
			r.running.Go(func() { r.pass(c, a) })
		}
	})
	h.t.Cleanup(r.end)
	return r
}

func (r *recorder) pass(to, from net.Conn) {
	var b bytes.Buffer
	io.Copy(to, io.TeeReader(from, &b))
	to.Close()
	from.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said = append(r.said, b.Bytes())
}

func (r *recorder) end() {
	r.l.Close()
	r.running.Wait()
}

// material is everything that was to be signed, the session ids, and the
// signatures. It ends the recorder, whose clients must have ended.
func (r *recorder) material() map[string][]byte {
	r.t.Helper()
	r.end()
	found := map[string][]byte{}
	put := func(what string, b []byte) { found[fmt.Sprintf("%s %d", what, len(found))] = b }
	for _, b := range r.said {
		for len(b) >= 5 {
			n := int(binary.BigEndian.Uint32(b))
			if n < 1 || len(b) < 4+n {
				break // the client was killed
			}
			kind, body := b[4], b[5:4+n]
			b = b[4+n:]
			switch kind {
			case 13: // SSH_AGENTC_SIGN_REQUEST
				var q struct {
					Key, Data []byte
					Flags     uint32
				}
				if err := ssh.Unmarshal(body, &q); err != nil {
					r.t.Fatal(err)
				}
				put("data to be signed", q.Data)
				m := signed.Parse(q.Data)
				if m.Kind == signed.Login {
					put("session id", m.SessionID)
				}
			case 14: // SSH_AGENT_SIGN_RESPONSE
				var a struct{ Signature []byte }
				var s struct {
					Format string
					Blob   []byte
				}
				if err := errors.Join(ssh.Unmarshal(body, &a), ssh.Unmarshal(a.Signature, &s)); err != nil {
					r.t.Fatal(err)
				}
				put("signature", s.Blob)
				var ints struct{ R, S []byte }
				if s.Format == ssh.KeyAlgoECDSA256 && ssh.Unmarshal(s.Blob, &ints) == nil {
					put("signature's r", bytes.TrimLeft(ints.R, "\x00"))
					put("signature's s", bytes.TrimLeft(ints.S, "\x00"))
				}
			}
		}
	}
	return found
}

func counted(found map[string][]byte, what string) (n int) {
	for name := range found {
		if strings.HasPrefix(name, what+" ") {
			n++
		}
	}
	return n
}

// stolenWorld is a device with two keys on its phone.
func stolenWorld(t *testing.T, approve string) (*host, *phone, *server) {
	t.Helper()
	p := newPhone(t)
	p.ok("vmux-signer", "key", "add", "ed25519", "--type", "ed25519")
	d := newDevice(t, "laptop")
	if err := os.Mkdir(d.path("tmp"), 0o700); err != nil {
		t.Fatal(err)
	}
	d.setenv("TMPDIR", d.path("tmp")) // so that what is written there is seen too
	p.serve("--approve", approve)
	pair(t, d, p)
	d.agent("--log-level", "debug")
	return d, p, newServer(t, d.ok("ssh-add", "-L"))
}

// T01: what the tools leave on the device has nothing of the phone's private
// keys.
func TestThreat_T01_FilesHoldNoPrivateKey(t *testing.T) {
	t.Parallel()
	d, p, _ := stolenWorld(t, "always")
	for _, line := range strings.Split(strings.TrimSpace(d.ok("ssh-add", "-L")), "\n") {
		s := newServer(t, line+"\n")
		if r := s.login(d, "true"); r.exit != 0 {
			t.Fatalf("login: %v", r)
		}
	}
	halves := p.privateHalves()
	n := looking(halves)
	look := func() {
		t.Helper()
		for name, content := range tree(t, d.home) {
			if found := n.find(content); len(found) > 0 {
				t.Errorf("%s has the phone's %q", name, found)
			}
		}
	}
	look()
	d.serving.stop(syscall.SIGTERM)
	look() // what it wrote at its end
	if found := n.find(d.serving.output()); len(found) > 0 {
		t.Errorf("the agent's log has the phone's %q", found)
	}
	if tree(t, d.home)[stateFile] == "" || tree(t, d.home)[keyFile] == "" {
		t.Error("the device has no state to look at")
	}

	// The search sees each of them where it is.
	n.check(t, halves)
	all := ""
	for _, content := range tree(t, p.homeDir()) {
		all += content + "\n"
	}
	if found := n.find(all); !slices.Equal(found, n.all()) || len(found) != 4 { // two keys, CA, link
		t.Errorf("the search finds %q of %q at the phone", found, n.all())
	}
}

// T01: a copy of all that the device remembers can ask, and the owner decides.
func TestThreat_T01_StolenStateOnlyAsks(t *testing.T) {
	t.Parallel()
	d, p, s := stolenWorld(t, "always")
	if r := s.login(d, "true"); r.exit != 0 {
		t.Fatalf("login: %v", r)
	}
	d.serving.stop(syscall.SIGTERM)
	p.serving.stop(syscall.SIGTERM)
	owner := p.askpass()
	p.serveOn(p.address, "--no-advertise", "--approve", "askpass")

	thief := newHost(t)
	for _, dir := range []string{".config", ".local"} {
		if out, err := exec.Command(need(t, "cp"), "-a", d.path(dir), thief.path(dir)).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v: %s", err, out)
		}
	}
	thief.agent()
	if out := thief.ok("ssh-add", "-l"); strings.Count(out, "\n") != 2 {
		t.Errorf("the copy lists %s", out)
	}
	for range 2 {
		login := thief.spawn("ssh", s.args("true")...)
		prompt := owner.next() // one for both keys: a denial is for the session
		if !strings.Contains(prompt.prompt, "From laptop → ") {
			t.Errorf("the prompt does not name the device that was stolen:\n%s", prompt.prompt)
		}
		prompt.deny()
		if exit := login.ended(); exit == 0 {
			t.Error("logged in though it was denied")
		}
	}
	// Without the agent's manners: the link key alone.
	id, err := transport.NewIdentity(thief.linkKey())
	if err != nil {
		t.Fatal(err)
	}
	l := (&raw{t, id}).open(p)
	asked := make(chan error, 1)
	go func() {
		_, err := l.Call(t.Context(), transport.NewID(), l.loginRequest(time.Now()))
		asked <- err
	}()
	owner.next().deny()
	if err := soon(t, "answer", asked); codeOf(err) != envelope.CodeDenied {
		t.Errorf("denied request: %v", err)
	}
	if strings.Contains(p.serving.output(), `"outcome":"signed"`) {
		t.Error("something was signed")
	}
	// Had the owner said yes, it would have worked: nothing else held it back.
	login := thief.spawn("ssh", s.args("true")...)
	owner.next().approve()
	if exit := login.ended(); exit != 0 {
		t.Errorf("approved login: exit %d\n%s", exit, login.output())
	}
}

// T09: a device that nobody knows is named on the phone and can be declined.
// Nothing is left of it, and a window is for one attempt.
func TestThreat_T09_SecondPairing(t *testing.T) {
	t.Parallel()
	p, d, stranger := newPhone(t), newDevice(t, "laptop"), newDevice(t, "stranger")
	p.serve("--approve", "always")
	pair(t, d, p)
	d.agent()
	s := newServer(t, d.ok("ssh-add", "-L"))
	if r := s.login(d, "true"); r.exit != 0 { // so that nothing of it changes later
		t.Fatalf("login: %v", r)
	}
	before, known := tree(t, p.homeDir()), tree(t, d.home)
	unchanged := func() {
		t.Helper()
		same(t, before, tree(t, p.homeDir()))
		same(t, known, tree(t, d.home))
		if phones := stranger.phones(); len(phones) != 0 {
			t.Errorf("the stranger knows %+v", phones)
		}
	}

	// Without a window it is not even asked.
	user := stranger.console("vmux-pair", "--address", p.address, "--timeout", "1s")
	user.fails(6, "no phone with an open pairing window was found in time", "vmux-signer pair")
	unchanged()

	owner := p.window()
	user = stranger.console("vmux-pair", "--address", p.address)
	name, code := owner.asks()
	if name != "stranger" {
		t.Errorf("the phone names %q", name)
	}
	user.Expect(digitsPrompt)
	user.Type(code + "\n")
	owner.replies("n\n", "denied")
	user.fails(5, "the pairing was declined", "vmux-pair")
	owner.fails(5, "the pairing was declined", "vmux-signer pair")
	unchanged()
	p.closed()

	// Many at once: one question, for one of them.
	owner = p.window()
	const many = 10
	ended := make(chan error, many)
	for i := range many {
		r := newRaw(t)
		go func() {
			ended <- r.pair(t.Context(), p, fmt.Sprintf("stranger %d", i), nil, func(ctx context.Context) string { <-ctx.Done(); return "" })
		}()
	}
	for range many - 1 {
		if err := soon(t, "end of a pairing", ended); err == nil {
			t.Error("paired")
		}
	}
	if name, _ := owner.asks(); !strings.HasPrefix(name, "stranger ") {
		t.Errorf("the phone names %q", name)
	}
	owner.replies("n\n", "denied")
	if err := soon(t, "end of a pairing", ended); err == nil {
		t.Error("paired")
	}
	owner.fails(5, "declined", "vmux-signer pair")
	unchanged()
	p.closed()
	if n := strings.Count(p.serving.output(), `"outcome":"failed"`); n != 2 {
		t.Errorf("the signer tells of %d failed pairings, not 2:\n%s", n, p.serving.output())
	}
	if r := s.login(d, "true"); r.exit != 0 { // the known device is not disturbed
		t.Errorf("login: %v", r)
	}
}

// T10: the socket is private from the moment it is there, whatever the umask.
func TestThreat_T10_UmaskOfAgent(t *testing.T) {
	t.Parallel()
	for _, umask := range []string{"000", "077", "177", "777"} {
		t.Run(umask, func(t *testing.T) {
			t.Parallel()
			d := newHost(t)
			d.ok("vmux-pair", "--list") // the umask is about the socket, not about the directories above it and the state
			if err := os.MkdirAll(d.path(".config", "vmux"), 0o700); err != nil {
				t.Fatal(err)
			}
			first := make(chan os.FileMode, 1)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() {
				for ctx.Err() == nil {
					if fi, err := os.Lstat(d.socket()); err == nil {
						first <- fi.Mode()
						return
					}
					runtime.Gosched()
				}
			}()
			agent := d.spawn("sh", "-c", "umask "+umask+"; exec vmux-agent")
			agent.wait(`msg=serving`)
			if mode := soon(t, "socket", first); mode&^0o600 != os.ModeSocket {
				t.Errorf("born with mode %v", mode)
			}
			if fi, err := os.Lstat(d.socket()); err != nil || fi.Mode() != os.ModeSocket|0o600 {
				t.Errorf("socket: %v, %v", fi.Mode(), err)
			}
			err := filepath.WalkDir(d.home, func(path string, e fs.DirEntry, err error) error {
				if err != nil || !e.Type().IsRegular() {
					return err
				}
				if fi, err := e.Info(); err != nil || fi.Mode() != 0o600 {
					t.Errorf("%s: %v, %v", path, fi.Mode(), err)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			if r := d.run("ssh-add", "-l"); r.exit != 1 {
				t.Errorf("ssh-add -l: %v", r)
			}
		})
	}
}

// T10: another user is kept out by the mode, and by the agent when the mode is
// opened by hand.
func TestThreat_T10_OtherUserAtAgent(t *testing.T) {
	t.Parallel()
	d, other := newHost(t), newHost(t)
	d.asUser("nobody")
	uid := other.asUser("daemon").Uid
	d.agent()
	other.setenv("SSH_AUTH_SOCK", d.socket())
	if r := d.run("ssh-add", "-l"); r.exit != 1 {
		t.Errorf("its own user: %v", r)
	}
	d.chmod("", 0o755) // the way there is open, the socket is not
	d.chmod(".ssh", 0o755)
	if r := other.run("ssh-add", "-l"); r.exit != 2 || !strings.Contains(r.stderr, "Permission denied") {
		t.Errorf("another user, mode 0600: %v", r)
	}
	if strings.Contains(d.serving.output(), "refusing a connection") {
		t.Error("the mode did not keep the other user away")
	}
	d.chmod(".ssh", 0o777)
	if err := os.Chmod(d.socket(), 0o777); err != nil {
		t.Fatal(err)
	}
	if r := other.run("ssh-add", "-l"); r.exit == 0 || strings.Contains(r.stdout, "no identities") {
		t.Errorf("another user, mode 0777: %v", r)
	}
	d.serving.wait(`level=WARN msg="refusing a connection" error="peer is another user: uid ` + uid + `, `)
	if r := d.run("ssh-add", "-l"); r.exit != 1 {
		t.Errorf("its own user afterwards: %v", r)
	}
}

// deviceLink is a paired device's link that says what the test wants.
type deviceLink struct {
	*transport.Link
	keys []envelope.PublicKey
	t    testing.TB
	sid  byte
}

// open opens a link to the phone, which knows r.
func (r *raw) open(p *phone) *deviceLink {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := r.dial(ctx, p.address, transport.ProtoLink)
	if err != nil {
		r.t.Fatal(err)
	}
	l, err := transport.Open(ctx, c, envelope.Hello{Name: "raw", Software: "test", Capabilities: []string{}})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(l.Close)
	a, err := l.Call(ctx, transport.NewID(), &envelope.KeyListRequest{})
	if err != nil {
		r.t.Fatal(err)
	}
	return &deviceLink{Link: l, keys: a.(*envelope.KeyListResponse).Keys, t: r.t}
}

// loginRequest asks for a login to a session that nobody else asks for.
func (l *deviceLink) loginRequest(created time.Time) *envelope.SignRequest {
	l.sid++
	key := l.keys[0]
	data := ssh.Marshal(struct {
		SID                   []byte
		Type                  byte
		User, Service, Method string
		Has                   bool
		Algorithm             string
		Key                   []byte
	}{bytes.Repeat([]byte{l.sid}, 32), 50, "root", "ssh-connection", "publickey", true, key.Algorithm, key.PublicKeyBlob})
	return &envelope.SignRequest{PublicKeyBlob: key.PublicKeyBlob, Data: data, CreatedAt: envelope.At(created), Context: envelope.Context{Device: "raw"}}
}

// soon receives what should come soon.
func soon[T any](t testing.TB, what string, from <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-from:
	case <-time.After(patience):
		t.Fatalf("no %s after %v", what, patience)
	}
	return v
}

func codeOf(err error) envelope.Code {
	var e *envelope.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// join pairs r with the phone by URL.
func (r *raw) join(p *phone) {
	r.t.Helper()
	u := pairing.NewURL("raw", r.id.Pin())
	window := p.spawn("vmux-signer", "pair", u.String(), "--json")
	window.wait(`^\{"event":"open"\}`)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := r.pair(ctx, p, "raw", u.Secret[:], nil); err != nil {
		r.t.Fatal(err)
	}
	if exit := window.ended(); exit != 0 {
		r.t.Fatalf("vmux-signer pair: exit %d\n%s", exit, window.output())
	}
}

// C05: requests of 60 s ago are refused, ids are used once, by a signer that
// runs as people run it.
func TestThreat_C05_RunningSigner(t *testing.T) {
	t.Parallel()
	p := newPhone(t)
	p.serve("--approve", "always")
	r := newRaw(t)
	r.join(p)
	l := r.open(p)
	for _, c := range []struct {
		age  time.Duration
		want envelope.Code
	}{{0, ""}, {59 * time.Second, ""}, {61 * time.Second, envelope.CodeExpired}, {-59 * time.Second, ""}, {-61 * time.Second, envelope.CodeExpired}} {
		for {
			created := time.Now().Add(-c.age)
			a, err := l.Call(t.Context(), transport.NewID(), l.loginRequest(created))
			// On a machine that is busy it may have grown too old, or fresh enough, on the way.
			if age := time.Since(created); (c.want == "") != (age.Abs() <= 60*time.Second) {
				continue
			}
			if codeOf(err) != c.want || (err == nil) != (c.want == "") {
				t.Errorf("%v old: %v", c.age, err)
			}
			if err == nil && len(a.(*envelope.SignResponse).Signature) == 0 {
				t.Errorf("%v old: no signature", c.age)
			}
			if c.want == envelope.CodeExpired && (err == nil || !strings.Contains(err.Error(), created.UTC().Format(time.RFC3339)) ||
				!strings.Contains(err.Error(), "by the signer's")) {
				t.Errorf("%v old: the refusal does not report the clocks: %v", c.age, err)
			}
			break
		}
	}

	id := transport.NewID()
	if _, err := l.Call(t.Context(), id, l.loginRequest(time.Now())); err != nil {
		t.Errorf("first use of an id: %v", err)
	}
	again := r.open(p) // nor on another link
	for _, l := range []*deviceLink{l, again} {
		if a, err := l.Call(t.Context(), id, l.loginRequest(time.Now())); codeOf(err) != envelope.CodeBadRequest || !strings.Contains(err.Error(), "used before") {
			t.Errorf("second use of an id: %v, %v", a, err)
		}
	}
	if _, err := again.Call(t.Context(), transport.NewID(), again.loginRequest(time.Now())); err != nil {
		t.Errorf("another id: %v", err)
	}
	p.serving.wait(`level=WARN msg=request device=raw .*outcome=expired`)
}

// C05: a phone whose clock is wrong is reported.
func TestThreat_C05_SkewIsReported(t *testing.T) {
	t.Parallel()
	r := newRaw(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan struct{})
	defer func() { cancel(); l.Close(); <-served }()
	go func() {
		defer close(served)
		c, err := l.Accept()
		if err != nil {
			return
		}
		conn, err := transport.Server(ctx, c, r.id, func(string, transport.Pin) error { return nil })
		if err != nil {
			return
		}
		defer conn.Close()
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		defer stop()
		err = conn.Send(envelope.Envelope{Payload: &envelope.Hello{Name: "Slow", Software: "test", Capabilities: []string{}, Clock: envelope.At(time.Now().Add(-5 * time.Minute))}})
		for err == nil {
			var e envelope.Envelope
			if e, err = conn.Receive(); err == nil && e.Payload.Type() == envelope.TypeKeyListRequest {
				err = conn.Send(envelope.Envelope{ID: e.ID, Payload: &envelope.KeyListResponse{Keys: []envelope.PublicKey{}}})
			}
		}
	}()
	d := newHost(t)
	d.put(stateFile, fmt.Sprintf(`{"version":1,"phones":[{"name":"Slow","pin":%q,"address":%q,"pairedAt":"2026-01-02T03:04:05Z","cachedKeys":[]}]}`,
		r.id.Pin(), l.Addr()), 0o600)
	d.agent()
	d.run("ssh-add", "-l") // has the phone looked for
	d.serving.wait(`msg=connected phone=Slow .*skew=-5m0(\.\d+)?s`)
}

// G02: the phone is lost. Its keys are listed, nothing signs and the log says
// why; forgetting it clears all of it.
func TestThreat_G02_PhoneLost(t *testing.T) {
	t.Parallel()
	d, p, s := world(t, "always")
	if r := s.login(d, "true"); r.exit != 0 {
		t.Fatalf("login: %v", r)
	}
	key := strings.Fields(d.ok("ssh-add", "-L"))[1]
	p.serving.stop(syscall.SIGKILL)
	d.serving.wait(`msg=disconnected`)
	if out := d.ok("ssh-add", "-l"); !strings.Contains(out, "(ECDSA)") {
		t.Errorf("ssh-add -l: %s", out)
	}
	start := time.Now()
	if r := s.login(d, "true"); r.exit == 0 {
		t.Error("logged in without the phone")
	}
	if took := time.Since(start); took > 5*time.Second { // 3 s, and ssh's own time
		t.Errorf("the login failed after %v", took)
	}
	d.serving.wait(`msg="sign request" outcome=failed reason="the phone cannot be reached`)

	if out := d.ok("vmux-pair", "--forget", "Pocket"); out != "forgot Pocket\n" {
		t.Errorf("--forget: %q", out)
	}
	d.serving.wait(`msg="phone forgotten" phone=Pocket`)
	if r := d.run("ssh-add", "-l"); r.exit != 1 {
		t.Errorf("ssh-add -l after forgetting: %v", r)
	}
	for name, content := range tree(t, d.home) {
		if strings.Contains(content, key) {
			t.Errorf("%s still has the key", name)
		}
	}
	start = time.Now()
	if r := s.login(d, "true"); r.exit == 0 || time.Since(start) > 3*time.Second {
		t.Errorf("login after forgetting: %v after %v", r, time.Since(start))
	}
	// Whoever has it now and switches it on hears nothing from here.
	p.serveOn(p.address, "--no-advertise", "--approve", "always")
	if r := s.login(d, "true"); r.exit == 0 {
		t.Error("logged in by a forgotten phone")
	}
	if strings.Contains(p.serving.output(), `"event":"connected"`) {
		t.Errorf("the device still comes:\n%s", p.serving.output())
	}
}

// G02: forgetting ends the link to a phone that is there.
func TestThreat_G02_ForgetEndsLink(t *testing.T) {
	t.Parallel()
	d, p, s := world(t, "always")
	if r := s.login(d, "true"); r.exit != 0 {
		t.Fatalf("login: %v", r)
	}
	links := strings.Count(p.serving.output(), `"event":"connected"`) - strings.Count(p.serving.output(), `"event":"disconnected"`)
	if links != 1 {
		t.Errorf("%d links", links)
	}
	d.ok("vmux-pair", "--forget", "Pocket")
	eventually(t, "the link to end", func() bool {
		out := p.serving.output()
		return strings.Count(out, `"event":"connected"`) == strings.Count(out, `"event":"disconnected"`)
	})
}

// G03: two users of one computer, each with an agent and a phone of their own,
// at once.
func TestThreat_G03_TwoUsers(t *testing.T) {
	t.Parallel()
	type person struct {
		name string
		d    *host
		p    *phone
		key  string
	}
	people := []*person{{name: "nobody"}, {name: "daemon"}}
	for _, who := range people {
		who.d, who.p = newHost(t), &phone{host: newHost(t)}
		who.d.setenv("VMUX_NAME", who.name+"-laptop")
		who.d.setenv("VMUX_CERTIFICATE_AFTER_PAIRING", "no") // the phone signs
		who.d.asUser(who.name)
		who.p.asUser(who.name)
	}
	for _, who := range people {
		who.p.ok("vmux-signer", "init", "--no-passphrase", "--name", "Pocket of "+who.name)
		who.p.serve("--approve", "always")
		who.d.agent()
		pair(t, who.d, who.p)
		who.key = strings.TrimSpace(who.d.ok("ssh-add", "-L"))
	}
	if people[0].key == people[1].key || people[0].key == "" {
		t.Fatalf("keys %q and %q", people[0].key, people[1].key)
	}
	// sign has somebody sign with a key that an agent has.
	sign := func(h *host, key string) result {
		pub := h.write("key.pub", key+"\n", 0o644)
		data := h.write("data", "data", 0o644)
		os.Remove(data + ".sig")
		if err := os.Chown(data, int(h.cred.Uid), int(h.cred.Gid)); err != nil {
			t.Fatal(err)
		}
		return h.run("ssh-keygen", "-Y", "sign", "-n", "file", "-f", pub, data)
	}
	for i, who := range people {
		other := people[1-i]
		if r := sign(who.d, who.key); r.exit != 0 {
			t.Errorf("%s cannot sign: %v\n%s", who.name, r, who.d.serving.output())
		}
		if out := who.p.devices(); len(out) != 1 || out[who.name+"-laptop"] == "" {
			t.Errorf("the phone of %s knows %v", who.name, out)
		}
		// The way to the other's files is open, and the socket too; their own modes and
		// the agent hold.
		for _, h := range []*host{other.d, other.p.host} {
			for name := range tree(t, h.home) {
				for dir := filepath.Dir(name); ; dir = filepath.Dir(dir) {
					if base := filepath.Base(dir); base != "vmux" && base != "vmux-signer" && base != "keys" {
						h.chmod(dir, 0o755)
					}
					if dir == "." {
						break
					}
				}
			}
		}
		thief := newHost(t)
		thief.asUser(who.name)
		thief.setenv("SSH_AUTH_SOCK", other.d.socket())
		if r := thief.run("ssh-add", "-l"); r.exit != 2 {
			t.Errorf("%s lists by mode what %s has: %v", who.name, other.name, r)
		}
		if err := os.Chmod(other.d.socket(), 0o666); err != nil {
			t.Fatal(err)
		}
		if r := thief.run("ssh-add", "-l"); r.exit == 0 {
			t.Errorf("%s lists what %s has: %v", who.name, other.name, r)
		}
		if r := sign(thief, other.key); r.exit == 0 {
			t.Errorf("%s signs with the key of %s: %v", who.name, other.name, r)
		}
		seen := 0
		for _, h := range []*host{other.d, other.p.host} {
			for name, content := range tree(t, h.home) {
				if !strings.Contains(name, "vmux") || filepath.Ext(name) == ".sock" {
					continue
				}
				seen++
				if r := thief.run("cat", h.path(name)); r.exit == 0 && content != "" && !strings.HasSuffix(name, ".lock") {
					t.Errorf("%s reads %s of %s", who.name, name, other.name)
				}
			}
		}
		if seen < 6 { // agent.json, device-key.pem, two keys, link key, state.json
			t.Errorf("%d files of %s looked at", seen, other.name)
		}
		thief.setenv("VMUX_SIGNER_HOME", other.p.homeDir())
		for _, args := range [][]string{{"devices"}, {"key", "list"}, {"serve", "--approve", "always"}, {"pair", "vmux-pair://1/x"}} {
			if r := thief.run("vmux-signer", args...); r.exit == 0 || !strings.Contains(r.stderr, "error: ") {
				t.Errorf("%s uses the signer of %s, %q: %v", who.name, other.name, args, r)
			}
		}
	}
	for _, who := range people { // still at it
		if r := sign(who.d, who.key); r.exit != 0 {
			t.Errorf("%s cannot sign any more: %v", who.name, r)
		}
		if n := strings.Count(who.p.serving.output(), `"outcome":"signed"`); n != 2 {
			t.Errorf("the phone of %s has signed %d times, not twice", who.name, n)
		}
	}
}

// I02: what is remembered on the device is public.
func TestThreat_I02_CachesArePublic(t *testing.T) {
	t.Parallel()
	p := newPhone(t)
	p.ok("vmux-signer", "key", "add", "ed25519", "--type", "ed25519")
	p.serve("--approve", "always")
	d := newDevice(t, "laptop")
	pairing := d.spawn("vmux-pair", "--url", "--address", p.address)
	url := pairing.wait(`^vmux-pair://\S+`)[0]
	p.ok("vmux-signer", "pair", url)
	pairing.ended()
	d.agent()
	lines := strings.Split(strings.TrimSpace(d.ok("ssh-add", "-L")), "\n")
	recorder := d.record()
	for _, line := range lines {
		s := newServer(t, line+"\n")
		if r := s.login(d, "true"); r.exit != 0 {
			t.Fatalf("login: %v", r)
		}
	}
	secrets := recorder.material()
	if n := counted(secrets, "signature"); n < 2 {
		t.Fatalf("recorded %d signatures", n)
	}
	maps.Copy(secrets, p.privateHalves())
	var err error
	if secrets["device key"], err = d.linkKey().Bytes(); err != nil {
		t.Fatal(err)
	}
	secrets["secret of the URL"] = urlSecret(t, url)
	n := looking(secrets)
	n.check(t, secrets)
	listing := d.ok("vmux-pair", "--list", "--json") + d.ok("vmux-pair", "--list")
	if found := n.find(listing); len(found) > 0 {
		t.Errorf("--list has %q", found)
	}
	for name, content := range tree(t, d.home) {
		found := n.find(content)
		if name == keyFile {
			if !slices.Equal(found, []string{"device key"}) {
				t.Errorf("%s has %q", name, found)
			}
		} else if len(found) > 0 {
			t.Errorf("%s has %q", name, found)
		}
	}

	// Nothing is remembered but what is known to be public.
	public := []string{"version", "phones", "name", "pin", "address", "fixedAddress", "instance", "pairedAt", "software", "caKey",
		"cachedKeys", "algorithm", "publicKeyBlob", "comment", "providerKind", "displayName"}
	b, err := os.ReadFile(d.path(stateFile))
	if err != nil {
		t.Fatal(err)
	}
	var state any
	if err := json.Unmarshal(b, &state); err != nil {
		t.Fatal(err)
	}
	keys := 0
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, e := range v {
				walk(e)
			}
		case map[string]any:
			for name, e := range v {
				if !slices.Contains(public, name) {
					t.Errorf("agent.json has %s: %v", name, e)
				}
				if name == "caKey" || name == "publicKeyBlob" {
					keys++
					blob, err := base64.StdEncoding.DecodeString(e.(string))
					if err == nil {
						_, err = ssh.ParsePublicKey(blob)
					}
					if err != nil {
						t.Errorf("%s is no public key: %v", name, err)
					}
				}
				walk(e)
			}
		}
	}
	walk(state)
	if keys != 3 {
		t.Errorf("agent.json has %d public keys, not 3: %s", keys, b)
	}
}

func urlSecret(t testing.TB, text string) []byte {
	t.Helper()
	u, err := pairing.ParseURL(text)
	if err != nil {
		t.Fatal(err)
	}
	return u.Secret[:]
}

// I03: with everything logged, the logs of both ends have nothing that is
// secret or that was to be signed.
func TestThreat_I03_DebugLogs(t *testing.T) {
	t.Parallel()
	p := newPhone(t)
	p.ok("vmux-signer", "key", "add", "ed25519", "--type", "ed25519")
	owner := p.askpass()
	p.serve("--approve", "askpass", "--log-level", "debug")
	d := newDevice(t, "laptop")
	d.setenv("VMUX_CERTIFICATE_AFTER_PAIRING", "no") // the phone signs
	d.agent("--log-level", "debug")

	// Pairings: by URL, declined, with wrong digits, by digits.
	byURL := d.spawn("vmux-pair", "--url", "--address", p.address)
	url := byURL.wait(`^vmux-pair://\S+`)[0]
	p.ok("vmux-signer", "pair", url)
	if exit := byURL.ended(); exit != 0 {
		t.Fatalf("vmux-pair: exit %d\n%s", exit, byURL.output())
	}
	var codes []string
	for i := range 3 {
		window := p.window()
		user := d.console("vmux-pair", "--address", p.address)
		user.Expect(digitsPrompt)
		_, code := window.asks()
		codes = append(codes, code)
		switch i {
		case 0:
			user.Type(wrong(code) + "\n")
			codes = append(codes, wrong(code))
			user.ended()
		case 1:
			user.Type(code + "\n")
			window.replies("n\n", "denied")
			user.ended()
		case 2:
			user.Type(code + "\n")
			window.replies("y\n", "approved")
			if exit := user.ended(); exit != 0 {
				t.Fatalf("vmux-pair: exit %d", exit)
			}
		}
		window.ended()
	}

	lines := strings.Split(strings.TrimSpace(d.ok("ssh-add", "-L")), "\n")
	recorder := d.record()
	for i, line := range lines {
		s := newServer(t, line+"\n")
		login := d.spawn("ssh", s.args("true")...)
		owner.next().approve()
		if exit := login.ended(); exit != 0 {
			t.Fatalf("approved login: exit %d\n%s", exit, login.output())
		}
		login = d.spawn("ssh", s.args("true")...)
		prompt := owner.next()
		if i == 0 {
			prompt.deny()
			login.ended()
		} else {
			login.stop(syscall.SIGKILL)
			prompt.withdrawn()
		}
	}
	if r := d.run("ssh-add", "-T", d.write("key.pub", lines[0]+"\n", 0o600)); r.exit == 0 { // opaque data
		t.Errorf("opaque data was signed: %v", r)
	}
	d.serving.wait(`outcome=refused`)
	d.serving.stop(syscall.SIGTERM)
	p.serving.stop(syscall.SIGTERM)

	secrets := recorder.material()
	if a, b, c := counted(secrets, "data to be signed"), counted(secrets, "session id"), counted(secrets, "signature"); a < 5 || b < 4 || c != 2 {
		t.Fatalf("recorded: %d to be signed, %d session ids, %d signatures", a, b, c)
	}
	maps.Copy(secrets, p.privateHalves())
	var err error
	if secrets["device key"], err = d.linkKey().Bytes(); err != nil {
		t.Fatal(err)
	}
	secrets["secret of the URL"] = urlSecret(t, url)
	for i, line := range lines {
		blob, err := base64.StdEncoding.DecodeString(strings.Fields(line)[1])
		if err != nil {
			t.Fatal(err)
		}
		secrets[fmt.Sprintf("public key %d", i)] = blob
	}
	n := looking(secrets)
	n.check(t, secrets)
	n[url] = "the URL"
	n[strings.Split(url, "/")[4]] = "the URL's secret as text"
	for _, code := range codes {
		n[code], n[code[:3]+" "+code[3:]] = "digits", "digits"
	}
	for _, log := range []struct{ whose, text string }{{"agent", d.serving.output()}, {"signer", p.serving.output()}} {
		if found := n.find(log.text); len(found) > 0 {
			t.Errorf("the %s's log has %q:\n%s", log.whose, found, log.text)
		}
		if !strings.Contains(log.text, "level=DEBUG") {
			t.Errorf("the %s does not log everything:\n%s", log.whose, log.text)
		}
	}
	if found := n.find(byURL.output()); !slices.Contains(found, "the URL") || !slices.Contains(found, "secret of the URL") {
		t.Errorf("the search finds %q in what vmux-pair prints", found)
	}
	for _, want := range []string{"outcome=signed", "outcome=denied", "outcome=withdrawn", "outcome=refused"} {
		if !strings.Contains(d.serving.output(), want) {
			t.Errorf("the agent's log has no %s:\n%s", want, d.serving.output())
		}
	}
}
