// SPDX-License-Identifier: BSD-3-Clause

package dnssd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// patience is what a test that fails waits for something that does not come.
const patience = 20 * time.Second

// TestMain makes the test binary a responder when asked to, for the other end
// of a network: "advertise" with the service, instance and port as arguments, until its
// input ends.
func TestMain(m *testing.M) {
	if os.Getenv("VMUX_DNSSD_TEST") == "advertise" {
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			io.Copy(io.Discard, os.Stdin)
			cancel()
		}()
		n, _ := strconv.Atoi(os.Args[3])
		if err := Advertise(ctx, Options{Service: os.Args[1], Poll: 20 * time.Millisecond}, os.Args[2], uint16(n)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// onLo is a service that no other test has, on loopback only.
func onLo() Options {
	return Options{Service: "_" + strings.ReplaceAll(RandomName(), "-", "") + "._tcp", Loopback: true, Poll: 50 * time.Millisecond}
}

// A browse is a running Browse and what it found.
type browse struct {
	t      testing.TB
	claims chan Claim
	cancel func()
	done   chan error
}

func startBrowse(t testing.TB, o Options) *browse {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	b := &browse{t: t, claims: make(chan Claim, 10000), cancel: cancel, done: make(chan error, 1)}
	go func() { b.done <- Browse(ctx, o, func(c Claim) { b.claims <- c }) }()
	t.Cleanup(b.stop)
	return b
}

func (b *browse) stop() {
	b.t.Helper()
	b.cancel()
	select {
	case err := <-b.done:
		b.done <- nil
		if err != nil {
			b.t.Errorf("Browse: %v", err)
		}
	case <-time.After(patience):
		b.t.Error("Browse does not end")
	}
}

// want waits for a claim for which ok is true.
func (b *browse) want(what string, ok func(Claim) bool) Claim {
	b.t.Helper()
	timeout := time.After(patience)
	var seen []Claim
	for {
		select {
		case c := <-b.claims:
			if ok(c) {
				return c
			}
			seen = append(seen, c)
		case err := <-b.done:
			b.done <- nil
			b.t.Fatalf("%s: Browse ended: %v", what, err)
		case <-timeout:
			b.t.Fatalf("%s: not reported; reported was %+v", what, seen)
		}
	}
}

func claims(instance string, portNumber uint16) func(Claim) bool {
	return func(c Claim) bool { return c.Instance == instance && c.Addrs[0].Port() == portNumber }
}

// startAdvertise returns a function that ends it and waits for that.
func startAdvertise(t testing.TB, o Options, instance string, portNumber uint16) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Advertise(ctx, o, instance, portNumber) }()
	stop = sync.OnceFunc(func() {
		t.Helper()
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Advertise: %v", err)
			}
		case <-time.After(patience):
			t.Error("Advertise does not end")
		}
	})
	t.Cleanup(stop)
	return stop
}

func loopback(t testing.TB) net.Interface {
	t.Helper()
	ifis, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(ifis, func(i net.Interface) bool { return i.Flags&net.FlagLoopback != 0 && i.Flags&net.FlagUp != 0 })
	if i < 0 {
		t.Skip("no loopback interface")
	}
	return ifis[i]
}

func TestFound(t *testing.T) {
	t.Parallel()
	for _, browseFirst := range []bool{false, true} {
		t.Run(fmt.Sprintf("browse first %v", browseFirst), func(t *testing.T) {
			t.Parallel()
			o, instance := onLo(), RandomName()
			var b *browse
			if browseFirst {
				b = startBrowse(t, o)
			}
			startAdvertise(t, o, instance, 4711)
			if !browseFirst {
				b = startBrowse(t, o)
			}
			c := b.want("the instance", claims(instance, 4711))
			if c.Interface != loopback(t).Index || !c.Source.IsLoopback() || !slices.Contains(c.Addrs, netip.AddrPortFrom(c.Source, 4711)) || c.Addrs[0].Addr() != c.Source {
				t.Errorf("claim %+v", c)
			}
		})
	}
}

func TestSeveralOnOneHost(t *testing.T) {
	t.Parallel()
	o := onLo()
	b := startBrowse(t, o)
	want := make(map[string]bool)
	for i := range 3 {
		instance := RandomName()
		want[instance] = true
		startAdvertise(t, o, instance, uint16(1+i))
	}
	for len(want) > 0 {
		c := b.want("one of three", func(c Claim) bool { return want[c.Instance] })
		delete(want, c.Instance)
	}
}

func TestGoodbyeAndBack(t *testing.T) {
	t.Parallel()
	o, instance := onLo(), RandomName()
	b := startBrowse(t, o)
	for range 3 {
		// Reported each time, which it is not unless it was forgotten.
		stop := startAdvertise(t, o, instance, 4711)
		b.want("the instance", claims(instance, 4711))
		stop()
	}
	startAdvertise(t, o, instance, 4712)
	b.want("the new port", claims(instance, 4712))
}

func TestInterfaceComesLater(t *testing.T) {
	t.Parallel()
	lo := loopback(t)
	o, instance := onLo(), RandomName()
	startAdvertise(t, o, instance, 4711)
	var up, listable atomic.Bool
	polled := make(chan struct{}) // a receive is a poll that began after it
	o.Poll = time.Millisecond
	o.Interfaces = func() ([]net.Interface, error) {
		select {
		case polled <- struct{}{}:
		default:
		}
		switch {
		case up.Load():
			return []net.Interface{{Index: 1 << 30, Name: "gone", Flags: net.FlagUp | net.FlagLoopback}, lo}, nil
		case listable.Load():
			return nil, nil
		}
		return nil, errors.New("no list")
	}
	b := startBrowse(t, o)
	for range 2 { // and goes, and comes again
		for range 3 {
			<-polled
		}
		up.Store(true)
		b.want("the instance", claims(instance, 4711))
		listable.Store(true)
		up.Store(false)
	}
}

// Both ends of a context end it, at once and without error, with and without
// interfaces.
func TestContextEnds(t *testing.T) {
	t.Parallel()
	none := onLo()
	none.Interfaces = func() ([]net.Interface, error) { return nil, nil }
	for what, o := range map[string]Options{"lo": onLo(), "no interface": none} {
		for name, run := range map[string]func(context.Context) error{
			"Browse":    func(ctx context.Context) error { return Browse(ctx, o, func(Claim) {}) },
			"Advertise": func(ctx context.Context) error { return Advertise(ctx, o, "a", 1) },
		} {
			t.Run(name+" on "+what, func(t *testing.T) {
				t.Parallel()
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
				defer cancel()
				start := time.Now()
				if err := run(ctx); err != nil || ctx.Err() == nil {
					t.Errorf("deadline: %v", err)
				}
				ctx, cancel = context.WithCancel(t.Context())
				cancel()
				if err := run(ctx); err != nil {
					t.Errorf("cancel: %v", err)
				}
				if d := time.Since(start); d > patience/4 {
					t.Errorf("took %s", d)
				}
			})
		}
	}
}

func TestBadNames(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for what, err := range map[string]error{
		"service":       Browse(ctx, Options{Service: "x"}, nil),
		"service too":   Advertise(ctx, Options{Service: "x"}, "a", 1),
		"no instance":   Advertise(ctx, onLo(), "", 1),
		"control":       Advertise(ctx, onLo(), "a\n", 1),
		"long instance": Advertise(ctx, onLo(), strings.Repeat("x", 64), 1),
		"port":          Advertise(ctx, onLo(), "a", 0),
	} {
		if !errors.Is(err, ErrBadName) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A Mac says "no route to host" on interfaces that lead nowhere, too, and those are there when nothing else is.
func TestDenied(t *testing.T) {
	t.Parallel()
	nowhere, cable, network := []string{"fe80::1/64"}, []string{"169.254.0.1/16", "fe80::1/64"}, []string{"2001:db8::1/64", "fe80::1/64"}
	for _, tt := range []struct {
		prefixes []string
		err      error
		want     bool
	}{
		{nowhere, syscall.EHOSTUNREACH, false},
		{cable, syscall.EHOSTUNREACH, true},
		{network, syscall.EHOSTUNREACH, true},
		{nowhere, syscall.EPERM, true},
		{network, syscall.EACCES, true},
		{network, syscall.EADDRNOTAVAIL, false},
		{network, nil, false},
	} {
		var l link
		for _, p := range tt.prefixes {
			l.prefixes = append(l.prefixes, netip.MustParsePrefix(p))
		}
		if got := l.denied(errors.Join(tt.err)); got != tt.want {
			t.Errorf("%v with %v: %v", tt.err, tt.prefixes, got)
		}
	}
}

// A peer is a socket of the test on lo: the group's, or one of its own port.
func peer(t testing.TB, group bool) *conn {
	t.Helper()
	lo := loopback(t)
	prefixes, err := prefixesOf(lo)
	if err != nil {
		t.Fatal(err)
	}
	l := &link{index: lo.Index, name: lo.Name, loopback: true, prefixes: prefixes}
	c, err := newConn(l, &lo, slot{group: group})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	return c
}

// What is not an answer for us, on either socket, changes nothing.
func TestGarbage(t *testing.T) {
	t.Parallel()
	o, instance := onLo(), RandomName()
	b := startBrowse(t, o)
	startAdvertise(t, o, instance, 4711)
	b.want("the instance", claims(instance, 4711))
	junk := peer(t, true)
	packets := seeds(t)
	for range 300 {
		p := make([]byte, rand.N(1500))
		for i := range p {
			p[i] = byte(rand.Uint32())
		}
		packets = append(packets, p)
	}
	service, err := o.settings()
	if err != nil {
		t.Fatal(err)
	}
	whole, err := newResponder(service.service, instance, "host", 4713)
	if err != nil {
		t.Fatal(err)
	}
	answer := whole.message(wantAll, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, modeNormal).encode(false)
	for range 300 { // one octet wrong or cut short, which may still make sense
		p := slices.Clone(answer)
		p = p[:rand.N(len(p))]
		packets = append(packets, p)
	}
	for _, p := range packets {
		if err := junk.send(p, netip.AddrPort{}); err != nil {
			t.Fatal(err)
		}
	}
	// An answer from another port is none (RFC 6762 section 6).
	if err := peer(t, false).send(answer, netip.AddrPort{}); err != nil {
		t.Fatal(err)
	}
	// A last one that makes sense, to see that all before were read.
	last, err := newResponder(service.service, "last", "host", 4714)
	if err != nil {
		t.Fatal(err)
	}
	sent := last.message(wantAll, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, modeNormal).encode(false)
	timeout := time.After(patience)
	for {
		if err := junk.send(sent, netip.AddrPort{}); err != nil { // the queue may have been full
			t.Fatal(err)
		}
		select {
		case c := <-b.claims:
			if c.Instance == "last" {
				return
			}
			// By IPv6 as well as IPv4 is no change.
			if c.Instance != instance || c.Addrs[0].Port() != 4711 {
				t.Fatalf("garbage was reported: %+v", c)
			}
		case <-time.After(100 * time.Millisecond):
		case <-timeout:
			t.Fatal("not heard any more")
		}
	}
}

// A legacy resolver gets what it understands (RFC 6762 section 6.7), by the eyes of
// dnsmessage, and a flood of questions few answers.
func TestLegacyQuery(t *testing.T) {
	t.Parallel()
	o, instance := onLo(), RandomName()
	startAdvertise(t, o, instance, 4711)
	startBrowse(t, o).want("the instance", claims(instance, 4711))
	c := peer(t, false)
	ask := func(id uint16, n string) {
		t.Helper()
		q := dnsmessage.Message{Header: dnsmessage.Header{ID: id}, Questions: []dnsmessage.Question{{
			Name: dnsmessage.MustNewName(n), Type: dnsmessage.TypePTR, Class: dnsmessage.ClassINET}}}
		b, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.send(b, netip.AddrPort{}); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, maxPacket)
	receive := func(id uint16) (dnsmessage.Message, bool) {
		t.Helper()
		c.pc.SetReadDeadline(time.Now().Add(patience))
		for {
			n, from, err := c.pc.ReadFrom(buf)
			if err != nil {
				t.Fatal(err)
			}
			var m dnsmessage.Message
			if err := m.Unpack(buf[:n]); err != nil {
				t.Fatal(err)
			}
			if m.ID == id {
				return m, from.(*net.UDPAddr).Port == port
			}
		}
	}
	ask(77, o.Service+".local.")
	m, from := receive(77)
	if !from || len(m.Questions) != 1 || m.Questions[0].Name.String() != o.Service+".local." || len(m.Answers) != 1 || len(m.Additionals) < 3 {
		t.Fatalf("got %+v", m)
	}
	for _, rr := range slices.Concat(m.Answers, m.Additionals) {
		if rr.Header.TTL > 10 || rr.Header.Class != dnsmessage.ClassINET {
			t.Errorf("record %+v", rr.Header)
		}
	}
	// Others on this host may answer this as well.
	ask(78, "_services._dns-sd._udp.local.")
	for {
		m, _ := receive(78)
		if len(m.Answers) == 1 && m.Answers[0].Body.(*dnsmessage.PTRResource).PTR.String() == o.Service+".local." {
			break
		}
	}
	for range 1000 {
		ask(79, o.Service+".local.")
	}
	answers := 0
	c.pc.SetReadDeadline(time.Now().Add(300 * time.Millisecond)) // waits for what must not come
	for {
		n, _, err := c.pc.ReadFrom(buf)
		if err != nil {
			break
		}
		var m dnsmessage.Message
		if err := m.Unpack(buf[:n]); err != nil {
			t.Fatal(err)
		}
		if m.ID == 79 { // others still answer what was asked before
			answers++
		}
	}
	if answers > 3*limitPerSource { // it may span three windows
		t.Errorf("%d answers", answers)
	}
}

// answer makes c, a group socket, answer questions with what f gives, without a
// limit, until the test ends.
func answer(t testing.TB, c *conn, f func(ev event)) {
	t.Helper()
	events, done := make(chan event), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { c.read(events, done) })
	wg.Go(func() {
		for {
			select {
			case ev := <-events:
				if ev.err == nil && !ev.msg.response() {
					f(ev)
				}
			case <-done:
				return
			}
		}
	})
	t.Cleanup(func() {
		close(done)
		c.close()
		wg.Wait()
	})
}

// However many ask the group, it is answered once a second (RFC 6762 section 6).
func TestGroupIsAnsweredOnceASecond(t *testing.T) {
	t.Parallel()
	o, instance := onLo(), RandomName()
	startAdvertise(t, o, instance, 4711)
	startBrowse(t, o).want("the instance", claims(instance, 4711))
	s, err := o.settings()
	if err != nil {
		t.Fatal(err)
	}
	r, err := newResponder(s.service, instance, "host", 4711)
	if err != nil {
		t.Fatal(err)
	}
	c := peer(t, true)
	q := message{questions: []question{{r.instance, typeSRV, classIN}}}
	start := time.Now()
	for range 200 {
		if err := c.send(q.encode(false), netip.AddrPort{}); err != nil {
			t.Fatal(err)
		}
	}
	answers := 0
	buf := make([]byte, maxPacket)
	c.pc.SetReadDeadline(start.Add(1500 * time.Millisecond))
	for {
		n, _, err := c.pc.ReadFrom(buf)
		if err != nil {
			break
		}
		if m, err := parse(buf[:n]); err == nil && m.response() && slices.ContainsFunc(slices.Concat(m.answers, m.additionals),
			func(rec record) bool { return rec.name.key() == r.instance.key() }) {
			answers++
		}
	}
	// One at least; at most one in each second begun and the two announcements.
	if most := 3 + int(time.Since(start)/time.Second); answers < 1 || answers > most {
		t.Errorf("%d answers, want 1 to %d", answers, most)
	}
}

// BenchmarkBrowse is the time from Browse to the claim on loopback, interfaces
// and sockets included.
func BenchmarkBrowse(b *testing.B) {
	o := onLo()
	s, err := o.settings()
	if err != nil {
		b.Fatal(err)
	}
	r, err := newResponder(s.service, "vmux-1", "host", 4711)
	if err != nil {
		b.Fatal(err)
	}
	c := peer(b, true)
	addrs := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	answer(b, c, func(ev event) {
		if re := r.reply(ev.msg, addrs, ev.src.Port() != port); re.unicast != 0 {
			c.send(r.respond(ev.msg.id, re, addrs), ev.src)
		}
	})
	for b.Loop() {
		ctx, cancel := context.WithTimeout(b.Context(), patience)
		if err := Browse(ctx, o, func(Claim) { cancel() }); err != nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
			b.Fatal(err, ctx.Err())
		}
		cancel()
	}
}

func BenchmarkParse(b *testing.B) {
	p := seeds(b)[0]
	b.ReportAllocs()
	for b.Loop() {
		if _, err := parse(p); err != nil {
			b.Fatal(err)
		}
	}
}
