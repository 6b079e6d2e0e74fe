// SPDX-License-Identifier: BSD-3-Clause

//go:build gnustep && cgo

package unixsock

import (
	"os"
	"os/exec"
	"testing"
)

// activate has the stand-in for launchd pass sockets, "NAME FIRST COUNT", and answers what Activated makes of it.
func activate(arg string) string {
	if arg != "" {
		if err := os.Setenv("FAKE_LAUNCHD", arg); err != nil {
			return err.Error()
		}
	}
	return activated(Activated())
}

func TestActivatedByLaunchd(t *testing.T) {
	t.Parallel()
	p := newPassed(t)
	for _, c := range []struct {
		name, arg, want string
		files           []*os.File
	}{
		{"one", "Listeners 3 1", "1", []*os.File{p.listening}},
		{"not started by launchd", "", "0", nil},
		{"of another name", "Other 3 1", "0", []*os.File{p.listening}},
		{"none", "Listeners 3 0", "0", nil},
		{"not Unix", "Listeners 3 1", "error: socket activation: descriptor 3: not a Unix socket", []*os.File{p.overTCP}},
		{"not listening", "Listeners 3 1", "error: socket activation: descriptor 3: cannot listen: invalid argument", []*os.File{p.deaf}},
		{"datagrams", "Listeners 3 1", "error: socket activation: descriptor 3: not a stream socket", []*os.File{p.datagram}},
		{"second is wrong", "Listeners 3 2", "error: socket activation: descriptor 4: cannot listen: invalid argument", []*os.File{p.listening, p.deaf}},
		{"too many", "Listeners 100 17", "error: socket activation: launchd passed too many sockets", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			ch := startChild(t, func(cmd *exec.Cmd) { cmd.ExtraFiles = c.files })
			ch.want(c.want, "activated %s", c.arg)
		})
	}
	// launchd hands a socket out once.
	ch := startChild(t, func(cmd *exec.Cmd) { cmd.ExtraFiles = []*os.File{p.listening} })
	ch.want("1", "activated Listeners 3 1")
	ch.want("error: socket activation: launchd: operation already in progress", "activated Listeners 3 1")
}
