// SPDX-License-Identifier: BSD-3-Clause

package phone

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/pairing"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/transport"
	"vmux.app/toolkit/internal/transport/conformance"
)

// closedPhone is a phone whose window may open; until then it refuses, as vmux-signer
// does, or asks for the other method.
type closedPhone struct {
	asked  atomic.Int64
	opened atomic.Int64 // when, Unix nanoseconds; 0 is not yet
	taken  chan time.Duration
	// ends, when set, may answer the pairing of this number, from 1, and have it end.
	ends func(n int64, c *transport.Conn, hello envelope.Hello) bool
}

func (r *rig) closed(t *testing.T, address string, u *pairing.URL, digits bool) *closedPhone {
	t.Helper()
	p := &closedPhone{taken: make(chan time.Duration, 1)}
	id := conformance.NewIdentity(t)
	ln, err := r.net.Listen(address)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	hello := envelope.Hello{Name: "Pocket", Clock: envelope.At(time.Now())}
	all.Go(func() {
		for {
			raw, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				c, err := transport.Server(context.Background(), raw, id, func(string, transport.Pin) error { return nil })
				if err != nil {
					return
				}
				if c.Proto() == transport.ProtoLink {
					transport.Serve(t.Context(), c, hello, func(context.Context, string, envelope.Payload) (envelope.Payload, error) {
						return &envelope.KeyListResponse{Keys: r.keys, CAKey: r.key.PublicKeyBlob}, nil
					}, nil)
					return
				}
				if n := p.asked.Add(1); p.ends != nil && p.ends(n, c, hello) {
					c.Close()
					return
				}
				o := pairing.PhoneOptions{Name: "Pocket", Store: func(pairing.Peer) error {
					p.taken <- time.Since(time.Unix(0, p.opened.Load()))
					return nil
				}}
				switch at := p.opened.Load(); {
				case at != 0:
					o.Secret, o.Expect = u.Secret[:], u.Pin
				case digits:
				default:
					c.Send(envelope.Envelope{ID: "pair", Payload: envelope.Errorf(envelope.CodeNotPaired, "no window")})
					c.Close()
					return
				}
				pairing.Phone(t.Context(), c, id.Pin(), hello, o)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		all.Wait()
	})
	return p
}

// Whenever the window of a phone opens that was found before, it is used within
// a second, and the phone is not asked all the time until then; nor does it
// matter that somebody else is silent.
func TestPairByURLSoon(t *testing.T) {
	for _, digits := range []bool{false, true} {
		for _, silent := range []bool{false, true} {
			for after := 5 * time.Second; after < 9*time.Second; after += 290 * time.Millisecond {
				synctest.Test(t, func(t *testing.T) {
					r := newRig(t)
					r.keep = new(store.Memory)
					u := pairing.NewURL("laptop", r.device.Pin())
					p := r.closed(t, "phone:1", &u, digits)
					most := time.Second
					if silent {
						most = 1500 * time.Millisecond
						ln, err := r.net.Listen("silent:1")
						if err != nil {
							t.Fatal(err)
						}
						defer ln.Close()
					}
					time.AfterFunc(after, func() { p.opened.Store(time.Now().UnixNano()) })
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					defer cancel()
					if _, err := Pair(ctx, PairOptions{Options: r.options(), URL: &u}); err != nil {
						t.Fatal(err)
					}
					if took := <-p.taken; took > most {
						t.Errorf("window opened after %v, used %v later", after, took)
					}
					if n := p.asked.Load(); n > 4*int64(after/time.Second+2) {
						t.Errorf("asked %d times in %v", n, after)
					}
				})
			}
		}
	}
}

// A connection that the phone ends for newer ones is begun anew: a URL's proof
// was not judged there.
func TestPairByURLPushedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.keep = new(store.Memory)
		u := pairing.NewURL("laptop", r.device.Pin())
		p := r.closed(t, "phone:1", &u, false)
		p.ends = func(n int64, c *transport.Conn, hello envelope.Hello) bool {
			if n == 1 || n > 4 {
				return n == 1
			}
			c.Send(envelope.Envelope{Payload: &hello})
			if n == 2 {
				return true
			}
			if e, err := c.Receive(); err != nil || e.Payload.Type() != envelope.TypePairRequest {
				t.Errorf("%+v, %v", e, err)
			}
			if n == 4 {
				c.Send(envelope.Envelope{ID: "pair", Payload: envelope.Errorf(envelope.CodeBadRequest, "pushed out")})
			}
			return true
		}
		p.opened.Store(time.Now().UnixNano())
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := Pair(ctx, PairOptions{Options: r.options(), URL: &u}); err != nil {
			t.Fatal(err)
		}
		if took, n := <-p.taken, p.asked.Load(); n != 5 || took > 5*time.Second {
			t.Errorf("paired after %v with connection %d", took, n)
		}
	})
}

// A phone that was there all the time and opened nothing is no phone out of
// reach: time was over.
func TestPairNotInTime(t *testing.T) {
	for name, test := range map[string]struct {
		url, digits bool
		address     string
		want        error
		says        string
	}{
		"digits":              {want: ErrNotOpened},
		"digits at address":   {want: ErrNotOpened, address: "phone:1"},
		"URL":                 {url: true, want: ErrURLNotTaken},
		"URL at address":      {url: true, want: ErrURLNotTaken, address: "phone:1"},
		"URL, phone digits":   {url: true, digits: true, want: ErrURLNotTaken, says: pairing.ErrMethod.Error()},
		"URL, nobody there":   {url: true, want: ErrNoPhone, address: "elsewhere:1"},
		"digits, nobody":      {want: ErrNoPhone, address: "elsewhere:1"},
		"URL, for an instant": {url: true, want: ErrURLNotTaken},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				r.keep = new(store.Memory)
				u := pairing.NewURL("laptop", r.device.Pin())
				r.closed(t, "phone:1", &u, test.digits)
				o := PairOptions{Options: r.options(), Address: test.address}
				if test.url {
					o.URL = &u
				}
				limit := 10 * time.Second
				if strings.HasSuffix(name, "instant") {
					limit = time.Second
				}
				ctx, cancel := context.WithTimeoutCause(t.Context(), limit, pairing.ErrTime)
				defer cancel()
				_, err := Pair(ctx, o)
				if !errors.Is(err, test.want) || errors.Is(err, pairing.ErrNoWindow) || !strings.Contains(err.Error(), test.says) {
					t.Errorf("%v, want %v", err, test.want)
				}
			})
		})
	}
}

// Phones of one name can be told apart.
func TestPairChoiceTellsApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.keep = new(store.Memory)
		for _, at := range []string{"phone:1", "phone:2"} {
			r.window(t, at, "Twin", pairing.PhoneOptions{})
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := Pair(ctx, PairOptions{Options: r.options(), Choose: func(_ context.Context, phones []string) (int, error) {
			if len(phones) != 2 || phones[0] == phones[1] {
				t.Errorf("choice of %q", phones)
			}
			for _, p := range phones {
				if !strings.HasPrefix(p, "Twin  phone:") || !strings.Contains(p, "SHA256:") {
					t.Errorf("choice of %q", phones)
				}
			}
			return 0, ErrSeveral
		}})
		if !errors.Is(err, ErrSeveral) {
			t.Error(err)
		}
	})
}
