// SPDX-License-Identifier: BSD-3-Clause

//go:build (darwin || gnustep) && cgo

package networks

import (
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

// ListenNearby offers the service to devices nearby. The error is an ErrNearby.
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
	return l, nil
}
