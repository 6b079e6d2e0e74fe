// SPDX-License-Identifier: BSD-3-Clause

package store

import (
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"vmux.app/toolkit/internal/policy"
)

const allFields = `# no rule: [[policy.rule]]
name = "laptop"

[policy]
default = "refuse" # the rest

[[policy.rule]] # who may come from afar
action = "ask"
kind = ["login", "sshsig:git"]
host = [
	"*.example.org",
	"[[policy]]*",
]
forwarded = "yes"

  [[ policy.rule ]]
  action = "refuse"
  key = "work*"
  user = ["root"]
  executable = "/usr/bin/node"
  ancestor = ["*/node", "unknown"]

[certificate]
validity = "1h"
`

func TestRules(t *testing.T) {
	t.Parallel()
	all := policy.Policy{Default: policy.Refuse, Rules: []policy.Rule{
		{Line: 7, Action: policy.Ask, Kind: []string{"login", "sshsig:git"}, Host: []string{"*.example.org", "[[policy]]*"}, Forwarded: "yes"},
		{Line: 16, Action: policy.Refuse, Key: []string{"work*"}, User: []string{"root"}, Executable: []string{"/usr/bin/node"}, Ancestor: []string{"*/node", "unknown"}},
	}}
	one := []policy.Rule{{Action: policy.Refuse}}
	for _, c := range []struct {
		name, file string
		env        Env
		want       policy.Policy
	}{
		{"none", "", env(), policy.Shipped()},
		{"none, variable", "", env("VMUX_POLICY_DEFAULT", "refuse"), policy.Policy{Default: policy.Refuse}},
		{"default", "[policy]\ndefault = \"refuse\"\n", env(), policy.Policy{Default: policy.Refuse}},
		{"dotted", "policy.default = \"refuse\"\n", env(), policy.Policy{Default: policy.Refuse}},
		{"all", allFields, env(), all},
		{"all, Windows", strings.ReplaceAll(allFields, "\n", "\r\n"), env(), all},
		{"all, variable", allFields, env("VMUX_POLICY_DEFAULT", "ask"), policy.Policy{Rules: all.Rules, Default: policy.Ask}},
		{"empty list", "[policy]\ndefault = \"ask\"\nrule = []\n", env(), policy.Policy{Default: policy.Ask}},
		{"inline", "[policy]\ndefault = \"ask\"\nrule = [{action = \"refuse\"}]\n", env(), policy.Policy{Rules: one, Default: policy.Ask}},
		{"inline all", "policy = {default = \"ask\", rule = [{action = \"refuse\"}]}\n", env(), policy.Policy{Rules: one, Default: policy.Ask}},
		{"a header in a text", "[policy]\ndefault = \"ask\"\n[[policy.rule]]\naction = \"refuse\"\n[certificate]\nvalidity = \"\"\"\\\n  8\\\n[[policy.rule]]h\"\"\"", env(), policy.Policy{}},
	} {
		path := filepath.Join(t.TempDir(), "vmux.toml")
		write(t, path, c.file, 0o600)
		got, err := LoadConfig(path, true, c.env)
		if c.want.Default == "" {
			if e, ok := errors.AsType[*ConfigError](err); !ok || e.Key != "certificate.validity" {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(got.Policy, c.want) {
			t.Errorf("%s: %+v, %v\nwant %+v", c.name, got.Policy, err, c.want)
		}
	}
}

// The most that a policy may hold fits into the file.
func TestMostRules(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "vmux.toml")
	rules := func(n int) string {
		return "[policy]\ndefault = \"ask\"\n" + strings.Repeat("[[policy.rule]]\naction = \"refuse\"\nhost = \"a.host.of.some.length.example.org\"\nancestor = \"/usr/lib/some/length/of/path/node\"\n", n)
	}
	write(t, path, rules(policy.MaxRules), 0o600)
	c, err := LoadConfig(path, true, env())
	if err != nil || len(c.Policy.Rules) != policy.MaxRules || c.Policy.Rules[policy.MaxRules-1].Line != 3+4*(policy.MaxRules-1) {
		t.Errorf("%d rules: %v", len(c.Policy.Rules), err)
	}
	write(t, path, rules(policy.MaxRules+1), 0o600)
	_, err = LoadConfig(path, true, env())
	if e, ok := errors.AsType[*ConfigError](err); !ok || e.Key != "policy.rule" || e.Problem != "257 rules, more than 256" {
		t.Errorf("more: %v", err)
	}
}

func TestRuleErrors(t *testing.T) {
	t.Parallel()
	const head = "[policy]\ndefault = \"ask\"\n"
	for _, c := range []struct {
		file    string
		line    int
		key     string
		problem string
		want    string
	}{
		{"\n[policy]\n", 2, "policy.default", "policy.default is missing", `default = "ask" or default = "refuse" below a line [policy]`},
		{"\n[[policy.rule]]\naction = \"ask\"\n", 2, "policy.default", "is missing", "before the rules"},
		{"[[policy.rule]]\naction = \"ask\"\n\n[policy]\n", 4, "policy.default", "is missing", ""},
		{"policy = {}\n", 1, "policy.default", "is missing", ""},
		{"\"policy\" = {}\n", 0, "policy.default", "is missing", ""},
		{"[policy]\nforwarded = \"ask\"\n", 2, "policy.forwarded", "no setting", ""}, // before what is missing
		{"policy = \"ask\"", 1, "policy", "no setting", "policy.default"},
		{"[[policy]]\naction = \"ask\"", 0, "policy", "no setting", "[[policy.rule]]"},

		{head + "[policy.rule]\naction = \"ask\"\n", 3, "policy.rule", "is no list of rules", "[[policy.rule]]"},
		{head + "rule = \"ask\"\n", 3, "policy.rule", "is no list of rules", ""},
		{head + "rule = [{action = \"ask\"}, \"ask\"]\n", 3, "policy.rule", "is no list of rules", ""},
		{head + "[[policy.rules]]\naction = \"ask\"\n", 0, "policy.rules", "no setting", "[[policy.rule]]"},

		{head + "[[policy.rule]]\n", 3, "policy.rule.action", "rule 1: action is missing", `action = "refuse"`},
		{head + "[[policy.rule]]\naction = \"ask\"\n[[policy.rule]]\nhost = \"a\"\n", 5, "policy.rule.action", "rule 2: action is missing", ""},
		{head + "[[policy.rule]]\n[[policy.rule]]\naction = \"ask\"\n", 3, "policy.rule.action", "rule 1: action is missing", ""},
		{head + "[[policy.rule]]\nacton = \"ask\"\n", 4, "policy.rule.acton", "rule 1: acton is no field", "action, kind"},
		{head + "[[policy.rule]]\naction = \"allow\"\n", 4, "policy.rule.action", `rule 1: action "allow" is neither ask nor refuse`, ""},
		{head + "[[policy.rule]]\naction = true\n", 4, "policy.rule.action", "rule 1: action is no text in quotes", `ask or refuse, as in action = "refuse"`},
		{head + "[[policy.rule]]\naction = \"ask\"\n[[policy.rule]]\naction = \"ask\"\n# host\nhosts = \"a\"\n", 8, "policy.rule.hosts", "rule 2: hosts is no field", "action, kind, key, host"},
		{head + "[[policy.rule]]\naction = \"ask\"\nhosts = 1\n", 5, "policy.rule.hosts", "hosts is no field", ""},
		{head + "[[policy.rule]]\naction = \"ask\"\nforwarded = true\n", 5, "policy.rule.forwarded", "rule 1: forwarded is no text in quotes", `yes or no, as in forwarded = "yes"`},
		{head + "[[policy.rule]]\naction = \"ask\"\nforwarded = [\"yes\", \"no\"]\n", 5, "policy.rule.forwarded", "takes one value", ""},
		{head + "[[policy.rule]]\naction = \"ask\"\nuser = [\"a\", 1]\n", 5, "policy.rule.user", "user is no text in quotes", ""},
		{head + "[[policy.rule]]\naction = \"ask\"\nuser = []\n", 5, "policy.rule.user", "user is empty", ""},
		{head + "[[policy.rule]]\naction = \"ask\"\nuser = [[\"a\"]]\n", 5, "policy.rule.user", "no text", ""},
		{head + "[[policy.rule]]\naction = \"ask\"\n[policy.rule.user]\na = \"b\"\n", 3, "policy.rule.user", "no text", ""},
		{head + "[[policy.rule]]\naction = \"ask\"\nkey = \"SHA256:x\"\n", 5, "policy.rule.key", `key "SHA256:x" is no fingerprint`, "ssh-add -l"},
		{head + "[[policy.rule]]\naction = \"ask\"\nkind = \"sshsig\"\nhost = \"a\"\n", 6, "policy.rule.host", "host can never match", ""},
		{head + "[[policy.rule]]\naction = \"ask\"\nuser = \"\"\nkind = \"x\"\n", 5, "policy.rule.user", `user "" is empty`, ""}, // the first line
		{head + "rule = [{action = \"allow\"}]\n", 0, "policy.rule.action", "neither", ""},
		{"nome = \"a\"\n" + head + "[[policy.rule]]\n", 1, "nome", "no setting", ""},
	} {
		path := filepath.Join(t.TempDir(), "vmux.toml")
		write(t, path, c.file, 0o600)
		_, err := LoadConfig(path, true, env())
		e, ok := errors.AsType[*ConfigError](err)
		if !ok {
			t.Errorf("%q: %v", c.file, err)
			continue
		}
		if e.File != path || e.Line != c.line || e.Key != c.key || !strings.Contains(e.Problem, c.problem) || !strings.Contains(e.Want, c.want) || e.Want == "" {
			t.Errorf("%q: %+v", c.file, e)
		}
	}
	_, err := LoadConfig("/none", false, env("VMUX_POLICY_DEFAULT", "allow"))
	if e, ok := errors.AsType[*ConfigError](err); !ok || e.Error() != `VMUX_POLICY_DEFAULT: "allow" is neither ask nor refuse` {
		t.Errorf("variable: %v", err)
	}
}

// The error is about the file, whatever the file has.
func FuzzRules(f *testing.F) {
	f.Add(allFields)
	f.Add("policy = {default = \"ask\", rule = [{action = \"refuse\"}]}")
	f.Add("[[policy.rule]]\naction = 1\n[[policy.rule.x]]\n")
	f.Fuzz(func(t *testing.T, text string) {
		var c Config
		err := c.setFile("f", []byte(text), env())
		if e, ok := errors.AsType[*ConfigError](err); err != nil && (!ok || e.File != "f" || e.Line < 0 || e.Line > 1+strings.Count(text, "\n")) {
			t.Errorf("%q: %v", text, err)
		}
		for i, r := range c.Policy.Rules {
			if err := r.Check(); err != nil {
				t.Errorf("%q: rule %d: %v", text, i+1, err)
			}
		}
		if err != nil && fmt.Sprint(c.Policy.Rules) != "[]" {
			t.Errorf("%q: rules in spite of %v", text, err)
		}
	})
}
