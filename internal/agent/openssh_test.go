// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/policy"
	"vmux.app/toolkit/internal/signed"
)

// find looks for a real peer. In CI its absence is a failure.
func find(t *testing.T, names ...string) string {
	t.Helper()
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed", names[0])
	}
	t.Skipf("%s is not installed", names[0])
	return ""
}

// run runs a program with the agent and gives its output and exit code.
func (r *rig) run(env []string, name string, args ...string) (string, int) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.(*testing.T).Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), append(env, "SSH_AUTH_SOCK="+r.socket, "LC_ALL=C")...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.t.Fatalf("%s: %v", name, err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// system has the server look at its clients as it does outside of tests.
func system(s *Server) { s.proc = systemProcesses("") }

func write(t *testing.T, path, text string, mode os.FileMode) string {
	t.Helper()
	syscall.ForkLock.RLock() // a child would hold it open for writing, and no such file can be run
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSSHAdd(t *testing.T) {
	t.Parallel()
	sshAdd := find(t, "ssh-add")
	r := newRig(t, system)
	dir := t.TempDir()
	expect := func(code int, text string, env []string, args ...string) {
		t.Helper()
		out, got := r.run(env, sshAdd, args...)
		if got != code || !strings.Contains(out, text) {
			t.Errorf("ssh-add %s: exit %d, want %d with %q:\n%s", args, got, code, text, out)
		}
	}
	ed := r.signer.Keys(nil)[0]
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(ed.Public)))
	public := write(t, filepath.Join(dir, "id.pub"), line+"\n", 0o600)
	expect(0, ssh.FingerprintSHA256(ed.Public)+" ed@phone (ED25519)", nil, "-l")
	expect(0, line+" ed@phone", nil, "-L")

	passphrase := func(text string) []string {
		ask := write(t, filepath.Join(dir, "ask-"+text), "#!/bin/sh\necho "+text+"\n", 0o700)
		return []string{"SSH_ASKPASS=" + ask, "SSH_ASKPASS_REQUIRE=force", "DISPLAY=:9"}
	}
	expect(0, "Agent locked", passphrase("right"), "-x")
	expect(1, "no identities", nil, "-l")
	expect(1, "Failed to unlock", passphrase("wrong"), "-X")
	expect(0, "Agent unlocked", passphrase("right"), "-X")
	expect(0, "p256@phone", nil, "-l")

	expect(1, "", nil, "-T", public)
	r.policy.Store(askFor(policy.Opaque))
	expect(0, "", nil, "-T", public)

	expect(1, "Failed to remove all identities", nil, "-D")
	expect(1, "", nil, "-d", public)
	_, block := mustEd25519(t)
	expect(1, "", nil, write(t, filepath.Join(dir, "id"), block, 0o600))
	if got := len(r.log.lines("vmux-signer key")); got < 3 {
		t.Errorf("log gives advice %d times:\n%s", got, r.log)
	}
}

func mustEd25519(t *testing.T) (ssh.Signer, string) {
	t.Helper()
	private := newEd25519Key(t)
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	return newSigner(t, private), string(pem.EncodeToMemory(block))
}

// host is an sshd that speaks on standard input and trusts the phone's keys.
type host struct {
	key    ssh.PublicKey
	config string // file
	sshd   string
	known  string // file
	name   string
}

func (r *rig) newHost(t *testing.T, name string) host {
	t.Helper()
	h := host{sshd: find(t, "sshd", "/usr/sbin/sshd", "/usr/local/sbin/sshd"), name: name}
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if os.Geteuid() == 0 {
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	signer, private := mustEd25519(t)
	h.key = signer.PublicKey()
	var trusted bytes.Buffer
	for _, k := range r.signer.Keys(nil) {
		trusted.Write(ssh.MarshalAuthorizedKey(k.Public))
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	write(t, path("host"), private, 0o600)
	write(t, path("trusted"), trusted.String(), 0o600)
	h.known = write(t, path("known"), name+" "+string(ssh.MarshalAuthorizedKey(h.key)), 0o600)
	h.config = write(t, path("config"), strings.Join([]string{
		"HostKey " + path("host"), "PidFile none", "UsePAM no", "StrictModes no", "PasswordAuthentication no",
		"KbdInteractiveAuthentication no", "PermitRootLogin prohibit-password", "AuthorizedKeysFile " + path("trusted"),
		"LogLevel VERBOSE", "MaxStartups 200", ""}, "\n"), 0o600)
	return h
}

// args are ssh's arguments for a login at h.
func (h host) args(t *testing.T, command ...string) []string {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"-F", "none"}
	for _, o := range []string{
		fmt.Sprintf("ProxyCommand=%s -i -f %s -E %s.log", h.sshd, h.config, h.config), "HostKeyAlias=" + h.name, "UserKnownHostsFile=" + h.known,
		"GlobalKnownHostsFile=none", "StrictHostKeyChecking=yes", "BatchMode=yes", "ControlPath=none", "IdentityFile=none",
	} {
		args = append(args, "-o", o)
	}
	return append(append(args, me.Username+"@"+h.name), command...)
}

func quote(args []string) string {
	for i, a := range args {
		args[i] = "'" + a + "'"
	}
	return strings.Join(args, " ")
}

func TestSSHLogin(t *testing.T) {
	t.Parallel()
	client := find(t, "ssh")
	r := newRig(t, system)
	h := r.newHost(t, "one")
	if out, code := r.run(nil, client, h.args(t, "echo", "in")...); code != 0 || out != "in\n" {
		t.Fatalf("exit %d: %s\n%s", code, out, r.log)
	}
	asked := r.signer.requests()
	if len(asked) != 1 {
		t.Fatalf("asked %d times", len(asked))
	}
	q := asked[0]
	if q.Meaning.Kind != signed.Login || len(q.Binds) != 1 || q.Forwarded || !bytes.Equal(q.HostKey, h.key.Marshal()) {
		t.Errorf("%v, %d binds, forwarded %v, host key %x", q.Meaning.Kind, len(q.Binds), q.Forwarded, q.HostKey)
	}
	if len(r.log.lines("outcome=signed", "kind=login", "/ssh", ssh.FingerprintSHA256(h.key))) != 1 {
		t.Errorf("log:\n%s", r.log)
	}
}

// TestSSHForwarding: a login, and a file signed, from the far side of ssh -A.
func TestSSHForwarding(t *testing.T) {
	t.Parallel()
	client := find(t, "ssh")
	keygen := find(t, "ssh-keygen")
	r := newRig(t, system)
	first, second := r.newHost(t, "first"), r.newHost(t, "second")
	far := client + " " + quote(second.args(t, "echo", "in"))
	if out, code := r.run(nil, client, append([]string{"-A"}, first.args(t, far)...)...); code != 0 || !strings.Contains(out, "in\n") {
		t.Fatalf("exit %d: %s\n%s", code, out, r.log)
	}
	asked := r.signer.requests()
	if len(asked) != 2 {
		t.Fatalf("asked %d times", len(asked))
	}
	near, hop := asked[0], asked[1]
	if near.Forwarded || !bytes.Equal(near.HostKey, first.key.Marshal()) {
		t.Errorf("first login: forwarded %v, host key %x", near.Forwarded, near.HostKey)
	}
	if !hop.Forwarded || len(hop.Binds) != 2 || !bytes.Equal(hop.HostKey, second.key.Marshal()) {
		t.Errorf("second login: forwarded %v, %d binds, host key %x", hop.Forwarded, len(hop.Binds), hop.HostKey)
	}

	public := write(t, filepath.Join(t.TempDir(), "id.pub"), string(ssh.MarshalAuthorizedKey(r.signer.Keys(nil)[0].Public)), 0o600)
	far = "echo text | " + keygen + " -Y sign -n file -f " + public
	sign := append([]string{"-A"}, first.args(t, far)...)
	if out, code := r.run(nil, client, sign...); code != 0 || !strings.Contains(out, "BEGIN SSH SIGNATURE") {
		t.Fatalf("exit %d: %s\n%s", code, out, r.log)
	}
	asked = r.signer.requests()
	if q := asked[len(asked)-1]; q.Meaning.Kind != signed.SSHSIG || q.Meaning.Namespace != "file" || !q.Forwarded {
		t.Errorf("%v %q, forwarded %v", q.Meaning.Kind, q.Meaning.Namespace, q.Forwarded)
	}

	r.policy.Store(&policy.Policy{Default: policy.Ask, Rules: []policy.Rule{{Line: 9, Action: policy.Refuse, Forwarded: policy.Yes}}})
	if out, code := r.run(nil, client, sign...); code == 0 {
		t.Errorf("signed though the policy refuses: %s", out)
	}
	if len(r.log.lines("outcome=refused", "forwarded=true", "policy: rule 1 (line 9)")) != 1 {
		t.Errorf("log:\n%s", r.log)
	}
}

// TestSSHFailsFast: a denial ends the login, and the client's other keys raise no further prompt.
func TestSSHFailsFast(t *testing.T) {
	t.Parallel()
	client := find(t, "ssh")
	r := newRig(t, system)
	h := r.newHost(t, "one")
	r.signer.owner(func(context.Context, Request) error { return ErrDenied })
	if out, code := r.run(nil, client, h.args(t, "echo", "in")...); code == 0 {
		t.Fatalf("logged in: %s", out)
	}
	if n := len(r.signer.requests()); n != 1 {
		t.Errorf("asked %d times, want once", n)
	}
	if len(r.log.lines("outcome=denied")) != 1 || len(r.log.lines("denied this already")) == 0 {
		t.Errorf("log:\n%s", r.log)
	}
}

func TestEndedClientIsNobody(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(find(t, "true"))
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	p := Peer{PID: cmd.Process.Pid, proc: systemProcesses("")}
	if _, err := p.Executable(); !errors.Is(err, ErrPeerGone) {
		t.Errorf("executable: %v", err)
	}
	if p.isSSH() || p.isOurs() {
		t.Error("taken for ssh or ours")
	}
}

// TestThreat_T10_PeerUID: another user is turned away even when the socket's mode lets them in.
func TestThreat_T10_PeerUID(t *testing.T) {
	t.Parallel()
	sshAdd := find(t, "ssh-add")
	if os.Geteuid() != 0 {
		t.Skip("only root can be another user")
	}
	r := newRig(t)
	for path, mode := range map[string]os.FileMode{filepath.Dir(r.socket): 0o755, r.socket: 0o777} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	for uid, want := range map[uint32]bool{0: true, 65534: false} {
		cmd := exec.CommandContext(t.Context(), sshAdd, "-l")
		cmd.Env = []string{"SSH_AUTH_SOCK=" + r.socket}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		if listed := err == nil; listed != want {
			t.Errorf("uid %d: listed is %v: %v\n%s", uid, listed, err, out)
		}
	}
	if len(r.log.lines("level=WARN", "another user", "uid 65534")) != 1 {
		t.Errorf("log:\n%s", r.log)
	}
}
