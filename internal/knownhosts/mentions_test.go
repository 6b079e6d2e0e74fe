// SPDX-License-Identifier: BSD-3-Clause

package knownhosts

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

func TestMentionedByArguments(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args  string // separated by |
		names string // separated by blanks
		ports []uint16
	}{
		{"ssh|deploy", "deploy", nil},
		{"ssh|me@deploy", "deploy", nil},
		{"ssh|me@corp@deploy", "deploy", nil},
		{"ssh|-p|2222|-l|me|deploy|uptime", "me deploy uptime", []uint16{2222}},
		{"ssh|-p2222|deploy", "deploy", []uint16{2222}},
		{"ssh|ssh://me@deploy:2222", "deploy", []uint16{2222}},
		{"ssh|ssh://me@[2001:db8::7]:2222/", "2001:db8::7", []uint16{2222}},
		{"ssh|ssh://deploy/path/to:7", "deploy", nil},
		{"ssh|-o|HostName=db.example|-o|HostKeyAlias db|-oPort=2222|x", "HostName db.example HostKeyAlias db Port x", []uint16{2222}},
		{`ssh|-o|HostName = "db.example"|x`, "HostName db.example x", nil},
		{"ssh|-J|me@jump:2200,gate|deploy", "jump gate deploy", []uint16{2200}},
		{"ssh|-Jjump|deploy", "jump deploy", nil},
		{"ssh|-W|[deploy]:22|jump", "deploy jump", []uint16{22}},
		{"ssh|-W[2001:DB8::7]:2222|jump", "2001:DB8::7 2001:db8::7 jump", []uint16{2222}},
		{"ssh|2001:db8:0:0::7", "2001:db8:0:0::7 2001:db8::7", nil},
		{"ssh|fe80::1%eth0", "fe80::1%eth0", nil},
		{"ssh|-x|-oPermitLocalCommand=no|-s|--|deploy|sftp", "PermitLocalCommand no deploy sftp", nil},
		{"ssh|-o|SendEnv=GIT_PROTOCOL|git@github.com|git-upload-pack 'o/r.git'", "SendEnv GIT_PROTOCOL github.com git-upload-pack", nil},
		{"ssh|-p|0|-p|65536|-p|2222|-p|2222", "0 65536", []uint16{2222}},
		{"ssh", "", nil},
		{"", "", nil},
		{"ssh|*.example|!x|a/b|a\x01b|-|--|me@|[|[]:|:|=|://|ssh://@:", "", nil},
	} {
		var m mentions
		m.arguments(strings.Split(c.args, "|"))
		if !slices.Equal(m.names, strings.Fields(c.names)) || !slices.Equal(m.ports, c.ports) {
			t.Errorf("%s: %q, %d", c.args, m.names, m.ports)
		}
	}
	many := []string{"ssh"}
	for i := range 1000 {
		many = append(many, fmt.Sprintf("h%d:%d", i, i+1))
	}
	var m mentions
	m.arguments(many)
	if len(m.names) != maxWords || len(m.ports) != maxPorts {
		t.Errorf("%d names, %d ports", len(m.names), len(m.ports))
	}
}

// computer is a home directory with ~/.ssh, and the system's directory for ssh.
type computer struct {
	t testing.TB
	Config
}

func newComputer(t testing.TB) *computer {
	t.Helper()
	home, system := t.TempDir(), t.TempDir()
	if err := os.MkdirAll(filepath.Join(home, ".ssh", "config.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	return &computer{t, Config{home, system}}
}

// write writes a file, in the system's directory when its name begins with
// etc/, else in ~/.ssh.
func (c *computer) write(name string, lines ...string) {
	c.t.Helper()
	path := filepath.Join(c.Home, ".ssh", name)
	if rest, ok := strings.CutPrefix(name, "etc/"); ok {
		path = filepath.Join(c.System, rest)
	}
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// known gives the names of a key that the computer knows when these are mentioned.
func (c *computer) known(key ssh.PublicKey, args, also []string) []string {
	candidates, files := c.Mentioned(args, also)
	return Names(files, key, candidates)
}

func TestMentionedByConfiguration(t *testing.T) {
	t.Parallel()
	c := newComputer(t)
	c.write("config",
		"# Host commented",
		"Host one two *.pattern !not three?",
		"  HOSTNAME=four.example",
		"\thostname = \"five.example\" # Host six",
		"  HostKeyAlias 'seven'",
		"  Port 2222",
		"  Port=022022",
		"  User hostname",
		"Match host eight,nine exec \"test -e /x\"",
		"Include config.d/*.conf ~/.ssh/ten "+c.Home+"/.ssh/absolute none",
		"Host eleven\r",
		"HostName %h.internal",
		"HostName %h.internal",
		"HostName fe80::1%%eth0",
		"CanonicalDomains a.example b.example",
		"Host \"unfinished",
		"Host",
		"")
	c.write("config.d/b.conf", "Host included-b", "Include config.d/a.conf")
	c.write("config.d/a.conf", "Host included-a", "Include ../.ssh/config.d/b.conf") // each other
	c.write("config.d/c.txt", "Host no")
	c.write("ten", "Host home")
	c.write("absolute", "Host absolute")
	c.write("etc/ssh_config", "Host system", "Include more", "Port 22")
	c.write("etc/more", "Host system-more", "HostName %%h.more")

	got, _ := c.Mentioned([]string{"ssh", "me@Typed", "db"}, []string{"wanted", "[wanted]:7"})
	if want := []string{"wanted", "[wanted]:7", "Typed", "db",
		"Typed.internal", "db.internal", "Typed.a.example", "db.a.example", "Typed.b.example", "db.b.example"}; !slices.Equal(got.Names[:len(want)], want) {
		t.Errorf("first %q", got.Names[:len(want)])
	}
	for _, want := range strings.Fields("one two four.example five.example seven eight nine included-a included-b home absolute eleven fe80::1%eth0 system system-more") {
		if !slices.Contains(got.Names, want) {
			t.Errorf("%q is not mentioned: %q", want, got.Names)
		}
	}
	for _, not := range strings.Fields("commented *.pattern !not not three? six hostname no") {
		if slices.Contains(got.Names, not) {
			t.Errorf("%q is mentioned", not)
		}
	}
	if want := []uint16{2222, 22022, 22}; !slices.Equal(got.Ports, want) {
		t.Errorf("ports %d", got.Ports)
	}
}

// A configuration that is endless, or a pipe, is left, and what is found until
// then counts.
func TestConfigurationIsBounded(t *testing.T) {
	t.Parallel()
	c := newComputer(t)
	if err := syscall.Mkfifo(filepath.Join(c.Home, ".ssh", "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.write("config", "Host first", "Include fifo big config.d many deep0", "Include config config config config", "Host last")
	c.write("big", strings.Repeat("#", maxConfigSize))
	var many strings.Builder
	for i := range 3 * maxConfigNames {
		fmt.Fprintf(&many, "Host h%d\nPort %d\nHostName %%h.%d\n", i, i+1, i)
	}
	c.write("many", many.String())
	for i := range 2 * maxIncludes {
		c.write(fmt.Sprintf("deep%d", i), fmt.Sprintf("Include deep%d", i+1), fmt.Sprintf("Port %d", i+1))
	}
	m := mentions{left: maxConfigSize}
	own := filepath.Join(c.Home, ".ssh")
	m.file(filepath.Join(own, "config"), own, c.Home, 0)
	if len(m.names) != maxConfigNames || len(m.ports) != maxPorts || len(m.patterns) != maxPatterns || m.left < 0 {
		t.Errorf("%d names, %d ports, %d patterns, %d left", len(m.names), len(m.ports), len(m.patterns), m.left)
	}
	if m.names[0] != "first" || m.names[1] != "h0" {
		t.Errorf("names: %q", m.names[:2])
	}
	m = mentions{left: maxConfigSize}
	m.file(filepath.Join(own, "deep0"), own, c.Home, 0)
	if len(m.ports) != maxIncludes+1 {
		t.Errorf("%d files deep", len(m.ports))
	}
	for i := range 2 * maxConfigFiles {
		c.write(fmt.Sprintf("config.d/%03d", i), fmt.Sprintf("Host c%d", i))
	}
	c.write("config", "Include config.d/*")
	m = mentions{left: maxConfigSize}
	m.file(filepath.Join(own, "config"), own, c.Home, 0)
	if len(m.names) != maxConfigFiles-1 {
		t.Errorf("%d files and the first", len(m.names))
	}
	half := strings.Repeat("#", maxConfigSize/2)
	c.write("half", "Host half", half)
	c.write("config", "Include half half")
	m = mentions{left: maxConfigSize}
	m.file(filepath.Join(own, "config"), own, c.Home, 0)
	if len(m.names) != 1 {
		t.Errorf("%d large files", len(m.names))
	}
}

func TestMentionedNames(t *testing.T) {
	t.Parallel()
	c := newComputer(t)
	key, line := hostKey(t)
	_, otherLine := hostKey(t)
	stranger, _ := hostKey(t)
	hash := func(name string) string { return knownhosts.HashHostname(name) + " " }
	c.write("known_hosts", hash("deploy")+line, hash("deploy.internal")+line, hash("[deploy]:2222")+line, hash("db.example")+line,
		hash("[2001:db8::7]:2222")+line, hash("elsewhere")+otherLine, "")
	c.write("config", "Host *", "HostName %h.internal", "Host data", "HostName db.example", "")

	for _, test := range []struct {
		name       string
		key        ssh.PublicKey
		args, also string
		want       []string
	}{
		{"from the configuration", key, "", "", []string{"db.example"}},
		{"from the command line", key, "ssh me@Deploy", "", []string{"deploy", "deploy.internal", "db.example"}},
		{"with its port", key, "ssh -p 2222 me@deploy", "", []string{"deploy", "[deploy]:2222", "deploy.internal", "db.example"}},
		{"an address", key, "ssh -p 2222 2001:DB8:0::7", "", []string{"[2001:db8::7]:2222", "db.example"}},
		{"from the caller", key, "ssh deploy", "x [deploy]:2222", []string{"[deploy]:2222", "deploy", "deploy.internal", "db.example"}},
		{"the caller is not crowded out", key, "ssh" + strings.Repeat(" crowd", 20000), "deploy", []string{"deploy", "db.example"}},
		{"in no file", stranger, "ssh deploy", "deploy", nil},
	} {
		if got := c.known(test.key, strings.Fields(test.args), strings.Fields(test.also)); !slices.Equal(got, test.want) {
			t.Errorf("%s: %.200q, want %.200q", test.name, got, test.want)
		}
	}
}

// The files are those that ssh reads, and those that the command line or ssh's configuration names.
func TestKnownHostsFiles(t *testing.T) {
	t.Parallel()
	c := newComputer(t)
	own := func(name string) string { return filepath.Join(c.Home, ".ssh", name) }
	c.write("config", "UserKnownHostsFile ~/.ssh/a \"%d/.ssh/b c\" none relative ~other/x /%h /${HOME}/x", "Include more", "Host *", "globalknownhostsfile=/g%%1 /g/../g2", "KnownHostsCommand /bin/x")
	c.write("more", "UserKnownHostsFile ~/.ssh/a ~/.ssh/known_hosts")
	c.write("own", "UserKnownHostsFile ~/.ssh/own_hosts")
	for _, test := range []struct {
		args string // separated by |
		want []string
	}{
		{"", nil},
		{"ssh|-o|UserKnownHostsFile=/typed /typed2|-oGlobalKnownHostsFile /typed3|-o|UserKnownHostsFile=none|x", []string{"/typed", "/typed2", "/typed3"}},
		{"ssh|-F|" + own("own") + "|x", []string{own("own_hosts")}},
		{"ssh|-F" + own("own") + "|x", []string{own("own_hosts")}},
		{"ssh|-F|none|x|-F", nil},
		{"UserKnownHostsFile=/no", nil},
	} {
		var args []string
		if test.args != "" {
			args = strings.Split(test.args, "|")
		}
		want := slices.Concat([]string{own("known_hosts"), own("known_hosts2"), "/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"},
			test.want, []string{own("a"), own("b c"), "/g%1", "/g2"})
		if _, got := c.Mentioned(args, nil); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", test.args, got, want)
		}
	}
	args := []string{"ssh"}
	for i := range 3 * maxKnownHosts {
		args = append(args, fmt.Sprintf("-oUserKnownHostsFile=/f%d", i))
	}
	if _, got := c.Mentioned(args, nil); len(got) != 4+maxKnownHosts {
		t.Errorf("%d files", len(got))
	}

	// A name that only such a file has.
	key, line := hostKey(t)
	c.write("named", "deploy "+line, "*.example.org "+line)
	if got, want := c.known(key, []string{"ssh", "-oUserKnownHostsFile=" + own("named"), "me@web.example.org"}, nil), []string{"web.example.org", "deploy"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := c.known(key, []string{"ssh", "me@web.example.org"}, nil); got != nil {
		t.Errorf("%q without the file", got)
	}
}

// A login's names from 10,000 hashed lines and a configuration of 500 hosts. "many
// names" is a key that 2,000 of the lines have.
func BenchmarkMentionedNames(b *testing.B) {
	c := newComputer(b)
	crowded, crowdedLine := hostKey(b)
	var key ssh.PublicKey
	var lines, config []string
	for i := range 10_000 {
		name := knownhosts.HashHostname(fmt.Sprintf("host%d.example", i)) + " "
		if i%5 == 0 {
			lines = append(lines, name+crowdedLine)
			continue
		}
		var line string
		key, line = hostKey(b)
		lines = append(lines, name+line)
	}
	c.write("known_hosts", lines...)
	for i := range 500 {
		config = append(config, fmt.Sprintf("Host h%d\n  HostName other%d.example\n  User me\n  Port %d\n  IdentitiesOnly yes", i, i, 2200+i%20))
	}
	c.write("config", config...)
	args := strings.Fields("ssh -o BatchMode=yes -p 2222 me@host9999.example uptime")
	for _, bench := range []struct {
		name string
		key  ssh.PublicKey
		want int
	}{{"one name", key, 1}, {"many names", crowded, 0}} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if got := c.known(bench.key, args, nil); len(got) != bench.want {
					b.Fatalf("%q", got)
				}
			}
		})
	}
}
