// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"fmt"
	"io"
	"os"

	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/keyfile"
	"vmux.app/toolkit/internal/signer"
	"vmux.app/toolkit/internal/store"
)

func initHome(c *cli.Context) error {
	t := cli.From(c)
	dir, err := store.Env(os.Getenv).SignerHome()
	if err != nil {
		return err
	}
	name := c.String("name")
	if !c.IsSet("name") {
		name = signer.HostName()
	}
	if err := signer.CanInit(dir, name); err != nil { // before a question for nothing
		return err
	}
	var secret []byte
	switch {
	case c.Bool("no-passphrase") && c.String("provider") == inTPM:
		return keyfile.ErrBare
	case c.Bool("no-passphrase") && c.IsSet("passphrase-file"):
		return &cli.UsageError{Problem: "--no-passphrase and --passphrase-file exclude one another", Hint: "leave one out"}
	case !c.Bool("no-passphrase"):
		if secret, err = newPassphrase(c, "passphrase-file", "no-passphrase"); err != nil {
			return err
		}
		defer clear(secret)
	}
	var h *signer.Home
	if c.String("provider") == inTPM {
		h, err = signer.InitTPM(dir, name, tpmDevice(), secret)
	} else {
		h, err = signer.Init(dir, name, secret)
	}
	if err != nil {
		return err
	}
	ca, err := h.CA()
	if err != nil {
		return err
	}
	keys, err := h.Keys()
	if err != nil {
		return err
	}
	result := struct {
		Home string      `json:"home"`
		Name string      `json:"name"`
		CA   string      `json:"ca"`
		Keys []keyObject `json:"keys"`
	}{h.Dir(), name, line(ca, "vmux-signer CA "+name), nil}
	for _, k := range keys {
		result.Keys = append(result.Keys, objectOf(k))
	}
	t.Notef("made %s for the signer %s", h.Dir(), name)
	if secret == nil {
		t.Warnf("the keys are not encrypted: whoever can read %s has them", h.Dir())
	}
	t.Result(result, func(w io.Writer) {
		for _, k := range result.Keys {
			fmt.Fprintln(w, k.PublicKey)
		}
	})
	return nil
}
