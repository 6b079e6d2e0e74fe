// SPDX-License-Identifier: BSD-3-Clause

//go:build nearby

package e2e

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The device and the phone share no network but the one that MultipeerConnectivity makes, or here a stand-in for it: they
// pair, sign, lose one another and find one another again.
func TestNearby(t *testing.T) {
	t.Parallel()
	air := t.TempDir()
	p := newPhone(t)
	p.setenv("FAKE_MPC_DIR", air)
	p.serve("--nearby", "--approve", "always")
	d := newHost(t)
	d.setenv("FAKE_MPC_DIR", air)

	pairing := d.spawn("vmux-pair", "--url")
	url := pairing.wait(`^vmux-pair://\S+`)[0]
	p.ok("vmux-signer", "pair", url)
	if exit := pairing.ended(); exit != 0 {
		t.Fatalf("vmux-pair: exit %d\n%s", exit, pairing.output())
	}
	if out := d.ok("vmux-pair", "--list", "--json"); strings.Contains(out, "mpc:") {
		t.Errorf("an address that means nothing later is remembered: %s", out)
	}
	agent := d.agent()
	s := newServer(t, d.ok("ssh-add", "-L"))
	login := func() {
		t.Helper()
		if r := s.login(d, "echo", "in"); r.exit != 0 || r.stdout != "in\n" {
			t.Fatalf("login: %v\n%s", r, s.log())
		}
	}
	login()
	agent.wait(`msg=connected .*address="?mpc:`)
	p.serving.wait(`"event":"request".*"outcome":"signed"`)

	// A phone that dies says no goodbye, and comes back under another name.
	p.serving.stop(syscall.SIGKILL)
	agent.wait(`msg=disconnected`)
	if r := s.login(d, "true"); r.exit == 0 {
		t.Error("logged in without the phone")
	}
	p.serve("--nearby", "--approve", "always")
	login()
	if exit := agent.stop(syscall.SIGTERM); exit != 0 {
		t.Errorf("vmux-agent: exit %d", exit)
	}
	if exit := p.serving.stop(syscall.SIGTERM); exit != 0 {
		t.Errorf("vmux-signer: exit %d", exit)
	}
}

// What macOS refuses is said with what to do about it, by the device when it finds nobody else, and by the signer, which goes on.
func TestNearbyRefused(t *testing.T) {
	t.Parallel()
	const reason, hint = "the system does not let this program into the local network: ", "\nhint: allow this program, or the terminal that it runs in, in System Settings, "
	p := newPhone(t)
	p.setenv("FAKE_MPC_DIR", t.TempDir())
	p.setenv("FAKE_MPC_NOADVERTISE", "-72008")
	p.serve("--nearby", "--approve", "always")
	p.serving.wait("^error: MultipeerConnectivity cannot be used: " + reason)
	p.serving.wait(hint[1:])

	d := newHost(t)
	d.setenv("FAKE_MPC_DIR", t.TempDir())
	d.setenv("FAKE_MPC_NOBROWSE", "-65570")
	r := d.run("vmux-pair", "--url", "--timeout", "1s")
	if r.exit != 4 || !strings.Contains(r.stderr, "error: no phone ") || !strings.Contains(r.stderr, reason) || !strings.Contains(r.stderr, hint) {
		t.Errorf("vmux-pair: %v", r)
	}
	pair(t, d, p) // on the local network, for which nothing is missing
}

// Programs that were built without what makes calls to Objective-C safe make none, say so, and work on the local network.
func TestNearbyUnsafe(t *testing.T) {
	t.Parallel()
	unsafe := os.Getenv("VMUX_E2E_UNSAFE")
	if unsafe == "" {
		t.Fatal("VMUX_E2E_UNSAFE does not say where they are")
	}
	const why = "this program was built without -gcflags=all=-d="
	p := newPhone(t)
	if r := p.run(unsafe+"/vmux-signer", "serve", "--listen", "127.0.0.1:0", "--no-advertise", "--nearby", "--approve", "always"); r.exit != 2 ||
		!strings.Contains(r.stderr, "\nerror: MultipeerConnectivity cannot be used: "+why) || !strings.Contains(r.stderr, "\nhint: leave --nearby out; ") {
		t.Errorf("vmux-signer: %v", r)
	}
	p.serve("--approve", "always")

	d := newHost(t)
	d.setenv("FAKE_MPC_DIR", t.TempDir())
	const only = "phones are looked for on the local network only"
	pairing := d.spawn(unsafe+"/vmux-pair", "--url", "--address", p.address)
	pairing.wait("^warning: " + only + " reason=" + why + ".*build it with make")
	p.ok("vmux-signer", "pair", pairing.wait(`^vmux-pair://\S+`)[0])
	if exit := pairing.ended(); exit != 0 {
		t.Fatalf("vmux-pair: exit %d\n%s", exit, pairing.output())
	}
	agent := d.spawn(unsafe + "/vmux-agent")
	agent.wait(`level=WARN msg="` + only + `" reason="` + why)
	agent.wait("msg=serving")
	s := newServer(t, d.ok("ssh-add", "-L"))
	if r := s.login(d, "echo", "in"); r.exit != 0 || r.stdout != "in\n" {
		t.Errorf("login: %v\n%s", r, s.log())
	}
}

// launched is a host whose agent finds the sockets that launchd has, or here a stand-in for it: one that listens.
func launched(t *testing.T) *host {
	t.Helper()
	h := newHost(t)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: h.socket(), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	f, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	h.setenv("FAKE_LAUNCHD", "Listeners 3 1")
	h.start = func(c *exec.Cmd) error {
		if filepath.Base(c.Path) == "vmux-agent" {
			c.ExtraFiles = []*os.File{f}
		}
		return c.Start()
	}
	return h
}

// The agent serves what launchd listens on.
func TestNearbyLaunchd(t *testing.T) {
	t.Parallel()
	h := launched(t)
	// A client that is there before the agent waits for it.
	client := h.spawn("ssh-add", "-l")
	h.configure("socket = \"/nonexistent/elsewhere.sock\"\n")
	agent := h.agent()
	if exit := client.ended(); exit != 1 || !strings.Contains(client.output(), "The agent has no identities.") {
		t.Errorf("ssh-add: exit %d\n%s", exit, client.output())
	}
	if !strings.Contains(agent.output(), "socket="+h.socket()) {
		t.Errorf("serves elsewhere:\n%s", agent.output())
	}
	if exit := agent.stop(syscall.SIGTERM); exit != 0 {
		t.Errorf("vmux-agent: exit %d", exit)
	}
	// The file is launchd's, and so is a lock, which it does not need.
	if _, err := os.Lstat(h.socket()); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(h.socket() + ".lock"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("lock: %v", err)
	}
}

// launchd would have clients wait until the configuration is mended.
func TestNearbyLaunchdTurnsAway(t *testing.T) {
	t.Parallel()
	h := launched(t)
	early := h.spawn("ssh-add", "-l")
	h.configure("socket = 7\n")
	agent := h.spawn("vmux-agent")
	agent.wait(`level=ERROR msg="not serving" reason=.*vmux.toml.* hint=`)
	for _, client := range []*process{early, h.spawn("ssh-add", "-l")} {
		if exit := client.ended(); exit == 0 || strings.Contains(client.output(), "no identities") {
			t.Errorf("ssh-add: exit %d\n%s", exit, client.output())
		}
	}
	if exit := agent.stop(syscall.SIGTERM); exit != 2 {
		t.Errorf("vmux-agent: exit %d", exit)
	}
}
