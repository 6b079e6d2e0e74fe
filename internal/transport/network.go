// SPDX-License-Identifier: BSD-3-Clause

package transport

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"time"
)

// Network is a way to find phones and to reach them. Nothing that it reports
// is trusted: whoever is reached must prove its pin.
type Network interface {
	// Browse reports who claims to be a phone until ctx ends. It calls found from
	// one goroutine at a time. Without any way to look it returns an error early.
	Browse(ctx context.Context, found func(Candidate)) error
	// Dial opens a stream to an address that Browse gave, or that a person typed. The error may be ErrAddress.
	Dial(ctx context.Context, address string) (net.Conn, error)
}

// Candidate is somebody's claim that a phone is at an address.
type Candidate struct {
	Source   string  // who said so; each source gets its turn
	Instance string  // the service instance's name
	Address  string  // for Dial
	Via      Network // by which it was found; nil for an address that a person gave
	// Again is when Race tries it again after a failure; 0 is never. A phone that
	// restarts at an address that is known announces nothing there.
	Again time.Duration
	// Passing says that the address means nothing later: it is not remembered.
	Passing bool
}

// Limits of Race. A start is a TCP and TLS handshake: cheap for us, and a rogue
// that lets it hang must not keep the real phone waiting.
const (
	raceAtOnce   = 8                     // started without waiting
	raceInterval = 50 * time.Millisecond // between further starts
	raceEach     = 3 * time.Second       // for one try
	raceMost     = 64                    // tries in all, but for those again
	raceSources  = 1024                  // sources whose claims may wait
	racePerOne   = 8                     // claims of one source that may wait
)

// ErrNotAllowed says that the system keeps this program out of the local network.
var ErrNotAllowed = errors.New("the system does not let this program into the local network")

// ErrAddress says that an address is one of another network.
var ErrAddress = errors.New("not an address of this network")

// ErrNobody says that no candidate was found, or none of them was the one.
var ErrNobody = errors.New("no phone answered")

// Race tries known candidates in their order, then those that arrive on found,
// one of each source in turn and in no order that somebody else can choose,
// until one succeeds. It returns when one has, when ctx ends, or when found is
// closed and nothing is left to try. Tries that are still under way are
// cancelled and waited for; what they win late goes to discard.
func Race[T any](ctx context.Context, known []Candidate, found <-chan Candidate,
	try func(context.Context, Candidate) (T, error), discard func(T)) (T, error) {
	type result struct {
		c   Candidate
		t   T
		err error
	}
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan result) // read until nothing is running
	again := make(chan Candidate)
	running, started, waiting := 0, 0, 0
	var zero T
	defer func() {
		cancel()
		for ; running > 0; running-- {
			if r := <-results; r.err == nil {
				discard(r.t)
			}
		}
	}()

	q := &turns{known: slices.Clone(known), waiting: map[string][]Candidate{}, turns: map[string]int{}, tried: map[string]bool{}}
	pace := time.NewTimer(0)
	defer pace.Stop()
	paced := false
	var failures []error
	attempt := func(c Candidate) {
		ctx, cancel := context.WithTimeout(ctx, raceEach)
		defer cancel()
		t, err := try(ctx, c)
		results <- result{c, t, err}
	}
	for {
		for started < raceMost && (running < raceAtOnce || paced) {
			c, ok := q.next()
			if !ok {
				break
			}
			paced = false
			pace.Reset(raceInterval)
			started++
			running++
			go attempt(c)
		}
		if running == 0 && waiting == 0 && (found == nil && q.empty() || started >= raceMost) {
			return zero, raceError(failures)
		}
		select {
		case c, ok := <-found:
			if !ok {
				found = nil
			} else {
				q.add(c)
			}
		case r := <-results:
			running--
			if r.err == nil {
				return r.t, nil
			}
			if len(failures) < raceMost {
				failures = append(failures, fmt.Errorf("%s: %w", r.c.Address, r.err))
			}
			if r.c.Again > 0 {
				waiting++
				time.AfterFunc(r.c.Again, func() {
					select {
					case again <- r.c:
					case <-ctx.Done():
					}
				})
			}
		case c := <-again:
			waiting--
			running++
			go attempt(c)
		case <-pace.C:
			paced = true
		case <-ctx.Done():
			if len(failures) > 0 {
				return zero, fmt.Errorf("%w (%w)", raceError(failures), context.Cause(ctx))
			}
			return zero, fmt.Errorf("%w: %w", ErrNobody, context.Cause(ctx))
		}
	}
}

func raceError(failures []error) error {
	if len(failures) == 0 {
		return ErrNobody
	}
	const shown = 3 // a rogue must not fill the log
	n := len(failures)
	// The refusal by the paired phone explains more than a stranger's silence.
	slices.SortStableFunc(failures, func(a, b error) int {
		switch x, y := errors.Is(a, ErrRefused), errors.Is(b, ErrRefused); {
		case x == y:
			return 0
		case x:
			return -1
		}
		return 1
	})
	err, said := failures[0], []string{failures[0].Error()}
	for _, f := range failures[1:] {
		if len(said) < shown && !slices.Contains(said, f.Error()) { // an address that was tried again has failed alike
			said = append(said, f.Error())
			err = fmt.Errorf("%w; %w", err, f)
		}
	}
	if n > shown {
		return fmt.Errorf("%w: %d tried: %w", ErrNobody, n, err)
	}
	return fmt.Errorf("%w: %w", ErrNobody, err)
}

// turns gives each source its turn, so that many claims of one do not hide the
// only claim of another. Who comes next is drawn by lot: neither to be the first
// nor the last to announce itself is of use to a rogue, nor is it to announce
// much in another's name.
type turns struct {
	known   []Candidate
	sources []string // that have something waiting
	waiting map[string][]Candidate
	turns   map[string]int  // that a source has had
	tried   map[string]bool // by address
}

func (q *turns) add(c Candidate) {
	of := q.waiting[c.Source]
	if q.tried[c.Address] || slices.ContainsFunc(of, func(w Candidate) bool { return w.Address == c.Address }) {
		return
	}
	switch {
	case len(of) >= racePerOne:
		of[rand.IntN(len(of))] = c
		return
	case len(of) > 0:
	case len(q.sources) >= raceSources:
		i := rand.IntN(len(q.sources))
		delete(q.waiting, q.sources[i])
		q.sources[i] = c.Source
	default:
		q.sources = append(q.sources, c.Source)
	}
	q.waiting[c.Source] = append(of, c)
}

func (q *turns) empty() bool { return len(q.known) == 0 && len(q.sources) == 0 }

// next takes the candidate to try next.
func (q *turns) next() (Candidate, bool) {
	for len(q.known) > 0 {
		c := q.known[0]
		q.known = q.known[1:]
		if q.take(c) {
			return c, true
		}
	}
	for len(q.sources) > 0 {
		// One of the sources that have had the fewest turns.
		best, n := 0, 0
		for i, s := range q.sources {
			switch t := q.turns[s]; {
			case i == 0 || t < q.turns[q.sources[best]]:
				best, n = i, 1
			case t == q.turns[q.sources[best]]:
				if n++; rand.IntN(n) == 0 {
					best = i
				}
			}
		}
		source := q.sources[best]
		of := q.waiting[source]
		i := rand.IntN(len(of))
		c := of[i]
		if of = slices.Delete(of, i, i+1); len(of) == 0 {
			delete(q.waiting, source)
			q.sources = slices.Delete(q.sources, best, best+1)
		} else {
			q.waiting[source] = of
		}
		if q.take(c) {
			q.turns[source]++
			return c, true
		}
	}
	return Candidate{}, false
}

func (q *turns) take(c Candidate) bool {
	if q.tried[c.Address] {
		return false
	}
	q.tried[c.Address] = true
	return true
}
