// SPDX-License-Identifier: BSD-3-Clause

package dnssd

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// listen opens a UDP socket bound to addr and nothing wider; package net binds
// the wildcard address when given a group. A shared one allows others on the
// same port, the system's own responder first of all (RFC 6762 section 15.1).
func listen(addr netip.AddrPort, index int, shared bool) (_ net.PacketConn, err error) {
	family := unix.AF_INET
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(addr.Port()), Addr: v4(addr.Addr())}
	if addr.Addr().Is6() {
		family = unix.AF_INET6
		s6 := &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
		if addr.Addr().IsMulticast() {
			s6.ZoneId = uint32(index)
		}
		sa = s6
	}
	fd, err := socket(family)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "mdns")
	defer f.Close() // FilePacketConn duplicates
	set := func(level, option int, what string) {
		if err == nil {
			if e := unix.SetsockoptInt(fd, level, option, 1); e != nil {
				err = fmt.Errorf("setsockopt %s: %w", what, e)
			}
		}
	}
	if shared {
		// Linux shares a port between users by the one, macOS by the other.
		set(unix.SOL_SOCKET, unix.SO_REUSEADDR, "SO_REUSEADDR")
		set(unix.SOL_SOCKET, unix.SO_REUSEPORT, "SO_REUSEPORT")
	}
	if family == unix.AF_INET6 {
		set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, "IPV6_V6ONLY")
	}
	if err != nil {
		return nil, err
	}
	onlyOwnGroups(fd, family)
	if err := unix.Bind(fd, sa); err != nil {
		return nil, fmt.Errorf("bind %s: %w", addr, err)
	}
	return net.FilePacketConn(f)
}

func v4(a netip.Addr) [4]byte {
	if a.Is4() {
		return a.As4()
	}
	return [4]byte{}
}

// socket opens a datagram socket that no child inherits.
func socket(family int) (int, error) {
	// macOS has no SOCK_CLOEXEC; the lock keeps forks out in between.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, err := unix.Socket(family, unix.SOCK_DGRAM, 0)
	if err == nil {
		unix.CloseOnExec(fd)
		if err = unix.SetNonblock(fd, true); err != nil {
			unix.Close(fd)
		}
	}
	return fd, err
}
