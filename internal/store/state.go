// SPDX-License-Identifier: BSD-3-Clause

package store

import (
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Bounds of the state. The link has the same ones for what a phone sends, so that whatever came over it can
// be kept.
const (
	MaxStateSize = 1 << 20  // whole file: four phones whose key lists fill a frame of the link each
	MaxPhones    = 16       // more than anybody carries; each one is dialled at start
	MaxKeys      = 256      // identities of one phone
	MaxName      = 63       // as a DNS label
	MaxText      = 1024     // comments, display names, software
	MaxBlob      = 16 << 10 // public key or certificate
)

// stateVersion is raised only when an older program would misread the file. A member that older
// programs may ignore needs no new version, since they keep what they do not know.
const stateVersion = 1

// State is what agent.json holds. The zero value is the empty state. It has public material only.
type State struct {
	Phones []Phone

	unknown jsontext.Value
}

// Phone is one paired phone and what was last heard of it.
type Phone struct {
	Name string // as the phone gave it at pairing, 1 to MaxName bytes; not unique
	Pin  string // "SHA256:" and base64 of the certificate's SPKI digest; unique

	Address      string // last known host:port, empty if none
	FixedAddress string // host:port that the user gave and that is dialled first
	Instance     string // DNS-SD instance name, a hint only

	PairedAt time.Time
	Software string

	CAKey []byte // SSH wire form of the phone's certificate authority key, empty if it has none
	Keys  []Key  // cachedKeys: what is listed while the phone is away

	DeviceToken DeviceToken

	unknown jsontext.Value
}

// Key is one public key that a phone holds.
type Key struct {
	Algorithm    string // SSH name, ecdsa-sha2-nistp256 or ssh-ed25519
	Blob         []byte // RFC 4253 section 6.6
	Comment      string
	ProviderKind string // secureEnclave, hardwareToken or unknown
	DisplayName  string

	unknown jsontext.Value
}

// Phone returns the phone with this pin, or nil. The pointer is into s.
func (s *State) Phone(pin string) *Phone {
	i := slices.IndexFunc(s.Phones, func(p Phone) bool { return p.Pin == pin })
	if i < 0 {
		return nil
	}
	return &s.Phones[i]
}

// Named returns the phones that a user means by name: the one with this pin, else those that are called so, which
// several phones may be.
func (s *State) Named(name string) []Phone {
	if p := s.Phone(name); p != nil {
		return []Phone{*p}
	}
	var found []Phone
	for _, p := range s.Phones {
		if p.Name == name {
			found = append(found, p)
		}
	}
	return found
}

// Put adds p, or replaces the phone that has its pin.
func (s *State) Put(p Phone) {
	if old := s.Phone(p.Pin); old != nil {
		p.unknown = old.unknown
		*old = p
		return
	}
	s.Phones = append(s.Phones, p)
}

// Forget removes the phone with this pin and says whether there was one.
func (s *State) Forget(pin string) bool {
	before := len(s.Phones)
	s.Phones = slices.DeleteFunc(s.Phones, func(p Phone) bool { return p.Pin == pin })
	return len(s.Phones) != before
}

// InvalidError says which field of a state is out of bounds; Update returns it and writes nothing.
type InvalidError struct {
	Field  string // as in "phone 2, key 1, comment"
	Reason string
}

func (e *InvalidError) Error() string { return e.Field + ": " + e.Reason }

// The file's form. Unknown members are kept and written back: a program one release older that
// shares the home directory must not drop what a newer one remembers. Misspelt or wrongly cased
// names are such members too, and then the bounds below miss the real one. Duplicate names are refused by
// the decoder.
type (
	fileState struct {
		Version int            `json:"version"`
		Phones  []filePhone    `json:"phones"`
		Unknown jsontext.Value `json:",embed"`
	}
	filePhone struct {
		Name         string         `json:"name"`
		Pin          string         `json:"pin"`
		Address      string         `json:"address,omitzero"`
		FixedAddress string         `json:"fixedAddress,omitzero"`
		Instance     string         `json:"instance,omitzero"`
		PairedAt     time.Time      `json:"pairedAt"`
		Software     string         `json:"software,omitzero"`
		CAKey        []byte         `json:"caKey,omitempty"`
		CachedKeys   []fileKey      `json:"cachedKeys"`
		DeviceToken  *fileToken     `json:"deviceToken,omitzero"`
		Unknown      jsontext.Value `json:",embed"`
	}
	fileKey struct {
		Algorithm     string         `json:"algorithm"`
		PublicKeyBlob []byte         `json:"publicKeyBlob"`
		Comment       string         `json:"comment"`
		ProviderKind  string         `json:"providerKind"`
		DisplayName   string         `json:"displayName"`
		Unknown       jsontext.Value `json:",embed"`
	}
)

// errNewer carries the version of a state that this program does not know.
type errNewer int

func (v errNewer) Error() string { return fmt.Sprintf("version %d", int(v)) }

// decodeState parses strictly. The error is an errNewer when the file is whole but of a later version.
func decodeState(b []byte) (State, error) {
	if len(b) > MaxStateSize {
		return State{}, fmt.Errorf("larger than %d bytes", MaxStateSize)
	}
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return State{}, err
	}
	if v.Version > stateVersion {
		return State{}, errNewer(v.Version)
	}
	if v.Version != stateVersion {
		return State{}, fmt.Errorf("version %d is none", v.Version)
	}
	var f fileState
	if err := json.Unmarshal(b, &f); err != nil {
		return State{}, err
	}
	s := State{unknown: f.Unknown}
	if len(f.Phones) > MaxPhones {
		return State{}, &InvalidError{"phones", fmt.Sprintf("%d are more than %d", len(f.Phones), MaxPhones)}
	}
	for _, p := range f.Phones {
		q := Phone{Name: p.Name, Pin: p.Pin, Address: p.Address, FixedAddress: p.FixedAddress, Instance: p.Instance,
			PairedAt: p.PairedAt, Software: p.Software, CAKey: p.CAKey, DeviceToken: p.DeviceToken.decode(), unknown: p.Unknown}
		for _, k := range p.CachedKeys {
			q.Keys = append(q.Keys, Key{k.Algorithm, k.PublicKeyBlob, k.Comment, k.ProviderKind, k.DisplayName, k.Unknown})
		}
		s.Phones = append(s.Phones, q)
	}
	return s, s.check()
}

// encodeState checks every bound first; the error is then an *InvalidError.
func encodeState(s State) ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	f := fileState{Version: stateVersion, Phones: []filePhone{}, Unknown: s.unknown}
	for _, p := range s.Phones {
		q := filePhone{Name: p.Name, Pin: p.Pin, Address: p.Address, FixedAddress: p.FixedAddress, Instance: p.Instance,
			PairedAt: p.PairedAt.UTC().Truncate(time.Second), Software: p.Software, CAKey: p.CAKey,
			CachedKeys: []fileKey{}, DeviceToken: p.DeviceToken.encode(), Unknown: p.unknown}
		for _, k := range p.Keys {
			q.CachedKeys = append(q.CachedKeys, fileKey{k.Algorithm, k.Blob, k.Comment, k.ProviderKind, k.DisplayName, k.unknown})
		}
		f.Phones = append(f.Phones, q)
	}
	b, err := json.Marshal(f, jsontext.WithIndent("\t"), json.Deterministic(true))
	if err != nil {
		return nil, &InvalidError{"state", err.Error()}
	}
	b = append(b, '\n')
	if len(b) > MaxStateSize {
		return nil, &InvalidError{"state", fmt.Sprintf("%d bytes are more than %d", len(b), MaxStateSize)}
	}
	return b, nil
}

func (s *State) check() error {
	if n := len(s.Phones); n > MaxPhones {
		return &InvalidError{"phones", fmt.Sprintf("%d are more than %d", n, MaxPhones)}
	}
	seen := make(map[string]bool)
	for i, p := range s.Phones {
		if err := p.check(); err != nil {
			return within(fmt.Sprintf("phone %d", i+1), err)
		}
		if seen[p.Pin] {
			return &InvalidError{fmt.Sprintf("phone %d, pin", i+1), "is there twice"}
		}
		seen[p.Pin] = true
	}
	return nil
}

func (p *Phone) check() error {
	if p.Name == "" {
		return &InvalidError{"name", "is empty"}
	}
	if n := len(p.Keys); n > MaxKeys {
		return &InvalidError{"cachedKeys", fmt.Sprintf("%d are more than %d", n, MaxKeys)}
	}
	err := cmp.Or(text("name", p.Name, MaxName), checkPin(p.Pin), checkAddress("address", p.Address),
		checkAddress("fixedAddress", p.FixedAddress), text("instance", p.Instance, MaxText),
		text("software", p.Software, MaxText), blob("caKey", p.CAKey))
	if err != nil {
		return err
	}
	if y := p.PairedAt.Year(); y < 1 || y > 9999 {
		return &InvalidError{"pairedAt", "is out of range"} // RFC 3339 has four digits
	}
	if err := p.DeviceToken.check(); err != nil {
		return within("deviceToken", err)
	}
	for i, k := range p.Keys {
		err := cmp.Or(text("algorithm", k.Algorithm, MaxName), text("comment", k.Comment, MaxText),
			text("providerKind", k.ProviderKind, MaxName), text("displayName", k.DisplayName, MaxText),
			blob("publicKeyBlob", k.Blob))
		if err == nil && len(k.Blob) == 0 {
			err = &InvalidError{"publicKeyBlob", "is empty"}
		}
		if err != nil {
			return within(fmt.Sprintf("key %d", i+1), err)
		}
	}
	return nil
}

func within(where string, err error) error {
	if e, ok := errors.AsType[*InvalidError](err); ok {
		return &InvalidError{where + ", " + e.Field, e.Reason}
	}
	return err
}

func text(field, s string, limit int) error {
	if len(s) > limit {
		return &InvalidError{field, fmt.Sprintf("%d bytes are more than %d", len(s), limit)}
	}
	if !utf8.ValidString(s) {
		return &InvalidError{field, "is not UTF-8"}
	}
	return nil
}

func blob(field string, b []byte) error {
	if len(b) > MaxBlob {
		return &InvalidError{field, fmt.Sprintf("%d bytes are more than %d", len(b), MaxBlob)}
	}
	return nil
}

func checkPin(pin string) error {
	b64, ok := strings.CutPrefix(pin, "SHA256:")
	if sum, err := base64.RawStdEncoding.Strict().DecodeString(b64); !ok || err != nil || len(sum) != 32 {
		return &InvalidError{"pin", "is not SHA256: and 43 characters of base64"}
	}
	return nil
}

func checkAddress(field, a string) error {
	if a == "" {
		return nil
	}
	if host, port, err := net.SplitHostPort(a); err != nil || host == "" || port == "" || len(a) > MaxText {
		return &InvalidError{field, "is not host:port"}
	}
	return nil
}
