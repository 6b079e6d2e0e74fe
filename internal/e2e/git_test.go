// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"crypto/rand"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/go-json-experiment/json"
	"golang.org/x/crypto/ssh"
)

// halves are the two parts of a prompt below its heading.
func (k ask) halves() (verified, claimed string) {
	k.a.t.Helper()
	_, rest, ok := strings.Cut(k.prompt, "\nVERIFIED\n")
	verified, claimed, ok2 := strings.Cut(rest, "\nCLAIMED by the device\n")
	if !ok || !ok2 {
		k.a.t.Fatalf("the prompt has no two halves:\n%s", k.prompt)
	}
	return verified, claimed
}

// says fails the test when the prompt does not have these lines; verified ones
// must not be claimed as well.
func (k ask) says(verified, claimed []string) {
	k.a.t.Helper()
	v, c := k.halves()
	for _, want := range verified {
		if !strings.Contains(v, want) {
			k.a.t.Errorf("not VERIFIED: %q:\n%s", want, k.prompt)
		}
		if strings.Contains(c, want) {
			k.a.t.Errorf("CLAIMED: %q:\n%s", want, k.prompt)
		}
	}
	for _, want := range claimed {
		if !strings.Contains(c, want) {
			k.a.t.Errorf("not CLAIMED: %q:\n%s", want, k.prompt)
		}
	}
}

// requests are the outcomes of what the phone was asked, in order. Where each
// prompt is answered by the test, a command that has ended raised no other one.
func (p *phone) requests() (outcomes []string) {
	for _, m := range regexp.MustCompile(`"event":"request".*"outcome":"(\w+)"`).FindAllStringSubmatch(p.serving.output(), -1) {
		outcomes = append(outcomes, m[1])
	}
	return outcomes
}

// asked fails the test unless the phone was asked this often and answered so.
func (p *phone) asked(outcomes ...string) {
	p.t.Helper()
	eventually(p.t, "the phone's log", func() bool { return len(p.requests()) >= len(outcomes) })
	if got := p.requests(); !slices.Equal(got, outcomes) {
		p.t.Errorf("the phone was asked: %q, not %q\n%s", got, outcomes, p.serving.output())
	}
}

// gitting is a device with git, whose phone has two keys, ECDSA first.
func gitting(t *testing.T) (*host, *phone, *server, *approver) {
	t.Helper()
	need(t, "git")
	p := newPhone(t)
	owner := p.askpass()
	d, p, s := around(t, p, "askpass", "ed25519")
	d.gitEnv()
	return d, p, s, owner
}

// gitEnv keeps git to this home's configuration, and has it leave its files there.
func (h *host) gitEnv() {
	h.setenv("GIT_CONFIG_NOSYSTEM", "1")
	h.setenv("GIT_TERMINAL_PROMPT", "0")
	h.setenv("XDG_CONFIG_HOME", "")
	h.setenv("TMPDIR", h.home)
}

// succeeds waits for the end of a command, which must be a good one.
func (p *process) succeeds() {
	p.t.Helper()
	if exit := p.ended(); exit != 0 {
		p.t.Fatalf("%s: exit %d\n%s", p.name, exit, p.output())
	}
}

// example gives the steps of the literal block in a page's EXAMPLES that has
// the given word.
func (p page) example(t *testing.T, word string) []step {
	t.Helper()
	for _, block := range strings.Split(strings.Join(p.section(".Sh", "EXAMPLES"), "\n"), ".Bd -literal -offset indent\n")[1:] {
		block, _, _ = strings.Cut(block, "\n.Ed")
		if strings.Contains(block, word) {
			return parseBlock(t, strings.Split(strings.ReplaceAll(block, `\e`, `\`), "\n"))
		}
	}
	t.Fatalf("%s has no example with %q", p.name, word)
	return nil
}

// The example in vmux-pair(1), line for line: commits are signed on the phone,
// one prompt each, and verified without it.
func TestGitSigns(t *testing.T) {
	t.Parallel()
	d, p, _, owner := gitting(t)
	d.ok("git", "init", "-q", "-b", "main")
	d.ok("git", "config", "--global", "user.name", "Me")
	d.write("file", "content\n", 0o600)
	d.ok("git", "add", "file")
	steps := readPages(t)["vmux-pair.1"].example(t, "git verify-commit")
	commit := slices.IndexFunc(steps, func(s step) bool { return strings.Contains(s.text, "git commit") })
	if commit < 0 || len(steps) != commit+2 {
		t.Fatalf("another example: %q", steps)
	}
	for _, s := range steps[:commit] {
		d.ok("/bin/sh", "-c", s.text)
	}
	p.asked() // all of that without the phone

	committing := d.spawn("/bin/sh", "-c", steps[commit].text)
	prompt := owner.next()
	git, keygen := need(t, "git"), need(t, "ssh-keygen")
	prompt.says([]string{`operation: sign data for "git"`, "key: default, SHA256:"}, []string{"process: " + keygen + " (", "< " + git + " (", "directory: " + d.home + "\n"})
	if !strings.Contains(prompt.prompt, `→ sign data for "git"`) || strings.Contains(prompt.prompt, "host key") {
		t.Errorf("prompt:\n%s", prompt.prompt)
	}
	prompt.approve()
	committing.succeeds()
	p.asked("signed")

	verify, good, _ := strings.Cut(steps[commit+1].text, "\n")
	fingerprint := regexp.MustCompile(`SHA256:\S+`)
	key := d.phones()[0].CachedKeys[0]
	if want := strings.TrimSpace(good); fingerprint.FindString(want) == "" {
		t.Fatalf("the example ends with %q", want)
	} else if r := d.run("/bin/sh", "-c", verify); r.exit != 0 || strings.TrimSpace(r.stderr) != fingerprint.ReplaceAllLiteralString(want, key.Fingerprint) {
		t.Errorf("%s: %v\nnot %s, %s", verify, r, want, key.Fingerprint)
	}
	// What does not come from the phone does not verify.
	made := strings.TrimSpace(d.ok("git", "rev-parse", "HEAD"))
	d.ok("git", "-c", "commit.gpgsign=false", "commit", "-q", "--amend", "-m", "not signed")
	if r := d.run("/bin/sh", "-c", verify); r.exit == 0 {
		t.Errorf("a commit without a signature: %v", r)
	}
	// Nor what somebody signed who is not listed.
	signers, err := os.ReadFile(d.path(".ssh/allowed_signers"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(signers), "\n")
	d.write(".ssh/allowed_signers", rest, 0o600)
	if r := d.run("git", "verify-commit", made); r.exit == 0 {
		t.Errorf("a signature of another key: %v", r)
	}
	d.write(".ssh/allowed_signers", string(signers), 0o600)
	d.ok("git", "verify-commit", made)

	// A tag, by the other key.
	d.ok("git", "config", "user.signingkey", "key::"+d.phones()[0].CachedKeys[1].PublicKey)
	tagging := d.spawn("git", "tag", "-s", "-m", "one", "v1")
	prompt = owner.next()
	prompt.says([]string{`operation: sign data for "git"`, "key: ed25519, SHA256:"}, nil)
	prompt.approve()
	tagging.succeeds()
	if r := d.run("git", "verify-tag", "v1"); r.exit != 0 || !strings.Contains(r.stderr, `Good "git" signature for me@example.org with ED25519 key `+d.phones()[0].CachedKeys[1].Fingerprint) {
		t.Errorf("verify-tag: %v", r)
	}
	p.asked("signed", "signed")

	// Said no: no commit, and no second prompt.
	head := d.ok("git", "rev-parse", "HEAD")
	committing = d.spawn("git", "commit", "-S", "--allow-empty", "-m", "denied")
	owner.next().deny()
	if exit := committing.ended(); exit == 0 {
		t.Error("committed though it was denied")
	}
	if now := d.ok("git", "rev-parse", "HEAD"); now != head {
		t.Errorf("HEAD is %s, not %s", now, head)
	}
	p.asked("signed", "signed", "denied")
	d.serving.wait(`outcome=denied .*kind=sshsig`)
}

// ssh-keygen signs files with a key on the phone, for another purpose than git.
func TestSignFile(t *testing.T) {
	t.Parallel()
	d, p, _, owner := gitting(t)
	file, pub := d.write("file", "content\n", 0o600), d.write("key.pub", d.phones()[0].CachedKeys[0].PublicKey+"\n", 0o600)
	signing := d.spawn("ssh-keygen", "-Y", "sign", "-n", "file", "-f", pub, file)
	prompt := owner.next()
	prompt.says([]string{`operation: sign data for "file"`}, []string{"process: " + need(t, "ssh-keygen") + " ("})
	prompt.approve()
	signing.succeeds()
	p.asked("signed")

	lines := d.ok("vmux-pair", "--list", "--allowed-signers", "--principal", "me@example.org", "--principal", "o'brien@example.org")
	verify := func(content, allowed, principal string) result {
		t.Helper()
		return d.runInput(content, "ssh-keygen", "-Y", "verify", "-n", "file", "-f", d.write("allowed", allowed, 0o600), "-I", principal, "-s", file+".sig")
	}
	// As they are, the lines are for git only.
	if r := verify("content\n", lines, "me@example.org"); r.exit == 0 || !strings.Contains(r.stderr+r.stdout, "namespace") {
		t.Errorf("lines for git, with a file's signature: %v", r)
	}
	forFiles := strings.ReplaceAll(lines, `namespaces="git"`, `namespaces="file"`)
	for _, principal := range []string{"me@example.org", "o'brien@example.org"} {
		if r := verify("content\n", forFiles, principal); r.exit != 0 || !strings.Contains(r.stdout, `Good "file" signature for `+principal) {
			t.Errorf("%s: %v", principal, r)
		}
	}
	if r := verify("content\n", forFiles, "you@example.org"); r.exit == 0 {
		t.Errorf("somebody else: %v", r)
	}
	if r := verify("other\n", forFiles, "me@example.org"); r.exit == 0 {
		t.Errorf("another content: %v", r)
	}
	if out := d.runInput("", "ssh-keygen", "-Y", "find-principals", "-f", d.path("allowed"), "-s", file+".sig").stdout; out != "me@example.org\no'brien@example.org\n" {
		t.Errorf("find-principals: %q", out)
	}

	os.Remove(file + ".sig")
	signing = d.spawn("ssh-keygen", "-Y", "sign", "-n", "file", "-f", pub, file)
	owner.next().deny()
	if exit := signing.ended(); exit == 0 {
		t.Error("signed though it was denied")
	}
	p.asked("signed", "denied")
}

// git's fetches and pushes over ssh are one prompt each, and one that is denied
// ends them at once.
func TestGitTransport(t *testing.T) {
	t.Parallel()
	d, p, s, owner := gitting(t)
	for _, c := range [][]string{{"user.name", "Me"}, {"user.email", "me@example.org"}} {
		d.ok("git", append([]string{"config", "--global"}, c...)...)
	}
	sshArgs := s.args()
	d.setenv("GIT_SSH_COMMAND", quoted(append([]string{need(t, "ssh")}, sshArgs[:len(sshArgs)-1]...)))
	bare := s.file("site.git")
	url := me(t) + "@rig:" + bare
	d.ok("git", "init", "-q", "--bare", "-b", "main", bare)
	d.ok("git", "init", "-q", "-b", "main", "work")
	d.ok("git", "-C", "work", "remote", "add", "origin", url)
	commit := func(subject string) {
		t.Helper()
		d.ok("git", "-C", "work", "commit", "-q", "--allow-empty", "-m", subject)
	}
	log := func(repository string) string {
		t.Helper()
		return strings.Join(strings.Fields(d.ok("git", "-C", repository, "log", "--format=%s", "main")), " ")
	}
	var outcomes []string
	// remote runs git, which asks once, and gives its exit status.
	remote := func(answer string, args ...string) int {
		t.Helper()
		git := d.spawn("git", args...)
		prompt := owner.next()
		prompt.says([]string{"operation: log in as " + me(t), "host key: " + s.fingerprint() + " (ssh-ed25519)"},
			[]string{"process: " + need(t, "ssh") + " (", "< " + need(t, "git") + " ("})
		if strings.Contains(prompt.prompt, "forwarded") {
			t.Errorf("forwarded:\n%s", prompt.prompt)
		}
		prompt.answer(answer)
		exit := git.ended()
		outcomes = append(outcomes, map[string]string{"yes": "signed", "no": "denied"}[answer])
		p.asked(outcomes...)
		if exit != 0 && answer == "yes" {
			t.Fatalf("git %q: exit %d\n%s\n%s", args, exit, git.output(), s.log())
		}
		return exit
	}

	commit("one")
	remote("yes", "-C", "work", "push", "-q", "origin", "main")
	if got := log(bare); got != "one" {
		t.Errorf("pushed: %q", got)
	}
	remote("yes", "clone", "-q", url, "copy")
	if got := log("copy"); got != "one" {
		t.Errorf("cloned: %q", got)
	}
	commit("two")
	remote("yes", "-C", "work", "push", "-q", "origin", "main")
	remote("yes", "-C", "copy", "fetch", "-q")
	if got := d.ok("git", "-C", "copy", "log", "-1", "--format=%s", "origin/main"); got != "two\n" {
		t.Errorf("fetched: %q", got)
	}

	// Denied. The phone has two keys which the server would take, and asks for one.
	commit("three")
	for _, args := range [][]string{{"-C", "work", "push", "-q", "origin", "main"}, {"-C", "copy", "fetch", "-q"}, {"clone", "-q", url, "denied"}} {
		if exit := remote("no", args...); exit == 0 {
			t.Errorf("git %q: done though it was denied", args)
		}
	}
	if got := log(bare); got != "two one" {
		t.Errorf("pushed: %q", got)
	}
	if _, err := os.Stat(d.path("denied")); err == nil {
		t.Error("a denied clone has left something")
	}
	if n := strings.Count(s.log(), "Accepted publickey"); n != 4 {
		t.Errorf("%d logins, not 4:\n%s", n, s.log())
	}
}

// The lines come from what is remembered of the phones, when neither they nor the
// agent are there.
func TestAllowedSigners(t *testing.T) {
	t.Parallel()
	d, p, _, _ := gitting(t)
	d.serving.stop(syscall.SIGTERM)
	p.serving.stop(syscall.SIGTERM)
	keys := d.phones()[0].CachedKeys
	if len(keys) != 2 {
		t.Fatalf("keys: %+v", keys)
	}
	want := func(principals string) string {
		return principals + ` namespaces="git" ` + keys[0].PublicKey + "\n" + principals + ` namespaces="git" ` + keys[1].PublicKey + "\n"
	}
	list := []string{"vmux-pair", "--list", "--allowed-signers"}
	if out := d.ok(list[0], append(list[1:], "--principal", "me@example.org", "--principal=you")...); out != want("me@example.org,you") {
		t.Errorf("two principals: %s", out)
	}
	// git's own name for the user, also one that holds in a directory only.
	if r := d.run(list[0], list[1:]...); r.exit != 2 || r.stdout != "" || !strings.Contains(r.stderr, "error: nobody is named by --principal, and git's user.email is not set\nhint: ") ||
		!strings.Contains(r.stderr, "--principal me@example.org") {
		t.Errorf("nobody: %v", r)
	}
	d.ok("git", "config", "--global", "user.email", "me@example.org")
	if out := d.ok(list[0], list[1:]...); out != want("me@example.org") {
		t.Errorf("git's user.email: %s", out)
	}
	d.ok("git", "init", "-q", ".")
	d.ok("git", "config", "user.email", "here@example.org")
	if out := d.ok(list[0], list[1:]...); out != want("here@example.org") {
		t.Errorf("the repository's user.email: %s", out)
	}
	if out := d.ok(list[0], append(list[1:], "--principal", "you")...); out != want("you") {
		t.Errorf("--principal beside user.email: %s", out)
	}
	d.ok("git", "config", "user.email", "everybody@*")
	if r := d.run(list[0], list[1:]...); r.exit != 2 || !strings.Contains(r.stderr, "error: git's user.email: the principal \"everybody@*\" has a meaning as a pattern") {
		t.Errorf("a pattern in git's configuration: %v", r)
	}
	d.write(".git/config", "[user\n", 0o600)
	if r := d.run(list[0], list[1:]...); r.exit != 2 || !strings.Contains(r.stderr, "git does not tell its user.email: bad config line 1") {
		t.Errorf("a damaged configuration of git: %v", r)
	}
	bare := *d
	bare.env = append(slices.Clone(d.env), "PATH="+binDir)
	if r := bare.run(list[0], list[1:]...); r.exit != 2 || !strings.Contains(r.stderr, "git is not installed") {
		t.Errorf("without git: %v", r)
	}
	if out := bare.ok(list[0], append(list[1:], "--principal", "you")...); out != want("you") {
		t.Errorf("--principal without git: %s", out)
	}

	var o struct {
		AllowedSigners []struct {
			Line        string   `json:"line"`
			Principals  []string `json:"principals"`
			Namespaces  []string `json:"namespaces"`
			PublicKey   string   `json:"publicKey"`
			Fingerprint string   `json:"fingerprint"`
		} `json:"allowedSigners"`
	}
	out := d.ok(list[0], append(list[1:], "--json", "--principal", "me", "--principal", "you")...)
	if err := json.Unmarshal([]byte(out), &o, json.RejectUnknownMembers(true)); err != nil || strings.Count(out, "\n") != 1 || len(o.AllowedSigners) != 2 {
		t.Fatalf("--json: %v: %s", err, out)
	}
	for i, s := range o.AllowedSigners {
		if s.Line+"\n" != strings.SplitAfter(want("me,you"), "\n")[i] || !slices.Equal(s.Principals, []string{"me", "you"}) ||
			!slices.Equal(s.Namespaces, []string{"git"}) || s.PublicKey != keys[i].PublicKey || s.Fingerprint != keys[i].Fingerprint {
			t.Errorf("--json: %+v", s)
		}
	}
}

// What is no plain key is left out, and what two phones have is there once.
func TestAllowedSignersAreKeys(t *testing.T) {
	t.Parallel()
	ca, one, two := newSigner(t), newSigner(t).PublicKey(), newSigner(t).PublicKey()
	certificate := &ssh.Certificate{Key: two, CertType: ssh.UserCert, ValidPrincipals: []string{"me"}, ValidBefore: ssh.CertTimeInfinity}
	if err := certificate.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}
	type object = map[string]any
	key := func(blob []byte, comment string) object {
		return object{"algorithm": "ecdsa-sha2-nistp256", "publicKeyBlob": blob, "comment": comment, "providerKind": "unknown", "displayName": comment}
	}
	phone := func(name, pin string, keys ...object) object {
		return object{"name": name, "pin": pin, "pairedAt": "2026-01-02T03:04:05Z", "caKey": ca.PublicKey().Marshal(), "cachedKeys": keys}
	}
	content, err := json.Marshal(object{"version": 1, "phones": []object{
		phone("Pocket", "SHA256:"+strings.Repeat("A", 43), key(one.Marshal(), "first\n* "+hostile), key(certificate.Marshal(), "certificate"), key([]byte("garbage"), "garbage")),
		phone("Spare", "SHA256:B"+strings.Repeat("A", 42), key(one.Marshal(), "again"), key(two.Marshal(), "")),
	}})
	if err != nil {
		t.Fatal(err)
	}
	d := newHost(t)
	d.put(stateFile, string(content), 0o600)
	r := d.run("vmux-pair", "--list", "--allowed-signers", "--principal", "me")
	line := func(k ssh.PublicKey) string {
		return `me namespaces="git" ` + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k)))
	}
	if want := line(one) + ` first\x0a* Po\x1b[31mck\u202eet\x0aerror: x\x07` + "\n" + line(two) + "\n"; r.exit != 0 || r.stdout != want {
		t.Errorf("%q\nnot %q", r.stdout, want)
	}
	for _, left := range []string{"certificate", "garbage"} {
		if !strings.Contains(r.stderr, fmt.Sprintf(`warning: Pocket has something else than a plain key, "%s", which is left out`, left)) {
			t.Errorf("%s is left out without a word: %v", left, r)
		}
	}
	if strings.Count(r.stderr, "\n") != 2 {
		t.Errorf("%v", r)
	}
}

func TestAllowedSignersUsage(t *testing.T) {
	t.Parallel()
	args := func(principal string) []string {
		return []string{"vmux-pair", "--list", "--allowed-signers", "--principal", principal}
	}
	refuseAll(t, []bad{
		{args: []string{"vmux-pair", "--allowed-signers"}, exit: 2, problem: "--allowed-signers is a form of --list", hint: "write --list --allowed-signers"},
		{args: []string{"vmux-pair", "--forget", "x", "--allowed-signers"}, exit: 2, problem: "--allowed-signers is a form of --list", hint: "write --list --allowed-signers"},
		{args: []string{"vmux-pair", "--list", "--principal", "me"}, exit: 2, problem: "--principal is for --allowed-signers", hint: "--list --allowed-signers --principal"},
		{args: []string{"vmux-pair", "--principal", "me"}, exit: 2, problem: "--principal is for --allowed-signers", hint: "--list --allowed-signers --principal"},
		{args: []string{"vmux-pair", "--list", "--allowed-signers", "--timeout", "1m"}, exit: 2, problem: "--timeout is for pairing, not for --list", hint: "leave it out"},
		{name: "two names in one", args: args("me you"), exit: 2, problem: "has spaces", hint: "once for each"},
		{name: "a list", args: args("me,you"), exit: 2, problem: `the principal "me,you" has a meaning as a pattern, a list`, hint: "once for each"},
		{name: "a pattern", args: args("*@example.org"), exit: 2, problem: "has a meaning as a pattern", hint: "--principal me@example.org"},
		{name: "a negated pattern", args: args("!me"), exit: 2, problem: "has a meaning as a pattern", hint: "--principal me@example.org"},
		{name: "a quotation", args: args(`"me"`), exit: 2, problem: "a quotation", hint: "--principal me@example.org"},
		{name: "a comment", args: args("#me"), exit: 2, problem: "a comment", hint: "--principal me@example.org"},
		{name: "a line", args: args("me\n*"), exit: 2, problem: "has spaces or characters that do not show", hint: "--principal me@example.org"},
		{name: "no name", args: args(""), exit: 2, problem: "a principal is empty", hint: "--principal me@example.org"},
		{name: "no phone", args: args("me"), exit: 7, problem: "no phone is paired", hint: "vmux-pair"},
		{name: "no key", prepare: state(`{"version":1,"phones":[{"name":"Pocket","pin":"SHA256:` + strings.Repeat("A", 43) + `","pairedAt":"2026-01-02T03:04:05Z","cachedKeys":[]}]}`),
			args: args("me"), exit: 1, problem: "no key of a paired phone is known yet", hint: "ssh-add -l"},
	})
}
