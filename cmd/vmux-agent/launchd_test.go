// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// queue is a listener whose clients are put into it.
type queue struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

func (q *queue) Addr() net.Addr { return &net.UnixAddr{} }

func TestTurnAway(t *testing.T) {
	t.Parallel()
	for name, stop := range map[string]time.Duration{"to the end": 11 * time.Second, "by a signal": time.Second, "by one before": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), stop)
				defer cancel()
				queues := []*queue{{conns: make(chan net.Conn), done: make(chan struct{})}, {conns: make(chan net.Conn), done: make(chan struct{})}}
				start, ended := time.Now(), make(chan struct{})
				go func() {
					defer close(ended)
					turnAway(ctx, []net.Listener{queues[0], queues[1]})
				}()
				for turn := 0; stop > 0 && turn < 2; turn++ {
					<-time.After(stop / 4)
					for _, q := range queues {
						client, server := net.Pipe()
						q.conns <- server
						if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
							t.Errorf("a client has %v", err)
						}
					}
				}
				<-ended
				if took := time.Since(start); took != min(stop, 10*time.Second) {
					t.Errorf("ended after %v", took)
				}
				for _, q := range queues {
					if _, err := q.Accept(); !errors.Is(err, net.ErrClosed) {
						t.Errorf("still open: %v", err)
					}
				}
			})
		})
	}
}
