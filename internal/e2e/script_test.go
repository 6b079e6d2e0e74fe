// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"os"
	"regexp"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs testdata/*.txtar, which say what a user types.
func TestScripts(t *testing.T) {
	t.Parallel()
	sshd := need(t, "sshd")
	for _, name := range []string{"ssh", "ssh-add", "ssh-keygen"} {
		need(t, name)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			h := newHost(t) // a short path, for the sockets
			e.Vars = append(e.Vars, h.env...)
			e.Setenv("HOME", h.home)
			e.Setenv("SSHD", sshd)
			e.Setenv("XDG_RUNTIME_DIR", h.home)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"await": await},
	})
}

// await FILE REGEXP [VARIABLE] waits until a file, which a background command
// writes, matches, and keeps the first group in a variable.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: await FILE REGEXP [VARIABLE]")
	}
	re, err := regexp.Compile(args[1])
	ts.Check(err)
	path := ts.MkAbs(args[0])
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(patience); ; {
		b, err := os.ReadFile(path)
		if m := re.FindSubmatch(b); m != nil {
			if len(args) == 3 {
				ts.Setenv(args[2], string(m[1]))
			}
			return
		}
		select {
		case <-tick.C:
		case <-late:
			ts.Fatalf("%s does not match %s: %v\n%s", args[0], args[1], err, b)
		}
	}
}
