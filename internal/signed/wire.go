// SPDX-License-Identifier: BSD-3-Clause

package signed

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// reader takes RFC 4251 section 5 values off the front of rest. Its first failure sticks: later
// reads give zero values, so a form is read to its end and asked for err once. What it gives are
// parts of rest, never copies.
type reader struct {
	rest []byte
	err  error
}

func (r *reader) failf(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}

// take gives the next n bytes, named what in the failure.
func (r *reader) take(what string, n int) []byte {
	if r.err != nil {
		return nil
	}
	if n > len(r.rest) {
		r.failf("%s: %d bytes wanted, %d left", what, n, len(r.rest))
		return nil
	}
	// The full slice expression keeps an append by the owner of one field out of the next.
	v := r.rest[:n:n]
	r.rest = r.rest[n:]
	return v
}

func (r *reader) byte(what string) byte {
	if v := r.take(what, 1); v != nil {
		return v[0]
	}
	return 0
}

func (r *reader) uint32(what string) uint32 {
	if v := r.take(what, 4); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

func (r *reader) uint64(what string) uint64 {
	if v := r.take(what, 8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

// bytes gives the contents of a string of at most limit bytes.
func (r *reader) bytes(what string, limit int) []byte {
	n := r.uint32(what)
	if r.err == nil && uint64(n) > uint64(limit) {
		r.failf("%s: %d bytes, at most %d", what, n, limit)
	}
	return r.take(what, int(n))
}

// text is bytes for what OpenSSH keeps as a C string: a NUL would hide from one reader what
// another one sees. The bytes need not be UTF-8.
func (r *reader) text(what string, limit int) string {
	v := r.bytes(what, limit)
	if bytes.IndexByte(v, 0) >= 0 {
		r.failf("%s: contains a NUL byte", what)
	}
	return string(v)
}

// constant reads a string that can only be want.
func (r *reader) constant(what, want string) {
	if v := r.bytes(what, maxData); r.err == nil && string(v) != want {
		r.failf("%s: is not %q", what, want)
	}
}

// end fails unless everything was read.
func (r *reader) end() error {
	if r.err == nil && len(r.rest) > 0 {
		r.failf("%d bytes follow the end", len(r.rest))
	}
	return r.err
}

func appendString[T []byte | string](b []byte, v T) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(v)))
	return append(b, v...)
}
