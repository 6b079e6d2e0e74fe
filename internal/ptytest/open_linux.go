// SPDX-License-Identifier: BSD-3-Clause

package ptytest

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func open(t testing.TB) (control, tty *os.File) {
	t.Helper()
	// Without blocking, so that Close ends a Read.
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("no pseudo terminal: %v", err)
	}
	control = os.NewFile(uintptr(fd), "/dev/ptmx")
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		tty, err = openTTY(fmt.Sprintf("/dev/pts/%d", n))
	}
	if err != nil {
		control.Close()
		t.Skipf("no pseudo terminal: %v", err)
	}
	return control, tty
}

// openTTY opens as a shell hands it down, blocking, which os.OpenFile does not.
func openTTY(name string) (*os.File, error) {
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}
