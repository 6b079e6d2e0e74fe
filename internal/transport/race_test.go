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

// The real phone is among thirty that hang, wherever it comes.
func TestRaceTarpits(t *testing.T) {
	for position := range 31 {
		synctest.Test(t, func(t *testing.T) {
			var all []transport.Candidate
			for i := range 30 {
				all = append(all, transport.Candidate{Source: fmt.Sprint(i), Address: fmt.Sprintf("tarpit%d", i)})
			}
			all = slices.Insert(all, position, transport.Candidate{Source: "phone", Address: "phone"})
			ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
			defer cancel()
			if _, err := contest(t, ctx, nil, all); err != nil {
				t.Errorf("in position %d: %v", position, err)
			}
		})
	}
}

// Nor does it help a rogue to announce a new source again and again.
func TestRaceNewSources(t *testing.T) {
	won := 0
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			found := make(chan transport.Candidate, 100)
			for i := range 10 {
				found <- transport.Candidate{Source: fmt.Sprint("first", i), Address: fmt.Sprint("tarpit-first", i)}
			}
			found <- transport.Candidate{Source: "phone", Address: "phone"}
			go func() {
				defer close(found)
				for i := 0; ctx.Err() == nil; i++ {
					found <- transport.Candidate{Source: fmt.Sprint(i), Address: fmt.Sprint("tarpit", i)}
					<-time.After(50 * time.Millisecond)
				}
			}()
			_, err := transport.Race(ctx, nil, found, func(ctx context.Context, c transport.Candidate) (string, error) {
				if c.Address == "phone" {
					return c.Address, nil
				}
				<-ctx.Done()
				return "", ctx.Err()
			}, func(string) {})
			if err == nil {
				won++
			}
			cancel()
			for range found {
			}
		})
	}
	// By lot it is found nearly always; one that is put off each time never is.
	if won < 15 {
		t.Errorf("found %d times of 20", won)
	}
}

// Many claims in the name of the phone's own source do not push its own out
// for good.
func TestRaceForgedSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := []transport.Candidate{{Source: "phone", Address: "phone"}}
		for i := range 7 {
			all = append(all, transport.Candidate{Source: "phone", Address: fmt.Sprint("tarpit", i)})
		}
		if _, err := contest(t, t.Context(), nil, all); err != nil {
			t.Error(err)
		}
	})
}

// A known address is tried again: a phone that restarts there announces nothing.
func TestRaceAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		found := make(chan transport.Candidate)
		close(found)
		got, err := transport.Race(ctx, []transport.Candidate{{Address: "phone", Again: 250 * time.Millisecond}}, found,
			func(ctx context.Context, c transport.Candidate) (string, error) {
				if time.Since(start) < time.Second {
					return "", errors.New("connection refused")
				}
				return c.Address, nil
			}, func(string) {})
		if err != nil || got != "phone" || time.Since(start) > 1250*time.Millisecond {
			t.Errorf("%q, %v after %v", got, err, time.Since(start))
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
