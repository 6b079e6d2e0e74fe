// SPDX-License-Identifier: BSD-3-Clause

package policy

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"vmux.app/toolkit/internal/fingerprint"
)

// Bounds of a policy: far above what a person can keep in mind, and low enough that a decision takes no time.
const (
	MaxRules  = 256
	MaxValues = 64   // in one field
	MaxValue  = 1024 // bytes; the longest user name and namespace that internal/signed takes
)

// FieldError says what is wrong with one field of a rule and what would be right.
type FieldError struct {
	Field   string // as in vmux.toml
	Problem string // goes on where the field's name ends: `"x" is neither ask nor refuse`
	Want    string
}

func (e *FieldError) Error() string { return e.Field + " " + e.Problem }

// Fields gives the names of a rule's fields as vmux.toml has them.
func Fields() []string {
	return []string{"action", "kind", "key", "host", "user", "executable", "ancestor", "forwarded"}
}

// ParseAction reads "ask" or "refuse". The error says what is wrong after the value: "is neither ask nor refuse".
func ParseAction(value string) (Action, error) {
	if a := Action(value); a == Ask || a == Refuse {
		return a, nil
	}
	return "", errors.New("is neither ask nor refuse")
}

// Set sets the field that vmux.toml calls name. The error is a *FieldError.
func (r *Rule) Set(name string, values []string) error {
	lists := map[string]*[]string{"kind": &r.Kind, "key": &r.Key, "host": &r.Host, "user": &r.User,
		"executable": &r.Executable, "ancestor": &r.Ancestor}
	fail := func(format string, a ...any) error { return &FieldError{name, fmt.Sprintf(format, a...), Want(name)} }
	list := lists[name]
	switch {
	case !slices.Contains(Fields(), name):
		return &FieldError{name, "is no field of a rule", "one of " + strings.Join(Fields(), ", ")}
	case len(values) == 0:
		return fail("is empty: leave it out where it does not matter")
	case list == nil && len(values) > 1:
		return fail("takes one value")
	case len(values) > MaxValues:
		return fail("has %d values, more than %d", len(values), MaxValues)
	}
	for _, v := range values {
		problem, want := check(name, v), Want(name)
		if problem == "" {
			problem, want = never(name, v)
		}
		if problem != "" {
			return &FieldError{name, shortened(v) + " " + problem, want}
		}
	}
	switch {
	case list != nil:
		*list = slices.Clone(values)
	case name == "action":
		r.Action = Action(values[0])
	default:
		r.Forwarded = values[0]
	}
	return nil
}

// Check says whether a rule has an action and can match at all. The error is a *FieldError.
func (r *Rule) Check() error {
	can := func(kinds ...string) bool {
		return len(r.Kind) == 0 || slices.ContainsFunc(kinds, func(k string) bool { return slices.Contains(r.Kind, k) })
	}
	switch {
	case r.Action == "":
		return &FieldError{"action", "is missing", Want("action")}
	case len(r.Host) > 0 && !can(Login):
		return &FieldError{"host", "can never match, since only a login has one", `kind = "login" in this rule, or no kind`}
	case len(r.User) > 0 && !can(Login, PAM):
		return &FieldError{"user", "can never match, since only login and pam_ssh_agent_auth have one", `kind = "login" in this rule, or no kind`}
	}
	return nil
}

// Want says what the values of a field, or of "default", look like; "" for a field that there is not.
func Want(name string) string {
	switch name {
	case "action", "default":
		return fmt.Sprintf(`ask or refuse, as in %s = "refuse"`, name)
	case "kind":
		return `login, sshsig, sshsig:NAMESPACE, pam_ssh_agent_auth, certificate or opaque, as in kind = "sshsig:git"`
	case "key":
		return `a fingerprint as ssh-add -l prints it, or a pattern for the key's comment, as in key = "work*"`
	case "host":
		return `a fingerprint as ssh-keygen -l prints it, a pattern for its names in known_hosts, or unverified, as in host = ["*.example.org", "unverified"]`
	case "user":
		return `patterns for the remote user, as in user = "git"`
	case "executable", "ancestor":
		return fmt.Sprintf(`a path or a pattern for paths, or unknown, as in %s = "/usr/bin/*"`, name)
	case "forwarded":
		return `yes or no, as in forwarded = "yes"`
	}
	return ""
}

// check says what is wrong with a value of a field.
func check(name, v string) string {
	switch {
	case v == "":
		return "is empty"
	case len(v) > MaxValue:
		return fmt.Sprintf("has more than %d bytes", MaxValue)
	case !utf8.ValidString(v):
		return "is not UTF-8"
	case strings.ContainsFunc(v, func(r rune) bool { return !unicode.IsPrint(r) }):
		return "has characters that cannot be shown; ? stands for any"
	}
	switch name {
	case "action":
		if _, err := ParseAction(v); err != nil {
			return err.Error()
		}
	case "kind":
		namespace, ok := strings.CutPrefix(v, SSHSIG+":")
		switch {
		case ok && namespace == "":
			return "has no namespace"
		case !ok && !ordinary(v) && v != Certificate && v != Opaque:
			return "is no kind of request"
		}
	case "key", "host":
		begin, rest, _ := strings.Cut(v, ":")
		switch {
		case begin+":" == fingerprint.Prefix:
			if !fingerprint.Valid(v) {
				return "is no fingerprint: SHA256: and 43 characters"
			}
		case rest != "" && (strings.EqualFold(begin, "SHA256") || strings.EqualFold(begin, "MD5")):
			return "is no fingerprint that begins with SHA256:"
		case name == "host" && strings.ContainsAny(v, " ,!@/"):
			return "is no name of a host"
		}
	case "executable", "ancestor":
		if v != Unknown && !strings.HasPrefix(v, "/") && !strings.HasPrefix(v, "*") && !strings.HasPrefix(v, "?") {
			return "is no absolute path; * stands for any beginning"
		}
	case "forwarded":
		if v != Yes && v != No {
			return "is neither yes nor no"
		}
	}
	return ""
}

// never says why a value that looks right cannot match anything, and what would.
func never(name, v string) (problem, want string) {
	instead := func(s string) string { return fmt.Sprintf("%s = %q", name, s) }
	switch name {
	case "key": // the words of ssh-add -l are bits, fingerprint, comment and type
		if _, rest, ok := strings.Cut(v, " "+fingerprint.Prefix); ok {
			sum, _, _ := strings.Cut(rest, " ")
			if sum = fingerprint.Prefix + sum; fingerprint.Valid(sum) {
				return "is a line of ssh-add -l", instead(sum)
			}
			return "is a line of ssh-add -l", "the fingerprint alone, which begins with " + fingerprint.Prefix
		}
	case "host":
		return neverHost(v, instead)
	case "executable", "ancestor":
		bare := strings.TrimSuffix(v, " (deleted)") // as internal/process has it
		clean := path.Clean(bare)
		switch {
		case v == Unknown:
		case bare != v:
			return `ends in " (deleted)", which is not looked at`, instead(bare)
		case strings.HasSuffix(v, "/"):
			return "is a directory's path", instead(strings.TrimRight(v, "/") + "/*")
		case clean != v:
			if want = instead(clean); check(name, clean) != "" {
				want = Want(name)
			}
			return "is not how the system writes a path", want
		}
	}
	return "", ""
}

// neverHost is about names: ssh writes [NAME]:PORT, NAME where the port is 22, and no dot at the end.
func neverHost(v string, instead func(string) string) (problem, want string) {
	switch {
	case strings.HasPrefix(v, fingerprint.Prefix), v == Unverified:
		return "", ""
	case strings.EqualFold(v, Unverified):
		return "is not in small letters", instead(Unverified)
	}
	name := v
	if inner, ok := strings.CutPrefix(v, "["); ok {
		inner, rest, closed := strings.Cut(inner, "]")
		number, _ := strings.CutPrefix(rest, ":")
		switch {
		case strings.ContainsAny(rest, wildcards), !closed && strings.ContainsAny(inner, wildcards):
			return "", "" // they may stand for what is missing
		case inner != "" && closed && (rest == "" || rest == ":22"):
			return "is not how ssh writes a name on port 22", instead(inner)
		case inner == "" || !strings.HasPrefix(rest, ":") || !isPort(number):
			return "is neither a name nor [name]:port", instead("[name]:2222")
		}
		name = inner
	} else if before, number, ok := strings.Cut(v, ":"); ok && !strings.Contains(number, ":") && !colon(before, number) {
		switch {
		case before == "" || !isPort(number):
			return "is neither a name nor [name]:port", instead("[name]:2222")
		case number == "22":
			return "is not how ssh writes a name on port 22", instead(before)
		}
		return "has a port without brackets", instead("[" + before + "]:" + number)
	}
	if strings.HasSuffix(name, ".") {
		return "has a dot at the end of the name", instead(strings.Replace(v, name, strings.TrimRight(name, "."), 1))
	}
	return "", ""
}

// colon says whether a pattern with one colon may stand for [NAME]:PORT or an IPv6 address.
func colon(before, after string) bool {
	notAddress := func(r rune) bool { return !strings.ContainsRune("0123456789abcdefABCDEF%"+wildcards, r) }
	switch {
	case !strings.ContainsAny(before+after, wildcards):
		return false
	case !strings.ContainsFunc(before, notAddress):
		return true
	}
	return strings.ContainsAny(before[:1], "["+wildcards) && strings.ContainsAny(before[len(before)-1:], "]"+wildcards)
}

const wildcards = "*?"

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

// bounds of what is shown.
const (
	maxShown = 80 // bytes of one value
	maxList  = 8  // values of one list
)

// shortened quotes a value for an error.
func shortened(s string) string {
	if len(s) > maxShown {
		return strconv.Quote(strings.ToValidUTF8(s[:maxShown], "")) + "…"
	}
	return strconv.Quote(s)
}

// shown is a value as people read it: in quotes where it is not plain.
func shown(s string) string {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r == ' ' || r == '"' || r == ',' || !unicode.IsPrint(r) }) {
		return shortened(s)
	}
	return s
}

// list joins values for people, most of them at the most.
func list(values []string, most int) string {
	var s []string
	for _, v := range values[:min(len(values), most)] {
		s = append(s, shown(v))
	}
	if more := len(values) - most; more > 0 {
		s = append(s, fmt.Sprintf("%d more", more))
	}
	return strings.Join(s, ", ")
}

// Kinds gives the kinds of requests that a rule is for, those included that follow from its other fields; nil for all.
func (r Rule) Kinds() []string {
	switch {
	case len(r.Kind) > 0:
		return r.Kind
	case len(r.Host) > 0:
		return []string{Login}
	case len(r.User) > 0:
		return []string{Login, PAM}
	case r.Action == Ask:
		return []string{Login, SSHSIG, PAM}
	}
	return nil
}

// String says which requests a rule matches, for people: "kind login; host *.example.org, web".
func (r Rule) String() string {
	var forwarded []string
	if r.Forwarded != "" {
		forwarded = []string{r.Forwarded}
	}
	var parts []string
	for i, values := range [][]string{r.Kinds(), r.Key, r.Host, r.User, r.Executable, r.Ancestor, forwarded} {
		if len(values) > 0 {
			parts = append(parts, Fields()[i+1]+" "+list(values, MaxValues))
		}
	}
	if len(parts) == 0 {
		return "whatever"
	}
	return strings.Join(parts, "; ")
}
