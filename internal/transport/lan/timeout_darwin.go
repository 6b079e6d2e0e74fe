// SPDX-License-Identifier: BSD-3-Clause

package lan

import (
	"time"

	"golang.org/x/sys/unix"
)

// setUserTimeout bounds what a peer leaves unacknowledged. TCP_RXT_CONNDROPTIME
// is macOS's counterpart of TCP_USER_TIMEOUT, in seconds.
func setUserTimeout(fd int, d time.Duration) error {
	return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_RXT_CONNDROPTIME, int(d.Seconds()))
}
