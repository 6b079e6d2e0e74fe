// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/agent"
	"vmux.app/toolkit/internal/networks"
	"vmux.app/toolkit/internal/phone"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/transport"
	"vmux.app/toolkit/internal/transport/dnssd"
	"vmux.app/toolkit/internal/transport/lan"
)

// maxOutput bounds what is kept of a command's output; ssh -v of one login is some 20 KiB.
const maxOutput = 256 << 10

// Env is everything that checks touch, so that a test can break one thing.
type Env struct {
	Getenv store.Env
	OS     string // as runtime.GOOS
	UID    int
	User   string // login name
	Home   string // absolute
	Root   string // in front of the system's own paths, as /etc; empty but in tests
	Now    func() time.Time

	Software string // what phones are told, "vmux-doctor 1.0"
	Version  string // of these commands

	Config     store.Config // what counts, or what does without the file when that is wrong
	ConfigFile string
	ConfigErr  error  // why the file does not count
	Host       string // USER@HOST or HOST to log in to, empty if none

	// Run runs a command to its end.
	Run func(ctx context.Context, name string, args ...string) (Output, error)
	// Ask sends one of vmux's own requests to the agent at Config.Socket.
	Ask func(ctx context.Context, name string, in, out any) error
	// List gives the keys that the agent lists.
	List func(ctx context.Context) ([]ssh.PublicKey, error)
	// Browse looks for phones by DNS-SD until ctx ends.
	Browse func(ctx context.Context, found func(dnssd.Claim)) error
	// Dial opens a stream to a phone.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Nearby looks for phones without a network until ctx ends. The error says why that cannot be done.
	Nearby func(ctx context.Context) error
	// DialPush connects to the push service; nil for TCP.
	DialPush func(ctx context.Context, network, addr string) (net.Conn, error)
	// Interfaces are the network's.
	Interfaces func() ([]Interface, error)
	// Space says how many bytes this user may still write in a directory; the error is why it cannot write there.
	Space func(dir string) (uint64, error)
	// Advice gives what to type about an error, from the table of all commands.
	Advice func(error) string

	facts *facts
}

// complete fills in what the configuration decides.
func (e *Env) complete() {
	if e.Ask == nil {
		e.Ask = func(ctx context.Context, name string, in, out any) error {
			return agent.Ask(ctx, e.Config.Socket, name, in, out)
		}
	}
	if e.List == nil {
		e.List = func(ctx context.Context) ([]ssh.PublicKey, error) { return listKeys(ctx, e.Config.Socket) }
	}
}

// Output is what a command that has ended leaves.
type Output struct {
	Exit           int
	Stdout, Stderr string
}

// Interface is a network interface.
type Interface struct {
	Index int
	Name  string
	Flags net.Flags
	Addrs []net.Addr
}

// System is the Env of this process. The caller adds Software, Version, Advice and what is configured.
func System() (Env, error) {
	home, err := store.Env(os.Getenv).Expand("~")
	if err != nil {
		return Env{}, err
	}
	me, err := user.Current()
	if err != nil {
		return Env{}, fmt.Errorf("own login name: %w", err)
	}
	network := lan.New(slog.New(slog.DiscardHandler))
	e := Env{
		Getenv: os.Getenv, OS: runtime.GOOS, UID: os.Geteuid(), User: me.Username, Home: home, Now: time.Now,
		Run:        command,
		Dial:       network.Dial,
		Nearby:     networks.Nearby,
		Interfaces: interfaces,
		Space:      space,
		Browse: func(ctx context.Context, found func(dnssd.Claim)) error {
			return dnssd.Browse(ctx, network.DNSSD, found)
		},
	}
	return e, nil
}

// outputTime is what is left for the output of a command that has ended, or was ended: something that it has started
// may keep it open.
const outputTime = time.Second

// command runs a command with this process's environment and no input, and returns before ctx's deadline. Its error
// says why it did not run to its end; an exit status is none.
func command(ctx context.Context, name string, args ...string) (Output, error) {
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadlineCause(ctx, deadline.Add(-outputTime), errTime)
		defer cancel()
	}
	c := exec.CommandContext(ctx, name, args...)
	out, errs := &limited{}, &limited{}
	c.Stdout, c.Stderr = out, errs
	c.WaitDelay = outputTime
	err := c.Run()
	o := Output{Stdout: out.b.String(), Stderr: errs.b.String()}
	if c.ProcessState != nil {
		o.Exit = c.ProcessState.ExitCode()
	}
	if ctx.Err() != nil {
		return o, fmt.Errorf("%s: %w", filepath.Base(name), context.Cause(ctx))
	}
	if _, ended := errors.AsType[*exec.ExitError](err); ended || errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	return o, err
}

// limited keeps the beginning of what is written to it.
type limited struct{ b bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	l.b.Write(p[:min(len(p), maxOutput-l.b.Len())])
	return len(p), nil
}

func interfaces() ([]Interface, error) {
	list, err := net.Interfaces()
	var all []Interface
	for _, i := range list {
		addrs, err := i.Addrs()
		if err != nil {
			continue // gone since
		}
		all = append(all, Interface{i.Index, i.Name, i.Flags, addrs})
	}
	return all, err
}

// short writes a path as shells take it, from ~.
func (e *Env) short(path string) string {
	if rest, ok := strings.CutPrefix(path, e.Home+"/"); ok {
		return "~/" + rest
	}
	return path
}

func ok(format string, a ...any) Finding {
	return Finding{Found: fmt.Sprintf(format, a...)}
}

func skipped(format string, a ...any) Finding {
	return Finding{Level: Skipped, Found: fmt.Sprintf(format, a...)}
}

func (e *Env) warning(err error, why string) Finding {
	return Finding{Level: Warning, Found: e.home(err.Error()), Why: why, Do: e.Advice(err)}
}

func (e *Env) failure(err error, why string) Finding {
	return Finding{Level: Failure, Found: e.home(err.Error()), Why: why, Do: e.Advice(err)}
}

// home writes the home directory as ~, which keeps lines short.
func (e *Env) home(s string) string { return strings.ReplaceAll(s, e.Home+"/", "~/") }

// facts are what several checks go by, found out once.
type facts struct {
	ctx     context.Context // of all checks
	running sync.WaitGroup

	status  fact[statusFact]
	config  fact[map[string][]string]
	keys    fact[[]ssh.PublicKey]
	state   fact[store.State]
	device  fact[*transport.Identity]
	browsed fact[browsed]
	reached fact[[]reached]
	agents  fact[map[string]phone.Reached]
}

// end ends the searches that nobody waits for any more, and waits for them, but not for one that hangs.
func (f *facts) end(cancel func()) {
	cancel()
	ended := make(chan struct{})
	go func() {
		f.running.Wait()
		close(ended)
	}()
	late := time.NewTimer(lateTime)
	defer late.Stop()
	select {
	case <-ended:
	case <-late.C:
	}
}

// fact is found out by the first who asks, for all.
type fact[T any] struct {
	once sync.Once
	done chan struct{}
	v    T
	err  error
}

// get gives the fact, or the cause of ctx's end. The search goes on for others then.
func (f *fact[T]) get(ctx context.Context, e *Env, search func(ctx context.Context) (T, error)) (T, error) {
	f.once.Do(func() {
		f.done = make(chan struct{})
		e.facts.running.Go(func() {
			defer close(f.done)
			defer func() {
				if p := recover(); p != nil {
					f.err = fmt.Errorf("%w: panic: %v", ErrCheck, p)
				}
			}()
			f.v, f.err = search(e.facts.ctx)
		})
	})
	select {
	case <-f.done:
		return f.v, f.err
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}

// each calls f for 0 to n-1 at the same time and waits.
func each(n int, f func(i int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { f(i) })
	}
	all.Wait()
}
