// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// newKey gives the server another host key, as one that was set up anew has, or
// another computer that answers in its place. known_hosts of the client follows.
func (s *server) newKey() {
	s.t.Helper()
	for _, name := range []string{"host", "host.pub"} {
		if err := os.Remove(s.file(name)); err != nil { // ssh-keygen would ask
			s.t.Fatal(err)
		}
	}
	if out, err := exec.Command(need(s.t, "ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", s.file("host")).CombinedOutput(); err != nil {
		s.t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	pub, err := os.ReadFile(s.file("host.pub"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.key = strings.TrimSpace(string(pub))
	s.called(s.alias)
}

// T11: a computer that logs in somewhere else than it says shows another host
// key than the owner has approved under that name, and the prompt says so first.
func TestThreat_T11_AnotherHostKeyIsSaid(t *testing.T) {
	t.Parallel()
	d, p, s, owner := asking(t)
	const nothing = "  known: no, this host key was not approved before\n"
	// login asks for a login under the names that known_hosts has.
	login := func(names string, approve bool) (heading, verified string) {
		t.Helper()
		s.called(names)
		login := d.spawn("ssh", s.args("echo", "in")...)
		prompt := owner.next()
		heading, _, _ = strings.Cut(prompt.prompt, "\nVERIFIED\n")
		verified, claimed := prompt.halves()
		verified += "\n"
		if !strings.Contains(verified, "  host key: "+s.fingerprint()) || !strings.Contains(claimed, "  host: "+strings.ToLower(strings.ReplaceAll(names, ",", ", "))+"\n") {
			t.Errorf("not the prompt that was expected:\n%s", prompt.prompt)
		}
		if approve {
			prompt.approve()
		} else {
			prompt.deny()
		}
		if exit := login.ended(); exit == 0 != approve {
			t.Errorf("approved: %v, exit %d\n%s", approve, exit, login.output())
		}
		return heading, verified
	}
	hosts := func() string { return p.ok("vmux-signer", "hosts") }

	// Denied, then approved for the first time.
	if _, verified := login("prod,prod.example.org", false); !strings.Contains(verified, nothing) || strings.Contains(verified, "WARNING") {
		t.Errorf("at first:\n%s", verified)
	}
	if got := hosts(); got != "" {
		t.Errorf("after a denial:\n%s", got)
	}
	if _, verified := login("prod,prod.example.org", true); !strings.Contains(verified, nothing) {
		t.Errorf("at first:\n%s", verified)
	}
	honest := s.fingerprint()
	before := hosts()
	if m := regexp.MustCompile(`^prod +(\S+)  first (\S+)  last \S+\nprod\.example\.org  (\S+)  .*\n$`).FindStringSubmatch(before); m == nil || m[1] != honest || m[3] != honest {
		t.Errorf("after the first login:\n%s", before)
	}
	known := regexp.MustCompile(`(?m)^  known: as prod since 20\d\d-\d\d-\d\d$`)
	if heading, verified := login("prod", true); !known.MatchString(verified) || strings.Contains(verified, "WARNING") || strings.Contains(heading, "OTHER") {
		t.Errorf("at the second:\n%s\n%s", heading, verified)
	}

	// Whoever has the device has it log in elsewhere, and calls that prod.
	s.newKey()
	warned := func(when, heading, verified string) {
		t.Helper()
		if !strings.HasPrefix(verified, "  WARNING: prod has another host key than the one approved before:\n  WARNING: "+honest+" on 20") ||
			!strings.Contains(verified, nothing) || !strings.Contains(heading, "→ prod (claimed, OTHER KEY)") {
			t.Errorf("%s:\n%s\n%s", when, heading, verified)
		}
	}
	heading, verified := login("prod", false)
	warned("another key", heading, verified)
	if got := hosts(); got != before {
		t.Errorf("after a denial:\n%s\nbefore:\n%s", got, before)
	}
	p.serving.wait(`warning="another host key than the one approved before"`)
	heading, verified = login("PROD", false)
	warned("in another case", heading, verified)
	// Without the name nothing is warned of, but the key is not a known one.
	if heading, verified := login("other", false); !strings.Contains(verified, nothing) || strings.Contains(heading+verified, "prod") {
		t.Errorf("under another name:\n%s\n%s", heading, verified)
	}

	// The phone remembers over a restart, and what the owner has approved is the
	// name's from then on.
	p.serving.stop(syscall.SIGTERM)
	p.serveOn(p.address, "--no-advertise", "--approve", "askpass")
	heading, verified = login("prod", true)
	warned("after a restart", heading, verified)
	if _, verified := login("prod", true); !strings.Contains(verified, "  known: as prod since ") || !strings.Contains(verified, "(one of 2 keys)") || strings.Contains(verified, "WARNING") {
		t.Errorf("once approved:\n%s", verified)
	}
	// Taken back, it warns again, at once.
	p.ok("vmux-signer", "hosts", "remove", s.fingerprint())
	heading, verified = login("prod", false)
	warned("taken back", heading, verified)
	if got := hosts(); got != before {
		t.Errorf("taken back:\n%s\nbefore:\n%s", got, before)
	}
}
