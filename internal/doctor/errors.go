// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"vmux.app/toolkit/internal/duration"
	"vmux.app/toolkit/internal/transport"
)

// What is wrong, as far as no other package has an error for it. The advice about each is in internal/cli's table.
var (
	// ErrCheck says that a check itself is at fault, or what it looks at hangs.
	ErrCheck = errors.New("the check failed")
	// ErrSilent says that the agent does not answer. The error may be a *SilentError.
	ErrSilent = errors.New("the agent does not answer")
	// ErrLocked says that ssh-add -x has locked the agent.
	ErrLocked = errors.New("the agent is locked")
	// ErrRefuses says that the policy lets no request through.
	ErrRefuses = errors.New("the policy refuses every request")
	// ErrNoSSH says that there is no ssh.
	ErrNoSSH = errors.New("ssh is not installed, or not in PATH")
	// ErrNoPubkey says that ssh's configuration has PubkeyAuthentication no.
	ErrNoPubkey = errors.New("ssh's configuration has PubkeyAuthentication no")
	// ErrIdentitiesOnly says that ssh's configuration keeps ssh from the agent's keys.
	ErrIdentitiesOnly = errors.New("ssh's configuration has IdentitiesOnly yes, and no IdentityFile that is a key of the agent")
	// ErrNoKeys says that the agent lists no keys.
	ErrNoKeys = errors.New("the agent lists no keys")
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

// SSHVersionError says that ssh is too old, or no OpenSSH.
type SSHVersionError struct{ Version string }

func (e *SSHVersionError) Error() string { return "ssh is " + e.Version }

// SSHConfigError says that ssh does not understand its configuration.
type SSHConfigError struct{ Said string }

func (e *SSHConfigError) Error() string { return "ssh refuses its configuration: " + e.Said }

// IdentityAgentError says that ssh's configuration leads to another agent.
type IdentityAgentError struct{ Value, Socket string }

func (e *IdentityAgentError) Error() string {
	return "ssh's configuration has IdentityAgent " + e.Value
}

// RivalError says what else sets SSH_AUTH_SOCK: start-up files, as FILE:LINE, or the session.
type RivalError struct {
	Files          []string
	Session, Owner string
	Socket         string // the agent's
}

func (e *RivalError) Error() string {
	switch {
	case len(e.Files) > 0:
		return "another agent's SSH_AUTH_SOCK is set in " + list(e.Files)
	case e.Owner != "":
		return fmt.Sprintf("the session has SSH_AUTH_SOCK=%s, %s", e.Session, e.Owner)
	}
	return "the session has SSH_AUTH_SOCK=" + e.Session
}

// SessionSockError says that programs that launchd starts do not find the agent's socket.
type SessionSockError struct {
	Value  string // of SSH_AUTH_SOCK there, empty when it is not set
	Owner  string // what that socket belongs to, empty if unknown
	Socket string // the agent's
}

func (e *SessionSockError) Error() string {
	switch {
	case e.Value == "":
		return "launchd has no SSH_AUTH_SOCK for the programs that it starts"
	case e.Owner != "":
		return fmt.Sprintf("launchd has SSH_AUTH_SOCK=%s, %s", e.Value, e.Owner)
	}
	return "launchd has SSH_AUTH_SOCK=" + e.Value
}

// KeyCountError says that more keys are listed than servers try.
type KeyCountError struct{ Keys int }

func (e *KeyCountError) Error() string {
	return fmt.Sprintf("the agent lists %d keys, servers try %d", e.Keys, maxAuthTries)
}

// ReloadError says that the agent goes by something older than what there is.
type ReloadError struct {
	What string
	PID  int
}

func (e *ReloadError) Error() string { return e.What }

// KeyMismatchError says that the agent has another link key than the one in the file.
type KeyMismatchError struct {
	File, Agent string // pins
	PID         int
}

func (e *KeyMismatchError) Error() string {
	return fmt.Sprintf("the agent uses the link key %s, the file has %s", e.Agent, e.File)
}

// LinkError says why there is no link to a phone.
type LinkError struct {
	Phone   string
	Address string // empty if none is known
	Err     error
}

func (e *LinkError) Error() string {
	var op *net.OpError
	reason := e.Err.Error()
	switch {
	case e.Address == "":
		return fmt.Sprintf("%s is not found, and no address of it is known", e.Phone)
	case errors.Is(e.Err, transport.ErrWrongPeer):
		reason = "another device is there"
	case errors.Is(e.Err, transport.ErrRefused):
		reason = "it does not know this device any more"
	case errors.Is(e.Err, errTime), errors.Is(e.Err, os.ErrDeadlineExceeded), errors.Is(e.Err, context.DeadlineExceeded):
		reason = "no answer"
	case errors.As(e.Err, &op):
		reason = op.Err.Error()
		if sys, ok := errors.AsType[*os.SyscallError](op.Err); ok {
			reason = sys.Err.Error()
		}
	}
	return fmt.Sprintf("%s at %s: %s", e.Phone, e.Address, reason)
}

func (e *LinkError) Unwrap() error { return e.Err }

// ClockError says how far a phone's clock is ahead of ours.
type ClockError struct {
	Phone string
	Skew  time.Duration
}

func (e *ClockError) Error() string {
	word := "ahead"
	if e.Skew < 0 {
		word = "behind"
	}
	return fmt.Sprintf("%s's clock is %s %s", e.Phone, duration.Short(e.Skew.Abs()), word)
}

// NoInterfaceError says that no network interface is fit for multicast.
type NoInterfaceError struct{ Tunnels []string }

func (e *NoInterfaceError) Error() string {
	if len(e.Tunnels) > 0 {
		return "no network interface is fit for multicast, and a VPN is up: " + list(e.Tunnels)
	}
	return "no network interface is fit for multicast"
}

// NotAdvertisedError says that discovery finds others and not this phone, which answers.
type NotAdvertisedError struct {
	Phone  string
	Others int
}

func (e *NotAdvertisedError) Error() string {
	return fmt.Sprintf("%s answers and does not advertise itself, as %s in this network", e.Phone, others(e.Others))
}

func others(n int) string {
	if n == 1 {
		return "1 other does"
	}
	return fmt.Sprintf("%d others do", n)
}

// IsolationError says that a phone answers and discovery finds nobody.
type IsolationError struct {
	Phone, Address string
	Tunnels        []string
}

func (e *IsolationError) Error() string {
	s := fmt.Sprintf("%s answers at %s, and discovery finds nobody", e.Phone, e.Address)
	if len(e.Tunnels) > 0 {
		s += "; a VPN is up: " + list(e.Tunnels)
	}
	return s
}

// LocalNetworkError says that only one of this terminal and the agent reaches a phone.
type LocalNetworkError struct {
	Agent   bool // it is the agent that does not
	MacOS   bool
	Phone   string
	Problem string
}

func (e *LocalNetworkError) Error() string {
	if e.Agent {
		return fmt.Sprintf("this terminal reaches %s, the agent does not: %s", e.Phone, e.Problem)
	}
	return fmt.Sprintf("the agent reaches %s, this terminal does not: %s", e.Phone, e.Problem)
}

// NearbyError says why phones cannot be found without a network.
type NearbyError struct{ Err error }

func (e *NearbyError) Error() string { return e.Err.Error() }

func (e *NearbyError) Unwrap() error { return e.Err }

// CertificateError says what is wrong with a session certificate.
type CertificateError struct {
	Problem   string
	Drop      uint64 // its serial, when it is to be dropped
	Clock     bool   // a clock is wrong
	Principal string // that it should have
}

func (e *CertificateError) Error() string { return e.Problem }

// OpenMemoryError says that the agent is not hardened.
type OpenMemoryError struct {
	Open bool // to other processes; else it is core files
	PID  int
}

func (e *OpenMemoryError) Error() string {
	if e.Open {
		return "other processes can read the agent's memory"
	}
	return "the agent leaves a core file when it crashes"
}

// LogError says that nobody can read the agent's log.
type LogError struct {
	Destination string
	PID         int
}

func (e *LogError) Error() string { return "the agent's log is " + e.Destination }

// Remedy is what to do about a service.
type Remedy int

// The remedies.
const (
	ServiceInstall Remedy = iota
	ServiceEnable
	ServiceUnmask
	ServiceOther // another program runs
	ServiceSocket
	LaunchInstall
	LaunchEnable
	LaunchLoad
	LaunchSocket
)

// ServiceError says why the agent does not start by itself.
type ServiceError struct {
	Problem string
	Do      Remedy
	Path    string
	UID     int
}

func (e *ServiceError) Error() string { return e.Problem }

// What went wrong with a login. The error is a *HostError or *HostRefusedError.
var (
	ErrHostUnreachable = errors.New("the server is not reached")
	ErrHostName        = errors.New("the server's name is not known")
	ErrHostKey         = errors.New("the server's key is not known")
	ErrHostKeyChanged  = errors.New("the server's key has changed")
	ErrHostSignature   = errors.New("the agent did not sign")
)

// HostError says why there was no login.
type HostError struct {
	Host string
	Said string // by ssh
	Kind error
}

func (e *HostError) Error() string { return e.Host + ": " + e.Said }

func (e *HostError) Unwrap() error { return e.Kind }

// HostRefusedError says that a server takes none of the agent's keys.
type HostRefusedError struct {
	Host    string
	Offered string
	Other   string // what it took instead, empty if nothing
	Many    bool   // it hung up after too many
}

func (e *HostRefusedError) Error() string {
	switch {
	case e.Other != "":
		return fmt.Sprintf("%s refused the agent's keys and took %s", e.Host, e.Other)
	case e.Many:
		return fmt.Sprintf("%s hung up after too many keys; tried: %s", e.Host, e.Offered)
	}
	return fmt.Sprintf("%s refused: %s", e.Host, e.Offered)
}
