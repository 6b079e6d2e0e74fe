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

// bindListen relies on unix_bind: the file gets the mode of the socket's own inode less the umask, so that it
// is born with 0600 or less under any umask, and no umask of the process has to be changed.
func bindListen(fd int, path string) (os.FileInfo, error) {
	if err := unix.Fchmod(fd, uint32(socketMode)); err != nil {
		return nil, fmt.Errorf("socket mode: %w", err)
	}
	return bindMode(fd, path)
}
