// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/transport"
)

// relay stands between a device and its phone and has the link keys of both. So
// the test sees what passes, and can say other things in the device's name.
type relay struct {
	t              testing.TB
	l              net.Listener
	p              *phone
	device, signer *transport.Identity
	ctx            context.Context
	running        sync.WaitGroup

	mu     sync.Mutex
	says   func(*envelope.SignRequest) // changes what the device says, if set
	deaf   bool                        // the phone hears of no withdrawal
	asked  []envelope.SignRequest      // as the device sent them
	there  map[string]bool             // requests that the phone has
	most   int                         // of them at once
	signed int                         // signatures that the phone gave
}

// between puts a relay between a device and the phone that it is paired with.
// The device's agent is started afterwards.
func between(t testing.TB, d *host, p *phone) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	key, err := store.LinkKey(filepath.Join(p.homeDir(), "link-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{t: t, l: l, p: p, there: map[string]bool{}}
	if r.signer, err = transport.NewIdentity(key); err != nil {
		t.Fatal(err)
	}
	if r.device, err = transport.NewIdentity(d.linkKey()); err != nil {
		t.Fatal(err)
	}
	state, err := os.ReadFile(d.path(stateFile))
	if err != nil || !strings.Contains(string(state), p.address) {
		t.Fatalf("the device does not know the phone's address %s (%v): %s", p.address, err, state)
	}
	d.put(stateFile, strings.ReplaceAll(string(state), p.address, l.Addr().String()), 0o600)

	ctx, cancel := context.WithCancel(context.Background())
	r.ctx = ctx
	r.running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.running.Go(func() { r.serve(c) })
		}
	})
	t.Cleanup(func() {
		cancel()
		l.Close()
		r.running.Wait()
	})
	return r
}

// serve passes on what the ends of one link say.
func (r *relay) serve(c net.Conn) {
	device, err := transport.Server(r.ctx, c, r.signer, func(string, transport.Pin) error { return nil })
	if err != nil {
		return
	}
	defer device.Close()
	phone, err := (&raw{r.t, r.device}).dial(r.ctx, r.p.address, transport.ProtoLink)
	if err != nil {
		return
	}
	defer phone.Close()
	defer context.AfterFunc(r.ctx, func() { device.Close(); phone.Close() })()
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.pass(device, phone, r.fromPhone)
	}()
	r.pass(phone, device, r.fromDevice)
	<-done
}

// pass ends both connections when one has ended.
func (r *relay) pass(to, from *transport.Conn, look func(envelope.Envelope) (drop bool)) {
	defer to.Close()
	defer from.Close()
	for {
		e, err := from.Receive()
		if err != nil {
			return
		}
		if look(e) {
			continue
		}
		if err := to.Send(e); err != nil {
			return
		}
	}
}

func (r *relay) fromDevice(e envelope.Envelope) (drop bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch q := e.Payload.(type) {
	case *envelope.SignRequest:
		r.asked = append(r.asked, *q)
		r.there[e.ID] = true
		r.most = max(r.most, len(r.there))
		if r.says != nil {
			r.says(q)
		}
	case *envelope.Cancel:
		if !r.deaf {
			delete(r.there, e.ID)
		}
		return r.deaf
	}
	return false
}

func (r *relay) fromPhone(e envelope.Envelope) (drop bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch e.Payload.(type) {
	case *envelope.SignResponse:
		r.signed++
		delete(r.there, e.ID)
	case *envelope.Error:
		delete(r.there, e.ID)
	}
	return false
}

// lies has the relay change what the device says from now on.
func (r *relay) lies(says func(*envelope.SignRequest)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.says = says
}

// hears says whether the phone hears of withdrawals from now on.
func (r *relay) hears(withdrawals bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.deaf = !withdrawals
}

// open is how many requests the phone has now, and had at most.
func (r *relay) open() (now, most int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.there), r.most
}

// gave is how many signatures the phone gave.
func (r *relay) gave() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.signed
}

// requests are what the device asked so far, as it said it.
func (r *relay) requests() []envelope.SignRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.asked)
}

// fills waits until the phone has n requests.
func (r *relay) fills(n int) {
	r.t.Helper()
	eventually(r.t, "the phone to have the requests", func() bool { now, _ := r.open(); return now == n })
}

// relayed is a device whose owner is asked, and the relay on its link.
func relayed(t testing.TB, args ...string) (*host, *phone, *approver, *relay) {
	t.Helper()
	p := newPhone(t)
	owner := p.askpass()
	p.serve("--approve", "askpass")
	d := newHost(t)
	pair(t, d, p)
	r := between(t, d, p)
	d.agent(args...)
	return d, p, owner, r
}
