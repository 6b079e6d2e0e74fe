// SPDX-License-Identifier: BSD-3-Clause

package envelope

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/go-json-experiment/json"
)

// unchecked encodes p without asking whether it is valid.
func unchecked(t *testing.T, p Payload) []byte {
	t.Helper()
	payload, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(wire{Version, "a", p.Type(), payload})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func head(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

func TestReadFrameRefuses(t *testing.T) {
	t.Parallel()
	whole := append(head(3), "abc"...)
	tests := []struct {
		name string
		in   []byte
		want error
	}{
		{"end between frames", nil, io.EOF},
		{"length 0", head(0), ErrFraming},
		{"one byte too large", append(head(MaxSize+1), make([]byte, MaxSize+1)...), ErrFraming},
		{"largest length", head(1<<32 - 1), ErrFraming},
		{"little-endian length", append([]byte{3, 0, 0, 0}, "abc"...), ErrFraming},
		{"end inside a large frame", append(head(MaxSize), make([]byte, MaxSize-1)...), ErrFraming},
	}
	for n := 1; n < len(whole); n++ {
		tests = append(tests, struct {
			name string
			in   []byte
			want error
		}{"end inside the frame", whole[:n], ErrFraming})
	}
	for _, test := range tests {
		for _, r := range []io.Reader{bytes.NewReader(test.in), iotest.OneByteReader(bytes.NewReader(test.in)), iotest.DataErrReader(bytes.NewReader(test.in))} {
			b, err := ReadFrame(r)
			if !errors.Is(err, test.want) || b != nil {
				t.Errorf("%s (% x): got %d bytes, %v, want %v", test.name, clip(string(test.in)), len(b), err, test.want)
			}
			if test.want == ErrFraming && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) {
				t.Errorf("%s: %v looks like an orderly end", test.name, err)
			}
		}
	}
}

func TestReadFrameGivesTheReadersError(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for _, in := range []string{"", "\x00", "\x00\x00\x00\x03", "\x00\x00\x00\x03a"} {
		_, err := ReadFrame(io.MultiReader(strings.NewReader(in), iotest.ErrReader(broken)))
		if !errors.Is(err, broken) || errors.Is(err, ErrFraming) {
			t.Errorf("after %q: got %v", in, err)
		}
	}
}

func TestFramesRoundTrip(t *testing.T) {
	t.Parallel()
	var stream bytes.Buffer
	sizes := []int{1, 2, 16<<10 - 1, 16 << 10, 16<<10 + 1, MaxSize - 1, MaxSize}
	for i, n := range sizes {
		if err := WriteFrame(&stream, bytesOf(byte(i), n)); err != nil {
			t.Fatal(err)
		}
	}
	r := iotest.HalfReader(&stream)
	for i, n := range sizes {
		b, err := ReadFrame(r)
		if err != nil || !bytes.Equal(b, bytesOf(byte(i), n)) {
			t.Errorf("frame of %d: got %d bytes, %v", n, len(b), err)
		}
	}
	if _, err := ReadFrame(r); err != io.EOF {
		t.Errorf("at the end: got %v, want io.EOF", err)
	}
}

type writes struct {
	n   int
	err error
}

func (w *writes) Write(b []byte) (int, error) { w.n++; return len(b), w.err }

func TestWriteFrame(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	tests := []struct {
		name   string
		in     []byte
		err    error
		want   error
		writes int
	}{
		{"one write", make([]byte, 100), nil, nil, 1},
		{"largest", make([]byte, MaxSize), nil, nil, 1},
		{"empty", nil, nil, ErrFraming, 0},
		{"too large", make([]byte, MaxSize+1), nil, ErrTooLarge, 0},
		{"broken", make([]byte, 1), broken, broken, 1},
	}
	for _, test := range tests {
		w := &writes{err: test.err}
		if err := WriteFrame(w, test.in); !errors.Is(err, test.want) || w.n != test.writes {
			t.Errorf("%s: got %v after %d writes, want %v after %d", test.name, err, w.n, test.want, test.writes)
		}
	}
}

// cost is the memory that f takes, at its least of some runs: others may
// allocate at the same time.
func cost(f func()) uint64 {
	least := ^uint64(0)
	for range 5 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f()
		runtime.ReadMemStats(&after)
		least = min(least, after.TotalAlloc-before.TotalAlloc)
	}
	return least
}

// It is not parallel: it measures memory.
func TestAnnouncedLengthCostsLittle(t *testing.T) {
	const little = 64 << 10
	for name, test := range map[string]struct {
		in   []byte
		most uint64
	}{
		"largest allowed, nothing sent": {head(MaxSize), little},
		"largest allowed, a byte sent":  {append(head(MaxSize), 1), little},
		"not allowed":                   {head(1<<32 - 1), 1 << 10},
		"all sent":                      {append(head(MaxSize), make([]byte, MaxSize)...), 8 * MaxSize},
	} {
		if got := cost(func() { _, _ = ReadFrame(bytes.NewReader(test.in)) }); got > test.most {
			t.Errorf("%s: %d bytes, more than %d", name, got, test.most)
		}
	}
}

// What one envelope can make the decoder take is bounded, whoever sent it.
func TestDecodeCostsLittle(t *testing.T) {
	const most = 8 * MaxSize
	fill := func(before, each, after string) []byte {
		n := (MaxSize - len(before) - len(after)) / (len(each) + 1)
		return []byte(before + strings.Repeat(each+",", n-1) + each + after)
	}
	for name, in := range map[string][]byte{
		"keys":         fill(`{"version":1,"id":"a","type":"keyListResponse","payload":{"keys":[`, `{}`, `],"caKey":""}}`),
		"capabilities": fill(`{"version":1,"id":"","type":"hello","payload":{"capabilities":[`, `""`, `]}}`),
		"binds":        fill(`{"version":1,"id":"a","type":"signRequest","payload":{"context":{"destination":{"binds":[`, `{}`, `]}}}}`),
		"members":      fill(`{"version":1,"id":"a","type":"ping","payload":{`, `"a":1`, `}}`),
		"nesting":      []byte(`{"version":1,"id":"a","type":"ping","payload":` + strings.Repeat("[", MaxSize/2-64)),
	} {
		if len(in) > MaxSize {
			t.Fatalf("%s: %d bytes", name, len(in))
		}
		got := cost(func() {
			if _, err := Decode(in); err == nil {
				t.Errorf("%s: was taken", name)
			}
		})
		if t.Logf("%s: %d kB", name, got>>10); got > most {
			t.Errorf("%s: %d bytes, more than %d", name, got, most)
		}
	}
}
