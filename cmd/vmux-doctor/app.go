// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/doctor"
	"vmux.app/toolkit/internal/store"
)

// hostCheck is the check that runs when --host says where.
const hostCheck = "host"

// Statuses beside 0.
const (
	statusWarning cli.Status = 1
	statusFailure cli.Status = 2
)

func app() *cli.App {
	return &cli.App{
		Name:  "vmux-doctor",
		Usage: "find out what is wrong with a set-up, and how to mend it",
		Description: "Examines sockets, ssh's configuration, the phone and the way to it, and says of each thing that is not\n" +
			"well why that matters and what to type. Nothing is changed, and nobody is asked for a signature, unless\n" +
			"--host is given.",
		Flags: []cli.Flag{
			&cli.StringsFlag{Name: "only", Usage: "run the checks with these `ID,...` only, and what they need"},
			&cli.StringFlag{Name: "host", Usage: "log in to `USER@HOST` too, which asks the phone for a signature"},
			&cli.BoolFlag{Name: "list", Usage: "list the checks"},
			&cli.BoolFlag{Name: "setup", Usage: "print the lines for ssh's and the shell's configuration"},
			cli.SocketFlag(),
			cli.ConfigFlag(),
		},
		Action: run,
	}
}

func run(c *cli.Context) error {
	ids, err := checkFlags(c)
	if err != nil {
		return err
	}
	e, err := doctor.System()
	if err != nil {
		return err
	}
	configure(c, &e)
	switch {
	case c.Bool("list"):
		list(c, e)
		return nil
	case c.Bool("setup"):
		setup(c, e)
		return nil
	}
	return examine(c, e, ids)
}

// checkFlags refuses combinations of which one part would be ignored, and gives the ids of --only.
func checkFlags(c *cli.Context) (ids []string, err error) {
	var doing []string
	for _, f := range []string{"list", "setup"} {
		if c.Bool(f) {
			doing = append(doing, "--"+f)
		}
	}
	for _, f := range []string{"only", "host"} {
		if len(doing) > 0 && c.IsSet(f) {
			doing = append(doing, "--"+f)
		}
	}
	if len(doing) > 1 {
		return nil, &cli.UsageError{Problem: strings.Join(doing[:2], " and ") + " exclude one another", Hint: "give one of them"}
	}
	if h := c.String("host"); c.IsSet("host") && (h == "" || strings.HasPrefix(h, "-") || strings.ContainsAny(h, " \t\n")) {
		return nil, &cli.UsageError{Problem: fmt.Sprintf("--host: %q is no destination", h), Hint: "write it as for ssh, as in --host me@example.org"}
	}
	for _, v := range c.StringSlice("only") {
		for _, id := range strings.Split(v, ",") {
			if id = strings.TrimSpace(id); id != "" {
				ids = append(ids, id)
			}
		}
	}
	if c.IsSet("only") && len(ids) == 0 {
		return nil, &cli.UsageError{Problem: "--only: no check is named", Hint: "see them: vmux-doctor --list"}
	}
	return ids, nil
}

// configure says what is configured. A vmux.toml that is wrong is a finding, and no reason to examine nothing.
func configure(c *cli.Context, e *doctor.Env) {
	env := store.Env(os.Getenv)
	e.ConfigFile = cmp.Or(c.String("config"), env("VMUX_CONFIG"))
	if e.ConfigFile == "" {
		e.ConfigFile, _ = env.ConfigFile() // fails without a home only, which doctor.System has found
	}
	if e.Config, e.ConfigErr = cli.LoadConfig(c); e.ConfigErr != nil {
		e.Config = fallback(c, env)
	}
	e.Version = cli.Version()
	e.Software = c.App.Name + " " + e.Version
	e.Host = c.String("host")
	e.Advice = func(err error) string {
		_, hint := cli.Advice(err)
		return cmp.Or(hint, "see the manual page: man "+c.App.Name)
	}
}

// fallback is the configuration without a file, with the socket that the user names, if that is right.
func fallback(c *cli.Context, env store.Env) store.Config {
	config, err := store.LoadConfig("", false, func(name string) string {
		if strings.HasPrefix(name, "VMUX_") {
			return ""
		}
		return env(name)
	})
	if err != nil {
		return config // without a home
	}
	for _, s := range []struct{ value, origin string }{{env("VMUX_SOCKET"), "VMUX_SOCKET"}, {c.String("socket"), "--socket"}} {
		if s.value != "" {
			_ = config.Set(env, "socket", s.value, s.origin) // or it stays as it is
		}
	}
	return config
}

func list(c *cli.Context, e doctor.Env) {
	type entry struct {
		ID    string   `json:"id"`
		Title string   `json:"title"`
		Needs []string `json:"needs"`
	}
	all := []entry{}
	for _, k := range doctor.All(e.OS) {
		all = append(all, entry{k.ID, k.Title, append([]string{}, k.Needs...)})
	}
	cli.From(c).Result(map[string]any{"checks": all}, func(w io.Writer) {
		tab := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		defer tab.Flush()
		for _, k := range all {
			fmt.Fprintf(tab, "%s\t%s\n", k.ID, k.Title)
		}
	})
}

func examine(c *cli.Context, e doctor.Env, ids []string) error {
	switch {
	case e.Host == "" && slices.Contains(ids, hostCheck):
		return &cli.UsageError{Problem: "--only host: no server is named", Hint: "name it, as in --host me@example.org"}
	case e.Host != "" && len(ids) > 0 && !slices.Contains(ids, hostCheck):
		ids = append(ids, hostCheck)
	}
	all := doctor.All(e.OS)
	for i := range all {
		if all[i].ID == hostCheck && e.Host != "" {
			all[i].Asked = false
		}
	}
	checks, err := doctor.Select(all, ids...)
	if unknown, ok := errors.AsType[*doctor.UnknownError](err); ok {
		return &cli.UsageError{Problem: "--only: " + unknown.Error(), Hint: "see them: vmux-doctor --list"}
	}
	if err != nil {
		return err
	}
	t := cli.From(c)
	if e.Host != "" {
		// Before anything appears on the phone.
		t.Notef("logging in to %s: the phone asks its owner, unless a session certificate gets in", e.Host)
	}
	start := time.Now()
	waiting := t.Waiting("the checks to end", doctor.Longest(checks))
	results, err := doctor.Examine(c.Context, e, checks)
	waiting()
	if err != nil {
		return err
	}
	if len(ids) > 0 {
		// Of what is only needed by those that are asked for, what keeps them from running.
		results = slices.DeleteFunc(results, func(r doctor.Result) bool { return !slices.Contains(ids, r.ID) && r.Level != doctor.Failure })
	}
	report(c, results, ids, time.Since(start))
	switch doctor.Worst(results) {
	case doctor.Failure:
		return statusFailure
	case doctor.Warning:
		return statusWarning
	}
	return nil
}
