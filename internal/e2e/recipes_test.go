// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// step is one thing to do of a recipe in a manual page.
type step struct {
	prompt string // "$", "server#", "ci$"; "script" or "cron" for what is no command
	text   string
}

// recipe gives the steps of a page's recipe: what its literal blocks say.
func (p page) recipe(t *testing.T, title string) (steps []step) {
	t.Helper()
	var block []string
	in := false
	for _, line := range p.section(".Ss", title) {
		switch {
		case strings.HasPrefix(line, ".Bd -literal"):
			in, block = true, nil
		case line == ".Ed":
			in = false
			steps = append(steps, parseBlock(t, block)...)
		case in:
			block = append(block, strings.ReplaceAll(line, `\e`, `\`))
		}
	}
	if len(steps) == 0 {
		t.Fatalf("%s has no recipe %q", p.name, title)
	}
	return steps
}

var (
	promptLine = regexp.MustCompile(`^(\$|server#|ci\$) (.*)$`)
	cronLine   = regexp.MustCompile(`^(?:[0-9*]+ ){5}(.*)$`)
)

func parseBlock(t *testing.T, lines []string) (steps []step) {
	t.Helper()
	if strings.HasPrefix(lines[0], "#!") {
		return []step{{"script", strings.Join(lines, "\n") + "\n"}}
	}
	for _, line := range lines {
		if m := promptLine.FindStringSubmatch(line); m != nil {
			steps = append(steps, step{m[1], m[2] + "\n"})
		} else if m := cronLine.FindStringSubmatch(line); m != nil {
			steps = append(steps, step{"cron", m[1]})
		} else if n := len(steps); n > 0 { // goes on
			steps[n-1].text += line + "\n"
		} else {
			t.Fatalf("no command: %s", line)
		}
	}
	return steps
}

// kitchen is where recipes are tried: a device, another machine, and a server
// whose files are below a directory instead of in /etc/ssh and /srv. Of the lines of
// the page only these paths and the account's name are changed. ssh and sshd find the
// configuration there by programs of these names in PATH.
type kitchen struct {
	t     *testing.T
	d     *host
	p     *phone
	ci    *host
	s     *server
	other *server // another one that trusts the phone
	root  string  // of the server
}

func newKitchen(t *testing.T) *kitchen {
	t.Helper()
	d, p := certifying(t)
	s := newServer(t, "")
	k := &kitchen{t: t, d: d, p: p, ci: newHost(t), s: s, root: s.file("root"), other: trusting(t, d.ok("vmux-cert", "ca"))}
	for _, dir := range []string{"etc/ssh", "srv/backup", "srv/bin", "srv/www", "srv/git"} {
		if err := os.MkdirAll(filepath.Join(k.root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	config, err := os.ReadFile(s.file("sshd_config"))
	if err != nil {
		t.Fatal(err)
	}
	k.file("etc/ssh/sshd_config", string(config), 0o644)
	k.file("systemctl", "#!/bin/sh\n[ \"$*\" = 'reload ssh' ]\n", 0o755) // each login starts an sshd
	k.file("sshd", fmt.Sprintf("#!/bin/sh\nexec %s -f %s \"$@\"\n", need(t, "sshd"), k.path("etc/ssh/sshd_config")), 0o755)
	k.file("ssh", fmt.Sprintf("#!/bin/sh\nexec %s -F \"$HOME/.ssh/config\" \"$@\"\n", need(t, "ssh")), 0o755)
	for _, h := range []*host{d, k.ci} {
		hosts := ""
		for name, sshd := range map[string]string{
			"server": k.path("sshd") + " -i -E " + s.file("log"),
			"other":  fmt.Sprintf("%s -i -f %s -E %s", need(t, "sshd"), k.other.file("sshd_config"), k.other.file("log")),
		} {
			hosts += fmt.Sprintf("Host %s\n\tProxyCommand %s\n", name, sshd)
		}
		h.write(".ssh/config", hosts+fmt.Sprintf("Host *\n\tBatchMode yes\n\tIdentityFile none\n\tUserKnownHostsFile %s\n\tGlobalKnownHostsFile none\n",
			h.path(".ssh/known_hosts")), 0o600)
		h.write(".ssh/known_hosts", "server "+s.key+"\nother "+k.other.key+"\n", 0o600)
		h.setenv("PATH", k.root+":"+k.pathEnv())
	}
	return k
}

func (k *kitchen) pathEnv() string { return binDir + ":" + os.Getenv("PATH") }

func (k *kitchen) path(name string) string { return filepath.Join(k.root, name) }

func (k *kitchen) file(name, content string, mode os.FileMode) {
	k.t.Helper()
	syscall.ForkLock.RLock() // a child would hold it open for writing, and no such file can be run
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(k.path(name), []byte(content), mode); err != nil {
		k.t.Fatal(err)
	}
}

// here writes the page's paths and account as they are called here.
func (k *kitchen) here(text string) string {
	text = regexp.MustCompile(`(/etc/ssh|/srv)/`).ReplaceAllString(text, k.root+"$1/")
	text = regexp.MustCompile(`\b(deploy|root)@`).ReplaceAllString(text, me(k.t)+"@")
	return strings.ReplaceAll(text, "/principals/deploy", "/principals/"+me(k.t))
}

// try does a step and gives what became of it.
func (k *kitchen) try(s step) result {
	k.t.Helper()
	text := k.here(s.text)
	k.t.Logf("%s %s", s.prompt, strings.TrimSpace(text))
	switch s.prompt {
	case "script":
		m := regexp.MustCompile(`(?m)^# (~|\.)/(\S+)$`).FindStringSubmatch(text)
		if m == nil {
			k.t.Fatalf("a script without a name: %s", text)
		}
		if err := os.MkdirAll(filepath.Dir(k.d.path(m[2])), 0o755); err != nil {
			k.t.Fatal(err)
		}
		k.d.write(m[2], text, 0o755)
		return result{}
	case "cron": // which gives little
		bare := *k.d
		bare.env = []string{"HOME=" + k.d.home, "LOGNAME=" + me(k.t), "SHELL=/bin/sh", "PATH=" + k.root + ":" + binDir + ":/usr/bin:/bin",
			"GORACE=halt_on_error=1 atexit_sleep_ms=0"}
		return bare.run("/bin/sh", "-c", text)
	case "ci$":
		return k.ci.run("/bin/sh", "-c", text)
	default:
		return k.d.run("/bin/sh", "-c", text)
	}
}

// must is try for what must succeed.
func (k *kitchen) must(s step) result {
	k.t.Helper()
	r := k.try(s)
	if r.exit != 0 {
		k.t.Fatalf("%s %s%v\nsshd: %s", s.prompt, s.text, r, k.s.log())
	}
	return r
}

// setUp makes the server trust the phone, for these principals.
func (k *kitchen) setUp(page page, principals ...string) {
	k.t.Helper()
	k.file("etc/ssh/vmux_ca.pub", k.d.ok("vmux-cert", "ca"), 0o644)
	for _, s := range page.recipe(k.t, "A server that trusts the phone") {
		if s.prompt != "server#" {
			continue
		}
		if strings.Contains(s.text, "-k -u") {
			break
		}
		k.must(s)
	}
	k.file("etc/ssh/principals/"+me(k.t), strings.Join(principals, "\n")+"\n", 0o644)
}

// only takes the one step with this prompt out of steps.
func only(t *testing.T, steps *[]step, prompt string) step {
	t.Helper()
	i := slices.IndexFunc(*steps, func(s step) bool { return s.prompt == prompt })
	if i < 0 {
		t.Fatalf("the recipe has no step %q", prompt)
	}
	s := (*steps)[i]
	*steps = slices.Delete(*steps, i, i+1)
	return s
}

func certPage(t *testing.T) page {
	t.Helper()
	p, ok := readPages(t)["vmux-cert.1"]
	if !ok {
		t.Fatal("there is no page")
	}
	return p
}

// The five recipes of vmux-cert(1) do what they say, line for line.

func TestRecipeCron(t *testing.T) {
	t.Parallel()
	page := certPage(t)
	k := newKitchen(t)
	k.setUp(page, me(t))
	if err := os.Mkdir(k.d.path("notes"), 0o700); err != nil {
		t.Fatal(err)
	}
	k.d.write("notes/1", "remember", 0o600)
	steps := page.recipe(t, "A cron job")
	ask, job, line := only(t, &steps, "$"), only(t, &steps, "script"), only(t, &steps, "cron")
	k.must(job)

	// Before there is a certificate the job says so, and the phone is not asked.
	signed := func() int { return strings.Count(k.p.serving.output(), `"outcome":"signed"`) }
	if r := k.try(line); r.exit != 1 || !strings.Contains(r.stdout, "no certificate") {
		t.Fatalf("without a certificate: %v", r)
	}
	if n := signed(); n != 0 {
		t.Errorf("%d approvals", n)
	}
	k.must(ask)
	k.must(ask)
	if n := signed(); n != 1 {
		t.Errorf("%d approvals for one certificate", n)
	}
	k.p.serving.stop(syscall.SIGTERM)
	for range 2 {
		if r := k.must(line); r.stdout+r.stderr != "" {
			t.Errorf("cron would send mail: %v", r)
		}
		k.d.ok("tar", "-C", k.d.path(".ssh"), "-xf", k.path("srv/backup/notes.tar"))
		if b, err := os.ReadFile(k.d.path(".ssh/notes/1")); err != nil || string(b) != "remember" {
			t.Fatalf("the backup has %q (%v)", b, err)
		}
		os.RemoveAll(k.d.path(".ssh/notes"))
		os.Remove(k.path("srv/backup/notes.tar"))
	}
}

func TestRecipeCI(t *testing.T) {
	t.Parallel()
	page := certPage(t)
	k := newKitchen(t)
	k.setUp(page, "web", "ci")
	k.file("srv/bin/publish", "#!/bin/sh\necho \"published for $SSH_ORIGINAL_COMMAND\"\n", 0o755)
	steps := page.recipe(t, "A CI job on another machine")
	k.must(only(t, &steps, "ci$"))
	carry(t, k.ci, k.d, "ci.pub")
	k.must(only(t, &steps, "$"))
	login := only(t, &steps, "ci$")
	if r := k.try(login); r.exit == 0 {
		t.Fatal("the key alone is let in")
	}
	carry(t, k.d, k.ci, "ci-cert.pub")
	k.d.serving.stop(syscall.SIGTERM) // nothing here is needed any more
	k.p.serving.stop(syscall.SIGTERM)
	if r := k.must(login); r.stdout != "published for \n" {
		t.Errorf("%v", r)
	}
	login.text = strings.TrimSpace(login.text) + " cat /etc/passwd\n"
	if r := k.must(login); r.stdout != "published for cat /etc/passwd\n" {
		t.Errorf("another command: %v", r)
	}
	if _, err := os.Stat(k.d.path("ci")); err == nil {
		t.Error("the private key has travelled")
	}
}

// carry copies a file from one machine to another.
func carry(t *testing.T, from, to *host, name string) {
	t.Helper()
	b, err := os.ReadFile(from.path(name))
	if err != nil {
		t.Fatal(err)
	}
	to.write(name, string(b), 0o644)
}

func TestRecipeOneHost(t *testing.T) {
	t.Parallel()
	page := certPage(t)
	k := newKitchen(t)
	k.setUp(page, me(t))
	if err := os.Mkdir(k.d.path("site"), 0o700); err != nil {
		t.Fatal(err)
	}
	k.d.write("site/index.html", "<p>hello", 0o644)
	steps := page.recipe(t, "Deploy to one host only")
	k.must(only(t, &steps, "script"))
	run := only(t, &steps, "$")
	if r := k.must(run); r.stdout != "index.html\n" {
		t.Errorf("%v", r)
	}
	if n := strings.Count(k.p.serving.output(), `"outcome":"signed"`); n != 1 {
		t.Errorf("%d approvals", n)
	}
	// Whatever the script does.
	k.d.write("release", "#!/bin/sh\nssh "+me(t)+"@other true\n", 0o755)
	if r := k.try(run); r.exit != 255 {
		t.Errorf("a login elsewhere: %v", r)
	}
	if log := k.other.log(); strings.Contains(log, "Accepted") || !strings.Contains(log, "Connection from") {
		t.Errorf("the other server logs %s", log)
	}
	// Which would have let a certificate in that is for any host.
	k.must(step{"$", "vmux-cert run -- ./release\n"})
}

func TestRecipeGit(t *testing.T) {
	t.Parallel()
	page := certPage(t)
	k := newKitchen(t)
	k.setUp(page, me(t))
	git := func(args ...string) string {
		t.Helper()
		return k.d.ok("git", append([]string{"-c", "user.name=me", "-c", "user.email=me@example.org"}, args...)...)
	}
	for _, line := range []string{"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "GIT_TERMINAL_PROMPT=0"} {
		name, value, _ := strings.Cut(line, "=")
		k.d.setenv(name, value)
	}
	git("init", "-q", "-b", "main")
	git("init", "-q", "--bare", "-b", "main", k.path("srv/git/site.git"))
	git("commit", "-q", "--allow-empty", "-m", "one")
	steps := page.recipe(t, "Git push for an hour")
	k.must(only(t, &steps, "$"))
	k.must(only(t, &steps, "$"))
	push := only(t, &steps, "$")
	k.p.serving.stop(syscall.SIGTERM)
	for _, subject := range []string{"two", "three", "four"} {
		k.must(push)
		git("commit", "-q", "--allow-empty", "-m", subject)
	}
	k.must(push)
	if log := git("-C", k.path("srv/git/site.git"), "log", "--format=%s", "main"); log != "four\nthree\ntwo\none\n" {
		t.Errorf("pushed: %q", log)
	}
	git("fetch", "-q", "server")
	if log := k.s.log(); strings.Count(log, "Accepted publickey") != 5 || strings.Count(log, ": ECDSA-CERT SHA256:") != 5 {
		t.Errorf("not five logins by certificate:\n%s", log)
	}
}

func TestRecipeServer(t *testing.T) {
	t.Parallel()
	page := certPage(t)
	k := newKitchen(t)
	// Another way to log in, at first.
	k.s.write("authorized", k.d.ok("ssh-add", "-L"))
	steps := page.recipe(t, "A server that trusts the phone")
	var login step
	for {
		s := steps[0]
		steps = steps[1:]
		if strings.Contains(s.text, "-k -u") {
			steps = append([]step{s}, steps...)
			break
		}
		if strings.HasPrefix(s.text, "vmux-cert --principal") {
			k.s.write("authorized", "")
			if r := k.try(step{"$", "ssh deploy@server true\n"}); r.exit == 0 {
				t.Fatal("logged in without a certificate")
			}
		}
		k.must(s)
		login = s
	}
	if len(steps) != 2 || !strings.HasPrefix(login.text, "ssh deploy@server") {
		t.Fatalf("another recipe: %q, then %q", login, steps)
	}
	certificate := k.d.certificates()[0]
	if !slices.Equal(certificate.Principals, []string{"web"}) || !strings.Contains(k.s.log(), "(serial "+certificate.Serial+")") {
		t.Errorf("%+v\n%s", certificate, k.s.log())
	}
	// A principal that is not listed.
	k.d.ok("vmux-cert", "drop", "--all")
	k.d.certify("--principal", "db")
	k.refused(login, "does not contain any listed principal|Certificate does not contain an authorized principal|name is not a listed principal")
	k.d.ok("vmux-cert", "drop", "--all")

	// One is revoked, others are not.
	certificate = k.d.certify("--principal", "web")
	k.must(login)
	if !strings.Contains(steps[0].text, "'serial: 4242424242424242424'") {
		t.Fatalf("no serial in %s", steps[0].text)
	}
	steps[0].text = strings.ReplaceAll(steps[0].text, "4242424242424242424", certificate.Serial)
	k.must(steps[0])
	k.refused(login, "revoked by file")
	second := k.d.certify("--principal", "web")
	if second.Serial == certificate.Serial {
		t.Fatal("a serial came twice")
	}
	k.must(login)
	// All that the phone ever signs.
	k.must(steps[1])
	k.refused(login, "revoked by file")
	k.d.certify("--principal", "web")
	k.refused(login, "revoked by file")
}

// refused tries to log in, which sshd must refuse for this reason.
func (k *kitchen) refused(login step, why string) {
	k.t.Helper()
	before := len(k.s.log())
	r := k.try(login)
	log := k.s.log()[before:]
	if r.exit != 255 || !regexp.MustCompile(why).MatchString(log) {
		k.t.Errorf("not refused for %q: %v\n%s", why, r, log)
	}
}
