// SPDX-License-Identifier: BSD-3-Clause

package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Names in the signer's home.
const (
	fileName = "audit.jsonl"
	newName  = "audit.new" // a file that is being made
	lockName = "audit.lock"
	oldHead  = "audit-"
	oldTail  = ".jsonl"
)

const (
	// lockWait bounds the wait for another process. It writes one line, so that one which takes this long is
	// stopped or stuck.
	lockWait  = 5 * time.Second
	lockRetry = 2 * time.Millisecond
)

// ErrBusy says that another process keeps the log locked.
var ErrBusy = errors.New("the audit log is locked by another process")

// RefusedError says that a file of the log, or its directory, is not what only its owner can have made.
type RefusedError struct {
	Path string
	Mode fs.FileMode // with the type
	UID  uint32      // owner
	Want fs.FileMode // the widest permissions that are accepted
}

// Kind says whether what is wrong is the kind of file.
func (e *RefusedError) Kind() bool {
	if e.Want == dirMode {
		return !e.Mode.IsDir()
	}
	return !e.Mode.IsRegular()
}

func (e *RefusedError) Error() string {
	switch {
	case e.Kind() && e.Want == dirMode:
		return e.Path + " is not a directory"
	case e.Kind():
		return e.Path + " is not a regular file"
	case int(e.UID) != os.Geteuid():
		return fmt.Sprintf("%s belongs to user %d", e.Path, e.UID)
	}
	return fmt.Sprintf("%s is open to others (mode %04o)", e.Path, e.Mode.Perm())
}

// Permissions.
const (
	dirMode  = 0o700
	fileMode = 0o600
)

// check returns a *RefusedError for what is not ours alone.
func check(path string, fi fs.FileInfo, want fs.FileMode) error {
	e := &RefusedError{Path: path, Mode: fi.Mode(), UID: math.MaxUint32, Want: want}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		e.UID = st.Uid
	}
	if e.Kind() || int(e.UID) != os.Geteuid() || e.Mode.Perm()&^want != 0 {
		return e
	}
	return nil
}

func checkDir(dir string) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	return check(dir, fi, dirMode)
}

// open opens a file of the log. It follows no symbolic link and waits for nobody at a named pipe.
func open(path string, flags int) (*os.File, fs.FileInfo, error) {
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, fileMode)
	if err != nil {
		if fi, lerr := os.Lstat(path); lerr == nil {
			if refused := check(path, fi, fileMode); refused != nil {
				return nil, nil, refused
			}
		}
		return nil, nil, err
	}
	fi, err := f.Stat()
	if err == nil {
		err = check(path, fi, fileMode)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, fi, nil
}

// create makes the file that is written to. It gets its name when its mode is right, whatever the umask is, so that no
// other is ever seen. The lock is held.
func create(dir string) (*os.File, fs.FileInfo, error) {
	made := filepath.Join(dir, newName)
	if err := os.Remove(made); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	f, _, err := open(made, os.O_RDWR|os.O_APPEND|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return nil, nil, err
	}
	err = f.Chmod(fileMode)
	if err == nil {
		err = os.Rename(made, filepath.Join(dir, fileName))
	}
	if err == nil {
		err = syncDir(dir)
	}
	var fi fs.FileInfo
	if err == nil {
		fi, err = f.Stat()
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, fi, nil
}

// syncDir makes names in dir last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	// Some file systems cannot sync a directory.
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	return nil
}

// oldName is the name of the file with number n.
func oldName(n int) string { return fmt.Sprintf("%s%06d%s", oldHead, n, oldTail) }

// oldFiles gives the numbers of the files before the present one, in their order.
func oldFiles(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var numbers []int
	for _, e := range entries {
		digits := strings.TrimSuffix(strings.TrimPrefix(e.Name(), oldHead), oldTail)
		if n, err := strconv.Atoi(digits); err == nil && n > 0 && n < math.MaxInt32 && e.Name() == oldName(n) {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

// lock takes the lock, for writing or together with other readers. Readers make no file, so that they can read in a
// directory that they may not write; where there is none nobody has written yet. Error: ErrBusy.
func lock(dir string, write bool) (unlock func(), err error) {
	path := filepath.Join(dir, lockName)
	flags, how := os.O_RDONLY, unix.LOCK_SH
	if write {
		flags, how = os.O_RDWR|os.O_CREATE, unix.LOCK_EX
	}
	for end := time.Now().Add(lockWait); ; time.Sleep(lockRetry) {
		f, fi, err := open(path, flags)
		if errors.Is(err, fs.ErrNotExist) && !write {
			return func() {}, nil
		}
		if err != nil {
			return nil, err
		}
		if write && fi.Mode().Perm() != fileMode { // an odd umask
			if err := f.Chmod(fileMode); err != nil {
				f.Close()
				return nil, err
			}
		}
		err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			// A file that has lost its name keeps nobody out.
			if named, lerr := os.Lstat(path); lerr == nil && os.SameFile(fi, named) {
				return func() {
					// Closing alone would leave the lock to a child that is forked and has not begun its program yet.
					_ = unix.Flock(int(f.Fd()), unix.LOCK_UN)
					f.Close()
				}, nil
			}
		}
		f.Close()
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, &fs.PathError{Op: "lock", Path: path, Err: err}
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("%w (%s)", ErrBusy, path)
		}
	}
}
