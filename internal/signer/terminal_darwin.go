// SPDX-License-Identifier: BSD-3-Clause

package signer

import "golang.org/x/sys/unix"

const (
	// noKey in the place of a key disables it (_POSIX_VDISABLE).
	noKey                = 0xff
	ioctlGetTermios      = unix.TIOCGETA
	ioctlSetTermiosFlush = unix.TIOCSETAF
)
