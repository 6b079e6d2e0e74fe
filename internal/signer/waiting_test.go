// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"strings"
	"testing"
	"testing/synctest"

	"vmux.app/toolkit/internal/envelope"
)

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
