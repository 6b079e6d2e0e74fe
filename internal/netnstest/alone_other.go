// SPDX-License-Identifier: BSD-3-Clause

//go:build !linux

package netnstest

import "os/exec"

// Alone runs cmd, a test binary, and returns its exit status. Only on Linux has it a network of its own.
func Alone(cmd *exec.Cmd) int { return run(cmd) }
