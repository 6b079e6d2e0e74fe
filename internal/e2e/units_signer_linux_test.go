// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// withoutDesktop is the drop-in that vmux-signer(1) has for a computer without a
// desktop, for a signer and a program that approves at these paths.
func withoutDesktop(t *testing.T, signer, approves string) string {
	t.Helper()
	p := readPages(t)["vmux-signer.1"]
	_, text, ok := strings.Cut(strings.Join(p.section(".Sh", "RUNNING AS A SERVICE"), "\n"), "[Service]\nExecStart=\n")
	text, _, ok2 := strings.Cut(text, "$ ")
	if !ok || !ok2 {
		t.Fatal("vmux-signer(1) has no drop-in for a computer without a desktop")
	}
	for from, to := range map[string]string{"=/usr/local/bin/vmux-signer ": "=" + signer + " ", ":/usr/local/bin/ask-me\n": ":" + approves + "\n"} {
		if strings.Count(text, from) != 1 {
			t.Fatalf("no %q in\n%s", from, text)
		}
		text = strings.Replace(text, from, to, 1)
	}
	return "[Service]\nExecStart=\n" + text
}

// systemd has nothing to say against the drop-in as the manual page has it.
func TestDropInAnalyzed(t *testing.T) {
	t.Parallel()
	need(t, "systemd-analyze")
	h := newHost(t)
	h.setenv("XDG_RUNTIME_DIR", h.path("run"))
	if err := os.Mkdir(h.path("run"), 0o700); err != nil {
		t.Fatal(err)
	}
	h.sources()
	if r := h.make("SYSTEM=Linux", "PREFIX="+h.path("p"), "install"); r.exit != 0 {
		t.Fatal(r)
	}
	const unit = "p/lib/systemd/user/vmux-signer.service"
	verify := func() result { return h.run("systemd-analyze", "--user", "--man=no", "verify", h.path(unit)) }
	text := withoutDesktop(t, h.path("p/bin/vmux-signer"), need(t, "true"))
	h.put(unit+".d/here.conf", text, 0o644)
	if r := verify(); r.exit != 0 || r.stdout != "" || r.stderr != "" {
		t.Errorf("verify: %v", r)
	}
	h.put(unit+".d/here.conf", strings.Replace(text, "LoadCredentialEncrypted=", "LoadCredentialEncrypted=/", 1), 0o644)
	if r := verify(); r.exit == 0 && r.stderr == "" {
		t.Error("systemd does not look at the drop-in")
	}
}

// Without a desktop the signer has its passphrase from a credential, and a program
// approves; with a wrong one it signs nothing and does not run in circles.
func TestSignerServiceWithoutDesktop(t *testing.T) {
	t.Parallel()
	p := &phone{host: newHost(t)}
	p.notRoot()
	p.sources()
	log := p.logFile("vmux-signer.service")
	pass := p.put(".config/vmux-signer.pass", "correct horse\n", 0o600)
	approves := p.write("approves", "#!/bin/sh\ncat >>\"$XDG_RUNTIME_DIR/asked\"\nenv >>\"$XDG_RUNTIME_DIR/asked\"\n", 0o755)
	text := withoutDesktop(t, p.path(".local/bin/vmux-signer"), approves)
	text = strings.Replace(text, "serve ", "serve --listen 127.0.0.1:0 --no-advertise ", 1)
	// The encrypted form takes systemd 256.
	text = strings.Replace(text, "LoadCredentialEncrypted=vmux-signer.passphrase:%h/.config/vmux-signer.cred", "LoadCredential=vmux-signer.passphrase:%h/.config/vmux-signer.pass", 1)
	if !strings.Contains(text, "LoadCredential=") {
		t.Fatal(text)
	}
	p.dropIn("vmux-signer.service", "here", text+"RestartSec=1ms\n")
	p.confineAsNewer("vmux-signer.service")
	p.own()
	p.ok("vmux-signer", "init", "--name", "Pocket", "--passphrase-file", pass)
	p.manager()
	if r := p.make("PREFIX="+p.path(".local"), "install"); r.exit != 0 {
		t.Fatal(r)
	}
	p.systemctl("daemon-reload")
	p.systemctl("start", "vmux-signer.service")
	p.address = log.wait(1, `^listening on (\S+)`)[1]
	d := newDevice(t, "laptop")
	pair(t, d, p)
	d.agent()
	eventually(t, "the phone's key", func() bool { return d.run("ssh-add", "-l").exit == 0 })
	d.write("letter", "text", 0o600)
	d.write("key.pub", d.ok("ssh-add", "-L"), 0o600)
	d.ok("ssh-keygen", "-Y", "sign", "-n", "file", "-f", d.path("key.pub"), d.path("letter"))
	asked, err := os.ReadFile(p.path("run/asked"))
	if err != nil || !strings.Contains(string(asked), `"laptop"`) {
		t.Errorf("asked: %v\n%s", err, asked)
	}
	if strings.Contains(string(asked), "correct horse") {
		t.Errorf("the program that approves gets the passphrase:\n%s", asked)
	}
	p.systemctl("stop", "vmux-signer.service")

	p.write(".config/vmux-signer.pass", "wrong\n", 0o600)
	p.own()
	p.run("systemctl", "--user", "start", "vmux-signer.service")
	eventually(t, "systemd to give up", func() bool { return p.show("vmux-signer.service", "ActiveState") == "failed" })
	if tries := strings.Count(log.output(), "error: wrong passphrase"); tries != 1 { // it gets no better
		t.Errorf("%d tries\n%s", tries, log.output())
	}
}

// The credential is read from where systemd says it is, and from nowhere else.
func TestPassphraseCredential(t *testing.T) {
	t.Parallel()
	p := &phone{host: newHost(t)}
	p.ok("vmux-signer", "init", "--name", "Pocket", "--passphrase-file", p.write("pass", "correct horse\n", 0o600))
	add := func(label string, want int, why string) {
		t.Helper()
		if r := p.run("vmux-signer", "key", "add", label); r.exit != want || !strings.Contains(r.stderr, why) {
			t.Errorf("%s: %v", label, r)
		}
	}
	add("none", 2, "no passphrase was given")
	if err := os.Mkdir(p.path("credentials"), 0o500); err != nil {
		t.Fatal(err)
	}
	p.setenv("CREDENTIALS_DIRECTORY", p.path("credentials"))
	add("empty", 2, "no passphrase was given")
	credential := func(name, passphrase string) {
		t.Helper()
		p.put(name+"/vmux-signer.passphrase", passphrase, 0o440) // as systemd has it: no end of line, a group
		p.chmod(name, 0o500)
		p.setenv("CREDENTIALS_DIRECTORY", p.path(name))
	}
	credential("one", "correct horse")
	add("right", 0, "")
	credential("another", "wrong")
	add("wrong", 1, "wrong passphrase")
	keys, err := filepath.Glob(filepath.Join(p.homeDir(), "keys/*"))
	if err != nil || len(keys) != 2 {
		t.Errorf("keys: %q, %v", keys, err)
	}
}
