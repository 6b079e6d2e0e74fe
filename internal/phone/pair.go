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
	// askAgain is the pause before a phone without a window for us is asked again
	// within a look: its owner should see the window taken within a second, and two
	// handshakes a second are no burden. Only who speaks the protocol is asked again.
	askAgain = 400 * time.Millisecond
	// exchangeTime is left for an exchange by URL: cut off at the end of a look, it
	// could be done at the phone and not here.
	exchangeTime = time.Second
	// settleTime ends a look by URL early, once all who were found have answered:
	// the next look finds out sooner that a window has opened.
	settleTime = 300 * time.Millisecond
	// maxOffers bounds the list that a user is shown: rogues may fill it.
	maxOffers = 64
)

var (
	// ErrNoPhone says that no phone with an open window was found in time.
	ErrNoPhone = errors.New("no phone with an open pairing window was found")
	// ErrNotOpened says that a phone was found, and opened no window in time.
	ErrNotOpened = errors.New("no phone with an open pairing window was found in time")
	// ErrURLNotTaken says that a phone was found, and was not given the URL in time.
	ErrURLNotTaken = errors.New("no phone took the URL in time")
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
	// Choose asks which of several phones is meant; it gets texts for people, which
	// tell phones of one name apart.
	Choose func(ctx context.Context, phones []string) (int, error)
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
	paired := store.Phone{Name: peer.Name, Pin: peer.Pin.String(), FixedAddress: o.Address,
		Instance: at.Instance, PairedAt: time.Now().UTC().Truncate(time.Second)}
	if !at.Passing {
		paired.Address = at.Address
	}
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
	var mu sync.Mutex
	trying := 0
	var closed error // that a phone has no window for us; a race that is cut off does not say so
	known, browse := o.known()
	t, err := find(ctx, browse, known, func(ctx context.Context, c transport.Candidate) (t T, err error) {
		mu.Lock()
		trying++
		mu.Unlock()
		defer func() {
			mu.Lock()
			defer mu.Unlock()
			if trying--; trying == 0 && err != nil && o.URL != nil {
				time.AfterFunc(settleTime, func() {
					mu.Lock()
					defer mu.Unlock()
					if trying == 0 {
						cancel()
					}
				})
			}
		}()
		var zero T
		once := func() (T, error) {
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
		}
		for {
			t, err := once()
			if !isClosed(err) {
				return t, err
			}
			mu.Lock()
			closed = err
			mu.Unlock()
			end, _ := ctx.Deadline()
			if o.URL != nil && time.Until(end) < askAgain+exchangeTime {
				return zero, err
			}
			select {
			case <-ctx.Done():
				return zero, err
			case <-time.After(askAgain):
			}
		}
	}, discard)
	mu.Lock()
	defer mu.Unlock()
	if err != nil && closed != nil && !isClosed(err) {
		err = fmt.Errorf("%w (%w)", closed, err)
	}
	return t, err
}

// isClosed says that a phone has no window for us, and may have one later.
func isClosed(err error) bool {
	return errors.Is(err, pairing.ErrNoWindow) || errors.Is(err, pairing.ErrMethod)
}

// untilFound calls look until it finds something or ctx ends; the error then has
// the reason of the last look, or is closed when all that was missing is the
// window.
func untilFound(ctx context.Context, closed error, look func() error) error {
	noWindow := false
	for {
		err := look()
		if err == nil {
			return nil
		}
		noWindow = noWindow || isClosed(err)
		select {
		case <-ctx.Done():
			switch cause := context.Cause(ctx); {
			case !errors.Is(cause, context.DeadlineExceeded):
				return cause
			case errors.Is(err, pairing.ErrMethod):
				return fmt.Errorf("%w: %v", closed, pairing.ErrMethod)
			case noWindow:
				return closed
			}
			return fmt.Errorf("%w: %w", ErrNoPhone, err)
		case <-time.After(lookAgain):
		}
	}
}

func (o PairOptions) byDigits(ctx context.Context) (pairing.Peer, transport.Candidate, error) {
	var offers []offer
	err := untilFound(ctx, ErrNotOpened, func() (err error) {
		offers, err = o.collect(ctx)
		return err
	})
	if err != nil {
		return pairing.Peer{}, transport.Candidate{}, err
	}
	chosen := 0
	if len(offers) > 1 {
		phones := make([]string, len(offers))
		for i, f := range offers {
			phones[i] = fmt.Sprintf("%s  %s  %s", f.name, f.c.Address, shortPin(f.conn.Peer()))
		}
		chosen, err = o.Choose(ctx, phones)
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

// shortPin is enough of a pin to tell two phones apart that one person holds.
func shortPin(p transport.Pin) string {
	const shown = len("SHA256:") + 8
	return p.String()[:shown] + "…"
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
	err := untilFound(ctx, ErrURLNotTaken, func() (err error) {
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
