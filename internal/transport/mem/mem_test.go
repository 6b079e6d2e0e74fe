// SPDX-License-Identifier: BSD-3-Clause

package mem_test

import (
	"net"
	"testing"

	"vmux.app/toolkit/internal/transport"
	"vmux.app/toolkit/internal/transport/conformance"
	"vmux.app/toolkit/internal/transport/mem"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	conformance.Run(t, func(t *testing.T) (transport.Network, func(*testing.T) net.Listener) {
		n := new(mem.Network)
		return n, func(t *testing.T) net.Listener {
			ln, err := n.Listen("phone")
			if err != nil {
				t.Fatal(err)
			}
			return ln
		}
	})
}
