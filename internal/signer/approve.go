// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// ErrNoAskpass says that the environment names no program to ask with.
var ErrNoAskpass = errors.New("SSH_ASKPASS names no program")

// errCannotAsk is for approvers that have no way to get a passphrase.
var errCannotAsk = fmt.Errorf("%w, and this signer has no means to ask for it", ErrLocked)

// askpassEnd is how long a program has to go away before its pipes are closed.
const askpassEnd = time.Second

// Always approves everything that takes no passphrase, and says so each time. It
// is for demonstrations and tests.
type Always struct{ Log *slog.Logger }

// Approve implements Approver.
func (a Always) Approve(ctx context.Context, p *Prompt) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if p.NeedsPassphrase() {
		return errCannotAsk
	}
	a.Log.Warn("approved without asking anybody (--approve always)", "device", p.Verified.Device,
		"key", p.Verified.KeyLabel, "operation", p.Verified.Kind)
	return nil
}

// Askpass asks by a program with the conventions of OpenSSH's ssh-agent: the
// prompt is its argument, SSH_ASKPASS_PROMPT=confirm is in its environment, and
// exit status 0 approves. For a passphrase that variable is not there, and the
// passphrase is the first line of what the program prints.
type Askpass struct {
	program string
	turn    turn // one dialog at a time
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
	return &Askpass{program: program}, nil
}

// Approve implements Approver.
func (a *Askpass) Approve(ctx context.Context, p *Prompt) error {
	if p.NeedsPassphrase() {
		return a.passphrase(ctx, p.Verified.Device, p.Text()+"\nPassphrase to approve:", p.MayShow, p.Unlock)
	}
	if err := a.turn.take(ctx, p.Verified.Device); err != nil {
		return err
	}
	defer a.turn.give()
	if err := p.MayShow(); err != nil {
		return err
	}
	return a.Ask(ctx, p.Text())
}

// AskPassphrase implements PassphraseAsker.
func (a *Askpass) AskPassphrase(ctx context.Context, why string, try func(passphrase []byte) error) error {
	return a.passphrase(ctx, "", why+"\n\nPassphrase:", func() error { return nil }, try)
}

// passphrase asks until try takes the answer or ends it, if text may be shown when
// its turn has come.
func (a *Askpass) passphrase(ctx context.Context, device, text string, mayShow func() error, try func(passphrase []byte) error) error {
	if err := a.turn.take(ctx, device); err != nil {
		return err
	}
	defer a.turn.give()
	if err := mayShow(); err != nil {
		return err
	}
	for shown := text; ; shown = "Wrong passphrase.\n\n" + text {
		passphrase, err := a.Secret(ctx, shown)
		if err == nil {
			err = try(passphrase)
			clear(passphrase)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !errors.Is(err, ErrPassphrase) {
			return err
		}
	}
}

// Ask shows text, which must be safe, and returns nil when the program exits
// with status 0, ErrDenied for another status.
func (a *Askpass) Ask(ctx context.Context, text string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	cmd := a.command(ctx, text)
	cmd.Env = append(cmd.Env, confirmPrompt)
	return a.ended(ctx, cmd.Run())
}

// confirmPrompt has the program ask for yes or no.
const confirmPrompt = "SSH_ASKPASS_PROMPT=confirm"

func (a *Askpass) command(ctx context.Context, text string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, a.program, text)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "SSH_ASKPASS_PROMPT=") })
	cmd.WaitDelay = askpassEnd
	ownGroup(cmd) // a dialog started by a shell script must go too
	return cmd
}

// ended reads how the program ended.
func (a *Askpass) ended(ctx context.Context, err error) error {
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

// Secret shows text, which must be safe, and gives the first line that the program
// prints, 1 to 1024 bytes, which the caller overwrites. Errors: as Ask, and ErrDenied
// for an empty line.
func (a *Askpass) Secret(ctx context.Context, text string) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	// A pipe of our own: exec's copies what it reads, and that would stay in memory.
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("cannot ask by %s: %w", a.program, err)
	}
	defer r.Close()
	cmd := a.command(ctx, text)
	cmd.Stdout = w
	err = cmd.Start()
	w.Close()
	if err != nil {
		return nil, a.ended(ctx, err)
	}
	line := make(chan firstLine, 1) // room for the one line
	go func() { line <- readFirstLine(r) }()
	err = cmd.Wait()
	// What it has started may hold the pipe open for ever.
	_ = r.SetReadDeadline(time.Now().Add(askpassEnd)) // a pipe has deadlines
	got := <-line
	if err = a.ended(ctx, err); err == nil {
		switch {
		case got.overlong:
			err = fmt.Errorf("%s gave more than %d bytes for a passphrase", a.program, maxAnswer)
		case len(got.text) == 0:
			err = ErrDenied
		}
	}
	if err != nil {
		clear(got.text)
		return nil, err
	}
	return got.text, nil
}

type firstLine struct {
	text     []byte
	overlong bool
}

// readFirstLine reads all there is and keeps the first line.
func readFirstLine(r *os.File) (l firstLine) {
	l.text = make([]byte, 0, maxAnswer) // it never grows, which would leave copies
	b := make([]byte, 512)
	defer clear(b)
	for ended := false; ; {
		n, err := r.Read(b)
		for _, c := range b[:n] {
			switch {
			case ended:
			case c == '\n' || c == '\r':
				ended = true
			case len(l.text) == maxAnswer:
				l.overlong, ended = true, true
			default:
				l.text = append(l.text, c)
			}
		}
		if err != nil { // the end, or nobody to wait for any more
			return l
		}
	}
}
