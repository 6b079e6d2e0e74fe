// SPDX-License-Identifier: BSD-3-Clause

//go:build (darwin || gnustep) && cgo

package networks

import (
	"context"
	"fmt"
	"log/slog"
	"net"

	"vmux.app/toolkit/internal/transport"
	"vmux.app/toolkit/internal/transport/dnssd"
	"vmux.app/toolkit/internal/transport/mpc"
)

func nearby(log *slog.Logger) (transport.Network, func()) {
	n, err := mpc.New(mpc.Options{Name: dnssd.RandomName(), Log: log})
	if err != nil {
		log.Warn("phones are looked for on the local network only", "reason", err)
		return nil, func() {}
	}
	return n, n.Close
}

// Nearby looks for phones nearby until ctx ends. The error is an ErrNearby that wraps why that cannot be done.
func Nearby(ctx context.Context) error {
	n, err := mpc.New(mpc.Options{Name: dnssd.RandomName()})
	if err == nil {
		err = n.Browse(ctx, func(transport.Candidate) {})
		n.Close()
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNearby, err)
	}
	return nil
}

// ListenNearby offers the service to devices nearby. The error is an ErrNearby. If the system refuses later, Accept says why, with
// a net.ErrClosed that wraps an ErrNearby.
func ListenNearby(log *slog.Logger) (net.Listener, error) {
	name := dnssd.RandomName()
	n, err := mpc.New(mpc.Options{Name: name, Log: log})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNearby, err)
	}
	l, err := n.Listen(name)
	if err != nil {
		n.Close()
		return nil, fmt.Errorf("%w: %w", ErrNearby, err)
	}
	return listener{l}, nil
}

// listener says what it is that fails.
type listener struct{ net.Listener }

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil && err != net.ErrClosed { // a plain one is Close's
		err = fmt.Errorf("%w: %w", ErrNearby, err)
	}
	return c, err
}
