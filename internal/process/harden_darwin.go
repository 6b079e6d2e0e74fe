// SPDX-License-Identifier: BSD-3-Clause

package process

import (
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// denied says that debuggers were denied, which nothing takes back. The kernel does not tell: P_LNOATTACH is one of a process's p_lflag,
// and what kern.proc.pid gives is p_flag (xnu, fill_user64_externproc), where the same bit means P_DISABLE_ASLR.
var denied atomic.Bool

// Harden keeps debuggers of the same user out of our memory and writes no core file. Root still gets in. It is called at
// the start, before there is a secret; a process that is being traced already is ended by the system then
// (PT_DENY_ATTACH, status 45).
//
// The limit of 0 on core files cannot be raised again and is inherited by children; the rest is not.
func Harden() error {
	var errs []error
	if err := unix.PtraceDenyAttach(); err != nil {
		errs = append(errs, fmt.Errorf("PT_DENY_ATTACH: %w", err))
	} else {
		denied.Store(true)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		errs = append(errs, fmt.Errorf("RLIMIT_CORE: %w", err))
	}
	return errors.Join(errs...)
}

// Protected says what Harden is to prevent: whether debuggers of the same user can get at our memory, and how
// many bytes a core file may have. The former is what Harden has come to, in this process.
func Protected() (open bool, core uint64, err error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return true, 0, fmt.Errorf("RLIMIT_CORE: %w", err)
	}
	return !denied.Load(), limit.Cur, nil
}
