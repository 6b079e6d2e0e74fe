// SPDX-License-Identifier: BSD-3-Clause

package session

import "golang.org/x/sys/unix"

// bootClock counts time asleep, which CLOCK_MONOTONIC and with it Go's timers do not.
const bootClock = unix.CLOCK_BOOTTIME
