// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"time"

	"vmux.app/toolkit/internal/keyfile"
	"vmux.app/toolkit/internal/transport"
)

// maxPrompts is how many prompts of one device wait at once: more than a person
// has in mind, and few enough that a burst cannot bury an honest one.
const maxPrompts = 8

// maxAsking bounds the prompts of one device with those that were withdrawn and
// whose dialog is not gone yet: a device that takes its turn right after it has
// given one up is not refused, and one that does nothing else is.
const maxAsking = 2 * maxPrompts

var errTooMany = errors.New("too many prompts of this device are waiting")

// promptKey tells requests that are one prompt: same device, key and data.
type promptKey struct {
	device transport.Pin
	key    string // blob of the identity, empty when the request names none
	data   [sha256.Size]byte
	id     string // of a request that shares its prompt with no other
	// session is a login's session id. A no is for the login, whichever key was
	// asked for; a yes is for the key that was shown.
	session string
}

// errSessionDenied is the end of the prompts for a login that was denied with
// another key.
var errSessionDenied = fmt.Errorf("%w, as the same login with another key", ErrDenied)

// prompts are the prompts that wait for the owner.
type prompts struct {
	approve func(context.Context, *Prompt) (*keyfile.Key, error) // asks the owner, and opens the prompt's key
	asking  sync.WaitGroup

	mu      sync.Mutex
	open    map[promptKey]*openPrompt
	count   map[transport.Pin]int // prompts of a device that are open or on their way out
	refused refusals
}

type openPrompt struct {
	prompt   *Prompt
	cancel   context.CancelCauseFunc
	requests int // that wait for it or use its key
	done     chan struct{}
	key      *keyfile.Key // set before done is closed, nil with err
	err      error        // likewise
}

// approval is an owner's yes.
type approval struct {
	prompt *Prompt // that the owner has seen
	key    *keyfile.Key
	// done must be called when the key is not needed any more.
	done func()
}

func newPrompts(approve func(context.Context, *Prompt) (*keyfile.Key, error)) *prompts {
	return &prompts{approve: approve, open: map[promptKey]*openPrompt{}, count: map[transport.Pin]int{}, refused: refusals{}}
}

// ask shows p, or joins the prompt that asks the same, and waits for the answer
// or ctx. What the device claimed for another request need not be in the prompt
// that it gives. Errors: ErrDenied, errTooMany, the cause of ctx, the cause given
// to withdraw, the approver's own.
func (ps *prompts) ask(ctx context.Context, k promptKey, p *Prompt, expires time.Time) (*approval, error) {
	o, err := ps.join(k, p, expires)
	if err != nil {
		return nil, err
	}
	leave := sync.OnceFunc(func() { ps.leave(ctx, k, o) })
	select {
	case <-o.done:
		err = o.err
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		leave()
		return nil, err
	}
	return &approval{o.prompt, o.key, leave}, nil
}

// leave gives up a request's part in a prompt. The last one withdraws it, or
// overwrites its key.
func (ps *prompts) leave(ctx context.Context, k promptKey, o *openPrompt) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if o.requests--; o.requests > 0 {
		return
	}
	select {
	case <-o.done:
		o.wipe()
	default:
		o.cancel(context.Cause(ctx))
		ps.closeLocked(k, o)
	}
}

func (o *openPrompt) wipe() {
	if o.key != nil {
		o.key.Wipe()
	}
}

func (ps *prompts) join(k promptKey, p *Prompt, expires time.Time) (*openPrompt, error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if o := ps.open[k]; o != nil {
		o.requests++
		o.prompt.extend(expires)
		return o, nil
	}
	if err := ps.refuseLocked(k); err != nil {
		return nil, err
	}
	// The prompt belongs to all requests that join it, so it does not end with
	// the context of the first.
	ctx, cancel := context.WithCancelCause(context.Background())
	o := &openPrompt{prompt: p, cancel: cancel, requests: 1, done: make(chan struct{})}
	p.extend(expires)
	ps.open[k] = o
	ps.count[k.device]++
	ps.asking.Add(1)
	go func() {
		defer ps.asking.Done()
		defer cancel(nil)
		key, err := ps.approve(ctx, p)
		ps.mu.Lock()
		defer ps.mu.Unlock()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		o.key, o.err = key, err
		if err != nil || o.requests == 0 {
			o.wipe()
		}
		ps.closeLocked(k, o)
		if errors.Is(err, ErrDenied) && k.session != "" {
			ps.withdrawLocked(func(other promptKey) bool {
				return other.device == k.device && other.session == k.session
			}, errSessionDenied)
		}
		switch {
		case errors.Is(err, ErrDenied) && ctx.Err() == nil: // not along with another one
			ps.refused.add(k.device, time.Now())
		case err == nil:
			delete(ps.refused, k.device)
		}
		if ps.count[k.device]--; ps.count[k.device] == 0 {
			delete(ps.count, k.device)
		}
		close(o.done)
	}()
	return o, nil
}

// refuse gives the error for a request that would not be shown now, nil for others.
func (ps *prompts) refuse(k promptKey) error {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.refuseLocked(k)
}

func (ps *prompts) refuseLocked(k promptKey) error {
	switch {
	case ps.open[k] != nil:
		return nil
	case ps.openLocked(k.device) >= maxPrompts, ps.count[k.device] >= maxAsking:
		return errTooMany
	}
	return ps.refused.refuse(k.device, time.Now())
}

// waiting counts the prompts that wait for the owner.
func (ps *prompts) waiting() int {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return len(ps.open)
}

// openLocked counts the prompts of a device that wait for the owner.
func (ps *prompts) openLocked(device transport.Pin) (n int) {
	for k := range ps.open {
		if k.device == device {
			n++
		}
	}
	return n
}

// closeLocked makes the next request of the same kind raise a new prompt.
func (ps *prompts) closeLocked(k promptKey, o *openPrompt) {
	if ps.open[k] == o {
		delete(ps.open, k)
	}
}

// withdraw ends the prompts that gone says so of, with a cause that their
// requests get.
func (ps *prompts) withdraw(gone func(promptKey) bool, cause error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.withdrawLocked(gone, cause)
}

func (ps *prompts) withdrawLocked(gone func(promptKey) bool, cause error) {
	for k, o := range ps.open {
		if gone(k) {
			o.cancel(cause)
			ps.closeLocked(k, o)
		}
	}
}

// wait returns when no prompt is left. Every request must have ended.
func (ps *prompts) wait() { ps.asking.Wait() }
