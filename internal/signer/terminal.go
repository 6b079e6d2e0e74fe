// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// ErrNoTerminal says that there is nobody to ask: no terminal, or it is gone.
var ErrNoTerminal = errors.New("no terminal to ask on")

const (
	// answerGuard is how long a prompt takes no answer after it has appeared: what
	// is typed then was meant for the one before.
	answerGuard = 400 * time.Millisecond
	// tick is how often the seconds left are drawn, and how often a signer in the
	// background looks whether it is in the foreground now.
	tick = time.Second
	// maxTyped bounds an answer in bytes; "yes" is the longest that counts.
	maxTyped = 8
	// fdSetSize is the first descriptor that select(2) cannot watch. poll(2) does
	// not watch terminals on macOS.
	fdSetSize = 1024
)

// Terminal asks questions on a terminal, one at a time; the others wait their
// turn. It takes single keys while a question is shown and leaves the terminal
// as it found it otherwise.
type Terminal struct {
	fd    int
	guard time.Duration // answerGuard but in tests
	wakeR *os.File
	wakeW *os.File
	woken atomic.Bool // a byte is in the pipe
	done  chan struct{}

	mu     sync.Mutex // the screen and everything below
	asks   []*ask     // the first one is shown
	shown  bool
	pages  []string // of the question that is shown
	page   int      // the one on the screen
	below  int      // rows of log lines that were written below its first line
	since  time.Time
	typed  []byte
	saved  *unix.Termios // what to restore, nil when the terminal is as found
	err    error         // set once when no more questions can be asked
	closed bool
}

type ask struct {
	ctx      context.Context
	pages    func(width, height int) []string // of a screen; the question is below the last
	question string
	expires  func() time.Time
	answer   chan error // has room for the one answer
}

// OpenTerminal opens the terminal at path, usually /dev/tty. Error:
// ErrNoTerminal.
func OpenTerminal(path string) (*Terminal, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrNoTerminal, path, err)
	}
	if !term.IsTerminal(fd) {
		unix.Close(fd)
		return nil, fmt.Errorf("%w: %s is not one", ErrNoTerminal, path)
	}
	r, w, err := os.Pipe()
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	t := &Terminal{fd: fd, guard: answerGuard, wakeR: r, wakeW: w, done: make(chan struct{})}
	if wake := int(r.Fd()); fd >= fdSetSize || wake >= fdSetSize {
		t.closeFiles()
		return nil, fmt.Errorf("%w: too many files are open", ErrNoTerminal)
	}
	go t.run()
	return t, nil
}

// Close withdraws every question, restores the terminal and waits for its
// goroutine. No Ask may be under way or follow.
func (t *Terminal) Close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.wake()
	<-t.done
	t.closeFiles()
}

func (t *Terminal) closeFiles() {
	unix.Close(t.fd)
	t.wakeR.Close()
	t.wakeW.Close()
}

// Approve implements Approver.
func (t *Terminal) Approve(ctx context.Context, p *Prompt) error {
	return t.ask(ctx, p.pages, "Approve?", p.Expires)
}

// Ask shows text, which must be safe, and asks for a yes. It returns nil,
// ErrDenied, ErrNoTerminal or the cause of ctx.
func (t *Terminal) Ask(ctx context.Context, text, question string, expires time.Time) error {
	one := func(int, int) []string { return []string{text} }
	return t.ask(ctx, one, question, func() time.Time { return expires })
}

func (t *Terminal) ask(ctx context.Context, pages func(width, height int) []string, question string, expires func() time.Time) error {
	a := &ask{ctx: ctx, pages: pages, question: question, expires: expires, answer: make(chan error, 1)}
	t.mu.Lock()
	if t.err != nil || t.closed {
		t.mu.Unlock()
		return ErrNoTerminal
	}
	t.asks = append(t.asks, a)
	t.mu.Unlock()
	t.wake()
	stop := context.AfterFunc(ctx, t.wake)
	defer stop()
	return <-a.answer
}

// Write puts whole lines above the question that is shown. It serves as the
// place for log lines on the same terminal.
func (t *Terminal) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.shown {
		t.putLocked("\r\x1b[K")
	}
	t.putLocked(string(b))
	if t.shown {
		width, height := t.size()
		t.below += rows(string(b), width)
		if margin+strings.Count(t.pages[t.page], "\n")+t.below > height {
			t.putPageLocked() // a device that causes log lines must not push a question's text off the screen
		}
		t.drawLocked()
	}
	return len(b), t.err
}

// wake makes run look at the questions. There is at most one byte in the pipe,
// so that writing it cannot block.
func (t *Terminal) wake() {
	if t.woken.CompareAndSwap(false, true) {
		_, _ = t.wakeW.Write([]byte{0}) // fails after Close only
	}
}

func (t *Terminal) run() {
	defer close(t.done)
	wake := int(t.wakeR.Fd())
	for {
		t.mu.Lock()
		done := t.lookLocked()
		shown, idle := t.shown, len(t.asks) == 0
		t.mu.Unlock()
		if done {
			return
		}
		var read unix.FdSet
		read.Set(wake)
		if shown {
			read.Set(t.fd)
		}
		timeout := unix.NsecToTimeval(tick.Nanoseconds())
		limit := &timeout
		if idle {
			limit = nil
		}
		_, err := unix.Select(max(wake, t.fd)+1, &read, nil, nil, limit)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.mu.Lock()
			t.failLocked(err)
			t.mu.Unlock()
			continue
		}
		if read.IsSet(wake) {
			_, _ = t.wakeR.Read(make([]byte, 1))
			t.woken.Store(false)
		}
		if shown && read.IsSet(t.fd) {
			t.take()
		}
	}
}

// lookLocked withdraws what must be withdrawn, shows what is next, and says
// whether the terminal is closed.
func (t *Terminal) lookLocked() (done bool) {
	for i := 0; i < len(t.asks); {
		a := t.asks[i]
		err := t.err
		if a.ctx.Err() != nil {
			err = context.Cause(a.ctx)
		} else if err == nil && t.closed {
			err = ErrNoTerminal
		}
		if err == nil {
			i++
			continue
		}
		if i == 0 && t.shown {
			t.endLocked(withdrawal(err))
		}
		t.asks = append(t.asks[:i], t.asks[i+1:]...)
		a.answer <- err
	}
	switch {
	case t.closed:
		t.restoreLocked()
		return true
	case len(t.asks) == 0:
		t.restoreLocked()
	case !t.foreground():
		// A read or a change of modes would stop the whole signer.
	case !t.shown:
		t.showLocked()
	default:
		if !t.singleKeys() { // it was stopped and continued
			t.rawLocked()
		}
		t.drawLocked()
	}
	return false
}

func withdrawal(err error) string {
	switch {
	case errors.Is(err, errExpired), errors.Is(err, context.DeadlineExceeded):
		return "too late: the request has expired"
	case errors.Is(err, ErrNoTerminal):
		return "not answered"
	case errors.Is(err, context.Canceled):
		return "withdrawn by the device"
	}
	return "withdrawn: " + clean(err.Error())
}

func (t *Terminal) showLocked() {
	t.rawLocked()
	t.shown, t.pages = true, t.asks[0].pages(t.size())
	t.turnLocked(0)
}

// turnLocked shows a page of the question.
func (t *Terminal) turnLocked(page int) {
	t.page, t.since, t.typed = page, time.Now(), nil
	t.putPageLocked()
	t.drawLocked()
}

func (t *Terminal) putPageLocked() {
	t.putLocked("\n" + t.pages[t.page])
	t.below = 0
}

// drawLocked draws the line of the question. It stays below the terminal's
// width, since a line that wraps cannot be drawn again.
func (t *Terminal) drawLocked() {
	a := t.asks[0]
	width, _ := t.size()
	left := max(0, int(math.Ceil(time.Until(a.expires()).Seconds())))
	state := fmt.Sprintf("%d s left", left)
	if n := len(t.asks) - 1; n > 0 {
		state += fmt.Sprintf(", %d more waiting", n)
	}
	// The cursor goes back to where the answer is typed.
	line := fmt.Sprintf("%s [y/N] %s", a.question, t.typed)
	if t.page < len(t.pages)-1 {
		line = fmt.Sprintf("Page %d of %d: Enter for the next, n to refuse ", t.page+1, len(t.pages))
	}
	gap := 3
	if len([]rune(line))+gap+len(state) < width {
		t.putLocked(fmt.Sprintf("\r\x1b[K%s%*s%s\x1b[%dD", line, gap, "", state, gap+len(state)))
	} else {
		t.putLocked("\r\x1b[K" + line)
	}
}

// endLocked closes the question that is shown with what became of it.
func (t *Terminal) endLocked(outcome string) {
	t.putLocked(fmt.Sprintf("\r\x1b[K%s %s\n", t.asks[0].question, outcome))
	t.shown = false
}

// take reads what was typed.
func (t *Terminal) take() {
	b := make([]byte, 64)
	n, err := unix.Read(t.fd, b)
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err == unix.EINTR || err == unix.EAGAIN:
		return
	case err != nil || n == 0:
		t.failLocked(err)
		return
	case !t.shown || time.Since(t.since) < t.guard:
		return
	}
	for _, c := range b[:n] {
		if t.page < len(t.pages)-1 { // nobody approves what was not shown yet
			switch c {
			case '\r', '\n', ' ':
				t.turnLocked(t.page + 1)
				return // what follows was not typed for the next page
			case 'n', 'N', 4:
				t.answerLocked()
				return
			}
			continue
		}
		switch {
		case c == '\r' || c == '\n':
			t.answerLocked()
			return // what follows was not typed for the next question
		case c == 4: // Ctrl-D
			t.typed = nil
			t.answerLocked()
			return
		case c == 0x7f || c == 8:
			if len(t.typed) > 0 {
				t.typed = t.typed[:len(t.typed)-1]
			}
		case c == 21: // Ctrl-U
			t.typed = nil
		case c >= ' ' && c < 0x7f && len(t.typed) < maxTyped:
			t.typed = append(t.typed, c)
		}
	}
	t.drawLocked()
}

func (t *Terminal) answerLocked() {
	a := t.asks[0]
	err := a.ctx.Err() // the withdrawal may be under way
	outcome := "approved"
	switch answer := strings.ToLower(string(bytes.TrimSpace(t.typed))); {
	case err != nil:
		err = context.Cause(a.ctx)
		outcome = withdrawal(err)
	case answer != "y" && answer != "yes":
		err, outcome = ErrDenied, "denied"
	}
	t.endLocked(outcome)
	t.asks = t.asks[1:]
	a.answer <- err
}

// failLocked ends every question, now and later.
func (t *Terminal) failLocked(err error) {
	t.err = ErrNoTerminal
	if err != nil {
		t.err = fmt.Errorf("%w: %w", ErrNoTerminal, err)
	}
}

// rawLocked has the terminal give single keys without echo; Ctrl-C still
// interrupts. What was typed before is dropped.
func (t *Terminal) rawLocked() {
	now, err := unix.IoctlGetTermios(t.fd, ioctlGetTermios)
	if err != nil {
		t.failLocked(err)
		return
	}
	if t.saved == nil {
		saved := *now
		t.saved = &saved
	}
	now.Lflag &^= unix.ICANON | unix.ECHO
	now.Cc[unix.VMIN], now.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(t.fd, ioctlSetTermiosFlush, now); err != nil {
		t.failLocked(err)
	}
}

func (t *Terminal) restoreLocked() {
	if t.saved != nil && t.foreground() {
		_ = unix.IoctlSetTermios(t.fd, ioctlSetTermiosFlush, t.saved) // a terminal that is gone needs none
		t.saved = nil
	}
}

func (t *Terminal) singleKeys() bool {
	now, err := unix.IoctlGetTermios(t.fd, ioctlGetTermios)
	return err != nil || now.Lflag&unix.ICANON == 0
}

// foreground says whether reading would stop us, where the terminal is ours to
// be stopped by.
func (t *Terminal) foreground() bool {
	pgrp, err := unix.IoctlGetInt(t.fd, unix.TIOCGPGRP)
	return err != nil || pgrp == unix.Getpgrp()
}

// size is the terminal's in columns and rows. One that does not know its own, or
// says something absurd, is taken for a usual one.
func (t *Terminal) size() (width, height int) {
	width, height, err := term.GetSize(t.fd)
	if err != nil || width < 20 {
		width = screenWidth
	}
	if err != nil || height < 8 {
		height = screenHeight
	}
	return width, height
}

func (t *Terminal) putLocked(s string) {
	for b := []byte(s); len(b) > 0 && t.err == nil; {
		n, err := unix.Write(t.fd, b)
		switch {
		case err == unix.EINTR || err == unix.EAGAIN:
		case err != nil:
			t.failLocked(err)
		default:
			b = b[n:]
		}
	}
}
