// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/pairing"
	"vmux.app/toolkit/internal/transport"
)

const (
	// DefaultWindow is how long a pairing window is open.
	DefaultWindow = 2 * time.Minute
	// MaxWindow bounds what may be asked for: an open window is an invitation.
	MaxWindow = 10 * time.Minute
)

// Errors of a pairing window.
var (
	ErrWindowOpen    = errors.New("a pairing window is open already")
	ErrWindowExpired = errors.New("the pairing window closed before a device was paired")
	ErrPairing       = errors.New("pairing failed")
	ErrWindowTime    = fmt.Errorf("a pairing window is open for 1 second to %s", MaxWindow)
)

// window is an open pairing window. It ends with the first device that asks for
// a pairing, whatever becomes of that, since each exchange is a try at the
// digits.
type window struct {
	url     *pairing.URL // for that device only, nil for digits
	confirm func(ctx context.Context, device, code string) error
	ctx     context.Context // of who opened it
	begun   chan struct{}   // closed when a device has asked
	result  chan outcome    // of that device; has room for it
}

type outcome struct {
	device Device
	err    error
}

// pair opens a window until ctx ends or a device has tried, and returns the
// device that is paired.
func (s *server) pair(ctx context.Context, url *pairing.URL, opened func(), confirm func(ctx context.Context, device, code string) error) (Device, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := &window{url: url, confirm: confirm, ctx: ctx, begun: make(chan struct{}), result: make(chan outcome, 1)}
	s.mu.Lock()
	if s.window != nil {
		s.mu.Unlock()
		return Device{}, ErrWindowOpen
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
		o.err = ErrWindowExpired
	}
	if o.err != nil {
		if controlKind(o.err) == "" && !errors.Is(o.err, context.Canceled) {
			o.err = fmt.Errorf("%w: %w", ErrPairing, o.err)
		}
		s.log.Warn("not paired", "reason", o.err)
		s.event(Event{Event: EventPairing, Outcome: "failed", Reason: o.err.Error()})
		return Device{}, o.err
	}
	s.log.Info("paired", "device", o.device.Name, "pin", o.device.Pin)
	s.event(Event{Event: EventPairing, Device: o.device.Name, Outcome: "paired"})
	return o.device, nil
}

// closeWindow lets no other device in.
func (s *server) closeWindow(w *window) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.window == w {
		s.window = nil
	}
}

// begin gives the window to the first device that asks.
func (s *server) begin(w *window) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.window != w {
		return pairing.ErrNoWindow
	}
	s.window = nil
	close(w.begun)
	return nil
}

// servePairing answers a connection for pairing. Without a window for it, it
// gets an error and nothing else.
func (s *server) servePairing(ctx context.Context, c *transport.Conn, settled func()) {
	defer c.Close()
	s.mu.Lock()
	w := s.window
	s.mu.Unlock()
	if w == nil || w.url != nil && w.url.Pin != c.Peer() {
		s.log.Info("pairing refused, no window is open for it", "address", c.RemoteAddr())
		// The connection ends anyway; that this arrives is a courtesy.
		_ = c.Send(envelope.Envelope{ID: "pair", Payload: envelope.Errorf(envelope.CodeNotPaired, "%v", pairing.ErrNoWindow)})
		return
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(w.ctx, func() { cancel(context.Cause(w.ctx)) })
	defer stop()

	begun := false
	var device Device
	o := pairing.PhoneOptions{
		Name:    s.current().state.Name,
		Confirm: w.confirm,
		Begin: func() error {
			if err := s.begin(w); err != nil {
				return err
			}
			begun = true
			settled() // it is the one; strangers do not push it out any more
			return nil
		},
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
	}
	_, err := pairing.Phone(ctx, c, s.identity.Pin(), s.hello(), o)
	if !begun {
		if err != nil {
			s.log.Debug("pairing connection ended before it asked", "address", c.RemoteAddr(), "reason", err)
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
	err := s.update(func(st *State) (err error) {
		d, err = st.addDevice(p.Name, p.Pin, s.now())
		return err
	})
	return d, err
}
