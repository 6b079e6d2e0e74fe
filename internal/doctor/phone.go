// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
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
	}
}

func checkPaired(ctx context.Context, e *Env) Finding {
	state, err := e.state(ctx)
	if err != nil {
		return e.failure(err, "which phones are paired is not known")
	}
	if len(state.Phones) == 0 {
		return e.failure(phone.ErrNotPaired, "there is nobody who could sign")
	}
	if s, err := e.status(ctx); err == nil && !slices.EqualFunc(state.Phones, s.Phones, func(a store.Phone, b phone.Status) bool { return a.Pin == b.Pin }) {
		return e.warning(&ReloadError{What: fmt.Sprintf("the agent knows %s, the state file has %s", count(len(s.Phones), "phone"), list(names(state.Phones))), PID: s.PID},
			"the agent asks the phones that it knows")
	}
	var all []string
	for _, p := range state.Phones {
		all = append(all, fmt.Sprintf("%s, which has %s", p.Name, count(len(p.Keys), "key")))
	}
	return ok("%s", list(all))
}

func names(phones []store.Phone) (all []string) {
	for _, p := range phones {
		all = append(all, p.Name)
	}
	return all
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

// dial tries the addresses that are known, and then where discovery finds the phone.
func (e *Env) dial(ctx context.Context, id *transport.Identity, p store.Phone) reached {
	var failed error
	try := func(addresses ...string) (reached, bool) {
		all := make([]reached, len(addresses))
		each(len(all), func(i int) { all[i] = e.greet(ctx, id, p, addresses[i]) })
		for _, r := range all {
			if r.err == nil {
				return r, true
			}
			// That the phone itself refuses says more than what another address does.
			if failed == nil || errors.Is(r.err, transport.ErrRefused) && !errors.Is(failed, transport.ErrRefused) {
				failed = r.err
			}
		}
		return reached{}, false
	}
	known := slices.DeleteFunc([]string{p.FixedAddress, p.Address}, func(a string) bool { return a == "" })
	if r, ok := try(slices.Compact(known)...); ok {
		return r
	}
	if p.FixedAddress == "" {
		if b, err := e.browse(ctx); err == nil {
			if at, found := b.found[p.Pin]; found && !slices.Contains(known, at.address) {
				if r, ok := try(at.address); ok {
					return r
				}
			}
		}
	}
	return reached{Phone: p, err: cmp.Or(failed, error(&LinkError{p.Name, "", phone.ErrUnreachable}))}
}

// greet opens a link to a phone at an address and ends it again.
func (e *Env) greet(ctx context.Context, id *transport.Identity, p store.Phone, address string) reached {
	ctx, cancel := context.WithTimeoutCause(ctx, dialTime, errTime)
	defer cancel()
	r := reached{Phone: p, address: address}
	fail := func(err error) reached {
		if !errors.Is(err, transport.ErrWrongPeer) && !errors.Is(err, transport.ErrRefused) {
			err = fmt.Errorf("%w: %w", phone.ErrUnreachable, err)
		}
		r.err = &LinkError{p.Name, address, err}
		return r
	}
	raw, err := e.Dial(ctx, address)
	if err != nil {
		return fail(err)
	}
	conn, err := transport.Client(ctx, raw, id, transport.ProtoLink, func(pin transport.Pin) error {
		if pin.String() != p.Pin {
			return transport.ErrWrongPeer
		}
		return nil
	})
	if err != nil {
		return fail(err)
	}
	link, err := transport.Open(ctx, conn, envelope.Hello{Name: e.Config.Name, Software: e.Software})
	if err != nil {
		return fail(err)
	}
	defer link.Close()
	r.software, r.skew = link.Peer().Software, link.Skew()
	start := time.Now()
	if err := link.Ping(ctx); err != nil {
		return fail(err)
	}
	r.trip = time.Since(start)
	return r
}

func checkLink(ctx context.Context, e *Env) Finding {
	const why = "nothing is signed without the phone, but what a session certificate is for"
	all, err := e.reach(ctx)
	if err != nil {
		return e.failure(err, why)
	}
	var well []string
	var bad []error
	for _, r := range all {
		if r.err != nil {
			bad = append(bad, r.err)
			continue
		}
		well = append(well, fmt.Sprintf("%s at %s in %s, %s", r.Name, r.address, milliseconds(r.trip), cmp.Or(r.software, "of unknown software")))
	}
	switch {
	case len(bad) > 0 && len(well) == 0:
		return e.failure(bad[0], why)
	case len(bad) > 0:
		return e.warning(bad[0], "what only this phone has is not signed")
	}
	if f, misses := e.agentMisses(ctx, all); misses {
		return f
	}
	return ok("%s", list(well))
}

// Skews of clocks: a request is refused that is older than the second one (vmux-protocol(7)).
const (
	someSkew = 5 * time.Second
	maxSkew  = 60 * time.Second
)

func checkClock(ctx context.Context, e *Env) Finding {
	all, err := e.reach(ctx)
	if err != nil {
		return e.failure(err, "what the phone's clock says is not known")
	}
	var worst reached
	for _, r := range all {
		if r.err == nil && (worst.Pin == "" || r.skew.Abs() > worst.skew.Abs()) {
			worst = r
		}
	}
	skew := &ClockError{worst.Name, worst.skew}
	switch s := worst.skew.Abs(); {
	case s > maxSkew:
		return e.failure(skew, "the phone refuses requests that seem to be more than 60 s old or ahead")
	case s > someSkew:
		return e.warning(skew, "at 60 s the phone refuses every request")
	}
	return ok("%s's clock agrees within %.1f s", worst.Name, worst.skew.Abs().Seconds())
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
