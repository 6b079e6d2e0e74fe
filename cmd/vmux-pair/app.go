// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/agent"
	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/control"
	"vmux.app/toolkit/internal/safetext"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/transport/lan"
)

const (
	// maxTimeout bounds --timeout: the phone's window closes long before.
	maxTimeout = time.Hour
	// urlLife is how long a one-time URL is good for: who finds it later, on a screen
	// or in a list of processes, has nothing.
	urlLife = 2 * time.Minute
)

// reloadTimeout bounds telling the agent, which answers at once.
const reloadTimeout = 5 * time.Second

func app() *cli.App {
	return &cli.App{
		Name:  "vmux-pair",
		Usage: "find, pair, list and forget phones",
		Description: "Without flags: looks for a phone whose owner has opened Pair (vmux-signer pair), asks for the six\n" +
			"digits that it shows, and waits until the owner accepts.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "address", Usage: "dial the phone at `HOST:PORT` instead of looking for it"},
			&cli.StringFlag{Name: "phone", Usage: "pair with the phone called `NAME` only, or --revoke that one's keys"},
			&cli.BoolFlag{Name: "qr", Usage: "show a one-time URL as QR code and text, and wait for the phone that takes it"},
			&cli.BoolFlag{Name: "url", Usage: "print a one-time URL, and wait for the phone that takes it"},
			&cli.DurationFlag{Name: "timeout", Usage: "wait for the phone and its owner for `DURATION`, with a URL 2m at most", Value: 2 * time.Minute},
			&cli.BoolFlag{Name: "list", Usage: "list the paired phones and their keys"},
			&cli.BoolFlag{Name: "allowed-signers", Usage: "with --list: print the keys as lines of git's gpg.ssh.allowedSignersFile"},
			&cli.StringsFlag{Name: "principal", Usage: "with --allowed-signers: the keys sign for `NAME`; more than once for more names", DefaultText: "git's user.email"},
			&cli.BoolFlag{Name: "revoke", Usage: "with --list: print what servers need to refuse a phone's keys, as vmux-signer revoke does"},
			&cli.StringFlag{Name: "forget", Usage: "forget the phone called `NAME`, or with this pin"},
			cli.SocketFlag(),
			cli.ConfigFlag(),
		},
		Action: run,
	}
}

func run(c *cli.Context) error {
	if err := checkFlags(c); err != nil {
		return err
	}
	config, err := cli.LoadConfig(c)
	switch {
	case err != nil:
		return err
	case c.Bool("allowed-signers"):
		return allowedSigners(c)
	case c.Bool("revoke"):
		return revoke(c)
	case c.Bool("list"):
		return list(c)
	case c.IsSet("forget"):
		return forget(c, config)
	}
	return pair(c, config)
}

// checkFlags refuses combinations of which one part would be ignored.
func checkFlags(c *cli.Context) error {
	var doing []string
	for _, f := range []string{"list", "forget", "qr", "url"} {
		if c.IsSet(f) {
			doing = append(doing, "--"+f)
		}
	}
	if len(doing) > 1 {
		return &cli.UsageError{Problem: strings.Join(doing, " and ") + " exclude one another", Hint: "give one of them"}
	}
	if c.Bool("list") || c.IsSet("forget") {
		for _, f := range []string{"address", "phone", "timeout"} {
			if c.IsSet(f) && !(f == "phone" && c.Bool("revoke")) {
				return &cli.UsageError{Problem: fmt.Sprintf("--%s is for pairing, not for %s", f, doing[0]), Hint: "leave it out"}
			}
		}
	}
	if c.Bool("allowed-signers") && !c.Bool("list") {
		return &cli.UsageError{Problem: "--allowed-signers is a form of --list", Hint: "write --list --allowed-signers"}
	}
	if c.Bool("revoke") {
		switch {
		case !c.Bool("list"):
			return &cli.UsageError{Problem: "--revoke is a form of --list", Hint: "write --list --revoke"}
		case c.Bool("allowed-signers"):
			return &cli.UsageError{Problem: "--revoke and --allowed-signers exclude one another", Hint: "give one of them"}
		}
	}
	if c.IsSet("principal") {
		if !c.Bool("allowed-signers") {
			return &cli.UsageError{Problem: "--principal is for --allowed-signers", Hint: "write --list --allowed-signers --principal me@example.org"}
		}
		if err := checkPrincipals(c.StringSlice("principal")); err != nil {
			return err
		}
	}
	if d := c.Duration("timeout"); d <= 0 || d > maxTimeout {
		return &cli.UsageError{Problem: fmt.Sprintf("--timeout: %v is not between 0 and %v", d, maxTimeout), Hint: "write --timeout 2m"}
	}
	if (c.Bool("qr") || c.Bool("url")) && c.Duration("timeout") > urlLife {
		return &cli.UsageError{Problem: fmt.Sprintf("--timeout: a URL is good for %v, not for %v", urlLife, c.Duration("timeout")), Hint: "write --timeout 2m"}
	}
	if c.IsSet("address") {
		if err := lan.CheckAddress(c.String("address")); err != nil {
			return &cli.UsageError{Problem: "--address: " + err.Error(), Hint: "write the address that vmux-signer serve prints, as in --address 192.0.2.7:4022"}
		}
	}
	return nil
}

// jsonPhone is a paired phone as --list --json and a pairing print it.
type jsonPhone struct {
	Name     string    `json:"name"`
	Pin      string    `json:"pin"`
	Address  string    `json:"address"`
	PairedAt time.Time `json:"pairedAt"`
	Software string    `json:"software"`
	CAKey    string    `json:"caKey"` // authorized_keys form, empty when the phone has none
	Keys     []jsonKey `json:"cachedKeys"`
}

type jsonKey struct {
	Algorithm    string `json:"algorithm"`
	PublicKey    string `json:"publicKey"` // authorized_keys form with the comment
	Fingerprint  string `json:"fingerprint"`
	Comment      string `json:"comment"`
	ProviderKind string `json:"providerKind"`
	DisplayName  string `json:"displayName"`
}

func toJSON(p store.Phone) jsonPhone {
	j := jsonPhone{Name: p.Name, Pin: p.Pin, Address: p.Address, PairedAt: p.PairedAt, Software: p.Software, Keys: []jsonKey{}}
	if public, err := ssh.ParsePublicKey(p.CAKey); err == nil {
		j.CAKey = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public)))
	}
	for _, k := range p.Keys {
		j.Keys = append(j.Keys, jsonKey{k.Algorithm, authorized(k), fingerprint(k), k.Comment, k.ProviderKind, k.DisplayName})
	}
	return j
}

func authorized(k store.Key) string {
	return strings.TrimSpace(k.Algorithm + " " + base64.StdEncoding.EncodeToString(k.Blob) + " " + safetext.Line(k.Comment, store.MaxText))
}

func fingerprint(k store.Key) string {
	public, err := ssh.ParsePublicKey(k.Blob)
	if err != nil {
		return ""
	}
	return ssh.FingerprintSHA256(public)
}

func list(c *cli.Context) error {
	_, state, err := loadState(c)
	if err != nil {
		return err
	}
	phones := make([]jsonPhone, 0, len(state.Phones))
	for _, p := range state.Phones {
		phones = append(phones, toJSON(p))
	}
	t := cli.From(c)
	t.Result(map[string]any{"phones": phones}, func(w io.Writer) {
		for _, p := range state.Phones {
			fmt.Fprintf(w, "%s\n", safetext.Line(p.Name, store.MaxName))
			tab := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
			fmt.Fprintf(tab, "  pin\t%s\n", p.Pin)
			fmt.Fprintf(tab, "  paired\t%s\n", p.PairedAt.Local().Format(time.DateTime))
			if p.Address != "" {
				fmt.Fprintf(tab, "  last seen at\t%s\n", safetext.Line(p.Address, store.MaxText))
			}
			for _, k := range p.Keys {
				fmt.Fprintf(tab, "  key\t%s %s (%s)\n", fingerprint(k), safetext.Line(k.Comment, 60), k.Algorithm)
			}
			tab.Flush()
		}
	})
	if len(state.Phones) == 0 {
		t.Notef("no phone is paired")
	}
	return nil
}

// loadState ends the command when the state was damaged, after it was set
// aside: what the user asked about is not there any more.
func loadState(c *cli.Context) (*store.Store, store.State, error) {
	s, err := store.Open(store.Env(os.Getenv), cli.From(c).Logger())
	if err != nil {
		return nil, store.State{}, err
	}
	state, err := s.Load()
	return s, state, err
}

func forget(c *cli.Context, config store.Config) error {
	s, state, err := loadState(c)
	if err != nil {
		return err
	}
	t := cli.From(c)
	wanted := c.String("forget")
	found := state.Named(wanted)
	switch {
	case len(state.Phones) == 0:
		return cli.Fail(cli.ExitNotPaired, "nothing is left to do", errors.New("no phone is paired"))
	case len(found) == 0:
		return cli.Fail(cli.ExitFailed, "see the names: vmux-pair --list", fmt.Errorf("no paired phone is called %q", wanted))
	case len(found) > 1:
		return cli.Fail(cli.ExitFailed, fmt.Sprintf("name it by its pin, as in: vmux-pair --forget %s", found[0].Pin),
			fmt.Errorf("%d paired phones are called %q", len(found), wanted))
	}
	if err := s.Update(func(s *store.State) error {
		s.Forget(found[0].Pin)
		return nil
	}); err != nil {
		return err
	}
	t.Result(map[string]any{"forgotten": toJSON(found[0])}, func(w io.Writer) {
		fmt.Fprintf(w, "forgot %s\n", safetext.Line(found[0].Name, store.MaxName))
	})
	t.Notef("to make the phone forget this device: vmux-signer forget DEVICE, or Devices in its app")
	reload(c, config)
	return nil
}

// reload has a running agent take up what has changed, and says whether there is
// one that did. Without an agent there is nothing to do.
func reload(c *cli.Context, config store.Config) bool {
	ctx, cancel := context.WithTimeout(c.Context, reloadTimeout)
	defer cancel()
	err := agent.Ask(ctx, config.Socket, control.Reload, nil, nil)
	t := cli.From(c)
	switch {
	case errors.Is(err, agent.ErrNotRunning):
		t.Notef("the agent is not running; start it with: vmux-agent")
	case err != nil:
		t.Warnf("the running agent did not take it up (%v); restart it", err)
	}
	return err == nil
}

// choose has a person choose one of several phones.
func choose(t *cli.TUI) func(context.Context, []string) (int, error) {
	return func(ctx context.Context, phones []string) (int, error) {
		t.Alwaysf("phones with an open pairing window:")
		for i, p := range phones {
			t.Alwaysf("  %d  %s", i+1, p)
		}
		for {
			s, err := t.Ask(ctx, fmt.Sprintf("which one (1-%d)? ", len(phones)))
			if err != nil {
				return 0, err
			}
			if n, err := strconv.Atoi(s); err == nil && n >= 1 && n <= len(phones) {
				return n - 1, nil
			}
		}
	}
}
