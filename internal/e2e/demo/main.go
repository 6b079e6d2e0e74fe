// SPDX-License-Identifier: BSD-3-Clause

// Demo is what "make demo" runs: the whole of vmux on one computer, in a
// directory of its own that it removes. A signer plays the phone, an SSH server
// trusts its keys, ssh logs in.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/go-json-experiment/json"
)

// patience bounds each step, and with it the demo.
const patience = 10 * time.Second

func main() {
	// The embedded server of this program, as the ProxyCommand of ssh.
	if len(os.Args) == 3 && os.Args[1] == "serve-ssh" {
		if err := serveSSH(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "error:", err)
			os.Exit(1)
		}
		return
	}
	// Embedded takes this program's server also where sshd is installed.
	embedded := len(os.Args) == 3 && os.Args[2] == "embedded"
	if len(os.Args) != 2 && !embedded {
		fmt.Fprintln(os.Stderr, "error: no directory of commands given\nhint: make demo")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := demo(ctx, os.Args[1], embedded); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		fmt.Fprintln(os.Stderr, "hint: run it again; if it fails again, please report it with all of its output")
		os.Exit(1)
	}
}

// stage is the demo's computer: commands, a home, and what runs.
type stage struct {
	ctx     context.Context
	bin     string // of vmux's commands
	dir     string
	env     []string
	running []*background

	embedded bool
}

func demo(ctx context.Context, bin string, embedded bool) error {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return err
	}
	// Short, for the sockets in it.
	dir, err := os.MkdirTemp("", "vmux")
	if err != nil {
		return err
	}
	s := &stage{ctx: ctx, bin: bin, dir: dir, embedded: embedded}
	s.env = append(os.Environ(), "HOME="+dir, "VMUX_SIGNER_HOME="+dir+"/phone", "SSH_AUTH_SOCK="+s.path(".ssh/vmux-agent.sock"),
		"XDG_CONFIG_HOME=", "XDG_STATE_HOME=", "XDG_DATA_HOME=", "VMUX_CONFIG=", "PATH="+bin+":"+os.Getenv("PATH"))
	defer os.RemoveAll(dir)
	defer s.stopAll()
	return s.play()
}

func (s *stage) path(name string) string { return filepath.Join(s.dir, name) }

func (s *stage) play() error {
	if err := os.Mkdir(s.path(".ssh"), 0o700); err != nil {
		return err
	}

	say("A phone. Its keys stay in its home; here a signer on this computer plays it, without a passphrase.")
	if err := s.show("vmux-signer init --no-passphrase --name Pocket", "vmux-signer", "init", "--no-passphrase", "--name", "Pocket"); err != nil {
		return err
	}
	if err := s.show("vmux-signer key add second --type ed25519", "vmux-signer", "key", "add", "second", "--type", "ed25519"); err != nil {
		return err
	}
	signer, address, err := s.startSigner()
	if err != nil {
		return err
	}

	say("Pairing by a one-time URL, over the encrypted link. For a phone it is a QR code.")
	if err := s.pair(address); err != nil {
		return err
	}

	say("The agent. It has no private key; it lists what the phone has.")
	agent, err := s.start("vmux-agent", "vmux-agent")
	if err != nil {
		return err
	}
	if _, err := agent.until(s.ctx, "msg=serving"); err != nil {
		return err
	}
	if err := s.show("ssh-add -l", "ssh-add", "-l"); err != nil {
		return err
	}

	login, about, err := s.newServer()
	if err != nil {
		return err
	}
	say("A login with ssh. The server is %s and trusts the phone's keys.", about)
	if err := s.show("ssh server echo hello", "ssh", login("echo hello, with a key that is not on this computer")...); err != nil {
		return err
	}

	say("The phone goes away. Listing still works, from the agent's cache.")
	signer.stop()
	if err := s.show("ssh-add -l", "ssh-add", "-l"); err != nil {
		return err
	}
	say("Signing does not, and the agent's log says why.")
	start := time.Now()
	err = s.show("ssh server true", "ssh", login("true")...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return fmt.Errorf("the login without the phone did not fail: %v", err)
	}
	took := time.Since(start)
	line, err := agent.until(s.ctx, "outcome=failed")
	if err != nil {
		return err
	}
	fmt.Printf("  (after %.1f s) vmux-agent: %s\n", took.Seconds(), line)

	say("That is all; nothing of it is left.")
	return nil
}

func say(format string, a ...any) { fmt.Printf("\n# "+format+"\n", a...) }

// command prepares a command of vmux or of the system. The end of the demo asks
// it to end, and does not wait for ever.
func (s *stage) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	if path := filepath.Join(s.bin, name); strings.HasPrefix(name, "vmux-") {
		name = path
	}
	c := exec.CommandContext(ctx, name, args...)
	c.Env, c.Dir = s.env, s.dir
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = time.Second
	return c
}

// show runs a command as a person would see it; typed is what that person
// would have typed.
func (s *stage) show(typed, name string, args ...string) error {
	fmt.Println("$ " + typed)
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	out, err := s.command(ctx, name, args...).CombinedOutput()
	for l := range strings.Lines(string(out)) {
		fmt.Print("  " + l)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", typed, err)
	}
	return nil
}

// background is a command that runs on.
type background struct {
	typed string
	end   context.CancelFunc
	lines chan string // of its output; closed at its end
	err   error       // how it ended, once lines is closed
}

// start starts a command that runs until the demo ends.
func (s *stage) start(typed, name string, args ...string) (*background, error) {
	fmt.Println("$ " + typed + " &")
	ctx, cancel := context.WithCancel(s.ctx)
	c := s.command(ctx, name, args...)
	out, err := c.StdoutPipe()
	if err != nil {
		cancel()
		return nil, err
	}
	c.Stderr = c.Stdout
	if err := c.Start(); err != nil {
		cancel()
		return nil, err
	}
	b := &background{typed: typed, end: cancel, lines: make(chan string, 1000)} // more than the demo makes it say
	s.running = append(s.running, b)
	go func() {
		defer close(b.lines)
		for in := bufio.NewScanner(out); in.Scan(); {
			b.lines <- in.Text()
		}
		b.err = c.Wait()
	}()
	return b, nil
}

// stop ends the command and waits for that.
func (b *background) stop() {
	b.end()
	for range b.lines {
	}
}

func (s *stage) stopAll() {
	for _, b := range s.running {
		b.stop()
	}
}

// until waits for a line that contains what.
func (b *background) until(ctx context.Context, what string) (string, error) {
	late := time.After(patience)
	for {
		select {
		case line, ok := <-b.lines:
			if !ok {
				return "", fmt.Errorf("%s ended: %w", b.typed, b.err)
			}
			if strings.Contains(line, what) {
				return line, nil
			}
		case <-late:
			return "", fmt.Errorf("%s did not say %q", b.typed, what)
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

func (s *stage) startSigner() (b *background, address string, err error) {
	b, err = s.start("vmux-signer serve --approve always", "vmux-signer",
		"serve", "--json", "--listen", "127.0.0.1:0", "--no-advertise", "--approve", "always")
	if err != nil {
		return nil, "", err
	}
	line, err := b.until(s.ctx, `"listening"`)
	if err != nil {
		return nil, "", err
	}
	var e struct {
		Event   string `json:"event"`
		Address string `json:"address"`
	}
	if err := json.Unmarshal([]byte(line), &e); err != nil {
		return nil, "", err
	}
	fmt.Printf("  listening on %s; approves everything, for demonstrations only\n", e.Address)
	return b, e.Address, nil
}

func (s *stage) pair(address string) error {
	b, err := s.start("vmux-pair --url --address "+address, "vmux-pair", "--url", "--address", address)
	if err != nil {
		return err
	}
	url, err := b.until(s.ctx, "vmux-pair://")
	if err != nil {
		return err
	}
	fmt.Println("  " + url)
	if err := s.show("vmux-signer pair URL", "vmux-signer", "pair", url); err != nil {
		return err
	}
	line, err := b.until(s.ctx, "paired with")
	if err != nil {
		return err
	}
	fmt.Println("  vmux-pair: " + line)
	for range b.lines {
	}
	return b.err
}

// newServer gives the command line of a login.
func (s *stage) newServer() (login func(command ...string) []string, about string, err error) {
	if out, err := s.command(s.ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", s.path("host")).CombinedOutput(); err != nil {
		return nil, "", fmt.Errorf("ssh-keygen: %w: %s", err, out)
	}
	keys, err := s.command(s.ctx, "ssh-add", "-L").Output()
	if err != nil {
		return nil, "", fmt.Errorf("ssh-add -L: %w", err)
	}
	host, err := os.ReadFile(s.path("host.pub"))
	if err != nil {
		return nil, "", err
	}
	me, err := user.Current()
	if err != nil {
		return nil, "", err
	}
	config := fmt.Sprintf("HostKey %s\nPidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\n"+
		"KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nAuthorizedKeysFile %s\n", s.path("host"), s.path("authorized_keys"))
	for name, content := range map[string]string{"authorized_keys": string(keys), "known_hosts": "server " + string(host), "sshd_config": config} {
		if err := os.WriteFile(s.path(name), []byte(content), 0o600); err != nil {
			return nil, "", err
		}
	}
	proxy, about, err := s.serverCommand()
	if err != nil {
		return nil, "", err
	}
	return func(command ...string) []string {
		return append([]string{"-F", "none", "-o", "ProxyCommand=" + proxy, "-o", "HostKeyAlias=server",
			"-o", "UserKnownHostsFile=" + s.path("known_hosts"), "-o", "GlobalKnownHostsFile=none", "-o", "StrictHostKeyChecking=yes",
			"-o", "BatchMode=yes", "-o", "ControlPath=none", "-o", "IdentityFile=none", me.Username + "@server"}, command...)
	}, about, nil
}

// serverCommand gives a server that speaks SSH on its standard input and output.
func (s *stage) serverCommand() (command, about string, err error) {
	for _, path := range []string{"/usr/sbin/sshd", "/usr/local/sbin/sshd", "/usr/libexec/sshd"} {
		if _, err := os.Stat(path); err == nil && !s.embedded && sshdRuns(path, s.path("sshd_config")) {
			return fmt.Sprintf("%s -i -f %s -E %s", path, s.path("sshd_config"), s.path("sshd.log")), "OpenSSH's sshd", nil
		}
	}
	self, err := os.Executable()
	if err != nil {
		return "", "", err
	}
	return fmt.Sprintf("%s serve-ssh %s", self, s.dir), "a small one that comes with this demo", nil
}

// sshdRuns says whether sshd takes the configuration here; as root it wants its
// privilege separation directory.
func sshdRuns(path, config string) bool {
	return exec.Command(path, "-t", "-f", config).Run() == nil
}
