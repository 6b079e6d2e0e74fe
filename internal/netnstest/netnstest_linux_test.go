// SPDX-License-Identifier: BSD-3-Clause

package netnstest_test

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"vmux.app/toolkit/internal/netnstest"
)

func TestBothEnds(t *testing.T) {
	t.Parallel()
	netnstest.Run(t, func(t *testing.T, n *netnstest.Net) {
		// Nothing but lo and the cable, so nothing gets out.
		ifis, err := net.Interfaces()
		if err != nil || len(ifis) != 2 {
			t.Fatalf("interfaces in A: %v, %v", ifis, err)
		}
		var out bytes.Buffer
		cmd := exec.Command("ip", "-br", "link")
		cmd.Stdout = &out
		if err := n.B.Run(cmd); err != nil {
			t.Fatal(err)
		}
		if s := out.String(); strings.Count(s, "\n") != 2 || !strings.Contains(s, "vb@") {
			t.Fatalf("interfaces in B:\n%s", s)
		}
		for _, addr := range []netip.Addr{n.B.IPv4, n.B.LinkLocal} {
			here, there := addr, addr
			if addr.Is6() {
				here, there = addr.WithZone(n.A.Interface), addr.WithZone(n.B.Interface)
			}
			var l net.Listener
			err := n.B.Do(func() (err error) {
				// The zone is resolved on the calling thread, in B.
				l, err = net.Listen("tcp", netip.AddrPortFrom(there, 0).String())
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			port := l.Addr().(*net.TCPAddr).AddrPort().Port()
			c, err := net.Dial("tcp", netip.AddrPortFrom(here, port).String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			s, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			s.Close()
		}
	})
}

func TestCableOut(t *testing.T) {
	t.Parallel()
	netnstest.Run(t, func(t *testing.T, n *netnstest.Net) {
		if err := n.B.IP("link", "set", n.B.Interface, "down"); err != nil {
			t.Fatal(err)
		}
		if err := n.A.IP("link", "set", n.A.Interface, "down"); err != nil {
			t.Fatal(err)
		}
		if c, err := net.Dial("tcp", netip.AddrPortFrom(n.B.IPv4, 1).String()); err == nil {
			c.Close()
			t.Fatal("connected without a cable")
		}
		if err := n.A.IP("link", "set", "nosuch", "up"); err == nil || !strings.Contains(err.Error(), "nosuch") {
			t.Fatalf("ip's own words are missing: %v", err)
		}
	})
}
