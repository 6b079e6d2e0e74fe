// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/signer"
)

func hostKeys(c *cli.Context) error {
	h, err := openHome(c)
	if err != nil {
		return err
	}
	list, err := h.HostKeys()
	if err != nil {
		return err
	}
	result := struct {
		Hosts []signer.HostKey `json:"hosts"`
	}{list}
	cli.From(c).Result(result, func(w io.Writer) {
		tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		defer tw.Flush()
		for _, k := range result.Hosts {
			name := k.Name
			if name == "" {
				name = "-" // begins no name
			}
			fmt.Fprintf(tw, "%s\t%s\tfirst %s\tlast %s\n", name, k.Fingerprint, k.First, k.Last)
		}
	})
	if len(result.Hosts) == 0 && !cli.From(c).JSON() {
		cli.From(c).Notef("no login to a verified host was approved yet")
	}
	return nil
}

func hostsRemove(c *cli.Context) error {
	h, err := openHome(c)
	if err != nil {
		return err
	}
	gone, err := h.RemoveHosts(c.Args().Slice()...)
	if err != nil {
		return err
	}
	for _, k := range gone {
		name := k.Name
		if name == "" {
			name = "a host without a name"
		}
		cli.From(c).Notef("%s with %s is forgotten", name, k.Fingerprint)
	}
	if cli.From(c).JSON() {
		cli.From(c).Result(map[string]any{"removed": gone}, nil)
	}
	return changed(c, h)
}
