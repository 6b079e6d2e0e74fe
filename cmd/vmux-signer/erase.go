// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/signer"
	"vmux.app/toolkit/internal/store"
)

var eraseCommand = &cli.Command{
	Name: "erase", Usage: "destroy all keys and pairings, and print what revokes the keys",
	Description: `Asks for the signer's name. What "vmux-signer revoke" prints is printed before: nothing here can tell it
afterwards. It takes no passphrase, since whoever can run it can remove the files.`,
	Flags:  []cli.Flag{&cli.BoolFlag{Name: "yes", Usage: "do not ask"}},
	Action: erase,
}

// eraseWord is typed for a signer whose name is not known.
const eraseWord = "erase"

func erase(c *cli.Context) error {
	t := cli.From(c)
	dir, err := store.Env(os.Getenv).SignerHome()
	if err != nil {
		return err
	}
	h, err := signer.OpenToErase(dir)
	if err != nil {
		return err
	}
	if !c.Bool("yes") {
		if err := confirmErase(c, h); err != nil {
			return err
		}
	}
	left, err := h.Erase(func() error {
		keys, unknown := h.PublicKeys()
		for _, e := range unknown {
			if !errors.Is(e, fs.ErrNotExist) { // the home was half erased
				t.Warnf("not in the list: %v", e)
			}
		}
		printList(t, listOf(keys))
		if err := t.Printed(); err != nil {
			return fmt.Errorf("%w; nothing was erased", err)
		}
		return nil
	})
	for _, path := range left {
		t.Warnf("not the signer's, and left: %s", path)
	}
	if err != nil {
		return err
	}
	t.Notef("the signer in %s is erased; servers accept its keys until they refuse them: ssh-keygen -k -f revoked.krl FILE", h.Dir())
	if t.JSON() {
		if left == nil {
			left = []string{}
		}
		t.Result(map[string]any{"erased": h.Dir(), "left": left}, nil)
	}
	return nil
}

// confirmErase has the owner type the signer's name.
func confirmErase(c *cli.Context, h *signer.Home) error {
	t := cli.From(c)
	if !t.Interactive() {
		return &cli.UsageError{Problem: "there is no terminal to ask on", Hint: "if you mean it: vmux-signer erase --yes"}
	}
	name, what := h.Name(), "the signer's name, %s,"
	if name == "" {
		name, what = eraseWord, "the word %s"
	}
	t.Alwaysf("this destroys the keys and pairings in %s for good; there is no other copy unless you made one", h.Dir())
	typed, err := t.Ask(c.Context, fmt.Sprintf("Type "+what+" to erase: ", name))
	if err != nil {
		return err
	}
	if typed != name {
		return cli.Fail(cli.ExitFailed, "to erase it, type what is asked for; nothing was erased", fmt.Errorf("%q is not %s", typed, name))
	}
	return nil
}
