// SPDX-License-Identifier: BSD-3-Clause

package unixsock

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// placeAttempts bounds how often the path is looked at anew when somebody else changes it meanwhile.
	placeAttempts = 5
	// A socket is dead when it refuses probeAttempts connections probeGap apart. One refusal is not enough:
	// darwin refuses when the queue of a live one is full, and every system refuses between bind and listen.
	probeAttempts = 3
	probeGap      = 10 * time.Millisecond
)

// place makes the socket file and listens on it. It must be called with the lock held. Only a dead socket is
// removed, and nothing is ever replaced: bind (or the rename that stands for it) fails where a file exists.
func place(path string) (*net.UnixListener, os.FileInfo, error) {
	for range placeAttempts {
		if err := clearDead(path); err != nil {
			return nil, nil, err
		}
		ln, fi, err := listenFresh(path)
		if errors.Is(err, unix.EADDRINUSE) || errors.Is(err, fs.ErrExist) {
			continue
		}
		return ln, fi, err
	}
	return nil, nil, &InUseError{Path: path}
}

// clearDead removes a dead socket and refuses everything else that exists.
func clearDead(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if fi.Mode()&fs.ModeSocket == 0 {
		return &ObstacleError{Path: path, Mode: fi.Mode(), Want: "socket"}
	}
	if err := probe(path); err != nil {
		return err
	}
	now, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if !os.SameFile(fi, now) {
		return nil // another one came; bind fails and it is looked at
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove dead socket: %w", err)
	}
	return nil
}

// probe answers nil when nobody listens on the socket, *InUseError when somebody does, another error when it
// cannot tell.
func probe(path string) error {
	for i := range probeAttempts {
		if i > 0 {
			time.Sleep(probeGap)
		}
		pid, err := connects(path)
		switch {
		case err == nil:
			return &InUseError{Path: path, PID: pid}
		case errors.Is(err, unix.ENOENT):
			return nil
		case errors.Is(err, unix.ECONNREFUSED): // once more
		case errors.Is(err, unix.EAGAIN), // Linux: queue full
			errors.Is(err, unix.EINPROGRESS),
			errors.Is(err, unix.EPROTOTYPE): // a datagram socket
			return &InUseError{Path: path}
		default:
			return fmt.Errorf("probe socket %s: %w", path, err)
		}
	}
	return nil
}

// connects tries a connection without waiting and answers the pid of who listens, 0 when unknown.
func connects(path string) (int, error) {
	fd, err := newSocket()
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return 0, err
	}
	return peerPID(fd), nil
}

// listenFresh makes a socket file with mode 0600 that did not exist and listens on it. The answer's FileInfo
// identifies the file.
func listenFresh(path string) (*net.UnixListener, os.FileInfo, error) {
	fd, err := newSocket()
	if err != nil {
		return nil, nil, fmt.Errorf("socket: %w", err)
	}
	// net.FileListener takes a duplicate.
	f := os.NewFile(uintptr(fd), path)
	defer func() { _ = f.Close() }()
	fi, err := bindListen(fd, path)
	if err != nil {
		return nil, nil, err
	}
	ln, err := fileListener(f)
	if err != nil {
		_ = removeSame(path, fi)
		return nil, nil, err
	}
	return ln, fi, nil
}

func fileListener(f *os.File) (*net.UnixListener, error) {
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	ul, ok := ln.(*net.UnixListener)
	if !ok {
		_ = ln.Close()
		return nil, fmt.Errorf("socket: listener is %T", ln)
	}
	ul.SetUnlinkOnClose(false) // the file may be somebody else's by then
	return ul, nil
}

// bindMode binds, sees to the mode, and only then listens: until then every connection is refused,
// whatever mode the file has.
func bindMode(fd int, path string) (os.FileInfo, error) {
	if err := bind(fd, path); err != nil {
		return nil, fmt.Errorf("bind socket %s: %w", path, err)
	}
	fi, err := os.Lstat(path)
	if err == nil && fi.Mode().Perm() != socketMode {
		err = os.Chmod(path, socketMode)
	}
	if err == nil {
		err = unix.Listen(fd, unix.SOMAXCONN)
	}
	if err != nil {
		if fi != nil {
			_ = removeSame(path, fi)
		}
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return fi, nil
}

// bindApart is for systems where a socket file is born with a mode of the umask's choice (darwin): it is
// born in a private directory next to its place and moved there by rename, which must fail where a
// file exists. Where the temporary path does not fit a socket address, bindMode has to do.
func bindApart(fd int, path string, rename func(from, to string) error) (_ os.FileInfo, err error) {
	dir, err := os.MkdirTemp(filepath.Dir(path), ".v")
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	defer func() { _ = os.Remove(dir) }()
	born := filepath.Join(dir, "s")
	if len(born) > MaxPath {
		return bindMode(fd, path)
	}
	fi, err := bindMode(fd, born)
	if err != nil {
		return nil, err
	}
	if err := rename(born, path); err != nil {
		_ = os.Remove(born)
		return nil, fmt.Errorf("socket: %w", err)
	}
	return fi, nil
}

// removeSame removes the file if it is still the one that fi identifies.
func removeSame(path string, fi os.FileInfo) error {
	now, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !os.SameFile(fi, now) {
		return nil
	}
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
