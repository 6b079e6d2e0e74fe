// SPDX-License-Identifier: BSD-3-Clause

//go:build darwin || gnustep

package dnssd

import (
	"net"
	"testing"
)

// Linux sends from a socket that is bound to an IPv4 group, by any interface; macOS does not (see groupAddress), so
// that nothing would be advertised.
func TestNotBoundToGroup(t *testing.T) {
	t.Parallel()
	if a := peer(t, true).pc.LocalAddr().(*net.UDPAddr); a.Port != port || a.IP.IsMulticast() {
		t.Errorf("bound to %s", a)
	}
}
