// SPDX-License-Identifier: BSD-3-Clause

// Package unixsock makes the agent's socket: private from birth, served by one process at a time, never
// taken from somebody who lives, made again when its file is deleted. It also says who is at the other end
// of a connection.
//
// The directory of the socket is ours and writable by nobody else, which is what all of it rests on: within
// it a file can be looked at and then acted on without another user in between. Other processes of the same
// user are held off by the lock file only as far as they look at it.
package unixsock

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// MaxPath is the longest path of a socket in bytes. sockaddr_un.sun_path has 104 bytes on darwin and 108 on
// Linux, the zero at the end included. The smaller one holds on both, so that a configuration is portable.
const MaxPath = 103

// socketMode lets the owner connect and nobody else (Linux and darwin ask for write permission).
const socketMode fs.FileMode = 0o600

var (
	// ErrInUse says that another process serves the socket. The error is an *InUseError.
	ErrInUse = errors.New("socket is in use")
	// ErrPeerUID says that the process at the other end runs as a user who has no business here.
	ErrPeerUID = errors.New("peer is another user")
	// ErrActivation says that the descriptors that the service manager passed are not listening Unix stream sockets.
	ErrActivation = errors.New("socket activation")
)

// An InUseError names the socket that another process serves.
type InUseError struct {
	Path string
	PID  int // process that serves it; 0 when unknown
}

func (e *InUseError) Error() string {
	if e.PID > 0 {
		return fmt.Sprintf("socket %s is in use by process %d", e.Path, e.PID)
	}
	return fmt.Sprintf("socket %s is in use", e.Path)
}

// Is makes errors.Is(err, ErrInUse) true.
func (e *InUseError) Is(target error) bool { return target == ErrInUse }

// A PathTooLongError names a path that does not fit a socket address.
type PathTooLongError struct {
	Path string // absolute
}

func (e *PathTooLongError) Error() string {
	return fmt.Sprintf("socket path %s has %d bytes, a socket address holds %d", e.Path, len(e.Path), MaxPath)
}

// A DirError names a socket directory that others could tamper with, or that is no directory.
type DirError struct {
	Path  string
	Mode  fs.FileMode // as found, type bits included
	Owner uint32
}

func (e *DirError) Error() string {
	switch {
	case !e.Mode.IsDir():
		return fmt.Sprintf("%s is not a directory", e.Path)
	case !ownerTrusted(e.Owner):
		return fmt.Sprintf("socket directory %s (mode %#o) belongs to uid %d", e.Path, e.Mode.Perm(), e.Owner)
	default:
		return fmt.Sprintf("socket directory %s (mode %#o, uid %d) is writable by others", e.Path, e.Mode.Perm(), e.Owner)
	}
}

// An ObstacleError names a file that is where the socket or its lock file belongs and is something else.
// Such a file is never removed.
type ObstacleError struct {
	Path string
	Mode fs.FileMode
	Want string // "socket" or "lock file"
}

func (e *ObstacleError) Error() string {
	return fmt.Sprintf("%s is in the way: %s, not a %s", e.Path, kind(e.Mode), e.Want)
}

func kind(m fs.FileMode) string {
	switch {
	case m.IsRegular():
		return "a regular file"
	case m.IsDir():
		return "a directory"
	case m&fs.ModeSymlink != 0:
		return "a symbolic link"
	case m&fs.ModeSocket != 0:
		return "a socket"
	case m&fs.ModeNamedPipe != 0:
		return "a named pipe"
	default:
		return "a device"
	}
}

// resolve makes the path absolute: the agent may change its directory, and the length that counts is the
// one that clients use. An absolute path also never begins with @, which net takes for an abstract name.
func resolve(path string) (string, error) {
	if path == "" || strings.IndexByte(path, 0) >= 0 {
		return "", fmt.Errorf("socket path %q: %w", path, syscall.EINVAL)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("socket path: %w", err)
	}
	if len(abs) > MaxPath {
		return "", &PathTooLongError{Path: abs}
	}
	return abs, nil
}

// makeDir creates the directory, 0700 under any umask, where there is none.
func makeDir(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return nil // checkDir says what is wrong with it
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return fmt.Errorf("create socket directory: %w", err)
	}
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err == nil {
		err = os.Chmod(dir, 0o700) // a umask may have taken the owner's bits
	}
	if err != nil {
		return fmt.Errorf("create socket directory: %w", err)
	}
	return nil
}

// checkDir refuses a directory in which another user could rename or replace files. A sticky bit does not
// help: it keeps our files from being renamed, not foreign ones from being put where ours are missing.
func checkDir(dir string) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("socket directory: %w", err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("socket directory %s: owner unknown", dir)
	}
	if !fi.IsDir() || !ownerTrusted(st.Uid) || fi.Mode()&0o022 != 0 {
		return &DirError{Path: dir, Mode: fi.Mode(), Owner: st.Uid}
	}
	return nil
}

func ownerTrusted(uid uint32) bool { return uid == 0 || uid == ownUID() }

func ownUID() uint32 {
	return uint32(os.Getuid())
}
