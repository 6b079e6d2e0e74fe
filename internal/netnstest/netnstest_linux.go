// SPDX-License-Identifier: BSD-3-Clause

package netnstest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inside names in its value the test that is to run in this process, which is
// in namespace A.
const inside = "VMUX_NETNSTEST"

// skipMark begins the line by which the inner process says that it cannot.
const skipMark = "netnstest: not possible here: "

// A Net is two hosts and the cable.
type Net struct {
	A *Namespace // where the test itself runs
	B *Namespace
}

// A Namespace is one host. It has lo and one more interface, both up.
type Namespace struct {
	Name      string // "A" or "B"
	Interface string // "va" or "vb"
	// IPv4 is 10.86.0.1 or 10.86.0.2, in a /24.
	IPv4 netip.Addr
	// LinkLocal is fe80::a or fe80::b without a zone, at once usable. As seen
	// from here it is reached with the zone of one's own interface.
	LinkLocal netip.Addr
	file      *os.File // nil for A
}

// Run runs f in namespace A and reports its result as that of t, which may be a
// subtest but not one whose parents do something of their own before it. In the
// calling process f never runs.
func Run(t *testing.T, f func(t *testing.T, n *Net)) {
	t.Helper()
	if os.Getenv(inside) == t.Name() {
		n, err := setup(t)
		if err != nil {
			t.Skip(skipMark + err.Error())
		}
		f(t, n)
		return
	}
	if err := again(t); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(skipMark, err)
		}
		t.Skip(skipMark, err)
	}
}

// again runs the test once more in a new namespace. Its error is the reason why
// that is not possible.
func again(t *testing.T) error {
	t.Helper()
	if _, err := exec.LookPath("ip"); err != nil {
		return fmt.Errorf("%w (package iproute2)", err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	parts := strings.Split(t.Name(), "/")
	for i, p := range parts {
		parts[i] = "^" + regexp.QuoteMeta(p) + "$"
	}
	args := []string{"-test.run=" + strings.Join(parts, "/"), "-test.v", "-test.count=1"}
	if end, ok := t.Deadline(); ok {
		args = append(args, "-test.timeout="+time.Until(end).String())
	}
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(os.Environ(), inside+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if uid := os.Getuid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return err // clone was refused
	}
	err = cmd.Wait()
	if _, reason, ok := strings.Cut(out.String(), skipMark); ok {
		reason, _, _ = strings.Cut(reason, "\n")
		return errors.New(reason)
	}
	t.Logf("in namespaces:\n%s", out.Bytes())
	switch {
	case err != nil:
		t.Fatalf("in namespaces: %v", err)
	case bytes.Contains(out.Bytes(), []byte("--- SKIP: "+t.Name())):
		t.Skip("skipped in namespaces, see the log")
	case !bytes.Contains(out.Bytes(), []byte("--- PASS: "+t.Name())):
		t.Fatal("the test did not run in namespaces")
	}
	return nil
}

// setup makes B and the cable. Addresses are given and not made, and not probed
// for, so that they work at once.
func setup(t *testing.T) (*Net, error) {
	holder, err := hold(t)
	if err != nil {
		return nil, fmt.Errorf("making a namespace: %w", err)
	}
	file, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", holder))
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { file.Close() })
	n := &Net{
		A: &Namespace{Name: "A", Interface: "va", IPv4: netip.MustParseAddr("10.86.0.1"), LinkLocal: netip.MustParseAddr("fe80::a")},
		B: &Namespace{Name: "B", Interface: "vb", IPv4: netip.MustParseAddr("10.86.0.2"), LinkLocal: netip.MustParseAddr("fe80::b"), file: file},
	}
	err = n.A.IP("link", "add", n.A.Interface, "type", "veth", "peer", "name", n.B.Interface, "netns", fmt.Sprint(holder))
	for _, ns := range []*Namespace{n.A, n.B} {
		err = errors.Join(err,
			ns.IP("link", "set", "lo", "up"),
			ns.IP("link", "set", ns.Interface, "addrgenmode", "none"),
			ns.IP("link", "set", ns.Interface, "up"),
			ns.IP("addr", "add", ns.IPv4.String()+"/24", "dev", ns.Interface),
			ns.IP("addr", "add", ns.LinkLocal.String()+"/64", "dev", ns.Interface, "nodad"),
		)
	}
	if err != nil {
		return nil, err
	}
	return n, n.A.up()
}

// hold starts a process in a new namespace and returns its pid. It is cat, which
// ends when this process has closed its input, or has died.
func hold(t *testing.T) (int, error) {
	cmd := exec.Command("cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	return cmd.Process.Pid, nil
}

// up waits until the interface has a carrier; it takes the kernel a moment after
// both ends are up.
func (ns *Namespace) up() error {
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); runtime.Gosched() {
		ifi, err := net.InterfaceByName(ns.Interface)
		if err != nil {
			return err
		}
		if ifi.Flags&net.FlagRunning != 0 {
			return nil
		}
	}
	return errors.New("the cable does not come up")
}

// Do runs f on a thread that is in ns. Sockets that f opens stay there; what f
// starts with go does not.
func (ns *Namespace) Do(f func() error) error {
	if ns.file == nil {
		return f()
	}
	done := make(chan error)
	go func() {
		// Never unlocked, so the thread ends with the goroutine and nothing
		// else ever runs on it.
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("entering namespace %s: %w", ns.Name, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// Start starts cmd in ns; everything else of cmd is used as always. A process is
// forked from the calling thread, so it is where that is. cmd.SysProcAttr must
// not have Pdeathsig, which would strike when that thread ends; to end with the
// test use exec.CommandContext and t.Context, and Wait in a cleanup.
func (ns *Namespace) Start(cmd *exec.Cmd) error { return ns.Do(cmd.Start) }

// Run starts cmd in ns and waits for it.
func (ns *Namespace) Run(cmd *exec.Cmd) error {
	if err := ns.Start(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}

// IP runs the ip command in ns, for example to take the cable out with
// IP("link", "set", ns.Interface, "down"). The error has what ip said.
func (ns *Namespace) IP(args ...string) error {
	cmd := exec.Command("ip", args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = io.Discard, &out
	if err := ns.Run(cmd); err != nil {
		return fmt.Errorf("in namespace %s: ip %s: %w: %s", ns.Name, strings.Join(args, " "), err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}
