// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"vmux.app/toolkit/internal/keyfile"
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
	// maxTyped bounds a yes or no in bytes; "yes" is the longest that counts.
	maxTyped = 8
	// maxAnswer bounds a passphrase in bytes.
	maxAnswer = keyfile.MaxPassphrase
	// suspendTime is how long a signer that stops itself waits for that.
	suspendTime = 100 * time.Millisecond
	// fdSetSize is the first descriptor that select(2) cannot watch. poll(2) does
	// not watch terminals on macOS.
	fdSetSize = 1024
)

// Terminal asks questions on a terminal, one at a time; the others wait their
// turn in a list. It takes single keys while a question is shown and leaves the
// terminal as it found it otherwise.
type Terminal struct {
	fd      int           // for everything but reading
	in      int           // the same terminal, where a read never waits: keys that were there can be gone, as Ctrl-C drops them
	guard   time.Duration // answerGuard but in tests
	wakeR   *os.File
	wakeW   *os.File
	woken   atomic.Bool // a byte is in the pipe
	resumed atomic.Bool // the process was stopped and goes on
	done    chan struct{}
	signals chan os.Signal
	watcher sync.WaitGroup
	checks  sync.WaitGroup // of passphrases

	mu       sync.Mutex // the screen and everything below
	notifier *Notifier  // nil for none
	asks     []*ask     // the first one is shown, or will be
	shown    *ask       // nil when none is
	pages    []string   // of the question that is shown
	small    bool       // the screen is too small for it, and pages has nothing of it
	width    int        // of the screen that they were made for
	height   int
	page     int // the one on the screen
	below    int // rows of log lines that were written below its first line
	since    time.Time
	typed    []byte        // secret when the question takes a passphrase
	overlong bool          // more was typed than typed takes
	saved    *unix.Termios // what to restore, nil when the terminal is as found
	err      error         // set once when no more questions can be asked
	closed   bool
}

type ask struct {
	ctx      context.Context
	pages    func(width, height int) []string // of a screen; the question is below the last
	heading  string                           // in the list, while others are shown
	name     string                           // of the question when it is answered: "Approve?"
	question string                           // without passphraseEnd
	expires  func() time.Time
	// unlock checks a passphrase, which is the answer then, and overwrites it. It is
	// nil for a yes or no.
	unlock func(passphrase []byte) error
	// mayShow says whether it may be shown when its turn has come, nil for always.
	mayShow func() error
	door    bool // nothing else may be shown before it is answered
	// interrupts says that Ctrl-C is not for the question but interrupts as ever.
	interrupts bool
	bell       bool // to be rung once
	// checking says that unlock is under way.
	checking bool
	again    string     // why unlock's passphrase is asked for again, in the place of question
	answer   chan error // has room for the one answer
}

// passphraseEnd ends a question for a passphrase.
const passphraseEnd = " (empty denies): "

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
	in, err := unix.Open(path, unix.O_RDONLY|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("%w: %s: %w", ErrNoTerminal, path, err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		unix.Close(fd)
		unix.Close(in)
		return nil, err
	}
	t := &Terminal{fd: fd, in: in, guard: answerGuard, wakeR: r, wakeW: w, done: make(chan struct{}), signals: make(chan os.Signal, 1)}
	if wake := int(r.Fd()); in >= fdSetSize || wake >= fdSetSize {
		t.closeFiles()
		return nil, fmt.Errorf("%w: too many files are open", ErrNoTerminal)
	}
	signal.Notify(t.signals, unix.SIGWINCH, unix.SIGCONT)
	go t.run()
	t.watcher.Go(t.watch)
	return t, nil
}

// NotifyBy has n tell of questions, too. It is called before the first one.
func (t *Terminal) NotifyBy(n *Notifier) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.notifier = n
}

// Close withdraws every question, restores the terminal and waits for its
// goroutines. No Ask may be under way or follow.
func (t *Terminal) Close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.wake()
	<-t.done
	signal.Stop(t.signals)
	close(t.signals) // nothing is sent after Stop
	t.watcher.Wait()
	t.checks.Wait()
	t.closeFiles()
}

func (t *Terminal) closeFiles() {
	unix.Close(t.fd)
	unix.Close(t.in)
	t.wakeR.Close()
	t.wakeW.Close()
}

// watch has the screen drawn anew when it changes size, and when the signer goes
// on after a stop.
func (t *Terminal) watch() {
	for s := range t.signals {
		if s == unix.SIGCONT {
			t.resumed.Store(true)
		}
		t.wake()
	}
}

// Approve implements Approver.
func (t *Terminal) Approve(ctx context.Context, p *Prompt) error {
	a := &ask{ctx: ctx, pages: p.pages, heading: p.Heading(), name: "Approve?", question: "Approve? [y/N] ", expires: p.Expires,
		mayShow: p.MayShow, bell: true}
	if p.NeedsPassphrase() {
		a.question, a.unlock = "Passphrase to approve", p.Unlock
	}
	return t.ask(a, p.Title())
}

// AskPassphrase implements PassphraseAsker. Prompts that wait are not shown
// before it is answered.
func (t *Terminal) AskPassphrase(ctx context.Context, why string, try func(passphrase []byte) error) error {
	pages := func(width, _ int) []string {
		var lines []line
		for _, text := range wrap(why, width-1) {
			lines = append(lines, line{text: bold + text + thin})
		}
		return []string{page(lines)}
	}
	a := &ask{ctx: ctx, pages: pages, name: "Unlock?", question: "Passphrase", unlock: try, door: true, bell: true}
	if end, ok := ctx.Deadline(); ok {
		a.expires = func() time.Time { return end }
	}
	return t.ask(a, Title)
}

// Ask shows text, which must be safe, and asks for a yes; Ctrl-C interrupts as
// where no question is shown. It returns nil, ErrDenied, ErrNoTerminal or the cause of ctx.
func (t *Terminal) Ask(ctx context.Context, text, question string, expires time.Time) error {
	one := func(int, int) []string { return []string{text} }
	return t.ask(&ask{ctx: ctx, pages: one, heading: question, name: question, question: question + " [y/N] ",
		expires: func() time.Time { return expires }, interrupts: true}, "")
}

// ask puts a question and waits for its answer. title is a notification's, empty
// for none.
func (t *Terminal) ask(a *ask, title string) error {
	a.answer = make(chan error, 1)
	t.mu.Lock()
	if t.err != nil || t.closed {
		t.mu.Unlock()
		return ErrNoTerminal
	}
	doors := slices.IndexFunc(t.asks, func(b *ask) bool { return !b.door })
	if doors < 0 {
		doors = len(t.asks)
	}
	// Behind a door nothing is told of what waits.
	tell := title != "" && (doors == 0 || a.door)
	a.bell = a.bell && len(t.asks) == 0
	if a.door {
		t.asks = slices.Insert(t.asks, doors, a)
	} else {
		t.asks = append(t.asks, a)
	}
	notifier := t.notifier
	t.mu.Unlock()
	if body := a.heading; notifier != nil && tell {
		if a.door {
			body = aRequest
		}
		notifier.Notify(title, body)
	}
	t.wake()
	stop := context.AfterFunc(a.ctx, t.wake)
	defer stop()
	return <-a.answer
}

// Write puts whole lines above the question that is shown. It serves as the
// place for log lines on the same terminal.
func (t *Terminal) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.aboveLocked(string(b))
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
		// Reading in the background would stop the whole signer.
		listen, idle := t.shown != nil && t.foreground(), len(t.asks) == 0
		t.mu.Unlock()
		if done {
			return
		}
		var read unix.FdSet
		read.Set(wake)
		if listen {
			read.Set(t.in)
		}
		timeout := unix.NsecToTimeval(tick.Nanoseconds())
		limit := &timeout
		if idle {
			limit = nil
		}
		_, err := unix.Select(max(wake, t.in)+1, &read, nil, nil, limit)
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
		if listen && read.IsSet(t.in) {
			t.take()
		}
	}
}

// lookLocked withdraws what must be withdrawn, shows what is next, and says
// whether the terminal is closed.
func (t *Terminal) lookLocked() (done bool) {
	for _, a := range slices.Clone(t.asks) {
		err := t.err
		if a.ctx.Err() != nil {
			err = context.Cause(a.ctx)
		} else if err == nil && t.closed {
			err = ErrNoTerminal
		}
		if err != nil {
			t.finishLocked(a, err)
		}
	}
	t.holdBackLocked()
	switch {
	case t.closed:
		t.restoreLocked()
		return true
	case len(t.asks) == 0:
		t.restoreLocked()
	case !t.foreground():
		// A read or a change of modes would stop the whole signer.
	case t.shown != t.asks[0]:
		t.showLocked()
	default:
		t.refreshLocked()
	}
	return false
}

// holdBackLocked ends the first questions that must not be shown.
func (t *Terminal) holdBackLocked() {
	for len(t.asks) > 0 && t.asks[0] != t.shown && t.asks[0].mayShow != nil {
		err := t.asks[0].mayShow()
		if err == nil {
			return
		}
		t.finishLocked(t.asks[0], err)
	}
}

// finishLocked answers a question and takes it away. The outcome is shown if the
// question is, and anyway when its answer was typed.
func (t *Terminal) finishLocked(a *ask, err error) {
	outcome := a.name + " " + outcomeOf(a, err) + "\n"
	switch {
	case a == t.shown:
		t.putLocked("\r\x1b[J" + outcome)
		t.leaveLocked()
	case a.checking:
		t.aboveLocked(outcome)
	}
	t.asks = slices.DeleteFunc(t.asks, func(b *ask) bool { return a == b })
	a.answer <- err
}

func outcomeOf(a *ask, err error) string {
	switch {
	case a.ctx.Err() != nil, errors.Is(err, ErrNoTerminal):
		return withdrawal(err)
	case err == nil && a.door:
		return "unlocked"
	case err == nil:
		return "approved"
	case errors.Is(err, ErrDenied):
		return "denied"
	}
	return clean(err.Error())
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

// failLocked ends every question, now and later.
func (t *Terminal) failLocked(err error) {
	t.err = ErrNoTerminal
	if err != nil {
		t.err = fmt.Errorf("%w: %w", ErrNoTerminal, err)
	}
}

// rawLocked has the terminal give single keys without echo, mostly with Ctrl-C
// among them. What was typed before is dropped.
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
	for _, key := range endingKeys {
		now.Cc[key] = noKey
	}
	now.Cc[unix.VINTR] = noKey
	if t.shown.interrupts {
		now.Cc[unix.VINTR] = t.saved.Cc[unix.VINTR]
	}
	if err := unix.IoctlSetTermios(t.fd, ioctlSetTermiosFlush, now); err != nil {
		t.failLocked(err)
	}
}

// suspendLocked stops the signer, and all that were started with it, as Ctrl-Z does
// where no question is shown. The terminal is as it was found, for not every shell
// sees to that. Where no shell could continue it this has no effect, and the question
// is shown anew at once.
func (t *Terminal) suspendLocked() {
	t.putAwayLocked()
	t.restoreLocked()
	_ = unix.Kill(0, unix.SIGTSTP) // one may send signals to oneself
	<-time.After(suspendTime)      // nobody changes the terminal again before the stop
}

func (t *Terminal) restoreLocked() {
	if t.saved != nil && t.foreground() {
		_ = unix.IoctlSetTermios(t.fd, ioctlSetTermiosFlush, t.saved) // a terminal that is gone needs none
		t.saved = nil
	}
}

// singleKeys says whether the terminal is as rawLocked has made it. A shell that
// stops the signer takes that back.
func (t *Terminal) singleKeys() bool {
	now, err := unix.IoctlGetTermios(t.fd, ioctlGetTermios)
	return err != nil || now.Lflag&(unix.ICANON|unix.ECHO) == 0 && (t.shown.interrupts || now.Cc[unix.VINTR] == noKey)
}

// interrupts says whether a key interrupts where no question is shown.
func (t *Terminal) interrupts(key byte) bool {
	return key == ctrlC || t.means(key, unix.VINTR)
}

// means says whether a key is the one of a control character where no question is
// shown.
func (t *Terminal) means(key byte, control int) bool {
	return t.saved != nil && t.saved.Cc[control] != noKey && key == t.saved.Cc[control]
}

// foreground says whether reading would stop us, where the terminal is ours to
// be stopped by.
func (t *Terminal) foreground() bool {
	pgrp, err := unix.IoctlGetInt(t.fd, unix.TIOCGPGRP)
	return err != nil || pgrp == unix.Getpgrp()
}

// size is the terminal's in columns and rows. One that does not know its own is
// taken for a usual one.
func (t *Terminal) size() (width, height int) {
	width, height, err := term.GetSize(t.fd)
	if err != nil || width <= 0 {
		width = screenWidth
	}
	if err != nil || height <= 0 {
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
