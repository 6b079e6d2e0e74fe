// SPDX-License-Identifier: BSD-3-Clause

package phone

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/pairing"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/transport"
)

const (
	// collectFor is how long phones with an open window are gathered, so that a
	// second one is seen before the user is asked.
	collectFor = 1500 * time.Millisecond
	// lookAgain is the pause between two looks for a window that is not open yet.
	lookAgain = 250 * time.Millisecond
	// maxOffers bounds the list that a user is shown: rogues may fill it.
	maxOffers = 64
)

var (
	// ErrNoPhone says that no phone with an open window was found in time.
	ErrNoPhone = errors.New("no phone with an open pairing window was found")
	// ErrSeveral says that several phones have an open window and nothing says
	// which one is meant.
	ErrSeveral = errors.New("several phones have an open pairing window")
)

// PairOptions is what the user's side brings to a pairing.
type PairOptions struct {
	Options
	Address string // HOST:PORT of the phone, empty to look for it
	Phone   string // its name, empty for any
	// URL is the one-time URL whose secret the phone was given; nil to pair by digits.
	URL *pairing.URL
	// Choose asks which of several phones is meant; it gets their names.
	Choose func(ctx context.Context, names []string) (int, error)
	// Code asks for the digits that the named phone shows.
	Code func(ctx context.Context, phone string) (string, error)
	// Typed is called when the phone's owner must accept.
	Typed func()
}

// offer is a phone with an open window, on a connection that waits.
type offer struct {
	conn *transport.Conn
	c    transport.Candidate
	name string
}

// Pair pairs with one phone and stores it, with its keys. ctx bounds how long it
// waits for the phone and for people. When the pairing is stored and only the
// keys could not be had, the phone is returned together with the error.
func Pair(ctx context.Context, o PairOptions) (store.Phone, error) {
	// Before anybody is asked anything: can it be kept?
	if err := o.Store.Update(func(*store.State) error { return nil }); err != nil {
		return store.Phone{}, err
	}
	var peer pairing.Peer
	var at transport.Candidate
	var err error
	if o.URL != nil {
		peer, at, err = o.byURL(ctx)
	} else {
		peer, at, err = o.byDigits(ctx)
	}
	if err != nil {
		return store.Phone{}, err
	}
	paired := store.Phone{Name: peer.Name, Pin: peer.Pin.String(), Address: at.Address, FixedAddress: o.Address,
		Instance: at.Instance, PairedAt: time.Now().UTC().Truncate(time.Second)}
	err = o.Store.Update(func(s *store.State) error {
		s.Forget(paired.Pin)
		s.Phones = append(s.Phones, paired)
		return nil
	})
	if err != nil {
		return store.Phone{}, err
	}
	return o.firstKeys(ctx, paired)
}

// firstKeys opens the link for the first time. The certificate authority that
// the phone shows now is the one that is pinned.
func (o PairOptions) firstKeys(ctx context.Context, paired store.Phone) (store.Phone, error) {
	p, err := New(o.Options, paired)
	if err != nil {
		return paired, err
	}
	defer p.Close()
	ctx, cancel := context.WithTimeoutCause(ctx, reachTimeout, ErrTimeout)
	defer cancel()
	link, at, err := p.dial(ctx)
	if err != nil {
		return paired, err
	}
	defer link.Close()
	p.linked(link, at)
	err = p.fetch(link)
	return p.last, err
}

// known is where to look apart from browsing.
func (o PairOptions) known() (known []transport.Candidate, networks []transport.Network) {
	if o.Address == "" {
		return nil, o.Networks
	}
	// A typed address is all that is meant: nobody else is asked.
	return []transport.Candidate{{Source: "given", Address: o.Address}}, nil
}

// each tries all candidates once. It returns when try succeeds with one, or at
// last with why none did.
func each[T any](ctx context.Context, o PairOptions, within time.Duration,
	try func(context.Context, *transport.Conn, transport.Candidate, string) (T, error), discard func(T)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	known, browse := o.known()
	return find(ctx, browse, known, func(ctx context.Context, c transport.Candidate) (T, error) {
		var zero T
		conn, err := secure(ctx, o.Networks, c, o.Identity, transport.ProtoPair, func(transport.Pin) error { return nil })
		if err != nil {
			return zero, err
		}
		hello, err := pairing.Offer(ctx, conn)
		if err != nil {
			return zero, err
		}
		name := pairing.CleanName(hello.Name)
		if o.Phone != "" && !strings.EqualFold(name, o.Phone) {
			conn.Close()
			return zero, fmt.Errorf("%w (its name is %q)", ErrNoPhone, name)
		}
		return try(ctx, conn, c, name)
	}, discard)
}

// untilFound calls look until it finds something or ctx ends; the error then has
// the reason of the last look.
func untilFound(ctx context.Context, look func() error) error {
	for {
		err := look()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			if cause := context.Cause(ctx); !errors.Is(cause, context.DeadlineExceeded) {
				return cause
			}
			return fmt.Errorf("%w: %w", ErrNoPhone, err)
		case <-time.After(lookAgain):
		}
	}
}

func (o PairOptions) byDigits(ctx context.Context) (pairing.Peer, transport.Candidate, error) {
	var offers []offer
	err := untilFound(ctx, func() (err error) {
		offers, err = o.collect(ctx)
		return err
	})
	if err != nil {
		return pairing.Peer{}, transport.Candidate{}, err
	}
	chosen := 0
	if len(offers) > 1 {
		names := make([]string, len(offers))
		for i, f := range offers {
			names[i] = f.name
		}
		chosen, err = o.Choose(ctx, names)
	}
	for i, f := range offers {
		if err != nil || i != chosen {
			f.conn.Close()
		}
	}
	if err != nil {
		return pairing.Peer{}, transport.Candidate{}, err
	}
	f := offers[chosen]
	peer, err := pairing.Device(ctx, f.conn, o.Identity.Pin(), pairing.DeviceOptions{Name: o.Name, Code: o.Code, Typed: o.Typed})
	return peer, f.c, err
}

// collect gathers the phones whose window is open.
func (o PairOptions) collect(ctx context.Context) ([]offer, error) {
	var mu sync.Mutex
	var offers []offer
	over := false
	errNext := errors.New("window open")
	_, err := each(ctx, o, collectFor, func(_ context.Context, conn *transport.Conn, c transport.Candidate, name string) (struct{}, error) {
		mu.Lock()
		defer mu.Unlock()
		same := slices.ContainsFunc(offers, func(f offer) bool { return f.conn.Peer() == conn.Peer() })
		if over || same || len(offers) >= maxOffers {
			conn.Close() // the same phone at another of its addresses, or too late
		} else {
			offers = append(offers, offer{conn, c, name})
		}
		return struct{}{}, errNext // go on looking
	}, func(struct{}) {})
	mu.Lock()
	defer mu.Unlock()
	over = true
	if len(offers) == 0 {
		return nil, err
	}
	slices.SortStableFunc(offers, func(a, b offer) int { return strings.Compare(a.name, b.name) })
	return offers, nil
}

// byURL runs the exchange with whoever has a window open: only the phone that
// was given the URL can finish it.
func (o PairOptions) byURL(ctx context.Context) (pairing.Peer, transport.Candidate, error) {
	type paired struct {
		peer pairing.Peer
		c    transport.Candidate
	}
	var got paired
	err := untilFound(ctx, func() (err error) {
		got, err = each(ctx, o, reachTimeout, func(ctx context.Context, conn *transport.Conn, c transport.Candidate, _ string) (paired, error) {
			peer, err := pairing.Device(ctx, conn, o.Identity.Pin(),
				pairing.DeviceOptions{Name: o.Name, Secret: o.URL.Secret[:]})
			return paired{peer, c}, err
		}, func(paired) {})
		return err
	})
	return got.peer, got.c, err
}

// hello is what a device says of itself on a link.
func (o Options) hello() envelope.Hello {
	return envelope.Hello{Name: o.Name, Software: o.Software}
}
