// SPDX-License-Identifier: BSD-3-Clause

// Package envelope is the language that a device and a phone speak on their
// link: the messages, their JSON encoding and their framing, as
// vmux-protocol(7) describes them. It is pure: no clock, no network.
package envelope

import (
	"errors"
	"fmt"
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
	TypeHello           Type = "hello"
	TypeKeyListRequest  Type = "keyListRequest"
	TypeKeyListResponse Type = "keyListResponse"
	TypeSignRequest     Type = "signRequest"
	TypeSignResponse    Type = "signResponse"
	TypePending         Type = "pending"
	TypeCancel          Type = "cancel"
	TypePairRequest     Type = "pairRequest"
	TypePairResponse    Type = "pairResponse"
	TypePairConfirm     Type = "pairConfirm"
	TypePing            Type = "ping"
	TypePong            Type = "pong"
	TypeError           Type = "error"
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
	case TypePending:
		return new(Pending)
	case TypeCancel:
		return new(Cancel)
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

// Decode reads one JSON object, strictly: an unknown version, type or member, a
// duplicate or wrongly cased name, trailing bytes and values out of bounds are
// errors. An error is an *Error with the code to answer with; the envelope then
// has the id, as far as it could be read, and no payload.
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
	if err := json.Unmarshal(w.Payload, p, json.RejectUnknownMembers(true)); err != nil {
		return e, Errorf(CodeBadRequest, "%s: %v", w.Type, err)
	}
	if err := p.validate(); err != nil {
		return e, Errorf(CodeBadRequest, "%s: %v", w.Type, err)
	}
	e.Payload = p
	return e, nil
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

// MarshalText implements encoding.TextMarshaler.
func (t Time) MarshalText() ([]byte, error) {
	if y := t.UTC().Year(); y < 0 || y > 9999 {
		return nil, fmt.Errorf("year %d does not fit RFC 3339", y)
	}
	return t.UTC().AppendFormat(nil, timeLayout), nil
}

// UnmarshalText implements encoding.TextUnmarshaler. It takes exactly what
// MarshalText gives.
func (t *Time) UnmarshalText(b []byte) error {
	v, err := time.Parse(timeLayout, string(b))
	if err != nil {
		return fmt.Errorf("time %q is not of the form %s", clip(string(b)), timeLayout)
	}
	if v.Format(timeLayout) != string(b) {
		return fmt.Errorf("time %q is not of the form %s", clip(string(b)), timeLayout)
	}
	t.Time = v.UTC()
	return nil
}
