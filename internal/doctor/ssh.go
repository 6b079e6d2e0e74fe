// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

const (
	// anyHost is what ssh's configuration is asked about when no host is meant: a name that is nobody's (RFC 6761).
	anyHost = "vmux-doctor.invalid"
	// maxAuthTries is sshd's default of keys that it lets a client try (sshd_config(5), MaxAuthTries): the seventh is
	// never looked at.
	maxAuthTries = 6
	// maxStartup bounds what is read of one start-up file or public key.
	maxStartup = 256 << 10
)

func sshChecks() []Check {
	return []Check{
		{ID: "ssh-version", Title: "ssh is OpenSSH 8.9 or later, which says where it logs in", Run: checkSSHVersion},
		{ID: "auth-sock", Title: "SSH_AUTH_SOCK names the socket", Run: checkAuthSock},
		{ID: "identity-agent", Title: "ssh's configuration leads to the socket and its keys", Needs: []string{"ssh-version"}, Run: checkIdentityAgent},
		{ID: "session-sock", Title: "programs that no shell starts find the socket", OS: "darwin", Run: checkSessionSock},
		{ID: "rivals", Title: "nothing else sets SSH_AUTH_SOCK: start-up files, the session", Routine: true, Run: checkRivals},
	}
}

func keyChecks() []Check {
	return []Check{
		{ID: "key-count", Title: "the agent lists keys, and not more than servers try", Needs: []string{"agent", "paired"}, Run: checkKeyCount},
	}
}

var openSSH = regexp.MustCompile(`OpenSSH(?:_for_Windows)?_(\d+)\.(\d+)\S*`)

func checkSSHVersion(ctx context.Context, e *Env) Finding {
	const why = "session-bind tells the agent where a login goes; without it prompts cannot show the host, and certificates for one host are refused"
	out, err := e.Run(ctx, "ssh", "-V")
	if errors.Is(err, exec.ErrNotFound) {
		return e.failure(ErrNoSSH, "nothing can log in")
	}
	if err != nil {
		return e.failure(err, "nothing can log in")
	}
	said := strings.TrimSpace(out.Stderr + out.Stdout)
	m := openSSH.FindStringSubmatch(said)
	if m == nil {
		return e.warning(&SSHVersionError{said}, why)
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	if major < 8 || major == 8 && minor < 9 {
		return e.warning(&SSHVersionError{m[0]}, why)
	}
	return ok("%s", m[0])
}

// sshConfig is what ssh's configuration says about the host that is meant, or about any host.
func (e *Env) sshConfig(ctx context.Context) (map[string][]string, error) {
	return e.facts.config.get(ctx, e, func(ctx context.Context) (map[string][]string, error) {
		ctx, cancel := context.WithTimeoutCause(ctx, checkTime, errTime)
		defer cancel()
		out, err := e.Run(ctx, "ssh", "-G", "--", cmp.Or(e.Host, anyHost))
		if err != nil {
			return nil, err
		}
		if out.Exit != 0 {
			return nil, &SSHConfigError{strings.TrimSpace(out.Stderr)}
		}
		config := make(map[string][]string)
		for line := range strings.Lines(out.Stdout) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
			config[key] = append(config[key], value)
		}
		return config, nil
	})
}

// identityAgent is ssh's setting IdentityAgent with variables replaced, empty where SSH_AUTH_SOCK decides.
func (e *Env) identityAgent(config map[string][]string) string {
	if len(config["identityagent"]) == 0 {
		return ""
	}
	value := config["identityagent"][0]
	switch name, isVariable := strings.CutPrefix(value, "$"); {
	case value == "SSH_AUTH_SOCK":
		return ""
	case isVariable:
		return cmp.Or(e.Getenv(strings.Trim(name, "{}")), value)
	}
	if rest, ok := strings.CutPrefix(value, "~/"); ok {
		return filepath.Join(e.Home, rest)
	}
	return value
}

// leads says whether ssh's configuration leads to the socket whatever SSH_AUTH_SOCK is.
func (e *Env) leads(ctx context.Context) bool {
	config, err := e.sshConfig(ctx)
	return err == nil && same(e.identityAgent(config), e.Config.Socket)
}

func checkAuthSock(ctx context.Context, e *Env) Finding {
	value := e.Getenv("SSH_AUTH_SOCK")
	switch {
	case same(value, e.Config.Socket):
		return ok("SSH_AUTH_SOCK is the socket")
	case strings.Contains(value, "/vmux-job-"):
		return ok("SSH_AUTH_SOCK is the socket of a job, see vmux-cert run")
	}
	err := &AuthSockError{value, owner(value), e.Config.Socket}
	if e.leads(ctx) {
		return e.warning(err, "ssh finds the socket by its configuration; ssh-add, git's signatures and others do not")
	}
	return e.failure(err, "ssh asks that agent or none, and never the phone")
}

// same says whether two paths name one file, or would.
func same(a, b string) bool {
	if a == "" || b == "" {
		return false
	}
	if filepath.Clean(a) == filepath.Clean(b) {
		return true
	}
	x, err := os.Stat(a)
	y, err2 := os.Stat(b)
	return err == nil && err2 == nil && os.SameFile(x, y)
}

// owner says whose socket has such a path, empty if that is not known.
func owner(path string) string {
	for _, o := range []struct{ part, name string }{
		{"/com.apple.launchd.", "launchd's ssh-agent"},
		{"/keyring/", "gnome-keyring"},
		{"/gcr/", "gnome-keyring"},
		{"S.gpg-agent.ssh", "gpg-agent"},
		{".1password/", "1Password"},
		{"/tmp/ssh-", "an ssh-agent, or a forwarded one"},
		{"/openssh_agent", "systemd's ssh-agent"},
		{"/ssh-agent", "an ssh-agent"},
	} {
		if strings.Contains(path, o.part) {
			return o.name
		}
	}
	return ""
}

func checkIdentityAgent(ctx context.Context, e *Env) Finding {
	config, err := e.sshConfig(ctx)
	if err != nil {
		return e.failure(err, "ssh does not get as far as asking an agent")
	}
	value := e.identityAgent(config)
	if value != "" && !same(value, e.Config.Socket) {
		return e.failure(&IdentityAgentError{value, e.Config.Socket}, "it beats SSH_AUTH_SOCK: ssh asks that agent or none, and never the phone")
	}
	if slices.Equal(config["pubkeyauthentication"], []string{"no"}) || slices.Equal(config["pubkeyauthentication"], []string{"false"}) {
		return e.failure(ErrNoPubkey, "ssh offers no keys at all")
	}
	if slices.Equal(config["identitiesonly"], []string{"yes"}) && !e.named(ctx, config["identityfile"]) {
		return e.warning(ErrIdentitiesOnly, "ssh offers only keys that IdentityFile names, and none of the agent's")
	}
	if value == "" {
		return ok("ssh's configuration leaves it to SSH_AUTH_SOCK")
	}
	return ok("IdentityAgent is the socket")
}

// named says whether one of the agent's keys is in one of the files, or none is known.
func (e *Env) named(ctx context.Context, files []string) bool {
	keys, err := e.keys(ctx)
	if err != nil || len(keys) == 0 {
		return true
	}
	for _, f := range files {
		if rest, ok := strings.CutPrefix(f, "~/"); ok {
			f = filepath.Join(e.Home, rest)
		}
		for _, name := range []string{f, f + ".pub"} {
			b, err := readStart(name)
			if err != nil {
				continue
			}
			if public, _, _, _, err := ssh.ParseAuthorizedKey(b); err == nil &&
				slices.ContainsFunc(keys, func(k ssh.PublicKey) bool { return string(bare(k).Marshal()) == string(bare(public).Marshal()) }) {
				return true
			}
		}
	}
	return false
}

// bare is the key itself, of a certificate too.
func bare(k ssh.PublicKey) ssh.PublicKey {
	if c, ok := k.(*ssh.Certificate); ok {
		return c.Key
	}
	return k
}

func readStart(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, errors.Join(err, os.ErrInvalid)
	}
	return io.ReadAll(io.LimitReader(f, maxStartup))
}

// startups are the files that shells read when they start, below the home directory.
var startups = []string{".profile", ".bash_profile", ".bash_login", ".bashrc", ".zshenv", ".zprofile", ".zshrc", ".zlogin",
	".kshrc", ".mkshrc", ".cshrc", ".tcshrc", ".xprofile", ".xsessionrc", ".pam_environment", ".config/fish/config.fish"}

// setsSock matches lines that set SSH_AUTH_SOCK, by themselves or by an agent that they start.
var setsSock = regexp.MustCompile(`(?:^|[\s;&({])(?:export\s+|setenv\s+|set\s+(?:-\S+\s+)*)?SSH_AUTH_SOCK(?:=|\s+\S)|` +
	`eval\s.*(?:ssh-agent|keychain|gpg-agent|gnome-keyring-daemon)|ssh-agent(?:\s+-\S+)*\s*\|\s*(?:source|\.)(?:\s|$)`)

func checkRivals(ctx context.Context, e *Env) Finding {
	var found []string
	for _, name := range startups {
		path := filepath.Join(e.Home, name)
		if n := e.otherAgent(path); n > 0 {
			found = append(found, fmt.Sprintf("%s:%d", path, n))
		}
	}
	if len(found) > 0 {
		return e.warning(&RivalError{Files: found, Socket: e.Config.Socket}, "the next shell may ask that agent, and not the phone")
	}
	if e.OS != "darwin" && !e.leads(ctx) { // there it is session-sock's to say
		if value := e.sessionSock(ctx); value != "" && !same(value, e.Config.Socket) {
			return e.warning(&RivalError{Session: value, Owner: owner(value), Socket: e.Config.Socket},
				"programs that no shell starts, such as editors, ask that agent, and not the phone")
		}
	}
	return ok("nothing else sets SSH_AUTH_SOCK")
}

// otherAgent gives the last line of a start-up file that sets SSH_AUTH_SOCK, if that is not to our socket, else 0.
func (e *Env) otherAgent(path string) int {
	b, err := readStart(path)
	if err != nil {
		return 0
	}
	n, last := 0, 0
	for line := range strings.Lines(string(b)) {
		n++
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") || !setsSock.MatchString(line) {
			continue
		}
		if last = n; strings.Contains(line, filepath.Base(e.Config.Socket)) {
			last = 0
		}
	}
	return last
}

// checkSessionSock looks at what launchd gives to programs that no shell starts. As macOS comes, that is the socket of its own
// ssh-agent.
func checkSessionSock(ctx context.Context, e *Env) Finding {
	const why = "programs that no shell starts, such as editors, read no start-up file: they ask that agent or none, and never the phone"
	out, err := e.Run(ctx, "launchctl", "getenv", "SSH_AUTH_SOCK")
	if err == nil && out.Exit != 0 {
		err = fmt.Errorf("%w: launchctl getenv: exit status %d", ErrCheck, out.Exit)
	}
	if err != nil {
		return e.failure(err, why)
	}
	value := strings.TrimSpace(out.Stdout)
	switch {
	case same(value, e.Config.Socket):
		return ok("launchd's SSH_AUTH_SOCK is the socket")
	case e.leads(ctx):
		return ok("ssh's configuration leads them to the socket")
	}
	return e.warning(&SessionSockError{value, owner(value), e.Config.Socket}, why)
}

// sessionSock is SSH_AUTH_SOCK as systemd's manager has it for the session, empty if it has none.
func (e *Env) sessionSock(ctx context.Context) string {
	out, err := e.Run(ctx, "systemctl", "--user", "show-environment")
	if err != nil || out.Exit != 0 {
		return ""
	}
	for line := range strings.Lines(out.Stdout) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "SSH_AUTH_SOCK="); ok {
			return value
		}
	}
	return ""
}

// keys are those that the agent lists.
func (e *Env) keys(ctx context.Context) ([]ssh.PublicKey, error) {
	return e.facts.keys.get(ctx, e, func(ctx context.Context) ([]ssh.PublicKey, error) {
		ctx, cancel := context.WithTimeoutCause(ctx, askTime, ErrSilent)
		defer cancel()
		return e.List(ctx)
	})
}

func checkKeyCount(ctx context.Context, e *Env) Finding {
	if s, err := e.status(ctx); err == nil && s.Locked {
		return skipped("the agent is locked")
	}
	keys, err := e.keys(ctx)
	switch {
	case err != nil:
		return e.failure(err, "ssh has no keys of vmux")
	case len(keys) == 0:
		return e.warning(ErrNoKeys, "there is nothing to log in with")
	case len(keys) > maxAuthTries:
		return e.warning(&KeyCountError{len(keys)}, fmt.Sprintf("servers hang up after %d keys that they do not know, so that the last ones are never tried", maxAuthTries))
	}
	certificates := 0
	for _, k := range keys {
		if _, ok := k.(*ssh.Certificate); ok {
			certificates++
		}
	}
	if certificates == 0 {
		return ok("%s", count(len(keys), "key"))
	}
	return ok("%s, %d of them with a certificate", count(len(keys), "key"), certificates)
}

// listKeys asks an agent what it has, as ssh-add -l does.
func listKeys(ctx context.Context, socket string) ([]ssh.PublicKey, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	list, err := agent.NewClient(conn).List()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	var keys []ssh.PublicKey
	for _, k := range list {
		public, kerr := ssh.ParsePublicKey(k.Blob)
		if err = errors.Join(err, kerr); kerr == nil {
			keys = append(keys, public)
		}
	}
	return keys, err
}
