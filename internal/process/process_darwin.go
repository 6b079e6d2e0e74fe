// SPDX-License-Identifier: BSD-3-Clause

package process

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// proc_info(2) as libproc calls it, from <sys/proc_info.h>. The kernel answers from the process's vnodes;
// kern.procargs2 would answer from memory that the process can write.
const (
	procInfoCallPIDInfo   = 2
	procPIDVnodePathInfo  = 9
	procPIDPathInfo       = 11
	procPIDPathInfoSize   = 4096 // PROC_PIDPATHINFO_MAXSIZE
	vnodeInfoSize         = 152  // struct vnode_info
	maxPathLen            = 1024 // MAXPATHLEN
	procVnodePathInfoSize = 2 * (vnodeInfoSize + maxPathLen)
)

func failure(pid int, err error) error {
	if errors.Is(err, unix.ESRCH) {
		err = ErrNoProcess
	}
	return fmt.Errorf("process %d: %w", pid, err)
}

func look(pid int) (Process, error) {
	if pid <= 0 {
		return Process{}, failure(pid, unix.ESRCH)
	}
	k, err := unix.SysctlKinfoProc("kern.proc.pid", pid)
	if errors.Is(err, unix.EIO) { // empty answer
		err = unix.ESRCH
	}
	if err != nil {
		return Process{}, failure(pid, err)
	}
	if int(k.Proc.P_pid) != pid {
		return Process{}, failure(pid, unix.ESRCH)
	}
	session, err := unix.Getsid(pid)
	if err != nil {
		return Process{}, failure(pid, err)
	}
	start := k.Proc.P_starttime
	p := Process{
		PID:     pid,
		Parent:  max(0, int(k.Eproc.Ppid)),
		Session: session,
		Name:    text(k.Proc.P_comm[:]),
		Start:   uint64(start.Sec)*1_000_000 + uint64(start.Usec),
	}
	if exe, err := executable(pid); err == nil {
		p.Executable = exe
	}
	return p, nil
}

// text ends at the first zero byte.
func text(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

func procInfo(pid, flavour int, buf []byte) (int, error) {
	if pid <= 0 {
		return 0, failure(pid, unix.ESRCH)
	}
	n, _, errno := unix.Syscall6(unix.SYS_PROC_INFO, procInfoCallPIDInfo, uintptr(pid), uintptr(flavour), 0,
		uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)))
	runtime.KeepAlive(buf)
	if errno != 0 {
		return 0, failure(pid, errno)
	}
	return int(n), nil
}

func executable(pid int) (string, error) {
	buf := make([]byte, procPIDPathInfoSize)
	if _, err := procInfo(pid, procPIDPathInfo, buf); err != nil {
		return "", err
	}
	path := text(buf)
	if path == "" {
		return "", failure(pid, unix.ENOENT)
	}
	return path, nil
}

func workingDirectory(pid int) (string, error) {
	buf := make([]byte, procVnodePathInfoSize)
	n, err := procInfo(pid, procPIDVnodePathInfo, buf)
	if err != nil {
		return "", err
	}
	if n != len(buf) {
		return "", failure(pid, errors.ErrUnsupported)
	}
	path := text(buf[vnodeInfoSize : vnodeInfoSize+maxPathLen])
	if path == "" {
		return "", failure(pid, unix.ENOENT)
	}
	return path, nil
}

func arguments(pid int) ([]string, error) {
	if pid <= 0 {
		return nil, failure(pid, unix.ESRCH)
	}
	b, err := unix.SysctlRaw("kern.procargs2", pid) // the kernel gives at most ARG_MAX, 1 MiB
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EIO) {
		// What the kernel says of a process that has ended, and of another user's.
		if _, gone := unix.Getsid(pid); gone != nil {
			return nil, failure(pid, gone)
		}
		err = unix.EPERM
	}
	if err != nil {
		return nil, failure(pid, err)
	}
	args, err := parseProcArgs(b)
	if err != nil {
		return nil, failure(pid, err)
	}
	return args, nil
}

// image answers the path of the program and the file that has it now.
func image(pid int) (string, fs.FileInfo, error) {
	path, err := executable(pid)
	if err != nil {
		return "", nil, err
	}
	fi, err := os.Lstat(path)
	if err != nil {
		return "", nil, failure(pid, err)
	}
	return path, fi, nil
}
