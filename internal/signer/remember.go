// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"context"
	"fmt"
	"time"
)

// rememberWait is how long a signature waits until its host key is remembered,
// for other logins, commands that are changing the home and the disk together.
// Then it is given, and a key that is not being written by then not remembered.
const rememberWait = time.Second

// errNotInTime is why a host key was not remembered after rememberWait.
var errNotInTime = fmt.Errorf("it took longer than %v", rememberWait)

// remember notes that the owner has approved a login, with which a signature was
// made. It returns when ctx ends, and after rememberWait in any case. Unless
// mayStill agrees when the key's turn has come, it is not remembered.
func (s *server) remember(ctx context.Context, p *Prompt, mayStill func() error) {
	if p.Verified.HostKey == "" {
		return // no login, or to a host that is not verified
	}
	shown := p.Claimed.HostNames[:len(p.Claimed.readable())]
	names, key, day := fitNames(shown), p.Verified.HostKey, s.now().Local().Format(time.DateOnly)
	if s.hosts.Load().has(names, key, day) {
		return
	}
	ctx, cancel := context.WithTimeoutCause(ctx, rememberWait, errNotInTime)
	defer cancel()
	done := make(chan struct{})
	s.memory.Go(func() {
		defer close(done)
		err := s.changeHosts(ctx, func(h approvals) (bool, error) {
			if ctx.Err() != nil { // the signature is given by now
				return false, context.Cause(ctx)
			}
			if err := mayStill(); err != nil || h.has(names, key, day) {
				return false, err
			}
			h.add(names, key, day)
			return true, nil
		})
		if err != nil {
			s.log.Warn("host key not remembered", "hostKey", key, "reason", err)
		}
	})
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// changeHosts changes what is remembered, on disk first. Errors: the cause of ctx
// or ErrHomeBusy, when it ends before the turn.
func (s *server) changeHosts(ctx context.Context, change func(approvals) (bool, error)) error {
	select {
	case s.hostsTurn <- struct{}{}:
		defer func() { <-s.hostsTurn }() // it holds the token
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	known, err := s.home.updateHosts(ctx, change)
	if err != nil {
		return err
	}
	s.hosts.Store(&known)
	return nil
}
