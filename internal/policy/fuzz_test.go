// SPDX-License-Identifier: BSD-3-Clause

package policy

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

// dice turns a fuzzer's bytes into choices.
type dice []byte

func (d *dice) roll(n int) int {
	if len(*d) == 0 {
		return 0
	}
	b := (*d)[0]
	*d = (*d)[1:]
	return int(b) % n
}

func (d *dice) one(of []string) string { return of[d.roll(len(of))] }

func (d *dice) some(of []string) (values []string) {
	for range max(d.roll(5)-2, 0) { // most fields of most rules are empty
		values = append(values, d.one(of))
	}
	return values
}

var (
	fuzzKinds    = []string{Login, SSHSIG, PAM, Certificate, Opaque, "sshsig:git", "sshsig:*", "sshsig:f?le"}
	fuzzKeys     = []string{printA, printB, "*", "work*", "work", "?ome"}
	fuzzHosts    = []string{printA, printB, Unverified, "*", "a.example", "*.EXAMPLE", "[*]:22", "?"}
	fuzzUsers    = []string{"*", "git", "g*", "r??t"}
	fuzzPrograms = []string{Unknown, "*", "/bin/a", "*/b", "/bin/?"}
)

func (d *dice) policy() *Policy {
	p := &Policy{Default: []Action{Ask, Refuse, ""}[d.roll(3)]}
	for range d.roll(6) {
		p.Rules = append(p.Rules, Rule{Line: d.roll(20), Action: []Action{Ask, Refuse}[d.roll(2)],
			Kind: d.some(fuzzKinds), Key: d.some(fuzzKeys), Host: d.some(fuzzHosts), User: d.some(fuzzUsers),
			Executable: d.some(fuzzPrograms), Ancestor: d.some(fuzzPrograms), Forwarded: d.one([]string{"", "", "", Yes, No})})
	}
	return p
}

// known is what Facts are made from.
type known struct {
	kind, namespace, key, comment, user, print, program string
	forwarded                                           bool
	names, programs                                     []string
}

func (d *dice) known() known {
	programs := []string{"", "/bin/a", "/bin/b", "/opt/b"}
	k := known{
		kind: d.one([]string{Login, Login, Login, SSHSIG, PAM, Certificate, Opaque, "new", ""}), namespace: d.one([]string{"git", "file", ""}),
		key: d.one([]string{printA, printB}), comment: d.one([]string{"work", "home", "work laptop", printA, ""}), user: d.one([]string{"git", "root", "", "git:x", "root/x:y"}),
		print: d.one([]string{"", printA, printB}), program: d.one(programs), forwarded: d.roll(2) == 1,
	}
	for range d.roll(3) {
		k.names = append(k.names, d.one([]string{"a.example", "B.Example", "[a]:22", "unverified"}))
	}
	for range d.roll(4) {
		k.programs = append(k.programs, d.one(programs))
	}
	return k
}

func (k known) facts() *Facts {
	return &Facts{Kind: k.kind, Namespace: k.namespace, Key: k.key, Comment: k.comment, User: k.user, Forwarded: k.forwarded,
		Host:       func() (string, []string) { return k.print, k.names },
		Executable: func() string { return k.program },
		Ancestors:  func() []string { return k.programs }}
}

// fits is pattern.Match by means of another matcher.
func fits(p, s, flags string) bool {
	p = strings.NewReplacer(`\*`, ".*", `\?`, ".").Replace(regexp.QuoteMeta(p))
	return regexp.MustCompile("(?s" + flags + ")^" + p + "$").MatchString(s)
}

// naive decides as vmux.toml(5) says it, at leisure.
func naive(p *Policy, k known) (Action, int) {
	type claim struct {
		wanted []string
		ok     func(value string) bool
	}
	isProgram := func(value, path string) bool {
		if path == "" {
			return value == "unknown"
		}
		return value != "unknown" && fits(value, path, "")
	}
	for i, r := range p.Rules {
		kinds := r.Kind
		if len(kinds) == 0 && r.Action == Ask {
			kinds = []string{"login", "sshsig", "pam_ssh_agent_auth"}
		}
		var forwarded []string
		if r.Forwarded != "" {
			forwarded = []string{r.Forwarded}
		}
		all := true
		for _, c := range []claim{
			{kinds, func(v string) bool {
				v, namespace, ok := strings.Cut(v, ":")
				return v == k.kind && (!ok || fits(namespace, k.namespace, ""))
			}},
			{r.Key, func(v string) bool {
				if strings.HasPrefix(v, "SHA256:") {
					return v == k.key
				}
				return fits(v, k.comment, "")
			}},
			{r.Host, func(v string) bool {
				switch {
				case k.kind != "login":
					return false
				case v == "unverified" || k.print == "":
					return v == "unverified" && k.print == ""
				case strings.HasPrefix(v, "SHA256:"):
					return v == k.print
				}
				return slices.ContainsFunc(k.names, func(n string) bool {
					bare := regexp.MustCompile(`^\[(.*)\]:[0-9]+$`).ReplaceAllString(n, "$1")
					return fits(v, n, "i") || fits(v, bare, "i")
				})
			}},
			{r.User, func(v string) bool {
				bare := regexp.MustCompile(`^([^:/]*).*$`).ReplaceAllString(k.user, "$1")
				return (k.kind == "login" || k.kind == "pam_ssh_agent_auth") && (fits(v, k.user, "") || r.Action == Refuse && fits(v, bare, ""))
			}},
			{r.Executable, func(v string) bool { return isProgram(v, k.program) }},
			{r.Ancestor, func(v string) bool {
				return slices.ContainsFunc(k.programs, func(p string) bool { return isProgram(v, p) })
			}},
			{forwarded, func(v string) bool { return (v == "yes") == k.forwarded }},
		} {
			all = all && (len(c.wanted) == 0 || slices.ContainsFunc(c.wanted, c.ok))
		}
		if all {
			return r.Action, i + 1
		}
	}
	switch {
	case k.kind != "login" && k.kind != "sshsig" && k.kind != "pam_ssh_agent_auth":
		return Refuse, 0
	case p.Default == Ask:
		return Ask, 0
	}
	return Refuse, 0
}

func FuzzDecide(f *testing.F) {
	f.Add([]byte(""))
	f.Add([]byte("the quick brown fox jumps over the lazy dog, again and again and again"))
	f.Add([]byte("\x00\x03\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b\x1c"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := dice(b)
		p, k := d.policy(), d.known()
		action, rule := naive(p, k)
		got := p.Decide(k.facts())
		if got.Action != action || got.Rule != rule {
			t.Errorf("%+v by %+v: %+v, want %s by rule %d", k, p, got, action, rule)
		}
		if got.BuiltIn && (rule > 0 || got.Action != Refuse) || rule > 0 && got.Line != p.Rules[rule-1].Line {
			t.Errorf("%+v", got)
		}
		if rule > 0 {
			kinds := p.Rules[rule-1].Kinds()
			if kinds != nil && !slices.ContainsFunc(kinds, func(v string) bool { return strings.HasPrefix(v+":", k.kind+":") }) {
				t.Errorf("%+v by %+v: %s is none of its kinds %q", k, p.Rules[rule-1], k.kind, kinds)
			}
		}
		explained, steps := p.Explain(k.facts())
		if explained != got {
			t.Errorf("%+v by %+v: explained as %+v, decided %+v", k, p, explained, got)
		}
		looked := rule
		if rule == 0 {
			looked = len(p.Rules)
		}
		if len(steps) != looked {
			t.Errorf("%d steps, want %d", len(steps), looked)
		}
		for i, s := range steps {
			if s.Rule != i+1 || s.Matched != (s.Rule == rule) || s.Matched != (s.Why == "") || s.Line != p.Rules[i].Line {
				t.Errorf("step %+v of %+v", s, p)
			}
		}
	})
}
