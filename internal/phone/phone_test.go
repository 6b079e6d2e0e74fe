// SPDX-License-Identifier: BSD-3-Clause

package phone

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/pairing"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/transport"
	"vmux.app/toolkit/internal/transport/conformance"
	"vmux.app/toolkit/internal/transport/mem"
)

// rig is a device with one phone that it is paired with. The phone answers as
// the test says; the device's side is the real one.
type rig struct {
	net    *mem.Network
	device *transport.Identity
	phone  *transport.Identity
	keep   *store.Memory
	set    *Set
	key    envelope.PublicKey

	mu    sync.Mutex
	links int      // opened to the phone
	ids   []string // of sign requests, as they came
	sign  func(ctx context.Context, n int, r *envelope.SignRequest) (envelope.Payload, error)
	keys  []envelope.PublicKey
	ca    []byte

	certify func(context.Context, *envelope.CertificateRequest) (envelope.Payload, error)
	tell    []envelope.Payload
}

func testKey(t *testing.T, comment string) envelope.PublicKey {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return envelope.PublicKey{Algorithm: k.Type(), PublicKeyBlob: k.Marshal(), Comment: comment, ProviderKind: envelope.Unknown}
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{net: new(mem.Network), device: conformance.NewIdentity(t), phone: conformance.NewIdentity(t),
		keep: new(store.Memory), key: testKey(t, "id")}
	r.keys = []envelope.PublicKey{r.key}
	r.sign = func(context.Context, int, *envelope.SignRequest) (envelope.Payload, error) {
		return &envelope.SignResponse{Signature: []byte("signed")}, nil
	}
	err := r.keep.Update(func(s *store.State) error {
		s.Phones = []store.Phone{{Name: "Pocket", Pin: r.phone.Pin().String(), PairedAt: time.Now(),
			Keys: []store.Key{{Algorithm: r.key.Algorithm, Blob: r.key.PublicKeyBlob, Comment: "id", ProviderKind: "unknown"}}}}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	r.set, err = NewSet(r.options())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.set.Close)
	return r
}

func (r *rig) options() Options {
	return Options{Identity: r.device, Name: "laptop", Software: "test", Networks: []transport.Network{r.net},
		Store: r.keep, Deadline: time.Minute, Log: slog.New(slog.DiscardHandler)}
}

// serve starts the phone at an address and gives what stops it.
func (r *rig) serve(t *testing.T, address string, accept func(transport.Pin) error) (stop func()) {
	t.Helper()
	ln, err := r.net.Listen(address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		for {
			raw, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() { r.one(ctx, raw, accept) })
		}
	})
	stop = sync.OnceFunc(func() {
		cancel()
		ln.Close()
		all.Wait()
	})
	t.Cleanup(stop)
	return stop
}

func (r *rig) one(ctx context.Context, raw net.Conn, accept func(transport.Pin) error) {
	c, err := transport.Server(ctx, raw, r.phone, func(_ string, p transport.Pin) error { return accept(p) })
	if err != nil {
		return
	}
	r.mu.Lock()
	r.links++
	r.mu.Unlock()
	transport.Serve(ctx, c, envelope.Hello{Name: "Pocket", Software: "test"}, func(ctx context.Context, id string, req envelope.Payload) (envelope.Payload, error) {
		switch q := req.(type) {
		case *envelope.KeyListRequest:
			r.mu.Lock()
			defer r.mu.Unlock()
			return &envelope.KeyListResponse{Keys: r.keys, CAKey: r.ca}, nil
		case *envelope.CertificateRequest:
			return r.certify(ctx, q)
		case *envelope.SignRequest:
			r.mu.Lock()
			r.ids = append(r.ids, id)
			n := len(r.ids)
			r.mu.Unlock()
			return r.sign(ctx, n, q)
		}
		return nil, errors.New("unexpected")
	}, func() []envelope.Payload { return r.tell })
}

func (r *rig) paired(p transport.Pin) error { return conformance.Pinned(r.device.Pin())(p) }

func (r *rig) ask(ctx context.Context) ([]byte, error) {
	return r.set.Sign(ctx, envelope.SignRequest{PublicKeyBlob: r.key.PublicKeyBlob, Data: []byte("data")})
}

func TestSign(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.sign = func(_ context.Context, _ int, q *envelope.SignRequest) (envelope.Payload, error) {
			if string(q.Data) != "data" || q.Context.Device != "laptop" || !q.CreatedAt.Equal(envelope.At(time.Now()).Time) {
				return nil, fmt.Errorf("request %+v", q)
			}
			return &envelope.SignResponse{Signature: []byte("signed")}, nil
		}
		r.serve(t, "phone:1", r.paired)
		if s, err := r.ask(t.Context()); err != nil || string(s) != "signed" {
			t.Errorf("%q, %v", s, err)
		}
	})
}

func TestUnreachable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		start := time.Now()
		if _, err := r.ask(t.Context()); !errors.Is(err, ErrUnreachable) {
			t.Errorf("error %v", err)
		}
		if d := time.Since(start); d > 3*time.Second {
			t.Errorf("failed after %v", d)
		}
		if k := r.set.Keys(); len(k) != 1 || k[0].Comment != "id" {
			t.Errorf("listed %v", k)
		}
	})
}

// A login that tries one key after another waits for an absent phone once.
func TestUnreachableForEveryKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		start := time.Now()
		for range 5 {
			if _, err := r.ask(t.Context()); !errors.Is(err, ErrUnreachable) {
				t.Errorf("error %v", err)
			}
		}
		if d := time.Since(start); d > reachTimeout+4*glance {
			t.Errorf("failed after %v", d)
		}
		// It is back at once.
		r.serve(t, "phone:1", r.paired)
		if _, err := r.ask(t.Context()); err != nil {
			t.Errorf("after the phone's return: %v", err)
		}
	})
}

func TestOneLinkForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.serve(t, "phone:1", r.paired)
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				if _, err := r.ask(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if r.links != 1 {
			t.Errorf("%d links", r.links)
		}
	})
}

// The phone restarts somewhere else while it asks: that request fails and says
// so, the next one finds it.
func TestRestartElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		started := make(chan struct{})
		r.sign = func(ctx context.Context, n int, _ *envelope.SignRequest) (envelope.Payload, error) {
			if n == 1 {
				<-time.After(2 * time.Second) // beyond the acknowledgement
				close(started)
				<-ctx.Done()
			}
			return &envelope.SignResponse{Signature: []byte("signed")}, nil
		}
		stop := r.serve(t, "phone:1", r.paired)
		go func() {
			<-started
			stop()
		}()
		if _, err := r.ask(t.Context()); !errors.Is(err, ErrLost) {
			t.Errorf("error %v", err)
		}
		r.serve(t, "phone:2", r.paired)
		if _, err := r.ask(t.Context()); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if state, _ := r.keep.Load(); state.Phones[0].Address != "phone:2" {
			t.Errorf("remembered %q", state.Phones[0].Address)
		}
	})
}

// A request that nobody has seen goes out again under the same id.
func TestUnseenRequestIsSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		stop := r.serve(t, "phone:1", r.paired)
		if _, err := r.ask(t.Context()); err != nil {
			t.Fatal(err)
		}
		stop()
		r.serve(t, "phone:1", r.paired)
		if _, err := r.ask(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.serve(t, "phone:1", r.paired)
		for code, want := range fromPhone {
			r.sign = func(context.Context, int, *envelope.SignRequest) (envelope.Payload, error) {
				return nil, envelope.Errorf(code, "because")
			}
			if _, err := r.ask(t.Context()); !errors.Is(err, want) {
				t.Errorf("%s came as %v", code, err)
			}
		}
		if _, err := r.set.Sign(t.Context(), envelope.SignRequest{PublicKeyBlob: []byte("other"), Data: []byte("x")}); !errors.Is(err, ErrUnknownKey) {
			t.Errorf("unknown key: %v", err)
		}
	})
}

func TestDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		withdrawn := make(chan struct{})
		r.sign = func(ctx context.Context, _ int, _ *envelope.SignRequest) (envelope.Payload, error) {
			<-ctx.Done()
			close(withdrawn)
			return nil, ctx.Err()
		}
		r.serve(t, "phone:1", r.paired)
		start := time.Now()
		if _, err := r.ask(t.Context()); !errors.Is(err, ErrTimeout) {
			t.Errorf("error %v", err)
		}
		if d := time.Since(start); d != time.Minute {
			t.Errorf("after %v", d)
		}
		<-withdrawn
	})
}

func TestHangUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		started, withdrawn := make(chan struct{}), make(chan struct{})
		r.sign = func(ctx context.Context, _ int, _ *envelope.SignRequest) (envelope.Payload, error) {
			close(started)
			<-ctx.Done()
			close(withdrawn)
			return nil, ctx.Err()
		}
		r.serve(t, "phone:1", r.paired)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-started
			cancel()
		}()
		if _, err := r.ask(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		<-withdrawn
	})
}

// A phone that has forgotten this device says so at once, and is not asked for
// three seconds.
func TestForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.serve(t, "phone:1", func(transport.Pin) error { return errors.New("who?") })
		start := time.Now()
		if _, err := r.ask(t.Context()); !errors.Is(err, ErrForgotten) {
			t.Errorf("error %v", err)
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("after %v", d)
		}
	})
}

func TestNotPaired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.serve(t, "phone:1", r.paired)
		if _, err := r.ask(t.Context()); err != nil {
			t.Fatal(err)
		}
		link := r.set.phones[0].link
		if err := r.keep.Update(func(s *store.State) error {
			s.Forget(r.phone.Pin().String())
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if err := r.set.Reload(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-link.Done():
		default:
			t.Error("the link to a forgotten phone lives on")
		}
		if _, err := r.ask(t.Context()); !errors.Is(err, ErrNotPaired) {
			t.Errorf("error %v", err)
		}
		if k := r.set.Keys(); len(k) != 0 {
			t.Errorf("keys of a forgotten phone are listed: %v", k)
		}
	})
}

// A key that is new on the phone appears without pairing again.
func TestKeysAreRefreshed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.serve(t, "phone:1", r.paired)
		if _, err := r.ask(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		second := testKey(t, "second")
		r.mu.Lock()
		r.keys = append(r.keys, second)
		r.mu.Unlock()
		<-time.After(refreshAfter + time.Second)
		r.set.Keys()
		synctest.Wait()
		if k := r.set.Keys(); len(k) != 2 || k[1].Comment != "second" {
			t.Errorf("listed %v", k)
		}
		if state, _ := r.keep.Load(); len(state.Phones[0].Keys) != 2 {
			t.Errorf("stored %v", state.Phones[0].Keys)
		}
	})
}

// TestThreat_T08_RogueGetsNothing has phones of other owners answer before the
// real one does.
func TestThreat_T08_RogueGetsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		for i := range 30 {
			rogue := newRig(t)
			rogue.net = r.net
			rogue.sign = func(context.Context, int, *envelope.SignRequest) (envelope.Payload, error) {
				t.Error("a rogue was asked")
				return nil, errors.New("rogue")
			}
			rogue.serve(t, fmt.Sprint("rogue:", i+1), func(transport.Pin) error {
				t.Error("a rogue saw the device's certificate")
				return nil
			})
		}
		r.serve(t, "phone:1", r.paired)
		if _, err := r.ask(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// window is a phone whose pairing window is open.
func (r *rig) window(t *testing.T, address, name string, o pairing.PhoneOptions) {
	t.Helper()
	o.Name = name
	ln, err := r.net.Listen(address)
	if err != nil {
		t.Fatal(err)
	}
	id := conformance.NewIdentity(t)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			raw, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				c, err := transport.Server(context.Background(), raw, id, func(string, transport.Pin) error { return nil })
				switch {
				case err != nil:
				case c.Proto() == transport.ProtoPair:
					pairing.Phone(t.Context(), c, id.Pin(), envelope.Hello{Name: name, Clock: envelope.At(time.Now())}, o)
				default:
					transport.Serve(t.Context(), c, envelope.Hello{Name: name}, func(context.Context, string, envelope.Payload) (envelope.Payload, error) {
						return &envelope.KeyListResponse{Keys: r.keys, CAKey: r.key.PublicKeyBlob}, nil
					}, nil)
				}
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		all.Wait()
	})
}

func TestPair(t *testing.T) {
	for name, test := range map[string]struct {
		phones  []string // names; each has its digits under its own name
		wanted  string
		address string
		choose  string
		paired  string
		err     error
	}{
		"one":              {phones: []string{"Pocket"}, paired: "Pocket"},
		"one by address":   {phones: []string{"Pocket", "Other"}, address: "phone:2", paired: "Other"},
		"by name":          {phones: []string{"Other", "Pocket", "Third"}, wanted: "pocket", paired: "Pocket"},
		"chosen":           {phones: []string{"Other", "Pocket"}, choose: "Pocket", paired: "Pocket"},
		"several":          {phones: []string{"Other", "Pocket"}, err: ErrSeveral},
		"no such name":     {phones: []string{"Other"}, wanted: "Pocket", err: ErrNoPhone},
		"none":             {err: ErrNoPhone},
		"none at address":  {phones: []string{"Other"}, address: "elsewhere:1", err: ErrNoPhone},
		"of the same name": {phones: []string{"Twin", "Twin"}, wanted: "Twin", err: ErrSeveral},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				r.keep = new(store.Memory)
				codes := make(chan string, len(test.phones))
				for i, n := range test.phones {
					r.window(t, fmt.Sprintf("phone:%d", i+1), n, pairing.PhoneOptions{
						Confirm: func(_ context.Context, device, code string) error {
							codes <- code
							return nil
						},
						Store: func(pairing.Peer) error { return nil },
					})
				}
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				p, err := Pair(ctx, PairOptions{Options: r.options(), Address: test.address, Phone: test.wanted,
					Choose: func(_ context.Context, phones []string) (int, error) {
						for i, p := range phones {
							if n, _, _ := strings.Cut(p, "  "); n == test.choose {
								return i, nil
							}
						}
						return 0, ErrSeveral
					},
					Code: func(context.Context, string) (string, error) { return <-codes, nil }})
				if !errors.Is(err, test.err) {
					t.Fatalf("error %v, want %v", err, test.err)
				}
				state, _ := r.keep.Load()
				if test.err != nil {
					if len(state.Phones) != 0 {
						t.Errorf("stored %v", state.Phones)
					}
					return
				}
				if p.Name != test.paired || len(p.Keys) != 1 || len(p.CAKey) == 0 {
					t.Errorf("paired %+v", p)
				}
				if len(state.Phones) != 1 || state.Phones[0].Pin != p.Pin || len(state.Phones[0].Keys) != 1 || state.Phones[0].FixedAddress != test.address {
					t.Errorf("stored %+v", state.Phones)
				}
			})
		})
	}
}

// With a URL nobody is asked anything, and windows of others do not matter.
func TestPairByURL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.keep = new(store.Memory)
		u := pairing.NewURL("laptop", r.device.Pin())
		stored := func(pairing.Peer) error { return nil }
		other := pairing.NewURL("laptop", r.device.Pin())
		r.window(t, "other:1", "Other", pairing.PhoneOptions{Secret: other.Secret[:], Expect: other.Pin, Store: func(pairing.Peer) error {
			t.Error("a phone with another URL stored the device")
			return nil
		}})
		time.AfterFunc(2*time.Second, func() { // the owner takes a moment
			r.window(t, "phone:1", "Pocket", pairing.PhoneOptions{Secret: u.Secret[:], Expect: u.Pin, Store: stored})
		})
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		p, err := Pair(ctx, PairOptions{Options: r.options(), URL: &u})
		if err != nil || p.Name != "Pocket" {
			t.Errorf("%+v, %v", p, err)
		}
	})
}
