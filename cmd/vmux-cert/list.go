// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/control"
	"vmux.app/toolkit/internal/duration"
	"vmux.app/toolkit/internal/phone"
	"vmux.app/toolkit/internal/safetext"
	"vmux.app/toolkit/internal/session"
	"vmux.app/toolkit/internal/store"
)

// Statuses of vmux-cert check.
const (
	statusDue  cli.Status = 1
	statusNone cli.Status = 2
)

// backdated is how long before its making a certificate begins.
const backdated = time.Minute

// maxLine bounds what is shown of one value.
const maxLine = 200

// show prints a certificate, unless the user wants the exit status only.
func show(c *cli.Context, i session.Info) {
	t := cli.From(c)
	if c.Bool("quiet") && !t.JSON() {
		return
	}
	t.Result(i, func(w io.Writer) { describe(w, i, time.Now()) })
}

// describe writes a certificate for people.
func describe(w io.Writer, i session.Info, now time.Time) {
	tab := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	defer tab.Flush()
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(tab, "%s\t%s\n", name, safetext.Line(value, maxLine))
		}
	}
	line("serial", strconv.FormatUint(i.Serial, 10))
	line("key id", i.KeyID)
	line("principals", strings.Join(i.Principals, ", "))
	line("valid", "until "+i.ValidBefore.Local().Format(time.DateTime)+", "+left(i, now))
	limits := i.Scope.Limits()
	if i.Scope.Uses > 0 {
		limits = append(limits, fmt.Sprintf("%d of them left", i.UsesLeft))
	}
	if i.Job != 0 {
		limits = append(limits, fmt.Sprintf("job of process %d", i.Job))
	}
	if len(limits) == 0 {
		limits = []string{"any host, any number of times"}
	}
	line("scope", strings.Join(limits, "; "))
	for _, name := range slices.Sorted(maps.Keys(i.CriticalOptions)) {
		line(name, i.CriticalOptions[name])
	}
	line("permits", strings.Join(slices.Sorted(maps.Keys(i.Extensions)), ", "))
	line("key", i.Key)
	line("CA", i.CA)
}

func left(i session.Info, now time.Time) string {
	if d := i.ValidBefore.Sub(now); d > 0 {
		return duration.Short(d) + " left"
	}
	return "over"
}

// held asks the agent for its certificates.
func held(c *cli.Context) ([]session.Info, error) {
	client, _, err := dial(c)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	var all []session.Info
	return all, client.Ask(c.Context, control.Certificates, nil, &all)
}

func list(c *cli.Context) error {
	all, err := held(c)
	if err != nil {
		return err
	}
	t := cli.From(c)
	t.Result(map[string]any{"certificates": all}, func(w io.Writer) {
		for n, i := range all {
			if n > 0 {
				fmt.Fprintln(w)
			}
			describe(w, i, time.Now())
		}
	})
	if len(all) == 0 {
		t.Notef("the agent has no session certificate; ask for one: vmux-cert")
	}
	return nil
}

// check says by its status whether the certificate that lasts longest is good.
func check(c *cli.Context) error {
	due, err := parseDue(c.String("expires-in"))
	if err != nil {
		return usage("expires-in", err, "write --expires-in 10m or --expires-in 25%")
	}
	all, err := held(c)
	if err != nil {
		return err
	}
	// A job's certificate serves that job only.
	all = slices.DeleteFunc(all, func(i session.Info) bool { return i.Job != 0 })
	t := cli.From(c)
	if len(all) == 0 {
		t.Result(map[string]any{"state": "none"}, func(w io.Writer) {
			if !c.Bool("quiet") {
				fmt.Fprintln(w, "none")
			}
		})
		return statusNone
	}
	best := slices.MaxFunc(all, func(a, b session.Info) int { return a.ValidBefore.Compare(b.ValidBefore) })
	remaining := time.Until(best.ValidBefore)
	state, status := "good", error(nil)
	if remaining < due(validity(best)) {
		state, status = "due", statusDue
	}
	t.Result(map[string]any{"state": state, "remainingSeconds": max(0, int64(remaining.Seconds())), "certificate": best}, func(w io.Writer) {
		if !c.Bool("quiet") {
			fmt.Fprintf(w, "%s: %s\n", state, left(best, time.Now()))
		}
	})
	return status
}

// validity is how long a certificate is valid from its making on. Phones let it
// begin a minute before, for servers whose clocks are behind.
func validity(i session.Info) time.Duration {
	v := i.ValidBefore.Sub(i.ValidAfter)
	if v > backdated {
		v -= backdated
	}
	return v
}

// parseDue gives when a certificate of some validity is due for renewal.
func parseDue(s string) (func(validity time.Duration) time.Duration, error) {
	if digits, ok := strings.CutSuffix(s, "%"); ok {
		n, err := strconv.ParseUint(digits, 10, 8)
		if err != nil || n > 100 {
			return nil, fmt.Errorf("%q is no percentage", s)
		}
		return func(v time.Duration) time.Duration { return v / 100 * time.Duration(n) }, nil
	}
	d, err := duration.Parse(s)
	return func(time.Duration) time.Duration { return d }, err
}

func drop(c *cli.Context) error {
	var p control.DropParams
	switch serial := c.Args().First(); {
	case c.Bool("all") == (serial != ""):
		return &cli.UsageError{Problem: "which certificate?", Hint: "vmux-cert drop SERIAL, as vmux-cert list prints it, or vmux-cert drop --all"}
	case c.Bool("all"):
		p.All = true
	default:
		n, err := strconv.ParseUint(serial, 10, 64)
		if err != nil || n == 0 {
			return &cli.UsageError{Problem: fmt.Sprintf("%q is no serial", serial), Hint: "see them: vmux-cert list"}
		}
		p.Serial = n
	}
	client, _, err := dial(c)
	if err != nil {
		return err
	}
	defer client.Close()
	var r control.DropResult
	if err := client.Ask(c.Context, control.Drop, p, &r); err != nil {
		return err
	}
	if r.Dropped == 0 && !p.All {
		return cli.Fail(cli.ExitFailed, "see them: vmux-cert list", fmt.Errorf("no certificate has the serial %d", p.Serial))
	}
	t := cli.From(c)
	if !c.Bool("quiet") || t.JSON() {
		t.Result(r, func(w io.Writer) { fmt.Fprintf(w, "dropped %d\n", r.Dropped) })
	}
	return nil
}

// ca prints what servers must trust. It needs neither agent nor phone.
func ca(c *cli.Context) error {
	if c.IsSet("principal") && !c.Bool("authorized-keys") {
		return &cli.UsageError{Problem: "--principal is for --authorized-keys",
			Hint: "give both; for TrustedUserCAKeys set AuthorizedPrincipalsFile on the server"}
	}
	_, state, err := cli.OpenState(c)
	if err != nil {
		return err
	}
	phones := state.Phones
	if c.IsSet("phone") {
		phones = state.Named(c.String("phone"))
	}
	phones = slices.DeleteFunc(slices.Clone(phones), func(p store.Phone) bool { return len(p.CAKey) == 0 })
	switch {
	case len(state.Phones) == 0:
		return phone.ErrNotPaired
	case len(phones) == 0:
		return cli.Fail(cli.ExitFailed, "see the phones: vmux-pair --list", errors.New("no such phone has a certificate authority"))
	}
	var lines []string
	for _, p := range phones {
		public, err := ssh.ParsePublicKey(p.CAKey)
		if err != nil {
			return fmt.Errorf("the pinned key of %s: %w", p.Name, err)
		}
		line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public))) + " vmux:" + safetext.Line(p.Name, store.MaxName)
		if c.Bool("authorized-keys") {
			options := "cert-authority"
			if names := c.StringSlice("principal"); len(names) > 0 {
				if i := slices.IndexFunc(names, func(n string) bool { return n == "" || strings.ContainsAny(n, "\",\n\\") }); i >= 0 {
					return &cli.UsageError{Problem: fmt.Sprintf("--principal: %q cannot be written in authorized_keys", names[i]), Hint: "write --principal NAME"}
				}
				options += fmt.Sprintf(`,principals="%s"`, strings.Join(names, ","))
			}
			line = options + " " + line
		}
		lines = append(lines, line)
	}
	cli.From(c).Result(map[string]any{"lines": lines}, func(w io.Writer) {
		for _, l := range lines {
			fmt.Fprintln(w, l)
		}
	})
	return nil
}
