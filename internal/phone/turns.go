// SPDX-License-Identifier: BSD-3-Clause

package phone

import (
	"context"
	"fmt"
	"sync/atomic"
)

const (
	// maxAsked is how many requests a phone has at once: as many prompts as it
	// shows of one device (vmux-protocol(7)).
	maxAsked = 8
	// maxWaiting is how many more wait for their turn. Nobody answers more prompts
	// within a deadline.
	maxWaiting = 64
)

// turns lets requests to the phone in the order in which they came.
type turns struct {
	asked   chan struct{} // as many as the phone has; senders queue
	waiting atomic.Int64
}

func newTurns() *turns { return &turns{asked: make(chan struct{}, maxAsked)} }

// take waits for a turn, which ends with done. waited says that others were
// first. Errors: ErrTooMany, the cause of ctx.
func (t *turns) take(ctx context.Context) (done func(), waited bool, err error) {
	done = func() { <-t.asked }
	select {
	case t.asked <- struct{}{}:
		return done, false, nil
	default:
	}
	defer t.waiting.Add(-1)
	if t.waiting.Add(1) > maxWaiting {
		return nil, true, fmt.Errorf("%w: %d are there, and %d wait for their turn", ErrTooMany, maxAsked, maxWaiting)
	}
	select {
	case t.asked <- struct{}{}:
		return done, true, nil
	case <-ctx.Done():
		return nil, true, context.Cause(ctx)
	}
}
