// SPDX-License-Identifier: BSD-3-Clause

// Package mem is a transport.Network inside one process, for tests. Its
// streams are buffered, so that TLS runs over them, and wait on channels only,
// so that they work inside a testing/synctest bubble.
package mem

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"vmux.app/toolkit/internal/transport"
)

// Network joins listeners and dialers that share it. The zero value is ready.
type Network struct {
	mu        sync.Mutex
	listeners map[string]*listener
	watch     []chan struct{} // closed when the listeners change
}

// Listen offers the service at an address, any text.
func (n *Network) Listen(address string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners == nil {
		n.listeners = map[string]*listener{}
	}
	if _, ok := n.listeners[address]; ok {
		return nil, errors.New("address in use")
	}
	l := &listener{net: n, address: address, conns: make(chan net.Conn), done: make(chan struct{})}
	n.listeners[address] = l
	n.changedLocked()
	return l, nil
}

func (n *Network) changedLocked() {
	for _, w := range n.watch {
		close(w)
	}
	n.watch = nil
}

// Browse reports the listeners, each as a source of its own.
func (n *Network) Browse(ctx context.Context, found func(transport.Candidate)) error {
	seen := map[*listener]bool{}
	for {
		var fresh []string
		changed := make(chan struct{})
		n.mu.Lock()
		for a, l := range n.listeners {
			if !seen[l] {
				seen[l] = true
				fresh = append(fresh, a)
			}
		}
		n.watch = append(n.watch, changed)
		n.mu.Unlock()
		for _, a := range fresh {
			found(transport.Candidate{Source: a, Instance: "vmux", Address: a})
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// Dial connects to the listener at address.
func (n *Network) Dial(ctx context.Context, address string) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[address]
	n.mu.Unlock()
	if l == nil {
		return nil, errors.New("connection refused")
	}
	here, there := Pipe()
	select {
	case l.conns <- there:
		return here, nil
	case <-l.done:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

type listener struct {
	net     *Network
	address string
	conns   chan net.Conn
	once    sync.Once
	done    chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() {
		l.net.mu.Lock()
		defer l.net.mu.Unlock()
		delete(l.net.listeners, l.address)
		l.net.changedLocked()
		close(l.done)
	})
	return nil
}

func (l *listener) Addr() net.Addr { return addr(l.address) }

type addr string

func (a addr) Network() string { return "mem" }
func (a addr) String() string  { return string(a) }

// Pipe gives the two ends of a stream.
func Pipe() (net.Conn, net.Conn) {
	a, b := newHalf(), newHalf()
	return &conn{in: a, out: b}, &conn{in: b, out: a}
}

// half is one direction of a stream: unbounded, since tests know their amounts.
type half struct {
	mu       sync.Mutex
	buf      []byte
	ended    bool          // by the writer: what is buffered can still be read
	stalled  bool          // a black hole: what is written vanishes
	deadline time.Time     // of the reader
	changed  chan struct{} // closed at each change
}

func newHalf() *half { return &half{changed: make(chan struct{})} }

func (h *half) changedLocked() {
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *half) read(p []byte) (int, error) {
	for {
		h.mu.Lock()
		changed, deadline := h.changed, h.deadline
		expired := !deadline.IsZero() && !time.Now().Before(deadline)
		switch {
		case expired:
			h.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		case len(h.buf) > 0:
			n := copy(p, h.buf)
			h.buf = h.buf[n:]
			h.mu.Unlock()
			return n, nil
		case h.ended:
			h.mu.Unlock()
			return 0, io.EOF
		}
		h.mu.Unlock()
		if deadline.IsZero() {
			<-changed
			continue
		}
		t := time.NewTimer(time.Until(deadline))
		select {
		case <-changed:
		case <-t.C:
		}
		t.Stop()
	}
}

func (h *half) write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		return 0, io.ErrClosedPipe
	}
	if !h.stalled {
		h.buf = append(h.buf, p...)
		h.changedLocked()
	}
	return len(p), nil
}

func (h *half) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.ended {
		h.ended = true
		h.changedLocked()
	}
}

type conn struct{ in, out *half }

func (c *conn) Read(p []byte) (int, error)  { return c.in.read(p) }
func (c *conn) Write(p []byte) (int, error) { return c.out.write(p) }

func (c *conn) Close() error {
	c.in.end()
	c.out.end()
	return nil
}

// Stall makes the stream of this end a black hole in both directions: nothing
// arrives and nobody is told.
func (c *conn) Stall() {
	for _, h := range []*half{c.in, c.out} {
		h.mu.Lock()
		h.stalled = true
		h.mu.Unlock()
	}
}

// Stall makes a black hole of a stream of this package.
func Stall(c net.Conn) { c.(*conn).Stall() }

func (c *conn) LocalAddr() net.Addr  { return addr("mem") }
func (c *conn) RemoteAddr() net.Addr { return addr("mem") }

func (c *conn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

func (c *conn) SetReadDeadline(t time.Time) error {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	c.in.deadline = t
	c.in.changedLocked()
	return nil
}

// SetWriteDeadline does nothing: writing never waits.
func (c *conn) SetWriteDeadline(time.Time) error { return nil }
