// SPDX-License-Identifier: BSD-3-Clause

// Package cli is what the commands have in common: how they parse, what they print and with which
// status they exit. A command is an App; its main is os.Exit(cli.Main(app)).
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"
	"vmux.app/toolkit/internal/store"
)

// The parts of urfave/cli that commands are written with.
//
// ArgsUsage is binding: it is parsed. Each word is one argument, "[WORD]" may be left out, "WORD..." is
// one or more, "[WORD...]" any number; none means no arguments. If it begins with "[--]", flags end at the first
// argument and the rest is somebody else's command line, as in "[--] COMMAND [ARGUMENT...]".
type (
	App          = cli.App
	Command      = cli.Command
	Context      = cli.Context
	Flag         = cli.Flag
	BoolFlag     = cli.BoolFlag
	StringFlag   = cli.StringFlag
	StringsFlag  = cli.StringSliceFlag
	IntFlag      = cli.IntFlag
	DurationFlag = cli.DurationFlag
)

// Main runs app as this process and returns its exit status. The first SIGINT, SIGTERM or SIGHUP
// cancels the command's context, a second one ends the process at once; but see Hangups. A signal that was ignored at start, as
// nohup and shells do for background jobs, stays ignored.
func Main(app *App) int { return onMain(func() int { return mainProgram(app) }) }

func mainProgram(app *App) int {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	s := catch(func(sig syscall.Signal) { cancel(&signalError{sig}) })
	defer signal.Stop(s.ch)
	ctx = withSignals(ctx, s)
	return Run(ctx, app, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
}

// signalError is the cause of a context that a signal cancelled.
type signalError struct{ sig syscall.Signal }

func (e *signalError) Error() string {
	if e.sig == syscall.SIGINT {
		return "interrupted"
	}
	return fmt.Sprintf("ended by signal %d (%v)", int(e.sig), e.sig)
}

// Run runs app with args, without the command's name, and returns the exit status. An App is for
// one Run.
func Run(ctx context.Context, app *App, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := prepare(app)
	if len(args) > 0 && args[0] == completionCommand && root.Command(completionCommand) == nil {
		return completion(root, args[1:], newTUI(stdin, stdout, stderr, "completion", false, false))
	}
	p, err := parse(root, args)
	t := newTUI(stdin, stdout, stderr, p.path(), p.json, p.quiet)
	switch {
	case p.help:
		printHelp(stdout, p)
		return ExitOK
	case err != nil:
		return t.finish(err)
	case p.version:
		t.Result(versionOf(app.Name), func(w io.Writer) { fmt.Fprintln(w, versionOf(app.Name)) })
		return t.finish(nil)
	}

	app.Reader, app.Writer, app.ErrWriter = stdin, stdout, stderr
	app.OnUsageError = valueError(root)
	err = app.RunContext(context.WithValue(ctx, tuiKey{}, t), p.normal)
	var s *signalError
	if errors.Is(err, context.Canceled) && errors.As(context.Cause(ctx), &s) {
		err = s
	}
	return t.finish(err)
}

// prepare adds the standard flags and takes from urfave/cli what this package does itself: help, version, completion,
// usage errors and exiting. It returns the tree of commands.
func prepare(app *App) *Command {
	app.HideHelp, app.HideVersion, app.EnableBashCompletion = true, true, false
	app.DisableSliceFlagSeparator = true // a comma in a value is part of it
	app.ExitErrHandler = func(*Context, error) {}
	app.Flags = slices.Concat(app.Flags, standardFlags(false))
	var walk func(cmds []*Command)
	walk = func(cmds []*Command) {
		for _, c := range cmds {
			c.HideHelp = true
			c.Flags = slices.Concat(c.Flags, standardFlags(true))
			c.OnUsageError = valueError(c)
			walk(c.Subcommands)
		}
	}
	walk(app.Commands)
	return &Command{Name: app.Name, Usage: app.Usage, ArgsUsage: app.ArgsUsage, Description: app.Description,
		Flags: app.Flags, Subcommands: app.Commands, Action: app.Action}
}

func standardFlags(sub bool) []Flag {
	return []Flag{
		&BoolFlag{Name: "json", Usage: "print results, and errors too, as JSON on standard output"},
		&BoolFlag{Name: "quiet", Usage: "print nothing but results and errors"},
		&BoolFlag{Name: "help", Aliases: []string{"h"}, Usage: "print this help", DisableDefaultText: true},
		&BoolFlag{Name: "version", Usage: "print the version", Hidden: sub, DisableDefaultText: true},
	}
}

// Choice returns a flag that takes one of values; def is the default and may be empty. A value "WORD:REST", REST in
// capitals, stands for that word and colon with something behind them.
func Choice(name, usage, def string, values ...string) Flag {
	check := func(_ *Context, v string) error {
		for _, value := range values {
			if prefix := openChoice(value); v == value && prefix == "" || prefix != "" && len(v) > len(prefix) && strings.HasPrefix(v, prefix) {
				return nil
			}
		}
		return &UsageError{fmt.Sprintf("--%s: %q is none of %s", name, v, strings.Join(values, ", ")),
			fmt.Sprintf("write --%s %s", name, strings.Join(values, "|"))}
	}
	return &choiceFlag{&StringFlag{Name: name, Usage: usage, Value: def, Action: check}, values}
}

// openChoice returns what a value of a Choice begins with, up to the colon, and "" for one that is taken as it is.
func openChoice(value string) string {
	word, _, open := strings.Cut(value, ":")
	if !open {
		return ""
	}
	return word + ":"
}

type choiceFlag struct {
	*StringFlag
	values []string
}

// Flags that mean the same in every command that has them. Their values reach it through LoadConfig.

// ConfigFlag returns --config FILE.
func ConfigFlag() Flag {
	return &StringFlag{Name: "config", Usage: "read the configuration from `FILE`", TakesFile: true, DefaultText: "~/.config/vmux/vmux.toml"}
}

// SocketFlag returns --socket PATH.
func SocketFlag() Flag {
	return &StringFlag{Name: "socket", Usage: "use the agent's socket `PATH`", TakesFile: true, DefaultText: "~/.ssh/vmux-agent.sock"}
}

// LogLevelFlag returns --log-level LEVEL.
func LogLevelFlag() Flag {
	return Choice("log-level", "log what is at least `LEVEL`", "", "debug", "info", "warn", "error")
}

// DeadlineFlag returns --deadline DURATION.
func DeadlineFlag() Flag {
	return &StringFlag{Name: "deadline", Usage: "give up on a request after `DURATION`", DefaultText: "60s"}
}

// LoadConfig returns the configuration that counts for this command: flags, VMUX_… variables,
// vmux.toml, defaults, in this order. The file is --config's, else $VMUX_CONFIG, else the default one.
func LoadConfig(c *Context) (store.Config, error) {
	env := store.Env(os.Getenv)
	path, explicit, err := ConfigPath(c)
	if err != nil {
		return store.Config{}, err
	}
	cfg, err := store.LoadConfig(path, explicit, env)
	if err != nil {
		return store.Config{}, err
	}
	for _, key := range []string{"socket", "log-level", "deadline"} {
		if value, ok := inherited(c, key); ok {
			if err := cfg.Set(env, key, value, "--"+key); err != nil {
				return store.Config{}, err
			}
		}
	}
	return cfg, nil
}

// ConfigPath gives the file that LoadConfig reads, and whether the user named it. The error is store.ErrNoHome.
func ConfigPath(c *Context) (path string, explicit bool, err error) {
	env := store.Env(os.Getenv)
	if path, _ = inherited(c, "config"); path == "" {
		path = env("VMUX_CONFIG")
	}
	if path != "" {
		return path, true, nil
	}
	path, err = env.ConfigFile()
	return path, false, err
}

// inherited gives what a flag is set to, on this command or on one above it: "vmux-cert --config X list" means X.
func inherited(c *Context, flag string) (string, bool) {
	for _, level := range c.Lineage() {
		if level.IsSet(flag) {
			return level.String(flag), true
		}
	}
	return "", false
}

// OpenState returns the store of this user's state and what is in it. A damaged state that was set aside is
// said and replaced by an empty one; this is no error.
func OpenState(c *Context) (*store.Store, store.State, error) {
	t := From(c)
	s, err := store.Open(store.Env(os.Getenv), t.Logger())
	if err != nil {
		return nil, store.State{}, err
	}
	st, err := s.Load()
	if d, ok := errors.AsType[*store.DamagedError](err); ok && d.SetAside != "" {
		t.Error(err)
		err = nil
	}
	return s, st, err
}
