// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"reflect"
	"strings"
	"testing"
)

// What ssh -v says, by OpenSSH 9.2 and 10.x, cut to what matters.
func TestParseLogin(t *testing.T) {
	t.Parallel()
	cert := offer{"vmux:me@laptop:42", "ECDSA-CERT", "SHA256:90RP", true}
	key := offer{"my key", "ECDSA", "SHA256:ii7A", true}
	file := offer{"/home/me/.ssh/id_ed25519", "ED25519", "SHA256:Zzzz", false}
	for _, tt := range []struct {
		name string
		text string
		want login
	}{
		{"nothing", "", login{}},
		{"taken", `OpenSSH_9.2p1 Debian-2+deb12u10, OpenSSL 3.0.19 27 Jan 2026
debug1: Reading configuration data /etc/ssh/ssh_config
debug1: Will attempt key: vmux:me@laptop:42 ECDSA-CERT SHA256:90RP agent
debug1: Offering public key: vmux:me@laptop:42 ECDSA-CERT SHA256:90RP agent
debug1: Authentications that can continue: publickey
debug1: Offering public key: my key ECDSA SHA256:ii7A agent
debug1: Server accepts key: my key ECDSA SHA256:ii7A agent
Authenticated to example.org ([192.0.2.1]:22) using "publickey".
debug1: Exit status 0
`, login{offered: []offer{cert, key}, accepted: key, authenticated: true}},
		{"refused", "debug1: Offering public key: my key ECDSA SHA256:ii7A explicit agent\r\nWelcome\r\nme@example.org: Permission denied (publickey).\r\n",
			login{offered: []offer{key}, said: []string{"Welcome", "me@example.org: Permission denied (publickey)."}}},
		{"a file's", "debug1: Offering public key: /home/me/.ssh/id_ed25519 ED25519 SHA256:Zzzz explicit\ndebug1: Server accepts key: /home/me/.ssh/id_ed25519 ED25519 SHA256:Zzzz explicit\ndebug1: Authentication succeeded (publickey).\n",
			login{offered: []offer{file}, accepted: file, authenticated: true}},
		{"not signed", "debug1: Server accepts key: my key ECDSA SHA256:ii7A agent\nsign_and_send_pubkey: signing failed for ECDSA \"my key\" from agent: agent refused operation\nme@h: Permission denied (publickey).\n",
			login{accepted: key, refused: "agent refused operation", said: []string{"sign_and_send_pubkey: signing failed for ECDSA \"my key\" from agent: agent refused operation", "me@h: Permission denied (publickey)."}}},
		{"no comment", "debug1: Offering public key: ECDSA SHA256:ii7A agent\n", login{offered: []offer{{"", "ECDSA", "SHA256:ii7A", true}}}},
	} {
		if got := parseLogin(tt.text); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s:\n%+v\nwant\n%+v", tt.name, got, tt.want)
		}
	}
	if got := offers(agents([]offer{cert, file, key})); got != "session certificate SHA256:90RP, key my key (SHA256:ii7A)" {
		t.Error(got)
	}
	if got := offers(nil); got != "nothing" {
		t.Error(got)
	}
}

// Whatever ssh, or a server through it, says: nothing breaks, and no login is made up from less than a whole line.
func FuzzParseLogin(f *testing.F) {
	f.Add("debug1: Offering public key: my key ECDSA SHA256:ii7A agent\ndebug1: Server accepts key: x ED25519-CERT SHA256:a agent\nAuthenticated to h\n")
	f.Add("sign_and_send_pubkey: signing failed for x: y\n\r\n: \n")
	f.Fuzz(func(t *testing.T, text string) {
		l := parseLogin(text)
		if l.authenticated && !strings.Contains(text, "Authenticat") {
			t.Errorf("authenticated by %q", text)
		}
		if l.accepted.fingerprint != "" && !strings.HasPrefix(l.accepted.fingerprint, "SHA256:") || len(l.offered)+len(l.said) > strings.Count(text, "\n")+1 {
			t.Errorf("%+v from %q", l, text)
		}
		offers(l.offered)
	})
}
