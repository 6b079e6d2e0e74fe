// SPDX-License-Identifier: BSD-3-Clause

// Package dnssd finds and advertises the link's service on the local network:
// DNS-based service discovery (RFC 6763) over multicast DNS (RFC 6762).
//
// It differs from a general library where an attacker on the network matters:
//
//   - Records are kept for each source address apart. Every claimant of a name
//     is reported, so a rogue that repeats the phone's name hides nothing, and
//     one source never changes or evicts the records of another.
//   - Queries carry no known answers (RFC 6762 section 7.1, a SHOULD): an answer
//     listed there might be the rogue's, and would silence the phone that gives
//     the same one. The cost is one answer for each query, at most one a minute.
//   - Addresses are reported only when they are on the link, so nobody can make
//     every device of a network dial a third party elsewhere.
//
// What is reported is a hint and nothing else: whoever dials checks the pin.
package dnssd

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	// DefaultService is the service type of the link (DESIGN: lan transport).
	DefaultService = "_vmuxsigner._tcp"

	// DefaultPoll is how often the interfaces are looked at again. There is no
	// portable notice of a change; 5 s is well below the 20 s in which a woken
	// phone is looked for.
	DefaultPoll = 5 * time.Second

	port = 5353 // RFC 6762 section 3

	// maxPacket is the largest mDNS message (RFC 6762 section 17).
	maxPacket = 9000

	// maxInterfaces bounds sockets: four for each interface. Hosts with more
	// are container hosts, whose further ones are bridge ports.
	maxInterfaces = 32
)

var (
	group4 = netip.AddrFrom4([4]byte{224, 0, 0, 251})
	group6 = netip.AddrFrom16([16]byte{0xff, 0x02, 15: 0xfb})
)

// ErrUnavailable reports that there are interfaces to use and multicast DNS
// works on none of them. It wraps the system's reasons: EHOSTUNREACH on macOS
// means that Local Network access is denied to this program, EPERM a firewall;
// EADDRINUSE, for Advertise, a responder that shares port 5353 with nobody,
// such as avahi with disallow-other-stacks=yes. Browse works beside that one.
var ErrUnavailable = errors.New("multicast DNS is not available on any network interface")

// ErrBadName reports an Options.Service or instance that cannot be advertised.
var ErrBadName = errors.New("bad DNS-SD name")

// Options say where to look. The zero value is for production.
type Options struct {
	// Service is the service type, two labels; DefaultService if empty.
	Service string
	// Interfaces lists the interfaces; net.Interfaces if nil. Of those listed,
	// interfaces that are down, point-to-point or not capable of multicast are
	// skipped.
	Interfaces func() ([]net.Interface, error)
	// Loopback uses loopback interfaces *only*, so that nothing leaves the
	// host; without it they are never used. For tests.
	Loopback bool
	// Poll is the time between looks at the interfaces; DefaultPoll if 0.
	Poll time.Duration
	// Log gets interface changes and socket errors; none if nil.
	Log *slog.Logger
}

// A Claim is what one source says of one instance. It proves nothing.
type Claim struct {
	// Instance is the unescaped first label, UTF-8 without control characters.
	Instance string
	// Source is where the answer came from; a link-local one has its zone.
	Source netip.Addr
	// Interface is the index of the interface it came in on.
	Interface int
	// Addrs are where the instance claims to listen, at least one, the source's
	// own first; all are on the link, link-local ones have their zone.
	Addrs []netip.AddrPort
}

// settings are Options with the defaults filled in and the names parsed.
type settings struct {
	service    name // _vmuxsigner._tcp.local.
	interfaces func() ([]net.Interface, error)
	loopback   bool
	every      time.Duration
	log        *slog.Logger
}

func (o Options) settings() (settings, error) {
	s := settings{interfaces: o.Interfaces, loopback: o.Loopback, every: o.Poll, log: o.Log}
	service := o.Service
	if service == "" {
		service = DefaultService
	}
	// RFC 6763 section 7: an underscore and at most 15 letters, digits and
	// hyphens, then _tcp or _udp. Longer first labels are let through, since
	// nothing breaks on them.
	labels := strings.Split(service, ".")
	if len(labels) != 2 || len(labels[0]) < 2 || labels[0][0] != '_' || labels[1] != "_tcp" && labels[1] != "_udp" {
		return s, fmt.Errorf("%w: service type %q", ErrBadName, service)
	}
	var err error
	if s.service, err = newName(labels[0], labels[1], "local"); err != nil {
		return s, fmt.Errorf("%w: service type %q", err, service)
	}
	if s.interfaces == nil {
		s.interfaces = net.Interfaces
	}
	if s.every <= 0 {
		s.every = DefaultPoll
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s, nil
}

// validInstance reports whether label may be an instance name: RFC 6763
// section 4.1.1, Net-Unicode without control characters. It reaches terminals
// and logs.
func validInstance(label string) bool {
	if label == "" || len(label) > maxLabel || !utf8.ValidString(label) {
		return false
	}
	return !strings.ContainsFunc(label, func(r rune) bool {
		// Bidirectional and other format characters could disguise a name.
		return unicode.IsControl(r) || unicode.Is(unicode.Cf, r)
	})
}

// RandomName returns vmux- and 64 random bits in hexadecimal: an instance or
// host name that says nothing of its owner and that nobody else has.
func RandomName() string {
	var b [8]byte
	rand.Read(b[:])
	return "vmux-" + hex.EncodeToString(b[:])
}
