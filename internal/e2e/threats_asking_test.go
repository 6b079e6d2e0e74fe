// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/transport"
)

// client is a connection to an agent, of this process.
type client struct {
	agent.ExtendedAgent
	conn net.Conn
}

func (c client) Close() { c.conn.Close() }

// client connects to the device's agent, as any process of its user can.
func (h *host) client() client {
	h.t.Helper()
	c, err := net.Dial("unix", h.socket())
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	return client{agent.NewClient(c), c}
}

// fileData is what ssh-keygen -Y sign has signed for a file, of which no two
// are the same (PROTOCOL.sshsig).
func fileData(namespace string, n int) []byte {
	hash := sha512.Sum512(fmt.Append(nil, n))
	return append([]byte("SSHSIG"), ssh.Marshal(struct {
		Namespace, Reserved, Algorithm string
		Hash                           []byte
	}{namespace, "", "sha512", hash[:]})...)
}

// refusing gives the phone an owner who says no to everything, and gives what
// was asked so far.
func (p *phone) refusing() (prompts func() []string) {
	p.t.Helper()
	file := p.path("refused")
	p.setenv("SSH_ASKPASS", p.write("refuse", "#!/bin/sh\nprintf '%s\\f' \"$1\" >>"+file+"\nexit 1\n", 0o700))
	return func() []string {
		b, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			p.t.Fatal(err)
		}
		return strings.SplitAfter(strings.TrimSuffix(string(b), "\f"), "\f")
	}
}

// names says whether a prompt claims that this process asks.
func names(t testing.TB, prompt string) bool {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if self, err = filepath.EvalSymlinks(self); err != nil {
		t.Fatal(err)
	}
	me := fmt.Sprintf("%s (%d)", self, os.Getpid())
	_, claimed, ok := strings.Cut(prompt, "\nCLAIMED by the device\n")
	return ok && strings.Contains("\n"+claimed, "\n  process: "+me[:min(len(me), 80)]) // a prompt cuts long chains in the middle
}

// asks is what a program of the same user asks the agent, and counts.
type asks struct {
	made   atomic.Int64 // requests to sign
	signed atomic.Int64 // signatures it got
}

func (a *asks) sign(c client, key ssh.PublicKey, data []byte) error {
	a.made.Add(1)
	_, err := c.Sign(key, data)
	if err == nil {
		a.signed.Add(1)
	}
	return err
}

// T02: a program of the same user asks 1,000 times. It gets a signature for each
// live approval and for nothing else; the prompts are bounded and name it.
func TestThreat_T02_NothingWithoutALiveApproval(t *testing.T) {
	t.Parallel()
	var all asks
	var approvals atomic.Int64
	t.Run("asking", func(t *testing.T) {
		t.Run("denied", func(t *testing.T) { t.Parallel(); deniedAsks(t, &all) })
		t.Run("silence", func(t *testing.T) { t.Parallel(); silentAsks(t, &all) })
		t.Run("late", func(t *testing.T) { t.Parallel(); lateAsks(t, &all) })
		t.Run("replayed", func(t *testing.T) { t.Parallel(); replayedAsks(t, &all, &approvals) })
	})
	if all.made.Load() != 1000 || all.signed.Load() != approvals.Load() {
		t.Errorf("asked %d times, %d signatures for %d approvals", all.made.Load(), all.signed.Load(), approvals.Load())
	}
}

// 200 questions are denied, or refused before anybody is asked, and asked again
// three times each.
func deniedAsks(t *testing.T, all *asks) {
	p := newPhone(t)
	prompts := p.refusing()
	p.serve("--approve", "askpass")
	d := newHost(t)
	pair(t, d, p)
	link := between(t, d, p)
	d.agent()
	key := parse(t, d.ok("ssh-add", "-L"))
	host := newServer(t, "")
	var asking sync.WaitGroup
	const clients, questions = 8, 25
	for n := range clients {
		asking.Go(func() {
			for i := range questions {
				name := session("denied", n*questions+i)
				for range 4 {
					c := d.client()
					data := fileData("git", n*questions+i)
					switch i % 3 {
					case 1:
						data = loginData(name, key, nil)
					case 2:
						host.bind(c, name, false)
						data = loginData(name, key, parse(t, host.key).Marshal())
					}
					if all.sign(c, key, data) == nil {
						t.Error("signed though it was denied")
					}
					c.Close()
				}
			}
		})
	}
	asking.Wait()
	shown := prompts()
	// After five refusals in a row the device is held up; others may be open by then.
	if n := len(shown); n < 5 || n > 5+clients {
		t.Errorf("%d prompts for %d questions", n, clients*questions)
	}
	for _, prompt := range shown {
		if !names(t, prompt) {
			t.Fatalf("a prompt does not name who asks:\n%s", prompt)
		}
	}
	if _, most := link.open(); most > 8 || link.gave() != 0 {
		t.Errorf("the phone had %d requests at once and gave %d signatures", most, link.gave())
	}
	d.serving.logs(map[string]int{"denied": clients * questions, "refused": 3 * clients * questions})
}

// Nobody answers 165 at once.
func silentAsks(t *testing.T, all *asks) {
	d, p, owner, link := relayed(t, "--deadline", "5s")
	key := parse(t, d.ok("ssh-add", "-L"))
	answers := make(chan error, 165)
	for i := range cap(answers) {
		c := d.client()
		data := fileData("git", i)
		if i%2 == 0 {
			data = loginData(session("silence", i), key, nil)
		}
		go func() { answers <- all.sign(c, key, data) }()
	}
	prompt := owner.next()
	if !names(t, prompt.prompt) {
		t.Errorf("the prompt does not name who asks:\n%s", prompt.prompt)
	}
	link.fills(8)
	if n := len(owner.shown()); n != 1 {
		t.Errorf("%d dialogs at once", n)
	}
	for range cap(answers) {
		if soon(t, "answer", answers) == nil {
			t.Error("signed though nobody answered")
		}
	}
	prompt.withdrawn()
	owner.none()
	if link.gave() != 0 || slices.Contains(p.requests(), "signed") {
		t.Errorf("%d signatures\n%s", link.gave(), p.serving.output())
	}
}

// Approvals come after the deadline, and after the client has gone, from a phone
// that heard of neither: too late for those that asked, and for those that ask
// the same later.
func lateAsks(t *testing.T, all *asks) {
	d, _, owner, link := relayed(t, "--deadline", "5s")
	key := parse(t, d.ok("ssh-add", "-L"))
	link.hears(false)
	var clients []client
	ask := func(data func(i int) []byte) chan error {
		answers := make(chan error, 8)
		clients = nil
		for i := range cap(answers) {
			c := d.client()
			clients = append(clients, c)
			go func() { answers <- all.sign(c, key, data(i)) }()
		}
		return answers
	}
	login := func(i int) []byte { return loginData(session("late", i), key, nil) }
	answers := ask(login)
	first := owner.next()
	if !names(t, first.prompt) {
		t.Errorf("the prompt does not name who asks:\n%s", first.prompt)
	}
	for range cap(answers) {
		if soon(t, "answer", answers) == nil {
			t.Error("signed before anybody answered")
		}
	}
	first.approve()
	for range 7 {
		owner.next().approve()
	}
	eventually(t, "the late answers", func() bool { return link.gave() == 8 })
	for _, c := range clients { // the connection has nothing but the answer to this
		if keys, err := c.List(); err != nil || len(keys) != 1 {
			t.Errorf("the agent lists %v, %v", keys, err)
		}
	}
	answers = ask(login)
	for range cap(answers) {
		if soon(t, "answer", answers) == nil {
			t.Error("signed by an approval that came too late")
		}
	}

	file := func(i int) []byte { return fileData("late", i) }
	answers = ask(file)
	first = owner.next()
	link.fills(8)
	for _, c := range clients {
		c.Close()
	}
	eventually(t, "the agent's log", func() bool { return d.serving.outcomes()["withdrawn"] == 8 })
	first.approve()
	for range 7 {
		owner.next().approve()
	}
	eventually(t, "the late answers", func() bool { return link.gave() == 16 })
	for range cap(answers) {
		if soon(t, "end", answers) == nil {
			t.Error("signed for a client that had gone")
		}
	}
	answers = ask(file)
	for range cap(answers) {
		owner.next().deny()
	}
	for range cap(answers) {
		if soon(t, "answer", answers) == nil {
			t.Error("signed by the approval of an earlier request")
		}
	}
	if n := len(link.requests()); n != 24 {
		t.Errorf("the phone was asked %d times, not 24", n)
	}
}

// An approval is for the request that was shown. Who has the link key, and so
// can say anything, has to wait for another one.
func replayedAsks(t *testing.T, all *asks, approvals *atomic.Int64) {
	d, p, _, owner := asking(t)
	key := parse(t, d.ok("ssh-add", "-L"))
	id, err := transport.NewIdentity(d.linkKey())
	if err != nil {
		t.Fatal(err)
	}
	thief := &raw{t, id}
	l, other := thief.open(p), thief.open(p)
	call := func(l *deviceLink, id string, q *envelope.SignRequest) <-chan error {
		answer := make(chan error, 1)
		go func() {
			_, err := l.Call(context.Background(), id, q)
			answer <- err
		}()
		return answer
	}
	fails := func(what string, answer <-chan error, code envelope.Code) {
		t.Helper()
		if err := soon(t, "answer", answer); codeOf(err) != code {
			t.Errorf("%s: %v", what, err)
		}
	}
	through := func(data []byte) <-chan error { // the agent
		answer, c := make(chan error, 1), d.client()
		go func() { answer <- all.sign(c, key, data) }()
		return answer
	}

	used, q := transport.NewID(), l.loginRequest(time.Now())
	answer := call(l, used, q)
	owner.next().approve()
	fails("approved", answer, "")
	fails("the same request again", call(l, used, q), envelope.CodeBadRequest)
	fails("the same request on another link", call(other, used, q), envelope.CodeBadRequest)
	fails("the id for another request", call(l, used, l.loginRequest(time.Now())), envelope.CodeBadRequest)
	answer = call(l, transport.NewID(), q)
	owner.next().deny()
	fails("the same under a new id", answer, envelope.CodeDenied)
	answer = through(q.Data)
	owner.next().deny()
	if soon(t, "answer", answer) == nil {
		t.Error("the agent's client has a signature by another's approval")
	}

	// The same through the agent, which remembers denials and no approvals.
	file := fileData("replay", 0)
	for _, yes := range []bool{true, false} {
		answer = through(file)
		prompt := owner.next()
		if !names(t, prompt.prompt) {
			t.Errorf("the prompt does not name who asks:\n%s", prompt.prompt)
		}
		if yes {
			approvals.Add(1)
			prompt.approve()
		} else {
			prompt.deny()
		}
		if err := soon(t, "answer", answer); (err == nil) != yes {
			t.Errorf("approved is %v: %v", yes, err)
		}
	}

	// One id on two links at once: one of them has the approval.
	double, q := transport.NewID(), l.loginRequest(time.Now())
	answer = call(l, double, q)
	prompt := owner.next()
	fails("the id on another link meanwhile", call(other, double, q), envelope.CodeBadRequest)
	prompt.approve()
	fails("approved, with a copy meanwhile", answer, "")

	// The link ends, or the request is withdrawn, before the answer.
	gone := thief.open(p)
	q = l.loginRequest(time.Now())
	lost := transport.NewID()
	answer = call(gone, lost, q)
	prompt = owner.next()
	gone.Close()
	prompt.withdrawn()
	if err := soon(t, "end", answer); err == nil {
		t.Error("signed on a link that was closed")
	}
	fails("the request of a link that was closed", call(l, lost, q), envelope.CodeBadRequest)

	// The phone slept while its minute went by, and the yes is there first.
	created := time.Now().Add(-57 * time.Second)
	answer = call(l, transport.NewID(), l.loginRequest(created))
	prompt = owner.next()
	if err := p.serving.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of the minute", func() bool { return time.Since(created) > time.Minute })
	prompt.approve()
	if err := p.serving.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	fails("approved after the minute", answer, envelope.CodeExpired)

	// A signer that was started again still knows the ids.
	p.serving.stop(syscall.SIGTERM)
	if n := len(p.requests()); n != 13 || strings.Count(strings.Join(p.requests(), " "), "signed") != 3 {
		t.Errorf("%d requests: %q", n, p.requests())
	}
	p.serveOn(p.address, "--no-advertise", "--approve", "askpass")
	l = thief.open(p)
	q = l.loginRequest(time.Now())
	answer = call(l, used, q)
	fails("after a restart", answer, envelope.CodeBadRequest)
	owner.none()
}

// T02: what was typed for a prompt that is gone approves nothing.
func TestThreat_T02_LateKeysApproveNothing(t *testing.T) {
	t.Parallel()
	p := newPhone(t)
	p.serve("--approve", "always")
	d := newHost(t)
	pair(t, d, p)
	p.serving.stop(syscall.SIGTERM)
	owner := p.console("vmux-signer", "serve", "--approve", "terminal", "--no-advertise", "--listen", p.address)
	owner.Expect("listening on")
	d.agent()
	key := parse(t, d.ok("ssh-add", "-L"))
	for i := range 5 {
		ask := func(n int) (client, <-chan error) {
			answer, c := make(chan error, 1), d.client()
			go func() {
				_, err := c.Sign(key, fileData("typed", 10*i+n))
				answer <- err
			}()
			owner.Expect("Approve? [y/N]")
			return c, answer
		}
		c, _ := ask(0)
		owner.replies("\x15y", "[y/N] y") // Ctrl-U first; and before Enter the prompt is gone
		c.Close()
		owner.Expect("withdrawn by the device")
		owner.Type("y\n")
		_, answer := ask(1)
		// Enter until it counts: for a moment after a question nothing does.
		enter, late := time.NewTicker(typing), time.After(patience)
		for answered := false; !answered; {
			select {
			case err := <-answer:
				if answered = true; err == nil {
					t.Error("signed by what was typed before it was asked")
				}
			case <-enter.C:
				owner.Type("\n")
			case <-late:
				t.Fatalf("no answer after %v", patience)
			}
		}
		enter.Stop()
	}
	d.serving.logs(map[string]int{"denied": 5, "withdrawn": 5})
}

// program is the file that a command of the system is.
func program(t testing.TB, name string) string {
	t.Helper()
	path, err := filepath.EvalSymlinks(need(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// copied puts a copy of a program of the system somewhere below the host's home.
func (h *host) copied(name, to string) (path string) {
	h.t.Helper()
	b, err := os.ReadFile(program(h.t, name))
	if err != nil {
		h.t.Fatal(err)
	}
	h.put(to, string(b), 0o755)
	if path, err = filepath.EvalSymlinks(h.path(to)); err != nil {
		h.t.Fatal(err)
	}
	return path
}

// N01: the prompt of ssh under a script under a shell claims all three with
// their pids, nothing of it as verified.
func TestThreat_N01_PromptNamesTheChain(t *testing.T) {
	t.Parallel()
	d, _, owner, link := relayed(t)
	s := newServer(t, d.ok("ssh-add", "-L"))
	outer := d.copied("sh", "outer")
	d.write("deploy", "#!/bin/sh\necho script $$ $PPID\n"+quoted(append([]string{program(t, "ssh")}, s.args("true")...))+"\nexit $?\n", 0o700)
	// A session, as a terminal has one: the chain ends there.
	command := d.apart(&syscall.SysProcAttr{Setsid: true}, outer, "-c", "echo shell $$; ./deploy; exit $?")
	pids := command.wait(`^script (\d+) (\d+)$`)
	shell := command.wait(`^shell (\d+)$`)[1]
	if pids[2] != shell {
		t.Fatalf("the script's parent is %s, the shell is %s", pids[2], shell)
	}
	prompt := owner.next()
	verified, claimed := prompt.halves()
	chain := fmt.Sprintf(`(?m)^  process: %s \((\d+)\) < %s \(%s\) < %s \(%s\)$`,
		regexp.QuoteMeta(program(t, "ssh")), regexp.QuoteMeta(program(t, "sh")), pids[1], regexp.QuoteMeta(outer), shell)
	m := regexp.MustCompile(chain).FindStringSubmatch(claimed)
	if m == nil {
		t.Fatalf("no %s in the prompt:\n%s", chain, prompt.prompt)
	}
	for _, name := range []string{"process", program(t, "ssh"), outer} {
		if strings.Contains(verified, name) {
			t.Errorf("%s is VERIFIED:\n%s", name, prompt.prompt)
		}
	}
	if !strings.Contains(claimed, "directory: "+d.home+"\n") {
		t.Errorf("no directory %s in the prompt:\n%s", d.home, prompt.prompt)
	}
	var sent []string
	for _, p := range link.requests()[0].Context.Processes {
		sent = append(sent, fmt.Sprintf("%s (%d)", p.Executable, p.PID))
	}
	if !strings.Contains(claimed, "process: "+strings.Join(sent, " < ")+"\n") {
		t.Errorf("%q was sent, the prompt is\n%s", sent, prompt.prompt)
	}
	prompt.approve()
	command.succeeds()
	d.serving.wait(`outcome=signed kind=login .* executable=` + regexp.QuoteMeta(program(t, "ssh")) + ` pid=` + m[1] + ` `)
}

// N01: the policy refuses one of two copies of a program, and what one of two
// shells starts; the owner hears nothing of these, and the log names the rule.
func TestThreat_N01_PolicyByProgram(t *testing.T) {
	t.Parallel()
	p := newPhone(t)
	p.serve("--approve", "always")
	d := newHost(t)
	pair(t, d, p)
	link := between(t, d, p)
	good, bad := d.copied("ssh-keygen", "good/tool"), d.copied("ssh-keygen", "bad/tool")
	shell, evil := d.copied("sh", "good/sh"), d.copied("sh", "bad/sh")
	d.put(configFile, fmt.Sprintf(`[policy]
default = "ask"

[[policy.rule]]
action = "refuse"
executable = %q

[[policy.rule]]
action = "refuse"
ancestor = %q
`, bad, filepath.Dir(evil)+"/s*"), 0o600)
	d.agent()
	public := d.write("key.pub", d.ok("ssh-add", "-L"), 0o600)
	asked := 0
	for _, c := range []struct {
		shell, tool string
		refused     string
	}{
		{shell, good, ""},
		{shell, bad, "rule 1 (line 4)"},
		{evil, good, "rule 2 (line 8)"},
		{evil, bad, "rule 1 (line 4)"},
		{shell, good, ""},
	} {
		r := d.run(c.shell, "-c", `echo data | "$@"; exit $?`, "sh", c.tool, "-Y", "sign", "-n", "file", "-f", public)
		if (r.exit == 0) != (c.refused == "") || strings.Contains(r.stdout, "BEGIN SSH SIGNATURE") != (c.refused == "") {
			t.Errorf("%s under %s: %v", c.tool, c.shell, r)
		}
		if c.refused == "" {
			asked++
			d.serving.wait(`outcome=signed kind=sshsig .* executable=` + regexp.QuoteMeta(c.tool) + ` `)
		} else {
			d.serving.wait(`level=WARN msg="sign request" outcome=refused reason="policy: ` + regexp.QuoteMeta(c.refused) + `" kind=sshsig .* executable=` + regexp.QuoteMeta(c.tool) + ` `)
		}
		if n := len(link.requests()); n != asked {
			t.Errorf("%s under %s: the phone was asked %d times, not %d", c.tool, c.shell, n, asked)
		}
	}

	// The other way round: only one program may ask.
	d.put(configFile, fmt.Sprintf("[policy]\ndefault = \"refuse\"\n\n[[policy.rule]]\naction = \"ask\"\nexecutable = %q\n", good), 0o600)
	d.serving.again(`msg="configuration read again" rules=1 default=refuse`)
	for _, c := range []struct {
		tool   string
		signed bool
	}{{good, true}, {bad, false}, {program(t, "ssh-keygen"), false}} {
		if r := d.runInput("data", c.tool, "-Y", "sign", "-n", "file", "-f", public); (r.exit == 0) != c.signed {
			t.Errorf("%s: %v", c.tool, r)
		}
	}
	d.serving.wait(`outcome=refused reason="policy: default" .* executable=` + regexp.QuoteMeta(bad) + ` `)
	if n := len(link.requests()); n != asked+1 {
		t.Errorf("the phone was asked %d times, not %d", n, asked+1)
	}
}
