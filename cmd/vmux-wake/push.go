// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"text/tabwriter"
	"time"

	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/phone"
	"vmux.app/toolkit/internal/safetext"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/wake"
	"vmux.app/toolkit/internal/wake/apns"
)

// pushTimeout is for how long a request looks for a phone that was pushed to: what takes longer wakes nobody in time.
const pushTimeout = 20 * time.Second

func run(c *cli.Context) error {
	config, err := loadConfig(c)
	if err != nil {
		return err
	}
	p, err := choose(c, config)
	if err != nil {
		return err
	}
	if c.Bool("wait") && p == nil {
		return apns.ErrNoToken
	}
	if _, err = push(c, config, p); err != nil || !c.Bool("wait") {
		return err
	}
	return wait(c, config, *p)
}

// choose returns the phone to push to, nil for a device token of flags or settings.
func choose(c *cli.Context, config store.Config) (*store.Phone, error) {
	if c.IsSet("device-token") {
		return nil, nil
	}
	_, state, err := cli.OpenState(c)
	if err != nil {
		return nil, err
	}
	if c.IsSet("phone") {
		named := state.Named(c.String("phone"))
		switch {
		case len(state.Phones) == 0:
			return nil, phone.ErrNotPaired
		case len(named) == 0:
			return nil, cli.Fail(cli.ExitUsage, "see the names: vmux-pair --list", fmt.Errorf("no paired phone is called %q", c.String("phone")))
		case len(named) == 1:
			return &named[0], nil
		}
		state.Phones = named
	}
	var able []store.Phone
	for _, p := range state.Phones {
		if p.DeviceToken.Present() {
			able = append(able, p)
		}
	}
	switch {
	case len(able) == 1:
		return &able[0], nil
	case len(able) > 1:
		return nil, cli.Fail(cli.ExitUsage, "name one by its name or pin, as in: vmux-wake --phone "+able[0].Pin, fmt.Errorf("%d phones can be pushed to", len(able)))
	case config.Wake.DeviceToken != "":
		return nil, nil
	case len(state.Phones) == 0:
		return nil, phone.ErrNotPaired
	}
	return nil, apns.ErrNoToken
}

// result is what --json prints.
type result struct {
	ID           string `json:"apnsId"`
	UniqueID     string `json:"apnsUniqueId,omitzero"`
	Status       int    `json:"status"`
	Reason       string `json:"reason"`      // Apple's word, empty when the push was taken
	Meaning      string `json:"meaning"`     // the same as a sentence
	Hint         string `json:"hint"`        // what to do
	Phone        string `json:"phone"`       // empty with a device token of flags or settings
	DeviceToken  string `json:"deviceToken"` // its beginning
	Topic        string `json:"topic"`
	Environment  string `json:"environment"`
	Silent       bool   `json:"silent"`
	Attempts     int    `json:"attempts"`
	Milliseconds int64  `json:"milliseconds"`
}

// push pushes once, prints what came of it, and forgets a stored device token that is gone.
func push(c *cli.Context, config store.Config, p *store.Phone) (wake.Result, error) {
	t := cli.From(c)
	to, err := wake.TargetOf(config.Wake, p)
	if err != nil {
		return wake.Result{}, err
	}
	o, err := wake.Configured(config.Wake, store.Env(os.Getenv))
	if err != nil {
		return wake.Result{}, err
	}
	o.Log = t.Logger()
	client, err := wake.New(o)
	if err != nil {
		return wake.Result{}, err
	}
	defer client.Close()
	kind := wake.Alert
	if c.Bool("silent") {
		kind = wake.Silent
	}
	ctx, cancel := context.WithTimeout(c.Context, pushTimeout)
	defer cancel()
	stop := t.Waiting("the push service's answer", pushTimeout)
	begin := time.Now()
	res, err := client.Push(ctx, to, kind, time.Time{})
	stop()
	refused, _ := errors.AsType[*apns.RefusedError](err)
	if err != nil && refused == nil {
		return res, err
	}
	out := result{ID: res.ID, UniqueID: res.UniqueID, Status: res.Status, Meaning: "the push was taken", DeviceToken: apns.Short(to.Token), Topic: to.Topic,
		Environment: to.Environment, Silent: kind == wake.Silent, Attempts: res.Attempts, Milliseconds: time.Since(begin).Milliseconds()}
	if p != nil {
		out.Phone = p.Name
	}
	if refused != nil {
		out.Reason, out.Meaning, out.Hint = refused.Reason.Code, refused.Reason.Meaning, refused.Reason.Do
	}
	t.Result(map[string]any{"push": out}, func(w io.Writer) { out.print(w) })
	if err == nil {
		t.Notef("the push was taken; whether the phone shows it is up to its settings")
	}
	if errors.Is(err, apns.ErrTokenGone) && to.Own(p) {
		forget(c, *p, refused.Since)
	}
	return res, err
}

func (r result) print(w io.Writer) {
	tab := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	defer tab.Flush()
	fmt.Fprintf(tab, "apns-id\t%s\n", r.ID)
	if r.UniqueID != "" {
		fmt.Fprintf(tab, "apns-unique-id\t%s\n", r.UniqueID)
	}
	fmt.Fprintf(tab, "status\t%d %s\n", r.Status, cmp.Or(r.Reason, http.StatusText(r.Status)))
}

// forget forgets the device token of a phone, which sends another one when it connects.
func forget(c *cli.Context, p store.Phone, since time.Time) {
	t := cli.From(c)
	keep, _, err := cli.OpenState(c)
	forgotten := false
	if err == nil {
		err = keep.Update(func(s *store.State) error {
			forgotten = s.ForgetToken(p.Pin, p.DeviceToken.Token, since)
			return nil
		})
	}
	switch name := safetext.Line(p.Name, store.MaxName); {
	case err != nil:
		t.Warnf("the device token of %s is not forgotten: %v", name, err)
	case forgotten:
		t.Alwaysf("the device token of %s is forgotten; it sends another one when it connects", name)
	}
}
