// SPDX-License-Identifier: BSD-3-Clause

// Package session keeps session certificates: OpenSSH user certificates that the phone's CA signs for P-256 keys which
// are made here, one for each certificate, and never leave this process or are written anywhere.
//
// What comes back from the phone is held against what was asked, field by field (Check), and a certificate signs only
// within its scope (Certificate.Sign) and its time. The end of a certificate is kept by two clocks, the wall clock and the
// time since boot with sleep counted, and the earlier end wins: a clock that is set back or a computer that
// sleeps makes no certificate live longer.
package session

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/ssh"

	sha256print "vmux.app/toolkit/internal/fingerprint"
	"vmux.app/toolkit/internal/process"
)

const (
	// maxLive bounds the live certificates of one Manager, those being asked for included. ssh offers each in turn and
	// servers hang up after six (MaxAuthTries), so more are of use with scopes only; 64 fit the
	// bit sets of a listing.
	maxLive = 64
	// maxListing bounds the bytes of all live certificates together: half of the 256 KiB that ssh takes as an
	// agent's answer, which the phone's keys share.
	maxListing = 128 << 10
	// maxText bounds each text of a request; the longest in practice is a forced command.
	maxText = 4096
	// maxRequest bounds all texts of a request together, so that a certificate stays well below maxCertificate.
	maxRequest = 8192
	// maxCertificate bounds what is parsed: the texts, the options' names and lengths, a CA key and signature of RSA 16384.
	maxCertificate = 32 << 10
	// maxOptions bounds critical options and extensions, each; PROTOCOL.certkeys defines nine in all.
	maxOptions = 32
	// maxName bounds an option's name, a principal, a host's name and the key id; host names have 253 bytes at most.
	maxName = 256
	// maxHosts and maxFingerprints bound a scope: hosts of one command line, and keys of one host (one for each
	// algorithm, a few times over while they are replaced).
	maxHosts        = 64
	maxFingerprints = 32
	// maxUses is more than anyone counts; it keeps the sum of counters far from overflow.
	maxUses = 1 << 30

	defaultMinValidity   = 15 * time.Second
	defaultMaxValidity   = 24 * time.Hour
	defaultMaxPrincipals = 32
)

// Serial in Spec.KeyID stands for the certificate's serial number, which the CA chooses.
const Serial = "{serial}"

// Spec is what is asked of the phone, and what the certificate is held to here.
type Spec struct {
	Principals      []string          // at least one, no duplicates; order has no meaning
	Validity        time.Duration     // whole seconds, from when the CA signs
	KeyID           string            // "{serial}" in it stands for the serial, in decimal
	CriticalOptions map[string]string // flags have the value ""
	Extensions      map[string]string
	Identity        string // label of an identity on the phone, or ""; picks the phone
	Reason          string // for the prompt; no part of what makes two requests the same
	Scope           Scope
}

// Scope is what the agent holds a certificate to; a server knows nothing of it. The zero value limits nothing.
type Scope struct {
	Hosts        []Host          `json:"hosts,omitempty"`       // empty: any destination; else logins to these only
	Uses         int             `json:"uses,omitzero"`         // number of signatures; 0: any
	NoForwarding bool            `json:"noForwarding,omitzero"` // refuse what comes from a forwarded agent, or may
	Root         process.Process `json:"-"`                     // zero: any process; else it and its descendants
}

// Host is a destination. Name is for people, the fingerprints decide.
type Host struct {
	Name         string   `json:"name"`
	Fingerprints []string `json:"fingerprints"` // "SHA256:…" of its host keys, as ssh-keygen -l prints them
}

// Limits says in words what s limits, for the phone's prompt; nil when it limits nothing.
func (s Scope) Limits() []string {
	var all []string
	for _, h := range s.Hosts {
		words := append([]string{"host", h.Name}, h.Fingerprints...)
		all = append(all, strings.Join(slices.Compact(words), " ")) // a host may be called by its fingerprint
	}
	switch {
	case s.Uses == 1:
		all = append(all, "1 signature")
	case s.Uses > 1:
		all = append(all, strconv.Itoa(s.Uses)+" signatures")
	}
	if s.Root.PID != 0 {
		all = append(all, fmt.Sprintf("job: %s (process %d)", s.Root.Name, s.Root.PID))
	}
	if s.NoForwarding {
		all = append(all, "not forwarded")
	}
	return all
}

// Authority is the phone's CA.
type Authority interface {
	// Certify asks for a certificate of public and gives it and the CA's key that was pinned at pairing, both in wire form.
	Certify(ctx context.Context, public ssh.PublicKey, s Spec) (certificate, ca []byte, err error)
}

// Info describes a certificate. It holds nothing secret.
type Info struct {
	Serial          uint64            `json:"serial,string"` // text, because many JSON readers round numbers of 63 bits
	KeyID           string            `json:"keyId"`
	Key             string            `json:"key"` // fingerprint of the certified key, "SHA256:…"
	CA              string            `json:"ca"`  // fingerprint of the CA's key, "SHA256:…"
	Principals      []string          `json:"principals"`
	ValidAfter      time.Time         `json:"validAfter"`  // UTC, whole seconds
	ValidBefore     time.Time         `json:"validBefore"` // UTC, whole seconds; not valid at that time itself
	CriticalOptions map[string]string `json:"criticalOptions,omitempty"`
	Extensions      map[string]string `json:"extensions,omitempty"`
	Identity        string            `json:"identity,omitempty"`
	Scope           Scope             `json:"scope"`
	Job             int               `json:"job,omitzero"`      // pid of Scope.Root
	UsesLeft        int               `json:"usesLeft,omitzero"` // where Scope.Uses limits them; a certificate with none left is gone
}

var (
	// ErrExpired says that the certificate's time is over.
	ErrExpired = errors.New("certificate has expired")
	// ErrDropped says that the certificate was dropped, replaced, or that its job has ended.
	ErrDropped = errors.New("certificate has been dropped")
	// ErrTooMany says that no further certificate can be kept before one ends or is dropped.
	ErrTooMany = errors.New("too many session certificates")
	// ErrClosed says that the Manager is closed.
	ErrClosed = errors.New("session certificates are closed")
)

// Limit names one of the limits of a Scope.
type Limit string

// The limits that a ScopeError names.
const (
	LimitHosts      Limit = "hosts"
	LimitUses       Limit = "uses"
	LimitForwarding Limit = "forwarding"
	LimitProcesses  Limit = "processes"
)

// ScopeError says which limit of a certificate's scope refuses a use, and why.
type ScopeError struct {
	Limit Limit
	Why   string
}

func (e *ScopeError) Error() string {
	return fmt.Sprintf("outside the certificate's scope (%s): %s", e.Limit, e.Why)
}

// SpecError says what is wrong with a request, which is then not made.
type SpecError struct {
	Field string // "principals", "validity", "key id", "critical options", "extensions", "identity", "reason", "hosts", "uses", "job", "scope"
	Why   string
}

func (e *SpecError) Error() string { return e.Field + ": " + e.Why }

// MismatchError names one field of a certificate that is not what was asked. Several come joined.
type MismatchError struct {
	Field      Field
	Asked, Got string
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("certificate does not match the request: %s: asked %s, got %s", e.Field, e.Asked, e.Got)
}

// limits are the bounds of Options that a Spec must keep to.
type limits struct {
	minValidity, maxValidity time.Duration
	principals               int
}

// check reports what is wrong with s, and gives a copy of it with lists sorted.
func (l limits) check(s Spec) (Spec, error) {
	fail := func(field, format string, args ...any) (Spec, error) {
		return Spec{}, &SpecError{field, fmt.Sprintf(format, args...)}
	}
	total := len(s.KeyID)
	s.Principals = slices.Sorted(slices.Values(s.Principals))
	switch n := len(s.Principals); {
	case n == 0:
		return fail("principals", "there is none")
	case n > l.principals:
		return fail("principals", "%d are more than %d", n, l.principals)
	case len(slices.Compact(slices.Clone(s.Principals))) != n:
		return fail("principals", "one is there twice")
	}
	for _, p := range s.Principals {
		total += len(p)
		if why := badText(p, 1, maxName); why != "" {
			return fail("principals", "%q %s", clip(p), why)
		}
		if strings.ContainsRune(p, ',') { // sshd's configuration and ssh-keygen take it as the end of the name
			return fail("principals", "%q has a comma", p)
		}
	}
	switch {
	case s.Validity%time.Second != 0:
		return fail("validity", "%v are not whole seconds", s.Validity)
	case s.Validity < l.minValidity:
		return fail("validity", "%v is shorter than %v", s.Validity, l.minValidity)
	case s.Validity > l.maxValidity:
		return fail("validity", "%v is longer than %v", s.Validity, l.maxValidity)
	}
	if why := badText(s.KeyID, 1, maxName); why != "" {
		return fail("key id", "%s", why)
	}
	if why := badText(s.Identity, 0, maxName); why != "" {
		return fail("identity", "%s", why)
	}
	if why := badText(s.Reason, 0, maxText); why != "" {
		return fail("reason", "%s", why)
	}
	for _, o := range []struct {
		field string
		all   *map[string]string
	}{{"critical options", &s.CriticalOptions}, {"extensions", &s.Extensions}} {
		if len(*o.all) > maxOptions {
			return fail(o.field, "%d are more than %d", len(*o.all), maxOptions)
		}
		for name, value := range *o.all {
			total += len(name) + len(value)
			if why := badText(name, 1, maxName); why != "" {
				return fail(o.field, "%q %s", clip(name), why)
			}
			if why := badText(value, 0, maxText); why != "" {
				return fail(o.field, "value of %q %s", name, why)
			}
		}
		*o.all = maps.Clone(*o.all)
	}
	if total > maxRequest {
		return fail("request", "its texts have %d bytes, more than %d", total, maxRequest)
	}
	scope, err := s.Scope.check()
	s.Scope = scope
	return s, err
}

// check reports what is wrong with s, and gives a copy of it with lists sorted.
func (s Scope) check() (Scope, error) {
	fail := func(field, format string, args ...any) (Scope, error) {
		return Scope{}, &SpecError{field, fmt.Sprintf(format, args...)}
	}
	if len(s.Hosts) > maxHosts {
		return fail("hosts", "%d are more than %d", len(s.Hosts), maxHosts)
	}
	hosts := make([]Host, 0, len(s.Hosts))
	for _, h := range s.Hosts {
		if why := badText(h.Name, 1, maxName); why != "" {
			return fail("hosts", "%q %s", clip(h.Name), why)
		}
		// A host without a key would allow nothing, and look as if it allowed something.
		if n := len(h.Fingerprints); n == 0 || n > maxFingerprints {
			return fail("hosts", "%s has %d fingerprints, not 1 to %d", h.Name, n, maxFingerprints)
		}
		for _, f := range h.Fingerprints {
			if _, err := parseFingerprint(f); err != nil {
				return fail("hosts", "%s: %q is no fingerprint: %v", h.Name, clip(f), err)
			}
		}
		h.Fingerprints = slices.Compact(slices.Sorted(slices.Values(h.Fingerprints)))
		hosts = append(hosts, h)
	}
	slices.SortFunc(hosts, func(a, b Host) int { return strings.Compare(a.Name, b.Name) })
	s.Hosts = hosts
	if s.Uses < 0 || s.Uses > maxUses {
		return fail("uses", "%d is not 0 to %d", s.Uses, maxUses)
	}
	if s.Root != (process.Process{}) && (s.Root.PID <= 0 || s.Root.Start == 0) {
		return fail("job", "process %d has no pid or no start time", s.Root.PID)
	}
	return s, nil
}

func (s Scope) unlimited() bool {
	return len(s.Hosts) == 0 && s.Uses == 0 && !s.NoForwarding && s.Root.PID == 0
}

// same reports whether two checked requests ask for the same: everything but the reason.
func (s Spec) same(o Spec) bool {
	return slices.Equal(s.Principals, o.Principals) && s.Validity == o.Validity && s.KeyID == o.KeyID && s.Identity == o.Identity &&
		maps.Equal(s.CriticalOptions, o.CriticalOptions) && maps.Equal(s.Extensions, o.Extensions) &&
		slices.EqualFunc(s.Scope.Hosts, o.Scope.Hosts, func(a, b Host) bool {
			return a.Name == b.Name && slices.Equal(a.Fingerprints, b.Fingerprints)
		}) &&
		s.Scope.Uses == o.Scope.Uses && s.Scope.NoForwarding == o.Scope.NoForwarding &&
		s.Scope.Root.PID == o.Scope.Root.PID && s.Scope.Root.Start == o.Scope.Root.Start
}

// badText says what is wrong with a text that people and sshd's log are to read.
func badText(s string, least, most int) string {
	switch {
	case len(s) < least:
		return "is empty"
	case len(s) > most:
		return fmt.Sprintf("is longer than %d bytes", most)
	case !utf8.ValidString(s):
		return "is not UTF-8"
	case strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }):
		return "has control characters"
	}
	return ""
}

// clip shortens what came from outside for a message.
func clip(s string) string {
	if len(s) <= 64 {
		return s
	}
	return s[:64] + "…"
}

// fingerprint is the SHA-256 of a public key in wire form.
type fingerprint [32]byte

func parseFingerprint(s string) (fingerprint, error) { return sha256print.Parse(s) }

func (f fingerprint) String() string { return sha256print.Format(f) }
