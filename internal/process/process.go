// SPDX-License-Identifier: BSD-3-Clause

// Package process says which program asks, from its pid, and hardens our own process.
//
// Everything here is read after the fact from processes of the same user, which can be made to look like others
// (ptrace, a wrapper, a replaced file): it tells an owner who asks, it does not stop a program that means harm.
// A pid can be given away between two looks, so the caller checks the peer's life (unixsock.Peer.Alive) after reading.
package process

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

const (
	// maxChain bounds a chain: deeper nesting of shells and tools tells an owner nothing more.
	maxChain = 32
	// siblingPrefix begins the name of every command of the toolkit.
	siblingPrefix = "vmux-"
)

// ErrNoProcess says that there is no process with the pid.
var ErrNoProcess = errors.New("no such process")

// A Process is what the system says about one process. Names are raw: they can hold any byte but zero, and
// are to be cleaned before they are shown.
type Process struct {
	PID     int
	Parent  int // 0 when there is none or it is in another pid namespace
	Session int // pid of the session leader, 0 when it is in another pid namespace

	// Name is the short name of the thread group's leader (15 bytes on Linux, 16 on darwin). The process can choose it.
	Name string
	// Executable is the path of the program, empty when it may not be read (another user's process, a
	// hardened one). On Linux that of a deleted file ends in " (deleted)", which is kept: an upgraded or
	// removed program is worth showing, and the path alone would name another file.
	Executable string
	// Start tells processes with the same pid apart: clock ticks after boot on Linux, microseconds after 1970 on
	// darwin.
	Start uint64
}

// Leads says whether the process leads its session, which completes a chain that it ends.
func (p Process) Leads() bool { return p.PID > 0 && p.PID == p.Session }

// Undeleted gives the path that the file of an Executable had before it was replaced or removed.
func Undeleted(executable string) string { return strings.TrimSuffix(executable, " (deleted)") }

// Chain answers the process, its parent, and so on, up to and including the leader of its session; at most 32. It
// ends earlier where a parent is gone, is in another session (a process between has ended and left its children to a reaper) or is
// younger than its child (the pid was given away); its last one leads the session unless it ended earlier. A reaper of the same
// session is taken for the parent. The error is about the first process only: ErrNoProcess, or what
// the system said, wrapped.
func Chain(pid int) ([]Process, error) { return chain(pid, look) }

func chain(pid int, look func(int) (Process, error)) ([]Process, error) {
	p, err := look(pid)
	if err != nil {
		return nil, err
	}
	all := []Process{p}
	seen := map[int]bool{p.PID: true}
	for len(all) < maxChain && !p.Leads() && p.Parent > 0 && !seen[p.Parent] {
		parent, err := look(p.Parent)
		if err != nil || parent.Session != p.Session || parent.Start > p.Start {
			break
		}
		all = append(all, parent)
		seen[parent.PID] = true
		p = parent
	}
	return all, nil
}

// Executable answers the path of the program that the process runs, in the form of Process.Executable. The error is
// ErrNoProcess, fs.ErrPermission or another one, wrapped.
func Executable(pid int) (string, error) { return executable(pid) }

// WorkingDirectory answers the directory that the process works in, with errors as Executable.
func WorkingDirectory(pid int) (string, error) { return workingDirectory(pid) }

// Sibling says whether the process runs a command of the same installation as self, the path of a program: the
// same file, or a regular file in the same directory whose name begins with "vmux-". Either must belong to us or to root
// and be writable by neither others nor, for the second, be in a directory that is. What cannot be read is no
// sibling, so a hardened client (Harden, with us not root) is none.
//
// It keeps a foreign client, which may be forwarding for a far host, from using requests that are for our own
// commands. It does not hold off a program of the same user that means harm: that can start a sibling and steer it.
//
// The directory may be writable by a group, as those of Homebrew are: who can write there can replace the
// agent itself.
func Sibling(pid int, self string) bool {
	if pid <= 0 || !filepath.IsAbs(self) {
		return false
	}
	path, file, err := image(pid)
	if err != nil || !trusted(file) {
		return false
	}
	if own, err := os.Stat(self); err == nil && os.SameFile(own, file) {
		return true
	}
	dir, err := home(self)
	if err != nil || filepath.Dir(path) != dir || !strings.HasPrefix(filepath.Base(path), siblingPrefix) {
		return false
	}
	// The path is the process's own view; in ours the same file must be there.
	named, err := os.Lstat(path)
	if err != nil || !os.SameFile(named, file) {
		return false
	}
	fi, err := os.Stat(dir)
	return err == nil && fi.Mode()&0o002 == 0
}

// home answers the real directory of self, whose file may have been replaced or deleted since it was started.
func home(self string) (string, error) {
	if real, err := filepath.EvalSymlinks(self); err == nil {
		return filepath.Dir(real), nil
	}
	return filepath.EvalSymlinks(filepath.Dir(self))
}

func trusted(fi fs.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && fi.Mode().IsRegular() && fi.Mode()&0o002 == 0 &&
		(st.Uid == 0 || int(st.Uid) == os.Getuid())
}

// maxAncestors bounds how far Descends looks; no sensible tree of processes is deeper.
const maxAncestors = 256

// Descends says whether the process is root or has root among its ancestors, whatever sessions they are in. Of root, PID and Start
// count, so that another process that was given its pid is not taken for it. A process whose parent has ended
// belongs to a reaper from then on, and descends from nothing that it descended from before. The error is
// about the first process only: ErrNoProcess, or what the system said, wrapped.
//
// The answer is about the process that has the pid while Descends runs; the caller checks afterwards that it is the one that was
// meant (unixsock.Peer.Alive).
func Descends(pid int, root Process) (bool, error) { return descends(pid, root, look) }

func descends(pid int, root Process, look func(int) (Process, error)) (bool, error) {
	p, err := look(pid)
	if err != nil {
		return false, err
	}
	if root.PID <= 0 {
		return false, nil
	}
	first := p
	for range maxAncestors {
		if p.PID == root.PID {
			if p.Start != root.Start {
				return false, nil
			}
			// The chain was read one by one. It was first's if that has not been given away meanwhile.
			again, err := look(pid)
			if err != nil {
				return false, err
			}
			return again.Start == first.Start, nil
		}
		if p.Parent <= 0 {
			break
		}
		parent, err := look(p.Parent)
		if err != nil || parent.Start > p.Start {
			break // gone, or its pid was given away
		}
		p = parent
	}
	return false, nil
}
