// SPDX-License-Identifier: BSD-3-Clause

package dnssd

import (
	"net/netip"
	"time"
)

// TTLs in seconds: RFC 6762 section 10, and section 6.7 for legacy answers.
const (
	hostTTL   = 120
	otherTTL  = uint32(maxTTL / time.Second)
	legacyTTL = 10
)

// wants is a set of records.
type wants uint8

const (
	wantMeta wants = 1 << iota // the service type, for _services._dns-sd._udp (RFC 6763 section 9)
	wantPTR
	wantSRV
	wantTXT
	wantA
	wantAAAA

	wantShared = wantMeta | wantPTR // others may answer as well
	wantAll    = wantPTR | wantSRV | wantTXT | wantA | wantAAAA
)

// mode is how an answer goes out.
type mode int

const (
	modeNormal  mode = iota // to the group, or unicast to a QU question
	modeLegacy              // unicast, to a port that is not 5353: RFC 6762 section 6.7
	modeGoodbye             // TTL 0: section 10.1
)

// A responder knows the records of one instance. It does no input or output.
type responder struct {
	meta     name
	service  name
	instance name
	host     name
	port     uint16
}

func newResponder(service name, instance, host string, port uint16) (*responder, error) {
	r := &responder{service: service, port: port}
	var err error
	if r.meta, err = newName("_services", "_dns-sd", "_udp", "local"); err != nil {
		return nil, err
	}
	if r.host, err = newName(host, "local"); err != nil {
		return nil, err
	}
	a, rest, _ := service.cut()
	b, _, _ := rest.cut()
	r.instance, err = newName(instance, a, b, "local")
	return r, err
}

// answers returns what q asks of us.
func (r *responder) answers(q question) wants {
	if c := q.class &^ topBit; c != classIN && c != classANY {
		return 0
	}
	pick := func(typ uint16, w wants) wants {
		if q.typ == typ || q.typ == typeANY {
			return w
		}
		return 0
	}
	switch q.name.key() {
	case r.meta.key():
		return pick(typePTR, wantMeta)
	case r.service.key():
		return pick(typePTR, wantPTR)
	case r.instance.key():
		return pick(typeSRV, wantSRV) | pick(typeTXT, wantTXT)
	case r.host.key():
		return pick(typeA, wantA) | pick(typeAAAA, wantAAAA)
	}
	return 0
}

// known returns what the querier has by its own word (RFC 6762 section 7.1):
// the same data with at least half of its TTL left. Addresses count when all of
// a family are there. TXT records are not read, so they are sent again.
func (r *responder) known(m *message, addrs []netip.Addr) wants {
	var w wants
	have := make(map[netip.Addr]bool)
	for _, a := range m.answers {
		switch n := a.name.key(); {
		case a.typ == typePTR && a.ttl >= otherTTL/2 && n == r.service.key() && a.target.key() == r.instance.key():
			w |= wantPTR
		case a.typ == typePTR && a.ttl >= otherTTL/2 && n == r.meta.key() && a.target.key() == r.service.key():
			w |= wantMeta
		case a.typ == typeSRV && a.ttl >= hostTTL/2 && n == r.instance.key() && a.target.key() == r.host.key() && a.port == r.port:
			w |= wantSRV
		case (a.typ == typeA || a.typ == typeAAAA) && a.ttl >= hostTTL/2 && n == r.host.key():
			have[a.addr] = true
		}
	}
	families := map[bool]wants{true: wantA, false: wantAAAA}
	for _, a := range addrs {
		if !have[a] {
			delete(families, a.Is4())
		}
	}
	if len(have) > 0 {
		w |= families[true] | families[false]
	}
	return w
}

// message builds an answer with the records in w, and those that will be asked
// for next as additional ones (RFC 6763 section 12).
func (r *responder) message(w wants, addrs []netip.Addr, mode mode) *message {
	var also wants
	switch {
	case w&wantPTR != 0:
		also = wantSRV | wantTXT | wantA | wantAAAA
	case w&(wantSRV|wantA|wantAAAA) != 0:
		also = wantA | wantAAAA
	}
	return &message{
		flags:       flagResponse | flagAuthoritative,
		answers:     r.records(w, addrs, mode),
		additionals: r.records(also&^w, addrs, mode),
	}
}

func (r *responder) records(w wants, addrs []netip.Addr, mode mode) []record {
	var out []record
	add := func(want wants, rec record) {
		if w&want == 0 {
			return
		}
		rec.class = classIN
		switch mode {
		case modeNormal, modeGoodbye:
			if want&wantShared == 0 {
				rec.class |= topBit
			}
		}
		switch mode {
		case modeGoodbye:
			rec.ttl = 0
		case modeLegacy:
			rec.ttl = min(rec.ttl, legacyTTL)
		}
		out = append(out, rec)
	}
	add(wantMeta, record{name: r.meta, typ: typePTR, ttl: otherTTL, target: r.service})
	add(wantPTR, record{name: r.service, typ: typePTR, ttl: otherTTL, target: r.instance})
	add(wantSRV, record{name: r.instance, typ: typeSRV, ttl: hostTTL, port: r.port, target: r.host})
	add(wantTXT, record{name: r.instance, typ: typeTXT, ttl: otherTTL, text: "v=1"})
	for _, a := range addrs {
		if a.Is4() {
			add(wantA, record{name: r.host, typ: typeA, ttl: hostTTL, addr: a})
		} else {
			add(wantAAAA, record{name: r.host, typ: typeAAAA, ttl: hostTTL, addr: a})
		}
	}
	return out
}

// A reply is what one query causes.
type reply struct {
	unicast   wants
	legacy    []question // to be repeated in the unicast answer
	multicast wants
}

// reply decides who gets what. legacy is for a query from a port other than
// 5353. A truncated query, whose known answers go on in another packet, is
// answered all the same; RFC 6762 section 7.2 would wait half a second.
func (r *responder) reply(m *message, addrs []netip.Addr, legacy bool) reply {
	var out reply
	// What there is nothing of is not answered: a negative answer would take an
	// NSEC record (RFC 6762 section 6.1), which no browser for this needs.
	without := wantA | wantAAAA
	for _, a := range addrs {
		if a.Is4() {
			without &^= wantA
		} else {
			without &^= wantAAAA
		}
	}
	if !legacy { // known answers are a multicast querier's
		without |= r.known(m, addrs)
	}
	seen := make(map[question]bool)
	for _, q := range m.questions {
		w := r.answers(q) &^ without
		switch {
		case w == 0:
		case legacy:
			out.unicast |= w
			// Only questions that are ours, once: the answer stays small
			// whatever was asked. Spelt as asked, case included.
			if k := (question{q.name.key(), q.typ, q.class}); !seen[k] {
				seen[k] = true
				out.legacy = append(out.legacy, q)
			}
		case q.class&topBit != 0:
			// Section 5.4 would multicast as well what was not for a quarter of
			// the TTL. Nobody here keeps a cache that it would help.
			out.unicast |= w
		default:
			out.multicast |= w
		}
	}
	return out
}

// respond builds the unicast answer.
func (r *responder) respond(id uint16, re reply, addrs []netip.Addr) []byte {
	if len(re.legacy) == 0 {
		return r.message(re.unicast, addrs, modeNormal).encode(false)
	}
	m := r.message(re.unicast, addrs, modeLegacy)
	m.id, m.questions = id, re.legacy
	return m.encode(true)
}

// The bounds on answers. An answer has some 300 octets, so nobody whose address
// is forged gets more than 3 kB/s, and the network not more than 30 kB/s; what
// goes to the group is bounded to one packet a second for each socket (RFC 6762
// section 6) and is never refused, so that who is crowded out of the unicast
// answers by a flood asks the group a second later and gets it.
const (
	limitWindow    = time.Second
	limitPerSource = 10
	limitTotal     = 100
)

// A limiter counts unicast answers. Its memory is bounded by limitTotal.
type limiter struct {
	start   time.Time
	total   int
	sources map[netip.Addr]int
}

func (l *limiter) allow(now time.Time, src netip.Addr) bool {
	if now.Sub(l.start) >= limitWindow {
		*l = limiter{start: now, sources: make(map[netip.Addr]int)}
	}
	if l.total >= limitTotal || l.sources[src] >= limitPerSource {
		return false
	}
	l.total++
	l.sources[src]++
	return true
}
