// SPDX-License-Identifier: BSD-3-Clause

package lan_test

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"

	"vmux.app/toolkit/internal/transport"
	"vmux.app/toolkit/internal/transport/conformance"
	"vmux.app/toolkit/internal/transport/dnssd"
	"vmux.app/toolkit/internal/transport/lan"
)

// Each test has a service type of its own on the loopback interface.
func open(t *testing.T) (transport.Network, func(*testing.T) net.Listener) {
	o := dnssd.Options{Loopback: true, Log: slog.New(slog.DiscardHandler),
		Service: "_v" + strings.ToLower(rand.Text()[:12]) + "._tcp"}
	return &lan.Network{DNSSD: o}, func(t *testing.T) net.Listener {
		ln, err := lan.Listen(t.Context(), "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		var advertising sync.WaitGroup
		advertising.Go(func() {
			if err := dnssd.Advertise(ctx, o, dnssd.RandomName(), uint16(ln.Addr().(*net.TCPAddr).Port)); err != nil {
				t.Error(err)
			}
		})
		t.Cleanup(func() {
			cancel()
			advertising.Wait()
		})
		return ln
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	conformance.Run(t, open)
}

func TestCheckAddress(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"127.0.0.1:1", "phone.local:65535", "[fe80::1%eth0]:22", "10.0.0.1:4022"} {
		if err := lan.CheckAddress(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", "phone", ":22", "phone:", "phone:0", "phone:65536", "phone:ssh", "fe80::1:22", "phone:-1", "phone:+22"} {
		if err := lan.CheckAddress(bad); !errors.Is(err, lan.ErrAddress) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
