// SPDX-License-Identifier: BSD-3-Clause

// Bench is what "make bench" runs: vmux-agent beside OpenSSH's ssh-agent, on
// one computer in one run. Both hold a P-256 key with a certificate, and a
// client asks them the same. It takes less than half a minute, in a directory of
// its own that it removes.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/go-json-experiment/json"
)

const (
	// patience bounds each step.
	patience = 10 * time.Second
	// rounds of each measurement, the two agents by turns, so that what else the
	// computer does meets both. The median counts.
	rounds = 5
	span   = 350 * time.Millisecond
	starts = 9
	// settle is given to the agents before their memory is looked at.
	settle = 500 * time.Millisecond
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "error: no directory of commands given\nhint: make bench")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	table, err := bench(ctx, os.Args[1])
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "error: interrupted\nhint: run it again: make bench")
		stop()
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "error:", err)
		fmt.Fprintln(os.Stderr, "hint: ssh-agent, ssh-add and ssh-keygen must be installed; then run it again")
		stop()
		os.Exit(1)
	}
	print(table) // when nothing is left that a closed pipe could leave running
}

// stage is where it all happens.
type stage struct {
	ctx     context.Context
	bin     string
	dir     string
	env     []string
	running []*daemon
}

func bench(ctx context.Context, bin string) ([]row, error) {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "vmux") // short, for the sockets in it
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	s := &stage{ctx: ctx, bin: bin, dir: dir}
	s.env = append(os.Environ(), "HOME="+dir, "VMUX_SIGNER_HOME="+s.path("phone"), "SSH_AUTH_SOCK=", "SSH_ASKPASS=", "VMUX_CONFIG=",
		"VMUX_LOG_LEVEL=", "XDG_CONFIG_HOME=", "XDG_STATE_HOME=", "XDG_DATA_HOME=", "XDG_RUNTIME_DIR=")
	defer s.stopAll()
	return s.play()
}

func (s *stage) path(name string) string { return filepath.Join(s.dir, name) }

// contender is one of the two agents.
type contender struct {
	name   string
	start  func(socket string) (*daemon, error)
	prime  func(socket string) error // gives it its certificate
	socket string
	sign   []byte // message
	pid    int
}

func (s *stage) play() ([]row, error) {
	if err := s.prepare(); err != nil {
		return nil, err
	}
	all := []*contender{
		{name: "vmux-agent", socket: s.path("vmux.sock"),
			start: func(socket string) (*daemon, error) {
				return s.spawn("agent.log", "vmux-agent", "--socket", socket)
			},
			prime: func(socket string) error {
				return s.run(nil, "vmux-cert", "--quiet", "--socket", socket, "--validity", "1h", "--principal", "root")
			}},
		{name: "ssh-agent", socket: s.path("ssh.sock"),
			start: func(socket string) (*daemon, error) {
				return s.spawn("ssh-agent.log", "ssh-agent", "-D", "-a", socket)
			},
			prime: func(socket string) error {
				return s.run([]string{"SSH_AUTH_SOCK=" + socket}, "ssh-add", "-q", s.path("key"))
			}},
	}
	table := []row{{name: "start to first answer", unit: "ms", less: true}, {name: "idle memory", unit: "MB", less: true}}
	for n := range starts {
		for i, c := range all {
			took, err := s.startup(c, s.path(fmt.Sprintf("start%d%d.sock", n, i)))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			table[0].add(i, took.Seconds()*1000)
		}
	}
	for _, c := range all {
		if err := s.set(c); err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
	}
	if err := s.sleep(settle); err != nil {
		return nil, err
	}
	for i, c := range all {
		size, err := memory(c.pid)
		if err != nil {
			return nil, fmt.Errorf("memory of %s: %w", c.name, err)
		}
		table[1].add(i, float64(size)/1e6)
	}
	var loads []row
	for _, what := range []string{"sign with a certificate", "list"} {
		for _, connections := range []int{1, 16} {
			r := row{name: fmt.Sprintf("%s, %d", what, connections), unit: "/s"}
			// The first round warms up.
			for round := range rounds + 1 {
				for i, c := range all {
					message, want := c.sign, byte(msgSignResponse)
					if what == "list" {
						message, want = listMessage, msgIdentitiesAnswer
					}
					if err := s.ctx.Err(); err != nil {
						return nil, context.Cause(s.ctx)
					}
					perSecond, err := rate(c.socket, connections, message, want, span)
					if err != nil {
						return nil, fmt.Errorf("%s: %s: %w", c.name, r.name, err)
					}
					if round > 0 {
						r.add(i, perSecond)
					}
				}
			}
			loads = append(loads, r)
		}
	}
	return append(loads, table[1], table[0]), nil
}

// row is one line of the table: what was measured of each contender.
type row struct {
	name, unit string
	less       bool // is better
	got        [2][]float64
}

func (r *row) add(i int, v float64) { r.got[i] = append(r.got[i], v) }

func (r *row) median(i int) float64 {
	v := slices.Sorted(slices.Values(r.got[i]))
	return v[len(v)/2]
}

func print(table []row) {
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "medians\tvmux-agent\tssh-agent\tratio\t\t")
	for _, r := range table {
		a, b := r.median(0), r.median(1)
		better := "higher is better"
		if r.less {
			better = "lower is better"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%.2f\t%s\t\n", r.name, figure(a, r.unit), figure(b, r.unit), a/b, better)
	}
	w.Flush()
	fmt.Printf("the number behind the comma is that of connections; %d processors, %s\n", runtime.NumCPU(), version())
}

func figure(v float64, unit string) string {
	if unit == "/s" {
		return fmt.Sprintf("%.0f%s", v, unit)
	}
	return fmt.Sprintf("%.1f %s", v, unit)
}

func version() string {
	out, err := exec.Command("ssh", "-V").CombinedOutput()
	if err != nil {
		return "OpenSSH of unknown version"
	}
	v, _, _ := strings.Cut(strings.TrimSpace(string(out)), ",")
	return v
}

// prepare pairs a device with a phone that approves, and makes a key with a
// certificate for the other agent.
func (s *stage) prepare() error {
	if err := s.run(nil, "vmux-signer", "init", "--name", "Pocket"); err != nil {
		return err
	}
	signer, err := s.spawn("signer.log", "vmux-signer", "serve", "--approve", "always", "--no-advertise", "--listen", "127.0.0.1:0", "--json")
	if err != nil {
		return err
	}
	line, err := signer.line(s.ctx, "{")
	if err != nil {
		return err
	}
	var listening struct{ Address string }
	if err := json.Unmarshal([]byte(line), &listening, json.MatchCaseInsensitiveNames(true)); err != nil || listening.Address == "" {
		return fmt.Errorf("vmux-signer says %q, no address", line)
	}
	pairing, err := s.spawn("pair.log", "vmux-pair", "--url", "--address", listening.Address, "--socket", s.path("none.sock"))
	if err != nil {
		return err
	}
	url, err := pairing.line(s.ctx, "vmux-pair:")
	if err != nil {
		return err
	}
	if err := s.run(nil, "vmux-signer", "pair", url); err != nil {
		return err
	}
	select {
	case <-pairing.done:
		if pairing.err != nil {
			return fmt.Errorf("vmux-pair: %w", pairing.err)
		}
	case <-time.After(patience):
		return errors.New("vmux-pair does not end")
	}
	for _, args := range [][]string{
		{"-q", "-t", "ecdsa", "-b", "256", "-N", "", "-C", "", "-f", s.path("ca")},
		{"-q", "-t", "ecdsa", "-b", "256", "-N", "", "-C", "", "-f", s.path("key")},
		{"-q", "-s", s.path("ca"), "-I", "bench", "-n", "root", "-V", "+1h", s.path("key.pub")},
	} {
		if err := s.run(nil, "ssh-keygen", args...); err != nil {
			return err
		}
	}
	return nil
}

// startup gives the time from the start of an agent to its first listing.
func (s *stage) startup(c *contender, socket string) (time.Duration, error) {
	begin := time.Now()
	d, err := c.start(socket)
	if err != nil {
		return 0, err
	}
	defer d.stop()
	err = s.answered(d, socket)
	return time.Since(begin), err
}

// answered waits for the first listing.
func (s *stage) answered(d *daemon, socket string) error {
	deadline := time.Now().Add(patience)
	for {
		if w, err := dial(socket); err == nil {
			_, err = w.ask(listMessage, msgIdentitiesAnswer)
			w.conn.Close()
			return err
		}
		select {
		case <-d.done:
			return fmt.Errorf("it ended: %w", d.err)
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		case <-time.After(100 * time.Microsecond):
		}
		if time.Now().After(deadline) {
			return errors.New("it does not serve its socket")
		}
	}
}

// set starts the agent that is measured from now on, with its certificate.
func (s *stage) set(c *contender) error {
	d, err := c.start(c.socket)
	if err != nil {
		return err
	}
	c.pid = d.cmd.Process.Pid
	if err := s.answered(d, c.socket); err != nil {
		return err
	}
	if err := c.prime(c.socket); err != nil {
		return err
	}
	certificate, err := certificate(c.socket)
	if err != nil {
		return err
	}
	c.sign, _ = signMessage(certificate)
	return verifySignature(c.socket, certificate)
}

func (s *stage) sleep(d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
}

// memory gives a process's resident set in bytes.
func memory(pid int) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	text := ""
	if err == nil {
		_, text, _ = strings.Cut(string(status), "VmRSS:")
	} else { // not Linux
		out, err := exec.Command("ps", "-o", "rss=", "-p", strconv.Itoa(pid)).Output()
		if err != nil {
			return 0, err
		}
		text = string(out)
	}
	fields := strings.Fields(text)
	if len(fields) == 0 {
		return 0, errors.New("it has none")
	}
	kilobytes, err := strconv.ParseInt(fields[0], 10, 64)
	return kilobytes << 10, err
}

func (s *stage) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	if strings.HasPrefix(name, "vmux-") {
		name = filepath.Join(s.bin, name)
	}
	c := exec.CommandContext(ctx, name, args...)
	c.Env, c.Dir = s.env, s.dir
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = time.Second
	return c
}

func (s *stage) run(env []string, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	c := s.command(ctx, name, args...)
	c.Env = append(slices.Clone(c.Env), env...)
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, bytes.TrimSpace(out))
	}
	return nil
}

// daemon is a command that runs until it is stopped. What it prints is in a
// file, as the log of an agent is.
type daemon struct {
	cmd  *exec.Cmd
	log  string
	end  context.CancelFunc
	done chan struct{}
	err  error // once done is closed
}

func (s *stage) spawn(log, name string, args ...string) (*daemon, error) {
	f, err := os.OpenFile(s.path(log), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ctx, cancel := context.WithCancel(s.ctx)
	c := s.command(ctx, name, args...)
	c.Stdout, c.Stderr = f, f
	if err := c.Start(); err != nil {
		cancel()
		return nil, err
	}
	d := &daemon{cmd: c, log: f.Name(), end: cancel, done: make(chan struct{})}
	s.running = append(s.running, d)
	go func() {
		defer close(d.done)
		d.err = c.Wait()
	}()
	return d, nil
}

// line waits for a line that the command prints.
func (d *daemon) line(ctx context.Context, prefix string) (string, error) {
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		b, err := os.ReadFile(d.log)
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(string(b)) {
			if whole, ok := strings.CutSuffix(line, "\n"); ok && strings.HasPrefix(line, prefix) {
				return whole, nil
			}
		}
		select {
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-d.done:
			return "", fmt.Errorf("%s ended: %w\n%s", d.cmd.Path, d.err, b)
		case <-time.After(5 * time.Millisecond):
		}
	}
	return "", fmt.Errorf("%s prints no line that begins with %s", d.cmd.Path, prefix)
}

func (d *daemon) stop() {
	d.end()
	<-d.done
}

func (s *stage) stopAll() {
	for _, d := range slices.Backward(s.running) {
		d.stop()
	}
}
