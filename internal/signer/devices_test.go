// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"context"
	"io/fs"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/transport"
)

// N02: two devices that ask for the very same, under the same id, raise a prompt
// each. An answer is for the device that its prompt names, and each has room for
// prompts of its own.
func TestThreat_N02_DevicesShareNoPrompt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAnswers()
		s := testServer(t, a)
		desk := transport.Pin{8}
		err := s.update(func(st *State) error {
			_, err := st.addDevice("desk", desk, time.Now())
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		ask := func(pin transport.Pin, id string, r *envelope.SignRequest) <-chan result {
			c := make(chan result, 1)
			go func() {
				p, err := s.handle(t.Context(), pin, id, r)
				c <- result{p, err}
			}()
			synctest.Wait()
			return c
		}
		r := request(s, "work", 1)
		first, second := ask(testPin, "same", r), ask(desk, "same", r)
		if len(a.asked) != 2 {
			t.Fatalf("%d prompts", len(a.asked))
		}
		q1, q2 := <-a.asked, <-a.asked
		if q1.prompt.Verified.Device != "laptop" || q2.prompt.Verified.Device != "desk" {
			t.Errorf("prompts for %s and %s", q1.prompt.Verified.Device, q2.prompt.Verified.Device)
		}
		q1.reply <- ErrDenied
		synctest.Wait()
		if got := <-first; codeOf(got.err) != envelope.CodeDenied {
			t.Errorf("the laptop: %v", got.err)
		}
		if len(second) != 0 || q2.ctx.Err() != nil {
			t.Error("the laptop's answer ended the desk's prompt")
		}
		q2.reply <- nil
		got := <-second
		wantCode(t, got.payload, got.err, "")

		// One device's prompts take no room of the other's.
		var waiting []<-chan result
		for i := range maxPrompts {
			waiting = append(waiting, ask(desk, "d"+string(rune('a'+i)), request(s, "default", byte(i))))
		}
		p, err := s.handle(t.Context(), desk, "more", request(s, "default", 99))
		wantCode(t, p, err, envelope.CodeTooMany)
		for range waiting {
			<-a.asked
		}
		third := ask(testPin, "third", request(s, "work", 2))
		q3 := <-a.asked
		// Forgetting the desk ends its own, and nothing else.
		if err := s.update(func(st *State) error { st.Devices = st.Devices[:1]; return nil }); err != nil {
			t.Fatal(err)
		}
		for _, c := range waiting {
			if got := <-c; codeOf(got.err) != envelope.CodeNotPaired {
				t.Errorf("the desk: %v", got.err)
			}
		}
		if len(third) != 0 || q3.ctx.Err() != nil {
			t.Error("the laptop's prompt went with the desk")
		}
		q3.reply <- nil
		got = <-third
		wantCode(t, got.payload, got.err, "")
		s.prompts.wait()
	})
}

// I03: what is wrong within the signer is for its log. A device is not told names of
// files and programs.
func TestThreat_I03_DevicesAreToldNoPaths(t *testing.T) {
	t.Parallel()
	const secret = "/home/me/bin/ask"
	s, log := tpmServer(t, testHome(t), Options{Approver: failing{&fs.PathError{Op: "fork/exec", Path: secret, Err: fs.ErrNotExist}}})
	for what, err := range map[string]error{"login": loginBy(t, s, FirstKey, "a"), "certificate": certificateBy(t, s, "b")} {
		if codeOf(err) != envelope.CodeInternal || strings.Contains(err.Error(), "/") {
			t.Errorf("the device gets for a %s: %v", what, err)
		}
	}
	if text := log.take(); strings.Count(text, secret) != 2 {
		t.Errorf("the log has %s", text)
	}
}

// failing is an Approver that cannot ask.
type failing struct{ err error }

func (f failing) Approve(context.Context, *Prompt) error { return f.err }
