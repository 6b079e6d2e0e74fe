// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"encoding/pem"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/go-json-experiment/json"
	"golang.org/x/crypto/ssh"
)

const (
	passphrase      = "correct horse battery staple"
	wrongPassphrase = "correct horse battery spoon"
)

// newLockedPhone makes a signer's home whose keys are encrypted with passphrase,
// and a file with each of the two.
func newLockedPhone(t testing.TB) (p *phone, right, wrong string) {
	t.Helper()
	return newPhoneLockedBy(t, passphrase, wrongPassphrase)
}

func newPhoneLockedBy(t testing.TB, passphrase, wrongPassphrase string) (p *phone, right, wrong string) {
	t.Helper()
	p = &phone{host: newHost(t)}
	right, wrong = p.write("right", passphrase+"\n", 0o600), p.write("wrong", wrongPassphrase+"\n", 0o600)
	p.ok("vmux-signer", "init", "--passphrase-file", right, "--name", "Pocket")
	p.ok("vmux-signer", "key", "add", "--passphrase-file", right, "--type", "ed25519", "work")
	return p, right, wrong
}

// encryptedHalves are the secret parts of the keys that take the passphrase, by
// file.
func (p *phone) encryptedHalves() map[string][]byte {
	p.t.Helper()
	halves := map[string][]byte{}
	for name, content := range tree(p.t, p.homeDir()) {
		if block, _ := pem.Decode([]byte(content)); block == nil || block.Type != "OPENSSH PRIVATE KEY" {
			continue
		}
		key, err := ssh.ParseRawPrivateKeyWithPassphrase([]byte(content), []byte(passphrase))
		if err != nil {
			p.t.Fatalf("%s: %v", name, err)
		}
		switch k := key.(type) {
		case *ecdsa.PrivateKey:
			if halves[name], err = k.Bytes(); err != nil {
				p.t.Fatal(err)
			}
		case *ed25519.PrivateKey:
			halves[name] = k.Seed()
		}
	}
	if len(halves) != 3 {
		p.t.Fatalf("%d keys take the passphrase", len(halves))
	}
	return halves
}

// signerStatus is what vmux-signer status prints.
type signerStatus struct {
	State           string   `json:"state"`
	Devices         []string `json:"devices"`
	Waiting         int      `json:"waiting"`
	Locked          bool     `json:"locked"`
	Failures        int      `json:"failures"`
	AppLock         string   `json:"appLock"`
	NeedsPassphrase bool     `json:"needsPassphrase"`
}

func (p *phone) status() (s signerStatus) {
	p.t.Helper()
	if err := json.Unmarshal([]byte(p.ok("vmux-signer", "status", "--json")), &s); err != nil {
		p.t.Fatal(err)
	}
	return s
}

// T06: the keys of a stolen signer are of no use without the passphrase: no file
// has a private half, and ssh-keygen opens none.
func TestThreat_T06_KeysAtRest(t *testing.T) {
	t.Parallel()
	p, right, _ := newLockedPhone(t)
	halves := p.encryptedHalves()
	n := looking(halves)
	n.add("the passphrase", []byte(passphrase))
	os.Remove(right)
	look := func() (found []string) {
		t.Helper()
		all := ""
		for _, content := range tree(t, p.home) {
			all += content + "\n"
		}
		return n.find(all)
	}
	if found := look(); len(found) > 0 {
		t.Errorf("the signer's files have %q", found)
	}
	for name := range halves {
		path := p.path(".local", "share", "vmux-signer", name)
		for _, try := range []string{"", wrongPassphrase, strings.ToUpper(passphrase), passphrase + "\n"} {
			if r := p.run("ssh-keygen", "-y", "-P", try, "-f", path); r.exit == 0 {
				t.Errorf("%s opens with %q", name, try)
			}
		}
		if r := p.run("ssh-keygen", "-y", "-P", passphrase, "-f", path); r.exit != 0 {
			t.Errorf("%s does not open: %v", name, r)
		}
	}
	n.check(t, halves)

	// The search sees them where they are: without a passphrase.
	right = p.write("right", passphrase+"\n", 0o600)
	p.ok("vmux-signer", "passphrase", "--none", "--passphrase-file", right)
	if found := look(); len(found) != 4 {
		t.Errorf("without a passphrase the search finds %q", found)
	}
}

// T06: five approvals with a wrong passphrase lock the signer, also after a
// restart, until its owner gives the right one.
func TestThreat_T06_FiveFailuresLock(t *testing.T) {
	t.Parallel()
	p, right, wrong := newLockedPhone(t)
	owner := p.askpass()
	p.serve("--approve", "askpass", "--log-level", "debug")
	d := newDevice(t, "laptop")
	pair(t, d, p)
	d.agent("--log-level", "debug")
	s := newServer(t, strings.Split(d.ok("ssh-add", "-L"), "\n")[0]+"\n")
	login := func() *process { return d.spawn("ssh", s.args("true")...) }

	// The right one after four wrong ones.
	l := login()
	for range 4 {
		q := owner.next()
		if !strings.Contains(q.prompt, "laptop") {
			t.Errorf("the prompt: %s", q.prompt)
		}
		q.answer(wrongPassphrase)
	}
	owner.next().answer(passphrase)
	if exit := l.ended(); exit != 0 {
		t.Fatalf("login with the passphrase: exit %d\n%s", exit, l.output())
	}
	if st := p.status(); st.Locked || st.Failures != 0 {
		t.Errorf("%+v", st)
	}

	l = login()
	for i := range 5 {
		q := owner.next()
		if st := p.status(); st.Locked || st.Failures != i {
			t.Errorf("after %d failures: %+v", i, st)
		}
		q.answer(wrongPassphrase)
	}
	if exit := l.ended(); exit == 0 {
		t.Fatalf("login without the passphrase\n%s", l.output())
	}
	d.serving.wait(`reason="the phone is locked: approvals are locked until the passphrase is given"`)
	p.serving.wait(`"event":"locked"`)
	locked := func() {
		t.Helper()
		if st := p.status(); !st.Locked || st.Failures != 5 {
			t.Errorf("%+v", st)
		}
		if r := p.run("vmux-signer", "status"); r.exit != 0 || !strings.Contains(r.stdout, "locked") || !strings.Contains(r.stdout, "vmux-signer unlock") {
			t.Errorf("status: %v", r)
		}
		// What is asked now is the passphrase, and nothing of the request.
		l := login()
		q := owner.next()
		if !strings.Contains(q.prompt, "locked") || strings.Contains(q.prompt, "laptop") || strings.Contains(q.prompt, "root") || strings.Contains(q.prompt, "SHA256") {
			t.Errorf("locked, it asks: %s", q.prompt)
		}
		q.answer("")
		if exit := l.ended(); exit == 0 {
			t.Error("logged in while it is locked")
		}
	}
	locked()
	p.serving.stop(syscall.SIGKILL)
	if r := p.run("vmux-signer", "status"); r.exit != 0 || !strings.Contains(r.stdout, "Offline") || !strings.Contains(r.stdout, "locked") {
		t.Errorf("status of a signer that does not run: %v", r)
	}
	address := p.address
	p.serveOn(address, "--approve", "askpass", "--no-advertise", "--log-level", "debug")
	locked()

	if r := p.run("vmux-signer", "unlock", "--passphrase-file", wrong); r.exit != 1 || !strings.Contains(r.stderr, "error: wrong passphrase") {
		t.Errorf("unlock with a wrong passphrase: %v", r)
	}
	if st := p.status(); !st.Locked || st.Failures != 6 {
		t.Errorf("%+v", st)
	}
	p.ok("vmux-signer", "unlock", "--passphrase-file", right)
	if st := p.status(); st.Locked || st.Failures != 0 {
		t.Errorf("%+v", st)
	}
	l = login()
	owner.next().answer(passphrase)
	if exit := l.ended(); exit != 0 {
		t.Fatalf("login after unlock: exit %d\n%s", exit, l.output())
	}
}

// G04: with App Lock the owner gives the passphrase before anything of a request
// is shown.
func TestThreat_G04_AppLock(t *testing.T) {
	t.Parallel()
	p, right, _ := newLockedPhone(t)
	owner := p.askpass()
	p.serve("--approve", "askpass", "--app-lock")
	d := newDevice(t, "laptop")
	pair(t, d, p)
	d.agent()
	line := strings.Split(d.ok("ssh-add", "-L"), "\n")[0]
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(t, line+"\n")
	words := []string{"laptop", "root", "default", "rig", s.fingerprint(), ssh.FingerprintSHA256(key), "ssh", "VERIFIED", "log in"}
	login := func() *process { return d.spawn("ssh", s.args("true")...) }
	door := func() ask {
		t.Helper()
		q := owner.next()
		for _, w := range words {
			if strings.Contains(q.prompt, w) {
				t.Errorf("%q is shown before the passphrase: %s", w, q.prompt)
			}
		}
		return q
	}
	sheet := func() ask {
		t.Helper()
		q := owner.next()
		for _, w := range words[:1] {
			if !strings.Contains(q.prompt, w) {
				t.Errorf("no %q in the prompt: %s", w, q.prompt)
			}
		}
		return q
	}
	want := func(l *process, ok bool) {
		t.Helper()
		if exit := l.ended(); ok != (exit == 0) {
			t.Errorf("login: exit %d\n%s", exit, l.output())
		}
	}
	if st := p.status(); st.AppLock != "shut" {
		t.Errorf("%+v", st)
	}
	l := login()
	door().answer(wrongPassphrase)
	door().answer(passphrase)
	sheet().answer(passphrase)
	want(l, true)
	if st := p.status(); st.AppLock != "open" {
		t.Errorf("%+v", st)
	}
	l = login()
	q := sheet()
	p.ok("vmux-signer", "lock") // while a prompt is shown
	q.withdrawn()
	want(l, false)
	if st := p.status(); st.AppLock != "shut" || !st.Locked {
		t.Errorf("%+v", st)
	}
	l = login()
	door().answer("")
	want(l, false)
	p.ok("vmux-signer", "unlock", "--passphrase-file", right)
	l = login()
	sheet().answer(passphrase)
	want(l, true)
}

// I03: a passphrase is in no file, no log, no answer, and in no argument or
// environment of a program that is started.
func TestThreat_I03_Passphrases(t *testing.T) {
	t.Parallel()
	// Its own: the program sees every process of the user, and the other tests are
	// free to name theirs in arguments.
	const passphrase, wrongPassphrase = "nowhere to be seen by anybody", "nowhere to be found by anybody"
	p, right, wrong := newPhoneLockedBy(t, passphrase, wrongPassphrase)
	p.write("started", "", 0o600)
	prog := p.write("approve", "#!/bin/sh\ncd\ncat >>started\nenv >>started\nps -o args -u \"$(id -u)\" >>started 2>&1\n", 0o700)
	p.serve("--approve", "command:"+prog, "--passphrase-file", right, "--log-level", "debug")
	d := newDevice(t, "laptop")
	pair(t, d, p)
	d.agent("--log-level", "debug")
	s := newServer(t, strings.Split(d.ok("ssh-add", "-L"), "\n")[0]+"\n")
	said := ""
	signer := func(exit int, args ...string) {
		t.Helper()
		r := p.run("vmux-signer", args...)
		if r.exit != exit {
			t.Errorf("%q: %v", args, r)
		}
		said += r.stdout + r.stderr
	}
	if r := s.login(d, "true"); r.exit != 0 {
		t.Errorf("login: %v", r)
	}
	signer(0, "lock", "--json")
	if r := s.login(d, "true"); r.exit == 0 {
		t.Errorf("login while it is locked: %v", r)
	}
	if r := d.run("vmux-cert"); r.exit != 5 || !strings.Contains(r.stderr, "hint: ") || !strings.Contains(r.stderr, "vmux-signer unlock") {
		t.Errorf("a certificate while it is locked: %v", r)
	}
	for range 5 {
		signer(1, "unlock", "--passphrase-file", wrong, "--json")
	}
	signer(0, "unlock", "--passphrase-file", right)
	signer(0, "status")
	if r := s.login(d, "true"); r.exit != 0 {
		t.Errorf("login: %v", r)
	}
	// Another one while it runs, and back: what it holds is of no use any more.
	signer(0, "passphrase", "--passphrase-file", right, "--new-passphrase-file", wrong)
	if st := p.status(); !st.NeedsPassphrase {
		t.Errorf("%+v", st)
	}
	if r := s.login(d, "true"); r.exit == 0 {
		t.Error("signed with a passphrase of before")
	}
	signer(0, "unlock", "--passphrase-file", wrong)
	if r := s.login(d, "true"); r.exit != 0 {
		t.Errorf("login: %v", r)
	}
	signer(0, "passphrase", "--passphrase-file", wrong, "--new-passphrase-file", right)
	p.serving.stop(syscall.SIGTERM)
	d.serving.stop(syscall.SIGTERM)

	n := needles{}
	secrets := map[string][]byte{"passphrase": []byte(passphrase), "wrong passphrase": []byte(wrongPassphrase)}
	for what, secret := range secrets {
		n.add(what, secret)
	}
	n.check(t, secrets)
	files := tree(t, p.home)
	if started := files["started"]; strings.Count(started, `"verified"`)+strings.Count(started, "serve") < 3 {
		t.Errorf("what was started: %s", started)
	}
	delete(files, "right")
	delete(files, "wrong")
	for name, content := range files {
		if found := n.find(content); len(found) > 0 {
			t.Errorf("%s has the %q", name, found)
		}
	}
	for whose, log := range map[string]string{"signer": p.serving.output(), "agent": d.serving.output(), "commands": said} {
		if found := n.find(log); len(found) > 0 {
			t.Errorf("the output of the %s has the %q:\n%s", whose, found, log)
		}
	}
	if !strings.Contains(p.serving.output(), "wrong passphrase") || !strings.Contains(p.serving.output(), "level=DEBUG") {
		t.Errorf("the signer does not log everything:\n%s", p.serving.output())
	}
}
