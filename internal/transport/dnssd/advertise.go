// SPDX-License-Identifier: BSD-3-Clause

package dnssd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"
)

const (
	// announcements are sent twice, a second apart (RFC 6762 section 8.3).
	announcements = 2
	announceEvery = time.Second
	// announceTries bounds them where sending fails, for instance while an IPv6
	// address is checked for duplicates, which takes a second or two.
	announceTries = 10

	// multicastEvery bounds what goes to the group (RFC 6762 section 6).
	multicastEvery = time.Second
)

// Advertise says on every interface that instance of o.Service listens on
// portNumber, and answers who asks, with the addresses of the interface the
// question came in on, until ctx ends. Then it says goodbye and returns nil.
// The host name is a random one. The instance name must be one that nobody else
// has, such as RandomName makes: it is not probed for (RFC 6762 section 8.1),
// and a conflict is not resolved, since whoever had the same 64 random bits
// would be an attacker, and should not make the real one change its name.
//
// Other returns are an error wrapping ErrUnavailable when at the start there
// are interfaces to use and none can be used, and one wrapping ErrBadName for a
// bad service type, instance or port. Without an interface it waits for one.
func Advertise(ctx context.Context, o Options, instance string, portNumber uint16) error {
	s, err := o.settings()
	if err != nil {
		return err
	}
	if !validInstance(instance) || portNumber == 0 {
		return fmt.Errorf("%w: instance %q on port %d", ErrBadName, instance, portNumber)
	}
	r, err := newResponder(s.service, instance, RandomName(), portNumber)
	if err != nil {
		return err
	}
	a := advertiser{links: newLinks(s, false), responder: r, voices: make(map[*conn]*voice)}
	defer a.links.close()
	return a.run(ctx)
}

type advertiser struct {
	links     *links
	responder *responder
	voices    map[*conn]*voice
	limiter   limiter
}

// A voice is what one socket has to say to the group.
type voice struct {
	pending  wants
	due      time.Time // of pending
	last     time.Time // when it spoke last
	announce int       // announcements to go
	tries    int
	next     time.Time // of the next announcement
}

func (a *advertiser) run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var poll time.Time
	first := true
	for ctx.Err() == nil {
		now := time.Now()
		if !now.Before(poll) {
			poll = now.Add(a.links.every)
			if err := a.poll(now); first && err != nil {
				return err
			}
		}
		next := poll
		sent, errs := 0, []error(nil)
		for c, v := range a.voices {
			if v.announce > 0 && !now.Before(v.next) {
				switch err := a.announce(now, c, v); {
				case err == nil:
					sent++
				case c.link.denied(err):
					errs = append(errs, err)
				}
			}
			if v.pending != 0 && !now.Before(v.due) {
				w := v.pending
				v.pending, v.last = 0, now
				a.send(c, a.responder.message(w, c.link.addrs(), modeNormal).encode(false), netip.AddrPort{})
			}
			if v.announce > 0 {
				next = earlier(next, v.next)
			}
			if v.pending != 0 {
				next = earlier(next, v.due)
			}
		}
		if err := errors.Join(errs...); first && sent == 0 && err != nil {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		first = first && !a.links.lead()
		timer.Reset(time.Until(next))
		select {
		case <-ctx.Done():
		case <-timer.C:
		case ev := <-a.links.events:
			a.receive(ev)
		}
	}
	for c, v := range a.voices {
		if !v.last.IsZero() {
			a.send(c, a.responder.message(wantAll, c.link.addrs(), modeGoodbye).encode(false), netip.AddrPort{})
		}
	}
	return nil
}

// poll announces on the sockets of links that are new or changed. The flush bit
// makes others forget the addresses that are no more (RFC 6762 section 8.4).
func (a *advertiser) poll(now time.Time) error {
	fresh, _, err := a.links.poll()
	for _, l := range fresh {
		for _, c := range l.conns {
			v := a.voices[c]
			if v == nil {
				v = &voice{}
				a.voices[c] = v
			}
			v.announce, v.tries, v.next = announcements, announceTries, later(now, v.last.Add(announceEvery))
		}
	}
	for c := range a.voices {
		if c.link.conns[c.slot] != c || a.links.all[c.link.index] != c.link {
			delete(a.voices, c)
		}
	}
	return err
}

func (a *advertiser) announce(now time.Time, c *conn, v *voice) error {
	err := a.send(c, a.responder.message(wantAll, c.link.addrs(), modeNormal).encode(false), netip.AddrPort{})
	v.next = now.Add(announceEvery)
	v.tries--
	switch {
	case err == nil:
		v.announce--
		v.last = now
	case v.tries == 0:
		v.announce = 0
	}
	return err
}

func (a *advertiser) receive(ev event) {
	if ev.err != nil {
		a.links.drop(ev.conn, ev.err)
		delete(a.voices, ev.conn)
		return
	}
	c := ev.conn
	v := a.voices[c]
	if v == nil || ev.msg.response() || ev.src.Port() == 0 || !c.link.local(ev) {
		return
	}
	now := time.Now()
	addrs := c.link.addrs()
	re := a.responder.reply(ev.msg, addrs, ev.src.Port() != port)
	if re.unicast != 0 && a.limiter.allow(now, ev.src.Addr()) {
		a.send(c, a.responder.respond(ev.msg.id, re, addrs), ev.src)
	}
	if re.multicast != 0 {
		due := now
		if re.multicast&wantShared != 0 {
			// RFC 6762 section 6: others may answer this too.
			due = now.Add(20*time.Millisecond + rand.N(100*time.Millisecond))
		}
		due = later(due, v.last.Add(multicastEvery))
		if v.pending == 0 || due.Before(v.due) {
			v.due = due
		}
		v.pending |= re.multicast
	}
}

func (a *advertiser) send(c *conn, b []byte, dst netip.AddrPort) error {
	err := c.send(b, dst)
	if err != nil {
		a.links.log.Debug("dnssd: answer not sent", "interface", c.link.name, "socket", c.slot.String(), "error", err)
		return fmt.Errorf("%s: %w", c.link.name, err)
	}
	return nil
}

// addrs returns the addresses of l to advertise, at most maxAddresses, which is
// what a browser keeps.
func (l *link) addrs() []netip.Addr {
	var out []netip.Addr
	for _, p := range l.prefixes { // IPv4 first, by their order
		if len(out) < maxAddresses {
			out = append(out, p.Addr())
		}
	}
	return out
}
