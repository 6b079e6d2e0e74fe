// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// configure writes the device's vmux.toml.
func (h *host) configure(text string) {
	h.t.Helper()
	path := h.path(".config", "vmux", "vmux.toml")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		h.t.Fatal(err)
	}
	// At once, as an editor does it: the agent may be reading.
	h.write("vmux.toml.new", text, 0o600)
	if err := os.Rename(h.path("vmux.toml.new"), path); err != nil {
		h.t.Fatal(err)
	}
}

// again has the agent read its configuration and waits until it says what
// became of it.
func (p *process) again(want string) {
	p.t.Helper()
	before := strings.Count(p.output(), want)
	p.cmd.Process.Signal(syscall.SIGHUP)
	eventually(p.t, want, func() bool { return strings.Count(p.output(), want) > before })
}

// A running agent takes up a changed policy at SIGHUP, for its own socket and for
// the sockets of jobs, and keeps the former one when the new one is wrong.
func TestPolicyIsReadAgain(t *testing.T) {
	t.Parallel()
	p := newPhone(t)
	p.serve("--approve", "always")
	d := newHost(t)
	pair(t, d, p)
	agent := d.agent()
	s := newServer(t, d.ok("ssh-add", "-L"))
	login := func(want bool) {
		t.Helper()
		if r := s.login(d, "true"); (r.exit == 0) != want {
			t.Errorf("logged in is %v\n%v\n%s", r.exit == 0, r, agent.output())
		}
	}
	login(true)

	const refuse = "[policy]\ndefault = \"ask\"\n[[policy.rule]]\nkind = \"login\"\naction = \"refuse\"\n"
	d.configure(refuse)
	login(true) // nobody has said that it changed
	agent.again(`msg="configuration read again" rules=1 default=ask`)
	login(false)
	if !strings.Contains(agent.output(), `reason="policy: rule 1 (line 3)"`) {
		t.Errorf("the log does not name the rule:\n%s", agent.output())
	}

	d.configure("[policy]\ndefault = \"aks\"\n")
	agent.again(`msg="configuration not taken up, the former one stays"`)
	agent.wait(`former one stays.*vmux.toml:2: .*aks.*wanted=.*ask`)
	login(false)

	// A file that has gone, or is empty while an editor writes, is no way out.
	for _, damage := range []func(path string) error{func(path string) error { return os.Truncate(path, 0) }, os.Remove} {
		if err := damage(d.path(".config", "vmux", "vmux.toml")); err != nil {
			t.Fatal(err)
		}
		agent.again("former one stays")
		agent.wait(`former one stays.*is gone or empty; for the defaults, start the agent again`)
		login(false)
	}

	// Whatever else has changed waits for the next start, and is named.
	d.configure("name = \"other\"\ndeadline = \"30s\"\n")
	agent.again(`msg="configuration read again" rules=0 default=ask`)
	agent.wait(`these settings count from the next start on" settings="name deadline"`)
	login(true)

	if exit := agent.stop(syscall.SIGTERM); exit != 0 {
		t.Errorf("exit %d", exit)
	}
}

// From the moment that it says it serves, SIGHUP is for reading.
func TestHangupAtOnce(t *testing.T) {
	t.Parallel()
	d := newHost(t)
	for range 5 {
		agent := d.spawn("vmux-agent", "--json")
		agent.wait(`"event":"serving"`)
		agent.cmd.Process.Signal(syscall.SIGHUP)
		agent.wait("configuration read again")
		agent.stop(syscall.SIGTERM)
	}
}

// The policy of a job's socket is the same, also after it was changed.
func TestPolicyOfAJob(t *testing.T) {
	t.Parallel()
	p := newPhone(t)
	p.serve("--approve", "always")
	d := newHost(t)
	pair(t, d, p)
	agent := d.agent()
	job := d.spawn("vmux-cert", "run", "--validity", "5m", "--", "sh", "-c", `
		echo "data" >f; ssh-add -L >key.pub
		try() { rm -f f.sig; ssh-keygen -q -Y sign -n "$1" -f key.pub f && echo "signed $1" || echo "refused $1"; }
		try first; read -r _ <go; try second`)
	if err := syscall.Mkfifo(d.path("go"), 0o600); err != nil {
		t.Fatal(err)
	}
	job.wait("^signed first$")
	d.configure("[policy]\ndefault = \"ask\"\n[[policy.rule]]\nkind = \"sshsig:second\"\naction = \"refuse\"\n")
	agent.again("configuration read again")
	go0, err := os.OpenFile(d.path("go"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer go0.Close()
	if _, err := go0.WriteString("on\n"); err != nil {
		t.Fatal(err)
	}
	job.wait("^refused second$")
	job.ended()
}

// A job's logins are held against rules by host, too.
func TestPolicyOfAJobKnowsHosts(t *testing.T) {
	t.Parallel()
	p := newPhone(t)
	p.serve("--approve", "always")
	d := newHost(t)
	pair(t, d, p)
	d.configure("[policy]\ndefault = \"ask\"\n[[policy.rule]]\nhost = \"prod\"\naction = \"refuse\"\n")
	agent := d.agent()
	s := newServer(t, "cert-authority "+d.ok("vmux-cert", "ca"))
	job := append([]string{"run", "--validity", "5m", "--", "ssh"}, s.args("true")...)
	if r := d.run("vmux-cert", job...); r.exit != 0 {
		t.Errorf("to a host without a name: %v", r)
	}
	d.write(".ssh/known_hosts", "prod "+s.key+"\n", 0o600)
	if r := d.run("vmux-cert", job...); r.exit != 255 {
		t.Errorf("to a host that is refused: %v", r)
	}
	agent.wait(`outcome=refused reason="policy: rule 1 \(line 3\)" kind=login`)
}

// An agent that was started in a terminal ends with it, though SIGHUP is for
// reading the configuration otherwise.
func TestAgentEndsWithItsTerminal(t *testing.T) {
	t.Parallel()
	d := newHost(t)
	c := d.console("vmux-agent")
	c.Expect("msg=serving")
	c.cmd.Process.Signal(syscall.SIGHUP)
	c.Expect("configuration read again")
	c.HangUp()
	c.ended()
	if _, err := os.Stat(d.socket()); err == nil {
		t.Error("its socket is left")
	}
}
