// SPDX-License-Identifier: BSD-3-Clause

// Package knownhosts reads ssh's known_hosts files (sshd(8), SSH_KNOWN_HOSTS FILE
// FORMAT): the keys that a name has, and the names that a key has. Which names a
// hashed entry may stand for it takes from what a client's command line and ssh's
// configuration mention.
package knownhosts

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"io"
	"iter"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/fingerprint"
	"vmux.app/toolkit/internal/pattern"
)

const (
	// maxFile bounds what is read of one file; 100,000 hosts fit.
	maxFile = 16 << 20
	// maxFiles bounds what is read of all files, of which a client can name some.
	maxFiles = 32 << 20
	// maxNames bounds the names of one key, of which a fleet or a service with many
	// addresses has dozens.
	maxNames = 256
	// maxEntries bounds what is looked at of one key.
	maxEntries = 2048
	// maxName bounds what can be a candidate. No name in the DNS is longer.
	maxName = 255
	// maxPrincipals bounds the candidates among the principals of a host's
	// certificate, which are a few names and addresses.
	maxPrincipals = 64
	// maxTries bounds how often a name is hashed, which takes well under a
	// microsecond: 10 ms in all. A key has few hashed names, so that thousands of
	// candidates are tried.
	maxTries = 16384
)

// Files gives the files that ssh reads by default for a user with this home.
func Files(home string) []string {
	var files []string
	if home != "" {
		files = append(files, filepath.Join(home, ".ssh", "known_hosts"), filepath.Join(home, ".ssh", "known_hosts2"))
	}
	return append(files, "/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
}

// Host is a host key, or the fingerprint alone of one that no file has.
type Host struct {
	Fingerprint string
	Key         ssh.PublicKey // nil in no file
}

// UnknownError says that no file has a name.
type UnknownError struct{ Name string }

func (e *UnknownError) Error() string { return fmt.Sprintf("%q is not in known_hosts", e.Name) }

// FingerprintError says that what begins like a fingerprint is none.
type FingerprintError struct{ Text string }

func (e *FingerprintError) Error() string {
	return fmt.Sprintf("%q is no fingerprint: SHA256: and 43 characters", e.Text)
}

// Lookup gives the host keys that a person means by a name, as Keys has them, or by a fingerprint. The error is
// *UnknownError or *FingerprintError.
func Lookup(files []string, name string) ([]Host, error) {
	var hosts []Host
	if strings.HasPrefix(name, fingerprint.Prefix) {
		if !fingerprint.Valid(name) {
			return nil, &FingerprintError{name}
		}
		return append(hosts, Host{name, ByFingerprint(files, name)}), nil
	}
	for _, k := range Keys(files, name) {
		hosts = append(hosts, Host{ssh.FingerprintSHA256(k), k})
	}
	if len(hosts) == 0 {
		return nil, &UnknownError{name}
	}
	return hosts, nil
}

// Keys gives the host keys that the files have for a name, as ssh looks for them: in small letters, through hashed
// names and patterns, without what is revoked for it. The name is written as NAME, NAME:PORT or [NAME]:PORT. As
// ssh does, it passes over what cannot be read and over malformed lines.
func Keys(files []string, name string) []ssh.PublicKey {
	name = written(name)
	var keys, revoked []ssh.PublicKey
	for l := range all(files) {
		switch {
		case !l.isFor(name):
		case l.marker == "":
			keys = append(keys, l.key)
		case l.marker == markRevoked:
			revoked = append(revoked, l.key)
		}
	}
	var kept []ssh.PublicKey
	for _, k := range keys {
		if !contains(revoked, k) && !contains(kept, k) {
			kept = append(kept, k)
		}
	}
	return kept
}

// ByFingerprint gives the host key with a fingerprint, nil if no file has it.
func ByFingerprint(files []string, print string) ssh.PublicKey {
	for l := range all(files) {
		if l.marker == "" && ssh.FingerprintSHA256(l.key) == print {
			return l.key
		}
	}
	return nil
}

func contains(keys []ssh.PublicKey, key ssh.PublicKey) bool {
	return slices.ContainsFunc(keys, func(k ssh.PublicKey) bool { return bytes.Equal(k.Marshal(), key.Marshal()) })
}

// written gives a name as ssh looks for it.
func written(name string) string {
	name = strings.ToLower(name)
	port := "22"
	if n, p, err := net.SplitHostPort(name); err == nil {
		name, port = n, p
	}
	name = strings.Trim(name, "[]")
	if a, err := netip.ParseAddr(name); err == nil {
		name = a.String()
	}
	if port == "22" {
		return name
	}
	return "[" + name + "]:" + port
}

// portless takes brackets and port off a name as ssh looks for it.
func portless(name string) string {
	if inner, ok := strings.CutPrefix(name, "["); ok {
		name, _, _ = strings.Cut(inner, "]")
	}
	return name
}

// A line of a file. Its marker is empty, markAuthority, markRevoked or what ssh does not know.
type line struct {
	marker string
	hosts  []string
	key    ssh.PublicKey
}

const (
	markAuthority = "cert-authority"
	markRevoked   = "revoked"
)

// all gives the well-formed lines of the files.
func all(files []string) iter.Seq[line] {
	return func(yield func(line) bool) {
		for _, text := range texts(files) {
			for one := range bytes.Lines(text) {
				if l, ok := parse(one); ok && !yield(l) {
					return
				}
			}
		}
	}
}

func parse(one []byte) (l line, ok bool) {
	var err error
	l.marker, l.hosts, l.key, _, _, err = ssh.ParseKnownHosts(one)
	return l, err == nil
}

// isFor says whether a line is for a name in the form of written.
func (l line) isFor(name string) bool {
	if h, ok := parseHashed(l.hosts); ok {
		return h.of([]string{name}) == 0
	}
	return listed(l.hosts, name, true)
}

// listed says whether a list of patterns has a name in small letters, as ssh matches them: none of those with ! before
// them may fit. Those that fit whatever name count if whatever says so.
func listed(patterns []string, name string, whatever bool) bool {
	is := false
	for _, p := range patterns {
		p, not := strings.CutPrefix(p, "!")
		if !pattern.Match(p, name, true) {
			continue
		}
		if not {
			return false
		}
		is = is || whatever || strings.Trim(p, "*?.") != ""
	}
	return is
}

// Candidates are names that hashed entries may stand for, the likeliest first:
// how many are tried is bounded.
type Candidates struct {
	Names []string // as ssh looks them up: NAME, or [NAME]:PORT where the port is not 22
	Ports []uint16 // of a NAME without a port, [NAME]:PORT is tried too
}

// all gives every form of the candidates as ssh hashes it, in small letters.
func (c Candidates) all(most int) []string {
	var suffixes []string
	for _, port := range c.Ports {
		if port != 22 {
			suffixes = append(suffixes, "]:"+strconv.Itoa(int(port)))
		}
	}
	var all []string
	for _, name := range c.Names {
		if name = strings.ToLower(name); len(name) > maxName {
			continue
		}
		all = append(all, name)
		if !strings.HasPrefix(name, "[") {
			for _, s := range suffixes {
				all = append(all, "["+name+s)
			}
		}
		if len(all) >= most {
			return all[:most]
		}
	}
	return all
}

// Names gives the names that the files have for a host key, at most 256: first
// those that are candidates, in the candidates' order, then the others in the
// files' order.
//
// A hashed name, and one that a line has a pattern for, is told when it is a
// candidate's; * alone is for every name and tells none. Of a host certificate
// those that its principals have and a line of its authority, which must have
// signed it for now, count as well. Where there are so many hashed names and
// patterns that to try all candidates with each took more than 16384 tries, only
// the first candidates are tried. Revoked keys are nobody's. What cannot be read has
// no names.
func Names(files []string, key ssh.PublicKey, candidates Candidates) []string {
	cert, ok := key.(*ssh.Certificate)
	if ok {
		key = cert.Key
	}
	read := texts(files)
	known := find(read, key.Marshal(), "")
	var vouched entries
	if ok && authentic(cert) {
		vouched = find(read, cert.SignatureKey.Marshal(), markAuthority)
		vouched.plain = slices.DeleteFunc(vouched.plain, func(name string) bool { return !principal(cert, strings.ToLower(name)) })
		vouched.hashed = nil // ssh-keygen hashes no authority's
		// The authority says these, whoever mentions them.
		said := slices.DeleteFunc(slices.Clone(cert.ValidPrincipals), func(p string) bool { return p == "" || strings.ContainsAny(p, "*?!|,[]") })
		candidates.Names = slices.Concat(said[:min(len(said), maxPrincipals)], candidates.Names)
	}
	plain := slices.Concat(known.plain, vouched.plain)
	tries := len(known.hashed) + known.patterns + vouched.patterns
	if len(plain)+tries == 0 {
		return nil
	}
	// Each hashed name gets the same number of tries, so that many do not hide one.
	tried := candidates.all(maxTries / max(1, tries))
	found := map[string]string{} // as the file has it, by itself in small letters
	for _, h := range known.hashed {
		if i := h.of(tried); i >= 0 {
			found[tried[i]] = tried[i]
		}
	}
	for _, name := range tried {
		if slices.ContainsFunc(known.lists, func(list []string) bool { return listed(list, name, false) }) ||
			slices.ContainsFunc(vouched.lists, func(list []string) bool {
				return principal(cert, name) && listed(list, name, len(cert.ValidPrincipals) > 0)
			}) {
			found[name] = name
		}
	}
	for _, name := range slices.Backward(plain) {
		found[strings.ToLower(name)] = name
	}
	var names []string
	take := func(name string) {
		if as, ok := found[name]; ok && len(names) < maxNames {
			delete(found, name)
			names = append(names, as)
		}
	}
	for _, name := range tried {
		take(name)
	}
	for _, name := range plain {
		take(strings.ToLower(name))
	}
	return names
}

// authentic says whether a host certificate is as its authority has signed it, and valid now. Whose authority that is, is
// another question.
func authentic(cert *ssh.Certificate) bool {
	if cert.CertType != ssh.HostCert || cert.SignatureKey == nil || cert.Signature == nil || cert.Signature.Format == ssh.KeyAlgoRSA {
		return false // ssh takes no SHA-1 from an authority
	}
	var first string
	if len(cert.ValidPrincipals) > 0 {
		first = cert.ValidPrincipals[0]
	}
	return new(ssh.CertChecker).CheckCert(first, cert) == nil
}

// principal says whether a certificate is for a name in small letters, whatever the port: ssh takes principals of hosts for
// patterns, and none for all.
func principal(cert *ssh.Certificate, name string) bool {
	name = portless(name)
	return len(cert.ValidPrincipals) == 0 || slices.ContainsFunc(cert.ValidPrincipals[:min(len(cert.ValidPrincipals), maxNames)],
		func(p string) bool { return pattern.Match(p, name, false) })
}

// entries is what the files have for a key.
type entries struct {
	plain  []string
	hashed []hashed
	lists  [][]string // of lines with patterns, whole

	patterns int // in lists
}

func (e *entries) full() bool { return len(e.plain)+len(e.hashed)+e.patterns >= maxEntries }

// find gives what lines with a marker have for a key.
func find(texts [][]byte, blob []byte, marker string) entries {
	var e entries
	// Most lines are of other keys. The text of the key tells, without decoding
	// them all: ssh takes no other one for the same key.
	key := []byte(base64.StdEncoding.EncodeToString(blob))
	for _, rest := range texts {
		for !e.full() {
			i := bytes.Index(rest, key)
			if i < 0 {
				break
			}
			start := bytes.LastIndexByte(rest[:i], '\n') + 1
			one, after, _ := bytes.Cut(rest[start:], []byte("\n"))
			rest = after
			l, ok := parse(one)
			if !ok || l.marker != marker || !bytes.Equal(l.key.Marshal(), blob) {
				continue
			}
			if h, ok := parseHashed(l.hosts); ok {
				e.hashed = append(e.hashed, h)
				continue
			}
			if !strings.HasPrefix(l.hosts[0], "|") {
				e.add(l.hosts)
			}
		}
	}
	return e
}

func (e *entries) add(hosts []string) {
	patterns := 0
	for _, h := range hosts {
		switch {
		case strings.ContainsAny(h, "*?!"):
			patterns++
		case !e.full():
			e.plain = append(e.plain, h)
		}
	}
	if patterns > 0 && len(e.plain)+len(e.hashed)+e.patterns+len(hosts) <= maxEntries {
		e.lists = append(e.lists, hosts)
		e.patterns += len(hosts)
	}
}

// hashed is a name as ssh-keygen -H leaves it.
type hashed struct {
	salt, hash []byte
}

// parseHashed reads |1|SALT|HASH, which is always the only name of its line. Both
// are as long as a SHA-1 hash, or ssh does not use the line.
func parseHashed(hosts []string) (hashed, bool) {
	if len(hosts) != 1 {
		return hashed{}, false
	}
	parts := strings.Split(hosts[0], "|")
	if len(parts) != 4 || parts[0] != "" || parts[1] != "1" {
		return hashed{}, false
	}
	salt, err := base64.StdEncoding.Strict().DecodeString(parts[2])
	if err != nil || len(salt) != sha1.Size {
		return hashed{}, false
	}
	hash, err := base64.StdEncoding.Strict().DecodeString(parts[3])
	if err != nil || len(hash) != sha1.Size {
		return hashed{}, false
	}
	return hashed{salt, hash}, true
}

// of gives which of the names was hashed, -1 if none.
func (h hashed) of(names []string) int {
	mac := hmac.New(sha1.New, h.salt)
	var sum [sha1.Size]byte
	for i, name := range names {
		mac.Reset()
		io.WriteString(mac, name)
		if bytes.Equal(mac.Sum(sum[:0]), h.hash) {
			return i
		}
	}
	return -1
}

// texts gives what the files have, as much as is read of them.
func texts(files []string) [][]byte {
	left := maxFiles
	var all [][]byte
	for _, file := range files {
		text := read(file, min(left, maxFile))
		left -= len(text)
		all = append(all, text)
	}
	return all
}

func read(file string, most int) []byte {
	// A pipe of that name would wait for its other end.
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil
	}
	var b bytes.Buffer
	b.Grow(int(min(info.Size(), int64(most))) + bytes.MinRead)
	if _, err := b.ReadFrom(io.LimitReader(f, int64(most))); err != nil {
		return nil
	}
	return b.Bytes()
}
