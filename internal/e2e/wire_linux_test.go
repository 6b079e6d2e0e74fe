// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmux.app/toolkit/internal/netnstest"
	"vmux.app/toolkit/internal/transport/dnssd"
)

// wire runs f where the device, which is here in A, and the phone in B are two
// computers with a cable between them, and where sshd works.
func wire(t *testing.T, f func(t *testing.T, n *netnstest.Net)) {
	t.Helper()
	need(t, "sshd")
	netnstest.Run(t, func(t *testing.T, n *netnstest.Net) {
		// An ordinary user is root here with no other users, and sshd, which gives up
		// its privileges to one, ends.
		users, err := os.ReadFile("/proc/self/uid_map")
		if err != nil {
			t.Fatal(err)
		}
		if len(strings.Fields(string(users))) == 3 && strings.Fields(string(users))[2] == "1" {
			if os.Getenv("CI") == "true" {
				t.Fatal("logins in namespaces take root")
			}
			t.Skip("logins in namespaces take root")
		}
		f(t, n)
	})
}

// farPhone makes a signer's home on the other computer.
func farPhone(t testing.TB, n *netnstest.Net, name string) *phone {
	t.Helper()
	p := &phone{host: newHost(t)}
	p.start = n.B.Start
	p.ok("vmux-signer", "init", "--no-passphrase", "--name", name)
	return p
}

// port is where the phone listens.
func (p *phone) port() uint16 {
	p.t.Helper()
	a, err := netip.ParseAddrPort(p.address)
	if err != nil {
		p.t.Fatal(err)
	}
	return a.Port()
}

// pairBy pairs a device with the phone by URL; args say how it finds the phone.
func pairBy(t testing.TB, d *host, p *phone, args ...string) (url string) {
	t.Helper()
	pairing := d.spawn("vmux-pair", append([]string{"--url"}, args...)...)
	url = pairing.wait(`^vmux-pair://\S+`)[0]
	p.ok("vmux-signer", "pair", url)
	if exit := pairing.ended(); exit != 0 {
		t.Fatalf("vmux-pair: exit %d\n%s", exit, pairing.output())
	}
	return url
}

// claimOn waits until somebody advertises the port on the cable.
func claimOn(t testing.TB, port uint16) (claim dnssd.Claim) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	found := false
	err := dnssd.Browse(ctx, dnssd.Options{}, func(c dnssd.Claim) {
		if !found && c.Addrs[0].Port() == port {
			claim, found = c, true
			cancel()
		}
	})
	if err != nil || !found {
		t.Fatalf("nobody advertises port %d: %v", port, err)
	}
	return claim
}

// The device finds the phone by its advertisement alone, also after the phone
// died in mid-request and came back on another port under another name.
func TestDiscovery(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		six  bool
	}{{"IPv4AndIPv6", false}, {"IPv6", true}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			wire(t, func(t *testing.T, n *netnstest.Net) {
				if tt.six {
					for _, ns := range []*netnstest.Namespace{n.A, n.B} {
						if err := ns.IP("addr", "del", ns.IPv4.String()+"/24", "dev", ns.Interface); err != nil {
							t.Fatal(err)
						}
					}
				}
				discovery(t, n)
			})
		})
	}
}

func discovery(t *testing.T, n *netnstest.Net) {
	p := farPhone(t, n, "Pocket")
	p.serveOn(":0", "--approve", "always")
	d := newHost(t)
	pairBy(t, d, p)
	agent := d.agent()
	s := newServer(t, d.ok("ssh-add", "-L"))
	if r := s.login(d, "echo", "in"); r.exit != 0 || r.stdout != "in\n" {
		t.Fatalf("login: %v\n%s", r, agent.output())
	}
	agent.wait(fmt.Sprintf(`msg=connected .*:%d"? `, p.port()))
	first, firstPort := claimOn(t, p.port()), p.port()

	// Once more with an owner who takes his time, and dies.
	if exit := p.serving.stop(syscall.SIGTERM); exit != 0 {
		t.Errorf("signer: exit %d", exit)
	}
	owner := p.askpass()
	p.serveOn(":0", "--approve", "askpass")
	login := d.spawn("ssh", s.args("true")...)
	waiting := owner.next()
	p.serving.stop(syscall.SIGKILL)
	if exit := login.ended(); exit == 0 {
		t.Error("logged in without an answer")
	}
	waiting.deny() // the dialog is nobody's child any more, and must end
	agent.wait(`outcome=failed reason="[^"]*(lost|cannot be reached)`)

	p.serveOn(":0", "--approve", "always")
	if r := s.login(d, "echo", "again"); r.exit != 0 || r.stdout != "again\n" {
		t.Errorf("after the signer's return: %v\n%s", r, agent.output())
	}
	second, secondPort := claimOn(t, p.port()), p.port()
	if firstPort == secondPort || first.Instance == second.Instance {
		t.Errorf("%s on port %d, then %s on port %d", first.Instance, firstPort, second.Instance, secondPort)
	}
	agent.wait(fmt.Sprintf(`msg=connected .*:%d"? `, secondPort))
}

// Where multicast does not get through, an address does, and whoever else is at
// that address gets nothing.
func TestAddressWithoutMulticast(t *testing.T) {
	t.Parallel()
	wire(t, func(t *testing.T, n *netnstest.Net) {
		for _, ns := range []*netnstest.Namespace{n.A, n.B} {
			if err := ns.IP("link", "set", ns.Interface, "multicast", "off"); err != nil {
				t.Fatal(err)
			}
		}
		wireTap := newCapture(t, n.B)
		p := farPhone(t, n, "Pocket")
		p.serveOn(netip.AddrPortFrom(n.B.IPv4, 0).String(), "--approve", "always")
		d := newHost(t)
		pairBy(t, d, p, "--address", p.address)
		agent := d.agent()
		s := newServer(t, d.ok("ssh-add", "-L"))
		if r := s.login(d, "true"); r.exit != 0 {
			t.Fatalf("login: %v\n%s", r, agent.output())
		}

		// Another signer takes the address over.
		p.serving.stop(syscall.SIGTERM)
		other := farPhone(t, n, "Pocket")
		other.serveOn(p.address, "--approve", "always", "--log-level", "debug")
		if r := s.login(d, "true"); r.exit == 0 {
			t.Error("logged in by another phone")
		}
		agent.wait(`phone not reached.*the other end is not the one that was paired`)
		other.serving.wait(`connection refused`)
		if strings.Contains(other.serving.output(), `"connected"`) {
			t.Errorf("the other phone was linked:\n%s", other.serving.output())
		}
		other.serving.stop(syscall.SIGTERM)

		p.serveOn(p.address, "--approve", "always")
		if r := s.login(d, "true"); r.exit != 0 {
			t.Errorf("after the phone's return: %v\n%s", r, agent.output())
		}
		for _, k := range wireTap.end(t, n) {
			if k.udp && (k.src.Port() == mdnsPort || k.dst.Port() == mdnsPort) {
				t.Errorf("multicast got through: %v to %v", k.src, k.dst)
			}
		}
	})
}

// The cable is out while the owner is asked: the client hears so in time, and
// the next login works once the cable is in again.
func TestCableOut(t *testing.T) {
	t.Parallel()
	wire(t, func(t *testing.T, n *netnstest.Net) {
		wireTap := newCapture(t, n.A)
		p := farPhone(t, n, "Pocket")
		owner := p.askpass()
		p.serveOn(":0", "--approve", "askpass")
		d := newHost(t)
		pairBy(t, d, p, "--address", netip.AddrPortFrom(n.B.IPv4, p.port()).String())
		agent := d.agent()
		s := newServer(t, d.ok("ssh-add", "-L"))
		login := d.spawn("ssh", s.args("true")...)
		waiting := owner.next()
		// The phone's next word is that it is still asking.
		said := wireTap.count(func(k packet) bool { return k.tcp && k.src.Port() == p.port() && len(k.payload) > 0 })
		eventually(t, "the phone to acknowledge", func() bool {
			return wireTap.count(func(k packet) bool { return k.tcp && k.src.Port() == p.port() && len(k.payload) > 0 }) > said
		})
		if err := n.B.IP("link", "set", n.B.Interface, "down"); err != nil {
			t.Fatal(err)
		}
		cut := time.Now()
		if exit := login.ended(); exit == 0 {
			t.Error("logged in without a phone")
		}
		// 5 s to the next sign of life and 3 s of patience; the rest is ssh's.
		took := time.Since(cut)
		if took > 10*time.Second {
			t.Errorf("the client had its answer after %v", took)
		}
		agent.wait(`outcome=failed reason="the link to the phone was lost while it was asking`)

		if err := errors.Join(n.B.IP("link", "set", n.B.Interface, "up"), n.B.IP("addr", "replace", n.B.LinkLocal.String()+"/64", "dev", n.B.Interface, "nodad")); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the cable to be in", func() bool {
			i, err := net.InterfaceByName(n.A.Interface)
			return err == nil && i.Flags&net.FlagRunning != 0
		})
		in := time.Now()
		login = d.spawn("ssh", s.args("echo", "in")...)
		waiting.withdrawn()
		withdrawn := time.Since(in)
		owner.next().approve()
		if exit := login.ended(); exit != 0 {
			t.Errorf("with the cable in: exit %d\n%s\n%s", exit, login.output(), agent.output())
		}
		t.Logf("answer %v after the cut; old prompt withdrawn %v and login done %v after the cable was in", took, withdrawn, time.Since(in))
	})
}
