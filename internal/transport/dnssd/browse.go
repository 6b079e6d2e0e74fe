// SPDX-License-Identifier: BSD-3-Clause

package dnssd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"time"
)

// minMaintain is the least time between two passes over one cache, so that a
// flood of short-lived records does not make each packet cost a pass.
const minMaintain = 50 * time.Millisecond

// Browse looks for o.Service on every interface and calls found, one call at a
// time, for each new or changed claim: one per instance, source and interface.
// A claim that expires or says goodbye is forgotten silently, and reported as
// new when it comes back. found must not block for long, and has to bound what
// it keeps: someone who makes up source addresses causes as many claims.
//
// Browse returns nil when ctx ends, without waiting for anything but a running
// found; an error wrapping ErrUnavailable when at the start there are
// interfaces to use and none can be used; ErrBadName for a bad service type.
// Without an interface it waits for one.
func Browse(ctx context.Context, o Options, found func(Claim)) error {
	s, err := o.settings()
	if err != nil {
		return err
	}
	b := browser{links: newLinks(s, true), found: found, state: make(map[*link]*search)}
	defer b.links.close()
	return b.run(ctx)
}

type browser struct {
	links *links
	found func(Claim)
	state map[*link]*search
}

// A search is what goes on on one link.
type search struct {
	cache      *cache
	queries    int       // put since the link changed last
	query      time.Time // when to put the next
	maintained time.Time
}

func (b *browser) run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var poll time.Time
	first := true
	for ctx.Err() == nil {
		now := time.Now()
		if !now.Before(poll) {
			poll = now.Add(b.links.every)
			err := b.poll(now)
			if first && err != nil {
				return err
			}
		}
		next := poll
		sent, errs := 0, []error(nil)
		for l, s := range b.state {
			if !now.Before(s.query) {
				n, err := b.query(l, s.queries > 0, []question{{b.links.service, typePTR, classIN}})
				sent += n
				if l.denied(err) {
					errs = append(errs, err)
				}
				s.query = now.Add(interval(s.queries))
				s.queries++
				s.cache.round++
			}
			if t := s.due(); !t.IsZero() && !now.Before(t) {
				s.maintained = now
				claims, questions, group := s.cache.maintain(now)
				b.report(ctx, claims)
				if len(questions) > 0 {
					b.query(l, group, questions)
				}
			}
			next = earlier(next, s.query)
			if t := s.due(); !t.IsZero() {
				next = earlier(next, t)
			}
		}
		if err := errors.Join(errs...); first && sent == 0 && err != nil {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		first = first && !b.links.lead()
		timer.Reset(time.Until(next))
		select {
		case <-ctx.Done():
		case <-timer.C:
		case ev := <-b.links.events:
			b.receive(ctx, ev)
		}
	}
	return nil
}

// denied reports whether err is a decision of the system and no state that
// passes, such as an IPv6 address that is not ready yet: a sandbox, a firewall,
// or macOS without Local Network access, which says "no route to host". macOS says
// that as well on the interfaces that Macs have to processors of their own (xnu,
// inp_restricted_send), which lead nowhere.
func (l *link) denied(err error) bool {
	return errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EHOSTUNREACH) && l.leads()
}

// leads reports whether l has an address that more than a cable gives.
func (l *link) leads() bool {
	return slices.ContainsFunc(l.prefixes, func(p netip.Prefix) bool { return p.Addr().Is4() || !p.Addr().IsLinkLocalUnicast() })
}

// lead reports whether any link leads somewhere.
func (ls *links) lead() bool {
	for _, l := range ls.all {
		if l.leads() {
			return true
		}
	}
	return false
}

func (s *search) due() time.Time {
	if s.cache.wake.IsZero() {
		return time.Time{}
	}
	return later(s.cache.wake, s.maintained.Add(minMaintain))
}

// poll starts the search anew on the links that are new or changed.
func (b *browser) poll(now time.Time) error {
	fresh, gone, err := b.links.poll()
	for _, l := range gone {
		delete(b.state, l)
	}
	for _, l := range fresh {
		s := b.state[l]
		if s == nil {
			s = &search{cache: newCache(b.links.service, l.index, l.usableAddr)}
			b.state[l] = s
		}
		// RFC 6762 section 5.2 would have the first query wait for 20 to 120 ms
		// against many hosts that start at once. A person waits for this one.
		s.queries, s.query = 0, now
	}
	return err
}

// query puts questions in both families and returns how many packets went out.
// The first time, they go out from a port of our own, which makes responders
// answer at once and directly (RFC 6762 section 6.7; QU says the same to those
// that look at it); later from port 5353, whose answers go to the group and
// have their full TTL, or where that is not to be had, from the other again.
// Answers to that live for 10 s, so a claim may then be reported once a query.
func (b *browser) query(l *link, group bool, questions []question) (sent int, err error) {
	var errs []error
	for _, v6 := range []bool{false, true} {
		c := l.conns[slot{v6, group}]
		if c == nil {
			c = l.conns[slot{v6, !group}]
		}
		if c == nil {
			continue
		}
		m := message{questions: questions}
		if !c.slot.group {
			m.questions = make([]question, len(questions))
			for i, q := range questions {
				q.class |= topBit
				m.questions[i] = q
			}
		}
		if err := c.send(m.encode(false), netip.AddrPort{}); err != nil {
			// Not an error of the search: the interface may be going down, or
			// its address not be ready yet. The next query tries again.
			b.links.log.Debug("dnssd: query not sent", "interface", l.name, "socket", c.slot.String(), "error", err)
			errs = append(errs, fmt.Errorf("%s: %w", l.name, err))
			continue
		}
		sent++
	}
	return sent, errors.Join(errs...)
}

func (b *browser) receive(ctx context.Context, ev event) {
	if ev.err != nil {
		b.links.drop(ev.conn, ev.err)
		return
	}
	l := ev.conn.link
	s := b.state[l]
	// RFC 6762 section 6: an answer not from port 5353 is ignored.
	if s == nil || !ev.msg.response() || ev.src.Port() != port || !l.local(ev) {
		return
	}
	b.report(ctx, s.cache.apply(time.Now(), ev.src.Addr(), ev.msg))
}

func (b *browser) report(ctx context.Context, claims []Claim) {
	for _, c := range claims {
		if ctx.Err() != nil {
			return
		}
		b.found(c)
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
