// SPDX-License-Identifier: BSD-3-Clause

package unixsock

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

func peerOf(fd int) (Peer, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return Peer{}, os.NewSyscallError("SO_PEERCRED", err)
	}
	p := Peer{UID: cred.Uid, PID: int(cred.Pid)}
	if p.PID <= 0 {
		return p, nil
	}
	pidfd, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if errors.Is(err, unix.ENOPROTOOPT) {
		pidfd, err = unix.PidfdOpen(p.PID, 0)
	}
	switch {
	case err == nil:
		p.pidfd = os.NewFile(uintptr(pidfd), "pidfd")
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM):
		// No pidfd before Linux 5.3 and in some sandboxes: Alive asks for the pid.
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM):
		return Peer{}, os.NewSyscallError("SO_PEERPIDFD", err)
	default:
		p.gone = true // ESRCH or EINVAL: has been reaped
	}
	return p, nil
}

// running says whether the process has not ended; one that has makes its pidfd readable, also before it is reaped.
func running(pidfd *os.File) bool {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return false
	}
	alive := false
	err = raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			n, perr := unix.Poll(fds, 0)
			if errors.Is(perr, unix.EINTR) {
				continue
			}
			alive = perr == nil && n == 0
			return
		}
	})
	return err == nil && alive
}

// peerPID answers 0 when it is unknown.
func peerPID(fd int) int {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0
	}
	return int(cred.Pid)
}
