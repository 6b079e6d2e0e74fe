// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"vmux.app/toolkit/internal/audit"
	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/pairing"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/transport"
)

const (
	stateVersion = 2 // 1 has no failures
	// maxState bounds state.json in bytes: MaxDevices devices and
	// envelope.MaxKeys keys take a tenth of it.
	maxState = 1 << 20
	// MaxDevices bounds the paired devices; what the signer remembers for each
	// is bounded too.
	MaxDevices = 64
)

// Errors that a command's arguments can cause.
var (
	ErrName        = errors.New("a name is 1 to 63 bytes of printable text")
	ErrNoDevice    = errors.New("no such device is paired")
	ErrManyDevices = fmt.Errorf("%d devices are paired, no more fit", MaxDevices)
)

// State is what a signer remembers beside its keys.
type State struct {
	Version int                 `json:"version"`
	Name    string              `json:"name"`
	Keys    map[string]KeyState `json:"keys"`
	Devices []Device            `json:"devices"`
	// Failures are how often in a row whoever approved was not the owner, FailedAt is
	// when that was last.
	Failures int       `json:"failures,omitzero"`
	FailedAt time.Time `json:"failedAt,omitzero"`
}

// Locked says whether nothing is approved until the passphrase is given.
func (s *State) Locked() bool { return s.Failures >= maxFailures }

// KeyState is what is remembered of one identity. A key file without it is a
// disabled identity.
type KeyState struct {
	Enabled bool `json:"enabled"`
}

// Device is a paired device. Its certificate's pin is its identity, its name is
// unique.
type Device struct {
	Name     string    `json:"name"`
	Pin      string    `json:"pin"` // SHA256:…, as transport.Pin writes it
	PairedAt time.Time `json:"pairedAt"`
	LastSeen time.Time `json:"lastSeen,omitzero"`
}

// CheckName accepts a signer's or a device's name.
func CheckName(name string) error {
	if name == "" || len(name) > envelope.MaxName || !utf8.ValidString(name) || strings.TrimSpace(name) != name {
		return ErrName
	}
	for _, r := range name {
		if !unicode.IsPrint(r) {
			return ErrName
		}
	}
	return nil
}

// Device finds a paired device by its pin.
func (s *State) Device(pin transport.Pin) (Device, bool) {
	want := pin.String()
	i := slices.IndexFunc(s.Devices, func(d Device) bool { return d.Pin == want })
	if i < 0 {
		return Device{}, false
	}
	return s.Devices[i], true
}

// addDevice remembers a pairing. A known pin keeps its row under the new name;
// a name that another device has gets a number.
func (s *State) addDevice(name string, pin transport.Pin, now time.Time) (Device, error) {
	name = s.nameFor(name, pin)
	s.Devices = slices.DeleteFunc(s.Devices, func(d Device) bool { return d.Pin == pin.String() })
	if len(s.Devices) >= MaxDevices {
		return Device{}, ErrManyDevices
	}
	d := Device{Name: name, Pin: pin.String(), PairedAt: now.UTC().Truncate(time.Second)}
	s.Devices = append(s.Devices, d)
	return d, nil
}

// nameFor is the name that a device gets: its own, with a number when another
// device has it.
func (s *State) nameFor(name string, pin transport.Pin) string {
	name = pairing.CleanName(name)
	for n := 1; ; n++ {
		try := name
		if n > 1 {
			suffix := "-" + strconv.Itoa(n)
			try = cut(name, envelope.MaxName-len(suffix)) + suffix
		}
		if !slices.ContainsFunc(s.Devices, func(d Device) bool { return d.Name == try && d.Pin != pin.String() }) {
			return try
		}
	}
}

// cut shortens s to at most n bytes without breaking a character.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// Read gives the present state. A damaged file is set aside and said.
func (h *Home) Read() (State, error) {
	s, err := h.readState()
	var damaged *damagedError
	if errors.As(err, &damaged) {
		return h.Update(func(*State) error { return nil })
	}
	return s, err
}

// Update changes the state: change gets the present one, and what it leaves is
// written unless it returns an error. It returns what is on disk now.
func (h *Home) Update(change func(*State) error) (State, error) {
	release, err := h.lock()
	if err != nil {
		return State{}, err
	}
	defer release()
	return h.updateLocked(change)
}

// readLocked is Read for who has the home's lock.
func (h *Home) readLocked() (State, error) {
	s, err := h.readState()
	var damaged *damagedError
	if errors.As(err, &damaged) {
		return h.recoverLocked(damaged)
	}
	return s, err
}

func (h *Home) updateLocked(change func(*State) error) (State, error) {
	s, err := h.readLocked()
	if err != nil {
		return State{}, err
	}
	if err := change(&s); err != nil {
		return State{}, err
	}
	return s, h.writeState(&s)
}

// damagedError is a state file that cannot be read as one. Its owner sees the
// warning of recoverLocked.
type damagedError struct{ cause error }

func (e *damagedError) Error() string { return "damaged state: " + e.cause.Error() }
func (e *damagedError) Unwrap() error { return e.cause }

// recoverLocked sets a damaged state file aside and starts anew. Nobody is
// paired then, and every identity is disabled, since nobody can tell any more
// which of them the owner had disabled.
func (h *Home) recoverLocked(damage *damagedError) (State, error) {
	s := State{Version: stateVersion, Name: HostName(), Keys: map[string]KeyState{}}
	what := "is missing"
	if !errors.Is(damage.cause, fs.ErrNotExist) {
		aside, err := setAside(h.path(stateName))
		if err != nil {
			return State{}, fmt.Errorf("%w; setting it aside: %w", damage, err)
		}
		what = fmt.Sprintf("was damaged (%v) and is now %s", damage.cause, aside)
	}
	if err := h.writeState(&s); err != nil {
		return State{}, err
	}
	h.warn(fmt.Sprintf("%s %s: no device is paired and every key is disabled; use \"vmux-signer key enable\" and \"vmux-signer pair\"",
		h.path(stateName), what))
	return s, nil
}

// setAside renames a file to a name that is free. The caller holds the home's
// lock, so the name stays free.
func setAside(path string) (string, error) {
	for n := 1; ; n++ {
		aside := fmt.Sprintf("%s.damaged-%d", path, n)
		switch _, err := os.Lstat(aside); {
		case err == nil:
		case errors.Is(err, fs.ErrNotExist):
			return aside, os.Rename(path, aside)
		default: // it would be the same for each name
			return "", err
		}
	}
}

func (h *Home) readState() (State, error) {
	b, err := store.ReadFile(h.path(stateName), maxState)
	switch {
	case errors.Is(err, fs.ErrNotExist), isDamage(err):
		return State{}, &damagedError{err}
	case err != nil:
		return State{}, err
	}
	return parseState(b)
}

// isDamage says whether a file that cannot be read is none that was written here.
func isDamage(err error) bool {
	return errors.Is(err, store.ErrNotRegular) || errors.Is(err, store.ErrTooLarge)
}

// parseState reads state.json strictly. A newer version is not damage.
func parseState(b []byte) (State, error) {
	var v struct {
		Version int            `json:"version"`
		Rest    jsontext.Value `json:",unknown"`
	}
	if err := json.Unmarshal(b, &v); err == nil && v.Version > stateVersion {
		return State{}, fmt.Errorf("%w (version %d, this one reads %d)", ErrStateVersion, v.Version, stateVersion)
	}
	var s State
	if err := json.Unmarshal(b, &s, json.RejectUnknownMembers(true)); err != nil {
		return State{}, &damagedError{err}
	}
	if err := s.check(); err != nil {
		return State{}, &damagedError{err}
	}
	if s.Keys == nil {
		s.Keys = map[string]KeyState{}
	}
	s.Version = stateVersion // it is written as that
	return s, nil
}

func (s *State) check() error {
	if s.Version < 1 || s.Version > stateVersion {
		return fmt.Errorf("version %d", s.Version)
	}
	if s.Failures < 0 {
		return fmt.Errorf("%d failures", s.Failures)
	}
	if err := CheckName(s.Name); err != nil {
		return err
	}
	if len(s.Devices) > MaxDevices {
		return ErrManyDevices
	}
	names, pins := map[string]bool{}, map[string]bool{}
	for _, d := range s.Devices {
		if err := CheckName(d.Name); err != nil {
			return err
		}
		if _, err := transport.ParsePin(d.Pin); err != nil {
			return err
		}
		if names[d.Name] || pins[d.Pin] {
			return fmt.Errorf("device %q twice", d.Name)
		}
		names[d.Name], pins[d.Pin] = true, true
	}
	for label := range s.Keys {
		if err := CheckLabel(label); err != nil {
			return err
		}
	}
	return nil
}

func (h *Home) writeState(s *State) error {
	b, err := json.Marshal(s, json.Deterministic(true), jsontext.WithIndent("  "))
	if err != nil {
		return err
	}
	return store.WriteFile(h.path(stateName), append(b, '\n'))
}

// Forget removes a device, named by its name or pin. Error: ErrNoDevice.
func (h *Home) Forget(device string) (Device, error) {
	var gone Device
	_, err := h.Update(func(s *State) error {
		// The pin first: a device may call itself by another one's.
		i := slices.IndexFunc(s.Devices, func(d Device) bool { return d.Pin == device })
		if i < 0 {
			i = slices.IndexFunc(s.Devices, func(d Device) bool { return d.Name == device })
		}
		if i < 0 {
			return fmt.Errorf("%w: %s", ErrNoDevice, device)
		}
		gone = s.Devices[i]
		s.Devices = slices.Delete(s.Devices, i, i+1)
		return nil
	})
	if err == nil {
		h.recordDone(audit.Record{Event: recordDevice, Device: gone.Name, Pin: gone.Pin, Outcome: "forgotten"})
	}
	return gone, err
}
