// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"bytes"
	"errors"

	"vmux.app/toolkit/internal/signed"
)

// What a connection's session binds mean for a request. OpenSSH's agent (ssh-agent.c: process_ext_session_bind,
// identity_permitted, process_sign_request2) has these rules for keys with destination constraints; here they hold
// for every key, and a far side that does not bind is served as PROTOCOL.agent's older clients are.
//
//	a bind arrives when                                       answer
//	B1  it does not parse, or the host's signature is wrong   refused; B8
//	B2  an earlier bind is not forwarding, even the same one  refused; B8
//	B3  same session id and host key as an earlier bind       accepted, recorded once
//	B4  same session id as an earlier bind, other host key    refused; B8
//	B5  maxBinds are recorded                                 refused; B8
//	B6  else, agent locked or phone out of reach included     recorded
//
//	a login arrives when                                      outcome
//	B7  nothing was bound or tried                            asked, destination unverified
//	B8  any bind was refused                                  refused
//	B9  its session id is that of a forwarding bind           refused: that session has logged in already
//	B10 last bind forwarding, other session id                asked, forwarded, destination unverified
//	B11 last bind not forwarding, other session id            refused
//	B12 same session id, data names another host key          refused
//	B13 same session id, data names this host key             asked, destination is the bind's host key
//	B14 same session id, data names no host key, local        asked, destination is the bind's host key
//	B15 same session id, data names no host key, forwarded    asked, destination unverified (a far side can sign any
//	                                                          session id with a host key of its own)
//
//	a request is forwarded when
//	B16 the first bind is forwarding
//	B17 the first bind is not, and the client's executable is not ssh: it may forward without saying so
//	B18 any bind was refused
//	B19 not when nothing was bound or tried
//
// Other kinds of requests than logins have no destination; B16 to B19 and the policy decide.

// maxBinds is AGENT_MAX_SESSION_IDS of OpenSSH's ssh-agent.c: hops and sessions on one connection.
const maxBinds = 16

var (
	errBindAfterLogin = errors.New("connection is bound for a login already")
	errBindOtherKey   = errors.New("session id is bound to another host key")
	errTooManyBinds   = errors.New("too many session binds")
)

// refusal is why the agent itself refuses a request.
type refusal string

func (r refusal) Error() string { return string(r) }

// binds are the session binds of one connection, in order.
type binds struct {
	list   []signed.Bind // verified
	failed bool
}

// add records the bind in the contents of a session-bind@openssh.com request.
func (b *binds) add(contents []byte) (signed.Bind, error) {
	failedBefore := b.failed
	b.failed = true // before anything is parsed
	bind, err := signed.ParseBind(contents)
	if err != nil {
		return bind, err
	}
	if err := bind.Verify(); err != nil {
		return bind, err
	}
	known := false
	for _, earlier := range b.list {
		if !earlier.Forwarding {
			return bind, errBindAfterLogin
		}
		if !bytes.Equal(earlier.SessionID, bind.SessionID) {
			continue
		}
		if !bytes.Equal(earlier.HostKey, bind.HostKey) {
			return bind, errBindOtherKey
		}
		known = true
		break
	}
	if !known {
		if len(b.list) >= maxBinds {
			return bind, errTooManyBinds
		}
		b.list = append(b.list, bind)
	}
	b.failed = failedBefore
	return bind, nil
}

// bound reports whether a bind was tried.
func (b *binds) bound() bool { return b.failed || len(b.list) > 0 }

// last gives the bind nearest to the destination.
func (b *binds) last() (signed.Bind, bool) {
	if len(b.list) == 0 {
		return signed.Bind{}, false
	}
	return b.list[len(b.list)-1], true
}

// forwarded reports whether a request comes from a far side, or may. fromSSH says whether the client is ssh itself.
func (b *binds) forwarded(fromSSH func() bool) bool {
	switch {
	case b.failed:
		return true
	case len(b.list) == 0:
		return false
	default:
		return b.list[0].Forwarding || !fromSSH()
	}
}

// login gives the host key that a login is proven to go to, nil if none is, or a refusal.
func (b *binds) login(m signed.Meaning, forwarded bool) ([]byte, error) {
	if b.failed {
		return nil, refusal("a session bind failed on this connection")
	}
	last, ok := b.last()
	if !ok {
		return nil, nil
	}
	for _, bind := range b.list {
		if bind.Forwarding && bytes.Equal(bind.SessionID, m.SessionID) {
			return nil, refusal("login on a session that is bound for forwarding")
		}
	}
	switch {
	case last.Forwarding:
		return nil, nil
	case !bytes.Equal(last.SessionID, m.SessionID):
		return nil, refusal("login on another session than the one bound")
	case m.HostKey != nil && !bytes.Equal(last.HostKey, m.HostKey):
		return nil, refusal("login names another host key than the one bound")
	case m.HostKey == nil && forwarded:
		return nil, nil
	}
	return last.HostKey, nil
}
