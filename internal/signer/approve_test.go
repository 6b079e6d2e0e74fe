// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmux.app/toolkit/internal/ptytest"
)

func testPrompt(key string) *Prompt {
	p := &Prompt{
		Verified: Verified{Device: "laptop", Operation: "log in as root", Kind: kindLogin, User: "root",
			HostKey: "SHA256:" + strings.Repeat("h", 43), HostKeyType: "ssh-ed25519", KeyLabel: key, KeyPrint: "SHA256:" + strings.Repeat("k", 43)},
		Claimed: Claimed{HostNames: []string{"build.example.org"}, WorkingDirectory: "/home/\x1b[2Jme", Reason: strings.Repeat("because ", 40),
			Processes: []Process{{42, "/usr/bin/ssh"}, {41, "/usr/bin/git"}}},
	}
	p.extend(time.Now().Add(Freshness))
	return p
}

// testTerminal takes answers guard after a prompt has appeared.
func testTerminal(t *testing.T, guard time.Duration) (*ptytest.Terminal, *Terminal) {
	t.Helper()
	pty := ptytest.Open(t)
	term, err := OpenTerminal(pty.TTY.Name())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(term.Close)
	term.mu.Lock()
	term.guard = guard
	term.mu.Unlock()
	return pty, term
}

// asked starts Approve and waits for its prompt on the screen.
func asked(ctx context.Context, term *Terminal, key string) <-chan error {
	c := make(chan error, 1)
	go func() { c <- term.Approve(ctx, testPrompt(key)) }()
	return c
}

// pastGuard waits until a prompt takes answers: the time it does not is the
// behaviour, and there is nothing else to wait for.
func pastGuard() { <-time.After(answerGuard + 100*time.Millisecond) }

func TestTerminalAnswers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		typed string
		want  error
		shown string
	}{
		{"y\n", nil, "approved"}, {"Y\n", nil, "approved"}, {"yes\n", nil, "approved"}, {" y\r", nil, "approved"},
		{"n\n", ErrDenied, "denied"}, {"\n", ErrDenied, "denied"}, {"yo\n", ErrDenied, "denied"}, {"\x04", ErrDenied, "denied"},
		{"y\x04", ErrDenied, "denied"}, {"n\x7fy\n", nil, "approved"}, {"no\x15y\n", nil, "approved"},
		{"\x1b[Ay\n", ErrDenied, "denied"}, {"yyyyyyyyyyyyyyyyyyyyyyyyy\n", ErrDenied, "denied"},
	} {
		t.Run(fmt.Sprintf("%q", c.typed), func(t *testing.T) {
			t.Parallel()
			pty, term := testTerminal(t, 0)
			done := asked(t.Context(), term, "work")
			pty.Expect("Approve? [y/N]")
			pty.Type(c.typed)
			if err := <-done; !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			pty.Expect(c.shown)
		})
	}
}

// What is typed before a prompt appears, and just after, is not its answer.
func TestTerminalTypeAhead(t *testing.T) {
	t.Parallel()
	pty, term := testTerminal(t, answerGuard)
	pty.Type("y\ny")
	first := asked(t.Context(), term, "one")
	pty.Expect("one, SHA256")
	pty.Expect("Approve? [y/N]")
	pty.Type("y\n") // at once
	pastGuard()
	select {
	case err := <-first:
		t.Fatalf("answered by what was typed before: %v", err)
	default:
	}
	// The second question waits its turn. The answer to the first, typed twice, does
	// not answer it.
	second := asked(t.Context(), term, "two")
	pty.Expect("1 more waiting")
	pty.Type("n\ny\n")
	if err := <-first; !errors.Is(err, ErrDenied) {
		t.Errorf("first: %v", err)
	}
	pty.Expect("denied")
	pty.Expect("two, SHA256")
	pty.Expect("Approve? [y/N]")
	pastGuard()
	select {
	case err := <-second:
		t.Fatalf("answered by what was typed for the first: %v", err)
	default:
	}
	pty.Type("y\n")
	if err := <-second; err != nil {
		t.Errorf("second: %v", err)
	}
}

// A question that is withdrawn goes away and says so; the next one is shown.
func TestTerminalWithdrawn(t *testing.T) {
	t.Parallel()
	pty, term := testTerminal(t, 0)
	for _, c := range []struct {
		cause error
		want  string
	}{{nil, "withdrawn by the device"}, {errExpired, "too late: the request has expired"}, {errUnpaired, "withdrawn: the device was forgotten"}} {
		ctx, cancel := context.WithCancelCause(t.Context())
		first := asked(ctx, term, "one")
		pty.Expect("one, SHA256")
		hidden, cancelHidden := context.WithCancel(t.Context())
		waiting := asked(hidden, term, "hidden")
		pty.Expect("1 more waiting")
		next := asked(t.Context(), term, "next")
		pty.Expect("2 more waiting")
		cancelHidden() // while it waits: it is never shown
		if err := <-waiting; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		cancel(c.cause)
		if err := <-first; err == nil || c.cause != nil && !errors.Is(err, c.cause) {
			t.Errorf("%v, want %v", err, c.cause)
		}
		pty.Expect(c.want)
		if text := pty.Expect("next, SHA256"); strings.Contains(text, "hidden") {
			t.Errorf("withdrawn question was shown: %q", text)
		}
		pty.Expect("[y/N]")
		pty.Type("y\n")
		if err := <-next; err != nil {
			t.Error(err)
		}
		pty.Expect("approved")
	}
}

// The terminal is left as it was found, and what is shown is safe and has no
// line that is too long.
func TestTerminalScreen(t *testing.T) {
	t.Parallel()
	pty, term := testTerminal(t, 0)
	fd := int(pty.TTY.Fd())
	before, err := unix.IoctlGetTermios(fd, ioctlGetTermios)
	if err != nil {
		t.Fatal(err)
	}
	done := asked(t.Context(), term, "work")
	text := pty.Expect("Approve? [y/N]")
	if during, err := unix.IoctlGetTermios(fd, ioctlGetTermios); err != nil || during.Lflag&unix.ISIG == 0 || during.Lflag&unix.ICANON != 0 {
		t.Errorf("modes while asking: %v %+v", err, during)
	}
	lines := strings.Split(text, "\r\n")
	if len(lines) > 22 {
		t.Errorf("%d lines", len(lines))
	}
	for _, l := range lines {
		if n := len([]rune(strings.NewReplacer("\x1b[1m", "", "\x1b[0m", "", "\r\x1b[K", "").Replace(l))); n > 79 {
			t.Errorf("%d columns: %q", n, l)
		}
	}
	if strings.Contains(text, "\x1b[2J") || !strings.Contains(text, `/home/\x1b[2Jme`) {
		t.Errorf("unsafe text: %q", text)
	}
	for _, want := range []string{Title, "From laptop → build.example.org (claimed)", "VERIFIED\r\n", "CLAIMED by the device\r\n", "log in as root"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %q", want, text)
		}
	}
	pty.Expect("60 s left")
	pty.Expect("59 s left")
	fmt.Fprintln(term, "a line of the log")
	pty.Expect("\r\x1b[Ja line of the log")
	pty.Expect("Approve? [y/N]")
	pty.Type("y\n")
	if err := <-done; err != nil {
		t.Error(err)
	}
	pty.Expect("approved")
	untilIdle(t, term)
	after, err := unix.IoctlGetTermios(fd, ioctlGetTermios)
	if err != nil || after.Lflag != before.Lflag || after.Cc != before.Cc {
		t.Errorf("modes afterwards: %v %+v, before %+v", err, after, before)
	}
}

// untilIdle waits until the terminal is restored.
func untilIdle(tb testing.TB, t *Terminal) {
	for {
		t.mu.Lock()
		idle := t.saved == nil
		t.mu.Unlock()
		if idle {
			return
		}
		t.wake()
		select {
		case <-tb.Context().Done():
			return
		case <-time.After(time.Millisecond):
		}
	}
}

func TestNoTerminal(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/dev/null", filepath.Join(t.TempDir(), "x")} {
		if _, err := OpenTerminal(path); !errors.Is(err, ErrNoTerminal) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// script makes a program of a shell script.
func script(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ask")
	syscall.ForkLock.RLock() // a child would hold it open for writing, and no such file can be run
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func askpass(t *testing.T, path string) (*Askpass, error) {
	return NewAskpass(func(name string) string {
		if name == "SSH_ASKPASS" {
			return path
		}
		return ""
	})
}

func TestAskpass(t *testing.T) {
	t.Parallel()
	out := filepath.Join(t.TempDir(), "out")
	for body, want := range map[string]error{
		`printf '%s\n%s' "$SSH_ASKPASS_PROMPT" "$1" >` + out: nil,
		"exit 1":       ErrDenied,
		"kill -9 $$":   ErrDenied,
		"echo yes >&2": nil,
	} {
		a, err := askpass(t, script(t, body))
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Approve(t.Context(), testPrompt("work")); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", body, err, want)
		}
	}
	b, err := os.ReadFile(out)
	if err != nil || !strings.HasPrefix(string(b), "confirm\n"+Title+"\nFrom laptop → build.example.org (claimed)\n") {
		t.Errorf("%v: %q", err, b)
	}
	for _, path := range []string{"", "/nonexistent", t.TempDir()} {
		if _, err := askpass(t, path); !errors.Is(err, ErrNoAskpass) {
			t.Errorf("%q: %v", path, err)
		}
	}
}

// A dialog ends with its request, with everything it started, and the next one
// is asked then.
func TestAskpassKilled(t *testing.T) {
	t.Parallel()
	pids := filepath.Join(t.TempDir(), "pids")
	if err := unix.Mkfifo(pids, 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := askpass(t, script(t, "sleep 1000 & echo $! >"+pids+"; wait"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Approve(ctx, testPrompt("one")) }()
	b, err := os.ReadFile(pids) // waits for the script
	if err != nil {
		t.Fatal(err)
	}
	second, cancelSecond := context.WithCancel(t.Context())
	queued := make(chan error, 1)
	go func() { queued <- a.Approve(second, testPrompt("two")) }()
	cancelSecond()
	if err := <-queued; !errors.Is(err, context.Canceled) {
		t.Errorf("second: %v", err)
	}
	cancel(errExpired)
	if err := <-done; !errors.Is(err, errExpired) {
		t.Errorf("first: %v", err)
	}
	var pid int
	fmt.Sscan(string(b), &pid)
	for unix.Kill(pid, 0) == nil && state(pid) != "Z" {
		select {
		case <-t.Context().Done():
			return
		case <-time.After(time.Millisecond):
		}
	}
	a.program = script(t, "exit 0")
	if err := a.Approve(t.Context(), testPrompt("three")); err != nil {
		t.Errorf("third: %v", err)
	}
}

// state is a process's, "Z" when it only waits for its parent.
func state(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if _, rest, ok := strings.Cut(string(b), ") "); ok {
		return rest[:1]
	}
	return ""
}

// The dialogs of many requests come one after another.
func TestAskpassOneAtATime(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, err := askpass(t, script(t, "mkdir "+dir+"/one || exit 1; rmdir "+dir+"/one"))
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if err := a.Approve(t.Context(), testPrompt("x")); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// G04: the dialog asks for the passphrase, again while it is wrong.
func TestAskpassPassphrase(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", maxAnswer)
	for name, c := range map[string]struct {
		body, right string // of the program; $n is the number of the try
		want        error
		tried       []string
	}{
		"right":      {`echo right`, "right", nil, []string{"right"}},
		"no end":     {`printf right`, "right", nil, []string{"right"}},
		"first line": {`printf 'right\r\nwrong\n'`, "right", nil, []string{"right"}},
		"not UTF-8":  {`printf '\303 \377\n'`, "\xc3 \xff", nil, []string{"\xc3 \xff"}},
		"second":     {`test $n = 2 && echo right || echo wrong`, "right", nil, []string{"wrong", "right"}},
		"given up":   {`test $n = 3 && exit 1; echo wrong`, "right", ErrDenied, []string{"wrong", "wrong"}},
		"locked":     {`test $n = 3 && echo lock || echo wrong`, "right", ErrLocked, []string{"wrong", "wrong", "lock"}},
		"cancelled":  {`echo right; exit 1`, "right", ErrDenied, nil},
		"killed":     {`echo right; kill -9 $$`, "right", ErrDenied, nil},
		"empty":      {`echo; echo right`, "", ErrDenied, nil},
		"nothing":    {`:`, "", ErrDenied, nil},
		"longest":    {`printf ` + long, long, nil, []string{long}},
		"pipe stays": {`sleep 1000 & echo $! >$0.pid; echo right`, "right", nil, []string{"right"}},
		"much of it": {`echo right; yes | head -c 300000`, "right", nil, []string{"right"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := script(t, `n=$(($(cat `+dir+`/n 2>/dev/null) + 1)); echo $n >`+dir+`/n
printf '%s|%s' "${SSH_ASKPASS_PROMPT-none}" "$1" >`+dir+`/asked$n
`+c.body)
			a, err := askpass(t, path)
			if err != nil {
				t.Fatal(err)
			}
			for door, text := range map[bool]string{false: testPrompt("work").Text() + "\nPassphrase to approve:", true: "Approvals are locked.\n\nPassphrase:"} {
				os.Remove(dir + "/n")
				l := &lock{right: c.right}
				try := func(b []byte) error {
					err := l.unlock(b)
					if err != nil && string(b) == "lock" {
						return ErrLocked
					}
					return err
				}
				if door {
					err = a.AskPassphrase(t.Context(), "Approvals are locked.", try)
				} else {
					err = a.Approve(t.Context(), needing("work", try))
				}
				if !errors.Is(err, c.want) || !slices.Equal(l.tries(), c.tried) {
					t.Errorf("%v after %q, want %v after %q", err, l.tries(), c.want, c.tried)
				}
				l.overwritten(t)
				for i := range max(1, len(c.tried)) {
					want := text
					if i > 0 {
						want = "Wrong passphrase.\n\n" + text
					}
					if b, err := os.ReadFile(fmt.Sprintf("%s/asked%d", dir, i+1)); err != nil || string(b) != "none|"+want {
						t.Errorf("%v: %q, want %q", err, b, want)
					}
				}
				if b, err := os.ReadFile(path + ".pid"); err == nil {
					var pid int
					fmt.Sscan(string(b), &pid)
					if err := unix.Kill(pid, unix.SIGKILL); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
}

// What is too long is neither cut nor a no.
func TestAskpassTooLong(t *testing.T) {
	t.Parallel()
	a, err := askpass(t, script(t, "yes | tr -d '\\n' | head -c "+fmt.Sprint(maxAnswer+1)))
	if err != nil {
		t.Fatal(err)
	}
	l := &lock{right: strings.Repeat("y", maxAnswer)}
	if err := a.Approve(t.Context(), needing("work", l.unlock)); err == nil || errors.Is(err, ErrDenied) || errors.Is(err, ErrPassphrase) || len(l.tries()) > 0 ||
		!strings.Contains(err.Error(), "more than 1024 bytes") {
		t.Errorf("%v after %d tries", err, len(l.tries()))
	}
}

// An environment that asks for yes or no is not handed on for a passphrase.
func TestAskpassEnvironment(t *testing.T) {
	t.Setenv("SSH_ASKPASS_PROMPT", "confirm")
	a, err := askpass(t, script(t, `test -z "${SSH_ASKPASS_PROMPT+set}" && echo right`))
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Approve(t.Context(), needing("work", (&lock{right: "right"}).unlock)); err != nil {
		t.Error(err)
	}
}

// A request that is withdrawn ends its dialog, and one whose passphrase is being
// checked then is not approved.
func TestAskpassPassphraseWithdrawn(t *testing.T) {
	t.Parallel()
	a, err := askpass(t, script(t, "sleep 1000"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	l := &lock{right: "right"}
	done := approving(ctx, a, needing("work", l.unlock))
	cancel(errExpired)
	if err := <-done; !errors.Is(err, errExpired) || len(l.tries()) > 0 {
		t.Error(err)
	}
	a.program = script(t, "echo right")
	ctx, cancel = context.WithCancelCause(t.Context())
	if err := a.Approve(ctx, needing("work", func([]byte) error {
		cancel(errExpired)
		return nil
	})); !errors.Is(err, errExpired) {
		t.Error(err)
	}
}

// T06: no approver takes a yes where the passphrase is needed.
func TestThreat_T06_NoApprovalWithoutPassphrase(t *testing.T) {
	t.Parallel()
	yes, err := askpass(t, script(t, "exit 0"))
	if err != nil {
		t.Fatal(err)
	}
	wrong, err := askpass(t, script(t, "echo yes"))
	if err != nil {
		t.Fatal(err)
	}
	pty, term := testTerminal(t, 0)
	for name, c := range map[string]struct {
		approver Approver
		want     error
		tries    int
	}{
		"always":        {Always{slog.New(slog.DiscardHandler)}, ErrLocked, 0},
		"command":       {command(t, "true"), ErrLocked, 0},
		"askpass":       {yes, ErrDenied, 0},
		"askpass wrong": {wrong, ErrLocked, 5},
		"terminal":      {term, ErrLocked, 5},
	} {
		tries := 0
		done := approving(t.Context(), c.approver, needing("work", func(b []byte) error {
			if tries++; tries == 5 {
				return ErrLocked
			}
			return ErrPassphrase
		}))
		if name == "terminal" {
			pty.Expect("Passphrase to approve")
			for range 4 {
				pty.Type("y\n")
				pty.Expect("checking…")
				pty.Expect("wrong passphrase, try again")
			}
			pty.Type("y\n")
		}
		if err := <-done; !errors.Is(err, c.want) || tries != c.tries {
			t.Errorf("%s: %v after %d tries, want %v after %d", name, err, tries, c.want, c.tries)
		}
	}
}

// A command's question for the passphrase is as strict as an approval's.
func TestSecret(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		"echo 'a secret'; echo more":              "",
		"echo":                                    ErrDenied.Error(),
		"echo 'a secret'; exit 1":                 ErrDenied.Error(),
		"head -c 200000 /dev/zero | tr '\\0' a":   "more than 1024 bytes",
		"echo 'a secret'; sleep 5 & echo $! >pid": "",
	} {
		t.Run(body, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			a, err := askpass(t, script(t, "cd '"+dir+"'; "+body))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				var pid int
				b, _ := os.ReadFile(filepath.Join(dir, "pid")) // one of them leaves a process
				if _, err := fmt.Sscan(string(b), &pid); err == nil {
					_ = unix.Kill(pid, unix.SIGKILL)
				}
			})
			begun := time.Now()
			p, err := a.Secret(t.Context(), "Passphrase")
			if took := time.Since(begun); took > 4*time.Second {
				t.Errorf("it took %v", took)
			}
			switch {
			case want == "" && (err != nil || string(p) != "a secret"):
				t.Errorf("%q, %v", p, err)
			case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
				t.Errorf("%q, %v, want %q", p, err, want)
			}
		})
	}
}
