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

// Protected says what Harden is to prevent: whether other processes of the same user can get at our memory, and
// how many bytes a core file may have.
func Protected() (open bool, core uint64, err error) {
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		return true, 0, fmt.Errorf("PR_GET_DUMPABLE: %w", err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return true, 0, fmt.Errorf("RLIMIT_CORE: %w", err)
	}
	// 2, suid_dumpable, makes core files for root, and keeps the user out as 0 does (proc(5)).
	return dumpable == 1, limit.Cur, nil
}
