// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/pairing"
	"vmux.app/toolkit/internal/safetext"
	"vmux.app/toolkit/internal/signer"
)

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
	if url == "-" {
		url, err = t.ReadLine(c.Context, "the URL that vmux-pair --url prints: ")
		if err != nil && (t.Interactive() || !errors.Is(err, cli.ErrNoInput)) {
			return err
		}
		if url == "" { // which would open a window for anybody
			return advised(fmt.Errorf("%w: it is empty", pairing.ErrBadURL))
		}
	}
	o := signer.PairOptions{URL: url, Timeout: timeout}
	var waits waits
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
		waits.begin(t.Waiting("the device", timeout))
	}
	o.Confirm = func(ctx context.Context, a signer.Asking) error {
		waits.end()
		err := confirm(ctx, a, expires)
		if err == nil {
			waits.begin(t.Waiting("the digits to be typed on the device", time.Until(expires)))
		}
		return err
	}
	d, err := h.Pair(c.Context, o)
	waits.end()
	if err != nil {
		return advised(err)
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

// waits is the notice of a wait that is shown now.
type waits struct {
	mu   sync.Mutex
	stop func()
}

func (w *waits) begin(stop func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stop = stop
}

func (w *waits) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stop != nil {
		w.stop()
	}
}

// confirm asks the owner on the terminal.
func confirm(ctx context.Context, a signer.Asking, expires time.Time) error {
	terminal, err := openTerminal()
	if err != nil {
		return err
	}
	defer terminal.Close()
	const most = 100 // columns of a name; one has 63 bytes
	text := fmt.Sprintf("The device %s wants to pair.\n", safetext.Line(a.Device, most))
	if a.StoredAs != "" {
		text += fmt.Sprintf("Another device called %s is paired already. This one would be %s.\n",
			safetext.Line(a.Device, most), safetext.Line(a.StoredAs, most))
	}
	text += fmt.Sprintf("Type these digits there, then accept here:\n\n    %s %s\n\n", a.Code[:len(a.Code)/2], a.Code[len(a.Code)/2:])
	return terminal.Ask(ctx, text, "Accept?", expires)
}

// advised is a failed pairing with the hint that fits here.
func advised(err error) error {
	hint := pairingHint(err)
	if hint == "" {
		return err
	}
	exit, _ := cli.Advice(err)
	return cli.Fail(exit, hint, err)
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
	case errors.Is(err, pairing.ErrDeclined), errors.Is(err, pairing.ErrWrongCode), errors.Is(err, pairing.ErrStopped),
		errors.Is(err, pairing.ErrStalled), errors.Is(err, signer.ErrPairing):
		return "open another window to try again: vmux-signer pair"
	}
	return ""
}
