// SPDX-License-Identifier: BSD-3-Clause

//go:build !((darwin || gnustep) && cgo)

package networks

import (
	"fmt"
	"log/slog"
	"net"

	"vmux.app/toolkit/internal/transport"
)

func nearby(*slog.Logger) (transport.Network, func()) { return nil, func() {} }

// ListenNearby is an ErrNearby.
func ListenNearby(*slog.Logger) (net.Listener, error) {
	return nil, fmt.Errorf("%w: it is of macOS, and this program was built without it", ErrNearby)
}
