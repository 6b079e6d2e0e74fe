// SPDX-License-Identifier: BSD-3-Clause

package knownhosts

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

const (
	// maxWords bounds what is taken from a command line; ssh's own options come
	// before the remote command.
	maxWords = 256
	// maxConfigNames and maxPorts bound what is taken from ssh's configuration and,
	// the second, from a command line.
	maxConfigNames = 4096
	maxPorts       = 64
	// maxPatterns bounds HostName %h.example and the like: each makes one more name
	// of every word of a command line.
	maxPatterns = 16
	// maxConfigFiles and maxConfigSize bound what is read of ssh's configuration;
	// maxIncludes, how deep, is ssh's own bound.
	maxConfigFiles = 64
	maxConfigSize  = 1 << 20
	maxIncludes    = 16
	// maxKnownHosts bounds the known_hosts files that are named in either.
	maxKnownHosts = 16
)

// Config is where ssh's configuration is (ssh_config(5)). It is read each time, as
// ssh does.
type Config struct {
	Home   string // $HOME if empty
	System string // /etc/ssh if empty
}

// Mentioned gives the names that known_hosts may mean, and the files to look into:
// also, what a client's command line mentions and what ssh's configuration does,
// whatever host that is for. What the caller wants to know comes first, so that no
// command line can crowd it out. The files are those of Files, then those that
// either names. How much is taken of each is bounded; what cannot be read mentions
// nothing.
func (c Config) Mentioned(args, also []string) (Candidates, []string) {
	home, system := c.Home, c.System
	if home == "" {
		home = os.Getenv("HOME")
	}
	if system == "" {
		system = "/etc/ssh"
	}
	var typed mentions
	typed.arguments(args)
	configs := typed.options(args, home)
	configured := mentions{left: maxConfigSize}
	if home != "" {
		own := filepath.Join(home, ".ssh")
		for _, path := range configs {
			configured.file(path, own, home, 0)
		}
		configured.file(filepath.Join(own, "config"), own, home, 0)
	}
	configured.file(filepath.Join(system, "ssh_config"), system, home, 0)

	found := Candidates{Names: slices.Concat(also, typed.names), Ports: slices.Concat(typed.ports, configured.ports)}
	for _, p := range configured.patterns {
		for _, name := range typed.names {
			found.Names = append(found.Names, strings.NewReplacer("%%", "%", "%h", name).Replace(p))
		}
	}
	found.Names = append(found.Names, configured.names...)

	files := Files(home)
	for _, f := range append(typed.knownHosts, configured.knownHosts...) {
		if !slices.Contains(files, f) && len(files) < len(Files(home))+maxKnownHosts {
			files = append(files, f)
		}
	}
	return found, files
}

// mentions are what may be names and ports of hosts, in the order of their
// mention.
type mentions struct {
	names    []string
	ports    []uint16
	patterns []string // names with %h for the one that was typed

	knownHosts []string // files

	files, left int // read, and bytes that may be read
}

// arguments takes every word of a command line that may be a host's name, and
// every port. Which ones they are depends on the program and its version, and a
// wrong guess costs a try.
func (m *mentions) arguments(args []string) {
	words := 0
	for _, arg := range args[min(1, len(args)):] {
		// -o HostName=x, -o "HostName x", -J x,y
		for _, word := range strings.FieldsFunc(arg, func(r rune) bool { return unicode.IsSpace(r) || strings.ContainsRune(`,="`, r) }) {
			if words++; words > maxWords {
				return
			}
			if strings.HasPrefix(word, "-") {
				word = word[min(2, len(word)):] // -p2222, -Jx
			}
			m.word(word)
		}
	}
}

// options takes the files that a command line names: -o UserKnownHostsFile=x, -F x.
// It gives those of ssh's configuration.
func (m *mentions) options(args []string, home string) (configs []string) {
	for i, arg := range args[:min(len(args), maxWords)] {
		if i == 0 {
			continue
		}
		value, ok := strings.CutPrefix(arg, "-F")
		if ok && value == "" && i+1 < len(args) {
			value = args[i+1]
		}
		if path := expand(value, home); ok && path != "" && len(configs) < maxConfigFiles {
			configs = append(configs, path)
		}
		m.knownHostsFiles(configWords(strings.TrimPrefix(arg, "-o")), home)
	}
	return configs
}

// knownHostsFiles takes the files of an option that names some.
func (m *mentions) knownHostsFiles(option []string, home string) {
	if len(option) < 2 || !strings.EqualFold(option[0], "UserKnownHostsFile") && !strings.EqualFold(option[0], "GlobalKnownHostsFile") {
		return
	}
	for _, word := range option[1:] {
		if path := expand(word, home); path != "" && len(m.knownHosts) < maxKnownHosts && !slices.Contains(m.knownHosts, path) {
			m.knownHosts = append(m.knownHosts, path)
		}
	}
}

// expand gives the absolute path that ssh makes of one with ~/, %d or %%, "" for
// others: what they are relative to, or made of, is the client's.
func expand(path, home string) string {
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		path = "%d/" + rest
	}
	if path = strings.NewReplacer("%%", "%", "%d", home, "%", "\x00", "${", "\x00").Replace(path); !filepath.IsAbs(path) || strings.Contains(path, "\x00") {
		return ""
	}
	return filepath.Clean(path)
}

// word takes [USER@]HOST[:PORT], [USER@][ADDRESS]:PORT, ssh://[USER@]HOST[:PORT][/PATH],
// or a port alone.
func (m *mentions) word(word string) {
	if _, after, ok := strings.Cut(word, "://"); ok {
		word, _, _ = strings.Cut(after, "/")
	}
	word = word[strings.LastIndexByte(word, '@')+1:]
	if strings.HasPrefix(word, "[") {
		name, rest, _ := strings.Cut(word[1:], "]")
		m.name(name)
		m.port(strings.TrimPrefix(rest, ":"))
		return
	}
	if strings.Count(word, ":") == 1 { // more are in an address
		name, port, _ := strings.Cut(word, ":")
		m.port(port)
		word = name
	}
	if !m.port(word) {
		m.name(word)
	}
}

// name takes what can be a name, and an address also as ssh would write it.
func (m *mentions) name(name string) {
	if name == "" || strings.ContainsFunc(name, func(r rune) bool {
		return unicode.IsSpace(r) || unicode.IsControl(r) || strings.ContainsRune(`*?!|/\,"'`, r)
	}) {
		return
	}
	m.names = append(m.names, name)
	if a, err := netip.ParseAddr(name); err == nil && a.String() != name {
		m.names = append(m.names, a.String())
	}
}

func (m *mentions) port(text string) bool {
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return false
	}
	if !slices.Contains(m.ports, uint16(port)) && len(m.ports) < maxPorts {
		m.ports = append(m.ports, uint16(port))
	}
	return true
}

// file takes the names and ports of one of ssh's configuration files, whatever
// host they are for, and of those that it includes, relative to dir.
func (m *mentions) file(path, dir, home string, depth int) {
	if m.files++; m.files > maxConfigFiles || depth > maxIncludes {
		return
	}
	text := read(path, m.left+1)
	if len(text) > m.left {
		return
	}
	m.left -= len(text)
	for line := range bytes.Lines(text) {
		words := configWords(string(line))
		if len(words) < 2 {
			continue
		}
		m.knownHostsFiles(words, home)
		for _, word := range words[1:] {
			switch strings.ToLower(words[0]) {
			case "host", "match":
				for part := range strings.SplitSeq(word, ",") {
					m.configured(part)
				}
			case "hostname", "hostkeyalias":
				m.configured(word)
			case "canonicaldomains":
				m.configured("%h." + word)
			case "port":
				m.port(word)
			case "include":
				if rest, ok := strings.CutPrefix(word, "~/"); ok {
					word = filepath.Join(home, rest)
				} else if !filepath.IsAbs(word) {
					word = filepath.Join(dir, word)
				}
				files, _ := filepath.Glob(word)
				for _, f := range files {
					m.file(f, dir, home, depth+1)
				}
			}
		}
	}
}

// configured takes a name of a configuration file, which may have ssh's tokens.
func (m *mentions) configured(name string) {
	switch {
	case strings.Contains(name, "%h"):
		if !slices.Contains(m.patterns, name) && len(m.patterns) < maxPatterns {
			m.patterns = append(m.patterns, name)
		}
	case len(m.names) < maxConfigNames:
		m.name(strings.ReplaceAll(name, "%%", "%"))
	}
}

// configWords splits a line of ssh_config(5): a keyword, then blanks or one equal
// sign, then words that can be quoted, up to a comment.
func configWords(line string) []string {
	line = strings.TrimSpace(line)
	end := strings.IndexAny(line, " \t=")
	if end < 0 {
		return nil
	}
	words := []string{line[:end]}
	rest := strings.TrimLeft(line[end:], " \t")
	rest = strings.TrimLeft(strings.TrimPrefix(rest, "="), " \t")
	for rest != "" && rest[0] != '#' {
		var word string
		if quote := rest[0]; quote == '"' || quote == '\'' {
			word, rest, _ = strings.Cut(rest[1:], string(quote))
		} else if end := strings.IndexAny(rest, " \t"); end >= 0 {
			word, rest = rest[:end], rest[end:]
		} else {
			word, rest = rest, ""
		}
		words = append(words, word)
		rest = strings.TrimLeft(rest, " \t")
	}
	return words
}
