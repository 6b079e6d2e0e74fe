// SPDX-License-Identifier: BSD-3-Clause

package tpm

import (
	"bytes"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"strings"
	"testing"
)

// written is what was once made of a TPM's key, and writtenX the key's first coordinate.
const (
	written = `-----BEGIN TSS2 PRIVATE KEY-----
MIHyBgZngQUKAQOgAwEBAAIEQAAAAQRaAFgAIwALAAQAcgAAABAAGAALAAMAEAAg
RpaC7smsIOaMavHGb6DF0vn8ivUcvKDnLD0dxdPwBo4AIMS7kvMLK2G9ZYQUIlMg
JgP7osiOUVbI1TSZPjdSvEOSBIGAAH4AINI/gesX+mlZSI38TLB7zeWj2/VakGDX
P1mmoR8vSn0AABCFVXgimx2WsOCcdPQVB6fsZEZNoEY/JT9PPI76lfMgZW5gh0cR
tTD09WwBE53QkAO7i0/xVEL5uEkHMDpCNOEQcHDXz4ABtppR1AGWeodhDIMbWvW5
ejoxPII=
-----END TSS2 PRIVATE KEY-----
`
	writtenX = "469682eec9ac20e68c6af1c66fa0c5d2f9fc8af51cbca0e72c3d1dc5d3f0068e"
)

// want fails the test if err is not of that kind or has not these words.
func want(t testing.TB, err, kind error, words ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("the error is %q, want one of %q", err, kind)
		return
	}
	for _, other := range []error{ErrNoTPM, ErrWrongAuth, ErrLockout, ErrOwner, ErrOtherTPM, ErrFormat, ErrTPM} {
		if other != kind && errors.Is(err, other) {
			t.Errorf("the error %q is also one of %q", err, other)
		}
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the error %q does not say %q", err, w)
		}
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	k, err := Parse([]byte(written))
	if err != nil {
		t.Fatal(err)
	}
	point, err := k.Public().Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(point[1:33]); got != writtenX {
		t.Errorf("x is %s, want %s", got, writtenX)
	}
	if got := k.Marshal(); string(got) != written {
		t.Errorf("written again as\n%s", got)
	}
	p := k.Public()
	p.Curve = nil
	if k.Public().Curve == nil {
		t.Error("the key can be changed from outside")
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	block, _ := pem.Decode([]byte(written))
	with := func(f func(*pem.Block)) string {
		b := &pem.Block{Type: block.Type, Bytes: bytes.Clone(block.Bytes)}
		f(b)
		return string(pem.EncodeToMemory(b))
	}
	// instead has new, in hexadecimal digits, where old is.
	instead := func(old, new string) string {
		return with(func(b *pem.Block) {
			o, err := hex.DecodeString(strings.ReplaceAll(old, " ", ""))
			if err != nil || bytes.Count(b.Bytes, o) != 1 {
				t.Fatalf("%s is there %d times: %v", old, bytes.Count(b.Bytes, o), err)
			}
			n, err := hex.DecodeString(strings.ReplaceAll(new, " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			b.Bytes = bytes.Replace(b.Bytes, o, n, 1)
		})
	}
	x := writtenX
	for what, c := range map[string]struct{ file, words string }{
		"nothing":        {"", "no TSS2 PRIVATE KEY"},
		"no PEM":         {"key", "no TSS2 PRIVATE KEY"},
		"another type":   {with(func(b *pem.Block) { b.Type = "EC PRIVATE KEY" }), "no TSS2 PRIVATE KEY"},
		"a header":       {with(func(b *pem.Block) { b.Headers = map[string]string{"A": "b"} }), "not as it was written"},
		"text before":    {"text\n" + written, "not as it was written"},
		"text after":     {written + "text\n", "not as it was written"},
		"a line after":   {written + "\n", "not as it was written"},
		"no end of line": {strings.TrimSuffix(written, "\n"), "not as it was written"},
		"CRLF":           {strings.ReplaceAll(written, "\n", "\r\n"), "not as it was written"},
		"twice":          {written + written, "not as it was written"},
		"long":           {written + strings.Repeat("\n", maxFile), "bytes"},
		"empty":          {with(func(b *pem.Block) { b.Bytes = nil }), "damaged"},
		"a byte more":    {with(func(b *pem.Block) { b.Bytes = append(b.Bytes, 0) }), "damaged"},

		"an importable key":    {instead("06 06 67 81 05 0a 01 03", "06 06 67 81 05 0a 01 04"), "not a loadable key"},
		"no passphrase":        {instead("a0 03 01 01 00", "a0 03 01 01 ff"), "not as it was written"},
		"no boolean":           {instead("a0 03 01 01 00", "a0 03 02 01 00"), "not as it was written"},
		"the endorsement":      {instead("02 04 40 00 00 01", "02 04 40 00 00 0b"), "not below the owner"},
		"a persistent parent":  {instead("02 04 40 00 00 01", "02 04 01 00 00 01"), "not below the owner"},
		"RSA":                  {instead("04 5a 00 58 00 23", "04 5a 00 58 00 01"), "another kind"},
		"exportable":           {instead("00 04 00 72", "00 04 00 60"), "another kind"},
		"no limit to guessing": {instead("00 04 00 72", "00 04 04 72"), "another kind"},
		"for decryption too":   {instead("00 04 00 72", "00 06 00 72"), "another kind"},
		"SHA-1":                {instead("00 18 00 0b 00 03", "00 18 00 04 00 03"), "another kind"},
		"P-384":                {instead("00 18 00 0b 00 03", "00 18 00 0b 00 04"), "another kind"},
		"not on the curve":     {instead(x, x[:62]+"00"), "not a point"},
		"at infinity":          {instead(x, strings.Repeat("00", 32)), "not a point"},
		"x too long":           {instead("00 20 "+x, "00 21 "+x), "damaged in its public part"},
		"x much too long":      {instead("00 20 "+x, "ff ff "+x), "damaged in its public part"},
		"public part shorter":  {instead("04 5a 00 58", "04 5a 00 57"), "damaged"},
		"public part longer":   {instead("04 5a 00 58", "04 5a 00 59"), "damaged"},
		"private part shorter": {instead("04 81 80 00 7e", "04 81 80 00 7d"), "damaged"},
		"private part longer":  {instead("04 81 80 00 7e", "04 81 80 00 7f"), "damaged"},
		"length in two bytes":  {instead("04 5a 00 58", "04 81 5a 00 58"), "damaged"},
	} {
		k, err := Parse([]byte(c.file))
		t.Run(what, func(t *testing.T) { want(t, err, ErrFormat, c.words) })
		if k != nil {
			t.Errorf("%s: there is a key", what)
		}
	}
	for i := range written {
		if _, err := Parse([]byte(written[:i])); !errors.Is(err, ErrFormat) {
			t.Errorf("cut after %d bytes: %v", i, err)
		}
	}
}

func TestPrivatePartIsBounded(t *testing.T) {
	t.Parallel()
	k, err := Parse([]byte(written))
	if err != nil {
		t.Fatal(err)
	}
	for n, ok := range map[int]bool{0: false, 1: true, maxPrivate: true, maxPrivate + 1: false, 2000: false} {
		k := &Key{public: k.public, private: make([]byte, n), point: k.point}
		if _, err := Parse(k.Marshal()); ok != (err == nil) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

// Some TPMs leave out zeros at the front of a coordinate, others do not, and the name of the key depends on it.
func TestShortCoordinates(t *testing.T) {
	t.Parallel()
	k, err := Parse([]byte(written))
	if err != nil {
		t.Fatal(err)
	}
	prefix := k.public[:20]
	for _, lengths := range [][2]int{{33, 32}, {32, 33}, {1000, 1000}} {
		public := bytes.Clone(prefix)
		for _, n := range lengths {
			public = append(public, byte(n>>8), byte(n))
			public = append(public, make([]byte, n)...)
		}
		if _, err := newKey(public, []byte{1}); err == nil || err.Error() != "of another curve" {
			t.Errorf("coordinates of %v bytes: %v", lengths, err)
		}
	}
	// The point for x = 5: y² = x³ − 3x + b has a solution there.
	y, err := hex.DecodeString("459243b9aa581806fe913bce99817ade11ca503c64d9a3c533415c083248fbcc")
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range [][]byte{{5}, {0, 5}, append(make([]byte, 31), 5)} {
		public := append(bytes.Clone(prefix), 0, byte(len(x)))
		public = append(append(append(public, x...), 0, 32), y...)
		k, err := newKey(public, []byte{1})
		if err != nil {
			t.Errorf("%x: %v", x, err)
			continue
		}
		point, err := k.Public().Bytes()
		if err != nil || point[32] != 5 || !bytes.Equal(point[1:32], make([]byte, 31)) {
			t.Errorf("%x: the point is %x, %v", x, point, err)
		}
		if _, err := newKey(append(public, 0), []byte{1}); err == nil {
			t.Errorf("%x: a byte more is taken", x)
		}
		if again, err := Parse(k.Marshal()); err != nil || !bytes.Equal(again.public, public) {
			t.Errorf("%x: %v", x, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(written))
	block, _ := pem.Decode([]byte(written))
	f.Add(block.Bytes)
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, file := range [][]byte{b, pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: b})} {
			k, err := Parse(file)
			switch {
			case err != nil:
				if k != nil || !errors.Is(err, ErrFormat) {
					t.Errorf("%v with %v", k, err)
				}
			case !bytes.Equal(k.Marshal(), file):
				t.Errorf("%q is written again as %q", file, k.Marshal())
			}
		}
	})
}
