// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/control"
	"vmux.app/toolkit/internal/safetext"
)

// Statuses of vmux-cert run beside the command's own, as env(1) has them.
const (
	statusOwn        = 125
	statusCannotRun  = 126
	statusNotFound   = 127
	statusSignalBase = 128
)

// own gives an error of vmux-cert itself the status for that, with its hint.
func own(err error) error {
	_, hint := cli.Advice(err)
	return cli.Fail(statusOwn, hint, err)
}

// run runs a command whose SSH_AUTH_SOCK serves one certificate, to it and its
// descendants. The socket lasts as long as the connection to the agent.
func run(c *cli.Context) error {
	p, err := params(c)
	if err != nil {
		return own(err)
	}
	// Before anybody is asked.
	path, err := exec.LookPath(c.Args().First())
	if err != nil && !errors.Is(err, exec.ErrDot) {
		if errors.Is(err, fs.ErrPermission) {
			return cli.Fail(statusCannotRun, "make it executable: chmod +x FILE", err)
		}
		return cli.Fail(statusNotFound, "look for a slip in its name", err)
	}
	client, config, err := dial(c)
	if err != nil {
		return own(err)
	}
	defer client.Close()
	if p.Reason == "" {
		// One line, whatever the command is.
		p.Reason = safetext.Line("run "+strings.Join(strings.Fields(strings.Join(c.Args().Slice(), " ")), " "), maxLine)
	}
	var r control.RunResult
	if err := asking(c, client, config, control.Run, p, &r); err != nil {
		return own(err)
	}
	cli.From(c).Notef("certificate %d, %s", r.Info.Serial, left(r.Info, time.Now()))

	job := exec.Command(path, c.Args().Tail()...)
	job.Args[0] = c.Args().First()
	job.Stdin, job.Stdout, job.Stderr = os.Stdin, os.Stdout, os.Stderr
	job.Env = append(withoutAgent(os.Environ()), "SSH_AUTH_SOCK="+r.Socket)
	signals := make(chan os.Signal, 8) // a burst; what is beyond repeats itself
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)
	if err := job.Start(); err != nil {
		return cli.Fail(statusCannotRun, "look at what it is: file "+path, err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = job.Wait() // its state says all
	}()
	for {
		select {
		case s := <-signals:
			// The terminal sends Ctrl-C and Ctrl-\ to the job as well.
			if (s == syscall.SIGINT || s == syscall.SIGQUIT) && inForeground() {
				continue
			}
			_ = job.Process.Signal(s) // it may have ended just now
		case <-ended:
			return status(job.ProcessState)
		}
	}
}

// withoutAgent drops what names another agent.
func withoutAgent(env []string) []string {
	var kept []string
	for _, e := range env {
		if !strings.HasPrefix(e, "SSH_AUTH_SOCK=") && !strings.HasPrefix(e, "SSH_AGENT_PID=") {
			kept = append(kept, e)
		}
	}
	return kept
}

// inForeground says whether the terminal sends its signals to this process.
func inForeground() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// status gives the job's exit status as a shell would.
func status(s *os.ProcessState) error {
	if w, ok := s.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return cli.Status(statusSignalBase + int(w.Signal()))
	}
	if s.ExitCode() < 0 {
		return own(fmt.Errorf("the job ended strangely: %v", s))
	}
	return cli.Status(s.ExitCode())
}
