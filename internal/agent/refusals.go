// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"crypto/sha256"
	"sync"
	"time"

	"vmux.app/toolkit/internal/signed"
)

const (
	// refusalLife is how long a "no" stands: longer than any client goes on retrying one session, and short enough
	// that the owner can change their mind about signing the same file.
	refusalLife = 2 * time.Minute
	// maxRefusals bounds the memory (about 100 KiB); when it is full the oldest goes.
	maxRefusals = 1024
)

// subject is what a refusal sticks to: the session id of a login, else the data.
type subject [sha256.Size]byte

func subjectOf(m signed.Meaning, data []byte) subject {
	h := sha256.New()
	if m.Kind == signed.Login {
		h.Write([]byte("login\x00"))
		h.Write(m.SessionID)
	} else {
		h.Write([]byte("data\x00"))
		h.Write(data)
	}
	return subject(h.Sum(nil))
}

// refusals remembers what the owner said no to.
type refusals struct {
	mu    sync.Mutex
	until map[subject]time.Time
	order []subject // oldest first; every entry of until once
}

func (r *refusals) add(s subject, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.until == nil {
		r.until = make(map[subject]time.Time)
	}
	r.forgetLocked(now)
	if _, known := r.until[s]; known {
		return
	}
	if len(r.order) == maxRefusals {
		delete(r.until, r.order[0])
		r.order = r.order[1:]
	}
	r.until[s] = now.Add(refusalLife)
	r.order = append(r.order, s)
}

func (r *refusals) has(s subject, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forgetLocked(now)
	_, known := r.until[s]
	return known
}

// forgetLocked drops what has expired. All entries live equally long, so they expire in order.
func (r *refusals) forgetLocked(now time.Time) {
	for len(r.order) > 0 && !now.Before(r.until[r.order[0]]) {
		delete(r.until, r.order[0])
		r.order = r.order[1:]
	}
}
