// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"vmux.app/toolkit/internal/store"
)

// hostsName is the file with the host keys that the owner has approved.
const hostsName = "hosts.json"

const (
	hostsVersion = 1
	// maxHosts bounds the names, above what a person logs in to. The name that was
	// used least recently makes room.
	maxHosts = 2048
	// maxHostKeys bounds the keys of one name: a host has one of each type, and a
	// new set after it was set up anew.
	maxHostKeys = 8
	// maxNameless bounds the keys that were approved when the device gave no name.
	maxNameless = 256
	// maxHostName bounds a name in bytes: those of the DNS have 253.
	maxHostName = 255
	// maxHostsFile bounds the file in bytes: all of the above takes 3 MB.
	maxHostsFile = 4 << 20
)

// ErrNoHost says that no host key is remembered under a name or with a
// fingerprint.
var ErrNoHost = errors.New("no such host key was approved")

// HostKey is a host key that the owner approved a login with.
type HostKey struct {
	Name        string `json:"name"` // in lower case, empty when the device gave none
	Fingerprint string `json:"fingerprint"`
	First       string `json:"first"` // the days of the first and the last approval, 2006-01-02
	Last        string `json:"last"`
}

// approvals are the approved host keys by name, each name's keys in the order of
// their use, the last one last. The name is what a device has claimed when the
// owner approved. Keys without a name are under the empty one.
type approvals map[string][]approved

// approved is one key of a name.
type approved struct {
	Key   string `json:"key"` // fingerprint
	First string `json:"first"`
	Last  string `json:"last"`
}

// hostName gives a claimed name as it is remembered and shown: NAME, or
// [NAME]:PORT where the port is not 22, in lower case, without a dot at the end,
// and an IP address in its usual form, so that spellings of one name are one. Only
// what shows as itself is fit: no text that could pass for something else in a
// prompt, for two names, or for the like of another one.
func hostName(claimed string) (name string, ok bool) {
	if len(claimed) > maxHostName || strings.ContainsFunc(claimed, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", false
	}
	name = strings.ToLower(claimed)
	port, ported := "", false
	if inside, bracketed := strings.CutPrefix(name, "["); bracketed {
		var after string
		if name, after, ok = strings.Cut(inside, "]"); !ok {
			return "", false
		}
		if port, ported = strings.CutPrefix(after, ":"); !ported && after != "" {
			return "", false
		}
	} else if strings.Count(name, ":") == 1 { // an IPv6 address has more
		name, port, ported = strings.Cut(name, ":")
	}
	if n, err := strconv.ParseUint(port, 10, 16); ported && (err != nil || n == 0 || strconv.FormatUint(n, 10) != port) {
		return "", false
	}
	name = strings.TrimSuffix(name, ".")
	if a, err := netip.ParseAddr(name); err == nil {
		// A zone tells interfaces apart where an address is one link's only. Elsewhere it
		// would be a second spelling.
		if z := a.Zone(); z != "" && (!a.IsLinkLocalUnicast() || !isLabel(z)) {
			return "", false
		}
		name = a.Unmap().String()
	} else if labels := strings.Split(name, "."); !each(labels, isLabel) || each(labels, isNumber) {
		return "", false // inet_aton(3) takes 192.0.2.07 and 3221225991 for addresses
	}
	if ported && port != "22" {
		name = "[" + name + "]:" + port
	}
	return name, len(name) <= maxHostName
}

func each(list []string, is func(string) bool) bool {
	return !slices.ContainsFunc(list, func(s string) bool { return !is(s) })
}

// isLabel is for one label of a name in lower case. known_hosts has names with
// underscores, too.
func isLabel(s string) bool {
	return s != "" && s[0] != '-' && s[len(s)-1] != '-' && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-_") == ""
}

// isNumber says whether inet_aton(3) takes a label for a number.
func isNumber(s string) bool {
	if hex, ok := strings.CutPrefix(s, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(s, "0123456789") == ""
}

// spelled gives a claimed name for people: as it is remembered, or, when it is
// not fit, quoted and in ASCII, so that it does not look like another name.
func spelled(claimed string) (text string, fit bool) {
	if name, ok := hostName(claimed); ok {
		return name, true
	}
	return strconv.QuoteToASCII(claimed), false
}

// fitNames are the names that are remembered, each once.
func fitNames(claimed []string) (names []string) {
	for _, c := range claimed {
		if n, ok := hostName(c); ok && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return names
}

// with gives the key of a name, nil when it is none of the name's.
func (h approvals) with(name, key string) *approved {
	rows := h[name]
	if i := slices.IndexFunc(rows, func(a approved) bool { return a.Key == key }); i >= 0 {
		return &rows[i]
	}
	return nil
}

// names gives the names of a key in their order, without the empty one.
func (h approvals) names(key string) (names []string) {
	for name := range h {
		if name != "" && h.with(name, key) != nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// under is where an approval of a key is remembered: under its fit names, else
// under the empty one unless the key has a name already.
func (h approvals) under(names []string, key string) []string {
	if len(names) == 0 && len(h.names(key)) == 0 {
		return []string{""}
	}
	return names
}

// has says whether an approval on a day adds nothing.
func (h approvals) has(names []string, key, day string) bool {
	for _, n := range h.under(names, key) {
		if a := h.with(n, key); a == nil || a.Last < day {
			return false
		}
	}
	return true
}

// add remembers an approval, and drops what was used least recently beyond the
// bounds.
func (h approvals) add(names []string, key, day string) {
	names = h.under(names, key)
	for _, n := range names {
		now := approved{key, day, day}
		if a := h.with(n, key); a != nil {
			now.First, now.Last = a.First, max(a.Last, day)
		}
		rows := slices.DeleteFunc(h[n], func(a approved) bool { return a.Key == key })
		rows = append(rows, now)
		h[n] = rows[max(0, len(rows)-most(n)):]
	}
	over := h.count() - maxHosts
	if over <= 0 {
		return
	}
	var others []string
	for n := range h {
		if n != "" && !slices.Contains(names, n) {
			others = append(others, n)
		}
	}
	slices.SortFunc(others, func(a, b string) int {
		last := func(rows []approved) string { return rows[len(rows)-1].Last }
		return cmp.Or(cmp.Compare(last(h[a]), last(h[b])), cmp.Compare(a, b))
	})
	for _, n := range others[:over] {
		delete(h, n)
	}
}

// most bounds the keys of a name.
func most(name string) int {
	if name == "" {
		return maxNameless
	}
	return maxHostKeys
}

// count is that of the names, without the empty one.
func (h approvals) count() int {
	if _, ok := h[""]; ok {
		return len(h) - 1
	}
	return len(h)
}

// rows gives everything in the order of names, what has none at the end.
func (h approvals) rows() []HostKey {
	list := []HostKey{}
	add := func(name string) {
		for _, a := range h[name] {
			list = append(list, HostKey{name, a.Key, a.First, a.Last})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(h)) {
		if name != "" {
			add(name)
		}
	}
	add("")
	return list
}

// is says whether a word of the owner's means this key. An empty one does not mean
// those without a name.
func (k HostKey) is(word string) bool {
	name, ok := hostName(word)
	return ok && k.Name == name || k.Fingerprint == word
}

// remove forgets a name or, named by its fingerprint, a key.
func (h approvals) remove(what string) (gone []HostKey) {
	for _, k := range h.rows() {
		if !k.is(what) {
			continue
		}
		gone = append(gone, k)
		h[k.Name] = slices.DeleteFunc(h[k.Name], func(a approved) bool { return a.Key == k.Fingerprint })
		if len(h[k.Name]) == 0 {
			delete(h, k.Name)
		}
	}
	return gone
}

// check is for what was read, and for what is to be written: a file that cannot
// be read again would be damage.
func (h approvals) check() error {
	if h.count() > maxHosts {
		return fmt.Errorf("%d names, more than %d", h.count(), maxHosts)
	}
	for name, rows := range h {
		if n, ok := hostName(name); name != "" && (!ok || n != name) {
			return fmt.Errorf("the name %q", clean(name))
		}
		if len(rows) == 0 || len(rows) > most(name) {
			return fmt.Errorf("%d keys of %q", len(rows), name)
		}
		keys := map[string]bool{}
		for _, a := range rows {
			if err := a.check(); err != nil {
				return fmt.Errorf("%q: %w", name, err)
			}
			if keys[a.Key] {
				return fmt.Errorf("%q: the key %s twice", name, a.Key)
			}
			keys[a.Key] = true
		}
	}
	return nil
}

func (a approved) check() error {
	const sign = "SHA256:"
	sum, ok := strings.CutPrefix(a.Key, sign)
	if b, err := base64.RawStdEncoding.Strict().DecodeString(sum); !ok || err != nil || len(b) != 32 {
		return fmt.Errorf("no fingerprint: %q", clean(a.Key))
	}
	for _, day := range []string{a.First, a.Last} {
		if _, err := time.Parse(time.DateOnly, day); err != nil {
			return fmt.Errorf("no day: %q", clean(day))
		}
	}
	if a.First > a.Last {
		return fmt.Errorf("first approved on %s, last on %s", a.First, a.Last)
	}
	return nil
}

// hostsFile is what hosts.json has.
type hostsFile struct {
	Version int       `json:"version"`
	Hosts   approvals `json:"hosts"`
}

// parseHosts reads hosts.json strictly. A newer version is not damage.
func parseHosts(b []byte) (approvals, error) {
	var v struct {
		Version int            `json:"version"`
		Rest    jsontext.Value `json:",unknown"`
	}
	if err := json.Unmarshal(b, &v); err == nil && v.Version > hostsVersion {
		return nil, fmt.Errorf("%w (%s has version %d, this one reads %d)", ErrStateVersion, hostsName, v.Version, hostsVersion)
	}
	var f hostsFile
	if err := json.Unmarshal(b, &f, json.RejectUnknownMembers(true)); err != nil {
		return nil, &damagedError{err}
	}
	if f.Version != hostsVersion {
		return nil, &damagedError{fmt.Errorf("version %d", f.Version)}
	}
	if err := f.Hosts.check(); err != nil {
		return nil, &damagedError{err}
	}
	if f.Hosts == nil {
		f.Hosts = approvals{}
	}
	return f.Hosts, nil
}

// readHosts reads hosts.json; without the file nothing is remembered.
func (h *Home) readHosts() (approvals, error) {
	f, err := os.Open(h.path(hostsName))
	if errors.Is(err, fs.ErrNotExist) {
		return approvals{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxHostsFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxHostsFile {
		return nil, &damagedError{fmt.Errorf("larger than %d bytes", maxHostsFile)}
	}
	return parseHosts(b)
}

func (h *Home) writeHosts(known approvals) error {
	if err := known.check(); err != nil {
		return err
	}
	b, err := json.Marshal(hostsFile{hostsVersion, known}, json.Deterministic(true), jsontext.WithIndent("  "))
	if err != nil {
		return err
	}
	return store.WriteFile(h.path(hostsName), append(b, '\n'))
}

// hosts gives what is remembered. A damaged file is set aside and said.
func (h *Home) hosts() (approvals, error) {
	known, err := h.readHosts()
	var damaged *damagedError
	if errors.As(err, &damaged) {
		return h.updateHosts(context.Background(), func(approvals) (bool, error) { return false, nil })
	}
	return known, err
}

// updateHosts changes what is remembered: change gets that, and says whether it
// changed anything. It gives what is on disk now. Error: ErrHomeBusy when ctx
// ends before its turn.
func (h *Home) updateHosts(ctx context.Context, change func(approvals) (bool, error)) (approvals, error) {
	release, err := h.lockWhile(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	known, err := h.readHosts()
	var damaged *damagedError
	if errors.As(err, &damaged) {
		known, err = h.recoverHostsLocked(damaged)
	}
	if err != nil {
		return nil, err
	}
	changed, err := change(known)
	if err != nil {
		return nil, err
	}
	if changed {
		err = h.writeHosts(known)
	}
	return known, err
}

// recoverHostsLocked sets a damaged hosts.json aside. Every host key is new to
// the signer then.
func (h *Home) recoverHostsLocked(damage *damagedError) (approvals, error) {
	aside, err := setAside(h.path(hostsName))
	if err != nil {
		return nil, fmt.Errorf("%s: %w; setting it aside: %w", hostsName, damage.cause, err)
	}
	h.warn(fmt.Sprintf("%s was damaged (%v) and is now %s: no host key is remembered", h.path(hostsName), damage.cause, aside))
	return approvals{}, store.SyncDir(h.dir)
}

// HostKeys gives the host keys that the owner has approved, in the order of
// names, those without a name at the end.
func (h *Home) HostKeys() ([]HostKey, error) {
	known, err := h.hosts()
	if err != nil {
		return nil, err
	}
	return known.rows(), nil
}

// RemoveHosts forgets host keys, each word a name, with all its keys, or a key's
// fingerprint, under all its names. It gives what was forgotten. Error:
// ErrNoHost, when a word is neither; nothing is forgotten then.
func (h *Home) RemoveHosts(words ...string) ([]HostKey, error) {
	gone := []HostKey{}
	_, err := h.updateHosts(context.Background(), func(known approvals) (bool, error) {
		before := known.rows()
		for _, w := range words {
			if !slices.ContainsFunc(before, func(k HostKey) bool { return k.is(w) }) {
				text, _ := spelled(w)
				return false, fmt.Errorf("%w: %s", ErrNoHost, text)
			}
			gone = append(gone, known.remove(w)...)
		}
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	return gone, nil
}

// Memory is what the signer remembers of a login's host, from what its owner
// approved before.
type Memory struct {
	// Other has each claimed name that was approved with other keys, and not with
	// this login's, with the key that was used last.
	Other     []Known
	Names     []Known // this login's key under claimed names
	Elsewhere []Known // this login's key under other names, and under none
}

// Known is a host key of the memory.
type Known struct {
	HostKey
	Keys int // of the name
}

// recall gives what is remembered about a login to a host of these names with
// the key of this fingerprint, which is empty when it is not verified.
func (h approvals) recall(claimed []string, key string) *Memory {
	m := &Memory{}
	known := func(name string, a approved) Known {
		return Known{HostKey{name, a.Key, a.First, a.Last}, len(h[name])}
	}
	names := fitNames(claimed)
	for _, n := range names {
		rows := h[n]
		if a := h.with(n, key); a != nil {
			m.Names = append(m.Names, known(n, *a))
		} else if len(rows) > 0 {
			m.Other = append(m.Other, known(n, rows[len(rows)-1]))
		}
	}
	for _, n := range append(h.names(key), "") {
		if a := h.with(n, key); a != nil && !slices.Contains(names, n) {
			m.Elsewhere = append(m.Elsewhere, known(n, *a))
		}
	}
	return m
}

// short is the name for a line that has others too.
func (k Known) short() string {
	const most = 40
	return shown(k.Name, most)
}

// warning names the field that cannot be overlooked.
const warning = "WARNING"

// warned says whether a claimed name was approved with other keys only.
func (v *Verified) warned() bool {
	return v.HostKey != "" && v.Memory != nil && len(v.Memory.Other) > 0
}

// warnings are the fields about names that have another host key now.
func (v *Verified) warnings() []Field {
	if !v.warned() {
		return nil
	}
	other := v.Memory.Other
	first := other[0]
	var same []string // names that have had the same key
	for _, k := range other {
		if k.Fingerprint == first.Fingerprint && k.Last == first.Last && k.Keys == first.Keys {
			same = append(same, k.short())
		}
	}
	has, before := "has", "the one approved before:"
	if len(same) > 1 {
		has = "have"
	}
	if first.Keys > 1 {
		before = fmt.Sprintf("the %d approved before, last:", first.Keys)
	}
	fields := []Field{
		{warning, fmt.Sprintf("%s %s another host key than %s", some(same), has, before)},
		{warning, first.Fingerprint + " on " + first.Last},
	}
	switch n := len(other) - len(same); {
	case n == 1:
		fields = append(fields, Field{warning, "1 more name has another one, too"})
	case n > 1:
		fields = append(fields, Field{warning, fmt.Sprintf("%d more names have another one, too", n)})
	}
	return fields
}

// known are the fields that say since when the login's host key is known.
func (p *Prompt) known() []Field {
	m := p.Verified.Memory
	if m == nil {
		return nil
	}
	text := "no, this host key was not approved before"
	switch {
	case p.Verified.HostKey == "":
		// A device that leaves the host key out of a login does not get rid of what is
		// remembered.
		if len(m.Other) == 0 {
			return nil
		}
		return []Field{
			{"known", m.Other[0].short() + " had a verified host key before:"},
			{"known", m.Other[0].Fingerprint + " on " + m.Other[0].Last},
		}
	case len(m.Names) > 0:
		text = since(m.Names)
	case len(m.Elsewhere) > 0:
		text = since(m.Elsewhere)
		if len(p.Claimed.HostNames) > 0 {
			text += ", by none of the names claimed now"
		}
	}
	return []Field{{"known", text}}
}

// since lists names with the days of their first approvals.
func since(list []Known) string {
	var parts []string
	for _, k := range list {
		part := "without a name since " + k.First
		if k.Name != "" {
			part = "as " + k.short() + " since " + k.First
			if k.Keys > 1 {
				part += fmt.Sprintf(" (one of %d keys)", k.Keys)
			}
		}
		parts = append(parts, part)
	}
	return some(parts)
}
