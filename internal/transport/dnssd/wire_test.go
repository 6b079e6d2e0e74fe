// SPDX-License-Identifier: BSD-3-Clause

package dnssd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

func mustName(t testing.TB, labels ...string) name {
	t.Helper()
	n, err := newName(labels...)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// message builds a packet by hand: header, then raw sections.
func rawMessage(flags uint16, counts [4]uint16, body ...byte) []byte {
	b := make([]byte, headerSize)
	binary.BigEndian.PutUint16(b[2:], flags)
	for i, c := range counts {
		binary.BigEndian.PutUint16(b[4+2*i:], c)
	}
	return append(b, body...)
}

func TestNewName(t *testing.T) {
	t.Parallel()
	if n := mustName(t, "a", "bc"); n != "\x01a\x02bc\x00" {
		t.Errorf("got %q", n)
	}
	if n := mustName(t, "A", "Éb"); n.key() != "\x01a\x03\xc3\x89b\x00" {
		t.Errorf("key %q: ASCII only is folded", n.key())
	}
	long := strings.Repeat("x", maxLabel)
	for _, labels := range [][]string{{""}, {long + "x"}, {long, long, long, long}} {
		if _, err := newName(labels...); !errors.Is(err, ErrBadName) {
			t.Errorf("newName(%q): %v", labels, err)
		}
	}
	if n := mustName(t, long, long, long, strings.Repeat("y", 61)); len(n) != maxName {
		t.Errorf("longest name has %d octets", len(n))
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	one := [4]uint16{0, 1}
	long := strings.Repeat("\x3f"+strings.Repeat("x", 63), 3) + "\x3e" + strings.Repeat("x", 62) + "\x00"
	for what, b := range map[string][]byte{
		"nothing":               {},
		"half a header":         make([]byte, 11),
		"opcode":                rawMessage(1<<11, [4]uint16{}),
		"response code":         rawMessage(flagResponse|3, [4]uint16{}),
		"missing question":      rawMessage(0, [4]uint16{1}),
		"missing answer":        rawMessage(0, one),
		"missing authority":     rawMessage(0, [4]uint16{0, 0, 1}),
		"question without type": rawMessage(0, [4]uint16{1}, 1, 'a', 0, 0, 1, 0),
		"label past the end":    rawMessage(0, [4]uint16{1}, 5, 'a', 0, 0, 1, 0, 1),
		"label type 01":         rawMessage(0, [4]uint16{1}, 0x41, 'a', 0, 0, 1, 0, 1),
		"label type 10":         rawMessage(0, [4]uint16{1}, 0x81, 'a', 0, 0, 1, 0, 1),
		"half a pointer":        rawMessage(0, [4]uint16{1}, 0xc0),
		"pointer to itself":     rawMessage(0, [4]uint16{1}, 0xc0, 12, 0, 1, 0, 1),
		"pointer into a loop":   rawMessage(0, [4]uint16{1}, 1, 'a', 0xc0, 12, 0, 1, 0, 1),
		"pointer forward":       rawMessage(0, [4]uint16{1}, 0xc0, 14, 0, 1, 0, 1),
		"pointer to the header": rawMessage(0, [4]uint16{1}, 0xc0, 2, 0, 1, 0, 1),
		"256 octets":            rawMessage(0, [4]uint16{1}, []byte(long+"\x00\x01\x00\x01")...),
		"A of 3":                rawMessage(0, one, 0, 0, 1, 0, 1, 0, 0, 0, 9, 0, 3, 1, 2, 3),
		"AAAA of 4":             rawMessage(0, one, 0, 0, 28, 0, 1, 0, 0, 0, 9, 0, 4, 1, 2, 3, 4),
		"PTR with more":         rawMessage(0, one, 0, 0, 12, 0, 1, 0, 0, 0, 9, 0, 2, 0, 0),
		"PTR past its data":     rawMessage(0, one, 0, 0, 12, 0, 1, 0, 0, 0, 9, 0, 2, 1, 'a', 0),
		"SRV of 6":              rawMessage(0, one, 0, 0, 33, 0, 1, 0, 0, 0, 9, 0, 6, 0, 0, 0, 0, 0, 1),
		"data past the end":     rawMessage(0, one, 0, 0, 16, 0, 1, 0, 0, 0, 9, 0, 9, 0),
		"too long":              make([]byte, maxPacket+1),
	} {
		if m, err := parse(b); err == nil {
			t.Errorf("%s: parsed as %+v", what, m)
		}
	}
}

func TestParsePassesOver(t *testing.T) {
	t.Parallel()
	b := rawMessage(flagResponse, [4]uint16{0, 4, 1, 1})
	b = append(b, 0, 0, 16, 0, 1, 0, 0, 0, 9, 0, 1, 0)          // TXT
	b = append(b, 0, 0, 1, 0, 3, 0, 0, 0, 9, 0, 1, 7)           // class CHAOS, and not an A at all
	b = append(b, 0, 0, 47, 0, 1, 0, 0, 0, 9, 0, 2, 0xff, 0xff) // NSEC
	b = append(b, 0, 0, 1, 0x80, 1, 0, 0, 0, 9, 0, 4, 10, 0, 0, 1)
	b = append(b, 0, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 10, 0, 0, 2) // authority
	b = append(b, 0, 0, 41, 5, 192, 0, 0, 0, 0, 0, 0, 'm', 'o') // OPT, then more
	m, err := parse(b)
	if err != nil {
		t.Fatal(err)
	}
	want := []record{{name: "\x00", typ: typeA, class: classIN | topBit, ttl: 9, addr: netip.MustParseAddr("10.0.0.1")}}
	if !reflect.DeepEqual(m.answers, want) || m.additionals != nil || !m.answers[0].flush() {
		t.Errorf("got %+v", m)
	}
}

func TestParseKeepsABoundedNumber(t *testing.T) {
	t.Parallel()
	const n = 300
	b := rawMessage(flagResponse, [4]uint16{n, n, 0, n})
	b = append(b, bytes.Repeat([]byte{0, 0, 12, 0, 1}, n)...)
	b = append(b, bytes.Repeat([]byte{0, 0, 12, 0, 1, 0, 0, 0, 1, 0, 1, 0}, 2*n)...)
	m, err := parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.questions) != maxKept || len(m.answers)+len(m.additionals) != maxKept {
		t.Errorf("kept %d, %d, %d", len(m.questions), len(m.answers), len(m.additionals))
	}
}

// Instance names are any text: RFC 6763 section 4.1.1.
func TestNamesWithDotsAndSpaces(t *testing.T) {
	t.Parallel()
	for _, label := range []string{"Anna's Phone 15.2", "Büro", `a\b`, "x"} {
		r := testResponder(t, label)
		m, err := parse(r.message(wantAll, testAddrs, modeNormal).encode(false))
		if err != nil {
			t.Fatal(err)
		}
		if got, _, _ := m.answers[0].target.cut(); got != label {
			t.Errorf("%q came back as %q", label, got)
		}
	}
}

var testAddrs = []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fe80::1"), netip.MustParseAddr("2001:db8::1")}

func testResponder(t testing.TB, instance string) *responder {
	t.Helper()
	r, err := newResponder(mustName(t, "_vmuxsigner", "_tcp", "local"), instance, "vmux-host", 4711)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// seeds are packets of every kind for the fuzzers.
func seeds(t testing.TB) [][]byte {
	r := testResponder(t, "vmux-1")
	q := message{id: 7, questions: []question{{r.service, typePTR, classIN | topBit}, {r.host, typeANY, classANY}}}
	out := [][]byte{
		r.message(wantAll|wantMeta, testAddrs, modeNormal).encode(false),
		r.message(wantAll, testAddrs, modeGoodbye).encode(false),
		r.message(wantAddrs, testAddrs, modeNormal).encode(false),
		r.respond(7, r.reply(&q, testAddrs, true), testAddrs),
		q.encode(false),
		rawMessage(0, [4]uint16{1}, 1, 'a', 0xc0, 12, 0, 1, 0, 1),
		rawMessage(flagResponse, [4]uint16{0, 0xffff, 0xffff, 0xffff}, 0xc0, 12),
	}
	for i := range out[0] {
		if i%17 == 0 {
			out = append(out, out[0][:i])
		}
	}
	return out
}

const wantAddrs = wantA | wantAAAA

// FuzzParse: whatever comes, parsing and all that acts on the result neither
// fail nor keep more than the bounds say, and what parses, prints and parses
// again is the same.
func FuzzParse(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b)
	}
	r := testResponder(f, "vmux-1")
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse(b)
		if err != nil {
			return
		}
		if len(m.questions) > maxKept || len(m.answers)+len(m.additionals) > maxKept {
			t.Fatal("too much kept")
		}
		for _, legacy := range []bool{false, true} {
			again, err := parse(m.encode(legacy))
			if err != nil {
				// Uncompressed SRV targets may exceed what is read.
				if len(m.encode(legacy)) <= maxPacket {
					t.Fatalf("encoded and not parsed: %v", err)
				}
				continue
			}
			if !reflect.DeepEqual(m, again) {
				t.Fatalf("%+v became %+v", m, again)
			}
			re := r.reply(m, testAddrs, legacy)
			if re.unicast != 0 {
				if out := r.respond(m.id, re, testAddrs); len(out) > 1200 {
					t.Fatalf("%d octets asked for, %d answered", len(b), len(out))
				}
			}
		}
		c := testCache(t)
		for range 2 {
			c.apply(epoch, testAddrs[0], m)
			c.maintain(epoch)
			checkCaps(t, c)
		}
	})
}

// FuzzResponder: what a responder sends comes back as it was, by our parser and
// by dnsmessage, and a cache makes a claim of it.
func FuzzResponder(f *testing.F) {
	f.Add("vmux-0123456789abcdef", uint16(1), []byte{10, 0, 0, 1}, uint8(0x3f), uint8(0), uint16(9))
	f.Add("Anna's Phone 1.5", uint16(65535), []byte("\xfe\x80 34567890123456\x0a123"), uint8(0x3f), uint8(1), uint16(1))
	f.Add("ü", uint16(22), []byte{}, uint8(4), uint8(2), uint16(0))
	f.Fuzz(func(t *testing.T, instance string, portNumber uint16, raw []byte, w uint8, how uint8, id uint16) {
		if !validInstance(instance) {
			return
		}
		service := mustName(t, "_vmuxsigner", "_tcp", "local")
		r, err := newResponder(service, instance, "vmux-host", portNumber)
		if err != nil {
			t.Fatal(err)
		}
		var addrs []netip.Addr
		for len(raw) >= 4 && len(addrs) < maxAddresses {
			size := 4
			if len(raw) >= 16 && raw[0]&1 == 0 {
				size = 16
			}
			a, _ := netip.AddrFromSlice(raw[:size])
			addrs = append(addrs, a)
			raw = raw[size:]
		}
		md := mode(how % 3)
		sent := r.message(wants(w)&(wantAll|wantMeta), addrs, md)
		sent.id = id
		b := sent.encode(md == modeLegacy)
		got, err := parse(b)
		if err != nil {
			t.Fatal(err)
		}
		text := func(r record) bool { return r.typ == typeTXT }
		if got.id != id || !equalRecords(got.answers, slices.DeleteFunc(slices.Clone(sent.answers), text)) ||
			!equalRecords(got.additionals, slices.DeleteFunc(slices.Clone(sent.additionals), text)) {
			t.Fatalf("sent %+v, got %+v", sent, got)
		}
		if !strings.Contains(instance, ".") { // which dnsmessage refuses
			compare(t, b, sent)
		}
		if md != modeGoodbye && sent.answers != nil && w&uint8(wantPTR) != 0 && portNumber != 0 {
			c := newCache(service, 1, func(a netip.Addr) (netip.Addr, bool) { return a, true })
			claims := c.apply(epoch, testAddrs[0], got)
			if len(addrs) > 0 && (len(claims) != 1 || claims[0].Instance != instance || claims[0].Addrs[0].Port() != portNumber) {
				t.Fatalf("claims: %+v", claims)
			}
		}
	})
}

func equalRecords(a, b []record) bool {
	return slices.Equal(a, b) // records are comparable
}

// compare parses b with dnsmessage, an implementation that is not ours.
func compare(t *testing.T, b []byte, want *message) {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(b); err != nil {
		t.Fatalf("dnsmessage: %v", err)
	}
	if len(m.Answers) != len(want.answers) || len(m.Additionals) != len(want.additionals) || len(m.Questions) != len(want.questions) {
		t.Fatalf("dnsmessage: %+v", m)
	}
	if m.ID != want.id || m.Response != want.response() || !m.Authoritative {
		t.Fatalf("dnsmessage: header %+v", m.Header)
	}
	for i, rr := range slices.Concat(m.Answers, m.Additionals) {
		r := slices.Concat(want.answers, want.additionals)[i]
		if uint16(rr.Header.Type) != r.typ || uint16(rr.Header.Class) != r.class || rr.Header.TTL != r.ttl || rr.Header.Name.String() != text(r.name) {
			t.Fatalf("dnsmessage: %+v, want %+v", rr.Header, r)
		}
		ok := false
		switch body := rr.Body.(type) {
		case *dnsmessage.PTRResource:
			ok = body.PTR.String() == text(r.target)
		case *dnsmessage.SRVResource:
			ok = body.Target.String() == text(r.target) && body.Port == r.port
		case *dnsmessage.TXTResource:
			ok = slices.Equal(body.TXT, []string{"v=1"})
		case *dnsmessage.AResource:
			ok = netip.AddrFrom4(body.A) == r.addr
		case *dnsmessage.AAAAResource:
			ok = netip.AddrFrom16(body.AAAA) == r.addr
		}
		if !ok {
			t.Fatalf("dnsmessage: %+v, want %+v", rr.Body, r)
		}
	}
}

// text is a name as dnsmessage prints it.
func text(n name) string {
	var b strings.Builder
	for {
		label, rest, ok := n.cut()
		if !ok {
			return b.String()
		}
		b.WriteString(label + ".")
		n = rest
	}
}

func TestCompression(t *testing.T) {
	t.Parallel()
	r := testResponder(t, "vmux-1")
	full := r.message(wantAll, testAddrs, modeNormal).encode(false)
	if n := bytes.Count(full, []byte("_vmuxsigner")); n != 1 {
		t.Errorf("the service type is spelt out %d times", n)
	}
	// RFC 6762 section 18.14: not the SRV target in a legacy answer.
	m := r.message(wantSRV, testAddrs, modeLegacy)
	if n := bytes.Count(m.encode(true), []byte("\x05local")); n != 2 {
		t.Errorf("local is spelt out %d times in a legacy answer, want 2", n)
	}
	for _, legacy := range []bool{false, true} {
		compare(t, m.encode(legacy), m)
	}
}
