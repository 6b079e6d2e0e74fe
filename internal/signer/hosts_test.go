// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/transport"
)

// print43 is a fingerprint of one letter.
func print43(letter string) string { return "SHA256:" + strings.Repeat(letter, 42) + "A" }

// on is one approved key, on its first and its last day of a month.
func on(key string, first, last int) approved {
	day := func(n int) string { return fmt.Sprintf("2026-11-%02d", n) }
	return approved{print43(key), day(first), day(last)}
}

// T11: the prompt says what the signer remembers of a host key, in the half that
// is its own word.
func TestThreat_T11_HostMemory(t *testing.T) {
	t.Parallel()
	known := approvals{
		"prod":      {on("p", 1, 20)},
		"prod-2":    {on("p", 1, 20)},
		"git":       {on("g", 2, 3), on("h", 4, 5)},
		"192.0.2.7": {on("p", 6, 7)},
		"mail":      {on("m", 1, 20)},
		"":          {on("n", 8, 9)},
	}
	const claimedNow = ", by none of the names claimed now"
	for name, c := range map[string]struct {
		claimed []string
		key     string // one letter, empty: not verified
		warning []string
		known   []string
		heading string
	}{
		"known":          {[]string{"prod"}, "p", nil, []string{"as prod since 2026-11-01"}, "prod (claimed)"},
		"known, case":    {[]string{"PrOd"}, "p", nil, []string{"as prod since 2026-11-01"}, "prod (claimed)"},
		"known, partly":  {[]string{"new", "192.0.2.7"}, "p", nil, []string{"as 192.0.2.7 since 2026-11-06"}, "new (claimed)"},
		"known, several": {[]string{"prod", "prod", "prod-2", "192.0.2.7"}, "p", nil, []string{"as prod since 2026-11-01, as prod-2 since 2026-11-01 and 1 more"}, "prod (claimed)"},
		"one of two":     {[]string{"git"}, "g", nil, []string{"as git since 2026-11-02 (one of 2 keys)"}, "git (claimed)"},
		"another key": {[]string{"prod"}, "x", []string{"prod has another host key than the one approved before:", print43("p") + " on 2026-11-20"},
			[]string{"no, this host key was not approved before"}, "prod (claimed, OTHER KEY)"},
		"another key, case": {[]string{"PROD"}, "x", []string{"prod has another host key than the one approved before:", print43("p") + " on 2026-11-20"},
			[]string{"no, this host key was not approved before"}, "prod (claimed, OTHER KEY)"},
		"another key, not the first name": {[]string{"new", "git"}, "x", []string{"git has another host key than the 2 approved before, last:", print43("h") + " on 2026-11-05"},
			[]string{"no, this host key was not approved before"}, "git (claimed, OTHER KEY)"},
		"another key, two names": {[]string{"prod", "prod-2"}, "x", []string{"prod, prod-2 have another host key than the one approved before:", print43("p") + " on 2026-11-20"},
			[]string{"no, this host key was not approved before"}, "prod (claimed, OTHER KEY)"},
		"other keys": {[]string{"prod", "git"}, "x", []string{"prod has another host key than the one approved before:", print43("p") + " on 2026-11-20", "1 more name has another one, too"},
			[]string{"no, this host key was not approved before"}, "prod (claimed, OTHER KEY)"},
		"other keys of a day": {[]string{"prod", "mail"}, "x", []string{"prod has another host key than the one approved before:", print43("p") + " on 2026-11-20", "1 more name has another one, too"},
			[]string{"no, this host key was not approved before"}, "prod (claimed, OTHER KEY)"},
		"more other keys": {[]string{"prod", "git", "192.0.2.7"}, "x", []string{"prod has another host key than the one approved before:", print43("p") + " on 2026-11-20", "2 more names have another one, too"},
			[]string{"no, this host key was not approved before"}, "prod (claimed, OTHER KEY)"},
		"another's key": {[]string{"prod"}, "g", []string{"prod has another host key than the one approved before:", print43("p") + " on 2026-11-20"},
			[]string{"as git since 2026-11-02 (one of 2 keys)" + claimedNow}, "prod (claimed, OTHER KEY)"},
		"known and another": {[]string{"git", "prod"}, "p", []string{"git has another host key than the 2 approved before, last:", print43("h") + " on 2026-11-05"},
			[]string{"as prod since 2026-11-01"}, "git (claimed, OTHER KEY)"},
		"other name":          {[]string{"new"}, "g", nil, []string{"as git since 2026-11-02 (one of 2 keys)" + claimedNow}, "new (claimed)"},
		"other names":         {[]string{"new"}, "p", nil, []string{"as 192.0.2.7 since 2026-11-06, as prod since 2026-11-01 and 1 more" + claimedNow}, "new (claimed)"},
		"no name now":         {nil, "g", nil, []string{"as git since 2026-11-02 (one of 2 keys)"}, print43("g")},
		"never a name":        {nil, "n", nil, []string{"without a name since 2026-11-08"}, print43("n")},
		"a name now":          {[]string{"new"}, "n", nil, []string{"without a name since 2026-11-08" + claimedNow}, "new (claimed)"},
		"new":                 {[]string{"new"}, "x", nil, []string{"no, this host key was not approved before"}, "new (claimed)"},
		"new, no name":        {nil, "x", nil, []string{"no, this host key was not approved before"}, print43("x")},
		"not verified":        {[]string{"prod"}, "", nil, []string{"prod had a verified host key before:", print43("p") + " on 2026-11-20"}, "prod (claimed)"},
		"new, not verified":   {[]string{"new"}, "", nil, nil, "new (claimed)"},
		"nothing, unverified": {nil, "", nil, nil, "unknown host"},
		"unfit":               {[]string{"prod,git", "prod ", "SHA256:" + strings.Repeat("p", 42) + "A", "pr\u043ed", "-"}, "x", nil, []string{"no, this host key was not approved before"}, `"prod,git" (claimed, no host name)`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key := ""
			if c.key != "" {
				key = print43(c.key)
			}
			p := testPrompt("work")
			p.Verified.HostKey, p.Verified.Unverified, p.Claimed.HostNames = key, "why", c.claimed
			p.Verified.Memory = known.recall(c.claimed, key)
			if got := p.Heading(); got != "From laptop → "+c.heading {
				t.Errorf("heading %q", got)
			}
			verified, claimed := p.Fields()
			values := func(name string) (list []string) {
				for _, f := range verified {
					if f.Name == name {
						list = append(list, f.Value)
					}
				}
				return list
			}
			if got := values("WARNING"); !slices.Equal(got, c.warning) {
				t.Errorf("warning %q, want %q", got, c.warning)
			}
			if got := values("known"); !slices.Equal(got, c.known) {
				t.Errorf("known %q, want %q", got, c.known)
			}
			if c.warning != nil && verified[0].Name != "WARNING" {
				t.Errorf("%q comes before the warning", verified[0])
			}
			for _, f := range claimed {
				if f.Name == "WARNING" || f.Name == "known" {
					t.Errorf("%q is no claim of the device's", f)
				}
			}
			for _, k := range p.Verified.Memory.Elsewhere {
				if slices.Contains(c.claimed, k.Name) {
					t.Errorf("%s is claimed now", k.Name)
				}
			}
			if p.Verified.warned() != (c.warning != nil) {
				t.Error("warned without a warning")
			}
		})
	}
}

// Only names that show as themselves, and as one name, are remembered.
func TestHostNames(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ in, want string }{
		{"prod", "prod"}, {"Prod.Example.ORG", "prod.example.org"}, {"[2001:DB8::1]:2222", "[2001:db8::1]:2222"}, {"fe80::1%eth0", "fe80::1%eth0"},
		{strings.Repeat("x", 255), strings.Repeat("x", 255)}, {"a_b-c.d2", "a_b-c.d2"}, {"7.example", "7.example"}, {"xn--prd-fmc", "xn--prd-fmc"},
		// One spelling.
		{"prod.", "prod"}, {"prod:22", "prod"}, {"[prod]:22", "prod"}, {"[Prod.]:22", "prod"}, {"prod.:22", "prod"}, {"[prod]", "prod"},
		{"[prod]:2222", "[prod]:2222"}, {"prod:2222", "[prod]:2222"}, {"PROD.:2222", "[prod]:2222"},
		{"192.0.2.7.", "192.0.2.7"}, {"::ffff:192.0.2.7", "192.0.2.7"}, {"::FFFF:c000:207", "192.0.2.7"}, {"[::ffff:192.0.2.7]:2222", "[192.0.2.7]:2222"}, {"192.0.2.7:22", "192.0.2.7"},
		{"2001:0DB8:0:0:0:0:0:1", "2001:db8::1"}, {"[2001:db8:0::1]:22", "2001:db8::1"}, {"2001:db8::0.0.0.1", "2001:db8::1"}, {"2001:db8::1:22", "2001:db8::1:22"}, {"::22", "::22"}, {"FE80:0::1%Eth0", "fe80::1%eth0"}, {"::1.", "::1"},
		// None.
		{"", ""}, {".", ""}, {"[]", ""}, {"[]:22", ""}, {strings.Repeat("x", 256), ""}, {strings.Repeat("x", 250) + ":2222", ""}, {"a b", ""}, {"a,b", ""}, {"-a", ""}, {"a-", ""}, {"*", ""}, {"a\n", ""}, {"a\x1b[2J", ""},
		{"SHA256:abc", ""}, {"sha256:abc", ""}, {"a(claimed)", ""}, {`a"`, ""}, {"a\xff", ""}, {"|1|x|y", ""}, {"[a", ""}, {"a]", ""}, {"[a]b", ""}, {"[a]22", ""}, {"[[a]]", ""},
		{"prod:", ""}, {"prod:0", ""}, {"prod:022", ""}, {"prod:+22", ""}, {"prod:65536", ""}, {"prod:ssh", ""}, {"[prod]:", ""}, {"prod:22:22", ""}, {"prod..", ""}, {".prod", ""}, {"a..b", ""},
		{" prod", ""}, {"prod ", ""}, {"\tprod", ""}, {"prod\u200b", ""}, {"pr\u00adod", ""}, {"\ufeffprod", ""}, {"prod\u202e", ""}, {"\u0440rod", ""}, {"\u212aelvin", ""}, {"prod\u3002", ""}, {"\uff50rod", ""}, {"pro\u0111", ""}, {"prod\u0301", ""},
		{"root@prod", ""}, {"ssh://prod", ""}, {"prod/", ""}, {"prod+", ""}, {"prod%1", ""},
		{"192.0.2.07", ""}, {"192.0.519", ""}, {"0xc0.0.2.7", ""}, {"3221225991", ""}, {"0300.0.2.7", ""}, {"192.0.2.7%a", ""}, {"2001:db8::1%eth0", ""}, {"fe80::1%", ""}, {"fe80::1%a b", ""}, {"fe80::1%a]", ""}, {"192.0.2.256", ""},
	} {
		got, ok := hostName(c.in)
		if ok != (c.want != "") || ok && got != c.want {
			t.Errorf("%q: %q %v, want %q", c.in, got, ok, c.want)
		}
	}
}

// FuzzHostName finds names with two spellings, and names that are not what they
// look like.
func FuzzHostName(f *testing.F) {
	for _, name := range []string{"prod", "[Prod.]:22", "[2001:DB8::1]:2222", "fe80::1%eth0", "::ffff:192.0.2.7", "prod:022", "192.0.519"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, claimed string) {
		name, ok := hostName(claimed)
		if !ok {
			return
		}
		if again, ok := hostName(name); !ok || again != name {
			t.Errorf("%q: %q, of that %q %v", claimed, name, again, ok)
		}
		if strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789.-_:[]%") != "" || name == "" {
			t.Errorf("%q: %q", claimed, name)
		}
	})
}

// T11: nothing that looks like the name of a remembered host is shown like it
// without a warning: it counts as that name, or shows as what it is.
func TestThreat_T11_LookAlikes(t *testing.T) {
	t.Parallel()
	known := approvals{"prod": {on("p", 1, 20)}, "mail": {on("p", 1, 20)}, "192.0.2.7": {on("p", 1, 20)}, "2001:db8::1": {on("p", 1, 20)}, "[prod]:2222": {on("p", 1, 20)}}
	for claimed, c := range map[string]struct {
		shown  string // by name, without a warning
		warned string // under the remembered name
	}{
		"prod": {warned: "prod"}, "PROD": {warned: "prod"}, "prod.": {warned: "prod"}, "prod:22": {warned: "prod"}, "[prod]:22": {warned: "prod"}, "[Prod.]": {warned: "prod"},
		"prod:2222": {warned: "[prod]:2222"}, "[prod.]:2222": {warned: "[prod]:2222"},
		"::ffff:192.0.2.7": {warned: "192.0.2.7"}, "192.0.2.7.": {warned: "192.0.2.7"}, "2001:DB8:0::0001": {warned: "2001:db8::1"}, "[2001:db8::1]:22": {warned: "2001:db8::1"},
		"prod ": {shown: `"prod "`}, " prod": {shown: `" prod"`}, "prod\t": {shown: `"prod\t"`}, "pr\u043ed": {shown: `"pr\u043ed"`}, "prod\u200b": {shown: `"prod\u200b"`}, "prod\u00a0": {shown: `"prod\u00a0"`},
		"\u202edorp": {shown: `"\u202edorp"`}, "prod\xff": {shown: `"prod\xff"`}, "prod\u3002": {shown: `"prod\u3002"`}, "\U0001d429rod": {shown: `"\U0001d429rod"`},
		"prod..": {shown: `"prod.."`}, "prod:022": {shown: `"prod:022"`}, "root@prod": {shown: `"root@prod"`}, "ssh://prod": {shown: `"ssh://prod"`}, `prod" (claimed)`: {shown: `"prod\" (claimed)"`},
		"192.0.2.07": {shown: `"192.0.2.07"`}, "3221225991": {shown: `"3221225991"`}, "2001:db8::1%prod": {shown: `"2001:db8::1%prod"`}, "": {shown: `""`},
		"maiI": {shown: "maii"}, "PR0D": {shown: "pr0d"}, "[prod]:2223": {shown: "[prod]:2223"}, "prod1": {shown: "prod1"}, // other names, and seen to be
	} {
		t.Run(claimed, func(t *testing.T) {
			t.Parallel()
			p := testPrompt("work")
			p.Verified.HostKey, p.Claimed.HostNames = print43("x"), []string{claimed}
			p.Verified.Memory = known.recall(p.Claimed.HostNames, p.Verified.HostKey)
			heading, host, name := "From laptop → "+c.warned+" (claimed, OTHER KEY)", c.warned, c.warned
			if c.warned == "" {
				heading, host, name = "From laptop → "+c.shown+" (claimed)", c.shown, c.shown
				if strings.HasPrefix(c.shown, `"`) {
					heading, host = "From laptop → "+c.shown+" (claimed, no host name)", c.shown+" (no host name)"
				}
			}
			if got := p.Heading(); got != heading {
				t.Errorf("heading %q, want %q", got, heading)
			}
			_, fields := p.Fields()
			if !slices.Contains(fields, Field{"host", host}) {
				t.Errorf("no host %q in %q", host, fields)
			}
			if warned := strings.Contains(p.Text(), "\n  WARNING: "+name+" has another host key"); warned != (c.warned != "") || warned != p.Verified.warned() {
				t.Errorf("warned: %v\n%s", warned, p.Text())
			}
		})
	}
}

// T11: a look-alike of any length shows its quotes and its mark.
func TestThreat_T11_LongLookAlike(t *testing.T) {
	t.Parallel()
	p := testPrompt("work")
	p.Claimed.HostNames = []string{"prod" + strings.Repeat(" ", 300) + "."}
	if got := p.Heading(); !strings.Contains(got, ` → "prod `) || !strings.HasSuffix(got, `." (claimed, no host name)`) {
		t.Errorf("heading %q", got)
	}
	if _, fields := p.Fields(); !strings.HasPrefix(fields[0].Value, `"prod `) || !strings.HasSuffix(fields[0].Value, `." (no host name)`) {
		t.Errorf("%q", fields[0])
	}
}

// An approval under one spelling is for all of them.
func TestHostNameSpellings(t *testing.T) {
	t.Parallel()
	a := newAnswers()
	s := testServer(t, a)
	host := hostSigner(t, true)
	day := s.now().Format(time.DateOnly)
	approveAs(t, s, a, nil, hostLogin(s, "work", 1, host, "[Prod.]:22", "prod", "prod ", "::ffff:192.0.2.7"))
	key := ssh.FingerprintSHA256(host.PublicKey())
	wantRemembered(t, s, fmt.Sprintf("192.0.2.7 %s %s %s\nprod %s %s %s\n", key, day, day, key, day, day))
	for i, name := range []string{"prod", "PROD.", "prod:22", "192.0.2.7"} {
		if p := approveAs(t, s, a, ErrDenied, hostLogin(s, "work", byte(2+i), hostSigner(t, true), name)); !p.Verified.warned() {
			t.Errorf("%q: no warning in\n%s", name, p.Text())
		}
	}
}

// hostLogin asks for a login with the key of a label to a host, whose key it
// names.
func hostLogin(s *server, label string, sid byte, host ssh.Signer, names ...string) *envelope.SignRequest {
	r := request(s, label, sid)
	key, _ := ssh.ParsePublicKey(r.PublicKeyBlob) // it is one of the signer's
	r.Data = login(sessionID(sid), "root", key, host.PublicKey().Marshal())
	r.CreatedAt = envelope.At(s.now())
	r.Context = envelope.Context{Destination: &envelope.Destination{HostNames: names}}
	return r
}

// remembered is the memory on disk, a line for each row.
func remembered(t *testing.T, h *Home) string {
	t.Helper()
	list, err := h.HostKeys()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, k := range list {
		fmt.Fprintf(&b, "%s %s %s %s\n", k.Name, k.Fingerprint, k.First, k.Last)
	}
	return b.String()
}

func wantRemembered(t *testing.T, s *server, want string) {
	t.Helper()
	if got := remembered(t, s.home); got != want {
		t.Errorf("remembered\n%swant\n%s", got, want)
	}
	list, _ := s.home.hosts()
	if now := *s.hosts.Load(); !reflect.DeepEqual(now, list) {
		t.Errorf("in memory %v, on disk %v", now, list)
	}
}

// approveAs asks for a login, answers it and gives the prompt.
func approveAs(t *testing.T, s *server, a *answers, answer error, r *envelope.SignRequest) *Prompt {
	t.Helper()
	s.prompts.forgive(testPin)
	done := start(t.Context(), s, transport.NewID(), r)
	q := <-a.asked
	q.reply <- answer
	got := <-done
	want := envelope.Code("")
	if answer != nil {
		want = envelope.CodeDenied
	}
	wantCode(t, got.payload, got.err, want)
	return q.prompt
}

// T11: what an approved login leaves behind, and that nothing else does.
func TestThreat_T11_OnlyApprovedIsRemembered(t *testing.T) {
	t.Parallel()
	host := hostSigner(t, true)
	key := ssh.FingerprintSHA256(host.PublicKey())
	for name, c := range map[string]struct {
		change func(*server, *envelope.SignRequest)
		end    func(s *server, q *question, cancel func()) // instead of an approval
		want   string
	}{
		"approved":       {nil, nil, "prod"},
		"without a name": {func(_ *server, r *envelope.SignRequest) { r.Context.Destination = nil }, nil, ""},
		"no fit name": {func(_ *server, r *envelope.SignRequest) {
			r.Context.Destination.HostNames = []string{"a b", "\x1b[2J"}
		}, nil, ""},
		"some fit names": {func(_ *server, r *envelope.SignRequest) {
			r.Context.Destination.HostNames = []string{"a b", "PROD", "prod"}
		}, nil, "prod"},
		"host certificate": {func(s *server, r *envelope.SignRequest) {
			cert := &ssh.Certificate{Key: host.PublicKey(), CertType: ssh.HostCert, ValidBefore: ssh.CertTimeInfinity}
			if err := cert.SignCert(zeros{}, host); err != nil {
				panic(err)
			}
			user, _ := ssh.ParsePublicKey(r.PublicKeyBlob)
			r.Data = login(sessionID(1), "root", user, cert.Marshal())
		}, nil, "prod"},
		"unverified": {func(s *server, r *envelope.SignRequest) {
			user, _ := ssh.ParsePublicKey(r.PublicKeyBlob)
			r.Data = login(sessionID(1), "root", user, nil)
			r.Context.Destination.Binds = []envelope.Bind{bind(t, host, sessionID(1), false)}
		}, nil, "-"},
		"sshsig":  {func(_ *server, r *envelope.SignRequest) { r.Data = sshsig("git") }, nil, "-"},
		"denied":  {nil, func(_ *server, q *question, _ func()) { q.reply <- ErrDenied }, "-"},
		"failed":  {nil, func(_ *server, q *question, _ func()) { q.reply <- errors.New("no dialog") }, "-"},
		"expired": {nil, func(*server, *question, func()) { <-time.After(Freshness) }, "-"},
		"approved too late": {nil, func(s *server, q *question, _ func()) {
			<-time.After(Freshness + time.Second)
			q.reply <- nil
		}, "-"},
		"withdrawn": {nil, func(_ *server, _ *question, cancel func()) { cancel() }, "-"},
		"withdrawn, approved": {nil, func(_ *server, q *question, cancel func()) {
			cancel()
			q.reply <- nil
		}, "-"},
		"key disabled": {nil, func(s *server, q *question, _ func()) {
			s.home.EnableKey("work", false)
			s.reload()
			q.reply <- nil
		}, "-"},
		"device forgotten": {nil, func(s *server, q *question, _ func()) {
			s.home.Forget("laptop")
			s.reload()
			q.reply <- nil
		}, "-"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				a := newAnswers()
				s := testServer(t, a)
				r := hostLogin(s, "work", 1, host, "prod")
				if c.change != nil {
					c.change(s, r)
				}
				day := time.Now().Format(time.DateOnly)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				done := start(ctx, s, "a", r)
				q := <-a.asked
				if c.end != nil {
					c.end(s, q, cancel)
				} else {
					q.reply <- nil
				}
				got := <-done
				want := ""
				if c.want != "-" {
					want = fmt.Sprintf("%s %s %s %s\n", c.want, key, day, day)
				}
				if signed := got.err == nil; c.want != "-" && !signed || c.end != nil && signed {
					t.Errorf("signed: %v", got.err)
				}
				wantRemembered(t, s, want)
				s.prompts.wait()
			})
		})
	}
}

// zeros is a source of a nonce that need not be random.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// A memory that begins empty, over logins, days and restarts.
func TestHostMemoryGoesOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAnswers()
		s := testServer(t, a)
		one, two := hostSigner(t, true), hostSigner(t, false)
		print1, print2 := ssh.FingerprintSHA256(one.PublicKey()), ssh.FingerprintSHA256(two.PublicKey())
		shows := func(p *Prompt, want ...string) {
			t.Helper()
			text := p.Text()
			for _, w := range append(want, "\nVERIFIED\n") {
				if !strings.Contains(text, w) {
					t.Errorf("no %q in\n%s", w, text)
				}
			}
			if warned := strings.Contains(text, "WARNING"); warned != strings.Contains(strings.Join(want, ""), "WARNING") {
				t.Errorf("warned: %v\n%s", warned, text)
			}
		}
		day := func() string { return time.Now().Local().Format(time.DateOnly) }
		first := day()
		ask := func(s *server, answer error, host ssh.Signer, names ...string) *Prompt {
			t.Helper()
			return approveAs(t, s, a, answer, hostLogin(s, "work", 1, host, names...))
		}
		shows(ask(s, ErrDenied, one, "prod"), "  known: no, this host key was not approved before\n")
		shows(ask(s, nil, one, "prod"), "  known: no, this host key was not approved before\n")
		shows(ask(s, nil, one, "prod"), "  known: as prod since "+first+"\n")
		wantRemembered(t, s, fmt.Sprintf("prod %s %s %s\n", print1, first, first))

		<-time.After(24 * time.Hour)
		shows(ask(s, nil, one, "Prod", "www"), "  known: as prod since "+first+"\n")
		second := day()
		if first == second {
			t.Fatalf("%s and a day is %s", first, second)
		}
		wantRemembered(t, s, fmt.Sprintf("prod %s %s %s\nwww %s %s %s\n", print1, first, second, print1, second, second))

		// A denial leaves it alone; an approval adds the key, and the name has two.
		warns := "VERIFIED\n  WARNING: prod has another host key than the one approved before:\n  WARNING: " + print1 + " on " + second + "\n"
		shows(ask(s, ErrDenied, two, "prod"), warns, "(claimed, OTHER KEY)")
		shows(ask(s, nil, two, "prod"), warns, "  known: no, this host key was not approved before\n")
		shows(ask(s, nil, two, "prod"), "  known: as prod since "+second+" (one of 2 keys)\n")
		shows(ask(s, nil, one, "prod"), "  known: as prod since "+first+" (one of 2 keys)\n")
		all := fmt.Sprintf("prod %s %s %s\nprod %s %s %s\nwww %s %s %s\n", print1, first, second, print2, second, second, print1, second, second)
		wantRemembered(t, s, all)

		// The next process knows it, for every device.
		other := transport.Pin{9}
		if err := s.update(func(st *State) error { _, err := st.addDevice("desk", other, time.Now()); return err }); err != nil {
			t.Fatal(err)
		}
		s, err := newServer(s.home, Options{Approver: a})
		if err != nil {
			t.Fatal(err)
		}
		wantRemembered(t, s, all)
		answered := make(chan error, 1)
		go func() {
			_, err := s.handle(t.Context(), other, "x", hostLogin(s, "work", 7, two, "www"))
			answered <- err
		}()
		q := <-a.asked
		shows(q.prompt, "From desk → www (claimed, OTHER KEY)", "WARNING: www has another", "  known: as prod since "+second+" (one of 2 keys), by none of the names claimed now\n")
		q.reply <- nil
		if err := <-answered; err != nil {
			t.Error(err)
		}

		// Another signer has its own.
		stranger := testServer(t, a)
		shows(ask(stranger, nil, two, "prod"), "  known: no, this host key was not approved before\n")
		wantRemembered(t, stranger, fmt.Sprintf("prod %s %s %s\n", print2, second, second))
		if got := strings.Count(remembered(t, s.home), "\n"); got != 4 {
			t.Errorf("%d rows, want 4", got)
		}
		s.prompts.wait()
		stranger.prompts.wait()
	})
}

// A key that was approved without a name is known, and gets a name when it has
// one.
func TestNamelessHostKey(t *testing.T) {
	t.Parallel()
	a := newAnswers()
	s := testServer(t, a)
	day := s.now().Format(time.DateOnly)
	host := hostSigner(t, true)
	key := ssh.FingerprintSHA256(host.PublicKey())
	for _, c := range []struct {
		names       []string
		known, rows string
	}{
		{nil, "no, this host key was not approved before", " K D D\n"},
		{nil, "without a name since D", " K D D\n"},
		{[]string{"prod"}, "without a name since D, by none of the names claimed now", "prod K D D\n K D D\n"},
		{nil, "as prod since D, without a name since D", "prod K D D\n K D D\n"},
	} {
		fill := strings.NewReplacer("K", key, "D", day).Replace
		p := approveAs(t, s, a, nil, hostLogin(s, "work", 1, host, c.names...))
		if !strings.Contains(p.Text(), "\n  known: "+fill(c.known)+"\n") {
			t.Errorf("no %q in\n%s", fill(c.known), p.Text())
		}
		wantRemembered(t, s, fill(c.rows))
	}
	// One that has a name does not become nameless, too.
	other := hostSigner(t, true)
	approveAs(t, s, a, nil, hostLogin(s, "work", 1, other, "git"))
	approveAs(t, s, a, nil, hostLogin(s, "work", 2, other))
	if got := remembered(t, s.home); strings.Count(got, ssh.FingerprintSHA256(other.PublicKey())) != 1 {
		t.Errorf("remembered\n%s", got)
	}
}

// The owner approves the names that the prompt has shown, not those that did not
// fit.
func TestThreat_T11_OnlyShownNamesAreRemembered(t *testing.T) {
	t.Parallel()
	a := newAnswers()
	s := testServer(t, a)
	host := hostSigner(t, true)
	many := []string{strings.Repeat("a", 50), strings.Repeat("b", 60), "shown", strings.Repeat("c", 40), "hidden"}
	p := approveAs(t, s, a, nil, hostLogin(s, "work", 1, host, many...))
	if text := p.Text(); !strings.Contains(text, ", shown and 2 more\n") || strings.Contains(text, "hidden") {
		t.Errorf("%s", text)
	}
	got := remembered(t, s.home)
	if strings.Count(got, "\n") != 3 || !strings.Contains(got, "\nshown ") || strings.Contains(got, "hidden") || strings.Contains(got, "cccc") {
		t.Errorf("remembered\n%s", got)
	}
	// A long one is shown whole when it is the first.
	long := strings.Repeat("x", maxHostName)
	p = approveAs(t, s, a, nil, hostLogin(s, "work", 2, host, long, "hidden"))
	if text := p.Text(); !strings.Contains(text, "  host: "+long+" and 1 more\n") {
		t.Errorf("%s", text)
	}
	if got := remembered(t, s.home); !strings.Contains(got, "\n"+long+" ") || strings.Contains(got, "hidden") {
		t.Errorf("remembered\n%s", got)
	}
	// A warning is about every name, shown or not.
	p = approveAs(t, s, a, ErrDenied, hostLogin(s, "work", 3, hostSigner(t, true), strings.Repeat("n", 120), "n2", "SHOWN"))
	if text := p.Text(); !strings.Contains(text, "VERIFIED\n  WARNING: shown has another host key") {
		t.Errorf("%s", text)
	}
}

// Requests that share a prompt are approved under the names that it has shown.
func TestThreat_T11_SharedPromptNames(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAnswers()
		s := testServer(t, a)
		host := hostSigner(t, false)
		first := start(t.Context(), s, "first", hostLogin(s, "work", 4, host, "seen"))
		q := <-a.asked
		second := start(t.Context(), s, "second", hostLogin(s, "work", 4, host, "unseen"))
		synctest.Wait()
		if len(a.asked) != 0 {
			t.Fatal("a prompt of its own")
		}
		q.reply <- nil
		for _, c := range []<-chan result{first, second} {
			r := <-c
			wantCode(t, r.payload, r.err, "")
		}
		if got := remembered(t, s.home); !strings.HasPrefix(got, "seen ") || strings.Contains(got, "unseen") {
			t.Errorf("remembered\n%s", got)
		}
		s.prompts.wait()
	})
}

// Nothing is written when only the time has changed.
func TestHostMemoryIsWrittenOnceADay(t *testing.T) {
	t.Parallel()
	s := testServer(t, yes{})
	now := time.Date(2026, 11, 20, 10, 0, 0, 0, time.Local)
	s.now = func() time.Time { return now }
	host := hostSigner(t, true)
	n := 0
	approve := func(names ...string) os.FileInfo {
		t.Helper()
		n++
		p, err := s.handle(t.Context(), testPin, fmt.Sprint(n), hostLogin(s, "work", byte(n), host, names...))
		wantCode(t, p, err, "")
		fi, err := os.Stat(s.home.path(hostsName))
		if err != nil {
			t.Fatal(err)
		}
		return fi
	}
	before := approve("prod")
	if before.Mode() != 0o600 {
		t.Errorf("mode %v", before.Mode())
	}
	for _, c := range []struct {
		after time.Duration
		names []string
		write bool
		last  string
	}{
		{0, []string{"prod"}, false, "2026-11-20"},
		{13 * time.Hour, []string{"PROD"}, false, "2026-11-20"},
		{-48 * time.Hour, []string{"prod"}, false, "2026-11-20"}, // a clock that was set back
		{-48 * time.Hour, []string{"prod", "mail"}, true, "2026-11-20"},
		{13 * time.Hour, []string{"prod", "www"}, true, "2026-11-20"},
		{13 * time.Hour, []string{"www"}, false, "2026-11-20"},
		{13 * time.Hour, nil, false, "2026-11-20"},
		{14 * time.Hour, []string{"prod"}, true, "2026-11-21"},
		{15 * time.Hour, []string{"prod"}, false, "2026-11-21"},
	} {
		now = time.Date(2026, 11, 20, 10, 0, 0, 0, time.Local).Add(c.after)
		fi := approve(c.names...)
		if written := !os.SameFile(before, fi); written != c.write {
			t.Errorf("%v, %q: written: %v", c.after, c.names, written)
		}
		before = fi
		if got := "\n" + remembered(t, s.home); !strings.Contains(got, "\nprod "+ssh.FingerprintSHA256(host.PublicKey())+" 2026-11-20 "+c.last+"\n") {
			t.Errorf("%v: %s", c.after, got)
		}
	}
	// What is known needs no lock, so a command that holds it delays nobody.
	var log bytes.Buffer
	s.log = slog.New(slog.NewTextHandler(&log, nil))
	release, err := s.home.lock()
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	approve("prod")
	if got := log.String(); strings.Contains(got, "not remembered") {
		t.Error(got)
	}
}

// A signature is given though its host key cannot be remembered, and that is
// logged.
func TestHostMemoryFails(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil func(*testing.T, *Home)
		want  string
	}{
		"unreadable": {func(t *testing.T, h *Home) {
			if err := os.Mkdir(h.path(hostsName), 0o700); err != nil {
				t.Fatal(err)
			}
		}, "is a directory"},
		"newer": {func(t *testing.T, h *Home) {
			if err := os.WriteFile(h.path(hostsName), []byte(`{"version":2}`), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "newer vmux-signer"},
		"busy": {func(t *testing.T, h *Home) {
			release, err := h.lock()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(release)
		}, "another command is changing the signer home"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				s := testServer(t, yes{})
				s.log = slog.New(slog.NewTextHandler(&log, nil))
				c.spoil(t, s.home)
				begin := time.Now()
				p, err := s.handle(t.Context(), testPin, "a", hostLogin(s, "work", 1, hostSigner(t, true), "prod"))
				wantCode(t, p, err, "")
				if took := time.Since(begin); took > rememberWait {
					t.Errorf("signed after %v", took)
				}
				s.memory.Wait()
				if got := log.String(); !strings.Contains(got, `level=WARN msg="host key not remembered" hostKey=SHA256:`) || !strings.Contains(got, c.want) {
					t.Errorf("log %s", got)
				}
				if got := len(*s.hosts.Load()); got != 0 {
					t.Errorf("%d names in memory", got)
				}
				s.prompts.wait()
			})
		})
	}
}

// Logins at once are not held up by one another's wait for the home.
func TestHostMemoryBusyAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := testServer(t, yes{})
		release, err := s.home.lock()
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		begin := time.Now()
		var all []<-chan result
		for i := range maxPrompts {
			all = append(all, start(t.Context(), s, fmt.Sprint(i), hostLogin(s, "work", byte(i), hostSigner(t, true), "prod")))
		}
		for _, c := range all {
			r := <-c
			wantCode(t, r.payload, r.err, "")
		}
		if took := time.Since(begin); took > rememberWait {
			t.Errorf("the last was signed after %v", took)
		}
		s.memory.Wait()
	})
}

// A disk that hangs holds nothing up either.
func TestHostMemoryHangs(t *testing.T) {
	t.Parallel()
	s := testServer(t, yes{})
	var log bytes.Buffer
	s.log = slog.New(slog.NewTextHandler(&log, nil))
	path := s.home.path(hostsName)
	if err := unix.Mkfifo(path, 0o600); err != nil { // opening it waits for the other end
		t.Fatal(err)
	}
	for _, id := range []string{"first", "queued"} {
		p, err := s.handle(t.Context(), testPin, id, hostLogin(s, "work", id[0], hostSigner(t, true), "prod"))
		wantCode(t, p, err, "")
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString(`{"version":1}`)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	s.memory.Wait()
	if got := strings.Count(log.String(), `msg="host key not remembered"`); got != 2 || !strings.Contains(log.String(), `reason="it took longer than 1s"`) {
		t.Errorf("log %s", log.String())
	}
	if got := len(*s.hosts.Load()); got != 0 {
		t.Errorf("%d names in memory", got)
	}
}

// T02: what ends a request while its host key waits for the home ends it, and the
// key is not remembered.
func TestThreat_T02_EndedWhileRemembering(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		end  func(s *server, cancel func(), ahead *atomic.Int64)
		want envelope.Code
	}{
		"cancel": {func(_ *server, cancel func(), _ *atomic.Int64) { cancel() }, envelope.CodeDenied},
		"expiry": {func(*server, func(), *atomic.Int64) { <-time.After(rememberWait / 2) }, envelope.CodeExpired},
		"clock":  {func(_ *server, _ func(), ahead *atomic.Int64) { ahead.Store(int64(time.Hour)) }, envelope.CodeExpired},
		"forget": {func(s *server, _ func(), _ *atomic.Int64) {
			now := *s.current()
			now.state.Devices = nil
			s.snap.Store(&now)
		}, envelope.CodeNotPaired},
		"disable": {func(s *server, _ func(), _ *atomic.Int64) {
			now := *s.current()
			now.keys = nil
			s.snap.Store(&now)
		}, envelope.CodeUnknownKey},
		"nothing": {func(*server, func(), *atomic.Int64) {}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := testServer(t, yes{})
				var ahead atomic.Int64
				s.now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
				release, err := s.home.lock()
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				r := hostLogin(s, "work", 1, hostSigner(t, true), "prod")
				if name == "expiry" {
					r.CreatedAt = envelope.At(time.Now().Add(rememberWait/2 - Freshness))
				}
				done := start(ctx, s, "a", r)
				synctest.Wait() // it has been signed
				select {
				case got := <-done:
					t.Fatalf("%v before the home was free", got.err)
				default:
				}
				c.end(s, cancel, &ahead)
				synctest.Wait()
				release()
				got := <-done
				wantCode(t, got.payload, got.err, c.want)
				s.memory.Wait()
				if rows := remembered(t, s.home); (rows != "") != (c.want == "") {
					t.Errorf("remembered\n%s", rows)
				}
			})
		})
	}
}

// The warning of a login is in the log and in its event, whatever its end.
func TestOtherKeyIsLogged(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	a := newAnswers()
	s := testServer(t, a)
	s.log = slog.New(slog.NewTextHandler(&log, nil))
	var events []Event
	s.onEvent = func(e Event) { events = append(events, e) }
	approveAs(t, s, a, nil, hostLogin(s, "work", 1, hostSigner(t, true), "prod"))
	other := hostSigner(t, true)
	approveAs(t, s, a, ErrDenied, hostLogin(s, "work", 2, other, "prod"))
	approveAs(t, s, a, nil, hostLogin(s, "work", 3, other, "prod"))
	approveAs(t, s, a, nil, hostLogin(s, "work", 4, other, "prod"))
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	var warned []bool
	for i, e := range events {
		warned = append(warned, e.Warning == otherKey)
		if !strings.Contains(lines[i], "msg=request") || strings.Contains(lines[i], `warning="another host key than the one approved before"`) != warned[i] {
			t.Errorf("log %q, event %+v", lines[i], e)
		}
	}
	if want := []bool{false, true, true, false}; !slices.Equal(warned, want) {
		t.Errorf("warned %v, want %v", warned, want)
	}
}

// Everything is bounded, what was used least recently goes, and a full memory
// can be read again.
func TestHostMemoryBounds(t *testing.T) {
	t.Parallel()
	h := testHome(t)
	day := func(n int) string { return time.Date(2026, 1, 1+n, 0, 0, 0, 0, time.UTC).Format(time.DateOnly) }
	finger := func(n int) string { return fmt.Sprintf("SHA256:%042dA", n) }
	update := func(change func(approvals)) approvals {
		t.Helper()
		known, err := h.updateHosts(t.Context(), func(a approvals) (bool, error) { change(a); return true, nil })
		if err != nil {
			t.Fatal(err)
		}
		return known
	}
	// Keys of a name.
	known := update(func(a approvals) {
		for i := range maxHostKeys {
			a.add([]string{"prod"}, finger(i), day(i))
		}
		a.add([]string{"prod"}, finger(0), day(20)) // used again: the next one is the oldest
		a.add([]string{"prod"}, finger(99), day(21))
	})
	if rows := known["prod"]; len(rows) != maxHostKeys || known.with("prod", finger(0)) == nil || known.with("prod", finger(1)) != nil || rows[maxHostKeys-1].Key != finger(99) {
		t.Errorf("%v", rows)
	}
	if a := known.with("prod", finger(0)); a.First != day(0) || a.Last != day(20) {
		t.Errorf("%v", a)
	}
	// Keys without a name.
	known = update(func(a approvals) {
		for i := range maxNameless + 1 {
			a.add(nil, finger(1000+i), day(0)) // the oldest of all, and they make no room for names
		}
	})
	if len(known[""]) != maxNameless || known.with("", finger(1000)) != nil {
		t.Errorf("%d keys without a name", len(known[""]))
	}
	// Names, each as long and with as many keys as there can be.
	long := func(n int) string { return strings.Repeat("x", maxHostName-4) + fmt.Sprintf("%04d", n) }
	known = update(func(a approvals) {
		for i := range maxHosts - 1 {
			for k := range maxHostKeys {
				a.add([]string{long(i)}, finger(k), day(30+i%1000))
			}
		}
	})
	if known.count() != maxHosts || known["prod"] == nil {
		t.Fatalf("%d names", known.count())
	}
	fi, err := os.Stat(h.path(hostsName))
	if err != nil || fi.Size() > maxHostsFile*9/10 {
		t.Errorf("%v, %v", fi.Size(), err)
	}
	reread, err := h.hosts()
	if err != nil || !reflect.DeepEqual(reread, known) {
		t.Errorf("read again: %d names, %v", reread.count(), err)
	}
	known = update(func(a approvals) { a.add([]string{"new", "newer"}, finger(5), day(0)) })
	if known.count() != maxHosts || known["prod"] != nil || known[long(0)] != nil || known[long(1)] == nil || known["new"] == nil || known["newer"] == nil || len(known[""]) != maxNameless {
		t.Errorf("%d names", known.count())
	}
}

// A file that is damaged is set aside and said, one that is newer is left alone.
func TestHostsFile(t *testing.T) {
	t.Parallel()
	row := func(key, first, last string) string {
		return fmt.Sprintf(`{"key":%q,"first":%q,"last":%q}`, key, first, last)
	}
	good := row(print43("g"), "2026-11-01", "2026-11-20")
	file := func(name, rows string) string {
		return fmt.Sprintf(`{"version":1,"hosts":{%q:[%s]}}`, name, rows)
	}
	many := func(n int, row func(int) string) string {
		var rows []string
		for i := range n {
			rows = append(rows, row(i))
		}
		return strings.Join(rows, ",")
	}
	finger := func(n int) string { return row(fmt.Sprintf("SHA256:%042dA", n), "2026-11-01", "2026-11-01") }
	names := func(n int) string {
		return `{"version":1,"hosts":{` + many(n, func(i int) string { return fmt.Sprintf(`"h%d":[%s]`, i, good) }) + `}}`
	}
	for name, c := range map[string]struct {
		content string
		want    string // what is remembered; damage or a refusal otherwise
	}{
		"one":               {file("prod", good), "prod " + print43("g") + " 2026-11-01 2026-11-20\n"},
		"empty":             {`{"version":1,"hosts":{}}`, ""},
		"nothing":           {`{"version":1}`, ""},
		"newer":             {`{"version":2,"hosts":[],"more":1}`, "refused"},
		"no file":           {``, "damaged"},
		"cut":               {file("prod", good)[:90], "damaged"},
		"trailing":          {file("prod", good) + "{}", "damaged"},
		"no version":        {`{"hosts":{}}`, "damaged"},
		"older":             {`{"version":0}`, "damaged"},
		"version as text":   {`{"version":"1"}`, "damaged"},
		"unknown member":    {`{"version":1,"hosts":{},"more":1}`, "damaged"},
		"wrong case":        {`{"Version":1,"hosts":{}}`, "damaged"},
		"unknown in a row":  {file("prod", `{"key":"`+print43("g")+`","first":"2026-11-01","last":"2026-11-01","more":1}`), "damaged"},
		"name twice":        {`{"version":1,"hosts":{"a":[` + good + `],"a":[` + good + `]}}`, "damaged"},
		"upper case":        {file("Prod", good), "damaged"},
		"unfit name":        {file("a b", good), "damaged"},
		"longest name":      {file(strings.Repeat("a", 256), good), "damaged"},
		"no keys":           {file("prod", ""), "damaged"},
		"key twice":         {file("prod", good+","+good), "damaged"},
		"no fingerprint":    {file("prod", row("SHA256:abc", "2026-11-01", "2026-11-01")), "damaged"},
		"other digest":      {file("prod", row("MD5:"+print43("g")[7:], "2026-11-01", "2026-11-01")), "damaged"},
		"loose fingerprint": {file("prod", row(strings.Replace(print43("g"), "A", "B", 1), "2026-11-01", "2026-11-01")), "damaged"},
		"no day":            {file("prod", row(print43("g"), "2026-11-31", "2026-12-01")), "damaged"},
		"days turned":       {file("prod", row(print43("g"), "2026-11-02", "2026-11-01")), "damaged"},
		"too many keys":     {file("prod", many(maxHostKeys+1, finger)), "damaged"},
		"too many nameless": {file("", many(maxNameless+1, finger)), "damaged"},
		"too many names":    {names(maxHosts + 1), "damaged"},
		"too large":         {file("prod", good) + strings.Repeat(" ", maxHostsFile), "damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := testHome(t)
			path := h.path(hostsName)
			if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			var warnings []string
			h.warn = func(s string) { warnings = append(warnings, s) }
			_, err := newServer(h, Options{Approver: yes{}})
			aside, _ := os.ReadFile(path + ".damaged-1")
			left, _ := os.ReadFile(path)
			switch c.want {
			case "refused":
				_, err2 := h.RemoveHosts("prod")
				for _, err := range []error{err, err2} {
					if !errors.Is(err, ErrStateVersion) || !strings.Contains(err.Error(), "hosts.json has version 2") {
						t.Error(err)
					}
				}
				if string(left) != c.content || len(warnings) > 0 {
					t.Errorf("left %q, said %q", left, warnings)
				}
			case "damaged":
				if err != nil || string(aside) != c.content || len(left) > 0 {
					t.Errorf("%v, left %q, aside %q", err, left, aside)
				}
				if len(warnings) != 1 || !strings.HasPrefix(warnings[0], path+" was damaged (") || !strings.Contains(warnings[0], "hosts.json.damaged-1: no host key is remembered") {
					t.Errorf("said %q", warnings)
				}
				if got := remembered(t, h); got != "" || len(warnings) != 1 {
					t.Errorf("remembered %q, said %q", got, warnings)
				}
			default:
				if err != nil || string(left) != c.content || len(warnings) > 0 {
					t.Errorf("%v, left %q, said %q", err, left, warnings)
				}
				if got := remembered(t, h); got != c.want {
					t.Errorf("remembered %q", got)
				}
			}
		})
	}
	// Damage while a signer runs: the next approval finds it.
	h := testHome(t)
	var warnings []string
	s, err := newServer(h, Options{Approver: yes{}})
	if err != nil {
		t.Fatal(err)
	}
	h.warn = func(s string) { warnings = append(warnings, s) }
	os.WriteFile(h.path(hostsName), []byte("{"), 0o600)
	host := hostSigner(t, true)
	s.remember(t.Context(), &Prompt{Verified: Verified{HostKey: ssh.FingerprintSHA256(host.PublicKey())}, Claimed: Claimed{HostNames: []string{"prod"}}}, func() error { return nil })
	if got := remembered(t, h); len(warnings) != 1 || !strings.HasPrefix(got, "prod ") {
		t.Errorf("remembered %q, said %q", got, warnings)
	}
}

func TestRemoveHosts(t *testing.T) {
	t.Parallel()
	h := testHome(t)
	p := print43("p")
	known := approvals{"prod": {on("p", 1, 2), on("g", 1, 2)}, "www": {on("p", 1, 2)}, "git": {on("g", 1, 2)}, "": {on("n", 1, 2)}}
	if err := h.writeHosts(known); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		words []string
		gone  string
		left  string
	}{
		{[]string{"nosuch"}, "error", "git g, prod p, prod g, www p,  n"},
		{[]string{"git", "nosuch"}, "error", "git g, prod p, prod g, www p,  n"},
		{[]string{print43("x")}, "error", "git g, prod p, prod g, www p,  n"},
		{[]string{strings.ToLower(p)}, "error", "git g, prod p, prod g, www p,  n"},
		{[]string{""}, "error", "git g, prod p, prod g, www p,  n"},
		{[]string{"git", ""}, "error", "git g, prod p, prod g, www p,  n"},
		{[]string{" "}, "error", "git g, prod p, prod g, www p,  n"},
		{[]string{"-"}, "error", "git g, prod p, prod g, www p,  n"},
		{[]string{"GIT.", "[git]:22"}, "git g", "prod p, prod g, www p,  n"},
		{[]string{p}, "prod p, www p", "prod g,  n"},
		{[]string{"prod", print43("n")}, "prod g,  n", ""},
		{[]string{""}, "error", ""},
	} {
		list := func(rows []HostKey) string {
			var s []string
			for _, k := range rows {
				s = append(s, k.Name+" "+k.Fingerprint[7:8])
			}
			return strings.Join(s, ", ")
		}
		rows, err := h.RemoveHosts(c.words...)
		gone := list(rows)
		if errors.Is(err, ErrNoHost) {
			gone = "error"
		} else if err != nil {
			t.Fatal(err)
		}
		left, err := h.HostKeys()
		if err != nil || gone != c.gone || list(left) != c.left {
			t.Errorf("%q: gone %q, left %q, %v; want %q and %q", c.words, gone, list(left), err, c.gone, c.left)
		}
	}
}

// Approvals, reloads and removals at once: nothing is lost and nothing is torn.
func TestHostMemoryAtOnce(t *testing.T) {
	t.Parallel()
	s := testServer(t, yes{})
	var log bytes.Buffer
	s.log = slog.New(slog.NewTextHandler(&log, nil))
	const n = 8
	var hosts []ssh.Signer
	for i := range n {
		hosts = append(hosts, hostSigner(t, i%2 == 0))
	}
	var work sync.WaitGroup
	for i := range n {
		work.Go(func() {
			for k := range 4 {
				p, err := s.handle(t.Context(), testPin, fmt.Sprintf("%d-%d", i, k), hostLogin(s, "work", byte(i), hosts[i], fmt.Sprintf("h%d-%d", i, k), "shared"))
				wantCode(t, p, err, "")
			}
		})
		work.Go(func() {
			// Another process, as far as locks go.
			other, err := Open(s.home.dir, func(s string) { t.Error(s) })
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := other.RemoveHosts("nosuch"); !errors.Is(err, ErrNoHost) {
				t.Error(err)
			}
			if err := s.reload(); err != nil {
				t.Error(err)
			}
		})
	}
	work.Wait()
	s.memory.Wait()
	known, err := s.home.hosts()
	if err != nil {
		t.Fatal(err)
	}
	late := strings.Count(log.String(), "host key not remembered") // on a slow disk
	if names, keys := known.count(), len(known["shared"]); names > 4*n+1 || names < 4*n+1-late || keys > n || keys < n-late {
		t.Errorf("%d names, %d keys of one, and %d came too late", names, keys, late)
	}
	if now := *s.hosts.Load(); !reflect.DeepEqual(now, known) {
		t.Errorf("in memory %v, on disk %v", now, known)
	}
}

// The longest of everything, on any screen: each page fits, the warning comes
// first, and nothing of a device's is in the signer's half.
func TestHostMemoryLayout(t *testing.T) {
	t.Parallel()
	long := func(c string) string { return strings.Repeat(c, maxHostName) }
	known := approvals{long("a"): {on("p", 1, 2)}, long("b"): {on("p", 1, 2)}, long("c"): {on("p", 1, 2)},
		long("d"): {on("q", 1, 2)}, long("e"): {on("x", 1, 2), on("y", 3, 4)}, long("f"): {on("x", 1, 2), on("y", 3, 4)}, long("g"): {on("x", 1, 2)},
		"build.example.org": {on("b", 1, 2)}}
	longest := []string{"\x1b[2J\nVERIFIED\n  known as it must be", long("a"), long("b"), long("c"), long("d"), strings.Repeat("\u6f22", 255)}
	for name, c := range map[string]struct {
		names []string
		key   string
		pages int // at 80 by 24
	}{
		"longest":      {longest, "x", 2},
		"longest, new": {[]string{long("n")}, "z", 2},
		"unverified":   {longest, "", 2},
		"usual":        {[]string{"build.example.org", "192.0.2.7"}, "z", 1},
		"usual, known": {[]string{"build.example.org", "192.0.2.7"}, "b", 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := testPrompt(strings.Repeat("k", 64))
			if c.pages > 1 {
				p.Verified.Device = strings.Repeat("d", envelope.MaxName)
				p.Verified.Operation = "log in as " + shown(strings.Repeat("u", 99), 60)
				p.Verified.HostKeyType = "sk-ecdsa-sha2-nistp256-cert-v01@openssh.com"
				p.Verified.Hops = []string{print43("1"), print43("2"), print43("3")}
				p.Claimed.Forwarded = true
				p.Claimed.WorkingDirectory = strings.Repeat("/home", 99)
				for range 16 {
					p.Claimed.Processes = append(p.Claimed.Processes, Process{1 << 22, strings.Repeat("/bin", 99)})
				}
			}
			p.Verified.HostKey = ""
			if c.key != "" {
				p.Verified.HostKey = print43(c.key)
			} else {
				p.Verified.Unverified = "the host's statement is for another session"
			}
			p.Claimed.HostNames = c.names
			p.Verified.Memory = known.recall(c.names, p.Verified.HostKey)
			for _, size := range [][2]int{{80, 24}, {40, 24}, {80, 8}, {200, 60}, {40, 8}} {
				pages := p.pages(size[0], size[1])
				if size == [2]int{80, 24} && len(pages) != c.pages {
					t.Errorf("%d pages, want %d\n%s", len(pages), c.pages, strings.Join(pages, "----\n"))
				}
				for i, page := range pages {
					if n := rows(unstyled(page), size[0]); n > size[1]-margin {
						t.Errorf("%v: page %d has %d rows\n%s", size, i, n, page)
					}
					for l := range strings.Lines(unstyled(page)) {
						if n := breadth(strings.TrimSuffix(l, "\n")); n > size[0]-1 {
							t.Errorf("%v: %d columns: %q", size, n, l)
						}
						if strings.ContainsAny(strings.TrimSuffix(l, "\n"), "\x1b\n\r") {
							t.Errorf("unsafe line %q", l)
						}
					}
				}
				if !p.Verified.warned() {
					continue
				}
				// Below the heading of the half, in bold, on the first page that has room for
				// any of it.
				all := strings.Join(pages, "")
				_, after, _ := strings.Cut(all, "VERIFIED\n")
				if i := strings.Index(after, "WARNING"); i < 0 || strings.Contains(after[:i], "operation") {
					t.Errorf("%v:\n%s", size, all)
				}
				if size[1] >= 24 && !strings.Contains(pages[0], "VERIFIED\n"+bold+"  WARNING    ") {
					t.Errorf("%v:\n%s", size, pages[0])
				}
			}
			verified, _, _ := strings.Cut(strings.Join(p.pages(80, 60), ""), headClaimed)
			verified = verified[strings.Index(verified, "VERIFIED"):]
			for _, claim := range []string{"as it must be", "\u6f22", "192.0.2.7", strings.Repeat("n", 20)} {
				if strings.Contains(verified, claim) {
					t.Errorf("the device's word %q in\n%s", claim, verified)
				}
			}
		})
	}
}

// FuzzHosts reads anything, and what it takes it writes the same.
func FuzzHosts(f *testing.F) {
	f.Add([]byte(`{"version":1,"hosts":{"prod":[{"key":"` + print43("p") + `","first":"2026-11-01","last":"2026-11-20"}],"":[{"key":"` + print43("p") + `","first":"2026-11-01","last":"2026-11-20"}]}}`))
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		known, err := parseHosts(b)
		var damaged *damagedError
		if err != nil {
			if !errors.As(err, &damaged) && !errors.Is(err, ErrStateVersion) {
				t.Errorf("%v", err)
			}
			return
		}
		out, err := json.Marshal(hostsFile{hostsVersion, known})
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseHosts(out)
		if err != nil || !reflect.DeepEqual(again, known) {
			t.Errorf("%s: %v", out, err)
		}
	})
}
