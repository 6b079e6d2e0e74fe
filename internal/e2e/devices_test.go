// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/transport"
)

// state is what "vmux-signer status" says of a phone, in both its forms.
func (p *phone) state() (state string, waiting int) {
	p.t.Helper()
	var o struct {
		State   string   `json:"state"`
		Devices []string `json:"devices"`
		Waiting int      `json:"waiting"`
	}
	out := p.ok("vmux-signer", "status", "--json")
	if err := json.Unmarshal([]byte(out), &o); err != nil || o.Devices == nil {
		p.t.Fatalf("status --json: %v: %s", err, out)
	}
	if up := "Connected to " + strings.Join(o.Devices, ", "); (len(o.Devices) > 0) != strings.HasPrefix(o.State, "Connected") || len(o.Devices) > 0 && o.State != up {
		p.t.Errorf("status --json: %s", out)
	}
	return o.State, o.Waiting
}

func (p *phone) becomes(want string) {
	p.t.Helper()
	eventually(p.t, "the state "+want, func() bool { s, _ := p.state(); return s == want })
	if out, _, _ := strings.Cut(p.ok("vmux-signer", "status"), "\n"); out != want {
		p.t.Errorf("status: %s, want %s", out, want)
	}
}

// withinASecond is that, and more under the race detector.
func withinASecond() time.Duration {
	if raceFlag == "-race" {
		return 5 * time.Second
	}
	return time.Second
}

// Two devices are paired at once. Each has its own prompts, which name it; an answer
// to one is none to the other. The one that is forgotten loses its link and its
// prompt at once, and the other's login goes on.
func TestThreat_N02_TwoDevices(t *testing.T) {
	t.Parallel()
	p := newPhone(t)
	owner := p.askpass()
	p.becomes("Offline")
	p.serve("--approve", "askpass")
	p.becomes("Advertising")

	// A device is Connecting until it has said hello.
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	shy := newRaw(t)
	shy.join(p)
	c, err := shy.dial(ctx, p.address, transport.ProtoLink)
	if err != nil {
		t.Fatal(err)
	}
	p.becomes("Connecting to raw")
	if err := c.Send(envelope.Envelope{Payload: &envelope.Hello{Name: "raw", Software: "test", Capabilities: []string{}, Clock: envelope.At(time.Now())}}); err != nil {
		t.Fatal(err)
	}
	p.becomes("Connected to raw")
	c.Close()
	p.becomes("Advertising")
	p.ok("vmux-signer", "forget", "raw")

	laptop, desk := newDevice(t, "laptop"), newDevice(t, "desk")
	for _, d := range []*host{laptop, desk} {
		pair(t, d, p)
		d.agent()
	}
	p.becomes("Advertising") // agents connect when they are asked something
	laptop.ok("ssh-add", "-l")
	p.becomes("Connected to laptop")
	desk.ok("ssh-add", "-l")
	p.becomes("Connected to desk, laptop")
	s := newServer(t, laptop.ok("ssh-add", "-L"))

	waits := func(n int) {
		t.Helper()
		eventually(t, "what waits", func() bool { _, w := p.state(); return w == n })
	}
	// begin has the laptop ask, and then the desk; it gives the laptop's prompt.
	begin := func() (prompt ask, first, second *process) {
		t.Helper()
		first = laptop.spawn("ssh", s.args("echo", "first")...)
		prompt = owner.next()
		if !strings.Contains(prompt.prompt, "From laptop →") || strings.Contains(prompt.prompt, "desk") {
			t.Errorf("the laptop's prompt:\n%s", prompt.prompt)
		}
		second = desk.spawn("ssh", s.args("echo", "second")...)
		waits(2)
		return prompt, first, second
	}
	desks := func() ask {
		t.Helper()
		prompt := owner.next()
		if !strings.Contains(prompt.prompt, "From desk →") || strings.Contains(prompt.prompt, "laptop") {
			t.Errorf("the desk's prompt:\n%s", prompt.prompt)
		}
		return prompt
	}
	in := func(login *process, word string, want bool) {
		t.Helper()
		exit := login.ended()
		if (exit == 0) != want || (login.output() == word) != want {
			t.Errorf("login %s: exit %d\n%s", word, exit, login.output())
		}
	}
	running := func(login *process) {
		t.Helper()
		select {
		case <-login.done:
			t.Errorf("the other device's login has ended: %s", login.output())
		default:
		}
	}

	prompt, first, second := begin()
	prompt.approve() // it is no approval for the other
	in(first, "first", true)
	prompt = desks()
	running(second)
	waits(1)
	prompt.deny()
	in(second, "second", false)

	prompt, first, second = begin()
	start := time.Now()
	p.ok("vmux-signer", "forget", "laptop")
	prompt.withdrawn()
	laptop.serving.wait(`msg=disconnected phone=Pocket`)
	if took := time.Since(start); took > withinASecond() {
		t.Errorf("the link and the prompt were there for %v", took)
	}
	in(first, "first", false)
	prompt = desks()
	running(second)
	p.becomes("Connected to desk")
	prompt.approve()
	in(second, "second", true)
	if r := s.login(laptop, "true"); r.exit == 0 {
		t.Error("the forgotten device logged in")
	}
	waits(0)
	p.asked("signed", "denied", "notPaired", "signed")

	p.serving.stop(syscall.SIGTERM)
	p.becomes("Offline")
}

// C05: the ids of what was asked are used up although the signer is killed, be it
// after the signature or while the owner is asked, and however often it is started
// again. What is old by then is refused as that.
func TestThreat_C05_KilledSignerRemembersIDs(t *testing.T) {
	t.Parallel()
	p := newPhone(t)
	owner := p.askpass()
	p.serve("--approve", "askpass")
	thief := newRaw(t)
	thief.join(p)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()

	l := thief.open(p)
	now := time.Now()
	signed, shown, old := l.loginRequest(now), l.loginRequest(now), l.loginRequest(now.Add(-58*time.Second))
	answers := make(chan error, 1)
	call := func(id string, q *envelope.SignRequest) <-chan error {
		go func() {
			_, err := l.Call(ctx, id, q)
			answers <- err
		}()
		return answers
	}
	call("signed", signed)
	owner.next().approve()
	if err := soon(t, "answer", answers); err != nil {
		t.Fatal(err)
	}
	call("shown", shown)
	prompt := owner.next()
	p.serving.stop(syscall.SIGKILL)
	prompt.deny() // the program outlives a signer that is killed
	if err := soon(t, "end", answers); err == nil {
		t.Error("signed by a signer that was killed")
	}
	for range 2 {
		p.serve("--approve", "always") // which would sign all that it gets to
		l = thief.open(p)
		for id, q := range map[string]*envelope.SignRequest{"signed": signed, "shown": shown} {
			if _, err := l.Call(ctx, id, q); codeOf(err) != envelope.CodeBadRequest {
				t.Errorf("the id of what was %s, again: %v", id, err)
			}
		}
		p.serving.stop(syscall.SIGKILL)
	}
	p.serve("--approve", "always")
	l = thief.open(p)
	if _, err := l.Call(ctx, "other", shown); err != nil { // in time and under an id of its own
		t.Errorf("a new request for the same: %v", err)
	}
	eventually(t, "the request to be old", func() bool { return time.Since(old.CreatedAt.Time) > 61*time.Second })
	if _, err := l.Call(ctx, "old", old); codeOf(err) != envelope.CodeExpired {
		t.Errorf("a request of a minute ago: %v", err)
	}
	if out := p.ok("vmux-signer", "audit", "--verify"); !strings.HasPrefix(out, "whole: ") {
		t.Error(out)
	}
}
