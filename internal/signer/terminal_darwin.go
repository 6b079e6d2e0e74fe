// SPDX-License-Identifier: BSD-3-Clause

package signer

import "golang.org/x/sys/unix"

const (
	// noKey in the place of a key disables it (_POSIX_VDISABLE).
	noKey                = 0xff
	ioctlGetTermios      = unix.TIOCGETA
	ioctlSetTermiosFlush = unix.TIOCSETAF
)

// endingKeys would end or stop the signer at a question, and leave the terminal to
// its shell as it is then.
var endingKeys = [...]int{unix.VQUIT, unix.VSUSP, unix.VDSUSP}
