// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/go-json-experiment/json"

	"vmux.app/toolkit/internal/transport/mpc"
)

// sources gives h what make needs to install, so that nothing is written into the
// real ones and another user can read them. The programs are those of the tests.
func (h *host) sources() (dir string) {
	h.t.Helper()
	dir = h.path("src")
	for _, pattern := range []string{"Makefile", "man/*", "cmd/*/systemd/*", "cmd/*/launchd/*", "cmd/*/*.sh"} {
		files, err := filepath.Glob(filepath.Join("../..", pattern))
		if err != nil || len(files) == 0 {
			h.t.Fatalf("%s: nothing there (%v)", pattern, err)
		}
		for _, from := range files {
			to := filepath.Join(dir, strings.TrimPrefix(from, "../../"))
			b, err := os.ReadFile(from)
			if err == nil {
				err = os.MkdirAll(filepath.Dir(to), 0o755)
			}
			if err == nil {
				err = os.WriteFile(to, b, 0o644)
			}
			if err != nil {
				h.t.Fatal(err)
			}
		}
	}
	for _, c := range commands(h.t) {
		if err := os.MkdirAll(filepath.Join(dir, "cmd", c), 0o755); err != nil {
			h.t.Fatal(err)
		}
	}
	return dir
}

// make runs make there, which takes the programs as they are.
func (h *host) make(args ...string) result {
	h.t.Helper()
	need(h.t, "make")
	return h.run("make", append([]string{"-C", h.path("src"), "-o", "build", "out=" + binDir}, args...)...)
}

// installed lists the files below dir, without their directories.
func installed(t testing.TB, dir string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o644)
		if filepath.Base(filepath.Dir(path)) == "bin" {
			want = 0o755
		}
		if info.Mode() != want {
			t.Errorf("%s has mode %v, not %v", path, info.Mode(), want)
		}
		rel, err := filepath.Rel(dir, path)
		files = append(files, rel)
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return files
}

// make install puts units where they are looked for, with the path of the
// programs in them, and make uninstall takes everything away again.
func TestInstallUnits(t *testing.T) {
	t.Parallel()
	const (
		linux, darwin = "SYSTEM=Linux", "SYSTEM=Darwin"
		agent, signer = "vmux-agent.service", "vmux-signer.service"
		socket, plist = "vmux-agent.socket", "app.vmux.agent.plist"
	)
	for _, tt := range []struct {
		name, system, prefix, dir string
		units                     []string
	}{
		{"Default", linux, "/usr/local", "lib/systemd/user", []string{agent, socket, signer}},
		{"Distribution", linux, "/usr", "lib/systemd/user", []string{agent, socket, signer}},
		{"Home", linux, "HOME/.local", "share/systemd/user", []string{agent, socket, signer}},
		{"Space", linux, "/opt/my tools", "lib/systemd/user", []string{agent, socket, signer}},
		{"Darwin", darwin, "/usr/local", "share/vmux", []string{plist}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.sources()
			prefix := strings.Replace(tt.prefix, "HOME", h.home, 1)
			args := []string{tt.system, "DESTDIR=" + h.path("dest")}
			if tt.name != "Default" {
				args = append(args, "PREFIX="+prefix)
			}
			h.fake("codesign", "")
			if r := h.make(append(args, "install")...); r.exit != 0 {
				t.Fatal(r)
			}
			// macOS takes a program for the one that its signature names, and has no other name for vmux-cert.
			signed := []string{""}
			if tt.system == darwin {
				signed = nil
				for _, c := range commands(t) {
					signed = append(signed, "--force --sign - --identifier app.vmux."+strings.TrimPrefix(c, "vmux-")+" "+h.path("dest", prefix, "bin", c))
				}
			}
			if calls := h.calls(); !slices.Equal(calls, signed) {
				t.Errorf("codesign %q, want %q", calls, signed)
			}
			var units []string
			for _, f := range installed(t, h.path("dest")) {
				if !filepath.IsLocal(f) || !strings.HasPrefix("/"+f, prefix+"/") {
					t.Errorf("installs %s outside %s", f, prefix)
				}
				if strings.Contains(f, "systemd") || strings.HasSuffix(f, ".plist") {
					units = append(units, f)
				}
			}
			var want []string
			for _, u := range tt.units {
				want = append(want, strings.TrimPrefix(filepath.Join(prefix, tt.dir, u), "/"))
			}
			if !slices.Equal(units, want) {
				t.Errorf("installs the units %q, want %q", units, want)
			}
			for _, u := range units {
				b, err := os.ReadFile(h.path("dest", u))
				if err != nil {
					t.Fatal(err)
				}
				text := string(b)
				if strings.Contains(text, "@bindir@") || strings.Contains(text, h.path("dest")) || strings.Contains(text, binDir) {
					t.Errorf("%s:\n%s", u, text)
				}
				line := ""
				switch filepath.Base(u) {
				case agent:
					line = "\nExecStart=\"" + prefix + "/bin/vmux-agent\"\n"
				case signer:
					line = "\nExecStart=\"" + prefix + "/bin/vmux-signer\" serve --approve askpass\n"
				case plist:
					line = "\n\t\t<string>" + prefix + "/bin/vmux-agent</string>\n"
				}
				if !strings.Contains(text, line) {
					t.Errorf("%s has no line %q:\n%s", u, line, text)
				}
			}
			if r := h.make(append(args, "uninstall")...); r.exit != 0 {
				t.Fatal(r)
			}
			if left := installed(t, h.path("dest")); len(left) != 0 {
				t.Errorf("uninstall leaves %q", left)
			}
		})
	}
}

// A signature that fails is no installation.
func TestInstallUnsigned(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.sources()
	h.fake("codesign", "echo 'the disk is full' >&2\nexit 1\n")
	if r := h.make("SYSTEM=Darwin", "DESTDIR="+h.path("dest"), "install"); r.exit == 0 || !strings.Contains(r.stderr, "the disk is full") {
		t.Error(r)
	}
}

// What make builds for macOS has what package cocoa looks for.
func TestMakeAppliesTheRemedy(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.sources()
	need(t, "make")
	b, err := os.ReadFile("../cocoa/doc.go")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^const remedy = "(all=\S+)"$`).FindSubmatch(b)
	if m == nil {
		t.Fatal("package cocoa names no remedy")
	}
	for system, want := range map[string]bool{"Darwin": true, "Linux": false} {
		if r := h.run("make", "-n", "-C", h.path("src"), "SYSTEM="+system, "build"); r.exit != 0 || strings.Contains(r.stdout, " -gcflags="+string(m[1])+" ") != want {
			t.Errorf("%s: %v", system, r)
		}
	}
}

// What a unit cannot have in a path is refused before anything is written.
func TestInstallRefusesPrefix(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.sources()
	targets := []string{"install", "uninstall", "install-user", "uninstall-user"}
	for i, prefix := range []string{"usr/local", ".", "", "/a%h", "/a|b", "/a&b", `/a\b`, `/a"b`, "/a;b", "/a<b", "/a`b", "/a\tb"} {
		target := targets[i%len(targets)]
		r := h.make("DESTDIR="+h.path("dest"), "PREFIX="+prefix, target)
		if r.exit == 0 || !strings.HasPrefix(r.stderr, "error: PREFIX="+prefix+" ") || !strings.Contains(r.stderr, "\nhint: make "+target+" PREFIX=") {
			t.Errorf("PREFIX=%s: make %s: %v", prefix, target, r)
		}
	}
	if left := installed(t, h.path("dest")); len(left) != 0 {
		t.Errorf("written: %q", left)
	}
}

// unit is a file of systemd's: sections, their keys, the values of each.
type unit map[string]map[string][]string

var (
	unitSection = regexp.MustCompile(`^\[([A-Z][a-z]+)\]$`)
	unitLine    = regexp.MustCompile(`^([A-Z][A-Za-z]+)=(\S(?:.*\S)?)$`)
)

// parseUnit takes comments, sections and plain assignments, and nothing else that
// systemd takes: no continued lines, no space around the equals sign, no section
// twice.
func parseUnit(text string) (unit, error) {
	u := make(unit)
	var section map[string][]string
	for i, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		if line == "" || line == "#" || strings.HasPrefix(line, "# ") {
			continue
		}
		if m := unitSection.FindStringSubmatch(line); m != nil {
			if u[m[1]] != nil {
				return nil, fmt.Errorf("line %d: a second section %s", i+1, m[1])
			}
			section = make(map[string][]string)
			u[m[1]] = section
			continue
		}
		m := unitLine.FindStringSubmatch(line)
		if m == nil || section == nil || strings.HasSuffix(m[2], `\`) {
			return nil, fmt.Errorf("line %d: %q", i+1, line)
		}
		section[m[1]] = append(section[m[1]], m[2])
	}
	return u, nil
}

// confined is what holds in a user's manager of any version, without root.
var confined = map[string][]string{
	"UMask":                   {"0077"},
	"LimitCORE":               {"0"},
	"MemorySwapMax":           {"0"},
	"NoNewPrivileges":         {"yes"},
	"LockPersonality":         {"yes"},
	"RestrictNamespaces":      {"yes"},
	"RestrictRealtime":        {"yes"},
	"RestrictSUIDSGID":        {"yes"},
	"RestrictAddressFamilies": {"AF_UNIX AF_INET AF_INET6 AF_NETLINK"},
	"SystemCallArchitectures": {"native"},
	"SystemCallFilter":        {"@system-service", "~@privileged @resources"},
	"SystemCallErrorNumber":   {"EPERM"},
	"KeyringMode":             {"private"},
}

func with(base, more map[string][]string) map[string][]string {
	all := maps.Clone(base)
	maps.Copy(all, more)
	return all
}

// units is each directive of each unit. The agent has none that needs a mount
// namespace: since systemd 253 a user's manager makes a user namespace for those,
// where the agent would not see what its clients are.
var units = map[string]unit{
	"vmux-agent/systemd/vmux-agent.socket": {
		"Unit": {"Description": {"Socket of the SSH agent whose keys are on a phone"}, "Documentation": {"man:vmux-agent(1)"}},
		"Socket": {"ListenStream": {"%h/.ssh/vmux-agent.sock"}, "SocketMode": {"0600"}, "DirectoryMode": {"0700"},
			"RemoveOnStop": {"yes"}, "FlushPending": {"yes"}},
		"Install": {"WantedBy": {"sockets.target"}},
	},
	"vmux-agent/systemd/vmux-agent.service": {
		"Unit": {"Description": {"SSH agent whose keys are on a phone"}, "Documentation": {"man:vmux-agent(1)"},
			"Requires": {"vmux-agent.socket"}, "StartLimitIntervalSec": {"0"}},
		"Service": with(confined, map[string][]string{"Type": {"exec"}, "ExecStart": {`"@bindir@/vmux-agent"`},
			"ExecReload": {"kill -HUP $MAINPID"}, "Restart": {"on-failure"}, "RestartSec": {"1s"},
			"RestartPreventExitStatus": {"2"}, "TimeoutStopSec": {"10s"}, "MemoryDenyWriteExecute": {"yes"}}),
		"Install": {"Also": {"vmux-agent.socket"}},
	},
	"vmux-signer/systemd/vmux-signer.service": {
		"Unit": {"Description": {"Keeper of SSH keys that signs what its owner approves"}, "Documentation": {"man:vmux-signer(1)"},
			"PartOf": {"graphical-session.target"}, "After": {"graphical-session.target"},
			"StartLimitIntervalSec": {"60s"}, "StartLimitBurst": {"5"}},
		"Service": with(confined, map[string][]string{"Type": {"exec"}, "ExecStart": {`"@bindir@/vmux-signer" serve --approve askpass`},
			"Restart": {"on-failure"}, "RestartSec": {"5s"}, "RestartPreventExitStatus": {"2"}, "TimeoutStopSec": {"10s"},
			"ProtectSystem": {"strict"}, "ProtectHome": {"read-only"}, "ReadWritePaths": {"-%h/.local/share/vmux-signer %t"},
			"ProtectControlGroups": {"yes"}}),
		"Install": {"WantedBy": {"graphical-session.target"}},
	},
}

// The units say what they are meant to say, and nothing that systemd would
// ignore.
func TestUnits(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../cmd/*/systemd/*")
	if err != nil || len(files) != len(units) {
		t.Errorf("%q (%v), want %d", files, err, len(units))
	}
	pages := readPages(t)
	for name, want := range units {
		b, err := os.ReadFile(filepath.Join("../../cmd", name))
		if err != nil {
			t.Error(err)
			continue
		}
		got, err := parseUnit(string(b))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for section := range got {
			if want[section] == nil {
				t.Errorf("%s: unexpected [%s]", name, section)
			}
		}
		for section, keys := range want {
			for _, key := range slices.Sorted(maps.Keys(with(keys, got[section]))) {
				if !slices.Equal(got[section][key], keys[key]) {
					t.Errorf("%s: [%s] %s=%q, want %q", name, section, key, got[section][key], keys[key])
				}
			}
		}
		for _, d := range got["Unit"]["Documentation"] {
			m := regexp.MustCompile(`^man:([a-z-]+)\(([1-9])\)$`).FindStringSubmatch(d)
			if m == nil || pages[m[1]+"."+m[2]].text == "" {
				t.Errorf("%s: there is no %s", name, d)
			}
		}
	}
	for _, bad := range []string{"Type=exec\n", "[Unit]\nA=b\n[Unit]\n", "[Unit]\nType = exec\n", "[Unit]\nA=b \\\n", "[unit]\n", "[Unit]\nA=\n", "[Unit]\n;A=b\n"} {
		if u, err := parseUnit(bad); err == nil {
			t.Errorf("%q is taken as %v", bad, u)
		}
	}
}

// systemd itself has nothing to say against the installed units, and counts the
// confinement as such.
func TestUnitsAnalyzed(t *testing.T) {
	t.Parallel()
	need(t, "systemd-analyze")
	need(t, "pgrep") // of the package that has kill
	h := newHost(t)
	h.setenv("XDG_RUNTIME_DIR", h.path("run"))
	if err := os.Mkdir(h.path("run"), 0o700); err != nil {
		t.Fatal(err)
	}
	h.sources()
	if r := h.make("SYSTEM=Linux", "PREFIX="+h.path("a b"), "install"); r.exit != 0 {
		t.Fatal(r)
	}
	dir := h.path("a b/lib/systemd/user")
	file := func(name string) string { return filepath.Join(dir, name) }
	r := h.run("systemd-analyze", "--user", "--man=no", "verify", file("vmux-agent.socket"), file("vmux-agent.service"), file("vmux-signer.service"))
	if r.exit != 0 || r.stdout != "" || r.stderr != "" {
		t.Errorf("verify: %v", r)
	}

	common := []string{"NoNewPrivileges", "LockPersonality", "RestrictRealtime", "RestrictSUIDSGID", "SystemCallArchitectures", "UMask", "KeyringMode",
		"NotifyAccess", "Delegate",
		"RestrictNamespaces_user", "RestrictNamespaces_mnt", "RestrictNamespaces_net", "RestrictNamespaces_pid", "RestrictNamespaces_ipc",
		"RestrictNamespaces_uts", "RestrictNamespaces_cgroup",
		"RestrictAddressFamilies_AF_PACKET", "RestrictAddressFamilies_OTHER",
		"SystemCallFilter_swap", "SystemCallFilter_resources", "SystemCallFilter_reboot", "SystemCallFilter_raw_io", "SystemCallFilter_privileged",
		"SystemCallFilter_obsolete", "SystemCallFilter_mount", "SystemCallFilter_module", "SystemCallFilter_debug", "SystemCallFilter_cpu_emulation",
		"SystemCallFilter_clock"}
	for name, more := range map[string][]string{
		"vmux-agent.service":  {"MemoryDenyWriteExecute"},
		"vmux-signer.service": {"ProtectSystem", "ProtectControlGroups"},
	} {
		r := h.run("systemd-analyze", "--user", "security", "--offline=true", "--no-pager", "--json=short", file(name))
		var checks []struct {
			Set   *bool  `json:"set"`
			Field string `json:"json_field"`
		}
		if err := json.Unmarshal([]byte(r.stdout), &checks); err != nil || r.exit != 0 {
			t.Errorf("security %s: %v: %v", name, err, r)
			continue
		}
		set := make(map[string]bool)
		for _, c := range checks {
			set[c.Field] = c.Set != nil && *c.Set
		}
		for _, c := range slices.Concat(common, more) {
			if !set[c] {
				t.Errorf("%s: systemd does not count %s", name, c)
			}
		}
	}
}

// plistValue reads one value of a property list, and its end.
func plistValue(d *xml.Decoder, start xml.StartElement) (any, error) {
	if len(start.Attr) > 0 && start.Name.Local != "plist" {
		return nil, fmt.Errorf("<%s> has attributes", start.Name.Local)
	}
	var list []any
	text := ""
	for {
		token, err := d.Token()
		if err != nil {
			return nil, err
		}
		switch token := token.(type) {
		case xml.StartElement:
			v, err := plistValue(d, token)
			if err != nil {
				return nil, err
			}
			if token.Name.Local == "key" {
				v = plistKey(v.(string))
			}
			list = append(list, v)
			continue
		case xml.CharData:
			text += string(token)
			continue
		case xml.EndElement:
		default: // comments
			continue
		}
		name := start.Name.Local
		if container := name == "dict" || name == "array" || name == "plist"; container != (list != nil) || container && strings.TrimSpace(text) != "" {
			return nil, fmt.Errorf("<%s> with %q and %d values", name, text, len(list))
		}
		switch name {
		case "string", "key":
			return text, nil
		case "integer":
			var n int
			_, err := fmt.Sscanf(text, "%d", &n)
			return n, err
		case "true", "false":
			if text != "" {
				return nil, fmt.Errorf("<%s>%s", name, text)
			}
			return name == "true", nil
		case "array":
			return list, nil
		case "plist":
			if len(list) != 1 {
				return nil, fmt.Errorf("%d values", len(list))
			}
			return list[0], nil
		case "dict":
			m := make(map[string]any)
			for i := 0; i < len(list); i += 2 {
				key, ok := list[i].(plistKey)
				if !ok || i+1 == len(list) || m[string(key)] != nil {
					return nil, fmt.Errorf("no key, no value, or one twice: %v", list[i:])
				}
				m[string(key)] = list[i+1]
			}
			return m, nil
		}
		return nil, fmt.Errorf("<%s>", name)
	}
}

type plistKey string

func parsePlist(text string) (any, error) {
	d := xml.NewDecoder(strings.NewReader(text))
	for {
		token, err := d.Token()
		if err != nil {
			return nil, err
		}
		start, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		if start.Name.Local != "plist" {
			return nil, fmt.Errorf("<%s>", start.Name.Local)
		}
		v, err := plistValue(d, start)
		if err != nil {
			return nil, fmt.Errorf("before byte %d: %w", d.InputOffset(), err)
		}
		for {
			token, err := d.Token()
			if errors.Is(err, io.EOF) {
				return v, nil
			}
			if rest, ok := token.(xml.CharData); !ok || strings.TrimSpace(string(rest)) != "" {
				return nil, fmt.Errorf("something after it: %v (%w)", token, err)
			}
		}
	}
}

// launchd's file is a property list and says what it is meant to say.
func TestLaunchdPlist(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../../cmd/vmux-agent/launchd/app.vmux.agent.plist")
	if err != nil {
		t.Fatal(err)
	}
	got, err := parsePlist(string(b))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"Label":            "app.vmux.agent",
		"ProgramArguments": []any{"@bindir@/vmux-agent"},
		"Sockets": map[string]any{"Listeners": map[string]any{
			"SockPathName": "@home@/.ssh/vmux-agent.sock", "SockPathMode": 0o600}},
		"ProcessType":                 "Interactive",
		"AssociatedBundleIdentifiers": []any{"app.vmux.agent"},
		"Umask":                       0o77,
		"HardResourceLimits":          map[string]any{"Core": 0},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	if !strings.HasPrefix(string(b), "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" ") {
		t.Error("does not begin as a property list does")
	}
	const head = "<plist version=\"1.0\"><dict>"
	for _, bad := range []string{"", "<dict></dict>", head + "<key>A</key></dict></plist>", head + "<string>A</string><true/></dict></plist>",
		head + "<key>A</key><true/><key>A</key><true/></dict></plist>", head + "<key>A</key><true/></dict>", head + "<key>A</key><yes/></dict></plist>",
		head + "<key>A</key><true/></dict></plist><plist/>", head + "x<key>A</key><true/></dict></plist>"} {
		if v, err := parsePlist(bad); err == nil {
			t.Errorf("%q is taken as %v", bad, v)
		}
	}
}

// What is linked into the programs that look for phones or advertise: without it macOS refuses them the local network.
func TestInfoPlists(t *testing.T) {
	t.Parallel()
	seen := 0
	for _, c := range commands(t) {
		dir := filepath.Join("../../cmd", c)
		b, err := os.ReadFile(filepath.Join(dir, "Info.plist"))
		if errors.Is(err, fs.ErrNotExist) && c == "vmux-cert" {
			continue // speaks to the agent only
		}
		if err != nil {
			t.Error(err)
			continue
		}
		seen++
		list, err := parsePlist(string(b))
		got, _ := list.(map[string]any)
		why, _ := got["NSLocalNetworkUsageDescription"].(string)
		if err != nil || !strings.HasPrefix(why, c+" ") {
			t.Errorf("%s: %v: %v", c, err, got)
		}
		delete(got, "NSLocalNetworkUsageDescription")
		if want := map[string]any{"CFBundleIdentifier": "app.vmux." + strings.TrimPrefix(c, "vmux-"), "CFBundleName": c,
			"NSBonjourServices": []any{"_" + mpc.DefaultService + "._tcp", "_" + mpc.DefaultService + "._udp"}}; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, want %v", c, got, want)
		}
		linked, err := os.ReadFile(filepath.Join(dir, "plist_darwin.go"))
		if err != nil || !strings.Contains(string(linked), "\n// #cgo LDFLAGS: -Wl,-sectcreate,__TEXT,__info_plist,${SRCDIR}/Info.plist\n") {
			t.Errorf("%s: it is not linked: %v", c, err)
		}
	}
	if seen != len(commands(t))-1 {
		t.Errorf("%d programs have one", seen)
	}
}

// fake puts a program first into the host's search path. It writes its arguments
// to calls and goes on with script.
func (h *host) fake(name, script string) {
	h.t.Helper()
	h.put("fake/"+name, "#!/bin/sh\nprintf '%s\\n' \"$*\" >>"+h.path("calls")+"\n"+script, 0o700)
	h.setenv("PATH", h.path("fake")+":"+binDir+":"+os.Getenv("PATH"))
}

func (h *host) calls() []string {
	h.t.Helper()
	b, err := os.ReadFile(h.path("calls"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		h.t.Fatal(err)
	}
	if err := os.RemoveAll(h.path("calls")); err != nil {
		h.t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

// What make install-user and uninstall-user say to launchd. Nobody here has one:
// this launchctl is a script, which loads and unloads as the manual page has it.
func TestInstallUserLaunchd(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	// What a home can be called: the property list's and the script's own marks, too.
	h.home = h.path(`A & B|<\1>`)
	if err := os.Mkdir(h.home, 0o700); err != nil {
		t.Fatal(err)
	}
	h.setenv("HOME", h.home)
	sources := newHost(t)
	sources.sources()
	top := sources.home
	sources.setenv("HOME", h.home)
	sources.fake("codesign", "")
	// One that is loaded ends after a while, of which bootout has a word, and then cannot be loaded at once, as people have met it.
	sources.fake("launchctl", `
loaded=`+sources.path("loaded")+`
case $1 in
print)
	[ -e $loaded ] || exit 113
	! mv $loaded.ends $loaded.late 2>/dev/null || rm $loaded
	;;
bootout)
	[ -e $loaded ] || exit 3
	touch $loaded.ends
	echo "Boot-out failed: 36: Operation now in progress" >&2
	exit 36
	;;
bootstrap)
	if [ -e $loaded ] || [ -e `+sources.path("broken")+` ] || rm $loaded.late 2>/dev/null; then
		echo "Bootstrap failed: 5: Input/output error" >&2
		exit 5
	fi
	touch $loaded
	;;
enable) ;;
*) exit 64 ;;
esac
`)
	sources.fake("sleep", "")
	const system = "SYSTEM=Darwin"
	prefix := "PREFIX=" + top + "/p"
	refused := func(name string, want ...string) {
		t.Helper()
		r := sources.make(system, prefix, "install-user")
		if r.exit == 0 || strings.Contains(r.stdout, "serves") {
			t.Errorf("%s: %v", name, r)
		}
		for _, w := range want {
			if !strings.Contains(r.stderr, w) {
				t.Errorf("%s: no %q: %v", name, w, r)
			}
		}
	}
	refused("before make install", "error: vmux is not installed in "+top+"/p: ")
	if r := sources.make(system, prefix, "install"); r.exit != 0 {
		t.Fatal(r)
	}
	sources.calls()
	agent := top + "/p/bin/vmux-agent"
	refused("without cgo", "error: "+agent+" was built without cgo", "\nhint: xcode-select --install, ", "by hand: "+agent)
	if calls := sources.calls(); !slices.Equal(calls, []string{""}) {
		t.Errorf("without cgo: launchctl %q", calls)
	}
	// The name of what only C can call is in a Mac's program.
	f, err := os.OpenFile(agent, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString("\x00_launch_activate_socket\x00")
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}

	domain := fmt.Sprintf("gui/%d", os.Getuid())
	service := domain + "/app.vmux.agent"
	mine := h.path("Library/LaunchAgents/app.vmux.agent.plist")
	bootstrap := []string{"enable " + service, "bootstrap " + domain + " " + mine}
	for _, tt := range []struct {
		name, target string
		calls        []string
		there        bool
	}{
		{"first", "install-user", append([]string{"print " + service, "bootout " + service, "print " + service}, bootstrap...), true},
		{"again", "install-user", append([]string{"print " + service, "bootout " + service, "print " + service, "print " + service},
			append(bootstrap, "1", bootstrap[1])...), true},
		{"away", "uninstall-user", []string{"bootout " + service, "print " + service, "print " + service}, false},
		{"away again", "uninstall-user", []string{"bootout " + service, "print " + service}, false},
	} {
		r := sources.make(system, prefix, tt.target)
		if r.exit != 0 || !strings.Contains(r.stdout, "vmux-agent serves ") {
			t.Errorf("%s: %v", tt.name, r)
		}
		if calls := sources.calls(); !slices.Equal(calls, tt.calls) {
			t.Errorf("%s: launchctl %q, want %q", tt.name, calls, tt.calls)
		}
		b, err := os.ReadFile(mine)
		if (err == nil) != tt.there {
			t.Errorf("%s: %v", tt.name, err)
		}
		if !tt.there {
			continue
		}
		list, err := parsePlist(string(b))
		if err != nil {
			t.Fatalf("%s: %v\n%s", tt.name, err, b)
		}
		got, _ := list.(map[string]any)
		sockets := map[string]any{"Listeners": map[string]any{"SockPathName": h.socket(), "SockPathMode": 0o600}}
		if !reflect.DeepEqual(got["Sockets"], sockets) || !reflect.DeepEqual(got["ProgramArguments"], []any{agent}) {
			t.Errorf("%s: %v", tt.name, got)
		}
		// launchd makes the file, and no directory for it.
		if fi, err := os.Stat(filepath.Dir(h.socket())); err != nil || fi.Mode() != fs.ModeDir|0o700 {
			t.Errorf("%s: %v %v", tt.name, fi, err)
		}
	}
	if left, err := os.ReadDir(filepath.Dir(mine)); err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}

	sources.write("broken", "", 0o600)
	refused("refused by launchd", "error: launchd does not start app.vmux.agent ", ": Bootstrap failed: 5: Input/output error\n", "\nhint: log in as ")
	need(t, "ssh-add")
	h.setenv("PATH", os.Getenv("PATH"))
	byHand := h.agent()
	sources.calls()
	refused("an agent started by hand", "error: an agent that launchd has not started serves ~/.ssh/vmux-agent.sock\nhint: end it, ")
	if calls := sources.calls(); !slices.Equal(calls, []string{"print " + service}) {
		t.Errorf("an agent started by hand: launchctl %q", calls)
	}
	byHand.stop(syscall.SIGTERM)
	sources.setenv("HOME", "here")
	refused("no home", "error: HOME=here does not begin with /")
}

// Without a manager to enable anything in, install-user says what to do instead.
func TestInstallUserWithoutManager(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.sources()
	prefix := "PREFIX=" + h.path("p")
	if r := h.make("SYSTEM=Linux", prefix, "install"); r.exit != 0 {
		t.Fatal(r)
	}
	refused := func(name string, r result, want ...string) {
		t.Helper()
		if r.exit == 0 || strings.Contains(r.stdout, "serves") {
			t.Errorf("%s: %v", name, r)
		}
		for _, w := range want {
			if !strings.Contains(r.stderr, w) {
				t.Errorf("%s: no %q: %v", name, w, r)
			}
		}
	}
	h.setenv("XDG_RUNTIME_DIR", h.path("none"))
	h.fake("systemctl", "echo 'Failed to connect to bus: No medium found' >&2\nexit 1\n")
	for _, target := range []string{"install-user", "uninstall-user"} {
		refused(target, h.make("SYSTEM=Linux", prefix, target), "does not run: Failed to connect to bus: No medium found\nhint: log in as ", "not by su or sudo, then make "+target)
		refused(target+" with DESTDIR", h.make("SYSTEM=Linux", prefix, "DESTDIR=/mnt", target), "error: DESTDIR=/mnt ", "\nhint: leave DESTDIR out: make "+target)
	}
	if os.Geteuid() == 0 {
		h.setenv("SUDO_USER", "me")
		refused("with sudo", h.make("SYSTEM=Linux", prefix, "install-user"), "error: with sudo this is about root, not about me\nhint: as me: make install-user\n")
		h.unset("SUDO_USER")
	}
	if calls := h.calls(); !slices.Equal(calls, []string{"--user show --property=Version", "--user show --property=Version"}) {
		t.Errorf("systemctl %q", calls)
	}

	// A system of another kind.
	id := need(t, "id")
	h.env = []string{"HOME=" + h.home, "PATH=" + h.path("bare"), "DESTDIR=", "SYSTEM=Linux", "LABEL=x",
		"BINDIR=" + h.path("p/bin"), "UNITDIR=" + h.path("p/lib/systemd/user"), "LAUNCHDIR=/none"}
	if err := os.Mkdir(h.path("bare"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(id, h.path("bare/id")); err != nil {
		t.Fatal(err)
	}
	refused("without systemd", h.run("/bin/sh", h.path("src/cmd/vmux-agent/service.sh"), "enable"),
		"error: systemctl is not installed\nhint: where systemd is not in charge, vmux-agent is started by hand: "+h.path("p/bin/vmux-agent")+"\n")
}

// systemd's own tool for trying socket activation out: the first client starts the
// agent, which serves the socket that it is handed, whatever the configuration says.
func TestSocketActivation(t *testing.T) {
	t.Parallel()
	need(t, "systemd-socket-activate")
	p := newPhone(t)
	p.serve("--approve", "always")
	d := newHost(t)
	pair(t, d, p)
	d.configure("socket = \"/nonexistent/elsewhere.sock\"\n")
	agent := d.spawn("systemd-socket-activate", "-l", d.socket(), "-E", "HOME", bin(t, "vmux-agent"))
	agent.wait(`Listening on `)
	if strings.Contains(agent.output(), "msg=serving") {
		t.Errorf("serves before anybody asks:\n%s", agent.output())
	}
	if out := d.ok("ssh-add", "-L"); !strings.HasPrefix(out, "ecdsa-sha2-nistp256 ") {
		t.Errorf("lists %q", out)
	}
	agent.wait(`msg=serving socket=` + regexp.QuoteMeta(d.socket()) + ` .*pid=` + fmt.Sprint(agent.cmd.Process.Pid))
	d.write("letter", "text", 0o600)
	d.write("key.pub", d.ok("ssh-add", "-L"), 0o600)
	d.ok("ssh-keygen", "-Y", "sign", "-n", "file", "-f", d.path("key.pub"), d.path("letter"))
	agent.wait(`msg="sign request" outcome=signed `)
	if _, err := os.Stat(d.socket() + ".lock"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a lock for a socket that is somebody else's: %v", err)
	}
	// A second agent leaves it alone, and so does the first one at its end.
	if r := d.run("vmux-agent", "--socket", d.socket()); r.exit != 1 || !strings.Contains(r.stderr, "is in use") {
		t.Errorf("a second agent: %v", r)
	}
	agent.cmd.Process.Signal(os.Interrupt)
	if exit := agent.ended(); exit != 0 {
		t.Errorf("exit %d:\n%s", exit, agent.output())
	}
	if _, err := os.Lstat(d.socket()); err != nil {
		t.Errorf("the manager's socket was removed: %v", err)
	}
}
