// SPDX-License-Identifier: BSD-3-Clause

package session

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
)

// Certificate is a session certificate with its key. Its methods may be called from any goroutine; none waits for another
// call.
type Certificate struct {
	manager *Manager
	public  *ssh.Certificate
	size    int // of the certificate in wire form
	ca      []byte
	spec    Spec
	hosts   []fingerprint // of all hosts of the scope
	key     *key

	end     time.Time     // wall clock
	bootEnd time.Duration // boot time

	taken  atomic.Int64 // uses that are spent or under way, never more than the scope has
	spent  atomic.Int64
	reason atomic.Pointer[error] // why the key was ended
}

// Use is one signature that is asked for, as far as the agent knows it. What is left out counts against the request.
type Use struct {
	Data      []byte
	Login     bool        // Data is an SSH login; nothing else has a destination
	HostKey   []byte      // the login's proven destination, a key or host certificate in wire form; nil if unverified
	Bound     bool        // the client has bound its connection to a session, or tried to
	Forwarded bool        // comes from the far side of an agent forwarding, or may
	PID       int         // the process that connected
	Alive     func() bool // reports whether that process still lives, so that PID is its own
}

// Public gives the certificate. It is not to be changed.
func (c *Certificate) Public() ssh.PublicKey { return c.public }

// Info describes the certificate as it is now.
func (c *Certificate) Info() Info {
	i := describe(c.public, c.spec)
	if c.spec.Scope.Uses > 0 {
		i.UsesLeft = c.spec.Scope.Uses - int(c.taken.Load())
	}
	return i
}

func describe(c *ssh.Certificate, s Spec) Info {
	return Info{
		Serial:          c.Serial,
		KeyID:           c.KeyId,
		Key:             ssh.FingerprintSHA256(c.Key),
		CA:              ssh.FingerprintSHA256(c.SignatureKey),
		Principals:      slices.Clone(c.ValidPrincipals),
		ValidAfter:      time.Unix(seconds(c.ValidAfter), 0).UTC(),
		ValidBefore:     time.Unix(seconds(c.ValidBefore), 0).UTC(),
		CriticalOptions: maps.Clone(c.CriticalOptions),
		Extensions:      maps.Clone(c.Extensions),
		Identity:        s.Identity,
		Scope:           s.Scope,
		Job:             s.Scope.Root.PID,
	}
}

// Sign signs u.Data in the format ecdsa-sha2-nistp256. A use that is refused, or fails, does not count. The error is ErrExpired,
// ErrDropped, a *ScopeError, or what the system said.
func (c *Certificate) Sign(u Use) (*ssh.Signature, error) {
	if err := c.live(); err != nil {
		return nil, err
	}
	if err := c.permits(u); err != nil {
		return nil, err
	}
	if !c.key.acquire() {
		return nil, c.over()
	}
	defer c.key.release()
	if !c.take() {
		return nil, errNoUses
	}
	sig, err := c.key.sign(u.Data)
	if err == nil {
		err = c.live() // it may have ended meanwhile
	}
	if err != nil {
		c.taken.Add(-1)
		return nil, err
	}
	if uses := int64(c.spec.Scope.Uses); uses > 0 && c.spent.Add(1) == uses {
		c.manager.remove(func(o *Certificate) bool { return o == c }, errNoUses, "its uses are spent")
	}
	return sig, nil
}

var errNoUses = &ScopeError{LimitUses, "all its signatures are spent"}

// take takes one of the uses, if any is left.
func (c *Certificate) take() bool {
	uses := int64(c.spec.Scope.Uses)
	for uses > 0 {
		n := c.taken.Load()
		if n >= uses {
			return false
		}
		if c.taken.CompareAndSwap(n, n+1) {
			break
		}
	}
	return true
}

// live gives nil as long as the certificate may be used.
func (c *Certificate) live() error {
	if c.reason.Load() != nil {
		return c.over()
	}
	if c.expired(c.manager.clock.Wall(), c.manager.clock.Boot()) {
		c.manager.expire()
		return ErrExpired
	}
	return nil
}

// expired goes by the clock whose end comes first. OpenSSH holds a certificate valid before its end, not at it.
func (c *Certificate) expired(wall time.Time, boot time.Duration) bool {
	return !wall.Before(c.end) || boot >= c.bootEnd
}

// over says why the key was ended.
func (c *Certificate) over() error {
	if why := c.reason.Load(); why != nil {
		return *why
	}
	return ErrDropped
}

// finish ends the key for the first reason given.
func (c *Certificate) finish(why error) {
	c.reason.CompareAndSwap(nil, &why)
	c.key.end()
}

// permits holds u against the scope, the uses excepted.
func (c *Certificate) permits(u Use) error {
	s := c.spec.Scope
	if s.NoForwarding && u.Forwarded {
		return &ScopeError{LimitForwarding, "the request is forwarded, or may be"}
	}
	if len(c.hosts) > 0 {
		switch {
		case !u.Login:
			return &ScopeError{LimitHosts, "only logins have a destination, and this is none"}
		case u.HostKey == nil && !u.Bound:
			return &ScopeError{LimitHosts, "the client does not say where it goes (ssh does from OpenSSH 8.9 on)"}
		case u.HostKey == nil:
			return &ScopeError{LimitHosts, "the destination is not verified"}
		}
		f, err := hostFingerprint(u.HostKey)
		if err != nil {
			return &ScopeError{LimitHosts, "the destination's key cannot be read"}
		}
		if !slices.Contains(c.hosts, f) {
			return &ScopeError{LimitHosts, "the destination " + f.String() + " is none of them"}
		}
	}
	if s.Root.PID != 0 {
		if why := c.manager.outside(u.PID, u.Alive, s.Root); why != "" {
			return &ScopeError{LimitProcesses, why}
		}
	}
	return nil
}

// certificateSuffix ends the names of all certificate types (PROTOCOL.certkeys).
const certificateSuffix = "-cert-v01@openssh.com"

// hostFingerprint gives the fingerprint of a host key, for a host certificate that of the key in it, as known_hosts and
// ssh-keygen -l have it.
func hostFingerprint(blob []byte) (fingerprint, error) {
	if len(blob) < 4 || !bytes.Contains(blob[:min(len(blob), maxTypeName)], []byte(certificateSuffix)) {
		return sha256.Sum256(blob), nil
	}
	k, err := ssh.ParsePublicKey(blob)
	if err != nil {
		return fingerprint{}, err
	}
	c, ok := k.(*ssh.Certificate)
	if !ok {
		return fingerprint{}, errors.New("not a certificate")
	}
	return sha256.Sum256(c.Key.Marshal()), nil
}

// maxTypeName is more than the name of any certificate type and its length take.
const maxTypeName = 64
