// SPDX-License-Identifier: BSD-3-Clause

//go:build !((darwin || gnustep) && cgo)

package mpc

import (
	"context"
	"net"

	"vmux.app/toolkit/internal/cocoa"
	"vmux.app/toolkit/internal/transport"
)

// Network is not supported by this build.
type Network struct{}

// New is cocoa.ErrNotBuilt.
func New(Options) (*Network, error) { return nil, cocoa.ErrNotBuilt }

// Browse is cocoa.ErrNotBuilt.
func (*Network) Browse(context.Context, func(transport.Candidate)) error { return cocoa.ErrNotBuilt }

// Dial is cocoa.ErrNotBuilt.
func (*Network) Dial(context.Context, string) (net.Conn, error) { return nil, cocoa.ErrNotBuilt }

// Listen is cocoa.ErrNotBuilt.
func (*Network) Listen(string) (net.Listener, error) { return nil, cocoa.ErrNotBuilt }

// Close does nothing.
func (*Network) Close() {}
