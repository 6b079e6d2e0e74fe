// SPDX-License-Identifier: BSD-3-Clause

//go:build darwin || gnustep

package unixsock

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// launchdName is what the sockets are called in the launchd agent's property list.
const launchdName = "Listeners"

// ClientsStay says that clients of an activated socket go on waiting when this process ends: launchd keeps the socket open, for the
// process that it starts next.
const ClientsStay = true

// Activated is Config{}.Activated.
func Activated() ([]net.Listener, error) { return Config{}.Activated() }

// Activated answers the listeners that launchd passed under the name Listeners (launchd.plist(5), launch_activate_socket(3)),
// nil when launchd did not start this process or has no such sockets for it, and always without cgo. It is called once.
//
// Only AF_UNIX stream sockets that listen, or are bound and do now, are taken: with any other descriptor the answer is ErrActivation,
// wrapped, and all of them are closed. Their files and modes are launchd's: there is no lock, nothing is ever removed
// or made again, and peers are to be checked with Allowed all the same.
func (c Config) Activated() ([]net.Listener, error) {
	fds, err := launchdSockets(launchdName)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrActivation, err)
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	var all []net.Listener
	var errs []error
	for _, fd := range fds {
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
	name, err := unix.Getsockname(fd)
	if err != nil {
		return nil, err
	}
	if _, ok := name.(*unix.SockaddrUnix); !ok {
		return nil, errors.New("not a Unix socket")
	}
	if got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || got != unix.SOCK_STREAM {
		return nil, errors.Join(errors.New("not a stream socket"), err)
	}
	// macOS does not say whether a socket listens: its getsockopt refuses SO_ACCEPTCONN (xnu, sogetoptlock). One that
	// does is none the worse for being told again, and one that cannot says so.
	if err := unix.Listen(fd, unix.SOMAXCONN); err != nil {
		return nil, fmt.Errorf("cannot listen: %w", err)
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
