// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"bytes"
	"context"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/transport"
)

// says is the server's statement that it has a session.
func (s *server) says(session []byte, forwarding bool) envelope.Bind {
	s.t.Helper()
	private, err := os.ReadFile(s.file("host"))
	if err != nil {
		s.t.Fatal(err)
	}
	key, err := ssh.ParsePrivateKey(private)
	if err != nil {
		s.t.Fatal(err)
	}
	sig, err := key.Sign(nil, session)
	if err != nil {
		s.t.Fatal(err)
	}
	return envelope.Bind{HostKey: key.PublicKey().Marshal(), SessionID: session, Signature: ssh.Marshal(sig), Forwarding: forwarding}
}

// T11: a device that lies about where a login goes. It has the agent and the
// link; servers and phone are honest. What the prompt says under VERIFIED is true
// of the signature, or it says that nothing is verified.
func TestThreat_T11_LyingDevice(t *testing.T) {
	t.Parallel()
	d, _, owner, link := relayed(t)
	servers := fleet(t, d, 2)
	real, friend := servers[0], servers[1]
	const name = "host01.example" // the friend's
	elsewhere := []byte(session("elsewhere", 1))
	trick := "\n\nVERIFIED\n  host key: " + friend.printOf() + "\r\x1b[2J"
	lies := []struct {
		name string
		lie  func(*envelope.Context)
		why  string // it is not verified, if the data does not say where it goes
	}{
		{"the truth", func(*envelope.Context) {}, "the login does not name its host key"},
		{"another name", func(c *envelope.Context) { c.Destination.HostNames = []string{name} }, "the login does not name its host key"},
		{"another host key", func(c *envelope.Context) {
			c.Destination.HostNames = []string{name}
			c.Destination.Binds[0].HostKey = friend.says(elsewhere, false).HostKey
		}, "statement 1 is not signed by its host"},
		{"a statement for another session", func(c *envelope.Context) {
			c.Destination.HostNames = []string{name}
			c.Destination.Binds = []envelope.Bind{friend.says(elsewhere, false)}
		}, "[^\n]*another session"},
		{"another session with this signature", func(c *envelope.Context) {
			c.Destination.HostNames = []string{name}
			bind := friend.says(elsewhere, false)
			bind.SessionID = c.Destination.Binds[0].SessionID
			c.Destination.Binds = []envelope.Bind{bind}
		}, "statement 1 is not signed by its host"},
		{"a statement for this session by a host of its own", func(c *envelope.Context) {
			c.Destination.HostNames = []string{name}
			c.Destination.Binds = []envelope.Bind{friend.says(c.Destination.Binds[0].SessionID, false)}
		}, "the login does not name its host key"},
		{"no statement", func(c *envelope.Context) { c.Destination.HostNames, c.Destination.Binds = []string{name}, nil },
			"no statement of the host came with the request"},
		{"nothing", func(c *envelope.Context) { c.Destination = nil }, "no statement of the host came with the request"},
		{"lines of its own", func(c *envelope.Context) {
			c.Device, c.Operation, c.Reason, c.WorkingDirectory = "x\n\nVERIFIED\n", trick, trick, trick
			c.Destination.HostNames = []string{trick, name}
			c.Processes = []envelope.Process{{PID: 1, Executable: trick}}
		}, "the login does not name its host key"},
	}
	hostKey, known := regexp.MustCompile(`(?m)^  host key: (.*)$`), regexp.MustCompile(`(?m)^  known: as .*$`)
	// judge fails the test unless the prompt has one VERIFIED half, with this about
	// the host key and nothing of the friend.
	judge := func(lie, want string, prompt ask) {
		t.Helper()
		verified, _ := prompt.halves()
		verified = known.ReplaceAllString(verified, "") // the owner approved lies, and they are told so
		all := hostKey.FindAllStringSubmatch(verified, -1)
		if len(all) != 1 || !regexp.MustCompile("^"+want).MatchString(all[0][1]) || strings.Contains(verified, friend.printOf()) || strings.Contains(verified, name) ||
			strings.Count("\n"+prompt.prompt, "\nVERIFIED\n") != 1 || strings.ContainsAny(prompt.prompt, "\r\x1b") {
			t.Errorf("%s: host key not %s in the prompt:\n%q", lie, want, prompt.prompt)
		}
	}

	key := parse(t, d.ok("ssh-add", "-L"))
	// A login that names none: whatever the device says proves nothing.
	for i, l := range lies {
		link.lies(func(q *envelope.SignRequest) { l.lie(&q.Context) })
		c, session, answer := d.client(), session("unnamed", i), make(chan error, 1)
		real.bind(c, session, false)
		go func() {
			_, err := c.Sign(key, loginData(session, key, nil))
			answer <- err
		}()
		prompt := owner.next()
		judge(l.name, "NOT VERIFIED: "+l.why, prompt)
		if verified, _ := prompt.halves(); strings.Contains(verified, real.printOf()) {
			t.Errorf("%s: a host key that is not proven:\n%s", l.name, prompt.prompt)
		}
		if i%4 == 3 { // nothing comes of it, but that the device is not held up
			prompt.approve()
		} else {
			prompt.deny()
		}
		soon(t, "answer", answer)
	}

	// The login of a real ssh names its host key, so no lie is of any use.
	for _, l := range lies {
		link.lies(func(q *envelope.SignRequest) { l.lie(&q.Context) })
		login := d.spawn("ssh", real.args("true")...)
		prompt := owner.next()
		judge(l.name, regexp.QuoteMeta(real.printOf()+" (ssh-ed25519)"), prompt)
		prompt.approve()
		login.succeeds()
	}
	if n := strings.Count(real.log(), "Accepted publickey"); n != len(lies) {
		t.Errorf("%d logins at the server, not %d", n, len(lies))
	}

	// With the friend's key in the data the prompt says so, and warns since the name
	// was another key's; the signature is of no use at the server that the device
	// meant.
	link.lies(func(q *envelope.SignRequest) {
		q.Data = bytes.ReplaceAll(q.Data, parse(t, real.key).Marshal(), parse(t, friend.key).Marshal())
	})
	login := d.spawn("ssh", real.args("true")...)
	prompt := owner.next()
	if verified, _ := prompt.halves(); !strings.Contains(verified, "\n  host key: "+friend.printOf()+" (") || !strings.HasPrefix(verified, "  WARNING: host00.example has another host key") {
		t.Errorf("the data names %s:\n%s", friend.printOf(), prompt.prompt)
	}
	prompt.approve()
	if exit := login.ended(); exit == 0 || strings.Count(real.log(), "Accepted publickey") != len(lies) {
		t.Errorf("logged in with a signature for another host: exit %d", exit)
	}
}

// N06: opaque data and certificates to be signed are refused by the agent, which
// does not ask the phone, and by the phone where an agent asks.
func TestThreat_N06_RefusedByEach(t *testing.T) {
	t.Parallel()
	p := newPhone(t)
	p.serve("--approve", "always") // nobody to say no
	d := newHost(t)
	pair(t, d, p)
	link := between(t, d, p)
	d.agent()
	public := d.write("key.pub", d.ok("ssh-add", "-L"), 0o600)
	d.ok("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", d.path("user"))
	programs := []struct {
		kind    string
		command []string
		builtIn string
	}{
		{"opaque", []string{"ssh-add", "-T", public}, "built in: opaque data"},
		{"certificate", []string{"ssh-keygen", "-q", "-U", "-s", public, "-I", "id", "-n", "root", d.path("user.pub")}, "built in: certificate"},
	}
	for _, c := range programs {
		if r := d.run(c.command[0], c.command[1:]...); r.exit == 0 {
			t.Errorf("%q: %v", c.command, r)
		}
		d.serving.wait(`level=WARN msg="sign request" outcome=refused reason="policy: ` + c.builtIn + `" kind=` + c.kind + ` `)
	}
	if n := len(link.requests()); n != 0 {
		t.Errorf("the phone was asked %d times", n)
	}

	// An owner who has the agent ask, and one whose agent is somebody else's.
	d.configure("[policy]\ndefault = \"ask\"\n[[policy.rule]]\naction = \"ask\"\nkind = [\"opaque\", \"certificate\"]\n")
	d.serving.again(`msg="configuration read again" rules=1 default=ask`)
	for _, c := range programs {
		if r := d.run(c.command[0], c.command[1:]...); r.exit == 0 {
			t.Errorf("%q: %v", c.command, r)
		}
		d.serving.wait(`outcome=denied reason="[^"]*the signer signs logins, SSHSIG and pam_ssh_agent_auth only[^"]*" kind=` + c.kind + ` `)
	}
	p.asked("denied", "denied")
	id, err := transport.NewIdentity(d.linkKey())
	if err != nil {
		t.Fatal(err)
	}
	l := (&raw{t, id}).open(p)
	for _, q := range link.requests() {
		q.CreatedAt = envelope.At(time.Now())
		if _, err := l.Call(context.Background(), transport.NewID(), &q); codeOf(err) != envelope.CodeDenied {
			t.Errorf("by the link key: %v", err)
		}
	}
	p.asked("denied", "denied", "denied", "denied")
	if strings.Contains(p.serving.output(), "approved without asking") {
		t.Errorf("the owner was asked:\n%s", p.serving.output())
	}
	if _, err := os.Stat(d.path("user-cert.pub")); err == nil {
		t.Error("a certificate was made")
	}
	// The same phone signs what can be shown.
	if _, err := d.client().Sign(parse(t, d.ok("ssh-add", "-L")), fileData("file", 1)); err != nil {
		t.Errorf("a file: %v", err)
	}
}
