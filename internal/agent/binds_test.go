// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/signed"
)

// Names of the sessions in the tables below.
const (
	sidA = "session-a-0123456789012345678901"
	sidB = "session-b-0123456789012345678901"
)

func TestBindRules(t *testing.T) {
	t.Parallel()
	hostA, hostB := newEd25519(t), newP256(t)
	// In order of arrival: host, session and forwarding, and whether the agent takes it.
	type arrival struct {
		host    ssh.Signer
		sid     string
		forward bool
		spoil   func(*signed.Bind)
		refused bool
	}
	wrongSignature := func(b *signed.Bind) { b.Signature = bindOf(t, hostA, sidB, false).Signature }
	longSession := func(n int) func(b *signed.Bind) {
		return func(b *signed.Bind) { *b = bindOf(t, hostA, strings.Repeat("s", n), b.Forwarding) }
	}
	full := func(n int) []arrival {
		var all []arrival
		for i := range n {
			all = append(all, arrival{host: hostA, sid: fmt.Sprintf("session-%02d", i), forward: true})
		}
		return all
	}
	for _, tt := range []struct {
		name     string
		arrivals []arrival
		recorded int
	}{
		{"B1 good signature", []arrival{{host: hostA, sid: sidA}}, 1},
		{"B1 wrong signature", []arrival{{host: hostA, sid: sidA, spoil: wrongSignature, refused: true}}, 0},
		{"B1 session id of 128 bytes", []arrival{{host: hostA, spoil: longSession(128)}}, 1},
		{"B1 session id of 129 bytes", []arrival{{host: hostA, spoil: longSession(129), refused: true}}, 0},
		{"B1 empty session id", []arrival{{host: hostA, spoil: longSession(0), refused: true}}, 0},
		{"B2 after a forwarding one", []arrival{{host: hostA, sid: sidA, forward: true}, {host: hostB, sid: sidB}}, 2},
		{"B2 after one not forwarding", []arrival{{host: hostA, sid: sidA}, {host: hostB, sid: sidB, refused: true}}, 1},
		{"B2 the same again", []arrival{{host: hostA, sid: sidA}, {host: hostA, sid: sidA, refused: true}}, 1},
		{"B2 forwarding after one not forwarding", []arrival{{host: hostA, sid: sidA}, {host: hostB, sid: sidB, forward: true, refused: true}}, 1},
		{"B3 the same again", []arrival{{host: hostA, sid: sidA, forward: true}, {host: hostA, sid: sidA, forward: true}}, 1},
		{"B3 the same again, not forwarding", []arrival{{host: hostA, sid: sidA, forward: true}, {host: hostA, sid: sidA}}, 1},
		{"B4 same session, other host", []arrival{{host: hostA, sid: sidA, forward: true}, {host: hostB, sid: sidA, refused: true}}, 1},
		{"B4 other session, same host", []arrival{{host: hostA, sid: sidA, forward: true}, {host: hostA, sid: sidB}}, 2},
		{"B5 sixteen", full(16), 16},
		{"B5 seventeen", append(full(16), arrival{host: hostA, sid: sidA, refused: true}), 16},
		{"B5 sixteen, then one of them again", append(full(16), arrival{host: hostA, sid: "session-03", forward: true}), 16},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var b binds
			for i, a := range tt.arrivals {
				bind := bindOf(t, a.host, a.sid, a.forward)
				if a.spoil != nil {
					a.spoil(&bind)
				}
				_, err := b.add(bind.Marshal())
				if refused := err != nil; refused != a.refused {
					t.Fatalf("bind %d: error %v, want refused %v", i, err, a.refused)
				}
				if !a.refused && b.failed {
					t.Fatalf("bind %d was taken and counts as failed", i)
				}
			}
			if len(b.list) != tt.recorded {
				t.Errorf("%d recorded, want %d", len(b.list), tt.recorded)
			}
			last := tt.arrivals[len(tt.arrivals)-1]
			if b.failed != last.refused {
				t.Errorf("failed is %v, want %v", b.failed, last.refused)
			}
		})
	}
}

func TestBindIsRememberedBeforeItIsParsed(t *testing.T) {
	t.Parallel()
	for _, contents := range [][]byte{nil, {0}, []byte("\xff\xff\xff\xff"), append(bindOf(t, newEd25519(t), sidA, false).Marshal(), 0)} {
		var b binds
		if _, err := b.add(contents); !errors.Is(err, signed.ErrMalformed) {
			t.Errorf("%x: error %v, want ErrMalformed", contents, err)
		}
		if !b.failed || !b.bound() {
			t.Errorf("%x: not remembered", contents)
		}
	}
	// A later good one does not make up for it.
	var b binds
	_, _ = b.add(nil)
	if _, err := b.add(bindOf(t, newEd25519(t), sidA, false).Marshal()); err != nil {
		t.Fatal(err)
	}
	if !b.failed {
		t.Error("a good bind hides a failed one")
	}
}

// TestRequestRules takes each rule about requests from both its sides, over a socket.
func TestRequestRules(t *testing.T) {
	t.Parallel()
	hostA, hostB := newEd25519(t), newP256(t)
	toA, toB := bindOf(t, hostA, sidA, false), bindOf(t, hostB, sidB, false)
	viaA := bindOf(t, hostA, sidA, true)
	bad := bindOf(t, hostA, sidA, false)
	bad.Signature = toB.Signature

	const ssh, other = "/usr/bin/ssh", "/usr/bin/putty"
	type outcome struct {
		refused   string // part of the reason; "" when asked
		forwarded bool
		hostKey   []byte
	}
	for _, tt := range []struct {
		name    string
		program string
		binds   []signed.Bind
		data    func(k Key) []byte
		want    outcome
	}{
		{"B7 no bind", ssh, nil, plainLogin(sidA), outcome{}},
		{"B7 no bind, hostbound", ssh, nil, boundLogin(sidA, hostA), outcome{}},
		{"B19 no bind, other program", other, nil, plainLogin(sidA), outcome{}},
		{"B8 failed bind", ssh, []signed.Bind{bad}, plainLogin(sidA), outcome{refused: "session bind failed"}},
		{"B8 good bind, then a failed one", ssh, []signed.Bind{toA, bad}, boundLogin(sidA, hostA), outcome{refused: "session bind failed"}},
		{"B8 failed bind, then a good one", ssh, []signed.Bind{bad, toA}, boundLogin(sidA, hostA), outcome{refused: "session bind failed"}},
		{"B8 forwarding bind, then a failed one", ssh, []signed.Bind{viaA, bad}, plainLogin(sidB), outcome{refused: "session bind failed"}},
		{"B9 session of the forwarding", ssh, []signed.Bind{viaA}, boundLogin(sidA, hostA), outcome{refused: "bound for forwarding"}},
		{"B9 session of an earlier forwarding", ssh, []signed.Bind{viaA, bindOf(t, hostB, sidB, true)}, plainLogin(sidA), outcome{refused: "bound for forwarding"}},
		{"B9 session of the forwarding, after a login bind", ssh, []signed.Bind{viaA, toB}, plainLogin(sidA), outcome{refused: "bound for forwarding"}},
		{"B10 far side does not bind", ssh, []signed.Bind{viaA}, plainLogin(sidB), outcome{forwarded: true}},
		{"B10 far side does not bind, hostbound", ssh, []signed.Bind{viaA}, boundLogin(sidB, hostB), outcome{forwarded: true}},
		{"B11 another session", ssh, []signed.Bind{toA}, plainLogin(sidB), outcome{refused: "another session"}},
		{"B11 another session, hostbound", ssh, []signed.Bind{toA}, boundLogin(sidB, hostA), outcome{refused: "another session"}},
		{"B11 another session behind a hop", ssh, []signed.Bind{viaA, toB}, plainLogin("session-c"), outcome{refused: "another session"}},
		{"B12 another host key", ssh, []signed.Bind{toA}, boundLogin(sidA, hostB), outcome{refused: "another host key"}},
		{"B12 another host key behind a hop", ssh, []signed.Bind{viaA, toB}, boundLogin(sidB, hostA), outcome{refused: "another host key"}},
		{"B13 this host key", ssh, []signed.Bind{toA}, boundLogin(sidA, hostA), outcome{hostKey: toA.HostKey}},
		{"B13 this host key behind a hop", ssh, []signed.Bind{viaA, toB}, boundLogin(sidB, hostB), outcome{forwarded: true, hostKey: toB.HostKey}},
		{"B13 this host key, other program", other, []signed.Bind{toA}, boundLogin(sidA, hostA), outcome{forwarded: true, hostKey: toA.HostKey}},
		{"B14 no host key in the data", ssh, []signed.Bind{toA}, plainLogin(sidA), outcome{hostKey: toA.HostKey}},
		{"B15 no host key in the data behind a hop", ssh, []signed.Bind{viaA, toB}, plainLogin(sidB), outcome{forwarded: true}},
		{"B15 no host key in the data, other program", other, []signed.Bind{toA}, plainLogin(sidA), outcome{forwarded: true}},
		{"B16 file, forwarding", ssh, []signed.Bind{viaA}, file, outcome{forwarded: true}},
		{"B17 file, not forwarding", ssh, []signed.Bind{toA}, file, outcome{}},
		{"B17 file, other program", other, []signed.Bind{toA}, file, outcome{forwarded: true}},
		{"B17 file, unknown program", "", []signed.Bind{toA}, file, outcome{forwarded: true}},
		{"B18 file, failed bind", ssh, []signed.Bind{bad}, file, outcome{forwarded: true}},
		{"B19 file, no bind", other, nil, file, outcome{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, func(s *Server) {
				s.proc.executable = func(int) (string, error) {
					if tt.program == "" {
						return "", errors.New("hidden")
					}
					return tt.program, nil
				}
			})
			key := r.signer.Keys(nil)[0]
			c := r.dial()
			for _, b := range tt.binds {
				c.bind(b)
			}
			answer := c.call(signMessage(key.Public, tt.data(key), 0)...)
			asked := r.signer.requests()
			if tt.want.refused != "" {
				if answer[0] != msgFailure || len(asked) != 0 {
					t.Fatalf("answer %d, asked %d times, want it refused", answer[0], len(asked))
				}
				if len(r.log.lines("outcome=refused", tt.want.refused)) != 1 {
					t.Errorf("log does not say %q once:\n%s", tt.want.refused, r.log)
				}
				return
			}
			if answer[0] != msgSignResponse || len(asked) != 1 {
				t.Fatalf("answer %d, asked %d times, want it signed:\n%s", answer[0], len(asked), r.log)
			}
			got := asked[0]
			if got.Forwarded != tt.want.forwarded {
				t.Errorf("forwarded is %v", got.Forwarded)
			}
			if !bytes.Equal(got.HostKey, tt.want.hostKey) {
				t.Errorf("host key is %x, want %x", got.HostKey, tt.want.hostKey)
			}
		})
	}
}

func plainLogin(sid string) func(Key) []byte {
	return func(k Key) []byte { return loginData(k.Public, sid, nil) }
}

func boundLogin(sid string, host ssh.Signer) func(Key) []byte {
	return func(k Key) []byte { return loginData(k.Public, sid, host.PublicKey()) }
}

func file(Key) []byte { return sshsigData("file") }

// TestBindAnswers: a bind is answered while the agent is locked, and a refused one leaves the connection open.
func TestBindAnswers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if err := r.client().Lock([]byte("secret")); err != nil {
		t.Fatal(err)
	}
	c, host := r.dial(), newEd25519(t)
	if got := c.bind(bindOf(t, host, sidA, true)); got != msgSuccess {
		t.Errorf("bind while locked: %d", got)
	}
	if got := c.call(append(appendString([]byte{msgExtension}, extSessionBind), 1, 2, 3)...)[0]; got != msgExtensionFailure {
		t.Errorf("malformed bind: %d, want %d", got, msgExtensionFailure)
	}
	if got := c.call(msgRequestIdentities)[0]; got != msgIdentitiesAnswer {
		t.Errorf("list after a malformed bind: %d", got)
	}
	if got := len(r.log.lines("session-bind@openssh.com", "malformed")); got != 1 {
		t.Errorf("%d log lines about it, want 1", got)
	}
}
