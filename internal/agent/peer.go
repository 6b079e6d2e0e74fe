// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"errors"
	"path/filepath"
	"time"

	"vmux.app/toolkit/internal/process"
	"vmux.app/toolkit/internal/unixsock"
)

// ErrPeerGone says that the process that connected has ended, so nothing can be said about it: its pid may be
// another process's by now.
var ErrPeerGone = errors.New("the process that connected has ended")

// Peer is the process that connected. What its methods read, they read when they are called, so that a listing does
// not pay for it. The zero Peer is one that nothing is known about.
type Peer struct {
	UID uint32
	PID int // 0 when unknown

	sock     unixsock.Peer
	accepted time.Time
	proc     processes
}

// processes is where Peer reads.
type processes struct {
	executable       func(pid int) (string, error)
	chain            func(pid int) ([]process.Process, error)
	workingDirectory func(pid int) (string, error)
	arguments        func(pid int) ([]string, error)
	ours             func(pid int) bool
}

func systemProcesses(self string) processes {
	return processes{
		process.Executable, process.Chain, process.WorkingDirectory, process.Arguments,
		func(pid int) bool { return process.Sibling(pid, self) },
	}
}

// Executable gives the path of the program that the process runs, as process.Executable does.
func (p Peer) Executable() (string, error) { return about(p, p.proc.executable) }

// Chain gives the process and its ancestors up to the session leader, as process.Chain does.
func (p Peer) Chain() ([]process.Process, error) { return about(p, p.proc.chain) }

// WorkingDirectory gives the directory that the process works in.
func (p Peer) WorkingDirectory() (string, error) { return about(p, p.proc.workingDirectory) }

// Arguments gives the command line of the process, as process.Arguments does. It is what the process says about itself.
func (p Peer) Arguments() ([]string, error) { return about(p, p.proc.arguments) }

// about reads something about p's pid, which counts when the pid is still p's afterwards.
func about[T any](p Peer, read func(pid int) (T, error)) (T, error) {
	var none T
	if p.PID <= 0 || read == nil {
		return none, ErrPeerGone
	}
	answer, err := read(p.PID)
	if !p.Alive() {
		return none, ErrPeerGone
	}
	return answer, err
}

// isSSH reports whether the process is known to be ssh, which an upgrade may have replaced on disk.
func (p Peer) isSSH() bool {
	executable, err := p.Executable()
	return err == nil && filepath.Base(process.Undeleted(executable)) == "ssh"
}

// isOurs reports whether the process is known to be one of vmux's commands.
func (p Peer) isOurs() bool {
	ours, err := about(p, func(pid int) (bool, error) { return p.proc.ours(pid), nil })
	return err == nil && ours
}
