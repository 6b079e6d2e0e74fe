// SPDX-License-Identifier: BSD-3-Clause

package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmux.app/toolkit/internal/doctor"
	"vmux.app/toolkit/internal/networks"
	"vmux.app/toolkit/internal/phone"
	"vmux.app/toolkit/internal/ptytest"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/transport"
	"vmux.app/toolkit/internal/transport/dnssd"
	"vmux.app/toolkit/internal/unixsock"
)

// The doctor's own errors have advice here, and what it wraps is advised about as ever.
func TestDoctorAdvice(t *testing.T) {
	t.Parallel()
	us := uint32(os.Geteuid())
	for _, c := range []struct {
		err  error
		hint string
	}{
		{fmt.Errorf("%w: panic", doctor.ErrCheck), "report it"},
		{&unixsock.OpenError{Path: "/a b", Mode: 0o666, Owner: us}, "chmod 600 '/a b'"},
		{&unixsock.OpenError{Path: "/s", Mode: 0o600, Owner: us + 1}, "a path of your own"},
		{&doctor.SilentError{PID: 7}, "kill -9 7"},
		{doctor.ErrSilent, "ps -u"},
		{doctor.ErrLocked, "ssh-add -X"},
		{&doctor.VersionError{PID: 7}, "kill 7"},
		{&doctor.LockError{Path: "/l", PID: 7}, "kill 7"},
		{&doctor.LockError{Path: "/l"}, "lsof /l"},
		{&doctor.AuthSockError{Socket: "/a b"}, "export SSH_AUTH_SOCK='/a b'"},
		{&doctor.IdentityAgentError{Socket: "/s"}, "write /s there"},
		{doctor.ErrNoPubkey, "pubkeyauthentication"},
		{doctor.ErrIdentitiesOnly, "ssh-add -L"},
		{doctor.ErrNoSSH, "install"},
		{&doctor.SSHVersionError{}, "update"},
		{&doctor.SSHConfigError{}, "ssh -G"},
		{&doctor.RivalError{Files: []string{"/f:1"}, Socket: "/s"}, "export SSH_AUTH_SOCK=/s"},
		{&doctor.RivalError{Session: "/x", Socket: "/s"}, "--setup"},
		{&doctor.SessionSockError{Socket: "/a b"}, "launchctl setenv SSH_AUTH_SOCK '/a b', "},
		{&doctor.ServiceError{Do: doctor.LaunchSocket, Path: "/a b"}, "SockPathName in '/a b'"},
		{&doctor.NearbyError{Err: networks.ErrNearby}, "build it with make"},
		{&doctor.NearbyError{Err: fmt.Errorf("%w: %w", networks.ErrNearby, transport.ErrNotAllowed)}, "Local Network"},
		{doctor.ErrNoKeys, "key add"},
		{&doctor.KeyCountError{}, "IdentitiesOnly"},
		{&doctor.ServiceError{Do: doctor.ServiceInstall}, "make install install-user"},
		{&doctor.ServiceError{Do: doctor.ServiceEnable}, "enable --now vmux-agent.socket"},
		{&doctor.ServiceError{Do: doctor.ServiceUnmask}, "unmask"},
		{&doctor.ServiceError{Do: doctor.ServiceOther}, "end the one that runs"},
		{&doctor.ServiceError{Do: doctor.ServiceSocket}, "one path in both"},
		{&doctor.ServiceError{Do: doctor.LaunchInstall}, "make install install-user"},
		{&doctor.ServiceError{Do: doctor.LaunchEnable, UID: 501}, "launchctl enable gui/501/app.vmux.agent"},
		{&doctor.ServiceError{Do: doctor.LaunchLoad, UID: 501, Path: "/p q"}, "launchctl bootstrap gui/501 '/p q'"},
		{doctor.ErrRefuses, "vmux-agent policy"},
		{&doctor.ReloadError{PID: 7}, "kill -HUP 7"},
		{&doctor.KeyMismatchError{PID: 7}, "pair again: kill 7"},
		{&store.KeyError{Path: "/k", Err: fs.ErrNotExist}, "start the agent again"},
		{&doctor.ClockError{}, "date -u"},
		{fmt.Errorf("%w: %w", dnssd.ErrUnavailable, syscall.EPERM), "firewall"},
		{fmt.Errorf("%w: %w", dnssd.ErrUnavailable, syscall.EHOSTUNREACH), "Local Network"},
		{&doctor.NoInterfaceError{}, "join the phone's network"},
		{&doctor.NoInterfaceError{Tunnels: []string{"tun0"}}, "leave the VPN"},
		{&doctor.NotAdvertisedError{}, "--no-advertise"},
		{&doctor.IsolationError{Address: "192.0.2.1:1"}, "vmux-pair --address 192.0.2.1:1"},
		{&doctor.LocalNetworkError{MacOS: true, Agent: true}, "allow vmux-agent"},
		{&doctor.LocalNetworkError{MacOS: true}, "allow this terminal"},
		{&doctor.LocalNetworkError{Agent: true}, "systemctl --user status"},
		{&doctor.CertificateError{Drop: 9}, "vmux-cert drop 9"},
		{&doctor.CertificateError{Principal: "me"}, "vmux-cert --principal me"},
		{&doctor.CertificateError{Clock: true}, "date -u"},
		{&doctor.CertificateError{}, "get another one: vmux-cert"},
		{&doctor.OpenMemoryError{PID: 7}, "kill 7"},
		{&doctor.LogError{PID: 7}, "vmux-agent.log"},
		{&doctor.HostRefusedError{}, "add a line there"},
		{&doctor.HostRefusedError{Many: true}, "IdentitiesOnly"},
		{&doctor.HostError{Host: "me@h", Kind: doctor.ErrHostName}, "ssh -G me@h"},
		{&doctor.HostError{Host: "me@h", Kind: doctor.ErrHostKeyChanged}, "ssh-keygen -R h"},
		{&doctor.HostError{Host: "me@h", Kind: doctor.ErrHostKey}, "ssh me@h"},
		{&doctor.HostError{Host: "me@h", Kind: doctor.ErrHostSignature}, "vmux-doctor --only log"},
		{&doctor.HostError{Host: "me@h", Kind: doctor.ErrHostUnreachable}, "ssh -v me@h"},
		{&doctor.HostError{Host: "me@h", Kind: phone.ErrTimeout}, "look at the phone"},
		{&doctor.LinkError{Err: transport.ErrWrongPeer}, "check the address"},
		{&doctor.LinkError{Err: transport.ErrRefused}, "pair again"},
		{&doctor.LinkError{Err: phone.ErrUnreachable}, "wake the phone"},
	} {
		if _, hint := Advice(fmt.Errorf("wrapped: %w", c.err)); !strings.Contains(hint, c.hint) {
			t.Errorf("%T %v: %q, not %q", c.err, c.err, hint, c.hint)
		}
	}
	if _, hint := Advice(errors.New("odd")); hint != "" {
		t.Errorf("whatever: %q", hint)
	}
	// Their words, where they are made up of parts.
	for _, c := range []struct {
		err  error
		want string
	}{
		{&doctor.ClockError{Phone: "P", Skew: -90 * time.Second}, "P's clock is 1m30s behind"},
		{&doctor.NotAdvertisedError{Phone: "P", Others: 2}, "as 2 others do in this network"},
		{&doctor.HostRefusedError{Host: "h", Offered: "1 key", Other: "/f"}, "h refused the agent's keys and took /f"},
	} {
		if !strings.Contains(c.err.Error(), c.want) {
			t.Errorf("%q, not %q", c.err, c.want)
		}
	}
}

// Only a terminal has a width, and colours if nothing is against them.
func TestScreen(t *testing.T) { // not parallel: the environment
	pty := ptytest.Open(t)
	for _, tt := range []struct {
		noColor, term string
		colour        bool
	}{{"", "xterm", true}, {"1", "xterm", false}, {"", "dumb", false}} {
		t.Setenv("NO_COLOR", tt.noColor)
		t.Setenv("TERM", tt.term)
		if width, colour := newTUI(nil, pty.TTY, pty.TTY, "x", false, false).Screen(); width != terminalWidth+1 || colour != tt.colour {
			t.Errorf("%+v: %d, %v", tt, width, colour)
		}
		if width, colour := newTUI(nil, &bytes.Buffer{}, pty.TTY, "x", false, false).Screen(); width != 0 || colour {
			t.Errorf("no terminal: %d, %v", width, colour)
		}
	}
}
