// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/safetext"
	"vmux.app/toolkit/internal/signer"
)

func devices(c *cli.Context) error {
	h, err := openHome(c)
	if err != nil {
		return err
	}
	s, err := h.Read()
	if err != nil {
		return err
	}
	result := struct {
		Devices []signer.Device `json:"devices"`
	}{s.Devices}
	if result.Devices == nil {
		result.Devices = []signer.Device{}
	}
	cli.From(c).Result(result, func(w io.Writer) {
		tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		defer tw.Flush()
		for _, d := range result.Devices {
			seen := "never seen"
			if !d.LastSeen.IsZero() {
				seen = "seen " + d.LastSeen.Local().Format(time.DateTime)
			}
			fmt.Fprintf(tw, "%s\t%s\tpaired %s\t%s\n", safetext.Line(d.Name, 100), d.Pin, d.PairedAt.Local().Format(time.DateOnly), seen)
		}
	})
	if len(result.Devices) == 0 && !cli.From(c).JSON() {
		cli.From(c).Notef("no device is paired")
	}
	return nil
}

func forget(c *cli.Context) error {
	h, err := openHome(c)
	if err != nil {
		return err
	}
	d, err := h.Forget(c.Args().First())
	if err != nil {
		return err
	}
	cli.From(c).Notef("%s is not paired any more", d.Name)
	if cli.From(c).JSON() {
		cli.From(c).Result(map[string]any{"forgotten": d}, nil)
	}
	return changed(c, h)
}
