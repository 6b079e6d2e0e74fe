// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/sys/unix"
)

// messages is a connection to an agent on which the test says every message.
type messages struct {
	agent.ExtendedAgent // none
	*net.UnixConn
	t testing.TB
}

func (h *host) messages() messages {
	h.t.Helper()
	c, err := net.Dial("unix", h.socket())
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	return messages{nil, c.(*net.UnixConn), h.t}
}

// send writes a message and waits until the agent has taken it.
func (m messages) send(message []byte) {
	m.t.Helper()
	if _, err := m.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(message))), message...)); err != nil {
		m.t.Fatal(err)
	}
	raw, err := m.SyscallConn()
	if err != nil {
		m.t.Fatal(err)
	}
	eventually(m.t, "the agent to take a message", func() bool {
		var left int
		var failed error
		if err := raw.Control(func(fd uintptr) { left, failed = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); err != nil || failed != nil {
			m.t.Fatal(err, failed)
		}
		return left == 0
	})
}

// receive reads a message.
func (m messages) receive() []byte {
	m.t.Helper()
	m.SetReadDeadline(time.Now().Add(patience))
	length := make([]byte, 4)
	if _, err := io.ReadFull(m, length); err != nil {
		m.t.Fatal(err)
	}
	message := make([]byte, binary.BigEndian.Uint32(length))
	if _, err := io.ReadFull(m, message); err != nil || len(message) == 0 {
		m.t.Fatalf("message %x: %v", message, err)
	}
	return message
}

// Extension is for server.bind.
func (m messages) Extension(name string, contents []byte) ([]byte, error) {
	m.send(append(ssh.Marshal(struct {
		Type byte
		Name string
	}{27, name}), contents...)) // SSH_AGENTC_EXTENSION
	if answer := m.receive(); answer[0] != 6 { // SSH_AGENT_SUCCESS
		m.t.Errorf("%s: answer %d", name, answer[0])
	}
	return nil, nil
}

// Many connections with one question: one prompt, and its answer is everybody's.
func TestThreat_N02_OneSessionOnePrompt(t *testing.T) {
	t.Parallel()
	d, p, owner, link := relayed(t)
	s := newServer(t, d.ok("ssh-add", "-L"))
	key := parse(t, d.ok("ssh-add", "-L"))
	for i, yes := range []bool{true, false} {
		session := session("burst", i)
		data := loginData(session, key, parse(t, s.key).Marshal())
		var all []messages
		for range 20 {
			m := d.messages()
			s.bind(m, session, false)
			m.send(ssh.Marshal(struct {
				Type      byte
				Key, Data []byte
				Flags     uint32
			}{13, key.Marshal(), data, 0})) // SSH_AGENTC_SIGN_REQUEST
			// It reads on while it waits for the owner, so now it waits.
			m.send([]byte{11}) // SSH_AGENTC_REQUEST_IDENTITIES
			all = append(all, m)
		}
		want := byte(14) // SSH_AGENT_SIGN_RESPONSE
		if prompt := owner.next(); yes {
			prompt.approve()
		} else {
			want = 5 // SSH_AGENT_FAILURE
			prompt.deny()
		}
		for n, m := range all {
			if got := m.receive(); got[0] != want {
				t.Errorf("client %d has answer %d, not %d", n, got[0], want)
			}
		}
	}
	p.asked("signed", "denied")
	if n := len(link.requests()); n != 2 {
		t.Errorf("the phone was asked %d times, not twice", n)
	}
}
