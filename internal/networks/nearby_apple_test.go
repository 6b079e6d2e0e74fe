// SPDX-License-Identifier: BSD-3-Clause

//go:build gnustep && cgo

package networks

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"testing"
	"time"

	"vmux.app/toolkit/internal/cocoa"
	"vmux.app/toolkit/internal/transport"
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

// The stand-in refuses by variables of the environment, which are the process's: these tests are not parallel.

func TestNearby(t *testing.T) {
	look := func(d time.Duration) (error, bool) {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		err := Nearby(ctx)
		return err, ctx.Err() != nil
	}
	if err, toTheEnd := look(100 * time.Millisecond); err != nil || !toTheEnd {
		t.Errorf("allowed: %v, looked to the end: %v", err, toTheEnd)
	}
	t.Setenv("FAKE_MPC_NOBROWSE", "-72008")
	if err, toTheEnd := look(10 * time.Second); !errors.Is(err, ErrNearby) || !errors.Is(err, transport.ErrNotAllowed) || toTheEnd {
		t.Errorf("refused: %v, looked to the end: %v", err, toTheEnd)
	}
}

func TestListenNearby(t *testing.T) {
	listen := func() net.Listener {
		t.Helper()
		l, err := ListenNearby(slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	l := listen()
	l.Close()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) || errors.Is(err, ErrNearby) {
		t.Errorf("closed: %v", err)
	}
	t.Setenv("FAKE_MPC_NOADVERTISE", "-72008")
	l = listen()
	defer l.Close()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) || !errors.Is(err, ErrNearby) || !errors.Is(err, transport.ErrNotAllowed) {
		t.Errorf("refused: %v", err)
	}
}
