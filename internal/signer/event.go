// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"strings"

	"vmux.app/toolkit/internal/audit"
)

// Kinds of Event.
const (
	EventAsleep       = "asleep"
	EventListening    = "listening"
	EventConnected    = "connected"
	EventDisconnected = "disconnected"
	EventRequest      = "request"
	EventPairing      = "pairing"
	EventLocked       = "locked"
)

// Event is one thing that happened, for programs. It never has key material or
// data to be signed.
type Event struct {
	Event     string `json:"event"`
	Address   string `json:"address,omitzero"`   // listening; asleep: the wake address
	Device    string `json:"device,omitzero"`    // all others
	Operation string `json:"operation,omitzero"` // request: login, sshsig, certificate, …
	Key       string `json:"key,omitzero"`       // request: label; of a certificate request, the certified key's fingerprint
	Serial    string `json:"serial,omitzero"`    // certificate request: decimal; JSON's numbers are too small
	KeyID     string `json:"keyId,omitzero"`     // certificate request
	Warning   string `json:"warning,omitzero"`   // request: of a login that the prompt warned of
	Outcome   string `json:"outcome,omitzero"`   // request: signed or an error's code; pairing: paired or failed
	Reason    string `json:"reason,omitzero"`

	record audit.Record // of a request: what the audit log says of it
	shown  bool         // the owner was asked
}

// outcomeSigned is a request's Outcome when a signature or a certificate was made.
const outcomeSigned = "signed"

// otherKey is the warning of a login's event and log line.
const otherKey = "another host key than the one approved before"

func (s *server) event(e Event) {
	if s.onEvent == nil {
		return
	}
	e.Reason = strings.ToValidUTF8(e.Reason, "?") // it may quote a device
	e.record, e.shown = audit.Record{}, false
	s.eventMu.Lock()
	defer s.eventMu.Unlock()
	s.onEvent(e)
}
