// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const manDir = "../../man"

// page is a manual page in mdoc(7).
type page struct {
	name string // vmux-agent.1
	text string
}

func readPages(t *testing.T) map[string]page {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(manDir, "*.[1-9]"))
	if err != nil {
		t.Fatal(err)
	}
	pages := make(map[string]page)
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		pages[filepath.Base(f)] = page{filepath.Base(f), string(b)}
	}
	return pages
}

// section gives the lines below ".Sh title" or ".Ss title" up to the next
// heading of that kind or a higher one.
func (p page) section(macro, title string) (lines []string) {
	in := false
	for line := range strings.Lines(p.text) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, ".Sh "), macro == ".Ss" && strings.HasPrefix(line, ".Ss "):
			in = line == macro+" "+title
		case in:
			lines = append(lines, line)
		}
	}
	return lines
}

// manFlags gives the flags that lines describe: ".It Fl Fl help , Fl h" are
// --help and -h.
func manFlags(lines []string) map[string]bool {
	flags := make(map[string]bool)
	for _, line := range lines {
		words := strings.Fields(line)
		if len(words) < 3 || words[0] != ".It" || words[1] != "Fl" {
			continue
		}
		for i := 1; i < len(words); i++ {
			if words[i] != "Fl" || i+1 == len(words) {
				continue
			}
			i++
			name := "-" + words[i]
			if words[i] == "Fl" && i+1 < len(words) {
				i++
				name = "--" + words[i]
			}
			flags[name] = true
		}
	}
	return flags
}

// help is what a command's --help says: its flags and its subcommands.
func help(t *testing.T, command []string) (flags map[string]bool, subcommands []string) {
	t.Helper()
	c := exec.Command(bin(t, command[0]), append(slices.Clone(command[1:]), "--help")...)
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%q --help: %v", command, err)
	}
	flags = make(map[string]bool)
	heading := ""
	for _, line := range strings.Split(string(out), "\n") {
		switch entry, indented := strings.CutPrefix(line, "  "); {
		case strings.HasSuffix(line, ":") && !indented:
			heading = line
		case !indented || entry == "":
		case heading == "commands:":
			subcommands = append(subcommands, strings.Fields(entry)[0])
		case heading == "flags:":
			forms, _, _ := strings.Cut(entry, "  ") // before the column of meanings
			for _, form := range strings.Split(forms, ", ") {
				flags[strings.Fields(form)[0]] = true
			}
		}
	}
	if len(flags) == 0 {
		t.Fatalf("%q --help names no flags:\n%s", command, out)
	}
	return flags, subcommands
}

// acts says whether a command that has subcommands does something without one.
func acts(t *testing.T, command []string) bool {
	t.Helper()
	out, err := exec.Command(bin(t, command[0]), append(slices.Clone(command[1:]), "--help")...).Output()
	if err != nil {
		t.Fatalf("%q --help: %v", command, err)
	}
	return strings.Contains(string(out), " [flags] [COMMAND]\n")
}

func commands(t testing.TB) []string {
	t.Helper()
	dirs, err := filepath.Glob("../../cmd/*")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no commands: %v", err)
	}
	for i := range dirs {
		dirs[i] = filepath.Base(dirs[i])
	}
	return dirs
}

func compareFlags(t *testing.T, what string, page, real map[string]bool) {
	t.Helper()
	for _, f := range slices.Sorted(maps.Keys(real)) {
		if !page[f] {
			t.Errorf("%s has %s, its page does not", what, f)
		}
	}
	for _, f := range slices.Sorted(maps.Keys(page)) {
		if !real[f] {
			t.Errorf("the page of %s has %s, the command does not", what, f)
		}
	}
}

// The pages and --help name the same flags, and the same commands.
func TestManFlags(t *testing.T) {
	t.Parallel()
	pages := readPages(t)
	for _, name := range commands(t) {
		p, ok := pages[name+".1"]
		if !ok {
			t.Errorf("%s has no manual page", name)
			continue
		}
		root, subcommands := help(t, []string{name})
		if len(subcommands) == 0 {
			compareFlags(t, name, manFlags(strings.Split(p.text, "\n")), root)
			continue
		}
		// What it does without a command has a section of its name.
		flags := manFlags(p.section(".Ss", "Flags of every command"))
		maps.Copy(flags, manFlags(p.section(".Ss", name)))
		compareFlags(t, name, flags, root)
		var described []string
		for line := range strings.Lines(strings.Join(p.section(".Sh", "DESCRIPTION"), "\n")) {
			if title, ok := strings.CutPrefix(strings.TrimSpace(line), ".Ss "); ok && title != "Flags of every command" && title != name {
				described = append(described, title)
			}
		}
		var walk func(path []string)
		walk = func(path []string) {
			flags, below := help(t, append([]string{name}, path...))
			if len(below) > 0 {
				for _, sub := range below {
					walk(append(slices.Clone(path), sub))
				}
				if !acts(t, append([]string{name}, path...)) {
					return
				}
			}
			title := strings.Join(path, " ")
			if !slices.Contains(described, title) {
				t.Errorf("%s does not describe %s", p.name, title)
				return
			}
			described = slices.DeleteFunc(described, func(s string) bool { return s == title })
			// One that is described above may be described again.
			own := manFlags(p.section(".Ss", title))
			maps.DeleteFunc(flags, func(f string, _ bool) bool { return root[f] && !own[f] })
			compareFlags(t, name+" "+title, own, flags)
		}
		for _, sub := range subcommands {
			walk([]string{sub})
		}
		if len(described) > 0 {
			t.Errorf("%s describes %q, which %s does not have", p.name, described, name)
		}
	}
}

// statuses are the exit statuses that a page lists, as regular text: "0", "128 + n".
func (p page) statuses() []string {
	var list []string
	for _, line := range p.section(".Sh", "EXIT STATUS") {
		if s, ok := strings.CutPrefix(line, ".It "); ok {
			list = append(list, s)
		}
	}
	return list
}

// Every exit status that a page lists is one that vmux has, and those that
// commands are seen to have are listed.
func TestManExitStatus(t *testing.T) {
	t.Parallel()
	pages := readPages(t)
	for _, name := range commands(t) {
		list := pages[name+".1"].statuses()
		if len(list) == 0 {
			t.Errorf("%s.1 lists no exit status", name)
		}
		for _, s := range list {
			n, err := strconv.Atoi(s)
			if job := name == "vmux-cert" && n >= 125 && n <= 127; s != "128 + n" && !job && (err != nil || n < 0 || n > 7) {
				t.Errorf("%s.1 lists the exit status %q", name, s)
			}
		}
	}
	if got, want := pages["vmux.7"].statuses(), []string{"0", "1", "2", "3", "4", "5", "6", "7", "128 + n"}; !slices.Equal(got, want) {
		t.Errorf("vmux.7 lists the exit statuses %q, there are %q", got, want)
	}
	h := newHost(t)
	h.write("file", "", 0o644)
	for _, c := range []struct {
		command string
		args    []string
		exit    int
	}{
		{"vmux-agent", []string{"--version"}, 0},
		{"vmux-agent", []string{"--socket", h.path("file", "sock")}, 1},
		{"vmux-agent", []string{"--deadline", "1h"}, 2},
		{"vmux-cert", []string{"--version"}, 0},
		{"vmux-cert", []string{"check"}, 3},
		{"vmux-cert", []string{"--validity", "soon"}, 2},
		{"vmux-cert", []string{"ca"}, 7},
		{"vmux-cert", []string{"run", "true"}, 125},
		{"vmux-cert", []string{"run", h.path("file")}, 126},
		{"vmux-cert", []string{"run", h.path("none")}, 127},
		{"vmux-doctor", []string{"--list"}, 0},
		{"vmux-doctor", []string{"--only", "log,socket"}, 2},
		{"vmux-pair", []string{"--list"}, 0},
		{"vmux-pair", []string{"--url", "--timeout", "1s", "--address", "127.0.0.1:1"}, 4},
		{"vmux-pair", []string{"--qr", "--url"}, 2},
		{"vmux-pair", []string{"--forget", "Pocket"}, 7},
		{"vmux-signer", []string{"devices"}, 1},
		{"vmux-signer", []string{"--version"}, 0},
		{"vmux-signer", nil, 2},
		{"vmux-wake", []string{"--version"}, 0},
		{"vmux-wake", []string{"--device-token", "00"}, 2},
		{"vmux-wake", nil, 7},
	} {
		r := h.run(c.command, c.args...)
		if r.exit != c.exit {
			t.Errorf("%s %q: exit %d, not %d\n%v", c.command, c.args, r.exit, c.exit, r)
		}
		if !slices.Contains(pages[c.command+".1"].statuses(), strconv.Itoa(r.exit)) {
			t.Errorf("%s.1 does not list the exit status %d", c.command, r.exit)
		}
	}
}

// The example in vmux.toml(5) has every setting, and nothing else.
func TestManConfig(t *testing.T) {
	t.Parallel()
	p := readPages(t)["vmux.toml.5"]
	_, example, ok := strings.Cut(p.text, "Every setting:\n.Bd -literal -offset indent\n")
	example, _, ok2 := strings.Cut(example, ".Ed\n")
	if !ok || !ok2 {
		t.Fatal("vmux.toml(5) has no example")
	}
	const rule = "[[policy.rule]]"
	var set, fields []string // fields of rules
	table := ""
	for line := range strings.Lines(example) {
		line = strings.TrimSpace(line)
		name, _, isSetting := strings.Cut(line, " = ")
		header, isTable := strings.CutPrefix(line, "[")
		switch {
		case line == rule:
			if table = line; !slices.Contains(set, line) {
				set = append(set, line)
			}
		case isTable:
			table = strings.TrimSuffix(header, "]") + "."
		case isSetting && table == rule:
			if !slices.Contains(fields, name) {
				fields = append(fields, name)
			}
		case isSetting:
			set = append(set, table+name)
		}
	}
	h := newHost(t)
	// The error about a setting that there is not names those that there are.
	wrong := h.write("wrong.toml", "nosuch = \"\"\n", 0o600)
	r := h.run("vmux-agent", "--config", wrong)
	_, known, ok := strings.Cut(r.stderr, "hint: write one of ")
	if r.exit != 2 || !ok {
		t.Fatalf("a setting that there is not: %v", r)
	}
	if want := strings.Split(strings.TrimSpace(known), ", "); !slices.Equal(set, want) {
		t.Errorf("the example sets %q, the settings are %q", set, want)
	}
	// The example is right: the agent gets as far as the socket, which is refused.
	right := h.write("right.toml", example, 0o600)
	if r := h.run("vmux-agent", "--config", right, "--socket", h.path("right.toml", "sock")); r.exit != 1 {
		t.Errorf("the example: %v", r)
	}
	// What vmux-agent(1) says about the example is so, and what its comments say.
	h.write(".ssh/known_hosts", "github.com ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl\n"+
		"git.example.org ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIL4ASskqlVe7ujP3cRX5vPo2p5VGe9JtAIg5/OjFkVRj\n", 0o600)
	_, shown, ok := strings.Cut(readPages(t)["vmux-agent.1"].text, "\n$ vmux-agent policy ")
	shown, _, ok2 = strings.Cut(shown, ".Ed\n")
	args, answer, ok3 := strings.Cut(shown, "\n")
	if r := h.run("vmux-agent", append([]string{"policy", "--config", right}, strings.Fields(args)...)...); !ok || !ok2 || !ok3 || r.exit != 0 || r.stdout != answer {
		t.Errorf("vmux-agent(1) has an example of policy %s that says\n%s\nbut %v", args, answer, r)
	}
	for args, want := range map[string]string{
		"--host unverified":                                           "refuse",
		"--host github.com":                                           "ask",
		"--kind sshsig:git --executable /n/bin/node":                  "refuse",
		"--forwarded --host git.example.org --ancestor /usr/bin/node": "refuse",
		"--forwarded --host git.example.org":                          "ask",
		"--forwarded --host github.com":                               "refuse",
		"--host github.com --key deploy --user git":                   "ask",
		"--host github.com --key deploy --user root":                  "refuse",
		"--host git.example.org --key deploy --user root":             "refuse",
		"--forwarded --host git.example.org --key deploy --user git":  "refuse",
		"--kind sshsig:git":                                           "ask",
		"--kind sshsig:git --forwarded":                               "refuse",
		"--kind sshsig:file":                                          "refuse",
	} {
		fields := append([]string{"policy", "--config", right}, strings.Fields(args)...)
		if !strings.Contains(args, "--ancestor") {
			fields = append(fields, "--ancestor", "/bin/sh")
		}
		if r := h.run("vmux-agent", fields...); r.exit != 0 || !strings.HasPrefix(r.stdout, want+": ") {
			t.Errorf("the example: policy %s is not to %s: %v", args, want, r)
		}
	}
	// The error about a field that there is not names those that there are, too.
	wrong = h.write("wrong.toml", "[policy]\ndefault = \"ask\"\n"+rule+"\nnosuch = \"\"\n", 0o600)
	r = h.run("vmux-agent", "--config", wrong)
	_, known, ok = strings.Cut(r.stderr, "hint: write one of ")
	if r.exit != 2 || !ok {
		t.Fatalf("a field that there is not: %v", r)
	}
	names := strings.Split(strings.TrimSpace(known), ", ")
	slices.Sort(names)
	slices.Sort(fields)
	if !slices.Equal(fields, names) {
		t.Errorf("the rules of the example have %q, the fields are %q", fields, names)
	}
	for _, s := range append(names, set...) {
		if s == rule {
			continue
		}
		if slices.Contains(names, s) {
			s = "rule." + s
		}
		name := "VMUX_" + strings.ToUpper(strings.NewReplacer("-", "_", ".", "_").Replace(s))
		if !strings.HasPrefix(s, "rule.") && !strings.Contains(readPages(t)["vmux-agent.1"].text, name) {
			t.Errorf("vmux-agent(1) does not name %s", name)
		}
		last := s[strings.LastIndex(s, ".")+1:]
		describes := func(line string) bool {
			names, ok := strings.CutPrefix(line, ".It Va ")
			return ok && slices.Contains(strings.Split(names, " , "), last)
		}
		if !slices.ContainsFunc(p.section(".Sh", "SETTINGS"), describes) {
			t.Errorf("vmux.toml(5) does not describe %s", s)
		}
	}
}

// Pages refer to one another only where there is a page, and to no command that
// there is not.
func TestManReferences(t *testing.T) {
	t.Parallel()
	pages := readPages(t)
	xr := regexp.MustCompile(`(?m)\bXr (vmux\S*) ([1-9])`)
	word := regexp.MustCompile(`\bvmux-[a-z]+\b`)
	known := []string{"vmux-security", "vmux-protocol", "vmux-job", "vmux-apns"} // the last ones begin the names of files
	known = append(known, commands(t)...)
	for _, p := range pages {
		for _, m := range xr.FindAllStringSubmatch(p.text, -1) {
			if _, ok := pages[m[1]+"."+m[2]]; !ok {
				t.Errorf("%s refers to %s(%s)", p.name, m[1], m[2])
			}
		}
	}
	// vmux(7) leads to every page, and every page to it.
	refersTo := func(from, to string) bool {
		return regexp.MustCompile(`(?m)^\.(It )?Xr ` + regexp.QuoteMeta(strings.TrimSuffix(to, filepath.Ext(to))) + " " + to[len(to)-1:] + `\b`).MatchString(pages[from].text)
	}
	for name := range pages {
		if name == "vmux.7" {
			continue
		}
		if !refersTo(name, "vmux.7") {
			t.Errorf("%s does not refer to vmux(7)", name)
		}
		if !refersTo("vmux.7", name) {
			t.Errorf("vmux.7 does not refer to %s", name)
		}
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(readme, []byte("\n")); n > 150 {
		t.Errorf("README.md has %d lines", n)
	}
	pages["README.md"] = page{"README.md", string(readme)}
	for _, p := range pages {
		for _, w := range word.FindAllString(p.text, -1) {
			if !slices.Contains(known, w) {
				t.Errorf("%s names %s", p.name, w)
			}
		}
	}
}

// make install puts every command, page and completion in place, and pages and
// completions are good.
func TestInstall(t *testing.T) {
	t.Parallel()
	need(t, "make")
	mandoc := need(t, "mandoc")
	dest := t.TempDir()
	// The commands are built for this test alone: others may be using ../../bin.
	tree := t.TempDir()
	for _, name := range []string{"Makefile", "man", "cmd"} {
		abs, err := filepath.Abs(filepath.Join("../..", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(abs, filepath.Join(tree, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(binDir, filepath.Join(tree, "bin")); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("make", "-o", "build", "install", "DESTDIR="+dest, "PREFIX=/usr")
	c.Dir = tree
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("make install: %v\n%s", err, out)
	}
	pages := slices.Sorted(maps.Keys(readPages(t)))
	for _, want := range []string{"vmux-agent.1", "vmux-cert.1", "vmux-doctor.1", "vmux-pair.1", "vmux-signer.1", "vmux-wake.1", "vmux.toml.5", "vmux.7", "vmux-protocol.7", "vmux-security.7"} {
		if !slices.Contains(pages, want) {
			t.Errorf("there is no %s", want)
		}
	}
	var installed []string
	for _, name := range pages {
		path := filepath.Join(dest, "usr/share/man/man"+name[len(name)-1:], name)
		installed = append(installed, path)
		out, err := exec.Command(mandoc, "-T", "lint", "-W", "warning", path).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	for _, name := range commands(t) {
		bash := filepath.Join(dest, "usr/share/bash-completion/completions", name)
		zsh := filepath.Join(dest, "usr/share/zsh/site-functions", "_"+name)
		fish := filepath.Join(dest, "usr/share/fish/vendor_completions.d", name+".fish")
		installed = append(installed, filepath.Join(dest, "usr/bin", name), bash, zsh, fish)
		for _, check := range [][]string{{"bash", "-n", bash}, {"zsh", "-n", zsh}, {"fish", "--no-execute", fish}} {
			if out, err := exec.Command(need(t, check[0]), check[1:]...).CombinedOutput(); err != nil {
				t.Errorf("%q: %v\n%s", check, err, out)
			}
		}
	}
	for _, path := range installed {
		if fi, err := os.Stat(path); err != nil || fi.Size() == 0 {
			t.Errorf("%s is not installed: %v", path, err)
		}
	}
	uninstall := exec.Command("make", "uninstall", "DESTDIR="+dest, "PREFIX=/usr")
	uninstall.Dir = tree
	if out, err := uninstall.CombinedOutput(); err != nil {
		t.Fatalf("make uninstall: %v\n%s", err, out)
	}
	for _, path := range installed {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s is still there after make uninstall", path)
		}
	}
}
