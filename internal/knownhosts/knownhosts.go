// SPDX-License-Identifier: BSD-3-Clause

// Package knownhosts reads ssh's known_hosts files (sshd(8), SSH_KNOWN_HOSTS FILE
// FORMAT): the keys that a name has, and the names that a key has.
package knownhosts

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

const (
	// maxFile bounds what is read of one file; 100,000 hosts fit.
	maxFile = 16 << 20
	// maxNames bounds the names of one key, of which a fleet or a service with many
	// addresses has dozens.
	maxNames = 256
	// maxEntries bounds what is looked at of one key.
	maxEntries = 2048
	// maxName bounds what can be a candidate. No name in the DNS is longer.
	maxName = 255
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

// Keys gives the host keys that the files have for a name, hashed names
// included. The name is written as NAME, NAME:PORT or [NAME]:PORT. Files that do
// not exist have none.
func Keys(files []string, name string) ([]ssh.PublicKey, error) {
	files = slices.DeleteFunc(slices.Clone(files), func(f string) bool {
		_, err := os.Stat(f)
		return errors.Is(err, os.ErrNotExist)
	})
	if len(files) == 0 {
		return nil, nil
	}
	check, err := knownhosts.New(files...)
	if err != nil {
		return nil, fmt.Errorf("known_hosts: %w", err)
	}
	address := name
	if _, _, err := net.SplitHostPort(name); err != nil {
		address = net.JoinHostPort(strings.Trim(name, "[]"), "22")
	}
	// A key that nobody has: the error names all that would have done.
	var known *knownhosts.KeyError
	if err := check(address, &net.TCPAddr{}, nobodys{}); !errors.As(err, &known) {
		return nil, nil
	}
	var keys []ssh.PublicKey
	for _, k := range known.Want {
		keys = append(keys, k.Key)
	}
	return keys, nil
}

// nobodys is a key that is in no file.
type nobodys struct{}

func (nobodys) Type() string                        { return "none" }
func (nobodys) Marshal() []byte                     { return []byte("none") }
func (nobodys) Verify([]byte, *ssh.Signature) error { return errors.New("nobody's key") }

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
// files' order. A hashed name is told when it is a candidate's. Where the key has
// so many hashed names that to try all candidates with each took more than 16384
// tries, only the first candidates are tried. Patterns, revoked keys and
// authorities are no names. What cannot be read has none.
func Names(files []string, key ssh.PublicKey, candidates Candidates) []string {
	if c, ok := key.(*ssh.Certificate); ok {
		key = c.Key
	}
	plain, secret := find(files, key.Marshal())
	if len(plain)+len(secret) == 0 {
		return nil
	}
	// Each hashed name gets the same number of tries, so that many do not hide one.
	tried := candidates.all(maxTries / max(1, len(secret)))
	found := map[string]string{} // as the file has it, by itself in small letters
	for _, h := range secret {
		if i := h.of(tried); i >= 0 {
			found[tried[i]] = tried[i]
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

// find gives the plain and the hashed names of a key.
func find(files []string, blob []byte) (plain []string, secret []hashed) {
	// Most lines are of other keys. The text of the key tells, without decoding
	// them all: ssh takes no other one for the same key.
	text := []byte(base64.StdEncoding.EncodeToString(blob))
	for _, file := range files {
		for rest := read(file); len(plain)+len(secret) < maxEntries; {
			i := bytes.Index(rest, text)
			if i < 0 {
				break
			}
			start := bytes.LastIndexByte(rest[:i], '\n') + 1
			line, after, _ := bytes.Cut(rest[start:], []byte("\n"))
			rest = after
			marker, hosts, k, _, _, err := ssh.ParseKnownHosts(line)
			if err != nil || marker != "" || !bytes.Equal(k.Marshal(), blob) {
				continue
			}
			if h, ok := parseHashed(hosts); ok {
				secret = append(secret, h)
				continue
			}
			for _, h := range hosts {
				if !strings.HasPrefix(hosts[0], "|") && !strings.ContainsAny(h, "*?!") && len(plain)+len(secret) < maxEntries {
					plain = append(plain, h)
				}
			}
		}
	}
	return plain, secret
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

func read(file string) []byte {
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
	b.Grow(int(min(info.Size(), maxFile)) + bytes.MinRead)
	if _, err := b.ReadFrom(io.LimitReader(f, maxFile)); err != nil {
		return nil
	}
	return b.Bytes()
}
