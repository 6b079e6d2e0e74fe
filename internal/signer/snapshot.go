// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"vmux.app/toolkit/internal/keyfile"
)

// snapshot is what the signer knows of its home. It is replaced, not changed.
type snapshot struct {
	state   State
	pending int // of the state's failures: a passphrase that is being looked at
	keys    []Key
	ca      *keyfile.File
}

func (s *server) current() *snapshot { return s.snap.Load() }

// reload reads the home anew and ends what is not allowed any more.
func (s *server) reload() error {
	s.homeMu.Lock()
	defer s.homeMu.Unlock()
	st, err := s.home.Read()
	if err != nil {
		return err
	}
	if err := s.publishLocked(st); err != nil {
		return err
	}
	s.hostsTurn <- struct{}{}
	defer func() { <-s.hostsTurn }() // it holds the token
	known, err := s.home.hosts()
	if err != nil {
		return err
	}
	s.hosts.Store(&known)
	return nil
}

// update changes the state, on disk first.
func (s *server) update(change func(*State) error) error {
	s.homeMu.Lock()
	defer s.homeMu.Unlock()
	st, err := s.home.Update(change)
	if err != nil {
		return err
	}
	return s.publishLocked(st)
}

func (s *server) publishLocked(st State) error {
	ca, err := s.home.authority()
	if err != nil {
		return err
	}
	keys, err := s.home.keys(&st)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if k.Err != nil {
			s.log.Warn("key cannot be used", "key", k.Label, "reason", k.Err)
		}
	}
	if old := s.current(); old != nil && !old.ca.Same(ca) {
		s.guard.forget() // it has another passphrase now, or none
		// A prompt that waits opens the old file: it would take the old passphrase, and
		// count the new one as wrong.
		s.prompts.withdraw(func(promptKey) bool { return true }, errRekeyed)
	}
	s.snap.Store(&snapshot{state: st, pending: s.pending, keys: keys, ca: ca})

	s.prompts.withdraw(func(k promptKey) bool {
		if k.key == "" {
			return false
		}
		key := s.key([]byte(k.key))
		return key == nil || !key.Enabled
	}, errKeyGone)
	s.prompts.withdraw(func(k promptKey) bool { _, ok := st.Device(k.device); return !ok }, errUnpaired)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.links {
		if _, ok := st.Device(l.pin); !ok {
			l.cancel(errUnpaired)
		}
	}
	return nil
}
