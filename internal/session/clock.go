// SPDX-License-Identifier: BSD-3-Clause

package session

import (
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// Clock tells the time in the two ways that bound a certificate.
type Clock interface {
	Wall() time.Time     // can be set, by its owner or the network
	Boot() time.Duration // since a fixed moment, time asleep included; nobody sets it
}

// System is the computer's clock.
type System struct{}

// Wall gives the wall clock's time, without Go's monotonic reading, which would stand for it in comparisons.
func (System) Wall() time.Time { return time.Now().Round(0) }

// Boot gives the time since boot. If there were no such clock, all certificates would be over.
func (System) Boot() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(bootClock, &t); err != nil {
		return math.MaxInt64
	}
	return time.Duration(t.Nano())
}
