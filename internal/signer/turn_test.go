// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"vmux.app/toolkit/internal/envelope"
)

// later is a clock that a test moves on.
type later struct{ ahead atomic.Int64 }

func (l *later) now() time.Time           { return time.Now().Add(time.Duration(l.ahead.Load())) }
func (l *later) move(ahead time.Duration) { l.ahead.Add(int64(ahead)) }

// T06: what waits behind the prompt whose failures have locked approvals is not
// shown before the passphrase was given, and waits on.
func TestThreat_T06_NothingMoreIsShownWhenLocked(t *testing.T) {
	t.Parallel()
	pty, term := ask80(t, 0)
	var clock later
	s := guarded(t, protectedHome(t), Options{Approver: term, Now: clock.now})
	first := start(t.Context(), s, "a", requestAt(s, "work", 1))
	pty.Expect("work, SHA256")
	pty.Expect(passphraseQuestion)
	second := start(t.Context(), s, "b", requestAt(s, FirstKey, 2))
	pty.Expect("1 more waiting")
	for i := range maxFailures {
		pty.Type("wrong\n")
		pty.Expect("checking…")
		if i < maxFailures-1 {
			pty.Expect("wrong passphrase, try again")
		}
	}
	ends(t, first, envelope.CodeLocked)
	if hidden := pty.Expect("Passphrase (empty denies): "); strings.Contains(hidden, FirstKey) || !strings.Contains(hidden, "Approvals are locked") {
		t.Errorf("%q", hidden)
	}
	clock.move(failureWait)
	pty.Type(testPassphrase + "\n")
	pty.Expect("Unlock? unlocked")
	pty.Expect(FirstKey + ", SHA256")
	pty.Expect(passphraseQuestion)
	pty.Type(testPassphrase + "\n")
	pty.Expect("Approve? approved")
	ends(t, second, "")
}

// G04: Tab shows nothing after App Lock was shut.
func TestThreat_G04_TabAfterTheMinute(t *testing.T) {
	t.Parallel()
	pty, term := ask80(t, 0)
	var clock later
	s := guarded(t, protectedHome(t), Options{Approver: term, AppLock: true, Now: clock.now})
	wants(t, "unlock", s.unlock(t.Context(), right()), nil)
	clock.move(appLockIdle / 2)
	first := start(t.Context(), s, "a", requestAt(s, "work", 1))
	pty.Expect("work, SHA256")
	pty.Expect(passphraseQuestion)
	second := start(t.Context(), s, "b", requestAt(s, FirstKey, 2))
	pty.Expect("1 more waiting")
	clock.move(appLockIdle/2 + time.Second)
	pty.Type("\t")
	if hidden := pty.Expect("Passphrase (empty denies): "); strings.Contains(hidden, FirstKey) || !strings.Contains(hidden, "App Lock is on") {
		t.Errorf("%q", hidden)
	}
	if len(first) > 0 || len(second) > 0 {
		t.Error("answered")
	}
	pty.Type(testPassphrase + "\n")
	pty.Expect("Unlock? unlocked")
	for range 2 {
		pty.Expect(passphraseQuestion)
		pty.Type(testPassphrase + "\n")
		pty.Expect("Approve? approved")
	}
	ends(t, first, "")
	ends(t, second, "")
}

// G04: no passphrase at the door is a no for the prompts behind it, too.
func TestThreat_G04_NoAtTheDoorIsForAll(t *testing.T) {
	t.Parallel()
	pty, term := ask80(t, 0)
	var clock later
	s := guarded(t, protectedHome(t), Options{Approver: term, AppLock: true, Now: clock.now})
	wants(t, "unlock", s.unlock(t.Context(), right()), nil)
	clock.move(appLockIdle / 2)
	first := start(t.Context(), s, "a", requestAt(s, "work", 1))
	pty.Expect("work, SHA256")
	pty.Expect(passphraseQuestion)
	second := start(t.Context(), s, "b", requestAt(s, FirstKey, 2))
	pty.Expect("1 more waiting")
	clock.move(appLockIdle/2 + time.Second)
	third := start(t.Context(), s, "c", requestAt(s, FirstKey, 3))
	pty.Expect("Passphrase (empty denies): ")
	pty.Type("\n")
	for _, done := range []<-chan result{first, second, third} {
		ends(t, done, envelope.CodeDenied)
	}
}

// dialogs is a program that notes what it is told, and waits for an answer.
type dialogs struct {
	dir  string
	path string
}

func newDialogs(t *testing.T, note, answer string) *dialogs {
	t.Helper()
	d := &dialogs{dir: t.TempDir()}
	if err := unix.Mkfifo(filepath.Join(d.dir, "answers"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.path = script(t, "cd "+d.dir+"; "+note+` >new.$$; mv new.$$ shown.$$; read -r x <answers; `+answer)
	return d
}

// next waits for a dialog and gives what it shows.
func (d *dialogs) next(t *testing.T) (text string) {
	t.Helper()
	until(t, "a dialog", func() bool {
		shown, err := filepath.Glob(filepath.Join(d.dir, "shown.*"))
		if err != nil || len(shown) == 0 {
			return false
		}
		b, err := os.ReadFile(shown[0])
		if err := errors.Join(err, os.Remove(shown[0])); err != nil {
			t.Fatal(err)
		}
		text = string(b)
		return true
	})
	return text
}

func (d *dialogs) answer(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(d.dir, "answers"), []byte(text+"\n"), 0); err != nil {
		t.Fatal(err)
	}
}

// G04: a dialog that waits for its turn is not shown after App Lock was shut.
func TestThreat_G04_TurnAfterTheMinute(t *testing.T) {
	t.Parallel()
	d := newDialogs(t, `printf '%s\n' "$1"`, `printf '%s\n' "$x"`)
	a, err := askpass(t, d.path)
	if err != nil {
		t.Fatal(err)
	}
	var clock later
	s := guarded(t, protectedHome(t), Options{Approver: a, AppLock: true, Now: clock.now})
	wants(t, "unlock", s.unlock(t.Context(), right()), nil)
	clock.move(appLockIdle / 2)
	first := start(t.Context(), s, "a", requestAt(s, "work", 1))
	if text := d.next(t); !strings.Contains(text, "work, SHA256") {
		t.Errorf("%q", text)
	}
	second := start(t.Context(), s, "b", requestAt(s, FirstKey, 2))
	until(t, "the second waits", func() bool { return s.prompts.waiting() == 2 })
	clock.move(appLockIdle/2 + time.Second)
	d.answer(t, "")
	ends(t, first, envelope.CodeDenied)
	if text := d.next(t); strings.Contains(text, FirstKey) || !strings.Contains(text, "App Lock is on") {
		t.Errorf("%q", text)
	}
	d.answer(t, testPassphrase)
	if text := d.next(t); !strings.Contains(text, FirstKey+", SHA256") {
		t.Errorf("%q", text)
	}
	d.answer(t, testPassphrase)
	ends(t, second, "")
}

// G04: nor is a program that approves told of what waits for its turn.
func TestThreat_G04_CommandAfterTheMinute(t *testing.T) {
	t.Parallel()
	d := newDialogs(t, "cat", "exit $x")
	var clock later
	s := guarded(t, protectedHome(t), Options{Approver: command(t, d.path), AppLock: true, Passphrase: right(), Now: clock.now})
	wants(t, "unlock", s.unlock(t.Context(), right()), nil)
	clock.move(appLockIdle / 2)
	first := start(t.Context(), s, "a", requestAt(s, "work", 1))
	d.next(t)
	second := start(t.Context(), s, "b", requestAt(s, FirstKey, 2))
	until(t, "the second waits", func() bool { return s.prompts.waiting() == 2 })
	clock.move(appLockIdle/2 + time.Second)
	d.answer(t, "2")
	ends(t, first, envelope.CodeDenied)
	// Should the program be run, it gets its answer.
	f, err := os.OpenFile(filepath.Join(d.dir, "answers"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("0\n"); err != nil {
		t.Fatal(err)
	}
	ends(t, second, envelope.CodeLocked)
	if shown, err := filepath.Glob(filepath.Join(d.dir, "shown.*")); err != nil || len(shown) > 0 {
		t.Errorf("%v: the program was run: %v", err, shown)
	}
}

// requestAt is request by the signer's clock.
func requestAt(s *server, label string, sid byte) *envelope.SignRequest {
	r := request(s, label, sid)
	r.CreatedAt = envelope.At(s.now())
	return r
}

// Who has had no turn for the longest time is next, and of one device who came first.
func TestTurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var turn turn
		var order []string
		if err := turn.take(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		gone, leave := context.WithCancelCause(t.Context())
		results := make(chan error, 1)
		var all sync.WaitGroup
		for i, device := range strings.Fields("a a b a c b gone") {
			if device == "gone" {
				all.Go(func() { results <- turn.take(gone, device) })
			} else {
				all.Go(func() {
					if err := turn.take(t.Context(), device); err != nil {
						t.Error(err)
					}
					order = append(order, fmt.Sprint(device, i))
					turn.give()
				})
			}
			synctest.Wait() // it is in the queue
		}
		leave(errExpired)
		if err := <-results; err != errExpired {
			t.Error(err)
		}
		turn.give()
		all.Wait()
		if want := strings.Fields("b2 c4 a0 b5 a1 a3"); !slices.Equal(order, want) {
			t.Errorf("%q, want %q", order, want)
		}
		if turn.taken || len(turn.waiting) > 0 || turn.had != nil {
			t.Errorf("left: %+v", &turn)
		}
		if err := turn.take(gone, "a"); err != errExpired || turn.taken {
			t.Error(err)
		}
	})
}

// A turn that comes when nobody wants it any more goes to the next one.
func TestTurnGivenOn(t *testing.T) {
	t.Parallel()
	for range 200 {
		var turn turn
		if err := turn.take(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for _, device := range []string{"b", "c", "b"} {
			all.Go(func() {
				if turn.take(ctx, device) == nil {
					turn.give()
				}
			})
		}
		all.Go(cancel)
		all.Go(turn.give)
		all.Wait()
		if turn.taken || len(turn.waiting) > 0 {
			t.Fatalf("left: %+v", &turn)
		}
	}
}

// N02: what one device asks again and again does not keep another one's prompt
// waiting, for each approver that shows one dialog at a time.
func TestThreat_N02_OneDeviceCannotCrowdOutAnother(t *testing.T) {
	t.Parallel()
	from := func(device string, phrase bool) *Prompt {
		p := testPrompt("work")
		p.Verified.Device = device
		if phrase {
			p.unlock = func([]byte) error { return nil }
		}
		return p
	}
	for name, phrase := range map[string]bool{"askpass": false, "askpass, passphrase": true, "command": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			shown, answer := filepath.Join(dir, "shown"), filepath.Join(dir, "answer")
			for _, fifo := range []string{shown, answer} {
				if err := unix.Mkfifo(fifo, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			// The dialog says that it is shown, and waits for the answer.
			program := script(t, `{ printf '%s\n' "$1"; test -n "$1" || cat; } >`+shown+`; read x <`+answer+`; echo "$x"`)
			var approver Approver
			var waits *turn
			if name == "command" {
				c := command(t, program)
				approver, waits = c, &c.turn
			} else {
				a, err := askpass(t, program)
				if err != nil {
					t.Fatal(err)
				}
				approver, waits = a, &a.turn
			}
			queued := func() int {
				waits.mu.Lock()
				defer waits.mu.Unlock()
				return len(waits.waiting)
			}
			var all sync.WaitGroup
			ask := func(device string, n int) {
				all.Go(func() {
					if err := approver.Approve(t.Context(), from(device, phrase)); err != nil {
						t.Error(err)
					}
				})
				until(t, "queued", func() bool { return queued() == n })
			}
			next := func() string {
				b, err := os.ReadFile(shown)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(answer, []byte("yes\n"), 0o600); err != nil {
					t.Fatal(err)
				}
				return string(b)
			}
			all.Go(func() {
				if err := approver.Approve(t.Context(), from("greedy", phrase)); err != nil {
					t.Error(err)
				}
			})
			first, err := os.ReadFile(shown) // it is shown, and what comes now waits
			if err != nil || !strings.Contains(string(first), "greedy") {
				t.Fatalf("%v, %q", err, first)
			}
			for i := range maxPrompts - 1 {
				ask("greedy", i+1)
			}
			ask("honest", maxPrompts)
			if err := os.WriteFile(answer, []byte("yes\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if got := next(); !strings.Contains(got, "honest") {
				t.Errorf("next: %q", got)
			}
			for range maxPrompts - 1 {
				next()
			}
			all.Wait()
		})
	}
}
