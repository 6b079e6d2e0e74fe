// SPDX-License-Identifier: BSD-3-Clause

// Package control is what vmux's commands say to a running agent: the names of
// the agent's own requests, served as NAME@vmux.app on its socket, with their
// parameters and results in JSON.
package control

import (
	"time"

	"vmux.app/toolkit/internal/phone"
	"vmux.app/toolkit/internal/session"
)

// The requests.
const (
	Status       = "status"           // → StatusResult
	Reload       = "reload"           // reads the pairings again
	Reach        = "reach"            // → []phone.Reached: looks for the phones now
	Certificate  = "certificate"      // CertificateParams → session.Info: a session certificate for the socket
	Certify      = "certificate-for"  // CertifyParams → CertifyResult: a certificate for somebody else's key
	Certificates = "certificates"     // → []session.Info
	Drop         = "certificate-drop" // DropParams → DropResult
	Run          = "certificate-run"  // CertificateParams → RunResult: a certificate for a job, as long as the connection lasts
)

// StatusResult is how things stand with an agent.
type StatusResult struct {
	Version      string         `json:"version"`
	PID          int            `json:"pid"`
	Started      time.Time      `json:"started"`
	Locked       bool           `json:"locked"`
	Connections  int            `json:"connections"`
	Certificates int            `json:"certificates"`
	Phones       []phone.Status `json:"phones"`

	Executable string     `json:"executable"` // path of its program
	Device     Device     `json:"device"`
	Protection Protection `json:"protection"`
	Log        Log        `json:"log"`

	Configuration Configuration `json:"configuration"`
}

// Configuration is how vmux.toml stands with an agent that reads it again.
type Configuration struct {
	Read    time.Time `json:"read"`             // what counts now
	Problem string    `json:"problem,omitzero"` // why what is there now does not count
}

// Device is what phones know the agent's device by.
type Device struct {
	Name string `json:"name"`
	Pin  string `json:"pin"` // of the link key
}

// Protection is how closed an agent's memory is to other processes of its user.
type Protection struct {
	Open      bool   `json:"open"`      // it can be read, or that is not known
	CoreLimit uint64 `json:"coreLimit"` // bytes of a core file, 0 for none
}

// Log is where an agent's log goes.
type Log struct {
	Destination string `json:"destination"` // one of those below
	Path        string `json:"path,omitzero"`
	Level       string `json:"level"`
}

// Destinations of a log.
const (
	LogTerminal  = "terminal"
	LogFile      = "file"
	LogJournal   = "journal" // systemd's
	LogUnified   = "unified" // macOS's
	LogPipe      = "pipe"    // or socket
	LogDiscarded = "discarded"
	LogClosed    = "closed"
)

// CertificateParams asks for a session certificate. What is left out is the
// agent's default.
type CertificateParams struct {
	Validity        int64             `json:"validity,omitzero"`   // seconds
	Principals      []string          `json:"principals,omitzero"` // the login name
	KeyID           string            `json:"keyId,omitzero"`      // vmux:USER@DEVICE:{serial}
	Identity        string            `json:"identity,omitzero"`
	CriticalOptions map[string]string `json:"criticalOptions,omitzero"`
	Extensions      map[string]string `json:"extensions,omitzero"`
	Reason          string            `json:"reason,omitzero"`

	Hosts        []session.Host `json:"hosts,omitzero"`
	Uses         int            `json:"uses,omitzero"`
	NoForwarding bool           `json:"noForwarding,omitzero"`
	// MinRemaining makes a certificate of the same request do that is valid so
	// many seconds more.
	MinRemaining int64 `json:"minRemaining,omitzero"`
}

// CertifyParams asks for a certificate of a key that the agent does not have.
type CertifyParams struct {
	CertificateParams
	PublicKey []byte `json:"publicKey"` // SSH wire form
}

// CertifyResult is that certificate.
type CertifyResult struct {
	Certificate []byte       `json:"certificate"` // SSH wire form
	Info        session.Info `json:"info"`
}

// DropParams says which certificates end.
type DropParams struct {
	Serial uint64 `json:"serial,string,omitzero"`
	All    bool   `json:"all,omitzero"`
}

// DropResult says how many ended.
type DropResult struct {
	Dropped int `json:"dropped"`
}

// RunResult is the socket of a job. It goes with the connection, or with the
// certificate.
type RunResult struct {
	Socket string       `json:"socket"`
	Info   session.Info `json:"info"`
}
