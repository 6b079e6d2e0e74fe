// SPDX-License-Identifier: BSD-3-Clause

//go:build nearby

package e2e

import (
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
