// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/transport"
)

// Lines that set SSH_AUTH_SOCK, by themselves or by what they start, and others.
func TestSetsSock(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]bool{
		"SSH_AUTH_SOCK=/x": true, "export SSH_AUTH_SOCK=/x": true, "  export SSH_AUTH_SOCK=$(gpgconf --list-dirs agent-ssh-socket)": true,
		"set -gx SSH_AUTH_SOCK /x": true, "set -x -U SSH_AUTH_SOCK /x": true, "setenv SSH_AUTH_SOCK /x": true, "if true; then SSH_AUTH_SOCK=/x; fi": true,
		`eval "$(ssh-agent -s)"`: true, "eval `ssh-agent`": true, "eval $(keychain --eval id_ed25519)": true, `eval "$(gnome-keyring-daemon --start)"`: true,
		"ssh-agent -c | source": true, "SSH_AUTH_SOCK DEFAULT=/x": true,
		"# SSH_AUTH_SOCK=/x": false, "echo $SSH_AUTH_SOCK": false, "export SSH_AUTH_SOCK": false, "unset SSH_AUTH_SOCK": false,
		`[ -n "$SSH_AUTH_SOCK" ] || true`: false, "MY_SSH_AUTH_SOCK=/x": false, "alias ssh-agent=true": false, "ssh-add -l": false,
		`test "$SSH_AUTH_SOCK" = /x`: false,
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "rc")
		if err := os.WriteFile(path, []byte("\n"+line+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		e := Env{}
		e.Config.Socket = "/home/me/.ssh/vmux-agent.sock"
		if n := e.otherAgent(path); (n == 2) != want || n != 0 && n != 2 {
			t.Errorf("%q: line %d", line, n)
		}
		// Our own line behind it makes it good, before it does not.
		ours := "export SSH_AUTH_SOCK=~/.ssh/vmux-agent.sock\n"
		if err := os.WriteFile(path, []byte(line+"\n"+ours), 0o600); err != nil {
			t.Fatal(err)
		}
		if n := e.otherAgent(path); n != 0 {
			t.Errorf("%q with ours behind it: line %d", line, n)
		}
		if err := os.WriteFile(path, []byte(ours+line+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if n := e.otherAgent(path); (n == 2) != want {
			t.Errorf("%q behind ours: line %d", line, n)
		}
	}
}

func TestIdentityAgent(t *testing.T) {
	t.Parallel()
	e := Env{Home: "/home/me", Getenv: func(name string) string { return map[string]string{"X": "/x"}[name] }}
	for value, want := range map[string]string{"": "", "SSH_AUTH_SOCK": "", "none": "none", "$X": "/x", "${X}": "/x", "$NONE": "$NONE", "~/s": "/home/me/s", "/s s": "/s s"} {
		config := map[string][]string{"identityagent": {value}}
		if value == "" {
			config = nil
		}
		if got := e.identityAgent(config); got != want {
			t.Errorf("%q: %q, want %q", value, got, want)
		}
	}
}

func TestUnitValue(t *testing.T) {
	t.Parallel()
	e := Env{Home: "/home/me", User: "me", Getenv: func(name string) string { return map[string]string{"XDG_RUNTIME_DIR": "/run/user/1"}[name] }}
	for unit, want := range map[string]string{
		"":                                 "",
		"ExecStart=/bin/a b":               "/bin/a",
		"[Service]\n ExecStart = /bin/a\n": "",
		"ExecStart=-@/bin/a a0 b":          "/bin/a",
		`ExecStart="/bin/a b" c`:           "/bin/a b",
		"ExecStart=%h/a%%b/%u/%t":          "/home/me/a%b/me//run/user/1",
		"ExecStart=/bin/a\nExecStart=\n":   "",
		"#ExecStart=/bin/a":                "",
		"ExecStart=vmux-agent":             "vmux-agent",
	} {
		if got := e.unitValue(unit, "ExecStart"); got != want {
			t.Errorf("%q: %q, want %q", unit, got, want)
		}
	}
}

func TestPlistStarts(t *testing.T) {
	t.Parallel()
	for plist, want := range map[string]string{
		"":       "",
		"<plist": "",
		"<plist><dict><key>Program</key><string>/a</string></dict></plist>":                                                                                                             "/a",
		"<plist><dict><key>ProgramArguments</key><array><string>/a</string><string>/b</string></array></dict></plist>":                                                                  "/a",
		"<plist><dict><key>ProgramArguments</key><array><string>/a</string></array><key>Program</key><string>/b</string></dict></plist>":                                                "/b",
		"<plist><dict><key>Label</key><string>/a</string><key>EnvironmentVariables</key><dict><key>PATH</key><string>/b</string></dict></dict></plist>":                                 "",
		"<plist><dict><key>ProgramArguments</key><array/><key>Label</key><string>/a</string></dict></plist>":                                                                            "",
		`<?xml version="1.0"?><!DOCTYPE plist PUBLIC "a" "b"><plist version="1.0"><!-- x --><dict><key>ProgramArguments</key><array><string>/a &amp; b</string></array></dict></plist>`: "/a & b",
	} {
		if got, _ := plistStarts([]byte(plist)); got != want {
			t.Errorf("%s: %q, want %q", plist, got, want)
		}
	}
}

// What is installed is understood.
func TestShippedUnits(t *testing.T) {
	t.Parallel()
	read := func(name string) string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join("../../cmd/vmux-agent", name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	e := Env{Home: "/home/me", Getenv: func(string) string { return "" }}
	const program = "@bindir@/vmux-agent"
	if got := e.unitValue(read("systemd/"+serviceUnit), "ExecStart"); got != program {
		t.Errorf("service: %q", got)
	}
	if got := e.unitValue(read("systemd/"+socketUnit), "ListenStream"); got != "/home/me/.ssh/vmux-agent.sock" {
		t.Errorf("socket: %q", got)
	}
	if got, socket := plistStarts([]byte(read("launchd/" + launchLabel + ".plist"))); got != program || socket != "@home@/.ssh/vmux-agent.sock" {
		t.Errorf("plist: %q at %q", got, socket)
	}
}

func TestLinkError(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err  error
		want string
	}{
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EHOSTUNREACH)}, "P at a:1: no route to host"},
		{&net.OpError{Op: "dial", Err: errors.New("lookup a: no such host")}, "P at a:1: lookup a: no such host"},
		{&net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}, "P at a:1: no answer"},
		{transport.ErrWrongPeer, "P at a:1: another device is there"},
		{transport.ErrRefused, "P at a:1: it does not know this device any more"},
		{errTime, "P at a:1: no answer"},
		{errors.New("odd"), "P at a:1: odd"},
	} {
		if got := (&LinkError{"P", "a:1", tt.err}).Error(); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.err, got, tt.want)
		}
	}
}

func TestTexts(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{-time.Second: "0s", 1500 * time.Millisecond: "2s", 59 * time.Second: "59s", time.Hour: "1h", 3*time.Hour + 5*time.Minute + 7*time.Second: "3h5m",
		47 * time.Hour: "47h", 50 * time.Hour: "2 days"} {
		if got := age(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
	for n, want := range map[uint64]string{0: "0 B", 10000: "10000 B", 10240: "10 KiB", 1 << 20: "1024 KiB", 10 << 20: "10 MiB", 70 << 30: "70 GiB", 20 << 40: "20 TiB"} {
		if got := bytesOf(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
	if got := list([]string{"a", "b", "c", "d", "e"}); got != "a, b, c and 2 more" {
		t.Error(got)
	}
	if got := list([]string{"a", "b", "c"}); got != "a, b, c" {
		t.Error(got)
	}
	if count(1, "key") != "1 key" || count(0, "key") != "0 keys" {
		t.Error("count")
	}
}

// What counts as a VPN, and what as fit for multicast.
func TestInterfaces(t *testing.T) {
	t.Parallel()
	at := func(s string) []net.Addr {
		if s == "" {
			return nil
		}
		ip, n, err := net.ParseCIDR(s)
		if err != nil {
			t.Fatal(err)
		}
		n.IP = ip
		return []net.Addr{n}
	}
	all := []Interface{
		{1, "lo", net.FlagUp | net.FlagLoopback | net.FlagMulticast, at("127.0.0.1/8")},
		{2, "eth0", net.FlagUp | net.FlagMulticast, at("192.0.2.1/24")},
		{3, "down", net.FlagMulticast, at("192.0.2.1/24")},
		{4, "bare", net.FlagUp | net.FlagMulticast, nil},
		{5, "deaf", net.FlagUp, at("192.0.2.1/24")},
		{6, "tun0", net.FlagUp | net.FlagPointToPoint | net.FlagMulticast, at("10.0.0.1/24")},
		{7, "utun0", net.FlagUp | net.FlagPointToPoint | net.FlagMulticast, at("fe80::1/64")},
		{8, "utun1", net.FlagPointToPoint | net.FlagMulticast, at("10.0.0.1/24")},
	}
	if got := strings.Join(multicastNames("linux", all), " "); got != "eth0" {
		t.Errorf("multicast: %s", got)
	}
	if got := strings.Join(tunnels(all), " "); got != "tun0" {
		t.Errorf("tunnels: %s", got)
	}
}

func TestFixed(t *testing.T) {
	t.Parallel()
	all := needsDiscovery(store.State{Phones: []store.Phone{{Name: "a", FixedAddress: "x:1"}, {Name: "b", Address: "x:1"}}})
	if len(all) != 1 || all[0].Name != "b" {
		t.Errorf("%+v", all)
	}
}

// What a command says is bounded, and one that runs on is given up.
func TestCommand(t *testing.T) {
	t.Parallel()
	o, err := command(t.Context(), "sh", "-c", "echo out; echo err >&2; exit 3")
	if err != nil || o != (Output{3, "out\n", "err\n"}) {
		t.Errorf("%+v, %v", o, err)
	}
	o, err = command(t.Context(), "sh", "-c", "head -c 300000 /dev/zero")
	if err != nil || len(o.Stdout) != maxOutput {
		t.Errorf("%d bytes, %v", len(o.Stdout), err)
	}
	if _, err = command(t.Context(), "vmux-none"); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("no command: %v", err)
	}
	// A child that stays keeps the output open.
	ctx, cancel := context.WithTimeout(t.Context(), outputTime+200*time.Millisecond)
	defer cancel()
	o, err = command(ctx, "sh", "-c", "sleep 60 & echo $!; exec sleep 60")
	child, perr := strconv.Atoi(strings.TrimSpace(o.Stdout))
	if !errors.Is(err, errTime) || perr != nil {
		t.Fatalf("one that stays: %+v, %v", o, err)
	}
	if err := syscall.Kill(child, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
}
