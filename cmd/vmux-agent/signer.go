// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/agent"
	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/phone"
)

// signer joins the socket's side to the phones.
type signer struct {
	phones *phone.Set
	last   atomic.Pointer[converted]
}

// converted keeps the result of Keys, which stays the same while the phones' does.
type converted struct {
	cached []phone.Key
	keys   []agent.Key
}

// Keys implements agent.Signer from the phones' caches.
func (s *signer) Keys() []agent.Key {
	cached := s.phones.Keys()
	if len(cached) == 0 {
		return nil
	}
	if last := s.last.Load(); last != nil && &last.cached[0] == &cached[0] {
		return last.keys
	}
	keys := make([]agent.Key, len(cached))
	for i, k := range cached {
		keys[i] = agent.Key{Public: k.Public, Comment: k.Comment}
	}
	s.last.Store(&converted{cached, keys})
	return keys
}

// Sign implements agent.Signer by asking the phone that has the key.
func (s *signer) Sign(ctx context.Context, r agent.Request) (*ssh.Signature, error) {
	blob, err := s.phones.Sign(ctx, envelope.SignRequest{
		PublicKeyBlob: r.Key.Public.Marshal(),
		Data:          r.Data,
		Flags:         r.Flags,
		Context:       claims(r),
	})
	if errors.Is(err, phone.ErrDenied) {
		return nil, fmt.Errorf("%w: %w", agent.ErrDenied, err)
	}
	if err != nil {
		return nil, err
	}
	return parseSignature(blob)
}

// parseSignature reads a signature that came from the phone, strictly.
func parseSignature(blob []byte) (*ssh.Signature, error) {
	var s struct {
		Format string
		Blob   []byte
	}
	if err := ssh.Unmarshal(blob, &s); err != nil {
		return nil, fmt.Errorf("the phone's answer is no signature: %w", err)
	}
	return &ssh.Signature{Format: s.Format, Blob: s.Blob}, nil
}

// claims is what this device says about a request. The binds prove themselves;
// the rest the phone shows as claimed.
func claims(r agent.Request) envelope.Context {
	c := envelope.Context{Operation: r.Meaning.Kind.String()}
	if len(r.Binds) > 0 || r.Forwarded {
		d := &envelope.Destination{Forwarded: r.Forwarded}
		for _, b := range r.Binds {
			d.Binds = append(d.Binds, envelope.Bind{HostKey: b.HostKey, SessionID: b.SessionID, Signature: b.Signature, Forwarding: b.Forwarding})
		}
		c.Destination = d
	}
	if chain, err := r.Peer.Chain(); err == nil {
		for _, p := range chain[:min(len(chain), envelope.MaxProcesses)] {
			c.Processes = append(c.Processes, envelope.Process{PID: p.PID, Executable: fit(p.Executable, envelope.MaxPath)})
		}
	}
	if dir, err := r.Peer.WorkingDirectory(); err == nil {
		c.WorkingDirectory = fit(dir, envelope.MaxPath)
	}
	return c
}

// fit makes a path fit for the link: paths can hold any byte, JSON cannot.
func fit(s string, most int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "")
	}
	return s
}
