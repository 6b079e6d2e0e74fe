// SPDX-License-Identifier: BSD-3-Clause

package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Bounds of a line.
const (
	// maxField bounds a text as it is written, escapes included. Thirteen of them, two hashes, two times and the names
	// are less than maxLine.
	maxField = 1 << 10
	// maxLine bounds what is read of a line, without its end. A longer one is none of ours.
	maxLine = 16 << 10
)

// Events that this package writes itself.
const (
	EventRecovered = "recovered" // the line before was cut off
	EventRotated   = "rotated"   // begins each file but the first one of a log
)

// timeForm has the same width for each time, so that times compare as text.
const timeForm = "2006-01-02T15:04:05.000Z"

// noLine is what the first line of a log is chained to.
var noLine = strings.Repeat("0", 2*sha256.Size)

// Record is one line of the log. What is empty is left out.
type Record struct {
	Time        time.Time `json:"time,omitzero"` // UTC, milliseconds; set by Append when zero
	Event       string    `json:"event,omitzero"`
	Device      string    `json:"device,omitzero"`      // name as paired
	Pin         string    `json:"pin,omitzero"`         // the device's, SHA256:…
	ID          string    `json:"id,omitzero"`          // hash of the request's id, hexadecimal
	CreatedAt   time.Time `json:"createdAt,omitzero"`   // of the request, by the device's clock; UTC, milliseconds
	Operation   string    `json:"operation,omitzero"`   //
	User        string    `json:"user,omitzero"`        // remote user of a login
	HostKey     string    `json:"hostKey,omitzero"`     // fingerprint, verified
	Key         string    `json:"key,omitzero"`         // label
	Fingerprint string    `json:"fingerprint,omitzero"` // of the key
	Serial      string    `json:"serial,omitzero"`      // of a certificate
	KeyID       string    `json:"keyId,omitzero"`       // of a certificate
	Outcome     string    `json:"outcome,omitzero"`
	Reason      string    `json:"reason,omitzero"`

	// Before is set by Append in a record with EventRecovered; see the package's documentation.
	Before string `json:"before,omitzero"`
	// Previous is set by Append: SHA-256, hexadecimal, of the line before without its end; 64 zeros in the first line
	// of a log.
	Previous string `json:"previous,omitzero"`
}

// texts are the fields that callers set.
func (r *Record) texts() []*string {
	return []*string{&r.Event, &r.Device, &r.Pin, &r.ID, &r.Operation, &r.User, &r.HostKey, &r.Key, &r.Fingerprint,
		&r.Serial, &r.KeyID, &r.Outcome, &r.Reason}
}

// bound makes a record that can be written, whatever its texts and times are.
func (r *Record) bound() {
	for _, s := range r.texts() {
		*s = cut(*s)
	}
	r.Time, r.CreatedAt = whole(r.Time), whole(r.CreatedAt)
	r.Before, r.Previous = "", ""
}

// cut shortens s so that no more than maxField bytes of it are written, and replaces what is not UTF-8.
func cut(s string) string {
	n := 0
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '"', r == '\\', r == '\b', r == '\f', r == '\n', r == '\r', r == '\t':
			n += 2
		case r < ' ':
			n += len(`\u0000`)
		default: // U+FFFD for a byte that is not UTF-8
			n += utf8.RuneLen(r)
		}
		if n > maxField {
			break
		}
		b.WriteRune(r)
	}
	return b.String()
}

// whole gives a time in milliseconds. One that RFC 3339 cannot write is none.
func whole(t time.Time) time.Time {
	t = t.UTC().Truncate(time.Millisecond)
	if y := t.Year(); y < 1 || y > 9999 {
		return time.Time{}
	}
	return t
}

// encode gives the line without its end.
func encode(r Record) ([]byte, error) {
	times := json.MarshalFunc(func(t time.Time) ([]byte, error) { return []byte(`"` + t.Format(timeForm) + `"`), nil })
	b, err := json.Marshal(r, json.WithMarshalers(times))
	if err == nil && len(b) > maxLine {
		err = fmt.Errorf("a line of %d bytes", len(b)) // not reached while the bounds are right
	}
	return b, err
}

var errNoRecord = errors.New("is no record")

// decode parses a line. Members that a later version may have are ignored: they are in the hash.
func decode(line []byte) (Record, error) {
	var r Record
	if len(line) > maxLine {
		return Record{}, errNoRecord
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return Record{}, fmt.Errorf("%w: %w", errNoRecord, err)
	}
	if r.Event == "" || r.Time.IsZero() || !isHash(r.Previous) {
		return Record{}, errNoRecord
	}
	return r, nil
}

// incomplete says whether a line that is no record is the beginning of one, which may end in zeros: a file system can
// lose the content of a file's last block in a power failure, and keep its size.
func incomplete(line []byte) bool {
	if len(line) == 0 || len(line) > maxLine {
		return false
	}
	line = bytes.TrimRight(line, "\x00")
	if len(line) == 0 {
		return true
	}
	if line[0] != '{' {
		return false
	}
	_, err := jsontext.NewDecoder(bytes.NewReader(line)).ReadValue()
	return errors.Is(err, io.ErrUnexpectedEOF)
}

// hash is that of a line without its end.
func hash(line []byte) string {
	sum := sha256.Sum256(line)
	return hex.EncodeToString(sum[:])
}

// fold adds one part of a line to what a recovered record has as Before.
func fold(before string, part []byte) string {
	return hash(append([]byte(before+"\n"), part...))
}

// isHash says whether s is a SHA-256 in the only form that is written.
func isHash(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == sha256.Size && s == strings.ToLower(s)
}
