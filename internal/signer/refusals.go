// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"time"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/transport"
)

const (
	// freeRefusals is how often in a row the owner says no before a device is held
	// up: a person mistypes, and a script tries a few hosts.
	freeRefusals = 5
	// refusalWait is how long the first hold lasts; each further no doubles it, up to
	// maxRefusalWait.
	refusalWait    = 10 * time.Second
	maxRefusalWait = 5 * time.Minute
	// refusalMemory is how long after the last no they are forgotten.
	refusalMemory = 15 * time.Minute
)

// refusals hold up a device that goes on asking after the owner has said no, so
// that nobody is worn down. A yes ends the row. They are the owner's own, so there
// are as many as a person gives, and as many entries as devices.
type refusals map[transport.Pin]refusal

type refusal struct {
	times int
	last  time.Time
}

func (r refusals) add(device transport.Pin, now time.Time) {
	r[device] = refusal{r.times(device, now) + 1, now}
}

// times is how often in a row the owner has said no lately.
func (r refusals) times(device transport.Pin, now time.Time) int {
	if d, ok := r[device]; ok && now.Sub(d.last) < refusalMemory {
		return d.times
	}
	return 0
}

// left is how long a device is still held up.
func (r refusals) left(device transport.Pin, now time.Time) time.Duration {
	beyond := r.times(device, now) - freeRefusals
	if beyond < 0 {
		return 0
	}
	whole := maxRefusalWait
	if beyond < 16 {
		whole = min(whole, refusalWait<<beyond)
	}
	return whole - now.Sub(r[device].last)
}

// refuse gives the error for a device that is held up, nil for others.
func (r refusals) refuse(device transport.Pin, now time.Time) error {
	left := r.left(device, now)
	if left <= 0 {
		return nil
	}
	return envelope.Errorf(envelope.CodeDenied, "the owner has said no %d times in a row; ask again in %d s",
		r.times(device, now), int((left+time.Second-1)/time.Second))
}
