// SPDX-License-Identifier: BSD-3-Clause

package dnssd

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// links are the interfaces in use and their sockets. One goroutine, the owner,
// calls every method; one reader goroutine for each socket ends when the
// socket is closed, and close waits for all of them.
type links struct {
	settings
	ephemeral bool // also open sockets on a port of their own
	all       map[int]*link
	events    chan event
	done      chan struct{} // closed by close: readers stop handing over
	readers   sync.WaitGroup
}

// A link is one interface.
type link struct {
	index    int
	name     string
	loopback bool
	prefixes []netip.Prefix // its addresses with their subnets, sorted
	conns    map[slot]*conn
	failures map[slot]string // what was logged last
}

// A slot is one of the four sockets an interface may have.
type slot struct {
	v6    bool
	group bool // bound to the group and port 5353; otherwise to a free port
}

func (s slot) String() string {
	family := "IPv4"
	if s.v6 {
		family = "IPv6"
	}
	if s.group {
		return family + " group"
	}
	return family + " unicast"
}

// An event is a message read, or the end of a socket when err is set.
type event struct {
	conn    *conn
	src     netip.AddrPort
	arrived int // index of the interface
	msg     *message
	err     error
}

func newLinks(s settings, ephemeral bool) *links {
	return &links{
		settings:  s,
		ephemeral: ephemeral,
		all:       make(map[int]*link),
		events:    make(chan event),
		done:      make(chan struct{}),
	}
}

func (ls *links) close() {
	close(ls.done)
	for _, l := range ls.all {
		l.close()
	}
	ls.readers.Wait()
}

func (l *link) close() {
	for slot, c := range l.conns {
		c.close()
		delete(l.conns, slot)
	}
}

// poll looks at the interfaces. It returns those that are new, have other
// addresses or a new socket, and those that are gone. The error says that there
// are interfaces to use and no socket could be opened on any.
func (ls *links) poll() (fresh, gone []*link, err error) {
	ifis, err := ls.interfaces()
	if err != nil {
		// The list could not be read; what is open goes on.
		ls.log.Warn("dnssd: cannot list the interfaces", "error", err)
		return nil, nil, nil
	}
	slices.SortFunc(ifis, func(a, b net.Interface) int { return cmp.Compare(a.Index, b.Index) })
	seen := make(map[int]bool)
	var errs []error
	open := 0
	for _, ifi := range ifis {
		if !ls.usable(ifi) || len(seen) == maxInterfaces {
			continue
		}
		prefixes, err := prefixesOf(ifi)
		if err != nil || len(prefixes) == 0 {
			continue // gone since, or without an address: like down
		}
		l := ls.all[ifi.Index]
		if l != nil && l.name != ifi.Name {
			continue // another interface has the index now: gone first, new at the next poll
		}
		seen[ifi.Index] = true
		changed := false
		if l == nil {
			l = &link{index: ifi.Index, name: ifi.Name, loopback: ifi.Flags&net.FlagLoopback != 0,
				conns: make(map[slot]*conn), failures: make(map[slot]string)}
			ls.all[ifi.Index] = l
			changed = true
			ls.log.Debug("dnssd: interface up", "interface", ifi.Name)
		}
		if !slices.Equal(l.prefixes, prefixes) {
			l.prefixes = prefixes
			changed = true
		}
		opened, err := ls.open(l, ifi)
		errs = append(errs, err)
		open += len(l.conns)
		if changed || opened {
			fresh = append(fresh, l)
		}
	}
	for index, l := range ls.all {
		if !seen[index] {
			ls.log.Debug("dnssd: interface gone", "interface", l.name)
			l.close()
			delete(ls.all, index)
			gone = append(gone, l)
		}
	}
	if open == 0 && len(seen) > 0 {
		return fresh, gone, fmt.Errorf("%w: %w", ErrUnavailable, errors.Join(errs...))
	}
	return fresh, gone, nil
}

func (ls *links) usable(ifi net.Interface) bool {
	if ifi.Flags&net.FlagUp == 0 || ifi.Flags&net.FlagPointToPoint != 0 {
		return false
	}
	if ifi.Flags&net.FlagLoopback != 0 {
		return ls.loopback // Linux does not flag it multicast, and it works
	}
	return !ls.loopback && ifi.Flags&net.FlagMulticast != 0
}

func prefixesOf(ifi net.Interface) ([]netip.Prefix, error) {
	addrs, err := ifi.Addrs()
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		addr, ok := netip.AddrFromSlice(n.IP)
		bits, _ := n.Mask.Size()
		if !ok || bits == 0 {
			continue // a default route is no subnet
		}
		out = append(out, netip.PrefixFrom(addr.Unmap(), bits))
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return slices.Compact(out), nil
}

// open opens the sockets of l that are not open and can be. One that fails is
// tried again at the next poll.
func (ls *links) open(l *link, ifi net.Interface) (opened bool, err error) {
	var errs []error
	for _, s := range []slot{{false, true}, {true, true}, {false, false}, {true, false}} {
		if !s.group && !ls.ephemeral {
			continue
		}
		if _, ok := l.source(s.v6, netip.Addr{}); !ok {
			if c := l.conns[s]; c != nil { // the family's last address is gone
				c.close()
				delete(l.conns, s)
			}
			continue
		}
		if l.conns[s] != nil {
			continue
		}
		c, err := newConn(l, &ifi, s)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s, %s: %w", l.name, s, err))
			if l.failures[s] != err.Error() {
				l.failures[s] = err.Error()
				ls.log.Warn("dnssd: cannot open a socket", "interface", l.name, "socket", s.String(), "error", err)
			}
			continue
		}
		delete(l.failures, s)
		l.conns[s] = c
		opened = true
		ls.readers.Go(func() { c.read(ls.events, ls.done) })
	}
	return opened, errors.Join(errs...)
}

// drop closes a socket whose reader ended; the next poll opens it again.
func (ls *links) drop(c *conn, err error) {
	if c.link.conns[c.slot] == c {
		ls.log.Debug("dnssd: socket ended", "interface", c.link.name, "socket", c.slot.String(), "error", err)
		c.close()
		delete(c.link.conns, c.slot)
	}
}

// local reports whether ev came from this link, by its source address: RFC 6762
// section 11. That section lets messages to the group pass without the test;
// here they do not, since any address answers to be dialled have to be on the
// link as well. A TTL of 255 is not asked for: the section says why not.
func (l *link) local(ev event) bool {
	src := ev.src.Addr()
	if !l.onLink(src) {
		return false
	}
	// What this host sends to itself may arrive by the loopback interface.
	return ev.arrived == l.index || l.own(src)
}

func (l *link) own(a netip.Addr) bool {
	a = a.WithZone("")
	return slices.ContainsFunc(l.prefixes, func(p netip.Prefix) bool { return p.Addr() == a })
}

func (l *link) onLink(a netip.Addr) bool {
	a = a.WithZone("")
	if a.IsLinkLocalUnicast() {
		return true // on every link: RFC 3927 section 2.6.2, RFC 4291 section 2.5.6
	}
	return slices.ContainsFunc(l.prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// usableAddr returns a, with a zone if it needs one, when it may be dialled.
func (l *link) usableAddr(a netip.Addr) (netip.Addr, bool) {
	if a.Is4In6() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() && !l.loopback || !l.onLink(a) {
		return netip.Addr{}, false
	}
	return l.zoned(a), true
}

func (l *link) zoned(a netip.Addr) netip.Addr {
	if a.Is6() && a.IsLinkLocalUnicast() {
		return a.WithZone(l.name)
	}
	return a.WithZone("")
}

// source returns the address of l to send to dst from: one in dst's subnet,
// else for IPv6 a link-local one, else the first. A group or zero dst has no
// subnet. Where an interface has several IPv4 subnets, the group is sent to
// from the first only.
func (l *link) source(v6 bool, dst netip.Addr) (netip.Addr, bool) {
	var best netip.Addr
	rank := 0
	for _, p := range l.prefixes {
		if p.Addr().Is6() != v6 {
			continue
		}
		r := 1
		switch {
		case dst.IsValid() && p.Contains(dst.WithZone("")):
			r = 3
		case v6 && p.Addr().IsLinkLocalUnicast():
			r = 2
		}
		if r > rank {
			best, rank = p.Addr(), r
		}
	}
	return best, rank > 0
}

// A conn is one socket. send may be called by the owner only.
type conn struct {
	link *link
	slot slot
	pc   net.PacketConn
	p4   *ipv4.PacketConn
	p6   *ipv6.PacketConn
}

func newConn(l *link, ifi *net.Interface, s slot) (_ *conn, err error) {
	bind := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	group := group4
	if s.v6 {
		bind = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
		group = group6
	}
	if s.group {
		bind = netip.AddrPortFrom(groupAddress(group), port)
	}
	pc, err := listen(bind, ifi.Index, s.group)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			pc.Close()
		}
	}()
	c := &conn{link: l, slot: s, pc: pc}
	join := &net.UDPAddr{IP: group.AsSlice()}
	if s.v6 {
		c.p6 = ipv6.NewPacketConn(pc)
		err = errors.Join(
			c.p6.SetControlMessage(ipv6.FlagInterface, true),
			c.p6.SetMulticastInterface(ifi),
			c.p6.SetMulticastHopLimit(255), // RFC 6762 section 11
			c.p6.SetHopLimit(255),
			c.p6.SetMulticastLoopback(true), // both ends may be on one host
		)
		if err == nil && s.group {
			err = c.p6.JoinGroup(ifi, join)
		}
		return c, err
	}
	c.p4 = ipv4.NewPacketConn(pc)
	err = errors.Join(
		c.p4.SetControlMessage(ipv4.FlagInterface, true),
		c.p4.SetMulticastInterface(ifi),
		c.p4.SetMulticastTTL(255),
		c.p4.SetTTL(255),
		c.p4.SetMulticastLoopback(true),
	)
	if err == nil && s.group {
		err = c.p4.JoinGroup(ifi, join)
	}
	return c, err
}

func (c *conn) close() { c.pc.Close() }

// read hands over what comes until the socket is closed. An error ends it, so
// that none can make it spin.
func (c *conn) read(events chan<- event, done <-chan struct{}) {
	buf := make([]byte, maxPacket+1) // one more shows what is too long
	for {
		n, arrived, from, err := c.readFrom(buf)
		ev := event{conn: c, arrived: arrived, err: err}
		if err == nil {
			udp, ok := from.(*net.UDPAddr)
			if !ok {
				continue
			}
			src := udp.AddrPort()
			ev.src = netip.AddrPortFrom(c.link.zoned(src.Addr().Unmap()), src.Port())
			// Garbage is the sender's own loss; logging it would let anyone
			// fill the log.
			if ev.msg, err = parse(buf[:n]); err != nil {
				continue
			}
		}
		select {
		case events <- ev:
		case <-done:
			return
		}
		if ev.err != nil {
			return
		}
	}
}

func (c *conn) readFrom(buf []byte) (n, arrived int, from net.Addr, err error) {
	if c.slot.v6 {
		n, cm, from, err := c.p6.ReadFrom(buf)
		if cm != nil {
			arrived = cm.IfIndex
		}
		return n, arrived, from, err
	}
	n, cm, from, err := c.p4.ReadFrom(buf)
	if cm != nil {
		arrived = cm.IfIndex
	}
	return n, arrived, from, err
}

// send sends b out of the link: to dst, or to the group if dst is zero.
func (c *conn) send(b []byte, dst netip.AddrPort) error {
	src, ok := c.link.source(c.slot.v6, dst.Addr())
	if !ok {
		return fmt.Errorf("%s has no address for %s", c.link.name, c.slot)
	}
	if !dst.IsValid() {
		dst = netip.AddrPortFrom(group4, port)
		if c.slot.v6 {
			dst = netip.AddrPortFrom(group6.WithZone(c.link.name), port)
		}
	}
	// The source is given because a socket bound to a group has none of its
	// own. macOS takes an address of the interface for IPv4, whatever is given.
	to := net.UDPAddrFromAddrPort(dst)
	var err error
	if c.slot.v6 {
		_, err = c.p6.WriteTo(b, &ipv6.ControlMessage{Src: src.AsSlice(), IfIndex: c.link.index}, to)
	} else {
		_, err = c.p4.WriteTo(b, &ipv4.ControlMessage{Src: src.AsSlice(), IfIndex: c.link.index}, to)
	}
	return err
}
