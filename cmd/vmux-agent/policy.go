// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/fingerprint"
	"vmux.app/toolkit/internal/knownhosts"
	"vmux.app/toolkit/internal/policy"
	"vmux.app/toolkit/internal/process"
	"vmux.app/toolkit/internal/safetext"
)

// maxPolicyLine bounds a line about a rule, which may have several lists of paths.
const maxPolicyLine = 4000

func policyCommand() *cli.Command {
	return &cli.Command{
		Name: "policy", Usage: "print the rules of vmux.toml, or what they say about a request",
		Description: "Without a description of a request, prints the rules as they are understood, in their order. With one, prints\n" +
			"what happens to it, and why the rules before do not match. What is not given is not known: the host is\n" +
			"unverified, the programs are unknown. Reads vmux.toml as it is now, which the agent does at SIGHUP.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "kind", Usage: "a request of `KIND`: login, sshsig:NAMESPACE, pam_ssh_agent_auth, certificate or opaque", DefaultText: "login"},
			&cli.StringFlag{Name: "key", Usage: "for `KEY`, a fingerprint or a comment"},
			&cli.StringFlag{Name: "host", Usage: "a login to `HOST`, a name of known_hosts or the fingerprint of a host key", DefaultText: policy.Unverified},
			&cli.StringFlag{Name: "user", Usage: "a login as `USER`"},
			&cli.StringFlag{Name: "executable", Usage: "by the program at `PATH`", DefaultText: policy.Unknown},
			&cli.StringsFlag{Name: "ancestor", Usage: "which the program at `PATH` started, directly or not; may be repeated", DefaultText: policy.Unknown},
			&cli.BoolFlag{Name: "forwarded", Usage: "through a forwarded agent"},
			cli.ConfigFlag(),
		},
		Action: showPolicy,
	}
}

func showPolicy(c *cli.Context) error {
	config, err := cli.LoadConfig(c)
	if err != nil {
		return err
	}
	p := &config.Policy
	if !slices.ContainsFunc([]string{"kind", "key", "host", "user", "executable", "ancestor", "forwarded"}, c.IsSet) {
		cli.From(c).Result(policyObjectOf(p), func(w io.Writer) { writePolicy(w, p) })
		for i, r := range p.Rules {
			for _, path := range slices.Concat(r.Executable, r.Ancestor) {
				if problem := unlike(path); problem != "" {
					cli.From(c).Warnf("%s: %s %s", ruleName(i+1, r.Line), path, problem)
				}
			}
		}
		return nil
	}
	described, err := describe(c, p)
	if err != nil {
		return err
	}
	answers := make([]answer, len(described))
	for i, f := range described {
		answers[i].described = f
		answers[i].decision, answers[i].steps = p.Explain(f.facts())
	}
	if all := answers; !slices.ContainsFunc(all, func(a answer) bool { return a.decision != all[0].decision }) {
		answers = all[:1]
		if len(all) > 1 { // it does not depend on which one it is
			answers[0].key, answers[0].comment, answers[0].hostKey = "", "", ""
		}
	}
	for _, a := range answers {
		cli.From(c).Result(a.object(), func(w io.Writer) { a.write(w, len(answers) > 1) })
	}
	return nil
}

// unlike says why no program that runs has a path that is no pattern, "" if one may.
func unlike(path string) string {
	if path == policy.Unknown || strings.ContainsAny(path, "*?") {
		return ""
	}
	real, err := filepath.EvalSymlinks(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "does not exist"
	case err == nil && real != path:
		return "is a symbolic link, or below one: programs there have the path " + real
	}
	return ""
}

// ruleObject is a rule in JSON.
type ruleObject struct {
	Rule       int      `json:"rule,omitzero"`
	Line       int      `json:"line,omitzero"`
	Action     string   `json:"action"`
	Kind       []string `json:"kind,omitempty"`
	Key        []string `json:"key,omitempty"`
	Host       []string `json:"host,omitempty"`
	User       []string `json:"user,omitempty"`
	Executable []string `json:"executable,omitempty"`
	Ancestor   []string `json:"ancestor,omitempty"`
	Forwarded  string   `json:"forwarded,omitempty"`
}

func ruleObjectOf(n int, r policy.Rule) ruleObject {
	return ruleObject{n, r.Line, string(r.Action), r.Kinds(), r.Key, r.Host, r.User, r.Executable, r.Ancestor, r.Forwarded}
}

type policyObject struct {
	Rules   []ruleObject `json:"rules"`
	BuiltIn ruleObject   `json:"builtIn"`
	Default string       `json:"default"`
}

// builtIn is what the policy of every file goes on with after its rules.
func builtIn() policy.Rule {
	return policy.Rule{Action: policy.Refuse, Kind: []string{policy.Opaque, policy.Certificate}}
}

func policyObjectOf(p *policy.Policy) policyObject {
	o := policyObject{Rules: []ruleObject{}, BuiltIn: ruleObjectOf(0, builtIn()), Default: string(p.Default)}
	for i, r := range p.Rules {
		o.Rules = append(o.Rules, ruleObjectOf(i+1, r))
	}
	return o
}

func writePolicy(w io.Writer, p *policy.Policy) {
	tab := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	defer tab.Flush()
	for i, r := range p.Rules {
		fmt.Fprintf(tab, "%s\t%s\t%s\n", ruleName(i+1, r.Line), r.Action, safetext.Line(r.String(), maxPolicyLine))
	}
	fmt.Fprintf(tab, "built in\t%s\t%s\n", builtIn().Action, builtIn())
	fmt.Fprintf(tab, "default\t%s\n", p.Default)
}

func ruleName(rule, line int) string { return policy.Decision{Rule: rule, Line: line}.String() }

// described is a request as the command line describes it.
type described struct {
	kind, namespace, key, comment, user, hostKey, executable string

	hostNames, ancestors []string
	forwarded            bool
}

func (d described) facts() *policy.Facts {
	return &policy.Facts{Kind: d.kind, Namespace: d.namespace, Key: d.key, Comment: d.comment, User: d.user, Forwarded: d.forwarded,
		Host:       func() (string, []string) { return d.hostKey, d.hostNames },
		Executable: func() string { return d.executable },
		Ancestors:  func() []string { return d.ancestors },
	}
}

// answer is what the policy says about it.
type answer struct {
	described
	decision policy.Decision
	steps    []policy.Step
}

type answerObject struct {
	Action  string       `json:"action"`
	By      string       `json:"by"`
	Rule    int          `json:"rule,omitzero"`
	Line    int          `json:"line,omitzero"`
	Key     string       `json:"key,omitzero"`
	Comment string       `json:"comment,omitzero"`
	HostKey string       `json:"hostKey,omitzero"`
	Rules   []stepObject `json:"rules"`
}

type stepObject struct {
	Rule    int    `json:"rule"`
	Line    int    `json:"line,omitzero"`
	Matches bool   `json:"matches"`
	Why     string `json:"why,omitzero"`
}

func (a answer) object() answerObject {
	o := answerObject{Action: string(a.decision.Action), By: a.decision.String(), Rule: a.decision.Rule, Line: a.decision.Line,
		Key: a.key, Comment: strings.ToValidUTF8(a.comment, "\uFFFD"), HostKey: a.hostKey, Rules: []stepObject{}}
	for _, s := range a.steps {
		o.Rules = append(o.Rules, stepObject{s.Rule, s.Line, s.Matched, strings.ToValidUTF8(s.Why, "\uFFFD")})
	}
	return o
}

// write prints the decision, and of several what it is for.
func (a answer) write(w io.Writer, several bool) {
	fmt.Fprintf(w, "%s: %s", a.decision.Action, a.decision)
	if several && a.key != "" {
		fmt.Fprintf(w, ", key %s", safetext.Line(strings.TrimSpace(a.key+" "+a.comment), maxPolicyLine))
	}
	if several && a.hostKey != "" {
		fmt.Fprintf(w, ", host key %s", a.hostKey)
	}
	fmt.Fprintln(w)
	for _, s := range a.steps {
		if !s.Matched {
			fmt.Fprintf(w, "%s: %s\n", ruleName(s.Rule, s.Line), safetext.Line(s.Why, maxPolicyLine))
		}
	}
}

// describe reads the flags that describe a request. A host can have several keys, and several keys the same comment: that
// makes several descriptions.
func describe(c *cli.Context, p *policy.Policy) ([]described, error) {
	d := described{kind: policy.Login, user: c.String("user"), forwarded: c.Bool("forwarded")}
	var err error
	if c.IsSet("kind") {
		if d.kind, d.namespace, err = kindOf(c.String("kind")); err != nil {
			return nil, err
		}
	}
	login, pam := d.kind == policy.Login, d.kind == policy.PAM
	if flag := "host"; c.IsSet(flag) && !login {
		return nil, noSuch(flag, d.kind)
	}
	if flag := "user"; c.IsSet(flag) && !login && !pam {
		return nil, noSuch(flag, d.kind)
	}
	if d.executable, err = programOf("executable", c.String("executable")); err != nil {
		return nil, err
	}
	for _, path := range c.StringSlice("ancestor") {
		if path, err = programOf("ancestor", path); err != nil {
			return nil, err
		}
		d.ancestors = append(d.ancestors, path)
	}
	if d.ancestors == nil {
		d.ancestors = []string{""}
	}
	keys, err := d.withKey(c)
	if err != nil {
		return nil, err
	}
	var all []described
	for _, d := range keys {
		hosts, err := d.withHost(c.String("host"), p)
		if err != nil {
			return nil, err
		}
		all = append(all, hosts...)
	}
	return all, nil
}

func noSuch(flag, kind string) error {
	return &cli.UsageError{Problem: fmt.Sprintf("--%s: a request of kind %s has none", flag, kind), Hint: "leave --" + flag + " out"}
}

func kindOf(value string) (kind, namespace string, err error) {
	kind, namespace, named := strings.Cut(value, ":")
	switch {
	case !slices.Contains([]string{policy.Login, policy.SSHSIG, policy.PAM, policy.Certificate, policy.Opaque}, kind), named && kind != policy.SSHSIG:
		return "", "", &cli.UsageError{Problem: fmt.Sprintf("--kind: %q is no kind of request", value),
			Hint: "write --kind login|sshsig:NAMESPACE|pam_ssh_agent_auth|certificate|opaque"}
	case kind == policy.SSHSIG && namespace == "":
		return "", "", &cli.UsageError{Problem: "--kind: an sshsig has a namespace", Hint: "write it too, as in --kind sshsig:git"}
	}
	return kind, namespace, nil
}

// programOf reads the path of a program, "" when it is unknown.
func programOf(flag, path string) (string, error) {
	if path == "" || path == policy.Unknown {
		return "", nil
	}
	if !strings.HasPrefix(path, "/") {
		return "", &cli.UsageError{Problem: fmt.Sprintf("--%s: %q is no absolute path", flag, path),
			Hint: fmt.Sprintf("write it as the log has it, as in --%s /usr/bin/ssh", flag)}
	}
	return process.Undeleted(path), nil
}

// withKey adds fingerprint and comment. Of a key that a phone has listed one is enough.
func (d described) withKey(c *cli.Context) ([]described, error) {
	key := c.String("key")
	if key == "" {
		return []described{d}, nil
	}
	isFingerprint := strings.HasPrefix(key, fingerprint.Prefix)
	if isFingerprint && !fingerprint.Valid(key) {
		return nil, &cli.UsageError{Problem: fmt.Sprintf("--key: %q is no fingerprint: SHA256: and 43 characters", key), Hint: "see the keys: ssh-add -l"}
	}
	_, state, err := cli.OpenState(c)
	if err != nil {
		return nil, err
	}
	var all []described
	for _, phone := range state.Phones {
		for _, k := range phone.Keys {
			public, err := ssh.ParsePublicKey(k.Blob)
			if err != nil {
				continue // the agent does not list it either
			}
			if d.key, d.comment = ssh.FingerprintSHA256(public), k.Comment; key == d.key || key == d.comment {
				all = append(all, d)
			}
		}
	}
	if len(all) == 0 {
		if d.key, d.comment = "", key; isFingerprint {
			d.key, d.comment = key, ""
		}
		all = append(all, d)
	}
	return all, nil
}

// withHost adds the proven host key, and the names that the agent would know for it.
func (d described) withHost(name string, p *policy.Policy) ([]described, error) {
	if name == "" || name == policy.Unverified {
		return []described{d}, nil
	}
	h := new(hosts)
	keys, err := knownhosts.Lookup(h.files(), name)
	if err != nil {
		return nil, fmt.Errorf("--host: %w", err)
	}
	var all []described
	for _, k := range keys {
		d.hostKey, d.hostNames = k.Fingerprint, nil
		if k.Key != nil { // else that of a host without a name
			d.hostNames = h.known(k.Key, []string{"ssh", name}, p.Hosts())
		}
		all = append(all, d)
	}
	return all, nil
}
