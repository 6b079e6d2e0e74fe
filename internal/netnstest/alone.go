// SPDX-License-Identifier: BSD-3-Clause

package netnstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
)

// run gives the exit status of cmd, whose files are those of this process.
func run(cmd *exec.Cmd) int {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() > 0 {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
