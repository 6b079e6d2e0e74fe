// SPDX-License-Identifier: BSD-3-Clause

//go:build linux && !gnustep

package unixsock

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	// firstActivated is SD_LISTEN_FDS_START of sd_listen_fds(3).
	firstActivated = 3
	// maxActivated bounds how many sockets are taken over; a unit with more is a mistake.
	maxActivated = 16
)

// ClientsStay says that clients of an activated socket go on waiting when this process ends. A unit of systemd can have it
// otherwise (FlushPending=, systemd.socket(5)), and ours do.
const ClientsStay = false

// Activated is Config{}.Activated.
func Activated() ([]net.Listener, error) { return Config{}.Activated() }

// Activated answers the listeners that systemd passed (sd_listen_fds(3): LISTEN_PID, LISTEN_FDS), nil when there
// are none for this process. It takes the variables out of the environment and keeps the descriptors from children, so
// it is called once, early, before any other goroutine starts a process.
//
// Only listening AF_UNIX stream sockets are taken: with any other descriptor the answer is ErrActivation,
// wrapped, and all of them are closed. Their files and modes are systemd's: there is no lock, nothing is ever removed
// or made again, and peers are to be checked with Allowed all the same.
func (c Config) Activated() ([]net.Listener, error) {
	pid, fds := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	for _, name := range []string{"LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if err := os.Unsetenv(name); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrActivation, err)
		}
	}
	if pid == "" || fds == "" || pid != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	n, err := strconv.Atoi(fds)
	if err != nil || n < 0 || n > maxActivated {
		return nil, fmt.Errorf("%w: LISTEN_FDS=%q, want 0 to %d", ErrActivation, fds, maxActivated)
	}
	for fd := firstActivated; fd < firstActivated+n; fd++ {
		unix.CloseOnExec(fd)
	}
	var all []net.Listener
	var errs []error
	for fd := firstActivated; fd < firstActivated+n; fd++ {
		l, err := c.activated(fd)
		if err != nil {
			errs = append(errs, fmt.Errorf("%w: descriptor %d: %w", ErrActivation, fd, err))
			continue
		}
		all = append(all, l)
	}
	if len(errs) > 0 {
		for _, l := range all {
			errs = append(errs, l.Close())
		}
		return nil, errors.Join(errs...)
	}
	return all, nil
}

func (c Config) activated(fd int) (*Listener, error) {
	f := os.NewFile(uintptr(fd), "activated")
	defer func() { _ = f.Close() }() // net.FileListener takes a duplicate
	for _, want := range []struct {
		name       string
		opt, value int
	}{
		{"not a Unix socket", unix.SO_DOMAIN, unix.AF_UNIX},
		{"not a stream socket", unix.SO_TYPE, unix.SOCK_STREAM},
		{"not listening", unix.SO_ACCEPTCONN, 1},
	} {
		got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, want.opt)
		if err != nil {
			return nil, err
		}
		if got != want.value {
			return nil, errors.New(want.name)
		}
	}
	ln, err := fileListener(f)
	if err != nil {
		return nil, err
	}
	l := newListener(c.Log, ln.Addr().String())
	l.mu.Lock()
	l.serveLocked(ln)
	l.mu.Unlock()
	return l, nil
}
