// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/pairing"
	"vmux.app/toolkit/internal/ptytest"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/transport"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"vmux-signer": main, "device": device})
}

func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			// Its own directory is too long for a socket.
			home, err := os.MkdirTemp("", "v")
			if err != nil {
				return err
			}
			e.Defer(func() { os.RemoveAll(home) })
			e.Setenv("VMUX_SIGNER_HOME", filepath.Join(home, "h"))
			e.Setenv("HOME", home)
			e.Setenv("XDG_RUNTIME_DIR", home)
			e.Setenv("TZ", "UTC")
			// Each command's exit takes a second more under the race detector otherwise.
			e.Setenv("GORACE", "atexit_sleep_ms=10")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"await": await},
	})
}

// await FILE REGEXP [VARIABLE] waits until the file matches, and sets the variable
// to the first group.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: await FILE REGEXP [VARIABLE]")
	}
	re := regexp.MustCompile("(?m)" + args[1])
	const patience = 30 * time.Second // reached by a test that fails only
	for end := time.Now().Add(patience); ; <-time.After(5 * time.Millisecond) {
		b, err := os.ReadFile(ts.MkAbs(args[0]))
		if m := re.FindSubmatch(b); err == nil && m != nil {
			if len(args) > 2 {
				ts.Setenv(args[2], string(m[1]))
			}
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%s: %q does not match %s", args[0], b, args[1])
		}
	}
}

// device is the other end of a link for scripts, with its key in device.pem:
//
//	device url                         prints a one-time URL, whose secret it keeps
//	device pair ADDRESS                pairs by it
//	device digits ADDRESS CODE-FILE    pairs by the digits in the file, once it is there
//	device list ADDRESS                lists the keys
//	device sign ADDRESS LABEL          asks for a signature
//	device login ADDRESS LABEL KEY [NAME...]
//	                                   asks for a login to a host with the Ed25519 key of the seed KEY
//
// Exit statuses are 0, or 1 with the reason on standard error.
func device() {
	if err := runDevice(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func runDevice(args []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	path, err := filepath.Abs("device.pem")
	if err != nil {
		return err
	}
	key, err := store.LinkKey(path)
	if err != nil {
		return err
	}
	id, err := transport.NewIdentity(key)
	if err != nil {
		return err
	}
	if args[0] == "url" {
		u := pairing.NewURL("laptop", id.Pin())
		fmt.Println(u)
		return os.WriteFile("device.url", []byte(u.String()), 0o600)
	}
	proto := transport.ProtoLink
	if args[0] == "pair" || args[0] == "digits" {
		proto = transport.ProtoPair
	}
	raw, err := net.Dial("tcp", args[1])
	if err != nil {
		return err
	}
	c, err := transport.Client(ctx, raw, id, proto, func(transport.Pin) error { return nil })
	if err != nil {
		return err
	}
	defer c.Close()
	if proto == transport.ProtoPair {
		if _, err := pairing.Offer(ctx, c); err != nil {
			return err
		}
		o := pairing.DeviceOptions{Name: "laptop", Code: func(context.Context, string) (string, error) {
			for ; ; <-time.After(5 * time.Millisecond) {
				if b, err := os.ReadFile(args[2]); err == nil && len(b) > 0 {
					return string(b), nil
				}
			}
		}}
		if args[0] == "pair" {
			b, err := os.ReadFile("device.url")
			if err != nil {
				return err
			}
			u, err := pairing.ParseURL(string(b))
			if err != nil {
				return err
			}
			o.Secret = u.Secret[:]
		}
		p, err := pairing.Device(ctx, c, id.Pin(), o)
		if err == nil {
			fmt.Println("paired with", p.Name)
		}
		return err
	}
	l, err := transport.Open(ctx, c, envelope.Hello{Name: "laptop", Software: "test", Capabilities: []string{}})
	if err != nil {
		return err
	}
	defer l.Close()
	p, err := l.Call(ctx, transport.NewID(), &envelope.KeyListRequest{})
	if err != nil {
		return err
	}
	keys := p.(*envelope.KeyListResponse).Keys
	if args[0] == "list" {
		for _, k := range keys {
			fmt.Println(k.Algorithm, k.Comment)
		}
		return nil
	}
	for _, k := range keys {
		if k.Comment == args[2] {
			if args[0] == "login" {
				return logIn(ctx, l, k, args[3], args[4:])
			}
			return signOnce(ctx, l, k)
		}
	}
	return fmt.Errorf("no key %s", args[2])
}

func signOnce(ctx context.Context, l *transport.Link, k envelope.PublicKey) error {
	data := append([]byte("SSHSIG"), ssh.Marshal(struct {
		Namespace, Reserved, Algo string
		Hash                      []byte
	}{"git", "", "sha256", make([]byte, 32)})...)
	return askFor(ctx, l, k, data, envelope.Context{Device: "laptop", Reason: "a test"})
}

// logIn asks for a login that names its host key.
func logIn(ctx context.Context, l *transport.Link, k envelope.PublicKey, seed string, names []string) error {
	sum := sha256.Sum256([]byte(seed))
	host, err := ssh.NewPublicKey(ed25519.NewKeyFromSeed(sum[:]).Public())
	if err != nil {
		return err
	}
	session := make([]byte, 32)
	rand.Read(session)
	data := ssh.Marshal(struct {
		Session               []byte
		Type                  byte
		User, Service, Method string
		True                  bool
		Algorithm             string
		Key, HostKey          []byte
	}{session, 50, "root", "ssh-connection", "publickey-hostbound-v00@openssh.com", true, k.Algorithm, k.PublicKeyBlob, host.Marshal()})
	return askFor(ctx, l, k, data, envelope.Context{Device: "laptop", Destination: &envelope.Destination{HostNames: names}})
}

func askFor(ctx context.Context, l *transport.Link, k envelope.PublicKey, data []byte, about envelope.Context) error {
	p, err := l.Call(ctx, transport.NewID(), &envelope.SignRequest{PublicKeyBlob: k.PublicKeyBlob, Data: data,
		CreatedAt: envelope.At(time.Now()), Context: about})
	if err != nil {
		return err
	}
	var sig ssh.Signature
	if err := ssh.Unmarshal(p.(*envelope.SignResponse).Signature, &sig); err != nil {
		return err
	}
	key, err := ssh.ParsePublicKey(k.PublicKeyBlob)
	if err != nil {
		return err
	}
	if err := key.Verify(data, &sig); err != nil {
		return err
	}
	fmt.Println("signed by", k.Comment)
	return nil
}

// shortDir is a directory whose path leaves room for a socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// newHome makes the signer Pocket, without a passphrase, in the directory h of dir.
func newHome(t *testing.T) (dir, home string) {
	t.Helper()
	dir = shortDir(t)
	home = filepath.Join(dir, "h")
	cmd := exec.Command("vmux-signer", "init", "--no-passphrase", "--name", "Pocket")
	cmd.Env = append(os.Environ(), "VMUX_SIGNER_HOME="+home)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return dir, home
}

// startDevice starts device in dir. What it has printed is whole when done has its
// status.
func startDevice(t *testing.T, dir string, args ...string) (done <-chan error, out *strings.Builder) {
	t.Helper()
	cmd := exec.Command("device", args...)
	cmd.Dir = dir
	out = new(strings.Builder)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	return ended, out
}

// onTTY starts vmux-signer with a terminal of its own as all three files.
func onTTY(t *testing.T, home string, args ...string) (*ptytest.Terminal, *exec.Cmd) {
	t.Helper()
	pty := ptytest.Open(t)
	cmd := exec.Command("vmux-signer", args...)
	cmd.Env = append(os.Environ(), "VMUX_SIGNER_HOME="+home)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = pty.TTY, pty.TTY, pty.TTY
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait() // an error after a test that waited itself
	})
	return pty, cmd
}

// TestTerminals pairs by digits and approves, each at a terminal of its own.
func TestTerminals(t *testing.T) {
	t.Parallel()
	dir, home := newHome(t)
	serving, serve := onTTY(t, home, "serve", "--listen", "127.0.0.1:0")
	serving.Expect("listening on ")
	address := strings.TrimSpace(serving.Expect("\n"))

	pairing, pair := onTTY(t, home, "pair")
	pairing.Expect("the pairing window is open")
	codeFile := filepath.Join(dir, "code")
	paired, out := startDevice(t, dir, "digits", address, codeFile)
	text := pairing.Expect("Accept? [y/N]")
	m := regexp.MustCompile(`The device laptop wants to pair.\r\n(?s:.*)    ([0-9]{3}) ([0-9]{3})\r\n`).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("pair shows %q", text)
	}
	if err := os.WriteFile(codeFile+".new", []byte(m[1]+m[2]), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(codeFile+".new", codeFile); err != nil {
		t.Fatal(err)
	}
	answer(pairing, "y\n", "approved")
	pairing.Expect("paired with laptop")
	if err := pair.Wait(); err != nil {
		t.Errorf("pair: %v", err)
	}
	if err := <-paired; err != nil {
		t.Fatalf("device: %v: %s", err, out)
	}
	serving.Expect("msg=paired device=laptop")

	for _, c := range []struct{ typed, shown, want string }{
		{"y\n", "approved", "signed by default\n"}, {"n\n", "denied", "denied: the owner said no\n"},
	} {
		done, out := startDevice(t, dir, "sign", address, "default")
		text := serving.Expect("Approve? [y/N]")
		for _, want := range []string{"SSH Sign Request", "From laptop → ", `sign data for "git"`, "a test"} {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in %q", want, text)
			}
		}
		answer(serving, c.typed, c.shown)
		<-done // its status is in out
		if out.String() != c.want {
			t.Errorf("device: %q, want %q", out, c.want)
		}
		serving.Expect("msg=request")
	}

	// Ctrl-C is a no to the question that is shown, and ends the signer in order
	// where none is.
	done, out := startDevice(t, dir, "sign", address, "default")
	serving.Expect("Approve? [y/N]")
	<-time.After(600 * time.Millisecond) // it takes nothing for a moment
	serving.Type("\x03")
	serving.Expect("Approve? denied")
	if <-done; out.String() != "denied: the owner said no\n" {
		t.Errorf("device: %q", out)
	}
	awaitInterrupts(t, serving)
	serving.Type("\x03")
	if err := serve.Wait(); err != nil {
		t.Errorf("serve: %v", err)
	}
	if state, err := os.ReadFile(filepath.Join(home, "state.json")); err != nil || !strings.Contains(string(state), `"laptop"`) {
		t.Errorf("%v: %s", err, state)
	}

	// Without a signer there is none to open a window.
	pairing, pair = onTTY(t, home, "pair")
	pairing.Expect("error: vmux-signer is not running")
	pairing.Expect("hint: start it in another terminal: vmux-signer serve")
	var status *exec.ExitError
	if err := pair.Wait(); !errors.As(err, &status) || status.ExitCode() != 1 {
		t.Errorf("pair: %v", err)
	}
}

// Ctrl-Z at a prompt stops the signer with the terminal as it was found, whether the
// shell sees to that or not; where no shell could continue it, it goes on. What was
// typed before is forgotten.
func TestSuspended(t *testing.T) {
	t.Parallel()
	dir, home := newHome(t)
	paired := false
	for _, shell := range []bool{true, false} {
		// dash, and many a sh, leave the terminal to the commands.
		words := []string{"sh", "-mc", `vmux-signer serve --listen 127.0.0.1:0; echo "modes: $(stty -a)."; fg; echo "ended: $?"`}
		if !shell {
			words = []string{"vmux-signer", "serve", "--listen", "127.0.0.1:0"}
		}
		pty := ptytest.Open(t)
		cmd := exec.Command(words[0], words[1:]...)
		cmd.Env = append(os.Environ(), "VMUX_SIGNER_HOME="+home)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = pty.TTY, pty.TTY, pty.TTY
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		t.Cleanup(func() { pty.HangUp(); cmd.Process.Kill() })
		pty.Expect("listening on ")
		address := strings.TrimSpace(pty.Expect("\n"))
		if !paired {
			done, _ := startDevice(t, dir, "url")
			<-done
			url, err := os.ReadFile(filepath.Join(dir, "device.url"))
			if err != nil {
				t.Fatal(err)
			}
			pair := exec.Command("vmux-signer", "pair", "--json", string(url))
			pair.Env = append(os.Environ(), "VMUX_SIGNER_HOME="+home)
			out, err := pair.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := pair.Start(); err != nil {
				t.Fatal(err)
			}
			if _, err := out.Read(make([]byte, 100)); err != nil { // it is open
				t.Fatal(err)
			}
			done, said := startDevice(t, dir, "pair", address)
			if err := <-done; err != nil {
				t.Fatalf("%v: %s", err, said)
			}
			if err := pair.Wait(); err != nil {
				t.Fatal(err)
			}
			paired = true
		}
		done, out := startDevice(t, dir, "sign", address, "default")
		pty.Expect("Approve? [y/N]")
		<-time.After(600 * time.Millisecond) // it takes nothing for a moment
		pty.Type("n")
		pty.Expect("Approve? [y/N] n")
		pty.Type("\x1a")
		pty.Expect("Approve? waits")
		if shell {
			pty.Expect("modes: ")
			modes := pty.Expect(".\r\n")
			for _, want := range []string{" icanon", " echo ", "intr = ^C;", "quit = ^\\;"} {
				if !strings.Contains(modes, want) {
					t.Errorf("no %q in the modes when it is stopped: %s", want, modes)
				}
			}
		}
		pty.Expect("SSH Sign Request")
		pty.Expect("Approve? [y/N]   ")
		answer(pty, "y\n", "approved")
		<-done // its status is in out
		if out.String() != "signed by default\n" {
			t.Errorf("device: %q", out)
		}
		pty.Expect("msg=request")
		awaitInterrupts(t, pty)
		pty.Type("\x03")
		if shell {
			pty.Expect("ended: 0")
		}
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	}
}

// answer types until the question takes it: for a moment after it has appeared
// it takes nothing. A denial needs the Enter only.
func answer(pty *ptytest.Terminal, typed, shown string) {
	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			case <-time.After(600 * time.Millisecond):
				pty.Type(typed)
			}
		}
	}()
	pty.Expect(shown)
	close(stop)
	<-ended
}

// At a terminal init asks for the passphrase twice, shows nothing of it, and leaves
// the terminal as it was, also when it is interrupted.
func TestPassphraseAtTerminal(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	home := filepath.Join(dir, "h")
	for _, c := range []struct {
		typed []string
		want  string
		exit  int
	}{
		{[]string{"a secret\n", "\x03"}, "", 130},
		{[]string{"\x03"}, "", 130},
		{[]string{"\n"}, "error: the passphrase is empty", 2},
		{[]string{"a secret\n", "another\n"}, "error: the two passphrases differ", 2},
		{[]string{" a secret\n", " a secret\n"}, "made ", 0},
	} {
		pty, cmd := onTTY(t, home, "init", "--name", "Pocket")
		shown := ""
		for i, typed := range c.typed {
			shown += pty.Expect([]string{"New passphrase for the keys: ", "Again: "}[i])
			if echoes(t, pty) {
				t.Errorf("%q: what is typed is shown", c.typed)
			}
			if i == 0 {
				// Stopped and continued: the shell has it shown again.
				stty := exec.Command("stty", "echo")
				stty.Stdin = pty.TTY
				if out, err := stty.CombinedOutput(); err != nil {
					t.Fatalf("stty: %v: %s", err, out)
				}
				cmd.Process.Signal(syscall.SIGCONT)
				pty.Expect("New passphrase for the keys: ")
				if echoes(t, pty) {
					t.Errorf("%q: what is typed is shown after the command went on", c.typed)
				}
			}
			pty.Type(typed)
		}
		if c.want != "" {
			shown += pty.Expect(c.want)
		}
		cmd.Wait() // its status is looked at
		if exit := cmd.ProcessState.ExitCode(); exit != c.exit {
			t.Errorf("%q: exit %d, want %d", c.typed, exit, c.exit)
		}
		if !echoes(t, pty) {
			t.Errorf("%q: the terminal shows nothing any more", c.typed)
		}
		if strings.Contains(shown, "secret") {
			t.Errorf("%q: shown is %q", c.typed, shown)
		}
		if _, err := os.Stat(home); (err == nil) != (c.exit == 0) {
			t.Errorf("%q: the home: %v", c.typed, err)
		}
	}
	if err := exec.Command("ssh-keygen", "-y", "-P", " a secret", "-f", filepath.Join(home, "ca")).Run(); err != nil {
		t.Errorf("the space is not part of it: %v", err)
	}
}

// modes are a terminal's, as stty shows them.
func modes(t *testing.T, p *ptytest.Terminal) string {
	t.Helper()
	stty := exec.Command("stty", "-a")
	stty.Stdin = p.TTY
	out, err := stty.Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// echoes says whether a terminal shows what is typed.
func echoes(t *testing.T, p *ptytest.Terminal) bool {
	t.Helper()
	return slices.Contains(strings.Fields(modes(t, p)), "echo")
}

// awaitInterrupts waits until Ctrl-C is a signal again: a question gives the
// terminal back as it was found soon after its end.
func awaitInterrupts(t *testing.T, p *ptytest.Terminal) {
	t.Helper()
	for !strings.Contains(modes(t, p), "intr = ^C;") {
	}
}
