// SPDX-License-Identifier: BSD-3-Clause

package unixsock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const nobody = 65534

// childSpecial has the commands that need a process of their own.
func childSpecial(verb, arg string) string {
	switch verb {
	case "birth": // mode of the file right after bind, before anything mends it
		fd, err := newSocket()
		if err != nil {
			return err.Error()
		}
		if err := bind(fd, arg); err != nil {
			return err.Error()
		}
		fi, err := os.Lstat(arg)
		if err != nil {
			return err.Error()
		}
		return fmt.Sprintf("%#o", fi.Mode().Perm())
	case "starve":
		return starve(arg)
	case "activated":
		return activate(arg)
	default:
		return "what?"
	}
}

func TestSocketIsBornPrivate(t *testing.T) {
	t.Parallel()
	c := startChild(t, nil)
	c.want("ok", "umask 0")
	c.want("0600", "birth %s", filepath.Join(shortDir(t), "s"))
}

// starve serves at path, uses up all descriptors, connects until there is a complaint, frees them, and answers what is
// said in all. Each connection is accepted at last.
func starve(path string) string {
	said := make(messages, 10)
	l, err := Config{Log: slog.New(said)}.Listen(path)
	if err != nil {
		return err.Error()
	}
	defer l.Close()
	var clients []int // while there are descriptors
	for range 5 {
		fd, err := newSocket()
		if err != nil {
			return err.Error()
		}
		clients = append(clients, fd)
	}
	accepted := make(chan net.Conn, len(clients))
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	limit := unix.Rlimit{Cur: 64, Max: 64}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err.Error()
	}
	connect := func() error {
		client := clients[0]
		clients = clients[1:]
		return unix.Connect(client, &unix.SockaddrUnix{Name: path})
	}
	var used []int
	var all []net.Conn
	first := ""
	for n := 1; first == ""; n++ {
		for {
			fd, err := unix.Dup(0)
			if errors.Is(err, unix.EMFILE) {
				break
			}
			if err != nil {
				return err.Error()
			}
			used = append(used, fd)
		}
		if err := connect(); err != nil {
			return "connect: " + err.Error()
		}
		select {
		case first = <-said:
		case c := <-accepted: // accept(2) takes a descriptor before it looks for a connection, and may have had the last one
			if all = append(all, c); n == 3 {
				return "there were descriptors again and again"
			}
		}
	}
	for _, fd := range used {
		_ = unix.Close(fd)
	}
	if err := connect(); err != nil { // the others may have been accepted before the complaint
		return "connect: " + err.Error()
	}
	second := <-said
	for range cap(accepted) - len(clients) - len(all) {
		all = append(all, <-accepted)
	}
	runtime.KeepAlive(all)
	return first + "; " + second
}

func TestLackOfDescriptorsPasses(t *testing.T) {
	t.Parallel()
	startChild(t, nil).want("cannot accept connections, trying on; accepting connections again",
		"starve %s", filepath.Join(shortDir(t), "s"))
}

func asNobody(cmd *exec.Cmd) {
	// The binary is where nobody may not look; its own link leads to it all the same.
	cmd.Path = "/proc/self/exe"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	cmd.Dir = "/"
}

func TestThreat_T10_OtherUser(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root can play another user")
	}
	dir := shortDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	l := listen(t, quiet, path)
	c := startChild(t, asNobody)
	c.want("permission denied", "connect %s", path)
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	c.want("ok", "connect %s", path)
	p, err := PeerOf(accepted(t, l))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.UID != nobody || p.PID != c.cmd.Process.Pid || !p.Alive() {
		t.Errorf("got %+v", p)
	}
	if err := Allowed(p); !errors.Is(err, ErrPeerUID) {
		t.Errorf("got %v", err)
	}
	// Nor can nobody take the lock and keep us out.
	c.want("permission denied", "listen %s", path)
}

// activated says what Activated has made of sockets, and uses them.
func activated(all []net.Listener, err error) string {
	if err != nil {
		return strings.ReplaceAll(outcome(err), "\n", "; ")
	}
	out := strconv.Itoa(len(all))
	for _, l := range all {
		c, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			return err.Error()
		}
		s, err := l.Accept()
		if err != nil {
			return err.Error()
		}
		flags, err := unix.FcntlInt(3, unix.F_GETFD, 0)
		if err == nil && flags&unix.FD_CLOEXEC == 0 {
			out += " inherited by children"
		}
		_, _, _ = c.Close(), s.Close(), l.Close()
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			return "accept after close"
		}
		if _, err := os.Lstat(l.Addr().String()); err != nil {
			out += " removed"
		}
	}
	return out
}

// passed are descriptors that a service manager may pass.
type passed struct{ listening, overTCP, deaf, datagram *os.File }

func newPassed(t *testing.T) passed {
	t.Helper()
	dir := shortDir(t)
	path := filepath.Join(dir, "s")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	listening, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listening.Close() })
	tcp, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tcp.Close() })
	overTCP, err := tcp.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { overTCP.Close() })
	fd, err := newSocket()
	if err != nil {
		t.Fatal(err)
	}
	deaf := os.NewFile(uintptr(fd), "deaf")
	t.Cleanup(func() { deaf.Close() })
	dg, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	datagram := os.NewFile(uintptr(dg), "datagram")
	t.Cleanup(func() { datagram.Close() })
	return passed{listening, overTCP, deaf, datagram}
}
