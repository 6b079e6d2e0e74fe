// SPDX-License-Identifier: BSD-3-Clause

//go:build (darwin || gnustep) && !cgo

package unixsock

// launchdSockets is nil: only C can ask launchd.
func launchdSockets(string) ([]int, error) { return nil, nil }
