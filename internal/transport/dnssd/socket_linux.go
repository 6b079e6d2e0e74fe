// SPDX-License-Identifier: BSD-3-Clause

//go:build !gnustep

package dnssd

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// onlyOwnGroups turns off what ip(7) calls IP_MULTICAST_ALL: a socket would get
// the packets of groups that others joined on other interfaces. An old kernel
// that refuses costs time only, for the interface is checked for each packet.
func onlyOwnGroups(fd, family int) {
	if family == unix.AF_INET6 {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_ALL, 0)
		return
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0)
}

// groupAddress is what a socket for a group is bound to: the group itself, since one
// that is bound to the wildcard address takes the unicast packets of the system's own
// responder.
func groupAddress(group netip.Addr) netip.Addr { return group }
