// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// The ways on which a login reaches the agent, each with real ssh and sshd, and
// what the owner is told of it.

// travels is a device whose owner is asked, and n servers that take its key.
func travels(t *testing.T, n int) (*host, *phone, *approver, []*server) {
	t.Helper()
	d, p, s, owner := asking(t)
	servers := []*server{s}
	for len(servers) < n {
		servers = append(servers, newServer(t, d.ok("ssh-add", "-L")))
	}
	var known []string
	for i, s := range servers {
		s.called(fmt.Sprintf("server%d.example.org", i+1))
		known = append(known, s.alias+" "+s.key)
	}
	d.known(known...)
	return d, p, owner, servers
}

// from is an ssh command line for a server, to be run here or on another one.
func (s *server) from(options []string, command string) []string {
	s.t.Helper()
	return append([]string{need(s.t, "ssh")}, append(options, s.args(command)...)...)
}

// to fails the test unless the prompt proves a login to s, by a client that runs
// as program on the device.
func (k ask) to(s *server, program string) {
	k.a.t.Helper()
	k.says([]string{"operation: log in as " + me(k.a.t), "host key: " + s.fingerprint() + " (ssh-ed25519)\n"}, []string{"process: " + program + " ("})
}

// direct fails the test when the prompt speaks of forwarding.
func (k ask) direct() {
	k.a.t.Helper()
	if strings.Contains(k.prompt, "forwarded") {
		k.a.t.Errorf("the prompt says forwarded:\n%s", k.prompt)
	}
}

// through fails the test unless the prompt proves that the request was forwarded
// through these servers, in this order.
func (k ask) through(hops ...*server) {
	k.a.t.Helper()
	var prints []string
	for _, h := range hops {
		prints = append(prints, h.fingerprint())
	}
	count := "1 host"
	if len(hops) > 1 {
		count = fmt.Sprintf("%d hosts", len(hops))
	}
	k.says([]string{"forwarded: through " + count + ": " + strings.Join(prints, ", ") + "\n"}, nil)
}

// unproven fails the test unless the prompt says why nobody knows where the
// login goes, and names no host.
func (k ask) unproven(why, program string) {
	k.a.t.Helper()
	k.says([]string{"operation: log in as " + me(k.a.t), "host key: NOT VERIFIED: " + why + "\n"}, []string{"process: " + program + " ("})
	if !strings.Contains(k.prompt, "→ unknown host\n") || strings.Contains(k.prompt, "example.org") {
		k.a.t.Errorf("the prompt names a host:\n%s", k.prompt)
	}
	if v, _ := k.halves(); strings.Count(v, "SHA256:") != 1 { // the key's own
		k.a.t.Errorf("VERIFIED has a host's fingerprint:\n%s", k.prompt)
	}
}

// names fails the test unless the prompt claims that known_hosts has s under
// the name of the server with this number.
func (k ask) names(n int) {
	k.a.t.Helper()
	name := fmt.Sprintf("server%d.example.org", n)
	if !strings.Contains(k.prompt, "→ "+name+" (claimed)\n") {
		k.a.t.Errorf("the heading does not name %s:\n%s", name, k.prompt)
	}
	k.says(nil, []string{"host: " + name + "\n"})
}

// forwards are how many of the signed requests the agent took for forwarded.
func (h *host) forwards() (forwarded, all int) {
	for _, line := range strings.Split(h.serving.output(), "\n") {
		if strings.Contains(line, `msg="sign request" outcome=signed`) {
			all++
			if strings.Contains(line, " forwarded=true") {
				forwarded++
			}
		}
	}
	return forwarded, all
}

func (h *host) forwarded(forwarded, all int) {
	h.t.Helper()
	eventually(h.t, "the agent's log", func() bool { _, n := h.forwards(); return n >= all })
	if f, a := h.forwards(); f != forwarded || a != all {
		h.t.Errorf("%d of %d requests are forwarded, not %d of %d\n%s", f, a, forwarded, all, h.serving.output())
	}
}

func TestRouteDirect(t *testing.T) {
	t.Parallel()
	d, p, owner, s := travels(t, 2)
	for i, s := range s {
		for _, options := range [][]string{nil, {"-A"}} { // forwarding changes nothing about the login itself
			login := d.spawn("ssh", append(options, s.args("echo", "in")...)...)
			prompt := owner.next()
			prompt.to(s, need(t, "ssh"))
			prompt.direct()
			prompt.names(i + 1)
			prompt.approve()
			login.succeeds()
			login.wait(`^in$`)
		}
	}
	p.asked("signed", "signed", "signed", "signed")
	d.forwarded(0, 4)
}

// Through one hop: the prompt proves the hop and the server behind it.
func TestThreat_N03_OneHop(t *testing.T) {
	t.Parallel()
	d, p, owner, s := travels(t, 2)
	hop, far := s[0], s[1]
	onward := quoted(far.from(nil, "echo far"))
	login := d.spawn("ssh", hop.from([]string{"-A"}, onward)[1:]...)
	prompt := owner.next()
	prompt.to(hop, need(t, "ssh"))
	prompt.direct()
	prompt.names(1)
	prompt.approve()
	prompt = owner.next()
	prompt.to(far, need(t, "ssh"))
	prompt.through(hop)
	prompt.names(2)
	prompt.approve()
	login.succeeds()
	login.wait(`^far$`)
	p.asked("signed", "signed")
	d.forwarded(1, 2)
	d.serving.wait(`outcome=signed .*host=` + regexp.QuoteMeta(far.fingerprint()) + ` .*forwarded=true`)

	// Said no to the second: that is all that the far side gets.
	login = d.spawn("ssh", hop.from([]string{"-A"}, onward)[1:]...)
	owner.next().approve()
	owner.next().deny()
	if exit := login.ended(); exit == 0 {
		t.Error("logged in though it was denied")
	}
	p.asked("signed", "signed", "signed", "denied")
	if n := strings.Count(far.log(), "Accepted publickey"); n != 1 {
		t.Errorf("%d logins, not 1:\n%s", n, far.log())
	}

	// vmux's own requests are not for the far side.
	login = d.spawn("ssh", hop.from([]string{"-A"}, d.ownRequest())[1:]...)
	owner.next().approve()
	if exit := login.ended(); exit != 3 || !strings.Contains(login.output(), "error: ") {
		t.Errorf("vmux-cert list on the far side: exit %d\n%s", exit, login.output())
	}
}

// ownRequest is a command for a far side that asks the forwarded agent for what
// only vmux's commands on the device may ask.
func (h *host) ownRequest() string {
	return quoted([]string{"env", "HOME=" + h.home, bin(h.t, "vmux-cert"), "list"}) + ` --socket "$SSH_AUTH_SOCK"`
}

// Through two hops, which the prompt names in their order.
func TestThreat_N03_TwoHops(t *testing.T) {
	t.Parallel()
	d, p, owner, s := travels(t, 3)
	one, two, far := s[0], s[1], s[2]
	second := quoted(two.from([]string{"-A"}, quoted(far.from(nil, "echo far"))))
	login := d.spawn("ssh", one.from([]string{"-A"}, second)[1:]...)
	for i, want := range []struct {
		to   *server
		hops []*server
	}{{one, nil}, {two, []*server{one}}, {far, []*server{one, two}}} {
		prompt := owner.next()
		prompt.to(want.to, need(t, "ssh"))
		prompt.names(i + 1)
		if want.hops == nil {
			prompt.direct()
		} else {
			prompt.through(want.hops...)
		}
		prompt.approve()
	}
	login.succeeds()
	login.wait(`^far$`)
	p.asked("signed", "signed", "signed")
	d.forwarded(2, 3)
}

// By way of a jump host: two logins of the device itself, so neither is
// forwarded, and the jump host has no say in the second one.
func TestRouteProxyJump(t *testing.T) {
	t.Parallel()
	d, p, owner, s := travels(t, 2)
	jump, far := s[0], s[1]
	file := d.write("config", "Host jump\n"+settings(jump.args())+"Host far\n"+settings(append(far.overTCP(), far.args()...)), 0o600)
	login := d.spawn("ssh", "-F", file, "-J", me(t)+"@jump", me(t)+"@far", "echo", "in")
	for i, s := range s {
		prompt := owner.next()
		prompt.to(s, need(t, "ssh"))
		prompt.direct()
		prompt.names(i + 1)
		prompt.approve()
	}
	login.succeeds()
	login.wait(`^in$`)
	p.asked("signed", "signed")
	d.forwarded(0, 2)
	for _, s := range s {
		if n := strings.Count(s.log(), "Accepted publickey"); n != 1 {
			t.Errorf("%d logins, not 1:\n%s", n, s.log())
		}
	}
}

// settings are the lines of ssh_config(5) that options of a command line mean.
func settings(options []string) string {
	var b strings.Builder
	for i := 0; i+1 < len(options); i++ {
		switch key, value, _ := strings.Cut(options[i+1], "="); options[i] {
		case "-o":
			fmt.Fprintf(&b, "\t%s %s\n", key, value)
		case "-p":
			fmt.Fprintf(&b, "\tPort %s\n", key)
		}
	}
	return b.String()
}

// What is said of a login that nobody vouches for.
const (
	noStatement = "no statement of the host came with the request"
	goesOn      = "the last host forwards without saying where to"
)

// oldClient logs in at s with the keys of the agent at socket, as clients do
// that know neither session-bind nor hostbound: by x/crypto, in this process. The
// login goes on while the test answers the prompt; what is returned waits for it.
func (s *server) oldClient(t *testing.T, socket string) func() *ssh.Client {
	t.Helper()
	var d net.Dialer
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	keys, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	options := s.overTCP()
	address := net.JoinHostPort("127.0.0.1", options[len(options)-1])
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	type login struct {
		*ssh.Client
		error
	}
	done, ended := make(chan login, 1), make(chan struct{})
	t.Cleanup(func() {
		keys.Close()
		conn.Close()
		<-ended
	})
	config := &ssh.ClientConfig{
		User:            me(t),
		Auth:            []ssh.AuthMethod{ssh.PublicKeysCallback(agent.NewClient(keys).Signers)},
		HostKeyCallback: ssh.FixedHostKey(parse(t, s.key)),
	}
	go func() {
		defer close(ended)
		c, channels, requests, err := ssh.NewClientConn(conn, address, config)
		if err != nil {
			done <- login{error: err}
			return
		}
		done <- login{Client: ssh.NewClient(c, channels, requests)}
	}()
	return func() *ssh.Client {
		t.Helper()
		l := soon(t, "login", done)
		if l.error != nil {
			t.Fatalf("login: %v\n%s", l.error, s.log())
		}
		return l.Client
	}
}

// prints fails the test unless a command on the server prints this and no more
// on standard output.
func prints(t *testing.T, c *ssh.Client, command, want string) {
	t.Helper()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if out, err := s.Output(command); err != nil || string(out) != want {
		t.Errorf("%s: %q (%v), not %q", command, out, err, want)
	}
}

// self is the program that this test is, to the agent a client like any other.
func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// A client that does not bind logs in, to nobody knows where.
func TestRouteNeverBinds(t *testing.T) {
	t.Parallel()
	d, p, owner, s := travels(t, 1)
	wait := s[0].oldClient(t, d.socket())
	prompt := owner.next()
	prompt.unproven(noStatement, self(t))
	prompt.direct()
	prompt.approve()
	prints(t, wait(), "echo in", "in\n")
	p.asked("signed")
	d.forwarded(0, 1)
	if !strings.Contains(s[0].log(), "Accepted publickey") {
		t.Errorf("sshd's log:\n%s", s[0].log())
	}
}

// stay logs in at hop with ssh -A, and gives the socket of the agent there. The
// login lasts as long as the test.
func (h *host) stay(hop *server, answer func()) (socket string) {
	h.t.Helper()
	c := h.cmd(context.Background(), "ssh", hop.from([]string{"-A"}, `echo "$SSH_AUTH_SOCK"; exec cat`)[1:]...)
	in, err := c.StdinPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := h.start(c); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		in.Close() // which ends cat
		if err := c.Wait(); err != nil {
			h.t.Errorf("the login at the hop: %v\n%s", err, hop.log())
		}
	})
	answer()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		h.t.Fatalf("the login at the hop: %q, %v\n%s", line, err, hop.log())
	}
	return strings.TrimSpace(line)
}

// Behind a hop a client that does not bind: it is forwarded, through a hop that
// may be the one that bound, to nobody knows where.
func TestThreat_N03_FarSideNeverBinds(t *testing.T) {
	t.Parallel()
	d, p, owner, s := travels(t, 2)
	hop, far := s[0], s[1]
	socket := d.stay(hop, func() {
		prompt := owner.next()
		prompt.to(hop, need(t, "ssh"))
		prompt.direct()
		prompt.approve()
	})
	if socket == "" || socket == d.socket() {
		t.Fatalf("the agent's socket there is %q", socket)
	}
	wait := far.oldClient(t, socket)
	prompt := owner.next()
	prompt.unproven(goesOn, need(t, "ssh"))
	// The hop has not said that this login came from it.
	forwarded := "forwarded: through 1 host: " + hop.fingerprint() + "\n"
	prompt.says(nil, []string{forwarded})
	if v, _ := prompt.halves(); strings.Contains(v, "forwarded:") {
		t.Errorf("VERIFIED has the hop:\n%s", prompt.prompt)
	}
	prompt.approve()
	prints(t, wait(), "echo far", "far\n")
	p.asked("signed", "signed")
	d.forwarded(1, 2)
}

// A client that forwards the agent and does not bind: the far side's ssh binds as
// if it were the first one. What connects to the agent is no ssh, so it counts as
// forwarded, and vmux's own requests are refused. The server behind is proven all
// the same.
func TestThreat_N03_ForwarderNeverBinds(t *testing.T) {
	t.Parallel()
	d, p, owner, s := travels(t, 2)
	hop, far := s[0], s[1]
	wait := hop.oldClient(t, d.socket())
	prompt := owner.next()
	prompt.unproven(noStatement, self(t))
	prompt.direct()
	prompt.approve()
	client := wait()
	if err := agent.ForwardToRemote(client, d.socket()); err != nil {
		t.Fatal(err)
	}
	session, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	if err := agent.RequestAgentForwarding(session); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	session.Stdout = &out
	if err := session.Start(d.ownRequest() + `; echo "exit $?"; ` + quoted(far.from(nil, "echo far"))); err != nil {
		t.Fatal(err)
	}
	prompt = owner.next()
	prompt.to(far, self(t))
	prompt.names(2)
	prompt.says(nil, []string{"forwarded: yes\n"})
	if v, _ := prompt.halves(); strings.Contains(v, "forwarded") {
		t.Errorf("VERIFIED says forwarded:\n%s", prompt.prompt)
	}
	prompt.approve()
	ended := make(chan error, 1)
	go func() { ended <- session.Wait() }() // ends with the session
	if err := soon(t, "end of the session", ended); err != nil || out.String() != "exit 3\nfar\n" {
		t.Errorf("%q (%v)\n%s", out.String(), err, far.log())
	}
	p.asked("signed", "signed")
	d.forwarded(1, 2)
}
