// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

const (
	// maxFrame is the longest message, without its length field. OpenSSH's agent has the same limit (AGENT_MAX_LEN).
	maxFrame = 256 << 10
	// firstBuffer holds every frame of an ordinary login but the bind, so an idle connection costs little more.
	firstBuffer = 512
	// keepBuffer is what a connection keeps between requests: a bind with a host certificate and a login fit.
	keepBuffer = 8 << 10
	// maxAhead bounds what is read while a request is pending: 32 pipelined requests, as many as x/crypto's client
	// sends, of 16 KiB each. What a client sends beyond that waits in the socket.
	maxAhead = 512 << 10
)

var (
	errFrameTooLong = fmt.Errorf("frame longer than %d bytes", maxFrame)
	errFrameEmpty   = errors.New("frame without a message type")
)

// frames cuts what a connection sends into messages. Memory grows with the bytes that came, never with the length
// that was announced. It is used by one goroutine at a time: the connection's, or its read-ahead while that waits.
type frames struct {
	conn net.Conn
	buf  []byte // read and not yet consumed: buf[r:]
	r    int
	err  error // what ended reading; sticky
}

// next gives the next message. It is valid until the following call of next or fill. A clean end between two
// messages is io.EOF, one inside a message io.ErrUnexpectedEOF.
func (f *frames) next() ([]byte, error) {
	for {
		msg, err := f.cut()
		if msg != nil || err != nil {
			return msg, err
		}
		if f.err != nil {
			if f.err == io.EOF && len(f.buf) > f.r {
				return nil, io.ErrUnexpectedEOF
			}
			return nil, f.err
		}
		f.fill()
	}
}

// cut takes one whole message off the buffer; nil when more bytes are needed.
func (f *frames) cut() ([]byte, error) {
	have := f.buf[f.r:]
	if len(have) < 4 {
		return nil, nil
	}
	n := binary.BigEndian.Uint32(have)
	switch {
	case n > maxFrame:
		return nil, errFrameTooLong
	case n == 0:
		return nil, errFrameEmpty
	case uint32(len(have)-4) < n:
		return nil, nil
	}
	f.r += 4 + int(n)
	return have[4 : 4+n : 4+n], nil
}

// fill reads once. The buffer doubles only when the bytes that came have filled it.
func (f *frames) fill() {
	if f.r == len(f.buf) {
		f.r = 0
		if cap(f.buf) > keepBuffer {
			f.buf = nil
		}
		f.buf = f.buf[:0]
	}
	if len(f.buf) == cap(f.buf) {
		if f.r > 0 && f.r >= cap(f.buf)/2 {
			f.buf = f.buf[:copy(f.buf, f.buf[f.r:])]
		} else {
			grown := make([]byte, len(f.buf)-f.r, max(2*(len(f.buf)-f.r), firstBuffer))
			copy(grown, f.buf[f.r:])
			f.buf = grown
		}
		f.r = 0
	}
	n, err := f.conn.Read(f.buf[len(f.buf):cap(f.buf)])
	f.buf = f.buf[:len(f.buf)+n]
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		f.err = err
	}
}

// readAhead starts reading while a request is pending and calls hungUp, once, when the client is gone. The returned
// function stops it and waits; until then nobody else uses f. Messages taken from f before are no longer valid.
func (f *frames) readAhead(hungUp func()) (stop func()) {
	var stopped, done = make(chan struct{}), make(chan struct{})
	go func() { // owned by the caller of stop
		defer close(done)
		for f.err == nil && len(f.buf)-f.r < maxAhead {
			select {
			case <-stopped:
				return
			default:
				f.fill()
			}
		}
		if f.err != nil {
			hungUp()
		}
	}()
	return func() {
		close(stopped)
		// A deadline in the past ends a read that is under way; a connection that fails to set one is closed, and so is its read.
		_ = f.conn.SetReadDeadline(time.Unix(1, 0))
		<-done
		_ = f.conn.SetReadDeadline(time.Time{})
	}
}
