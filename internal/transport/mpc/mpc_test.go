// SPDX-License-Identifier: BSD-3-Clause

//go:build gnustep && cgo

package mpc

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"os"
	"slices"
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
	// Everything was freed: what remains would grow with each link.
	deadline := time.Now().Add(5 * time.Second)
	for live() > 0 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if n := live(); n != 0 {
		t.Errorf("%d objects of the framework were not freed", n)
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
