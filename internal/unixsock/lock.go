// SPDX-License-Identifier: BSD-3-Clause

package unixsock

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	// lockSuffix is appended to the path of the socket.
	lockSuffix = ".lock"
	// lockAttempts bounds how often a lock file that is deleted while it is being locked is opened again.
	lockAttempts = 10
	// maxLockContent bounds what is read of a lock file: a pid and a line end.
	maxLockContent = 32
)

// acquire opens and locks the lock file of the socket at path. The lock, not the file, says who serves: the
// kernel drops it with the process, however that ends. The file is never unlinked, for somebody may have it open
// and lock a file that has no name any more. The pid in it is for people.
func acquire(path string) (*os.File, error) {
	name := path + lockSuffix
	for range lockAttempts {
		f, err := openLock(name)
		if err != nil {
			return nil, err
		}
		ours, err := tryLock(f, name)
		if err != nil {
			pid := readPID(f)
			_ = f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, &InUseError{Path: path, PID: pid}
			}
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		if ours {
			if err := writePID(f); err != nil {
				_ = f.Close()
				return nil, err
			}
			return f, nil
		}
		_ = f.Close()
	}
	return nil, fmt.Errorf("lock file %s is being deleted again and again", name)
}

// release gives the lock up. The pid goes first, or people would look for a process that has ended. Closing alone
// is not enough: a child that has been forked and not yet executed shares the lock.
func release(f *os.File) error {
	terr := f.Truncate(0)
	uerr := unix.Flock(int(f.Fd()), unix.LOCK_UN)
	return errors.Join(terr, uerr, f.Close())
}

func openLock(name string) (*os.File, error) {
	// O_NONBLOCK: a named pipe there must not hang us.
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	if err != nil {
		if fi, serr := os.Lstat(name); serr == nil && !fi.Mode().IsRegular() {
			return nil, &ObstacleError{Path: name, Mode: fi.Mode(), Want: "lock file"}
		}
		return nil, fmt.Errorf("open lock file: %w", err)
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = &ObstacleError{Path: name, Mode: fi.Mode(), Want: "lock file"}
	}
	// Whoever can open the file can hold the lock.
	if err == nil && fi.Mode().Perm() != 0o600 {
		err = f.Chmod(0o600)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("open lock file: %w", err)
	}
	return f, nil
}

// tryLock answers false when the file has lost its name since it was opened: its lock keeps nobody out.
func tryLock(f *os.File, name string) (bool, error) {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return err == nil && holds(f, name), err
	}
}

// holds says whether the open file is the one that has the name.
func holds(f *os.File, name string) bool {
	open, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Lstat(name)
	return err == nil && os.SameFile(open, named)
}

func writePID(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("write lock file: %w", err)
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return fmt.Errorf("write lock file: %w", err)
	}
	return nil
}

// readPID answers 0 for anything but one decimal number.
func readPID(f *os.File) int {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, maxLockContent))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(string(bytes.TrimSuffix(b, []byte("\n"))))
	if err != nil || pid <= 0 {
		return 0
	}
	return pid
}
