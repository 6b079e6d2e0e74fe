// SPDX-License-Identifier: BSD-3-Clause

package dnssd

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
)

func TestReply(t *testing.T) {
	t.Parallel()
	r := testResponder(t, "vmux-1")
	ask := func(n name, typ, class uint16) *message {
		return &message{questions: []question{{n, typ, class}}}
	}
	upper := mustName(t, "_VMUXSIGNER", "_TCP", "LOCAL")
	knows := func(w wants, share uint32) *message {
		m := &message{questions: []question{{r.service, typePTR, classIN}, {r.instance, typeSRV, classIN},
			{r.host, typeA, classIN}, {r.host, typeAAAA, classIN}, {r.meta, typePTR, classIN}}}
		m.answers = r.records(w, testAddrs, modeNormal)
		for i := range m.answers {
			m.answers[i].ttl /= share
		}
		return m
	}
	all := wantMeta | wantPTR | wantSRV | wantA | wantAAAA
	forged := knows(wantSRV, 1)
	forged.answers[0].port++
	for what, tt := range map[string]struct {
		m      *message
		legacy bool
		want   reply
	}{
		"service":                 {ask(r.service, typePTR, classIN), false, reply{multicast: wantPTR}},
		"in upper case":           {ask(upper, typePTR, classIN), false, reply{multicast: wantPTR}},
		"QU":                      {ask(r.service, typePTR, classIN|topBit), false, reply{unicast: wantPTR}},
		"legacy":                  {ask(upper, typePTR, classIN), true, reply{unicast: wantPTR, legacy: []question{{upper, typePTR, classIN}}}},
		"service types":           {ask(r.meta, typePTR, classIN), false, reply{multicast: wantMeta}},
		"SRV":                     {ask(r.instance, typeSRV, classANY), false, reply{multicast: wantSRV}},
		"all of the instance":     {ask(r.instance, typeANY, classIN), false, reply{multicast: wantSRV | wantTXT}},
		"all of the host":         {ask(r.host, typeANY, classIN), false, reply{multicast: wantA | wantAAAA}},
		"other class":             {ask(r.service, typePTR, 3), false, reply{}},
		"other type":              {ask(r.service, typeSRV, classIN), false, reply{}},
		"other name":              {ask(mustName(t, "a", "local"), typeANY, classIN), false, reply{}},
		"other name, legacy":      {ask(mustName(t, "a", "local"), typeANY, classIN), true, reply{}},
		"knows all":               {knows(all, 1), false, reply{}},
		"knows all, half its TTL": {knows(all, 2), false, reply{}},
		"knows all, less":         {knows(all, 3), false, reply{multicast: all}},
		"knows all, legacy":       {knows(all, 1), true, reply{unicast: all, legacy: knows(0, 1).questions}},
		"knows the PTR":           {knows(wantPTR, 1), false, reply{multicast: all &^ wantPTR}},
		"knows another port":      {forged, false, reply{multicast: all}},
	} {
		got := r.reply(tt.m, testAddrs, tt.legacy)
		if got.unicast != tt.want.unicast || got.multicast != tt.want.multicast || !slices.Equal(got.legacy, tt.want.legacy) {
			t.Errorf("%s: got %+v, want %+v", what, got, tt.want)
		}
	}
	// One of two IPv6 addresses is not all of them.
	m := knows(wantA|wantAAAA, 1)
	m.answers = m.answers[:2]
	if got := r.reply(m, testAddrs, false); got.multicast != all&^wantA {
		t.Errorf("knows one address of two: %+v", got)
	}
	if got := r.reply(ask(r.host, typeAAAA, classIN), testAddrs[:1], false); got.multicast != 0 {
		t.Errorf("answers for a family that it has not: %+v", got)
	}
}

// An answer is small whatever is asked, so nobody is flooded through us.
func TestLegacyAnswerIsSmall(t *testing.T) {
	t.Parallel()
	r := testResponder(t, "vmux-1")
	m := &message{id: 9}
	for range maxKept {
		m.questions = append(m.questions, question{r.service, typePTR, classIN}, question{r.host, typeANY, classIN})
	}
	addrs := make([]netip.Addr, maxAddresses)
	for i := range addrs {
		addrs[i] = netip.AddrFrom16([16]byte{0x20, 15: byte(i)})
	}
	b := r.respond(m.id, r.reply(m, addrs, true), addrs)
	if len(b) > 512 {
		t.Errorf("%d octets", len(b))
	}
	got, err := parse(b)
	if err != nil || got.id != 9 || len(got.questions) != 2 {
		t.Fatalf("got %+v, %v", got, err)
	}
	for _, rec := range slices.Concat(got.answers, got.additionals) {
		if rec.ttl > legacyTTL || rec.flush() {
			t.Errorf("legacy answer with TTL %d, flush %v", rec.ttl, rec.flush())
		}
	}
}

func TestLimiter(t *testing.T) {
	t.Parallel()
	var l limiter
	count := func(now time.Time, src func(int) netip.Addr) (n int) {
		for i := range 1000 {
			if l.allow(now, src(i)) {
				n++
			}
		}
		return n
	}
	if n := count(at(0), func(int) netip.Addr { return ip(1) }); n != limitPerSource {
		t.Errorf("one source got %d answers", n)
	}
	if n := count(at(0.5), ip); n != limitTotal-limitPerSource || len(l.sources) > limitTotal {
		t.Errorf("many sources got %d answers, %d remembered", n, len(l.sources))
	}
	if !l.allow(at(1), ip(1)) {
		t.Error("nothing a second later")
	}
}

func TestWhichInterfaces(t *testing.T) {
	t.Parallel()
	const up, multi, lo, p2p = net.FlagUp, net.FlagMulticast, net.FlagLoopback, net.FlagPointToPoint
	for flags, want := range map[net.Flags][2]bool{ // without and with Loopback
		up | multi:       {true, false},
		multi:            {},
		up:               {},
		up | multi | p2p: {},
		up | lo:          {false, true},
		up | lo | multi:  {false, true},
		lo:               {},
	} {
		for i, loopback := range []bool{false, true} {
			ls := newLinks(settings{loopback: loopback}, false)
			if got := ls.usable(net.Interface{Flags: flags}); got != want[i] {
				t.Errorf("flags %s, Loopback %v: %v", flags, loopback, got)
			}
		}
	}
}

func TestOnLink(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]bool{
		"10.1.2.3": true, "11.0.0.1": false, "169.254.1.1": true,
		"fe80::1%net3": true, "2001:db8::5": true, "2001:db8:1::5": false, "::1": false, "127.0.0.1": false,
	} {
		if got := testLink.onLink(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
	src := func(addr string, arrived int) event {
		return event{src: netip.AddrPortFrom(netip.MustParseAddr(addr), port), arrived: arrived}
	}
	for _, tt := range []struct {
		ev   event
		want bool
	}{
		{src("10.1.2.3", 3), true},
		{src("10.1.2.3", 1), false}, // came in elsewhere
		{src("10.0.0.99", 1), true}, // this host to itself
		{src("11.1.2.3", 3), false},
		{src("fe80::99%net3", 1), true},
	} {
		if got := testLink.local(tt.ev); got != tt.want {
			t.Errorf("from %s over %d: %v", tt.ev.src, tt.ev.arrived, got)
		}
	}
	for dst, want := range map[string]string{
		"10.1.1.1": "10.0.0.99", "fe80::1": "fe80::99", "2001:db8::1": "2001:db8::99", "ff02::fb": "fe80::99", "224.0.0.251": "10.0.0.99",
	} {
		d := netip.MustParseAddr(dst)
		if got, ok := testLink.source(d.Is6(), d); !ok || got.String() != want {
			t.Errorf("source for %s: %s", dst, got)
		}
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	for _, service := range []string{"vmux._tcp", "_vmux", "_vmux._tcp.local", "_._tcp", "_vmux._sctp", "._tcp", "_vmux._tcp."} {
		if _, err := (Options{Service: service}).settings(); err == nil {
			t.Errorf("service %q is let through", service)
		}
	}
	s, err := Options{}.settings()
	if err != nil || s.service != "\x0b_vmuxsigner\x04_tcp\x05local\x00" || s.every != DefaultPoll || s.loopback {
		t.Errorf("defaults: %+v, %v", s, err)
	}
}
