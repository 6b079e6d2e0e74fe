// SPDX-License-Identifier: BSD-3-Clause

// Package conformance holds the tests that every transport passes: the same
// links, requests and failures over each of them.
package conformance

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/transport"
)

// Open gives a network and a way to offer the service on it, for one test.
type Open func(t *testing.T) (transport.Network, func(t *testing.T) net.Listener)

// Run runs every case on the transport that open gives.
func Run(t *testing.T, open Open) {
	for name, test := range map[string]func(*testing.T, Open){
		"Hello":          testHello,
		"OutOfOrder":     testOutOfOrder,
		"Cancel":         testCancel,
		"Errors":         testErrors,
		"Lost":           testLost,
		"Large":          testLarge,
		"TooMany":        testTooMany,
		"WrongPhone":     testWrongPhone,
		"UnknownDevice":  testUnknownDevice,
		"BrokenEnvelope": testBrokenEnvelope,
		"Browse":         testBrowse,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open)
		})
	}
}

// NewIdentity makes an end of a link.
func NewIdentity(t *testing.T) *transport.Identity {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := transport.NewIdentity(key)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// Pinned accepts one end.
func Pinned(want transport.Pin) func(transport.Pin) error {
	return func(p transport.Pin) error {
		if p != want {
			return transport.ErrWrongPeer
		}
		return nil
	}
}

// Phone serves links on ln to one device until the test ends.
type Phone struct {
	ID     *transport.Identity
	Device transport.Pin
	// Asked counts how often a device's certificate was judged.
	mu    sync.Mutex
	asked int
}

// Asked is how many devices showed their certificate.
func (p *Phone) Asked() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

// Serve starts the phone on ln.
func (p *Phone) Serve(t *testing.T, ln net.Listener, h transport.Handler) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		for {
			raw, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				c, err := transport.Server(ctx, raw, p.ID, func(_ string, peer transport.Pin) error {
					p.mu.Lock()
					p.asked++
					p.mu.Unlock()
					return Pinned(p.Device)(peer)
				})
				if err == nil {
					transport.Serve(ctx, c, envelope.Hello{Name: "Pocket", Software: "test"}, h, nil)
				}
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		ln.Close()
		all.Wait()
	})
}

// Device dials a phone.
func Device(t *testing.T, n transport.Network, address string, id *transport.Identity, phone transport.Pin) (*transport.Link, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	raw, err := n.Dial(ctx, address)
	if err != nil {
		t.Fatal(err)
	}
	c, err := transport.Client(ctx, raw, id, transport.ProtoLink, Pinned(phone))
	if err != nil {
		return nil, err
	}
	l, err := transport.Open(ctx, c, envelope.Hello{Name: "laptop", Software: "test"})
	if err == nil {
		t.Cleanup(l.Close)
	}
	return l, err
}

func linked(t *testing.T, open Open, h transport.Handler) *transport.Link {
	t.Helper()
	n, listen := open(t)
	ln := listen(t)
	device, phone := NewIdentity(t), NewIdentity(t)
	(&Phone{ID: phone, Device: device.Pin()}).Serve(t, ln, h)
	l, err := Device(t, n, ln.Addr().String(), device, phone.Pin())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func sign(data string) *envelope.SignRequest {
	return &envelope.SignRequest{PublicKeyBlob: []byte("key"), Data: []byte(data), CreatedAt: envelope.At(time.Now())}
}

func answer(s string) *envelope.SignResponse { return &envelope.SignResponse{Signature: []byte(s)} }

func testHello(t *testing.T, open Open) {
	l := linked(t, open, nil)
	if got := l.Peer().Name; got != "Pocket" {
		t.Errorf("phone's name %q", got)
	}
	if s := l.Skew().Abs(); s > 5*time.Second {
		t.Errorf("skew of one clock to itself %v", s)
	}
	if err := l.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

func testOutOfOrder(t *testing.T, open Open) {
	release := make(chan struct{})
	started := make(chan struct{})
	l := linked(t, open, func(ctx context.Context, id string, req envelope.Payload) (envelope.Payload, error) {
		if r, ok := req.(*envelope.SignRequest); ok && string(r.Data) == "slow" {
			close(started)
			select {
			case <-release:
			case <-ctx.Done():
			}
			return answer("slow"), nil
		}
		return &envelope.KeyListResponse{}, nil
	})
	slow := make(chan error, 1)
	go func() {
		p, err := l.Call(t.Context(), "slow", sign("slow"))
		if r, ok := p.(*envelope.SignResponse); err == nil && (!ok || string(r.Signature) != "slow") {
			err = errors.New("another request's answer")
		}
		slow <- err
	}()
	<-started
	for range 100 {
		p, err := l.Call(t.Context(), transport.NewID(), &envelope.KeyListRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := p.(*envelope.KeyListResponse); !ok {
			t.Fatalf("answer %s", p.Type())
		}
	}
	select {
	case err := <-slow:
		t.Fatalf("the slow request ended by itself: %v", err)
	default:
	}
	if _, err := l.Call(t.Context(), "slow", &envelope.KeyListRequest{}); err == nil {
		t.Error("an id in use was taken again")
	}
	close(release)
	if err := <-slow; err != nil {
		t.Error(err)
	}
}

func testCancel(t *testing.T, open Open) {
	started, withdrawn := make(chan struct{}), make(chan struct{})
	l := linked(t, open, func(ctx context.Context, id string, req envelope.Payload) (envelope.Payload, error) {
		close(started)
		<-ctx.Done()
		defer close(withdrawn)
		return answer("too late"), nil
	})
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("client hung up")
	go func() {
		<-started
		cancel(why)
	}()
	if _, err := l.Call(ctx, "a", sign("x")); !errors.Is(err, why) {
		t.Errorf("error %v", err)
	}
	wait(t, withdrawn, "the handler's context to end")
	if err := l.Ping(t.Context()); err != nil {
		t.Errorf("the link did not outlive a cancel: %v", err)
	}
}

func testErrors(t *testing.T, open Open) {
	l := linked(t, open, func(ctx context.Context, id string, req envelope.Payload) (envelope.Payload, error) {
		if string(req.(*envelope.SignRequest).Data) == "deny" {
			return nil, envelope.Errorf(envelope.CodeDenied, "no")
		}
		return nil, errors.New("disk on fire")
	})
	var e *envelope.Error
	if _, err := l.Call(t.Context(), "a", sign("deny")); !errors.As(err, &e) || e.Code != envelope.CodeDenied || e.Message != "no" {
		t.Errorf("denied came as %v", err)
	}
	if _, err := l.Call(t.Context(), "b", sign("other")); !errors.As(err, &e) || e.Code != envelope.CodeInternal {
		t.Errorf("failure came as %v", err)
	}
	if _, err := l.Call(t.Context(), "c", &envelope.PairRequest{Name: "x", Commitment: make([]byte, 32)}); !errors.As(err, &e) || e.Code != envelope.CodeBadRequest {
		t.Errorf("a pairing on a link came as %v", err)
	}
	if _, err := l.Call(t.Context(), "d", &envelope.SignRequest{}); err == nil || errors.As(err, &e) {
		t.Errorf("an empty request was sent: %v", err)
	}
}

func testLost(t *testing.T, open Open) {
	n, listen := open(t)
	ln := listen(t)
	device, phone := NewIdentity(t), NewIdentity(t)
	started := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan struct{})
	go func() {
		defer close(served)
		raw, err := ln.Accept()
		if err != nil {
			return
		}
		c, err := transport.Server(ctx, raw, phone, func(_ string, p transport.Pin) error { return Pinned(device.Pin())(p) })
		if err != nil {
			return
		}
		transport.Serve(ctx, c, envelope.Hello{Name: "Pocket"}, func(ctx context.Context, id string, req envelope.Payload) (envelope.Payload, error) {
			close(started)
			<-ctx.Done()
			return answer("too late"), nil
		}, nil)
	}()
	l, err := Device(t, n, ln.Addr().String(), device, phone.Pin())
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-started
		cancel()
	}()
	_, err = l.Call(t.Context(), "a", sign("x"))
	var lost *transport.LostError
	if !errors.As(err, &lost) {
		t.Errorf("error %v", err)
	}
	wait(t, l.Done(), "the link to end")
	if _, err := l.Call(t.Context(), "b", sign("x")); !errors.As(err, &lost) || lost.Acknowledged {
		t.Errorf("call on a link that has ended: %v", err)
	}
	<-served
	ln.Close()
}

func testLarge(t *testing.T, open Open) {
	data := bytes.Repeat([]byte("x"), envelope.MaxData)
	l := linked(t, open, func(ctx context.Context, id string, req envelope.Payload) (envelope.Payload, error) {
		if !bytes.Equal(req.(*envelope.SignRequest).Data, data) {
			return nil, errors.New("damaged on the way")
		}
		return answer("s"), nil
	})
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if _, err := l.Call(t.Context(), transport.NewID(), sign(string(data))); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

func testTooMany(t *testing.T, open Open) {
	release := make(chan struct{})
	l := linked(t, open, func(ctx context.Context, id string, req envelope.Payload) (envelope.Payload, error) {
		select {
		case <-release:
		case <-ctx.Done():
		}
		return answer("s"), nil
	})
	const asked = 80
	errs := make(chan error, asked)
	for range asked {
		go func() {
			_, err := l.Call(t.Context(), transport.NewID(), sign("x"))
			errs <- err
		}()
	}
	// Those above the bound are answered while the others wait.
	for range asked - 64 {
		var e *envelope.Error
		if err := <-errs; !errors.As(err, &e) || e.Code != envelope.CodeTooMany {
			t.Errorf("a request above the bound: %v", err)
		}
	}
	close(release)
	for range 64 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func testWrongPhone(t *testing.T, open Open) {
	n, listen := open(t)
	ln := listen(t)
	device, rogue := NewIdentity(t), NewIdentity(t)
	p := &Phone{ID: rogue, Device: device.Pin()}
	p.Serve(t, ln, nil)
	if _, err := Device(t, n, ln.Addr().String(), device, NewIdentity(t).Pin()); !errors.Is(err, transport.ErrWrongPeer) {
		t.Errorf("error %v", err)
	}
	if p.Asked() != 0 {
		t.Error("a phone with the wrong key saw the device's certificate")
	}
}

func testUnknownDevice(t *testing.T, open Open) {
	n, listen := open(t)
	ln := listen(t)
	phone := NewIdentity(t)
	(&Phone{ID: phone, Device: NewIdentity(t).Pin()}).Serve(t, ln, nil)
	if _, err := Device(t, n, ln.Addr().String(), NewIdentity(t), phone.Pin()); !errors.Is(err, transport.ErrRefused) {
		t.Errorf("error %v", err)
	}
}

// testBrokenEnvelope sends what a device of ours never sends: the phone answers
// it and goes on.
func testBrokenEnvelope(t *testing.T, open Open) {
	l := linked(t, open, func(ctx context.Context, id string, req envelope.Payload) (envelope.Payload, error) {
		return &envelope.KeyListResponse{}, nil
	})
	if err := l.Conn().SendFrame([]byte(`{"version":1,"id":"a","type":"gossip","payload":{}}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Call(t.Context(), "b", &envelope.KeyListRequest{}); err != nil {
		t.Errorf("after an unknown type: %v", err)
	}
}

func testBrowse(t *testing.T, open Open) {
	n, listen := open(t)
	ln := listen(t)
	device, phone := NewIdentity(t), NewIdentity(t)
	(&Phone{ID: phone, Device: device.Pin()}).Serve(t, ln, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	found := make(chan transport.Candidate)
	var browse sync.WaitGroup
	browse.Go(func() {
		defer close(found)
		n.Browse(ctx, func(c transport.Candidate) {
			select {
			case found <- c:
			case <-ctx.Done():
			}
		})
	})
	c, err := transport.Race(ctx, nil, found, func(ctx context.Context, c transport.Candidate) (*transport.Conn, error) {
		raw, err := n.Dial(ctx, c.Address)
		if err != nil {
			return nil, err
		}
		return transport.Client(ctx, raw, device, transport.ProtoLink, Pinned(phone.Pin()))
	}, func(c *transport.Conn) { c.Close() })
	cancel()
	browse.Wait()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func wait(t *testing.T, c <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(10 * time.Second):
		t.Fatalf("waited 10 s for %s", what)
	}
}
