// SPDX-License-Identifier: BSD-3-Clause

// Package policy decides which requests to sign reach the phone's owner. It is pure: what it is not told, it asks the
// functions in Facts for.
package policy

import (
	"fmt"
	"slices"
	"strings"

	"vmux.app/toolkit/internal/fingerprint"
	"vmux.app/toolkit/internal/pattern"
)

// Action is what happens to a request. Whatever is not Ask counts as Refuse.
type Action string

const (
	Ask    Action = "ask"    // goes on to whoever has the key: the phone, whose owner decides, or a certificate's scope
	Refuse Action = "refuse" // is answered with failure
)

// Kinds of requests, as signed.Kind prints them, and words that stand for what is not known.
const (
	Login       = "login"
	SSHSIG      = "sshsig"
	PAM         = "pam_ssh_agent_auth"
	Certificate = "certificate"
	Opaque      = "opaque"

	Unverified = "unverified" // a login's destination that nobody proved
	Unknown    = "unknown"    // a program that cannot be told

	Yes = "yes"
	No  = "no"
)

// Rule matches a request when each of its fields does; an empty field matches whatever. A field matches
// when one of its values does. Set checks values, Check a whole rule.
type Rule struct {
	Line   int // of its beginning in the file, from 1; 0 unknown
	Action Action

	// Kind has the words of signed.Kind, and sshsig:NAMESPACE, a pattern. Without it a rule that refuses is for
	// every kind, and one that asks for login, sshsig and pam_ssh_agent_auth: opaque data and certificates are
	// asked for only where they are named.
	Kind       []string
	Key        []string // fingerprints, and patterns over the comment
	Host       []string // fingerprints, patterns over names with or without port in any case, "unverified"; matches logins only
	User       []string // patterns; matches logins and pam_ssh_agent_auth only. One that refuses also matches the account in it
	Executable []string // patterns over the path of the program that connected, "unknown"
	Ancestor   []string // the same over the processes that it descends from, any of them
	Forwarded  string   // "yes", "no", or empty
}

// Policy is an ordered list of rules. The first that matches decides; else opaque data and certificates are
// refused; else Default decides. It is not changed while it is in use. A nil Policy is that of Shipped.
type Policy struct {
	Rules   []Rule
	Default Action
}

// Shipped is the policy of who wrote none: no rules, the owner is asked.
func Shipped() Policy { return Policy{Default: Ask} }

// Facts is what is known about a request. The functions are called at most once for each decision, and only if
// a rule depends on the answer; nil ones know nothing.
type Facts struct {
	Kind      string // as signed.Kind prints it; one that is not known here is refused
	Namespace string // of an sshsig
	Key       string // SHA256 fingerprint
	Comment   string // of the key
	User      string // of a login or pam_ssh_agent_auth
	Forwarded bool

	// Host gives the SHA256 fingerprint of the host key that is proven for a login, "" if none is, and the
	// names that are known for it.
	Host func() (fingerprint string, names []string)
	// Executable gives the path of the program that connected, "" if it cannot be told.
	Executable func() string
	// Ancestors gives the paths of the processes that the one that connected descends from, with "" for each
	// that cannot be told, and at the end if there may be more.
	Ancestors func() []string
}

// Decision is what a policy says about a request, and why.
type Decision struct {
	Action  Action
	Rule    int    // that decided, from 1; 0 if none matched
	Line    int    // of that rule in the file, 0 unknown
	BuiltIn bool   // opaque data or a certificate that no rule matched
	Kind    string // of the request
}

// String says what decided: "rule 2 (line 14)", "built in: opaque data", "built in: certificate" or "default".
func (d Decision) String() string {
	switch {
	case d.Rule > 0 && d.Line > 0:
		return fmt.Sprintf("rule %d (line %d)", d.Rule, d.Line)
	case d.Rule > 0:
		return fmt.Sprintf("rule %d", d.Rule)
	case d.BuiltIn && d.Kind == Certificate:
		return "built in: certificate"
	case d.BuiltIn:
		return "built in: opaque data"
	}
	return "default"
}

// Step is how a rule was held against a request.
type Step struct {
	Rule    int // from 1
	Line    int
	Matched bool
	Why     string // the first field that did not match: what it wants and what there is; empty if all did
}

// Decide says what happens to a request.
func (p *Policy) Decide(f *Facts) Decision {
	if p == nil {
		p = &Policy{Default: Ask}
	}
	r := request{Facts: f}
	for i := range p.Rules {
		if r.mismatch(&p.Rules[i]) == matches {
			return p.decided(i, f)
		}
	}
	return p.undecided(f)
}

// Explain is Decide with the rules that were looked at, up to the one that decided.
func (p *Policy) Explain(f *Facts) (Decision, []Step) {
	if p == nil {
		p = &Policy{Default: Ask}
	}
	r := request{Facts: f}
	var steps []Step
	for i := range p.Rules {
		rule := &p.Rules[i]
		step := Step{Rule: i + 1, Line: rule.Line}
		m := r.mismatch(rule)
		if m == matches {
			step.Matched = true
			return p.decided(i, f), append(steps, step)
		}
		step.Why = r.why(rule, m)
		steps = append(steps, step)
	}
	return p.undecided(f), steps
}

// Hosts gives the names among the values of Host that are no patterns, in small letters: those that can be looked for among
// hashed names.
func (p *Policy) Hosts() []string {
	var names []string
	if p == nil {
		return nil
	}
	for _, r := range p.Rules {
		for _, h := range r.Host {
			if h == Unverified || strings.HasPrefix(h, fingerprint.Prefix) || strings.ContainsAny(h, "*?") {
				continue
			}
			if h = strings.ToLower(h); !slices.Contains(names, h) {
				names = append(names, h)
			}
		}
	}
	return names
}

func (p *Policy) decided(i int, f *Facts) Decision {
	r := &p.Rules[i]
	return Decision{Action: strict(r.Action), Rule: i + 1, Line: r.Line, Kind: f.Kind}
}

func (p *Policy) undecided(f *Facts) Decision {
	if !ordinary(f.Kind) {
		return Decision{Action: Refuse, BuiltIn: true, Kind: f.Kind}
	}
	return Decision{Action: strict(p.Default), Kind: f.Kind}
}

func strict(a Action) Action {
	if a == Ask {
		return Ask
	}
	return Refuse
}

// ordinary says whether a kind's meaning can be shown to the owner.
func ordinary(kind string) bool { return kind == Login || kind == SSHSIG || kind == PAM }

// field names a rule's field that did not match.
type field int

const (
	matches field = iota
	unnamed       // the rule has no kind, asks, and is not for this one
	kind
	key
	user
	forwarded
	host
	executable
	ancestor
)

// request is Facts with what its functions have answered.
type request struct {
	*Facts
	hasHost, hasExecutable, hasAncestors bool

	hostKey  string
	names    []string
	program  string
	programs []string
}

// mismatch gives the first of the rule's fields that does not match, those first that cost nothing.
func (r *request) mismatch(rule *Rule) field {
	switch {
	case len(rule.Kind) == 0 && rule.Action == Ask && !ordinary(r.Kind):
		return unnamed
	case !either(rule.Kind, r.isKind):
		return kind
	case !either(rule.Key, r.isKey):
		return key
	case !either(rule.User, func(value string) bool { return r.isUser(value, rule.Action) }):
		return user
	case rule.Forwarded != "" && rule.Forwarded != yesNo(r.Forwarded):
		return forwarded
	case !either(rule.Host, r.isHost):
		return host
	case !either(rule.Executable, r.isExecutable):
		return executable
	case !either(rule.Ancestor, r.isAncestor):
		return ancestor
	}
	return matches
}

func either(values []string, is func(string) bool) bool {
	return len(values) == 0 || slices.ContainsFunc(values, is)
}

func (r *request) isKind(value string) bool {
	if namespace, ok := strings.CutPrefix(value, SSHSIG+":"); ok {
		return r.Kind == SSHSIG && pattern.Match(namespace, r.Namespace, false)
	}
	return value == r.Kind
}

func (r *request) isKey(value string) bool {
	if strings.HasPrefix(value, fingerprint.Prefix) {
		return value == r.Key
	}
	return pattern.Match(value, r.Comment, false)
}

func (r *request) hasUser() bool { return r.Kind == Login || r.Kind == PAM }

func (r *request) isUser(value string, action Action) bool {
	// A server that knows neither styles nor roles may have somebody else by the longer name, so that no rule
	// that asks for an account is for it.
	return r.hasUser() && (pattern.Match(value, r.User, false) || action != Ask && pattern.Match(value, account(r.User), false))
}

// account gives the account that user may stand for: OpenSSH takes USER:STYLE for USER, and with the patch for
// SELinux that Debian and Fedora have, USER/ROLE too.
func account(user string) string {
	if i := strings.IndexAny(user, ":/"); i >= 0 {
		return user[:i]
	}
	return user
}

func (r *request) isHost(value string) bool {
	if r.Kind != Login {
		return false
	}
	if !r.hasHost && r.Host != nil {
		r.hostKey, r.names = r.Host()
	}
	r.hasHost = true
	switch {
	case value == Unverified:
		return r.hostKey == ""
	case r.hostKey == "":
		return false
	case strings.HasPrefix(value, fingerprint.Prefix):
		return value == r.hostKey
	}
	return slices.ContainsFunc(r.names, func(name string) bool {
		return pattern.Match(value, name, true) || pattern.Match(value, portless(name), true)
	})
}

// portless gives the name in [name]:port, as known_hosts has it of other ports than 22, so that a rule about a host is not
// void where it listens elsewhere.
func portless(name string) string {
	if inner, ok := strings.CutPrefix(name, "["); ok {
		if inner, _, ok = strings.Cut(inner, "]:"); ok {
			return inner
		}
	}
	return name
}

func (r *request) isExecutable(value string) bool {
	if !r.hasExecutable && r.Executable != nil {
		r.program = r.Executable()
	}
	r.hasExecutable = true
	return isProgram(value, r.program)
}

func (r *request) isAncestor(value string) bool {
	if !r.hasAncestors {
		r.programs = []string{""}
		if r.Ancestors != nil {
			r.programs = r.Ancestors()
		}
	}
	r.hasAncestors = true
	return slices.ContainsFunc(r.programs, func(path string) bool { return isProgram(value, path) })
}

func isProgram(value, path string) bool {
	if path == "" || value == Unknown {
		return path == "" && value == Unknown
	}
	return pattern.Match(value, path, false)
}

func yesNo(b bool) string {
	if b {
		return Yes
	}
	return No
}

// why says why a rule's field does not match.
func (r *request) why(rule *Rule, f field) string {
	switch f {
	case unnamed:
		return "kind is " + r.Kind + ", which a rule that asks must name"
	case kind:
		is := r.Kind
		if r.Kind == SSHSIG {
			is += ":" + shown(r.Namespace)
		}
		return differs("kind", is, rule.Kind)
	case key:
		is := strings.TrimSpace(r.Key + " " + shown(r.Comment))
		if r.Key == "" && r.Comment == "" {
			is = Unknown
		}
		return differs("key", is, rule.Key)
	case user:
		if !r.hasUser() {
			return "user: " + r.Kind + " has none"
		}
		return differs("user", shown(r.User), rule.User)
	case forwarded:
		return differs("forwarded", yesNo(r.Forwarded), []string{rule.Forwarded})
	case host:
		if r.Kind != Login {
			return "host: " + r.Kind + " has none"
		}
		is := Unverified
		if r.hostKey != "" {
			is = r.hostKey + " without a name"
			if len(r.names) > 0 {
				is = r.hostKey + " " + list(r.names, maxList)
			}
		}
		return differs("host", is, rule.Host)
	case executable:
		return differs("executable", shown(program(r.program)), rule.Executable)
	case ancestor:
		if len(r.programs) == 0 {
			return differs("ancestor", "none", rule.Ancestor)
		}
		var paths []string
		for _, p := range r.programs {
			paths = append(paths, program(p))
		}
		return differs("ancestor", list(paths, maxList), rule.Ancestor)
	}
	return ""
}

func differs(field, is string, want []string) string {
	return fmt.Sprintf("%s is %s, wanted %s", field, is, list(want, maxList))
}

func program(path string) string {
	if path == "" {
		return Unknown
	}
	return path
}
