// SPDX-License-Identifier: BSD-3-Clause

package dnssd

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"testing"
	"time"

	"vmux.app/toolkit/internal/netnstest"
)

const wireService = "_vmuxtest._tcp"

// advertiseIn runs Advertise in a process in ns; stop lets it say goodbye.
func advertiseIn(t *testing.T, ns *netnstest.Namespace, instance string, portNumber int) (stop func()) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, wireService, instance, strconv.Itoa(portNumber))
	cmd.Env = append(os.Environ(), "VMUX_DNSSD_TEST=advertise")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Start(cmd); err != nil {
		t.Fatal(err)
	}
	ended := false
	stop = func() {
		if ended {
			return
		}
		ended = true
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the responder: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

func over(t testing.TB) Options {
	return Options{Service: wireService, Poll: 20 * time.Millisecond}
}

func from(c func(Claim) bool, src netip.Addr) func(Claim) bool {
	return func(claim Claim) bool { return c(claim) && claim.Source == src }
}

// all is true once each of oks was, in any order.
func all(oks ...func(Claim) bool) func(Claim) bool {
	return func(c Claim) bool {
		oks = slices.DeleteFunc(oks, func(ok func(Claim) bool) bool { return ok(c) })
		return len(oks) == 0
	}
}

func TestOverTheWire(t *testing.T) {
	t.Parallel()
	netnstest.Run(t, func(t *testing.T, n *netnstest.Net) {
		four, six := n.B.IPv4, n.B.LinkLocal.WithZone(n.A.Interface)
		b := startBrowse(t, over(t))
		stop := advertiseIn(t, n.B, "vmux-1", 4711)
		want := []netip.AddrPort{netip.AddrPortFrom(four, 4711), netip.AddrPortFrom(six, 4711)}
		whole := func(src netip.Addr) func(Claim) bool {
			return func(c Claim) bool {
				got := slices.Clone(c.Addrs)
				slices.SortFunc(got, netip.AddrPort.Compare)
				return c.Instance == "vmux-1" && slices.Equal(got, want) && c.Source == src && c.Addrs[0].Addr() == src &&
					interfaceName(t, c.Interface) == n.A.Interface
			}
		}
		b.want("the instance by both", all(whole(four), whole(six)))
		stop()
		// The same again: the goodbye came over.
		stop = advertiseIn(t, n.B, "vmux-1", 4711)
		b.want("the instance again by both", all(from(claims("vmux-1", 4711), four), from(claims("vmux-1", 4711), six)))
		// The phone gets another address.
		if err := errors.Join(n.B.IP("addr", "add", "10.86.0.77/24", "dev", n.B.Interface),
			n.B.IP("addr", "del", n.B.IPv4.String()+"/24", "dev", n.B.Interface),
			n.B.IP("addr", "replace", "10.86.0.77/24", "dev", n.B.Interface)); err != nil {
			t.Fatal(err)
		}
		moved := netip.MustParseAddr("10.86.0.77")
		here := func(c Claim) bool {
			return slices.Contains(c.Addrs, netip.AddrPortFrom(moved, 4711)) && !slices.Contains(c.Addrs, netip.AddrPortFrom(four, 4711))
		}
		b.want("the new address by both", all(from(here, moved), from(here, six)))
		// The cable is out and in again; IPv6 addresses go with it.
		if err := n.A.IP("link", "set", n.A.Interface, "down"); err != nil {
			t.Fatal(err)
		}
		stop()
		advertiseIn(t, n.B, "vmux-2", 4712)
		if err := n.A.IP("link", "set", n.A.Interface, "up"); err != nil {
			t.Fatal(err)
		}
		b.want("after the cable was out", from(claims("vmux-2", 4712), moved))
	})
}

func interfaceName(t testing.TB, index int) string {
	t.Helper()
	ifi, err := net.InterfaceByIndex(index)
	if err != nil {
		t.Fatal(err)
	}
	return ifi.Name
}

// Answers from outside the subnets, and addresses there, are not reported (RFC
// 6762 section 11), to the group or not.
func TestOffLink(t *testing.T) {
	t.Parallel()
	netnstest.Run(t, func(t *testing.T, n *netnstest.Net) {
		off := netip.MustParsePrefix("192.168.9.9/24")
		// The route is for a kernel that filters sources that lead nowhere.
		if err := errors.Join(n.B.IP("addr", "add", off.String(), "dev", n.B.Interface),
			n.A.IP("route", "add", "default", "dev", n.A.Interface)); err != nil {
			t.Fatal(err)
		}
		o := over(t)
		s, err := o.settings()
		if err != nil {
			t.Fatal(err)
		}
		var c *conn
		err = n.B.Do(func() error {
			ifi, err := net.InterfaceByName(n.B.Interface)
			if err != nil {
				return err
			}
			c, err = newConn(&link{index: ifi.Index, name: ifi.Name, prefixes: []netip.Prefix{off}}, ifi, slot{group: true})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		b := startBrowse(t, o)
		answer(t, c, func(ev event) {
			for _, tt := range []struct {
				instance  string
				src, addr netip.Addr
			}{
				{"off", off.Addr(), n.B.IPv4},
				{"elsewhere", n.B.IPv4, off.Addr()},
				{"on", n.B.IPv4, n.B.IPv4},
			} {
				r, err := newResponder(s.service, tt.instance, "host-"+tt.instance, 1)
				if err != nil {
					t.Error(err)
					return
				}
				m := r.message(wantAll, []netip.Addr{tt.addr}, modeNormal).encode(false)
				sendFrom(c, tt.src, m, netip.AddrPort{})
				sendFrom(c, tt.src, m, ev.src)
			}
		})
		// The one on the link is sent last, so all of them have come by then.
		b.want("what is on the link", func(c Claim) bool {
			if c.Instance != "on" {
				t.Errorf("reported: %+v", c)
			}
			return c.Instance == "on"
		})
	})
}

// What the system forbids is an error at once and not silence.
func TestUnavailable(t *testing.T) {
	t.Parallel()
	netnstest.Run(t, func(t *testing.T, n *netnstest.Net) {
		// IPv4 groups are sent to without asking the routing rules.
		if err := errors.Join(n.A.IP("addr", "del", n.A.IPv4.String()+"/24", "dev", n.A.Interface),
			n.A.IP("-6", "rule", "add", "pref", "0", "prohibit"), n.A.IP("-6", "rule", "del", "pref", "0", "table", "local")); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := Browse(ctx, over(t), func(Claim) {}); !errors.Is(err, ErrUnavailable) || !errors.Is(err, os.ErrPermission) {
			t.Errorf("Browse: %v", err)
		}
		if err := Advertise(ctx, over(t), "a", 1); !errors.Is(err, ErrUnavailable) || !errors.Is(err, os.ErrPermission) {
			t.Errorf("Advertise: %v", err)
		}
	})
}

// TestColdBrowse measures from Browse to the claim over the wire. It fails only
// where it is a hundred times slower than it was.
func TestColdBrowse(t *testing.T) {
	t.Parallel()
	netnstest.Run(t, func(t *testing.T, n *netnstest.Net) {
		advertiseIn(t, n.B, "vmux-1", 4711)
		startBrowse(t, over(t)).want("the instance", claims("vmux-1", 4711))
		const runs = limitPerSource / 2 // which one responder answers in a second
		var took []time.Duration
		for range runs {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			start := time.Now()
			var d time.Duration
			if err := Browse(ctx, over(t), func(Claim) {
				if d == 0 {
					d = time.Since(start)
				}
				cancel()
			}); err != nil {
				t.Fatal(err)
			}
			cancel()
			took = append(took, d)
		}
		slices.Sort(took)
		t.Logf("cold browse: median %s, fastest %s, slowest %s", took[runs/2], took[0], took[runs-1])
		if m := took[runs/2]; m == 0 || m > 200*time.Millisecond {
			t.Errorf("cold browse takes %s", m)
		}
	})
}
