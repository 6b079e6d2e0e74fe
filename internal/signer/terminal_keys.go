// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Keys that mean something.
const (
	ctrlC     = 3
	ctrlD     = 4
	ctrlH     = 8
	ctrlU     = 21
	backspace = 0x7f
)

// take reads what was typed.
func (t *Terminal) take() {
	b := make([]byte, 64)
	defer clear(b)
	n, err := unix.Read(t.in, b)
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err == unix.EINTR || err == unix.EAGAIN:
		return
	case err != nil || n == 0:
		t.failLocked(err)
		return
	case t.shown == nil:
		return
	case time.Since(t.since) < t.guard:
		if slices.ContainsFunc(b[:n], func(key byte) bool { return !t.interrupts(key) }) {
			t.since = time.Now() // who types on has not seen the question yet
			if a := t.shown; a.unlock != nil && !a.checking && a.again == "" && t.page == len(t.pages)-1 {
				a.again = "too early, try again"
				t.drawLocked()
			}
		}
		return
	}
	for _, key := range b[:n] {
		if !t.keyLocked(key) {
			return
		}
	}
	t.drawLocked()
}

// keyLocked takes one key and says whether what follows was typed for the same
// question and page.
func (t *Terminal) keyLocked(key byte) bool {
	a := t.shown
	switch {
	case t.interrupts(key):
		t.answerLocked(a, ErrDenied)
		return false
	case t.means(key, unix.VSUSP):
		t.suspendLocked()
		return false
	case a.checking:
		// The answer is given.
	case key == '\t':
		return !t.nextLocked()
	case t.small || t.page < len(t.pages)-1: // nobody approves what was not shown yet
		switch key {
		case '\r', '\n', ' ':
			if !t.small {
				t.turnLocked(t.page + 1)
				return false
			}
		case 'n', 'N', ctrlD:
			t.answerLocked(a, ErrDenied)
			return false
		}
	case key == '\r' || key == '\n':
		t.enterLocked()
		return false
	case key == ctrlD:
		t.answerLocked(a, ErrDenied)
		return false
	case key == backspace || key == ctrlH:
		_, size := utf8.DecodeLastRune(t.typed)
		clear(t.typed[len(t.typed)-size:])
		t.typed = t.typed[:len(t.typed)-size]
	case key == ctrlU:
		t.eraseLocked()
	case key < ' ' || a.unlock == nil && key > '~':
		// Nothing that an answer has.
	case a.unlock != nil && len(t.typed) == maxAnswer:
		t.overlong = true
	case a.unlock != nil || len(t.typed) < maxTyped:
		t.typed = append(t.typed, key)
	}
	return true
}

func (t *Terminal) eraseLocked() {
	clear(t.typed)
	t.typed, t.overlong = t.typed[:0], false
}

// nextLocked shows the next one of those that wait, and puts the one that is
// shown behind them. It says whether there is one.
func (t *Terminal) nextLocked() bool {
	if len(t.asks) < 2 || t.shown.door || t.shown != t.asks[0] {
		return false
	}
	t.asks = append(t.asks[1:], t.asks[0])
	t.holdBackLocked()
	if t.shown != t.asks[0] {
		t.showLocked()
	}
	return true
}

// enterLocked ends what is typed.
func (t *Terminal) enterLocked() {
	a := t.shown
	switch {
	case a.unlock == nil:
		answer := strings.ToLower(string(bytes.TrimSpace(t.typed)))
		err := ErrDenied
		if answer == "y" || answer == "yes" {
			err = nil
		}
		t.answerLocked(a, err)
	case len(t.typed) == 0:
		t.answerLocked(a, ErrDenied)
	case t.overlong:
		t.againLocked("too long, try again")
	default:
		passphrase := t.typed
		t.typed = nil
		a.checking, a.again = true, ""
		t.drawLocked()
		// It takes up to a second, and the screen goes on meanwhile.
		t.checks.Go(func() {
			err := a.unlock(passphrase)
			clear(passphrase)
			t.checked(a, err)
		})
	}
}

// checked is the end of a passphrase's check.
func (t *Terminal) checked(a *ask, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case !t.waitsLocked(a): // withdrawn or denied meanwhile
		return
	case !errors.Is(err, ErrPassphrase):
		t.answerLocked(a, err)
	case a == t.shown:
		a.checking = false
		t.againLocked("wrong passphrase, try again")
	default:
		a.checking = false
	}
	t.wake()
}

func (t *Terminal) waitsLocked(a *ask) bool { return slices.Contains(t.asks, a) }

// againLocked asks for the passphrase again, and says why in the same line: a
// line more could push the question's text off the screen.
func (t *Terminal) againLocked(why string) {
	t.shown.again = why
	t.forgetLocked()
	t.drawLocked()
}

// answerLocked ends a question with its answer, unless it is withdrawn.
func (t *Terminal) answerLocked(a *ask, err error) {
	if a.ctx.Err() != nil { // the withdrawal may be under way
		err = context.Cause(a.ctx)
	}
	t.finishLocked(a, err)
}
