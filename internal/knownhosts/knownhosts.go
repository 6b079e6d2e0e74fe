// SPDX-License-Identifier: BSD-3-Clause

// Package knownhosts reads ssh's known_hosts files (sshd(8), SSH_KNOWN_HOSTS FILE
// FORMAT): the keys that a name has, and the names that a key has.
package knownhosts

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

const (
	// maxFile bounds what is read of one file; 100,000 hosts fit.
	maxFile = 16 << 20
	// maxNames bounds the names of one key.
	maxNames = 16
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

// Names gives the names that the files have for a host key, in their order, at
// most 16. Hashed names cannot be told; patterns, revoked keys and authorities
// are no names. What cannot be read has none.
func Names(files []string, key ssh.PublicKey) []string {
	if c, ok := key.(*ssh.Certificate); ok {
		key = c.Key
	}
	want := key.Marshal()
	var names []string
	for _, file := range files {
		for rest := read(file); len(rest) > 0 && len(names) < maxNames; {
			marker, hosts, k, _, next, err := ssh.ParseKnownHosts(rest)
			if err != nil {
				if _, after, more := bytes.Cut(rest, []byte("\n")); more && !errors.Is(err, io.EOF) {
					rest = after // one bad line does not hide the rest
					continue
				}
				break
			}
			rest = next
			if marker != "" || !bytes.Equal(k.Marshal(), want) {
				continue
			}
			for _, h := range hosts {
				if !strings.HasPrefix(h, "|") && !strings.ContainsAny(h, "*?!") && !slices.Contains(names, h) && len(names) < maxNames {
					names = append(names, h)
				}
			}
		}
	}
	return names
}

func read(file string) []byte {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil
	}
	return b
}
