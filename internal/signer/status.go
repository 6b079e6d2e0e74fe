// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"slices"
	"strings"
)

// What a signer is doing, as devices' owners see it.
const (
	Offline     = "Offline"
	Advertising = "Advertising"
	connecting  = "Connecting to "
	connected   = "Connected to "
)

// Status is how a signer is now.
type Status struct {
	// State is Offline, Advertising, "Connecting to NAME" or "Connected to NAME",
	// with the names of all.
	State   string   `json:"state"`
	Address string   `json:"address,omitzero"` // that it listens on; what else it is reached by is not known here
	Devices []string `json:"devices"`          // those connected
	// Waiting is how many prompts wait for the owner.
	Waiting int `json:"waiting"`
	// Locked says that too many approvals have failed.
	Locked bool `json:"locked"`
	// Failures are how many approvals in a row have failed.
	Failures int `json:"failures"`
	// AppLock is "off", "open" or "shut".
	AppLock string `json:"appLock"`
	// NeedsPassphrase says that nothing is signed before "vmux-signer unlock", since
	// the approver does not ask for the passphrase.
	NeedsPassphrase bool `json:"needsPassphrase"`
}

// status is how the signer is.
func (s *server) status() *Status {
	now := s.current()
	st := &Status{State: Offline, Devices: []string{}, Waiting: s.prompts.waiting(), AppLock: "off",
		Locked: now.state.Locked(), Failures: now.state.Failures}
	if s.guard.appLock {
		st.AppLock = "shut"
		if s.guard.isOpen(s.now()) {
			st.AppLock = "open"
		}
	}
	held := s.guard.passphrase()
	st.NeedsPassphrase = now.ca.Encrypted && s.guard.asker == nil && len(held) == 0
	clear(held)
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Address = s.address
	var coming []string
	for _, l := range s.links {
		d, ok := now.state.Device(l.pin)
		switch {
		case !ok:
		case l.up:
			st.Devices = append(st.Devices, d.Name)
		default:
			coming = append(coming, d.Name)
		}
	}
	names := func(list []string) string {
		slices.Sort(list)
		return strings.Join(slices.Compact(list), ", ")
	}
	switch {
	case s.address == "":
	case len(st.Devices) > 0:
		st.State = connected + names(st.Devices)
		st.Devices = slices.Compact(st.Devices)
	case len(coming) > 0:
		st.State = connecting + names(coming)
	default:
		st.State = Advertising
	}
	return st
}
