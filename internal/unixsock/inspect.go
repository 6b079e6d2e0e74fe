// SPDX-License-Identifier: BSD-3-Clause

package unixsock

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// An OpenError names a socket that others could connect to, or that belongs to somebody else.
type OpenError struct {
	Path  string
	Mode  fs.FileMode
	Owner uint32
}

func (e *OpenError) Error() string {
	if e.Owner != ownUID() {
		return fmt.Sprintf("socket %s belongs to uid %d", e.Path, e.Owner)
	}
	return fmt.Sprintf("socket %s is open to others (mode %#o)", e.Path, e.Mode.Perm())
}

// Inspect looks at the socket at path and its directory, and changes nothing. The error is the first thing that is wrong:
// *PathTooLongError, *DirError, fs.ErrNotExist, *ObstacleError, *OpenError.
func Inspect(path string) error {
	path, err := resolve(path)
	if err != nil {
		return err
	}
	if err := checkDir(filepath.Dir(path)); err != nil {
		return err
	}
	fi, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if fi.Mode()&fs.ModeSocket == 0 {
		return &ObstacleError{Path: path, Mode: fi.Mode(), Want: "socket"}
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("socket %s: owner unknown", path)
	}
	if st.Uid != ownUID() || fi.Mode().Perm()&^socketMode != 0 {
		return &OpenError{Path: path, Mode: fi.Mode(), Owner: st.Uid}
	}
	return nil
}

// A Lock is what is to be seen of a socket's lock file.
type Lock struct {
	Path string
	PID  int  // of who locked it last, as the file says; 0 if it says none
	Held bool // somebody holds the lock now
}

// InspectLock looks at the lock file of the socket at path. To see whether it is held, it takes a shared lock and
// gives it back at once; an agent that starts within these microseconds takes the socket for served. Errors:
// fs.ErrNotExist, *ObstacleError.
func InspectLock(path string) (Lock, error) {
	l := Lock{Path: path + lockSuffix}
	f, err := os.OpenFile(l.Path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	fi, serr := os.Lstat(l.Path)
	if serr == nil && !fi.Mode().IsRegular() {
		err = errors.Join(err, &ObstacleError{Path: l.Path, Mode: fi.Mode(), Want: "lock file"})
	}
	if err != nil {
		if f != nil {
			_ = f.Close()
		}
		return l, fmt.Errorf("lock file: %w", err)
	}
	defer func() { _ = f.Close() }()
	l.PID = readPID(f)
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		l.Held = true
		return l, nil
	case err != nil:
		return l, fmt.Errorf("lock file: %w", err)
	}
	// Closing alone would leave it to a child that is forked and has not begun its program yet.
	return l, unix.Flock(int(f.Fd()), unix.LOCK_UN)
}

// Server answers the pid of who serves the socket at path, 0 when that is unknown. The error is of the connection.
func Server(path string) (int, error) { return connects(path) }
