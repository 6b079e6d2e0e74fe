// SPDX-License-Identifier: BSD-3-Clause

// Package mpc is the transport over MultipeerConnectivity, which reaches a phone without a network that both are on: by
// peer-to-peer Wi-Fi or Bluetooth. It is on macOS with cgo, and in tests on Linux against a stand-in for Apple's framework; elsewhere New
// says that it is not supported.
//
// The device browses and invites, the phone advertises; each connection is a session of its own with one peer, encryption
// required, in reliable mode. That encryption does not say who the other end is, so TLS runs above, as on every transport.
package mpc

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	// DefaultService is the service type of vmux's phones.
	DefaultService = "vmuxsigner"
	// Prefix begins every address of this transport; a display name follows.
	Prefix = "mpc:"

	closeWait = 500 * time.Millisecond // for the other end to close too
)

var (
	// ErrDeclined says that an invited peer declined, did not answer, or went away.
	ErrDeclined = errors.New("the peer did not take the invitation")
	// ErrLost says that the peer of a connection is gone.
	ErrLost = errors.New("connection lost")

	errService  = errors.New("service type is not 1 to 15 of a-z, 0-9 and -")
	errName     = errors.New("display name is not 1 to 63 bytes of UTF-8")
	errOverflow = fmt.Errorf("the peer sends more than is taken: more than %d bytes wait", maxQueued)
	errMessage  = errors.New("the peer sent a message of no known kind")
)

// Options say how the framework is used.
type Options struct {
	Service string // type; DefaultService when empty
	Name    string // that the other end sees, which should say nothing of its owner: 1 to 63 bytes of UTF-8
	Log     *slog.Logger
}

// The framework raises an exception, which ends the process, for what these refuse.

func checkService(s string) error {
	if len(s) < 1 || len(s) > 15 || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" ||
		strings.HasPrefix(s, "-") || strings.HasSuffix(s, "-") || strings.Contains(s, "--") {
		return errService
	}
	return nil
}

func checkName(s string) error {
	if len(s) < 1 || len(s) > 63 || !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
		return errName
	}
	return nil
}

// addr is a peer's display name as an address.
type addr string

func (addr) Network() string  { return "mpc" }
func (a addr) String() string { return Prefix + string(a) }
