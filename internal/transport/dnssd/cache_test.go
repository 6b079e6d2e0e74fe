// SPDX-License-Identifier: BSD-3-Clause

package dnssd

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func at(seconds float64) time.Time {
	return epoch.Add(time.Duration(seconds * float64(time.Second)))
}

var testLink = &link{index: 3, name: "net3", prefixes: []netip.Prefix{
	netip.MustParsePrefix("10.0.0.99/8"), netip.MustParsePrefix("fe80::99/64"), netip.MustParsePrefix("2001:db8::99/64")}}

func testCache(t testing.TB) *cache {
	return newCache(mustName(t, "_vmuxsigner", "_tcp", "local"), testLink.index, testLink.usableAddr)
}

func ip(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}) }

// says is a whole answer as a responder sends it.
func says(t testing.TB, instance string, portNumber uint16, addrs ...netip.Addr) *message {
	r := testResponder(t, instance)
	r.port = portNumber
	return r.message(wantAll, addrs, modeNormal)
}

func goodbye(t testing.TB, instance string) *message {
	return testResponder(t, instance).message(wantAll, nil, modeGoodbye)
}

func checkCaps(t testing.TB, c *cache) {
	t.Helper()
	if len(c.sources) > maxSources {
		t.Fatalf("%d sources", len(c.sources))
	}
	for _, s := range c.sources {
		if len(s.instances) > maxInstances || len(s.instances) == 0 {
			t.Fatalf("%d instances of %s", len(s.instances), s.addr)
		}
		for _, in := range s.instances {
			if len(in.addrs) > maxAddresses {
				t.Fatalf("%d addresses of %s", len(in.addrs), in.label)
			}
		}
	}
}

// expect checks that claims are of these instances with these ports.
func expect(t testing.TB, claims []Claim, want ...string) {
	t.Helper()
	var got []string
	for _, c := range claims {
		got = append(got, fmt.Sprintf("%s %s %v", c.Source, c.Instance, c.Addrs))
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Fatalf("got %q\nwant %q", got, want)
	}
}

func TestReportsNewAndChanged(t *testing.T) {
	t.Parallel()
	c := testCache(t)
	expect(t, c.apply(at(0), ip(1), says(t, "a", 1, ip(1))), "10.0.0.1 a [10.0.0.1:1]")
	expect(t, c.apply(at(1), ip(1), says(t, "a", 1, ip(1))))
	expect(t, c.apply(at(2), ip(1), says(t, "A", 1, ip(1)))) // case is not a difference
	expect(t, c.apply(at(3), ip(1), says(t, "a", 2, ip(1))), "10.0.0.1 a [10.0.0.1:2]")
	expect(t, c.apply(at(4), ip(1), says(t, "a", 2, ip(2), ip(1))), "10.0.0.1 a [10.0.0.1:2 10.0.0.2:2]")
	// The flush bit takes what is older than a second and not said again.
	expect(t, c.apply(at(4.5), ip(1), says(t, "a", 2, ip(2))))
	expect(t, c.apply(at(5.6), ip(1), says(t, "a", 2, ip(2))), "10.0.0.1 a [10.0.0.2:2]")
	// But of its own family only, and a new host does not inherit addresses.
	v6 := netip.MustParseAddr("2001:db8::1")
	expect(t, c.apply(at(5.7), ip(1), says(t, "a", 2, ip(2), v6)), "10.0.0.1 a [10.0.0.2:2 [2001:db8::1]:2]")
	expect(t, c.apply(at(5.8), ip(1), says(t, "b", 2, ip(2), v6)), "10.0.0.1 b [10.0.0.2:2 [2001:db8::1]:2]")
	r := testResponder(t, "b")
	r.port = 2
	expect(t, c.apply(at(5.9), ip(1), &message{answers: r.records(wantA, []netip.Addr{ip(2)}, modeNormal)}))
	r.host = mustName(t, "other", "local")
	expect(t, c.apply(at(5.9), ip(1), &message{answers: r.records(wantSRV, nil, modeNormal)}))
	expect(t, c.apply(at(5.9), ip(1), &message{answers: r.records(wantA, []netip.Addr{ip(3)}, modeNormal)}), "10.0.0.1 b [10.0.0.3:2]")
	expect(t, c.apply(at(7), ip(1), &message{answers: testResponder(t, "a").records(wantA, []netip.Addr{ip(2)}, modeNormal)}))
	// Another source has its own say, and takes none of this.
	expect(t, c.apply(at(7), ip(9), says(t, "a", 9, ip(9))), "10.0.0.9 a [10.0.0.9:9]")
	expect(t, c.apply(at(7), ip(9), goodbye(t, "a")))
	expect(t, c.apply(at(7), ip(1), says(t, "a", 2, ip(2), v6)))
}

func TestForgets(t *testing.T) {
	t.Parallel()
	t.Run("goodbye", func(t *testing.T) {
		t.Parallel()
		c := testCache(t)
		expect(t, c.apply(at(0), ip(1), says(t, "a", 1, ip(1))), "10.0.0.1 a [10.0.0.1:1]")
		expect(t, c.apply(at(1), ip(1), goodbye(t, "a")))
		if len(c.sources) != 0 {
			t.Error("not forgotten")
		}
		expect(t, c.apply(at(2), ip(1), says(t, "a", 1, ip(1))), "10.0.0.1 a [10.0.0.1:1]")
	})
	t.Run("expiry", func(t *testing.T) {
		t.Parallel()
		c := testCache(t)
		c.apply(at(0), ip(1), says(t, "a", 1, ip(1)))
		if !c.wake.Equal(at(hostTTL)) {
			t.Fatalf("wake at %s", c.wake)
		}
		expect(t, c.apply(at(hostTTL-1), ip(1), says(t, "a", 1, ip(1)))) // lives on
		c.maintain(at(hostTTL))
		expect(t, c.apply(at(2*hostTTL-2), ip(1), says(t, "a", 1, ip(1))))
		expect(t, c.apply(at(3*hostTTL), ip(1), says(t, "a", 1, ip(1))), "10.0.0.1 a [10.0.0.1:1]")
		c.maintain(at(2 * float64(otherTTL)))
		if len(c.sources) != 0 || !c.wake.IsZero() {
			t.Errorf("not forgotten: %v", c.sources)
		}
	})
	t.Run("longest TTL", func(t *testing.T) {
		t.Parallel()
		c := testCache(t)
		m := says(t, "a", 1, ip(1))
		for _, rs := range [][]record{m.answers, m.additionals} {
			for i := range rs {
				rs[i].ttl = 1<<32 - 1
			}
		}
		c.apply(at(0), ip(1), m)
		c.maintain(at(maxTTL.Seconds()))
		if len(c.sources) != 0 {
			t.Error("not forgotten")
		}
	})
}

func TestAddressesToBeDialled(t *testing.T) {
	t.Parallel()
	parse := netip.MustParseAddr
	c := testCache(t)
	claims := c.apply(at(0), parse("fe80::5%net3"), says(t, "a", 1,
		parse("8.8.8.8"), parse("127.0.0.1"), parse("224.0.0.251"), parse("0.0.0.0"), ip(1), parse("::1"),
		parse("::ffff:10.0.0.1"), parse("2001:db8:1::1")))
	expect(t, claims, "fe80::5%net3 a [10.0.0.1:1]")
	claims = c.apply(at(2), parse("fe80::5%net3"), says(t, "a", 1, ip(1), parse("fe80::5"), parse("2001:db8::1")))
	expect(t, claims, "fe80::5%net3 a [[fe80::5%net3]:1 10.0.0.1:1 [2001:db8::1]:1]")
	odd := &link{name: "odd", prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.5/8")}}
	if a, ok := odd.usableAddr(parse("127.0.0.1")); ok {
		t.Errorf("%s of this host may be dialled", a)
	}
	if claims[0].Interface != testLink.index {
		t.Errorf("interface %d", claims[0].Interface)
	}
}

func TestIgnores(t *testing.T) {
	t.Parallel()
	service := mustName(t, "_vmuxsigner", "_tcp", "local")
	other := mustName(t, "_other", "_tcp", "local")
	change := func(f func(*record)) *message {
		m := says(t, "a", 1, ip(1))
		for _, rs := range [][]record{m.answers, m.additionals} {
			for i := range rs {
				f(&rs[i])
			}
		}
		return m
	}
	bad := func(label string) *message {
		return change(func(r *record) {
			n := mustName(t, label, "_vmuxsigner", "_tcp", "local")
			if r.typ == typePTR {
				r.target = n
			} else if r.typ == typeSRV {
				r.name = n
			}
		})
	}
	for what, m := range map[string]*message{
		"other service":     change(func(r *record) { r.name, r.target = r.name+"", other }),
		"PTR elsewhere":     change(func(r *record) { r.target = service }),
		"port 0":            says(t, "a", 0, ip(1)),
		"target root":       change(func(r *record) { r.target = map[bool]name{true: "\x00", false: r.target}[r.typ == typeSRV] }),
		"escape in name":    bad("\x1b[2J"),
		"bidi in name":      bad("a\u202eb"),
		"not UTF-8":         bad("a\xff"),
		"no address":        says(t, "a", 1),
		"goodbye only":      goodbye(t, "a"),
		"another's address": change(func(r *record) { r.name = map[bool]name{true: other, false: r.name}[r.typ == typeA] }),
		"nothing":           {flags: flagResponse},
		"SRV without PTR":   testResponder(t, "a").message(wantSRV, []netip.Addr{ip(1)}, modeNormal),
		"PTR without SRV":   {answers: testResponder(t, "a").records(wantPTR, nil, modeNormal)},
	} {
		if claims := testCache(t).apply(at(0), ip(1), m); claims != nil {
			t.Errorf("%s: %v", what, claims)
		}
		// Nor does it take anything from another source.
		c := testCache(t)
		c.apply(at(0), ip(1), says(t, "a", 1, ip(1)))
		c.apply(at(0), ip(2), m)
		expect(t, c.apply(at(1), ip(1), says(t, "a", 1, ip(1))))
	}
}

func TestCaps(t *testing.T) {
	t.Parallel()
	t.Run("one source", func(t *testing.T) {
		t.Parallel()
		c := testCache(t)
		c.apply(at(0), ip(1), says(t, "phone", 1, ip(1)))
		reports := 0
		for i := range 1000 {
			now := at(float64(i) / 100)
			reports += len(c.apply(now, ip(2), says(t, fmt.Sprintf("rogue-%d", i), 2, ip(2))))
			checkCaps(t, c)
		}
		if limit := reportBurst + int(10*time.Second/reportEvery) + 1; reports > limit {
			t.Errorf("one source caused %d reports in 10 s, limit %d", reports, limit)
		}
		expect(t, c.apply(at(10), ip(1), says(t, "phone", 1, ip(1)))) // still known
	})
	t.Run("one instance", func(t *testing.T) {
		t.Parallel()
		c := testCache(t)
		for i := range 1000 {
			m := says(t, "a", 1, ip(2*i), ip(2*i+1))
			for j := range m.answers {
				m.answers[j].class = classIN
			}
			c.apply(at(float64(i)/100), ip(1), m)
			checkCaps(t, c)
		}
		many := make([]netip.Addr, 100)
		for i := range many {
			many[i] = ip(5000 + i)
		}
		c.apply(at(20), ip(1), says(t, "a", 1, many...))
		checkCaps(t, c)
	})
	t.Run("many sources", func(t *testing.T) {
		t.Parallel()
		c := testCache(t)
		c.apply(at(0), ip(1), says(t, "phone", 1, ip(1)))
		c.round++
		c.apply(at(1), ip(1), says(t, "phone", 1, ip(1)))
		for i := range 1000 {
			src := ip(1000 + i)
			// A newcomer is always heard, however full it is.
			expect(t, c.apply(at(2), src, says(t, "phone", 2, src)), fmt.Sprintf("%s phone [%s:2]", src, src))
			checkCaps(t, c)
		}
		expect(t, c.apply(at(3), ip(1), says(t, "phone", 1, ip(1)))) // established: kept
		// Rogues that answer every round as well can push it out; then it is
		// reported again.
		for i := range maxSources {
			for range 2 {
				c.round++
				c.apply(at(10), ip(5000+i), says(t, "phone", 2, ip(5000+i)))
				checkCaps(t, c)
			}
		}
		expect(t, c.apply(at(20), ip(1), says(t, "phone", 1, ip(1))), "10.0.0.1 phone [10.0.0.1:1]")
	})
}

// A source that changes too fast is reported late and with its last state.
func TestReportsLate(t *testing.T) {
	t.Parallel()
	c := testCache(t)
	reports := 0
	for i := range 100 {
		reports += len(c.apply(at(0), ip(1), says(t, "a", uint16(1+i), ip(1))))
	}
	if reports != reportBurst {
		t.Errorf("%d reports at once, want %d", reports, reportBurst)
	}
	if c.wake.After(at(1)) {
		t.Fatalf("wakes at %s", c.wake)
	}
	claims, _, _ := c.maintain(c.wake)
	expect(t, claims, "10.0.0.1 a [10.0.0.1:100]")
}

func TestAsksForWhatIsMissing(t *testing.T) {
	t.Parallel()
	r := testResponder(t, "a")
	c := testCache(t)
	c.apply(at(0), ip(1), &message{answers: r.records(wantPTR, nil, modeNormal)})
	if !c.wake.Equal(at(0)) {
		t.Fatalf("wakes at %s", c.wake)
	}
	_, qs, group := c.maintain(at(0))
	if !slices.Equal(qs, []question{{r.instance, typeSRV, classIN}}) || group {
		t.Fatalf("asks %v, group %v", qs, group)
	}
	if _, qs, _ := c.maintain(at(0.9)); qs != nil {
		t.Fatalf("asks again at once: %v", qs)
	}
	if _, qs, group := c.maintain(at(1)); len(qs) != 1 || !group {
		t.Fatalf("asks %v, group %v", qs, group)
	}
	c.apply(at(2), ip(1), &message{answers: r.records(wantSRV, nil, modeNormal)})
	_, qs, _ = c.maintain(at(5))
	if !slices.Equal(qs, []question{{r.host, typeA, classIN}, {r.host, typeAAAA, classIN}}) {
		t.Fatalf("asks %v", qs)
	}
	// Addresses come from the same source only.
	expect(t, c.apply(at(6), ip(2), &message{answers: r.records(wantA, []netip.Addr{ip(2)}, modeNormal)}))
	asked := 0
	for i := range 60 {
		_, qs, _ := c.maintain(at(7 + float64(i)))
		asked += len(qs)
	}
	if asked != 2 {
		t.Errorf("asked %d more questions, want 2, for %d asks in all", asked, maxAsks)
	}
	expect(t, c.apply(at(70), ip(1), &message{answers: r.records(wantA, []netip.Addr{ip(1)}, modeNormal)}), "10.0.0.1 a [10.0.0.1:4711]")
}

func TestQuestionsAreBounded(t *testing.T) {
	t.Parallel()
	c := testCache(t)
	for i := range maxSources {
		r := testResponder(t, "a")
		if i > 0 { // two of one name are asked about once
			r.host = mustName(t, fmt.Sprintf("host-%d", i/2), "local")
		}
		c.apply(at(0), ip(i), &message{answers: r.records(wantPTR|wantSRV, nil, modeNormal)})
	}
	asked := make(map[question]bool)
	for i := range 1000 {
		_, qs, _ := c.maintain(at(float64(i) / 1000))
		if len(qs) > maxQuestions {
			t.Fatalf("%d questions", len(qs))
		}
		for i, q := range qs {
			asked[q] = true
			if slices.Contains(qs[:i], q) {
				t.Fatalf("asks twice in one packet: %q", q.name)
			}
		}
	}
	if want := 2 * (1 + maxSources/2); len(asked) != want {
		t.Errorf("%d different questions, want %d", len(asked), want)
	}
}

func TestInterval(t *testing.T) {
	t.Parallel()
	var got []float64
	sum := 0.0
	for i := range 7 {
		got = append(got, sum)
		sum += interval(i).Seconds()
	}
	if want := []float64{0, 1, 4, 13, 40, 100, 160}; !slices.Equal(got, want) {
		t.Errorf("queries at %v s, want %v", got, want)
	}
	if interval(1<<40) != time.Minute {
		t.Error("not bounded")
	}
}

// The order and the origin of packets make no difference to the bounds.
func TestCacheAnyOrder(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	c := testCache(t)
	now := at(0)
	for range 3000 {
		now = now.Add(time.Duration(rng.Int64N(int64(200 * time.Millisecond))))
		src := ip(rng.IntN(200))
		r := testResponder(t, fmt.Sprint(rng.IntN(12)))
		r.port = uint16(rng.IntN(3))
		var addrs []netip.Addr
		for range rng.IntN(4) {
			addrs = append(addrs, ip(rng.IntN(20)))
		}
		m := r.message(wants(rng.IntN(64)), addrs, mode(rng.IntN(3)))
		for _, claim := range c.apply(now, src, m) {
			if claim.Source != src || len(claim.Addrs) == 0 || len(claim.Addrs) > maxAddresses || claim.Addrs[0].Port() == 0 {
				t.Fatalf("claim %+v", claim)
			}
		}
		checkCaps(t, c)
		if rng.IntN(5) == 0 {
			c.round++
			c.maintain(now)
			checkCaps(t, c)
		}
	}
}
