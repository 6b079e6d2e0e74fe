// SPDX-License-Identifier: BSD-3-Clause

package netnstest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// The interface has a carrier because the other end of its cable is up, which has no address.
const alone = `set -e
ip link add va type veth peer name vb
ip link set lo up
for i in va vb; do ip link set $i addrgenmode none; ip link set $i up; done
ip addr add 10.86.0.1/24 dev va
ip addr add fe80::a/64 dev va nodad
exec `

// An ordinary user keeps its number, and files their owners as far as the kernel shows them; the right to set up
// the network ends with that.
const rightless = `setpriv --ambient-caps -all --inh-caps -all -- `

// Alone runs cmd, a test binary, where there is no network but lo and va, a cable that leads nowhere, and returns its exit
// status. Where that is not possible cmd runs as it is, after a line that says so; with CI=true in the environment it does not run.
func Alone(cmd *exec.Cmd) int {
	// A process with Pdeathsig dies with the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if out, err := apart(exec.Command("true")).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%sa network without a way out: %v: %s\n", skipMark, err, bytes.TrimSpace(out))
		if os.Getenv("CI") == "true" {
			return 1
		}
	} else {
		apart(cmd)
	}
	return run(cmd)
}

// apart changes cmd to one that sets up its network first.
func apart(cmd *exec.Cmd) *exec.Cmd {
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	script := alone
	if uid, gid := os.Getuid(), os.Getgid(); uid != 0 {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}}
		attr.AmbientCaps = []uintptr{unix.CAP_NET_ADMIN}
		script += rightless
	}
	cmd.SysProcAttr = attr
	cmd.Args = append([]string{"sh", "-c", script + `"$@"`, "sh", cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
	return cmd
}
