// SPDX-License-Identifier: BSD-3-Clause

package dnssd

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/net/ipv4"

	"vmux.app/toolkit/internal/netnstest"
)

// sendFrom sends to dst, or the group, from any 127.x address: on Linux all of
// them are the host's own.
func sendFrom(c *conn, src netip.Addr, b []byte, dst netip.AddrPort) error {
	if !dst.IsValid() {
		dst = netip.AddrPortFrom(group4, port)
	}
	_, err := c.p4.WriteTo(b, &ipv4.ControlMessage{Src: src.AsSlice(), IfIndex: c.link.index}, net.UDPAddrFromAddrPort(dst))
	return err
}

func lo4(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)}) }

// Thirty rogues with the phone's own name, each from its own address and
// faster than the phone, hide nothing: all thirty-one are reported.
func TestRogues(t *testing.T) {
	t.Parallel()
	// On a loopback interface of its own: what is sent once gets lost where another
	// test floods it.
	netnstest.Run(t, withRogues)
}

func withRogues(t *testing.T, _ *netnstest.Net) {
	const rogues = 30
	o, instance := onLo(), RandomName()
	s, err := o.settings()
	if err != nil {
		t.Fatal(err)
	}
	c := peer(t, true)
	answer(t, c, func(ev event) {
		for i := range rogues {
			r, err := newResponder(s.service, instance, "host", uint16(1000+i))
			if err != nil {
				t.Error(err)
				return
			}
			addrs := []netip.Addr{lo4(i)}
			if re := r.reply(ev.msg, addrs, ev.src.Port() != port); re.unicast != 0 {
				sendFrom(c, lo4(i), r.respond(ev.msg.id, re, addrs), ev.src)
			} else if re.multicast != 0 {
				sendFrom(c, lo4(i), r.message(re.multicast, addrs, modeNormal).encode(false), netip.AddrPort{})
				// And a goodbye in the phone's name, but not from its address.
				sendFrom(c, lo4(i), r.message(wantAll, addrs, modeGoodbye).encode(false), netip.AddrPort{})
			}
		}
	})
	b := startBrowse(t, o)
	seen := make(map[netip.Addr]bool)
	for len(seen) < rogues {
		claim := b.want("a rogue", func(c Claim) bool { return c.Instance == instance && c.Addrs[0].Port() >= 1000 })
		if claim.Addrs[0] != netip.AddrPortFrom(claim.Source, claim.Addrs[0].Port()) {
			t.Fatalf("claim mixes sources: %+v", claim)
		}
		seen[claim.Source] = true
	}
	startAdvertise(t, o, instance, 4711)
	c1 := b.want("the real one", claims(instance, 4711))
	if seen[c1.Source] {
		t.Errorf("the real one was reported as from %s", c1.Source)
	}
	// A new port without a goodbye before.
	r, err := newResponder(s.service, instance, "host", 999)
	if err != nil {
		t.Fatal(err)
	}
	sendFrom(c, lo4(7), r.message(wantAll, []netip.Addr{lo4(7)}, modeNormal).encode(false), netip.AddrPort{})
	if c2 := b.want("a new port", claims(instance, 999)); c2.Source != lo4(7) {
		t.Errorf("got %+v", c2)
	}
}

// Under a flood from ever new addresses with ever new names, the phone is
// reported, and ending is prompt.
func TestFlood(t *testing.T) {
	t.Parallel()
	// On a loopback interface of its own, for it disturbs all who use this one.
	netnstest.Run(t, flooded)
}

func flooded(t *testing.T, _ *netnstest.Net) {
	o, instance := onLo(), RandomName()
	s, err := o.settings()
	if err != nil {
		t.Fatal(err)
	}
	flood := peer(t, true)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			src := lo4(i % 65536)
			r, err := newResponder(s.service, fmt.Sprintf("rogue-%d", i), "host", 1)
			if err != nil {
				t.Error(err)
				return
			}
			sendFrom(flood, src, r.message(wantAll, []netip.Addr{src}, modeNormal).encode(false), netip.AddrPort{})
		}
	}()
	defer func() {
		close(stop)
		<-done
	}()
	o.Poll = 0
	b := startBrowse(t, o)
	b.want("the flood", func(c Claim) bool { return c.Instance != instance })
	startAdvertise(t, o, instance, 4711)
	// The test's channel holds 10000 claims; drain it while waiting.
	b.want("the real one", claims(instance, 4711))
	ended := make(chan struct{})
	go func() {
		for {
			select {
			case <-b.claims:
			case <-ended:
				return
			}
		}
	}()
	b.stop()
	close(ended)
}
