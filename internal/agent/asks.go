// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"runtime/debug"
	"sync"

	"golang.org/x/crypto/ssh"
)

// question is what a signature is asked for: requests with the same one can share the answer.
type question [sha256.Size]byte

func questionOf(asked ssh.PublicKey, data []byte, flags uint32) question {
	h := sha256.New()
	h.Write(binary.BigEndian.AppendUint32(nil, flags))
	h.Write(appendString(nil, asked.Marshal()))
	h.Write(data)
	return question(h.Sum(nil))
}

// asks are the questions that the owner has. About one subject there is one at a time: requests with the same question
// share it, those with another one wait, and find out that the answer to the first was no.
type asks struct {
	mu   sync.Mutex
	open map[subject]*ask
}

type ask struct {
	question question
	requests int // that wait for the answer; at 0 it is being withdrawn
	cancel   context.CancelCauseFunc
	done     chan struct{} // closed after the following are set
	sig      *ssh.Signature
	err      error
	fault    string // that f panicked with
}

// do gives f's answer to a question, or that of another request's f. may says, before f is called, whether it still
// should be. f runs as long as anybody waits for it: its context ends when the last of them has gone, and
// that one waits for its end.
func (a *asks) do(ctx context.Context, s subject, q question, may func() error, f func(context.Context) (*ssh.Signature, error)) (*ssh.Signature, error) {
	for {
		if err := may(); err != nil {
			return nil, err
		}
		o, mine := a.join(s, q, f)
		select {
		case <-o.done:
			switch {
			case o.fault != "" && mine:
				panic(o.fault) // on the connection's goroutine, which ends alone
			case mine:
				return o.sig, o.err
			}
		case <-ctx.Done():
			if mine {
				a.leave(o, context.Cause(ctx))
			}
			return nil, context.Cause(ctx)
		}
	}
}

// join gives what is asked about the subject, and whether that is this question.
func (a *asks) join(s subject, q question, f func(context.Context) (*ssh.Signature, error)) (o *ask, mine bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if o := a.open[s]; o != nil {
		mine = o.question == q && o.requests > 0
		if mine {
			o.requests++
		}
		return o, mine
	}
	// Not the context of the request that came first: others may wait longer.
	ctx, cancel := context.WithCancelCause(context.Background())
	o = &ask{question: q, requests: 1, cancel: cancel, done: make(chan struct{})}
	if a.open == nil {
		a.open = make(map[subject]*ask)
	}
	a.open[s] = o
	go func() {
		defer func() {
			if p := recover(); p != nil {
				o.fault = fmt.Sprintf("%v\n%s", p, debug.Stack())
			}
			cancel(nil)
			a.mu.Lock()
			delete(a.open, s)
			a.mu.Unlock()
			close(o.done)
		}()
		o.sig, o.err = f(ctx)
	}()
	return o, true
}

// leave is for a request that waits no more, and why.
func (a *asks) leave(o *ask, why error) {
	a.mu.Lock()
	o.requests--
	last := o.requests == 0
	a.mu.Unlock()
	if last {
		o.cancel(why)
		<-o.done
	}
}
