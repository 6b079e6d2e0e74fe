// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-json-experiment/json"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/keyfile"
)

const testPassphrase = "correct horse battery"

// right gives the passphrase, which whoever takes it overwrites.
func right() []byte { return []byte(testPassphrase) }
func wrong() []byte { return []byte("correct horse") }

// protect encrypts the keys of a home as ssh-keygen does, with one round of bcrypt
// for the sake of time.
func protect(t *testing.T, h *Home) {
	t.Helper()
	keygen, err := exec.LookPath("ssh-keygen")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("no ssh-keygen")
	}
	files, err := filepath.Glob(h.path(keysName + "/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range append(files, h.path(caName)) {
		if out, err := exec.Command(keygen, "-q", "-p", "-P", "", "-N", testPassphrase, "-a", "1", "-f", f).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
	}
}

// pairedHome is a home with two keys and one paired device, "laptop".
func pairedHome(t *testing.T) *Home {
	t.Helper()
	h := testHome(t)
	if _, err := h.AddKey("work", keyfile.Ed25519, nil); err != nil {
		t.Fatal(err)
	}
	_, err := h.Update(func(s *State) error {
		_, err := s.addDevice("laptop", testPin, time.Now())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func protectedHome(t *testing.T) *Home {
	t.Helper()
	h := pairedHome(t)
	protect(t, h)
	return h
}

// guarded serves a home without a network.
func guarded(t *testing.T, h *Home, o Options) *server {
	t.Helper()
	s, err := newServer(h, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// owner is an Approver that asks for passphrases. It hands each prompt and each
// question for the passphrase alone to the test.
type owner struct {
	*answers
	doors chan *doorQuestion
}

type doorQuestion struct {
	ctx   context.Context
	why   string
	try   func([]byte) error
	reply chan error
}

func newOwner() *owner { return &owner{newAnswers(), make(chan *doorQuestion, 100)} }

func (o *owner) AskPassphrase(ctx context.Context, why string, try func([]byte) error) error {
	q := &doorQuestion{ctx, why, try, make(chan error, 1)}
	o.doors <- q
	select {
	case err := <-q.reply:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// quiet makes sure that the owner is asked nothing.
func (o *owner) quiet(t *testing.T) {
	t.Helper()
	select {
	case q := <-o.asked:
		t.Errorf("a prompt: %s", q.prompt.Text())
	case q := <-o.doors:
		t.Errorf("a question for the passphrase: %s", q.why)
	default:
	}
}

// wants makes sure of an error, nil for none.
func wants(t *testing.T, what string, err, want error) {
	t.Helper()
	if want == nil && err != nil || !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// ends makes sure that a request has ended like this.
func ends(t *testing.T, done <-chan result, want envelope.Code) {
	t.Helper()
	r := <-done
	wantCode(t, r.payload, r.err, want)
}

// failuresOnDisk are those that the next vmux-signer finds.
func failuresOnDisk(t *testing.T, h *Home) int {
	t.Helper()
	st, err := h.Read()
	if err != nil {
		t.Fatal(err)
	}
	return st.Failures
}

// T06: each approval takes the passphrase; a yes without it is none.
func TestThreat_T06_PassphrasePerApproval(t *testing.T) {
	t.Parallel()
	h := protectedHome(t)
	synctest.Test(t, func(t *testing.T) {
		o := newOwner()
		s := guarded(t, h, Options{Approver: o})
		for i, label := range []string{FirstKey, "work", FirstKey} {
			done := start(t.Context(), s, fmt.Sprint("yes", i), request(s, label, byte(i)))
			q := <-o.asked
			if !q.prompt.NeedsPassphrase() {
				t.Error("the prompt needs no passphrase")
			}
			q.reply <- nil
			ends(t, done, envelope.CodeInternal)

			done = start(t.Context(), s, fmt.Sprint("no", i), request(s, label, byte(i)))
			q = <-o.asked
			q.reply <- ErrDenied
			ends(t, done, envelope.CodeDenied)

			done = start(t.Context(), s, fmt.Sprint("passphrase", i), request(s, label, byte(i)))
			q = <-o.asked
			p := wrong()
			wants(t, "wrong", q.prompt.Unlock(p), ErrPassphrase)
			if !bytes.Equal(p, make([]byte, len(p))) {
				t.Errorf("%q is left of the wrong passphrase", p)
			}
			wants(t, "none", q.prompt.Unlock(nil), ErrPassphrase)
			if n := failuresOnDisk(t, h); n != 1 {
				t.Errorf("%d failures after one", n)
			}
			p = right()
			wants(t, "right", q.prompt.Unlock(p), nil)
			if !bytes.Equal(p, make([]byte, len(p))) {
				t.Errorf("%q is left of the passphrase", p)
			}
			wants(t, "once more", q.prompt.Unlock(right()), nil)
			if n := failuresOnDisk(t, h); n != 0 {
				t.Errorf("%d failures after the right one", n)
			}
			q.reply <- nil
			ends(t, done, "")
		}
		// The right passphrase and then a no is a no.
		done := start(t.Context(), s, "last", request(s, "work", 9))
		q := <-o.asked
		wants(t, "right", q.prompt.Unlock(right()), nil)
		q.reply <- ErrDenied
		ends(t, done, envelope.CodeDenied)
	})
}

// T06: five wrong passphrases in a row lock approvals, also those of another
// vmux-signer on the same home, until the passphrase is given.
func TestThreat_T06_FiveWrongPassphrasesLock(t *testing.T) {
	t.Parallel()
	h := protectedHome(t)
	synctest.Test(t, func(t *testing.T) {
		var locks int
		options := func(o *owner) Options {
			return Options{Approver: o, Event: func(e Event) {
				if e.Event == EventLocked {
					locks++
				}
			}}
		}
		o := newOwner()
		s := guarded(t, h, options(o))
		done := start(t.Context(), s, "a", request(s, "work", 1))
		shown := start(t.Context(), s, "b", request(s, "work", 2))
		q, other := <-o.asked, <-o.asked
		for i := range maxFailures - 1 {
			if s.current().locked() || locks > 0 {
				t.Fatalf("locked after %d", i)
			}
			wants(t, fmt.Sprint("failure ", i+1), q.prompt.Unlock(wrong()), ErrPassphrase)
		}
		err := q.prompt.Unlock(wrong())
		wants(t, "the fifth", err, ErrLocked)
		wants(t, "the right one behind it", q.prompt.Unlock(right()), ErrLocked)
		wants(t, "the right one, of a prompt that was shown before", other.prompt.Unlock(right()), ErrLocked)
		q.reply <- err
		other.reply <- ErrLocked
		ends(t, done, envelope.CodeLocked)
		ends(t, shown, envelope.CodeLocked)
		if n := failuresOnDisk(t, h); n != maxFailures || locks != 1 || !s.status().Locked || s.status().Failures != maxFailures {
			t.Errorf("%d failures, locked %d times, status %+v", n, locks, s.status())
		}

		// Another process, as after a restart.
		o = newOwner()
		s = guarded(t, h, options(o))
		done = start(t.Context(), s, "c", request(s, "work", 1))
		second := start(t.Context(), s, "d", request(s, "work", 2))
		d := <-o.doors
		synctest.Wait()
		o.quiet(t)
		if !strings.Contains(d.why, "locked") || !strings.Contains(d.why, "5 times") || strings.Contains(d.why, "laptop") {
			t.Errorf("asked for the passphrase: %s", d.why)
		}
		begun := time.Now()
		wants(t, "wrong at the door", d.try(wrong()), ErrPassphrase)
		first := time.Since(begun)
		wants(t, "right at the door", d.try(right()), nil)
		if waited := time.Since(begun) - first; first > failureWait || waited != 2*failureWait {
			t.Errorf("waited %v and %v", first, waited)
		}
		d.reply <- nil
		if locks != 1 || failuresOnDisk(t, h) != 0 {
			t.Errorf("%d locks, %d failures", locks, failuresOnDisk(t, h))
		}
		for range 2 { // both that waited at the door
			q := <-o.asked
			wants(t, "right", q.prompt.Unlock(right()), nil)
			q.reply <- nil
		}
		ends(t, done, "")
		ends(t, second, "")
		o.quiet(t)
	})
}

// T06: the count is on disk before anybody looks at the passphrase, so that
// killing vmux-signer takes none back.
func TestThreat_T06_CountedBeforeTheCheck(t *testing.T) {
	t.Parallel()
	h := protectedHome(t)
	synctest.Test(t, func(t *testing.T) {
		killed := make(chan struct{})
		t.Cleanup(func() {
			h.dir = filepath.Join(h.dir, "gone") // nothing is put right any more
			close(killed)
		})
		for i := range maxFailures {
			o := newOwner()
			s := guarded(t, h, Options{Approver: o})
			s.openKey = func(*keyfile.File, []byte) (*keyfile.Key, error) {
				if n := failuresOnDisk(t, h); n != i+1 {
					t.Errorf("try %d is looked at with %d failures on disk", i+1, n)
				}
				<-killed // what is done on disk ends here
				return nil, errors.New("killed")
			}
			ctx, cancel := context.WithCancel(t.Context())
			start(ctx, s, fmt.Sprint(i), request(s, "work", byte(i)))
			q := <-o.asked
			go q.prompt.Unlock(right())
			synctest.Wait()
			if s.current().locked() || s.shut() != "" || s.status().Locked || s.status().Failures != i {
				t.Errorf("while try %d is looked at: %q, %+v", i+1, s.shut(), s.status())
			}
			cancel()
		}
		s := guarded(t, h, Options{Approver: newOwner()})
		if !s.current().locked() {
			t.Errorf("%d killed tries do not lock", maxFailures)
		}
	})
}

// T06: the fifth passphrase may be the right one; nothing says meanwhile that
// approvals are locked.
func TestThreat_T06_FourFailuresDoNotLock(t *testing.T) {
	t.Parallel()
	h := protectedHome(t)
	synctest.Test(t, func(t *testing.T) {
		o := newOwner()
		var log bytes.Buffer
		s := guarded(t, h, Options{Approver: o, Log: slog.New(slog.NewTextHandler(&log, nil)), Event: func(e Event) {
			if e.Event == EventLocked {
				t.Error("an event says that approvals are locked")
			}
		}})
		for round := range 3 {
			done := start(t.Context(), s, fmt.Sprint(round), request(s, "work", byte(round)))
			q := <-o.asked
			for range maxFailures - 1 {
				wants(t, "wrong", q.prompt.Unlock(wrong()), ErrPassphrase)
			}
			wants(t, "right", q.prompt.Unlock(right()), nil)
			q.reply <- nil
			ends(t, done, "")
		}
		if failuresOnDisk(t, h) != 0 || strings.Contains(log.String(), "locked") {
			t.Errorf("%d failures\n%s", failuresOnDisk(t, h), log.String())
		}
		if text := log.String(); strings.Contains(text, testPassphrase) || strings.Contains(text, string(wrong())) || !strings.Contains(text, "wrong passphrase") {
			t.Errorf("the log:\n%s", text)
		}
	})
}

// T06: whoever is not recognized by a program counts as a wrong passphrase does,
// and a yes that comes after the fifth is none.
func TestThreat_T06_NotRecognizedCounts(t *testing.T) {
	t.Parallel()
	open, closed := pairedHome(t), protectedHome(t)
	for _, h := range []*Home{open, closed} {
		synctest.Test(t, func(t *testing.T) {
			protected := h == closed
			a := newAnswers()
			begun := func() *server {
				o := Options{Approver: a}
				if protected {
					o.Passphrase = right()
				}
				return guarded(t, h, o)
			}
			s := begun()
			n := 0
			ask := func() (*question, <-chan result) {
				n++
				done := start(t.Context(), s, fmt.Sprint(n), request(s, "work", byte(n)))
				return <-a.asked, done
			}
			// A success ends the row, a no does not.
			for _, answer := range []error{ErrNotRecognized, ErrNotRecognized, nil, ErrNotRecognized, ErrDenied, ErrNotRecognized, ErrNotRecognized} {
				q, done := ask()
				q.reply <- answer
				ends(t, done, map[bool]envelope.Code{false: envelope.CodeDenied}[answer == nil])
				if answer != nil && !errors.Is(answer, ErrDenied) && failuresOnDisk(t, h) == 0 {
					t.Error("not counted")
				}
			}
			late, lateDone := ask()
			for i := range 2 {
				q, done := ask()
				q.reply <- fmt.Errorf("a finger: %w", ErrNotRecognized)
				ends(t, done, []envelope.Code{envelope.CodeDenied, envelope.CodeLocked}[i])
			}
			late.reply <- nil
			ends(t, lateDone, envelope.CodeLocked)
			if n := failuresOnDisk(t, h); n != maxFailures {
				t.Errorf("%d failures", n)
			}
			for i := range 2 { // a restart changes nothing
				ends(t, start(t.Context(), s, fmt.Sprint("locked", i), request(s, "work", 99)), envelope.CodeLocked)
				s = begun()
			}
			if len(a.asked) > 0 {
				t.Error("asked though it is locked")
			}
			err := s.unlock(t.Context(), right())
			if !protected {
				wants(t, "unlock of keys without a passphrase", err, ErrNotProtected)
				wants(t, "and without one", s.unlock(t.Context(), nil), ErrNotProtected)
				return
			}
			wants(t, "unlock", err, nil)
			q, done := ask()
			q.reply <- nil
			ends(t, done, "")
		})
	}
}

// What is the matter with a key is no wrong passphrase.
func TestOtherErrorsDoNotCount(t *testing.T) {
	t.Parallel()
	h := protectedHome(t)
	synctest.Test(t, func(t *testing.T) {
		o := newOwner()
		s := guarded(t, h, Options{Approver: o})
		s.openKey = func(f *keyfile.File, p []byte) (*keyfile.Key, error) {
			if string(p) == "broken" {
				return nil, keyfile.ErrDamaged
			}
			return f.Open(p)
		}
		done := start(t.Context(), s, "a", request(s, "work", 1))
		q := <-o.asked
		wants(t, "wrong", q.prompt.Unlock(wrong()), ErrPassphrase)
		before, err := h.Read()
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // in the bubble
		for range maxFailures + 1 {
			wants(t, "broken", q.prompt.Unlock([]byte("broken")), keyfile.ErrDamaged)
		}
		after, err := h.Read()
		if err != nil || after.Failures != 1 || !after.FailedAt.Equal(before.FailedAt) || s.current().locked() {
			t.Errorf("%+v, %v; was %+v", after, err, before)
		}
		q.reply <- keyfile.ErrDamaged
		ends(t, done, envelope.CodeInternal)
	})
}

// T06: where failures cannot be written down nothing is approved.
func TestThreat_T06_NothingIsApprovedUncounted(t *testing.T) {
	t.Parallel()
	h := protectedHome(t)
	// full keeps everybody from changing the home, root too.
	full := func(t *testing.T, on bool) {
		t.Helper()
		var err error
		if on {
			err = errors.Join(os.RemoveAll(h.path(lockName)), os.Mkdir(h.path(lockName), 0o700))
		} else {
			err = os.Remove(h.path(lockName))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		o := newOwner()
		s := guarded(t, h, Options{Approver: o})
		done := start(t.Context(), s, "a", request(s, "work", 1))
		q := <-o.asked
		full(t, true)
		for _, p := range [][]byte{wrong(), right()} {
			if err := q.prompt.Unlock(p); err == nil || errors.Is(err, ErrPassphrase) {
				t.Errorf("%v", err)
			}
		}
		q.reply <- nil
		ends(t, done, envelope.CodeInternal)
		full(t, false)
		if n := failuresOnDisk(t, h); n != 0 || s.current().locked() {
			t.Errorf("%d failures", n)
		}
	})
	// Of a program that recognizes people.
	synctest.Test(t, func(t *testing.T) {
		a := newAnswers()
		s := guarded(t, h, Options{Approver: a, Passphrase: right()})
		n := 0
		answer := func(err error, want envelope.Code) {
			t.Helper()
			n++
			done := start(t.Context(), s, fmt.Sprint(n), request(s, "work", byte(n)))
			q := <-a.asked
			q.reply <- err
			ends(t, done, want)
		}
		full(t, true)
		for range 3 {
			answer(ErrNotRecognized, envelope.CodeInternal)
		}
		answer(nil, envelope.CodeInternal)
		full(t, false)
		answer(ErrNotRecognized, envelope.CodeDenied)
		if n := failuresOnDisk(t, h); n != 4 {
			t.Errorf("%d failures are counted of 4", n)
		}
		full(t, true)
		answer(ErrNotRecognized, envelope.CodeInternal)
		full(t, false)
		answer(nil, envelope.CodeLocked)
		if n := failuresOnDisk(t, h); n != maxFailures {
			t.Errorf("%d failures are counted of %d", n, maxFailures)
		}
	})
}

// T06: who tries passphrases waits longer and longer, whatever the clock does.
func TestThreat_T06_WaitsGrow(t *testing.T) {
	t.Parallel()
	h := protectedHome(t)
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			failures int
			ago      time.Duration // of the last failure, by the clock
			want     time.Duration
		}{
			{0, 0, 0}, {4, 0, 0},
			{5, 0, time.Second}, {6, 0, 2 * time.Second}, {7, 0, 4 * time.Second}, {14, 0, 512 * time.Second},
			{15, 0, 15 * time.Minute}, {21, 0, 15 * time.Minute}, {64, 0, 15 * time.Minute}, {1 << 40, 0, 15 * time.Minute},
			{7, time.Second, 3 * time.Second}, {7, 4 * time.Second, 0}, {15, 24 * time.Hour, 0},
			{7, -time.Hour, 4 * time.Second}, {7, -100 * 365 * 24 * time.Hour, 4 * time.Second}, {15, -time.Minute, 15 * time.Minute},
		} {
			s := guarded(t, h, Options{Approver: newOwner()})
			_, err := s.count(func(st *State, _ *int) { st.Failures, st.FailedAt = c.failures, time.Now().Add(-c.ago).UTC() })
			if err != nil {
				t.Fatal(err)
			}
			s = guarded(t, h, Options{Approver: newOwner()})
			begun := time.Now()
			if err := s.unlock(t.Context(), right()); err != nil {
				t.Errorf("%+v: %v", c, err)
			}
			if got := time.Since(begun).Round(10 * time.Millisecond); got != c.want {
				t.Errorf("%d failures %v ago: waited %v, want %v", c.failures, c.ago, got, c.want)
			}
		}
	})
}

// Who leaves waits no longer, neither for the clock nor for its turn, and nobody
// looks at its passphrase.
func TestUnlockIsLeft(t *testing.T) {
	t.Parallel()
	h := protectedHome(t)
	synctest.Test(t, func(t *testing.T) {
		o := newOwner()
		s := guarded(t, h, Options{Approver: o})
		if _, err := s.count(func(st *State, _ *int) { st.Failures, st.FailedAt = 12, time.Now().UTC() }); err != nil {
			t.Fatal(err)
		}
		gone := errors.New("gone")
		begun := time.Now()
		var cancels []context.CancelCauseFunc
		ended := make(chan error, 2)
		for range 2 {
			ctx, cancel := context.WithCancelCause(t.Context())
			cancels = append(cancels, cancel)
			go func() { ended <- s.unlock(ctx, right()) }()
			synctest.Wait()
		}
		for _, i := range []int{1, 0} { // who waits for its turn, then who waits for the clock
			cancels[i](gone)
			wants(t, fmt.Sprint(i), <-ended, gone)
		}
		if waited := time.Since(begun); waited > 100*time.Millisecond || failuresOnDisk(t, h) != 12 {
			t.Errorf("left after %v, %d failures", waited, failuresOnDisk(t, h))
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(gone)
		time.Sleep(maxFailureWait)
		wants(t, "somebody who has gone", s.unlock(ctx, wrong()), gone)
		wants(t, "somebody who stays", s.unlock(t.Context(), right()), nil)
	})
}

// G04: with App Lock nothing of a request is shown before the passphrase was
// given. It stays open for a minute, and for one more with each approval.
func TestThreat_G04_PassphraseBeforePrompts(t *testing.T) {
	t.Parallel()
	h := protectedHome(t)
	synctest.Test(t, func(t *testing.T) {
		o := newOwner()
		var ahead time.Duration
		s := guarded(t, h, Options{Approver: o, AppLock: true, Now: func() time.Time { return time.Now().Add(ahead) }})
		n := 0
		ask := func() <-chan result {
			n++
			r := request(s, "work", byte(n))
			r.CreatedAt = envelope.At(s.now())
			done := start(t.Context(), s, fmt.Sprint(n), r)
			synctest.Wait()
			return done
		}
		knock := func() *doorQuestion {
			t.Helper()
			synctest.Wait()
			select {
			case d := <-o.doors:
				for _, word := range []string{"laptop", "work", "root", "log in", "SHA256"} {
					if strings.Contains(d.why, word) {
						t.Errorf("%q is said before the passphrase: %s", word, d.why)
					}
				}
				o.quiet(t)
				return d
			default:
				t.Fatal("nobody asks for the passphrase")
				return nil
			}
		}
		pass := func() {
			t.Helper()
			d := knock()
			wants(t, "right", d.try(right()), nil)
			d.reply <- nil
			synctest.Wait()
		}
		approve := func(done <-chan result) {
			t.Helper()
			select {
			case q := <-o.asked:
				wants(t, "right", q.prompt.Unlock(right()), nil)
				q.reply <- nil
				ends(t, done, "")
			default:
				t.Fatal("no prompt")
			}
			o.quiet(t)
		}
		state := func(want string) {
			t.Helper()
			if st := s.status(); st.AppLock != want {
				t.Errorf("App Lock is %s, want %s", st.AppLock, want)
			}
		}

		state("shut")
		done := ask()
		d := knock()
		wants(t, "wrong", d.try(wrong()), ErrPassphrase)
		synctest.Wait()
		o.quiet(t)
		wants(t, "right", d.try(right()), nil)
		d.reply <- nil
		synctest.Wait()
		approve(done)
		state("open")
		time.Sleep(appLockIdle)
		approve(ask()) // and open for another minute
		time.Sleep(appLockIdle)
		state("open")
		// What is asked and not approved keeps it no longer open.
		done = ask()
		(<-o.asked).reply <- ErrDenied
		ends(t, done, envelope.CodeDenied)
		time.Sleep(time.Millisecond)
		state("shut")
		done = ask()
		pass()
		approve(done)

		// The computer sleeps: its clock has moved on.
		ahead += appLockIdle + time.Second
		state("shut")
		done = ask()
		pass()
		approve(done)
		// The clock is set back.
		ahead -= time.Second
		state("shut")
		done = ask()
		pass()
		approve(done)

		// The owner shuts it.
		done = ask()
		q := <-o.asked
		wants(t, "lock", s.lock(), nil)
		synctest.Wait()
		if q.ctx.Err() == nil {
			t.Error("the prompt stays")
		}
		ends(t, done, envelope.CodeLocked)
		state("shut")
		done = ask()
		pass()
		approve(done)

		// Who asks when the passphrase is refused is refused, and the next is asked again.
		wants(t, "lock", s.lock(), nil)
		done, other := ask(), ask()
		knock().reply <- ErrDenied
		ends(t, done, envelope.CodeDenied)
		ends(t, other, envelope.CodeDenied)
		o.quiet(t)
		time.Sleep(time.Hour) // whatever holds up a device that was refused
		done = ask()
		pass()
		approve(done)

		// An approval that comes after it was shut does not open it.
		time.Sleep(appLockIdle / 2)
		done = ask()
		time.Sleep(appLockIdle/2 + time.Second)
		approve(done)
		state("shut")

		// A question for the passphrase that says it was answered was not.
		wants(t, "lock", s.lock(), nil)
		done = ask()
		knock().reply <- nil
		ends(t, done, envelope.CodeLocked)
		o.quiet(t)
	})
}

// G04: the question for the passphrase goes with its request, and the next
// request that waits asks.
func TestThreat_G04_WithdrawnAtTheDoor(t *testing.T) {
	t.Parallel()
	h := protectedHome(t)
	synctest.Test(t, func(t *testing.T) {
		o := newOwner()
		s := guarded(t, h, Options{Approver: o, AppLock: true})
		ctx, cancel := context.WithCancel(t.Context())
		first := start(ctx, s, "a", request(s, "work", 1))
		synctest.Wait()
		second := start(t.Context(), s, "b", request(s, "work", 2))
		d := <-o.doors
		synctest.Wait()
		o.quiet(t)
		cancel()
		ends(t, first, envelope.CodeDenied)
		next := <-o.doors
		if d.ctx.Err() == nil {
			t.Error("the question stays")
		}
		wants(t, "a question that is gone", d.try(right()), context.Canceled)
		time.Sleep(Freshness + time.Second)
		ends(t, second, envelope.CodeExpired)
		if next.ctx.Err() == nil || s.status().AppLock != "shut" {
			t.Errorf("%v, App Lock is %s", next.ctx.Err(), s.status().AppLock)
		}
	})
}

// T06: nothing is signed after the owner has locked the signer, also of what was
// approved and waits for its host key to be remembered.
func TestThreat_T06_LockedWhileSigning(t *testing.T) {
	t.Parallel()
	h := protectedHome(t)
	synctest.Test(t, func(t *testing.T) {
		s := guarded(t, h, Options{Approver: yes{}, Passphrase: right()})
		release, err := h.lock()
		if err != nil {
			t.Fatal(err)
		}
		done := start(t.Context(), s, "a", hostLogin(s, "work", 1, hostSigner(t, true), "prod"))
		synctest.Wait()
		if len(s.prompts.open) != 0 || len(done) != 0 {
			t.Fatal("it does not wait for the home")
		}
		wants(t, "lock", s.lock(), nil)
		release()
		ends(t, done, envelope.CodeLocked)
		s.memory.Wait()
		if got := remembered(t, h); got != "" {
			t.Errorf("remembered\n%s", got)
		}
	})
}

// What the owner has locked asks for the passphrase once, also without App Lock.
func TestLockWithoutAppLock(t *testing.T) {
	t.Parallel()
	h := protectedHome(t)
	synctest.Test(t, func(t *testing.T) {
		o := newOwner()
		s := guarded(t, h, Options{Approver: o})
		wants(t, "lock", s.lock(), nil)
		if !s.status().Locked {
			t.Errorf("%+v", s.status())
		}
		done := start(t.Context(), s, "a", request(s, "work", 1))
		synctest.Wait()
		if len(o.asked) > 0 {
			t.Fatal("a prompt is shown")
		}
		d := <-o.doors
		wants(t, "right", d.try(right()), nil)
		d.reply <- nil
		q := <-o.asked
		wants(t, "right", q.prompt.Unlock(right()), nil)
		q.reply <- nil
		ends(t, done, "")
		if s.status().Locked || s.shut() != "" {
			t.Errorf("%+v, %s", s.status(), s.shut())
		}
	})
}

// belated is an Approver that approves what was withdrawn.
type belated struct{}

func (belated) Approve(ctx context.Context, p *Prompt) error {
	err := p.Unlock(right())
	<-ctx.Done()
	return err
}

func (belated) AskPassphrase(context.Context, string, func([]byte) error) error { return ErrDenied }

// The key of an approval that comes too late is overwritten.
func TestKeyOfALateApproval(t *testing.T) {
	t.Parallel()
	h := protectedHome(t)
	synctest.Test(t, func(t *testing.T) {
		s := guarded(t, h, Options{Approver: belated{}})
		var key *keyfile.Key
		s.openKey = func(f *keyfile.File, p []byte) (*keyfile.Key, error) {
			var err error
			key, err = f.Open(p)
			return key, err
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := start(ctx, s, "a", request(s, "work", 1))
		synctest.Wait()
		cancel()
		ends(t, done, envelope.CodeDenied)
		s.prompts.wait()
		if sig, err := key.Sign(rand.Reader, []byte("x")); err == nil && key.PublicKey().Verify([]byte("x"), sig) == nil {
			t.Error("the key is left")
		}
	})
}

// An approver that does not ask needs the passphrase beforehand, from the start or
// by the owner's command.
func TestHeldPassphrase(t *testing.T) {
	t.Parallel()
	h := protectedHome(t)
	synctest.Test(t, func(t *testing.T) {
		n := 0
		ask := func(s *server, want envelope.Code) {
			t.Helper()
			n++
			p, err := s.handle(t.Context(), testPin, fmt.Sprint(n), request(s, FirstKey, byte(n)))
			wantCode(t, p, err, want)
			if needs := s.status().NeedsPassphrase; needs != (want == envelope.CodeLocked) {
				t.Errorf("status says that it needs the passphrase: %v", needs)
			}
		}
		if _, err := newServer(h, Options{Approver: yes{}, Passphrase: wrong()}); !errors.Is(err, ErrPassphrase) {
			t.Errorf("begins with a wrong passphrase: %v", err)
		}
		given := right()
		s := guarded(t, h, Options{Approver: yes{}, Passphrase: given})
		if !bytes.Equal(given, make([]byte, len(given))) { // which "lock" could not forget
			t.Errorf("%q is left", given)
		}
		ask(s, "")
		wants(t, "lock", s.lock(), nil)
		ask(s, envelope.CodeLocked)
		wants(t, "wrong", s.unlock(t.Context(), wrong()), ErrPassphrase)
		wants(t, "none", s.unlock(t.Context(), nil), ErrPassphrase)
		ask(s, envelope.CodeLocked)
		if n := failuresOnDisk(t, h); n != 1 {
			t.Errorf("%d failures", n)
		}
		p := right()
		wants(t, "right", s.unlock(t.Context(), p), nil)
		if !bytes.Equal(p, make([]byte, len(p))) {
			t.Errorf("%q is left", p)
		}
		ask(s, "")
		if n := failuresOnDisk(t, h); n != 0 {
			t.Errorf("%d failures", n)
		}
		held := s.guard.held
		wants(t, "lock", s.lock(), nil)
		if !bytes.Equal(held, make([]byte, len(held))) {
			t.Errorf("%q is left", held)
		}

		// None at the start, and one with App Lock, which is open for a minute.
		s = guarded(t, h, Options{Approver: yes{}})
		ask(s, envelope.CodeLocked)
		wants(t, "right", s.unlock(t.Context(), right()), nil)
		ask(s, "")
		s = guarded(t, h, Options{Approver: yes{}, Passphrase: right(), AppLock: true})
		r, err := s.handle(t.Context(), testPin, "app lock", request(s, FirstKey, 101))
		wantCode(t, r, err, envelope.CodeLocked)
		wants(t, "right", s.unlock(t.Context(), right()), nil)
		ask(s, "")
		time.Sleep(appLockIdle + time.Millisecond)
		r, err = s.handle(t.Context(), testPin, "app lock again", request(s, FirstKey, 102))
		wantCode(t, r, err, envelope.CodeLocked)

		// It was locked while the program asked.
		a := newAnswers()
		s = guarded(t, h, Options{Approver: a, Passphrase: right()})
		done := start(t.Context(), s, "between", request(s, FirstKey, 103))
		q := <-a.asked
		s.guard.forget()
		q.reply <- nil
		ends(t, done, envelope.CodeLocked)
	})
}

func TestNoPassphraseToAskFor(t *testing.T) {
	t.Parallel()
	h := pairedHome(t)
	if _, err := newServer(h, Options{Approver: newOwner(), AppLock: true}); !errors.Is(err, ErrNotProtected) {
		t.Errorf("App Lock without a passphrase: %v", err)
	}
	if _, err := newServer(h, Options{Approver: yes{}, Passphrase: right()}); !errors.Is(err, ErrNotProtected) {
		t.Errorf("a passphrase for keys without one: %v", err)
	}
	s := guarded(t, h, Options{Approver: newOwner()})
	wants(t, "lock", s.lock(), ErrNotProtected)
	if s.shut() != "" {
		t.Errorf("shut: %s", s.shut())
	}
}

// A key that is put there by hand takes the passphrase too, when the others have
// one: who approves must be the owner.
func TestPlainKeyInProtectedHome(t *testing.T) {
	t.Parallel()
	h := protectedHome(t)
	text, err := keyfile.New(keyfile.Ed25519, "plain", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.keyPath("plain"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := h.EnableKey("plain", true); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		o := newOwner()
		s := guarded(t, h, Options{Approver: o})
		done := start(t.Context(), s, "a", request(s, "plain", 1))
		q := <-o.asked
		if !q.prompt.NeedsPassphrase() {
			t.Fatal("the prompt needs no passphrase")
		}
		wants(t, "wrong", q.prompt.Unlock(wrong()), ErrPassphrase)
		wants(t, "right", q.prompt.Unlock(right()), nil)
		q.reply <- nil
		ends(t, done, "")

		s = guarded(t, h, Options{Approver: yes{}})
		r, err := s.handle(t.Context(), testPin, "b", request(s, "plain", 2))
		wantCode(t, r, err, envelope.CodeLocked)
	})
}

// Requests that share a prompt share its key, which is overwritten after the
// last.
func TestSharedPromptKey(t *testing.T) {
	t.Parallel()
	h := protectedHome(t)
	synctest.Test(t, func(t *testing.T) {
		o := newOwner()
		s := guarded(t, h, Options{Approver: o})
		var opened []*keyfile.Key
		s.openKey = func(f *keyfile.File, p []byte) (*keyfile.Key, error) {
			k, err := f.Open(p)
			if err == nil {
				opened = append(opened, k)
			}
			return k, err
		}
		wiped := func(k *keyfile.Key) bool {
			sig, err := k.Sign(rand.Reader, []byte("x"))
			return err != nil || k.PublicKey().Verify([]byte("x"), sig) != nil
		}
		var done []<-chan result
		for i := range 5 {
			done = append(done, start(t.Context(), s, fmt.Sprint(i), request(s, "work", 1)))
			synctest.Wait()
		}
		q := <-o.asked
		o.quiet(t)
		wants(t, "right", q.prompt.Unlock(right()), nil)
		wants(t, "and again", q.prompt.Unlock(right()), nil) // a key that nobody uses
		if len(opened) != 2 || wiped(opened[0]) || !wiped(opened[1]) {
			t.Fatalf("%d keys are open", len(opened))
		}
		q.reply <- nil
		for _, d := range done {
			ends(t, d, "")
		}
		if !wiped(opened[0]) {
			t.Error("the key is left")
		}
		// A no after the passphrase, and a prompt that ends while the owner gives it.
		denied := start(t.Context(), s, "no", request(s, "work", 2))
		q = <-o.asked
		wants(t, "right", q.prompt.Unlock(right()), nil)
		q.reply <- ErrDenied
		ends(t, denied, envelope.CodeDenied)
		ctx, cancel := context.WithCancel(t.Context())
		gone := start(ctx, s, "gone", request(s, "work", 3))
		q = <-o.asked
		wants(t, "right", q.prompt.Unlock(right()), nil)
		cancel()
		ends(t, gone, envelope.CodeDenied)
		synctest.Wait()
		for i, k := range opened {
			if !wiped(k) {
				t.Errorf("key %d is left", i)
			}
		}
	})
}

// A request that is withdrawn while its passphrase is looked at is not signed, and
// its key is not kept.
func TestWithdrawnWhileThePassphraseIsChecked(t *testing.T) {
	t.Parallel()
	h := protectedHome(t)
	synctest.Test(t, func(t *testing.T) {
		o := newOwner()
		s := guarded(t, h, Options{Approver: o})
		look := make(chan struct{})
		var key *keyfile.Key
		s.openKey = func(f *keyfile.File, p []byte) (*keyfile.Key, error) {
			<-look
			var err error
			key, err = f.Open(p)
			return key, err
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := start(ctx, s, "a", request(s, "work", 1))
		q := <-o.asked
		tried := make(chan error)
		go func() { tried <- q.prompt.Unlock(right()) }()
		synctest.Wait()
		cancel()
		ends(t, done, envelope.CodeDenied)
		close(look)
		wants(t, "the passphrase", <-tried, nil)
		synctest.Wait()
		if _, err := key.Sign(rand.Reader, []byte("x")); err == nil {
			if sig, _ := key.Sign(rand.Reader, []byte("x")); key.PublicKey().Verify([]byte("x"), sig) == nil {
				t.Error("the key is left")
			}
		}
		// Nobody waits for another try, and none is counted.
		wants(t, "after the end", q.prompt.Unlock(wrong()), context.Canceled)
		if n := failuresOnDisk(t, h); n != 0 {
			t.Errorf("%d failures", n)
		}
		s.prompts.wait()
	})
}

// A signer that holds the passphrase forgets it when the keys get another one.
func TestPassphraseChangesUnderTheSigner(t *testing.T) {
	t.Parallel()
	h := protectedHome(t)
	s := guarded(t, h, Options{Approver: yes{}, Passphrase: right()})
	p, err := s.handle(t.Context(), testPin, "a", request(s, "work", 1))
	wantCode(t, p, err, "")
	if err := h.ChangePassphrase(right(), []byte("another")); err != nil {
		t.Fatal(err)
	}
	if err := s.reload(); err != nil {
		t.Fatal(err)
	}
	p, err = s.handle(t.Context(), testPin, "b", request(s, "work", 2))
	wantCode(t, p, err, envelope.CodeLocked)
	wants(t, "the old one", s.unlock(t.Context(), right()), ErrPassphrase)
	wants(t, "the new one", s.unlock(t.Context(), []byte("another")), nil)
	p, err = s.handle(t.Context(), testPin, "c", request(s, "work", 3))
	wantCode(t, p, err, "")
	if err := s.reload(); err != nil { // of something else
		t.Fatal(err)
	}
	p, err = s.handle(t.Context(), testPin, "d", request(s, "work", 4))
	wantCode(t, p, err, "")
}

func TestStatus(t *testing.T) {
	t.Parallel()
	s := guarded(t, pairedHome(t), Options{Approver: yes{}})
	if got := s.status(); got.State != Offline || got.AppLock != "off" || got.Locked || got.NeedsPassphrase || got.Waiting != 0 {
		t.Errorf("%+v", got)
	}
	s.address = "127.0.0.1:1"
	if got := s.status(); got.State != Advertising || got.Address != s.address {
		t.Errorf("%+v", got)
	}
	for range 2 {
		s.links = append(s.links, &link{pin: testPin})
	}
	if got := s.status(); got.State != "Connecting to laptop" || len(got.Devices) != 0 {
		t.Errorf("%+v", got)
	}
	for _, l := range s.links {
		l.up = true
	}
	if got := s.status(); got.State != "Connected to laptop" || len(got.Devices) != 1 || got.Devices[0] != "laptop" {
		t.Errorf("%+v", got)
	}
}

// All paired devices fit into a status, whatever their names are.
func TestStatusOfManyDevices(t *testing.T) {
	t.Parallel()
	st := &Status{State: connected}
	for i := range MaxDevices {
		name := fmt.Sprintf("%02d", i) + strings.Repeat(`"`, envelope.MaxName-2)
		st.Devices = append(st.Devices, name)
	}
	st.State += strings.Join(st.Devices, ", ")
	a, b := net.Pipe()
	defer b.Close()
	go func() {
		defer a.Close()
		_ = newControlConn(a, maxControlLine).send(controlEvent{Event: "done", Status: st})
	}()
	got, err := newControlConn(b, maxControlAnswer).next(t.Context())
	if err != nil || len(got.Status.Devices) != MaxDevices {
		t.Errorf("%v, %v", got, err)
	}
}

// I03: what is wrong with a command is said without what it holds.
func TestThreat_I03_ControlErrorsHoldNoPassphrase(t *testing.T) {
	t.Parallel()
	h := protectedHome(t)
	var log bytes.Buffer
	r := serveWith(t, h, Options{Approver: yes{}, Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	const secret = "aHVudGVyMg==hunter2"
	path, err := h.controlPath()
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{
		`{"command":"unlock","passphrase":"` + secret + `"}`,
		`{"command":"unlock","passphrase":["` + secret + `"]}`,
		`{"command":"unlock","passphrase":"aHVudGVyMg==","passphrase":"` + secret + `"}`,
		`{"command":"unlock","passphrase":"` + secret,
		`{"command":"unlock","` + secret + `":1}`,
		`{"command":"unlock","timeout":"` + secret + `"}`,
		`{"command":"unlock","passphrase":"aHVudGVyMg=="}`,
		`{"command":"unlock","passphrase":"` + strings.Repeat(secret, 1000) + `"}`,
	} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		go io.WriteString(c, command+"\n")
		b, err := io.ReadAll(c)
		c.Close()
		var e controlEvent
		if json.Unmarshal(b, &e) != nil || e.Event != "error" {
			t.Errorf("%.60s: %q, %v", command, b, err)
		}
		if strings.Contains(string(b), "hunter2") || strings.Contains(string(b), "aHVudGVyMg") {
			t.Errorf("%.60s: the answer has it: %s", command, b)
		}
	}
	r.stop()
	if text := log.String(); strings.Contains(text, "hunter2") || strings.Contains(text, "aHVudGVyMg") {
		t.Errorf("the log has it:\n%s", text)
	}
}

// A prompt that waits when the keys get another passphrase has the old key file: it
// is withdrawn, since it would count the new passphrase as wrong and take the old.
func TestPassphraseChangesUnderAPrompt(t *testing.T) {
	t.Parallel()
	h := protectedHome(t)
	synctest.Test(t, func(t *testing.T) {
		o := newOwner()
		s := guarded(t, h, Options{Approver: o})
		done := start(t.Context(), s, "a", request(s, "work", 1))
		q := <-o.asked
		if err := s.reload(); err != nil { // of something else
			t.Fatal(err)
		}
		if q.ctx.Err() != nil {
			t.Fatal("withdrawn for nothing")
		}
		if err := h.ChangePassphrase(right(), []byte("another")); err != nil {
			t.Fatal(err)
		}
		if err := s.reload(); err != nil {
			t.Fatal(err)
		}
		wants(t, "the prompt", context.Cause(q.ctx), errRekeyed)
		q.reply <- ErrDenied // too late
		ends(t, done, envelope.CodeInternal)
	})
}

// keeper is a connection that keeps the buffers that it is read into.
type keeper struct {
	net.Conn
	seen [][]byte
}

func (k *keeper) Read(b []byte) (int, error) {
	k.seen = append(k.seen, b)
	return k.Conn.Read(b)
}

// What a command sends is a passphrase at times, and stays in no buffer.
func TestControlForgetsWhatItRead(t *testing.T) {
	t.Parallel()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	k := &keeper{Conn: b}
	go newControlConn(a, maxControlLine).send(controlCommand{Command: "unlock", Passphrase: right()})
	var cmd controlCommand
	if err := newControlConn(k, maxControlLine).receive(&cmd); err != nil || string(cmd.Passphrase) != testPassphrase {
		t.Fatalf("%v, %q", err, cmd.Passphrase)
	}
	for _, b := range k.seen {
		if i := bytes.IndexFunc(b[:cap(b)], func(r rune) bool { return r != 0 }); i >= 0 {
			t.Errorf("left: %q", bytes.TrimRight(b[i:cap(b)], "\x00"))
		}
	}
}
