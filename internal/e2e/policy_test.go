// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"fmt"
	"os/user"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Rules hold for what real programs ask, and vmux-agent policy says beforehand
// what the agent does, and why.
func TestPolicyOfRealRequests(t *testing.T) {
	t.Parallel()
	d, _, s := world(t, "always")
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	program := func(name string) string {
		path, err := filepath.EvalSymlinks(need(t, name))
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	shell, ssh, keygen := program("sh"), program("ssh"), program("ssh-keygen")
	key := strings.Fields(d.ok("ssh-add", "-l")) // bits, fingerprint, comment, type
	public := d.write("key.pub", strings.SplitAfter(d.ok("ssh-add", "-L"), "\n")[0], 0o600)
	d.write(".ssh/known_hosts", "rig "+s.key+"\n", 0o600)
	d.ok("ssh-keygen", "-q", "-H", "-f", d.path(".ssh", "known_hosts")) // the name is hashed
	d.write(".ssh/known_hosts.old", "", 0o600)

	// Through a shell that stays, so that it is an ancestor, and that leads its
	// session, so that the chain is whole wherever the tests run.
	run := func(name string, args ...string) result {
		return d.run("setsid", append([]string{"-w", "sh", "-c", `"$@"; exit $?`, "sh", name}, args...)...)
	}
	type request struct {
		name      string
		ask       func() result
		described []string
	}
	login := request{"login", func() result { return run("ssh", s.args("true")...) },
		[]string{"--host", "rig", "--user", me.Username, "--executable", ssh}}
	signing := func(namespace string) request { // of standard input
		return request{"signature for " + namespace, func() result { return run("ssh-keygen", "-Y", "sign", "-n", namespace, "-f", public) },
			[]string{"--kind", "sshsig:" + namespace, "--executable", keygen}}
	}
	rule := func(action string, fields ...string) string {
		return fmt.Sprintf("\n[[policy.rule]]\naction = %q\n%s\n", action, strings.Join(fields, "\n"))
	}
	const ask, refuse = "[policy]\ndefault = \"ask\"\n", "[policy]\ndefault = \"refuse\"\n"
	for _, c := range []struct {
		policy  string
		request request
		refused string // by what, empty if it is not
	}{
		{ask, login, ""},
		{refuse, login, "default"},
		{refuse, signing("file"), "default"},

		{ask + rule("refuse", `host = "rig"`), login, "rule 1 (line 4)"},
		{ask + rule("refuse", `host = "R*"`), login, "rule 1 (line 4)"},
		{ask + rule("refuse", `host = "`+s.fingerprint()+`"`), login, "rule 1 (line 4)"},
		{ask + rule("refuse", `host = ["unverified", "r"]`), login, ""},
		{refuse + rule("ask", `host = "rig"`, `user = "`+me.Username+`"`, `forwarded = "no"`), login, ""},
		{refuse + rule("ask", `host = "rig"`), signing("file"), "default"},

		{ask + rule("refuse", `user = "`+me.Username+`"`), login, "rule 1 (line 4)"},
		{ask + rule("refuse", `user = "x`+me.Username+`"`), login, ""},
		{ask + rule("refuse", `forwarded = "yes"`), login, ""},
		{ask + rule("refuse", `key = "`+key[1]+`"`), login, "rule 1 (line 4)"},
		{ask + rule("refuse", `key = "`+key[2]+`"`), login, "rule 1 (line 4)"},

		{ask + rule("refuse", `executable = "`+ssh+`"`), login, "rule 1 (line 4)"},
		{ask + rule("refuse", `executable = "`+ssh+`"`), signing("file"), ""},
		{ask + rule("refuse", `executable = ["unknown", "`+shell+`"]`), login, ""}, // that is an ancestor
		{ask + rule("refuse", `ancestor = "`+shell+`"`), login, "rule 1 (line 4)"},
		{ask + rule("refuse", `ancestor = "*/node"`) + rule("refuse", `ancestor = ["*/zsh", "*`+filepath.Base(shell)+`"]`), signing("file"), "rule 2 (line 8)"},
		{ask + rule("refuse", `ancestor = ["unknown", "`+ssh+`"]`), login, ""},

		{ask + rule("ask", `kind = "sshsig:git"`) + rule("refuse", `kind = "sshsig"`), signing("git"), ""},
		{ask + rule("ask", `kind = "sshsig:git"`) + rule("refuse", `kind = "sshsig"`), signing("file"), "rule 2 (line 8)"},
		{ask + rule("ask", `kind = "sshsig:git"`) + rule("refuse", `kind = "sshsig"`), login, ""},
	} {
		d.configure(c.policy)
		d.serving.again("configuration read again")
		before := len(d.serving.output())
		r := c.request.ask()
		if (r.exit != 0) != (c.refused != "") {
			t.Errorf("%s\n%s: %v", c.policy, c.request.name, r)
		}
		if c.refused != "" { // what the agent has written arrives here a little later
			want := regexp.MustCompile(`outcome=refused reason="?policy: ` + regexp.QuoteMeta(c.refused))
			eventually(t, c.request.name+": "+want.String(), func() bool { return want.MatchString(d.serving.output()[before:]) })
		}
		said, _, _ := strings.Cut(d.ok("vmux-agent", append([]string{"policy", "--key", key[1], "--ancestor", shell}, c.request.described...)...), "\n")
		if c.refused != "" && said != "refuse: "+c.refused || c.refused == "" && !strings.HasPrefix(said, "ask: ") {
			t.Errorf("%s\n%s: vmux-agent policy says %q, want %q", c.policy, c.request.name, said, c.refused)
		}
	}
}
