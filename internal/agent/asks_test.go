// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/policy"
)

// joined waits until so many requests wait for the one answer that is asked for.
func (r *rig) joined(n int) {
	r.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for {
		r.server.asks.mu.Lock()
		got, open := 0, len(r.server.asks.open)
		for _, o := range r.server.asks.open {
			got += o.requests
		}
		r.server.asks.mu.Unlock()
		if got == n && open <= 1 {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			r.t.Fatalf("%d requests wait for %d answers, want %d for 1", got, open, n)
		}
	}
}

// asking is an owner who is asked one thing after the other and answers when told.
type asking struct {
	ctx    context.Context
	r      Request
	answer chan error
}

func (r *rig) asking() <-chan asking {
	asked := make(chan asking, 64)
	r.signer.owner(func(ctx context.Context, q Request) error {
		a := asking{ctx, q, make(chan error)}
		asked <- a
		select {
		case err := <-a.answer:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return asked
}

func (r *rig) ask(key ssh.PublicKey, data []byte) raw {
	r.t.Helper()
	c := r.dial()
	c.send(frame(signMessage(key, data, 0)...))
	return c
}

func TestSameQuestionIsAskedOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	asked := r.asking()
	ed := r.signer.Keys(nil)[0].Public
	data := loginData(ed, sidA, nil)
	var clients []raw
	for range 20 {
		clients = append(clients, r.ask(ed, data))
	}
	only := await(t, asked)
	r.joined(20)
	only.answer <- nil
	for i, c := range clients {
		if got := c.recv()[0]; got != msgSignResponse {
			t.Errorf("client %d: answer %d", i, got)
		}
	}
	if n := len(r.signer.requests()); n != 1 {
		t.Errorf("asked %d times", n)
	}
	if n := len(r.log.lines("sign request", "outcome=signed")); n != 20 {
		t.Errorf("%d lines in the log", n)
	}
	// The next one is a new question.
	later := r.ask(ed, data)
	await(t, asked).answer <- nil
	if got := later.recv()[0]; got != msgSignResponse {
		t.Errorf("later: answer %d", got)
	}
}

func TestOneQuestionAboutASessionAtATime(t *testing.T) {
	t.Parallel()
	for _, first := range []error{nil, fmt.Errorf("phone: %w", ErrDenied), errors.New("phone is away")} {
		r := newRig(t)
		asked := r.asking()
		ed, p256 := r.signer.Keys(nil)[0].Public, r.signer.Keys(nil)[1].Public
		one := r.ask(ed, loginData(ed, sidA, nil))
		shown := await(t, asked)
		two := r.ask(p256, loginData(p256, sidA, nil))
		elsewhere := r.ask(p256, loginData(p256, sidB, nil)) // comes after two, and is not held up by one
		other := await(t, asked)
		if string(other.r.Meaning.SessionID) != sidB {
			t.Fatal("a second question about the same session while the first is open")
		}
		other.answer <- nil
		if got := elsewhere.recv()[0]; got != msgSignResponse {
			t.Errorf("other session: answer %d", got)
		}
		shown.answer <- first
		if got := one.recv()[0]; (got == msgSignResponse) != (first == nil) {
			t.Errorf("first: answer %d", got)
		}
		if errors.Is(first, ErrDenied) {
			if got := two.recv()[0]; got != msgFailure {
				t.Errorf("after a no: answer %d", got)
			}
			if n := len(r.signer.requests()); n != 2 {
				t.Errorf("asked %d times after a no", n)
			}
			continue
		}
		// A yes is for the key that was shown.
		await(t, asked).answer <- nil
		if got := two.recv()[0]; got != msgSignResponse {
			t.Errorf("second: answer %d", got)
		}
	}
}

func TestAskedUntilTheLastClientHangsUp(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	asked := r.asking()
	ed := r.signer.Keys(nil)[0].Public
	data := loginData(ed, sidA, nil)
	one := r.ask(ed, data)
	shown := await(t, asked)
	two := r.ask(ed, data)
	r.joined(2)
	one.Close()
	r.joined(1)
	if err := shown.ctx.Err(); err != nil {
		t.Fatalf("withdrawn while a client waits: %v", err)
	}
	shown.answer <- nil
	if got := two.recv()[0]; got != msgSignResponse {
		t.Errorf("answer %d", got)
	}

	three := r.ask(ed, data)
	shown = await(t, asked)
	four := r.ask(ed, data)
	r.joined(2)
	three.Close()
	r.joined(1)
	four.Close()
	await(t, shown.ctx.Done())
	if err := context.Cause(shown.ctx); !errors.Is(err, errHungUp) {
		t.Errorf("cause is %v", err)
	}
	// Whoever comes now asks anew, also while the former prompt is taken away.
	five := r.ask(ed, data)
	await(t, asked).answer <- nil
	if got := five.recv()[0]; got != msgSignResponse {
		t.Errorf("answer %d", got)
	}
	r.stop()
	if n := len(r.log.lines("outcome=withdrawn")); n != 3 {
		t.Errorf("%d withdrawn in the log:\n%s", n, r.log)
	}
}

// A fault ends the connections that asked, and no others.
func TestPanicWhileAsked(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.signer.owner(func(context.Context, Request) error { panic("spoiled") })
	ed := r.signer.Keys(nil)[0].Public
	other := r.dial()
	if _, err := readFrame(r.ask(ed, sshsigData("git"))); err == nil {
		t.Error("answered")
	}
	if got := other.call(msgRequestIdentities)[0]; got != msgIdentitiesAnswer {
		t.Errorf("another connection: answer %d", got)
	}
	if lines := r.log.lines("fault=", "spoiled"); len(lines) != 1 || !strings.Contains(lines[0], "asks_test.go") {
		t.Errorf("log does not say where:\n%s", r.log)
	}
}

// What has changed while a request waited counts: neither is its prompt raised then, nor is a prompt's answer handed on.
func TestWaitingRequestsAreHeldAgainstWhatIsNow(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(r *rig){
		"policy": func(r *rig) { r.policy.Store(&policy.Policy{Default: policy.Refuse}) },
		"lock": func(r *rig) {
			if got := r.dial().call(appendString([]byte{msgLock}, "secret")...)[0]; got != msgSuccess {
				r.t.Fatalf("lock: %d", got)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			asked := r.asking()
			ed, p256 := r.signer.Keys(nil)[0].Public, r.signer.Keys(nil)[1].Public
			one := r.ask(ed, loginData(ed, sidA, nil))
			shown := await(t, asked)
			two := r.ask(p256, loginData(p256, sidA, nil))
			change(r)
			shown.answer <- nil
			if got := one.recv()[0]; got != msgFailure {
				t.Errorf("the prompt's answer: %d", got)
			}
			if got := two.recv()[0]; got != msgFailure {
				t.Errorf("the one that waited: %d", got)
			}
			if n := len(r.signer.requests()); n != 1 {
				t.Errorf("asked %d times", n)
			}
		})
	}
}
