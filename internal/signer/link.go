// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"time"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/transport"
)

const (
	// maxLinks is how many links one device may have: its agent's, and those of
	// other commands. One more ends the oldest, which is likely to be dead.
	maxLinks = 8
	// seenEvery is how often a device's last time is written, so that a device
	// that comes and goes does not wear out a disk.
	seenEvery = time.Minute
)

// link is a paired device's connection.
type link struct {
	pin    transport.Pin
	from   net.Addr
	cancel context.CancelCauseFunc
	level  slog.Level // of what is logged of it
	up     bool       // it has said hello; guarded by server.mu
}

func (s *server) serveLink(ctx context.Context, c *transport.Conn) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	l := &link{pin: c.Peer(), from: c.RemoteAddr(), cancel: cancel}
	s.addLink(l)
	defer s.removeLink(l)
	// Forgotten between the handshake and addLink, nobody would cut the link.
	device, ok := s.current().state.Device(l.pin)
	if !ok {
		return
	}
	s.seen.sweep(s.now(), func(pin transport.Pin) bool { _, ok := s.current().state.Device(pin); return ok })
	s.sawDevice(device)
	err := transport.Serve(ctx, c, s.hello(), func(ctx context.Context, id string, req envelope.Payload) (envelope.Payload, error) {
		return s.handle(ctx, l.pin, id, req)
	}, func() []envelope.Payload {
		s.greeted(ctx, l, device)
		return s.tell
	})
	if cause := context.Cause(ctx); err == nil && cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	e := Event{Event: EventDisconnected, Device: device.Name}
	if err != nil {
		e.Reason = err.Error()
	}
	attrs := []any{"device", device.Name}
	if e.Reason != "" {
		attrs = append(attrs, "reason", e.Reason)
	}
	if !l.up {
		s.log.Debug("a device has not said hello", attrs...)
		return
	}
	s.log.Log(context.WithoutCancel(ctx), l.level, "disconnected", attrs...)
	s.event(e)
}

// greeted notes that a device has said hello.
func (s *server) greeted(ctx context.Context, l *link, device Device) {
	s.mu.Lock()
	l.up = true
	s.mu.Unlock()
	if l.level = slog.LevelInfo; !s.linkTurn(device.Pin) {
		l.level = slog.LevelDebug
	}
	s.log.Log(context.WithoutCancel(ctx), l.level, "connected", "device", device.Name, "address", l.from)
	s.event(Event{Event: EventConnected, Device: device.Name})
}

var errNewerLink = errors.New("the device has opened too many newer links")

func (s *server) addLink(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.links = append(s.links, l)
	n, oldest := 0, (*link)(nil)
	for _, o := range s.links {
		if o.pin == l.pin {
			if n++; oldest == nil {
				oldest = o
			}
		}
	}
	if n > maxLinks {
		oldest.cancel(errNewerLink)
	}
}

func (s *server) removeLink(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.links = slices.DeleteFunc(s.links, func(o *link) bool { return o == l })
}

// sawDevice writes the device's last time, seldom.
func (s *server) sawDevice(d Device) {
	now := s.now().UTC().Truncate(time.Second)
	if now.Sub(d.LastSeen) < seenEvery {
		return
	}
	err := s.update(func(st *State) error {
		for i := range st.Devices {
			if st.Devices[i].Pin == d.Pin {
				st.Devices[i].LastSeen = now
			}
		}
		return nil
	})
	if err != nil {
		s.log.Warn("cannot note when a device was seen", "device", d.Name, "reason", err)
	}
}
