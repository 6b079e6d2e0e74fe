// SPDX-License-Identifier: BSD-3-Clause

package cli

import "golang.org/x/sys/unix"

// The ioctls of tcgetattr and tcsetattr; what was typed before is dropped.
const (
	getTermios = unix.TCGETS
	setTermios = unix.TCSETSF
)
