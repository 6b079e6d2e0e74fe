// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"bytes"
	"fmt"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/signed"
)

// kindLogin is Verified.Kind of a login.
var kindLogin = signed.Login.String()

// destination is where a login goes, as far as that is known.
type destination struct {
	// hostKey is the one that the login itself names (hostbound, PROTOCOL section
	// 3.1): a server with another host key does not take the signature. nil when
	// it names none; unverified then says what is known instead.
	hostKey    ssh.PublicKey
	unverified string
	// vouched is the host whose statement leads to this login. That proves
	// little: a device can make a host key of its own and vouch for any session.
	vouched ssh.PublicKey
	hops    []string // fingerprints
	proven  bool     // that the hops led to this login
}

// judge says where a login goes, from the data to be signed and the statements
// of hosts that came with it.
func judge(m signed.Meaning, binds []envelope.Bind) destination {
	d := follow(m, binds)
	switch {
	case len(m.HostKey) > 0:
		key, err := ssh.ParsePublicKey(m.HostKey)
		if err != nil {
			d.unverified = "the login names an unreadable host key"
			break
		}
		d.hostKey, d.unverified = key, ""
		d.proven = d.vouched != nil && signed.SameKey(m.HostKey, d.vouched.Marshal())
	case d.unverified == "":
		d.unverified = "the login does not name its host key"
	}
	return d
}

// follow looks at the statements. Each is a host's signature over a session id.
// Together they must lead to this login: every statement but the last of a hop
// that forwards, the last of the session that the data to be signed is for. The
// device can leave statements out, but it cannot make one up for another host.
func follow(m signed.Meaning, binds []envelope.Bind) destination {
	unknown := func(format string, a ...any) destination {
		return destination{unverified: fmt.Sprintf(format, a...)}
	}
	if len(binds) == 0 {
		return unknown("no statement of the host came with the request")
	}
	if len(binds) > envelope.MaxBinds {
		return unknown("%d statements, more than %d", len(binds), envelope.MaxBinds)
	}
	var d destination
	for i, b := range binds {
		s := signed.Bind{HostKey: b.HostKey, SessionID: b.SessionID, Signature: b.Signature, Forwarding: b.Forwarding}
		if len(b.SessionID) == 0 || len(b.SessionID) > envelope.MaxSessionID {
			return unknown("statement %d has a session id of %d bytes", i+1, len(b.SessionID))
		}
		if err := s.Verify(); err != nil {
			return unknown("statement %d is not signed by its host", i+1)
		}
		key, err := ssh.ParsePublicKey(b.HostKey)
		if err != nil {
			return unknown("statement %d has an unreadable host key", i+1)
		}
		if i == len(binds)-1 && !b.Forwarding {
			d.vouched = key
			continue
		}
		if !b.Forwarding {
			return unknown("statement %d ends the chain before the last", i+1)
		}
		d.hops = append(d.hops, fingerprint(key))
	}
	last := binds[len(binds)-1]
	switch {
	case last.Forwarding:
		d.unverified = "the last host forwards without saying where to"
	case !bytes.Equal(last.SessionID, m.SessionID):
		// The hops may belong to another connection then, too.
		return unknown("the host's statement is for another session")
	}
	return d
}

// fingerprint is that of the public half, as known_hosts has it, also of a host
// certificate.
func fingerprint(k ssh.PublicKey) string {
	if c, ok := k.(*ssh.Certificate); ok {
		k = c.Key
	}
	return ssh.FingerprintSHA256(k)
}

// newPrompt says what a request means, and what is known about the host of a
// login. m must be of a kind that is signed.
func newPrompt(device Device, k *Key, m signed.Meaning, c *envelope.Context, known approvals) *Prompt {
	p := &Prompt{
		file: k.file,
		Verified: Verified{
			Device:    device.Name,
			DevicePin: device.Pin,
			Kind:      m.Kind.String(),
			KeyLabel:  k.Label,
			KeyPrint:  fingerprint(k.Public),
		},
	}
	p.Claimed.of(c)
	v := &p.Verified
	switch m.Kind {
	case signed.Login:
		v.User = m.User
		v.Operation = "log in as " + shown(m.User, 60)
		var binds []envelope.Bind
		if c.Destination != nil {
			binds = c.Destination.Binds
		}
		d := judge(m, binds)
		v.Unverified = d.unverified
		if d.hostKey != nil {
			v.HostKey, v.HostKeyType = fingerprint(d.hostKey), d.hostKey.Type()
		} else if d.vouched != nil {
			p.Claimed.HostKey = fingerprint(d.vouched)
		}
		if d.proven {
			v.Hops = d.hops
		} else {
			// Statements that do not lead to this login may be from anywhere.
			p.Claimed.Hops = d.hops
		}
		v.Memory = known.recall(p.Claimed.HostNames, v.HostKey)
	case signed.SSHSIG:
		v.Namespace = m.Namespace
		v.Operation = fmt.Sprintf("sign data for %q", shown(m.Namespace, 60))
	case signed.PAM:
		v.User = m.User
		v.Operation = fmt.Sprintf("authenticate %s for sudo or the like (pam_ssh_agent_auth)", shown(m.User, 60))
		if m.PAM != nil {
			v.Operation = fmt.Sprintf("authenticate %s for %s as %s (pam_ssh_agent_auth)",
				shown(m.User, 40), shown(m.PAM.Service, 40), shown(m.PAM.TargetUser, 40))
			// The machine writes its name into the data itself; no key of its proves it.
			p.Claimed.HostNames = []string{m.PAM.HostName}
		}
	}
	return p
}

// of takes over what the device says.
func (c *Claimed) of(said *envelope.Context) {
	c.WorkingDirectory, c.Reason, c.Limits = said.WorkingDirectory, said.Reason, said.Limits
	for _, q := range said.Processes {
		c.Processes = append(c.Processes, Process{q.PID, q.Executable})
	}
	if said.Destination != nil {
		c.HostNames, c.Forwarded = said.Destination.HostNames, said.Destination.Forwarded
	}
}
