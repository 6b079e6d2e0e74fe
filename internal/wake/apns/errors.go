// SPDX-License-Identifier: BSD-3-Clause

package apns

import (
	"errors"
	"fmt"
	"net/http"
	"time"
)

var (
	// ErrTokenGone says that the device token is of no use any more, and to be forgotten. RefusedError is it where
	// that is so.
	ErrTokenGone = errors.New("the device token is of no use any more")
	// ErrNoToken says that there is no device token to push to.
	ErrNoToken = errors.New("no phone has sent a device token")
)

// OptionError says what is missing or wrong among what is needed for a push. Nothing was sent.
type OptionError struct {
	Option  string // as vmux.toml has it: "wake.key-id"
	Problem string // goes on from the option: "is not set"
	Want    string // what to type
	Err     error  // cause, may be nil
}

func (e *OptionError) Error() string { return e.Option + " " + e.Problem }
func (e *OptionError) Unwrap() error { return e.Err }

// RefusedError says that Apple, or the relay, answered and did not take the push. It is ErrTokenGone if
// that is what the answer says.
type RefusedError struct {
	Reason Reason
	ID     string    // apns-id
	Since  time.Time // 410: when Apple first knew that the device token is in use no more; zero if it does not say
}

func (e *RefusedError) Error() string {
	code := e.Reason.Code
	if code == "" {
		code = http.StatusText(e.Reason.Status)
	}
	return fmt.Sprintf("the push was refused: %s (%d %s)", e.Reason.Meaning, e.Reason.Status, code)
}

// Is makes errors.Is(e, ErrTokenGone) answer.
func (e *RefusedError) Is(target error) bool { return target == ErrTokenGone && e.Reason.Gone }

// ConnectProblem is why no answer came.
type ConnectProblem int

const (
	NoConnection   ConnectProblem = iota // no route, no name, no port, or the connection broke
	NoAnswer                             // connected or not, time ran out
	BadCertificate                       // the server's certificate is not one to trust
	NoHTTP2                              // something that is no push service
)

// ConnectError says that no answer came from host. The push may or may not have arrived.
type ConnectError struct {
	Host    string // with the port, if that is not 443
	Problem ConnectProblem
	Err     error
}

func (e *ConnectError) Unwrap() error { return e.Err }

func (e *ConnectError) Error() string {
	switch e.Problem {
	case NoAnswer:
		return fmt.Sprintf("no answer from %s in time", e.Host)
	case BadCertificate:
		return fmt.Sprintf("the certificate of %s is not to be trusted: %v", e.Host, e.Err)
	case NoHTTP2:
		return fmt.Sprintf("%s does not speak HTTP/2 over TLS 1.2 or later: %v", e.Host, e.Err)
	}
	return fmt.Sprintf("%s cannot be reached: %v", e.Host, e.Err)
}
