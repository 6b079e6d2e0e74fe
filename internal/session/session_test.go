// SPDX-License-Identifier: BSD-3-Clause

package session

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"vmux.app/toolkit/internal/process"
)

func TestSpec(t *testing.T) {
	t.Parallel()
	host := func(h ...Host) func(*Spec) { return func(s *Spec) { s.Scope.Hosts = h } }
	good := "SHA256:" + strings.Repeat("A", 43)
	many := func(n int) (all []string) {
		for i := range n {
			all = append(all, fmt.Sprint("p", i))
		}
		return all
	}
	principals := func(p ...string) func(*Spec) { return func(s *Spec) { s.Principals = p } }
	option := func(name, value string) func(*Spec) {
		return func(s *Spec) { s.CriticalOptions = map[string]string{name: value} }
	}
	for _, c := range []struct {
		name   string
		change func(*Spec)
		field  string // "" when it is good
	}{
		{"good", func(*Spec) {}, ""},
		{"no principals", principals(), "principals"},
		{"most principals", principals(many(32)...), ""},
		{"too many principals", principals(many(33)...), "principals"},
		{"principal twice", principals("a", "b", "a"), "principals"},
		{"empty principal", principals(""), "principals"},
		{"principal with a comma", principals("a,root"), "principals"},
		{"principal with a line feed", principals("a\nroot"), "principals"},
		{"principal with a zero byte", principals("a\x00"), "principals"},
		{"principal that is not UTF-8", principals("\xff"), "principals"},
		{"longest principal", principals(strings.Repeat("a", 256)), ""},
		{"too long a principal", principals(strings.Repeat("a", 257)), "principals"},
		{"shortest", validity(15 * time.Second), ""},
		{"too short", validity(14 * time.Second), "validity"},
		{"longest", validity(24 * time.Hour), ""},
		{"too long", validity(24*time.Hour + time.Second), "validity"},
		{"none", validity(0), "validity"},
		{"negative", validity(-time.Hour), "validity"},
		{"half a second", validity(15*time.Second + time.Second/2), "validity"},
		{"no key id", func(s *Spec) { s.KeyID = "" }, "key id"},
		{"longest key id", func(s *Spec) { s.KeyID = strings.Repeat("a", 256) }, ""},
		{"too long a key id", func(s *Spec) { s.KeyID = strings.Repeat("a", 257) }, "key id"},
		{"key id with an escape", func(s *Spec) { s.KeyID = "\x1b[2J" }, "key id"},
		{"identity with an escape", func(s *Spec) { s.Identity = "\x1b[2J" }, "identity"},
		{"reason with a direction mark", func(s *Spec) { s.Reason = "\u202e" }, "reason"},
		{"longest command", option("force-command", strings.Repeat("a", 4096)), ""},
		{"too long a command", option("force-command", strings.Repeat("a", 4097)), "critical options"},
		{"command with a line feed", option("force-command", "a\nb"), "critical options"},
		{"option without a name", option("", ""), "critical options"},
		{"too many extensions", func(s *Spec) {
			s.Extensions = map[string]string{}
			for _, p := range many(33) {
				s.Extensions[p] = ""
			}
		}, "extensions"},
		{"too much text", func(s *Spec) {
			s.Extensions = map[string]string{"a": strings.Repeat("a", 4096), "b": strings.Repeat("a", 4096)}
		}, "request"},
		{"host", host(Host{"a", []string{good}}), ""},
		{"host without a key", host(Host{"a", nil}), "hosts"},
		{"host without a name", host(Host{"", []string{good}}), "hosts"},
		{"MD5", host(Host{"a", []string{"MD5:00"}}), "hosts"},
		{"fingerprint without its kind", host(Host{"a", []string{good[7:]}}), "hosts"},
		{"padded fingerprint", host(Host{"a", []string{good + "="}}), "hosts"},
		{"short fingerprint", host(Host{"a", []string{good[:len(good)-1]}}), "hosts"},
		{"fingerprint with a line feed", host(Host{"a", []string{good + "\n"}}), "hosts"},
		{"fingerprint with loose bits", host(Host{"a", []string{good[:len(good)-1] + "B"}}), "hosts"},
		{"too many fingerprints", host(Host{"a", slices.Repeat([]string{good}, 33)}), "hosts"},
		{"too many hosts", host(slices.Repeat([]Host{{"a", []string{good}}}, 65)...), "hosts"},
		{"uses", uses(1), ""},
		{"negative uses", uses(-1), "uses"},
		{"too many uses", uses(1<<30 + 1), "uses"},
		{"job", inJob, ""},
		{"job without a start", func(s *Spec) { s.Scope.Root = process.Process{PID: 9} }, "job"},
		{"job without a pid", func(s *Spec) { s.Scope.Root = process.Process{Name: "make"} }, "job"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.family(job.PID)
			_, err := r.Request(t.Context(), spec(c.change))
			var se *SpecError
			switch {
			case c.field == "" && err != nil:
				t.Error(err)
			case c.field != "" && (!errors.As(err, &se) || se.Field != c.field):
				t.Errorf("got %v, want %s", err, c.field)
			}
			if asked := len(r.authority.keys); (asked == 0) != (c.field != "") {
				t.Errorf("the phone was asked %d times", asked)
			}
		})
	}
}

func TestOptionsBound(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *Options) { o.MinValidity, o.MaxValidity, o.MaxPrincipals = time.Minute, 2*time.Minute, 2 })
	for d, ok := range map[time.Duration]bool{59 * time.Second: false, time.Minute: true, 2 * time.Minute: true, 121 * time.Second: false} {
		if _, err := r.Request(t.Context(), spec(validity(d))); (err == nil) != ok {
			t.Errorf("%v: %v", d, err)
		}
	}
	if _, err := r.Request(t.Context(), spec(validity(time.Minute), func(s *Spec) { s.Principals = []string{"a", "b", "c"} })); err == nil {
		t.Error("three principals pass")
	}
}

func TestSame(t *testing.T) {
	t.Parallel()
	l := limits{defaultMinValidity, defaultMaxValidity, defaultMaxPrincipals}
	a, b := newSigner(t).PublicKey(), newSigner(t).PublicKey()
	base := func(s *Spec) {
		toHosts(a, b)(s)
		s.Scope.Hosts = append(s.Scope.Hosts, Host{"z", slices.Clone(s.Scope.Hosts[0].Fingerprints[:1])})
		s.Scope.Root = job
		s.Identity = "work"
	}
	checked := func(change func(*Spec)) Spec {
		s, err := l.check(spec(base, change))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	first := checked(func(*Spec) {})
	for name, change := range map[string]func(*Spec){
		"nothing":         func(*Spec) {},
		"reason":          func(s *Spec) { s.Reason = "because" },
		"order of names":  func(s *Spec) { slices.Reverse(s.Principals) },
		"order of hosts":  func(s *Spec) { slices.Reverse(s.Scope.Hosts) },
		"order of keys":   func(s *Spec) { slices.Reverse(s.Scope.Hosts[0].Fingerprints) },
		"a key twice":     func(s *Spec) { h := &s.Scope.Hosts[0]; h.Fingerprints = append(h.Fingerprints, h.Fingerprints[0]) },
		"the job's title": func(s *Spec) { s.Scope.Root.Executable = "/bin/make" },
	} {
		if !first.same(checked(change)) {
			t.Errorf("%s makes a difference", name)
		}
	}
	for name, change := range map[string]func(*Spec){
		"principals":  func(s *Spec) { s.Principals = []string{"alice"} },
		"validity":    validity(2 * time.Hour),
		"key id":      named("x"),
		"options":     func(s *Spec) { s.CriticalOptions = nil },
		"extensions":  func(s *Spec) { s.Extensions = map[string]string{"permit-pty": "", "permit-user-rc": "1"} },
		"identity":    func(s *Spec) { s.Identity = "home" },
		"uses":        uses(1),
		"forwarding":  notForwarded,
		"hosts":       func(s *Spec) { s.Scope.Hosts = s.Scope.Hosts[:1] },
		"host's name": func(s *Spec) { s.Scope.Hosts[0].Name = "y" },
		"host's key":  func(s *Spec) { s.Scope.Hosts[0].Fingerprints = s.Scope.Hosts[0].Fingerprints[:1] },
		"job":         func(s *Spec) { s.Scope.Root.PID++ },
		"job's start": func(s *Spec) { s.Scope.Root.Start++ },
	} {
		if first.same(checked(change)) {
			t.Errorf("%s makes no difference", name)
		}
	}
}

// TestSpecIsCopied has the caller change what it gave.
func TestSpecIsCopied(t *testing.T) {
	t.Parallel()
	host := newSigner(t).PublicKey()
	r := newRig(t)
	s := spec(toHosts(host))
	c := r.request(s)
	s.Principals[0], s.Scope.Hosts[0].Fingerprints[0] = "root", "SHA256:"
	s.CriticalOptions["source-address"] = "0.0.0.0/0"
	clear(s.Extensions)
	if !c.spec.same(must(r.limits.check(spec(toHosts(host))))) {
		t.Errorf("got %+v", c.spec)
	}
	i := c.Info()
	i.Principals[0] = "root"
	clear(i.Extensions)
	if again := c.Info(); again.Principals[0] != "alice" || len(again.Extensions) != 2 {
		t.Errorf("an Info changes the certificate: %+v", again)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestInfo(t *testing.T) {
	t.Parallel()
	host := newSigner(t).PublicKey()
	r := newRig(t)
	r.family(job.PID)
	c := r.request(spec(toHosts(host), uses(3), notForwarded, inJob, func(s *Spec) { s.Identity = "work" }))
	b, err := json.Marshal(c.Info())
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]any{
		"serial": "1001", "keyId": "vmux:alice@laptop:1001", "principals": []any{"alice", "deploy"}, "identity": "work",
		"validAfter": "1999-12-31T23:59:00Z", "validBefore": "2000-01-01T01:00:00Z", "usesLeft": 3.0, "job": 4242.0,
		"criticalOptions": map[string]any{"source-address": "192.0.2.0/24"},
		"extensions":      map[string]any{"permit-pty": "", "permit-user-rc": ""},
	} {
		if fmt.Sprint(got[name]) != fmt.Sprint(want) {
			t.Errorf("%s: got %v, want %v", name, got[name], want)
		}
	}
	if want := map[string]any{"uses": 3.0, "noForwarding": true, "hosts": got["scope"].(map[string]any)["hosts"]}; !maps.EqualFunc(want, got["scope"].(map[string]any), func(a, b any) bool { return fmt.Sprint(a) == fmt.Sprint(b) }) {
		t.Errorf("scope: %v", got["scope"])
	}
	if all := r.List(); len(all) != 1 || all[0].Serial != 1001 {
		t.Errorf("list: %+v", all)
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	s := Scope{Hosts: []Host{{"a", []string{"SHA256:x", "SHA256:y"}}, {"b", []string{"SHA256:z"}}}, Uses: 10, NoForwarding: true, Root: job}
	want := []string{"host a SHA256:x SHA256:y", "host b SHA256:z", "10 signatures", "job: make (process 4242)", "not forwarded"}
	if got := s.Limits(); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if got := (Scope{Uses: 1}).Limits(); !slices.Equal(got, []string{"1 signature"}) {
		t.Errorf("got %q", got)
	}
	if got := (Scope{}).Limits(); got != nil {
		t.Errorf("got %q", got)
	}
}
