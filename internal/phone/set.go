// SPDX-License-Identifier: BSD-3-Clause

package phone

import (
	"bytes"
	"context"
	"errors"
	"sync"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/store"
)

// Set is all the phones of this device.
type Set struct {
	o Options

	reload sync.Mutex // one Reload at a time
	mu     sync.RWMutex
	phones []*Phone // in the order of pairing
}

// NewSet gives the view of all stored phones. With a *store.DamagedError the set
// is usable, and empty.
func NewSet(o Options) (*Set, error) {
	s := &Set{o: o}
	err := s.Reload()
	var damaged *store.DamagedError
	if err != nil && !errors.As(err, &damaged) {
		return nil, err
	}
	return s, err
}

// Reload reads the store again: links to phones that were forgotten end at
// once, and new phones are there.
func (s *Set) Reload() error {
	s.reload.Lock()
	defer s.reload.Unlock()
	state, err := s.o.Store.Load()
	var damaged *store.DamagedError
	if err != nil && !errors.As(err, &damaged) {
		return err
	}
	s.mu.RLock()
	old := map[string]*Phone{}
	for _, p := range s.phones {
		old[p.pin.String()] = p
	}
	s.mu.RUnlock()
	var next []*Phone
	var bad []error
	for _, stored := range state.Phones {
		p, err := old[stored.Pin], error(nil)
		if p == nil {
			p, err = New(s.o, stored)
		} else {
			p.update(stored)
			delete(old, stored.Pin)
		}
		if err != nil {
			bad = append(bad, err)
			continue
		}
		next = append(next, p)
	}
	s.mu.Lock()
	s.phones = next
	s.mu.Unlock()
	for _, p := range old {
		p.Close()
		s.o.Log.Info("phone forgotten", "phone", p.name())
	}
	return errors.Join(append(bad, err)...)
}

// update takes over what another process stored, such as a new pairing of the
// same phone.
func (p *Phone) update(stored store.Phone) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = stored
}

// Close ends all links and waits for what runs on them.
func (s *Set) Close() {
	s.mu.Lock()
	phones := s.phones
	s.phones = nil
	s.mu.Unlock()
	for _, p := range phones {
		p.Close()
	}
}

// Key is a cached key and the name of the phone that has it.
type Key struct {
	store.Key
	Phone string
}

// Keys gives the cached keys of all phones, in the order of pairing, at once.
func (s *Set) Keys() []Key {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var all []Key
	for _, p := range s.phones {
		keys := p.Keys()
		name := p.name()
		for _, k := range keys {
			all = append(all, Key{k, name})
		}
	}
	return all
}

// Sign asks the phone that has the key of r for a signature.
func (s *Set) Sign(ctx context.Context, r envelope.SignRequest) ([]byte, error) {
	s.mu.RLock()
	var holder *Phone
	for _, p := range s.phones {
		for _, k := range p.cached() {
			if holder == nil && bytes.Equal(k.Blob, r.PublicKeyBlob) {
				holder = p
			}
		}
	}
	none := len(s.phones) == 0
	s.mu.RUnlock()
	switch {
	case none:
		return nil, ErrNotPaired
	case holder == nil:
		return nil, ErrUnknownKey
	}
	return holder.Sign(ctx, r)
}

func (p *Phone) cached() []store.Key {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last.Keys
}

// Status says how things stand with each phone.
func (s *Set) Status() []Status {
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := make([]Status, 0, len(s.phones))
	for _, p := range s.phones {
		all = append(all, p.Status())
	}
	return all
}
