// SPDX-License-Identifier: BSD-3-Clause

package doctor_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmux.app/toolkit/internal/control"
	"vmux.app/toolkit/internal/doctor"
	"vmux.app/toolkit/internal/networks"
	"vmux.app/toolkit/internal/phone"
	"vmux.app/toolkit/internal/session"
	"vmux.app/toolkit/internal/transport"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits for a condition that nothing announces.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	late := time.After(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

// What is broken in a real agent and its socket is mended again, until the agent
// is killed and at last gone.
func TestBrokenAgent(t *testing.T) {
	t.Parallel()
	r := ownRig(t)
	const warn, fail = doctor.Warning, doctor.Failure
	pid := r.agent.cmd.Process.Pid

	must(t, os.Chmod(r.socket(), 0o666))
	examined(t, r).turns(want{id: "socket", level: fail, found: "mode 0666", do: "chmod 600"})
	must(t, os.Chmod(r.socket(), 0o600))

	must(t, os.Chmod(r.path(".ssh"), 0o777))
	examined(t, r).turns(want{id: "socket", level: fail, found: "writable by others", do: "in a directory of your own"})
	must(t, os.Chmod(r.path(".ssh"), 0o700))

	p := examined(t, r)
	p.env["VMUX_SOCKET"] = r.path(strings.Repeat("x", 104))
	p.configure()
	p.env["SSH_AUTH_SOCK"] = p.Config.Socket
	write(t, p.file(units+"/vmux-agent.socket"), "[Socket]\nListenStream="+p.Config.Socket+"\n", 0o644)
	p.turns(want{id: "socket", level: fail, found: "a socket address holds 103", do: "shorter path"})

	p = examined(t, r)
	p.env["VMUX_SOCKET"] = r.path("file")
	write(t, r.path("file"), "", 0o600)
	p.configure()
	p.env["SSH_AUTH_SOCK"] = p.Config.Socket
	write(t, p.file(units+"/vmux-agent.socket"), "[Socket]\nListenStream="+p.Config.Socket+"\n", 0o644)
	p.turns(want{id: "socket", level: fail, found: "is in the way", do: "mv "})

	// Another process holds the lock, of a file that has taken the place of the agent's.
	lock := r.socket() + ".lock"
	must(t, os.Remove(lock))
	f, err := os.OpenFile(lock, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	must(t, err)
	defer f.Close()
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	_, err = f.WriteString(strconv.Itoa(os.Getpid()) + "\n")
	must(t, err)
	examined(t, r).turns(want{id: "lock", level: warn, found: "is held by process " + strconv.Itoa(os.Getpid()) + ", the agent is process " + strconv.Itoa(pid), do: "kill " + strconv.Itoa(os.Getpid())})
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_UN))
	must(t, os.Remove(lock))
	must(t, os.Symlink("/nonexistent", lock))
	examined(t, r).turns(want{id: "lock", level: fail, found: "is in the way: a symbolic link", do: "mv "})
	must(t, os.Remove(lock))
	// The agent makes it again.
	eventually(t, "the agent's lock", func() bool { return examined(t, r).examine("lock")["lock"].Found == "held by the agent" })

	// Stopped.
	must(t, r.agent.cmd.Process.Signal(syscall.SIGSTOP))
	var stopped unix.WaitStatus
	_, err = unix.Wait4(pid, &stopped, unix.WUNTRACED, nil)
	must(t, err)
	if !stopped.Stopped() {
		t.Fatalf("the agent has not stopped: %v", stopped)
	}
	examined(t, r).turns(want{id: "agent", level: fail, found: "does not answer: process " + strconv.Itoa(pid), do: "kill -9 " + strconv.Itoa(pid)})
	must(t, r.agent.cmd.Process.Signal(syscall.SIGCONT))
	if got := examined(t, r).examine("agent")["agent"]; got.Level != doctor.OK {
		t.Errorf("goes on: %+v", got.Finding)
	}

	// Forgotten by the phone: the agent's link ends with it.
	devices, err := r.run("vmux-signer", "devices", "--json")
	must(t, err)
	_, name, _ := strings.Cut(devices, `"name":"`)
	name, _, _ = strings.Cut(name, `"`)
	_, err = r.run("vmux-signer", "forget", name)
	must(t, err)
	p = examined(t, r)
	p.turns(want{id: "link", level: fail, found: "does not know this device any more", do: "pair again", because: "discovery"})

	// Killed: the socket is there, and dead.
	must(t, r.agent.cmd.Process.Kill())
	<-r.agent.done
	p = examined(t, r)
	p.Dial = phoneAt(t, r, 0)
	p.turns(want{id: "agent", level: fail, found: "the agent is not running", do: "vmux-agent"})
	if got := p.examine("lock")["lock"]; !strings.Contains(got.Found, "left by process "+strconv.Itoa(pid)) {
		t.Errorf("lock: %+v", got.Finding)
	}
	must(t, os.Remove(r.socket()))
	p = examined(t, r)
	p.Dial = phoneAt(t, r, 0)
	p.turns(want{id: "socket", level: fail, found: "there is no ", do: "vmux-agent"})
}

// Locked agents list nothing and sign nothing.
func TestLockedAgent(t *testing.T) {
	t.Parallel()
	p := healthy(t)
	p.status(func(s *control.StatusResult) { s.Locked = true })
	p.turns(want{id: "agent", level: doctor.Warning, found: "locked", do: "ssh-add -X", because: "key-count"})
}

// A job's certificate is nobody else's, and no certificate at all is no fault.
func TestCertificateOfJob(t *testing.T) {
	t.Parallel()
	p := healthy(t)
	p.certificates(func(i *session.Info) { i.Job, i.CA = 1, "SHA256:x" })
	p.turns(want{id: "certificate", level: doctor.OK, found: "none: each login asks the phone"})
}

// Somebody else's agent at the socket.
func TestOtherAgent(t *testing.T) {
	t.Parallel()
	p := healthy(t)
	dir, err := os.MkdirTemp("", "v")
	must(t, err)
	defer os.RemoveAll(dir)
	p.env["VMUX_SOCKET"] = filepath.Join(dir, "agent.sock")
	p.configure()
	p.env["SSH_AUTH_SOCK"] = p.Config.Socket
	need(t, "ssh-agent")
	other, _, err := p.rig.start("^SSH_AUTH_SOCK", "ssh-agent", "-D", "-a", p.Config.Socket)
	must(t, err)
	defer other.end()
	write(t, p.file(units+"/vmux-agent.socket"), "[Socket]\nListenStream="+p.Config.Socket+"\n", 0o644)
	p.turns(want{id: "agent", level: doctor.Failure, found: "ssh-agent, process " + strconv.Itoa(other.cmd.Process.Pid), do: "--socket PATH"})
}

// onMac makes a set-up look like one of macOS.
func (p *patient) onMac() {
	p.OS = "darwin"
	p.says("launchctl getenv", doctor.Output{Stdout: p.Config.Socket + "\n"}, nil)
	p.says("systemctl", doctor.Output{Stdout: "SSH_AUTH_SOCK=/nobody/asks\n"}, nil)
	p.Nearby = func(ctx context.Context) error { // looks until it is told to end
		<-ctx.Done()
		return nil
	}
	p.says("launchctl print-disabled", doctor.Output{Stdout: "disabled services = {\n\t\"app.vmux.other\" => disabled\n\t\"app.vmux.agent\" => enabled\n}\n"}, nil)
	p.says("launchctl print gui/", doctor.Output{Stdout: "app.vmux.agent = {\n"}, nil)
	write(p.t, p.file(plist), plistOf(filepath.Join(binDir, "vmux-agent"), p.Config.Socket), 0o644)
}

const plist = "Library/LaunchAgents/app.vmux.agent.plist"

func plistOf(program, socket string) string {
	return `<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0"><dict><key>Label</key><string>app.vmux.agent</string>
<key>ProgramArguments</key><array><string>` + program + `</string><string>--quiet</string></array>
<key>Sockets</key><dict><key>Listeners</key><dict><key>SockPathName</key><string>` + socket + `</string></dict></dict></dict></plist>
`
}

func TestBrokenMac(t *testing.T) {
	t.Parallel()
	const warn, fail = doctor.Warning, doctor.Failure
	for _, tt := range []struct {
		name   string
		damage func(p *patient)
		want   want
	}{
		{"nothing", func(p *patient) {}, want{id: "local-network", found: "reach the same phones"}},
		{"no plist", func(p *patient) { p.remove(plist) },
			want{id: "service", level: warn, found: "no app.vmux.agent.plist", do: "install-user"}},
		{"disabled", func(p *patient) {
			p.says("launchctl print-disabled", doctor.Output{Stdout: "\t\"app.vmux.agent\" => disabled\n"}, nil)
		},
			want{id: "service", level: warn, found: "disabled", do: "launchctl enable gui/"}},
		{"not loaded", func(p *patient) { p.says("launchctl print gui/", doctor.Output{Exit: 113}, nil) },
			want{id: "service", level: warn, found: "not loaded", do: "launchctl bootstrap gui/"}},
		{"other program", func(p *patient) { write(p.t, p.file(plist), plistOf("/bin/sh", p.Config.Socket), 0o644) },
			want{id: "service", level: warn, found: "starts /bin/sh", do: "install"}},
		{"other socket", func(p *patient) {
			write(p.t, p.file(plist), plistOf(filepath.Join(binDir, "vmux-agent"), "/Users/me/.ssh/vmux-agent.sock"), 0o644)
		},
			want{id: "service", level: warn, found: "has the socket /Users/me/.ssh/vmux-agent.sock, ", do: "write one path in both: SockPathName in "}},
		{"launchd's agent", func(p *patient) {
			p.says("launchctl getenv", doctor.Output{Stdout: "/private/tmp/com.apple.launchd.x/Listeners\n"}, nil)
		},
			want{id: "session-sock", level: warn, found: "launchd's ssh-agent", do: "launchctl setenv SSH_AUTH_SOCK /"}},
		{"no agent for who no shell starts", func(p *patient) { p.says("launchctl getenv", doctor.Output{}, nil) },
			want{id: "session-sock", level: warn, found: "launchd has no SSH_AUTH_SOCK ", do: "launchctl setenv SSH_AUTH_SOCK /"}},
		{"no agent for who no shell starts, but ssh's configuration", func(p *patient) {
			p.says("launchctl getenv", doctor.Output{}, nil)
			p.says("ssh -G", doctor.Output{Stdout: "identityagent " + p.Config.Socket + "\n"}, nil)
		},
			want{id: "session-sock", found: "ssh's configuration leads "}},
		{"no answer of launchctl", func(p *patient) { p.says("launchctl getenv", doctor.Output{Exit: 1}, nil) },
			want{id: "session-sock", level: fail, found: "launchctl getenv: exit status 1", do: "run it again"}},
		{"built without frameworks", func(p *patient) {
			p.Nearby = func(context.Context) error { return fmt.Errorf("%w: not built", networks.ErrNearby) }
		},
			want{id: "nearby", level: warn, found: "MultipeerConnectivity cannot be used: not built", do: "build it with make"}},
		{"kept from peers nearby", func(p *patient) {
			p.Nearby = func(context.Context) error { return fmt.Errorf("%w: %w", networks.ErrNearby, transport.ErrNotAllowed) }
		},
			want{id: "nearby", level: warn, found: "does not let this program into", do: "Local Network"}},
		{"unified log", func(p *patient) {
			p.status(func(s *control.StatusResult) { s.Log.Destination = control.LogUnified })
		},
			want{id: "log", found: "to the unified log (log stream --predicate 'subsystem == \"app.vmux.agent\"'), level "}},
		{"agent is kept out", func(p *patient) {
			p.asks(control.Reach, func(out any) error {
				(*out.(*[]phone.Reached))[0].Problem = "no route to host"
				return nil
			})
		},
			want{id: "local-network", level: fail, found: "this terminal reaches Pocket, the agent does not: no route to host", do: "allow vmux-agent in System Settings"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := healthy(t)
			p.onMac()
			tt.damage(p)
			p.turns(tt.want)
		})
	}
}

// The terminal is kept out: what the agent reaches tells it from a phone that is off.
func TestTerminalKeptOut(t *testing.T) {
	t.Parallel()
	p := healthy(t)
	p.onMac()
	p.Dial = func(context.Context, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EHOSTUNREACH)}
	}
	results := p.examine("local-network", "link")
	if r := results["local-network"]; r.Level != doctor.Warning || !strings.Contains(r.Found, "the agent reaches Pocket, this terminal does not") ||
		!strings.Contains(r.Do, "allow this terminal in System Settings") {
		t.Errorf("%+v", r.Finding)
	}
	if r := results["link"]; r.Level != doctor.Failure || !strings.Contains(r.Found, "no route to host") {
		t.Errorf("%+v", r.Finding)
	}
}
