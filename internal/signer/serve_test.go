// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/keyfile"
	"vmux.app/toolkit/internal/pairing"
	"vmux.app/toolkit/internal/transport"
)

// running is a signer that serves on loopback.
type running struct {
	t       *testing.T
	home    *Home
	address string
	events  chan Event
	pin     transport.Pin
	stop    func()
}

// errSignal is as the cause that a command's context has.
var errSignal = errors.New("ended by signal 15")

func serve(t *testing.T, h *Home, a Approver) *running {
	t.Helper()
	return serveWith(t, h, Options{Approver: a})
}

func serveWith(t *testing.T, h *Home, o Options) *running {
	t.Helper()
	r := &running{t: t, home: h, events: make(chan Event, 1000)}
	ctx, cancel := context.WithCancelCause(context.Background())
	ended := make(chan error, 1)
	o.Listen, o.Advertise, o.Event = "127.0.0.1:0", true, func(e Event) { r.events <- e }
	go func() { ended <- Serve(ctx, h, o) }()
	r.stop = sync.OnceFunc(func() {
		cancel(errSignal)
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(r.stop)
	select {
	case e := <-r.events:
		r.address = e.Address
	case err := <-ended:
		ended <- err
		t.Fatalf("serve: %v", err)
	}
	key, err := h.LinkKey()
	if err != nil {
		t.Fatal(err)
	}
	id, err := transport.NewIdentity(key)
	if err != nil {
		t.Fatal(err)
	}
	r.pin = id.Pin()
	return r
}

// expect waits for an event of a kind and gives it.
func (r *running) expect(kind string) Event {
	for e := range r.events {
		if e.Event == kind {
			return e
		}
	}
	return Event{}
}

// device is the other end.
type device struct {
	name string
	id   *transport.Identity
}

func newDevice(t *testing.T, name string) *device {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := transport.NewIdentity(key)
	if err != nil {
		t.Fatal(err)
	}
	return &device{name, id}
}

func (d *device) dial(ctx context.Context, r *running, proto string) (*transport.Conn, error) {
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", r.address)
	if err != nil {
		return nil, err
	}
	return transport.Client(ctx, raw, d.id, proto, func(p transport.Pin) error {
		if p != r.pin {
			return transport.ErrWrongPeer
		}
		return nil
	})
}

func (d *device) link(t *testing.T, r *running) (*transport.Link, error) {
	t.Helper()
	c, err := d.dial(t.Context(), r, transport.ProtoLink)
	if err != nil {
		return nil, err
	}
	l, err := transport.Open(t.Context(), c, envelope.Hello{Name: d.name, Software: "test", Capabilities: []string{}})
	if err == nil {
		t.Cleanup(l.Close)
	}
	return l, err
}

// offer is the device's part of a pairing until the signer's window is known.
func (d *device) offer(ctx context.Context, r *running) (*transport.Conn, error) {
	c, err := d.dial(ctx, r, transport.ProtoPair)
	if err != nil {
		return nil, err
	}
	_, err = pairing.Offer(ctx, c)
	return c, err
}

func (d *device) pair(ctx context.Context, r *running, secret []byte, code func(context.Context, string) (string, error)) (pairing.Peer, error) {
	c, err := d.offer(ctx, r)
	if err != nil {
		return pairing.Peer{}, err
	}
	defer c.Close()
	return pairing.Device(ctx, c, d.id.Pin(), pairing.DeviceOptions{Name: d.name, Secret: secret, Code: code})
}

// window is a pair command that runs.
type pairCommand struct {
	cancel func()
	done   chan error
	device Device
	asking Asking
	codes  chan string // for the digits as the owner reads them
	owner  chan error  // what the owner answers
}

// openWindow runs the pair command's part and returns when the window is open.
func openWindow(t *testing.T, r *running, url string) *pairCommand {
	t.Helper()
	return openFor(t, r, url, 0)
}

func openFor(t *testing.T, r *running, url string, timeout time.Duration) *pairCommand {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	p := &pairCommand{cancel: cancel, done: make(chan error, 1), codes: make(chan string, 1), owner: make(chan error, 1)}
	opened := make(chan struct{})
	home, err := Open(r.home.dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	o := PairOptions{URL: url, Timeout: timeout, Opened: func() { close(opened) }}
	o.Confirm = func(ctx context.Context, a Asking) error {
		p.asking = a
		p.codes <- a.Device + "/" + a.Code
		select {
		case err := <-p.owner:
			return err
		case <-ctx.Done():
			p.codes <- "withdrawn"
			return context.Cause(ctx)
		}
	}
	go func() {
		var err error
		p.device, err = home.Pair(ctx, o)
		p.done <- err
	}()
	select {
	case <-opened:
	case err := <-p.done:
		t.Fatalf("pair: %v", err)
	}
	t.Cleanup(cancel)
	return p
}

// pairByURL pairs d with a one-time URL.
func pairByURL(t *testing.T, r *running, d *device) {
	t.Helper()
	u := pairing.NewURL(d.name, d.id.Pin())
	w := openWindow(t, r, u.String())
	peer, err := d.pair(t.Context(), r, u.Secret[:], nil)
	if err != nil || peer.Pin != r.pin || peer.Name != "Pocket" {
		t.Fatalf("pairing: %v, %+v", err, peer)
	}
	if err := <-w.done; err != nil || w.device.Pin != d.id.Pin().String() {
		t.Fatalf("pair: %v, %+v", err, w.device)
	}
}

func TestServe(t *testing.T) {
	t.Parallel()
	a := newAnswers()
	r := serve(t, testHome(t), a)
	d := newDevice(t, "laptop")
	if _, err := d.link(t, r); !errors.Is(err, transport.ErrRefused) {
		t.Errorf("unpaired: %v", err)
	}
	pairByURL(t, r, d)
	l, err := d.link(t, r)
	if err != nil {
		t.Fatal(err)
	}
	if h := l.Peer(); h.Name != "Pocket" || h.Software == "" {
		t.Errorf("hello %+v", h)
	}
	r.expect(EventConnected)
	p, err := l.Call(t.Context(), "1", &envelope.KeyListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	k := p.(*envelope.KeyListResponse).Keys[0]
	key, err := ssh.ParsePublicKey(k.PublicKeyBlob)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(ctx context.Context, id string, sid byte) (envelope.Payload, error) {
		return l.Call(ctx, id, &envelope.SignRequest{PublicKeyBlob: k.PublicKeyBlob, CreatedAt: envelope.At(time.Now()),
			Data: login(sessionID(sid), "root", key, nil)})
	}

	// One prompt waits; a hundred listings pass it.
	type answer struct {
		p   envelope.Payload
		err error
	}
	first := make(chan answer, 1)
	go func() { p, err := ask(t.Context(), "s1", 1); first <- answer{p, err} }()
	q := <-a.asked
	for i := range 100 {
		if _, err := l.Call(t.Context(), fmt.Sprint("l", i), &envelope.KeyListRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	q.reply <- nil
	got := <-first
	if got.err != nil {
		t.Fatal(got.err)
	}
	var sig ssh.Signature
	if err := ssh.Unmarshal(got.p.(*envelope.SignResponse).Signature, &sig); err != nil || key.Verify(login(sessionID(1), "root", key, nil), &sig) != nil {
		t.Errorf("signature: %v", err)
	}
	if e := r.expect(EventRequest); e.Outcome != "signed" || e.Device != "laptop" || e.Key != FirstKey {
		t.Errorf("%+v", e)
	}

	// The device withdraws: the prompt goes.
	ctx, cancel := context.WithCancel(t.Context())
	go func() { ask(ctx, "s2", 2) }()
	q = <-a.asked
	cancel()
	<-q.ctx.Done()
	r.expect(EventRequest)

	// The link is lost: the prompt goes.
	go func() { ask(t.Context(), "s3", 3) }()
	q = <-a.asked
	l.Close()
	<-q.ctx.Done()
	if e := r.expect(EventRequest); e.Outcome != string(envelope.CodeDenied) {
		t.Errorf("%+v", e)
	}
	r.expect(EventDisconnected)

	// The id is remembered across links.
	if l, err = d.link(t, r); err != nil {
		t.Fatal(err)
	}
	if _, err := ask(t.Context(), "s1", 1); codeOf(err) != envelope.CodeBadRequest {
		t.Errorf("used id: %v", err)
	}
	s, err := r.home.Read()
	if err != nil || len(s.Devices) != 1 || s.Devices[0].LastSeen.IsZero() {
		t.Errorf("%v: %+v", err, s.Devices)
	}
}

// forget cuts the link at once, and what waits on it.
func TestForgetCutsLink(t *testing.T) {
	t.Parallel()
	a := newAnswers()
	r := serve(t, testHome(t), a)
	d, other := newDevice(t, "laptop"), newDevice(t, "laptop")
	pairByURL(t, r, d)
	pairByURL(t, r, other)
	l, err := d.link(t, r)
	if err != nil {
		t.Fatal(err)
	}
	l2, err := other.link(t, r)
	if err != nil {
		t.Fatal(err)
	}
	key, err := r.home.Keys()
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := l.Call(t.Context(), "1", &envelope.SignRequest{PublicKeyBlob: key[0].Public.Marshal(),
			CreatedAt: envelope.At(time.Now()), Data: sshsig("git")})
		failed <- err
	}()
	q := <-a.asked
	if _, err := r.home.Forget("laptop"); err != nil {
		t.Fatal(err)
	}
	if err := r.home.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-q.ctx.Done()
	<-l.Done()
	if <-failed == nil {
		t.Error("request of a forgotten device succeeded")
	}
	if _, err := d.link(t, r); !errors.Is(err, transport.ErrRefused) {
		t.Errorf("forgotten: %v", err)
	}
	if _, err := l2.Call(t.Context(), "1", &envelope.KeyListRequest{}); err != nil {
		t.Errorf("the other device: %v", err)
	}
	s, _ := r.home.Read()
	if len(s.Devices) != 1 || s.Devices[0].Name != "laptop-2" {
		t.Errorf("%+v", s.Devices)
	}
}

// Commands' changes are in force when they return.
func TestReload(t *testing.T) {
	t.Parallel()
	r := serve(t, testHome(t), yes{})
	d := newDevice(t, "laptop")
	pairByURL(t, r, d)
	l, err := d.link(t, r)
	if err != nil {
		t.Fatal(err)
	}
	labels := func() string {
		p, err := l.Call(t.Context(), transport.NewID(), &envelope.KeyListRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var s []string
		for _, k := range p.(*envelope.KeyListResponse).Keys {
			s = append(s, k.Comment)
		}
		return strings.Join(s, " ")
	}
	for _, c := range []struct {
		change func() error
		want   string
	}{
		{func() error { _, err := r.home.AddKey("work", keyfile.Ed25519, nil); return err }, "default work"},
		{func() error { return r.home.EnableKey("default", false) }, "work"},
		{func() error { return r.home.EnableKey("default", true) }, "default work"},
		{func() error { return r.home.RemoveKey("work") }, "default"},
	} {
		if err := c.change(); err != nil {
			t.Fatal(err)
		}
		if err := r.home.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := labels(); got != c.want {
			t.Errorf("keys %q, want %q", got, c.want)
		}
	}
	r.stop()
	if err := r.home.Reload(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("stopped: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(r.home.dir, "*.sock")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// T09: a pairing shows the device's name, can be declined, and leaves no state
// then; one try a window.
func TestThreat_T09_Pairing(t *testing.T) {
	t.Parallel()
	r := serve(t, testHome(t), yes{})
	devices := func() int {
		s, err := r.home.Read()
		if err != nil {
			t.Fatal(err)
		}
		return len(s.Devices)
	}
	d := newDevice(t, "laptop\x1b[2J")
	closed := func() {
		t.Helper()
		if _, err := d.offer(t.Context(), r); !errors.Is(err, pairing.ErrNoWindow) {
			t.Errorf("window is not closed: %v", err)
		}
	}
	closed()

	// Accepted.
	w := openWindow(t, r, "")
	typed := func(_ context.Context, phone string) (string, error) {
		name, code, _ := strings.Cut(<-w.codes, "/")
		if strings.ContainsRune(name, 0x1b) || !strings.HasPrefix(name, "laptop") || phone != "Pocket" {
			t.Errorf("names %q and %q", name, phone)
		}
		w.owner <- nil
		return code, nil
	}
	if _, err := d.pair(t.Context(), r, nil, typed); err != nil {
		t.Fatal(err)
	}
	if err := <-w.done; err != nil || devices() != 1 {
		t.Errorf("%v, %d devices", err, devices())
	}
	closed()

	// Again: the same row.
	w = openWindow(t, r, "")
	if _, err := d.pair(t.Context(), r, nil, typed); err != nil {
		t.Fatal(err)
	}
	if err := <-w.done; err != nil || devices() != 1 {
		t.Errorf("%v, %d devices", err, devices())
	}

	// Declined.
	other := newDevice(t, "stranger")
	w = openWindow(t, r, "")
	_, err := other.pair(t.Context(), r, nil, func(context.Context, string) (string, error) {
		_, code, _ := strings.Cut(<-w.codes, "/")
		w.owner <- ErrDenied
		return code, nil
	})
	if !errors.Is(err, pairing.ErrDeclined) {
		t.Errorf("device: %v", err)
	}
	if err := <-w.done; !errors.Is(err, pairing.ErrDeclined) || devices() != 1 {
		t.Errorf("owner: %v, %d devices", err, devices())
	}
	closed()

	// Wrong digits: the window is closed at once.
	w = openWindow(t, r, "")
	_, err = other.pair(t.Context(), r, nil, func(context.Context, string) (string, error) {
		_, code, _ := strings.Cut(<-w.codes, "/")
		wrong := "000000"
		if code == wrong {
			wrong = "000001"
		}
		return wrong, nil
	})
	if !errors.Is(err, pairing.ErrWrongCode) {
		t.Errorf("device: %v", err)
	}
	if err := <-w.done; err == nil || devices() != 1 {
		t.Errorf("owner: %v, %d devices", err, devices())
	}
	if got := <-w.codes; got != "withdrawn" {
		t.Errorf("the question stays: %s", got)
	}
	closed()

	// The owner leaves (Ctrl-C) while the device waits.
	w = openWindow(t, r, "")
	_, err = other.pair(t.Context(), r, nil, func(ctx context.Context, _ string) (string, error) {
		<-w.codes
		w.cancel()
		<-ctx.Done()
		return "", context.Cause(ctx)
	})
	if err == nil {
		t.Error("paired with nobody there")
	}
	if err := <-w.done; !errors.Is(err, context.Canceled) || devices() != 1 {
		t.Errorf("owner: %v, %d devices", err, devices())
	}
	// The signer notices on its own time.
	if e := r.expect(EventPairing); e.Outcome == "" {
		t.Error(e)
	}
}

// A device that only looks who has a window open does not use it up, and the
// second of two that ask is refused.
func TestWindowIsForOne(t *testing.T) {
	t.Parallel()
	r := serve(t, testHome(t), yes{})
	w := openWindow(t, r, "")
	if err := r.second(t, ""); !errors.Is(err, ErrWindowOpen) {
		t.Errorf("second window: %v", err)
	}
	looker, d, tooLate := newDevice(t, "looker"), newDevice(t, "laptop"), newDevice(t, "late")
	c, err := looker.offer(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	c, err = tooLate.offer(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.pair(t.Context(), r, nil, func(context.Context, string) (string, error) {
		_, code, _ := strings.Cut(<-w.codes, "/")
		_, err := pairing.Device(t.Context(), c, tooLate.id.Pin(), pairing.DeviceOptions{Name: "late"})
		if !errors.Is(err, pairing.ErrNoWindow) {
			t.Errorf("second device: %v", err)
		}
		w.owner <- nil
		return code, nil
	})
	if err != nil {
		t.Error(err)
	}
	if err := <-w.done; err != nil {
		t.Error(err)
	}
}

func (r *running) second(t *testing.T, url string) error {
	_, err := r.home.Pair(t.Context(), PairOptions{URL: url, Confirm: func(context.Context, Asking) error { return ErrDenied }})
	return err
}

// A window for a URL is for its device only.
func TestWindowForURL(t *testing.T) {
	t.Parallel()
	r := serve(t, testHome(t), yes{})
	d, other := newDevice(t, "laptop"), newDevice(t, "other")
	u := pairing.NewURL("laptop", d.id.Pin())
	w := openWindow(t, r, u.String())
	if _, err := other.offer(t.Context(), r); !errors.Is(err, pairing.ErrNoWindow) {
		t.Errorf("another device: %v", err)
	}
	// The right device with another secret: no pairing, and the URL is dead.
	if _, err := d.pair(t.Context(), r, make([]byte, pairing.SecretSize), nil); err == nil {
		t.Error("paired with a wrong secret")
	}
	if err := <-w.done; !errors.Is(err, pairing.ErrProof) {
		t.Errorf("pair: %v", err)
	}
	if _, err := d.offer(t.Context(), r); !errors.Is(err, pairing.ErrNoWindow) {
		t.Errorf("used URL: %v", err)
	}
	if err := r.second(t, "vmux-pair://1/x"); !errors.Is(err, pairing.ErrBadURL) {
		t.Errorf("bad URL: %v", err)
	}
	s, _ := r.home.Read()
	if len(s.Devices) != 0 {
		t.Errorf("%+v", s.Devices)
	}
}

func TestWindowTime(t *testing.T) {
	t.Parallel()
	r := serve(t, testHome(t), yes{})
	for _, d := range []time.Duration{-1, 1, MaxWindow + 1} {
		if _, err := r.home.Pair(t.Context(), PairOptions{Timeout: d}); !errors.Is(err, ErrWindowTime) {
			t.Errorf("%v: %v", d, err)
		}
	}
	if _, err := r.home.Pair(t.Context(), PairOptions{Timeout: time.Second}); !errors.Is(err, ErrWindowExpired) {
		t.Errorf("nobody came: %v", err)
	}
}

// A stopped signer ends a window and its command.
func TestStopEndsWindow(t *testing.T) {
	t.Parallel()
	r := serve(t, testHome(t), yes{})
	w := openWindow(t, r, "")
	r.stop()
	if err := <-w.done; err == nil {
		t.Error("window outlives its signer")
	}
}

// A signer that is stopped says so of what waits, in its log and in the audit log.
func TestStopWhileARequestWaits(t *testing.T) {
	t.Parallel()
	h := testHome(t)
	a := newAnswers()
	r := serve(t, h, a)
	d := newDevice(t, "laptop")
	pairByURL(t, r, d)
	l, err := d.link(t, r)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := l.Call(t.Context(), transport.NewID(), &envelope.KeyListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	key := keys.(*envelope.KeyListResponse).Keys[0]
	public, err := ssh.ParsePublicKey(key.PublicKeyBlob)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := l.Call(t.Context(), transport.NewID(), &envelope.SignRequest{PublicKeyBlob: key.PublicKeyBlob,
			Data: login(sessionID(1), "root", public, nil), CreatedAt: envelope.At(time.Now())})
		ended <- err
	}()
	q := <-a.asked
	r.stop()
	const why = "the signer was stopped"
	if cause := context.Cause(q.ctx); cause == nil || cause.Error() != why {
		t.Errorf("the prompt went for %v", cause)
	}
	if <-ended == nil {
		t.Error("signed")
	}
	if e := r.expect(EventRequest); e.Reason != why || e.Outcome != string(envelope.CodeInternal) {
		t.Errorf("%+v", e)
	}
	if log := recorded(t, h); !strings.Contains(log, "\ndecision internal laptop login root default "+why+"\nstopped\n") {
		t.Errorf("recorded:\n%s", log)
	}
}

// Strangers who do nothing do not keep a device out.
func TestFlood(t *testing.T) {
	t.Parallel()
	r := serve(t, testHome(t), yes{})
	d := newDevice(t, "laptop")
	pairByURL(t, r, d)
	var idle []net.Conn
	for range 4 * maxHandshakes {
		c, err := net.Dial("tcp", r.address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		idle = append(idle, c)
	}
	// The oldest ones are closed to make room.
	idle[0].SetReadDeadline(time.Now().Add(handshakeTime / 2))
	if _, err := idle[0].Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !strings.Contains(fmt.Sprint(err), "reset") {
		t.Errorf("oldest stranger: %v", err)
	}
	l, err := d.link(t, r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Call(t.Context(), "1", &envelope.KeyListRequest{}); err != nil {
		t.Error(err)
	}
}

// A device's ninth link ends its oldest.
func TestLinksBounded(t *testing.T) {
	t.Parallel()
	r := serve(t, testHome(t), yes{})
	d := newDevice(t, "laptop")
	pairByURL(t, r, d)
	var links []*transport.Link
	for range maxLinks + 1 {
		l, err := d.link(t, r)
		if err != nil {
			t.Fatal(err)
		}
		r.expect(EventConnected)
		links = append(links, l)
	}
	<-links[0].Done()
	if _, err := links[1].Call(t.Context(), "1", &envelope.KeyListRequest{}); err != nil {
		t.Error(err)
	}
}

func TestSlots(t *testing.T) {
	t.Parallel()
	s := slots{all: 4, perSource: 2}
	var ended []string
	release := map[string]func() bool{}
	take := func(name, source string) {
		release[name] = s.take(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(source+":1")), func() { ended = append(ended, name) })
	}
	check := func(want string) {
		t.Helper()
		if got := strings.Join(ended, " "); got != want {
			t.Errorf("ended %q, want %q", got, want)
		}
	}
	take("a1", "10.0.0.1")
	take("a2", "10.0.0.1")
	check("")
	take("a3", "10.0.0.1") // its own oldest goes
	check("a1")
	take("b1", "10.0.0.2")
	take("c1", "10.0.0.3")
	check("a1")
	take("d1", "10.0.0.4") // the oldest of the most greedy goes
	check("a1 a2")
	if release["a2"]() { // after its end: no effect
		t.Error("a2 had its slot")
	}
	if !release["b1"]() {
		t.Error("b1 had no slot")
	}
	if release["b1"]() {
		t.Error("b1 released twice")
	}
	take("e1", "10.0.0.5")
	check("a1 a2")
	take("f1", "10.0.0.6") // all have one: the oldest goes
	check("a1 a2 a3")
	if len(s.taken) != 4 {
		t.Errorf("%d taken", len(s.taken))
	}
}

// The control socket of a home with a long path is elsewhere.
func TestLongHome(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h, err := Init(filepath.Join(dir, strings.Repeat("long", 30)), "Pocket", nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // a restart finds the same place
		r := serve(t, h, yes{})
		path, err := h.controlPath()
		if err != nil || len(path) > 100 {
			t.Errorf("%q, %v", path, err)
		}
		t.Cleanup(func() { os.RemoveAll(filepath.Dir(path)) })
		if fi, err := os.Stat(filepath.Dir(path)); err != nil || fi.Mode().Perm() != 0o700 {
			t.Errorf("%v, %v", fi, err)
		}
		if err := h.Reload(t.Context()); err != nil {
			t.Error(err)
		}
		r.stop()
	}
}

// What is not a command gets an error and harms nobody.
func TestControlRefuses(t *testing.T) {
	t.Parallel()
	r := serve(t, testHome(t), yes{})
	for _, line := range []string{"x\n", "{}\n", `{"command":"erase"}` + "\n", `{"command":"reload","x":1}` + "\n",
		`{"command":"pair","timeout":-1}` + "\n", `{"command":"pair","timeout":99999999999}` + "\n",
		`{"command":"pair","url":"http://x"}` + "\n", strings.Repeat("x", 2*maxControlLine)} {
		c, err := net.Dial("unix", r.home.path(controlName))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte(line)); err != nil {
			t.Error(err)
		}
		b, _ := io.ReadAll(c)
		if !strings.Contains(string(b), `"event":"error"`) {
			t.Errorf("%.40q: %q", line, b)
		}
		c.Close()
	}
	if err := r.home.Reload(t.Context()); err != nil {
		t.Error(err)
	}
}

// A signer that is stopped, as by Ctrl-Z, keeps nobody waiting for ever, and what
// asks for its state says so.
func TestControlSilent(t *testing.T) {
	t.Parallel()
	r := &running{home: testHome(t)}
	l, err := r.home.listenControl()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h, err := Open(r.home.dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	h.patience = 20 * time.Millisecond
	for name, ask := range map[string]func(context.Context) error{
		"status": func(ctx context.Context) error { _, err := h.Status(ctx); return err },
		"lock":   h.Lock, "reload": h.Reload,
	} {
		if err := ask(t.Context()); !errors.Is(err, ErrSilent) || errors.Is(err, ErrNotRunning) {
			t.Errorf("%s: %v", name, err)
		}
		gone := errors.New("gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(gone)
		if err := ask(ctx); !errors.Is(err, gone) {
			t.Errorf("%s, left: %v", name, err)
		}
	}
}

func TestListenErrors(t *testing.T) {
	t.Parallel()
	r := serve(t, testHome(t), yes{})
	h := testHome(t)
	var le *ListenError
	for _, a := range []string{r.address, "192.0.2.1:1", "x"} {
		if err := Serve(t.Context(), h, Options{Approver: yes{}, Listen: a}); !errors.As(err, &le) || le.Address != a {
			t.Errorf("%s: %v", a, err)
		}
	}
}

// What an earlier process recorded of its socket does not mislead.
func TestStaleControlPath(t *testing.T) {
	t.Parallel()
	h := testHome(t)
	if err := os.WriteFile(h.path(controlPathName), []byte("/nonexistent/s\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := h.Reload(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("before: %v", err)
	}
	serve(t, h, yes{})
	if err := h.Reload(t.Context()); err != nil {
		t.Errorf("running: %v", err)
	}
}
