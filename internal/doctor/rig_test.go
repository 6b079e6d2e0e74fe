// SPDX-License-Identifier: BSD-3-Clause

package doctor_test

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vmux.app/toolkit/internal/agent"
	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/doctor"
	"vmux.app/toolkit/internal/netnstest"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/transport/dnssd"
)

// binEnv names the directory of the built commands. The tests run from a copy of
// their program there: an agent answers vmux's own requests to its neighbours
// only.
const binEnv = "VMUX_DOCTOR_TEST_BIN"

var binDir = os.Getenv(binEnv)

func TestMain(m *testing.M) {
	if binDir != "" {
		code := m.Run()
		if shared != nil {
			shared.end()
		}
		os.Exit(code)
	}
	os.Exit(again())
}

func again() int {
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	self, err := os.Executable()
	if err == nil {
		var b []byte
		if b, err = os.ReadFile(self); err == nil {
			err = os.WriteFile(filepath.Join(dir, "vmux-doctor.test"), b, 0o755)
		}
	}
	if err == nil {
		build := exec.Command("go", "build", "-buildvcs=false", raceFlag, quickFlag, "-o", dir+"/", "../../cmd/...")
		build.Stdout, build.Stderr = os.Stderr, os.Stderr
		err = build.Run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "the commands are not ready:", err)
		return 1
	}
	c := exec.Command(filepath.Join(dir, "vmux-doctor.test"), os.Args[1:]...)
	c.Env = append(os.Environ(), binEnv+"="+dir)
	return netnstest.Alone(c)
}

// patience bounds every wait for something that should happen soon.
const patience = 20 * time.Second

// rig is a healthy set-up: a phone, an agent that is paired with it and has a
// session certificate, and a home directory for both.
type rig struct {
	home    string
	phone   *running // vmux-signer
	agent   *running
	address string        // of the phone
	browse  dnssd.Options // where it is advertised: on the loopback interface, as a type of its own
	ends    []func()
}

// running is a command that runs on.
type running struct {
	cmd  *exec.Cmd
	out  *os.File
	done chan struct{}
}

func newRig() (r *rig, err error) {
	r = &rig{}
	defer func() {
		if err != nil {
			r.end()
		}
	}()
	if r.home, err = os.MkdirTemp("", "v"); err != nil {
		return r, err
	}
	r.ends = append(r.ends, func() { os.RemoveAll(r.home) })
	if err := os.Mkdir(r.path(".ssh"), 0o700); err != nil {
		return r, err
	}
	if _, err := r.run("vmux-signer", "init", "--no-passphrase", "--name", "Pocket"); err != nil {
		return r, err
	}
	var m []string
	if r.phone, m, err = r.start(`"listening","address":"([^"]*)"`, "vmux-signer", "serve", "--json", "--listen", "127.0.0.1:0", "--no-advertise", "--approve", "always"); err != nil {
		return r, err
	}
	r.address = m[1]
	pairing, m, err := r.start(`^(vmux-pair://\S+)`, "vmux-pair", "--url", "--address", r.address)
	if err != nil {
		return r, err
	}
	if _, err := r.run("vmux-signer", "pair", m[1]); err != nil {
		return r, err
	}
	<-pairing.done
	// As if discovery had found it.
	state := store.New(r.path(".local", "state", "vmux", "agent.json"), nil)
	if err := state.Update(func(s *store.State) error {
		s.Phones[0].FixedAddress = ""
		return nil
	}); err != nil {
		return r, err
	}
	if err := r.startAgent(); err != nil {
		return r, err
	}
	if _, err := r.run("vmux-cert"); err != nil {
		return r, err
	}
	return r, r.advertise()
}

func (r *rig) path(elem ...string) string {
	return filepath.Join(append([]string{r.home}, elem...)...)
}

func (r *rig) socket() string { return r.path(".ssh", "vmux-agent.sock") }

func (r *rig) startAgent() (err error) {
	r.agent, _, err = r.start(`msg=serving`, "vmux-agent")
	return err
}

func (r *rig) command(name string, args ...string) *exec.Cmd {
	c := exec.Command(filepath.Join(binDir, name), args...)
	if _, err := os.Stat(c.Path); err != nil {
		c = exec.Command(name, args...)
	}
	c.Dir = r.home
	c.Env = []string{"HOME=" + r.home, "PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8", "SSH_AUTH_SOCK=" + r.socket(),
		"VMUX_CERTIFICATE_AFTER_PAIRING=no", "GORACE=halt_on_error=1 atexit_sleep_ms=0"}
	return c
}

func (r *rig) run(name string, args ...string) (string, error) {
	out, err := r.command(name, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %q: %w\n%s", name, args, err, out)
	}
	return string(out), err
}

// start starts a command that runs until the rig ends, and waits for a line.
func (r *rig) start(pattern, name string, args ...string) (*running, []string, error) {
	c := r.command(name, args...)
	in, out, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	c.Stdout, c.Stderr = out, out
	p := &running{c, in, make(chan struct{})}
	err = c.Start()
	out.Close()
	if err != nil {
		in.Close()
		return nil, nil, err
	}
	re := regexp.MustCompile(pattern)
	found := make(chan []string, 1)
	var said bytes.Buffer
	go func() { // ends with the command, or when it says no more
		defer close(p.done)
		defer in.Close()
		lines, seen := bufio.NewReader(in), false
		for {
			line, err := lines.ReadString('\n')
			if m := re.FindStringSubmatch(strings.TrimSpace(line)); m != nil && !seen {
				seen = true
				found <- m
			} else if !seen {
				said.WriteString(line)
			}
			if strings.Contains(line, "DATA RACE") {
				fmt.Fprintln(os.Stderr, name, "has a data race")
			}
			if err != nil {
				c.Wait()
				return
			}
		}
	}()
	r.ends = append(r.ends, p.end)
	select {
	case m := <-found:
		return p, m, nil
	case <-p.done:
		return nil, nil, fmt.Errorf("%s ended: %s", name, said.String())
	case <-time.After(patience):
		return nil, nil, fmt.Errorf("%s does not say %s", name, pattern)
	}
}

func (p *running) end() {
	p.cmd.Process.Signal(syscall.SIGCONT)
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(patience):
		p.cmd.Process.Kill()
		<-p.done
	}
}

// advertise offers the phone on the loopback interface.
func (r *rig) advertise() error {
	r.browse = dnssd.Options{Loopback: true, Service: "_v" + strings.ToLower(rand.Text()[:12]) + "._tcp"}
	_, port, err := net.SplitHostPort(r.address)
	if err != nil {
		return err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return err
	}
	r.ends = append(r.ends, offer(r.browse, uint16(n)))
	return nil
}

// offer advertises a port until it is ended.
func offer(o dnssd.Options, port uint16) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		if err := dnssd.Advertise(ctx, o, dnssd.RandomName(), port); err != nil {
			fmt.Fprintln(os.Stderr, "advertise:", err)
		}
	})
	return func() {
		cancel()
		all.Wait()
	}
}

func (r *rig) end() {
	for _, f := range slices.Backward(r.ends) {
		f()
	}
}

var (
	shared *rig
	once   sync.Once
	failed error
)

// ownRig gives a set-up that a test may break.
func ownRig(t *testing.T) *rig {
	t.Helper()
	r, err := newRig()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.end)
	return r
}

// patient is a set-up to be examined, with files of its own, and agent and
// phone shared with other tests.
type patient struct {
	doctor.Env
	t    *testing.T
	env  map[string]string
	home string // has copies of configuration and state; the socket is elsewhere
	rig  *rig
}

// healthy gives a set-up of which everything but agent and phone may be broken.
func healthy(t *testing.T) *patient {
	t.Helper()
	once.Do(func() { shared, failed = newRig() })
	if failed != nil {
		t.Fatal(failed)
	}
	return examined(t, shared)
}

func examined(t *testing.T, r *rig) *patient {
	t.Helper()
	need(t, "ssh")
	home := t.TempDir()
	for _, name := range []string{".config/vmux/device-key.pem", ".local/state/vmux/agent.json"} {
		b, err := os.ReadFile(r.path(name))
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(home, name), string(b), 0o600)
	}
	e, err := doctor.System()
	if err != nil {
		t.Fatal(err)
	}
	p := &patient{e, t, map[string]string{"HOME": home, "SSH_AUTH_SOCK": r.socket()}, home, r}
	p.Getenv = func(name string) string { return p.env[name] }
	p.OS, p.Home, p.Root = "linux", home, filepath.Join(home, "root")
	p.Software, p.Version = "vmux-doctor test", cli.Version()
	p.ConfigFile = filepath.Join(home, ".config", "vmux", "vmux.toml")
	p.env["VMUX_SOCKET"] = r.socket()
	p.configure()
	p.Advice = func(err error) string {
		_, hint := cli.Advice(err)
		return cmp.Or(hint, "no advice")
	}
	// ssh as if it had no configuration, and no service manager.
	run := p.Run
	p.Run = func(ctx context.Context, name string, args ...string) (doctor.Output, error) {
		switch name {
		case "ssh":
			return run(ctx, name, append([]string{"-F", filepath.Join(home, "ssh_config")}, args...)...)
		case "systemctl":
			return doctor.Output{}, exec.ErrNotFound
		}
		return doctor.Output{}, fmt.Errorf("unexpected: %s %q", name, args)
	}
	write(t, filepath.Join(home, "ssh_config"), "", 0o600)
	lo := loopback(t)
	p.Interfaces = func() ([]doctor.Interface, error) {
		return []doctor.Interface{{Index: lo, Name: "wlan0", Flags: net.FlagUp | net.FlagMulticast, Addrs: []net.Addr{network(t, "127.0.0.1/8")}}}, nil
	}
	p.Browse = func(ctx context.Context, found func(dnssd.Claim)) error { return dnssd.Browse(ctx, r.browse, found) }
	units := filepath.Join(home, ".config", "systemd", "user")
	write(t, filepath.Join(units, "vmux-agent.service"), "[Service]\nExecStart=\""+filepath.Join(binDir, "vmux-agent")+"\"\n", 0o644)
	write(t, filepath.Join(units, "vmux-agent.socket"), "[Socket]\nListenStream="+r.socket()+"\n", 0o644)
	write(t, filepath.Join(units, "sockets.target.wants", "vmux-agent.socket"), "", 0o644)
	write(t, filepath.Join(p.Root, "run/systemd/system/x"), "", 0o644)
	return p
}

// loopback gives the index of the loopback interface.
func loopback(t *testing.T) int {
	t.Helper()
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(i net.Interface) bool { return i.Flags&net.FlagLoopback != 0 })
	if i < 0 {
		t.Skip("no loopback interface")
	}
	return all[i].Index
}

// need skips a test where a program of the system is missing, and fails it where CI is set.
func need(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed; make deps installs it", name)
	}
	t.Skipf("%s is not installed; make deps installs it", name)
}

func network(t *testing.T, s string) net.Addr {
	t.Helper()
	ip, n, err := net.ParseCIDR(s)
	if err != nil {
		t.Fatal(err)
	}
	n.IP = ip
	return n
}

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	syscall.ForkLock.RLock() // a child would hold it open for writing, and no such file can be run
	defer syscall.ForkLock.RUnlock()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// configure reads the configuration as the command does.
func (p *patient) configure() {
	p.t.Helper()
	p.Config, p.ConfigErr = store.LoadConfig(p.ConfigFile, false, p.Getenv)
	if p.ConfigErr != nil {
		var err error
		if p.Config, err = store.LoadConfig("", false, p.Getenv); err != nil {
			p.t.Fatal(err)
		}
	}
}

// asks has the agent's answers pass through change. A request is answered by
// it alone when the agent is not to be asked.
func (p *patient) asks(name string, change func(out any) error) {
	ask := p.Ask
	if ask == nil {
		ask = func(ctx context.Context, name string, in, out any) error {
			return agent.Ask(ctx, p.Config.Socket, name, in, out)
		}
	}
	p.Ask = func(ctx context.Context, n string, in, out any) error {
		if err := ask(ctx, n, in, out); err != nil || n != name {
			return err
		}
		return change(out)
	}
}

func (p *patient) state(change func(s *store.State)) {
	p.t.Helper()
	path, err := p.Getenv.StateFile()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := store.New(path, nil).Update(func(s *store.State) error { change(s); return nil }); err != nil {
		p.t.Fatal(err)
	}
}

// examine runs checks, all if none is named, and gives their results by id.
func (p *patient) examine(ids ...string) map[string]doctor.Result {
	p.t.Helper()
	checks, err := doctor.Select(doctor.All(p.OS), ids...)
	if err != nil {
		p.t.Fatal(err)
	}
	results, err := doctor.Examine(p.t.Context(), p.Env, checks)
	if err != nil {
		p.t.Fatal(err)
	}
	by := make(map[string]doctor.Result)
	for _, r := range results {
		by[r.ID] = r
	}
	return by
}

// want is the one check that turns.
type want struct {
	id    string
	level doctor.Level
	found string // part of it
	do    string // part of it
	lines string // part of them, joined
	// because are checks that are skipped though they do not need the one that turns.
	because string
}

// turns examines and sees that one check turns, as wanted, and no other: those
// that need it are skipped.
func (p *patient) turns(w want, ids ...string) {
	p.t.Helper()
	results := p.examine(ids...)
	r := results[w.id]
	if r.Level != w.level || !strings.Contains(r.Found, w.found) || !strings.Contains(r.Do, w.do) || !strings.Contains(strings.Join(r.Lines, "\n"), w.lines) {
		p.t.Errorf("%s: %v\n%q\n%q\n%q\n%q", w.id, r.Level, r.Found, r.Why, r.Do, r.Lines)
	}
	if r.Level >= doctor.Warning && (r.Why == "" || r.Do == "" || r.Do == "no advice") {
		p.t.Errorf("%s has no why or no advice: %+v", w.id, r.Finding)
	}
	for _, id := range slices.Sorted(maps.Keys(results)) {
		r := results[id]
		skipped := r.Level == doctor.Skipped && (r.Because == w.id || w.because != "" && slices.Contains(strings.Fields(w.because), id))
		if id != w.id && r.Level != doctor.OK && !skipped {
			p.t.Errorf("%s turns too: %v %q (because %q)", id, r.Level, r.Found, r.Because)
		}
	}
}
