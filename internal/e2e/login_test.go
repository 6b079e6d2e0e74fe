// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// world is a device paired with a phone, whose keys a server accepts.
func world(t testing.TB, approve string, types ...string) (*host, *phone, *server) {
	t.Helper()
	return around(t, newPhone(t), approve, types...)
}

// asking is a world whose owner is asked.
func asking(t testing.TB) (*host, *phone, *server, *approver) {
	t.Helper()
	p := newPhone(t)
	owner := p.askpass()
	d, p, s := around(t, p, "askpass")
	return d, p, s, owner
}

func around(t testing.TB, p *phone, approve string, types ...string) (*host, *phone, *server) {
	t.Helper()
	for _, typ := range types {
		p.ok("vmux-signer", "key", "add", typ, "--type", typ)
	}
	p.serve("--approve", approve)
	d := newHost(t)
	pair(t, d, p)
	d.agent()
	return d, p, newServer(t, d.ok("ssh-add", "-L"))
}

func TestLogin(t *testing.T) {
	t.Parallel()
	d, p, s := world(t, "always")
	if out := d.ok("ssh-add", "-l"); !strings.Contains(out, "(ECDSA)") {
		t.Errorf("ssh-add -l: %s", out)
	}
	if r := s.login(d, "echo", "in"); r.exit != 0 || r.stdout != "in\n" {
		t.Fatalf("login: %v\n%s", r, s.log())
	}
	p.serving.wait(`"event":"request".*"outcome":"signed"`)

	// Without the phone: listing works, signing fails soon.
	p.serving.stop(syscall.SIGTERM)
	if out := d.ok("ssh-add", "-l"); !strings.Contains(out, "(ECDSA)") {
		t.Errorf("ssh-add -l without the phone: %s", out)
	}
	start := time.Now()
	if r := s.login(d, "true"); r.exit == 0 {
		t.Error("logged in without the phone")
	}
	if took := time.Since(start); took > 5*time.Second { // 3 s, and ssh's own time
		t.Errorf("the login failed after %v", took)
	}
}

// Every key that the phone has logs in (C01).
func TestThreat_C01_BothKinds(t *testing.T) {
	t.Parallel()
	d, p, _ := world(t, "always", "ed25519")
	for _, line := range strings.Split(strings.TrimSpace(d.ok("ssh-add", "-L")), "\n") {
		s := newServer(t, line+"\n")
		if r := s.login(d, "echo", "in"); r.exit != 0 || r.stdout != "in\n" {
			t.Errorf("login with %s: %v\n%s", line, r, s.log())
		}
	}
	if n := strings.Count(p.serving.output(), `"outcome":"signed"`); n != 2 {
		t.Errorf("%d signatures, not one for each key", n)
	}
}

// The owner's answer decides, and the prompt says for what.
func TestOwnerDecides(t *testing.T) {
	t.Parallel()
	d, _, s, owner := asking(t)

	login := d.spawn("ssh", s.args("echo", "in")...)
	prompt := owner.next()
	for _, want := range []string{"SSH Sign Request", "VERIFIED", s.fingerprint(), "CLAIMED", need(t, "ssh")} {
		if !strings.Contains(prompt.prompt, want) {
			t.Errorf("the prompt does not have %q:\n%s", want, prompt.prompt)
		}
	}
	prompt.approve()
	if exit := login.ended(); exit != 0 {
		t.Fatalf("approved login: exit %d\n%s", exit, login.output())
	}

	login = d.spawn("ssh", s.args("true")...)
	owner.next().deny()
	if exit := login.ended(); exit == 0 {
		t.Error("logged in though it was denied")
	}
	d.serving.wait(`outcome=denied|denied on the phone|denied by the owner`)
}

// A hundred listings finish while one prompt waits. A second login's prompt
// comes after it: the owner sees one dialog at a time.
func TestPendingPromptDelaysNobody(t *testing.T) {
	t.Parallel()
	d, _, s, owner := asking(t)
	first := d.spawn("ssh", s.args("echo", "first")...)
	waiting := owner.next()
	for range 100 {
		d.ok("ssh-add", "-l")
	}
	second := d.spawn("ssh", s.args("echo", "second")...)
	waiting.approve()
	if exit := first.ended(); exit != 0 {
		t.Errorf("first login: exit %d\n%s", exit, first.output())
	}
	owner.next().approve()
	if exit := second.ended(); exit != 0 {
		t.Errorf("second login: exit %d\n%s", exit, second.output())
	}
}

func TestHangUpWithdrawsThePrompt(t *testing.T) {
	t.Parallel()
	d, _, s, owner := asking(t)
	login := d.spawn("ssh", s.args("true")...)
	prompt := owner.next()
	login.stop(syscall.SIGKILL)
	prompt.withdrawn()
}

// The signer dies while it asks: that login fails, and the log says why. The
// next one works without restarting the agent. That it may return on another
// port is shown where it can advertise, over a wire.
func TestSignerDiesInMidRequest(t *testing.T) {
	t.Parallel()
	d, p, s, owner := asking(t)
	login := d.spawn("ssh", s.args("true")...)
	waiting := owner.next()
	p.serving.stop(syscall.SIGKILL)
	waiting.deny() // nobody is left to end the dialog
	if exit := login.ended(); exit == 0 {
		t.Error("logged in without an answer")
	}
	d.serving.wait(`outcome=failed reason=`)
	p.serveOn(p.address, "--no-advertise", "--approve", "always")
	if r := s.login(d, "echo", "in"); r.exit != 0 {
		t.Errorf("after the signer's return: %v\n%s", r, d.serving.output())
	}
}

func TestTwoAgentsOneSocket(t *testing.T) {
	t.Parallel()
	d := newHost(t)
	first := d.agent()
	r := d.run("vmux-agent")
	if r.exit != 1 || !strings.Contains(r.stderr, "error: ") || !strings.Contains(r.stderr, "hint: ") {
		t.Errorf("second agent: %v", r)
	}
	if r := d.run("ssh-add", "-l"); r.exit != 1 {
		t.Errorf("the first agent does not serve any more: %v", r)
	}
	if exit := first.stop(syscall.SIGTERM); exit != 0 {
		t.Errorf("first agent: exit %d", exit)
	}
	if _, err := os.Stat(d.socket()); err == nil {
		t.Error("the socket outlives its agent")
	}
}

func TestSocketOfKilledAgentIsTakenOver(t *testing.T) {
	t.Parallel()
	d := newHost(t)
	d.agent().stop(syscall.SIGKILL)
	if _, err := os.Stat(d.socket()); err != nil {
		t.Fatalf("the killed agent left no socket: %v", err)
	}
	d.agent()
	if r := d.run("ssh-add", "-l"); r.exit != 1 { // no keys
		t.Errorf("ssh-add -l: %v", r)
	}
}

// A running agent takes a new pairing up at once, and a forgotten phone away.
func TestAgentFollowsPairings(t *testing.T) {
	t.Parallel()
	p := newPhone(t)
	p.serve("--approve", "always")
	d := newHost(t)
	d.setenv("VMUX_CERTIFICATE_AFTER_PAIRING", "")
	d.agent()
	if r := d.run("ssh-add", "-l"); r.exit != 1 {
		t.Fatalf("before: %v", r)
	}
	pair(t, d, p)
	if out := d.ok("ssh-add", "-l"); !strings.Contains(out, "(ECDSA)") {
		t.Errorf("after pairing: %s", out)
	}
	// A finished pairing asks for a session certificate of the default validity.
	if out := d.ok("vmux-cert", "list"); !strings.Contains(out, "7h59m") && !strings.Contains(out, "8h left") {
		t.Errorf("after pairing: %s", out)
	}
	p.serving.wait(`"operation":"certificate".*"outcome":"signed"`)
	s := newServer(t, d.ok("ssh-add", "-L"))
	if r := s.login(d, "true"); r.exit != 0 {
		t.Errorf("login: %v", r)
	}
	d.ok("vmux-pair", "--forget", "Pocket")
	if r := d.run("ssh-add", "-l"); r.exit != 1 {
		t.Errorf("after forgetting: %v", r)
	}
	p.serving.wait(`"event":"disconnected"`)
	d.serving.wait(`phone forgotten`)
}

// vmux.toml can turn the first certificate off; and the owner can say no, which
// leaves the pairing as it is.
func TestPairingWithoutCertificate(t *testing.T) {
	t.Parallel()
	p := newPhone(t)
	owner := p.askpass()
	p.serve("--approve", "askpass")
	d := newHost(t)
	d.setenv("VMUX_CERTIFICATE_AFTER_PAIRING", "")
	d.agent()

	start := func() *process {
		pairing := d.spawn("vmux-pair", "--url", "--address", p.address)
		p.ok("vmux-signer", "pair", pairing.wait(`^vmux-pair://\S+`)[0])
		return pairing
	}
	pairing := start()
	prompt := owner.next()
	for _, want := range []string{"certificate", "8 h", "the pairing has finished"} {
		if !strings.Contains(prompt.prompt, want) {
			t.Errorf("the prompt does not have %q:\n%s", want, prompt.prompt)
		}
	}
	prompt.deny()
	if exit := pairing.ended(); exit != 0 || !strings.Contains(pairing.output(), "warning: no session certificate") {
		t.Errorf("a denied certificate: exit %d\n%s", exit, pairing.output())
	}
	if out := d.ok("vmux-pair", "--list"); !strings.Contains(out, "Pocket") {
		t.Errorf("the pairing is gone: %s", out)
	}
	if r := d.run("vmux-cert", "check"); r.exit != 2 {
		t.Errorf("a denied certificate: %v", r)
	}

	if err := os.MkdirAll(d.path(".config", "vmux"), 0o700); err != nil {
		t.Fatal(err)
	}
	d.write(".config/vmux/vmux.toml", "[certificate]\nafter-pairing = \"no\"\n", 0o600)
	d.ok("vmux-pair", "--forget", "Pocket")
	pairing = start()
	if exit := pairing.ended(); exit != 0 || strings.Contains(pairing.output(), "certificate") {
		t.Errorf("turned off: exit %d\n%s", exit, pairing.output())
	}
}

// A device that the phone forgot is cut off at once and told why.
func TestSignerForgets(t *testing.T) {
	t.Parallel()
	d, p, s := world(t, "always")
	if r := s.login(d, "true"); r.exit != 0 {
		t.Fatalf("login: %v", r)
	}
	var name string
	for _, line := range strings.Split(p.ok("vmux-signer", "devices"), "\n") {
		if name == "" {
			name = strings.Fields(line + " ")[0]
		}
	}
	p.ok("vmux-signer", "forget", name)
	p.serving.wait(`"event":"disconnected"`)
	if r := s.login(d, "true"); r.exit == 0 {
		t.Error("a forgotten device logged in")
	}
}
