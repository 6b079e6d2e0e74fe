// SPDX-License-Identifier: BSD-3-Clause

package transport

import (
	"context"
	"errors"
	"fmt"
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
	// Dial opens a stream to an address that Browse gave, or that a person typed.
	Dial(ctx context.Context, address string) (net.Conn, error)
}

// Candidate is somebody's claim that a phone is at an address.
type Candidate struct {
	Source   string  // who said so; each source gets its turn
	Instance string  // the service instance's name
	Address  string  // for Dial
	Via      Network // by which it was found; nil for an address that a person gave
}

// Limits of Race. A start is a TCP and TLS handshake: cheap for us, and a rogue
// that lets it hang must not keep the real phone waiting.
const (
	raceAtOnce   = 8                      // started without waiting
	raceInterval = 100 * time.Millisecond // between further starts
	raceEach     = 3 * time.Second        // for one try
	raceMost     = 64                     // tries in all
	raceSources  = 1024                   // sources whose claims may wait
	racePerOne   = 8                      // claims of one source that may wait
)

// ErrNobody says that no candidate was found, or none of them was the one.
var ErrNobody = errors.New("not found")

// Race tries known candidates in their order, then those that arrive on found,
// one of each source in turn, until one succeeds. It returns when one has, when
// ctx ends, or when found is closed and every try has failed. Tries that are
// still under way are cancelled and waited for; what they win late goes to
// discard.
func Race[T any](ctx context.Context, known []Candidate, found <-chan Candidate,
	try func(context.Context, Candidate) (T, error), discard func(T)) (T, error) {
	type result struct {
		c   Candidate
		t   T
		err error
	}
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan result, raceMost) // room for every try: none ever waits to report
	running, started := 0, 0
	var zero T
	defer func() {
		cancel()
		for ; running > 0; running-- {
			if r := <-results; r.err == nil {
				discard(r.t)
			}
		}
	}()

	q := &turns{known: slices.Clone(known), waiting: map[string][]Candidate{}, tried: map[string]bool{}}
	pace := time.NewTimer(0)
	defer pace.Stop()
	paced := false
	var failures []error
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
			go func() {
				ctx, cancel := context.WithTimeout(ctx, raceEach)
				defer cancel()
				t, err := try(ctx, c)
				results <- result{c, t, err}
			}()
		}
		if running == 0 && (found == nil && q.empty() || started >= raceMost) {
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
			failures = append(failures, fmt.Errorf("%s: %w", r.c.Address, r.err))
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
	err := errors.Join(failures[:min(n, shown)]...)
	if n > shown {
		return fmt.Errorf("%w: %d tried: %w", ErrNobody, n, err)
	}
	return fmt.Errorf("%w: %w", ErrNobody, err)
}

// turns gives each source its turn, so that many claims of one do not hide the
// only claim of another.
type turns struct {
	known   []Candidate
	sources []string // in the order of their next turn
	waiting map[string][]Candidate
	tried   map[string]bool // by address
}

func (q *turns) add(c Candidate) {
	of, seen := q.waiting[c.Source]
	if q.tried[c.Address] || len(of) >= racePerOne || !seen && len(q.waiting) >= raceSources {
		return
	}
	if !seen {
		// A source that has not had a turn goes ahead of those that have.
		q.sources = append([]string{c.Source}, q.sources...)
	}
	q.waiting[c.Source] = append(of, c)
}

func (q *turns) empty() bool {
	for _, of := range q.waiting {
		if len(of) > 0 {
			return false
		}
	}
	return len(q.known) == 0
}

// next takes the candidate to try next.
func (q *turns) next() (Candidate, bool) {
	for len(q.known) > 0 {
		c := q.known[0]
		q.known = q.known[1:]
		if !q.tried[c.Address] {
			q.tried[c.Address] = true
			return c, true
		}
	}
	for i, source := range q.sources {
		for of := q.waiting[source]; len(of) > 0; {
			c := of[0]
			of = of[1:]
			q.waiting[source] = of
			if q.tried[c.Address] {
				continue
			}
			q.tried[c.Address] = true
			q.sources = append(slices.Delete(q.sources, i, i+1), source)
			return c, true
		}
	}
	return Candidate{}, false
}
