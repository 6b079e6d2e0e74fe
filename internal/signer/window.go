// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"vmux.app/toolkit/internal/audit"
	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/pairing"
	"vmux.app/toolkit/internal/transport"
)

const (
	// DefaultWindow is how long a pairing window is open.
	DefaultWindow = 2 * time.Minute
	// MaxWindow bounds what may be asked for: an open window is an invitation.
	MaxWindow = 10 * time.Minute
	// maxURLTries bounds how often the device of a URL may begin within a window:
	// it begins again after a connection that broke, and a few times are enough.
	maxURLTries = 16
	// maxUsedURLs bounds the URLs that are remembered as used, 32 bytes each: more
	// than an owner pairs in the two minutes for which vmux-pair keeps a URL.
	maxUsedURLs = 256
)

// Errors of a pairing window.
var (
	ErrWindowOpen    = errors.New("a pairing window is open already")
	ErrWindowExpired = errors.New("the pairing window closed before a device was paired")
	ErrURLExpired    = fmt.Errorf("%w: the URL was used, has expired, or vmux-pair no longer waits for it", ErrWindowExpired)
	ErrURLUsed       = errors.New("this pairing URL was used before")
	ErrPairing       = errors.New("pairing failed")
	ErrWindowTime    = fmt.Errorf("a pairing window is open for 1 second to %s", MaxWindow)
)

var errURLTries = fmt.Errorf("the device began %d times and finished none", maxURLTries)

// Asking is what an owner is asked about a device that wants to pair by digits.
type Asking struct {
	Device string // what it calls itself
	Code   string
	// StoredAs is the name it will have when another paired device is called Device,
	// else empty.
	StoredAs string
}

// window is an open pairing window. With digits it ends with the first device
// that asks for a pairing, whatever becomes of that, since each exchange is a
// try at the digits. With a URL it ends with the first proof.
type window struct {
	url     *pairing.URL // for that device only, nil for digits
	confirm func(context.Context, Asking) error
	ctx     context.Context // of who opened it
	end     time.Time       // of ctx by the clock on the wall, zero for none
	begun   chan struct{}   // closed when it is used up
	result  chan outcome    // of who did that; has room for it

	tries  int  // at a URL; guarded by server.mu
	method bool // a device has asked for the other method; guarded by server.mu
}

type outcome struct {
	device Device
	err    error
}

// pair opens a window until ctx ends or a device has tried, and returns the
// device that is paired.
func (s *server) pair(ctx context.Context, url *pairing.URL, opened func(), confirm func(context.Context, Asking) error) (Device, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := &window{url: url, confirm: confirm, ctx: ctx, begun: make(chan struct{}), result: make(chan outcome, 1)}
	if end, ok := ctx.Deadline(); ok {
		w.end = end.Round(0)
	}
	s.mu.Lock()
	if s.window != nil {
		s.mu.Unlock()
		return Device{}, ErrWindowOpen
	}
	if url != nil && slices.Contains(s.usedURLs, sha256.Sum256(url.Secret[:])) {
		s.mu.Unlock()
		return Device{}, ErrURLUsed
	}
	s.window = w
	s.mu.Unlock()
	defer s.closeWindow(w)
	s.log.Info("pairing window open", "url", url != nil)
	opened()

	var o outcome
	select {
	case o = <-w.result:
	case <-ctx.Done():
		s.closeWindow(w)
		select {
		case <-w.begun: // the exchange has the same context and ends now
			o = <-w.result
		default:
			o.err = context.Cause(ctx)
		}
	}
	if errors.Is(o.err, context.DeadlineExceeded) {
		o.err = s.expired(w)
	}
	if o.err != nil {
		if controlKind(o.err) == "" && !errors.Is(o.err, context.Canceled) {
			o.err = fmt.Errorf("%w: %w", ErrPairing, o.err)
		}
		s.log.Warn("not paired", "reason", o.err)
		s.recordDone(audit.Record{Event: recordPairing, Outcome: "failed", Reason: o.err.Error()})
		s.event(Event{Event: EventPairing, Outcome: "failed", Reason: o.err.Error()})
		return Device{}, o.err
	}
	s.log.Info("paired", "device", o.device.Name, "pin", o.device.Pin)
	s.recordDone(audit.Record{Event: recordPairing, Device: o.device.Name, Pin: o.device.Pin, Outcome: "paired"})
	s.event(Event{Event: EventPairing, Device: o.device.Name, Outcome: "paired"})
	return o.device, nil
}

// expired says why nobody came in time, as far as it is known.
func (s *server) expired(w *window) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case w.method:
		return fmt.Errorf("%w: %w", ErrWindowExpired, pairing.ErrMethod)
	case w.url != nil:
		return ErrURLExpired
	}
	return ErrWindowExpired
}

// closeWindow lets no other device in.
func (s *server) closeWindow(w *window) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.window == w {
		s.window = nil
	}
}

// lateLocked says whether the time of the open window is over, and ends it then: its
// timer does not run while the computer sleeps.
func (s *server) lateLocked(w *window) bool {
	if w.end.IsZero() || s.now().Before(w.end) {
		return false
	}
	s.window = nil
	close(w.begun)
	w.result <- outcome{err: context.DeadlineExceeded} // has room: whoever closes begun sends the one outcome
	return true
}

// take gives the window to the first device that uses it up. settle is as for
// servePairing.
func (s *server) take(w *window, settle func() bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.window != w || s.lateLocked(w) {
		return pairing.ErrNoWindow
	}
	if !settle() { // a connection that ends must not take the window with it
		return errPushedOut
	}
	s.window = nil
	close(w.begun)
	if w.url != nil {
		s.usedURLs = append(s.usedURLs, sha256.Sum256(w.url.Secret[:]))
		s.usedURLs = s.usedURLs[max(0, len(s.usedURLs)-maxUsedURLs):]
	}
	return nil
}

// try counts a device's beginnings with a URL. One too many ends the window.
// Until then each is settled, so that strangers do not break its exchange: there
// are few, and each takes two steps of seconds.
func (s *server) try(w *window, settle func() bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.window != w || s.lateLocked(w) {
		return pairing.ErrNoWindow
	}
	if !settle() {
		return errPushedOut
	}
	if w.tries++; w.tries > maxURLTries {
		s.window = nil
		close(w.begun)
		w.result <- outcome{err: errURLTries} // has room: whoever closes begun sends the one outcome
		return pairing.ErrNoWindow
	}
	return nil
}

// servePairing answers a connection for pairing. Without a window for it, it
// gets an error and nothing else.
//
// settle says that c is the one, so that strangers do not push it out any more;
// it is false, each time, when they have done so already. It is called with s.mu
// held: that c is the one and that it stays are one decision.
func (s *server) servePairing(ctx context.Context, c *transport.Conn, settle func() bool) {
	defer c.Close()
	s.mu.Lock()
	w := s.window
	s.mu.Unlock()
	if w == nil || w.url != nil && w.url.Pin != c.Peer() {
		// Anybody can cause this, at any rate, and a device that waits does.
		s.log.Debug("pairing refused, no window is open for it", "address", c.RemoteAddr())
		// The connection ends anyway; that this arrives is a courtesy.
		_ = c.Send(envelope.Envelope{ID: "pair", Payload: envelope.Errorf(envelope.CodeNotPaired, "%v", pairing.ErrNoWindow)})
		return
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(w.ctx, func() { cancel(context.Cause(w.ctx)) })
	defer stop()

	begun := false
	begin := func() error {
		if err := s.take(w, settle); err != nil {
			return err
		}
		begun = true
		return nil
	}
	var device Device
	o := pairing.PhoneOptions{
		Name: s.current().state.Name,
		Confirm: func(ctx context.Context, name, code string) error {
			a := Asking{Device: name, Code: code}
			if as := s.current().state.nameFor(name, c.Peer()); as != name {
				a.StoredAs = as
			}
			return w.confirm(ctx, a)
		},
		Begin: begin,
		Store: func(p pairing.Peer) (err error) {
			// The owner may have left since, with nobody to tell.
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			device, err = s.storeDevice(p)
			return err
		},
	}
	if w.url != nil {
		o.Secret, o.Expect = w.url.Secret[:], w.url.Pin
		o.Begin, o.Spend = func() error { return s.try(w, settle) }, begin
	}
	_, err := pairing.Phone(ctx, c, s.identity.Pin(), s.hello(), o)
	if !begun {
		if errors.Is(err, pairing.ErrMethod) {
			s.mu.Lock()
			w.method = true
			s.mu.Unlock()
		}
		if err != nil {
			s.log.Debug("pairing connection did not use the window", "address", c.RemoteAddr(), "reason", err)
		}
		return
	}
	if device.Pin != "" && err != nil {
		// It is stored here; the last message may or may not have reached the
		// device, which asks again if not.
		s.log.Warn("paired, but the device may not know", "device", device.Name, "reason", err)
		err = nil
	}
	w.result <- outcome{device, err}
}

// storeDevice remembers a pairing.
func (s *server) storeDevice(p pairing.Peer) (Device, error) {
	var d Device
	if err := s.home.record(audit.Record{Event: recordPairing, Device: pairing.CleanName(p.Name), Pin: p.Pin.String(), Outcome: "agreed"}, true); err != nil {
		return d, err
	}
	err := s.update(func(st *State) (err error) {
		d, err = st.addDevice(p.Name, p.Pin, s.now())
		return err
	})
	return d, err
}
