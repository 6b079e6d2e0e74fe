// SPDX-License-Identifier: BSD-3-Clause

package mpc

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

const (
	// maxMessage bounds one message. The framework takes more, at a price that is said nowhere.
	maxMessage = 16 << 10
	// maxQueued bounds what was received and not read. The framework holds nobody back, and vmux's ends read at
	// once: this much is several of the largest envelopes that TLS has in flight for every request that may wait.
	maxQueued = 8 << 20
)

// Each message begins with what it is, since the framework does not say that a peer has closed before what it sent last
// has arrived, and because it may drop that when the session is left at once.
const (
	kindData = 0
	kindEnd  = 1 // nothing follows
)

// session is what a stream runs over. Its methods may wait for the framework, but for no callback of it.
type session interface {
	send(message []byte) error
	leave() // lost follows, or has come already
}

// stream is a net.Conn out of a session's messages.
type stream struct {
	session       session
	local, remote addr
	after         *sync.WaitGroup // of the owner: leaving goes on after Close

	wmu sync.Mutex // keeps messages of one Write together

	mu            sync.Mutex
	queue         [][]byte
	queued        int
	end           error // why nothing more is received: io.EOF, ErrLost, …
	gone          bool  // the session is lost
	closed        bool
	readDeadline  time.Time
	writeDeadline time.Time
	changed       chan struct{} // closed at each change
}

func newStream(s session, local, remote string, after *sync.WaitGroup) *stream {
	return &stream{session: s, local: addr(local), remote: addr(remote), after: after, changed: make(chan struct{})}
}

func (s *stream) changedLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// receive takes a message from the framework. It never waits.
func (s *stream) receive(message []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.end != nil, s.closed && (len(message) == 0 || message[0] != kindEnd):
		return
	case len(message) == 0 || message[0] > kindEnd:
		s.end = errMessage
	case message[0] == kindEnd:
		s.end = io.EOF
	case s.queued+len(message) > maxQueued:
		s.queue, s.queued, s.end = nil, 0, errOverflow
	case len(message) > 1:
		s.queue = append(s.queue, message[1:])
		s.queued += len(message)
	}
	s.changedLocked()
}

// lost is the framework's word that the session has ended. It never waits.
func (s *stream) lost() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = true
	if s.end == nil {
		s.end = ErrLost
	}
	s.changedLocked()
}

func (s *stream) Read(p []byte) (int, error) {
	for {
		s.mu.Lock()
		changed, deadline := s.changed, s.readDeadline
		switch {
		case s.closed:
			s.mu.Unlock()
			return 0, net.ErrClosed
		case expired(deadline):
			s.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			s.mu.Unlock()
			return 0, nil
		case len(s.queue) > 0:
			n := copy(p, s.queue[0])
			s.queued -= n
			if s.queue[0] = s.queue[0][n:]; len(s.queue[0]) == 0 {
				s.queued-- // its kind
				s.queue[0] = nil
				s.queue = s.queue[1:]
			}
			s.mu.Unlock()
			return n, nil
		case s.end != nil:
			err := s.end
			s.mu.Unlock()
			return 0, err
		}
		s.mu.Unlock()
		wait(changed, deadline)
	}
}

func expired(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

func wait(changed <-chan struct{}, deadline time.Time) {
	if deadline.IsZero() {
		<-changed
		return
	}
	t := time.NewTimer(time.Until(deadline))
	defer t.Stop()
	select {
	case <-changed:
	case <-t.C:
	}
}

// Write hands p over in messages. The framework queues without bound and says nothing of what has arrived, so that the
// deadline holds between messages only.
func (s *stream) Write(p []byte) (int, error) {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	written := 0
	for written < len(p) {
		s.mu.Lock()
		closed, gone, late := s.closed, s.gone, expired(s.writeDeadline)
		s.mu.Unlock()
		switch {
		case closed:
			return written, net.ErrClosed
		case gone:
			return written, ErrLost
		case late:
			return written, os.ErrDeadlineExceeded
		}
		n := min(len(p)-written, maxMessage-1)
		if err := s.session.send(append([]byte{kindData}, p[written:written+n]...)); err != nil {
			return written, err
		}
		written += n
	}
	return written, nil
}

// Close says the end to the peer and leaves the session when the peer has done so too, or after half a second.
func (s *stream) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return net.ErrClosed
	}
	s.closed = true
	s.queue, s.queued = nil, 0
	linger := s.end == nil
	s.changedLocked()
	s.mu.Unlock()
	s.after.Go(func() {
		if linger {
			s.linger()
		}
		s.session.leave()
	})
	return nil
}

func (s *stream) linger() {
	s.wmu.Lock()
	err := s.session.send([]byte{kindEnd})
	s.wmu.Unlock()
	deadline := time.Now().Add(closeWait)
	for err == nil && !expired(deadline) {
		s.mu.Lock()
		changed, ended := s.changed, s.end != nil
		s.mu.Unlock()
		if ended {
			return
		}
		wait(changed, deadline)
	}
}

func (s *stream) LocalAddr() net.Addr  { return s.local }
func (s *stream) RemoteAddr() net.Addr { return s.remote }

func (s *stream) SetDeadline(t time.Time) error {
	return s.set(func() { s.readDeadline, s.writeDeadline = t, t })
}

func (s *stream) SetReadDeadline(t time.Time) error {
	return s.set(func() { s.readDeadline = t })
}

func (s *stream) SetWriteDeadline(t time.Time) error {
	return s.set(func() { s.writeDeadline = t })
}

func (s *stream) set(change func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	change()
	s.changedLocked()
	return nil
}
