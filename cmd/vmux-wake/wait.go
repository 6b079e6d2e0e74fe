// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/networks"
	"vmux.app/toolkit/internal/phone"
	"vmux.app/toolkit/internal/safetext"
	"vmux.app/toolkit/internal/store"
)

// wait looks for a phone that was pushed to, and says when it came.
func wait(c *cli.Context, config store.Config, p store.Phone) error {
	t := cli.From(c)
	log := t.Logger()
	all, closeNetworks := networks.Open(log)
	defer closeNetworks()
	o, err := phone.Prepare(store.Env(os.Getenv), config, "vmux-wake "+cli.Version(), all, log)
	if err != nil {
		return err
	}
	look, err := phone.New(o, p)
	if err != nil {
		return err
	}
	defer look.Close()
	stop := t.Waiting(safetext.Line(p.Name, store.MaxName), pushTimeout)
	begin := time.Now()
	address, err := look.Find(c.Context, pushTimeout)
	stop()
	if err != nil {
		return err
	}
	took := time.Since(begin)
	t.Result(map[string]any{"link": struct {
		Phone        string `json:"phone"`
		Address      string `json:"address"`
		Milliseconds int64  `json:"milliseconds"`
	}{p.Name, address, took.Milliseconds()}}, func(w io.Writer) {
		fmt.Fprintf(w, "%s answered at %s, %.1f s after the push\n", safetext.Line(p.Name, store.MaxName), address, took.Seconds())
	})
	return nil
}
