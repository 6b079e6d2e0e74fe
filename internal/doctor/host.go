// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/phone"
	"vmux.app/toolkit/internal/safetext"
	"vmux.app/toolkit/internal/store"
)

const (
	// hostTime bounds a login, with the owner's time to approve it.
	hostTime = 30 * time.Second
	// connectTime bounds its first part, in seconds as ssh has them.
	connectTime = "ConnectTimeout=8"
	// maxLines bounds how many keys are offered for authorized_keys.
	maxLines = 4
)

func hostChecks() []Check {
	return []Check{
		{ID: "host", Title: "the server of --host takes the agent's certificate or key", Needs: []string{"agent", "ssh-version"}, Asked: true, Limit: hostTime, Run: checkHost},
	}
}

// login is what ssh -v said about one.
type login struct {
	offered       []offer
	accepted      offer // the last one
	authenticated bool
	refused       string   // why a signature was not made
	said          []string // lines that are no debugging
}

// offer is a key that ssh had the server look at.
type offer struct {
	name        string // comment or file
	kind        string // ECDSA, ED25519-CERT
	fingerprint string
	agent       bool
}

func (o offer) certificate() bool { return strings.HasSuffix(o.kind, "-CERT") }

func (o offer) String() string {
	if o.certificate() {
		return "session certificate " + o.fingerprint
	}
	return fmt.Sprintf("key %s (%s)", o.name, o.fingerprint)
}

var (
	keyLine       = regexp.MustCompile(`^debug1: (Offering public key|Server accepts key): (.*?) ?([A-Z0-9-]+) (SHA256:\S+)(.*)$`)
	authenticated = regexp.MustCompile(`^(?:debug1: Authentication succeeded|Authenticated to )`)
	signFailed    = regexp.MustCompile(`^sign_and_send_pubkey: signing failed for .*?: ([^:]*)$`)
)

// parseLogin reads the output of ssh -v (OpenSSH 8.9 to 10.x). Only how lines begin and end is gone by: what is in
// between may come from a server.
func parseLogin(stderr string) login {
	var l login
	for line := range strings.Lines(stderr) {
		line = strings.TrimRight(line, "\r\n")
		if m := keyLine.FindStringSubmatch(line); m != nil {
			o := offer{m[2], m[3], m[4], slices.Contains(strings.Fields(m[5]), "agent")}
			if strings.HasPrefix(m[1], "Offering") {
				l.offered = append(l.offered, o)
			} else {
				l.accepted = o
			}
			continue
		}
		switch m := signFailed.FindStringSubmatch(line); {
		case authenticated.MatchString(line):
			l.authenticated = true
		case m != nil:
			l.refused = m[1]
		}
		if line != "" && !strings.HasPrefix(line, "debug1:") && !strings.HasPrefix(line, "OpenSSH_") && !strings.HasPrefix(line, "Authenticated to ") {
			l.said = append(l.said, line)
		}
	}
	return l
}

// has gives the first line that ssh itself said and that has one of the texts.
func (l login) has(texts ...string) (string, bool) {
	for _, line := range l.said {
		for _, t := range texts {
			if strings.Contains(line, t) {
				return line, true
			}
		}
	}
	return "", false
}

func checkHost(ctx context.Context, e *Env) Finding {
	if e.Host == "" {
		return skipped("no server is named: --host USER@HOST")
	}
	// One connection, and nothing that changes a file or asks at this terminal. The agent's keys come before those of
	// files (ssh_config(5), IdentityFile), which "none" leaves out where the configuration names none.
	args := []string{"-v", "-T", "-x", "-a"}
	for _, o := range []string{"BatchMode=yes", "IdentityAgent=" + quoteOption(e.Config.Socket), "IdentityFile=none", "IdentitiesOnly=no", "PubkeyAuthentication=yes",
		"PreferredAuthentications=publickey", "StrictHostKeyChecking=yes", "UpdateHostKeys=no", "ControlMaster=no", "ControlPath=none", "ClearAllForwardings=yes",
		"PermitLocalCommand=no", "RemoteCommand=none", "ConnectionAttempts=1", connectTime} {
		args = append(args, "-o", o)
	}
	out, err := e.Run(ctx, "ssh", append(args, "--", e.Host, "true")...)
	l := parseLogin(out.Stderr)
	switch {
	case l.authenticated && l.accepted.agent:
		return ok("%s takes the %s", e.Host, l.accepted)
	case l.authenticated:
		f := e.failure(&HostRefusedError{Host: e.Host, Offered: count(len(agents(l.offered)), "key"), Other: cmp.Or(l.accepted.name, "another way")}, "a key in a file gets in, the phone's do not")
		f.Lines = e.serverLines(ctx)
		return f
	case errors.Is(err, errTime) && l.accepted.agent:
		return e.failure(&HostError{e.Host, "no signature in time", phone.ErrTimeout}, "the server takes the "+l.accepted.String()+", which must be approved on the phone")
	case err != nil:
		return e.failure(&HostError{e.Host, err.Error(), ErrHostUnreachable}, "whether it takes the keys is not known")
	case l.refused != "":
		return e.failure(&HostError{e.Host, "the signature was refused: " + l.refused, ErrHostSignature}, "the server takes the "+l.accepted.String())
	}
	if line, is := l.has("REMOTE HOST IDENTIFICATION HAS CHANGED"); is {
		return e.failure(&HostError{e.Host, strings.Trim(line, "@ "), ErrHostKeyChanged}, "somebody may be in between, or the server was set up anew")
	}
	if line, is := l.has("host key is known for", "Host key verification failed", "REVOKED HOST KEY", "no matching host key type found"); is {
		return e.failure(&HostError{e.Host, line, ErrHostKey}, "ssh goes no further before it knows the server")
	}
	if line, is := l.has("Could not resolve hostname"); is {
		return e.failure(&HostError{e.Host, line, ErrHostName}, "ssh does not get there")
	}
	if line, is := l.has("Permission denied (", "Too many authentication failures", "No more authentication methods"); is {
		f := e.failure(&HostRefusedError{Host: e.Host, Offered: offers(agents(l.offered)), Many: strings.Contains(line, "Too many")}, "the server does not know them for this account; its log says more")
		f.Lines = e.serverLines(ctx)
		return f
	}
	said := "ssh ended without a word"
	if len(l.said) > 0 {
		said = l.said[len(l.said)-1]
	}
	return e.failure(&HostError{e.Host, said, ErrHostUnreachable}, "whether it takes the keys is not known")
}

// quoteOption writes a path as ssh_config(5) takes it.
func quoteOption(path string) string {
	return `"` + strings.ReplaceAll(path, "%", "%%") + `"`
}

func agents(all []offer) []offer {
	return slices.DeleteFunc(slices.Clone(all), func(o offer) bool { return !o.agent })
}

func offers(all []offer) string {
	var texts []string
	for _, o := range all {
		texts = append(texts, o.String())
	}
	if len(texts) == 0 {
		return "nothing"
	}
	return list(texts)
}

// serverLines are what makes a server take the phone's keys.
func (e *Env) serverLines(ctx context.Context) []string {
	state, err := e.state(ctx)
	if err != nil {
		return nil
	}
	user := e.User
	if config, err := e.sshConfig(ctx); err == nil && len(config["user"]) == 1 {
		user = config["user"][0]
	}
	lines := []string{fmt.Sprintf("# in ~%s/.ssh/authorized_keys there, one of:", user)}
	var authorities []string
	for _, p := range state.Phones {
		if ca, err := ssh.ParsePublicKey(p.CAKey); err == nil {
			authorities = append(authorities, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(ca)))+" vmux:"+safetext.Line(p.Name, store.MaxName))
		}
	}
	for _, a := range authorities {
		if !strings.ContainsAny(user, "\",\n\\") {
			lines = append(lines, fmt.Sprintf(`cert-authority,principals="%s" %s`, user, a))
		}
	}
	for _, p := range state.Phones {
		for _, k := range p.Keys {
			if len(lines) <= maxLines {
				lines = append(lines, strings.TrimSpace(k.Algorithm+" "+base64.StdEncoding.EncodeToString(k.Blob)+" "+safetext.Line(k.Comment, store.MaxText)))
			}
		}
	}
	if len(authorities) > 0 {
		lines = append(lines, "# or in a file that TrustedUserCAKeys names in its sshd_config:")
		lines = append(lines, authorities...)
	}
	return lines
}
