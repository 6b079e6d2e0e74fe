// SPDX-License-Identifier: BSD-3-Clause

package unixsock

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

func newSocket() (int, error) {
	return unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
}

// bind makes the socket file. The kernel gives it the mode of the socket's own inode less the umask (unix_bind_bsd),
// so it is born with 0600 or less under any umask, and the umask of the process is left alone.
func bind(fd int, path string) error {
	if err := unix.Fchmod(fd, uint32(socketMode)); err != nil {
		return fmt.Errorf("socket mode: %w", err)
	}
	return unix.Bind(fd, &unix.SockaddrUnix{Name: path})
}

func bindListen(fd int, path string) (os.FileInfo, error) { return bindMode(fd, path) }
