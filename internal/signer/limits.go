// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/store"
)

// limitsName is the file with the certificate authority's limits in a home. Its
// owner writes it; nothing else does.
const limitsName = "certificates.toml"

// maxLimitsFile bounds it in bytes: hundreds of principals fit.
const maxLimitsFile = 64 << 10

// Validities that are signed unless certificates.toml says otherwise.
const (
	DefaultMinValidity = 15 * time.Second
	DefaultMaxValidity = 24 * time.Hour
)

// anyPrincipal stands for every principal.
const anyPrincipal = "*"

// Limits are what the certificate authority signs at most, whoever asks and
// approves.
type Limits struct {
	MinValidity, MaxValidity time.Duration
	Principals               []string // names, or "*" for all
	CriticalOptions          []string // names
	Extensions               []string // names
}

// LimitsError says what is wrong with certificates.toml. No certificate is
// signed until that is mended.
type LimitsError struct {
	Path    string
	Problem string
	Err     error // what Problem was made from, may be nil
}

func (e *LimitsError) Error() string { return e.Path + ": " + e.Problem }

// Unwrap gives the reason.
func (e *LimitsError) Unwrap() error { return e.Err }

func defaultLimits() Limits {
	return Limits{
		MinValidity: DefaultMinValidity, MaxValidity: DefaultMaxValidity,
		Principals:      []string{anyPrincipal},
		CriticalOptions: []string{forceCommand, sourceAddress, verifyRequired},
		Extensions:      []string{"permit-X11-forwarding", "permit-agent-forwarding", "permit-port-forwarding", "permit-pty", "permit-user-rc"},
	}
}

// Limits reads certificates.toml; without the file they are the defaults. Error:
// *LimitsError.
func (h *Home) Limits() (Limits, error) {
	path := h.path(limitsName)
	wrong := func(err error) (Limits, error) {
		var known *LimitsError
		if errors.As(err, &known) {
			known.Path = path
			return Limits{}, known
		}
		return Limits{}, &LimitsError{Path: path, Problem: err.Error(), Err: err}
	}
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) { // a link to nothing is no absence
		return defaultLimits(), nil
	}
	b, err := store.ReadFile(path, maxLimitsFile)
	switch {
	case errors.Is(err, store.ErrNotRegular):
		return wrong(fmt.Errorf("is %w", store.ErrNotRegular))
	case errors.Is(err, store.ErrTooLarge):
		return wrong(fmt.Errorf("is %w", err))
	case err != nil:
		return wrong(err)
	}
	const readable = 0o644 // others may know the limits, not set them
	if err := checkPrivate(path, readable); err != nil {
		return wrong(err)
	}
	l, err := parseLimits(string(b))
	if err != nil {
		return wrong(err)
	}
	return l, nil
}

// parseLimits reads the text of certificates.toml strictly: a key that is
// misspelt must not leave a wider limit in force.
func parseLimits(text string) (Limits, error) {
	var set map[string]any
	if _, err := toml.Decode(text, &set); err != nil {
		var at toml.ParseError
		if errors.As(err, &at) {
			return Limits{}, &LimitsError{Problem: fmt.Sprintf("line %d: %s", at.Position.Line, at.Message), Err: err}
		}
		return Limits{}, err
	}
	l := defaultLimits()
	for _, key := range slices.Sorted(maps.Keys(set)) {
		var err error
		switch key {
		case "min-validity":
			l.MinValidity, err = validityOf(set[key])
		case "max-validity":
			l.MaxValidity, err = validityOf(set[key])
		case "principals":
			l.Principals, err = namesOf(set[key], true)
		case "critical-options":
			l.CriticalOptions, err = namesOf(set[key], false)
		case "extensions":
			l.Extensions, err = namesOf(set[key], false)
		default:
			err = errors.New("is not a setting of this file")
		}
		if err != nil {
			return Limits{}, &LimitsError{Problem: fmt.Sprintf("%q %v", key, err), Err: err}
		}
	}
	if l.MinValidity > l.MaxValidity {
		return Limits{}, &LimitsError{Problem: fmt.Sprintf("min-validity %s is more than max-validity %s", l.MinValidity, l.MaxValidity)}
	}
	return l, nil
}

func validityOf(v any) (time.Duration, error) {
	const most = envelope.MaxValidity * time.Second
	s, ok := v.(string)
	if !ok {
		return 0, errors.New(`is not a duration in quotes, as "24h"`)
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, errors.New(`is not a duration, as "24h"`)
	}
	if d < time.Second || d > most || d%time.Second != 0 {
		return 0, fmt.Errorf("is not whole seconds from 1s to %s", most)
	}
	return d, nil
}

// namesOf reads a list of names. Nothing in it is a pattern, so what looks like
// one is a mistake; only "*" may stand for all.
func namesOf(v any, all bool) ([]string, error) {
	list, ok := v.([]any)
	if !ok {
		return nil, errors.New("is not a list of names")
	}
	names := []string{}
	for _, v := range list {
		s, ok := v.(string)
		if !ok || s == "" {
			return nil, errors.New("has an element that is no name")
		}
		if strings.ContainsAny(s, "*?,") && (!all || s != anyPrincipal) {
			return nil, fmt.Errorf("has %q, but its names are no patterns", s)
		}
		names = append(names, s)
	}
	return names, nil
}

// allow says whether a request is within the limits. Error: *envelope.Error.
func (l *Limits) allow(r *envelope.CertificateRequest) error {
	denied := func(format string, a ...any) error { return envelope.Errorf(envelope.CodeDenied, format, a...) }
	if r.Validity < int64(l.MinValidity/time.Second) || r.Validity > int64(l.MaxValidity/time.Second) {
		return denied("a validity of %d s is not between %s and %s, which are the signer's limits", r.Validity, l.MinValidity, l.MaxValidity)
	}
	if !slices.Contains(l.Principals, anyPrincipal) {
		for _, p := range r.Principals {
			if !slices.Contains(l.Principals, p) {
				return denied("the signer's limits do not allow the principal %s", p)
			}
		}
	}
	for _, o := range r.CriticalOptions {
		if !slices.Contains(l.CriticalOptions, o.Name) {
			return denied("the signer's limits do not allow the critical option %s", o.Name)
		}
	}
	for _, o := range r.Extensions {
		if !slices.Contains(l.Extensions, o.Name) {
			return denied("the signer's limits do not allow the extension %s", o.Name)
		}
	}
	return nil
}
