// SPDX-License-Identifier: BSD-3-Clause

package cli

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"vmux.app/toolkit/internal/doctor"
	"vmux.app/toolkit/internal/transport"
	"vmux.app/toolkit/internal/transport/dnssd"
	"vmux.app/toolkit/internal/unixsock"
)

// clocks is for every clock that is wrong.
const clocks = "set the clocks of both right: date -u"

// localNetwork is for what macOS keeps out.
const localNetwork = "allow this program, or the terminal that it runs in, in System Settings, Privacy & Security, Local Network; build vmux with make, or macOS refuses it unasked"

// doctorAdvice is the part of the table about what only vmux-doctor finds. The statuses are not used: vmux-doctor
// has its own.
func doctorAdvice() []row {
	restart := func(pid int) string {
		return fmt.Sprintf("end it and start it again: kill %d; vmux-agent, or: systemctl --user restart vmux-agent", pid)
	}
	return []row{
		is(doctor.ErrCheck, ExitFailed, "run it again; if it happens again, report it with this output"),

		// socket
		as(ExitFailed, func(e *unixsock.OpenError) string {
			if int(e.Owner) != os.Geteuid() {
				return "choose a path of your own, as in --socket ~/.ssh/vmux-agent.sock"
			}
			return "chmod 600 " + quote(e.Path)
		}),
		as(ExitFailed, func(e *doctor.SilentError) string {
			return fmt.Sprintf("look whether it is stopped, and end it: ps -o pid,stat,args -p %d; kill -9 %d", e.PID, e.PID)
		}),
		is(doctor.ErrSilent, ExitFailed, "look for a stopped one, and end it: ps -u $USER | grep vmux-agent"),
		is(doctor.ErrLocked, ExitFailed, "unlock it: ssh-add -X"),
		as(ExitFailed, func(e *doctor.VersionError) string { return restart(e.PID) }),
		as(ExitFailed, func(e *doctor.LockError) string {
			if e.PID > 0 {
				return fmt.Sprintf("look what it is, and end it: ps -p %d; kill %d", e.PID, e.PID)
			}
			return "find out who has it open, and end it: lsof " + quote(e.Path)
		}),

		// push
		as(ExitUsage, func(e *doctor.PushMismatchError) string {
			return "take wake." + e.Setting + " out of vmux.toml, or let the phone connect once if its app has changed"
		}),

		// ssh
		as(ExitUsage, func(e *doctor.AuthSockError) string {
			return "export SSH_AUTH_SOCK=" + quote(e.Socket) + ", also in the shell's start-up file; see: vmux-doctor --setup"
		}),
		as(ExitUsage, func(e *doctor.IdentityAgentError) string {
			return "find it, and write " + quote(e.Socket) + " there: grep -rin identityagent ~/.ssh/config /etc/ssh/ssh_config*"
		}),
		is(doctor.ErrNoPubkey, ExitUsage, "find it, and take it out: grep -rin pubkeyauthentication ~/.ssh/config /etc/ssh/ssh_config*"),
		is(doctor.ErrIdentitiesOnly, ExitUsage, "save a public key, and name that file in IdentityFile: ssh-add -L >~/.ssh/vmux.pub"),
		is(doctor.ErrNoSSH, ExitFailed, "install OpenSSH's client, as in: sudo apt install openssh-client"),
		as(ExitFailed, func(*doctor.SSHVersionError) string { return "update OpenSSH; what there is: ssh -V" }),
		as(ExitUsage, func(*doctor.SSHConfigError) string { return "mend it: ssh -G localhost" }),
		as(ExitUsage, func(e *doctor.RivalError) string {
			if len(e.Files) > 0 {
				return "take those lines out, or put this one behind them: export SSH_AUTH_SOCK=" + quote(e.Socket)
			}
			return "name the socket in ~/.ssh/config, which counts everywhere: vmux-doctor --setup"
		}),
		as(ExitUsage, func(e *doctor.SessionSockError) string {
			return "launchctl setenv SSH_AUTH_SOCK " + quote(e.Socket) + ", which lasts until you log out; or name the socket in ~/.ssh/config: vmux-doctor --setup"
		}),
		is(doctor.ErrNoKeys, ExitFailed, "make one on the phone, as in: vmux-signer key add work"),
		as(ExitFailed, func(*doctor.KeyCountError) string {
			return "remove keys on the phone, or name one for each host: IdentityFile and IdentitiesOnly in ~/.ssh/config"
		}),

		// service
		as(ExitFailed, func(e *doctor.ServiceError) string {
			switch e.Do {
			case doctor.ServiceEnable:
				return "systemctl --user enable --now vmux-agent.socket"
			case doctor.ServiceUnmask:
				return "systemctl --user unmask vmux-agent.service vmux-agent.socket"
			case doctor.ServiceOther:
				return "end the one that runs, or install it again where you want it: make install install-user"
			case doctor.ServiceSocket:
				return "write one path in both: systemctl --user edit vmux-agent.socket, or socket in vmux.toml"
			case doctor.LaunchSocket:
				return "write one path in both: SockPathName in " + quote(e.Path) + ", or socket in vmux.toml"
			case doctor.LaunchEnable:
				return fmt.Sprintf("launchctl enable gui/%d/app.vmux.agent", e.UID)
			case doctor.LaunchLoad:
				return fmt.Sprintf("launchctl bootstrap gui/%d %s", e.UID, quote(e.Path))
			}
			return "install it and have it started: make install install-user"
		}),

		// configuration and state
		is(doctor.ErrRefuses, ExitUsage, "look what it does: vmux-agent policy; vmux.toml(5) has the rules"),
		as(ExitFailed, func(e *doctor.ReloadError) string {
			return fmt.Sprintf("have the agent read it again: kill -HUP %d", e.PID)
		}),
		as(ExitFailed, func(e *doctor.KeyMismatchError) string {
			return fmt.Sprintf("put back the file that it started with, or begin with this one and pair again: kill %d; vmux-agent", e.PID)
		}),

		// phone and network
		as(ExitFailed, func(*doctor.ClockError) string { return clocks }),
		{ExitFailed, func(err error) (string, bool) {
			if errors.Is(err, syscall.EHOSTUNREACH) { // macOS without the right
				return "allow this terminal in System Settings, Privacy & Security, Local Network", errors.Is(err, dnssd.ErrUnavailable)
			}
			return "let UDP port 5353 through the firewall, or pair with a fixed address: vmux-pair --address HOST:PORT", errors.Is(err, dnssd.ErrUnavailable)
		}},
		as(ExitFailed, func(e *doctor.NoInterfaceError) string {
			if len(e.Tunnels) > 0 {
				return "leave the VPN, or pair with a fixed address: vmux-pair --address HOST:PORT"
			}
			return "join the phone's network, or pair with a fixed address: vmux-pair --address HOST:PORT"
		}),
		as(ExitFailed, func(*doctor.NotAdvertisedError) string {
			return "let it advertise itself (vmux-signer serve without --no-advertise), or pair with a fixed address: vmux-pair --address HOST:PORT"
		}),
		as(ExitFailed, func(e *doctor.IsolationError) string {
			return "leave the VPN, turn client isolation off, or pair with a fixed address: vmux-pair --address " + quote(e.Address)
		}),
		as(ExitFailed, func(e *doctor.LocalNetworkError) string {
			if e.MacOS && e.Agent {
				return "allow vmux-agent in System Settings, Privacy & Security, Local Network; then: launchctl kickstart -k gui/$(id -u)/app.vmux.agent"
			}
			if e.MacOS {
				return "allow this terminal in System Settings, Privacy & Security, Local Network"
			}
			return "see how it runs, and its log: systemctl --user status vmux-agent"
		}),

		as(ExitFailed, func(e *doctor.NearbyError) string {
			if errors.Is(e, transport.ErrNotAllowed) {
				return localNetwork
			}
			return "build it with make and Apple's compiler: xcode-select --install; or stay on the phone's network"
		}),

		// certificate and process
		as(ExitFailed, func(e *doctor.CertificateError) string {
			switch {
			case e.Drop != 0:
				return fmt.Sprintf("drop it and get another one: vmux-cert drop %d; vmux-cert", e.Drop)
			case e.Principal != "":
				return "get one for that account: vmux-cert --principal " + quote(e.Principal)
			case e.Clock:
				return clocks
			}
			return "get another one: vmux-cert"
		}),
		as(ExitFailed, func(e *doctor.OpenMemoryError) string { return restart(e.PID) }),
		as(ExitFailed, func(e *doctor.LogError) string {
			return fmt.Sprintf("let systemd run it, or send its log to a file: kill %d; vmux-agent 2>~/vmux-agent.log &", e.PID)
		}),

		// host
		as(ExitFailed, func(e *doctor.HostRefusedError) string {
			if e.Many {
				return "name one key for it: IdentityFile and IdentitiesOnly in ~/.ssh/config; or add a line there:"
			}
			return "add a line there:"
		}),
		of(doctor.ErrHostName, func(e *doctor.HostError) string {
			return "check the name, or give it a HostName in ~/.ssh/config: ssh -G " + quote(e.Host)
		}),
		of(doctor.ErrHostKeyChanged, func(e *doctor.HostError) string {
			return "ask who runs the server; if the new key is right, remove the old one: ssh-keygen -R " + quote(bareHost(e.Host))
		}),
		of(doctor.ErrHostKey, func(e *doctor.HostError) string {
			return "log in once by hand, and compare the fingerprint that ssh shows with the server's: ssh " + quote(e.Host)
		}),
		of(doctor.ErrHostSignature, func(*doctor.HostError) string {
			return "look at the phone, and in the agent's log for the reason; where it goes: vmux-doctor --only log"
		}),
		of(doctor.ErrHostUnreachable, func(e *doctor.HostError) string {
			return "look that it runs and that this network leads to it: ssh -v " + quote(e.Host)
		}),
	}
}

// of matches an error about a login of one kind.
func of(kind error, hint func(*doctor.HostError) string) row {
	return row{ExitFailed, func(err error) (string, bool) {
		e, ok := errors.AsType[*doctor.HostError](err)
		if !ok || !errors.Is(e, kind) {
			return "", false
		}
		return hint(e), true
	}}
}

// bareHost is the name of the server in USER@HOST.
func bareHost(destination string) string {
	return destination[strings.LastIndex(destination, "@")+1:]
}
