// SPDX-License-Identifier: BSD-3-Clause

// Package networks says over what a device looks for its phones on this system: the local network, and on macOS also what is
// nearby without one.
package networks

import (
	"errors"
	"log/slog"

	"vmux.app/toolkit/internal/transport"
	"vmux.app/toolkit/internal/transport/lan"
)

// ErrNearby says that peers nearby cannot be used; what it wraps says why.
var ErrNearby = errors.New("MultipeerConnectivity cannot be used")

// Open gives the networks to look on side by side. close is called when nobody uses them any more.
func Open(log *slog.Logger) (all []transport.Network, close func()) {
	all = []transport.Network{lan.New(log)}
	n, close := nearby(log)
	if n != nil {
		all = append(all, n)
	}
	return all, close
}
