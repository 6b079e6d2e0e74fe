// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/transport"
)

// What a person wants of a burst: each login that was approved gets in, also
// when there are more of them than the phone shows at once; a no is for the one
// that was shown; and when the command that made the burst is gone, its prompts
// are.

// fleet is n servers, each with a host key of its own, that take d's keys.
func fleet(t testing.TB, d *host, n int) (servers []*server) {
	t.Helper()
	authorized := d.ok("ssh-add", "-L")
	var known []string
	for i := range n {
		s := newServer(t, authorized)
		servers = append(servers, s)
		s.called(fmt.Sprintf("host%02d.example", i))
		known = append(known, s.alias+" "+s.key)
	}
	d.known(known...)
	return servers
}

// printOf is the fingerprint of the host's key.
func (s *server) printOf() string { return ssh.FingerprintSHA256(parse(s.t, s.key)) }

// atOnce starts a login to each server.
func atOnce(d *host, servers []*server) (logins []*process) {
	for _, s := range servers {
		logins = append(logins, d.spawn("ssh", s.args("true")...))
	}
	return logins
}

var verifiedHost = regexp.MustCompile(`\n  host key: (SHA256:\S+) \(`)

// target is which of the servers a prompt is for.
func (k ask) target(servers []*server) int {
	k.a.t.Helper()
	verified, claimed := k.halves()
	for i, s := range servers {
		if m := verifiedHost.FindStringSubmatch("\n" + verified); m != nil && m[1] == s.printOf() {
			if name := fmt.Sprintf("host%02d.example", i); !strings.Contains(claimed, "host: "+name+"\n") {
				k.a.t.Errorf("the prompt for %s does not claim so:\n%s", name, k.prompt)
			}
			return i
		}
	}
	k.a.t.Fatalf("a prompt for another host:\n%s", k.prompt)
	return -1
}

// outcomes counts what the log says of the sign requests.
func (p *process) outcomes() map[string]int {
	n := map[string]int{}
	for _, m := range regexp.MustCompile(`msg="sign request" outcome=(\w+)`).FindAllStringSubmatch(p.output(), -1) {
		n[m[1]]++
	}
	return n
}

// logs waits until the log has these outcomes of sign requests, and no others.
func (p *process) logs(want map[string]int) {
	p.t.Helper()
	eventually(p.t, fmt.Sprintf("the outcomes %v", want), func() bool { return maps.Equal(p.outcomes(), want) })
}

// With a phone that needs no thought, 20 hosts are 20 logins.
func TestBurstLogsInEverywhere(t *testing.T) {
	t.Parallel()
	p := newPhone(t)
	p.serve("--approve", "always")
	d := newHost(t)
	pair(t, d, p)
	d.agent()
	servers := fleet(t, d, 20)
	for i, login := range atOnce(d, servers) {
		if exit := login.ended(); exit != 0 {
			t.Errorf("login %d: exit %d\n%s", i, exit, login.output())
		}
	}
	d.serving.logs(map[string]int{"signed": 20})
	p.asked(slices.Repeat([]string{"signed"}, 20)...)
}

// An owner who approves one after the other lets all 20 in. The phone has 8 at
// most; the rest waits for its turn at the device.
func TestThreat_N02_TwentyHosts(t *testing.T) {
	t.Parallel()
	d, p, owner, link := relayed(t)
	servers := fleet(t, d, 20)
	logins := atOnce(d, servers)
	link.fills(8) // before anybody answers
	asked := map[int]bool{}
	for range servers {
		prompt := owner.next()
		i := prompt.target(servers)
		if asked[i] {
			t.Errorf("asked twice about host %d", i)
		}
		asked[i] = true
		prompt.approve()
	}
	for i, login := range logins {
		if exit := login.ended(); exit != 0 {
			t.Errorf("login %d: exit %d\n%s", i, exit, login.output())
		}
	}
	if now, most := link.open(); now != 0 || most != 8 {
		t.Errorf("the phone has %d requests, had %d at once", now, most)
	}
	d.serving.logs(map[string]int{"signed": 20})
	p.asked(slices.Repeat([]string{"signed"}, 20)...)
	owner.none()
}

// none fails the test when a prompt is left.
func (a *approver) none() {
	a.t.Helper()
	eventually(a.t, "the last prompt to go", func() bool { return len(a.shown()) == 0 })
}

// shown are the processes of the prompts that wait for an answer. The files of
// one that was withdrawn stay.
func (a *approver) shown() (pids []string) {
	a.t.Helper()
	prompts, err := filepath.Glob(filepath.Join(a.dir, "*.prompt"))
	if err != nil {
		a.t.Fatal(err)
	}
	for _, name := range prompts {
		pid := 0
		fmt.Sscan(strings.TrimSuffix(filepath.Base(name), ".prompt"), &pid)
		if syscall.Kill(pid, 0) == nil {
			pids = append(pids, name)
		}
	}
	return pids
}

// A no is for one of them.
func TestThreat_N02_DenialIsForOneHost(t *testing.T) {
	t.Parallel()
	d, p, owner, link := relayed(t)
	servers := fleet(t, d, 12)
	logins := atOnce(d, servers)
	link.fills(8)
	denied := -1
	for n := range servers {
		if prompt := owner.next(); n == 3 {
			denied = prompt.target(servers)
			prompt.deny()
		} else {
			prompt.approve()
		}
	}
	for i, login := range logins {
		if exit := login.ended(); (exit == 0) != (i != denied) {
			t.Errorf("login %d: exit %d, denied was %d\n%s", i, exit, denied, login.output())
		}
	}
	d.serving.logs(map[string]int{"signed": 11, "denied": 1})
	eventually(t, "the phone's log", func() bool { return len(p.requests()) == 12 })
	got := p.requests()
	slices.Sort(got)
	if want := append([]string{"denied"}, slices.Repeat([]string{"signed"}, 11)...); !slices.Equal(got, want) {
		t.Errorf("the phone was asked: %q", got)
	}
	owner.none()
}

// One that gives up while its prompt is shown leaves its place to the next, and
// nobody else notices.
func TestThreat_N02_OneGivesUp(t *testing.T) {
	t.Parallel()
	d, _, owner, link := relayed(t)
	servers := fleet(t, d, 12)
	logins := atOnce(d, servers)
	link.fills(8)
	prompt := owner.next()
	gone := prompt.target(servers)
	logins[gone].stop(syscall.SIGKILL)
	prompt.withdrawn()
	for range len(servers) - 1 {
		owner.next().approve()
	}
	for i, login := range logins {
		if exit := login.ended(); (exit == 0) != (i != gone) {
			t.Errorf("login %d: exit %d, gone is %d\n%s", i, exit, gone, login.output())
		}
	}
	d.serving.logs(map[string]int{"signed": 11, "withdrawn": 1})
	owner.none()
}

// One after the other gives up, and none of those whose turn it is then pays for
// it: not with a phone that still puts the last prompt away.
func TestThreat_N02_ManyGiveUp(t *testing.T) {
	t.Parallel()
	d, p, owner, link := relayed(t)
	key := parse(t, d.ok("ssh-add", "-L"))
	clients, answers := make([]client, 40), make(chan error, 40)
	for i := range clients {
		c := d.client()
		clients[i] = c
		go func() {
			_, err := c.Sign(key, fileData(fmt.Sprint("file-", i), i))
			answers <- err
		}()
	}
	link.fills(8)
	file := regexp.MustCompile(`operation: sign data for "file-(\d+)"`)
	for n := range clients {
		prompt := owner.next()
		m := file.FindStringSubmatch(prompt.prompt)
		if m == nil {
			t.Fatalf("a prompt for something else:\n%s", prompt.prompt)
		}
		if i, _ := strconv.Atoi(m[1]); n < 30 {
			clients[i].Close()
			prompt.withdrawn()
		} else {
			prompt.approve()
		}
	}
	failed := 0
	for range clients {
		if err := soon(t, "answer", answers); err != nil {
			failed++
		}
	}
	if failed != 30 {
		t.Errorf("%d of 40 failed, 30 gave up", failed)
	}
	d.serving.logs(map[string]int{"signed": 10, "withdrawn": 30})
	owner.none()
	if n := link.gave(); n != 10 {
		t.Errorf("%d signatures\n%s", n, p.serving.output())
	}
}

// apart starts a command as the first of a process group, which ends with the
// test.
func (h *host) apart(group *syscall.SysProcAttr, name string, args ...string) *process {
	h.t.Helper()
	apart := *h
	apart.start = func(c *exec.Cmd) error {
		c.SysProcAttr = group
		return c.Start()
	}
	p := apart.spawn(name, args...)
	h.t.Cleanup(func() {
		select {
		case <-p.done:
		default: // nobody has waited for it, so its group is nobody else's
			syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		}
	})
	return p
}

// The command is interrupted: its prompts go, nothing is signed, and the next
// login is asked for at once.
func TestThreat_N02_CommandIsInterrupted(t *testing.T) {
	t.Parallel()
	d, _, owner, link := relayed(t, "--log-level", "debug")
	servers := fleet(t, d, 20)
	if err := os.Mkdir(d.path("hosts"), 0o700); err != nil {
		t.Fatal(err)
	}
	for i, s := range servers {
		d.write(fmt.Sprintf("hosts/%02d", i), "exec "+quoted(append([]string{need(t, "ssh")}, s.args("true")...))+"\n", 0o600)
	}
	// A job of a shell: one process group, as Ctrl-C finds it.
	command := d.apart(&syscall.SysProcAttr{Setpgid: true}, "sh", "-c", "ls hosts/* | "+need(t, "xargs")+" -P 20 -n 1 sh")
	group := -command.cmd.Process.Pid
	prompt := owner.next()
	prompt.target(servers)
	link.fills(8)
	for _, s := range servers { // each client is about to ask, or waits
		eventually(t, "20 clients", func() bool { return strings.Contains(s.log(), "Postponed publickey") })
	}
	if err := syscall.Kill(group, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	prompt.withdrawn()
	command.ended()
	eventually(t, "the end of all clients", func() bool {
		log := d.serving.output()
		return syscall.Kill(group, 0) != nil && strings.Count(log, `msg="client connected"`) == strings.Count(log, `msg="client disconnected"`)
	})
	link.fills(0)
	owner.none()
	login := d.spawn("ssh", servers[0].args("true")...)
	prompt = owner.next()
	if i := prompt.target(servers); i != 0 {
		t.Errorf("asked about host %d", i)
	}
	prompt.approve()
	if exit := login.ended(); exit != 0 {
		t.Errorf("the next login: exit %d\n%s", exit, login.output())
	}
	if n := link.gave(); n != 1 {
		t.Errorf("%d signatures", n)
	}
	if got := d.serving.outcomes(); got["signed"] != 1 || got["denied"] != 0 || got["withdrawn"] < 8 {
		t.Errorf("the agent's log: %v\n%s", got, d.serving.output())
	}
}

// Nobody answers a hundred: 72 wait, the others are refused at once, and those
// that wait have their answer at the deadline.
func TestThreat_N02_NobodyAnswers(t *testing.T) {
	t.Parallel()
	const deadline = 5 * time.Second
	d, p, owner, link := relayed(t, "--deadline", deadline.String())
	key := parse(t, d.ok("ssh-add", "-L"))
	type answer struct {
		after time.Duration
		err   error
	}
	answers := make(chan answer, 100)
	for i := range cap(answers) {
		c := d.client()
		go func() {
			start := time.Now()
			_, err := c.Sign(key, fileData("file", i))
			answers <- answer{time.Since(start), err}
		}()
	}
	for range 28 {
		if a := soon(t, "refusal", answers); a.err == nil || a.after >= deadline {
			t.Errorf("answered after %v: %v", a.after, a.err)
		}
	}
	link.fills(8)
	if _, most := link.open(); most != 8 || len(answers) != 0 {
		t.Errorf("the phone had %d requests at once; %d more have ended", most, len(answers))
	}
	const reason = `level=WARN msg="sign request" outcome=failed reason="too many requests wait on the phone: 8 are there, and 64 wait for their turn" kind=sshsig`
	eventually(t, "the reason in the log", func() bool { return strings.Count(d.serving.output(), reason) == 28 })
	for range 72 {
		if a := soon(t, "answer", answers); a.err == nil || a.after < deadline {
			t.Errorf("answered after %v: %v", a.after, a.err)
		}
	}
	d.serving.logs(map[string]int{"failed": 100})
	if n := strings.Count(d.serving.output(), reason); n != 28 {
		t.Errorf("the log has the reason %d times:\n%s", n, d.serving.output())
	}
	owner.none()
	if n := link.gave(); n != 0 || slices.Contains(p.requests(), "signed") {
		t.Errorf("%d signatures\n%s", n, p.serving.output())
	}
}

// A no is for the session: other connections, the same question and other keys
// of the session get it too, and the owner sees nothing of them.
func TestThreat_N02_DenialIsNotAskedAgain(t *testing.T) {
	t.Parallel()
	p := newPhone(t)
	p.ok("vmux-signer", "key", "add", "ed25519", "--type", "ed25519")
	owner := p.askpass()
	p.serve("--approve", "askpass")
	d := newHost(t)
	pair(t, d, p)
	link := between(t, d, p)
	d.agent()
	s := newServer(t, d.ok("ssh-add", "-L"))

	// ssh goes on with its second key.
	login := d.spawn("ssh", s.args("true")...)
	owner.next().deny()
	if exit := login.ended(); exit == 0 {
		t.Error("logged in though it was denied")
	}
	d.serving.wait(`outcome=refused reason="the owner has denied this already, or has not answered" .* comment=ed25519`)

	// Another client comes back with each key, on a connection of its own.
	var keys []ssh.PublicKey
	for _, line := range strings.Split(strings.TrimSpace(d.ok("ssh-add", "-L")), "\n") {
		keys = append(keys, parse(t, line))
	}
	host, denied := parse(t, s.key).Marshal(), session("denied", 1)
	try := func(session string, key ssh.PublicKey) error {
		c := d.client()
		defer c.Close()
		s.bind(c, session, false)
		_, err := c.Sign(key, loginData(session, key, host))
		return err
	}
	first := make(chan error, 1)
	go func() { first <- try(denied, keys[0]) }()
	owner.next().deny()
	if err := soon(t, "answer", first); err == nil {
		t.Error("signed though it was denied")
	}
	for range 10 {
		for _, key := range keys {
			if err := try(denied, key); err == nil {
				t.Errorf("signed by %s though it was denied", key.Type())
			}
		}
	}
	if n := len(link.requests()); n != 2 {
		t.Errorf("the phone was asked %d times, not twice", n)
	}
	// Another session is another question.
	go func() { first <- try(session("other", 1), keys[0]) }()
	owner.next().approve()
	if err := soon(t, "answer", first); err != nil {
		t.Errorf("another session: %v", err)
	}
	p.asked("denied", "denied", "signed")
}

// The phone holds to it by itself: of a device without manners 8 prompts wait,
// and who asks the same again makes no more of them.
func TestThreat_N02_PhoneKeepsCount(t *testing.T) {
	t.Parallel()
	d, p, _, owner := asking(t)
	id, err := transport.NewIdentity(d.linkKey())
	if err != nil {
		t.Fatal(err)
	}
	thief := &raw{t, id}
	l := thief.open(p) // tells the keys
	c, err := thief.dial(t.Context(), p.address, transport.ProtoLink)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	send := func(id string, p envelope.Payload) {
		t.Helper()
		if err := c.Send(envelope.Envelope{ID: id, Payload: p}); err != nil {
			t.Fatal(err)
		}
	}
	// answers waits until a type of answer has come so often, and gives what came.
	answers := func(want envelope.Type, n int) (all []envelope.Envelope) {
		t.Helper()
		c.SetReadDeadline(time.Now().Add(patience))
		for n > 0 {
			e, err := c.Receive()
			if err != nil {
				t.Fatal(err)
			}
			if e.Payload.Type() == want {
				n--
			}
			if e.Payload.Type() != envelope.TypePending {
				all = append(all, e)
			}
		}
		return all
	}
	answers(envelope.TypeHello, 1)
	send("", &envelope.Hello{Name: "thief", Software: "test", Capabilities: []string{}, Clock: envelope.At(time.Now())})

	waits := map[string]*envelope.SignRequest{}
	for range 20 {
		id := transport.NewID()
		waits[id] = l.loginRequest(time.Now())
		send(id, waits[id])
	}
	for _, e := range answers(envelope.TypeError, 12) {
		if refused, ok := e.Payload.(*envelope.Error); !ok || refused.Code != envelope.CodeTooMany {
			t.Errorf("one of 20 at once: %+v", e.Payload)
		}
		delete(waits, e.ID)
	}
	p.serving.wait(`level=WARN msg=request device=vm .*outcome=tooMany .*reason="too many prompts of this device are waiting"`)
	for _, q := range waits {
		send(transport.NewID(), q)
	}
	send(transport.NewID(), &envelope.KeyListRequest{}) // when this is answered, those have arrived
	if early := answers(envelope.TypeKeyListResponse, 1); len(early) != 1 {
		t.Errorf("answers before anybody was asked: %+v", early)
	}
	for range 8 {
		owner.next().approve()
	}
	if all := answers(envelope.TypeSignResponse, 16); len(all) != 16 {
		t.Errorf("other answers, too: %+v", all)
	}
	owner.none()
}
