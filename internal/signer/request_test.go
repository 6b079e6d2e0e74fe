// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/keyfile"
	"vmux.app/toolkit/internal/transport"
)

var testPin = transport.Pin{7}

// answers is an Approver that hands each prompt to the test.
type answers struct {
	asked chan *question
}

type question struct {
	ctx    context.Context
	prompt *Prompt
	reply  chan error
}

func newAnswers() *answers { return &answers{asked: make(chan *question, 100)} }

func (a *answers) Approve(ctx context.Context, p *Prompt) error {
	q := &question{ctx, p, make(chan error, 1)}
	a.asked <- q
	select {
	case err := <-q.reply:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// always approves without a word.
type yes struct{}

func (yes) Approve(context.Context, *Prompt) error { return nil }

// testServer serves testHome to one paired device, without a network.
func testServer(t *testing.T, a Approver) *server {
	t.Helper()
	h := testHome(t)
	if _, err := h.AddKey("work", keyfile.Ed25519, nil); err != nil {
		t.Fatal(err)
	}
	_, err := h.Update(func(s *State) error {
		_, err := s.addDevice("laptop", testPin, time.Now())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := newServer(h, Options{Approver: a})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// login is what a client has signed to log in. hostKey may be nil.
func login(sid []byte, user string, key ssh.PublicKey, hostKey []byte) []byte {
	method := "publickey"
	if hostKey != nil {
		method = "publickey-hostbound-v00@openssh.com"
	}
	b := ssh.Marshal(struct {
		SID     []byte
		Type    byte
		User    string
		Service string
		Method  string
		True    bool
		Algo    string
		Key     []byte
	}{sid, 50, user, "ssh-connection", method, true, key.Type(), key.Marshal()})
	if hostKey != nil {
		b = append(b, ssh.Marshal(struct{ K []byte }{hostKey})...)
	}
	return b
}

func sshsig(namespace string) []byte {
	return append([]byte("SSHSIG"), ssh.Marshal(struct {
		Namespace, Reserved, Algo string
		Hash                      []byte
	}{namespace, "", "sha256", make([]byte, 32)})...)
}

func sessionID(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }

// request asks for a login with the key of a label.
func request(s *server, label string, sid byte) *envelope.SignRequest {
	for _, k := range s.current().keys {
		if k.Label == label {
			return &envelope.SignRequest{
				PublicKeyBlob: k.Public.Marshal(),
				Data:          login(sessionID(sid), "root", k.Public, nil),
				CreatedAt:     envelope.At(time.Now()),
			}
		}
	}
	panic("no key " + label)
}

func codeOf(err error) envelope.Code {
	var e *envelope.Error
	if errors.As(err, &e) {
		return e.Code
	}
	if err != nil {
		return envelope.Code(err.Error())
	}
	return ""
}

func wantCode(t *testing.T, p envelope.Payload, err error, want envelope.Code) {
	t.Helper()
	if codeOf(err) != want {
		t.Errorf("%v, want %q", err, want)
	}
	if _, signed := p.(*envelope.SignResponse); signed != (want == "") {
		t.Errorf("answer %v with code %q", p, codeOf(err))
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	s := testServer(t, yes{})
	list := func() string {
		p, err := s.handle(t.Context(), testPin, "1", &envelope.KeyListRequest{})
		if err != nil {
			t.Fatal(err)
		}
		r := p.(*envelope.KeyListResponse)
		if _, err := ssh.ParsePublicKey(r.CAKey); err != nil {
			t.Error(err)
		}
		var got []string
		for _, k := range r.Keys {
			if k.ProviderKind != envelope.Unknown || k.DisplayName != k.Comment {
				t.Errorf("%+v", k)
			}
			got = append(got, k.Algorithm+" "+k.Comment)
		}
		return strings.Join(got, ", ")
	}
	if got := list(); got != "ecdsa-sha2-nistp256 default, ssh-ed25519 work" {
		t.Error(got)
	}
	if err := s.home.EnableKey("work", false); err != nil {
		t.Fatal(err)
	}
	if err := s.reload(); err != nil {
		t.Fatal(err)
	}
	if got := list(); got != "ecdsa-sha2-nistp256 default" {
		t.Error(got)
	}
	_, err := s.handle(t.Context(), transport.Pin{8}, "1", &envelope.KeyListRequest{})
	wantCode(t, nil, err, envelope.CodeNotPaired)
}

func TestSignBothTypes(t *testing.T) {
	t.Parallel()
	s := testServer(t, yes{})
	for i, label := range []string{"default", "work"} {
		// Many, so that values of r and s with a high or a zero first byte occur.
		for n := range 600 {
			r := request(s, label, byte(n))
			p, err := s.handle(t.Context(), testPin, fmt.Sprintf("%d-%d", i, n), r)
			if err != nil {
				t.Fatal(err)
			}
			var sig ssh.Signature
			if err := ssh.Unmarshal(p.(*envelope.SignResponse).Signature, &sig); err != nil {
				t.Fatal(err)
			}
			key, _ := ssh.ParsePublicKey(r.PublicKeyBlob)
			if err := key.Verify(r.Data, &sig); err != nil || sig.Format != key.Type() {
				t.Fatalf("%s: %v (%s)", label, err, sig.Format)
			}
			if label == "default" {
				checkMpints(t, sig.Blob)
			}
		}
	}
}

// checkMpints makes sure that r and s are in their one form (RFC 4251 section 5).
func checkMpints(t *testing.T, blob []byte) {
	t.Helper()
	var v struct{ R, S []byte }
	if err := ssh.Unmarshal(blob, &v); err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{v.R, v.S} {
		if len(b) == 0 || b[0] >= 0x80 || len(b) > 1 && b[0] == 0 && b[1] < 0x80 {
			t.Fatalf("mpint %x", b)
		}
	}
}

// C05: requests older than 60 s are refused; ids are used once.
func TestThreat_C05_Freshness(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		age  time.Duration
		want envelope.Code
	}{
		{0, ""}, {59 * time.Second, ""}, {61 * time.Second, envelope.CodeExpired},
		{-59 * time.Second, ""}, {-61 * time.Second, envelope.CodeExpired}, {24 * time.Hour, envelope.CodeExpired},
	} {
		t.Run(c.age.String(), func(t *testing.T) {
			t.Parallel()
			s := testServer(t, yes{})
			now := time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
			s.now = func() time.Time { return now }
			r := request(s, "work", 1)
			r.CreatedAt = envelope.At(now.Add(-c.age))
			p, err := s.handle(t.Context(), testPin, "a", r)
			wantCode(t, p, err, c.want)
			if c.want != "" {
				for _, clock := range []time.Time{now, now.Add(-c.age)} {
					if !strings.Contains(err.Error(), clock.Format(time.RFC3339)) {
						t.Errorf("%v does not name the clock %v", err, clock)
					}
				}
			}
		})
	}
}

// C05: the same id twice fails, for as long as its request could be fresh.
func TestThreat_C05_IDOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := testServer(t, yes{})
		other := transport.Pin{9}
		if err := s.update(func(st *State) error { _, err := st.addDevice("desk", other, time.Now()); return err }); err != nil {
			t.Fatal(err)
		}
		use := func(pin transport.Pin, id string, want envelope.Code) {
			t.Helper()
			p, err := s.handle(t.Context(), pin, id, request(s, "work", 1))
			wantCode(t, p, err, want)
		}
		use(testPin, "a", "")
		use(testPin, "a", envelope.CodeBadRequest)
		use(other, "a", "") // another device's ids are its own
		use(testPin, "b", "")
		<-time.After(2*Freshness - time.Second)
		use(testPin, "a", envelope.CodeBadRequest)
		<-time.After(2 * time.Second)
		use(testPin, "a", envelope.CodeBadRequest) // there is room to remember it
		use(testPin, "c", "")
		paired := func(pin transport.Pin) bool { return pin == other }
		s.seen.sweep(time.Now(), paired)
		if len(s.seen.devices) != 2 { // "c" is too young
			t.Errorf("%d devices remembered", len(s.seen.devices))
		}
		<-time.After(2*Freshness + time.Second)
		s.seen.sweep(time.Now(), paired)
		if s.seen.devices[testPin] != nil || s.seen.devices[other] == nil {
			t.Error("not the device that was forgotten")
		}
		use(testPin, "a", "")
	})
}

func TestIDsBounded(t *testing.T) {
	t.Parallel()
	var seen seenIDs
	now := time.Now()
	for i := range maxIDs {
		if err := seen.use(testPin, hashID(fmt.Sprint(i)), now); err != nil {
			t.Fatal(err)
		}
	}
	if err := seen.use(testPin, hashID("more"), now); !errors.Is(err, errManyIDs) {
		t.Error(err)
	}
	if err := seen.use(transport.Pin{1}, hashID("more"), now); err != nil {
		t.Error(err)
	}
	if err := seen.use(testPin, hashID("more"), now.Add(rememberIDs+1)); err != nil {
		t.Error(err)
	}
	if n := len(seen.devices[testPin].order); n != keepIDs+1 || len(seen.devices[testPin].used) != n {
		t.Errorf("%d ids are kept", n)
	}
}

// N06: opaque data and certificates to be signed are refused by the signer on
// its own, and no prompt is shown for them.
func TestThreat_N06_SignerRefusesOpaque(t *testing.T) {
	t.Parallel()
	a := newAnswers()
	s := testServer(t, a)
	key := s.current().keys[1].Public
	other := s.current().keys[0].Public
	cert := &ssh.Certificate{Key: other, SignatureKey: key, Nonce: make([]byte, 32), CertType: ssh.UserCert,
		ValidPrincipals: []string{"root"}, Signature: &ssh.Signature{Format: "ssh-ed25519", Blob: make([]byte, 64)}}
	toSign := cert.Marshal()
	toSign = toSign[:len(toSign)-4-len(ssh.Marshal(cert.Signature))]
	for name, c := range map[string]struct {
		data  []byte
		flags uint32
		blob  []byte
		want  envelope.Code
	}{
		"opaque":       {[]byte("anything"), 0, key.Marshal(), envelope.CodeDenied},
		"certificate":  {toSign, 0, key.Marshal(), envelope.CodeDenied},
		"trailing":     {append(login(sessionID(1), "root", key, nil), 0), 0, key.Marshal(), envelope.CodeDenied},
		"other key":    {login(sessionID(1), "root", other, nil), 0, key.Marshal(), envelope.CodeBadRequest},
		"flags":        {login(sessionID(1), "root", key, nil), 1 << 31, key.Marshal(), envelope.CodeBadRequest},
		"unknown key":  {login(sessionID(1), "root", key, nil), 0, append(key.Marshal(), 0), envelope.CodeUnknownKey},
		"CA key":       {login(sessionID(1), "root", s.current().ca.Public, nil), 0, s.current().ca.Public.Marshal(), envelope.CodeUnknownKey},
		"opaque, gone": {[]byte("anything"), 0, []byte("x"), envelope.CodeUnknownKey},
	} {
		p, err := s.handle(t.Context(), testPin, strings.ReplaceAll(name, " ", "-"), &envelope.SignRequest{
			PublicKeyBlob: c.blob, Data: c.data, Flags: c.flags, CreatedAt: envelope.At(time.Now())})
		if codeOf(err) != c.want {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
		wantCode(t, p, err, c.want)
	}
	if len(a.asked) != 0 {
		t.Errorf("%d prompts were shown", len(a.asked))
	}
	p, err := s.handle(t.Context(), testPin, "hello", &envelope.Hello{})
	wantCode(t, p, err, envelope.CodeUnsupported)
}

func TestDisabledKey(t *testing.T) {
	t.Parallel()
	s := testServer(t, yes{})
	r := request(s, "work", 1)
	s.home.EnableKey("work", false)
	if err := s.reload(); err != nil {
		t.Fatal(err)
	}
	p, err := s.handle(t.Context(), testPin, "a", r)
	wantCode(t, p, err, envelope.CodeUnknownKey)
}

// result is what one asynchronous request came to.
type result struct {
	payload envelope.Payload
	err     error
}

func start(ctx context.Context, s *server, id string, r *envelope.SignRequest) <-chan result {
	c := make(chan result, 1)
	go func() {
		p, err := s.handle(ctx, testPin, id, r)
		c <- result{p, err}
	}()
	return c
}

func TestDenied(t *testing.T) {
	t.Parallel()
	a := newAnswers()
	s := testServer(t, a)
	for _, c := range []struct {
		err  error
		want envelope.Code
	}{{ErrDenied, envelope.CodeDenied}, {nil, ""}, {errors.New("no dialog"), envelope.CodeInternal}, {ErrNoTerminal, envelope.CodeInternal}} {
		done := start(t.Context(), s, fmt.Sprint("x", c.want, len(a.asked), c.err == ErrNoTerminal), request(s, "work", 1))
		(<-a.asked).reply <- c.err
		r := <-done
		wantCode(t, r.payload, r.err, c.want)
	}
	s.prompts.wait()
}

// late is an Approver that says yes only once its prompt was withdrawn: the
// worst that an approver may do.
type late struct{ shown chan struct{} }

func (l late) Approve(ctx context.Context, _ *Prompt) error {
	l.shown <- struct{}{}
	<-ctx.Done()
	return nil
}

// T02, C05: an approval after cancel, expiry, disable or forget signs nothing.
func TestThreat_C05_LateApproval(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		end  func(s *server, cancel func())
		want envelope.Code
	}{
		"cancel": {func(_ *server, cancel func()) { cancel() }, envelope.CodeDenied},
		"expiry": {func(*server, func()) { <-time.After(Freshness) }, envelope.CodeExpired},
		"disable": {func(s *server, _ func()) {
			s.home.EnableKey("work", false)
			s.reload()
		}, envelope.CodeUnknownKey},
		"remove": {func(s *server, _ func()) {
			s.home.RemoveKey("work")
			s.reload()
		}, envelope.CodeUnknownKey},
		"forget": {func(s *server, _ func()) {
			s.home.Forget("laptop")
			s.reload()
		}, envelope.CodeNotPaired},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := late{make(chan struct{}, 1)}
				s := testServer(t, l)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				done := start(ctx, s, "a", request(s, "work", 1))
				<-l.shown
				c.end(s, cancel)
				r := <-done
				wantCode(t, r.payload, r.err, c.want)
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
		done := start(t.Context(), s, "a", request(s, "work", 1))
		q := <-a.asked
		mu.Lock()
		now = now.Add(Freshness + time.Second)
		mu.Unlock()
		q.reply <- nil
		r := <-done
		wantCode(t, r.payload, r.err, envelope.CodeExpired)
	})
}

// The owner has what is left of a minute by the older of both clocks.
func TestExpiry(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ age, want time.Duration }{
		{0, 60 * time.Second}, {50 * time.Second, 10 * time.Second}, {-50 * time.Second, 60 * time.Second},
	} {
		t.Run(c.age.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				a := newAnswers()
				s := testServer(t, a)
				r := request(s, "work", 1)
				begin := time.Now()
				r.CreatedAt = envelope.At(begin.Add(-c.age))
				done := start(t.Context(), s, "a", r)
				q := <-a.asked
				if got := q.prompt.Expires().Sub(begin); got != c.want {
					t.Errorf("prompt has %v, want %v", got, c.want)
				}
				res := <-done
				wantCode(t, res.payload, res.err, envelope.CodeExpired)
				if got := time.Since(begin); got != c.want {
					t.Errorf("request ended after %v, want %v", got, c.want)
				}
				<-q.ctx.Done()
				s.prompts.wait()
			})
		})
	}
}

// N02: requests for the same are one prompt; at most eight wait.
func TestThreat_N02_Prompts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAnswers()
		s := testServer(t, a)
		// Twenty of the same are one prompt, and each gets a signature.
		var same []<-chan result
		for i := range 20 {
			same = append(same, start(t.Context(), s, fmt.Sprint("same", i), request(s, "work", 1)))
		}
		synctest.Wait()
		if len(a.asked) != 1 {
			t.Fatalf("%d prompts", len(a.asked))
		}
		first := <-a.asked
		// The same data for another key is another prompt.
		var others []<-chan result
		for i := range maxPrompts - 1 {
			others = append(others, start(t.Context(), s, fmt.Sprint("other", i), request(s, "default", byte(i))))
		}
		synctest.Wait()
		if len(a.asked) != maxPrompts-1 {
			t.Fatalf("%d prompts", len(a.asked))
		}
		p, err := s.handle(t.Context(), testPin, "ninth", request(s, "default", 99))
		wantCode(t, p, err, envelope.CodeTooMany)
		// Joining a prompt that waits is no ninth.
		joined := start(t.Context(), s, "joined", request(s, "default", 0))
		synctest.Wait()
		first.reply <- nil
		for _, c := range same {
			r := <-c
			wantCode(t, r.payload, r.err, "")
		}
		for range others {
			(<-a.asked).reply <- ErrDenied
		}
		for _, c := range append(others, joined) {
			r := <-c
			wantCode(t, r.payload, r.err, envelope.CodeDenied)
		}
		s.prompts.wait()
		if len(s.prompts.open) != 0 || len(s.prompts.count) != 0 {
			t.Errorf("left: %v %v", s.prompts.open, s.prompts.count)
		}
	})
}

// A shared prompt stays while anybody waits for it, and goes with the last.
func TestSharedWithdrawal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAnswers()
		s := testServer(t, a)
		ctx1, cancel1 := context.WithCancel(t.Context())
		ctx2, cancel2 := context.WithCancel(t.Context())
		defer cancel2()
		first := start(ctx1, s, "a", request(s, "work", 1))
		q := <-a.asked
		<-time.After(20 * time.Second)
		second := start(ctx2, s, "b", request(s, "work", 1))
		synctest.Wait()
		if left := time.Until(q.prompt.Expires()); left != Freshness {
			t.Errorf("prompt has %v left, want the second request's %v", left, Freshness)
		}
		cancel1()
		r := <-first
		wantCode(t, r.payload, r.err, envelope.CodeDenied)
		synctest.Wait()
		if q.ctx.Err() != nil {
			t.Error("prompt went with the first of two")
		}
		cancel2()
		r = <-second
		wantCode(t, r.payload, r.err, envelope.CodeDenied)
		synctest.Wait()
		if q.ctx.Err() == nil {
			t.Error("prompt stays with nobody waiting")
		}
		// The next one of the same kind is a new prompt.
		third := start(t.Context(), s, "c", request(s, "work", 1))
		(<-a.asked).reply <- nil
		r = <-third
		wantCode(t, r.payload, r.err, "")
		s.prompts.wait()
	})
}

// hostSigner is a host that makes statements.
func hostSigner(t *testing.T, ed bool) ssh.Signer {
	t.Helper()
	var k any
	var err error
	if ed {
		_, k, err = ed25519.GenerateKey(rand.Reader)
	} else {
		k, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func bind(t *testing.T, host ssh.Signer, sid []byte, forwarding bool) envelope.Bind {
	t.Helper()
	sig, err := host.Sign(rand.Reader, sid)
	if err != nil {
		t.Fatal(err)
	}
	return envelope.Bind{HostKey: host.PublicKey().Marshal(), SessionID: sid, Signature: ssh.Marshal(sig), Forwarding: forwarding}
}

// T11: a device that lies about the destination does not reach the verified
// half.
func TestThreat_T11_Destination(t *testing.T) {
	t.Parallel()
	h, hop := hostSigner(t, true), hostSigner(t, false)
	hostPrint, hopPrint := ssh.FingerprintSHA256(h.PublicKey()), ssh.FingerprintSHA256(hop.PublicKey())
	hk := h.PublicKey().Marshal()
	sid, other := sessionID(1), sessionID(2)
	forged := bind(t, hop, sid, false)
	forged.HostKey = h.PublicKey().Marshal()
	cert := &ssh.Certificate{Key: h.PublicKey(), CertType: ssh.HostCert, ValidPrincipals: []string{"h"},
		ValidBefore: ssh.CertTimeInfinity}
	if err := cert.SignCert(rand.Reader, hop); err != nil {
		t.Fatal(err)
	}
	certified := bind(t, h, sid, false)
	certified.HostKey = cert.Marshal()
	for name, c := range map[string]struct {
		binds   []envelope.Bind
		hostKey []byte
		want    string // verified fingerprint, empty for unverified
		why     string
		hops    int
		claimed int
		vouched string // claimed fingerprint
	}{
		"hostbound":        {[]envelope.Bind{bind(t, h, sid, false)}, hk, hostPrint, "", 0, 0, ""},
		"certificate":      {[]envelope.Bind{certified}, cert.Marshal(), hostPrint, "", 0, 0, ""},
		"forwarded":        {[]envelope.Bind{bind(t, hop, other, true), bind(t, h, sid, false)}, hk, hostPrint, "", 1, 0, ""},
		"no statement":     {nil, hk, hostPrint, "", 0, 0, ""},
		"other statement":  {[]envelope.Bind{bind(t, hop, other, true), bind(t, hop, sid, false)}, hk, hostPrint, "", 0, 1, ""},
		"false hop":        {[]envelope.Bind{bind(t, hop, sid, true)}, hk, hostPrint, "", 0, 1, ""},
		"another's hop":    {[]envelope.Bind{bind(t, hop, other, true), bind(t, h, other, false)}, hk, hostPrint, "", 0, 0, ""},
		"vouched":          {[]envelope.Bind{bind(t, h, sid, false)}, nil, "", "does not name", 0, 0, hostPrint},
		"vouched by a lie": {[]envelope.Bind{bind(t, hop, sid, false)}, nil, "", "does not name", 0, 0, hopPrint},
		"vouched, hops":    {[]envelope.Bind{bind(t, hop, other, true), bind(t, h, sid, false)}, nil, "", "does not name", 0, 1, hostPrint},
		"none":             {nil, nil, "", "no statement", 0, 0, ""},
		"false host key":   {[]envelope.Bind{forged}, nil, "", "not signed by its host", 0, 0, ""},
		"another session":  {[]envelope.Bind{bind(t, h, other, false)}, nil, "", "another session", 0, 0, ""},
		"chain ends early": {[]envelope.Bind{bind(t, hop, other, false), bind(t, h, sid, false)}, nil, "", "ends the chain", 0, 0, ""},
		"forwards only":    {[]envelope.Bind{bind(t, hop, other, true)}, nil, "", "forwards without", 0, 1, ""},
		"hop's own":        {[]envelope.Bind{bind(t, hop, sid, true)}, nil, "", "forwards without", 0, 1, ""},
		"forged hop": {[]envelope.Bind{{HostKey: hop.PublicKey().Marshal(), SessionID: other, Signature: forged.Signature, Forwarding: true},
			bind(t, h, sid, false)}, nil, "", "not signed by its host", 0, 0, ""},
		"junk": {[]envelope.Bind{{HostKey: []byte("x"), SessionID: sid, Signature: []byte("y")}}, nil, "", "not signed", 0, 0, ""},
		"long": {[]envelope.Bind{bind(t, h, bytes.Repeat([]byte{1}, 129), false)}, nil, "", "session id of 129", 0, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAnswers()
			s := testServer(t, a)
			r := request(s, "work", 1)
			key, _ := ssh.ParsePublicKey(r.PublicKeyBlob)
			r.Data = login(sid, "root", key, c.hostKey)
			r.Context = envelope.Context{Device: "not the laptop", Operation: "harmless", Reason: "be\x1b[2Jlieve me",
				Destination: &envelope.Destination{HostNames: []string{"friendly.example"}, Binds: c.binds, Forwarded: true},
				Processes:   []envelope.Process{{PID: 42, Executable: "/usr/bin/ssh"}, {PID: 41, Executable: "/bin/sh"}}}
			done := start(t.Context(), s, "a", r)
			q := <-a.asked
			v := q.prompt.Verified
			if v.HostKey != c.want || !strings.Contains(v.Unverified, c.why) || (v.Unverified == "") != (c.want != "") {
				t.Errorf("host key %q, unverified %q", v.HostKey, v.Unverified)
			}
			if len(v.Hops) != c.hops || len(q.prompt.Claimed.Hops) != c.claimed || c.hops > 0 && v.Hops[0] != hopPrint {
				t.Errorf("hops %q, claimed %q", v.Hops, q.prompt.Claimed.Hops)
			}
			if q.prompt.Claimed.HostKey != c.vouched {
				t.Errorf("claimed host key %q", q.prompt.Claimed.HostKey)
			}
			if v.Device != "laptop" || v.User != "root" || v.Kind != kindLogin || v.KeyLabel != "work" {
				t.Errorf("%+v", v)
			}
			// What is shown: the claims only below their heading, and safe.
			text := q.prompt.Text()
			verified, claimed, ok := strings.Cut(text, "CLAIMED")
			if !ok || strings.Contains(text, "\x1b") || strings.Contains(text, "not the laptop") {
				t.Errorf("text %q", text)
			}
			// That it was forwarded is said once: where it is proven, or claimed.
			if got := strings.Contains(claimed, "  forwarded: yes\n"); got != (c.hops+c.claimed == 0) || strings.Contains(verified, "  forwarded: through 1 host: "+hopPrint) != (c.hops > 0) {
				t.Errorf("text %q", text)
			}
			verified = strings.Replace(verified, "friendly.example (claimed)", "", 1)
			for _, claim := range []string{"friendly", "lieve", "/usr/bin/ssh"} {
				if strings.Contains(verified, claim) || !strings.Contains(claimed, claim) {
					t.Errorf("claim %q in text %q", claim, text)
				}
			}
			if !strings.Contains(text, "From laptop → friendly.example (claimed)\n") {
				t.Errorf("text %q", text)
			}
			if c.want == "" && (strings.Contains(verified, hostPrint) || strings.Contains(verified, hopPrint)) {
				t.Errorf("a host key that is not proven in text %q", text)
			}
			if (c.want == "") != strings.Contains(verified, "NOT VERIFIED") {
				t.Errorf("text %q", text)
			}
			q.reply <- ErrDenied
			<-done
		})
	}
}

func TestPromptKinds(t *testing.T) {
	t.Parallel()
	a := newAnswers()
	s := testServer(t, a)
	r := request(s, "work", 1)
	r.Data = sshsig("git")
	done := start(t.Context(), s, "a", r)
	q := <-a.asked
	if v := q.prompt.Verified; v.Kind != "sshsig" || v.Namespace != "git" || v.HostKey != "" {
		t.Errorf("%+v", v)
	}
	if text := q.prompt.Text(); !strings.Contains(text, `sign data for "git"`) || strings.Contains(text, "host key") {
		t.Errorf("%q", text)
	}
	q.reply <- nil
	res := <-done
	wantCode(t, res.payload, res.err, "")
}

// I03: what is logged at every level has neither data nor signatures nor keys.
func TestThreat_I03_SignerLog(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	a := newAnswers()
	s := testServer(t, a)
	s.log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var events []Event
	s.onEvent = func(e Event) { events = append(events, e) }
	r := request(s, "work", 1)
	done := start(t.Context(), s, "idididid", r)
	(<-a.asked).reply <- nil
	res := <-done
	sig := res.payload.(*envelope.SignResponse).Signature
	s.handle(t.Context(), testPin, "b", &envelope.KeyListRequest{})
	s.handle(t.Context(), testPin, "c", &envelope.SignRequest{PublicKeyBlob: r.PublicKeyBlob, Data: []byte("opaque-data"), CreatedAt: envelope.At(time.Now())})
	text := log.String() + fmt.Sprint(events)
	for _, secret := range [][]byte{sig, r.Data, r.PublicKeyBlob, []byte("opaque-data")} {
		for _, form := range []string{string(secret), fmt.Sprintf("%x", secret), fmt.Sprintf("%X", secret), fmt.Sprintf("%v", secret),
			fmt.Sprintf("%q", secret)} {
			if strings.Contains(text, form) {
				t.Errorf("log has %q", form)
			}
		}
	}
	for _, want := range []string{"device=laptop operation=login key=work outcome=signed", "operation=opaque key=work outcome=denied"} {
		if !strings.Contains(text, want) {
			t.Errorf("log %s has no %q", text, want)
		}
	}
}

// C05: a clock that is set back does not make used ids new, and does not keep the
// device out.
func TestThreat_C05_ClockSetBack(t *testing.T) {
	t.Parallel()
	s := testServer(t, yes{})
	var now time.Time
	s.now = func() time.Time { return now }
	begin := time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC)
	made := map[string]*envelope.SignRequest{}
	ask := func(at time.Duration, id string, want envelope.Code) {
		t.Helper()
		now = begin.Add(at)
		r := made[id]
		if r == nil {
			r = request(s, "work", byte(len(made)))
			r.CreatedAt = envelope.At(now)
			made[id] = r
		}
		p, err := s.handle(t.Context(), testPin, id, r)
		wantCode(t, p, err, want)
	}
	ask(0, "a", "")
	ask(time.Hour, "b", "")
	ask(0, "a", envelope.CodeBadRequest)
	ask(-48*time.Hour, "c", "")
	ask(-48*time.Hour, "c", envelope.CodeBadRequest)
	ask(time.Hour, "b", envelope.CodeBadRequest)
	ask(time.Hour, "d", "")
}
