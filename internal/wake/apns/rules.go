// SPDX-License-Identifier: BSD-3-Clause

// Package apns knows what Apple's push service takes and what it answers: keys, ids, device tokens, reason codes. It
// sends nothing, so that every command can say what went wrong without the sender in it. The rules are those of
// Apple's "Establishing a token-based connection to APNs", "Sending notification requests to APNs" and "Handling
// notification responses from APNs".
package apns

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Environments. A device token is good in the one that it was made for: an app's development build has
// tokens of the sandbox.
const (
	Production = "production"
	Sandbox    = "sandbox"
)

const (
	// MaxToken bounds device tokens, in bytes. They have 32 today; Apple asks not to rely on it.
	MaxToken = 100

	maxTopic    = 255 // bundle ids are shorter
	maxEndpoint = 1024
	idLength    = 10
	shown       = 8 // digits of a device token that may be shown
)

// CheckID checks a key id or team id: 10 capital letters and digits.
func CheckID(s string) error {
	if len(s) != idLength || strings.ContainsFunc(s, func(r rune) bool { return (r < 'A' || r > 'Z') && (r < '0' || r > '9') }) {
		return fmt.Errorf("is not %d capital letters and digits", idLength)
	}
	return nil
}

// CheckToken checks a device token: 1 to MaxToken bytes in hexadecimal.
func CheckToken(s string) error {
	b, err := hex.DecodeString(s)
	switch {
	case err != nil || len(b) == 0:
		return errors.New("is not hexadecimal")
	case len(b) > MaxToken:
		return fmt.Errorf("has more than %d bytes", MaxToken)
	}
	return nil
}

// Short returns as much of a device token as may be shown and logged.
func Short(token string) string {
	if len(token) <= shown {
		return token
	}
	return token[:shown] + "…"
}

// CheckTopic checks the topic of an app's pushes, its bundle id: letters, digits, points and hyphens.
func CheckTopic(s string) error {
	odd := func(r rune) bool {
		return (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '.' && r != '-'
	}
	if s == "" || len(s) > maxTopic || strings.ContainsFunc(s, odd) {
		return errors.New("is no bundle id")
	}
	return nil
}

// CheckEnvironment checks that s is Production or Sandbox.
func CheckEnvironment(s string) error {
	if s != Production && s != Sandbox {
		return errors.New("is neither production nor sandbox")
	}
	return nil
}

// CheckEndpoint checks the URL of a relay: https, a host, maybe a port and a path. The authorization must not go out in
// the clear, nor the URL carry a password into messages.
func CheckEndpoint(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || len(s) > maxEndpoint:
		return errors.New("is no URL")
	case u.Scheme != "https":
		return errors.New("does not begin with https://")
	case u.Hostname() == "" || u.Opaque != "":
		return errors.New("has no host")
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return errors.New("has more than a host, a port and a path")
	}
	return nil
}
