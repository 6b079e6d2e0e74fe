// SPDX-License-Identifier: BSD-3-Clause

//go:build gnustep && cgo

package mpc

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/progrium/darwinkit/objc"

	"vmux.app/toolkit/internal/cocoa"
	"vmux.app/toolkit/internal/transport"
	"vmux.app/toolkit/internal/transport/conformance"
)

func TestMain(m *testing.M) { os.Exit(cocoa.Main(func() int { return program(m) })) }

func program(m *testing.M) int {
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	os.Setenv("FAKE_MPC_DIR", dir)
	return m.Run()
}

// ask sends a class of the stand-in a message that answers a number.
func live() (n uint64) {
	cocoa.Pool(func() { n = cocoa.Number(cocoa.Class("FakeMPC"), "live") })
	return n
}

func newNetwork(t *testing.T) *Network {
	t.Helper()
	n, err := New(Options{Service: "v" + strings.ToLower(rand.Text()[:12]), Name: "laptop"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

// Each test has a service type of its own.
func open(t *testing.T) (transport.Network, func(*testing.T) net.Listener) {
	n := newNetwork(t)
	return n, func(t *testing.T) net.Listener {
		l, err := n.Listen("Pocket")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
}

func TestConformance(t *testing.T) {
	t.Run("all", func(t *testing.T) { conformance.Run(t, open) })
	t.Run("Dropped", testDropped) // alone: it cuts every connection
	// Everything was freed: what remains would grow with each link.
	deadline := time.Now().Add(5 * time.Second)
	for live() > 0 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if n := live(); n != 0 {
		t.Errorf("%d objects of the framework were not freed", n)
	}
}

func testDropped(t *testing.T) {
	n, listen := open(t)
	ln := listen(t)
	defer ln.Close()
	device, err := n.Dial(t.Context(), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	phone, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer phone.Close()
	if phone.RemoteAddr().String() != "mpc:laptop" || device.RemoteAddr().String() != "mpc:Pocket" {
		t.Errorf("addresses %v and %v", phone.RemoteAddr(), device.RemoteAddr())
	}
	if _, err := phone.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2)
	if k, err := device.Read(b); k != 1 || err != nil {
		t.Fatal(k, err)
	}
	cocoa.Pool(func() { cocoa.Send(cocoa.Class("FakeMPC"), "drop") })
	for _, c := range []net.Conn{device, phone} {
		if _, err := c.Read(b); !errors.Is(err, ErrLost) {
			t.Errorf("error %v", err)
		}
		if _, err := c.Write(b); err == nil {
			t.Error("written to nobody")
		}
	}
}

// Names are claims: two peers may have one, and both are found and reached.
func TestSameName(t *testing.T) {
	t.Parallel()
	n, listen := open(t)
	for range 2 {
		ln := listen(t)
		defer ln.Close()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	found := map[string]bool{}
	if err := n.Browse(ctx, func(c transport.Candidate) {
		if found[c.Address] = true; len(found) == 2 {
			cancel()
		}
		if !c.Passing || c.Source != source {
			t.Errorf("candidate %+v", c)
		}
	}); err != nil {
		t.Error(err)
	}
	if !found["mpc:Pocket"] || !found["mpc:Pocket#2"] {
		t.Errorf("found %v", found)
	}
	for a := range found {
		c, err := n.Dial(t.Context(), a)
		if err != nil {
			t.Error(err)
			continue
		}
		c.Close()
	}
}

func TestListenerCloses(t *testing.T) {
	t.Parallel()
	_, listen := open(t)
	ln := listen(t)
	accepted := make(chan error, 1)
	go func() {
		_, err := ln.Accept()
		accepted <- err
	}()
	if err := ln.Close(); err != nil {
		t.Error(err)
	}
	if err := <-accepted; !errors.Is(err, net.ErrClosed) {
		t.Errorf("error %v", err)
	}
	if err := ln.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
}

// The framework may look at what a method's types are said to be. The stand-in's own delegate has them from the compiler.
func TestEncodings(t *testing.T) {
	t.Parallel()
	newNetwork(t)
	cocoa.Pool(func() {
		types := func(class, selector string) (all []string) {
			s := cocoa.Get(cocoa.Class(class), "instanceMethodSignatureForSelector:", objc.Sel(selector))
			for i := range cocoa.Number(s, "numberOfArguments") {
				at := cocoa.Get(s, "getArgumentTypeAtIndex:", i).Ptr()
				all = append(all, cocoa.Text(cocoa.Class("NSString"), "stringWithUTF8String:", at))
			}
			return all
		}
		for _, m := range delegateMethods {
			if strings.Contains(m.Types, "@?") {
				continue // GNUstep cannot read a block's type
			}
			want, got := types("FakeProtocols", m.Selector), types(delegateClass, m.Selector)
			if len(want) < 3 || !slices.Equal(want, got) {
				t.Errorf("%s takes %q, not %q", m.Selector, want, got)
			}
		}
	})
}

func TestDialNobody(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := n.Dial(ctx, "mpc:nobody"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	if _, err := n.Dial(ctx, "192.0.2.1:22"); !errors.Is(err, transport.ErrAddress) {
		t.Errorf("error %v", err)
	}
}

// A framework that refuses says so once. Whoever looks, dials or waits is told why, and whether it is the system's permission
// that is missing. The stand-in refuses by the name of the service.
func TestRefused(t *testing.T) {
	t.Parallel()
	for code, permission := range map[string]bool{"72008": true, "65570": true, "72004": false} {
		refused := func(what string, err error) {
			t.Helper()
			e, ok := errors.AsType[*cocoa.Error](err)
			if !ok || strconv.FormatInt(-e.Code, 10) != code || e.Domain != "NSNetServicesErrorDomain" || errors.Is(err, transport.ErrNotAllowed) != permission {
				t.Errorf("%s, %s: %v", what, code, err)
			}
		}
		made := func(service string) *Network {
			var said strings.Builder
			n, err := New(Options{Service: service, Name: "laptop", Log: slog.New(slog.NewTextHandler(&said, nil))})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				n.Close()
				if !strings.Contains(said.String(), "level=WARN") || !strings.Contains(said.String(), "-"+code) {
					t.Errorf("logged: %s", said.String())
				}
			})
			return n
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		n := made("nobrowse-" + code)
		refused("Browse", n.Browse(ctx, func(transport.Candidate) { t.Error("found somebody") }))
		_, err := n.Dial(ctx, "mpc:Pocket")
		refused("Dial", err)

		l, err := made("noadvert-" + code).Listen("Pocket")
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			_, err = l.Accept()
			refused("Accept", err)
			if !errors.Is(err, net.ErrClosed) || err == net.ErrClosed {
				t.Errorf("Accept: %v", err)
			}
		}
		if err := l.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
}
