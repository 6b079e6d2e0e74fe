// SPDX-License-Identifier: BSD-3-Clause

package knownhosts

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// keygen gives ssh-keygen. Where it is missing the test is skipped, and fails
// where CI is set.
func keygen(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("ssh-keygen")
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal("ssh-keygen is not installed; make deps installs it")
	}
	if err != nil {
		t.Skip("ssh-keygen is not installed; make deps installs it")
	}
	return path
}

func write(t testing.TB, lines ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "known_hosts")
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Names that ssh-keygen -H has hashed are told when they are candidates, as
// plain ones would be.
func TestHashed(t *testing.T) {
	t.Parallel()
	a, aLine := hostKey(t)
	b, bLine := hostKey(t)
	c, cLine := hostKey(t)
	d, dLine := hostKey(t)
	file := write(t,
		"deploy,192.0.2.7,2001:db8::7 "+aLine,
		"[git.example]:2222,[git.example]:22022 "+bLine,
		"other.example "+aLine,
		"Mixed.Example "+cLine,
		"@revoked gone "+dLine)
	if out, err := exec.Command(keygen(t), "-q", "-H", "-f", file).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	text, err := os.ReadFile(file)
	if err != nil || bytes.Count(text, []byte("|1|")) < 7 || bytes.Contains(text, []byte("example")) {
		t.Fatalf("not hashed: %v\n%s", err, text)
	}
	// Of a hashed file that was added to, some lines are plain.
	if err := os.WriteFile(file, fmt.Appendf(text, "plain %s\nDeploy %s\n", aLine, aLine), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		key   ssh.PublicKey
		names []string
		ports []uint16
		want  []string
	}{
		"no candidates":             {b, nil, nil, nil},
		"ports alone":               {b, nil, []uint16{2222}, nil},
		"plain ones all the same":   {a, nil, nil, []string{"plain", "Deploy"}},
		"one":                       {a, []string{"192.0.2.7"}, nil, []string{"192.0.2.7", "plain", "Deploy"}},
		"in the candidates' order":  {a, []string{"x", "plain", "2001:db8::7", "other.example"}, nil, []string{"plain", "2001:db8::7", "other.example", "Deploy"}},
		"both hashed and plain":     {a, []string{"deploy", "deploy"}, nil, []string{"Deploy", "plain"}},
		"another key's":             {b, []string{"deploy", "other.example"}, nil, nil},
		"with its port":             {b, []string{"x", "git.example"}, []uint16{1, 2222}, []string{"[git.example]:2222"}},
		"with its port in the name": {b, []string{"[git.example]:22022"}, []uint16{2222}, []string{"[git.example]:22022"}},
		"both ports":                {b, []string{"git.example"}, []uint16{22022, 2222}, []string{"[git.example]:22022", "[git.example]:2222"}},
		"without its port":          {b, []string{"git.example", "[git.example]"}, []uint16{22}, nil},
		"a port too many":           {a, []string{"192.0.2.7"}, []uint16{22, 2222}, []string{"192.0.2.7", "plain", "Deploy"}},
		"capitals":                  {c, []string{"mIXED.example"}, nil, []string{"mixed.example"}},
		"of a certificate":          {&ssh.Certificate{Key: c}, []string{"mixed.example"}, nil, []string{"mixed.example"}},
		"revoked":                   {d, []string{"gone"}, nil, nil},
		"of nobody":                 {nobodys{}, []string{"deploy"}, nil, nil},
	} {
		if got := Names([]string{file}, test.key, Candidates{test.names, test.ports}); !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

// Every salt is another one, and the name is told through each.
func TestManySalts(t *testing.T) {
	t.Parallel()
	var lines []string
	var keys []ssh.PublicKey
	for range 200 {
		key, line := hostKey(t)
		keys = append(keys, key)
		lines = append(lines, knownhosts.HashHostname("deploy")+" "+line)
	}
	file := write(t, lines...)
	for i, key := range keys {
		if got := Names([]string{file}, key, Candidates{Names: []string{"x", "deploy"}}); !slices.Equal(got, []string{"deploy"}) {
			t.Errorf("line %d: %q", i+1, got)
		}
	}
}

func TestMalformedHashed(t *testing.T) {
	t.Parallel()
	hash := strings.Split(knownhosts.HashHostname("deploy"), "|")
	salt, sum := hash[2], hash[3]
	short := base64.StdEncoding.EncodeToString(make([]byte, 19))
	for in, ok := range map[string]bool{
		"|1|" + salt + "|" + sum:                               true,
		"|1|" + salt + "|" + sum + ",deploy":                   false,
		"deploy,|1|" + salt + "|" + sum:                        false,
		"|2|" + salt + "|" + sum:                               false,
		"|1|" + salt:                                           false,
		"|1|" + salt + "|" + sum + "|":                         false,
		"|1|" + short + "|" + sum:                              false,
		"|1|" + salt + "|" + short:                             false,
		"|1||":                                                 false,
		"|1|" + strings.TrimRight(salt, "=") + "|" + sum:       false,
		"|1|" + salt + "|" + strings.TrimRight(sum, "=") + "!": false,
		"": false,
	} {
		if _, got := parseHashed(strings.Split(in, ",")); got != ok {
			t.Errorf("%q: %v", in, got)
		}
	}
	// No part of such a line is a plain name.
	key, line := hostKey(t)
	file := write(t, "|1|"+salt+"|"+sum+",deploy "+line, "|1|"+salt+" "+line)
	if got := Names([]string{file}, key, Candidates{Names: []string{"deploy"}}); got != nil {
		t.Errorf("malformed lines have names: %q", got)
	}
}

// What is looked at is bounded, and each hashed name gets its share.
func TestBounds(t *testing.T) {
	t.Parallel()
	key, line := hostKey(t)
	names := make([]string, maxTries)
	for i := range names {
		names[i] = "n" + strconv.Itoa(i)
	}
	const lines = 1024
	share := maxTries / lines
	many := make([]string, lines)
	for i := range many {
		many[i] = knownhosts.HashHostname("m"+strconv.Itoa(i)) + " " + line
	}
	many[3] = knownhosts.HashHostname(names[share]) + " " + line
	many[lines-1] = knownhosts.HashHostname(names[share-1]) + " " + line
	if got := Names([]string{write(t, many...)}, key, Candidates{Names: names}); !slices.Equal(got, names[share-1:share]) {
		t.Errorf("many lines: %q", got)
	}
	// One line gets them all.
	last := names[maxTries-1]
	one := write(t, knownhosts.HashHostname(last)+" "+line)
	if got := Names([]string{one}, key, Candidates{Names: names}); !slices.Equal(got, []string{last}) {
		t.Errorf("one line: %q", got)
	}
	if got := Names([]string{one}, key, Candidates{Names: append([]string{"x"}, names...)}); got != nil {
		t.Errorf("one line and more candidates: %q", got)
	}
	// With ports no more are tried.
	if got := (Candidates{Names: names, Ports: []uint16{1, 2, 3, 4}}).all(maxTries); len(got) != maxTries {
		t.Errorf("%d candidates", len(got))
	}
	if got, want := (Candidates{Names: []string{"A", "[a]:1"}, Ports: []uint16{22, 2}}).all(maxTries), []string{"a", "[a]:2", "[a]:1"}; !slices.Equal(got, want) {
		t.Errorf("candidates: %q", got)
	}
	long := strings.Repeat("x", maxName+1)
	if got := (Candidates{Names: []string{long, long[1:]}}).all(maxTries); !slices.Equal(got, []string{long[1:]}) {
		t.Errorf("long names: %q", got)
	}

	// Of a key with more names than are told, the candidates come first.
	fleet := make([]string, 0, maxNames+10)
	for i := range cap(fleet) {
		fleet = append(fleet, "web"+strconv.Itoa(i))
	}
	file := write(t, strings.Join(fleet, ",")+" "+line)
	want := append([]string{"web261", "web9"}, slices.DeleteFunc(slices.Clone(fleet), func(s string) bool { return s == "web9" })[:maxNames-2]...)
	if got := Names([]string{file}, key, Candidates{Names: []string{"web261", "web9", "web9"}}); !slices.Equal(got, want) {
		t.Errorf("fleet: %d names, %q", len(got), got)
	}
	crowd := write(t, strings.Repeat("a,A,", maxEntries/2)+"last "+line)
	crowds := write(t, strings.Repeat("a "+line+"\n", maxEntries)+"last "+line)
	for _, file := range []string{crowd, crowds} {
		if got := Names([]string{file}, key, Candidates{}); !slices.Equal(got, []string{"a"}) {
			t.Errorf("crowd: %q", got)
		}
	}
	secret := make([]string, maxEntries)
	for i := range secret {
		secret[i] = knownhosts.HashHostname("x") + " " + line
	}
	crowd = write(t, append(secret, knownhosts.HashHostname("last")+" "+line)...)
	if got := Names([]string{crowd}, key, Candidates{Names: []string{"last"}}); got != nil {
		t.Errorf("hashed crowd: %q", got)
	}
}

// Lines that do not end as they should, or have the key elsewhere, end nothing.
func TestLines(t *testing.T) {
	t.Parallel()
	key, line := hostKey(t)
	_, other := hostKey(t)
	blob := strings.Fields(line)[1]
	file := filepath.Join(t.TempDir(), "known_hosts")
	text := "one " + line + "\r\n" +
		"no " + other + " " + blob + "\n" +
		"# no " + line + "\n" +
		blob + "\n" +
		"no ssh-rsa " + blob + "\n\n" +
		"  two\t" + line + " a comment " + blob + "\n" +
		"three " + line
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := Names([]string{file}, key, Candidates{}); !slices.Equal(got, []string{"one", "two", "three"}) {
		t.Errorf("got %q", got)
	}
}

// What is no file has no names, and nobody waits for it.
func TestNoFile(t *testing.T) {
	t.Parallel()
	key, line := hostKey(t)
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := Names([]string{dir, fifo, write(t, "deploy "+line)}, key, Candidates{}); !slices.Equal(got, []string{"deploy"}) {
		t.Errorf("got %q", got)
	}
}

// A known_hosts of 10,000 hashed names, and what is tried with it. "same key" is
// the worst that a file can do.
func BenchmarkNames(b *testing.B) {
	const lines = 10_000
	key := func() (ssh.PublicKey, string) {
		blob := append([]byte("\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20"), make([]byte, 32)...) // the key keeps it
		if _, err := rand.Read(blob[len(blob)-32:]); err != nil {
			b.Fatal(err)
		}
		k, err := ssh.ParsePublicKey(blob)
		if err != nil {
			b.Fatal(err)
		}
		return k, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k)))
	}
	var keys []ssh.PublicKey
	var all, same, patterns []string
	for i := range lines {
		k, line := key()
		keys = append(keys, k)
		all = append(all, knownhosts.HashHostname("host"+strconv.Itoa(i)+".example")+" "+line)
		_, line, _ = strings.Cut(all[0], " ")
		same = append(same, knownhosts.HashHostname("host"+strconv.Itoa(i)+".example")+" "+line)
	}
	for i := range lines {
		_, line, _ := strings.Cut(all[0], " ")
		patterns = append(patterns, "*.host"+strconv.Itoa(i)+".example* "+line)
	}
	names := make([]string, 2000)
	for i := range names {
		names[i] = "candidate" + strconv.Itoa(i) + ".example"
	}
	for _, c := range []struct {
		name  string
		lines []string
		key   ssh.PublicKey
		names int
	}{
		{"last key, 3 candidates", all, keys[lines-1], 3},
		{"last key, 2000 candidates, 16 ports", all, keys[lines-1], len(names)},
		{"same key, 2000 candidates, 16 ports", same, keys[0], len(names)},
		{"same key in patterns, 2000 candidates, 16 ports", patterns, keys[0], len(names)},
	} {
		b.Run(c.name, func(b *testing.B) {
			file := write(b, c.lines...)
			candidates := Candidates{Names: names[:c.names]}
			if c.names == len(names) {
				for p := range uint16(16) {
					candidates.Ports = append(candidates.Ports, 2000+p)
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				if got := Names([]string{file}, c.key, candidates); got != nil {
					b.Fatal(got)
				}
			}
		})
	}
}
