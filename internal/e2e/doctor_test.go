// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/go-json-experiment/json"

	"vmux.app/toolkit/internal/ptytest"
)

// checkup is what vmux-doctor --json prints.
type checkup struct {
	Level  string `json:"level"`
	Checks []struct {
		ID      string   `json:"id"`
		Title   string   `json:"title"`
		Level   string   `json:"level"`
		Found   string   `json:"found"`
		Why     string   `json:"why"`
		Do      string   `json:"do"`
		Lines   []string `json:"lines"`
		Because string   `json:"because"`
		Seconds float64  `json:"seconds"`
	} `json:"checks"`
	Seconds float64 `json:"seconds"`
}

// level gives a check's, empty if it is not there.
func (c checkup) level(id string) string {
	for _, k := range c.Checks {
		if k.ID == id {
			return k.Level
		}
	}
	return ""
}

// sick are the checks that are neither ok nor skipped.
func (c checkup) sick() (ids []string) {
	for _, k := range c.Checks {
		if k.Level != "ok" && k.Level != "skipped" {
			ids = append(ids, k.ID)
		}
	}
	return ids
}

// doctor examines h.
func (h *host) doctor(exit int, args ...string) checkup {
	h.t.Helper()
	r := h.run("vmux-doctor", append([]string{"--json"}, args...)...)
	var c checkup
	if err := json.Unmarshal([]byte(r.stdout), &c, json.RejectUnknownMembers(true)); err != nil || r.exit != exit {
		h.t.Fatalf("vmux-doctor %q: %v\n%v", args, err, r)
	}
	return c
}

// alone has ssh ask no configuration of this computer, but a file of h's, and
// no service manager. Whether one runs here does not matter: the unit is there.
func (h *host) alone() {
	h.t.Helper()
	ssh := need(h.t, "ssh")
	h.write("ssh_config", "", 0o600)
	for _, dir := range []string{"shims", ".config", ".config/systemd", ".config/systemd/user", ".config/systemd/user/sockets.target.wants"} {
		if err := os.MkdirAll(h.path(dir), 0o700); err != nil {
			h.t.Fatal(err)
		}
	}
	h.write("shims/ssh", fmt.Sprintf("#!/bin/sh\nexec %s -F %s \"$@\"\n", ssh, h.path("ssh_config")), 0o700)
	h.write("shims/systemctl", "#!/bin/sh\nexit 1\n", 0o700)
	h.setenv("PATH", h.path("shims")+":"+binDir+":"+os.Getenv("PATH"))
	h.write(".config/systemd/user/vmux-agent.service", "[Service]\nExecStart="+bin(h.t, "vmux-agent")+"\n", 0o644)
	h.write(".config/systemd/user/sockets.target.wants/vmux-agent.socket", "", 0o644)
}

// examined is a device, paired with a phone whose owner approves, and its certificate.
func examined(t *testing.T) (*host, *phone) {
	t.Helper()
	p := newPhone(t)
	p.serve("--approve", "always")
	d := newHost(t)
	d.alone()
	pair(t, d, p)
	d.agent()
	d.ok("vmux-cert")
	return d, p
}

// A healthy set-up: exit status 0, one screen, nobody asked.
func TestDoctorHealthy(t *testing.T) {
	t.Parallel()
	d, p := examined(t)
	before := strings.Count(p.serving.output(), `"event":"request"`)
	c := d.doctor(0)
	if c.Level != "ok" || len(c.sick()) > 0 {
		t.Fatalf("%+v", c)
	}
	t.Logf("%d checks in %.3f s", len(c.Checks), c.Seconds)
	for _, k := range c.Checks {
		if k.Found == "" || k.Why != "" || k.Do != "" || k.Level == "skipped" && k.ID != "service" {
			t.Errorf("%+v", k)
		}
	}
	r := d.run("vmux-doctor")
	lines := strings.Split(strings.TrimSuffix(r.stdout, "\n"), "\n")
	if r.exit != 0 || r.stderr != "" || len(lines) > 22 || strings.Contains(r.stdout, "\x1b") || !strings.HasPrefix(lines[len(lines)-1], "all is well, ") {
		t.Errorf("%v", r)
	}
	for _, l := range lines {
		if utf8.RuneCountInString(l) > 80 {
			t.Errorf("more than 80 columns: %s", l)
		}
	}
	if r := d.run("vmux-doctor", "--quiet"); r.exit != 0 || r.stdout != "" || r.stderr != "" {
		t.Errorf("--quiet: %v", r)
	}
	if r := d.run("vmux-doctor", "--only", "lock,log", "--only", "config"); r.exit != 0 || !regexp.MustCompile(`^ok    config  .*\nok    lock    held by the agent\nok    log     .*\nall is well, 3 checks in `).MatchString(r.stdout) {
		t.Errorf("--only: %v", r)
	}
	if after := strings.Count(p.serving.output(), `"event":"request"`); after != before {
		t.Errorf("the phone was asked: %s", p.serving.output())
	}
	// Nothing was left behind.
	for _, name := range []string{".config/vmux/vmux.toml", ".ssh/known_hosts", ".ssh/config"} {
		if _, err := os.Stat(d.path(name)); err == nil {
			t.Errorf("%s was made", name)
		}
	}
}

// Colours are for terminals, unless the user wants none, and lines end before the terminal does.
func TestDoctorTerminal(t *testing.T) {
	t.Parallel()
	d, _ := examined(t)
	d.setenv("SSH_AUTH_SOCK", "/run/user/1000/keyring/"+strings.Repeat("long ", 20))
	const red = "\x1b[31;1mFAIL\x1b[0m"
	for _, tt := range []struct {
		env    string
		colour bool
	}{{"TERM=xterm", true}, {"TERM=dumb", false}, {"NO_COLOR=1", false}, {"NO_COLOR=", true}} {
		pty := ptytest.Open(t)
		c := d.cmd(t.Context(), "vmux-doctor")
		c.Env = append(c.Env, "TERM=xterm", tt.env)
		c.Stdin, c.Stdout, c.Stderr = pty.TTY, pty.TTY, pty.TTY
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		text := pty.Expect(" checks in ")
		c.Wait()
		if strings.Contains(text, red) != tt.colour || strings.Contains(text, "\x1b") != tt.colour || c.ProcessState.ExitCode() != 2 {
			t.Errorf("%s: exit %d\n%q", tt.env, c.ProcessState.ExitCode(), text)
		}
		for l := range strings.Lines(regexp.MustCompile(`\x1b\[[0-9;]*m`).ReplaceAllString(text, "")) {
			if l = strings.TrimRight(l, "\r\n"); utf8.RuneCountInString(l) > 80 && !strings.Contains(l, "hint: ") {
				t.Errorf("%s: more than 80 columns: %s", tt.env, l)
			}
		}
	}
}

// What is wrong is said with why and what to type, by one check.
func TestDoctorSick(t *testing.T) {
	t.Parallel()
	d, p := examined(t)
	sick := func(exit int, id string, args ...string) checkup {
		t.Helper()
		c := d.doctor(exit, args...)
		if !slices.Equal(c.sick(), []string{id}) {
			t.Errorf("%q, not %s: %+v", c.sick(), id, c)
		}
		for _, k := range c.Checks {
			if k.ID == id && (k.Why == "" || k.Do == "") {
				t.Errorf("%+v", k)
			}
		}
		return c
	}
	d.write("ssh_config", "IdentityAgent none\n", 0o600)
	sick(2, "identity-agent")
	d.write("ssh_config", "", 0o600)

	if err := os.Mkdir(d.path("config"), 0o700); err != nil {
		t.Fatal(err)
	}
	wrong := d.write("config/vmux.toml", "deadlin = \"60s\"\n", 0o600)
	c := sick(2, "config", "--config", wrong, "--socket", d.socket())
	if !strings.HasPrefix(c.Checks[0].Do, "write one of socket, name, ") {
		t.Errorf("%+v", c.Checks[0])
	}
	// The hint is the one of the commands.
	if r := d.run("vmux-pair", "--config", wrong, "--list"); !strings.HasSuffix(r.stderr, "\nhint: "+c.Checks[0].Do+"\n") {
		t.Errorf("vmux-pair says otherwise: %v\n%+v", r, c.Checks[0])
	}

	d.ok("vmux-cert", "drop", "--all")
	d.ok("vmux-cert", "--validity", "5m")
	sick(1, "certificate")
	r := d.run("vmux-doctor", "--quiet")
	if want := regexp.MustCompile(`^WARN  certificate  session certificate [0-9]+ ends in (4m[0-9]+s|5m)\n      why:  .*\n      hint: get another one: vmux-cert\n$`); r.exit != 1 || !want.MatchString(r.stdout) || r.stderr != "" {
		t.Errorf("--quiet: %v", r)
	}
	d.ok("vmux-cert", "drop", "--all")
	d.ok("vmux-cert")

	p.serving.stop(syscall.SIGTERM)
	c = sick(2, "link")
	if c.level("clock") != "skipped" {
		t.Errorf("%+v", c)
	}
	if r := d.run("vmux-doctor"); r.exit != 2 || !strings.Contains(r.stdout, "-     skipped because of link: clock, isolation\n") || !strings.Contains(r.stdout, "\n1 failure (link), ") {
		t.Errorf("the phone is off: %v", r)
	}
	if r := d.run("vmux-doctor", "--only", "clock"); r.exit != 2 || !strings.Contains(r.stdout, "FAIL  link  Pocket at ") || !strings.Contains(r.stdout, "skipped because of link: clock\n") {
		t.Errorf("--only clock: %v", r)
	}
	p.serveOn(p.address, "--approve", "always", "--no-advertise")

	d.serving.stop(syscall.SIGKILL)
	sick(2, "agent")
	d.setenv("SSH_AUTH_SOCK", "")
	if c := d.doctor(2); !slices.Equal(c.sick(), []string{"agent", "auth-sock"}) {
		t.Errorf("%q", c.sick())
	}
}

// Wrong usage is said before anything is examined.
func TestDoctorUsage(t *testing.T) {
	t.Parallel()
	d := newHost(t)
	for args, want := range map[string]string{
		"--only nosuch":             `error: --only: there is no check "nosuch"`,
		"--only ,":                  "error: --only: no check is named",
		"--only host":               "error: --only host: no server is named",
		"--list --setup":            "error: --list and --setup exclude one another",
		"--list --only lock":        "error: --list and --only exclude one another",
		"--setup --host me@x":       "error: --setup and --host exclude one another",
		"--host -oProxyCommand=x":   `error: --host: "-oProxyCommand=x" is no destination`,
		"--host=-oProxyCommand=x":   `error: --host: "-oProxyCommand=x" is no destination`,
		"something":                 `error: there is no place for the argument "something"`,
		"--only lock --only nosuch": `error: --only: there is no check "nosuch"`,
	} {
		if r := d.run("vmux-doctor", strings.Fields(args)...); r.exit != 2 || !strings.HasPrefix(r.stderr, want+"\nhint: ") || r.stdout != "" {
			t.Errorf("%s: %v", args, r)
		}
	}
	d.setenv("HOME", "")
	if r := d.run("vmux-doctor"); r.exit != 2 || !strings.HasPrefix(r.stderr, "error: HOME is not set") {
		t.Errorf("no home: %v", r)
	}
}

// The lines that --setup prints do what they say.
func TestDoctorSetup(t *testing.T) {
	t.Parallel()
	d := newHost(t)
	for socket, line := range map[string]string{
		"~/.ssh/vmux-agent.sock": "    IdentityAgent ~/.ssh/vmux-agent.sock",
		"/tmp/a b/100%/s'":       `    IdentityAgent "/tmp/a b/100%%/s'"`,
	} {
		d.setenv("VMUX_SOCKET", socket)
		want := strings.Replace(socket, "~", d.home, 1)
		for shell, file := range map[string]string{"/bin/bash": "~/.bashrc", "/usr/bin/zsh": "~/.zshrc", "/usr/bin/fish": "~/.config/fish/config.fish", "/bin/tcsh": "~/.cshrc", "": "~/.profile"} {
			d.setenv("SHELL", shell)
			var lines struct {
				SSHConfig []string `json:"sshConfig"`
				ShellFile string   `json:"shellFile"`
				Shell     []string `json:"shell"`
			}
			out := d.ok("vmux-doctor", "--setup", "--json")
			if err := json.Unmarshal([]byte(out), &lines, json.RejectUnknownMembers(true)); err != nil || lines.ShellFile != file ||
				len(lines.SSHConfig) != 2 || lines.SSHConfig[1] != line || len(lines.Shell) != 1 {
				t.Errorf("%s: %v\n%s", shell, err, out)
				continue
			}
			text := d.ok("vmux-doctor", "--setup")
			for _, l := range append(slices.Clone(lines.SSHConfig), lines.Shell[0]) {
				if !strings.Contains(text, "\n"+l+"\n") {
					t.Errorf("%q is not in %s", l, text)
				}
			}
			if by := filepath.Base(shell); by == "bash" || by == "zsh" || by == "fish" {
				if got := d.ok(by, "-c", lines.Shell[0]+"\nprintenv SSH_AUTH_SOCK"); got != want+"\n" {
					t.Errorf("%s: %q, want %q", by, got, want)
				}
			}
			if strings.HasPrefix(socket, "~") {
				continue // ssh takes the home directory from the user database
			}
			if got := d.ok("ssh", "-F", d.write("config", text[:strings.Index(text, "# in ")], 0o600), "-G", "x"); !strings.Contains(got, "\nidentityagent "+want+"\n") {
				t.Errorf("ssh does not take it:\n%s\n%s", text, got)
			}
		}
	}
}

// A login says whether the server takes the certificate or the key, and what to
// add to it if not; that helps.
func TestDoctorHost(t *testing.T) {
	t.Parallel()
	p := newPhone(t)
	owner := p.askpass()
	p.serve("--approve", "askpass")
	d := newHost(t)
	d.alone()
	pair(t, d, p)
	d.agent()
	s := newServer(t, "")
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	options := s.args()
	var config strings.Builder
	for i, a := range options[:len(options)-1] {
		if a == "-o" {
			name, value, _ := strings.Cut(options[i+1], "=")
			if name == "BatchMode" || name == "IdentityFile" {
				continue
			}
			if strings.HasSuffix(name, "KnownHostsFile") {
				value = strings.ReplaceAll(value, " ", "")
			}
			fmt.Fprintf(&config, "%s %s\n", name, value)
		}
	}
	d.write("ssh_config", config.String(), 0o600)
	host := me.Username + "@rig"
	// check runs vmux-doctor --host; meanwhile is what the owner does.
	check := func(exit int, found string, meanwhile func()) (lines []string) {
		t.Helper()
		doctor := d.spawn("vmux-doctor", "--json", "--only", "host", "--host", host)
		doctor.wait(`^logging in to `)
		if meanwhile != nil {
			meanwhile()
		}
		if got := doctor.ended(); got != exit {
			t.Fatalf("exit %d, not %d: %s\n%s", got, exit, doctor.output(), s.log())
		}
		var c checkup
		for line := range strings.Lines(doctor.output()) {
			if strings.HasPrefix(line, "{") {
				if err := json.Unmarshal([]byte(strings.TrimSpace(line)), &c); err != nil {
					t.Fatal(err)
				}
			}
		}
		if len(c.Checks) != 1 || c.Checks[0].ID != "host" || !regexp.MustCompile(found).MatchString(c.Checks[0].Found) {
			t.Errorf("not %s: %+v", found, c)
			return nil
		}
		if exit != 0 && (c.Checks[0].Why == "" || c.Checks[0].Do == "") {
			t.Errorf("%+v", c.Checks[0])
		}
		return c.Checks[0].Lines
	}
	// add puts the line that has a text into the server's authorized_keys.
	add := func(lines []string, text string) {
		t.Helper()
		i := slices.IndexFunc(lines, func(l string) bool { return strings.Contains(l, text) && !strings.HasPrefix(l, "#") })
		if i < 0 {
			t.Fatalf("no line with %q: %q", text, lines)
		}
		s.write("authorized", lines[i]+"\n")
	}

	lines := check(2, `^`+host+` refused: key default \(SHA256:`, nil)
	add(lines, " default")
	check(0, `^`+host+` takes the key default \(SHA256:`, func() { owner.next().approve() })
	check(2, `^`+host+`: the signature was refused: agent refused operation`, func() { owner.next().deny() })

	cert := d.spawn("vmux-cert")
	owner.next().approve()
	if exit := cert.ended(); exit != 0 {
		t.Fatal(cert.output())
	}
	s.write("authorized", "")
	lines = check(2, `^`+host+` refused: session certificate SHA256:\S+, key default`, nil)
	add(lines, "cert-authority,principals=\""+me.Username+"\"")
	check(0, `^`+host+` takes the session certificate SHA256:`, nil)
	// What the configuration says of identities does not matter here, but to identity-agent.
	d.write("ssh_config", config.String()+"IdentitiesOnly yes\n", 0o600)
	check(0, `^`+host+` takes the session certificate SHA256:`, nil)
	d.write("ssh_config", config.String(), 0o600)
	// The line for TrustedUserCAKeys does it too.
	s.write("authorized", "")
	s.write("cas", lines[len(lines)-1]+"\n")
	b, err := os.ReadFile(s.file("sshd_config"))
	if err != nil {
		t.Fatal(err)
	}
	s.write("sshd_config", string(b)+"TrustedUserCAKeys "+s.file("cas")+"\n")
	check(0, `^`+host+` takes the session certificate SHA256:`, nil)

	known, err := os.ReadFile(s.file("known_hosts"))
	if err != nil {
		t.Fatal(err)
	}
	s.write("known_hosts", "")
	check(2, `host key is known for rig`, nil)
	if b, err := os.ReadFile(s.file("known_hosts")); err != nil || len(b) > 0 {
		t.Errorf("known_hosts was written: %s", b)
	}
	s.write("known_hosts", "rig "+strings.TrimPrefix(newServer(t, "").key, "rig ")+"\n")
	check(2, `REMOTE HOST IDENTIFICATION HAS CHANGED`, nil)
	s.write("known_hosts", string(known))

	d.write("ssh_config", "ProxyCommand none\nPort 1\n", 0o600)
	host = "127.0.0.1"
	check(2, `^127.0.0.1: ssh: connect to host 127.0.0.1 port 1: Connection refused`, nil)
}

// The page has every check, with what --list says of it.
func TestManChecks(t *testing.T) {
	t.Parallel()
	var page []string
	for _, line := range readPages(t)["vmux-doctor.1"].section(".Sh", "CHECKS") {
		if id, ok := strings.CutPrefix(line, ".It Cm "); ok {
			page = append(page, id)
		}
	}
	var checks struct {
		Checks []struct {
			ID    string   `json:"id"`
			Title string   `json:"title"`
			Needs []string `json:"needs"`
		} `json:"checks"`
	}
	h := newHost(t)
	if err := json.Unmarshal([]byte(h.ok("vmux-doctor", "--list", "--json")), &checks, json.RejectUnknownMembers(true)); err != nil {
		t.Fatal(err)
	}
	var real []string
	text := h.ok("vmux-doctor", "--list")
	for _, k := range checks.Checks {
		real = append(real, k.ID)
		if !regexp.MustCompile(`(?m)^` + k.ID + ` +` + regexp.QuoteMeta(k.Title) + `$`).MatchString(text) {
			t.Errorf("--list has no line for %s:\n%s", k.ID, text)
		}
	}
	// Those of macOS are on the page too.
	for _, id := range []string{"session-sock", "local-network", "nearby"} {
		if i := slices.Index(page, id); i >= 0 && !slices.Contains(real, id) {
			page = slices.Delete(page, i, i+1)
		} else if i < 0 {
			t.Errorf("%s is not on the page", id)
		}
	}
	if !slices.Equal(page, real) {
		t.Errorf("the page has\n%q\n--list has\n%q", page, real)
	}
}
