// SPDX-License-Identifier: BSD-3-Clause

package cli

// This file is the only one that prints for commands. The rules:
//
//   - Results go to standard output and nothing else does. With --json a result is one JSON object on one
//     line; a command that reports events prints one such line for each.
//   - Everything for people goes to standard error, in one line each: lower case, no full stop. An error
//     is two lines, "error:" what happened and "hint:" what to type. --quiet leaves errors only.
//   - With --json the error that ends the command is also the last line of standard output:
//     {"error":{"message":"…","hint":"…","exit":1}}.
//   - Nothing that came from outside reaches the terminal but through safetext.
//   - A question is asked only when standard input is a terminal. --quiet does not silence what belongs to it.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/term"
	"vmux.app/toolkit/internal/safetext"
)

// maxLine bounds a line for people; what is longer helps nobody.
const maxLine = 2000

var (
	// ErrNoTerminal says that there is nobody to ask.
	ErrNoTerminal = errors.New("standard input is not a terminal")
	// ErrNoInput says that the terminal was closed (Ctrl-D) instead of an answer.
	ErrNoInput = errors.New("no answer was typed")
)

// TUI is a command's way to speak. It is safe for concurrent use.
type TUI struct {
	command     string // "vmux-signer key add"
	json, quiet bool
	stdin       io.Reader
	terminal    bool // standard error can redraw a line

	mu      sync.Mutex // guards the writers and what follows
	stdout  io.Writer
	stderr  io.Writer
	outErr  error  // first failure to print a result
	waiting string // line that is on the terminal now and has no end
}

type tuiKey struct{}

// From returns the TUI of a running command.
func From(c *Context) *TUI {
	t, ok := c.Context.Value(tuiKey{}).(*TUI)
	if !ok { // an action that Run did not start
		return newTUI(c.App.Reader, c.App.Writer, c.App.ErrWriter, c.App.Name, false, false)
	}
	return t
}

func newTUI(stdin io.Reader, stdout, stderr io.Writer, command string, json, quiet bool) *TUI {
	return &TUI{command: command, json: json, quiet: quiet, stdin: stdin, stdout: stdout, stderr: stderr,
		terminal: isTerminal(stderr) && os.Getenv("TERM") != "dumb"}
}

func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// JSON says whether the user asked for JSON.
func (t *TUI) JSON() bool { return t.json }

// Interactive says whether a person can be asked.
func (t *TUI) Interactive() bool { return isTerminal(t.stdin) }

// Screen gives the columns of the terminal that results go to, and whether they may have colours there (no-color.org).
// Where there is no terminal the width is 0.
func (t *TUI) Screen() (width int, colour bool) {
	if !isTerminal(t.stdout) {
		return 0, false
	}
	width, _, err := term.GetSize(int(t.stdout.(*os.File).Fd()))
	if err != nil || width <= 0 {
		width = terminalWidth + 1
	}
	return width, os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// Result prints a result on standard output: v as one line of JSON, or what text prints.
// A failure to print fails the command. Text from outside is the caller's to make safe.
func (t *TUI) Result(v any, text func(w io.Writer)) {
	var b []byte
	var err error
	if t.json {
		b, err = json.Marshal(v, json.Deterministic(true))
		b = append(b, '\n')
	} else {
		var s strings.Builder
		text(&s)
		b = []byte(s.String())
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		_, err = t.stdout.Write(b)
	}
	if err != nil && t.outErr == nil {
		t.outErr = fmt.Errorf("cannot print the result: %w", err)
	}
}

// Printed gives the first failure to print a result, for a command that must not go on after one.
func (t *TUI) Printed() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.outErr
}

// Notef prints a line for people.
func (t *TUI) Notef(format string, a ...any) {
	if !t.quiet {
		t.line("", fmt.Sprintf(format, a...))
	}
}

// Warnf prints a line that begins with "warning:".
func (t *TUI) Warnf(format string, a ...any) {
	if !t.quiet {
		t.line("warning: ", fmt.Sprintf(format, a...))
	}
}

// Alwaysf prints a line for people that --quiet does not take away: part of a question, or a warning that
// nobody may miss.
func (t *TUI) Alwaysf(format string, a ...any) { t.line("", fmt.Sprintf(format, a...)) }

// Error prints err and its hint, for what does not end the command.
func (t *TUI) Error(err error) {
	_, hint := t.advice(err)
	t.line("error: ", err.Error())
	t.line("hint: ", hint)
}

func (t *TUI) advice(err error) (exit int, hint string) {
	exit, hint = Advice(err)
	switch {
	case hint != "":
	case exit == ExitUsage:
		hint = "type: " + t.command + " --help"
	default:
		hint = "the manual page has more: man " + strings.Fields(t.command)[0]
	}
	return exit, hint
}

func (t *TUI) line(prefix, s string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.eraseLocked()
	fmt.Fprintf(t.stderr, "%s%s\n", prefix, safetext.Line(s, maxLine))
}

// errorObject is what --json prints for an error.
type errorObject struct {
	Error struct {
		Message string `json:"message"`
		Hint    string `json:"hint"`
		Exit    int    `json:"exit"`
	} `json:"error"`
}

// finish prints the error that ends the command, if any, and returns the exit status.
func (t *TUI) finish(err error) int {
	t.mu.Lock()
	if err == nil {
		err = t.outErr
	}
	t.mu.Unlock()
	if err == nil {
		return ExitOK
	}
	if s, ok := errors.AsType[Status](err); ok {
		return int(s)
	}
	exit, hint := t.advice(err)
	t.Error(err)
	if t.json {
		var o errorObject
		o.Error.Message, o.Error.Hint, o.Error.Exit = strings.ToValidUTF8(err.Error(), "\ufffd"), strings.ToValidUTF8(hint, "\ufffd"), exit
		t.Result(o, nil)
	}
	return exit
}

// Logger returns a logger whose warnings and errors are lines for people; lower levels are dropped. Commands
// pass it to packages that report through slog.
func (t *TUI) Logger() *slog.Logger { return slog.New(&handler{t: t}) }

type handler struct {
	t     *TUI
	attrs string
}

func (h *handler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	s := r.Message + h.attrs
	r.Attrs(func(a slog.Attr) bool { s += attr(a); return true })
	h.t.Warnf("%s", s)
	return nil
}

func (h *handler) WithAttrs(as []slog.Attr) slog.Handler {
	s := h.attrs
	for _, a := range as {
		s += attr(a)
	}
	return &handler{h.t, s}
}

func (h *handler) WithGroup(string) slog.Handler { return h }

func attr(a slog.Attr) string { return fmt.Sprintf(" %s=%v", a.Key, a.Value) }

// noticeAfter is how long a wait may last without a word.
const noticeAfter = time.Second

// Waiting says after a second that the command waits for what, and for how long it still will:
//
//	defer t.Waiting("the phone's answer", deadline)()
//
// On a terminal the line counts down and goes away; elsewhere it is printed once. The function that is
// returned ends it and may be called twice.
func (t *TUI) Waiting(what string, limit time.Duration) (stop func()) {
	if t.quiet {
		return func() {}
	}
	end := time.Now().Add(limit)
	done := make(chan struct{})
	var ended sync.WaitGroup
	ended.Go(func() {
		tick := time.NewTicker(noticeAfter)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			left := max(time.Until(end).Round(time.Second), 0)
			s := fmt.Sprintf("waiting for %s, %d s left", what, int(left.Seconds()))
			if !t.terminal {
				t.line("", s)
				return
			}
			t.mu.Lock()
			t.eraseLocked()
			t.waiting = safetext.Line(s, terminalWidth)
			fmt.Fprint(t.stderr, t.waiting)
			t.mu.Unlock()
		}
	})
	return sync.OnceFunc(func() {
		close(done)
		ended.Wait()
		t.mu.Lock()
		defer t.mu.Unlock()
		t.eraseLocked()
	})
}

// terminalWidth is what a line that is redrawn may have: one that wraps leaves its beginning behind.
const terminalWidth = 79

// eraseLocked takes the waiting line off the terminal, so that another one can be printed.
func (t *TUI) eraseLocked() {
	if t.waiting != "" {
		fmt.Fprint(t.stderr, "\r\x1b[K") // CR, erase to the end of the line (ECMA-48)
		t.waiting = ""
	}
}

// ReadLine returns the first line of standard input, without its end and surrounding space. On a terminal it prints
// prompt first. Errors: ErrNoInput, ctx's.
func (t *TUI) ReadLine(ctx context.Context, prompt string) (string, error) {
	if t.Interactive() {
		return t.Ask(ctx, prompt)
	}
	f, ok := t.stdin.(*os.File)
	if !ok {
		return "", ErrNoInput
	}
	s, err := readLine(ctx, f)
	return strings.TrimSpace(s), err
}

// Ask prints prompt and returns the line that is typed, without its end and surrounding space. Errors: ErrNoTerminal,
// ErrNoInput, ctx's.
func (t *TUI) Ask(ctx context.Context, prompt string) (string, error) {
	f, ok := t.stdin.(*os.File)
	if !ok || !t.Interactive() {
		return "", ErrNoTerminal
	}
	t.mu.Lock()
	t.eraseLocked()
	fmt.Fprint(t.stderr, safetext.Line(prompt, maxLine))
	t.mu.Unlock()
	s, err := readLine(ctx, f)
	if err != nil {
		t.line("", "") // the cursor stands behind the prompt
		return "", err
	}
	return strings.TrimSpace(s), nil
}

// AskSecret is Ask for a passphrase: nothing is shown of what is typed, and spaces are part of it. Errors: those of Ask.
func (t *TUI) AskSecret(ctx context.Context, prompt string) ([]byte, error) {
	f, ok := t.stdin.(*os.File)
	if !ok || !t.Interactive() {
		return nil, ErrNoTerminal
	}
	show := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.eraseLocked()
		fmt.Fprint(t.stderr, safetext.Line(prompt, maxLine))
	}
	restore, err := noEcho(f, show)
	if err != nil {
		return nil, err
	}
	defer restore()
	show()
	s, err := readLine(ctx, f)
	t.line("", "") // the end of the line was not shown either
	return []byte(strings.TrimRight(s, "\r\n")), err
}
