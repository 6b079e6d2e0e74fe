// SPDX-License-Identifier: BSD-3-Clause

package policy

import (
	"errors"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	printA = "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"
	printB = "SHA256:u1J0Mn+ig+pHQE5fSQLuRjBpXdLjxPSmBQwFhOC5pJI"
)

// login is a request with everything known.
func login() *Facts {
	return &Facts{
		Kind: Login, Key: printA, Comment: "work laptop", User: "git",
		Host:       func() (string, []string) { return printB, []string{"web.example.org", "[web.example.org]:2222"} },
		Executable: func() string { return "/usr/bin/ssh" },
		Ancestors:  func() []string { return []string{"/usr/bin/git", "/usr/lib/node/bin/node", "/usr/bin/bash"} },
	}
}

func with(change func(*Facts)) *Facts {
	f := login()
	change(f)
	return f
}

func as(user string) *Facts { return with(func(f *Facts) { f.User = user }) }

func named(host string) *Facts {
	return with(func(f *Facts) { f.Host = func() (string, []string) { return printB, []string{host} } })
}

func of(kind string) *Facts {
	f := &Facts{Kind: kind, Key: printA, Comment: "work laptop"}
	switch kind {
	case SSHSIG:
		f.Namespace = "git"
	case PAM:
		f.User = "root"
	}
	return f
}

var (
	forwardedLogin  = with(func(f *Facts) { f.Forwarded = true })
	unverifiedLogin = with(func(f *Facts) { f.Host = func() (string, []string) { return "", nil } })
	namelessLogin   = with(func(f *Facts) { f.Host = func() (string, []string) { return printB, nil } })
	bareLogin       = &Facts{Kind: Login, Key: printA, User: "git"}
)

// A rule on its own.
func TestRuleMatches(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		rule Rule
		yes  []*Facts
		no   []*Facts
	}{
		{"refuse whatever", Rule{Action: Refuse}, []*Facts{login(), bareLogin, of(SSHSIG), of(PAM), of(Certificate), of(Opaque), of("new")}, nil},
		{"ask whatever", Rule{Action: Ask}, []*Facts{login(), bareLogin, of(SSHSIG), of(PAM)}, []*Facts{of(Certificate), of(Opaque), of("new")}},
		{"no action", Rule{}, []*Facts{login(), of(Opaque)}, nil},
		{"ask what is named", Rule{Action: Ask, Kind: []string{Opaque, Certificate}}, []*Facts{of(Certificate), of(Opaque)}, []*Facts{login(), of(SSHSIG), of(PAM), of("new")}},
		{"sshsig", Rule{Action: Ask, Kind: []string{SSHSIG}}, []*Facts{of(SSHSIG)}, []*Facts{login(), of(PAM), of(Opaque)}},
		{"namespace", Rule{Action: Ask, Kind: []string{"sshsig:git"}}, []*Facts{of(SSHSIG)},
			[]*Facts{login(), {Kind: SSHSIG, Namespace: "Git"}, {Kind: SSHSIG, Namespace: "gitx"}, {Kind: SSHSIG}, {Kind: Opaque, Namespace: "git"}}},
		{"pattern of namespaces", Rule{Action: Ask, Kind: []string{"sshsig:*@example.org", Login}}, []*Facts{login(), {Kind: SSHSIG, Namespace: "x@example.org"}}, []*Facts{of(SSHSIG)}},

		{"key", Rule{Action: Ask, Key: []string{printA}}, []*Facts{login(), of(SSHSIG)}, []*Facts{{Kind: Login, Key: printB, Comment: printA}}},
		{"comment", Rule{Action: Ask, Key: []string{"work*"}}, []*Facts{login()}, []*Facts{bareLogin, {Kind: Login, Comment: "Work"}, {Kind: Login, Key: "work"}}},

		{"host by fingerprint", Rule{Action: Ask, Host: []string{printB}}, []*Facts{login(), namelessLogin}, []*Facts{unverifiedLogin, bareLogin, of(SSHSIG), of(PAM)}},
		{"host by another fingerprint", Rule{Action: Ask, Host: []string{printA}}, nil, []*Facts{login(), namelessLogin, unverifiedLogin}},
		{"host by name", Rule{Action: Ask, Host: []string{"WEB.example.ORG"}}, []*Facts{login()}, []*Facts{namelessLogin, unverifiedLogin, bareLogin, of(PAM)}},
		{"host by name and port", Rule{Action: Ask, Host: []string{"[web.*]:2222"}}, []*Facts{login()}, nil},
		{"host on another port", Rule{Action: Ask, Host: []string{"WEB.*.org", "2001:db8::1"}},
			[]*Facts{named("[web.example.org]:2222"), named("[2001:db8::1]:22")}, []*Facts{named("[web.example.org]"), named("[web.example.org.evil]:2222")}},
		{"host and port", Rule{Action: Ask, Host: []string{"*]:2222"}}, []*Facts{named("[a]:2222")}, []*Facts{named("[a]:2223"), named("a")}},
		{"host by beginning of name", Rule{Action: Ask, Host: []string{"web"}}, nil, []*Facts{login()}},
		{"any name", Rule{Action: Ask, Host: []string{"*"}}, []*Facts{login()}, []*Facts{namelessLogin, unverifiedLogin, bareLogin, of(SSHSIG)}},
		{"unverified", Rule{Action: Refuse, Host: []string{Unverified}}, []*Facts{unverifiedLogin, bareLogin},
			[]*Facts{login(), namelessLogin, of(SSHSIG), of(PAM), of(Opaque), of(Certificate)}},
		{"name of an unverified host", Rule{Action: Ask, Host: []string{"web*"}}, nil,
			[]*Facts{with(func(f *Facts) { f.Host = func() (string, []string) { return "", []string{"web.example.org"} } })}},
		{"host called unverified", Rule{Action: Ask, Host: []string{Unverified}}, nil,
			[]*Facts{with(func(f *Facts) { f.Host = func() (string, []string) { return printB, []string{"unverified"} } })}},

		{"user", Rule{Action: Ask, User: []string{"root", "gi?"}}, []*Facts{login(), of(PAM)}, []*Facts{of(SSHSIG), of(Opaque), {Kind: Login, User: "Git"}}},
		{"account to refuse", Rule{Action: Refuse, User: []string{"root"}}, []*Facts{as("root"), as("root:x"), as("root/x"), as("root:x/y"), as("root/x:y"), as("root:"),
			{Kind: PAM, User: "root:x"}}, []*Facts{as("x:root"), as("roo"), as("rootx"), as(":root"), {Kind: SSHSIG, User: "root:x"}}},
		{"account to ask for", Rule{Action: Ask, User: []string{"git"}}, []*Facts{as("git")}, []*Facts{as("git:x"), as("git/x")}},
		{"account with a style", Rule{Action: Refuse, User: []string{"root:x"}}, []*Facts{as("root:x")}, []*Facts{as("root"), as("root:y")}},
		{"any user", Rule{Action: Refuse, User: []string{"*"}}, []*Facts{login(), {Kind: Login}, of(PAM)}, []*Facts{of(SSHSIG), of(Opaque), of(Certificate)}},

		{"executable", Rule{Action: Ask, Executable: []string{"/usr/bin/ssh"}}, []*Facts{login()},
			[]*Facts{bareLogin, with(func(f *Facts) { f.Executable = func() string { return "/tmp/usr/bin/ssh" } })}},
		{"unknown executable", Rule{Action: Ask, Executable: []string{Unknown}}, []*Facts{bareLogin, with(func(f *Facts) { f.Executable = func() string { return "" } })},
			[]*Facts{login(), with(func(f *Facts) { f.Executable = func() string { return "unknown" } })}},
		{"any executable", Rule{Action: Ask, Executable: []string{"*"}}, []*Facts{login()}, []*Facts{bareLogin}},
		{"ancestor", Rule{Action: Ask, Ancestor: []string{"*/node"}}, []*Facts{login()}, []*Facts{bareLogin, with(func(f *Facts) { f.Ancestors = func() []string { return nil } })}},
		{"the program is no ancestor", Rule{Action: Ask, Ancestor: []string{"/usr/bin/ssh"}}, nil, []*Facts{login()}},
		{"unknown ancestor", Rule{Action: Ask, Ancestor: []string{Unknown}}, []*Facts{bareLogin, with(func(f *Facts) { f.Ancestors = func() []string { return []string{"/bin/sh", ""} } })},
			[]*Facts{login(), with(func(f *Facts) { f.Ancestors = func() []string { return nil } })}},

		{"forwarded", Rule{Action: Ask, Forwarded: Yes}, []*Facts{forwardedLogin}, []*Facts{login()}},
		{"not forwarded", Rule{Action: Ask, Forwarded: No}, []*Facts{login()}, []*Facts{forwardedLogin}},
		{"every field", Rule{Action: Ask, Kind: []string{Login}, Key: []string{"*"}, Host: []string{"web.*"}, User: []string{"git"},
			Executable: []string{"*/ssh"}, Ancestor: []string{"*/bash"}, Forwarded: No}, []*Facts{login()},
			[]*Facts{forwardedLogin, unverifiedLogin, bareLogin, of(SSHSIG),
				with(func(f *Facts) { f.User = "root" }), with(func(f *Facts) { f.Executable = nil }), with(func(f *Facts) { f.Ancestors = nil })}},
	} {
		p := Policy{Rules: []Rule{c.rule}, Default: Ask}
		for i, f := range c.yes {
			if d := p.Decide(f); d.Rule != 1 || d.BuiltIn || d.Action != strict(c.rule.Action) {
				t.Errorf("%s: %d is not matched: %+v", c.name, i, d)
			}
		}
		for i, f := range c.no {
			if d := p.Decide(f); d.Rule != 0 {
				t.Errorf("%s: %d is matched: %+v", c.name, i, d)
			}
		}
	}
}

func TestDecide(t *testing.T) {
	t.Parallel()
	rules := []Rule{
		{Line: 4, Action: Ask, Forwarded: Yes, Host: []string{"web.example.org"}},
		{Line: 9, Action: Refuse, Forwarded: Yes},
		{Action: Ask, Kind: []string{Opaque}, Key: []string{"test*"}},
		{Line: 30, Action: Refuse, User: []string{"root"}},
		{Line: 40, Action: Ask},
	}
	ask, refuse := &Policy{rules, Ask}, &Policy{rules[:4], Refuse}
	for _, c := range []struct {
		name string
		p    *Policy
		f    *Facts
		want Action
		text string
	}{
		{"first of two", ask, forwardedLogin, Ask, "rule 1 (line 4)"},
		{"second", ask, &Facts{Kind: SSHSIG, Forwarded: true}, Refuse, "rule 2 (line 9)"},
		{"without line", ask, &Facts{Kind: Opaque, Comment: "test"}, Ask, "rule 3"},
		{"forwarded opaque", ask, &Facts{Kind: Opaque, Comment: "test", Forwarded: true}, Refuse, "rule 2 (line 9)"},
		{"of two that match", ask, of(PAM), Refuse, "rule 4 (line 30)"},
		{"last", ask, login(), Ask, "rule 5 (line 40)"},
		{"default", refuse, login(), Refuse, "default"},
		{"opaque", ask, of(Opaque), Refuse, "built in: opaque data"},
		{"certificate", ask, of(Certificate), Refuse, "built in: certificate"},
		{"new kind", ask, of("new"), Refuse, "built in: opaque data"},
		{"no kind", ask, &Facts{}, Refuse, "built in: opaque data"},
		{"opaque, default refuse", refuse, of(Opaque), Refuse, "built in: opaque data"},
		{"nil", nil, login(), Ask, "default"},
		{"nil, opaque", nil, of(Opaque), Refuse, "built in: opaque data"},
		{"zero", &Policy{}, login(), Refuse, "default"},
		{"wrong default", &Policy{Default: "ASK"}, login(), Refuse, "default"},
		{"wrong action", &Policy{Rules: []Rule{{Action: "ASK"}}, Default: Ask}, of(Opaque), Refuse, "rule 1"},
	} {
		d := c.p.Decide(c.f)
		if d.Action != c.want || d.String() != c.text {
			t.Errorf("%s: %+v %s, want %s by %s", c.name, d, d, c.want, c.text)
		}
	}
	if got := Shipped(); got.Rules != nil || got.Default != Ask {
		t.Errorf("shipped: %+v", got)
	}
}

// What a rule does not need is not looked up, and nothing is looked up twice.
func TestDecideLooksUpOnce(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		rules []Rule
		kind  string
		want  string
	}{
		{"no rules", nil, Login, ""},
		{"no need", []Rule{{Action: Refuse, Forwarded: Yes}}, Login, ""},
		{"decided by what is at hand", []Rule{{Action: Ask, Kind: []string{SSHSIG}, Host: []string{"a"}, Executable: []string{"/a"}, Ancestor: []string{"/a"}}}, Login, ""},
		{"decided before", []Rule{{Action: Ask}, {Action: Refuse, Host: []string{"a"}}}, Login, ""},
		{"not a login", []Rule{{Action: Refuse, Host: []string{Unverified, "a", printA}}}, SSHSIG, ""},
		{"host", []Rule{{Action: Refuse, Host: []string{"a", printA}}, {Action: Refuse, Host: []string{Unverified, "b"}}}, Login, "host "},
		{"host stops at the others", []Rule{{Action: Refuse, Host: []string{"a"}, Executable: []string{"/a"}, Ancestor: []string{"/a"}}}, Login, "host "},
		{"executable stops at the chain", []Rule{{Action: Refuse, Executable: []string{"/a"}, Ancestor: []string{"/a"}}, {Action: Refuse, Executable: []string{"/b"}}}, Login, "executable "},
		{"chain", []Rule{{Action: Refuse, Ancestor: []string{"/a", "/b"}}, {Action: Refuse, Ancestor: []string{"/c"}}}, PAM, "ancestors "},
		{"all", []Rule{{Action: Refuse, Host: []string{"a"}}, {Action: Refuse, Executable: []string{Unknown}}, {Action: Refuse, Ancestor: []string{Unknown}}}, Login, "host executable ancestors "},
	} {
		var calls string
		f := &Facts{Kind: c.kind,
			Host:       func() (string, []string) { calls += "host "; return printB, []string{"x"} },
			Executable: func() string { calls += "executable "; return "/x" },
			Ancestors:  func() []string { calls += "ancestors "; return []string{"/x"} },
		}
		p := Policy{Rules: c.rules, Default: Ask}
		p.Decide(f)
		if calls != c.want {
			t.Errorf("%s: Decide looked up %q, want %q", c.name, calls, c.want)
		}
		calls = ""
		p.Explain(f)
		if calls != c.want {
			t.Errorf("%s: Explain looked up %q, want %q", c.name, calls, c.want)
		}
	}
}

func TestDecideWithoutRulesAllocatesNothing(t *testing.T) {
	p, f := Shipped(), login()
	if n := testing.AllocsPerRun(100, func() { p.Decide(f) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	many := strings.Fields("/1 /2 /3 /4 /5 /6 /7 /8 /9 /10")
	for _, c := range []struct {
		rule Rule
		f    *Facts
		want string
	}{
		{Rule{Action: Ask}, of(Opaque), "kind is opaque, which a rule that asks must name"},
		{Rule{Action: Ask, Kind: []string{SSHSIG, Login}}, of(Opaque), "kind is opaque, wanted sshsig, login"},
		{Rule{Action: Ask, Kind: []string{"sshsig:file"}}, of(SSHSIG), "kind is sshsig:git, wanted sshsig:file"},
		{Rule{Action: Ask, Kind: []string{"sshsig:file"}}, &Facts{Kind: SSHSIG, Namespace: "a\x1b[b"}, `kind is sshsig:"a\x1b[b", wanted sshsig:file`},
		{Rule{Action: Ask, Key: []string{"home"}}, login(), "key is " + printA + ` "work laptop", wanted home`},
		{Rule{Action: Ask, Key: []string{"home"}}, &Facts{Kind: Login}, "key is unknown, wanted home"},
		{Rule{Action: Ask, Key: []string{"home"}}, &Facts{Kind: Login, Comment: "x"}, "key is x, wanted home"},
		{Rule{Action: Ask, Key: []string{"home"}}, &Facts{Kind: Login, Key: printA}, "key is " + printA + ` "", wanted home`},
		{Rule{Action: Ask, User: []string{"root"}}, login(), "user is git, wanted root"},
		{Rule{Action: Ask, User: []string{"root"}}, of(SSHSIG), "user: sshsig has none"},
		{Rule{Action: Ask, Forwarded: Yes}, login(), "forwarded is no, wanted yes"},
		{Rule{Action: Ask, Host: []string{"a b", "*.com"}}, login(), "host is " + printB + ` web.example.org, [web.example.org]:2222, wanted "a b", *.com`},
		{Rule{Action: Ask, Host: []string{"a"}}, namelessLogin, "host is " + printB + " without a name, wanted a"},
		{Rule{Action: Ask, Host: []string{"a"}}, bareLogin, "host is unverified, wanted a"},
		{Rule{Action: Ask, Host: []string{"a"}}, of(PAM), "host: pam_ssh_agent_auth has none"},
		{Rule{Action: Ask, Executable: many}, bareLogin, "executable is unknown, wanted /1, /2, /3, /4, /5, /6, /7, /8, 2 more"},
		{Rule{Action: Ask, Executable: []string{"/a"}}, with(func(f *Facts) { f.Executable = func() string { return "/b" } }), "executable is /b, wanted /a"},
		{Rule{Action: Ask, Executable: []string{"/a"}}, with(func(f *Facts) { f.Executable = func() string { return "/b\x1b[2J" } }), `executable is "/b\x1b[2J", wanted /a`},
		{Rule{Action: Ask, Ancestor: []string{"/a"}}, login(), "ancestor is /usr/bin/git, /usr/lib/node/bin/node, /usr/bin/bash, wanted /a"},
		{Rule{Action: Ask, Ancestor: []string{"/a"}}, bareLogin, "ancestor is unknown, wanted /a"},
		{Rule{Action: Ask, Ancestor: []string{"/a"}}, with(func(f *Facts) { f.Ancestors = func() []string { return nil } }), "ancestor is none, wanted /a"},
	} {
		c.rule.Line = 7
		p := &Policy{Rules: []Rule{c.rule, {Line: 9, Action: Refuse}, {Action: Refuse}}, Default: Ask}
		d, steps := p.Explain(c.f)
		want := []Step{{Rule: 1, Line: 7, Why: c.want}, {Rule: 2, Line: 9, Matched: true}}
		if d != p.Decide(c.f) || d.Rule != 2 || !slices.Equal(steps, want) {
			t.Errorf("%+v %+v\nwant  %+v", d, steps, want)
		}
	}
	d, steps := (*Policy)(nil).Explain(login())
	if d.String() != "default" || d.Action != Ask || steps != nil {
		t.Errorf("nil: %v %v", d, steps)
	}
}

func TestRuleString(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		rule Rule
		want string
	}{
		{Rule{Action: Refuse}, "whatever"},
		{Rule{Action: Ask}, "kind login, sshsig, pam_ssh_agent_auth"},
		{Rule{Action: Refuse, Host: []string{"a"}, User: []string{"b"}}, "kind login; host a; user b"},
		{Rule{Action: Ask, User: []string{"b"}}, "kind login, pam_ssh_agent_auth; user b"},
		{Rule{Action: Refuse, Kind: []string{"opaque"}, Key: []string{"work laptop", "a"}, Host: []string{"*"}, User: []string{"u"},
			Executable: []string{"/x"}, Ancestor: []string{"/y", "unknown"}, Forwarded: Yes},
			`kind opaque; key "work laptop", a; host *; user u; executable /x; ancestor /y, unknown; forwarded yes`},
		{Rule{Action: Refuse, Key: strings.Fields("1 2 3 4 5 6 7 8 9 10")}, "key 1, 2, 3, 4, 5, 6, 7, 8, 9, 10"},
	} {
		if got := c.rule.String(); got != c.want {
			t.Errorf("%+v: %s, want %s", c.rule, got, c.want)
		}
	}
}

func TestHosts(t *testing.T) {
	t.Parallel()
	p := &Policy{Rules: []Rule{
		{Host: []string{"b.Example.org", "*.example.org", Unverified, printA, "a"}},
		{User: []string{"x"}},
		{Host: []string{"A", "[c]:22", "d?", "2001:db8::1"}},
	}}
	if got, want := p.Hosts(), []string{"b.example.org", "a", "[c]:22", "2001:db8::1"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := (*Policy)(nil).Hosts(); got != nil {
		t.Errorf("nil: %q", got)
	}
}

func TestSet(t *testing.T) {
	t.Parallel()
	var r Rule
	for _, c := range []struct {
		field  string
		values []string
	}{
		{"action", []string{"ask"}},
		{"kind", []string{"login", "sshsig", "sshsig:git", "sshsig:a b*", "pam_ssh_agent_auth", "certificate", "opaque"}},
		{"key", []string{printA, "work laptop", "MD5", "é?", "SHA256*"}},
		{"host", []string{printA, printB, "web.example.org", "[web]:2222", "2001:db8::1", "*", "unverified", "md5.example.org"}},
		{"user", []string{"git", "a b@c:d/e"}},
		{"executable", []string{"/usr/bin/ssh", "*/node", "?x", "unknown"}},
		{"ancestor", []string{"/a b", "*", "unknown"}},
		{"forwarded", []string{"no"}},
	} {
		if err := r.Set(c.field, c.values); err != nil {
			t.Errorf("%s: %v", c.field, err)
		}
		if !slices.Contains(Fields(), c.field) {
			t.Errorf("%s is not among the fields", c.field)
		}
	}
	want := Rule{0, Ask, []string{"login", "sshsig", "sshsig:git", "sshsig:a b*", "pam_ssh_agent_auth", "certificate", "opaque"},
		[]string{printA, "work laptop", "MD5", "é?", "SHA256*"},
		[]string{printA, printB, "web.example.org", "[web]:2222", "2001:db8::1", "*", "unverified", "md5.example.org"},
		[]string{"git", "a b@c:d/e"}, []string{"/usr/bin/ssh", "*/node", "?x", "unknown"}, []string{"/a b", "*", "unknown"}, No}
	if !reflect.DeepEqual(r, want) {
		t.Errorf("%+v\nwant %+v", r, want)
	}
	if err := r.Check(); err != nil {
		t.Error(err)
	}
	if n := reflect.TypeFor[Rule]().NumField(); len(Fields()) != n-1 { // Line is no field of the file
		t.Errorf("%d fields of %d", len(Fields()), n-1)
	}
}

func TestSetErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		field   string
		values  []string
		problem string
		want    string
	}{
		{"action", []string{"allow"}, `"allow" is neither ask nor refuse`, `action = "refuse"`},
		{"action", []string{"ask", "refuse"}, "takes one value", ""},
		{"action", nil, "is empty", ""},
		{"kind", []string{"login", "ssh"}, `"ssh" is no kind of request`, "login, sshsig, sshsig:NAMESPACE, pam_ssh_agent_auth, certificate or opaque"},
		{"kind", []string{"sshsig:"}, `"sshsig:" has no namespace`, "sshsig:git"},
		{"kind", []string{"login:git"}, "no kind", ""},
		{"kind", []string{"*"}, "no kind", ""},
		{"kind", []string{}, "is empty: leave it out", ""},
		{"key", []string{"SHA256:abc"}, "no fingerprint: SHA256: and 43 characters", "ssh-add -l"},
		{"key", []string{printA + "="}, "no fingerprint", ""},
		{"key", []string{printA[:len(printA)-1] + "V"}, "no fingerprint", ""}, // the last bits count for nothing
		{"key", []string{"SHA256:*"}, "no fingerprint", ""},
		{"key", []string{"sha256:" + printA[7:]}, "begins with SHA256:", ""},
		{"key", []string{"MD5:16:27"}, "begins with SHA256:", ""},
		{"key", []string{""}, `"" is empty`, ""},
		{"host", []string{"SHA256:"}, "no fingerprint", "unverified"},
		{"host", []string{"a,b"}, `"a,b" is no name of a host`, `host = ["*.example.org", "unverified"]`},
		{"host", []string{"a/24"}, "no name of a host", ""},
		{"host", []string{"!a"}, "no name of a host", ""},
		{"host", []string{"git@a"}, "no name of a host", ""},
		{"user", []string{"a\nb"}, `"a\nb" has characters that cannot be shown`, ""},
		{"user", []string{"a\xff"}, "is not UTF-8", ""},
		{"user", []string{strings.Repeat("x", MaxValue+1)}, "more than 1024 bytes", ""},
		{"user", slices.Repeat([]string{"x"}, MaxValues+1), "has 65 values, more than 64", ""},
		{"executable", []string{"node"}, `"node" is no absolute path`, `executable = "/usr/bin/*"`},
		{"executable", []string{"~/bin/x"}, "no absolute path", ""},
		{"ancestor", []string{"./x"}, "no absolute path", `ancestor = `},
		{"forwarded", []string{"true"}, "neither yes nor no", `forwarded = "yes"`},
		{"Host", []string{"a"}, "is no field of a rule", "action, kind, key, host, user, executable, ancestor, forwarded"},
		{"line", []string{"1"}, "is no field of a rule", ""},
	} {
		var r Rule
		e, ok := errors.AsType[*FieldError](r.Set(c.field, c.values))
		if !ok || e.Field != c.field || !strings.Contains(e.Problem, c.problem) || !strings.Contains(e.Want, c.want) || e.Want == "" {
			t.Errorf("%s %.100q: %+v", c.field, c.values, e)
		}
		if !reflect.DeepEqual(r, Rule{}) {
			t.Errorf("%s %.100q: set all the same", c.field, c.values)
		}
		if ok && len(e.Problem) > 200 {
			t.Errorf("%s: %d bytes of problem", c.field, len(e.Problem))
		}
	}
	for _, n := range []int{MaxValues, 1} {
		if err := new(Rule).Set("user", slices.Repeat([]string{strings.Repeat("x", MaxValue)}, n)); err != nil {
			t.Errorf("%d values: %v", n, err)
		}
	}
}

// What can match nothing is an error that says what would.
func TestNever(t *testing.T) {
	t.Parallel()
	for field, values := range map[string]map[string]string{
		"host": {
			"web:2222": "[web]:2222", "web:22": "web", "web:": "[name]:2222", ":22": "[name]:2222", "web:ssh": "[name]:2222", "face:22": "face", "web*:2222": "[web*]:2222",
			"*web:2222": "[*web]:2222", "[web]:22": "web", "[*.example.org]:22": "*.example.org", "[web]": "web", "[web]x": "[name]:2222", "[web]:x": "[name]:2222", "[web]:0": "[name]:2222",
			"[web": "[name]:2222", "[]:2222": "[name]:2222", "[web]2222": "[name]:2222", "web.": "web", "*.": "*", "[web.]:2222": "[web]:2222",
			"Unverified": "unverified", "UNVERIFIED": "unverified",
		},
		"executable": {"/usr/bin/": "/usr/bin/*", "/": "/*", "*/bin/": "*/bin/*", "/usr//bin/ssh": "/usr/bin/ssh", "/usr/./ssh": "/usr/ssh", "/bin/../ssh": "/ssh", "*/../ssh": "a path or a pattern",
			"/usr/bin/ssh (deleted)": "/usr/bin/ssh"},
		"ancestor": {"/opt/node/": "/opt/node/*"},
		"key":      {"256 " + printA + " work laptop (ED25519)": printA, "256 " + printA: printA, "256 SHA256:abc work": "which begins with SHA256:"},
	} {
		for value, want := range values {
			e, ok := errors.AsType[*FieldError](new(Rule).Set(field, []string{value}))
			if !ok || e.Field != field || !strings.Contains(e.Want, want) || strings.Contains(want, printA) && strings.Contains(e.Want, "work") ||
				field == "host" && e.Want != field+" = "+strconv.Quote(want) {
				t.Errorf("%s %q: %+v, want %s", field, value, e, want)
			}
		}
	}
	for field, values := range map[string][]string{
		"host":       {"*:2222", "?web*:22", "*]:2222", "[*", "[web]*", "[web*", "[web?:22", "[*]:2222", "[web]:?2", "[2001:db8::1]:2222", "2001:db8::1", "200?:*", "dead*:1", "::1", "unverified*", "fe80::1%eth0", "*.*"},
		"executable": {"/usr/*", "*", "?", "/a b", "/usr/bin/..x", "unknown", "*(deleted)"},
		"key":        {"a SHA256", printA},
	} {
		for _, value := range values {
			if err := new(Rule).Set(field, []string{value}); err != nil {
				t.Errorf("%s %q: %v", field, value, err)
			}
		}
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		rule Rule
		want string
	}{
		{Rule{}, "action is missing"},
		{Rule{Action: Ask, Kind: []string{SSHSIG}, Host: []string{"a"}}, "host can never match"},
		{Rule{Action: Ask, Kind: []string{SSHSIG, Login}, Host: []string{"a"}}, ""},
		{Rule{Action: Ask, Kind: []string{Opaque}, User: []string{"a"}}, "user can never match"},
		{Rule{Action: Ask, Kind: []string{PAM}, User: []string{"a"}}, ""},
		{Rule{Action: Ask, Kind: []string{PAM}, User: []string{"a"}, Host: []string{"a"}}, "host can never match"},
		{Rule{Action: Refuse, User: []string{"a"}, Host: []string{"a"}}, ""},
	} {
		err := c.rule.Check()
		if c.want == "" {
			if err != nil {
				t.Errorf("%+v: %v", c.rule, err)
			}
			continue
		}
		e, ok := errors.AsType[*FieldError](err)
		if !ok || !strings.Contains(err.Error(), c.want) || e.Want == "" {
			t.Errorf("%+v: %v, want %s", c.rule, err, c.want)
		}
	}
}

func TestParseAction(t *testing.T) {
	t.Parallel()
	for _, v := range []string{"ask", "refuse"} {
		if a, err := ParseAction(v); string(a) != v || err != nil {
			t.Errorf("%s: %q, %v", v, a, err)
		}
	}
	for _, v := range []string{"", "Ask", "allow"} {
		if a, err := ParseAction(v); a != "" || err == nil || err.Error() != "is neither ask nor refuse" {
			t.Errorf("%q: %q, %v", v, a, err)
		}
	}
	for field, want := range map[string]string{"default": `default = "refuse"`, "host": "known_hosts", "line": ""} {
		if got := Want(field); !strings.Contains(got, want) || (got == "") != (want == "") {
			t.Errorf("%s: %q", field, got)
		}
	}
}
