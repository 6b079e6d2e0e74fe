// SPDX-License-Identifier: BSD-3-Clause

package session

import "golang.org/x/sys/unix"

// bootClock is mach_continuous_time, which counts time asleep (clock_gettime(3)); CLOCK_UPTIME_RAW, and with it Go's
// timers, do not.
const bootClock = unix.CLOCK_MONOTONIC_RAW
