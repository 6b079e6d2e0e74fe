// SPDX-License-Identifier: BSD-3-Clause

//go:build (darwin || gnustep) && cgo

package cli

import "vmux.app/toolkit/internal/cocoa"

// onMain leaves the main thread to Apple's frameworks, for commands that use them.
func onMain(program func() int) int { return cocoa.Main(program) }
