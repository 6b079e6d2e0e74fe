// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// asThread runs f on a thread of its own with the rights that h's commands have.
// Only that thread has them, and it ends with f.
func (h *host) asThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with this goroutine
		if unix.Gettid() == os.Getpid() {
			// The first thread never ends. While it is held here, another one does it.
			defer runtime.UnlockOSThread()
			done <- h.asThread(f)
			return
		}
		done <- func() error {
			if h.cred == nil {
				return f()
			}
			uid, gid := h.cred.Uid, h.cred.Gid
			for _, c := range [][3]uintptr{{unix.SYS_SETGROUPS, 0, 0}, {unix.SYS_SETRESGID, uintptr(gid), uintptr(gid)}, {unix.SYS_SETRESUID, uintptr(uid), uintptr(uid)}} {
				if _, _, e := unix.RawSyscall(c[0], c[1], c[2], c[2]); e != 0 {
					return fmt.Errorf("another user's rights: %w", e)
				}
			}
			return f()
		}()
	}()
	return <-done
}

// peek tries every way to another process's memory, and says which are open.
func peek(pid int, address uintptr) (open []string, err error) {
	look := func(what string, e error) {
		switch {
		case e == nil:
			open = append(open, what)
		case !errors.Is(e, unix.EPERM) && !errors.Is(e, unix.EACCES):
			err = errors.Join(err, fmt.Errorf("%s: %w", what, e))
		}
	}
	for _, name := range []string{"mem", "environ", "maps"} {
		f, e := os.Open(fmt.Sprintf("/proc/%d/%s", pid, name))
		if e == nil {
			f.Close()
		}
		look(name, e)
	}
	buf := make([]byte, 1)
	_, e := unix.ProcessVMReadv(pid, []unix.Iovec{{Base: &buf[0], Len: 1}}, []unix.RemoteIovec{{Base: address, Len: 1}}, 0)
	if errors.Is(e, unix.EFAULT) {
		e = nil // it was looked for
	}
	look("process_vm_readv", e)
	const seize, interrupt, detach = 0x4206, 0x4207, 17 // ptrace(2)
	ptrace := func(request uintptr) error {
		if _, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, request, uintptr(pid), 0, 0, 0, 0); errno != 0 {
			return errno
		}
		return nil
	}
	if e = ptrace(seize); e == nil {
		e = ptrace(interrupt)
		if _, we := unix.Wait4(pid, nil, unix.WALL, nil); e == nil {
			e = we
		}
		e = errors.Join(e, ptrace(detach))
	}
	look("ptrace", e)
	return open, err
}

var noCore = regexp.MustCompile(`(?m)^Max core file size +0 +0 `)

// T01: other processes of the same user do not get at the memory of the agent,
// nor of the signer, and neither leaves a core file.
func TestThreat_T01_MemoryIsClosed(t *testing.T) {
	t.Parallel()
	d, p := newHost(t), &phone{host: newHost(t)}
	d.notRoot()
	p.notRoot()
	p.ok("vmux-signer", "init", "--no-passphrase", "--name", "Pocket")
	p.serve("--approve", "always")
	pair(t, d, p)
	d.setenv("GOTRACEBACK", "crash") // so that it would leave a core file
	d.serving = d.spawn("sh", "-c", "ulimit -c $(ulimit -H -c); exec vmux-agent")
	d.serving.wait(`msg=serving`)
	d.ok("ssh-add", "-l")

	control := d.spawn("sleep", "60") // a process that is not closed
	try := func(pid int) []string {
		t.Helper()
		var open []string
		err := d.asThread(func() (err error) {
			open, err = peek(pid, 0x1000)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return open
	}
	if open := strings.Join(try(control.cmd.Process.Pid), " "); open != "mem environ maps process_vm_readv ptrace" {
		if os.Getenv("CI") == "true" {
			t.Fatalf("this system lets a process of the same user use %q only", open)
		}
		t.Skipf("this system lets a process of the same user use %q only", open)
	}
	users, err := os.Stat(fmt.Sprintf("/proc/%d/maps", control.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for name, of := range map[string]*process{"agent": d.serving, "signer": p.serving} {
		if open := try(of.cmd.Process.Pid); len(open) > 0 {
			t.Errorf("the %s is open to %q", name, open)
		}
		limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", of.cmd.Process.Pid))
		if err != nil || !noCore.Match(limits) {
			t.Errorf("the %s may leave a core file (%v):\n%s", name, err, limits)
		}
		// Not dumpable: what the kernel knows of it belongs to root (proc(5)), and not to the user as with others.
		fi, err := os.Stat(fmt.Sprintf("/proc/%d/maps", of.cmd.Process.Pid))
		if err != nil || fi.Sys().(*syscall.Stat_t).Uid == users.Sys().(*syscall.Stat_t).Uid {
			t.Errorf("the %s is dumpable (%v)", name, err)
		}
	}
	if r := d.run("ssh-add", "-l"); r.exit != 0 {
		t.Errorf("the agent was disturbed: %v", r)
	}
	// Killed by a signal that dumps, it leaves nothing.
	before := tree(t, d.home)
	d.serving.stop(syscall.SIGABRT)
	for name := range tree(t, d.home) {
		if _, ok := before[name]; !ok {
			t.Errorf("the agent left %s", name)
		}
	}
}
