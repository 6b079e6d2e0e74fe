// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"crypto/sha256"
	"errors"
	"sync"
	"time"

	"vmux.app/toolkit/internal/transport"
)

const (
	// Freshness is how old a request may be, and how far ahead of the signer's
	// clock, and how long the owner has for an approval.
	Freshness = 60 * time.Second
	// rememberIDs is how long an id is remembered at least, by the clock on the
	// wall: a request from Freshness ahead stays fresh for twice that.
	rememberIDs = 2 * Freshness
	// maxIDs bounds the remembered ids of one device, 3 MB at most. It is above
	// what an honest device asks in two minutes; beyond it requests are refused,
	// since forgetting an id would let it be used again.
	maxIDs = 1 << 16
	// keepIDs is how many ids are remembered however old they are: a clock that is
	// set back makes old requests fresh again.
	keepIDs = 1 << 12
)

var (
	errIDUsed  = errors.New("this request id was used before")
	errManyIDs = errors.New("too many requests of this device within two minutes")
)

// seenIDs remembers the request ids of each device.
type seenIDs struct {
	mu      sync.Mutex
	devices map[transport.Pin]*deviceIDs
}

type idHash [16]byte // of the id, so that long ids cost no more

// deviceIDs are the ids of one device, oldest first in order.
type deviceIDs struct {
	used  map[idHash]struct{}
	order []usedID
}

type usedID struct {
	id idHash
	at time.Time
}

func hashID(id string) idHash {
	sum := sha256.Sum256([]byte(id))
	return idHash(sum[:16])
}

// use marks an id as used, once. Errors: errIDUsed, errManyIDs.
func (s *seenIDs) use(device transport.Pin, h idHash, now time.Time) error {
	now = now.Round(0) // the other clock stands still while the computer sleeps
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.devices == nil {
		s.devices = map[transport.Pin]*deviceIDs{}
	}
	d := s.devices[device]
	if d == nil {
		d = &deviceIDs{used: map[idHash]struct{}{}}
		s.devices[device] = d
	}
	d.forget(now)
	if _, ok := d.used[h]; ok {
		return errIDUsed
	}
	if len(d.order) >= maxIDs {
		return errManyIDs
	}
	d.used[h] = struct{}{}
	d.order = append(d.order, usedID{h, now})
	return nil
}

func (d *deviceIDs) forget(now time.Time) {
	n := 0
	for len(d.order)-n > keepIDs && now.Sub(d.order[n].at) > rememberIDs {
		delete(d.used, d.order[n].id)
		n++
	}
	d.order = d.order[n:]
}

// sweep gives up the memory of devices that are not paired any more.
func (s *seenIDs) sweep(now time.Time, paired func(transport.Pin) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for pin, d := range s.devices {
		d.forget(now.Round(0))
		if n := len(d.order); !paired(pin) && (n == 0 || now.Round(0).Sub(d.order[n-1].at) > rememberIDs) {
			delete(s.devices, pin)
		}
	}
}
