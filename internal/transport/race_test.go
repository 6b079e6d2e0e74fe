// SPDX-License-Identifier: BSD-3-Clause

package transport_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vmux.app/toolkit/internal/transport"
)

// contest runs a race in which only the candidate "phone" succeeds, after a
// millisecond; "tarpit…" hang, everything else fails at once.
func contest(t *testing.T, ctx context.Context, known []string, found []transport.Candidate) (tried []string, err error) {
	t.Helper()
	var mu sync.Mutex
	var first []transport.Candidate
	for _, k := range known {
		first = append(first, transport.Candidate{Source: "known", Address: k})
	}
	ch := make(chan transport.Candidate, len(found))
	for _, c := range found {
		ch <- c
	}
	close(ch)
	got, err := transport.Race(ctx, first, ch, func(ctx context.Context, c transport.Candidate) (string, error) {
		mu.Lock()
		tried = append(tried, c.Address)
		mu.Unlock()
		switch {
		case c.Address == "phone":
			<-time.After(time.Millisecond)
			return c.Address, nil
		case len(c.Address) > 6 && c.Address[:6] == "tarpit":
			<-ctx.Done()
			return "", ctx.Err()
		}
		return "", transport.ErrWrongPeer
	}, func(string) {})
	if err == nil && got != "phone" {
		t.Errorf("won by %q", got)
	}
	mu.Lock()
	defer mu.Unlock()
	return slices.Clone(tried), err
}

func TestRaceKnownFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rogues []transport.Candidate
		for i := range 60 {
			rogues = append(rogues, transport.Candidate{Source: fmt.Sprint(i), Address: fmt.Sprintf("tarpit%d", i)})
		}
		start := time.Now()
		tried, err := contest(t, t.Context(), []string{"phone"}, rogues)
		if err != nil || !slices.Contains(tried, "phone") || time.Since(start) > 10*time.Millisecond {
			t.Errorf("%v after %v, tried %v", err, time.Since(start), tried)
		}
	})
}

// The real phone comes last of thirty that hang.
func TestRaceTarpits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all []transport.Candidate
		for i := range 30 {
			all = append(all, transport.Candidate{Source: fmt.Sprint(i), Address: fmt.Sprintf("tarpit%d", i)})
		}
		all = append(all, transport.Candidate{Source: "phone", Address: "phone"})
		start := time.Now()
		if _, err := contest(t, t.Context(), nil, all); err != nil || time.Since(start) > 3*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// One source with a thousand claims does not keep another from its turn.
func TestRaceOneTurnASource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all []transport.Candidate
		for i := range 1000 {
			all = append(all, transport.Candidate{Source: "rogue", Address: fmt.Sprintf("tarpit%d", i)})
		}
		all = append(all, transport.Candidate{Source: "phone", Address: "phone"})
		start := time.Now()
		if _, err := contest(t, t.Context(), nil, all); err != nil || time.Since(start) > 500*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestRaceNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if _, err := contest(t, t.Context(), []string{"wrong"}, []transport.Candidate{{Source: "a", Address: "other"}}); !errors.Is(err, transport.ErrNobody) || !errors.Is(err, transport.ErrWrongPeer) {
			t.Errorf("error %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := contest(t, ctx, []string{"tarpit-known"}, nil); !errors.Is(err, transport.ErrNobody) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		var all []transport.Candidate
		for i := range 200 {
			all = append(all, transport.Candidate{Source: fmt.Sprint(i), Address: fmt.Sprintf("wrong%d", i)})
		}
		if tried, err := contest(t, t.Context(), nil, all); err == nil || len(tried) != 64 {
			t.Errorf("%d tries, %v", len(tried), err)
		}
	})
}
