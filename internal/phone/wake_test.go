// SPDX-License-Identifier: BSD-3-Clause

package phone

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/store"
)

// pushes are what a rig's phone was woken by.
type pushes struct {
	mu   sync.Mutex
	sent []time.Time
	err  error
	then func()
}

func (p *pushes) wake(_ context.Context, phone store.Phone) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !phone.DeviceToken.Present() {
		return fmt.Errorf("%w: no token", ErrNoWake)
	}
	p.sent = append(p.sent, time.Now())
	if p.err == nil && p.then != nil {
		go p.then()
	}
	return p.err
}

func (p *pushes) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.sent)
}

// asleep gives a rig whose phone has sent a device token and is not there.
func asleep(t *testing.T, p *pushes, log *bytes.Buffer) *rig {
	r := newRig(t)
	err := r.keep.Update(func(s *store.State) error {
		s.Phones[0].DeviceToken = store.DeviceToken{Token: "abcdef", Environment: "sandbox", Topic: "app", Updated: time.Now()}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	o := r.options()
	o.Wake = p.wake
	if log != nil {
		o.Log = slog.New(slog.NewTextHandler(log, nil))
	}
	r.set.Close()
	if r.set, err = NewSet(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.set.Close)
	return r
}

// A burst of requests wakes the phone by one push, and all are answered.
func TestThreat_T03_OnePushForABurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pushes{}
		r := asleep(t, p, nil)
		p.then = func() {
			<-time.After(15 * time.Second)
			r.serve(t, "phone:1", r.paired)
		}
		start := time.Now()
		errs := make(chan error, 20)
		for range 20 {
			go func() {
				_, err := r.ask(t.Context())
				errs <- err
			}()
		}
		for range 20 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if took := time.Since(start); took > 17*time.Second {
			t.Errorf("took %v", took)
		}
		if n := p.count(); n != 1 {
			t.Errorf("%d pushes", n)
		}
	})
}

func TestThreat_T03_NobodyWakesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pushes{}
		r := asleep(t, p, nil)
		ask := func() (time.Duration, error) {
			start := time.Now()
			_, err := r.ask(t.Context())
			return time.Since(start), err
		}
		took, err := ask()
		if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "a push was sent, and it did not come within 20s") {
			t.Errorf("%v", err)
		}
		if took < wakeTime || took > wakeTime+2*wakeAfter {
			t.Errorf("took %v", took)
		}
		// Within 30 s of the push there is no other, and nobody waits for it in vain.
		if took, err := ask(); !errors.Is(err, ErrUnreachable) || took > reachTimeout || p.count() != 1 {
			t.Errorf("second: %v, %v, %d pushes", took, err, p.count())
		}
		<-time.After(wakeEvery)
		if took, err := ask(); !errors.Is(err, ErrUnreachable) || took < wakeTime || p.count() != 2 {
			t.Errorf("later: %v, %v, %d pushes", took, err, p.count())
		}
		for i, at := range p.sent[1:] {
			if at.Sub(p.sent[i]) < wakeEvery {
				t.Errorf("pushes %v apart", at.Sub(p.sent[i]))
			}
		}
	})
}

// One that comes while a push is under way waits with the others.
func TestLateRequestWaitsForThePushOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pushes{}
		r := asleep(t, p, nil)
		p.then = func() {
			<-time.After(19 * time.Second)
			r.serve(t, "phone:1", r.paired)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := r.ask(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if _, err := r.ask(t.Context()); err != nil {
			t.Error(err)
		}
		if n := p.count(); n != 1 {
			t.Errorf("%d pushes", n)
		}
	})
}

func TestNoPushWhereNoneIsNeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pushes{}
		r := asleep(t, p, nil)
		stop := r.serve(t, "phone:1", r.paired)
		if _, err := r.ask(t.Context()); err != nil {
			t.Fatal(err)
		}
		stop()
		// A listing has the phone looked for, and does not wake it.
		<-time.After(lookAfter + time.Second)
		if keys := r.set.Keys(); len(keys) != 1 {
			t.Errorf("%d keys", len(keys))
		}
		<-time.After(reachTimeout + time.Second)
		if n := p.count(); n != 0 {
			t.Fatalf("%d pushes", n)
		}
		// A request that comes when such a search is near its end does.
		<-time.After(lookAfter)
		r.set.Keys()
		<-time.After(reachTimeout - time.Millisecond)
		start := time.Now()
		if _, err := r.ask(t.Context()); !errors.Is(err, ErrUnreachable) || time.Since(start) < wakeTime || p.count() != 1 {
			t.Errorf("%v after %v, %d pushes", err, time.Since(start), p.count())
		}
	})
}

func TestPushFails(t *testing.T) {
	for name, tt := range map[string]struct {
		err    error
		said   string
		forget bool
		again  bool // the next request may push
	}{
		"nothing set up": {fmt.Errorf("%w: no key", ErrNoWake), "", false, true},
		"no network":     {errors.New("no route to host"), "the push that wakes it failed: no route to host", false, false},
		"token gone":     {fmt.Errorf("apple: %w", ErrTokenGone), "the push that wakes it failed: apple: ", true, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &pushes{err: tt.err}
				var log bytes.Buffer
				r := asleep(t, p, &log)
				start := time.Now()
				_, err := r.ask(t.Context())
				if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), tt.said) || tt.said == "" && strings.Contains(err.Error(), "push") {
					t.Errorf("%v", err)
				}
				if took := time.Since(start); took > reachTimeout {
					t.Errorf("took %v", took)
				}
				s, err := r.keep.Load()
				if err != nil || s.Phones[0].DeviceToken.Present() == tt.forget {
					t.Errorf("token %+v, %v", s.Phones[0].DeviceToken, err)
				}
				<-time.After(stillAway)
				r.ask(t.Context())
				if n := p.count(); (n == 2) != tt.again {
					t.Errorf("%d pushes", n)
				}
				r.set.Close()
				if strings.Contains(log.String(), "device token forgotten") != tt.forget || strings.Contains(log.String(), "abcdef") {
					t.Errorf("log:\n%s", &log)
				}
			})
		})
	}
}

// What the phone says of how it is woken is stored, once.
func TestTokenIsStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.tell = []envelope.Payload{&envelope.DeviceTokenUpdate{Token: []byte{0xab, 1}, Environment: envelope.Sandbox, Topic: "app.x"}}
		stop := r.serve(t, "phone:1", r.paired)
		if _, err := r.ask(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		s, err := r.keep.Load()
		if d := s.Phones[0].DeviceToken; err != nil || d.Token != "ab01" || d.Environment != "sandbox" || d.Topic != "app.x" || !d.Updated.Equal(time.Now()) {
			t.Errorf("%+v, %v", d, err)
		}
		first := s.Phones[0].DeviceToken.Updated
		stop()
		<-time.After(time.Minute)
		r.serve(t, "phone:1", r.paired)
		if _, err := r.ask(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if s, err = r.keep.Load(); err != nil || !s.Phones[0].DeviceToken.Updated.Equal(first) {
			t.Errorf("stored again: %+v, %v", s.Phones[0].DeviceToken, err)
		}
	})
}
