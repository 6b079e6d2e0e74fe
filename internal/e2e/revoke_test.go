// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/store"
)

// stays is a login that revocation must not touch: with the phone of somebody
// else.
func stays(t testing.TB) (*host, *phone) {
	t.Helper()
	p, d := newPhone(t), newDevice(t, "other")
	p.serve("--approve", "always")
	pair(t, d, p)
	d.agent()
	return d, p
}

// identity is ssh's options for one key of an agent, certificate or not.
func (h *host) identity(name, line string) []string {
	h.t.Helper()
	return []string{"-o", "IdentitiesOnly=yes", "-i", h.write(name, line+"\n", 0o600)}
}

func (h *host) readFile(name string) string {
	h.t.Helper()
	b, err := os.ReadFile(h.path(name))
	if err != nil {
		h.t.Fatal(err)
	}
	return string(b)
}

// krl makes a KRL of what revoke prints, and has ssh-keygen tell which of the
// files of keys and certificates it revokes.
func (h *host) krl(spec string, more ...string) (path string, revoked func(file string) bool) {
	h.t.Helper()
	path = h.path("revoked.krl")
	h.ok("ssh-keygen", append(append([]string{"-q", "-k", "-f", path}, more...), h.write("spec", spec, 0o600))...)
	return path, func(file string) bool {
		h.t.Helper()
		r := h.run("ssh-keygen", "-Q", "-f", path, file)
		if said := strings.Contains(r.stdout, "REVOKED"); said != (r.exit != 0) || !said && !strings.Contains(r.stdout, ": ok") {
			h.t.Errorf("ssh-keygen -Q %s: %v", file, r)
		}
		return r.exit != 0
	}
}

// revokes has the server refuse what is in a file, until that is put away.
func (s *server) revokes(file string) (undo func()) {
	s.t.Helper()
	config, err := os.ReadFile(s.file("sshd_config"))
	if err == nil {
		var b []byte
		if b, err = os.ReadFile(file); err == nil {
			s.write("revoked", string(b))
		}
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.write("sshd_config", string(config)+"RevokedKeys "+s.file("revoked")+"\n")
	return func() { s.write("sshd_config", string(config)) }
}

// Phone and computer are stolen, the passphrase is known, and both sign as before.
// What the phone's "revoke" has printed, kept elsewhere, ends that at every server
// that has it: for each key, and for each certificate that the phone signed or will
// sign. Nobody else is affected.
func TestThreat_T07_RevokedByServers(t *testing.T) {
	t.Parallel()
	d, p := certifying(t)
	p.ok("vmux-signer", "key", "add", "ed", "--type", "ed25519")
	p.ok("vmux-signer", "key", "add", "gone")
	gone := p.ok("vmux-signer", "key", "remove", "gone")
	p.ok("vmux-signer", "key", "disable", "ed")
	p.serving.stop(syscall.SIGTERM)
	spec := p.ok("vmux-signer", "revoke") // it need not run
	p.ok("vmux-signer", "key", "enable", "ed")
	p.serveOn(p.address, "--no-advertise", "--approve", "always")
	eventually(t, "both keys", func() bool { return strings.Count(d.run("ssh-add", "-L").stdout, "\n") == 2 })
	plain := strings.Split(strings.TrimSpace(d.ok("ssh-add", "-L")), "\n")
	other, _ := stays(t)
	theirs := strings.TrimSpace(other.ok("ssh-add", "-L"))
	d.certify()

	ca := strings.TrimSpace(d.ok("vmux-cert", "ca"))
	s := newServer(t, strings.Join(append(slices.Clone(plain), theirs), "\n")+"\n")
	s.trust(ca + "\n")
	byLine := newServer(t, d.ok("vmux-cert", "ca", "--authorized-keys", "--principal", me(t)))
	first := d.identity("first-cert.pub", d.offered()[0])
	keys := [][]string{d.identity("k0.pub", plain[0]), d.identity("k1.pub", plain[1])}
	for _, options := range append(keys, first) {
		s.accepts(d, options, "true")
	}
	byLine.accepts(d, first, "true")
	s.accepts(other, nil, "true")

	krl, revoked := d.krl(spec)
	d.write("their.pub", theirs+"\n", 0o600)
	fields := strings.Fields(gone)
	d.write("gone.pub", strings.Join(fields[len(fields)-2:], " ")+"\n", 0o600)
	d.write("ca.pub", ca+"\n", 0o600)
	for name, want := range map[string]bool{"k0.pub": true, "k1.pub": true, "gone.pub": true, "ca.pub": true, "first-cert.pub": true, "their.pub": false} {
		if got := revoked(d.path(name)); got != want {
			t.Errorf("ssh-keygen -Q: %s is revoked: %v", name, got)
		}
	}
	d.certify("--key-id", "later") // by a thief, after the list was made
	lines := d.offered()
	later := d.identity("later-cert.pub", lines[slices.Index(keyIDs(lines), "later")])

	// As a KRL, and as it was printed.
	for _, file := range []string{krl, d.path("spec")} {
		undo, undoLine := s.revokes(file), byLine.revokes(file)
		for _, options := range keys {
			s.refuses(d, options, "revoked by file")
		}
		for _, options := range [][]string{first, later} {
			s.refuses(d, options, "revoked by file")
			byLine.refuses(d, options, "revoked by file")
		}
		s.accepts(other, nil, "true")
		undo()
		undoLine()
	}
	s.accepts(d, later, "true")

	// The computer, if that is left, knows what the phone offers.
	var known []string
	for line := range strings.Lines(d.ok("vmux-pair", "--list", "--revoke")) {
		if !strings.Contains(spec, line) {
			t.Errorf("vmux-pair prints %s", line)
		}
		if !strings.HasPrefix(line, "#") {
			known = append(known, strings.Fields(line)[1])
		}
	}
	if len(known) != 3 || known[0] != strings.Fields(ca)[1] || !strings.Contains(strings.Join(plain, "\n"), known[1]) || !strings.Contains(strings.Join(plain, "\n"), known[2]) {
		t.Errorf("vmux-pair knows %q", known)
	}

	// A single certificate.
	c := parse(t, d.readFile("first-cert.pub")).(*ssh.Certificate)
	d.write("authority", p.ok("vmux-signer", "revoke", "--ca"), 0o600) // as the hint has it, comments and all
	krl, revoked = d.krl(p.ok("vmux-signer", "revoke", "--serial", strconv.FormatUint(c.Serial, 10)), "-s", d.path("authority"))
	if !revoked(d.path("first-cert.pub")) || revoked(d.path("later-cert.pub")) || revoked(d.path("k0.pub")) {
		t.Error("the KRL of a serial")
	}
	undo := s.revokes(krl)
	s.refuses(d, first, "revoked by file")
	s.accepts(d, later, "true")
	s.accepts(d, keys[0], "true")
	undo()

	// The lines are taken out, whatever is before and after them.
	lines = []string{"# the key of the signer", `from="10.0.0.0/8" ` + plain[0] + " of mine", theirs + " of another", plain[1], "cert-authority,principals=\"root\" " + ca}
	d.write("spec", spec, 0o600)
	d.write("authorized_keys", strings.Join(lines, "\n")+"\n", 0o600)
	if left := d.ok("grep", "-vFf", d.path("spec"), d.path("authorized_keys")); left != lines[0]+"\n"+lines[2]+"\n" {
		t.Errorf("grep leaves %s", left)
	}
}

// Erasing leaves nothing of keys and pairings, in no file and no form, and prints
// what revokes them. The device is not paired any more, whoever starts a signer
// in that place.
func TestThreat_T06_Erase(t *testing.T) {
	t.Parallel()
	d, p := certifying(t)
	p.ok("vmux-signer", "key", "add", "ed", "--type", "ed25519")
	p.ok("vmux-signer", "key", "add", "gone")
	p.ok("vmux-signer", "key", "remove", "gone")
	eventually(t, "both keys", func() bool { return strings.Count(d.run("ssh-add", "-L").stdout, "\n") == 2 })
	s := newServer(t, d.ok("ssh-add", "-L"))
	s.accepts(d, nil, "true") // hosts.json
	ca := d.ok("vmux-cert", "ca")
	pin := d.phones()[0].Pin

	// What the signer would lose is all in this, and the search finds it.
	points, secrets := map[string]string{}, map[string]bool{}
	for line := range strings.Lines(p.ok("vmux-signer", "revoke")) {
		if strings.HasPrefix(line, "ecdsa-") {
			points[string(point(t, parse(t, line)))] = line
		}
	}
	points[string(point(t, parse(t, ca)))] = "CA"
	link, err := store.LinkKey(filepath.Join(p.homeDir(), "link-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	public, err := ssh.NewPublicKey(&link.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	points[string(point(t, public))] = "link"
	text, err := os.ReadFile(filepath.Join(p.homeDir(), "keys/ed"))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := ssh.ParseRawPrivateKey(text)
	if err != nil {
		t.Fatal(err)
	}
	seed := raw.(*ed25519.PrivateKey).Seed()
	block, _ := pem.Decode(text)
	at := bytes.Index(block.Bytes, seed)
	for _, form := range []string{string(seed), hex.EncodeToString(seed), base64.StdEncoding.EncodeToString(seed), base64.StdEncoding.EncodeToString(block.Bytes[at+3-at%3:][:27])} {
		secrets[form] = true
	}
	look := func(dir string) (found []string) {
		for name, content := range tree(t, dir) {
			for _, what := range holdsKey(content, points) {
				found = append(found, name+": "+what)
			}
			for form := range secrets {
				if strings.Contains(strings.ReplaceAll(content, "\n", ""), form) {
					found = append(found, name+": ed25519")
				}
			}
			for _, b := range privateBlocks(content) {
				found = append(found, name+": "+b)
			}
			if name != "said" && (strings.Contains(content, pin) || strings.Contains(content, "laptop")) {
				found = append(found, name+": pairing")
			}
		}
		return found
	}
	if found := strings.Join(look(p.home), "\n"); strings.Count(found, "\n") < 8 || !strings.Contains(found, "ed25519") || !strings.Contains(found, "link") || !strings.Contains(found, "pairing") || !strings.Contains(found, ": CA") {
		t.Fatalf("the search finds\n%s", found)
	}

	// Not under a signer that runs.
	if r := p.run("vmux-signer", "erase", "--yes"); r.exit != 1 || r.stdout != "" || !strings.Contains(r.stderr, "error: another vmux-signer serves this home") {
		t.Errorf("while it runs: %v", r)
	}
	s.accepts(d, nil, "true")
	p.serving.stop(syscall.SIGKILL) // which leaves its socket
	// What crashes have left, and what is not the signer's.
	key, err := os.ReadFile(filepath.Join(p.homeDir(), "keys/default"))
	if err != nil {
		t.Fatal(err)
	}
	state, err := os.ReadFile(filepath.Join(p.homeDir(), "state.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(p.homeDir(), "rekey.new"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"keys/.new-1234567": key, "keys/default~": key, "rekey.new/ca": key, ".ca8129": key, ".state.json5512": state, "state.json.damaged-1": state, "hosts.json.damaged-2": state,
		".hosts.json77": state, "audit.jsonl": state, "audit-2.jsonl": state, "audit.lock": nil, ".removed.pub1": key,
	} {
		if err := os.WriteFile(filepath.Join(p.homeDir(), name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}

	spec := p.ok("vmux-signer", "revoke")
	if r := p.run("vmux-signer", "erase"); r.exit != 2 || r.stdout != "" || !strings.Contains(r.stderr, "hint: if you mean it: vmux-signer erase --yes") {
		t.Errorf("without a terminal: %v", r)
	}
	if r := p.run("sh", "-c", "vmux-signer erase --yes >/dev/full"); r.exit != 1 || !strings.Contains(r.stderr, "nothing was erased") {
		t.Errorf("where nothing can be printed: %v", r)
	}
	if now := p.ok("vmux-signer", "revoke"); now != spec {
		t.Error("it was erased")
	}
	r := p.run("vmux-signer", "erase", "--yes")
	if r.exit != 0 || r.stdout != spec || strings.Contains(r.stderr, "left") {
		t.Errorf("erase: %v\nrevoke printed\n%s", r, spec)
	}
	if _, err := os.Lstat(p.homeDir()); !os.IsNotExist(err) {
		t.Errorf("the home is there: %q", tree(t, p.homeDir()))
	}
	if found := look(p.home); len(found) > 0 {
		t.Errorf("left: %q", found)
	}
	if r := p.run("vmux-signer", "serve", "--approve", "always"); r.exit != 1 || !strings.Contains(r.stderr, "not a signer home") {
		t.Errorf("serve: %v", r)
	}

	// Another signer in its place knows nobody, and nobody knows it.
	p.ok("vmux-signer", "init", "--no-passphrase", "--name", "Pocket")
	if out := p.ok("vmux-signer", "devices", "--json"); out != `{"devices":[]}`+"\n" {
		t.Errorf("devices: %s", out)
	}
	for line := range strings.Lines(p.ok("vmux-signer", "revoke")) {
		if strings.Contains(spec, line) {
			t.Errorf("it still has %s", line)
		}
	}
	p.serveOn(p.address, "--no-advertise", "--approve", "always")
	if r := s.login(d, "true"); r.exit == 0 {
		t.Error("logged in after the erasure")
	}
	d.serving.wait(`msg="sign request" outcome=failed reason=".*the other end is not the one that was paired`)
	if strings.Contains(p.serving.output(), `"outcome":"signed"`) {
		t.Error("it has signed")
	}
}

// What a device prints of a phone is of that one only.
func TestRevokeByDevice(t *testing.T) {
	t.Parallel()
	d := newDevice(t, "laptop")
	if r := d.run("vmux-pair", "--list", "--revoke"); r.exit != 7 {
		t.Errorf("unpaired: %v", r)
	}
	one, two := newPhone(t), &phone{host: newHost(t)}
	two.ok("vmux-signer", "init", "--no-passphrase", "--name", "Other")
	for _, p := range []*phone{one, two} {
		p.serve("--approve", "always")
		pair(t, d, p)
	}
	for _, c := range []struct {
		args   []string
		exit   int
		stderr string
	}{
		{[]string{"--revoke"}, 2, "error: --revoke is a form of --list"},
		{[]string{"--list", "--revoke", "--allowed-signers"}, 2, "exclude one another"},
		{[]string{"--list", "--phone", "Pocket"}, 2, "error: --phone is for pairing"},
		{[]string{"--list", "--revoke", "--address", "127.0.0.1:1"}, 2, "error: --address is for pairing"},
		{[]string{"--forget", "Pocket", "--revoke"}, 2, "error: --revoke is a form of --list"},
		{[]string{"--list", "--revoke"}, 2, "error: 2 paired phones could be meant"},
		{[]string{"--list", "--revoke", "--phone", "Nobody"}, 1, `error: no paired phone is called "Nobody"`},
	} {
		if r := d.run("vmux-pair", c.args...); r.exit != c.exit || r.stdout != "" || !strings.Contains(r.stderr, c.stderr) {
			t.Errorf("%q: %v", c.args, r)
		}
	}
	want := two.ok("vmux-signer", "revoke")
	for _, p := range d.phones() {
		if p.Name != "Other" {
			continue
		}
		for _, name := range []string{p.Name, p.Pin} {
			if got := d.ok("vmux-pair", "--list", "--revoke", "--phone", name); got != want {
				t.Errorf("vmux-pair prints\n%s, vmux-signer\n%s", got, want)
			}
		}
	}
	if got, want := d.ok("vmux-pair", "--list", "--revoke", "--phone", "Other", "--json"), two.ok("vmux-signer", "revoke", "--json"); got != want {
		t.Errorf("vmux-pair prints\n%s, vmux-signer\n%s", got, want)
	}
}

// The page's command takes the lines out of authorized_keys, also when none is left,
// keeps the file's mode, and leaves it alone when the list is not there.
func TestRevokedLinesTakenOut(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	var command string
	for _, s := range parseBlock(t, literal(t, readPages(t)["vmux-signer.1"].section(".Sh", "REVOCATION"), "grep")) {
		command += s.text
	}
	const ours, theirs = "ssh-ed25519 AAAAours", "ssh-ed25519 AAAAtheirs"
	for _, c := range []struct{ before, after string }{
		{ours + " phone\n", ""},
		{theirs + " me\n" + `restrict ` + ours + " phone\n", theirs + " me\n"},
		{theirs + " me\n", theirs + " me\n"},
	} {
		for _, listed := range []bool{true, false} {
			h.write(".ssh/authorized_keys", c.before, 0o640)
			os.Remove(h.path(".ssh", "revoked-keys"))
			want := c.before
			if listed {
				h.write(".ssh/revoked-keys", "# the key default\n"+ours+"\n", 0o600)
				want = c.after
			}
			r := h.run("sh", "-c", "umask 002\n"+command)
			fi, err := os.Stat(h.path(".ssh", "authorized_keys"))
			if err != nil {
				t.Fatal(err)
			}
			if got := h.readFile(".ssh/authorized_keys"); got != want || fi.Mode().Perm() != 0o640 {
				t.Errorf("with a list: %v: %q has become %q, mode %v; %v", listed, c.before, got, fi.Mode(), r)
			}
		}
	}
}

// literal is the literal block of some lines that has a word.
func literal(t *testing.T, lines []string, word string) (block []string) {
	t.Helper()
	in := false
	for _, line := range lines {
		switch {
		case strings.HasPrefix(line, ".Bd -literal"):
			in, block = true, nil
		case line == ".Ed":
			if in = false; strings.Contains(strings.Join(block, " "), word) {
				return block
			}
		case in:
			block = append(block, strings.ReplaceAll(line, `\e`, `\`))
		}
	}
	t.Fatalf("no block has %q", word)
	return nil
}

// Whoever verifies commits by git refuses those that a stolen key signs, once git is told
// as the page has it; those of another key stay good.
func TestThreat_T07_RevokedCommits(t *testing.T) {
	t.Parallel()
	need(t, "git")
	p := newPhone(t)
	h := newHost(t)
	h.gitEnv()
	stolen := filepath.Join(p.homeDir(), "keys/default")
	mine := h.path("mine")
	h.ok("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", mine)
	public := strings.Fields(h.ok("ssh-keygen", "-y", "-f", stolen))
	h.write("signers", "me "+strings.Join(public[:2], " ")+"\nme "+h.readFile("mine.pub"), 0o600)
	h.ok("git", "init", "-q", h.path("work"))
	git := func(args ...string) result {
		return h.run("git", append([]string{"-C", h.path("work"), "-c", "user.name=me", "-c", "user.email=me", "-c", "gpg.format=ssh",
			"-c", "gpg.ssh.allowedSignersFile=" + h.path("signers")}, args...)...)
	}
	for _, key := range []string{stolen, mine} {
		if r := git("-c", "user.signingKey="+key, "commit", "-q", "-S", "--allow-empty", "-m", "x"); r.exit != 0 {
			t.Fatal(r)
		}
	}
	good := func(want ...bool) {
		t.Helper()
		for i, commit := range []string{"HEAD~1", "HEAD"} {
			if r := git("verify-commit", commit); (r.exit == 0) != want[i] {
				t.Errorf("%s: %v", commit, r)
			}
		}
	}
	good(true, true)
	list := h.write("revoked-keys", p.ok("vmux-signer", "revoke", "--quiet"), 0o600)
	for _, s := range parseBlock(t, literal(t, readPages(t)["vmux-signer.1"].section(".Sh", "REVOCATION"), "revocationFile")) {
		h.ok("sh", "-c", s.text)
	}
	good(false, true)
	h.ok("ssh-keygen", "-q", "-k", "-f", h.path("krl"), list)
	h.ok("mv", h.path("krl"), list)
	good(false, true)
}
