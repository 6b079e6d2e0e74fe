// SPDX-License-Identifier: BSD-3-Clause

package phone

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/transport"
)

const (
	// wakeAfter is how long a phone is looked for before it is taken for asleep. One
	// that is awake answers within milliseconds.
	wakeAfter = 500 * time.Millisecond
	// wakeEvery is how often one phone is pushed to at most.
	wakeEvery = 30 * time.Second
	// wakeTime is how long a phone is looked for after a push.
	wakeTime = 20 * time.Second
	// pushTime bounds the push itself.
	pushTime = 10 * time.Second
)

var (
	// ErrNoWake is wrapped by what Options.Wake returns when nothing is set up to
	// push with.
	ErrNoWake = errors.New("no push is set up")
	// ErrTokenGone is wrapped when the phone's device token is of no use any more.
	ErrTokenGone = errors.New("the phone's device token is not valid any more")
)

// wake pushes to a phone that a request needs and that does not answer, and has
// the search go on while it wakes up. look's search ends ctx.
func (p *Phone) wake(ctx context.Context, a *attempt) {
	if p.o.Wake == nil {
		return
	}
	select {
	case <-a.wanted:
	case <-ctx.Done():
		return
	}
	asleep := time.NewTimer(wakeAfter - time.Since(a.start))
	defer asleep.Stop()
	select {
	case <-asleep.C:
	case <-ctx.Done():
		return
	}
	p.mu.Lock()
	phone, since := p.last, time.Since(p.pushed)
	first := p.pushed.IsZero() || since >= wakeEvery
	if first {
		p.pushed = time.Now()
	}
	p.mu.Unlock()
	if !first {
		if since < wakeTime {
			a.prolong(wakeTime-since, nil)
		}
		return
	}
	// The search goes on meanwhile: the phone may come by itself, too.
	a.prolong(wakeTime, nil)
	pushing, cancel := context.WithTimeout(ctx, pushTime)
	defer cancel()
	err := p.o.Wake(pushing, phone)
	switch {
	case err == nil:
		p.o.Log.Info("push sent", "phone", phone.Name)
		a.prolong(wakeTime, fmt.Errorf("a push was sent, and it did not come within %v", wakeTime))
	case errors.Is(err, ErrNoWake):
		p.mu.Lock()
		p.pushed = time.Time{} // nothing was
		p.mu.Unlock()
		a.prolong(reachTimeout-time.Since(a.start), nil)
	case ctx.Err() != nil: // it has come
	default:
		p.o.Log.Warn("push not sent", "phone", phone.Name, "reason", err)
		a.prolong(reachTimeout-time.Since(a.start), fmt.Errorf("the push that wakes it failed: %w", err))
		if errors.Is(err, ErrTokenGone) {
			p.forgetToken(phone.DeviceToken)
		}
	}
}

// mayWakeLocked says whether a request that finds nobody would push. p.mu is
// held.
func (p *Phone) mayWakeLocked() bool {
	return p.o.Wake != nil && (p.pushed.IsZero() || time.Since(p.pushed) >= wakeEvery)
}

// forgetToken forgets a device token unless the phone has sent another one.
func (p *Phone) forgetToken(gone store.DeviceToken) {
	p.o.Log.Warn("device token forgotten; the phone sends it anew when it connects", "phone", p.name())
	p.remember(func(s *store.Phone) {
		if s.DeviceToken.Token == gone.Token {
			s.DeviceToken = store.DeviceToken{}
		}
	})
}

// tokens stores what the phone says of how it is woken, as long as the link
// lives.
func (p *Phone) tokens(link *transport.Link) {
	for {
		select {
		case u := <-link.Tokens():
			p.remember(func(s *store.Phone) {
				next := store.DeviceToken{Token: hex.EncodeToString(u.Token), Environment: string(u.Environment), Topic: u.Topic}
				if !sameToken(s.DeviceToken, next) {
					next.Updated = time.Now()
					s.DeviceToken = next
				}
			})
		case <-link.Done():
			return
		case <-p.ctx.Done():
			return
		}
	}
}

func sameToken(a, b store.DeviceToken) bool {
	return a.Token == b.Token && a.Environment == b.Environment && a.Topic == b.Topic
}
