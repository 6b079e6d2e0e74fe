// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"strings"
	"testing"

	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/ptytest"
)

// The list belongs to the question, and --quiet leaves both.
func TestChooseQuietly(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{nil, {"--quiet"}} {
		pty := ptytest.Open(t)
		ended := make(chan int, 1)
		chosen := -1
		app := &cli.App{Name: "x", Action: func(c *cli.Context) (err error) {
			chosen, err = choose(cli.From(c))(c.Context, []string{"Twin  192.0.2.2:1  SHA256:aaaaaaaa…", "Twin  192.0.2.3:1  SHA256:bbbbbbbb…"})
			return err
		}}
		go func() { ended <- cli.Run(t.Context(), app, args, pty.TTY, pty.TTY, pty.TTY) }()
		text := pty.Expect("which one (1-2)? ")
		if !strings.Contains(text, "phones with an open pairing window:\r\n  1  Twin  192.0.2.2:1  SHA256:aaaaaaaa…\r\n  2  Twin  192.0.2.3:1  SHA256:bbbbbbbb…\r\n") {
			t.Errorf("%q: %q", args, text)
		}
		pty.Type("3\n")
		pty.Expect("which one (1-2)? ")
		pty.Type("2\n")
		if exit := <-ended; exit != 0 || chosen != 1 {
			t.Errorf("%q: exit %d, chosen %d", args, exit, chosen)
		}
	}
}
