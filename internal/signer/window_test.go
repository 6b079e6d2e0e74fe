// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/pairing"
	"vmux.app/toolkit/internal/transport"
)

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Strangers, and a vmux-pair that waits, write nothing to the log at its usual
// level.
func TestRefusedPairingIsNoNews(t *testing.T) {
	t.Parallel()
	for _, level := range []slog.Level{slog.LevelInfo, slog.LevelDebug} {
		log := new(lockedBuffer)
		r := serveWith(t, testHome(t), Options{Approver: yes{}, Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: level}))})
		if _, err := newDevice(t, "stranger").offer(t.Context(), r); !errors.Is(err, pairing.ErrNoWindow) {
			t.Errorf("stranger: %v", err)
		}
		r.stop()
		if said := strings.Contains(log.String(), "no window is open for it"); said != (level == slog.LevelDebug) {
			t.Errorf("at %v: %s", level, log)
		}
	}
}

// A device that comes by the other method leaves the window as it is.
func TestOtherMethodLeavesWindow(t *testing.T) {
	t.Parallel()
	r := serve(t, testHome(t), yes{})
	d, other := newDevice(t, "laptop"), newDevice(t, "other")
	w := openWindow(t, r, "")
	if _, err := other.pair(t.Context(), r, make([]byte, pairing.SecretSize), nil); !errors.Is(err, pairing.ErrMethod) {
		t.Errorf("by URL: %v", err)
	}
	_, err := d.pair(t.Context(), r, nil, func(context.Context, string) (string, error) {
		_, code, _ := strings.Cut(<-w.codes, "/")
		w.owner <- nil
		return code, nil
	})
	if err != nil {
		t.Errorf("by digits: %v", err)
	}
	if err := <-w.done; err != nil {
		t.Error(err)
	}

	u := pairing.NewURL("laptop", d.id.Pin())
	w = openWindow(t, r, u.String())
	if _, err := d.pair(t.Context(), r, nil, nil); !errors.Is(err, pairing.ErrMethod) {
		t.Errorf("by digits: %v", err)
	}
	if _, err := d.pair(t.Context(), r, u.Secret[:], nil); err != nil {
		t.Errorf("by URL: %v", err)
	}
	if err := <-w.done; err != nil {
		t.Error(err)
	}

	// Nobody else came: the owner hears of it at the end.
	w = openFor(t, r, "", time.Second)
	if _, err := other.pair(t.Context(), r, make([]byte, pairing.SecretSize), nil); !errors.Is(err, pairing.ErrMethod) {
		t.Errorf("by URL: %v", err)
	}
	if err := <-w.done; !errors.Is(err, ErrWindowExpired) || !strings.Contains(err.Error(), pairing.ErrMethod.Error()) {
		t.Errorf("owner: %v", err)
	}
}

// begins sends a request and takes the phone's nonce, and no more.
func (d *device) begins(t *testing.T, r *running, byURL bool) error {
	t.Helper()
	c, err := d.offer(t.Context(), r)
	if err != nil {
		return err
	}
	t.Cleanup(func() { c.Close() })
	return d.beginsOn(c, byURL)
}

func (d *device) beginsOn(c *transport.Conn, byURL bool) error {
	q := &envelope.PairRequest{Name: d.name, Commitment: make([]byte, envelope.NonceSize), URL: byURL}
	if err := c.Send(envelope.Envelope{ID: "pair", Payload: q}); err != nil {
		return err
	}
	e, err := c.Receive()
	if err != nil {
		return err
	}
	if _, ok := e.Payload.(*envelope.PairResponse); !ok {
		return errors.New(string(e.Payload.Type()))
	}
	return nil
}

// A device that stalls ends a window for digits in seconds, since it could have
// known its digits, and the owner hears why.
func TestStalledDigits(t *testing.T) {
	t.Parallel()
	r := serve(t, testHome(t), yes{})
	w := openWindow(t, r, "")
	start := time.Now()
	if err := newDevice(t, "stranger").begins(t, r, false); err != nil {
		t.Fatal(err)
	}
	if err := newDevice(t, "second").begins(t, r, false); !errors.Is(err, pairing.ErrNoWindow) {
		t.Errorf("a second try in one window: %v", err)
	}
	if err := <-w.done; !errors.Is(err, pairing.ErrStalled) || time.Since(start) > 20*time.Second {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
}

// With a URL a beginning costs nothing, but for too many of them.
func TestBeginningsByURL(t *testing.T) {
	t.Parallel()
	r := serve(t, testHome(t), yes{})
	d := newDevice(t, "laptop")
	u := pairing.NewURL("laptop", d.id.Pin())
	w := openWindow(t, r, u.String())
	for i := range 3 {
		if err := d.begins(t, r, true); err != nil {
			t.Fatalf("beginning %d: %v", i, err)
		}
	}
	if _, err := d.pair(t.Context(), r, u.Secret[:], nil); err != nil {
		t.Errorf("after beginnings: %v", err)
	}
	if err := <-w.done; err != nil {
		t.Error(err)
	}

	u = pairing.NewURL("laptop", d.id.Pin())
	w = openWindow(t, r, u.String())
	n := 0
	for ; n < 2*maxURLTries; n++ {
		if err := d.begins(t, r, true); err != nil {
			break
		}
	}
	if n != maxURLTries {
		t.Errorf("%d beginnings", n)
	}
	if err := <-w.done; !errors.Is(err, ErrPairing) {
		t.Errorf("owner: %v", err)
	}
}

// A URL that was used is refused at once, one that nobody waits for is said to
// be old.
func TestOldURL(t *testing.T) {
	t.Parallel()
	r := serve(t, testHome(t), yes{})
	d := newDevice(t, "laptop")
	u := pairing.NewURL("laptop", d.id.Pin())
	for range 2 { // a window that nobody came to does not use the URL up
		w := openFor(t, r, u.String(), time.Second)
		if err := <-w.done; !errors.Is(err, ErrURLExpired) || !errors.Is(err, ErrWindowExpired) {
			t.Errorf("nobody came: %v", err)
		}
	}
	w := openWindow(t, r, u.String())
	if _, err := d.pair(t.Context(), r, u.Secret[:], nil); err != nil {
		t.Fatal(err)
	}
	if err := <-w.done; err != nil {
		t.Fatal(err)
	}
	if err := r.second(t, u.String()); !errors.Is(err, ErrURLUsed) {
		t.Errorf("used: %v", err)
	}
	// A wrong proof uses it up as well.
	u = pairing.NewURL("laptop", d.id.Pin())
	w = openWindow(t, r, u.String())
	if _, err := d.pair(t.Context(), r, make([]byte, pairing.SecretSize), nil); err == nil {
		t.Error("paired with a wrong secret")
	}
	if err := <-w.done; !errors.Is(err, pairing.ErrProof) {
		t.Error(err)
	}
	if err := r.second(t, u.String()); !errors.Is(err, ErrURLUsed) {
		t.Errorf("judged: %v", err)
	}
}

// T09: the owner is told when a device comes in another one's name.
func TestThreat_T09_NameIsTaken(t *testing.T) {
	t.Parallel()
	r := serve(t, testHome(t), yes{})
	d, double := newDevice(t, "vm"), newDevice(t, "vm")
	alike := newDevice(t, "vm\ufe0f\u3164") // what is behind it does not show
	for _, c := range []struct {
		d    *device
		want string
	}{{d, ""}, {d, ""}, {double, "vm-2"}, {alike, "vm-3"}} {
		w := openWindow(t, r, "")
		_, err := c.d.pair(t.Context(), r, nil, func(context.Context, string) (string, error) {
			_, code, _ := strings.Cut(<-w.codes, "/")
			w.owner <- nil
			return code, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := <-w.done; err != nil {
			t.Fatal(err)
		}
		if w.asking.Device != "vm" || w.asking.StoredAs != c.want || c.want != "" && w.device.Name != c.want {
			t.Errorf("asked %+v, stored as %q, want %q", w.asking, w.device.Name, c.want)
		}
	}
}

// T09: a window that was open while the computer slept is closed when its time is
// over, although no timer has run.
func TestThreat_T09_WindowAfterSleep(t *testing.T) {
	t.Parallel()
	var clock later
	r := serveWith(t, testHome(t), Options{Approver: yes{}, Now: clock.now})
	d := newDevice(t, "laptop")
	u := pairing.NewURL(d.name, d.id.Pin())
	for _, c := range []struct {
		url    string
		secret []byte
		want   error
	}{{"", nil, ErrWindowExpired}, {u.String(), u.Secret[:], ErrURLExpired}} {
		w := openWindow(t, r, c.url)
		clock.move(DefaultWindow + time.Second)
		_, err := d.pair(t.Context(), r, c.secret, func(context.Context, string) (string, error) {
			t.Error("asked for the digits")
			w.cancel()
			return "", ErrDenied
		})
		if !errors.Is(err, pairing.ErrNoWindow) {
			t.Errorf("device: %v", err)
		}
		if err := <-w.done; !errors.Is(err, c.want) {
			t.Errorf("owner: %v, want %v", err, c.want)
		}
	}
	if s, err := r.home.Read(); err != nil || len(s.Devices) != 0 {
		t.Errorf("%v: %+v", err, s.Devices)
	}
}

// Who leaves has not declined.
func TestPairStopped(t *testing.T) {
	t.Parallel()
	r := serve(t, testHome(t), yes{})
	d := newDevice(t, "laptop")
	w := openWindow(t, r, "")
	ctx, cancel := context.WithCancel(t.Context())
	_, err := d.pair(ctx, r, nil, func(ctx context.Context, _ string) (string, error) {
		<-w.codes
		cancel()
		<-ctx.Done()
		return "", ctx.Err()
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("device: %v", err)
	}
	if err := <-w.done; !errors.Is(err, pairing.ErrStopped) {
		t.Errorf("owner: %v", err)
	}
	w = openWindow(t, r, "")
	_, err = d.pair(t.Context(), r, nil, func(ctx context.Context, _ string) (string, error) {
		<-w.codes
		w.cancel()
		<-ctx.Done()
		return "", ctx.Err()
	})
	if !errors.Is(err, pairing.ErrStopped) {
		t.Errorf("device: %v", err)
	}
}

// slowListener accepts connections of which the first is slow to be closed.
type slowListener struct {
	net.Listener
	first  sync.Once
	pushed chan struct{} // closed when somebody pushes the first one out
}

func (l *slowListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.first.Do(func() { c = &slowConn{Conn: c, pushed: l.pushed} })
	return c, nil
}

// slowConn stays open at its first Close: the moment in which it has lost its
// slot and nobody notices yet lasts as long as a test likes.
type slowConn struct {
	net.Conn
	mu     sync.Mutex
	again  bool
	pushed chan struct{}
}

func (c *slowConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.again {
		return c.Conn.Close()
	}
	c.again = true
	close(c.pushed)
	return nil
}

// serveSlow is serve with a slow first connection.
func serveSlow(t *testing.T) (*running, <-chan struct{}) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	slow := &slowListener{Listener: l, pushed: make(chan struct{})}
	r := serveWith(t, testHome(t), Options{Approver: yes{}, Nearby: func() (net.Listener, error) { return slow, nil }})
	r.address = l.Addr().String()
	return r, slow.pushed
}

// crowd opens connections that wait, as many as one source may have.
func (d *device) crowd(t *testing.T, r *running) {
	t.Helper()
	for range maxPairingsPerSource {
		c, err := d.offer(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
}

// A connection that was pushed out does not take the window with it.
func TestPushedOutLeavesWindow(t *testing.T) {
	t.Parallel()
	t.Run("digits", func(t *testing.T) {
		t.Parallel()
		r, pushed := serveSlow(t)
		w := openWindow(t, r, "")
		c, err := newDevice(t, "early").offer(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		newDevice(t, "crowd").crowd(t, r)
		<-pushed
		_, err = pairing.Device(t.Context(), c, transport.Pin{}, pairing.DeviceOptions{Name: "early",
			Code: func(context.Context, string) (string, error) { return "", errors.New("asked for digits") }})
		if err == nil || !strings.Contains(err.Error(), errPushedOut.Error()) {
			t.Errorf("pushed out: %v", err)
		}
		_, err = newDevice(t, "laptop").pair(t.Context(), r, nil, func(context.Context, string) (string, error) {
			_, code, _ := strings.Cut(<-w.codes, "/")
			w.owner <- nil
			return code, nil
		})
		if err != nil {
			t.Errorf("the owner's device: %v", err)
		}
		if err := <-w.done; err != nil || w.device.Name != "laptop" {
			t.Errorf("owner: %v, %+v", err, w.device)
		}
	})
	t.Run("URL", func(t *testing.T) {
		t.Parallel()
		r, pushed := serveSlow(t)
		d := newDevice(t, "laptop")
		u := pairing.NewURL("laptop", d.id.Pin())
		w := openWindow(t, r, u.String())
		c, err := d.offer(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		d.crowd(t, r)
		<-pushed
		_, err = pairing.Device(t.Context(), c, d.id.Pin(), pairing.DeviceOptions{Name: d.name, Secret: u.Secret[:]})
		if err == nil || !strings.Contains(err.Error(), errPushedOut.Error()) {
			t.Errorf("pushed out: %v", err)
		}
		if _, err := d.pair(t.Context(), r, u.Secret[:], nil); err != nil {
			t.Errorf("once more: %v", err)
		}
		if err := <-w.done; err != nil {
			t.Errorf("owner: %v", err)
		}
	})
}

// With a URL a connection that has begun is not pushed out before its proof.
func TestBegunByURLStays(t *testing.T) {
	t.Parallel()
	r, pushed := serveSlow(t)
	d := newDevice(t, "laptop")
	u := pairing.NewURL("laptop", d.id.Pin())
	w := openWindow(t, r, u.String())
	c, err := d.offer(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.beginsOn(c, true); err != nil {
		t.Fatal(err)
	}
	d.crowd(t, r)
	d.crowd(t, r)
	select {
	case <-pushed:
		t.Error("pushed out")
	default:
	}
	if err := c.Send(envelope.Envelope{ID: "pair", Payload: &envelope.PairConfirm{Nonce: make([]byte, envelope.NonceSize)}}); err != nil {
		t.Error(err)
	}
	if e, err := c.Receive(); err != nil || e.Payload.Type() != envelope.TypeError {
		t.Errorf("after a wrong nonce: %+v, %v", e, err)
	}
	if _, err := d.pair(t.Context(), r, u.Secret[:], nil); err != nil {
		t.Error(err)
	}
	if err := <-w.done; err != nil {
		t.Error(err)
	}
}

// A handshake that was pushed out while it ended goes nowhere.
func TestPushedOutHandshake(t *testing.T) {
	t.Parallel()
	r, pushed := serveSlow(t)
	openWindow(t, r, "")
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", r.address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	raw := dial()
	for range maxHandshakesPerSource {
		dial()
	}
	<-pushed
	c, err := transport.Client(t.Context(), raw, newDevice(t, "early").id, transport.ProtoPair, func(transport.Pin) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if h, err := pairing.Offer(t.Context(), c); err == nil {
		t.Errorf("pushed out, it is offered a pairing: %+v", h)
	}
}

// To be the one, and not to be pushed out any more, is one decision.
func TestTakeSettles(t *testing.T) {
	t.Parallel()
	w := &window{begun: make(chan struct{})}
	s := &server{window: w}
	settle := func(is bool) func() bool {
		return func() bool {
			if s.mu.TryLock() {
				s.mu.Unlock()
				t.Error("the window is not held meanwhile")
			}
			select {
			case <-w.begun:
				t.Error("the window is used up already")
			default:
			}
			return is
		}
	}
	never := func() bool { t.Error("settled without a window"); return true }
	if err := s.try(w, settle(false)); !errors.Is(err, errPushedOut) || s.window != w || w.tries != 0 {
		t.Errorf("try, pushed out: %v, %d tries", err, w.tries)
	}
	if err := s.take(w, settle(false)); !errors.Is(err, errPushedOut) || s.window != w {
		t.Errorf("take, pushed out: %v", err)
	}
	if err := s.try(w, settle(true)); err != nil || w.tries != 1 {
		t.Errorf("try: %v, %d tries", err, w.tries)
	}
	if err := s.take(w, settle(true)); err != nil || s.window != nil {
		t.Errorf("take: %v", err)
	}
	<-w.begun
	if err := s.take(w, never); !errors.Is(err, pairing.ErrNoWindow) {
		t.Errorf("take, no window: %v", err)
	}
	if err := s.try(w, never); !errors.Is(err, pairing.ErrNoWindow) {
		t.Errorf("try, no window: %v", err)
	}
}
