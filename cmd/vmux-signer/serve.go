// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/term"

	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/networks"
	"vmux.app/toolkit/internal/process"
	"vmux.app/toolkit/internal/signer"
	"vmux.app/toolkit/internal/store"
)

// openTerminal opens the terminal that standard input is.
func openTerminal() (*signer.Terminal, error) {
	t, err := signer.OpenTerminal("/dev/tty")
	if err != nil {
		// A terminal that does not control this process.
		return signer.OpenTerminal("/dev/stdin")
	}
	return t, nil
}

func checkAddress(flag, address string) error {
	_, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return &cli.UsageError{Problem: fmt.Sprintf("--%s: %q is not an address and a port", flag, address),
			Hint: fmt.Sprintf("write --%s HOST:PORT, as in --%s 127.0.0.1:0", flag, flag)}
	}
	return nil
}

// pushFlags reads how devices can have this signer woken, nil for not at all.
func pushFlags(c *cli.Context) (*envelope.DeviceTokenUpdate, error) {
	text := c.String("device-token")
	if text == "" {
		if c.IsSet("topic") || c.IsSet("environment") {
			return nil, &cli.UsageError{Problem: "--topic and --environment are of a device token", Hint: "add --device-token TOKEN"}
		}
		return nil, nil
	}
	token, err := hex.DecodeString(text)
	if err != nil {
		return nil, &cli.UsageError{Problem: "--device-token is not hexadecimal", Hint: "write it as the phone's app shows it"}
	}
	u := &envelope.DeviceTokenUpdate{Token: token, Environment: envelope.PushEnvironment(c.String("environment")), Topic: c.String("topic")}
	if _, err := envelope.Encode(envelope.Envelope{Payload: u}); err != nil {
		return nil, &cli.UsageError{Problem: fmt.Sprintf("--device-token, --topic: %v", errors.Unwrap(err)),
			Hint: "write --device-token TOKEN --topic BUNDLE.ID"}
	}
	return u, nil
}

func serve(c *cli.Context) error {
	t := cli.From(c)
	approve := c.String("approve")
	if approve == "" {
		if !t.Interactive() {
			return &cli.UsageError{Problem: "standard input is no terminal to ask for approvals on",
				Hint: "write --approve askpass or --approve command:PROGRAM, or --approve always for tests"}
		}
		approve = "terminal"
	}
	if err := checkAddress("listen", c.String("listen")); err != nil {
		return err
	}
	if c.IsSet("asleep") {
		if err := checkAddress("asleep", c.String("asleep")); err != nil {
			return err
		}
	}
	push, err := pushFlags(c)
	if err != nil {
		return err
	}
	level, err := logLevel(c)
	if err != nil {
		return err
	}
	h, err := openHome(c)
	if err != nil {
		return err
	}
	// The passphrase, and then keys, are in memory from here on.
	if err := process.Harden(); err != nil {
		t.Warnf("this process could not be hardened: %v", err)
	}
	secret, err := servePassphrase(c, h, approve)
	if err != nil {
		return err
	}

	var out io.Writer = c.App.ErrWriter
	var terminal *signer.Terminal
	if approve == "terminal" {
		if !t.Interactive() {
			return signer.ErrNoTerminal
		}
		if terminal, err = openTerminal(); err != nil {
			return err
		}
		defer terminal.Close()
		if !c.Bool("no-notify") {
			if n := signer.NewNotifier(runtime.GOOS, os.Getenv); n != nil {
				defer n.Close()
				terminal.NotifyBy(n)
			}
		}
		if onTerminal(out) {
			out = terminal // so that log lines and questions do not run into each other
		}
	}
	logger := func(level slog.Level) *slog.Logger {
		return slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: level}))
	}

	o := signer.Options{
		Passphrase: secret, AppLock: c.Bool("app-lock"),
		Listen: c.String("listen"), WakeAddress: c.String("asleep"), Push: push, Advertise: !c.Bool("no-advertise"), Software: "vmux-signer " + cli.Version(), Log: logger(level),
		Hint: func(err error) string {
			_, hint := cli.Advice(err)
			return hint
		},
		Event: func(e signer.Event) {
			switch e.Event {
			case signer.EventAsleep:
				t.Notef("asleep until somebody connects to %s", e.Address)
			case signer.EventListening:
				t.Notef("listening on %s", e.Address)
			}
			if t.JSON() {
				t.Result(e, nil)
			}
		},
	}
	if c.Bool("nearby") {
		o.Nearby = func() (net.Listener, error) {
			l, err := networks.ListenNearby(o.Log)
			return nearby{l, t}, err
		}
	}
	program, byCommand := strings.CutPrefix(approve, "command:")
	switch {
	case byCommand:
		if o.Approver, err = signer.NewCommand(program, o.Log); err != nil {
			return err
		}
	case approve == "terminal":
		o.Approver = terminal
	case approve == "askpass":
		if o.Approver, err = signer.NewAskpass(os.Getenv); err != nil {
			return err
		}
	case approve == "always":
		// It voids what the signer promises, so no flag silences it.
		t.Alwaysf("warning: --approve always: every request of a paired device is signed without asking anybody")
		o.Approver = signer.Always{Log: logger(min(level, slog.LevelWarn))}
	}
	err = signer.Serve(c.Context, h, o)
	if errors.Is(err, signer.ErrPassphrase) {
		// Trying it again, as a service manager would, changes nothing.
		return cli.Fail(cli.ExitUsage, "put the keys' passphrase where this one came from", err)
	}
	return err
}

// servePassphrase is the passphrase for an approval that does not ask for it, nil
// when there is none or "vmux-signer unlock" will give it.
func servePassphrase(c *cli.Context, h *signer.Home, approve string) ([]byte, error) {
	protected, err := h.Protected()
	if err != nil {
		return nil, err
	}
	if c.Bool("app-lock") && !protected {
		return nil, signer.ErrNotProtected
	}
	if approve == "terminal" || approve == "askpass" {
		if c.IsSet("passphrase-file") {
			return nil, &cli.UsageError{Problem: "each approval asks for the passphrase, and --passphrase-file answers none",
				Hint: "leave it out, or approve by a program: --approve command:PROGRAM"}
		}
		return nil, nil
	}
	secret, err := givenPassphrase(c)
	if err != nil || !protected || secret != nil {
		return secret, err
	}
	if t := cli.From(c); t.Interactive() {
		return askPassphrase(c, "Passphrase of "+h.Dir())
	}
	cli.From(c).Warnf("nothing is signed before the passphrase is given: vmux-signer unlock")
	return nil, nil
}

// nearby says why devices nearby cannot connect, with advice, when that comes out later. The others go on.
type nearby struct {
	net.Listener
	t *cli.TUI
}

func (n nearby) Accept() (net.Conn, error) {
	c, err := n.Listener.Accept()
	if errors.Is(err, networks.ErrNearby) {
		n.t.Error(err)
	}
	return c, err
}

// logLevel is what --log-level says, else --quiet, else VMUX_LOG_LEVEL.
func logLevel(c *cli.Context) (slog.Level, error) {
	env := store.Env(os.Getenv)
	from, value := "--log-level", c.String("log-level")
	switch {
	case value != "":
	case c.Bool("quiet"):
		return slog.LevelError, nil
	default:
		from = "VMUX_LOG_LEVEL"
		if value = env(from); value == "" {
			return slog.LevelInfo, nil
		}
	}
	var config store.Config
	err := config.Set(env, "log-level", value, from)
	return config.LogLevel, err
}

func onTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
