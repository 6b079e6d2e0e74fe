// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"errors"
	"fmt"
)

// What is wrong, as far as no other package has an error for it. The advice about each is in internal/cli's table.
var (
	// ErrCheck says that a check itself is at fault, or what it looks at hangs.
	ErrCheck = errors.New("the check failed")
	// ErrSilent says that the agent does not answer. The error may be a *SilentError.
	ErrSilent = errors.New("the agent does not answer")
	// ErrLocked says that ssh-add -x has locked the agent.
	ErrLocked = errors.New("the agent is locked")
)

// SilentError names the process that serves the socket and does not answer.
type SilentError struct{ PID int }

func (e *SilentError) Error() string { return fmt.Sprintf("%v: process %d", ErrSilent, e.PID) }

// Is makes errors.Is(err, ErrSilent) true.
func (e *SilentError) Is(target error) bool { return target == ErrSilent }

// VersionError says that the running agent is of another version.
type VersionError struct {
	Agent, Own string
	PID        int
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("the running agent has version %s, these commands have %s", e.Agent, e.Own)
}

// LockError says that a process holds the lock of a socket that it does not serve.
type LockError struct {
	Path        string
	PID, Server int // 0 if unknown
}

func (e *LockError) Error() string {
	holder := "a process"
	if e.PID > 0 {
		holder = fmt.Sprintf("process %d", e.PID)
	}
	if e.Server == 0 {
		return fmt.Sprintf("%s is held by %s", e.Path, holder)
	}
	return fmt.Sprintf("%s is held by %s, the agent is process %d", e.Path, holder, e.Server)
}

// AuthSockError says that SSH_AUTH_SOCK is not the agent's socket.
type AuthSockError struct {
	Value  string // empty when it is not set
	Owner  string // what that socket belongs to, empty if unknown
	Socket string // the agent's
}

func (e *AuthSockError) Error() string {
	switch {
	case e.Value == "":
		return "SSH_AUTH_SOCK is not set"
	case e.Owner != "":
		return fmt.Sprintf("SSH_AUTH_SOCK is %s, %s", e.Value, e.Owner)
	}
	return "SSH_AUTH_SOCK is " + e.Value
}
