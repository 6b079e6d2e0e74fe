// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"vmux.app/toolkit/internal/audit"
	"vmux.app/toolkit/internal/keyfile"
)

const (
	// maxFailures is how often in a row somebody who is not the owner may answer
	// before nothing but the passphrase helps.
	maxFailures = 5
	// failureWait is how long the first passphrase after that has to wait; each
	// wrong one doubles it, up to maxFailureWait.
	failureWait    = time.Second
	maxFailureWait = 15 * time.Minute
	// appLockIdle is how long App Lock stays open after a prompt.
	appLockIdle = time.Minute
)

var errNotOpened = errors.New("the approval did not open the key")

// guard stands before approvals: it counts those who were not the owner, on disk,
// and keeps the passphrase if the approver does not ask for it.
type guard struct {
	approver Approver
	asker    PassphraseAsker // the approver, nil when it does not ask for passphrases
	appLock  bool

	tries sync.Mutex    // one passphrase at a time
	door  chan struct{} // holds a token while nobody asks for the passphrase alone

	mu   sync.Mutex
	held []byte    // the passphrase, nil for none
	used time.Time // when App Lock was last seen open, zero when it is shut
}

func newGuard(a Approver, appLock bool, passphrase []byte) *guard {
	g := &guard{approver: a, appLock: appLock, door: make(chan struct{}, 1)}
	g.asker, _ = a.(PassphraseAsker)
	if g.asker == nil {
		g.held = bytes.Clone(passphrase)
	}
	g.door <- struct{}{}
	return g
}

// shut says why no prompt is shown now, empty when one may be.
func (s *server) shut() string {
	st := &s.current().state
	switch {
	case st.Locked():
		return fmt.Sprintf("Approvals are locked: %d times in a row somebody was not recognized.", st.Failures)
	case s.guard.appLock && !s.guard.opened(s.now()):
		return "A request waits, and App Lock is on."
	}
	return ""
}

// opened says whether App Lock is open, and keeps it open.
func (g *guard) opened(now time.Time) bool {
	open := g.isOpen(now)
	g.mu.Lock()
	defer g.mu.Unlock()
	if open {
		g.used = now
	} else {
		g.used = time.Time{}
	}
	return open
}

// isOpen says whether App Lock is open.
func (g *guard) isOpen(now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	// By the clock on the wall too: the other one stands still while the computer
	// sleeps.
	idle := max(now.Sub(g.used), now.Round(0).Sub(g.used.Round(0)))
	return !g.used.IsZero() && idle <= appLockIdle && !now.Round(0).Before(g.used.Round(0))
}

func (g *guard) passphrase() []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return bytes.Clone(g.held)
}

// approve asks the owner, and opens the prompt's key.
func (s *server) approve(ctx context.Context, p *Prompt) (*keyfile.Key, error) {
	g := s.guard
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	protected := s.current().ca.Encrypted || p.file.Encrypted
	if protected && g.asker == nil {
		return s.approveHeld(ctx, p)
	}
	var mu sync.Mutex
	var key *keyfile.Key
	over := false // nobody takes the key any more
	take := func() *keyfile.Key {
		mu.Lock()
		defer mu.Unlock()
		over = true
		return key
	}
	if protected {
		p.unlock = func(passphrase []byte) error {
			return s.tryPassphrase(ctx, passphrase, func() error {
				k, err := s.open(p.file, passphrase)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err != nil:
				case over || key != nil:
					k.Wipe()
				default:
					key = k
				}
				return err
			})
		}
	}
	err := g.approver.Approve(ctx, p)
	g.opened(s.now())
	if !protected && err == nil {
		return s.openKey(p.file, nil)
	}
	k := take()
	switch {
	case err == nil && k == nil:
		return nil, errNotOpened
	case err != nil && k != nil:
		k.Wipe()
		k = nil
	}
	return k, err
}

// approveHeld asks an approver that does not ask for passphrases.
func (s *server) approveHeld(ctx context.Context, p *Prompt) (*keyfile.Key, error) {
	if len(s.guard.passphrase()) == 0 {
		return nil, ErrLocked
	}
	err := s.guard.approver.Approve(ctx, p)
	s.guard.opened(s.now())
	if err != nil {
		return nil, err
	}
	passphrase := s.guard.passphrase()
	defer clear(passphrase)
	if len(passphrase) == 0 { // it was locked meanwhile
		return nil, ErrLocked
	}
	return s.open(p.file, passphrase)
}

// open opens a key with the home's passphrase, one that is not encrypted too.
func (s *server) open(f *keyfile.File, passphrase []byte) (*keyfile.Key, error) {
	if f.Encrypted {
		return s.openKey(f, passphrase)
	}
	if err := s.home.CheckPassphrase(passphrase); err != nil {
		return nil, err
	}
	return s.openKey(f, nil)
}

// counted is approve, with what becomes of it counted: what is done by whoever was
// not recognized, and that it was the owner.
func (s *server) counted(ctx context.Context, p *Prompt) (*keyfile.Key, error) {
	k, err := s.approve(ctx, p)
	switch {
	case errors.Is(err, ErrNotRecognized):
		st, failed := s.fail()
		if failed != nil {
			return nil, failed
		}
		if st.Locked() {
			err = fmt.Errorf("%w: %w", ErrLocked, err)
		}
	case err == nil:
		if err = s.unfail(); err != nil {
			k.Wipe()
			k = nil
		}
	}
	return k, err
}

// enter returns when prompts may be shown, or the reason why not. While they may
// not, the passphrase is asked for, once for all who wait.
func (s *server) enter(ctx context.Context) error {
	g := s.guard
	if s.shut() == "" {
		return nil
	}
	select {
	case <-g.door:
		defer func() { g.door <- struct{}{} }() // it was taken, so there is room
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	why := s.shut()
	if why == "" {
		return nil
	}
	protected, err := s.home.Protected()
	if err != nil {
		return err
	}
	if g.asker == nil || !protected {
		return ErrLocked
	}
	err = g.asker.AskPassphrase(ctx, why, func(passphrase []byte) error { return s.unlock(ctx, passphrase) })
	if err != nil {
		return err
	}
	if s.shut() != "" {
		return ErrLocked
	}
	return nil
}

// unlock ends the lock of approvals and App Lock's, and gives the key to an approver
// that does not ask for it. It overwrites the passphrase. After too many failures
// it waits before it looks at it. Errors: ErrPassphrase, ErrNotProtected, the
// cause of ctx.
func (s *server) unlock(ctx context.Context, passphrase []byte) error {
	defer clear(passphrase)
	s.guard.tries.Lock()
	defer s.guard.tries.Unlock()
	if err := s.wait(ctx); err != nil {
		return err
	}
	if err := s.check(passphrase, func() error { return s.home.CheckPassphrase(passphrase) }); err != nil {
		return err
	}
	g := s.guard
	g.mu.Lock()
	defer g.mu.Unlock()
	g.used = s.now()
	if g.asker == nil {
		clear(g.held)
		g.held = bytes.Clone(passphrase)
	}
	s.home.recordDone(audit.Record{Event: recordLock, Outcome: "unlocked"})
	s.log.Info("unlocked")
	return nil
}

// lock shuts App Lock and forgets the passphrase. Prompts that are shown are
// withdrawn.
func (s *server) lock() {
	g := s.guard
	g.mu.Lock()
	g.used = time.Time{}
	clear(g.held)
	g.held = nil
	g.mu.Unlock()
	s.prompts.withdraw(func(promptKey) bool { return true }, ErrLocked)
	s.home.recordDone(audit.Record{Event: recordLock, Outcome: "locked"})
	s.log.Info("locked")
}

// tryPassphrase has open try a passphrase for a prompt, which it overwrites, and counts.
// Errors: ErrPassphrase, ErrLocked, those of open.
func (s *server) tryPassphrase(ctx context.Context, passphrase []byte, open func() error) error {
	defer clear(passphrase)
	s.guard.tries.Lock()
	defer s.guard.tries.Unlock()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if s.current().state.Locked() {
		return ErrLocked
	}
	err := s.check(passphrase, open)
	if errors.Is(err, ErrPassphrase) && s.current().state.Locked() {
		return ErrLocked
	}
	return err
}

// check counts a failure, has open look at the passphrase, and takes the failure
// back unless the passphrase is wrong: a process that is killed meanwhile has
// counted.
func (s *server) check(passphrase []byte, open func() error) error {
	if len(passphrase) == 0 {
		return ErrPassphrase
	}
	before := s.current().state
	after, err := s.fail()
	if err != nil {
		return err
	}
	err = open()
	switch {
	case errors.Is(err, ErrPassphrase):
		s.log.Warn("wrong passphrase", "failures", after.Failures)
		return err
	case err != nil: // it was not looked at
		return errors.Join(err, s.setFailures(before.Failures, before.FailedAt))
	}
	return s.setFailures(0, time.Time{})
}

// fail counts a failure.
func (s *server) fail() (State, error) {
	err := s.count(func(st *State) { st.Failures, st.FailedAt = st.Failures+1, s.now().UTC().Truncate(time.Second) })
	if err != nil {
		return State{}, err
	}
	st := s.current().state
	if st.Failures == maxFailures {
		s.home.recordDone(audit.Record{Event: recordLock, Outcome: "locked", Reason: fmt.Sprintf("%d failed approvals in a row", st.Failures)})
		s.log.Warn("approvals are locked until the passphrase is given", "failures", st.Failures)
		s.event(Event{Event: EventLocked})
	}
	return st, nil
}

// unfail ends a row of failures.
func (s *server) unfail() error {
	if s.current().state.Failures == 0 {
		return nil
	}
	return s.setFailures(0, time.Time{})
}

func (s *server) setFailures(n int, at time.Time) error {
	return s.count(func(st *State) { st.Failures, st.FailedAt = n, at })
}

func (s *server) count(change func(*State)) error {
	err := s.update(func(st *State) error { change(st); return nil })
	if err != nil {
		return fmt.Errorf("failed approvals cannot be counted: %w", err)
	}
	return nil
}

// wait holds up who tries passphrases.
func (s *server) wait(ctx context.Context) error {
	st := &s.current().state
	if !st.Locked() {
		return nil
	}
	whole := maxFailureWait
	if n := st.Failures - maxFailures; n < 16 {
		whole = min(whole, failureWait<<n)
	}
	// A clock that was set back does not make it longer.
	left := min(whole, st.FailedAt.Add(whole).Sub(s.now()))
	if left <= 0 {
		return nil
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
