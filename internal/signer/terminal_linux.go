// SPDX-License-Identifier: BSD-3-Clause

package signer

import "golang.org/x/sys/unix"

const (
	// noKey in the place of a key disables it (_POSIX_VDISABLE).
	noKey                = 0
	ioctlGetTermios      = unix.TCGETS
	ioctlSetTermiosFlush = unix.TCSETSF
)

// endingKeys would end or stop the signer at a question, and leave the terminal to
// its shell as it is then.
var endingKeys = [...]int{unix.VQUIT, unix.VSUSP}
