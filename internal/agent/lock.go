// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/argon2"
)

const (
	// A wrong passphrase costs failures × lockDelayStep, at most lockDelayMax, as in OpenSSH's agent.
	lockDelayStep = 100 * time.Millisecond
	lockDelayMax  = 10 * time.Second

	// Argon2id with RFC 9106's shape and less memory than its defaults: what is hashed lives in this process only,
	// and one attempt at a time is under way. About 20 ms.
	lockTime    = 2
	lockMemory  = 16 << 10 // KiB
	lockThreads = 1
	lockSalt    = 16
	lockHash    = 32
)

var (
	errLocked          = errors.New("agent is locked")
	errNotLocked       = errors.New("agent is not locked")
	errEmptyPassphrase = errors.New("empty passphrase")
	errWrongPassphrase = errors.New("wrong passphrase")
)

// lock is the state of ssh-add -x and -X. Attempts take turns, and after a wrong passphrase the next one, from whichever
// connection, is looked at only when the delay is over: neither parallel connections nor hanging up guess faster.
// Nothing but attempts waits.
type lock struct {
	turn      chan struct{} // holds one token; who has it owns the fields up to the empty line
	salt      [lockSalt]byte
	hash      []byte
	failed    int
	notBefore time.Time // the next attempt is looked at then

	locked atomic.Bool // written by the owner of the turn, read by everyone
	now    func() time.Time
	after  func(time.Duration) <-chan time.Time
}

func newLock() *lock {
	l := &lock{turn: make(chan struct{}, 1), now: time.Now, after: time.After}
	l.turn <- struct{}{}
	return l
}

func (l *lock) take(ctx context.Context) error {
	select {
	case <-l.turn:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l *lock) give() { l.turn <- struct{}{} } // cannot block: the channel holds the one token

func (l *lock) hashOf(passphrase []byte) []byte {
	return argon2.IDKey(passphrase, l.salt[:], lockTime, lockMemory, lockThreads, lockHash)
}

// Lock locks the agent.
func (l *lock) Lock(ctx context.Context, passphrase []byte) error {
	if len(passphrase) == 0 {
		return errEmptyPassphrase
	}
	if err := l.take(ctx); err != nil {
		return err
	}
	defer l.give()
	if l.locked.Load() {
		return errLocked
	}
	rand.Read(l.salt[:]) // never fails (crypto/rand)
	l.hash = l.hashOf(passphrase)
	l.locked.Store(true)
	return nil
}

// Unlock unlocks the agent, or answers after the delay that a wrong passphrase costs.
func (l *lock) Unlock(ctx context.Context, passphrase []byte) error {
	if len(passphrase) == 0 {
		return errEmptyPassphrase
	}
	if err := l.take(ctx); err != nil {
		return err
	}
	defer l.give()
	if err := l.pause(ctx); err != nil {
		return err
	}
	if !l.locked.Load() {
		return errNotLocked
	}
	if subtle.ConstantTimeCompare(l.hashOf(passphrase), l.hash) == 1 {
		clear(l.hash)
		l.failed, l.notBefore = 0, time.Time{}
		l.locked.Store(false)
		return nil
	}
	l.failed++
	l.notBefore = l.now().Add(min(time.Duration(l.failed)*lockDelayStep, lockDelayMax))
	if err := l.pause(ctx); err != nil {
		return err
	}
	return errWrongPassphrase
}

// pause waits until notBefore.
func (l *lock) pause(ctx context.Context) error {
	wait := l.notBefore.Sub(l.now())
	if wait <= 0 {
		return nil
	}
	select {
	case <-l.after(wait):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
