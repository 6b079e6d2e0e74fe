// SPDX-License-Identifier: BSD-3-Clause

package dnssd

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// The caps. They bound the memory for one interface to about 1 MiB, whatever is
// sent. Each interface has its own cache, so a hostile network takes nothing
// from another one.
const (
	// maxSources bounds the sources of one interface. More claimants of one
	// service than this on one link are an attack. See room for who has to go.
	maxSources = 128
	// maxInstances bounds the instances of one source: a phone has one, a
	// computer one for each user who runs a signer. The one not heard for
	// longest makes room, so a source can push out only its own.
	maxInstances = 8
	// maxAddresses bounds the addresses of one instance: a few IPv6 prefixes,
	// each with a stable and temporary addresses, and IPv4.
	maxAddresses = 8
	// maxTTL is the TTL of records without an address (RFC 6762 section 10).
	// A longer one would only keep what is stale.
	maxTTL = 75 * time.Minute

	// reportBurst and reportEvery bound the reports of one source. A source
	// that changes faster is reported late, with its latest state, never left
	// out.
	reportBurst = 2 * maxInstances
	reportEvery = 250 * time.Millisecond

	// RFC 6762 section 10.2: the flush bit spares records up to a second old,
	// for an answer may come in several packets.
	flushGrace = time.Second

	// maxAsks bounds how often missing records of one instance are asked for;
	// the general query asks on.
	maxAsks = 4
	// maxQuestions bounds one query for missing records, whoever's they are.
	maxQuestions = 12
)

// A cache holds what the sources of one interface claim. It does no input or
// output and reads no clock.
type cache struct {
	service name // key form
	usable  func(netip.Addr) (netip.Addr, bool)
	index   int
	round   int // counts the general queries
	sources map[netip.Addr]*source
	// wake is when maintain is to be called next; zero for never.
	wake time.Time
}

type source struct {
	addr      netip.Addr
	heard     time.Time
	round     int // the last one it was heard in
	rounds    int // how many it was heard in
	instances map[name]*instance
	budget    float64 // reports it may still cause
	filled    time.Time
}

type instance struct {
	label string
	full  name // as the source writes it
	heard time.Time

	listed time.Time // end of the PTR record's life; zero if there is none
	served time.Time // same of the SRV record
	port   uint16
	target name
	addrs  []address

	reported []netip.AddrPort // what found was told last; nil if nothing
	changed  bool             // a report waits for its source's budget
	asked    int
	ask      time.Time // when to ask for what is missing
}

type address struct {
	addr    netip.Addr
	heard   time.Time
	expires time.Time
}

func newCache(service name, index int, usable func(netip.Addr) (netip.Addr, bool)) *cache {
	return &cache{service: service.key(), index: index, usable: usable, sources: make(map[netip.Addr]*source)}
}

// apply takes the answers in m from src, which the caller has found to be on
// the link, and returns what is to be reported.
func (c *cache) apply(now time.Time, src netip.Addr, m *message) []Claim {
	records := slices.Concat(m.answers, m.additionals)
	s := c.sources[src]
	if s != nil {
		c.expire(now, s)
		s = c.sources[src] // expire may have dropped it
	}
	// Names first: which addresses matter follows from the SRV records.
	for _, r := range records {
		switch r.typ {
		case typePTR:
			if r.name.key() == c.service {
				s = c.takePTR(now, src, s, r)
			}
		case typeSRV:
			if _, rest, ok := r.name.cut(); ok && rest.key() == c.service {
				s = c.takeSRV(now, src, s, r)
			}
		}
	}
	if s == nil {
		return nil
	}
	for _, in := range s.instances {
		for _, typ := range []uint16{typeA, typeAAAA} {
			c.takeAddrs(now, in, records, typ)
		}
	}
	c.drop(s)
	if c.sources[src] == nil {
		return nil
	}
	s.heard = now
	if s.round != c.round || s.rounds == 0 {
		s.round = c.round
		s.rounds++
	}
	claims := c.reports(now, s)
	c.schedule(now, s)
	return claims
}

// takePTR takes one PTR record of the service. A TTL of 0 says goodbye (RFC
// 6762 section 10.1) and works at once: the second of grace there lets another
// responder rescue a shared record, and records here are not shared.
func (c *cache) takePTR(now time.Time, src netip.Addr, s *source, r record) *source {
	if r.ttl == 0 {
		if in := s.find(r.target); in != nil {
			in.listed = time.Time{}
		}
		return s
	}
	s, in := c.admit(now, src, s, r.target)
	if in != nil {
		in.listed = expiry(now, r.ttl)
	}
	return s
}

func (c *cache) takeSRV(now time.Time, src netip.Addr, s *source, r record) *source {
	// RFC 2782: the target "." says that there is no such service here.
	if r.ttl == 0 || r.port == 0 || len(r.target) < 2 {
		if in := s.find(r.name); in != nil {
			in.served = time.Time{}
		}
		return s
	}
	s, in := c.admit(now, src, s, r.name)
	if in != nil {
		if in.target.key() != r.target.key() {
			in.addrs = nil
		}
		in.served, in.port, in.target = expiry(now, r.ttl), r.port, r.target
	}
	return s
}

// takeAddrs takes the address records of one type that the target of in has.
func (c *cache) takeAddrs(now time.Time, in *instance, records []record, typ uint16) {
	if in.target == "" {
		return
	}
	target := in.target.key()
	flush := false
	for _, r := range records {
		if r.typ != typ || r.name.key() != target {
			continue
		}
		flush = flush || r.flush()
		addr, ok := c.usable(r.addr)
		if !ok {
			continue
		}
		i := slices.IndexFunc(in.addrs, func(a address) bool { return a.addr == addr })
		switch {
		case r.ttl == 0:
			if i >= 0 {
				in.addrs = slices.Delete(in.addrs, i, i+1)
			}
		case i >= 0:
			in.addrs[i].heard, in.addrs[i].expires = now, expiry(now, r.ttl)
		default:
			if len(in.addrs) == maxAddresses {
				oldest := slices.MinFunc(in.addrs, func(a, b address) int { return a.heard.Compare(b.heard) })
				if !oldest.heard.Before(now) {
					continue // one packet with more than the cap
				}
				in.addrs = slices.DeleteFunc(in.addrs, func(a address) bool { return a.addr == oldest.addr })
			}
			in.addrs = append(in.addrs, address{addr, now, expiry(now, r.ttl)})
		}
	}
	if flush {
		in.addrs = slices.DeleteFunc(in.addrs, func(a address) bool {
			return a.addr.Is4() == (typ == typeA) && now.Sub(a.heard) > flushGrace
		})
	}
}

func expiry(now time.Time, ttl uint32) time.Time {
	return now.Add(min(time.Duration(ttl)*time.Second, maxTTL))
}

func (s *source) find(full name) *instance {
	if s == nil {
		return nil
	}
	return s.instances[full.key()]
}

// admit returns the source and the instance of that name, making them, and
// room for them, where they are new. The instance is nil for a bad name.
func (c *cache) admit(now time.Time, src netip.Addr, s *source, full name) (*source, *instance) {
	key := full.key()
	label, rest, ok := full.cut()
	if !ok || rest.key() != c.service || !validInstance(label) {
		return s, nil
	}
	if s == nil {
		c.room()
		s = &source{addr: src, round: c.round, instances: make(map[name]*instance), budget: reportBurst, filled: now}
		c.sources[src] = s
	}
	in := s.instances[key]
	if in == nil {
		if len(s.instances) == maxInstances {
			var oldest name
			for k, other := range s.instances {
				if o := s.instances[oldest]; o == nil || other.heard.Before(o.heard) {
					oldest = k
				}
			}
			delete(s.instances, oldest)
		}
		in = &instance{label: label, full: full, ask: now}
		s.instances[key] = in
	}
	in.heard = now
	return s, in
}

// room makes room for one more source. A newcomer always gets in, or a rogue
// that came first could keep the phone out; it is reported there and then, so
// being evicted later hides nothing, and one that is evicted is reported anew
// when it is heard again. Evicted is, of those heard in one round of questions
// only, the one not heard for longest, and only where there are none such, of
// the others: a flood from made-up addresses evicts itself and not the phone,
// which answers every round.
func (c *cache) room() {
	if len(c.sources) < maxSources {
		return
	}
	var out *source
	for _, s := range c.sources {
		if out == nil || cmp.Or(cmp.Compare(min(s.rounds, 2), min(out.rounds, 2)), s.heard.Compare(out.heard)) < 0 {
			out = s
		}
	}
	delete(c.sources, out.addr)
}

// expire forgets what has outlived its TTL.
func (c *cache) expire(now time.Time, s *source) {
	for _, in := range s.instances {
		if !in.listed.After(now) {
			in.listed = time.Time{}
		}
		if !in.served.After(now) {
			in.served = time.Time{}
		}
		in.addrs = slices.DeleteFunc(in.addrs, func(a address) bool { return !a.expires.After(now) })
	}
	c.drop(s)
}

// drop forgets instances without a PTR or SRV record and sources without
// instances. One that is complete no more is reported again when it is.
func (c *cache) drop(s *source) {
	for k, in := range s.instances {
		if in.served.IsZero() {
			in.target, in.addrs = "", nil
		}
		if !in.complete() {
			in.reported, in.changed = nil, false
		}
		if in.listed.IsZero() && in.served.IsZero() {
			delete(s.instances, k)
		}
	}
	if len(s.instances) == 0 && c.sources[s.addr] == s {
		delete(c.sources, s.addr)
	}
}

func (in *instance) complete() bool {
	return !in.listed.IsZero() && !in.served.IsZero() && len(in.addrs) > 0
}

// reports returns the claims of s that are new or changed, as its budget allows.
func (c *cache) reports(now time.Time, s *source) []Claim {
	s.budget = min(reportBurst, s.budget+float64(now.Sub(s.filled))/float64(reportEvery))
	s.filled = now
	var out []Claim
	for _, in := range s.instances {
		if !in.complete() {
			continue
		}
		in.asked = 0
		addrs := make([]netip.AddrPort, 0, len(in.addrs))
		for _, a := range in.addrs {
			addrs = append(addrs, netip.AddrPortFrom(a.addr, in.port))
		}
		slices.SortFunc(addrs, func(a, b netip.AddrPort) int {
			return cmp.Or(first(b, s.addr)-first(a, s.addr), a.Compare(b))
		})
		if slices.Equal(addrs, in.reported) {
			in.changed = false
			continue
		}
		if s.budget < 1 {
			in.changed = true
			continue
		}
		s.budget--
		in.reported, in.changed = addrs, false
		out = append(out, Claim{Instance: in.label, Source: s.addr, Interface: c.index, Addrs: slices.Clone(addrs)})
	}
	slices.SortFunc(out, func(a, b Claim) int { return cmp.Compare(a.Instance, b.Instance) })
	return out
}

func first(a netip.AddrPort, src netip.Addr) int {
	if a.Addr() == src {
		return 1
	}
	return 0
}

// schedule brings wake forward to when s next needs attention.
func (c *cache) schedule(now time.Time, s *source) {
	for _, in := range s.instances {
		for _, t := range []time.Time{in.listed, in.served} {
			if !t.IsZero() {
				c.wakeAt(t)
			}
		}
		for _, a := range in.addrs {
			c.wakeAt(a.expires)
		}
		if in.changed {
			c.wakeAt(now.Add(reportEvery))
		}
		if !in.complete() && in.asked < maxAsks {
			c.wakeAt(in.ask)
		}
	}
}

func (c *cache) wakeAt(t time.Time) {
	if c.wake.IsZero() || t.Before(c.wake) {
		c.wake = t
	}
}

// maintain forgets what is over and returns the reports that waited and the
// questions for what is missing; group says to put them to the group, because
// at least one was put before in vain or may have been.
func (c *cache) maintain(now time.Time) (claims []Claim, questions []question, group bool) {
	c.wake = time.Time{}
	for _, s := range c.sources {
		c.expire(now, s)
		for _, in := range s.instances {
			if in.changed {
				claims = append(claims, c.reports(now, s)...)
				break
			}
		}
		for _, in := range s.instances {
			// Map order is random, so that a rogue whose records always want
			// asking for does not keep others from their turn.
			if in.complete() || in.asked == maxAsks || in.ask.After(now) || len(questions)+2 > maxQuestions {
				continue
			}
			missing := in.missing()
			if len(missing) == 0 {
				in.asked = maxAsks
				continue
			}
			if !slices.Contains(questions, missing[0]) {
				questions = append(questions, missing...)
			}
			group = group || in.asked > 0
			in.ask = now.Add(interval(in.asked))
			in.asked++
		}
		c.schedule(now, s)
	}
	return claims, questions, group
}

// missing returns the questions whose answers would complete in. Nothing
// outside .local is asked for: that is not multicast DNS's (RFC 6762 section 3).
func (in *instance) missing() []question {
	switch {
	case in.listed.IsZero():
		return nil // the general query is the question
	case in.served.IsZero():
		return []question{{in.full, typeSRV, classIN}}
	case len(in.addrs) == 0 && in.target.underLocal():
		return []question{{in.target, typeA, classIN}, {in.target, typeAAAA, classIN}}
	}
	return nil
}

// interval is the time from query number n, from 0, to the next: 1, 3, 9, 27
// and then always 60 s. RFC 6762 section 5.2 wants at least 1 s and then at
// least a doubling; it stops at an hour, which is long for a phone that moved.
func interval(n int) time.Duration {
	d := time.Second
	for range min(n, 4) {
		d *= 3
	}
	return min(d, time.Minute)
}
