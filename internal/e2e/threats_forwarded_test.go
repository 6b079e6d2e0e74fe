// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"strings"
	"testing"
)

// N03: where the configuration says so, nothing is signed for the far side: not
// for its ssh, nor for a client that does not say that it is there.
func TestThreat_N03_RefusedByPolicy(t *testing.T) {
	t.Parallel()
	d, p, owner, s := travels(t, 2)
	hop, far := s[0], s[1]
	d.configure("[policy]\ndefault = \"ask\"\n\n[[policy.rule]]\naction = \"refuse\"\nforwarded = \"yes\"\n")
	d.serving.again(`msg="configuration read again" rules=1 default=ask`)

	login := d.spawn("ssh", hop.from([]string{"-A"}, quoted(far.from(nil, "echo far")))[1:]...)
	owner.next().approve()
	if exit := login.ended(); exit == 0 || strings.Contains(far.log(), "Accepted publickey") {
		t.Errorf("logged in through the hop: exit %d\n%s", exit, login.output())
	}
	d.serving.wait(`level=WARN msg="sign request" outcome=refused reason="policy: rule 1 \(line 4\)" kind=login .*forwarded=true`)
	p.asked("signed")

	socket := d.stay(hop, func() { owner.next().approve() })
	key := parse(t, strings.SplitAfter(d.ok("ssh-add", "-L"), "\n")[0])
	for name, data := range map[string][]byte{
		"login": loginData(session("far side", 1), key, nil),
		"file":  fileData("file", 1),
	} {
		if _, err := rawAgent(t, socket).Sign(key, data); err == nil {
			t.Errorf("%s: signed for the far side", name)
		}
	}
	p.asked("signed", "signed") // the logins at the hop
	login = d.spawn("ssh", far.from(nil, "true")[1:]...)
	owner.next().approve() // what comes from here is asked as ever
	login.succeeds()
}

// N03: root on a hop has the agent's far end and the hop's host key. With a
// certificate for the hop it gets nowhere else.
func TestThreat_N03_FarSideRoot(t *testing.T) {
	t.Parallel()
	d, _ := certifying(t)
	ca := d.ok("vmux-cert", "ca")
	hop, far := trusting(t, ca), trusting(t, ca)
	d.certify("--key-id", "hop-only", "--host", hop.fingerprint())
	hop.accepts(d, nil, "true")

	if r := hop.loginWith(d, []string{"-A"}, quoted(far.from(nil, "echo far"))); r.exit == 0 || r.stdout != "" {
		t.Errorf("ssh at the hop: %v", r)
	}
	socket := d.stay(hop, func() {})
	certificate, farKey, hopKey := parse(t, d.offered()[0]), parse(t, far.key).Marshal(), parse(t, hop.key).Marshal()
	for i, c := range []struct {
		name    string
		vouch   *server // says that it has the session
		hostKey []byte  // that the login names
		signed  bool
	}{
		{"no statement", nil, nil, false},
		{"the truth", far, farKey, false},
		{"a server that takes logins that name no host", far, nil, false},
		{"the hop vouches for the session with the server", hop, nil, false},
		{"the hop vouches, the login names the server", hop, farKey, false},
		{"no statement, the login names the hop", nil, hopKey, false},
		// No other server takes this one.
		{"the hop vouches, the login names the hop", hop, hopKey, true},
	} {
		a, session := rawAgent(t, socket), session("far side", i)
		if c.vouch != nil {
			c.vouch.bind(a, session, false)
		}
		if _, err := a.Sign(certificate, loginData(session, certificate, c.hostKey)); (err == nil) != c.signed {
			t.Errorf("%s: %v\n%s", c.name, err, d.serving.output())
		}
	}
	if strings.Contains(far.log(), "hop-only") {
		t.Errorf("the certificate was shown to the server:\n%s", far.log())
	}
}
