// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/transport"
)

// said answers each prompt as it was told to, and counts them.
type said struct {
	answer error
	asked  int
}

func (s *said) Approve(context.Context, *Prompt) error {
	s.asked++
	return s.answer
}

// forgive forgets what the owner has refused a device.
func (ps *prompts) forgive(device transport.Pin) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	delete(ps.refused, device)
}

// N02: who was told no again and again is not shown for a while, a longer one each
// time; other devices are, and a yes ends it.
func TestThreat_N02_HeldUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		owner := &said{answer: ErrDenied}
		s := testServer(t, owner)
		other := transport.Pin{9}
		if err := s.update(func(st *State) error { _, err := st.addDevice("desk", other, time.Now()); return err }); err != nil {
			t.Fatal(err)
		}
		n, want := 0, 0
		ask := func(pin transport.Pin, code envelope.Code, shown bool) {
			t.Helper()
			n++
			p, err := s.handle(t.Context(), pin, fmt.Sprint(n), request(s, "work", byte(n)))
			wantCode(t, p, err, code)
			if shown {
				want++
			}
			if owner.asked != want {
				t.Fatalf("request %d: %d prompts, want %d", n, owner.asked, want)
			}
		}
		for range freeRefusals {
			ask(testPin, envelope.CodeDenied, true)
		}
		ask(other, envelope.CodeDenied, true) // is not meant
		for wait := refusalWait; wait < 4*refusalWait; wait *= 2 {
			ask(testPin, envelope.CodeDenied, false)
			<-time.After(wait - time.Second)
			ask(testPin, envelope.CodeDenied, false)
			<-time.After(time.Second)
			ask(testPin, envelope.CodeDenied, true)
		}
		owner.answer = nil
		<-time.After(4 * refusalWait)
		ask(testPin, "", true)
		owner.answer = ErrDenied
		for range freeRefusals { // the row begins anew
			ask(testPin, envelope.CodeDenied, true)
		}
		ask(testPin, envelope.CodeDenied, false)
		<-time.After(refusalMemory)
		for range freeRefusals { // it is forgotten
			ask(testPin, envelope.CodeDenied, true)
		}
		ask(testPin, envelope.CodeDenied, false)
	})
}

func TestRefusalsBounded(t *testing.T) {
	t.Parallel()
	r, now := refusals{}, time.Now()
	for range 100 {
		r.add(testPin, now)
	}
	if left := r.left(testPin, now); left != maxRefusalWait {
		t.Errorf("held up for %v", left)
	}
}
