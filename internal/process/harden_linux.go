// SPDX-License-Identifier: BSD-3-Clause

package process

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Harden keeps other processes of the same user out of our memory: no ptrace, no /proc/PID/mem, no core file. Root
// still gets in. It is called at the start, before there is a secret.
//
// Afterwards /proc/PID/exe of this process is unreadable for others of the same user, so it is no Sibling to them. The
// limit of 0 on core files cannot be raised again and is inherited by children; the rest is not.
func Harden() error {
	var errs []error
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		errs = append(errs, fmt.Errorf("PR_SET_DUMPABLE: %w", err))
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		errs = append(errs, fmt.Errorf("RLIMIT_CORE: %w", err))
	}
	return errors.Join(errs...)
}
