// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"strings"
	"testing"
)

// A prompt names the host though ssh-keygen -H has hashed known_hosts, when the
// client's command line or ssh's configuration has the name; else it names none.
func TestHashedKnownHosts(t *testing.T) {
	t.Parallel()
	d, _, s, owner := asking(t)
	for _, test := range []struct {
		name   string
		known  string // what ssh looks up
		alias  bool   // by HostKeyAlias, else by destination and port
		hashed string // what the agent's file has
		config string
		want   string // "" if it cannot be told
	}{
		{"HostKeyAlias", "vault.example", true, "vault.example,192.0.2.7", "", "vault.example"},
		{"destination and port", "[vault.example]:2222", false, "[vault.example]:2222", "", "[vault.example]:2222"},
		{"configuration", "rig", true, "vault.example", "Include hosts\n", "vault.example"},
		{"mentioned nowhere", "rig", true, "vault.example", "", ""},
		{"another port", "[vault.example]:2222", false, "[vault.example]:2200", "", ""},
	} {
		d.write(".ssh/known_hosts", test.hashed+" "+s.key+"\n", 0o600)
		d.ok("ssh-keygen", "-q", "-H", "-f", d.path(".ssh", "known_hosts"))
		d.write(".ssh/config", test.config, 0o600)
		d.write(".ssh/hosts", "Host short\n  HostName vault.example\n", 0o600)
		s.write("known_hosts", test.known+" "+s.key+"\n")
		var args []string
		for _, arg := range s.args("echo", "in") {
			switch {
			case strings.HasPrefix(arg, "UserKnownHostsFile="): // so that the agent does not look into it
				args = append(args, "UserKnownHostsFile=none", "-o", "KnownHostsCommand="+need(t, "cat")+" "+s.file("known_hosts"))
			case test.alias:
				args = append(args, strings.ReplaceAll(arg, "HostKeyAlias=rig", "HostKeyAlias="+test.known))
			case arg == "HostKeyAlias=rig":
				args = append(args, "Port=2222")
			default:
				args = append(args, strings.ReplaceAll(arg, "@rig", "@vault.example"))
			}
		}
		login := d.spawn("ssh", args...)
		ask := owner.next()
		heading, fields, _ := strings.Cut(ask.prompt, "VERIFIED")
		verified, claimed, ok := strings.Cut(fields, "CLAIMED")
		if !ok || !strings.Contains(verified, s.fingerprint()) {
			t.Errorf("%s: not the prompt that was expected:\n%s", test.name, ask.prompt)
		}
		for _, part := range []string{heading, claimed} { // what the phone remembers is verified
			if !strings.Contains(part, test.want) || test.want == "" && (strings.Contains(part, "vault") || strings.Contains(part, "|1|")) {
				t.Errorf("%s: %q is not what the host is called:\n%s", test.name, test.want, ask.prompt)
			}
		}
		ask.approve()
		if exit := login.ended(); exit != 0 {
			t.Errorf("%s: exit %d\n%s", test.name, exit, login.output())
		}
	}
}
