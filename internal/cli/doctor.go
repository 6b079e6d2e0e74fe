// SPDX-License-Identifier: BSD-3-Clause

package cli

import (
	"fmt"
	"os"

	"vmux.app/toolkit/internal/doctor"
	"vmux.app/toolkit/internal/unixsock"
)

// doctorAdvice is the part of the table about what only vmux-doctor finds. Its statuses are of no use: vmux-doctor
// has its own.
func doctorAdvice() []row {
	return []row{
		is(doctor.ErrCheck, ExitFailed, "run it again; if it happens again, report it with this output"),
		as(ExitFailed, func(e *unixsock.OpenError) string {
			if int(e.Owner) != os.Geteuid() {
				return "choose a path of your own, as in --socket ~/.ssh/vmux-agent.sock"
			}
			return "chmod 600 " + quote(e.Path)
		}),
		as(ExitFailed, func(e *doctor.SilentError) string {
			return fmt.Sprintf("look whether it is stopped, then end it: ps -o pid,stat,args -p %d; kill %d", e.PID, e.PID)
		}),
		is(doctor.ErrSilent, ExitFailed, "look for a stopped one, end it and start it again: ps -u $USER | grep vmux-agent"),
		is(doctor.ErrLocked, ExitFailed, "ssh-add -X"),
		as(ExitFailed, func(e *doctor.VersionError) string {
			return fmt.Sprintf("end it and start it again: kill %d; vmux-agent", e.PID)
		}),
		as(ExitFailed, func(e *doctor.LockError) string {
			if e.PID > 0 {
				return fmt.Sprintf("look what it is, then end it: ps -p %d; kill %d", e.PID, e.PID)
			}
			return "find out who has it open, and end it: lsof " + quote(e.Path)
		}),
		as(ExitUsage, func(e *doctor.AuthSockError) string {
			return "export SSH_AUTH_SOCK=" + quote(e.Socket) + ", also in the shell's start-up file; see: vmux-doctor --setup"
		}),
	}
}
