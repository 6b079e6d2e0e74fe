// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// window is how much of a longer secret counts as a part of it.
const window = 12

// secrets are what must not be seen, in every encoding, by length.
type secrets map[int]map[string]string

func (s secrets) put(b []byte, what string) {
	if s[len(b)] == nil {
		s[len(b)] = map[string]string{}
	}
	s[len(b)][string(b)] = what
}

// forms puts one secret as it is, in hexadecimal, and in base64 as it may stand
// at any place of something longer.
func (s secrets) forms(b []byte, what string) {
	s.put(b, what)
	h := hex.EncodeToString(b)
	s.put([]byte(h), what+" in hexadecimal")
	s.put([]byte(strings.ToUpper(h)), what+" in hexadecimal")
	for before := range 3 {
		for _, e := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			// Only characters that no neighbour has a part in.
			text := e.EncodeToString(append(make([]byte, before), b...))
			from := (before*8 + 5) / 6
			to := (before + len(b)) * 8 / 6
			s.put([]byte(text[from:to]), what+" in base64")
		}
	}
}

// bytes adds a secret, of which any part is one.
func (s secrets) bytes(b []byte, what string) {
	if len(b) <= window {
		s.forms(b, what)
		return
	}
	for i := range len(b) - window + 1 {
		part := b[i : i+window]
		different := map[byte]bool{}
		for _, c := range part {
			different[c] = true
		}
		if len(different) < 5 {
			continue // padding and lengths
		}
		s.forms(part, what)
	}
}

// word adds a text that must not be seen in whichever case.
func (s secrets) word(text string) {
	s.forms([]byte(text), text)
	s.put([]byte(strings.ToLower(text)), text)
}

// find says which secrets are in b.
func (s secrets) find(b []byte) []string {
	var found []string
	seen := map[string]bool{}
	lower := bytes.ToLower(b)
	for n, of := range s {
		for _, in := range [][]byte{b, lower} {
			for i := 0; i+n <= len(in); i++ {
				if what, ok := of[string(in[i:i+n])]; ok && !seen[what] {
					seen[what] = true
					found = append(found, what)
				}
			}
		}
	}
	return found
}

// TLS, as far as a listener can read it (RFC 8446).
const (
	recordChangeCipherSpec = 20
	recordAlert            = 21
	recordHandshake        = 22
	recordData             = 23

	clientHello = 1
	serverHello = 2

	extensionServerName        = 0
	extensionALPN              = 16
	extensionPreSharedKey      = 41
	extensionEarlyData         = 42
	extensionSupportedVersions = 43

	versionTLS13 = 0x0304
)

type record struct {
	kind byte
	body []byte
}

var errRecord = errors.New("no TLS record")

// nextRecord takes one record from b. A record that was cut off is an error.
func nextRecord(b []byte) (record, []byte, error) {
	if len(b) < 5 || b[1] != 3 || b[0] < recordChangeCipherSpec || b[0] > recordData {
		return record{}, b, errRecord
	}
	n := 5 + int(binary.BigEndian.Uint16(b[3:]))
	if n > len(b) {
		return record{}, b, errRecord
	}
	return record{b[0], b[5:n]}, b[n:], nil
}

// hello is what a ClientHello or ServerHello says in clear.
type hello struct {
	suites     []uint16
	extensions map[uint16][]byte
}

// parseHello reads one handshake message.
func parseHello(b []byte, kind byte) (hello, error) {
	h := hello{extensions: map[uint16][]byte{}}
	bad := fmt.Errorf("malformed hello: %x", b)
	take := func(n int) []byte {
		if n > len(b) {
			b = nil
			return make([]byte, n)
		}
		v := b[:n]
		b = b[n:]
		return v
	}
	number := func(bytes int) (v int) {
		for _, c := range take(bytes) {
			v = v<<8 | int(c)
		}
		return v
	}
	if len(b) < 4 || b[0] != kind || number(1) != int(kind) || number(3) != len(b) {
		return h, bad
	}
	take(2 + 32) // legacy_version, random
	take(number(1))
	if kind == clientHello {
		for s := take(number(2)); len(s) >= 2; s = s[2:] {
			h.suites = append(h.suites, binary.BigEndian.Uint16(s))
		}
		take(number(1))
	} else {
		h.suites = []uint16{uint16(number(2))}
		take(1)
	}
	if number(2) != len(b) {
		return h, bad
	}
	for len(b) > 0 {
		typ := uint16(number(2))
		h.extensions[typ] = take(number(2))
	}
	return h, nil
}

// onlyTLS13 checks one direction of a connection: a hello for TLS 1.3 that says
// nothing of its sender, and nothing readable after it.
func onlyTLS13(t testing.TB, s stream, fromDevice bool) (alpn string) {
	t.Helper()
	who := fmt.Sprintf("%v to %v", s.src, s.dst)
	kind := byte(serverHello)
	if fromDevice {
		kind = clientHello
	}
	hellos := 0
	for b := s.data; len(b) > 0; {
		r, rest, err := nextRecord(b)
		if err != nil {
			t.Errorf("%s: %v: %x", who, err, b[:min(len(b), 64)])
			return alpn
		}
		b = rest
		switch {
		case r.kind == recordData && hellos > 0:
		case r.kind == recordChangeCipherSpec && hellos > 0 && bytes.Equal(r.body, []byte{1}):
		case r.kind == recordHandshake && hellos == 0:
			hellos++
			h, err := parseHello(r.body, kind)
			if err != nil {
				t.Errorf("%s: %v", who, err)
				return alpn
			}
			for _, suite := range h.suites {
				if suite>>8 != 0x13 {
					t.Errorf("%s: cipher suite %#x", who, suite)
				}
			}
			want := []byte{versionTLS13 >> 8, versionTLS13 & 0xff}
			if fromDevice {
				want = append([]byte{2}, want...)
			}
			if v := h.extensions[extensionSupportedVersions]; !bytes.Equal(v, want) {
				t.Errorf("%s: supported versions %x", who, v)
			}
			for _, e := range []uint16{extensionServerName, extensionPreSharedKey, extensionEarlyData} {
				if v, ok := h.extensions[e]; ok {
					t.Errorf("%s: extension %d: %x", who, e, v)
				}
			}
			// A list of one; RFC 7301 section 3.1. The phone's answer is encrypted.
			v, ok := h.extensions[extensionALPN]
			if ok != fromDevice || ok && (len(v) < 3 || int(v[2]) != len(v)-3) {
				t.Errorf("%s: application protocols %q", who, v)
			} else if ok {
				alpn = string(v[3:])
			}
		default:
			t.Errorf("%s: record of type %d after %d hellos: %x", who, r.kind, hellos, r.body)
			return alpn
		}
	}
	if hellos == 0 {
		t.Errorf("%s: no hello", who)
	}
	return alpn
}
