// SPDX-License-Identifier: BSD-3-Clause

package session

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"
)

// maxVariants bounds the listings that are kept for one set of certificates; the next one begins anew. A variant is one
// combination of hosts and jobs that somebody listed for.
const maxVariants = 16

// Lister is who lists, as far as the agent knows. ssh binds its connection before it lists, so that the destination is
// known then.
type Lister struct {
	HostKey   []byte      // the last bind's host key, if that bind is not for forwarding; nil if unknown
	Bound     bool        // the client has bound its connection to a session, or tried to
	Forwarded bool        // comes from the far side of an agent forwarding, or may
	PID       int         // the process that connected, 0 if unknown
	Alive     func() bool // as in Use
}

// snapshot is a set of certificates. It is never changed, but for the variants that are kept with it.
type snapshot struct {
	certs  []*Certificate // in the order of Current
	scoped bool           // some have a scope that a listing goes by

	// What ends first, by each clock.
	end     time.Time
	bootEnd time.Duration

	variants atomic.Pointer[[]variant]
}

// variant is the listing for those who meet the scopes of the included certificates. Bits are indexes of snapshot.certs.
type variant struct {
	included, matched uint64
	certs             []*Certificate
}

func newSnapshot(certs []*Certificate) *snapshot {
	s := &snapshot{certs: certs}
	for i, c := range certs {
		if i == 0 || c.end.Before(s.end) {
			s.end = c.end
		}
		if i == 0 || c.bootEnd < s.bootEnd {
			s.bootEnd = c.bootEnd
		}
		scope := c.spec.Scope
		s.scoped = s.scoped || len(c.hosts) > 0 || scope.NoForwarding || scope.Root.PID != 0
	}
	slices.SortFunc(certs, func(a, b *Certificate) int { return order(a, b, false, false) })
	return s
}

// order is how certificates are listed; the flags say that the destination is among the hosts of a's or b's scope.
func order(a, b *Certificate, matchA, matchB bool) int {
	hosts := func(c *Certificate, match bool) int {
		switch {
		case match:
			return 0
		case len(c.hosts) == 0:
			return 1
		default: // not known to fit
			return 2
		}
	}
	yes := func(b bool) int {
		if b {
			return 1
		}
		return 0
	}
	return cmp.Or(
		cmp.Compare(hosts(a, matchA), hosts(b, matchB)),
		// A job's own certificate fits it better than one for everybody.
		-cmp.Compare(yes(a.spec.Scope.Root.PID != 0), yes(b.spec.Scope.Root.PID != 0)),
		// A use that is spent is gone, so what needs none is used first.
		cmp.Compare(yes(a.spec.Scope.Uses > 0), yes(b.spec.Scope.Uses > 0)),
		// The one that ends last is the least likely to end during a login.
		b.end.Compare(a.end),
		cmp.Compare(a.public.Serial, b.public.Serial),
	)
}

// expired reports whether any certificate has expired.
func (s *snapshot) expired(wall time.Time, boot time.Duration) bool {
	return len(s.certs) > 0 && (!wall.Before(s.end) || boot >= s.bootEnd)
}

// next is the time to the next look at the clocks.
func (s *snapshot) next(wall time.Time, boot time.Duration) time.Duration {
	return max(0, min(checkEvery, s.end.Sub(wall), s.bootEnd-boot))
}

// Current gives all live certificates: those for any destination before those scoped to hosts; among these a job's own first,
// those with counted uses last, and what ends last before what ends sooner. As long as nothing changes it gives the
// same slice, takes no lock and allocates nothing. The slice is not to be changed.
func (m *Manager) Current() []*Certificate { return m.live().certs }

func (m *Manager) live() *snapshot {
	s := m.current.Load()
	if !s.expired(m.clock.Wall(), m.clock.Boot()) {
		return s
	}
	m.expire()
	return m.current.Load()
}

// For gives what to list for l: Current without what l is known to be unable to use, and with the certificates that are scoped to
// l's destination first. Servers count each key that is offered, so one for elsewhere must not be.
//
//	certificate scoped to     is left out for
//	hosts                     a bound lister whose destination is unknown or another
//	no forwarding             a forwarded lister
//	a job                     a process that is not part of it
//
// To a local lister that has not bound, which may be ssh-add -l, certificates scoped to hosts come last, as OpenSSH's agent
// lists such keys. The slice is the same as long as neither certificates nor what l may use change, and is not
// to be changed.
func (m *Manager) For(l Lister) []*Certificate {
	s := m.live()
	if !s.scoped {
		return s.certs
	}
	var host fingerprint
	known := false
	if l.HostKey != nil {
		var err error
		host, err = hostFingerprint(l.HostKey)
		known = err == nil
	}
	var included, matched uint64
	type job struct {
		pid   int
		start uint64
	}
	var few, others [4]job // seldom more than one
	inJob, notInJob := few[:0], others[:0]
	for i, c := range s.certs {
		scope, bit := c.spec.Scope, uint64(1)<<i
		if scope.NoForwarding && l.Forwarded {
			continue
		}
		if len(c.hosts) > 0 {
			switch {
			case known && slices.Contains(c.hosts, host):
				matched |= bit
			case known || l.Bound || l.Forwarded:
				continue
			}
		}
		if root := scope.Root; root.PID != 0 {
			id := job{root.PID, root.Start}
			if slices.Contains(notInJob, id) {
				matched &^= bit
				continue
			}
			if !slices.Contains(inJob, id) {
				if m.outside(l.PID, l.Alive, root) != "" {
					notInJob = append(notInJob, id)
					matched &^= bit
					continue
				}
				inJob = append(inJob, id)
			}
		}
		included |= bit
	}
	return s.variant(included, matched)
}

// variant gives the listing of the included certificates, the same slice each time.
func (s *snapshot) variant(included, matched uint64) []*Certificate {
	for {
		kept := s.variants.Load()
		var all []variant
		if kept != nil {
			all = *kept
		}
		for _, v := range all {
			if v.included == included && v.matched == matched {
				return v.certs
			}
		}
		type entry struct {
			c     *Certificate
			match bool
		}
		var entries []entry
		for i, c := range s.certs {
			if bit := uint64(1) << i; included&bit != 0 {
				entries = append(entries, entry{c, matched&bit != 0})
			}
		}
		slices.SortStableFunc(entries, func(a, b entry) int { return order(a.c, b.c, a.match, b.match) })
		v := variant{included: included, matched: matched, certs: make([]*Certificate, 0, len(entries))}
		for _, e := range entries {
			v.certs = append(v.certs, e.c)
		}
		if len(all) >= maxVariants {
			all = nil
		}
		next := append(slices.Clone(all), v)
		if s.variants.CompareAndSwap(kept, &next) {
			return v.certs
		}
	}
}
