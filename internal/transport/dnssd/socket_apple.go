// SPDX-License-Identifier: BSD-3-Clause

//go:build darwin || gnustep

package dnssd

import "net/netip"

// onlyOwnGroups has nothing to do: memberships are a socket's own here.
func onlyOwnGroups(fd, family int) {}

// groupAddress is what a socket for a group is bound to. macOS refuses to send IPv4 from one that is bound to the group:
// EADDRNOTAVAIL, since no interface has that address (xnu, udp_output). Of those bound to the wildcard address
// the one that was bound first gets unicast packets (in_pcblookup_hash), which is the system's own responder.
func groupAddress(group netip.Addr) netip.Addr {
	if group.Is4() {
		return netip.IPv4Unspecified()
	}
	return group
}
