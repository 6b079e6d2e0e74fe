// SPDX-License-Identifier: BSD-3-Clause

package process

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	// maxStat bounds /proc/PID/stat: 52 numbers of at most 20 digits and a name of at most 64 bytes.
	maxStat = 4096
	// maxLink is more than the page that a link in /proc can fill.
	maxLink = 8192
	// Fields of /proc/PID/stat after the name, counted from the state (proc_pid_stat(5), field 3).
	fieldParent  = 1
	fieldSession = 3
	fieldStart   = 19
)

// A directory is /proc/PID held open: it stays that of one process and fails when that one has ended, whoever
// gets the pid.
type directory struct {
	fd  int
	pid int
}

func open(pid int) (directory, error) {
	if pid <= 0 {
		return directory{}, fmt.Errorf("process %d: %w", pid, ErrNoProcess)
	}
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return directory{}, failure(pid, err)
	}
	return directory{fd: fd, pid: pid}, nil
}

func (d directory) close() { _ = unix.Close(d.fd) }

func failure(pid int, err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		err = ErrNoProcess
	}
	return fmt.Errorf("process %d: %w", pid, err)
}

func (d directory) link(name string) (string, error) {
	buf := make([]byte, maxLink)
	n, err := unix.Readlinkat(d.fd, name, buf)
	if err != nil {
		return "", failure(d.pid, err)
	}
	if n == len(buf) {
		return "", failure(d.pid, unix.ENAMETOOLONG)
	}
	return string(buf[:n]), nil
}

// read gives at most the given number of bytes of a file.
func (d directory) read(name string, most int64) ([]byte, error) {
	fd, err := unix.Openat(d.fd, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, failure(d.pid, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return nil, failure(d.pid, err)
	}
	return b, nil
}

func look(pid int) (Process, error) {
	d, err := open(pid)
	if err != nil {
		return Process{}, err
	}
	defer d.close()
	b, err := d.read("stat", maxStat)
	if err != nil {
		return Process{}, err
	}
	p, err := parseStat(b)
	if err != nil {
		return Process{}, failure(pid, err)
	}
	if p.PID != pid {
		return Process{}, failure(pid, fmt.Errorf("/proc is of another pid namespace (says %d)", p.PID))
	}
	if exe, err := d.link("exe"); err == nil {
		p.Executable = exe
	}
	return p, nil
}

var errStat = errors.New("malformed stat line")

// parseStat reads "PID (NAME) STATE PARENT GROUP SESSION …". The name can hold blanks and parentheses; nothing after
// it can, so it ends at the last one.
func parseStat(b []byte) (Process, error) {
	first, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if first < 0 || end < first {
		return Process{}, errStat
	}
	fields := bytes.Fields(b[end+1:])
	if len(fields) <= fieldStart {
		return Process{}, errStat
	}
	var errs [4]error
	p := Process{Name: string(b[first+1 : end])}
	p.PID, errs[0] = strconv.Atoi(string(bytes.TrimSpace(b[:first])))
	p.Parent, errs[1] = strconv.Atoi(string(fields[fieldParent]))
	p.Session, errs[2] = strconv.Atoi(string(fields[fieldSession]))
	p.Start, errs[3] = strconv.ParseUint(string(fields[fieldStart]), 10, 64)
	if errors.Join(errs[:]...) != nil || p.PID <= 0 || p.Parent < 0 || p.Session < 0 {
		return Process{}, errStat
	}
	return p, nil
}

func executable(pid int) (string, error) {
	d, err := open(pid)
	if err != nil {
		return "", err
	}
	defer d.close()
	return d.link("exe")
}

func workingDirectory(pid int) (string, error) {
	d, err := open(pid)
	if err != nil {
		return "", err
	}
	defer d.close()
	return d.link("cwd")
}

func arguments(pid int) ([]string, error) {
	d, err := open(pid)
	if err != nil {
		return nil, err
	}
	defer d.close()
	b, err := d.read("cmdline", maxArguments+1)
	if err != nil {
		return nil, err
	}
	return split(b, -1), nil
}

// image answers the path of the program and its file, taken from the running process, not from the path.
func image(pid int) (string, fs.FileInfo, error) {
	d, err := open(pid)
	if err != nil {
		return "", nil, err
	}
	defer d.close()
	path, err := d.link("exe")
	if err != nil {
		return "", nil, err
	}
	fd, err := unix.Openat(d.fd, "exe", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, failure(pid, err)
	}
	f := os.NewFile(uintptr(fd), "exe")
	defer func() { _ = f.Close() }()
	fi, err := f.Stat()
	if err != nil {
		return "", nil, failure(pid, err)
	}
	return path, fi, nil
}
