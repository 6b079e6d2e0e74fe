// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// shortest is the least validity in these tests, so that they see certificates
// end.
const shortest = "5s"

// certifier is a phone whose certificate authority signs such short ones too.
func certifier(t testing.TB) *phone {
	t.Helper()
	p := newPhone(t)
	p.limits(fmt.Sprintf("min-validity = %q\n", shortest))
	return p
}

// limits sets what the phone's certificate authority signs at most.
func (p *phone) limits(content string) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.homeDir(), "certificates.toml"), []byte(content), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// certDevice is a device with a directory for its temporary files.
func certDevice(t testing.TB) *host {
	t.Helper()
	d := newDevice(t, "laptop")
	d.setenv("VMUX_CERTIFICATE_MIN_VALIDITY", shortest)
	if err := os.Mkdir(d.path("tmp"), 0o700); err != nil {
		t.Fatal(err)
	}
	d.setenv("TMPDIR", d.path("tmp"))
	d.setenv("XDG_RUNTIME_DIR", "")
	return d
}

// certifying is a device paired with a phone that approves everything, and its
// agent.
func certifying(t testing.TB) (*host, *phone) {
	t.Helper()
	p, d := certifier(t), certDevice(t)
	p.serve("--approve", "always")
	pair(t, d, p)
	d.agent()
	return d, p
}

// certAsking is one whose owner is asked.
func certAsking(t testing.TB) (*host, *phone, *approver) {
	t.Helper()
	p, d := certifier(t), certDevice(t)
	owner := p.askpass()
	p.serve("--approve", "askpass")
	pair(t, d, p)
	d.agent()
	return d, p, owner
}

// issued is what vmux-cert --json prints of a certificate.
type issued struct {
	Serial          string            `json:"serial"`
	KeyID           string            `json:"keyId"`
	Key             string            `json:"key"`
	CA              string            `json:"ca"`
	Principals      []string          `json:"principals"`
	ValidAfter      time.Time         `json:"validAfter"`
	ValidBefore     time.Time         `json:"validBefore"`
	CriticalOptions map[string]string `json:"criticalOptions"`
	Extensions      map[string]string `json:"extensions"`
	Identity        string            `json:"identity"`
	Scope           struct {
		Hosts []struct {
			Name         string   `json:"name"`
			Fingerprints []string `json:"fingerprints"`
		} `json:"hosts"`
		Uses         int  `json:"uses"`
		NoForwarding bool `json:"noForwarding"`
	} `json:"scope"`
	Job      int `json:"job"`
	UsesLeft int `json:"usesLeft"`
}

// certify asks for a certificate with these flags.
func (h *host) certify(args ...string) (i issued) {
	h.t.Helper()
	h.decode(h.ok("vmux-cert", append([]string{"--json"}, args...)...), &i)
	return i
}

// certificates are those that the agent says it has.
func (h *host) certificates() []issued {
	h.t.Helper()
	var o struct {
		Certificates []issued `json:"certificates"`
	}
	h.decode(h.ok("vmux-cert", "list", "--json"), &o)
	if o.Certificates == nil {
		h.t.Error("vmux-cert list --json has no list")
	}
	return o.Certificates
}

func (h *host) decode(out string, into any) {
	h.t.Helper()
	if strings.Count(out, "\n") != 1 {
		h.t.Fatalf("not one line: %s", out)
	}
	if err := json.Unmarshal([]byte(out), into, json.RejectUnknownMembers(true)); err != nil {
		h.t.Fatalf("%v: %s", err, out)
	}
}

// offered are the certificates that the agent lists, as lines of authorized_keys
// in order.
func (h *host) offered() (lines []string) {
	h.t.Helper()
	for line := range strings.Lines(h.run("ssh-add", "-L").stdout) {
		if strings.Contains(line, "-cert-v01@openssh.com ") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// keyIDs are the comments of such lines.
func keyIDs(lines []string) (ids []string) {
	for _, l := range lines {
		ids = append(ids, strings.Fields(l)[2])
	}
	return ids
}

// print gives what ssh-keygen -L says of a certificate.
func (h *host) print(line string) string {
	h.t.Helper()
	r := h.run("ssh-keygen", "-L", "-f", h.write("print-cert.pub", line+"\n", 0o600))
	if r.exit != 0 || r.stderr != "" {
		h.t.Fatalf("ssh-keygen -L: %v", r)
	}
	return r.stdout
}

// printed splits what ssh-keygen -L says into fields and lists, each by its name.
func printed(text string) map[string][]string {
	fields, last := map[string][]string{}, ""
	for _, line := range strings.Split(text, "\n") {
		deep := strings.HasPrefix(line, strings.Repeat(" ", 16))
		line = strings.TrimSpace(line)
		name, value, ok := strings.Cut(line, ":")
		switch {
		case line == "":
		case !deep && ok:
			last = name
			fields[last] = nil
			if value = strings.TrimSpace(value); value != "" {
				fields[last] = []string{value}
			}
		default:
			fields[last] = append(fields[last], line)
		}
	}
	return fields
}

// trusting is a server that accepts what a certificate authority signed, and
// nothing else.
func trusting(t testing.TB, caLine string) *server {
	t.Helper()
	s := newServer(t, "")
	s.trust(caLine)
	return s
}

func (s *server) trust(caLine string) {
	s.t.Helper()
	s.write("ca", caLine)
	config, err := os.ReadFile(s.file("sshd_config"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.write("sshd_config", string(config)+"TrustedUserCAKeys "+s.file("ca")+"\n")
}

// loginWith logs in with options of ssh.
func (s *server) loginWith(h *host, options []string, command ...string) result {
	s.t.Helper()
	return h.run("ssh", append(slices.Clone(options), s.args(command...)...)...)
}

// accepts logs in and fails the test if that is refused. It gives what the login
// wrote, and what sshd logged.
func (s *server) accepts(h *host, options []string, command ...string) (stdout, log string) {
	s.t.Helper()
	before := len(s.log())
	r := s.loginWith(h, options, command...)
	log = s.log()[before:]
	if r.exit != 0 {
		s.t.Errorf("refused: %v\n%s", r, log)
	}
	return r.stdout, log
}

// refuses tries to log in and fails the test if that is possible, or is refused
// for another reason.
func (s *server) refuses(h *host, options []string, why string) {
	s.t.Helper()
	before := len(s.log())
	r := s.loginWith(h, options, "echo", "in")
	if r.exit == 0 || strings.Contains(r.stdout, "in") {
		s.t.Errorf("logged in, though not %q: %v\n%s", why, r, s.log()[before:])
		return
	}
	// sshd may log it after ssh has heard of it.
	eventually(s.t, fmt.Sprintf("sshd to log %q", why), func() bool { return strings.Contains(s.log()[before:], why) })
}

// overTCP lets the server have clients with addresses; it gives ssh's options.
func (s *server) overTCP() []string {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f, err := c.(*net.TCPConn).File()
			c.Close()
			if err != nil {
				s.t.Error(err)
				return
			}
			sshd := exec.Command(need(s.t, "sshd"), "-i", "-f", s.file("sshd_config"), "-E", s.file("log"))
			sshd.Stdin, sshd.Stdout = f, f
			if err := sshd.Run(); err != nil {
				s.t.Logf("sshd: %v", err) // as after a refusal
			}
			f.Close()
		}
	}()
	s.t.Cleanup(func() {
		l.Close()
		<-ended
	})
	return []string{"-o", "ProxyCommand=none", "-o", "HostName=127.0.0.1", "-p", fmt.Sprint(l.Addr().(*net.TCPAddr).Port)}
}

func me(t testing.TB) string {
	t.Helper()
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	return u.Username
}

// Two servers that know nothing but the phone's certificate authority, by lines
// that vmux-cert prints, accept a certificate when the phone is gone.
func TestCertificateLogsIn(t *testing.T) {
	t.Parallel()
	d, p := certifying(t)
	start := time.Now()
	out := d.ok("vmux-cert", "--key-id", "first-{serial}")
	all := d.certificates()
	if len(all) != 1 {
		t.Fatalf("the agent has %d certificates", len(all))
	}
	c := all[0]
	for name, value := range map[string]string{
		"serial": c.Serial, "key id": "first-" + c.Serial, "principals": me(t), "scope": "any host, any number of times",
		"valid": "until " + c.ValidBefore.Local().Format(time.DateTime) + ", ", "key": c.Key, "CA": c.CA,
	} {
		if !slices.ContainsFunc(strings.Split(out, "\n"), func(l string) bool {
			v, ok := strings.CutPrefix(l, name+"  ")
			return ok && strings.HasPrefix(strings.TrimSpace(v), value)
		}) {
			t.Errorf("what a person reads has no line %q with %q:\n%s", name, value, out)
		}
	}
	if v := c.ValidBefore.Sub(c.ValidAfter); v != 28860*time.Second { // a minute for servers' clocks
		t.Errorf("valid for %v", v)
	}
	if end := start.Add(8 * time.Hour); c.ValidBefore.Before(end.Add(-time.Second)) || c.ValidBefore.After(time.Now().Add(8*time.Hour)) {
		t.Errorf("valid until %v, not %v", c.ValidBefore, end)
	}

	ca := d.ok("vmux-cert", "ca")
	byAuthority := trusting(t, ca)
	byLine := newServer(t, d.ok("vmux-cert", "ca", "--authorized-keys", "--principal", me(t)))
	otherName := newServer(t, d.ok("vmux-cert", "ca", "--authorized-keys", "--principal", "somebody", "--principal", "else"))
	p.serving.stop(syscall.SIGTERM)
	offered := d.offered()
	if len(offered) != 1 || keyIDs(offered)[0] != c.KeyID {
		t.Fatalf("the agent lists %q", offered)
	}
	file := d.write("x-cert.pub", offered[0]+"\n", 0o600)
	for _, options := range [][]string{nil, {"-o", "IdentitiesOnly=yes", "-i", file}} {
		for _, s := range []*server{byAuthority, byLine} {
			out, log := s.accepts(d, options, "echo", "in")
			if out != "in\n" || !strings.Contains(log, fmt.Sprintf("ID %s (serial %s) CA", c.KeyID, c.Serial)) {
				t.Errorf("login: %q\n%s", out, log)
			}
		}
	}
	otherName.refuses(d, nil, "Certificate does not contain an authorized principal")
	if n := strings.Count(p.serving.output(), `"event":"request"`); n != 1 {
		t.Errorf("the phone was asked %d times", n)
	}
}

// What a server holds a certificate to, by real servers.
func TestServersRefuse(t *testing.T) {
	t.Parallel()
	d, _ := certifying(t)
	s := trusting(t, d.ok("vmux-cert", "ca"))
	here := s.overTCP()
	other := d.path("other")
	if out, err := exec.Command(need(t, "ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", other).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v: %s", err, out)
	}
	line, err := os.ReadFile(other + ".pub")
	if err != nil {
		t.Fatal(err)
	}

	// The agent would not sign with a certificate that is over, so the key is one
	// of ssh's own. The other tests run while it lasts.
	file := other + "-cert.pub"
	d.ok("vmux-cert", "--quiet", "--public-key", other+".pub", "--out", file, "--validity", shortest)
	short := []string{"-o", "IdentitiesOnly=yes", "-i", other, "-o", "CertificateFile=" + file}
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	end := time.Unix(int64(parse(t, string(content)).(*ssh.Certificate).ValidBefore), 0)
	s.accepts(d, short, "true")

	t.Run("principal", func(t *testing.T) {
		d.certify("--principal", "nobody", "--principal", "some.body")
		s.refuses(d, nil, "Certificate invalid: name is not a listed principal")
		d.ok("vmux-cert", "drop", "--all")
	})
	t.Run("address", func(t *testing.T) {
		d.certify("--source-address", "192.0.2.0/24,2001:db8::/32")
		s.refuses(d, here, "not from a permitted source address")
		d.ok("vmux-cert", "drop", "--all")
		d.certify("--source-address", "192.0.2.0/24, 127.0.0.1")
		s.accepts(d, here, "true")
		d.ok("vmux-cert", "drop", "--all")
	})
	t.Run("command", func(t *testing.T) {
		d.certify("--force-command", "echo 'forced upon' $SSH_ORIGINAL_COMMAND")
		if out, _ := s.accepts(d, nil, "echo", "free"); out != "forced upon echo free\n" {
			t.Errorf("the command was %q", out)
		}
		d.ok("vmux-cert", "drop", "--all")
	})
	t.Run("terminal", func(t *testing.T) {
		d.certify("--no-pty")
		if r := s.loginWith(d, []string{"-tt"}, "true"); !strings.Contains(r.stderr, "PTY allocation request failed") {
			t.Errorf("a terminal in spite of --no-pty: %v", r)
		}
		d.ok("vmux-cert", "drop", "--all")
		d.certify()
		if r := s.loginWith(d, []string{"-tt"}, "true"); strings.Contains(r.stderr, "PTY allocation request failed") {
			t.Errorf("no terminal: %v", r)
		}
		d.ok("vmux-cert", "drop", "--all")
	})
	t.Run("authority", func(t *testing.T) {
		d.certify()
		trusting(t, string(line)).refuses(d, nil, "Failed publickey")
		s.accepts(d, nil, "true")
		d.ok("vmux-cert", "drop", "--all")
	})
	eventually(t, "the certificate's end", func() bool { return !time.Now().Before(end) })
	s.refuses(d, short, "Certificate invalid: expired")
}

// Each flag is found again in the certificate, as ssh-keygen prints it, and in
// what vmux-cert says of it.
func TestCertificateFlags(t *testing.T) {
	t.Parallel()
	d, p := certifying(t)
	key := strings.Fields(d.ok("ssh-add", "-L"))
	label := ""
	for _, k := range strings.Fields(p.ok("vmux-signer", "key", "list")) {
		if label == "" {
			label = k
		}
	}
	extensions := func(but ...string) []string {
		var all []string
		for _, e := range []string{"permit-X11-forwarding", "permit-agent-forwarding", "permit-port-forwarding", "permit-pty", "permit-user-rc"} {
			if !slices.Contains(but, e) {
				all = append(all, e)
			}
		}
		return all
	}
	const x11 = "permit-X11-forwarding"
	for _, tt := range []struct {
		args  []string
		field string // of ssh-keygen -L
		want  []string
	}{
		{nil, "Principals", []string{me(t)}},
		{nil, "Critical Options", []string{"(none)"}},
		{nil, "Extensions", extensions(x11)},
		{[]string{"--principal", "deploy", "--principal", "backup"}, "Principals", []string{"backup", "deploy"}},
		{[]string{"--key-id", "nightly {serial} of {serial}"}, "Key ID", []string{`"nightly SERIAL of SERIAL"`}},
		{nil, "Key ID", []string{`"vmux:` + me(t) + `@laptop:SERIAL"`}},
		{[]string{"--source-address", "192.0.2.0/24,2001:db8::1"}, "Critical Options", []string{"source-address 192.0.2.0/24,2001:db8::1"}},
		{[]string{"--force-command", "rsync --server"}, "Critical Options", []string{"force-command rsync --server"}},
		{[]string{"--no-pty"}, "Extensions", extensions(x11, "permit-pty")},
		{[]string{"--no-port-forwarding"}, "Extensions", extensions(x11, "permit-port-forwarding")},
		{[]string{"--no-agent-forwarding"}, "Extensions", extensions(x11, "permit-agent-forwarding")},
		{[]string{"--x11-forwarding"}, "Extensions", extensions()},
		{[]string{"--identity", label}, "Signing CA", nil},
		{[]string{"--validity", "1h"}, "Valid", []string{"1h1m"}},
		{[]string{"--validity", "90m"}, "Valid", []string{"1h31m"}},
		{[]string{"--validity", "3600"}, "Valid", []string{"1h1m"}},
		{[]string{"--validity", "1d"}, "Valid", []string{"24h1m"}},
		{[]string{"--validity", "1h30m"}, "Valid", []string{"1h31m"}},
		{[]string{"--validity", "1.5h"}, "Valid", []string{"1h31m"}},
	} {
		c := d.certify(tt.args...)
		lines := d.offered()
		if len(lines) != 1 {
			t.Fatalf("%q: the agent lists %q", tt.args, lines)
		}
		fields := printed(d.print(lines[0]))
		got := fields[tt.field]
		switch tt.field {
		case "Signing CA":
			tt.want = []string{"ECDSA " + c.CA + " (using ecdsa-sha2-nistp256)"}
			if c.Identity != label {
				t.Errorf("%q: %+v", tt.args, c)
			}
		case "Valid": // from 2026-11-23T14:00:00 to 2026-11-23T15:01:00
			var times []time.Time
			for _, w := range strings.Fields(got[0]) {
				if at, err := time.ParseInLocation("2006-01-02T15:04:05", w, time.Local); err == nil {
					times = append(times, at)
				}
			}
			if len(times) != 2 || times[1].Sub(times[0]) != c.ValidBefore.Sub(c.ValidAfter) {
				t.Errorf("%q: %s, but %v to %v", tt.args, got, c.ValidAfter, c.ValidBefore)
			}
			want, err := time.ParseDuration(tt.want[0])
			if v := c.ValidBefore.Sub(c.ValidAfter); err != nil || v != want {
				t.Errorf("%q: valid for %v (%v)", tt.args, v, err)
			}
			tt.want = got
		}
		for i := range tt.want {
			tt.want[i] = strings.ReplaceAll(tt.want[i], "SERIAL", c.Serial)
		}
		slices.Sort(got)
		if !slices.Equal(got, tt.want) {
			t.Errorf("%q: %s: %q, not %q", tt.args, tt.field, got, tt.want)
		}
		if got := fields["Type"]; !slices.Equal(got, []string{"ecdsa-sha2-nistp256-cert-v01@openssh.com user certificate"}) {
			t.Errorf("%q: %q", tt.args, got)
		}
		if got := fields["Public key"]; !slices.Equal(got, []string{"ECDSA-CERT " + c.Key}) || slices.Contains(key, c.Key) {
			t.Errorf("%q: %q", tt.args, got)
		}
		if !slices.Equal(fields["Serial"], []string{c.Serial}) || !slices.Equal(fields["Key ID"], []string{`"` + c.KeyID + `"`}) {
			t.Errorf("%q: %q %q, not %+v", tt.args, fields["Serial"], fields["Key ID"], c)
		}
		d.ok("vmux-cert", "drop", c.Serial)
	}
}

// What vmux-cert does not take: it says so, and the phone is not asked.
func TestCertificateUsage(t *testing.T) {
	t.Parallel()
	d, p := certifying(t)
	d.write("empty", "", 0o600)
	d.write("two.pub", strings.Repeat(d.ok("ssh-add", "-L"), 2), 0o600)
	several := func(n int, flag, format string) (args []string) {
		for i := range n {
			args = append(args, flag, fmt.Sprintf(format, i))
		}
		return args
	}
	hosts := several(16, "--host", "SHA256:%042dA")
	for _, tt := range []struct {
		args    []string
		problem string
	}{
		// What the link does not carry.
		{several(17, "--principal", "p%d"), "principals: 17 are more than 16"},
		{append(hosts, "--uses", "1"), "17 limits, more than 16"},
		{[]string{"--principal", strings.Repeat("p", 129)}, "more than 128"},
		{[]string{"--force-command", strings.Repeat("c", 1025)}, "more than 1024"},
		{[]string{"--reason", strings.Repeat("r", 1025)}, "more than 1024"},
		{[]string{"--validity", "soon"}, "--validity"},
		{[]string{"--validity", "0"}, "--validity"},
		{[]string{"--validity", "1500ms"}, "--validity"},
		{[]string{"--validity", "4s"}, "validity"},
		{[]string{"--validity", "25h"}, "validity"},
		{[]string{"--source-address", "here"}, `--source-address: "here"`},
		{[]string{"--source-address", "192.0.2.7/24"}, "192.0.2.0/24"},
		{[]string{"--source-address", ""}, "--source-address"},
		{[]string{"--force-command", " "}, "--force-command"},
		{[]string{"--uses", "0"}, "--uses"},
		{[]string{"--uses", "-1"}, "--uses"},
		{[]string{"--uses", "many"}, "--uses"},
		{[]string{"--principal", ""}, "principal"},
		{[]string{"--principal", "a", "--principal", "a"}, "principal"},
		{[]string{"--key-id", "a\nb"}, "key id"},
		{[]string{"--reason", "a\x1b[2J"}, "reason"},
		{[]string{"--host", "nowhere.example"}, "\"nowhere.example\" is not in known_hosts\nhint: connect to it once with ssh, give the HostName:PORT that ssh -G NAME shows"},
		{[]string{"--host", "SHA256:short"}, "fingerprint"},
		{[]string{"--identity", "nobody's"}, `"nobody's"`},
		{[]string{"--min-remaining", "later"}, "--min-remaining"},
		{[]string{"--out", "x"}, "--out"},
		{[]string{"--public-key", "missing.pub"}, "--public-key"},
		{[]string{"--public-key", "empty"}, "--public-key"},
		{[]string{"--public-key", "two.pub"}, "--public-key"},
		{[]string{"--public-key", "two.pub", "--uses", "1"}, "--uses"},
		{[]string{"--public-key", "two.pub", "--host", "SHA256:short"}, "--host"},
		{[]string{"--public-key", "two.pub", "--min-remaining", "1m"}, "--min-remaining"},
		{[]string{"--nonsense"}, "--nonsense"},
		{[]string{"drop"}, "which"},
		{[]string{"drop", "1", "--all"}, "which"},
		{[]string{"drop", "first"}, `"first"`},
		{[]string{"check", "--expires-in", "101%"}, "--expires-in"},
		{[]string{"check", "--expires-in", "soon"}, "--expires-in"},
		{[]string{"ca", "--principal", "a"}, "--principal"},
		{[]string{"ca", "--authorized-keys", "--principal", `a"b`}, "--principal"},
	} {
		r := d.run("vmux-cert", tt.args...)
		if r.exit != 2 || !strings.Contains(r.stderr, tt.problem) || !strings.HasPrefix(r.stderr, "error: ") || !strings.Contains(r.stderr, "\nhint: ") || r.stdout != "" {
			t.Errorf("%q: %v", tt.args, r)
		}
	}
	if strings.Contains(p.serving.output(), `"operation":"certificate"`) || len(d.certificates()) != 0 {
		t.Errorf("the phone was asked:\n%s", p.serving.output())
	}
}

// The exit statuses that scripts rely on.
func TestCertificateStatuses(t *testing.T) {
	t.Parallel()
	commands := [][]string{{}, {"list"}, {"check"}, {"drop", "--all"}, {"drop", "7"}}
	says := func(t *testing.T, d *host, exit int, problem string, args ...string) {
		t.Helper()
		r := d.run("vmux-cert", args...)
		if r.exit != exit || !strings.Contains(r.stderr, "error: "+problem) || !strings.Contains(r.stderr, "\nhint: ") || r.stdout != "" {
			t.Errorf("%q: not exit %d: %v", args, exit, r)
		}
	}
	t.Run("no agent, not paired", func(t *testing.T) {
		t.Parallel()
		d := certDevice(t)
		for _, args := range commands {
			says(t, d, 3, "the agent is not running", args...)
		}
		says(t, d, 125, "the agent is not running", "run", "true")
		says(t, d, 7, "no phone is paired", "ca")
		d.agent()
		says(t, d, 7, "no phone is paired")
		says(t, d, 125, "no phone is paired", "run", "true")
		says(t, d, 1, "no certificate has the serial 7", "drop", "7")
	})
	t.Run("unreachable", func(t *testing.T) {
		t.Parallel()
		d, p := certifying(t)
		d.serving.stop(syscall.SIGTERM)
		if lines := d.ok("vmux-cert", "ca"); !strings.HasPrefix(lines, "ecdsa-sha2-nistp256 ") || strings.Count(lines, "\n") != 1 {
			t.Errorf("without an agent: %s", lines)
		}
		p.serving.stop(syscall.SIGTERM)
		d.agent()
		start := time.Now()
		says(t, d, 4, "the phone cannot be reached")
		if took := time.Since(start); took > 5*time.Second { // 3 s, and the command's start
			t.Errorf("after %v", took)
		}
		says(t, d, 125, "the phone cannot be reached", "run", "true")
	})
	t.Run("denied", func(t *testing.T) {
		t.Parallel()
		d, p, owner := certAsking(t)
		asked := func(args ...string) *process {
			t.Helper()
			c := d.spawn("vmux-cert", args...)
			return c
		}
		c := asked("--quiet")
		owner.next().deny()
		if exit := c.ended(); exit != 5 || !strings.Contains(c.output(), "error: ") || !strings.Contains(c.output(), "denied") {
			t.Errorf("denied: exit %d\n%s", exit, c.output())
		}
		c = asked("run", "true")
		owner.next().deny()
		if exit := c.ended(); exit != 125 {
			t.Errorf("denied job: exit %d\n%s", exit, c.output())
		}
		// By the phone's own limits, which nobody is asked about.
		for limits, says := range map[string]string{
			`max-validity = "1h"`:         "a validity of 28800 s",
			`principals = ["deploy"]`:     "the principal",
			`extensions = ["permit-pty"]`: "the extension",
			`max-valid = "1h"`:            "limits for certificates cannot be read",
		} {
			p.limits(limits + "\n")
			if r := d.run("vmux-cert"); r.exit != 5 || !strings.Contains(r.stderr, says) {
				t.Errorf("%s: %v", limits, r)
			}
		}
		p.limits("critical-options = []\n")
		if r := d.run("vmux-cert", "--force-command", "true"); r.exit != 5 || !strings.Contains(r.stderr, "the critical option force-command") {
			t.Errorf("no critical options: %v", r)
		}
		if n := strings.Count(p.serving.output(), `"outcome":"denied"`); n != 7 {
			t.Errorf("%d requests were denied", n)
		}
	})
	t.Run("timed out", func(t *testing.T) {
		t.Parallel()
		p, d := certifier(t), certDevice(t)
		owner := p.askpass()
		p.serve("--approve", "askpass")
		pair(t, d, p)
		d.agent("--deadline", "5s")
		c := d.spawn("vmux-cert")
		prompt := owner.next()
		if exit := c.ended(); exit != 6 || !strings.Contains(c.output(), "error: ") {
			t.Errorf("unanswered: exit %d\n%s", exit, c.output())
		}
		prompt.withdrawn()
		if n := len(d.certificates()); n != 0 {
			t.Errorf("%d certificates", n)
		}
	})
}

// The owner is asked with everything that the certificate will say, and its no
// and the user's Ctrl-C end it.
func TestCertificatePrompt(t *testing.T) {
	t.Parallel()
	d, _, owner := certAsking(t)
	s := trusting(t, d.ok("vmux-cert", "ca"))
	first := []string{"--validity", "2h", "--principal", "deploy", "--principal", me(t), "--key-id", "nightly-{serial}", "--source-address", "192.0.2.0/24",
		"--force-command", "rsync --server", "--no-pty", "--no-agent-forwarding", "--host", s.fingerprint(), "--uses", "3"}
	c := d.spawn("vmux-cert", append(first, "--json", "--reason", "nightly backup")...)
	prompt := owner.next()
	prompt.approve()
	if exit := c.ended(); exit != 0 {
		t.Fatalf("exit %d\n%s", exit, c.output())
	}
	var i issued
	d.decode(c.wait(`^\{.*`)[0]+"\n", &i)
	verified, claimed, ok := strings.Cut(prompt.prompt, "\nCLAIMED")
	if !ok {
		t.Fatalf("the prompt has no two halves:\n%s", prompt.prompt)
	}
	for _, want := range []string{"SSH Certificate Request", "From laptop", "VERIFIED", "2 hours", "deploy", me(t), "nightly-" + i.Serial, "serial: " + i.Serial,
		"source-address 192.0.2.0/24", `force-command "rsync --server"`, "extensions: permit-port-forwarding, permit-user-rc", i.Key, i.CA} {
		if !strings.Contains(verified, want) {
			t.Errorf("the verified half does not have %q:\n%s", want, prompt.prompt)
		}
	}
	for _, want := range []string{"reason: nightly backup", "limit: host " + s.fingerprint(), "limit: 3 signatures", "limit: not forwarded", bin(t, "vmux-cert"), d.home} {
		if !strings.Contains(claimed, want) {
			t.Errorf("the claimed half does not have %q:\n%s", want, prompt.prompt)
		}
	}

	// The same once more, but with enough time left: nobody is asked.
	again := d.certify(append(first, "--min-remaining", "1h", "--reason", "another")...)
	if again.Serial != i.Serial {
		t.Errorf("another certificate: %+v", again)
	}
	if r := d.run("vmux-cert", append(slices.Clone(first), "--min-remaining", "2h")...); r.exit != 2 || !strings.Contains(r.stderr, "hint: write less") {
		t.Errorf("what can never be left: %v", r)
	}
	// Not the same, or not enough.
	eventually(t, "a second to pass", func() bool { return time.Until(i.ValidBefore) < 2*time.Hour-time.Second })
	for _, other := range [][]string{
		append(slices.Clone(first), "--min-remaining", "7199"),
		append(slices.Clone(first), "--min-remaining", "1h", "--x11-forwarding"),
		append(slices.Clone(first[2:]), "--min-remaining", "1h"),
	} {
		c := d.spawn("vmux-cert", other...)
		owner.next().deny()
		if exit := c.ended(); exit != 5 {
			t.Errorf("%q: exit %d\n%s", other, exit, c.output())
		}
	}

	// Ctrl-C takes the prompt away, and so does the end of vmux-cert.
	for _, end := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		for _, args := range [][]string{{}, {"run", "--", "true"}} {
			c := d.spawn("vmux-cert", args...)
			prompt := owner.next()
			if exit := c.stop(end); end == syscall.SIGINT && exit != 130 && exit != 125 {
				t.Errorf("%q after %v: exit %d\n%s", args, end, exit, c.output())
			}
			prompt.withdrawn()
		}
	}
	if all := d.certificates(); len(all) != 1 || all[0].Serial != i.Serial {
		t.Errorf("the agent has %+v", all)
	}
}

// list, check, drop and --quiet.
func TestCertificateCare(t *testing.T) {
	t.Parallel()
	d, _ := certifying(t)
	check := func(exit int, state string, args ...string) {
		t.Helper()
		args = append([]string{"check"}, args...)
		r := d.run("vmux-cert", args...)
		if r.exit != exit || !strings.HasPrefix(r.stdout, state) || r.stderr != "" {
			t.Errorf("%q: %v", args, r)
		}
		if r := d.run("vmux-cert", append(args, "--quiet")...); r.exit != exit || r.stdout+r.stderr != "" {
			t.Errorf("%q --quiet: %v", args, r)
		}
		var o struct {
			State            string `json:"state"`
			RemainingSeconds *int   `json:"remainingSeconds"`
			Certificate      *issued
		}
		r = d.run("vmux-cert", append(args, "--json")...)
		if err := json.Unmarshal([]byte(r.stdout), &o); err != nil || r.exit != exit || o.State != state || (o.RemainingSeconds == nil) != (state == "none") {
			t.Errorf("%q --json: %v %v", args, err, r)
		}
	}
	check(2, "none")
	if r := d.run("vmux-cert", "list"); r.exit != 0 || r.stdout != "" || !strings.Contains(r.stderr, "no session certificate") {
		t.Errorf("an empty list: %v", r)
	}
	d.certify("--validity", "1m")
	check(0, "good", "--expires-in", "50%")
	d.ok("vmux-cert", "drop", "--all")
	if r := d.run("vmux-cert", "--quiet", "--validity", "1h", "--key-id", "an hour"); r.exit != 0 || r.stdout+r.stderr != "" {
		t.Errorf("--quiet: %v", r)
	}
	check(0, "good")
	check(0, "good", "--expires-in", "59m")
	check(1, "due", "--expires-in", "1h")
	check(0, "good", "--expires-in", "1%")
	check(0, "good", "--expires-in", "90%")
	check(1, "due", "--expires-in", "100%")
	d.certify("--validity", "2h", "--key-id", "two hours", "--uses", "7")
	check(0, "good", "--expires-in", "1h") // by the one that lasts longest

	all := d.certificates()
	if len(all) != 2 || all[0].KeyID != "an hour" || all[1].KeyID != "two hours" || all[1].UsesLeft != 7 || all[0].UsesLeft != 0 {
		t.Fatalf("the list: %+v", all)
	}
	out := d.ok("vmux-cert", "list")
	if !strings.Contains(out, "7 signatures; 7 of them left") || strings.Count(out, "serial ") != 2 {
		t.Errorf("the list: %s", out)
	}
	if r := d.run("vmux-cert", "drop", all[0].Serial+"0"); r.exit == 0 || len(d.certificates()) != 2 {
		t.Errorf("an unknown serial: %v", r)
	}
	if out := d.ok("vmux-cert", "drop", all[0].Serial); out != "dropped 1\n" {
		t.Errorf("drop: %s", out)
	}
	if left := d.certificates(); len(left) != 1 || left[0].Serial != all[1].Serial || len(d.offered()) != 1 {
		t.Errorf("after dropping one: %+v", left)
	}
	if r := d.run("vmux-cert", "drop", all[0].Serial); r.exit != 1 || !strings.Contains(r.stderr, "no certificate has the serial "+all[0].Serial) {
		t.Errorf("dropped twice: %v", r)
	}
	// The same request once more replaces the older one.
	if c := d.certify("--validity", "2h", "--key-id", "two hours", "--uses", "7"); c.Serial == all[1].Serial || c.Key == all[1].Key || len(d.certificates()) != 1 {
		t.Errorf("the same once more: %+v, not instead of %+v", c, all[1])
	}
	d.certify()
	if out := d.ok("vmux-cert", "drop", "--all", "--json"); out != "{\"dropped\":2}\n" {
		t.Errorf("drop --all: %s", out)
	}
	check(2, "none")
	if len(d.offered()) != 0 {
		t.Errorf("dropped, and listed: %q", d.offered())
	}
	if out := d.ok("vmux-cert", "drop", "--all"); out != "dropped 0\n" {
		t.Errorf("drop --all once more: %s", out)
	}
}

// A key that is elsewhere is certified, and the agent keeps nothing.
func TestCertificateForAnotherKey(t *testing.T) {
	t.Parallel()
	d, _ := certifying(t)
	s := trusting(t, d.ok("vmux-cert", "ca"))
	for _, kind := range [][]string{{"ed25519"}, {"rsa", "-b", "2048"}, {"ecdsa", "-b", "256"}} {
		key := d.path("runner-" + kind[0])
		if out, err := exec.Command(need(t, "ssh-keygen"), append([]string{"-q", "-N", "", "-C", "runner", "-f", key, "-t"}, kind...)...).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v: %s", err, out)
		}
		line := d.ok("vmux-cert", "--public-key", key+".pub", "--key-id", "runner")
		if strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, " runner\n") {
			t.Fatalf("not one line: %s", line)
		}
		if fields := printed(d.print(strings.TrimSpace(line))); fields["Key ID"][0] != `"runner"` {
			t.Errorf("%s: %v", kind, fields)
		}
		file := d.write("runner-"+kind[0]+"-cert.pub", line, 0o600)
		if _, log := s.accepts(d, []string{"-o", "IdentityAgent=none", "-i", key, "-o", "CertificateFile=" + file}, "true"); !strings.Contains(log, "ID runner (serial") {
			t.Errorf("%s: %s", kind, log)
		}
	}
	r := d.run("vmux-cert", "--public-key", "runner-rsa.pub", "--out", "made-cert.pub", "--json")
	var i issued
	d.decode(r.stdout, &i)
	content, err := os.ReadFile(d.path("made-cert.pub"))
	if err != nil || printed(d.print(strings.TrimSpace(string(content))))["Serial"][0] != i.Serial {
		t.Errorf("--out: %v: %s, not %+v", err, content, i)
	}
	var o struct {
		Certificate string `json:"certificate"`
		Info        issued `json:"info"`
	}
	d.decode(d.ok("vmux-cert", "--public-key", "runner-ed25519.pub", "--json"), &o)
	if printed(d.print(o.Certificate))["Serial"][0] != o.Info.Serial || len(o.Info.Principals) != 1 {
		t.Errorf("--json: %+v", o)
	}
	if r := d.run("vmux-cert", "--public-key", "made-cert.pub"); r.exit != 2 || !strings.Contains(r.stderr, "certificate already") {
		t.Errorf("a certificate's certificate: %v", r)
	}
	if r := d.run("vmux-cert", "--public-key", "runner-rsa.pub", "--out", d.path("no", "such", "place")); r.exit != 1 {
		t.Errorf("--out nowhere: %v", r)
	}
	if all := d.certificates(); len(all) != 0 || len(d.offered()) != 0 {
		t.Errorf("the agent keeps %+v", all)
	}
}

// rawAgent speaks with the agent at a socket, as no client of OpenSSH would.
func rawAgent(t testing.TB, socket string) agent.ExtendedAgent {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return agent.NewClient(c)
}

// parse gives the key in a line of authorized_keys.
func parse(t testing.TB, line string) ssh.PublicKey {
	t.Helper()
	k, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return k
}

// loginData is what a client signs to log in with a certificate in a session,
// at the server whose key it names, or at one that it does not name.
func loginData(session string, certificate ssh.PublicKey, hostKey []byte) []byte {
	m := struct {
		Session         []byte
		Type            byte
		User            string
		Service, Method string
		Signed          bool
		Algorithm       string
		Key             []byte
		Rest            []byte `ssh:"rest"`
	}{[]byte(session), 50, "somebody", "ssh-connection", "publickey", true, certificate.Type(), certificate.Marshal(), nil}
	if hostKey != nil {
		m.Method = "publickey-hostbound-v00@openssh.com"
		m.Rest = ssh.Marshal(struct{ Key []byte }{hostKey})
	}
	return ssh.Marshal(m)
}

// bind binds a connection to a session with the server, as its clients do.
func (s *server) bind(a agent.ExtendedAgent, session string, forwarding bool) {
	s.t.Helper()
	private, err := os.ReadFile(s.file("host"))
	if err != nil {
		s.t.Fatal(err)
	}
	key, err := ssh.ParsePrivateKey(private)
	if err != nil {
		s.t.Fatal(err)
	}
	sig, err := key.Sign(nil, []byte(session))
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := a.Extension("session-bind@openssh.com", ssh.Marshal(struct {
		Key, Session, Signature []byte
		Forwarding              bool
	}{key.PublicKey().Marshal(), []byte(session), ssh.Marshal(sig), forwarding})); err != nil {
		s.t.Fatalf("bind: %v", err)
	}
}

// session makes the id of a session, of which no two are the same.
func session(name string, n int) string { return fmt.Sprintf("%-28s%04d", name, n) }

// known writes known_hosts of a device.
func (h *host) known(lines ...string) {
	h.write(".ssh/known_hosts", strings.Join(lines, "\n")+"\n", 0o600)
}

// A certificate for one host, which --host names in each way: no login
// elsewhere is signed, nor one of which the agent cannot tell.
func TestScopeHosts(t *testing.T) {
	t.Parallel()
	d, p := certifying(t)
	ca := d.ok("vmux-cert", "ca")
	in, out := trusting(t, ca), trusting(t, ca)
	d.known("plain.example,192.0.2.1 "+in.key, "[odd.example]:2222 "+in.key, "two.example "+in.key, "two.example "+out.key)
	hashed := d.path(".ssh", "known_hosts")
	d.write("hashed", "hashed.example "+in.key+"\n", 0o600)
	d.ok("ssh-keygen", "-q", "-H", "-f", d.path("hashed"))
	content, err := os.ReadFile(d.path("hashed"))
	if err != nil || !strings.HasPrefix(string(content), "|1|") {
		t.Fatalf("ssh-keygen -H: %v: %s", err, content)
	}
	before, err := os.ReadFile(hashed)
	if err != nil {
		t.Fatal(err)
	}
	d.write(".ssh/known_hosts", string(before)+string(content), 0o600)

	for _, tt := range []struct {
		name string
		keys []string
	}{
		{"plain.example", []string{in.fingerprint()}},
		{"192.0.2.1", []string{in.fingerprint()}},
		{"odd.example:2222", []string{in.fingerprint()}},
		{"hashed.example", []string{in.fingerprint()}},
		{in.fingerprint(), []string{in.fingerprint()}},
		{"two.example", []string{in.fingerprint(), out.fingerprint()}},
	} {
		c := d.certify("--host", tt.name)
		slices.Sort(tt.keys)
		if len(c.Scope.Hosts) != 1 || c.Scope.Hosts[0].Name != tt.name || !slices.Equal(c.Scope.Hosts[0].Fingerprints, tt.keys) {
			t.Errorf("--host %s: %+v", tt.name, c.Scope)
		}
		d.ok("vmux-cert", "drop", "--all")
	}
	if r := d.run("vmux-cert", "--host", "odd.example"); r.exit != 2 { // another port, another host
		t.Errorf("--host odd.example: %v", r)
	}

	c := d.certify("--host", "hashed.example", "--key-id", "scoped")
	if got, log := in.accepts(d, nil, "echo", "in"); got != "in\n" || !strings.Contains(log, "ID scoped (serial "+c.Serial+")") {
		t.Errorf("%q\n%s", got, log)
	}
	signatures := func() int { return strings.Count(d.serving.output(), "outcome=signed") }
	n := signatures()
	if n != 1 {
		t.Fatalf("%d signatures:\n%s", n, d.serving.output())
	}
	if r := out.login(d, "echo", "in"); r.exit == 0 || strings.Contains(out.log(), "scoped") {
		t.Errorf("elsewhere: %v\n%s", r, out.log())
	}

	// Clients that know no manners.
	certificate := parse(t, d.offered()[0])
	inKey, outKey := parse(t, in.key).Marshal(), parse(t, out.key).Marshal()
	asks := 0
	for _, tt := range []struct {
		name   string
		bind   *server
		to     []byte
		signed bool
		why    string
	}{
		{"bound and bound for the host", in, inKey, true, ""},
		{"elsewhere", out, outKey, false, "is none of them"},
		{"bound elsewhere, named here", out, inKey, false, "another host key than the one bound"},
		{"bound here, named elsewhere", in, outKey, false, "another host key than the one bound"},
		{"unbound", nil, inKey, false, "the client does not say where it goes"},
		{"unbound and unnamed", nil, nil, false, "the client does not say where it goes"},
	} {
		a := rawAgent(t, d.socket())
		asks++
		id := session(tt.name, asks)
		if tt.bind != nil {
			tt.bind.bind(a, id, false)
		}
		data := loginData(id, certificate, tt.to)
		sig, err := a.Sign(certificate, data)
		if (err == nil) != tt.signed {
			t.Errorf("%s: %v", tt.name, err)
		}
		if tt.signed && certificate.(*ssh.Certificate).Key.Verify(data, sig) != nil {
			t.Errorf("%s: not a signature", tt.name)
		}
		if !tt.signed {
			d.serving.wait(`outcome=(refused|failed) reason="[^"]*` + tt.why)
		}
	}
	// What is no login goes nowhere.
	a := rawAgent(t, d.socket())
	in.bind(a, session("signature", 0), false)
	sshsig := append([]byte("SSHSIG"), ssh.Marshal(struct{ Namespace, Reserved, Algorithm, Hash string }{"git", "", "sha512", strings.Repeat("x", 64)})...)
	if _, err := a.Sign(certificate, sshsig); err == nil {
		t.Error("signed what is no login")
	}
	if got := signatures(); got != n+1 {
		t.Errorf("%d signatures, not %d", got, n+1)
	}
	if n := strings.Count(p.serving.output(), `"outcome":"signed"`); n != 7 {
		t.Errorf("the phone signed %d times, not the 7 certificates", n)
	}
}

// --uses counts signatures, whoever connects how often.
func TestScopeUses(t *testing.T) {
	t.Parallel()
	d, _ := certifying(t)
	s := trusting(t, d.ok("vmux-cert", "ca"))
	left := func() int {
		t.Helper()
		all := d.certificates()
		if len(all) != 1 {
			return 0
		}
		return all[0].UsesLeft
	}
	d.certify("--uses", "2")
	for range 3 {
		d.ok("ssh-add", "-l")
	}
	if n := left(); n != 2 {
		t.Errorf("listing used it: %d left", n)
	}
	s.accepts(d, nil, "true")
	if n := left(); n != 1 {
		t.Errorf("%d left after a login", n)
	}
	s.accepts(d, nil, "true")
	if n := left(); n != 0 || len(d.offered()) != 0 {
		t.Errorf("%d left after two logins: %q", n, d.offered())
	}
	if r := s.login(d, "true"); r.exit == 0 {
		t.Error("logged in a third time")
	}

	// Over one connection, and with refusals in between, which do not count.
	d.certify("--uses", "3", "--host", s.fingerprint())
	certificate := parse(t, d.offered()[0])
	hostKey := parse(t, s.key).Marshal()
	a := rawAgent(t, d.socket())
	id := session("uses", 0)
	s.bind(a, id, false)
	other := rawAgent(t, d.socket())
	for i := range 4 {
		if _, err := other.Sign(certificate, loginData(session("unbound", i), certificate, hostKey)); err == nil {
			t.Error("signed for a client that is not bound")
		}
		if _, err := a.Sign(certificate, loginData(id, certificate, hostKey)); (err == nil) != (i < 3) {
			t.Errorf("signature %d: %v", i+1, err)
		}
	}
}

// Through an agent that is forwarded, by a real ssh -A.
func TestScopeForwarding(t *testing.T) {
	t.Parallel()
	d, _ := certifying(t)
	ca := d.ok("vmux-cert", "ca")
	hop, far := newServer(t, d.ok("ssh-add", "-L")), trusting(t, ca)
	onward := d.write("onward", "#!/bin/sh\nexec "+quoted(append([]string{need(t, "ssh")}, far.args("echo", "far")...))+"\n", 0o700)
	through := func() result {
		t.Helper()
		return hop.loginWith(d, []string{"-A"}, onward)
	}
	if r := through(); r.exit == 0 {
		t.Fatalf("without a certificate: %v", r)
	}
	free := d.certify("--key-id", "free")
	if r := through(); r.exit != 0 || r.stdout != "far\n" || !strings.Contains(far.log(), "ID free (serial "+free.Serial+")") {
		t.Errorf("through the hop: %v\n%s", r, far.log())
	}
	d.ok("vmux-cert", "drop", "--all")

	d.certify("--key-id", "near", "--no-agent-forwarding")
	if r := through(); r.exit == 0 || strings.Contains(far.log(), "ID near") {
		t.Errorf("through the hop in spite of --no-agent-forwarding: %v\n%s", r, far.log())
	}
	far.accepts(d, nil, "true")
	// Servers are told as well.
	if r := far.loginWith(d, []string{"-A"}, "echo", "agent=$SSH_AUTH_SOCK"); r.exit != 0 || r.stdout != "agent=\n" {
		t.Errorf("a forwarded agent in spite of --no-agent-forwarding: %v", r)
	}
	// A client at the far side that asks for it by name.
	certificate := parse(t, d.offered()[0])
	a := rawAgent(t, d.socket())
	hop.bind(a, session("hop", 0), true)
	if _, err := a.Sign(certificate, loginData(session("far", 0), certificate, parse(t, far.key).Marshal())); err == nil {
		t.Error("signed for a forwarded client")
	}
	d.serving.wait(`outcome=(refused|failed) reason="[^"]*scope \(forwarding\)`)
	d.ok("vmux-cert", "drop", "--all")

	// A certificate for the hop only is of no use beyond it.
	d.certify("--key-id", "hop-only", "--host", hop.fingerprint())
	if r := through(); r.exit == 0 || strings.Contains(far.log(), "hop-only") {
		t.Errorf("beyond the hop: %v\n%s", r, far.log())
	}
}

// quoted makes a line for a shell.
func quoted(args []string) string {
	var all []string
	for _, a := range args {
		all = append(all, "'"+strings.ReplaceAll(a, "'", `'\''`)+"'")
	}
	return strings.Join(all, " ")
}

// Several certificates live side by side; the one that fits best comes first.
func TestCertificatesSideBySide(t *testing.T) {
	t.Parallel()
	d, _ := certifying(t)
	ca := d.ok("vmux-cert", "ca")
	one, two, three := trusting(t, ca), trusting(t, ca), trusting(t, ca)
	d.certify("--key-id", "any-1h", "--validity", "1h")
	d.certify("--key-id", "one", "--host", one.fingerprint())
	d.certify("--key-id", "any-2h", "--validity", "2h")
	d.certify("--key-id", "two", "--host", two.fingerprint(), "--uses", "5")
	d.certify("--key-id", "any-counted", "--validity", "3h", "--uses", "5")
	if got, want := keyIDs(d.offered()), []string{"any-2h", "any-1h", "any-counted", "one", "two"}; !slices.Equal(got, want) {
		t.Errorf("listed: %q, not %q", got, want)
	}
	// After the certificates come the phone's keys.
	lines := strings.Split(strings.TrimSpace(d.ok("ssh-add", "-L")), "\n")
	if len(lines) != 6 || !strings.HasPrefix(lines[5], "ecdsa-sha2-nistp256 ") {
		t.Errorf("listed: %q", lines)
	}
	for s, want := range map[*server]string{one: "one", two: "two", three: "any-2h"} {
		_, log := s.accepts(d, nil, "true")
		// Servers log each certificate that they are offered and would accept.
		if !strings.Contains(log, " ID "+want+" (serial") || strings.Count(log, "Accepted certificate ID ") != strings.Count(log, `Accepted certificate ID "`+want+`"`) {
			t.Errorf("logged in without %s or not with it first:\n%s", want, log)
		}
	}
	// Unless one is named.
	lines = d.offered()
	i := slices.Index(keyIDs(lines), "any-1h")
	if len(lines) != 5 || i < 0 {
		t.Fatalf("listed after the logins: %q", keyIDs(lines))
	}
	named := d.write("named-cert.pub", lines[i]+"\n", 0o600)
	if _, log := one.accepts(d, []string{"-o", "IdentitiesOnly=yes", "-i", named}, "true"); !strings.Contains(log, " ID any-1h (serial") || strings.Contains(log, `"one"`) {
		t.Errorf("logged in by another one than was named:\n%s", log)
	}
}

// A certificate that has ended is neither listed nor used, within a second.
func TestCertificateEnds(t *testing.T) {
	t.Parallel()
	d, _ := certifying(t)
	d.certify("--key-id", "short", "--validity", shortest)
	d.certify("--key-id", "long")
	certificate := parse(t, d.offered()[1])
	end := time.Unix(int64(certificate.(*ssh.Certificate).ValidBefore), 0)
	if ids := keyIDs(d.offered()); !slices.Equal(ids, []string{"long", "short"}) {
		t.Fatalf("listed: %q", ids)
	}
	lists, signs := rawAgent(t, d.socket()), rawAgent(t, d.socket())
	listed, used := true, true
	n := 0
	eventually(t, "the certificate's end", func() bool {
		before := time.Now()
		keys, err := lists.List()
		if err != nil {
			t.Fatal(err)
		}
		listed = slices.ContainsFunc(keys, func(k *agent.Key) bool { return k.Comment == "short" })
		n++
		_, err = signs.Sign(certificate, loginData(session("end", n), certificate, nil))
		used = err == nil
		if late := before.Sub(end); late >= time.Second && (listed || used) {
			t.Fatalf("%v after its end: listed: %v, used: %v", late, listed, used)
		}
		if before.Before(end.Add(-time.Second)) && (!listed || !used) {
			t.Fatalf("%v before its end: listed: %v, used: %v", end.Sub(before), listed, used)
		}
		return !listed && !used
	})
	if ids := keyIDs(d.offered()); !slices.Equal(ids, []string{"long"}) {
		t.Errorf("listed afterwards: %q", ids)
	}
	if all := d.certificates(); len(all) != 1 || all[0].KeyID != "long" {
		t.Errorf("the list afterwards: %+v", all)
	}
}

// A phone that is forgotten takes its certificates and jobs with it; another's
// stay.
func TestForgottenPhone(t *testing.T) {
	t.Parallel()
	d, p := certifying(t)
	d.certify("--key-id", "first")
	job := d.job(nil, "ssh-add -L")
	other := certifier(t)
	other.ok("vmux-signer", "key", "add", "second")
	other.serve("--approve", "always")
	pair(t, d, other)
	if r := d.run("vmux-cert"); r.exit != 2 || !strings.Contains(r.stderr, "--identity") {
		t.Errorf("of which phone? %v", r)
	}
	d.certify("--key-id", "second", "--identity", "second")
	offered := d.offered()
	if ids := keyIDs(offered); !slices.Equal(ids, []string{"first", "second"}) && !slices.Equal(ids, []string{"second", "first"}) {
		t.Fatalf("listed: %q", ids)
	}
	a := rawAgent(t, d.socket())
	sign := func(line string) error {
		c := parse(t, line)
		_, err := a.Sign(c, loginData(session("forgotten", 0), c, nil))
		return err
	}
	for _, line := range offered {
		if err := sign(line); err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
	if ca := d.ok("vmux-cert", "ca"); strings.Count(ca, "\n") != 2 {
		t.Errorf("two phones' authorities: %s", ca)
	}
	d.ok("vmux-pair", "--forget", d.phones()[0].Pin)
	for _, line := range offered {
		if err := sign(line); (err == nil) != (keyIDs([]string{line})[0] == "second") {
			t.Errorf("afterwards, %s: %v", line, err)
		}
	}
	if ids := keyIDs(d.offered()); !slices.Equal(ids, []string{"second"}) {
		t.Errorf("listed afterwards: %q", ids)
	}
	if all := d.certificates(); len(all) != 1 || all[0].KeyID != "second" {
		t.Errorf("the list afterwards: %+v", all)
	}
	job.gone()
	_ = p
}

// A locked agent lists no certificate and signs with none until it is unlocked.
func TestLockedAgentHasNoCertificates(t *testing.T) {
	t.Parallel()
	d, _ := certifying(t)
	d.setenv("SSH_ASKPASS", d.write("passphrase", "#!/bin/sh\necho open sesame\n", 0o700))
	d.setenv("SSH_ASKPASS_REQUIRE", "force")
	d.certify()
	job := d.job([]string{"--key-id", "job"}, "ssh-add -L; echo status $?")
	certificate := parse(t, d.offered()[0])
	a := rawAgent(t, d.socket())
	sign := func() error {
		_, err := a.Sign(certificate, loginData(session("locked", 0), certificate, nil))
		return err
	}
	if err := sign(); err != nil {
		t.Fatal(err)
	}
	d.ok("ssh-add", "-x")
	if r := d.run("ssh-add", "-L"); r.exit != 1 || len(d.offered()) != 0 {
		t.Errorf("a locked agent lists %v", r)
	}
	if err := sign(); err == nil {
		t.Error("a locked agent signs")
	}
	for _, args := range [][]string{{}, {"--min-remaining", "1m"}, {"run", "true"}} {
		if r := d.run("vmux-cert", args...); r.exit == 0 || !strings.Contains(r.stderr, "the agent is locked") {
			t.Errorf("%q of a locked agent: %v", args, r)
		}
	}
	job.release()
	job.wait("^status 1$")
	if exit := job.ended(); exit != 0 || strings.Contains(job.output(), "-cert-v01") {
		t.Errorf("a locked agent's job lists: exit %d\n%s", exit, job.output())
	}
	d.ok("ssh-add", "-X")
	if len(d.offered()) != 1 || sign() != nil {
		t.Errorf("unlocked: %q", d.offered())
	}
}
