// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"vmux.app/toolkit/internal/netnstest"
)

// binDirEnv hands the built commands to a test binary that is started again in
// a namespace, which then need not build them.
const binDirEnv = "VMUX_E2E_BIN"

// binDir has the commands, built as the tests are.
var binDir = os.Getenv(binDirEnv)

func TestMain(m *testing.M) {
	if os.Getenv(aloneEnv) != "" {
		os.Exit(m.Run())
	}
	os.Exit(again())
}

// aloneEnv says that the tests are where no packet gets out.
const aloneEnv = "VMUX_E2E_ALONE"

// again builds the commands, for which the network may be needed, unless binDirEnv says where they are, and runs the tests.
func again() int {
	if binDir == "" {
		dir, err := os.MkdirTemp("", "vmux-bin")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if err := os.Chmod(dir, 0o755); err != nil { // other users run them too
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		build := exec.Command("go", "build", "-buildvcs=false", raceFlag, quickFlag, "-o", dir+"/", "../../cmd/...")
		build.Stdout, build.Stderr = os.Stderr, os.Stderr
		if err := build.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "the commands do not build:", err)
			return 1
		}
		binDir = dir
	}
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), binDirEnv+"="+binDir, aloneEnv+"=yes")
	return netnstest.Alone(cmd)
}

func bin(t testing.TB, name string) string {
	t.Helper()
	return filepath.Join(binDir, name)
}

// need gives a program of the system. Where it is missing the test is skipped,
// and fails where CI is set.
func need(t testing.TB, name string) string {
	t.Helper()
	for _, dir := range []string{"", "/usr/sbin/", "/sbin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			if name == "sshd" && os.Geteuid() == 0 {
				os.MkdirAll("/run/sshd", 0o755) // its privilege separation directory
			}
			return path
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed; make deps installs it", name)
	}
	t.Skipf("%s is not installed; make deps installs it", name)
	return ""
}

// patience bounds every wait for something that should happen soon.
const patience = 20 * time.Second

// host is a computer of its own, as far as vmux can tell: a home directory and
// an environment. A device and a phone are hosts.
type host struct {
	t    testing.TB
	home string
	env  []string
	// start runs a prepared command, somewhere else than here if set.
	start   func(*exec.Cmd) error
	cred    *syscall.Credential
	serving *process // its agent, if one was started
}

func newHost(t testing.TB) *host {
	t.Helper()
	home, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Tests take the right to write from some directories.
		_ = filepath.WalkDir(home, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				return os.Chmod(path, 0o700)
			}
			return nil
		})
		if err := os.RemoveAll(home); err != nil {
			t.Logf("not removed: %v", err)
		}
	})
	if err := os.Mkdir(filepath.Join(home, ".ssh"), 0o700); err != nil {
		t.Fatal(err)
	}
	return &host{t: t, home: home, start: (*exec.Cmd).Start, env: []string{
		"HOME=" + home,
		"PATH=" + binDir + ":" + os.Getenv("PATH"),
		"LANG=C.UTF-8",
		"CI=" + os.Getenv("CI"),
		binDirEnv + "=" + binDir,
		"GORACE=halt_on_error=1 atexit_sleep_ms=0",
		"SSH_AUTH_SOCK=" + filepath.Join(home, ".ssh", "vmux-agent.sock"),
		// Tests of this say so; in others it would be one more prompt.
		"VMUX_CERTIFICATE_AFTER_PAIRING=no",
	}}
}

func (h *host) setenv(key, value string) { h.env = append(h.env, key+"="+value) }

func (h *host) path(elem ...string) string {
	return filepath.Join(append([]string{h.home}, elem...)...)
}

func (h *host) socket() string { return h.path(".ssh", "vmux-agent.sock") }

func (h *host) write(name, content string, mode os.FileMode) string {
	h.t.Helper()
	path := h.path(name)
	syscall.ForkLock.RLock() // a child would hold it open for writing, and no such file can be run
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		h.t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		h.t.Fatal(err)
	}
	return path
}

// cmd prepares a program of ours or of the system.
func (h *host) cmd(ctx context.Context, name string, args ...string) *exec.Cmd {
	path := name
	if !strings.Contains(name, "/") {
		path = filepath.Join(binDir, name)
		if _, err := os.Stat(path); err != nil {
			path = need(h.t, name)
		}
	}
	c := exec.CommandContext(ctx, path, args...)
	c.Env = h.env
	c.Dir = h.home
	c.WaitDelay = patience
	if h.cred != nil {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: h.cred}
	}
	return c
}

// result is what a command that has ended leaves.
type result struct {
	exit           int
	stdout, stderr string
}

func (r result) String() string {
	return fmt.Sprintf("exit %d\nstdout:\n%s\nstderr:\n%s", r.exit, r.stdout, r.stderr)
}

// run runs a command to its end.
func (h *host) run(name string, args ...string) result {
	h.t.Helper()
	return h.runInput("", name, args...)
}

func (h *host) runInput(stdin, name string, args ...string) result {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	c := h.cmd(ctx, name, args...)
	c.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err := h.start(c)
	if err == nil {
		err = c.Wait()
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		h.t.Fatalf("%s %q: %v\n%s%s", name, args, err, &out, &errs)
	}
	if ctx.Err() != nil {
		h.t.Fatalf("%s %q: not done within %v\n%s%s", name, args, 2*patience, &out, &errs)
	}
	return result{c.ProcessState.ExitCode(), out.String(), errs.String()}
}

// ok is run for a command that must succeed; it gives standard output.
func (h *host) ok(name string, args ...string) string {
	h.t.Helper()
	r := h.run(name, args...)
	if r.exit != 0 {
		h.t.Fatalf("%s %q: %v", name, args, r)
	}
	return r.stdout
}

// process is a command that runs on. Its output is kept, and can be waited for.
type process struct {
	t    testing.TB
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended

	mu      sync.Mutex
	out     []string      // lines of both outputs, as they came
	changed chan struct{} // closed at each line
}

// spawn starts a command that runs until the test ends, or until it is stopped.
func (h *host) spawn(name string, args ...string) *process {
	h.t.Helper()
	c := h.cmd(context.Background(), name, args...)
	p := &process{t: h.t, name: name, cmd: c, done: make(chan struct{}), changed: make(chan struct{})}
	// A pipe of our own, so that a grandchild that keeps it does not delay Wait.
	r, w, err := os.Pipe()
	if err != nil {
		h.t.Fatal(err)
	}
	c.Stdout, c.Stderr = w, w
	if err := h.start(c); err != nil {
		h.t.Fatalf("%s: %v", name, err)
	}
	w.Close()
	go func() {
		defer r.Close()
		for in := bufio.NewReader(r); ; {
			line, err := in.ReadString('\n')
			if line != "" {
				p.mu.Lock()
				p.out = append(p.out, strings.TrimSuffix(line, "\n"))
				close(p.changed)
				p.changed = make(chan struct{})
				p.mu.Unlock()
			}
			if err != nil {
				c.Wait()
				close(p.done)
				return
			}
		}
	}()
	h.t.Cleanup(func() {
		p.stop(syscall.SIGTERM)
		if h.t.Failed() {
			h.t.Logf("output of %s %q:\n%s", name, args, p.output())
		}
		if strings.Contains(p.output(), "DATA RACE") {
			h.t.Errorf("%s has a data race:\n%s", name, p.output())
		}
	})
	return p
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.out, "\n")
}

// wait waits for a line that matches, and gives its submatches.
func (p *process) wait(pattern string) []string {
	p.t.Helper()
	re := regexp.MustCompile(pattern)
	deadline := time.After(patience)
	for seen := 0; ; {
		p.mu.Lock()
		lines, changed := p.out[seen:], p.changed
		seen = len(p.out)
		p.mu.Unlock()
		for _, l := range lines {
			if m := re.FindStringSubmatch(l); m != nil {
				return m
			}
		}
		select {
		case <-changed:
		case <-p.done:
			if p.mu.TryLock() {
				more := len(p.out) > seen
				p.mu.Unlock()
				if more {
					continue
				}
			}
			p.t.Fatalf("%s ended without a line that matches %q:\n%s", p.name, pattern, p.output())
		case <-deadline:
			p.t.Fatalf("%s printed no line that matches %q within %v:\n%s", p.name, pattern, patience, p.output())
		}
	}
}

// stop sends a signal and waits for the end; it gives the exit status, -1 after
// a signal.
func (p *process) stop(s syscall.Signal) int {
	p.cmd.Process.Signal(s)
	select {
	case <-p.done:
	case <-time.After(patience):
		p.cmd.Process.Kill()
		<-p.done
		p.t.Errorf("%s did not end within %v of %v:\n%s", p.name, patience, s, p.output())
	}
	return p.cmd.ProcessState.ExitCode()
}

// ended waits for the end and gives the exit status.
func (p *process) ended() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("%s has not ended after %v:\n%s", p.name, patience, p.output())
	}
	return p.cmd.ProcessState.ExitCode()
}

// phone is a host with a vmux-signer.
type phone struct {
	*host
	serving *process
	address string
}

// newPhone makes a signer's home with the default P-256 key.
func newPhone(t testing.TB) *phone {
	t.Helper()
	p := &phone{host: newHost(t)}
	p.ok("vmux-signer", "init", "--no-passphrase", "--name", "Pocket")
	return p
}

func (p *phone) homeDir() string { return p.path(".local", "share", "vmux-signer") }

// serve starts the signer on a free loopback port, without advertising.
func (p *phone) serve(args ...string) *process {
	p.t.Helper()
	return p.serveOn("127.0.0.1:0", append(args, "--no-advertise")...)
}

func (p *phone) serveOn(listen string, args ...string) *process {
	p.t.Helper()
	p.serving = p.spawn("vmux-signer", append([]string{"serve", "--json", "--listen", listen}, args...)...)
	line := p.serving.wait(`^\{"event":"listening".*`)[0]
	var e struct {
		Event   string `json:"event"`
		Address string `json:"address"`
	}
	if err := json.Unmarshal([]byte(line), &e); err != nil || e.Address == "" {
		p.t.Fatalf("%s: %v", line, err)
	}
	p.address = e.Address
	return p.serving
}

// pair pairs a device with the phone by URL.
func pair(t testing.TB, d *host, p *phone) {
	t.Helper()
	pairing := d.spawn("vmux-pair", "--url", "--address", p.address)
	url := pairing.wait(`^vmux-pair://\S+`)[0]
	p.ok("vmux-signer", "pair", url)
	if exit := pairing.ended(); exit != 0 {
		t.Fatalf("vmux-pair: exit %d\n%s", exit, pairing.output())
	}
}

// agent starts vmux-agent and waits until it serves.
func (h *host) agent(args ...string) *process {
	h.t.Helper()
	p := h.spawn("vmux-agent", args...)
	p.wait(`msg=serving`)
	h.serving = p
	return p
}

// server is an SSH server, OpenSSH's, without port or daemon: each login starts
// one, as inetd would.
type server struct {
	t   testing.TB
	dir string
	key string // of the host, public

	alias string // what its clients call it
}

func newServer(t testing.TB, authorized string) *server {
	t.Helper()
	need(t, "sshd")
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, dir: dir}
	if out, err := exec.Command(need(t, "ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", s.file("host")).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	pub, err := os.ReadFile(s.file("host.pub"))
	if err != nil {
		t.Fatal(err)
	}
	s.key = strings.TrimSpace(string(pub))
	s.write("authorized", authorized)
	s.called("rig")
	s.write("sshd_config", fmt.Sprintf(`HostKey %s
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AuthorizedKeysFile %s
LogLevel VERBOSE
MaxStartups 200
`, s.file("host"), s.file("authorized")))
	return s
}

func (s *server) file(name string) string { return filepath.Join(s.dir, name) }

func (s *server) write(name, content string) {
	s.t.Helper()
	if err := os.WriteFile(s.file(name), []byte(content), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// called has clients know the host key under these names, by the first of which
// they look for it.
func (s *server) called(names string) {
	s.t.Helper()
	s.alias, _, _ = strings.Cut(names, ",")
	s.write("known_hosts", names+" "+s.key+"\n")
}

// fingerprint is the host key's.
func (s *server) fingerprint() string {
	s.t.Helper()
	out, err := exec.Command(need(s.t, "ssh-keygen"), "-l", "-f", s.file("host.pub")).Output()
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.Fields(string(out))[1]
}

// args is the command line of an ssh to this server. ssh sends its proxy command SIGHUP when it ends, which would
// keep sshd from logging what it has refused.
func (s *server) args(args ...string) []string {
	me, err := user.Current()
	if err != nil {
		s.t.Fatal(err)
	}
	return append([]string{"-F", "none",
		"-o", fmt.Sprintf("ProxyCommand=/bin/sh -c \"trap '' HUP; exec %s -i -f %s -E %s\"", need(s.t, "sshd"), s.file("sshd_config"), s.file("log")),
		"-o", "HostKeyAlias=" + s.alias, "-o", "UserKnownHostsFile=" + s.file("known_hosts"), "-o", "GlobalKnownHostsFile=none",
		"-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes", "-o", "ControlPath=none", "-o", "IdentityFile=none",
		me.Username + "@rig"}, args...)
}

// login logs in from h with the keys of its agent and runs a command.
func (s *server) login(h *host, command ...string) result {
	s.t.Helper()
	return h.run("ssh", s.args(command...)...)
}

func (s *server) log() string {
	b, _ := os.ReadFile(s.file("log"))
	return string(b)
}

// approver is an owner made of a script: SSH_ASKPASS writes each prompt to a
// file, and waits for the test's answer.
type approver struct {
	t   testing.TB
	dir string
}

// askpass gives the phone such an owner.
func (p *phone) askpass() *approver {
	p.t.Helper()
	a := &approver{p.t, p.path("asks")}
	if err := os.Mkdir(a.dir, 0o700); err != nil {
		p.t.Fatal(err)
	}
	// The prompt appears under its name when it is whole, and the answer comes
	// through a named pipe, so that nobody polls. TERM must end the script though
	// it waits. Asked for a passphrase, it prints the answer.
	script := p.write("askpass", fmt.Sprintf(`#!/bin/sh
cd %s || exit 1
mkfifo "$$.answer" || exit 1
printf '%%s\n' "$1" >"$$.new" && mv "$$.new" "$$.prompt"
echo "$$" >ready
read -r answer <"$$.answer"
rm -f "$$.answer" "$$.prompt"
[ "$SSH_ASKPASS_PROMPT" ] || { printf '%%s\n' "$answer"; exit; }
[ "$answer" = yes ]
`, a.dir), 0o700)
	if err := syscall.Mkfifo(filepath.Join(a.dir, "ready"), 0o600); err != nil {
		p.t.Fatal(err)
	}
	p.setenv("SSH_ASKPASS", script)
	return a
}

// ask is a prompt that waits for its answer.
type ask struct {
	a      *approver
	pid    string
	prompt string
}

// next waits for the next prompt.
func (a *approver) next() ask {
	a.t.Helper()
	type opened struct {
		s   string
		err error
	}
	got := make(chan opened, 1)
	f, err := os.OpenFile(filepath.Join(a.dir, "ready"), os.O_RDWR, 0)
	if err != nil {
		a.t.Fatal(err)
	}
	defer f.Close()
	f.SetReadDeadline(time.Now().Add(patience))
	go func() {
		line, err := readLine(f)
		got <- opened{line, err}
	}()
	o := <-got
	if o.err != nil {
		a.t.Fatalf("no prompt within %v: %v", patience, o.err)
	}
	b, err := os.ReadFile(filepath.Join(a.dir, o.s+".prompt"))
	if err != nil {
		a.t.Fatal(err)
	}
	return ask{a, o.s, string(b)}
}

// readLine reads one line byte by byte: what follows belongs to the next reader.
func readLine(r io.Reader) (string, error) {
	var line []byte
	for b := make([]byte, 1); ; {
		if _, err := r.Read(b); err != nil {
			return "", err
		}
		if b[0] == '\n' {
			return string(line), nil
		}
		line = append(line, b[0])
	}
}

func (k ask) answer(s string) {
	k.a.t.Helper()
	f, err := os.OpenFile(filepath.Join(k.a.dir, k.pid+".answer"), os.O_RDWR, 0)
	if err != nil {
		k.a.t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.WriteString(f, s+"\n"); err != nil {
		k.a.t.Fatal(err)
	}
	// The pipe keeps the answer only while somebody has it open.
	eventually(k.a.t, "the answer to be read", func() bool {
		_, err := os.Stat(filepath.Join(k.a.dir, k.pid+".answer"))
		return err != nil
	})
}

// approve and deny are the owner's.
func (k ask) approve() { k.a.t.Helper(); k.answer("yes") }
func (k ask) deny()    { k.a.t.Helper(); k.answer("no") }

// withdrawn waits until the prompt has been taken away.
func (k ask) withdrawn() {
	k.a.t.Helper()
	eventually(k.a.t, "the prompt to be withdrawn", func() bool {
		var pid int
		fmt.Sscan(k.pid, &pid)
		return syscall.Kill(pid, 0) != nil
	})
}

// eventually waits for a condition that nothing announces.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}
