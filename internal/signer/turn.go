// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"context"
	"slices"
	"sync"
)

// turn lets one at a time through. Of those who wait, the next one is who came
// first of the device that has had no turn for the longest time: one that asks
// again and again does not keep the others waiting. The zero value is free.
type turn struct {
	mu      sync.Mutex
	taken   bool
	waiting []*waiter         // in the order in which they came
	had     map[string]uint64 // when each device had its turn last, while somebody waits
	count   uint64            // of turns
}

type waiter struct {
	device string
	next   chan struct{} // closed when it is its turn
}

// take waits for the turn of a device, which may be empty for none. Error: the
// cause of ctx.
func (t *turn) take(ctx context.Context, device string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	t.mu.Lock()
	if !t.taken {
		t.beginLocked(device)
		t.mu.Unlock()
		return nil
	}
	w := &waiter{device, make(chan struct{})}
	t.waiting = append(t.waiting, w)
	t.mu.Unlock()
	select {
	case <-w.next:
		if ctx.Err() == nil {
			return nil
		}
		t.give()
	case <-ctx.Done():
		t.giveUp(w)
	}
	return context.Cause(ctx)
}

// give ends the turn of who has taken it.
func (t *turn) give() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.giveLocked()
}

// giveUp is for who waits no more.
func (t *turn) giveUp(w *waiter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.Index(t.waiting, w)
	if i < 0 { // its turn has come meanwhile
		t.giveLocked()
		return
	}
	t.waiting = slices.Delete(t.waiting, i, i+1)
}

func (t *turn) giveLocked() {
	if len(t.waiting) == 0 {
		t.taken, t.had = false, nil
		return
	}
	first := 0
	for i, w := range t.waiting {
		if t.had[w.device] < t.had[t.waiting[first].device] {
			first = i
		}
	}
	w := t.waiting[first]
	t.waiting = slices.Delete(t.waiting, first, first+1)
	t.beginLocked(w.device)
	close(w.next)
}

func (t *turn) beginLocked(device string) {
	if t.had == nil {
		t.had = map[string]uint64{}
	}
	t.count++
	t.taken, t.had[device] = true, t.count
}
