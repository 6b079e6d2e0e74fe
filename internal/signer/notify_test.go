// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// asGiven hands title and body to the program.
func asGiven(title, body string) []string { return []string{title, body} }

// notices gives a notifier without a least time, and its notifications as they
// come.
func notices(t *testing.T, every time.Duration) (*Notifier, func() string) {
	t.Helper()
	pipe := filepath.Join(t.TempDir(), "told")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	n := newNotifier(script(t, `printf '%s|%s' "$1" "$2" >`+pipe), asGiven, every, notifyTime)
	t.Cleanup(n.Close)
	return n, func() string {
		b, err := os.ReadFile(pipe) // waits for the script
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
}

// untilFree waits until the notifier's program has ended.
func untilFree(t *testing.T, n *Notifier) {
	for {
		n.mu.Lock()
		busy := n.busy
		n.mu.Unlock()
		if !busy {
			return
		}
		select {
		case <-t.Context().Done():
			return
		case <-time.After(time.Millisecond):
		}
	}
}

// What the desktop's programs get cannot be taken for options, markup or script.
func TestNotifierArguments(t *testing.T) {
	t.Parallel()
	const title, body = `SSH Sign Request`, `-x \n\033 <b>&"$(id)`
	if got, want := notifySend(title, body), []string{"--app-name=vmux-signer", "--", title, `-x \\n\\033 &lt;b&gt;&amp;"$(id)`}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	got := osascript(title, body)
	if n := len(got); got[n-2] != title || got[n-1] != body || strings.Contains(strings.Join(got[:n-2], " "), "SSH") {
		t.Errorf("%q", got)
	}
}

func TestNewNotifier(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"notify-send", "osascript"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	env := func(set string) func(string) string {
		return func(name string) string {
			if name == set {
				return "x"
			}
			return ""
		}
	}
	for _, c := range []struct {
		path, goos, set, want string
	}{
		{dir, "linux", "DBUS_SESSION_BUS_ADDRESS", "notify-send"}, {dir, "linux", "DISPLAY", "notify-send"},
		{dir, "linux", "WAYLAND_DISPLAY", "notify-send"}, {dir, "linux", "", ""}, {dir, "darwin", "", "osascript"},
		{t.TempDir(), "linux", "DISPLAY", ""}, {t.TempDir(), "darwin", "", ""},
	} {
		t.Setenv("PATH", c.path)
		n := NewNotifier(c.goos, env(c.set))
		if got := n != nil; got != (c.want != "") || got && n.program != filepath.Join(dir, c.want) {
			t.Errorf("%+v: %+v", c, n)
		}
		n.Close()
	}
}

// Notifications that come fast are dropped, those of one time are not.
func TestNotifierRate(t *testing.T) {
	t.Parallel()
	n, told := notices(t, 0)
	n.Notify("one", "1")
	n.Notify("two", "2") // while the first one is under way, which waits for its reader
	if got := told(); got != "one|1" {
		t.Error(got)
	}
	untilFree(t, n)
	n.Notify("three", "3")
	if got := told(); got != "three|3" {
		t.Error(got)
	}
	n, told = notices(t, time.Hour)
	n.Notify("one", "1")
	if got := told(); got != "one|1" {
		t.Error(got)
	}
	untilFree(t, n)
	n.Notify("two", "2")
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.busy {
		t.Error("two in an hour")
	}
}

// A program that does not end is ended, with what it has started: after its time,
// and with the notifier.
func TestNotifierHangs(t *testing.T) {
	t.Parallel()
	for _, within := range []time.Duration{time.Hour, time.Second} {
		pids := filepath.Join(t.TempDir(), "pids")
		if err := unix.Mkfifo(pids, 0o600); err != nil {
			t.Fatal(err)
		}
		n := newNotifier(script(t, "sleep 1000 & echo $! >"+pids+"; wait"), asGiven, 0, within)
		defer n.Close()
		n.Notify("one", "1")
		b, err := os.ReadFile(pids)
		if err != nil {
			t.Fatal(err)
		}
		if within == time.Hour {
			n.Close()
			n.Notify("two", "2")
			n.mu.Lock()
			if n.busy {
				t.Error("it runs still, or again")
			}
			n.mu.Unlock()
		}
		untilFree(t, n)
		var pid int
		fmt.Sscan(string(b), &pid)
		gone(t, pid)
	}
}

// A prompt is told of by whom it is from and for what, and behind a door nobody is
// named.
func TestThreat_G04_Notifications(t *testing.T) {
	t.Parallel()
	pty, term := ask80(t, 0)
	n, told := notices(t, 0)
	term.NotifyBy(n)
	p := testPrompt("one")
	p.Verified.Device = "lap\x1b]0;x\atop\n"
	first := approving(t.Context(), term, p)
	if got, want := told(), `SSH Sign Request|From lap\x1b]0;x\x07top\x0a → build.example.org (claimed)`; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	untilFree(t, n)
	pty.Expect("Approve? [y/N]")
	second := approving(t.Context(), term, testPrompt("two"))
	if got, want := told(), "SSH Sign Request|From laptop → build.example.org (claimed)"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	untilFree(t, n)
	door := unlocking(t.Context(), term, (&lock{right: "right"}).unlock)
	if got := told(); got != "SSH Sign Request|A request waits" {
		t.Error(got)
	}
	untilFree(t, n)
	pty.Expect("Passphrase (empty denies): ")
	third := approving(t.Context(), term, testPrompt("three"))
	pty.Expect("waiting: 3")
	n.mu.Lock()
	if n.busy {
		t.Error("what waits behind the door is told of")
	}
	n.mu.Unlock()
	pty.Type("right\n")
	if err := <-door; err != nil {
		t.Error(err)
	}
	for _, done := range []<-chan error{first, second, third} {
		pty.Expect("Approve? [y/N]")
		pty.Type("n\n")
		if err := <-done; err != ErrDenied {
			t.Error(err)
		}
		pty.Expect("denied")
	}
	// A question of another command is in front of who typed that.
	asked := make(chan error, 1)
	go func() { asked <- term.Ask(t.Context(), "text\n", "Accept?", time.Now().Add(time.Minute)) }()
	if text := pty.Expect("Accept? [y/N]"); strings.Contains(text, "\a") {
		t.Errorf("%q", text)
	}
	n.mu.Lock()
	if n.busy {
		t.Error("a notification of one's own question")
	}
	n.mu.Unlock()
	pty.Type("y\n")
	if err := <-asked; err != nil {
		t.Error(err)
	}
}
