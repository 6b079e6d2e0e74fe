// SPDX-License-Identifier: BSD-3-Clause

package phone

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"vmux.app/toolkit/internal/envelope"
)

// The phone has a few requests of a burst at a time, in their order, and the
// rest waits; what would wait for nobody knows how long is refused.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		answer := make(chan struct{})
		created := make(chan time.Time, 100)
		r.sign = func(ctx context.Context, _ int, q *envelope.SignRequest) (envelope.Payload, error) {
			created <- q.CreatedAt.Time
			select {
			case <-answer:
				return &envelope.SignResponse{Signature: []byte("signed")}, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		r.serve(t, "phone:1", r.paired)
		const burst = maxAsked + maxWaiting
		errs := make(chan error, burst)
		cancels := make([]context.CancelFunc, burst)
		for i := range burst {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			cancels[i] = cancel
			go func() {
				_, err := r.ask(ctx)
				errs <- err
			}()
			synctest.Wait()
		}
		if n := len(created); n != maxAsked {
			t.Fatalf("the phone has %d requests", n)
		}
		if _, err := r.ask(t.Context()); !errors.Is(err, ErrTooMany) {
			t.Errorf("one more: %v", err)
		}
		// One that has gone waits no more, and takes nobody's turn.
		cancels[maxAsked]()
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Errorf("gone: %v", err)
		}
		<-time.After(20 * time.Second)
		for range maxAsked {
			if c := <-created; time.Since(c) != 20*time.Second {
				t.Errorf("a request of %v ago", time.Since(c))
			}
		}
		answer <- struct{}{}
		if err := <-errs; err != nil {
			t.Error(err)
		}
		synctest.Wait()
		// The owner has a whole minute for each.
		if c := <-created; time.Since(c) != 0 || len(created) > 0 {
			t.Errorf("next is a request of %v ago, %d more", time.Since(c), len(created))
		}
		for range burst - 2 {
			answer <- struct{}{}
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	})
}

// A phone that puts a withdrawn prompt away slowly is asked again, and not for
// ever.
func TestTooManyIsAskedAgain(t *testing.T) {
	for busy, want := range map[int]error{tooManyAgain: nil, 100: ErrTooMany} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t)
			ids := map[string]bool{}
			r.sign = func(_ context.Context, n int, q *envelope.SignRequest) (envelope.Payload, error) {
				if age := time.Since(q.CreatedAt.Time); age > time.Millisecond {
					t.Errorf("a request of %v ago", age)
				}
				if n <= busy {
					return nil, envelope.Errorf(envelope.CodeTooMany, "busy")
				}
				return &envelope.SignResponse{Signature: []byte("signed")}, nil
			}
			r.serve(t, "phone:1", r.paired)
			start := time.Now()
			if _, err := r.ask(t.Context()); !errors.Is(err, want) {
				t.Errorf("%v", err)
			}
			if took := time.Since(start); took != tooManyAgain*tooManyPause {
				t.Errorf("took %v", took)
			}
			for _, id := range r.ids {
				if ids[id] {
					t.Error("an id twice")
				}
				ids[id] = true
			}
		})
	}
}

func TestNobodyWaitsForAPhoneThatIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		errs := make(chan error, 20)
		start := time.Now()
		for range 20 {
			go func() {
				_, err := r.ask(t.Context())
				errs <- err
			}()
		}
		for range 20 {
			if err := <-errs; !errors.Is(err, ErrUnreachable) {
				t.Error(err)
			}
		}
		if took := time.Since(start); took > reachTimeout {
			t.Errorf("took %v", took)
		}
	})
}
