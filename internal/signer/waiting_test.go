// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"vmux.app/toolkit/internal/envelope"
)

// slow is an Approver whose prompts take their time to go.
type slow struct{ gone chan struct{} }

func (a slow) Approve(ctx context.Context, _ *Prompt) error {
	<-ctx.Done()
	<-a.gone
	return context.Cause(ctx)
}

// N02: prompts that were withdrawn and are not gone yet take no place of those
// that wait, but there is a bound on both together.
func TestThreat_N02_WithdrawnPromptsCount(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := slow{make(chan struct{})}
		s := testServer(t, a)
		n := 0
		ask := func() (cancel func(), done <-chan result) {
			n++
			ctx, cancel := context.WithCancel(t.Context())
			done = start(ctx, s, fmt.Sprint(n), request(s, "work", byte(n)))
			synctest.Wait()
			return cancel, done
		}
		ended := func(done <-chan result, want envelope.Code) {
			t.Helper()
			select {
			case r := <-done:
				wantCode(t, r.payload, r.err, want)
			default:
				t.Errorf("request %d of %d waits", n, maxAsking)
			}
		}
		var cancels []func()
		var waiting []<-chan result
		accepted := func() {
			t.Helper()
			cancel, done := ask()
			cancels, waiting = append(cancels, cancel), append(waiting, done)
			select {
			case r := <-done:
				t.Fatalf("request %d: %v", n, r.err)
			default:
			}
		}
		withdraw := func(i int) {
			t.Helper()
			cancels[i]()
			synctest.Wait()
			ended(waiting[i], envelope.CodeDenied)
		}
		for range maxPrompts {
			accepted()
		}
		cancel, done := ask()
		ended(done, envelope.CodeTooMany)
		cancel()
		for i := range maxPrompts { // each makes room at once
			withdraw(i)
			accepted()
			cancel, done := ask()
			ended(done, envelope.CodeTooMany)
			cancel()
		}
		// All there may be: a withdrawn one makes no room until it is gone.
		withdraw(maxPrompts)
		cancel, done = ask()
		ended(done, envelope.CodeTooMany)
		cancel()
		a.gone <- struct{}{}
		synctest.Wait()
		accepted()
		close(a.gone)
		for _, cancel := range cancels {
			cancel()
		}
		s.prompts.wait()
		if len(s.prompts.open) != 0 || len(s.prompts.count) != 0 {
			t.Errorf("left: %v %v", s.prompts.open, s.prompts.count)
		}
		for _, done := range waiting[maxPrompts+1:] {
			<-done
		}
	})
}

// N02: the owner's one no about a login counts once, however many keys it was asked
// for with.
func TestThreat_N02_DenialOfALoginCountsOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAnswers()
		s := testServer(t, a)
		for i := range byte(freeRefusals - 1) {
			one := start(t.Context(), s, fmt.Sprint("one", i), request(s, "work", i))
			q := <-a.asked
			two := start(t.Context(), s, fmt.Sprint("two", i), request(s, FirstKey, i))
			<-a.asked
			q.reply <- ErrDenied
			ends(t, one, envelope.CodeDenied)
			ends(t, two, envelope.CodeDenied)
			s.prompts.wait()
		}
		done := start(t.Context(), s, "next", request(s, "work", 99))
		synctest.Wait()
		if len(a.asked) == 0 {
			t.Errorf("held up after %d denials: %v", freeRefusals-1, (<-done).err)
			return
		}
		(<-a.asked).reply <- nil
		ends(t, done, "")
	})
}

// N02: a no is for the login, whichever key was asked for; a yes is for the key
// that was shown, and other logins are left alone.
func TestThreat_N02_DenialIsForTheLogin(t *testing.T) {
	t.Parallel()
	for _, answer := range []error{ErrDenied, nil} {
		synctest.Test(t, func(t *testing.T) {
			a := newAnswers()
			s := testServer(t, a)
			first := start(t.Context(), s, "a", request(s, "work", 1))
			q := <-a.asked
			sibling := start(t.Context(), s, "b", request(s, FirstKey, 1))
			qs := <-a.asked
			other := start(t.Context(), s, "c", request(s, FirstKey, 2))
			qo := <-a.asked
			if qs.prompt.Verified.KeyLabel != FirstKey || q.prompt.Verified.KeyLabel != "work" {
				t.Errorf("prompts for %q and %q", q.prompt.Verified.KeyLabel, qs.prompt.Verified.KeyLabel)
			}
			q.reply <- answer
			synctest.Wait()
			if qo.ctx.Err() != nil {
				t.Error("the prompt of another login is gone")
			}
			r := <-first
			if answer == nil {
				wantCode(t, r.payload, r.err, "")
				if qs.ctx.Err() != nil {
					t.Error("a yes for one key took the other's prompt away")
				}
				qs.reply <- nil
				r = <-sibling
				wantCode(t, r.payload, r.err, "")
			} else {
				wantCode(t, r.payload, r.err, envelope.CodeDenied)
				if qs.ctx.Err() == nil {
					t.Fatal("the prompt for the other key stays")
				}
				r = <-sibling
				wantCode(t, r.payload, r.err, envelope.CodeDenied)
				if said := withdrawal(errSessionDenied); !strings.Contains(said, "the same login with another key") {
					t.Errorf("the prompt ends with %q", said)
				}
			}
			qo.reply <- nil
			r = <-other
			wantCode(t, r.payload, r.err, "")
			s.prompts.wait()
		})
	}
}
