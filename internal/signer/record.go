// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"vmux.app/toolkit/internal/audit"
	"vmux.app/toolkit/internal/transport"
)

// Events of the audit log. A request is recorded when it is about to be shown, its
// decision when it is answered; a request that is not shown has a decision only.
const (
	recordRequest  = "request"
	recordDecision = "decision"
	recordPairing  = "pairing"
	recordDevice   = "device"
	recordKey      = "key"
	recordLock     = "lock"
	recordHome     = "home"
	recordStarted  = "started"
	recordStopped  = "stopped"
)

// A device can cause refusals without anybody seeing them, and withdraw what it has
// shown. So that it cannot push others out of the log, so many of the first are
// recorded and logged, and so many of the second shown, in each such time. Of its
// links as many are logged as of the first.
const (
	maxUnseen  = 30
	maxVain    = 120
	unseenTime = time.Minute
)

var errManyVain = fmt.Errorf("%d requests of this device within a minute came to nothing", maxVain)

// record writes to the home's audit log. Error: audit.ErrNotRecorded.
func (h *Home) record(r audit.Record, durable bool) error {
	l, err := h.log()
	if err != nil {
		return fmt.Errorf("%w: %w", audit.ErrNotRecorded, err)
	}
	return l.Append(r, durable)
}

// recordDone records what was done and cannot be undone.
func (h *Home) recordDone(r audit.Record) {
	if err := h.record(r, true); err != nil {
		h.warn(unrecorded(r, err))
	}
}

// recordDone is the home's for one that is served: what is said goes to the log.
func (s *server) recordDone(r audit.Record) {
	if err := s.home.record(r, true); err != nil {
		s.log.Error("audit", "reason", unrecorded(r, err))
	}
}

func unrecorded(r audit.Record, err error) string {
	return fmt.Sprintf("%s %s is %v", r.Event, r.Outcome, err)
}

// unseen counts a device's refusals that nobody saw, and what it had shown in vain.
type unseen struct {
	since time.Time
	times int
	left  int // not recorded
	vain  int
	links int
}

// ask has the owner asked, and records that he is about to be. Without the record
// nobody is. Errors: those of prompts.ask, errManyVain, audit.ErrNotRecorded.
func (s *server) ask(ctx context.Context, e *Event, k promptKey, p *Prompt, expires time.Time) (*approval, error) {
	if err := s.prompts.refuse(k); err != nil {
		return nil, err
	}
	if err := s.vainTurn(e.record.Pin); err != nil {
		return nil, err
	}
	e.shown = true
	r := e.record
	r.Event = recordRequest
	if err := s.home.record(r, false); err != nil {
		return nil, err
	}
	return s.prompts.ask(ctx, k, p, expires)
}

// vainTurn says whether a request may be shown, and counts it until it is signed.
func (s *server) vainTurn(pin string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.unseenLocked(pin)
	if u.vain >= maxVain {
		return errManyVain
	}
	u.vain++
	return nil
}

// notVain says that a request that was shown is signed.
func (s *server) notVain(pin string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.unseenLocked(pin)
	u.vain = max(0, u.vain-1)
}

// recordAnswer records what becomes of a request, unless it is one of too many. A
// signature is given when that is on the disk only.
func (s *server) recordAnswer(e *Event) (tooMany bool, err error) {
	pin := e.record.Pin
	if e.Outcome == outcomeSigned {
		s.notVain(pin)
	}
	if !e.shown && e.Outcome != outcomeSigned {
		more, ok := s.unseenTurn(pin)
		if !ok {
			return true, nil
		}
		if more > 0 {
			e.Reason = fmt.Sprintf("%s (%d more like it were not recorded)", e.Reason, more)
		}
	}
	r := e.record
	r.Event, r.Outcome, r.Reason = recordDecision, e.Outcome, e.Reason
	return false, s.home.record(r, e.Outcome == outcomeSigned)
}

// unseenTurn says whether a refusal that nobody saw is recorded, and how many were
// not since the last one that was.
func (s *server) unseenTurn(pin string) (more int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.unseenLocked(pin)
	if u.times++; u.times > maxUnseen {
		u.left++
		return 0, false
	}
	more, u.left = u.left, 0
	return more, true
}

// linkTurn says whether a link is logged.
func (s *server) linkTurn(pin string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.unseenLocked(pin)
	u.links++
	return u.links <= maxUnseen
}

// unseenLocked is the device's count in the present time.
func (s *server) unseenLocked(pin string) *unseen {
	if s.unseen == nil {
		s.unseen = map[string]*unseen{}
	}
	u := s.unseen[pin]
	if u == nil {
		u = &unseen{}
		s.unseen[pin] = u // as many as devices were paired
	}
	now := s.now()
	if since := now.Sub(u.since); since > unseenTime || since < 0 {
		u.since, u.times, u.vain, u.links = now, 0, 0, 0
	}
	return u
}

// rememberIDs takes up the ids of the requests that an earlier process has shown.
func (s *server) rememberIDs() error {
	l, err := s.home.log()
	if err != nil {
		return err
	}
	return l.Recent(s.now().Add(-rememberIDs), func(r audit.Record) error {
		if r.Event != recordRequest {
			return nil
		}
		pin, err := transport.ParsePin(r.Pin)
		if err != nil {
			return nil // none of ours
		}
		var id idHash
		if b, err := hex.DecodeString(r.ID); err != nil || copy(id[:], b) != len(id) || len(b) != len(id) {
			return nil
		}
		err = s.seen.use(pin, id, r.Time)
		if errors.Is(err, errIDUsed) { // what this process would have refused
			err = nil
		}
		return err
	})
}

// recordLife records that the signer has started, or stops.
func (s *server) recordLife(ctx context.Context, event string) {
	if err := s.home.record(audit.Record{Event: event}, false); err != nil {
		s.log.ErrorContext(ctx, "nothing is signed until this is mended", "reason", err)
	}
}
