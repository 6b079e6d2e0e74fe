// SPDX-License-Identifier: BSD-3-Clause

package unixsock

import (
	"errors"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

func newSocket() (int, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return -1, err
	}
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// bind makes the socket file, with 0777 less the umask: fchmod does not work on sockets here.
func bind(fd int, path string) error { return unix.Bind(fd, &unix.SockaddrUnix{Name: path}) }

func bindListen(fd int, path string) (os.FileInfo, error) { return bindApart(fd, path, renameNew) }

// renameNew never replaces a file. File systems that cannot promise it (RENAME_EXCL is for APFS and HFS+) are
// looked at first; nobody but us can write to the directory.
func renameNew(from, to string) error {
	err := unix.RenamexNp(from, to, unix.RENAME_EXCL)
	if !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EINVAL) {
		return err
	}
	if _, err := os.Lstat(to); err == nil {
		return fs.ErrExist
	}
	return os.Rename(from, to)
}
