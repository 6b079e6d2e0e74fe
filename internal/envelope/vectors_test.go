// SPDX-License-Identifier: BSD-3-Clause

package envelope

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"io"
	"os"
	"reflect"
	"testing"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

var update = flag.Bool("update", false, "write testdata/vectors.json anew")

const vectorFile = "testdata/vectors.json"

// vectors are for other implementations too: nothing in them is Go's.
type vectors struct {
	About    []string        `json:"about"`
	Messages []messageVector `json:"messages"`
	// Spellings decode to the message of that name.
	Spellings []messageVector `json:"spellings"`
	Refused   []refusedVector `json:"refused"`
	Streams   []streamVector  `json:"streams"`
}

type messageVector struct {
	Name  string `json:"name"`
	Type  Type   `json:"type"`
	Of    string `json:"of,omitempty"`
	JSON  string `json:"json"`
	Frame string `json:"frame"`
}

type refusedVector struct {
	Name  string `json:"name"`
	Code  Code   `json:"code"`
	ID    string `json:"id"`
	JSON  string `json:"json,omitempty"`
	Frame string `json:"frame"`
}

type streamVector struct {
	Name   string   `json:"name"`
	Stream string   `json:"stream"`
	Frames []string `json:"frames"`
	Broken bool     `json:"broken"`
}

// maxVector keeps the file readable: what only its size makes wrong is left to
// TestDecodeRefuses.
const maxVector = 2000

func frameOf(t *testing.T, b []byte) string {
	t.Helper()
	var out bytes.Buffer
	if err := WriteFrame(&out, b); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(out.Bytes())
}

func makeVectors(t *testing.T) vectors {
	t.Helper()
	v := vectors{About: []string{
		"Test vectors of vmux-protocol(7): envelopes and their framing.",
		"frame and stream are hexadecimal; frames include their length. json is the text inside the frame.",
		"messages: an encoder that orders members as the page does and adds no white space gives exactly these bytes, and a decoder takes them.",
		"spellings: a decoder reads each as the message named in of.",
		"refused: a decoder answers each with code, under id where it is not empty. json is left out where it is not UTF-8.",
		"streams: a reader gives these frames, then the end, or when broken is true closes the connection.",
	}}
	for _, s := range samples() {
		b, err := Encode(s.env)
		if err != nil {
			t.Fatal(err)
		}
		v.Messages = append(v.Messages, messageVector{Name: s.name, Type: s.env.Payload.Type(), JSON: string(b), Frame: frameOf(t, b)})
	}
	for _, s := range spellings(t) {
		v.Spellings = append(v.Spellings, messageVector{Name: s.name, Type: TypeSignRequest, Of: "signRequest", JSON: s.in, Frame: frameOf(t, []byte(s.in))})
	}
	for _, r := range refusals(t) {
		if r.in == "" || len(r.in) > maxVector {
			continue
		}
		w := refusedVector{Name: r.name, Code: r.code, ID: r.id, Frame: frameOf(t, []byte(r.in))}
		if utf8.ValidString(r.in) {
			w.JSON = r.in
		}
		v.Refused = append(v.Refused, w)
	}
	ping, pong := v.Messages[len(v.Messages)-4].Frame, v.Messages[len(v.Messages)-3].Frame
	v.Streams = []streamVector{
		{"nothing", "", []string{}, false},
		{"two frames", ping + pong, []string{ping, pong}, false},
		{"length 0", "00000000", []string{}, true},
		{"length above the limit", "00040001", []string{}, true},
		{"largest length there is", "ffffffff", []string{}, true},
		{"end inside the length", ping + "000000", []string{ping}, true},
		{"end after the length", ping + "00000002", []string{ping}, true},
		{"end inside the envelope", ping + pong[:len(pong)-2], []string{ping}, true},
	}
	return v
}

func TestVectors(t *testing.T) {
	t.Parallel()
	want, err := json.Marshal(makeVectors(t), jsontext.WithIndent("  "))
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, '\n')
	if *update {
		if err := os.WriteFile(vectorFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what this code gives; if the protocol is to change, run go test -update", vectorFile)
	}

	// What follows reads the file as a stranger does.
	var v vectors
	if err := json.Unmarshal(got, &v, json.RejectUnknownMembers(true)); err != nil {
		t.Fatal(err)
	}
	if len(v.Refused) < 60 || len(v.Streams) == 0 || len(v.Spellings) == 0 {
		t.Errorf("%d refused, %d streams, %d spellings: some are missing", len(v.Refused), len(v.Streams), len(v.Spellings))
	}
	known := map[string]Envelope{}
	have := map[Type]bool{}
	for _, m := range v.Messages {
		have[m.Type] = true
		e := decodeVector(t, m)
		known[m.Name] = e
		b, err := Encode(e)
		if err != nil || string(b) != m.JSON || frameOf(t, b) != m.Frame {
			t.Errorf("%s: encodes to %s, %v, want %s", m.Name, b, err, m.JSON)
		}
	}
	for _, typ := range all {
		if !have[typ] {
			t.Errorf("no vector of %s", typ)
		}
	}
	for _, m := range v.Spellings {
		if e, ok := known[m.Of]; !ok || !reflect.DeepEqual(decodeVector(t, m), e) {
			t.Errorf("%s is not read as %s", m.Name, m.Of)
		}
	}
	for _, r := range v.Refused {
		b := readVector(t, r.Name, r.Frame)
		if r.JSON != "" && string(b) != r.JSON {
			t.Errorf("%s: frame and json differ", r.Name)
		}
		e, err := Decode(b)
		var coded *Error
		if !errors.As(err, &coded) || coded.Code != r.Code || e.ID != r.ID {
			t.Errorf("%s: got %v under %q, want %s under %q", r.Name, err, e.ID, r.Code, r.ID)
		}
	}
	for _, s := range v.Streams {
		b, err := hex.DecodeString(s.Stream)
		if err != nil {
			t.Fatal(err)
		}
		r := bytes.NewReader(b)
		for i, f := range s.Frames {
			if b, err := ReadFrame(r); err != nil || frameOf(t, b) != f {
				t.Errorf("%s: frame %d is %x, %v, want %s", s.Name, i, b, err, f)
			}
		}
		want := io.EOF
		if s.Broken {
			want = ErrFraming
		}
		if b, err := ReadFrame(r); !errors.Is(err, want) {
			t.Errorf("%s: got %x, %v, want %v", s.Name, b, err, want)
		}
	}
}

// readVector gives the bytes inside a frame.
func readVector(t *testing.T, name, frame string) []byte {
	t.Helper()
	raw, err := hex.DecodeString(frame)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	r := bytes.NewReader(raw)
	b, err := ReadFrame(r)
	if err != nil || r.Len() != 0 {
		t.Fatalf("%s: %v, %d bytes left", name, err, r.Len())
	}
	return b
}

func decodeVector(t *testing.T, m messageVector) Envelope {
	t.Helper()
	b := readVector(t, m.Name, m.Frame)
	if string(b) != m.JSON {
		t.Errorf("%s: frame and json differ", m.Name)
	}
	e, err := Decode(b)
	if err != nil || e.Payload.Type() != m.Type {
		t.Fatalf("%s: got %+v, %v, want a %s", m.Name, e, err, m.Type)
	}
	return e
}
