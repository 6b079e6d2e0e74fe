// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/term"

	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/pairing"
	"vmux.app/toolkit/internal/process"
	"vmux.app/toolkit/internal/safetext"
	"vmux.app/toolkit/internal/signer"
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

func checkListen(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return &cli.UsageError{Problem: fmt.Sprintf("--listen: %q is not an address and a port", address),
			Hint: "write --listen HOST:PORT, as in --listen 127.0.0.1:0"}
	}
	return nil
}

func serve(c *cli.Context) error {
	t := cli.From(c)
	approve := c.String("approve")
	if approve == "" {
		if !t.Interactive() {
			return &cli.UsageError{Problem: "standard input is no terminal to ask for approvals on",
				Hint: "write --approve askpass, or --approve always for tests"}
		}
		approve = "terminal"
	}
	if err := checkListen(c.String("listen")); err != nil {
		return err
	}
	h, err := openHome(c)
	if err != nil {
		return err
	}
	// Keys are in memory from here on.
	if err := process.Harden(); err != nil {
		t.Warnf("this process could not be hardened: %v", err)
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
		if onTerminal(out) {
			out = terminal // so that log lines and questions do not run into each other
		}
	}
	level := slog.LevelInfo
	switch c.String("log-level") {
	case "debug":
		level = slog.LevelDebug
	case "warn":
		level = slog.LevelWarn
	case "error":
		level = slog.LevelError
	case "":
		if c.Bool("quiet") {
			level = slog.LevelError
		}
	}
	log := slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: level}))

	o := signer.Options{
		Listen: c.String("listen"), Advertise: !c.Bool("no-advertise"), Software: "vmux-signer " + cli.Version(), Log: log,
		Event: func(e signer.Event) {
			if e.Event == signer.EventListening {
				t.Notef("listening on %s", e.Address)
			}
			if t.JSON() {
				t.Result(e, nil)
			}
		},
	}
	switch approve {
	case "terminal":
		o.Approver = terminal
	case "askpass":
		if o.Approver, err = signer.NewAskpass(os.Getenv); err != nil {
			return err
		}
	case "always":
		t.Warnf("--approve always: every request of a paired device is signed without asking anybody")
		o.Approver = signer.Always{Log: log}
	}
	return signer.Serve(c.Context, h, o)
}

func onTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && isTerminal(f)
}

func pair(c *cli.Context) error {
	t := cli.From(c)
	timeout := c.Duration("timeout")
	if timeout < 1 || timeout > signer.MaxWindow {
		return signer.ErrWindowTime
	}
	url := c.Args().First()
	if url == "" && !t.Interactive() {
		return signer.ErrNoTerminal
	}
	h, err := openHome(c)
	if err != nil {
		return err
	}
	o := signer.PairOptions{URL: url, Timeout: timeout}
	stop := func() {}
	expires := time.Now().Add(timeout)
	o.Opened = func() {
		if t.JSON() {
			t.Result(struct {
				Event string `json:"event"`
			}{"open"}, nil)
		}
		if url == "" {
			t.Notef("the pairing window is open: run vmux-pair on the device")
		}
		stop = t.Waiting("the device", timeout)
	}
	o.Confirm = func(ctx context.Context, device, code string) error {
		stop()
		terminal, err := openTerminal()
		if err != nil {
			return err
		}
		defer terminal.Close()
		text := fmt.Sprintf("The device %s wants to pair.\nType these digits there, then accept here:\n\n    %s %s\n\n",
			safetext.Line(device, 100), code[:len(code)/2], code[len(code)/2:])
		return terminal.Ask(ctx, text, "Accept?", expires)
	}
	d, err := h.Pair(c.Context, o)
	stop()
	if again := pairingHint(err); again != "" {
		exit := cli.ExitFailed
		if errors.Is(err, pairing.ErrBadURL) {
			exit = cli.ExitUsage
		}
		return cli.Fail(exit, again, err)
	}
	if err != nil {
		return err
	}
	t.Notef("paired with %s", d.Name)
	if t.JSON() {
		t.Result(struct {
			Event  string        `json:"event"`
			Device signer.Device `json:"device"`
		}{"paired", d}, nil)
	}
	return nil
}

// pairingHint is for failures that read differently at the device, where the
// table's hints are for.
func pairingHint(err error) string {
	switch {
	case errors.Is(err, pairing.ErrBadURL):
		return "paste the whole line that this prints on the device: vmux-pair --url"
	case errors.Is(err, pairing.ErrProof):
		return "if nobody but you was pairing, try again with a fresh URL or fresh digits: vmux-signer pair"
	case errors.Is(err, pairing.ErrMethod):
		return "use digits on both ends, or a URL on both: vmux-signer pair"
	case errors.Is(err, pairing.ErrDeclined), errors.Is(err, pairing.ErrWrongCode), errors.Is(err, signer.ErrPairing):
		return "open another window to try again: vmux-signer pair"
	}
	return ""
}

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }
