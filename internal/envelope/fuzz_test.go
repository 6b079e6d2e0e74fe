// SPDX-License-Identifier: BSD-3-Clause

package envelope

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"testing"
	"testing/iotest"
)

func FuzzDecode(f *testing.F) {
	for _, s := range samples() {
		b, err := Encode(s.env)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"version":2,"id":"a","type":"ping","payload":{}}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		e, err := Decode(in)
		if err != nil {
			var coded *Error
			if !errors.As(err, &coded) || e.Payload != nil {
				t.Fatalf("got %+v, %T: %v", e, err, err)
			}
			if _, err := Encode(Envelope{e.ID, coded}); err != nil {
				t.Fatalf("the answer cannot be sent: %v", err)
			}
			return
		}
		out, err := Encode(e)
		if err != nil {
			t.Fatalf("%s was decoded and cannot be encoded: %v", in, err)
		}
		if len(out) > len(in) {
			t.Fatalf("%d bytes became %d", len(in), len(out))
		}
		again, err := Decode(out)
		if err != nil || !reflect.DeepEqual(again, e) {
			t.Fatalf("got %+v, %v, want %+v", again, err, e)
		}
	})
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x00\x00\x00\x00"))
	f.Add([]byte("\x00\x00\x00\x01a\x00\x00\x00\x02bc"))
	f.Add([]byte("\x00\x00\x00\x03ab"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := iotest.HalfReader(bytes.NewReader(in))
		var out bytes.Buffer
		for {
			b, err := ReadFrame(r)
			if err == io.EOF {
				break
			}
			if errors.Is(err, ErrFraming) {
				// What was read before is a beginning of the stream.
				if !bytes.HasPrefix(in, out.Bytes()) || len(in) == out.Len() {
					t.Fatalf("got %x of %x before %v", out.Bytes(), in, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := WriteFrame(&out, b); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(out.Bytes(), in) {
			t.Fatalf("got %x, want %x", out.Bytes(), in)
		}
	})
}
