// SPDX-License-Identifier: BSD-3-Clause

package transport

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"vmux.app/toolkit/internal/envelope"
)

// The times of a link's life, as vmux-protocol(7) has them.
const (
	freshFor    = 5 * time.Second  // a link heard of within this is used without a ping
	pingTimeout = 1 * time.Second  // for that ping's answer
	ackTimeout  = 2 * time.Second  // for the phone's first word on a request, which it says at once
	ackInterval = 5 * time.Second  // between two pendings of a request
	idlePing    = 30 * time.Second // between pings of an idle link
	idleEnd     = 3 * idlePing     // a phone gives up a device that is silent so long
)

// LostError says that the link ended before the answer came. Without an
// acknowledgement the phone may never have seen the request, and the same
// request, under the same id, may be sent on a new link.
type LostError struct {
	Acknowledged bool
	Err          error
}

func (e *LostError) Error() string {
	if e.Acknowledged {
		return fmt.Sprintf("link to the phone lost while it was asking: %v", e.Err)
	}
	return fmt.Sprintf("link to the phone lost: %v", e.Err)
}

// Unwrap gives the reason.
func (e *LostError) Unwrap() error { return e.Err }

var (
	errSilent = errors.New("the phone is silent")
	errClosed = errors.New("closed")
	errIDUsed = errors.New("request id is in use")
)

// Link is the device's end of a connection to a phone. Any number of calls
// share it, each waits for its own answer only.
type Link struct {
	conn *Conn
	peer envelope.Hello
	skew time.Duration

	done   chan struct{}                    // closed when the link has ended
	tokens chan *envelope.DeviceTokenUpdate // the last one, until it is taken

	mu    sync.Mutex
	err   error
	calls map[string]*call
	heard time.Time // when the last envelope came

	readers sync.WaitGroup
}

// call is one request under way. Both channels have room for one, and the
// reader never waits to fill them.
type call struct {
	answer  chan envelope.Payload
	pending chan struct{}
}

// Open exchanges hello on c, the phone's first, within ctx, and starts the
// link. It closes c when that fails.
func Open(ctx context.Context, c *Conn, hello envelope.Hello) (*Link, error) {
	l := &Link{conn: c, done: make(chan struct{}), tokens: make(chan *envelope.DeviceTokenUpdate, 1), calls: map[string]*call{}}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	err := l.hello(hello)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		c.Close()
		if cause := context.Cause(ctx); cause != nil && !errors.Is(err, ErrRefused) {
			return nil, fmt.Errorf("hello: %w (%w)", err, cause)
		}
		return nil, fmt.Errorf("hello: %w", err)
	}
	l.readers.Add(2)
	go l.read()
	go l.keep()
	return l, nil
}

func (l *Link) hello(mine envelope.Hello) error {
	e, err := l.conn.Receive()
	if err != nil {
		return err
	}
	switch p := e.Payload.(type) {
	case *envelope.Hello:
		l.peer = *p
	case *envelope.Error:
		return p
	default:
		return fmt.Errorf("%s instead of hello", p.Type())
	}
	now := time.Now()
	l.skew = l.peer.Clock.Sub(now)
	l.heard = now
	mine.Clock = envelope.At(now)
	return l.conn.Send(envelope.Envelope{Payload: &mine})
}

// Peer is what the phone said of itself.
func (l *Link) Peer() envelope.Hello { return l.peer }

// Skew is how far the phone's clock was ahead of ours at hello, transit
// included.
func (l *Link) Skew() time.Duration { return l.skew }

// Conn is the connection below.
func (l *Link) Conn() *Conn { return l.conn }

// Done is closed when the link has ended.
func (l *Link) Done() <-chan struct{} { return l.done }

// Tokens gives what the phone says of how it is woken, the latest only.
func (l *Link) Tokens() <-chan *envelope.DeviceTokenUpdate { return l.tokens }

// Err says why the link has ended, nil while it lives.
func (l *Link) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Close ends the link and every call on it, and waits for its goroutines.
func (l *Link) Close() {
	l.fail(errClosed)
	l.readers.Wait()
}

func (l *Link) fail(err error) {
	l.mu.Lock()
	first := l.err == nil
	if first {
		l.err = err
		close(l.done)
	}
	l.mu.Unlock()
	if first {
		l.conn.Close()
	}
}

// NewID gives an id for a request: 128 random bits.
func NewID() string { return rand.Text() }

// Call sends req under id and waits for its answer. When ctx ends first, the
// request is withdrawn from the phone and the context's cause returned. An
// error that the phone answered is an *envelope.Error; the link's end a
// *LostError.
func (l *Link) Call(ctx context.Context, id string, req envelope.Payload) (envelope.Payload, error) {
	if err := l.fresh(ctx); err != nil {
		return nil, err
	}
	return l.call(ctx, id, req, ackTimeout)
}

// fresh makes sure that somebody is at the other end of a link that was idle.
func (l *Link) fresh(ctx context.Context) error {
	l.mu.Lock()
	idle := time.Since(l.heard)
	l.mu.Unlock()
	if idle <= freshFor {
		return nil
	}
	return l.Ping(ctx)
}

// Ping asks for a sign of life and takes the link for lost after 1 s without.
func (l *Link) Ping(ctx context.Context) error {
	_, err := l.call(ctx, NewID(), &envelope.Ping{}, pingTimeout)
	return err
}

// call gives the link up when the phone says nothing for most, which is more
// once it has acknowledged the request.
func (l *Link) call(ctx context.Context, id string, req envelope.Payload, most time.Duration) (envelope.Payload, error) {
	c := &call{answer: make(chan envelope.Payload, 1), pending: make(chan struct{}, 1)}
	l.mu.Lock()
	if err := l.err; err != nil {
		l.mu.Unlock()
		return nil, &LostError{Err: err}
	}
	if _, used := l.calls[id]; used {
		l.mu.Unlock()
		return nil, errIDUsed
	}
	l.calls[id] = c
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.calls, id)
		l.mu.Unlock()
	}()

	// In a goroutine, since a peer that takes nothing holds it up.
	sent := make(chan error, 1)
	go func() { sent <- l.conn.Send(envelope.Envelope{ID: id, Payload: req}) }()
	acknowledged := false
	silence := time.NewTimer(most)
	defer silence.Stop()
	for {
		select {
		case err := <-sent:
			switch {
			case err == nil:
				sent = nil
			case errors.Is(err, errEncode):
				return nil, err
			default:
				l.fail(err)
				return nil, &LostError{Err: err}
			}
		case p := <-c.answer:
			if e, ok := p.(*envelope.Error); ok {
				return nil, e
			}
			return p, nil
		case <-c.pending:
			acknowledged = true
			most = ackInterval + ackTimeout
			silence.Reset(most)
		case <-silence.C:
			// What it says about other requests shows that it is there and busy.
			l.mu.Lock()
			quiet := time.Since(l.heard)
			l.mu.Unlock()
			if quiet < most {
				silence.Reset(most - quiet)
				continue
			}
			l.fail(errSilent)
			return nil, &LostError{acknowledged, errSilent}
		case <-ctx.Done():
			go func() {
				if sent == nil || <-sent == nil {
					// An error means that the link is lost, which withdraws the request too.
					_ = l.conn.Send(envelope.Envelope{ID: id, Payload: &envelope.Cancel{}})
				}
			}()
			return nil, context.Cause(ctx)
		case <-l.done:
			select {
			case p := <-c.answer: // it came just before the end
				if e, ok := p.(*envelope.Error); ok {
					return nil, e
				}
				return p, nil
			default:
			}
			return nil, &LostError{acknowledged, l.Err()}
		}
	}
}

func (l *Link) read() {
	defer l.readers.Done()
	for {
		e, err := l.conn.Receive()
		var bad *envelope.Error
		if err != nil && !errors.As(err, &bad) {
			l.fail(err)
			return
		}
		l.mu.Lock()
		l.heard = time.Now()
		c := l.calls[e.ID]
		l.mu.Unlock()
		if bad != nil {
			// The phone's answer is of no use; who waits for it hears why.
			e.Payload = envelope.Errorf(envelope.CodeInternal, "unreadable answer: %s", bad.Message)
		}
		if u, ok := e.Payload.(*envelope.DeviceTokenUpdate); ok && e.ID == "" {
			select {
			case <-l.tokens: // what nobody has taken is out of date
			default:
			}
			l.tokens <- u // there is room: nobody else sends
			continue
		}
		if c == nil {
			continue // an answer that came after its call had given up
		}
		if _, ok := e.Payload.(*envelope.Pending); ok {
			select {
			case c.pending <- struct{}{}:
			default: // one is already waiting to be seen
			}
			continue
		}
		select {
		case c.answer <- e.Payload:
		default: // a second answer: the first counts
		}
	}
}

// keep pings an idle link, so that its loss is noticed before it is needed and
// address translators on the way remember it.
func (l *Link) keep() {
	defer l.readers.Done()
	t := time.NewTicker(idlePing)
	defer t.Stop()
	for {
		select {
		case <-l.done:
			return
		case <-t.C:
			// The phone counts what it hears, so what it said lately does not matter.
			if err := l.Ping(context.Background()); err != nil {
				return // and the link has failed
			}
		}
	}
}
