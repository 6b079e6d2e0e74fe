// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"vmux.app/toolkit/internal/signed"
)

// Action is what happens to a kind of request. The zero value stands for what vmux ships with.
type Action int

const (
	Default  Action = iota
	AskOwner        // on the phone
	Refuse
)

// Policy says which requests never reach the phone. Its zero value asks for forwarded requests and refuses opaque
// blobs and certificates to be signed. Logins, SSHSIG and pam_ssh_agent_auth requests are always asked for.
type Policy struct {
	Forwarded    Action // requests of any kind that come from the far side of an agent forwarding
	Opaque       Action // blobs whose meaning is unknown, for example those of ssh-add -T
	Certificates Action // certificates to be signed
}

// refuses gives the reason why p refuses a request, or "".
func (p Policy) refuses(kind signed.Kind, forwarded bool) string {
	switch kind {
	case signed.Login, signed.SSHSIG, signed.PAM:
	case signed.Certificate:
		if p.Certificates != AskOwner {
			return "policy refuses to sign certificates"
		}
	default: // opaque, and whatever this version does not know
		if p.Opaque != AskOwner {
			return "policy refuses opaque data"
		}
	}
	if forwarded && p.Forwarded == Refuse {
		return "policy refuses forwarded requests"
	}
	return ""
}
