// SPDX-License-Identifier: BSD-3-Clause

package process

import (
	"errors"
	"fmt"

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
