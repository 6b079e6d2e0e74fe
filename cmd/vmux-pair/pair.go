// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/mdp/qrterminal/v3"
	"golang.org/x/term"

	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/networks"
	"vmux.app/toolkit/internal/pairing"
	"vmux.app/toolkit/internal/phone"
	"vmux.app/toolkit/internal/safetext"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/transport"
)

func pair(c *cli.Context, config store.Config) error {
	t := cli.From(c)
	byURL := c.Bool("qr") || c.Bool("url")
	if !byURL && !t.Interactive() {
		return cli.Fail(cli.ExitUsage, "run it in a terminal, or use a one-time URL: vmux-pair --url",
			fmt.Errorf("nobody can be asked for the digits: %w", cli.ErrNoTerminal))
	}
	all, closeNetworks := networks.Open(t.Logger())
	defer closeNetworks()
	o, err := options(c, config, all)
	if err != nil {
		return err
	}
	timeout := c.Duration("timeout")
	ctx, cancel := context.WithTimeoutCause(c.Context, timeout, pairing.ErrTime)
	defer cancel()
	var waiting func()
	if byURL {
		u := pairing.NewURL(o.Name, o.Identity.Pin())
		o.URL = &u
		if c.Bool("qr") {
			showQR(c.App.ErrWriter, u.String())
		}
		t.Result(map[string]any{"url": u.String()}, func(w io.Writer) { fmt.Fprintln(w, u.String()) })
		waiting = t.Waiting("the phone to take the URL (vmux-signer pair -)", timeout)
	} else {
		found := t.Waiting("a phone with Pair open (vmux-signer pair)", timeout)
		waiting = found
		pick := choose(t)
		o.Choose = func(ctx context.Context, phones []string) (int, error) {
			found()
			return pick(ctx, phones)
		}
		o.Code = func(ctx context.Context, phone string) (string, error) {
			found()
			return askCode(ctx, t, phone)
		}
		o.Typed = func() {
			deadline, _ := ctx.Deadline()
			waiting = t.Waiting("the owner to accept on the phone", time.Until(deadline))
		}
	}
	paired, err := phone.Pair(ctx, o)
	waiting()
	if paired.Pin == "" {
		return err
	}
	if err != nil {
		t.Warnf("its keys will be fetched later: %v", err)
	}
	name := safetext.Line(paired.Name, store.MaxName)
	if t.JSON() {
		t.Result(map[string]any{"paired": toJSON(paired)}, nil)
	}
	t.Notef("paired with %s, which holds %s", name, count(len(paired.Keys), "key"))
	if reload(c, config) {
		firstCertificate(c, config, paired)
	}
	return nil
}

func options(c *cli.Context, config store.Config, all []transport.Network) (phone.PairOptions, error) {
	log := cli.From(c).Logger()
	o, err := phone.Prepare(store.Env(os.Getenv), config, "vmux-pair "+cli.Version(), all, log)
	if err != nil {
		return phone.PairOptions{}, err
	}
	// A damaged state is set aside and said now, before anybody is asked.
	keep, _, err := cli.OpenState(c)
	if err != nil {
		return phone.PairOptions{}, err
	}
	// Before a URL is shown: can a pairing be kept?
	if err := keep.Update(func(*store.State) error { return nil }); err != nil {
		return phone.PairOptions{}, err
	}
	return phone.PairOptions{Options: o, Address: c.String("address"), Phone: c.String("phone")}, nil
}

// askCode asks until there are six digits: a slip of the finger does not use
// the window up, wrong digits do.
func askCode(ctx context.Context, t *cli.TUI, phone string) (string, error) {
	for {
		s, err := t.Ask(ctx, fmt.Sprintf("the %d digits that %s shows: ", pairing.Digits, safetext.Line(phone, store.MaxName)))
		if err != nil {
			return "", err
		}
		if code, ok := pairing.Code(s); ok {
			return code, nil
		}
		t.Alwaysf("that is not %d digits", pairing.Digits)
	}
}

// quietZone is the empty border that ISO/IEC 18004 wants, in modules.
const quietZone = 4

// showQR draws the URL for a camera. It is for people, as the text is for
// programs. On a terminal the colours are set, light on dark, so that the
// picture is the right way round whatever the terminal's own are.
func showQR(w io.Writer, url string) {
	var picture bytes.Buffer
	qrterminal.GenerateWithConfig(url, qrterminal.Config{Level: qrterminal.L, Writer: &picture, QuietZone: quietZone,
		HalfBlocks: true, BlackChar: qrterminal.BLACK_BLACK, WhiteChar: qrterminal.WHITE_WHITE,
		BlackWhiteChar: qrterminal.BLACK_WHITE, WhiteBlackChar: qrterminal.WHITE_BLACK})
	const lightOnDark, plain = "\x1b[97;40m", "\x1b[0m"
	f, ok := w.(*os.File)
	colour := ok && term.IsTerminal(int(f.Fd()))
	for line := range strings.Lines(picture.String()) {
		if line = strings.TrimSuffix(line, "\n"); colour {
			line = lightOnDark + line + plain
		}
		fmt.Fprintln(w, line)
	}
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
