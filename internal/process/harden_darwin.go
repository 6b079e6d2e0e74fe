// SPDX-License-Identifier: BSD-3-Clause

package process

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Harden keeps debuggers of the same user out of our memory and writes no core file. Root still gets in. It is called at
// the start, before there is a secret; a process that is being traced already is ended by the system then
// (PT_DENY_ATTACH, status 45).
//
// The limit of 0 on core files cannot be raised again and is inherited by children; the rest is not.
func Harden() error {
	var errs []error
	if err := unix.PtraceDenyAttach(); err != nil {
		errs = append(errs, fmt.Errorf("PT_DENY_ATTACH: %w", err))
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		errs = append(errs, fmt.Errorf("RLIMIT_CORE: %w", err))
	}
	return errors.Join(errs...)
}

// flagNoAttach is P_LNOATTACH of <sys/proc.h>, which PT_DENY_ATTACH sets.
const flagNoAttach = 0x1000

// Protected says what Harden is to prevent: whether debuggers of the same user can get at our memory, and how
// many bytes a core file may have.
func Protected() (open bool, core uint64, err error) {
	k, err := unix.SysctlKinfoProc("kern.proc.pid", os.Getpid())
	if err != nil {
		return true, 0, fmt.Errorf("kern.proc.pid: %w", err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return true, 0, fmt.Errorf("RLIMIT_CORE: %w", err)
	}
	return k.Proc.P_flag&flagNoAttach == 0, limit.Cur, nil
}
