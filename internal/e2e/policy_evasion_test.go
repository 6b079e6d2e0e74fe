// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/user"
	"regexp"
	"strings"
	"testing"
)

// A rule that refuses holds however the same login is written.
func TestPolicyHoldsForOtherWritings(t *testing.T) {
	t.Parallel()
	d, _, s := world(t, "always")
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	// refused configures one rule and says whether it refuses a login with these options.
	refused := func(rule string, options ...string) bool {
		t.Helper()
		d.configure("[policy]\ndefault = \"ask\"\n[[policy.rule]]\naction = \"refuse\"\n" + rule + "\n")
		d.serving.again("configuration read again")
		before := len(d.serving.output())
		args := s.args("true")
		for i, a := range args {
			if strings.HasPrefix(a, me.Username+"@") && len(options) > 0 && options[0] == "-l" {
				args[i] = strings.TrimPrefix(a, me.Username+"@")
			}
		}
		r := d.run("ssh", append(options, args...)...)
		if r.exit == 0 {
			return false
		}
		by := regexp.MustCompile(`outcome=refused reason="?policy: rule 1 `)
		eventually(t, "a refusal by the rule", func() bool { return by.MatchString(d.serving.output()[before:]) })
		return true
	}

	for _, login := range []string{me.Username, me.Username + ":style", me.Username + "/role"} {
		if !refused(`user = "`+me.Username+`"`, "-l", login) {
			t.Errorf("-l %s: not refused", login)
		}
	}

	// The name is in a file that ssh is told of.
	const rule = `host = "vault"`
	s.write("vault_hosts", "vault "+s.key+"\n")
	if refused(rule) {
		t.Error("no file has the name, and yet it is refused")
	}
	if !refused(rule, "-o", "GlobalKnownHostsFile="+s.file("vault_hosts")) {
		t.Error("a file of the command line is not read")
	}
	d.write(".ssh/config", "Host other\n\tUserKnownHostsFile none "+s.file("vault_hosts")+"\n", 0o600)
	if !refused(rule) {
		t.Error("a file of the configuration is not read")
	}
	d.write(".ssh/config", "", 0o600)

	// It is a pattern.
	for line, want := range map[string]bool{"ri*,!right ": true, "ri*,rig ": true, "*,!vault ": false} {
		s.write("known_hosts", line+s.key+"\n")
		if refused(`host = "rig"`) != want {
			t.Errorf("known_hosts has %s: refused is %v", line, !want)
		}
	}

	// It is vouched for by an authority.
	d.ok("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", s.file("ca"))
	d.ok("ssh-keygen", "-q", "-s", s.file("ca"), "-I", "host", "-h", "-n", "rig,other", s.file("host.pub"))
	config, err := os.ReadFile(s.file("sshd_config"))
	if err != nil {
		t.Fatal(err)
	}
	s.write("sshd_config", string(config)+"HostCertificate "+s.file("host-cert.pub")+"\n")
	ca, err := os.ReadFile(s.file("ca.pub"))
	if err != nil {
		t.Fatal(err)
	}
	s.write("known_hosts", "@cert-authority * "+string(ca))
	d.write(".ssh/known_hosts", "", 0o600)
	for name, want := range map[string]bool{"rig": true, "other": true, "elsewhere": false} {
		if refused(fmt.Sprintf("host = %q", name)) != want {
			t.Errorf("a certificate for rig and other: a rule about %s refuses: %v", name, !want)
		}
	}
}

// What a program has started is refused though a process between them has ended, with unknown.
func TestPolicyOfOrphans(t *testing.T) {
	t.Parallel()
	d, _, _ := world(t, "always")
	shell := need(t, "sh")
	need(t, "setsid")
	public := d.write("key.pub", strings.SplitAfter(d.ok("ssh-add", "-L"), "\n")[0], 0o600)
	d.write("letter", "x", 0o600)
	script := d.write("script", `rm -f letter.sig done
( "$1" -c 'while kill -0 '$$' 2>/dev/null; do :; done; "$0" "$@"; echo $? >done' ssh-keygen -q -Y sign -n file -f "$2" letter ) >/dev/null 2>&1 &
exit 0
`, 0o600)
	for rule, want := range map[string]string{
		`ancestor = "/nonexistent"`:              "0",
		`ancestor = ["/nonexistent", "unknown"]`: "255",
	} {
		d.configure("[policy]\ndefault = \"ask\"\n[[policy.rule]]\naction = \"refuse\"\n" + rule + "\n")
		d.serving.again("configuration read again")
		d.ok("setsid", "sh", script, shell, public)
		var b []byte
		var err error
		eventually(t, "the orphan's end", func() bool { // the file is there before it says anything
			b, err = os.ReadFile(d.path("done"))
			return bytes.HasSuffix(b, []byte("\n"))
		})
		if got := strings.TrimSpace(string(b)); err != nil || got != want {
			t.Errorf("%s: ssh-keygen ends with %q, %v, want %s", rule, got, err, want)
		}
	}
}
