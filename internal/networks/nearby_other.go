// SPDX-License-Identifier: BSD-3-Clause

//go:build !((darwin || gnustep) && cgo)

package networks

import (
	"context"
	"fmt"
	"log/slog"
	"net"

	"vmux.app/toolkit/internal/transport"
)

var errNotBuilt = fmt.Errorf("%w: it is of macOS, and this program was built without it", ErrNearby)

func nearby(*slog.Logger) (transport.Network, func()) { return nil, func() {} }

// Nearby is an ErrNearby.
func Nearby(context.Context) error { return errNotBuilt }

// ListenNearby is an ErrNearby.
func ListenNearby(*slog.Logger) (net.Listener, error) { return nil, errNotBuilt }
