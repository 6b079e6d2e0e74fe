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
	// Locked says that nothing is shown or signed before the passphrase is given: too
	// many approvals have failed, or the owner has locked it.
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
		Locked: now.locked() || s.guard.isClosed(), Failures: now.failures()}
	if s.guard.appLock {
		st.AppLock = "shut"
		if s.guard.isOpen(s.now()) {
			st.AppLock = "open"
		}
	}
	st.NeedsPassphrase = now.ca.Encrypted && s.guard.asker == nil && !s.guard.holds()
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
	unique := func(names []string) []string { // a device may have several links
		slices.Sort(names)
		return slices.Compact(names)
	}
	st.Devices = unique(st.Devices)
	switch {
	case s.address == "":
	case len(st.Devices) > 0:
		st.State = connected + strings.Join(st.Devices, ", ")
	case len(coming) > 0:
		st.State = connecting + strings.Join(unique(coming), ", ")
	default:
		st.State = Advertising
	}
	return st
}
