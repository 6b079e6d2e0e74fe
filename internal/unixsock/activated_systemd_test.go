// SPDX-License-Identifier: BSD-3-Clause

//go:build linux && !gnustep

package unixsock

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// activate plays what systemd does between fork and exec, then answers what Activated makes of it.
func activate(arg string) string {
	env := map[string]string{"LISTEN_PID": strconv.Itoa(os.Getpid()), "LISTEN_FDNAMES": "a"}
	count, pid, _ := strings.Cut(arg, " ")
	env["LISTEN_FDS"] = count
	if pid != "" {
		env["LISTEN_PID"] = pid
	}
	for k, v := range env {
		if err := os.Setenv(k, v); err != nil {
			return err.Error()
		}
	}
	all, err := Activated()
	for k := range env {
		if _, ok := os.LookupEnv(k); ok {
			return k + " is still set"
		}
	}
	return activated(all, err)
}

func TestActivated(t *testing.T) {
	t.Parallel()
	p := newPassed(t)
	for _, c := range []struct {
		name, arg, want string
		files           []*os.File
	}{
		{"one", "1", "1", []*os.File{p.listening}},
		{"for another process", "1 1", "0", []*os.File{p.listening}},
		{"none", "0", "0", nil},
		{"not Unix", "1", "error: socket activation: descriptor 3: not a Unix socket", []*os.File{p.overTCP}},
		{"not listening", "1", "error: socket activation: descriptor 3: not listening", []*os.File{p.deaf}},
		{"datagrams", "1", "error: socket activation: descriptor 3: not a stream socket", []*os.File{p.datagram}},
		{"second is wrong", "2", "error: socket activation: descriptor 4: not listening", []*os.File{p.listening, p.deaf}},
		{"missing", "1x", `error: socket activation: LISTEN_FDS="1x", want 0 to 16`, nil},
		{"too many", "17", `error: socket activation: LISTEN_FDS="17", want 0 to 16`, nil},
		{"negative", "-1", `error: socket activation: LISTEN_FDS="-1", want 0 to 16`, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			ch := startChild(t, func(cmd *exec.Cmd) { cmd.ExtraFiles = c.files })
			ch.want(c.want, "activated %s", c.arg)
		})
	}
}
