// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/store"
)

const (
	policyFile = `[policy]
default = "ask"

[[policy.rule]]
action = "ask"
kind = "login"
forwarded = "yes"
host = "*.example.org"

[[policy.rule]]
action = "refuse"
forwarded = "yes"

[[policy.rule]]
action = "refuse"
host = ["unverified", "` + webECDSA + `"]

[[policy.rule]]
action = "refuse"
ancestor = "*/node"

[[policy.rule]]
action = "ask"
kind = ["sshsig:git", "opaque"]
key = "work*"

[[policy.rule]]
action = "ask"
executable = "/usr/bin/ssh"
user = "git"
host = "build.example.net"
`
	webEd25519 = "SHA256:KQlwj4Ce3zOF/Z4q0lKeIDsB0Orp9IrNf39WIMLATL4"
	webECDSA   = "SHA256:VhWKKAWDQtiMHtHMp96yqsWeuOESj/DxkfYkMDpypoQ"
	db         = "SHA256:rmEXwwGSKMdpPMhxga4zBWEVo7/OXxZ1ieWFKZfrhIs"
	build      = "SHA256:sd91iKnCBsN5+3tXBVe1rPmLZN/HGulJm4Ek6D4gZhE"

	// The last one is build.example.net.
	policyHosts = `web.example.org,192.0.2.7 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIO0Pm3uTGDUMa5rN2rimJTsLIsBAS9/S0zjzDfCtyEXd
web.example.org ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBMJ8IU4oYq/AP0n0II6+/qnr7ATNauqvS/e/SZzy5E/1GN5UuuVnbrKniuYLl2QYSZXBo+dfrjA9Ja+UanQ/KVM=
[db.example.org]:2222 ` + dbKey + `
|1|E6XH3FvXcD/wXp5AE/OGOIQ1EXQ=|bEdIN9Gt2pcr40V6ZVKoCQtbHnc= ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIWR+/xxvv2YkGHk9/eVArcKDT+D1MDeSx/Z2yyliLkS
`
	dbKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIL4ASskqlVe7ujP3cRX5vPo2p5VGe9JtAIg5/OjFkVRj"
)

// policyOutput runs vmux-agent policy.
func policyOutput(t *testing.T, args ...string) (exit int, stdout, stderr string) {
	t.Helper()
	var out, err strings.Builder
	a := &cli.App{Name: "vmux-agent", Commands: []*cli.Command{policyCommand()}}
	exit = cli.Run(context.Background(), a, append([]string{"policy"}, args...), strings.NewReader(""), &out, &err)
	return exit, out.String(), err.String()
}

// policyHome makes a home with known_hosts and, of two phones, cached keys: dbKey is called "work laptop" and "work phone".
func policyHome(t *testing.T) (config string) {
	t.Helper()
	home := t.TempDir()
	for _, name := range []string{"XDG_CONFIG_HOME", "XDG_STATE_HOME", "VMUX_CONFIG", "VMUX_POLICY_DEFAULT"} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", home)
	config = filepath.Join(home, ".config", "vmux", "vmux.toml")
	for path, text := range map[string]string{config: policyFile, filepath.Join(home, ".ssh", "known_hosts"): policyHosts} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	path, err := store.Env(os.Getenv).StateFile()
	if err != nil {
		t.Fatal(err)
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(dbKey))
	if err != nil {
		t.Fatal(err)
	}
	if err := store.New(path, nil).Update(func(s *store.State) error {
		for pin, comment := range map[string]string{"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU": "work laptop", "u1J0Mn+ig+pHQE5fSQLuRjBpXdLjxPSmBQwFhOC5pJI": "at home"} {
			s.Put(store.Phone{Name: "Pocket", Pin: "SHA256:" + pin, Keys: []store.Key{{Algorithm: key.Type(), Blob: key.Marshal(), Comment: comment, ProviderKind: "unknown"}}})
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return config
}

func TestPolicyCommand(t *testing.T) {
	config := policyHome(t)
	const notForwarded = "rule 1 (line 4): forwarded is no, wanted yes\nrule 2 (line 10): forwarded is no, wanted yes\n"
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, `rule 1 (line 4)   ask     kind login; host *.example.org; forwarded yes
rule 2 (line 10)  refuse  forwarded yes
rule 3 (line 14)  refuse  kind login; host unverified, ` + webECDSA + `
rule 4 (line 18)  refuse  ancestor */node
rule 5 (line 22)  ask     kind sshsig:git, opaque; key work*
rule 6 (line 27)  ask     kind login; host build.example.net; user git; executable /usr/bin/ssh
built in          refuse  kind opaque, certificate
default           ask
`},
		{[]string{"--json"}, `{"rules":[{"rule":1,"line":4,"action":"ask","kind":["login"],"host":["*.example.org"],"forwarded":"yes"},` +
			`{"rule":2,"line":10,"action":"refuse","forwarded":"yes"},{"rule":3,"line":14,"action":"refuse","kind":["login"],"host":["unverified","` + webECDSA + `"]},` +
			`{"rule":4,"line":18,"action":"refuse","ancestor":["*/node"]},{"rule":5,"line":22,"action":"ask","kind":["sshsig:git","opaque"],"key":["work*"]},` +
			`{"rule":6,"line":27,"action":"ask","kind":["login"],"host":["build.example.net"],"user":["git"],"executable":["/usr/bin/ssh"]}],` +
			`"builtIn":{"action":"refuse","kind":["opaque","certificate"]},"default":"ask"}` + "\n"},

		// A host whose keys are decided about in two ways, and in one.
		{[]string{"--host", "web.example.org"}, "ask: default, host key " + webEd25519 + "\n" + notForwarded +
			"rule 3 (line 14): host is " + webEd25519 + " web.example.org, 192.0.2.7, wanted unverified, " + webECDSA + "\n" +
			"rule 4 (line 18): ancestor is unknown, wanted */node\n" +
			"rule 5 (line 22): kind is login, wanted sshsig:git, opaque\n" +
			"rule 6 (line 27): user is \"\", wanted git\n" +
			"refuse: rule 3 (line 14), host key " + webECDSA + "\n" + notForwarded},
		{[]string{"--host", "web.example.org", "--forwarded"}, "ask: rule 1 (line 4)\n"},
		{[]string{"--host", "web.example.org", "--forwarded", "--json"}, `{"action":"ask","by":"rule 1 (line 4)","rule":1,"line":4,"rules":[{"rule":1,"line":4,"matches":true}]}` + "\n"},
		{[]string{"--host", webECDSA, "--json", "--quiet"}, `{"action":"refuse","by":"rule 3 (line 14)","rule":3,"line":14,"hostKey":"` + webECDSA + `","rules":[` +
			`{"rule":1,"line":4,"matches":false,"why":"forwarded is no, wanted yes"},{"rule":2,"line":10,"matches":false,"why":"forwarded is no, wanted yes"},{"rule":3,"line":14,"matches":true}]}` + "\n"},
		// By name, with and without port, and by fingerprint, which has a name.
		{[]string{"--host", "[db.example.org]:2222", "--forwarded"}, "ask: rule 1 (line 4)\n"},
		{[]string{"--host", "db.example.org:2222", "--forwarded"}, "ask: rule 1 (line 4)\n"},
		{[]string{"--host", db, "--forwarded"}, "ask: rule 1 (line 4)\n"},
		{[]string{"--host", "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU", "--forwarded"}, "refuse: rule 2 (line 10)\n" +
			"rule 1 (line 4): host is SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU without a name, wanted *.example.org\n"},
		// A hashed name, that the rules have.
		{[]string{"--host", build, "--user", "git", "--executable", "/usr/bin/ssh", "--ancestor", "/bin/sh"}, "ask: rule 6 (line 27)\n" + notForwarded +
			"rule 3 (line 14): host is " + build + " build.example.net, wanted unverified, " + webECDSA + "\n" +
			"rule 4 (line 18): ancestor is /bin/sh, wanted */node\n" +
			"rule 5 (line 22): kind is login, wanted sshsig:git, opaque\n"},
		{[]string{"--host", "build.example.net", "--ancestor", "/bin/sh", "--ancestor", "/opt/node"}, "refuse: rule 4 (line 18)\n" + notForwarded +
			"rule 3 (line 14): host is " + build + " build.example.net, wanted unverified, " + webECDSA + "\n"},
		// What is not given is not known.
		{[]string{"--user", "root"}, "refuse: rule 3 (line 14)\n" + notForwarded},
		{[]string{"--host", "unverified"}, "refuse: rule 3 (line 14)\n" + notForwarded},

		{[]string{"--kind", "certificate", "--executable", "unknown", "--ancestor", "unknown"}, "refuse: built in: certificate\n" +
			"rule 1 (line 4): kind is certificate, wanted login\nrule 2 (line 10): forwarded is no, wanted yes\nrule 3 (line 14): host: certificate has none\n" +
			"rule 4 (line 18): ancestor is unknown, wanted */node\nrule 5 (line 22): kind is certificate, wanted sshsig:git, opaque\n" +
			"rule 6 (line 27): kind is certificate, which a rule that asks must name\n"},
		{[]string{"--kind", "pam_ssh_agent_auth", "--user", "root", "--executable", "/usr/bin/sudo"}, "ask: default\n" +
			"rule 1 (line 4): kind is pam_ssh_agent_auth, wanted login\nrule 2 (line 10): forwarded is no, wanted yes\nrule 3 (line 14): host: pam_ssh_agent_auth has none\n" +
			"rule 4 (line 18): ancestor is unknown, wanted */node\nrule 5 (line 22): kind is pam_ssh_agent_auth, wanted sshsig:git, opaque\n" +
			"rule 6 (line 27): user is root, wanted git\n"},
		// A key by comment, by fingerprint, and one that no phone has listed.
		{[]string{"--kind", "sshsig:git", "--key", "work laptop", "--json"}, `{"action":"ask","by":"rule 5 (line 22)","rule":5,"line":22,"key":"` + db + `","comment":"work laptop","rules":[` +
			`{"rule":1,"line":4,"matches":false,"why":"kind is sshsig:git, wanted login"},{"rule":2,"line":10,"matches":false,"why":"forwarded is no, wanted yes"},` +
			`{"rule":3,"line":14,"matches":false,"why":"host: sshsig has none"},{"rule":4,"line":18,"matches":false,"why":"ancestor is unknown, wanted */node"},{"rule":5,"line":22,"matches":true}]}` + "\n"},
		{[]string{"--kind", "sshsig:git", "--key", "worker", "--forwarded"}, "refuse: rule 2 (line 10)\nrule 1 (line 4): kind is sshsig:git, wanted login\n"},
	} {
		exit, stdout, stderr := policyOutput(t, c.args...)
		if exit != 0 || stdout != c.want || stderr != "" {
			t.Errorf("%q: exit %d\n%s%s\nwant\n%s", c.args, exit, stdout, stderr, c.want)
		}
	}

	// Two phones have the key, by different names.
	exit, stdout, _ := policyOutput(t, "--kind", "opaque", "--key", db)
	if exit != 0 || strings.Count(stdout, "ask: rule 5 (line 22), key "+db+" work laptop\n") != 1 ||
		strings.Count(stdout, "refuse: built in: opaque data, key "+db+" at home\n") != 1 || !strings.Contains(stdout, db+` "at home", wanted work*`) {
		t.Errorf("exit %d\n%s", exit, stdout)
	}
	if exit, stdout, _ := policyOutput(t, "--kind", "opaque", "--key", build); exit != 0 || !strings.Contains(stdout, "key is "+build+` "", wanted work*`) {
		t.Errorf("exit %d\n%s", exit, stdout)
	}

	// A hashed name that no rule has is known by being given, and not otherwise.
	other := config + ".other"
	if err := os.WriteFile(other, []byte("[policy]\ndefault = \"ask\"\n[[policy.rule]]\naction = \"refuse\"\nhost = \"*.example.net\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if exit, stdout, _ := policyOutput(t, "--config", other, "--host", "build.example.net"); exit != 0 || stdout != "refuse: rule 1 (line 3)\n" {
		t.Errorf("exit %d\n%s", exit, stdout)
	}
	if exit, stdout, _ := policyOutput(t, "--config", other, "--host", build); exit != 0 || stdout != "ask: default\nrule 1 (line 3): host is "+build+" without a name, wanted *.example.net\n" {
		t.Errorf("exit %d\n%s", exit, stdout)
	}

	empty := config + ".empty"
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("VMUX_POLICY_DEFAULT", "refuse")
	if exit, stdout, _ := policyOutput(t, "--config", empty); exit != 0 || stdout != "built in  refuse  kind opaque, certificate\ndefault   refuse\n" {
		t.Errorf("exit %d\n%s", exit, stdout)
	}
}

func TestPolicyCommandErrors(t *testing.T) {
	config := policyHome(t)
	wrong := config + ".wrong"
	if err := os.WriteFile(wrong, []byte("[policy]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args          []string
		problem, hint string
	}{
		{[]string{"--host", "new.example.org"}, `--host: "new.example.org" is not in known_hosts`, "connect to it once with ssh"},
		{[]string{"--host", "db.example.org"}, "is not in known_hosts", ""}, // which is there on another port
		{[]string{"--host", "SHA256:abc"}, `--host: "SHA256:abc" is no fingerprint`, "ssh-keygen -l -F HOST"},
		{[]string{"--host", "web.example.org", "--kind", "sshsig:git"}, "--host: a request of kind sshsig has none", "leave --host out"},
		{[]string{"--user", "root", "--kind", "opaque"}, "--user: a request of kind opaque has none", "leave --user out"},
		{[]string{"--kind", "sshsig"}, "an sshsig has a namespace", "--kind sshsig:git"},
		{[]string{"--kind", "sshsig:"}, "an sshsig has a namespace", ""},
		{[]string{"--kind", "login:git"}, `"login:git" is no kind of request`, "sshsig:NAMESPACE"},
		{[]string{"--kind", "ssh"}, `"ssh" is no kind of request`, ""},
		{[]string{"--key", "SHA256:abc"}, "no fingerprint", "ssh-add -l"},
		{[]string{"--executable", "node"}, `--executable: "node" is no absolute path`, "--executable /usr/bin/ssh"},
		{[]string{"--ancestor", "/a", "--ancestor", "b"}, `--ancestor: "b" is no absolute path`, "--ancestor "},
		{[]string{"--config", wrong}, "vmux.toml.wrong:1: policy.default is missing", `default = "ask"`},
		{[]string{"--config", wrong, "--forwarded"}, "policy.default is missing", ""},
		{[]string{"x"}, `no place for the argument "x"`, ""},
	} {
		exit, stdout, stderr := policyOutput(t, c.args...)
		problem, hint, _ := strings.Cut(stderr, "\n")
		if exit != 2 || stdout != "" || !strings.HasPrefix(problem, "error: ") || !strings.Contains(problem, c.problem) ||
			!strings.HasPrefix(hint, "hint: ") || !strings.Contains(hint, c.hint) {
			t.Errorf("%q: exit %d\n%s%s", c.args, exit, stdout, stderr)
		}
	}
}

// As ssh, it passes over a malformed line, and writes names in small letters. It looks into the files that ssh's
// configuration names, and through patterns.
func TestPolicyCommandKnownHosts(t *testing.T) {
	config := policyHome(t)
	own := filepath.Join(filepath.Dir(config), "..", "..", ".ssh")
	lines := strings.SplitAfter(policyHosts, "\n")
	for name, text := range map[string]string{"known_hosts": "a b c\nweb.example.org ssh-ed25519 AAAA\n" + lines[0], "other": strings.ReplaceAll(lines[2], "[db.example.org]:2222", "db*.example.org"),
		"config": "UserKnownHostsFile ~/.ssh/known_hosts %d/.ssh/other\n"} {
		if err := os.WriteFile(filepath.Join(own, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for host, key := range map[string]string{"Web.Example.ORG": webEd25519 + " web.example.org, 192.0.2.7", "db2.Example.org": db + " db2.example.org"} {
		want := "rule 3 (line 14): host is " + key + ", wanted unverified"
		if exit, stdout, stderr := policyOutput(t, "--host", host); exit != 0 || !strings.Contains(stdout, want) {
			t.Errorf("%s: exit %d\n%s%s", host, exit, stdout, stderr)
		}
	}
}

// The listing warns of paths that no running program can have.
func TestPolicyCommandWarns(t *testing.T) {
	config := policyHome(t)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"program", "bin/program"} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"link": "program", "sbin": "bin"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	text := fmt.Sprintf("[policy]\ndefault = \"ask\"\n[[policy.rule]]\naction = \"refuse\"\nexecutable = [\"%[1]s/program\", \"%[1]s/link\", \"%[1]s/none*\", \"unknown\"]\n"+
		"ancestor = [\"%[1]s/none\", \"%[1]s/sbin/program\"]\n", dir)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	const warning = "warning: rule 1 (line 3): "
	want := warning + dir + "/link is a symbolic link, or below one: programs there have the path " + dir + "/program\n" +
		warning + dir + "/none does not exist\n" +
		warning + dir + "/sbin/program is a symbolic link, or below one: programs there have the path " + dir + "/bin/program\n"
	if exit, stdout, stderr := policyOutput(t); exit != 0 || stderr != want || !strings.HasPrefix(stdout, "rule 1 ") {
		t.Errorf("exit %d\n%s%s\nwant\n%s", exit, stdout, stderr, want)
	}
	if exit, _, stderr := policyOutput(t, "--forwarded"); exit != 0 || stderr != "" {
		t.Errorf("with a description: exit %d\n%s", exit, stderr)
	}
}
