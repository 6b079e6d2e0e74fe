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
	// appLockIdle is how long App Lock stays open after the passphrase, and after each
	// approval while it is open.
	appLockIdle = time.Minute
)

var errNotOpened = errors.New("the approval did not open the key")

// errShut is why a prompt is not shown when its turn has come.
var errShut = fmt.Errorf("%w since the request came", ErrLocked)

// guard stands before approvals: it counts those who were not the owner, on disk,
// and keeps the passphrase if the approver does not ask for it.
type guard struct {
	approver Approver
	asker    PassphraseAsker // the approver, nil when it does not ask for passphrases
	appLock  bool

	tries turn // one passphrase at a time
	door  turn // one question for the passphrase alone at a time

	mu        sync.Mutex
	held      []byte    // the passphrase, nil for none
	used      time.Time // when App Lock was opened or an approval kept it open, zero when it is shut
	closed    bool      // by the owner, until the passphrase is given
	noes      int       // how often the owner did not give the passphrase when it was asked for alone
	uncounted int       // failures that are not on disk yet, since nothing can be written
}

func newGuard(a Approver, appLock bool, passphrase []byte) *guard {
	g := &guard{approver: a, appLock: appLock}
	g.asker, _ = a.(PassphraseAsker)
	if g.asker == nil {
		g.held = bytes.Clone(passphrase)
	}
	return g
}

// shut says why no prompt is shown now, empty when one may be.
func (s *server) shut() string {
	now := s.current()
	switch {
	case now.locked():
		return fmt.Sprintf("Approvals are locked: %d times in a row somebody was not recognized.", now.failures())
	case s.guard.isClosed():
		return "A request waits, and vmux-signer was locked."
	case s.guard.appLock && !s.guard.isOpen(s.now()):
		return "A request waits, and App Lock is on."
	}
	return ""
}

// isOpen says whether App Lock is open.
func (g *guard) isOpen(now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.isOpenLocked(now)
}

func (g *guard) isOpenLocked(now time.Time) bool {
	// By the clock on the wall too: the other one stands still while the computer
	// sleeps.
	idle := max(now.Sub(g.used), now.Round(0).Sub(g.used.Round(0)))
	return !g.used.IsZero() && idle <= appLockIdle && !now.Round(0).Before(g.used.Round(0))
}

// approved keeps App Lock open. Nothing else does: a device alone could ask, and
// ask again.
func (g *guard) approved(now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.isOpenLocked(now) {
		g.used = now
	}
}

func (g *guard) isClosed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.closed
}

func (g *guard) passphrase() []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return bytes.Clone(g.held)
}

// holds says whether the passphrase is there for an approver that does not ask
// for it.
func (g *guard) holds() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.held) > 0
}

// forget overwrites the passphrase and shuts App Lock.
func (g *guard) forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.forgetLocked()
}

func (g *guard) forgetLocked() {
	g.used = time.Time{}
	clear(g.held)
	g.held = nil
}

func (g *guard) refused() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.noes
}

// approve asks the owner, and opens the prompt's key. A prompt that was shut in
// while it waited for its turn goes to the door again.
func (s *server) approve(ctx context.Context, p *Prompt) (*keyfile.Key, error) {
	p.mayShow = func() error {
		if s.shut() != "" {
			return errShut
		}
		return nil
	}
	noes := s.guard.refused()
	for {
		if err := s.enter(ctx); err != nil {
			return nil, err
		}
		if k, err := s.show(ctx, p); !errors.Is(err, errShut) {
			return k, err
		}
		if s.guard.refused() != noes { // as in enter
			return nil, ErrDenied
		}
	}
}

// show has the approver ask the owner, and opens the prompt's key.
func (s *server) show(ctx context.Context, p *Prompt) (*keyfile.Key, error) {
	g := s.guard
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
	if err == nil {
		g.approved(s.now())
	}
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
	if !s.guard.holds() {
		return nil, ErrLocked
	}
	if err := s.guard.approver.Approve(ctx, p); err != nil {
		return nil, err
	}
	s.guard.approved(s.now())
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
		st, failed := s.notRecognized()
		if failed != nil {
			return nil, failed
		}
		if st.Locked() {
			err = fmt.Errorf("%w: %w", ErrLocked, err)
		}
	case err == nil:
		if err = s.recognized(); err != nil {
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
	noes := g.refused()
	if s.shut() == "" {
		return nil
	}
	if err := g.door.take(ctx, ""); err != nil {
		return err
	}
	defer g.door.give()
	why := s.shut()
	if why == "" {
		return nil
	}
	if g.refused() != noes { // a no is for all who have waited
		return ErrDenied
	}
	protected, err := s.home.Protected()
	if err != nil {
		return err
	}
	if g.asker == nil || !protected {
		return ErrLocked
	}
	err = g.asker.AskPassphrase(ctx, why, func(passphrase []byte) error { return s.unlock(ctx, passphrase) })
	if errors.Is(err, ErrDenied) {
		g.mu.Lock()
		g.noes++
		g.mu.Unlock()
	}
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
	// Without one, no passphrase is right and none should be counted as wrong.
	if protected, err := s.home.Protected(); err != nil {
		return err
	} else if !protected {
		return ErrNotProtected
	}
	if err := s.guard.tries.take(ctx, ""); err != nil {
		return err
	}
	defer s.guard.tries.give()
	if err := s.wait(ctx); err != nil {
		return err
	}
	if err := s.check(passphrase, func() error { return s.home.CheckPassphrase(passphrase) }); err != nil {
		return err
	}
	g := s.guard
	g.mu.Lock()
	g.used, g.closed = s.now(), false
	if g.asker == nil {
		clear(g.held)
		g.held = bytes.Clone(passphrase)
	}
	g.mu.Unlock()
	s.recordDone(audit.Record{Event: recordLock, Outcome: "unlocked"})
	s.log.Info("unlocked")
	return nil
}

// lock has the passphrase given before anything is shown or signed, and forgets it.
// Prompts that are shown are withdrawn. Error: ErrNotProtected.
func (s *server) lock() error {
	protected, err := s.home.Protected()
	if err != nil {
		return err
	}
	if !protected { // nothing would end it
		return ErrNotProtected
	}
	g := s.guard
	g.mu.Lock()
	g.forgetLocked()
	g.closed = true
	g.mu.Unlock()
	s.prompts.withdraw(func(promptKey) bool { return true }, ErrLocked)
	s.recordDone(audit.Record{Event: recordLock, Outcome: "locked"})
	s.log.Info("locked")
	return nil
}

// tryPassphrase has open try a passphrase for a prompt, which it overwrites, and counts.
// Errors: ErrPassphrase, ErrLocked, those of open, the cause of ctx.
func (s *server) tryPassphrase(ctx context.Context, passphrase []byte, open func() error) error {
	defer clear(passphrase)
	if err := s.guard.tries.take(ctx, ""); err != nil {
		return err
	}
	defer s.guard.tries.give()
	if s.current().locked() {
		return ErrLocked
	}
	err := s.check(passphrase, open)
	if errors.Is(err, ErrPassphrase) && s.current().locked() {
		return ErrLocked
	}
	return err
}

// check counts a failure, has open look at the passphrase, and takes the failure
// back unless the passphrase is wrong: a process that is killed meanwhile has
// counted. The caller has the turn.
func (s *server) check(passphrase []byte, open func() error) error {
	if len(passphrase) == 0 {
		return ErrPassphrase
	}
	var before State
	counted := s.now().UTC().Round(0)
	after, err := s.count(func(st *State, pending *int) {
		before = *st
		st.Failures, st.FailedAt, *pending = st.Failures+1, counted, 1
	})
	defer s.settle()
	if err != nil {
		return err
	}
	err = open()
	switch {
	case errors.Is(err, ErrPassphrase):
		s.log.Warn("wrong passphrase", "failures", after.Failures)
		s.recordDone(audit.Record{Event: recordLock, Outcome: "failed", Reason: fmt.Sprintf("wrong passphrase, failures in a row: %d", after.Failures)})
		s.failed(after)
		return err
	case err != nil: // it was not looked at
		_, back := s.count(func(st *State, pending *int) {
			st.Failures, *pending = max(0, st.Failures-1), 0
			if st.FailedAt.Equal(counted) {
				st.FailedAt = before.FailedAt
			}
		})
		return errors.Join(err, back)
	}
	_, err = s.count(func(st *State, pending *int) { st.Failures, st.FailedAt, *pending = 0, time.Time{}, 0 })
	return err
}

// failed says that a failure was the one that locks.
func (s *server) failed(st State) {
	if st.Failures == maxFailures {
		s.recordDone(audit.Record{Event: recordLock, Outcome: "locked", Reason: fmt.Sprintf("%d failed approvals in a row", st.Failures)})
		s.log.Warn("approvals are locked until the passphrase is given", "failures", st.Failures)
		s.event(Event{Event: EventLocked})
	}
}

// notRecognized counts that somebody was not. What cannot be written is counted by
// the next approval, which is none before that.
func (s *server) notRecognized() (State, error) {
	n := s.guard.takeUncounted() + 1
	st, err := s.count(func(st *State, _ *int) {
		st.Failures, st.FailedAt = st.Failures+n, s.now().UTC().Round(0)
	})
	if err != nil {
		s.guard.giveUncounted(n)
		return State{}, err
	}
	s.failed(st)
	return st, nil
}

// recognized ends a row of failures, unless it is one that locks. Error: ErrLocked.
func (s *server) recognized() error {
	n := s.guard.takeUncounted()
	if n == 0 && s.current().state.Failures == 0 {
		return nil
	}
	locked := false
	_, err := s.count(func(st *State, pending *int) {
		st.Failures += n
		if locked = st.Failures-*pending >= maxFailures; !locked {
			st.Failures, st.FailedAt = *pending, time.Time{}
		}
	})
	switch {
	case err != nil:
		s.guard.giveUncounted(n)
		return err
	case locked:
		return ErrLocked
	}
	return nil
}

func (g *guard) takeUncounted() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := g.uncounted
	g.uncounted = 0
	return n
}

func (g *guard) giveUncounted(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.uncounted += n
}

// count changes what is counted, on disk first. pending is how many of the failures
// are of a passphrase that is being looked at.
func (s *server) count(change func(st *State, pending *int)) (State, error) {
	s.homeMu.Lock()
	defer s.homeMu.Unlock()
	var pending int
	st, err := s.home.Update(func(st *State) error {
		pending = s.pending
		change(st, &pending)
		return nil
	})
	if err == nil {
		s.pending = pending
		err = s.publishLocked(st)
	}
	if err != nil {
		return State{}, fmt.Errorf("failed approvals cannot be counted: %w", err)
	}
	return st, nil
}

// settle makes a failure count that was of a passphrase that was being looked at.
func (s *server) settle() {
	s.homeMu.Lock()
	defer s.homeMu.Unlock()
	s.pending = 0
	now := *s.current()
	now.pending = 0
	s.snap.Store(&now)
}

// failures are how often in a row somebody was not recognized.
func (n *snapshot) failures() int { return n.state.Failures - n.pending }

// locked says whether that is too often.
func (n *snapshot) locked() bool { return n.failures() >= maxFailures }

// wait holds up who tries passphrases.
func (s *server) wait(ctx context.Context) error {
	now := s.current()
	if !now.locked() {
		return nil
	}
	st := &now.state
	whole := maxFailureWait
	if n := st.Failures - maxFailures; n < 16 { // more would not be longer
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
