// SPDX-License-Identifier: BSD-3-Clause

package tpmtest

import (
	"os/exec"
	"syscall"
)

// endWithParent lets cmd be killed when the thread that starts it ends, as when a test runs out of time and panics.
func endWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
