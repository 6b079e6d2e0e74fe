// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/agent"
	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/phone"
	"vmux.app/toolkit/internal/session"
	"vmux.app/toolkit/internal/signed"
)

// signer joins the socket's side to the session certificates and the phones.
type signer struct {
	sessions *session.Manager
	phones   *phone.Set
	hosts    hosts
	all      listing // of Keys(nil)
	listed   listing // of Keys of somebody
}

// Keys implements agent.Signer: certificates first, then the phones' cached
// keys.
func (s *signer) Keys(l *agent.Lister) []agent.Key {
	if l == nil {
		return s.all.of(s.sessions.Current(), s.phones.Keys())
	}
	return s.listed.of(s.sessions.For(lister(l)), s.phones.Keys())
}

func lister(l *agent.Lister) session.Lister {
	return session.Lister{HostKey: l.HostKey, Bound: l.Bound, Forwarded: l.Forwarded, PID: l.Peer.PID, Alive: l.Peer.Alive}
}

// listing keeps one result of Keys, which is the same slice while what it is
// made of is.
type listing struct {
	last atomic.Pointer[listed]
}

type listed struct {
	certs  []*session.Certificate
	phones []phone.Key
	keys   []agent.Key
}

func (l *listing) of(certs []*session.Certificate, phones []phone.Key) []agent.Key {
	if last := l.last.Load(); last != nil && same(last.certs, certs) && same(last.phones, phones) {
		return last.keys
	}
	keys := make([]agent.Key, 0, len(certs)+len(phones))
	for _, c := range certs {
		keys = append(keys, agent.Key{Public: c.Public(), Comment: c.Info().KeyID, Local: true})
	}
	for _, k := range phones {
		keys = append(keys, agent.Key{Public: k.Public, Comment: k.Comment})
	}
	l.last.Store(&listed{certs, phones, keys})
	return keys
}

// same says whether two slices that are never changed are one.
func same[T any](a, b []T) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// Sign implements agent.Signer: with a certificate here, with another key by
// asking the phone that has it.
func (s *signer) Sign(ctx context.Context, r agent.Request) (*ssh.Signature, error) {
	if r.Key.Local {
		return signLocal(s.sessions.Current(), r)
	}
	blob, err := s.phones.Sign(ctx, envelope.SignRequest{
		PublicKeyBlob: r.Key.Public.Marshal(),
		Data:          r.Data,
		Flags:         r.Flags,
		Context:       claims(r.Peer, r.Meaning.Kind.String(), s.destination(r)),
	})
	switch {
	case errors.Is(err, phone.ErrDenied):
		return nil, known{err, agent.ErrDenied}
	case errors.Is(err, phone.ErrTimeout):
		return nil, known{err, agent.ErrUnanswered}
	case err != nil:
		return nil, err
	}
	return parseSignature(blob)
}

// known is an error that the agent knows as one of its own.
type known struct {
	error
	as error
}

func (k known) Is(target error) bool { return target == k.as }
func (k known) Unwrap() error        { return k.error }

// signLocal signs with the one of certs that was asked for.
func signLocal(certs []*session.Certificate, r agent.Request) (*ssh.Signature, error) {
	i := slices.IndexFunc(certs, func(c *session.Certificate) bool { return c.Public() == r.Key.Public })
	if i < 0 {
		return nil, session.ErrDropped // since it was listed
	}
	sig, err := certs[i].Sign(session.Use{
		Data:      r.Data,
		Login:     r.Meaning.Kind == signed.Login,
		HostKey:   r.HostKey,
		Bound:     r.Bound,
		Forwarded: r.Forwarded,
		PID:       r.Peer.PID,
		Alive:     r.Peer.Alive,
	})
	if _, ok := errors.AsType[*session.ScopeError](err); ok {
		err = known{err, agent.ErrRefused}
	}
	return sig, err
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

// destination hands the connection's binds on, which prove themselves, and says
// how the host is called that is logged in to.
func (s *signer) destination(r agent.Request) *envelope.Destination {
	if len(r.Binds) == 0 && !r.Forwarded && r.Meaning.HostKey == nil {
		return nil
	}
	names := s.hosts.names(r.Destination(), r.Peer, nil)
	d := &envelope.Destination{Forwarded: r.Forwarded, HostNames: names[:min(len(names), envelope.MaxHostNames)]}
	for _, b := range r.Binds {
		d.Binds = append(d.Binds, envelope.Bind{HostKey: b.HostKey, SessionID: b.SessionID, Signature: b.Signature, Forwarding: b.Forwarding})
	}
	return d
}

// claims is what this device says about a request, beside what proves itself.
func claims(peer agent.Peer, operation string, d *envelope.Destination) envelope.Context {
	c := envelope.Context{Operation: operation, Destination: d}
	if chain, err := peer.Chain(); err == nil {
		for _, p := range chain[:min(len(chain), envelope.MaxProcesses)] {
			c.Processes = append(c.Processes, envelope.Process{PID: p.PID, Executable: fit(p.Executable, envelope.MaxPath)})
		}
	}
	if dir, err := peer.WorkingDirectory(); err == nil {
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
