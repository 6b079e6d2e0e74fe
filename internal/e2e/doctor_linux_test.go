// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"vmux.app/toolkit/internal/netnstest"
)

// What the doctor says of the way to a phone, on two computers with a cable
// between them: found by DNS-SD, found anew, kept from discovery, cut off.
func TestDoctorNetwork(t *testing.T) {
	t.Parallel()
	netnstest.Run(t, func(t *testing.T, n *netnstest.Net) {
		p := farPhone(t, n, "Pocket")
		p.serveOn(":0", "--approve", "always")
		d := newHost(t)
		d.alone()
		pairBy(t, d, p)
		d.agent()
		d.ok("vmux-cert")
		found := func(c checkup, id string) string {
			for _, k := range c.Checks {
				if k.ID == id {
					return k.Found
				}
			}
			return ""
		}

		c := d.doctor(0)
		at := fmt.Sprintf(":%d on va", p.port())
		if f := found(c, "discovery"); !strings.HasPrefix(f, "Pocket at ") || !strings.HasSuffix(f, at) {
			t.Errorf("discovery: %q, not %s", f, at)
		}
		if f := found(c, "multicast"); f != "on va" {
			t.Errorf("multicast: %q", f)
		}
		t.Logf("%d checks in %.3f s", len(c.Checks), c.Seconds)

		// On another port it is found all the same.
		old := p.port()
		p.serving.stop(syscall.SIGTERM)
		p.serveOn(":0", "--approve", "always")
		if p.port() == old {
			t.Skip("the system has given the same port again")
		}
		c = d.doctor(0)
		if f := found(c, "link"); !strings.Contains(f, fmt.Sprintf(":%d in ", p.port())) {
			t.Errorf("link: %q", f)
		}

		// It answers, and nobody is found.
		port := p.port()
		eventually(t, "the agent to remember the address", func() bool {
			b, err := os.ReadFile(d.path(".local", "state", "vmux", "agent.json"))
			return err == nil && strings.Contains(string(b), fmt.Sprintf(":%d\"", port))
		})
		p.serving.stop(syscall.SIGTERM)
		p.serveOn(fmt.Sprintf(":%d", port), "--approve", "always", "--no-advertise")
		c = d.doctor(1)
		if !slices.Equal(c.sick(), []string{"isolation"}) || c.level("discovery") != "skipped" || !strings.Contains(found(c, "isolation"), "discovery finds nobody") {
			t.Errorf("without multicast: %+v", c)
		}

		// No way at all.
		if err := n.A.IP("link", "set", n.A.Interface, "down"); err != nil {
			t.Fatal(err)
		}
		c = d.doctor(2)
		if !slices.Equal(c.sick(), []string{"multicast", "link"}) || !strings.Contains(found(c, "link"), "unreachable") {
			t.Errorf("without a cable: %+v", c)
		}
	})
}
