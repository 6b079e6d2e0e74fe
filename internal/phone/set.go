// SPDX-License-Identifier: BSD-3-Clause

package phone

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/store"
)

// Set is all the phones of this device.
type Set struct {
	o Options

	reload sync.Mutex // one Reload at a time
	mu     sync.RWMutex
	phones []*Phone // in the order of pairing

	changes atomic.Uint64 // counts changes of what Keys gives
	keys    atomic.Pointer[snapshot]
}

// snapshot is what Keys gave after so many changes.
type snapshot struct {
	changes uint64
	keys    []Key
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
			if p, err = New(s.o, stored); err == nil {
				p.changed = func() { s.changes.Add(1) }
			}
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
	s.changes.Add(1)
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
	p.last = stored
	p.mu.Unlock()
	p.changed()
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
	Public ssh.PublicKey
	Phone  string
}

// Keys gives the cached keys of all phones, in the order of pairing, at once. It
// gives the same slice until something changes; the caller leaves it as it is.
func (s *Set) Keys() []Key {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, p := range s.phones {
		p.freshen()
	}
	changes := s.changes.Load()
	if last := s.keys.Load(); last != nil && last.changes == changes {
		return last.keys
	}
	var all []Key
	for _, p := range s.phones {
		name, keys := p.cached()
		for _, k := range keys {
			public, err := ssh.ParsePublicKey(k.Blob)
			if err != nil {
				s.o.Log.Error("cached key is left out", "phone", name, "key", k.Comment, "reason", err)
				continue
			}
			all = append(all, Key{k, public, name})
		}
	}
	s.keys.Store(&snapshot{changes, all})
	return all
}

// Sign asks the phone that has the key of r for a signature.
func (s *Set) Sign(ctx context.Context, r envelope.SignRequest) ([]byte, error) {
	s.mu.RLock()
	var holder *Phone
	for _, p := range s.phones {
		_, keys := p.cached()
		for _, k := range keys {
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

// Certify asks a phone's certificate authority for the certificate of r, and
// gives the key of that authority, as it was pinned at pairing, too. The phone
// is the one with r.Identity, or the one with the given pin, or the only one.
func (s *Set) Certify(ctx context.Context, pin string, r envelope.CertificateRequest) (certificate, ca []byte, err error) {
	p, err := s.authority(pin, r.Identity)
	if err != nil {
		return nil, nil, err
	}
	return p.certify(ctx, r)
}

func (s *Set) authority(pin, identity string) (*Phone, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if len(s.phones) == 0 {
		return nil, ErrNotPaired
	}
	var found []*Phone
	for _, p := range s.phones {
		if p.fits(pin, identity) {
			found = append(found, p)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return nil, ErrWhichPhone
	case identity != "":
		return nil, fmt.Errorf("%w: %q", ErrNoIdentity, identity)
	case pin != "":
		return nil, ErrNotPaired
	}
	return nil, ErrNoCA
}

// fits says whether the phone is one that a certificate can be asked of.
func (p *Phone) fits(pin, identity string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	has := identity == "" && len(p.last.CAKey) > 0
	for _, k := range p.last.Keys {
		has = has || identity != "" && k.DisplayName == identity
	}
	return has && (pin == "" || p.last.Pin == pin)
}

// Authorities gives the pinned keys of the phones' certificate authorities.
func (s *Set) Authorities() []Authority {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var all []Authority
	for _, p := range s.phones {
		p.mu.Lock()
		if len(p.last.CAKey) > 0 {
			all = append(all, Authority{p.last.Name, p.last.Pin, p.last.CAKey})
		}
		p.mu.Unlock()
	}
	return all
}

// Authority is a phone's certificate authority.
type Authority struct {
	Phone, Pin string
	Key        []byte // SSH wire form
}

// cached gives the phone's name and its keys, as they were last heard.
func (p *Phone) cached() (name string, keys []store.Key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last.Name, p.last.Keys
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
