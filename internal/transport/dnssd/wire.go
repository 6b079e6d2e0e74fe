// SPDX-License-Identifier: BSD-3-Clause

package dnssd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// The codec is our own and not dnsmessage's because that refuses any name with
// a dot inside a label, which instance names may have (RFC 6763 section 4.3),
// and with it the packet. The tests compare the two.

const (
	maxName  = 255 // RFC 1035 section 2.3.4, with length octets and root
	maxLabel = 63

	// maxKept bounds the questions and the records kept of one packet. A phone
	// sends about 6 records, a busy host 50; the rest is walked and dropped.
	maxKept = 128

	headerSize = 12

	typeA    = 1
	typePTR  = 12
	typeTXT  = 16
	typeAAAA = 28
	typeSRV  = 33
	typeANY  = 255

	classIN  = 1
	classANY = 255
	// topBit asks for a unicast answer in a question (QU, RFC 6762 section 5.4)
	// and tells to flush older records in an answer (section 10.2).
	topBit = 1 << 15

	flagResponse      = 1 << 15
	flagAuthoritative = 1 << 10
	maskOpcode        = 0xf << 11
	maskRCode         = 0xf
)

var errMalformed = errors.New("malformed DNS message")

// A name is a domain name in uncompressed wire form, the root included. It is
// bounded by maxName and comparable; see key for the case.
type name string

func newName(labels ...string) (name, error) {
	var b strings.Builder
	for _, l := range labels {
		if l == "" || len(l) > maxLabel {
			return "", fmt.Errorf("%w: label %q has %d octets, 1 to %d are allowed", ErrBadName, l, len(l), maxLabel)
		}
		b.WriteByte(byte(len(l)))
		b.WriteString(l)
	}
	b.WriteByte(0)
	if b.Len() > maxName {
		return "", fmt.Errorf("%w: %d octets, %d are allowed", ErrBadName, b.Len(), maxName)
	}
	return name(b.String()), nil
}

// key is n in lower case, ASCII only (RFC 6762 section 16). Length octets are
// below 'A', so they stay.
func (n name) key() name {
	for i := range len(n) {
		if 'A' <= n[i] && n[i] <= 'Z' {
			b := []byte(n)
			for j := i; j < len(b); j++ {
				if 'A' <= b[j] && b[j] <= 'Z' {
					b[j] += 'a' - 'A'
				}
			}
			return name(b)
		}
	}
	return n
}

// cut splits the first label off; ok is false for the root.
func (n name) cut() (label string, rest name, ok bool) {
	if len(n) < 2 {
		return "", "", false
	}
	end := 1 + int(n[0])
	return string(n[1:end]), n[end:], true
}

func (n name) underLocal() bool {
	_, rest, ok := n.cut()
	return ok && strings.HasSuffix(string(rest.key()), "\x05local\x00")
}

type question struct {
	name  name
	typ   uint16
	class uint16
}

// A record is one of PTR, SRV, A, AAAA or, only to be sent, TXT.
type record struct {
	name   name
	typ    uint16
	class  uint16
	ttl    uint32     // seconds
	target name       // PTR, SRV
	port   uint16     // SRV
	addr   netip.Addr // A, AAAA
	text   string     // TXT: its one string; not read back
}

func (r record) flush() bool { return r.class&topBit != 0 }

type message struct {
	id          uint16
	flags       uint16
	questions   []question
	answers     []record // known answers in a query
	additionals []record
}

func (m *message) response() bool { return m.flags&flagResponse != 0 }

// parse reads a message. Other types and classes, the authority section and
// octets after the last record are passed over; anything else that is not
// exactly well formed fails the whole message. What it keeps is bounded by
// maxKept records of two names each.
func parse(b []byte) (*message, error) {
	if len(b) < headerSize || len(b) > maxPacket {
		return nil, errMalformed
	}
	m := &message{id: binary.BigEndian.Uint16(b), flags: binary.BigEndian.Uint16(b[2:])}
	// RFC 6762 sections 18.3 and 18.11: another opcode or a response code is
	// ignored.
	if m.flags&(maskOpcode|maskRCode) != 0 {
		return nil, errMalformed
	}
	count := func(i int) int { return int(binary.BigEndian.Uint16(b[4+2*i:])) }
	off := headerSize
	for range count(0) {
		n, next, err := parseName(b, off)
		if err != nil || next+4 > len(b) {
			return nil, errMalformed
		}
		if len(m.questions) < maxKept {
			m.questions = append(m.questions, question{n, binary.BigEndian.Uint16(b[next:]), binary.BigEndian.Uint16(b[next+2:])})
		}
		off = next + 4
	}
	kept := 0
	for section := 1; section <= 3; section++ {
		for range count(section) {
			r, ok, next, err := parseRecord(b, off)
			if err != nil {
				return nil, err
			}
			off = next
			if !ok || kept == maxKept {
				continue
			}
			switch section {
			case 1:
				m.answers = append(m.answers, r)
				kept++
			case 3:
				m.additionals = append(m.additionals, r)
				kept++
			}
		}
	}
	return m, nil
}

// parseRecord reads the record at off; ok is false for one of no interest.
func parseRecord(b []byte, off int) (r record, ok bool, next int, err error) {
	r.name, off, err = parseName(b, off)
	if err != nil || off+10 > len(b) {
		return r, false, 0, errMalformed
	}
	r.typ = binary.BigEndian.Uint16(b[off:])
	r.class = binary.BigEndian.Uint16(b[off+2:])
	r.ttl = binary.BigEndian.Uint32(b[off+4:])
	size := int(binary.BigEndian.Uint16(b[off+8:]))
	off += 10
	next = off + size
	if next > len(b) {
		return r, false, 0, errMalformed
	}
	if r.class&^topBit != classIN {
		return r, false, next, nil
	}
	end := next
	switch r.typ {
	case typeA:
		if size != 4 {
			return r, false, 0, errMalformed
		}
		r.addr = netip.AddrFrom4([4]byte(b[off:next]))
	case typeAAAA:
		if size != 16 {
			return r, false, 0, errMalformed
		}
		r.addr = netip.AddrFrom16([16]byte(b[off:next]))
	case typePTR:
		r.target, end, err = parseName(b[:next], off)
	case typeSRV:
		if size < 7 {
			return r, false, 0, errMalformed
		}
		r.port = binary.BigEndian.Uint16(b[off+4:])
		r.target, end, err = parseName(b[:next], off+6)
	default:
		return r, false, next, nil
	}
	if err != nil || end != next {
		return r, false, 0, errMalformed
	}
	return r, true, next, nil
}

// parseName reads the name at off and returns it with the offset after it. A
// pointer must lead to before the labels it stands after, so it always ends.
func parseName(b []byte, off int) (name, int, error) {
	var buf [maxName]byte
	n, next, start := 0, -1, off
	for {
		if off >= len(b) {
			return "", 0, errMalformed
		}
		c := int(b[off])
		switch c & 0xc0 {
		case 0x00:
			if c == 0 {
				if next < 0 {
					next = off + 1
				}
				buf[n] = 0 // n < maxName: each label leaves room for the root
				return name(buf[:n+1]), next, nil
			}
			if off+1+c > len(b) || n+1+c+1 > maxName {
				return "", 0, errMalformed
			}
			n += copy(buf[n:], b[off:off+1+c])
			off += 1 + c
		case 0xc0:
			if off+2 > len(b) {
				return "", 0, errMalformed
			}
			to := int(binary.BigEndian.Uint16(b[off:])) &^ 0xc000
			if next < 0 {
				next = off + 2
			}
			if to >= start || to < headerSize {
				return "", 0, errMalformed
			}
			off, start = to, to
		default:
			return "", 0, errMalformed
		}
	}
}

// encode writes m with compressed names. A legacy answer leaves the names in
// SRV data alone (RFC 6762 section 18.14).
func (m *message) encode(legacy bool) []byte {
	e := encoder{b: make([]byte, headerSize, 512), names: make(map[name]int)}
	binary.BigEndian.PutUint16(e.b, m.id)
	binary.BigEndian.PutUint16(e.b[2:], m.flags)
	binary.BigEndian.PutUint16(e.b[4:], uint16(len(m.questions)))
	binary.BigEndian.PutUint16(e.b[6:], uint16(len(m.answers)))
	binary.BigEndian.PutUint16(e.b[10:], uint16(len(m.additionals)))
	for _, q := range m.questions {
		e.name(q.name, true)
		e.uint16(q.typ)
		e.uint16(q.class)
	}
	for _, rs := range [][]record{m.answers, m.additionals} {
		for _, r := range rs {
			e.record(r, legacy)
		}
	}
	return e.b
}

type encoder struct {
	b     []byte
	names map[name]int // where a name or the rest of one was written
}

func (e *encoder) uint16(v uint16) { e.b = binary.BigEndian.AppendUint16(e.b, v) }

func (e *encoder) name(n name, compress bool) {
	for {
		label, rest, ok := n.cut()
		if !ok {
			e.b = append(e.b, 0)
			return
		}
		if at, ok := e.names[n]; ok && compress {
			e.uint16(0xc000 | uint16(at))
			return
		}
		if _, ok := e.names[n]; !ok && len(e.b) < 0x4000 {
			e.names[n] = len(e.b)
		}
		e.b = append(e.b, byte(len(label)))
		e.b = append(e.b, label...)
		n = rest
	}
}

func (e *encoder) record(r record, legacy bool) {
	e.name(r.name, true)
	e.uint16(r.typ)
	e.uint16(r.class)
	e.b = binary.BigEndian.AppendUint32(e.b, r.ttl)
	at := len(e.b)
	e.uint16(0)
	switch r.typ {
	case typePTR:
		e.name(r.target, true)
	case typeSRV:
		e.uint16(0) // priority
		e.uint16(0) // weight
		e.uint16(r.port)
		e.name(r.target, !legacy)
	case typeTXT:
		e.b = append(e.b, byte(len(r.text)))
		e.b = append(e.b, r.text...)
	case typeA, typeAAAA:
		e.b = append(e.b, r.addr.AsSlice()...)
	}
	binary.BigEndian.PutUint16(e.b[at:], uint16(len(e.b)-at-2))
}
