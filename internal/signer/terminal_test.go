// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmux.app/toolkit/internal/ptytest"
)

const passphraseQuestion = "Passphrase to approve (empty denies): "

// lock is a key's passphrase.
type lock struct {
	mu    sync.Mutex
	right string
	tried []string
	bufs  [][]byte // as they were given
}

func (l *lock) unlock(passphrase []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tried = append(l.tried, string(passphrase))
	l.bufs = append(l.bufs, passphrase)
	if string(passphrase) != l.right {
		return ErrPassphrase
	}
	return nil
}

func (l *lock) tries() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.tried)
}

// overwritten fails if one of the passphrases is still in memory.
func (l *lock) overwritten(t testing.TB) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, b := range l.bufs {
		if bytes.ContainsFunc(b[:cap(b)], func(r rune) bool { return r != 0 }) {
			t.Errorf("the passphrase is still there: %q", l.tried[i])
		}
	}
}

// ask80 is a terminal of 80 by 24.
func ask80(t *testing.T, guard time.Duration) (*ptytest.Terminal, *Terminal) {
	t.Helper()
	pty, term := testTerminal(t, guard)
	resize(t, pty, screenWidth, screenHeight)
	return pty, term
}

func resize(t testing.TB, pty *ptytest.Terminal, width, height uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(pty.TTY.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width}); err != nil {
		t.Fatal(err)
	}
}

// taken waits until all that was typed was read.
func taken(t testing.TB, pty *ptytest.Terminal) {
	t.Helper()
	until(t, "what was typed is read", func() bool {
		var set unix.FdSet
		set.Set(int(pty.TTY.Fd()))
		n, err := unix.Select(int(pty.TTY.Fd())+1, &set, nil, nil, &unix.Timeval{})
		if err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
		return err == nil && n == 0
	})
}

func approving(ctx context.Context, a Approver, p *Prompt) <-chan error {
	c := make(chan error, 1)
	go func() { c <- a.Approve(ctx, p) }()
	return c
}

func unlocking(ctx context.Context, a PassphraseAsker, try func([]byte) error) <-chan error {
	c := make(chan error, 1)
	go func() { c <- a.AskPassphrase(ctx, "Approvals are locked.", try) }()
	return c
}

func needing(key string, unlock func([]byte) error) *Prompt {
	p := testPrompt(key)
	p.unlock = unlock
	return p
}

func unanswered(t testing.TB, done <-chan error, why string) {
	t.Helper()
	select {
	case err := <-done:
		t.Fatalf("%s: answered: %v", why, err)
	default:
	}
}

// resultOf waits for the result of a check.
func resultOf(t testing.TB, result <-chan error) error {
	select {
	case err := <-result:
		return err
	case <-t.Context().Done():
		return t.Context().Err()
	}
}

func TestTerminalPassphrase(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", maxAnswer)
	for name, c := range map[string]struct {
		typed, right string
		want         error
		tried        int
		shown        string
	}{
		"right":             {"geheim\n", "geheim", nil, 1, "Approve? approved"},
		"blanks count":      {" y \r", " y ", nil, 1, "Approve? approved"},
		"yes is one":        {"y\n", "y", nil, 1, "Approve? approved"},
		"a rune back":       {"aä漢\x7f\x7fb\x08c\n", "ac", nil, 1, "Approve? approved"},
		"back too far":      {"a\x7f\x7f\x7fb\n", "b", nil, 1, "Approve? approved"},
		"no UTF-8":          {"\xff\x80\xc3\x7f\n", "\xff\x80", nil, 1, "Approve? approved"},
		"cleared":           {"no\x15yes\n", "yes", nil, 1, "Approve? approved"},
		"longest":           {long + "\n", long, nil, 1, "Approve? approved"},
		"too long, cleared": {long + "x\x15short\n", "short", nil, 1, "Approve? approved"},
		"empty":             {"\n", "", ErrDenied, 0, "Approve? denied"},
		"emptied":           {"ab\x15\n", "", ErrDenied, 0, "Approve? denied"},
		"Ctrl-C":            {"right\x03", "right", ErrDenied, 0, "Approve? denied"},
		"Ctrl-D":            {"right\x04", "right", ErrDenied, 0, "Approve? denied"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pty, term := ask80(t, 0)
			l := &lock{right: c.right}
			done := approving(t.Context(), term, needing("work", l.unlock))
			pty.Expect(passphraseQuestion)
			pty.Type(c.typed)
			if err := <-done; !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			shown := pty.Expect(c.shown)
			if len(l.tries()) != c.tried {
				t.Errorf("tried %q", l.tries())
			}
			for _, secret := range []string{"geheim", "xxx", "right", "ac"} {
				if strings.Contains(shown, secret) {
					t.Errorf("%q is shown: %q", secret, shown)
				}
			}
			untilIdle(t, term)
			l.overwritten(t)
		})
	}
}

// A passphrase that is too long is not cut and tried.
func TestTerminalPassphraseTooLong(t *testing.T) {
	t.Parallel()
	pty, term := ask80(t, 0)
	l := &lock{right: "right"}
	done := approving(t.Context(), term, needing("work", l.unlock))
	pty.Expect(passphraseQuestion)
	pty.Type(strings.Repeat("x", maxAnswer+1) + "\n")
	pty.Expect("too long, try again (empty denies): ")
	pty.Type("right\n")
	if err := <-done; err != nil || len(l.tries()) != 1 {
		t.Errorf("%v after %d tries", err, len(l.tries()))
	}
}

// A wrong passphrase is asked for again, behind the guard; another end ends the
// question.
func TestTerminalWrongPassphrase(t *testing.T) {
	t.Parallel()
	pty, term := ask80(t, answerGuard)
	s := newScreen(t)
	l := &lock{right: "right"}
	ended := errors.New("the key is\x1b[2J damaged")
	p := needing("work", func(b []byte) error {
		if string(b) == "end" {
			return ended
		}
		return l.unlock(b)
	})
	// A prompt that fills the screen: nothing of it goes when there are many tries.
	p.Claimed.Processes = nil
	for i := range 30 {
		p.Claimed.Processes = append(p.Claimed.Processes, Process{i, "/usr/bin/" + strings.Repeat("p", 20)})
	}
	done := approving(t.Context(), term, p)
	s.feed(pty.Expect(passphraseQuestion))
	s.feed(pty.Expect(fmt.Sprintf("\x1b[%dC", len(passphraseQuestion))))
	for range 6 {
		pastGuard()
		pty.Type("wrong\n")
		s.feed(pty.Expect("checking…"))
		s.feed(pty.Expect("wrong passphrase, try again (empty denies): "))
		s.feed(pty.Expect("\r\x1b[44C"))
		pty.Type("right\n") // at once
	}
	pastGuard()
	unanswered(t, done, "typed ahead")
	if slices.Contains(l.tries(), "right") || len(l.tries()) != 6 {
		t.Errorf("tried %q", l.tries())
	}
	s.wants(Title, "From laptop", headVerified, headClaimed, "wrong passphrase, try again")
	pty.Type("end\n")
	if err := <-done; !errors.Is(err, ended) {
		t.Error(err)
	}
	pty.Expect(`Approve? the key is\x1b[2J damaged`)
	l.overwritten(t)
}

// While a passphrase is checked the screen goes on, and the request can be
// withdrawn or denied.
func TestTerminalChecking(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		end  func(pty *ptytest.Terminal, cancel context.CancelCauseFunc)
		want error
		says string
	}{
		"withdrawn": {func(_ *ptytest.Terminal, cancel context.CancelCauseFunc) { cancel(errUnpaired) }, errUnpaired, "Approve? withdrawn: the device was forgotten"},
		"expired":   {func(_ *ptytest.Terminal, cancel context.CancelCauseFunc) { cancel(errExpired) }, errExpired, "Approve? too late"},
		"Ctrl-C":    {func(pty *ptytest.Terminal, _ context.CancelCauseFunc) { pty.Type("\x03") }, ErrDenied, "Approve? denied"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pty, term := ask80(t, 0)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			given, result := make(chan []byte), make(chan error)
			done := approving(ctx, term, needing("work", func(b []byte) error {
				given <- b
				return resultOf(t, result)
			}))
			pty.Expect(passphraseQuestion)
			pty.Type("right\n")
			buf := <-given
			pty.Expect(passphraseQuestion + "checking…   ")
			if state := pty.Expect(" left"); !strings.HasPrefix(state, "60 s") {
				t.Errorf("%q", state)
			}
			pty.Expect(passphraseQuestion + "checking…   59 s left")
			fmt.Fprintln(term, "a line of the log")
			pty.Expect("a line of the log")
			pty.Expect("checking…")
			pty.Type("\t\n\ny\n\x15\x04") // nothing of this counts now
			next := approving(t.Context(), term, testPrompt("next"))
			pty.Expect("1 more waiting")
			unanswered(t, done, "while it is checked")
			c.end(pty, cancel)
			if err := <-done; !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			pty.Expect(c.says)
			pty.Expect("next, SHA256")
			pty.Expect("Approve? [y/N]")
			result <- nil // too late
			term.checks.Wait()
			if strings.Trim(string(buf), "\x00") != "" {
				t.Errorf("the passphrase is still there: %q", buf)
			}
			unanswered(t, next, "by the passphrase for the one before")
			pty.Type("y\n")
			if err := <-next; err != nil {
				t.Error(err)
			}
			if text := pty.Expect("Approve? approved"); strings.Contains(text, c.says) {
				t.Errorf("answered twice: %q", text)
			}
		})
	}
}

// G04, T06: nothing is shown before the passphrase is given, not even what waits
// already, and a yes that was typed for a prompt is not the passphrase.
func TestThreat_G04_NothingBeforeThePassphrase(t *testing.T) {
	t.Parallel()
	pty, term := ask80(t, answerGuard)
	s := newScreen(t)
	first := approving(t.Context(), term, testPrompt("first"))
	s.feed(pty.Expect("Approve? [y/N]"))
	second := approving(t.Context(), term, testPrompt("second"))
	s.feed(pty.Expect("1 more waiting"))
	pastGuard()
	pty.Type("ye")
	s.feed(pty.Expect("Approve? [y/N] ye"))
	l := &lock{right: "right"}
	door := unlocking(t.Context(), term, l.unlock)
	text := s.feed(pty.Expect("Approvals are locked."))
	if !strings.Contains(text, "Approve? waits") {
		t.Errorf("%q", text)
	}
	s.feed(pty.Expect("Passphrase (empty denies): "))
	pty.Type("s\n")
	third := approving(t.Context(), term, testPrompt("third"))
	if hidden := pty.Expect("waiting: 3"); strings.Contains(hidden, "laptop") {
		t.Errorf("%q", hidden)
	}
	pastGuard()
	for i, done := range []<-chan error{first, second, third, door} {
		unanswered(t, done, fmt.Sprint(i))
	}
	pty.Type("\t\n") // Tab shows nothing; an empty one would deny
	if err := <-door; !errors.Is(err, ErrDenied) || len(l.tries()) > 0 {
		t.Errorf("%v, tried %q", err, l.tries())
	}
	if hidden := pty.Expect("Unlock? denied"); strings.Contains(hidden, "laptop") {
		t.Errorf("%q", hidden)
	}
	// Two doors: the second one is asked next, before all prompts.
	door = unlocking(t.Context(), term, l.unlock)
	pty.Expect("Passphrase (empty denies): ")
	pastGuard()
	pty.Type("wrong\n")
	pty.Expect("checking…")
	pty.Expect("wrong passphrase, try again (empty denies): ")
	pastGuard()
	other := unlocking(t.Context(), term, l.unlock)
	pty.Expect("waiting: 4")
	pty.Type("right\n")
	if err := <-door; err != nil {
		t.Error(err)
	}
	if hidden := pty.Expect("Unlock? unlocked"); strings.Contains(hidden, "laptop") {
		t.Errorf("%q", hidden)
	}
	if hidden := pty.Expect("Passphrase (empty denies): "); strings.Contains(hidden, "laptop") {
		t.Errorf("%q", hidden)
	}
	pastGuard()
	pty.Type("right\n")
	if err := <-other; err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		key  string
		done <-chan error
	}{{"first", first}, {"second", second}, {"third", third}} {
		pty.Expect(c.key + ", SHA256")
		pty.Expect("Approve? [y/N]   ")
		pty.Type("y\n")
		pastGuard()
		unanswered(t, c.done, "typed ahead for "+c.key)
		pty.Type("y\n")
		if err := <-c.done; err != nil {
			t.Error(err)
		}
	}
}

// A door goes with its context.
func TestTerminalDoorWithdrawn(t *testing.T) {
	t.Parallel()
	pty, term := ask80(t, 0)
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Hour, errExpired)
	defer cancel()
	ctx, withdraw := context.WithCancelCause(ctx)
	l := &lock{right: "right"}
	door := unlocking(ctx, term, l.unlock)
	pty.Expect("Passphrase (empty denies):    3600 s left")
	withdraw(errUnpaired)
	if err := <-door; !errors.Is(err, errUnpaired) {
		t.Error(err)
	}
	pty.Expect("Unlock? withdrawn: the device was forgotten")
}

// drawn gives the screen once the question was drawn whole.
func drawn(pty *ptytest.Terminal, s *screen, state, question string) {
	s.feed(pty.Expect(state))
	s.feed(pty.Expect(fmt.Sprintf("\r\x1b[%dC", len(question))))
}

// What waits is listed below the question, as far as there is room, and Tab goes
// on to the next; nobody approves what was not shown.
func TestTerminalList(t *testing.T) {
	t.Parallel()
	const question = "Approve? [y/N] "
	pty, term := ask80(t, 0)
	s := newScreen(t)
	answers := make([]<-chan error, 3)
	for i := range answers {
		p := testPrompt(fmt.Sprintf("key%d", i))
		p.Verified.Device = fmt.Sprintf("laptop-%d", i)
		p.extend(time.Now().Add(Freshness + time.Duration(i)*10*time.Second))
		if i == 2 {
			p.Verified.Device = strings.Repeat("漢", 30)
		}
		answers[i] = approving(t.Context(), term, p)
		if i == 0 {
			drawn(pty, s, " s left", question)
		} else {
			drawn(pty, s, fmt.Sprintf("%d more waiting (Tab)", i), question)
		}
	}
	s.wants("", Title, "From laptop-0 →", headVerified, headClaimed, question, "   70 s  From laptop-1 → build.example.org (claimed)", "   80 s  From 漢漢")
	if strings.Contains(s.String(), "laptop-2") {
		t.Errorf("%s", s)
	}
	// The seconds count down, in the list, too.
	drawn(pty, s, "59 s left", question)
	s.wants(question, "   69 s  From laptop-1")
	pty.Type("ye\t")          // what was typed for the first is not for the second
	s.feed(pty.Expect(Title)) // shown whole, and not only in the list
	s.feed(pty.Expect("From laptop-1"))
	drawn(pty, s, "2 more waiting (Tab)", question)
	s.wants(Title, "From laptop-1", question, "   79 s  From 漢漢", "   59 s  From laptop-0")
	for i, a := range answers {
		unanswered(t, a, fmt.Sprint(i))
	}
	pty.Type("y\n")
	if err := <-answers[1]; err != nil {
		t.Error(err)
	}
	s.feed(pty.Expect("Approve? approved"))
	s.feed(pty.Expect(Title))
	drawn(pty, s, "1 more waiting (Tab)", question)
	pty.Type("\t")
	s.feed(pty.Expect(Title))
	s.feed(pty.Expect("From laptop-0"))
	drawn(pty, s, "1 more waiting (Tab)", question)
	pty.Type("n\n")
	if err := <-answers[0]; err != ErrDenied {
		t.Error(err)
	}
	s.feed(pty.Expect("Approve? denied"))
	s.feed(pty.Expect(Title))
	drawn(pty, s, " s left", question)
	pty.Type("\ty\n") // there is no other one
	if err := <-answers[2]; err != nil {
		t.Error(err)
	}
	if s.bells != 1 {
		t.Errorf("%d bells", s.bells)
	}
}

// However many wait, and whatever the log says, the whole prompt stays on the
// screen.
func TestThreat_N02_ListLeavesThePrompt(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		prompt func(t *testing.T) *Prompt
		more   int // of 12, that are not listed at last
	}{
		"short": {func(*testing.T) *Prompt {
			p := testPrompt("shown")
			p.Claimed = Claimed{}
			return p
		}, 0},
		"login":       {func(*testing.T) *Prompt { return testPrompt("shown") }, 4},
		"certificate": {func(t *testing.T) *Prompt { return certificateFixture(t, nil) }, 10},
		"two pages":   {twoPages, 12},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pty, term := ask80(t, 0)
			s := newScreen(t)
			p := c.prompt(t)
			approving(t.Context(), term, p)
			s.feed(pty.Expect(" s left"))
			for i := range 12 {
				approving(t.Context(), term, testPrompt(fmt.Sprintf("other%d", i)))
				s.feed(pty.Expect(fmt.Sprintf("%d more waiting", i+1)))
				s.feed(pty.Expect("C"))
				s.whole(term)
			}
			if c.more > 0 && c.more < 12 {
				s.wants(fmt.Sprintf("  and %d more", c.more))
			} else if strings.Contains(s.String(), "  and ") {
				t.Errorf("%s", s)
			}
			if n := strings.Count(s.String(), " s  From "); n != 12-c.more {
				t.Errorf("%d are listed:\n%s", n, s)
			}
			for range 30 {
				fmt.Fprintln(term, "a line of the log")
				s.feed(pty.Expect("a line of the log"))
				s.feed(pty.Expect("12 more waiting"))
				s.feed(pty.Expect("C"))
				s.whole(term)
			}
		})
	}
}

// whole fails unless each line of the page is on the screen, and the question.
func (s *screen) whole(term *Terminal) {
	s.t.Helper()
	term.mu.Lock()
	lines := strings.Split(strings.TrimSuffix(unstyled(term.pages[term.page]), "\n"), "\n")
	last := term.page == len(term.pages)-1
	term.mu.Unlock()
	for i, l := range lines {
		lines[i] = strings.TrimRight(l, " ")
	}
	if !last {
		lines = append(lines, "Page 1 of 2: ")
	} else {
		lines = append(lines, "Approve? [y/N] ")
	}
	s.wants(lines...)
}

// Tab shows a page that was not read again, from the beginning, and its guard.
func TestTerminalTabGuard(t *testing.T) {
	t.Parallel()
	pty, term := ask80(t, answerGuard)
	long := approving(t.Context(), term, twoPages(t))
	pty.Expect("Page 1 of 2")
	other := approving(t.Context(), term, testPrompt("other"))
	pty.Expect("1 more waiting")
	pastGuard()
	pty.Type("\n")
	pty.Expect("Approve? [y/N]")
	pastGuard()
	pty.Type("\t")
	pty.Expect("other, SHA256")
	pty.Expect("Approve? [y/N]")
	pty.Type("y\n")
	pastGuard()
	unanswered(t, other, "at once after Tab")
	pty.Type("\t")
	pty.Expect("Page 1 of 2")
	pty.Type("\n")
	pastGuard()
	pty.Type("y\n")
	pty.Expect("Approve? [y/N]")
	unanswered(t, long, "on its second page")
	pastGuard()
	pty.Type("\x03")
	if err := <-long; err != ErrDenied {
		t.Error(err)
	}
	pty.Expect("other, SHA256")
	pty.Expect("Approve? [y/N]")
	pty.Type("\x03") // too early
	pastGuard()
	unanswered(t, other, "by the Ctrl-C before")
	pty.Type("\x03")
	if err := <-other; err != ErrDenied {
		t.Error(err)
	}
}

// A screen of another size gets the question anew, from its first page if there
// are several.
func TestTerminalResized(t *testing.T) {
	t.Parallel()
	pty, term := ask80(t, 0)
	done := approving(t.Context(), term, testPrompt("work"))
	pty.Expect("Approve? [y/N]")
	pty.Type("y")
	pty.Expect("Approve? [y/N] y")
	resize(t, pty, 100, 30)
	pty.Expect(Title)
	pty.Expect("Approve? [y/N] y") // the same page: the answer stays
	resize(t, pty, 80, 12)
	pty.Expect(Title)
	pty.Expect("Page 1 of 2: ")
	pty.Type("\n")
	pty.Expect("page 2 of 2")
	pty.Expect("Approve? [y/N]")
	pty.Type("y")
	pty.Expect("Approve? [y/N] y")
	resize(t, pty, 80, 8)
	pty.Expect("Page 1 of 3: ")
	pty.Type("y\n")
	pty.Expect("Page 2 of 3: ")
	unanswered(t, done, "by what was typed on another page")
	resize(t, pty, 80, 24)
	pty.Expect("Approve? [y/N]   ")
	pty.Type("y\n")
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A shell that stopped the signer has changed the terminal; the question is shown
// anew then.
func TestTerminalContinued(t *testing.T) {
	t.Parallel()
	pty, term := ask80(t, 0)
	fd := int(pty.TTY.Fd())
	cooked, err := unix.IoctlGetTermios(fd, ioctlGetTermios)
	if err != nil {
		t.Fatal(err)
	}
	l := &lock{right: "right"}
	done := approving(t.Context(), term, needing("work", l.unlock))
	pty.Expect(passphraseQuestion)
	pty.Type("no")
	until(t, "it is typed", func() bool {
		term.mu.Lock()
		defer term.mu.Unlock()
		return string(term.typed) == "no"
	})
	for name, change := range map[string]func(*unix.Termios){
		"all":       func(*unix.Termios) {},
		"echo":      func(m *unix.Termios) { m.Lflag &^= unix.ICANON; m.Cc[unix.VINTR] = noKey },
		"interrupt": func(m *unix.Termios) { m.Lflag &^= unix.ICANON | unix.ECHO },
	} {
		modes := *cooked
		change(&modes)
		if err := unix.IoctlSetTermios(fd, ioctlSetTermiosFlush, &modes); err != nil {
			t.Fatal(err)
		}
		pty.Expect(Title)
		pty.Expect(passphraseQuestion)
		now, err := unix.IoctlGetTermios(fd, ioctlGetTermios)
		if err != nil || now.Lflag&(unix.ICANON|unix.ECHO) != 0 || now.Lflag&unix.ISIG == 0 || now.Cc[unix.VINTR] != noKey {
			t.Errorf("%s: %v %+v", name, err, now)
		}
	}
	pty.Type("right\n") // what was typed before is forgotten
	if err := <-done; err != nil || len(l.tries()) != 1 {
		t.Errorf("%v, tried %q", err, l.tries())
	}
	// The question of another command leaves Ctrl-C alone, also right after one that
	// does not.
	untilIdle(t, term)
	first := approving(t.Context(), term, testPrompt("work"))
	pty.Expect("Approve? [y/N]")
	asked := make(chan error, 1)
	go func() { asked <- term.Ask(t.Context(), "text\n", "Accept?", time.Now().Add(time.Minute)) }()
	pty.Expect("1 more waiting")
	pty.Type("n\n")
	<-first
	pty.Expect("Accept? [y/N]")
	if now, err := unix.IoctlGetTermios(fd, ioctlGetTermios); err != nil || now.Cc[unix.VINTR] != cooked.Cc[unix.VINTR] {
		t.Errorf("%v: %+v", err, now)
	}
	pty.Type("y\n")
	if err := <-asked; err != nil {
		t.Error(err)
	}
}

// The bell is for who does not look.
func TestTerminalBell(t *testing.T) {
	t.Parallel()
	pty, term := ask80(t, 0)
	for range 2 {
		first := approving(t.Context(), term, testPrompt("one"))
		if text := pty.Expect("Approve? [y/N]"); strings.Count(text, "\a") != 1 {
			t.Errorf("%q", text)
		}
		second := approving(t.Context(), term, testPrompt("two"))
		pty.Expect("1 more waiting")
		pty.Type("\t")
		if text := pty.Expect("two, SHA256"); strings.Contains(text, "\a") {
			t.Errorf("%q", text)
		}
		pty.Type("\x03")
		<-second
		pty.Expect("one, SHA256")
		pty.Expect("[y/N]")
		pty.Type("\x03")
		<-first
		if text := pty.Expect("Approve? denied"); strings.Contains(text, "\a") {
			t.Errorf("%q", text)
		}
		untilIdle(t, term)
	}
	door := unlocking(t.Context(), term, (&lock{}).unlock)
	if text := pty.Expect("Passphrase"); strings.Count(text, "\a") != 1 {
		t.Errorf("%q", text)
	}
	pty.Type("\x03")
	if err := <-door; err != ErrDenied {
		t.Error(err)
	}
}

// A terminal that is gone ends every question, and one under check.
func TestTerminalGone(t *testing.T) {
	t.Parallel()
	pty, term := ask80(t, 0)
	given, result := make(chan []byte), make(chan error)
	first := approving(t.Context(), term, needing("work", func(b []byte) error {
		given <- b
		return resultOf(t, result)
	}))
	pty.Expect(passphraseQuestion)
	second := approving(t.Context(), term, testPrompt("two"))
	pty.Type("right\n")
	<-given
	pty.HangUp()
	for _, done := range []<-chan error{first, second} {
		if err := <-done; !errors.Is(err, ErrNoTerminal) {
			t.Error(err)
		}
	}
	result <- nil
	if err := term.Approve(t.Context(), testPrompt("three")); !errors.Is(err, ErrNoTerminal) {
		t.Error(err)
	}
}

func TestClip(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in   string
		room int
		want string
	}{
		{"", 5, ""}, {"abcde", 5, "abcde"}, {"abcdef", 5, "ab…ef"}, {"abcdefg", 6, "ab…fg"},
		{"漢字漢字", 8, "漢字漢字"}, {"漢字漢字", 7, "漢…字"}, {"漢字漢字x", 8, "漢…字x"},
	} {
		if got := clip(c.in, c.room); got != c.want || breadth(got) > c.room {
			t.Errorf("clip(%q, %d) = %q, want %q", c.in, c.room, got, c.want)
		}
	}
}

// An answer that comes while the withdrawal is under way is none.
func TestTerminalAnswerOfWithdrawn(t *testing.T) {
	t.Parallel()
	pty, term := ask80(t, 0)
	ctx, cancel := context.WithCancelCause(t.Context())
	done := approving(ctx, term, testPrompt("work"))
	pty.Expect("Approve? [y/N]")
	term.mu.Lock() // so that nobody else takes it away
	cancel(errUnpaired)
	term.answerLocked(term.shown, nil)
	term.mu.Unlock()
	if err := <-done; !errors.Is(err, errUnpaired) {
		t.Error(err)
	}
	pty.Expect("Approve? withdrawn: the device was forgotten")
}

// What was typed of a passphrase does not stay in memory, however it ends.
func TestTerminalForgetsTyped(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(pty *ptytest.Terminal, cancel func()){
		"Ctrl-C":    func(pty *ptytest.Terminal, _ func()) { pty.Type("\x03") },
		"Ctrl-D":    func(pty *ptytest.Terminal, _ func()) { pty.Type("\x04") },
		"Tab":       func(pty *ptytest.Terminal, _ func()) { pty.Type("\t") },
		"Ctrl-U":    func(pty *ptytest.Terminal, _ func()) { pty.Type("\x15") },
		"Backspace": func(pty *ptytest.Terminal, _ func()) { pty.Type("\x7f\x7f\x7f\x7f\x7f\x7f") },
		"withdrawn": func(_ *ptytest.Terminal, cancel func()) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pty, term := ask80(t, 0)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			approving(ctx, term, needing("work", (&lock{}).unlock))
			pty.Expect(passphraseQuestion)
			approving(t.Context(), term, testPrompt("next"))
			pty.Expect("1 more waiting")
			var buf []byte
			typed := func(want string) bool {
				term.mu.Lock()
				defer term.mu.Unlock()
				if term.typed != nil && buf == nil {
					buf = term.typed[:cap(term.typed)]
				}
				return strings.TrimRight(string(buf), "\x00") == want
			}
			pty.Type("secret")
			until(t, "what is typed is there", func() bool { return typed("secret") })
			end(pty, cancel)
			until(t, "what was typed is gone", func() bool { return typed("") })
		})
	}
}

// until waits for a condition, for as long as a terminal is waited for.
func until(t testing.TB, what string, done func() bool) {
	t.Helper()
	late := time.After(10 * time.Second)
	for !done() {
		select {
		case <-late:
			t.Fatalf("never: %s", what)
		case <-time.After(time.Millisecond):
		}
	}
}

// A passphrase that is being checked when the door shuts counts, and is asked for
// again afterwards when it is wrong.
func TestTerminalCheckedBehindDoor(t *testing.T) {
	t.Parallel()
	pty, term := ask80(t, 0)
	given, result := make(chan []byte), make(chan error)
	first := approving(t.Context(), term, needing("first", func(b []byte) error {
		given <- b
		return resultOf(t, result)
	}))
	pty.Expect(passphraseQuestion)
	pty.Type("wrong\n")
	<-given
	for _, c := range []struct {
		result error
		says   string
	}{{ErrPassphrase, ""}, {nil, "Approve? approved"}} {
		door := unlocking(t.Context(), term, (&lock{right: "right"}).unlock)
		pty.Expect("Approve? waits")
		pty.Expect("Passphrase (empty denies): ")
		result <- c.result
		until(t, "the check is over", func() bool {
			term.mu.Lock()
			defer term.mu.Unlock()
			return !slices.ContainsFunc(term.asks, func(a *ask) bool { return a.checking })
		})
		pty.Expect(c.says)
		pty.Type("right\n")
		if err := <-door; err != nil {
			t.Fatal(err)
		}
		pty.Expect("Unlock? unlocked")
		if c.result != nil {
			unanswered(t, first, "by a wrong one")
			pty.Expect(passphraseQuestion)
			pty.Type("right\n")
			<-given
		}
	}
	if err := <-first; err != nil {
		t.Error(err)
	}
}

// What goes on being typed when a question is taken away is not for the next one,
// however long it takes: the rest of a passphrase would count as a wrong one, and
// a device could put another request under the owner's fingers.
func TestTerminalTypedOn(t *testing.T) {
	t.Parallel()
	pty, term := ask80(t, answerGuard)
	l := &lock{right: "right"}
	ctx, withdraw := context.WithCancelCause(t.Context())
	first := approving(ctx, term, needing("first", l.unlock))
	pty.Expect(passphraseQuestion)
	pastGuard()
	pty.Type("r")
	second := approving(t.Context(), term, needing("second", l.unlock))
	pty.Expect("1 more waiting")
	withdraw(errUnpaired)
	<-first
	pty.Expect("second, SHA256")
	pty.Expect(passphraseQuestion)
	for _, key := range "right\n" { // a slow typist
		<-time.After(answerGuard / 2)
		pty.Type(string(key))
	}
	pty.Expect("too early, try again (empty denies): ") // nothing else is seen of it
	pastGuard()
	unanswered(t, second, "by what was typed for the first")
	if tried := l.tries(); len(tried) > 0 {
		t.Errorf("tried %q", tried)
	}
	pty.Type("right\n")
	if err := <-second; err != nil {
		t.Error(err)
	}
}

// Who presses Ctrl-C again and again is heard.
func TestTerminalCtrlCAgain(t *testing.T) {
	t.Parallel()
	pty, term := ask80(t, answerGuard)
	done := approving(t.Context(), term, testPrompt("work"))
	pty.Expect("Approve? [y/N]")
	for range 5 {
		pty.Type("\x03")
		<-time.After(answerGuard / 2)
	}
	select {
	case err := <-done:
		if err != ErrDenied {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("not denied")
	}
}

// A screen that is too small for a question shows nothing of it, and takes no yes.
func TestTerminalTooSmall(t *testing.T) {
	t.Parallel()
	const small = "The window is too small"
	for _, size := range [][2]uint16{{80, minHeight - 1}, {minWidth - 1, 24}, {20, 8}, {10, 3}, {2, 1}, {1, 1}} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			pty, term := testTerminal(t, 0)
			resize(t, pty, size[0], size[1])
			first := approving(t.Context(), term, testPrompt("first"))
			until(t, "a question is shown", func() bool {
				term.mu.Lock()
				defer term.mu.Unlock()
				return term.shown != nil
			})
			pty.Type("y\n\nyes\n \n")
			taken(t, pty)
			other, cancel := context.WithCancel(t.Context())
			second := approving(other, term, testPrompt("second"))
			until(t, "another waits", func() bool {
				term.mu.Lock()
				defer term.mu.Unlock()
				return len(term.asks) == 2
			})
			pty.Type("\ty\n\ty\n") // on to the other, and back
			taken(t, pty)
			unanswered(t, second, "when it was not shown")
			cancel()
			<-second
			resize(t, pty, screenWidth, screenHeight)
			if text := pty.Expect(Title); strings.Contains(text, "laptop") || size[0] > 30 && !strings.Contains(text, small) {
				t.Errorf("%q", text)
			}
			pty.Expect("Approve? [y/N]   ")
			unanswered(t, first, "by what was typed when it was not shown")
			pty.Type("y")
			pty.Expect("Approve? [y/N] y")
			resize(t, pty, 80, minHeight-1)
			pty.Expect(small)
			pty.Type("\n")
			taken(t, pty)
			resize(t, pty, 80, 24)
			pty.Expect("Approve? [y/N]   ")
			unanswered(t, first, "while it was not shown")
			pty.Type("y\n")
			if err := <-first; err != nil {
				t.Error(err)
			}
			pty.Expect("approved")
		})
	}
	for _, no := range []string{"n", "\x03", "\x04"} {
		pty, term := testTerminal(t, 0)
		resize(t, pty, 80, 4)
		done := approving(t.Context(), term, needing("work", (&lock{}).unlock))
		pty.Expect(small)
		pty.Type(no)
		if err := <-done; err != ErrDenied {
			t.Errorf("%q: %v", no, err)
		}
	}
}

// No page of a prompt has more rows than the screen, whatever it is made of: what a
// device claims could push what is verified off it otherwise.
func TestThreat_T11_WideClaimsLeaveThePrompt(t *testing.T) {
	t.Parallel()
	for _, c := range []rune{'x', '漢', '\u26a1', '\u2705', '\u231a', '\u2b55', '\u303d', '\U0001f511', '\uff21'} {
		wide := strings.Repeat(string(c), 200)
		p := testPrompt("work")
		p.Verified.Device = strings.Repeat(string(c), 20)
		p.Claimed = Claimed{HostNames: []string{wide}, WorkingDirectory: wide, Reason: wide, Processes: []Process{{1, wide}}}
		for _, size := range [][2]int{{80, 24}, {80, 8}, {minWidth, minHeight}, {minWidth, 24}, {200, 60}} {
			for i, page := range p.pages(size[0], size[1]) {
				n := 0
				for l := range strings.Lines(unstyled(page)) {
					columns := 0
					for _, r := range strings.TrimSuffix(l, "\n") {
						if columns++; r == c && c != 'x' {
							columns++ // as wcwidth(3) and terminals have it
						}
					}
					n += 1 + max(0, columns-1)/size[0]
				}
				if n > size[1]-margin {
					t.Errorf("%q at %v: page %d has %d rows:\n%s", c, size, i+1, n, page)
				}
			}
		}
	}
}

// No key ends the signer while the terminal gives single keys: nobody would set it
// back.
func TestTerminalQuitKey(t *testing.T) {
	t.Parallel()
	pty, term := ask80(t, 0)
	fd := int(pty.TTY.Fd())
	cooked, err := unix.IoctlGetTermios(fd, ioctlGetTermios)
	if err != nil {
		t.Fatal(err)
	}
	for _, ask := range []func() error{
		func() error { return term.Approve(t.Context(), testPrompt("work")) },
		func() error { return term.Ask(t.Context(), "text\n", "Approve?", time.Now().Add(time.Minute)) },
	} {
		done := make(chan error, 1)
		go func() { done <- ask() }()
		pty.Expect("Approve? [y/N]")
		if now, err := unix.IoctlGetTermios(fd, ioctlGetTermios); err != nil || now.Cc[unix.VQUIT] != noKey {
			t.Errorf("%v: Ctrl-\\ quits: %+v", err, now)
		}
		pty.Type("\x1cy\n")
		if err := <-done; err != nil {
			t.Error(err)
		}
		pty.Expect("Approve? approved")
		untilIdle(t, term)
		if now, err := unix.IoctlGetTermios(fd, ioctlGetTermios); err != nil || now.Cc[unix.VQUIT] != cooked.Cc[unix.VQUIT] {
			t.Errorf("%v: %+v", err, now)
		}
	}
}

// A key that select(2) has promised can be gone, as Ctrl-C drops what was typed; no read waits for another one. Here
// the terminal's modes make one wait: with both set, select(2) is content with one byte, and read(2) goes on to MIN.
func TestTerminalNeverWaitsInARead(t *testing.T) {
	t.Parallel()
	pty, term := testTerminal(t, 0)
	answer := asked(t.Context(), term, "work")
	pty.Expect("Approve? [y/N] ")
	fd := int(pty.TTY.Fd())
	modes, err := unix.IoctlGetTermios(fd, ioctlGetTermios)
	if err != nil {
		t.Fatal(err)
	}
	modes.Cc[unix.VMIN], modes.Cc[unix.VTIME] = 5, 255 // bytes, tenths of a second
	if err := unix.IoctlSetTermios(fd, ioctlSetTermiosFlush, modes); err != nil {
		t.Fatal(err)
	}
	pty.Type("y")
	pty.Expect("y")
	pty.Type("\n")
	select {
	case err := <-answer:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("no answer")
	}
}
