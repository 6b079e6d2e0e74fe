// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"time"
)

// ErrNoAskpass says that the environment names no program to ask with.
var ErrNoAskpass = errors.New("SSH_ASKPASS names no program")

// askpassEnd is how long a dialog has to go away before it is killed.
const askpassEnd = time.Second

// Always approves everything, and says so each time. It is for demonstrations
// and tests.
type Always struct{ Log *slog.Logger }

// Approve implements Approver.
func (a Always) Approve(ctx context.Context, p *Prompt) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	a.Log.Warn("approved without asking anybody (--approve always)", "device", p.Verified.Device,
		"key", p.Verified.KeyLabel, "operation", p.Verified.Kind)
	return nil
}

// Askpass asks by a program with the conventions of OpenSSH's ssh-agent: the
// prompt is its argument, SSH_ASKPASS_PROMPT=confirm is in its environment, and
// exit status 0 approves.
type Askpass struct {
	program string
	turn    chan struct{} // holds one token: one dialog at a time
}

// NewAskpass takes the program from $SSH_ASKPASS. Error: ErrNoAskpass.
func NewAskpass(getenv func(string) string) (*Askpass, error) {
	name := getenv("SSH_ASKPASS")
	if name == "" {
		return nil, ErrNoAskpass
	}
	program, err := exec.LookPath(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoAskpass, err)
	}
	a := &Askpass{program: program, turn: make(chan struct{}, 1)}
	a.turn <- struct{}{}
	return a, nil
}

// Approve implements Approver.
func (a *Askpass) Approve(ctx context.Context, p *Prompt) error {
	select {
	case <-a.turn:
		defer func() { a.turn <- struct{}{} }() // it was taken, so there is room
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return a.Ask(ctx, p.Text())
}

// Ask shows text, which must be safe, and returns nil when the program exits
// with status 0, ErrDenied for another status.
func (a *Askpass) Ask(ctx context.Context, text string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	cmd := exec.CommandContext(ctx, a.program, text)
	cmd.Env = append(os.Environ(), "SSH_ASKPASS_PROMPT=confirm")
	cmd.WaitDelay = askpassEnd
	ownGroup(cmd) // a dialog started by a shell script must go too
	err := cmd.Run()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var status *exec.ExitError
	if errors.As(err, &status) {
		return ErrDenied
	}
	if err != nil {
		return fmt.Errorf("cannot ask by %s: %w", a.program, err)
	}
	return nil
}
