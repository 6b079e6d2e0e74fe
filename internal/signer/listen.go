// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"vmux.app/toolkit/internal/transport"
	"vmux.app/toolkit/internal/transport/dnssd"
)

const (
	// handshakeTime bounds a TLS handshake, which a stranger can leave hanging.
	handshakeTime = 10 * time.Second
	// Handshakes at once, in all and from one address. Memory and CPU of strangers
	// stay small; slots says what happens beyond.
	maxHandshakes          = 32
	maxHandshakesPerSource = 8
	// Connections at once that wait for their pairing to begin.
	maxPairings          = 16
	maxPairingsPerSource = 4
	// Accept errors (no descriptors, no memory) pass when connections end.
	acceptRetry = 50 * time.Millisecond
	// advertiseRetry is how long after a refusal to advertise it is tried again.
	advertiseRetry = 10 * time.Second
)

// ListenError says that the signer cannot listen on an address.
type ListenError struct {
	Address string
	Err     error
}

func (e *ListenError) Error() string { return fmt.Sprintf("cannot listen on %s: %v", e.Address, e.Err) }

// Unwrap gives the reason.
func (e *ListenError) Unwrap() error { return e.Err }

// listenError is a *ListenError.
func listenError(address string, err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err // the address is said already
	}
	return &ListenError{address, err}
}

// sleep waits for a connection to the wake address, or ctx's end, which is no
// error.
func (s *server) sleep(ctx context.Context, address string) error {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return listenError(address, err)
	}
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	s.event(Event{Event: EventAsleep, Address: l.Addr().String()})
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			s.log.Info("woken", "address", c.RemoteAddr())
			c.Close()
			return nil
		}
		s.log.Warn("accept", "reason", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(acceptRetry):
		}
	}
}

func (s *server) advertise(ctx context.Context, port uint16) {
	instance := dnssd.RandomName()
	insist(ctx, s.log, func() error { return dnssd.Advertise(ctx, dnssd.Options{Log: s.log}, instance, port) })
}

// insist advertises until ctx ends, and begins anew after a refusal. macOS refuses at first, too, while it asks the owner.
func insist(ctx context.Context, log *slog.Logger, advertise func() error) {
	for said := ""; ; {
		err := advertise()
		if err == nil || ctx.Err() != nil {
			return
		}
		if err.Error() != said {
			said = err.Error()
			log.Warn("not advertised: devices must be given the address", "reason", err)
		}
		select {
		case <-time.After(advertiseRetry):
		case <-ctx.Done():
			return
		}
	}
}

// accept serves connections until the listener is closed.
func (s *server) accept(ctx context.Context, l net.Listener) {
	for {
		raw, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				raw.Close()
			}
			return
		}
		if errors.Is(err, net.ErrClosed) {
			return // the others go on
		}
		if err != nil {
			s.log.Warn("accept", "reason", err)
			select {
			case <-ctx.Done():
			case <-time.After(acceptRetry):
			}
			continue
		}
		// In the order of arrival: an honest newcomer must not be the oldest at once.
		release := s.handshakes.take(raw.RemoteAddr(), func() { raw.Close() })
		s.conns.Go(func() { s.connection(ctx, raw, release) })
	}
}

// connection does the handshake with a stranger and hands on who passes. release
// gives back the handshake's slot.
func (s *server) connection(ctx context.Context, raw net.Conn, release func() bool) {
	hctx, cancel := context.WithTimeout(ctx, handshakeTime)
	c, err := transport.Server(hctx, raw, s.identity, s.admit)
	cancel()
	if held := release(); err == nil && !held {
		c.Close()
		err = errPushedOut
	}
	if err != nil {
		// Strangers cannot fill the log at its usual level.
		s.log.Debug("connection refused", "address", raw.RemoteAddr(), "reason", err)
		return
	}
	defer c.Close()
	switch c.Proto() {
	case transport.ProtoPair:
		settle := sync.OnceValue(s.pairings.take(raw.RemoteAddr(), func() { raw.Close() }))
		defer settle()
		s.servePairing(ctx, c, settle)
	case transport.ProtoLink:
		s.serveLink(ctx, c)
	}
}

// admit decides about a peer within the handshake. Pairing is open to anybody,
// and answers only when a window is open.
func (s *server) admit(proto string, pin transport.Pin) error {
	if proto == transport.ProtoPair {
		return nil
	}
	if _, ok := s.current().state.Device(pin); !ok {
		return errors.New("this device is not paired")
	}
	return nil
}
