// SPDX-License-Identifier: BSD-3-Clause

package unixsock

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// xucredVersion is XUCRED_VERSION of <sys/ucred.h>.
const xucredVersion = 0

func peerOf(fd int) (Peer, error) {
	cred, err := unix.GetsockoptXucred(fd, unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	if err != nil {
		return Peer{}, os.NewSyscallError("LOCAL_PEERCRED", err)
	}
	if cred.Version != xucredVersion {
		return Peer{}, fmt.Errorf("LOCAL_PEERCRED: version %d is unknown", cred.Version)
	}
	return Peer{UID: cred.Uid, PID: peerPID(fd)}, nil
}

// running is never asked: there are no pidfds.
func running(*os.File) bool { return false }

// peerPID answers 0 when it is unknown.
func peerPID(fd int) int {
	pid, err := unix.GetsockoptInt(fd, unix.SOL_LOCAL, unix.LOCAL_PEERPID)
	if err != nil {
		return 0
	}
	return pid
}
