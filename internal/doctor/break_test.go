// SPDX-License-Identifier: BSD-3-Clause

package doctor_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/control"
	"vmux.app/toolkit/internal/doctor"
	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/phone"
	"vmux.app/toolkit/internal/session"
	"vmux.app/toolkit/internal/signer"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/transport"
	"vmux.app/toolkit/internal/transport/dnssd"
)

// status changes what the agent says of itself.
func (p *patient) status(change func(s *control.StatusResult)) {
	p.asks(control.Status, func(out any) error {
		change(out.(*control.StatusResult))
		return nil
	})
}

// certificates changes what the agent says of its certificates.
func (p *patient) certificates(change func(i *session.Info)) {
	p.asks(control.Certificates, func(out any) error {
		all := *out.(*[]session.Info)
		for i := range all {
			change(&all[i])
		}
		return nil
	})
}

// says has a command answer something.
func (p *patient) says(command string, out doctor.Output, err error) {
	run := p.Run
	p.Run = func(ctx context.Context, name string, args ...string) (doctor.Output, error) {
		if strings.HasPrefix(strings.Join(append([]string{name}, args...), " "), command) {
			return out, err
		}
		return run(ctx, name, args...)
	}
}

func (p *patient) file(name string) string { return filepath.Join(p.home, name) }

func (p *patient) chmod(name string, mode os.FileMode) {
	p.t.Helper()
	if err := os.Chmod(p.file(name), mode); err != nil {
		p.t.Fatal(err)
	}
}

func (p *patient) remove(name string) {
	p.t.Helper()
	if err := os.RemoveAll(p.file(name)); err != nil {
		p.t.Fatal(err)
	}
}

func (p *patient) toml(text string) {
	p.t.Helper()
	write(p.t, p.ConfigFile, text, 0o600)
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(p.ConfigFile, old, old); err != nil { // the agent has read it
		p.t.Fatal(err)
	}
	p.configure()
}

const (
	configDir = ".config/vmux"
	stateFile = ".local/state/vmux/agent.json"
	linkKey   = configDir + "/device-key.pem"
	units     = ".config/systemd/user"
	wants     = units + "/sockets.target.wants/vmux-agent.socket"
)

// Every check turns when the one thing is broken that it looks at, and no other check does.
func TestBroken(t *testing.T) {
	t.Parallel()
	const warn, fail = doctor.Warning, doctor.Failure
	for _, tt := range []struct {
		name   string
		damage func(p *patient)
		want   want
	}{
		// config
		{"misspelt setting", func(p *patient) { p.toml("deadlin = \"60s\"\n") },
			want{id: "config", level: fail, found: `vmux.toml:1: there is no setting "deadlin"`, do: "one of socket, name"}},
		{"no default", func(p *patient) { p.toml("[[policy.rule]]\naction = \"ask\"\n") },
			want{id: "config", level: fail, found: "policy.default is missing", do: `default = "ask"`}},
		{"no TOML", func(p *patient) { p.toml("deadline\n") },
			want{id: "config", level: fail, found: "vmux.toml:1:", do: "mend line 1"}},
		{"configuration open", func(p *patient) { p.toml(""); p.chmod(configDir+"/vmux.toml", 0o666) },
			want{id: "config", level: fail, found: "open to other users (mode 0666)", do: "chmod 600"}},
		{"refuses all", func(p *patient) { p.toml("[policy]\ndefault = \"refuse\"\n") },
			want{id: "config", level: warn, found: "refuses every request", do: "vmux-agent policy"}},
		{"configuration not read", func(p *patient) { p.toml(""); os.Chtimes(p.ConfigFile, time.Now(), time.Now().Add(time.Hour)) },
			want{id: "config", level: warn, found: "changed since the agent read it", do: "kill -HUP"}},
		{"configuration not taken", func(p *patient) {
			p.toml("")
			p.status(func(s *control.StatusResult) { s.Configuration.Problem = "vmux.toml:3: no" })
		},
			want{id: "config", level: fail, found: "vmux.toml:3: no", do: "kill -HUP"}},

		// agent and its process
		{"other version", func(p *patient) { p.status(func(s *control.StatusResult) { s.Version = "0.0.1" }) },
			want{id: "agent", level: warn, found: "version 0.0.1", do: "start it again"}},
		{"open memory", func(p *patient) { p.status(func(s *control.StatusResult) { s.Protection.Open = true }) },
			want{id: "core-dumps", level: fail, found: "can read the agent's memory", do: "start it again"}},
		{"core files", func(p *patient) { p.status(func(s *control.StatusResult) { s.Protection.CoreLimit = 1 }) },
			want{id: "core-dumps", level: fail, found: "core file", do: "start it again"}},
		{"log discarded", func(p *patient) {
			p.status(func(s *control.StatusResult) { s.Log.Destination = control.LogDiscarded })
		},
			want{id: "log", level: warn, found: "log is discarded", do: "vmux-agent.log"}},

		// service
		{"no unit", func(p *patient) { p.remove(units) },
			want{id: "service", level: warn, found: "no unit vmux-agent.service", do: "install-user"}},
		{"not enabled", func(p *patient) { p.remove(wants) },
			want{id: "service", level: warn, found: "not enabled", do: "systemctl --user enable --now vmux-agent.socket"}},
		{"masked", func(p *patient) {
			p.remove(units + "/vmux-agent.service")
			os.Symlink(os.DevNull, p.file(units+"/vmux-agent.service"))
		},
			want{id: "service", level: warn, found: "masked", do: "unmask"}},
		{"other program", func(p *patient) {
			write(p.t, p.file(units+"/vmux-agent.service"), "[Service]\nExecStart=/bin/sh -c true\n", 0o644)
		},
			want{id: "service", level: warn, found: "starts /bin/sh, the agent that runs is", do: "install"}},
		{"no program", func(p *patient) {
			write(p.t, p.file(units+"/vmux-agent.service"), "[Service]\nExecStart=@%h/none\n", 0o644)
		},
			want{id: "service", level: warn, found: "none, which there is not", do: "install"}},
		{"other socket", func(p *patient) {
			write(p.t, p.file(units+"/vmux-agent.socket"), "[Socket]\nListenStream=%h/other.sock\n", 0o644)
		},
			want{id: "service", level: warn, found: "other.sock, the socket is", do: "one path in both"}},

		// ssh
		{"no ssh", func(p *patient) { p.says("ssh", doctor.Output{}, &exec.Error{Name: "ssh", Err: exec.ErrNotFound}) },
			want{id: "ssh-version", level: fail, found: "not installed", do: "openssh-client"}},
		{"old ssh", func(p *patient) {
			p.says("ssh -V", doctor.Output{Stderr: "OpenSSH_8.4p1 Debian-5, OpenSSL 1.1.1n\n"}, nil)
		},
			want{id: "ssh-version", level: warn, found: "OpenSSH_8.4p1", do: "update"}},
		{"other ssh", func(p *patient) { p.says("ssh -V", doctor.Output{Stderr: "Dropbear v2022.83\n"}, nil) },
			want{id: "ssh-version", level: warn, found: "Dropbear v2022.83", do: "update"}},
		{"no SSH_AUTH_SOCK", func(p *patient) { delete(p.env, "SSH_AUTH_SOCK") },
			want{id: "auth-sock", level: fail, found: "not set", do: "export SSH_AUTH_SOCK="}},
		{"gnome-keyring's", func(p *patient) { p.env["SSH_AUTH_SOCK"] = "/run/user/1000/keyring/ssh" },
			want{id: "auth-sock", level: fail, found: "/run/user/1000/keyring/ssh, gnome-keyring", do: "export SSH_AUTH_SOCK="}},
		{"SSH_AUTH_SOCK only for others", func(p *patient) {
			p.env["SSH_AUTH_SOCK"] = "/tmp/ssh-x/agent.1"
			write(p.t, p.file("ssh_config"), "IdentityAgent "+p.Config.Socket+"\n", 0o600)
		},
			want{id: "auth-sock", level: warn, found: "an ssh-agent, or a forwarded one", do: "export SSH_AUTH_SOCK="}},
		{"IdentityAgent none", func(p *patient) { write(p.t, p.file("ssh_config"), "IdentityAgent none\n", 0o600) },
			want{id: "identity-agent", level: fail, found: "IdentityAgent none", do: "grep -rin identityagent"}},
		{"IdentityAgent of a variable", func(p *patient) {
			write(p.t, p.file("ssh_config"), "IdentityAgent $OTHER\n", 0o600)
			p.env["OTHER"] = "/other.sock"
		},
			want{id: "identity-agent", level: fail, found: "IdentityAgent /other.sock", do: "grep -rin identityagent"}},
		{"no public keys", func(p *patient) { write(p.t, p.file("ssh_config"), "PubkeyAuthentication no\n", 0o600) },
			want{id: "identity-agent", level: fail, found: "PubkeyAuthentication no", do: "grep -rin pubkeyauthentication"}},
		{"identities only", func(p *patient) { write(p.t, p.file("ssh_config"), "IdentitiesOnly yes\n", 0o600) },
			want{id: "identity-agent", level: warn, found: "IdentitiesOnly yes", do: "ssh-add -L"}},
		{"bad ssh_config", func(p *patient) { write(p.t, p.file("ssh_config"), "Identity\n", 0o600) },
			want{id: "identity-agent", level: fail, found: "refuses its configuration", do: "ssh -G"}},
		{"another agent in .bashrc", func(p *patient) { write(p.t, p.file(".bashrc"), "# x\nexport SSH_AUTH_SOCK=/x\n", 0o600) },
			want{id: "rivals", level: warn, found: "~/.bashrc:2", do: "export SSH_AUTH_SOCK="}},
		{"the session's", func(p *patient) {
			p.says("systemctl --user show-environment", doctor.Output{Stdout: "A=b\nSSH_AUTH_SOCK=/run/user/1000/gcr/ssh\n"}, nil)
		},
			want{id: "rivals", level: warn, found: "/run/user/1000/gcr/ssh, gnome-keyring", do: "--setup"}},
		{"no keys", func(p *patient) { p.List = func(context.Context) ([]ssh.PublicKey, error) { return nil, nil } },
			want{id: "key-count", level: warn, found: "no keys", do: "vmux-signer key add"}},
		{"too many keys", func(p *patient) {
			p.List = func(context.Context) ([]ssh.PublicKey, error) { return make([]ssh.PublicKey, 7), nil }
		},
			want{id: "key-count", level: warn, found: "7 keys, servers try 6", do: "IdentitiesOnly"}},

		// state
		{"state damaged", func(p *patient) { write(p.t, p.file(stateFile), "{", 0o600) },
			want{id: "state", level: fail, found: "is damaged", do: "mv "}},
		{"state newer", func(p *patient) { write(p.t, p.file(stateFile), `{"version":99}`, 0o600) },
			want{id: "state", level: fail, found: "version 99", do: "update these commands"}},
		{"state open", func(p *patient) { p.chmod(stateFile, 0o644) },
			want{id: "state", level: fail, found: "mode 0644", do: "chmod 600"}},
		{"state directory open", func(p *patient) { p.chmod(filepath.Dir(stateFile), 0o777) },
			want{id: "state", level: fail, found: "mode 0777", do: "chmod 700"}},
		{"disk full", func(p *patient) { p.Space = func(string) (uint64, error) { return 1000, nil } },
			want{id: "disk", level: fail, found: "1000 B left", do: "make room: df"}},
		{"disk nearly full", func(p *patient) { p.Space = func(string) (uint64, error) { return 2 << 20, nil } },
			want{id: "disk", level: warn, found: "2048 KiB left", do: "make room: df"}},
		{"read-only disk", func(p *patient) { p.Space = func(string) (uint64, error) { return 0, syscall.EROFS } },
			want{id: "disk", level: fail, found: "read-only file system", do: "it is on a file system that is read-only"}},
		{"link key open", func(p *patient) { p.chmod(linkKey, 0o640) },
			want{id: "link-key", level: fail, found: "mode 0640", do: "chmod 600"}},
		{"link key damaged", func(p *patient) { write(p.t, p.file(linkKey), "x", 0o600) },
			want{id: "link-key", level: fail, found: "no usable device key", do: "vmux-pair"}},
		{"link key missing", func(p *patient) { p.remove(linkKey) },
			want{id: "link-key", level: fail, found: "no usable device key", do: "vmux-pair"}},
		{"another link key", func(p *patient) { write(p.t, p.file(linkKey), newLinkKey(p.t), 0o600) },
			want{id: "link-key", level: fail, found: "the agent uses the link key", do: "pair again"}},

		// phone
		{"not paired", func(p *patient) { p.state(func(s *store.State) { s.Phones = nil }) },
			want{id: "paired", level: fail, found: "no phone is paired", do: "vmux-pair"}},
		{"agent does not know the phone", func(p *patient) { p.status(func(s *control.StatusResult) { s.Phones = nil }) },
			want{id: "paired", level: warn, found: "knows 0 phones, the state file has Pocket", do: "kill -HUP"}},
		{"phone is off", func(p *patient) {
			p.Dial = func(context.Context, string) (net.Conn, error) {
				return nil, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
			}
		},
			want{id: "link", level: fail, found: "connection refused", do: "wake the phone"}},
		{"phone does not answer", func(p *patient) { p.Dial = silent(p.t) },
			want{id: "link", level: fail, found: "no answer", do: "wake the phone"}},
		{"another phone is there", func(p *patient) { p.Dial = phoneAt(p.t, nil, 0) },
			want{id: "link", level: fail, found: "another device is there", do: "paired again"}},
		{"one of two phones is off", func(p *patient) { p.twoPhones() },
			want{id: "link", level: warn, found: "Tablet at 127.0.0.1:1: connection refused", do: "wake the phone", because: "discovery"}},
		{"agent does not reach it", func(p *patient) {
			p.asks(control.Reach, func(out any) error {
				(*out.(*[]phone.Reached))[0].Problem = "network is unreachable"
				return nil
			})
		},
			want{id: "link", level: fail, found: "the agent does not: network is unreachable", do: "systemctl --user status"}},
		{"clock ahead", func(p *patient) { p.Dial = phoneAt(p.t, p.rig, 20*time.Second) },
			want{id: "clock", level: warn, found: "Pocket's clock is 20s ahead", do: "date -u"}},
		{"clock behind", func(p *patient) { p.Dial = phoneAt(p.t, p.rig, -90*time.Second) },
			want{id: "clock", level: fail, found: "Pocket's clock is 1m30s behind", do: "date -u"}},

		// network
		{"no interface", func(p *patient) { p.Interfaces = func() ([]doctor.Interface, error) { return nil, nil } },
			want{id: "multicast", level: fail, found: "no network interface", do: "--address"}},
		{"a Mac without a network", func(p *patient) {
			p.onMac()
			p.Interfaces = func() ([]doctor.Interface, error) {
				return []doctor.Interface{{Index: 4, Name: "en5", Flags: net.FlagUp | net.FlagBroadcast | net.FlagMulticast, Addrs: []net.Addr{network(p.t, "fe80::aede:48ff:fe00:1122/64")}}}, nil
			}
		},
			want{id: "multicast", level: fail, found: "no network interface", do: "join the phone's network"}},
		{"a VPN only", func(p *patient) {
			p.Interfaces = func() ([]doctor.Interface, error) {
				return []doctor.Interface{{Index: 2, Name: "tun0", Flags: net.FlagUp | net.FlagPointToPoint | net.FlagMulticast, Addrs: []net.Addr{network(p.t, "10.9.8.7/24")}}}, nil
			}
		},
			want{id: "multicast", level: fail, found: "a VPN is up: tun0", do: "leave the VPN"}},
		{"firewall", func(p *patient) {
			p.Browse = func(context.Context, func(dnssd.Claim)) error {
				return fmt.Errorf("%w: wlan0: %w", dnssd.ErrUnavailable, syscall.EPERM)
			}
		},
			want{id: "multicast", level: fail, found: "not available", do: "firewall"}},
		{"macOS denies", func(p *patient) {
			p.Browse = func(context.Context, func(dnssd.Claim)) error {
				return fmt.Errorf("%w: en0: %w", dnssd.ErrUnavailable, syscall.EHOSTUNREACH)
			}
		},
			want{id: "multicast", level: fail, found: "no route to host", do: "Local Network"}},
		{"nobody is found", func(p *patient) { p.browses(nothing) },
			want{id: "isolation", level: warn, found: "discovery finds nobody", do: "client isolation", because: "discovery"}},
		{"others only", func(p *patient) { p.browses(stranger(p.t)) },
			want{id: "discovery", level: warn, found: "does not advertise itself, as 1 other does", do: "--no-advertise"}},

		// certificate
		{"certificate ends", func(p *patient) {
			p.certificates(func(i *session.Info) { i.ValidBefore = time.Now().Add(150*time.Second + 500*time.Millisecond) })
		},
			want{id: "certificate", level: warn, found: "ends in 2m30s", do: "vmux-cert"}},
		{"certificate of tomorrow", func(p *patient) {
			p.certificates(func(i *session.Info) { i.ValidAfter = time.Now().Add(time.Minute) })
		},
			want{id: "certificate", level: fail, found: "in the future", do: "date -u"}},
		{"certificate for another account", func(p *patient) { p.User = "somebody" },
			want{id: "certificate", level: warn, found: "not for somebody", do: "vmux-cert --principal somebody"}},
		{"certificate of another authority", func(p *patient) { p.certificates(func(i *session.Info) { i.CA = "SHA256:x" }) },
			want{id: "certificate", level: fail, found: "of an authority that no paired phone has", do: "vmux-cert drop"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := healthy(t)
			tt.damage(p)
			p.turns(tt.want)
		})
	}
}

func newLinkKey(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// silent dials somebody who takes connections and says nothing.
func silent(t *testing.T) func(context.Context, string) (net.Conn, error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return func(ctx context.Context, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", l.Addr().String())
	}
}

// phoneAt dials a phone that is made here: with the identity of r's, or one of
// its own, and a clock that is ahead.
func phoneAt(t *testing.T, r *rig, ahead time.Duration) func(context.Context, string) (net.Conn, error) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if r != nil {
		var home *signer.Home
		if home, err = signer.Open(r.path(".local", "share", "vmux-signer"), func(string) {}); err == nil {
			key, err = home.LinkKey()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	id, err := transport.NewIdentity(key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		all.Wait()
	})
	serve := func(raw net.Conn) {
		defer raw.Close()
		c, err := transport.Server(context.Background(), raw, id, func(string, transport.Pin) error { return nil })
		if err != nil {
			return
		}
		defer c.Close()
		if c.Send(envelope.Envelope{Payload: &envelope.Hello{Name: "Pocket", Software: "test", Clock: envelope.At(time.Now().Add(ahead))}}) != nil {
			return
		}
		for {
			e, err := c.Receive()
			if err != nil {
				return
			}
			if e.Payload.Type() == (&envelope.Ping{}).Type() {
				c.Send(envelope.Envelope{ID: e.ID, Payload: &envelope.Pong{}})
			}
		}
	}
	all.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { serve(raw) })
		}
	})
	return func(ctx context.Context, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", l.Addr().String())
	}
}

// twoPhones pairs another phone, which is off.
func (p *patient) twoPhones() {
	p.t.Helper()
	var pin transport.Pin
	rand.Read(pin[:])
	p.state(func(s *store.State) {
		s.Phones = append(s.Phones, store.Phone{Name: "Tablet", Pin: pin.String(), Address: "127.0.0.1:1", PairedAt: time.Now()})
	})
	p.status(func(s *control.StatusResult) {
		s.Phones = append(s.Phones, phone.Status{Name: "Tablet", Pin: pin.String()})
	})
}

func nothing(ctx context.Context, _ func(dnssd.Claim)) { <-ctx.Done() }

// stranger reports somebody who is no paired phone.
func stranger(t *testing.T) func(context.Context, func(dnssd.Claim)) {
	dial := phoneAt(t, nil, 0)
	c, err := dial(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	at := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	c.Close()
	return func(ctx context.Context, found func(dnssd.Claim)) {
		found(dnssd.Claim{Instance: "other", Source: at.Addr(), Interface: 1, Addrs: []netip.AddrPort{at}})
		<-ctx.Done()
	}
}

func (p *patient) browses(f func(context.Context, func(dnssd.Claim))) {
	p.Browse = func(ctx context.Context, found func(dnssd.Claim)) error {
		f(ctx, found)
		return nil
	}
}
