// SPDX-License-Identifier: BSD-3-Clause

// Package envelope is the language that a device and a phone speak on their
// link: the messages, their JSON encoding and their framing, as
// vmux-protocol(7) describes them. It is pure: no clock, no network.
package envelope

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

const (
	// Version is the only protocol version there is.
	Version = 1
	// MaxSize bounds one encoded envelope in bytes, as the agent protocol's own
	// limit does: nothing that an agent may be asked to sign is larger.
	MaxSize = 256 << 10
	// MaxID bounds an envelope's id in bytes; the phone remembers ids.
	MaxID = 64
)

// Type names a message.
type Type string

// The messages of the link.
const (
	TypeHello               Type = "hello"
	TypeKeyListRequest      Type = "keyListRequest"
	TypeKeyListResponse     Type = "keyListResponse"
	TypeSignRequest         Type = "signRequest"
	TypeSignResponse        Type = "signResponse"
	TypeCertificateRequest  Type = "certificateRequest"
	TypeCertificateResponse Type = "certificateResponse"
	TypePending             Type = "pending"
	TypeCancel              Type = "cancel"
	TypeDeviceTokenUpdate   Type = "deviceTokenUpdate"
	TypePairRequest         Type = "pairRequest"
	TypePairResponse        Type = "pairResponse"
	TypePairConfirm         Type = "pairConfirm"
	TypePing                Type = "ping"
	TypePong                Type = "pong"
	TypeError               Type = "error"
)

// Payload is the content of an envelope: a pointer to one of this package's
// message types.
type Payload interface {
	Type() Type
	validate() error
}

func newPayload(t Type) Payload {
	switch t {
	case TypeHello:
		return new(Hello)
	case TypeKeyListRequest:
		return new(KeyListRequest)
	case TypeKeyListResponse:
		return new(KeyListResponse)
	case TypeSignRequest:
		return new(SignRequest)
	case TypeSignResponse:
		return new(SignResponse)
	case TypeCertificateRequest:
		return new(CertificateRequest)
	case TypeCertificateResponse:
		return new(CertificateResponse)
	case TypePending:
		return new(Pending)
	case TypeCancel:
		return new(Cancel)
	case TypeDeviceTokenUpdate:
		return new(DeviceTokenUpdate)
	case TypePairRequest:
		return new(PairRequest)
	case TypePairResponse:
		return new(PairResponse)
	case TypePairConfirm:
		return new(PairConfirm)
	case TypePing:
		return new(Ping)
	case TypePong:
		return new(Pong)
	case TypeError:
		return new(Error)
	}
	return nil
}

// Envelope is one message: an id, which an answer repeats, and a payload.
type Envelope struct {
	ID      string
	Payload Payload
}

// wire is the JSON object of an envelope.
type wire struct {
	Version int            `json:"version"`
	ID      string         `json:"id"`
	Type    Type           `json:"type"`
	Payload jsontext.Value `json:"payload"`
}

// Encode gives the JSON object of e, without the frame's length. It refuses
// what Decode at the other end would refuse.
func Encode(e Envelope) ([]byte, error) {
	if e.Payload == nil {
		return nil, errors.New("envelope without payload")
	}
	if err := checkID(e.ID); err != nil {
		return nil, err
	}
	if err := e.Payload.validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", e.Payload.Type(), err)
	}
	payload, err := json.Marshal(e.Payload)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.Payload.Type(), err)
	}
	b, err := json.Marshal(wire{Version, e.ID, e.Payload.Type(), payload})
	if err != nil {
		return nil, err
	}
	if len(b) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes", ErrTooLarge, len(b))
	}
	return b, nil
}

// Decode reads one JSON object, strictly: it takes what Encode gives, with any
// white space, order of members and escapes in strings, and nothing else. An
// unknown version, type or member, a duplicate, missing or wrongly cased name, a
// null, trailing bytes and values out of bounds are errors. An error is an
// *Error with the code to answer with; the envelope then has the id, as far as
// it could be read, and no payload.
func Decode(b []byte) (Envelope, error) {
	if len(b) > MaxSize {
		return Envelope{}, Errorf(CodeBadRequest, "envelope of %d bytes, more than %d", len(b), MaxSize)
	}
	var w wire
	err := json.Unmarshal(b, &w, json.RejectUnknownMembers(true))
	e := Envelope{ID: w.ID}
	if idErr := checkID(w.ID); idErr != nil {
		e.ID = ""
		if err == nil {
			err = idErr
		}
	}
	switch {
	case err != nil:
		return e, Errorf(CodeBadRequest, "envelope: %v", err)
	case w.Version == 0 || w.Type == "":
		return e, Errorf(CodeBadRequest, "envelope without version or type")
	case w.Version != Version:
		return e, Errorf(CodeUnsupported, "protocol version %d, not %d", w.Version, Version)
	}
	p := newPayload(w.Type)
	if p == nil {
		return e, Errorf(CodeUnsupported, "message type %q", clip(string(w.Type)))
	}
	if w.Payload.Kind() != '{' {
		return e, Errorf(CodeBadRequest, "%s: payload is not an object", w.Type)
	}
	if err := checkLists(w.Payload); err != nil {
		return e, Errorf(CodeBadRequest, "%s: %v", w.Type, err)
	}
	if err := json.Unmarshal(w.Payload, p, json.RejectUnknownMembers(true)); err != nil {
		return e, Errorf(CodeBadRequest, "%s: %v", w.Type, err)
	}
	if err := p.validate(); err != nil {
		return e, Errorf(CodeBadRequest, "%s: %v", w.Type, err)
	}
	if err := checkForm(b, Envelope{ID: w.ID, Payload: p}); err != nil {
		return e, Errorf(CodeBadRequest, "%s: %v", w.Type, err)
	}
	e.Payload = p
	return e, nil
}

// checkLists bounds every list before memory is taken for its elements: 256 KiB
// of "{}," would become 80 MB of keys otherwise.
func checkLists(payload jsontext.Value) error {
	const most = MaxKeys // of any list; validate knows each one's own bound
	d := jsontext.NewDecoder(bytes.NewBuffer(payload))
	for {
		if _, err := d.ReadToken(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if kind, n := d.StackIndex(d.StackDepth()); kind == '[' && n > most {
			return fmt.Errorf("%s: more than %d elements", d.StackPointer().Parent(), most)
		}
	}
}

// checkForm compares b, which was read as e, with what Encode makes of e. That
// finds what a Go value does not show: a member that is missing, null or empty
// where it must be left out, and base64 or a time that is not written in the
// one way.
func checkForm(b []byte, e Envelope) error {
	c, err := Encode(e)
	if err != nil {
		return err
	}
	var got, want any
	if err := errors.Join(json.Unmarshal(b, &got), json.Unmarshal(c, &want)); err != nil {
		return err
	}
	return sameForm("", got, want)
}

// sameForm compares two JSON values and names the first difference by its JSON
// pointer. Numbers are compared as float64, which is exact for the protocol's.
func sameForm(path string, got, want any) error {
	switch want := want.(type) {
	case map[string]any:
		got, ok := got.(map[string]any)
		if !ok {
			return fmt.Errorf("%s is not an object", path)
		}
		for _, name := range slices.Sorted(maps.Keys(want)) {
			if _, ok := got[name]; !ok {
				return fmt.Errorf("%s/%s is missing", path, name)
			}
			if err := sameForm(path+"/"+name, got[name], want[name]); err != nil {
				return err
			}
		}
		for _, name := range slices.Sorted(maps.Keys(got)) {
			if _, ok := want[name]; !ok {
				return fmt.Errorf("%s/%s is empty, not left out", path, name)
			}
		}
	case []any:
		got, ok := got.([]any)
		if !ok || len(got) != len(want) {
			return fmt.Errorf("%s is not a list of %d", path, len(want))
		}
		for i := range want {
			if err := sameForm(fmt.Sprintf("%s/%d", path, i), got[i], want[i]); err != nil {
				return err
			}
		}
	default: // a string, number or bool
		if got != want {
			return fmt.Errorf("%s is null or not written in the one way", path)
		}
	}
	return nil
}

// checkID accepts up to MaxID letters, digits, '-' and '_'. The empty id stands
// for no request: hello has it, and the answer to an unreadable request.
func checkID(id string) error {
	if len(id) > MaxID {
		return fmt.Errorf("id of %d bytes, more than %d", len(id), MaxID)
	}
	for _, c := range []byte(id) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
		default:
			return errors.New("id has a character other than letters, digits, - and _")
		}
	}
	return nil
}

// clip shortens text from outside for a message.
func clip(s string) string {
	const most = 40
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// Time is a time on the link: RFC 3339, UTC, milliseconds, and nothing else.
type Time struct{ time.Time }

const timeLayout = "2006-01-02T15:04:05.000Z"

// At gives t as it will be read at the other end: UTC, whole milliseconds.
func At(t time.Time) Time { return Time{t.UTC().Truncate(time.Millisecond)} }

// MarshalJSON gives the link's form. It and UnmarshalJSON are needed although a
// time is a text: the JSON methods of the embedded time.Time would win over text
// methods here.
func (t Time) MarshalJSON() ([]byte, error) {
	if y := t.UTC().Year(); y < 0 || y > 9999 {
		return nil, fmt.Errorf("year %d does not fit RFC 3339", y)
	}
	return t.UTC().AppendFormat(nil, `"`+timeLayout+`"`), nil
}

// UnmarshalJSON takes exactly what MarshalJSON gives.
func (t *Time) UnmarshalJSON(b []byte) error {
	s, err := jsontext.AppendUnquote(nil, b)
	if err != nil {
		return errors.New("time is not a string")
	}
	v, err := time.Parse(timeLayout, string(s))
	if err != nil || v.Format(timeLayout) != string(s) {
		return fmt.Errorf("time %q is not of the form %s", clip(string(s)), timeLayout)
	}
	t.Time = v.UTC()
	return nil
}
