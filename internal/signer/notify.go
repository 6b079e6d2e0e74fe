// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"context"
	"os/exec"
	"strings"
	"sync"
	"time"
)

const (
	// notifyTime bounds one run of the desktop's program.
	notifyTime = 5 * time.Second
	// notifyEvery is the least time between notifications: a device that asks a lot
	// must not cover the screen with them.
	notifyEvery = 2 * time.Second
)

// aRequest is told in the place of who asks and for what, while approvals are
// locked.
const aRequest = "A request waits"

// Notifier tells of requests by notifications of the desktop, one at a time and
// not too many; those that come too fast are dropped.
type Notifier struct {
	program string
	args    func(title, body string) []string
	every   time.Duration   // the least time between two
	within  time.Duration   // of one run
	ctx     context.Context // of all runs
	cancel  context.CancelFunc
	runs    sync.WaitGroup

	mu     sync.Mutex
	busy   bool
	last   time.Time
	closed bool
}

// NewNotifier finds the desktop's program: notify-send where there is a session
// to show it, osascript on macOS (goos is runtime.GOOS). It returns nil when
// there is none.
func NewNotifier(goos string, getenv func(string) string) *Notifier {
	name, args := "notify-send", notifySend
	if goos == "darwin" {
		name, args = "osascript", osascript
	} else if getenv("DBUS_SESSION_BUS_ADDRESS") == "" && getenv("DISPLAY") == "" && getenv("WAYLAND_DISPLAY") == "" {
		return nil
	}
	program, err := exec.LookPath(name)
	if err != nil {
		return nil
	}
	return newNotifier(program, args, notifyEvery, notifyTime)
}

func newNotifier(program string, args func(title, body string) []string, every, within time.Duration) *Notifier {
	n := &Notifier{program: program, args: args, every: every, within: within}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	return n
}

// notifySend gives notify-send's arguments. It undoes C's escapes in the body
// (g_strcompress), where the desktop reads markup then, so both are escaped.
func notifySend(title, body string) []string {
	body = strings.NewReplacer(`\`, `\\`, "&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(body)
	return []string{"--app-name=vmux-signer", "--", title, body}
}

// osascript gives osascript's arguments. The script is fixed, the texts are its
// arguments.
func osascript(title, body string) []string {
	return []string{"-e", "on run argv", "-e", "display notification (item 2 of argv) with title (item 1 of argv)", "-e", "end run", title, body}
}

// Notify shows safe text, or drops it. It does not wait.
func (n *Notifier) Notify(title, body string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	if n.closed || n.busy || !n.last.IsZero() && now.Sub(n.last) < n.every {
		return
	}
	n.busy, n.last = true, now
	n.runs.Go(func() {
		ctx, cancel := context.WithTimeout(n.ctx, n.within)
		defer cancel()
		cmd := exec.CommandContext(ctx, n.program, n.args(title, body)...)
		cmd.WaitDelay = askpassEnd
		ownGroup(cmd)
		_ = cmd.Run() // the prompt is on the terminal, with or without this
		n.mu.Lock()
		defer n.mu.Unlock()
		n.busy = false
	})
}

// Close ends the program if it runs, and waits for its end. A nil Notifier has
// nothing to close.
func (n *Notifier) Close() {
	if n == nil {
		return
	}
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.cancel()
	n.runs.Wait()
}
