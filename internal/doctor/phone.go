// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/phone"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/transport"
)

// dialTime bounds one look for a phone at an address: below checkTime. On a local network an answer takes
// milliseconds.
const dialTime = 1500 * time.Millisecond

func phoneChecks() []Check {
	return []Check{
		{ID: "paired", Title: "a phone is paired, and the agent knows of it", Needs: []string{"state"}, Run: checkPaired},
		{ID: "link", Title: "the phone answers: TCP, TLS, pin, hello, round trip", Needs: []string{"link-key", "paired"}, Run: checkLink},
	}
}

// state reads what is remembered.
func (e *Env) state(ctx context.Context) (store.State, error) {
	return e.facts.state.get(ctx, e, func(context.Context) (store.State, error) {
		path, err := e.Getenv.StateFile()
		if err != nil {
			return store.State{}, err
		}
		return store.New(path, nil).Inspect()
	})
}

// device is the link key of this device.
func (e *Env) device(ctx context.Context) (*transport.Identity, error) {
	return e.facts.device.get(ctx, e, func(context.Context) (*transport.Identity, error) {
		path, err := e.Getenv.LinkKeyFile()
		if err != nil {
			return nil, err
		}
		key, err := store.InspectLinkKey(path)
		if err != nil {
			return nil, err
		}
		return transport.NewIdentity(key)
	})
}

func checkPaired(ctx context.Context, e *Env) Finding {
	state, err := e.state(ctx)
	if err != nil {
		return e.failure(err, "which phones are paired is not known")
	}
	if len(state.Phones) == 0 {
		return e.failure(phone.ErrNotPaired, "there is nobody who could sign")
	}
	var names []string
	for _, p := range state.Phones {
		names = append(names, fmt.Sprintf("%s with %s", p.Name, count(len(p.Keys), "key")))
	}
	return ok("%s", list(names))
}

// reached is what came of dialling one phone.
type reached struct {
	store.Phone
	address  string
	software string
	trip     time.Duration // round trip of a ping
	skew     time.Duration // how far its clock is ahead
	err      error
}

// reach dials every paired phone.
func (e *Env) reach(ctx context.Context) ([]reached, error) {
	return e.facts.reached.get(ctx, e, func(ctx context.Context) ([]reached, error) {
		state, err := e.state(ctx)
		if err != nil {
			return nil, err
		}
		id, err := e.device(ctx)
		if err != nil {
			return nil, err
		}
		all := make([]reached, len(state.Phones))
		each(len(all), func(i int) { all[i] = e.dial(ctx, id, state.Phones[i]) })
		return all, nil
	})
}

// dial tries the addresses that are known.
func (e *Env) dial(ctx context.Context, id *transport.Identity, p store.Phone) reached {
	ctx, cancel := context.WithTimeoutCause(ctx, dialTime, fmt.Errorf("no answer within %v", dialTime))
	defer cancel()
	var known []transport.Candidate
	for _, a := range []string{p.FixedAddress, p.Address} {
		if a != "" {
			known = append(known, transport.Candidate{Source: "known", Address: a})
		}
	}
	r, err := transport.Race(ctx, known, nil, func(ctx context.Context, c transport.Candidate) (reached, error) {
		return e.greet(ctx, id, p, c.Address)
	}, func(reached) {})
	r.Phone, r.err = p, err
	return r
}

// greet opens a link to a phone and ends it again.
func (e *Env) greet(ctx context.Context, id *transport.Identity, p store.Phone, address string) (reached, error) {
	r := reached{address: address}
	raw, err := e.Dial(ctx, address)
	if err != nil {
		return r, err
	}
	conn, err := transport.Client(ctx, raw, id, transport.ProtoLink, func(pin transport.Pin) error {
		if pin.String() != p.Pin {
			return transport.ErrWrongPeer
		}
		return nil
	})
	if err != nil {
		return r, err
	}
	link, err := transport.Open(ctx, conn, envelope.Hello{Name: e.Config.Name, Software: e.Software})
	if err != nil {
		return r, err
	}
	defer link.Close()
	r.software, r.skew = link.Peer().Software, link.Skew()
	start := time.Now()
	err = link.Ping(ctx)
	r.trip = time.Since(start)
	return r, err
}

func checkLink(ctx context.Context, e *Env) Finding {
	all, err := e.reach(ctx)
	if err != nil {
		return e.failure(err, "without a link nothing is signed")
	}
	var well []string
	var bad []error
	for _, r := range all {
		if r.err == nil {
			well = append(well, fmt.Sprintf("%s answers in %s at %s, %s", r.Name, milliseconds(r.trip), r.address, cmp.Or(r.software, "unknown software")))
		} else {
			bad = append(bad, fmt.Errorf("%s: %w", r.Name, r.err))
		}
	}
	switch err := errors.Join(bad...); {
	case err == nil:
		return ok("%s", list(well))
	case len(well) == 0:
		return e.failure(bad[0], "without a link nothing is signed")
	}
	return e.warning(bad[0], "what only this phone has is not signed")
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// maxListed bounds how many things one line names.
const maxListed = 3

func list(all []string) string {
	if n := len(all) - maxListed; n > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(all[:maxListed], ", "), n)
	}
	return strings.Join(all, ", ")
}
