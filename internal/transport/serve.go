// SPDX-License-Identifier: BSD-3-Clause

package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"vmux.app/toolkit/internal/envelope"
)

const (
	// maxHandlers bounds the requests of one link that are under way at once. It
	// is above the number of prompts that may wait, so that the signer says which
	// bound was met, and bounds goroutines all the same.
	maxHandlers = 64
	// helloTimeout bounds the wait for the device's hello after ours.
	helloTimeout = 10 * time.Second
)

// Handler answers one request of a device. ctx ends when the device withdraws
// the request or the link is lost. An *envelope.Error is sent as it is, any
// other error as CodeInternal.
type Handler func(ctx context.Context, id string, req envelope.Payload) (envelope.Payload, error)

// Serve is the phone's end of a connection: it says hello, answers requests by
// h and tells the device that it is still at it, until the connection or ctx
// ends. It closes c and waits for its handlers. The error is nil when the
// device closed in order or ctx ended.
//
// When the device has said hello too, greeted is called, which may be nil. What the
// phone tells without being asked, such as a DeviceTokenUpdate, is what it gives.
func Serve(ctx context.Context, c *Conn, hello envelope.Hello, h Handler, greeted func() []envelope.Payload) error {
	ctx, cancel := context.WithCancel(ctx)
	s := &server{conn: c, handler: h, running: map[string]context.CancelFunc{}}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	err := s.serve(ctx, hello, greeted)
	ended := !stop()
	cancel()
	c.Close()
	s.handlers.Wait()
	if ended || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

type server struct {
	conn     *Conn
	handler  Handler
	handlers sync.WaitGroup

	mu      sync.Mutex
	running map[string]context.CancelFunc
}

func (s *server) serve(ctx context.Context, hello envelope.Hello, greeted func() []envelope.Payload) error {
	hello.Clock = envelope.At(time.Now())
	if err := s.conn.Send(envelope.Envelope{Payload: &hello}); err != nil {
		return err
	}
	if err := s.conn.SetReadDeadline(time.Now().Add(helloTimeout)); err != nil {
		return err
	}
	e, err := s.conn.Receive()
	if err != nil {
		return fmt.Errorf("hello: %w", err)
	}
	if _, ok := e.Payload.(*envelope.Hello); !ok {
		return fmt.Errorf("%s instead of hello", e.Payload.Type())
	}
	var tell []envelope.Payload
	if greeted != nil {
		tell = greeted()
	}
	for _, p := range tell {
		if err := s.conn.Send(envelope.Envelope{Payload: p}); err != nil {
			return err
		}
	}
	for {
		// The device pings an idle link; one that is silent is gone.
		if err := s.conn.SetReadDeadline(time.Now().Add(idleEnd)); err != nil {
			return err
		}
		e, err := s.conn.Receive()
		var bad *envelope.Error
		switch {
		case errors.As(err, &bad):
			err = s.conn.Send(envelope.Envelope{ID: e.ID, Payload: bad})
		case err != nil:
			return err
		default:
			err = s.take(ctx, e)
		}
		if err != nil {
			return err
		}
	}
}

// take acts on one envelope; an error ends the link.
func (s *server) take(ctx context.Context, e envelope.Envelope) error {
	refuse := func(code envelope.Code, format string, a ...any) error {
		return s.conn.Send(envelope.Envelope{ID: e.ID, Payload: envelope.Errorf(code, format, a...)})
	}
	switch e.Payload.(type) {
	case *envelope.Ping:
		return s.conn.Send(envelope.Envelope{ID: e.ID, Payload: &envelope.Pong{}})
	case *envelope.Cancel:
		s.mu.Lock()
		defer s.mu.Unlock()
		if cancel, ok := s.running[e.ID]; ok {
			cancel()
		}
		return nil
	case *envelope.KeyListRequest, *envelope.SignRequest, *envelope.CertificateRequest:
	default:
		return refuse(envelope.CodeBadRequest, "%s is not a request of a paired device", e.Payload.Type())
	}
	if e.ID == "" {
		return refuse(envelope.CodeBadRequest, "request without id")
	}
	s.mu.Lock()
	_, used := s.running[e.ID]
	full := len(s.running) >= maxHandlers
	if used || full {
		s.mu.Unlock()
		if used {
			return refuse(envelope.CodeBadRequest, "request id is in use")
		}
		return refuse(envelope.CodeTooMany, "%d requests are under way", maxHandlers)
	}
	ctx, cancel := context.WithCancel(ctx)
	s.running[e.ID] = cancel
	s.handlers.Add(1)
	s.mu.Unlock()
	go s.handle(ctx, cancel, e)
	return nil
}

func (s *server) handle(ctx context.Context, cancel context.CancelFunc, e envelope.Envelope) {
	defer s.handlers.Done()
	defer func() {
		s.mu.Lock()
		delete(s.running, e.ID)
		s.mu.Unlock()
		cancel()
	}()
	var stillHere sync.WaitGroup
	stop := make(chan struct{})
	stillHere.Go(func() { s.stillHere(stop, e.ID) })
	answer, err := s.handler(ctx, e.ID, e.Payload)
	close(stop)
	stillHere.Wait()
	if ctx.Err() != nil {
		return // withdrawn: what the handler has got to say came too late, and nobody may have it
	}
	if err != nil {
		var known *envelope.Error
		if !errors.As(err, &known) {
			known = envelope.Errorf(envelope.CodeInternal, "%v", err)
		}
		answer = known
	}
	// When this fails the connection is broken, and the reader notices.
	if err := s.conn.Send(envelope.Envelope{ID: e.ID, Payload: answer}); errors.Is(err, errEncode) {
		_ = s.conn.Send(envelope.Envelope{ID: e.ID, Payload: envelope.Errorf(envelope.CodeInternal, "%v", err)})
	}
}

// stillHere tells the device that its request has arrived and is being worked
// on, so that it can tell a person who thinks from a phone that is gone.
func (s *server) stillHere(stop <-chan struct{}, id string) {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-stop:
			return
		case <-t.C:
			if s.conn.Send(envelope.Envelope{ID: id, Payload: &envelope.Pending{}}) != nil {
				return
			}
			t.Reset(ackInterval)
		}
	}
}
