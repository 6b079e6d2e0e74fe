// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	xagent "golang.org/x/crypto/ssh/agent"

	"vmux.app/toolkit/internal/policy"
	"vmux.app/toolkit/internal/signed"
)

// patience is how long a test waits for what has to come; it is no measure of speed.
const patience = 20 * time.Second

// memory is a Signer that has its keys itself.
type memory struct {
	mu      sync.Mutex
	keys    []Key
	private []ssh.Signer
	asked   []Request
	before  func(ctx context.Context, r Request) error // what the owner does
	change  func(sig *ssh.Signature) *ssh.Signature    // what a bad signer does
}

func (m *memory) add(s ssh.Signer, comment string) Key {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := Key{Public: s.PublicKey(), Comment: comment}
	m.keys = append(m.keys[:len(m.keys):len(m.keys)], k)
	m.private = append(m.private, s)
	return k
}

func (m *memory) Keys(*Lister) []Key {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.keys
}

func (m *memory) Sign(ctx context.Context, r Request) (*ssh.Signature, error) {
	m.mu.Lock()
	m.asked = append(m.asked, r)
	before, change, private := m.before, m.change, m.private
	m.mu.Unlock()
	if before != nil {
		if err := before(ctx, r); err != nil {
			return nil, err
		}
	}
	for _, s := range private {
		if !bytes.Equal(s.PublicKey().Marshal(), r.Key.Public.Marshal()) {
			continue
		}
		format, err := signed.SignatureAlgorithm(r.Key.Public, r.Flags)
		if err != nil {
			return nil, err
		}
		sig, err := s.(ssh.AlgorithmSigner).SignWithAlgorithm(rand.Reader, r.Data, format)
		if err == nil && change != nil {
			sig = change(sig)
		}
		return sig, err
	}
	return nil, errors.New("unknown key")
}

// owner sets what the owner does with the next requests.
func (m *memory) owner(f func(ctx context.Context, r Request) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.before = f
}

func (m *memory) requests() []Request {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.asked)
}

// logText is a log that tests read.
type logText struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// lines gives the lines that contain all of the words.
func (l *logText) lines(words ...string) []string {
	var found []string
next:
	for line := range strings.Lines(l.String()) {
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue next
			}
		}
		found = append(found, line)
	}
	return found
}

type rig struct {
	t      testing.TB
	server *Server
	signer *memory
	socket string
	policy atomic.Pointer[policy.Policy]
	log    *logText
	stop   func()
}

// newRig serves an agent with an ed25519 and a P-256 key on a socket. Its clients are taken for ssh unless setup says
// otherwise.
func newRig(t testing.TB, setup ...func(*Server)) *rig {
	t.Helper()
	r := &rig{t: t, signer: &memory{}, log: &logText{}}
	r.signer.add(newEd25519(t), "ed@phone")
	r.signer.add(newP256(t), "p256@phone")
	r.server = New(Options{
		Signer: r.signer,
		Policy: r.policy.Load,
		Log:    slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	r.server.proc.executable = func(int) (string, error) { return "/usr/bin/ssh", nil }
	for _, f := range setup {
		f(r.server)
	}
	r.serve()
	return r
}

func (r *rig) serve() {
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { os.RemoveAll(dir) })
	r.socket = filepath.Join(dir, "s")
	l, err := net.Listen("unix", r.socket)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.server.Serve(ctx, l) }()
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					r.t.Errorf("Serve: %v", err)
				}
			case <-time.After(patience):
				r.t.Error("Serve did not end")
			}
			if n := r.server.Connections(); n != 0 {
				r.t.Errorf("%d connections left", n)
			}
		})
	}
	r.t.Cleanup(r.stop)
}

// raw is a client that sends what it likes.
type raw struct {
	t testing.TB
	*net.UnixConn
}

func (r *rig) dial() raw {
	r.t.Helper()
	c, err := net.Dial("unix", r.socket)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return raw{r.t, c.(*net.UnixConn)}
}

func (r *rig) client() xagent.ExtendedAgent { return xagent.NewClient(r.dial()) }

func frame(msg ...byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(msg))), msg...)
}

func (c raw) send(b []byte) {
	c.t.Helper()
	if _, err := c.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

func (c raw) recv() []byte {
	c.t.Helper()
	msg, err := readFrame(c)
	if err != nil {
		c.t.Fatalf("no answer: %v", err)
	}
	return msg
}

func readFrame(r io.Reader) ([]byte, error) {
	var n [4]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint32(n[:]))
	_, err := io.ReadFull(r, msg)
	return msg, err
}

// call sends one message and gives the answer.
func (c raw) call(msg ...byte) []byte {
	c.t.Helper()
	c.send(frame(msg...))
	return c.recv()
}

func (c raw) bind(b signed.Bind) byte {
	c.t.Helper()
	return c.call(bindMessage(b)...)[0]
}

func bindMessage(b signed.Bind) []byte {
	return append(appendString([]byte{msgExtension}, extSessionBind), b.Marshal()...)
}

func signMessage(key ssh.PublicKey, data []byte, flags uint32) []byte {
	msg := appendString([]byte{msgSignRequest}, key.Marshal())
	msg = appendString(msg, data)
	return binary.BigEndian.AppendUint32(msg, flags)
}

// mustClose reads until the agent closes the connection.
func (c raw) mustClose() {
	c.t.Helper()
	if b, err := io.ReadAll(c); err != nil && !strings.Contains(err.Error(), "reset") {
		c.t.Fatalf("connection was not closed: %v", err)
	} else if len(b) > 0 {
		c.t.Fatalf("got % x, want the connection closed", b)
	}
}

func newEd25519(t testing.TB) ssh.Signer {
	t.Helper()
	return newSigner(t, newEd25519Key(t))
}

func newEd25519Key(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newP256(t testing.TB) ssh.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return newSigner(t, key)
}

func newSigner(t testing.TB, key any) ssh.Signer {
	t.Helper()
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// bindOf makes the bind of a host that signs the session id.
func bindOf(t testing.TB, host ssh.Signer, sid string, forwarding bool) signed.Bind {
	t.Helper()
	sig, err := host.Sign(rand.Reader, []byte(sid))
	if err != nil {
		t.Fatal(err)
	}
	return signed.Bind{HostKey: host.PublicKey().Marshal(), SessionID: []byte(sid), Signature: ssh.Marshal(sig), Forwarding: forwarding}
}

// loginData is what a login signs; with a host key it is a hostbound one.
func loginData(key ssh.PublicKey, sid string, host ssh.PublicKey) []byte {
	m := signed.Meaning{Kind: signed.Login, SessionID: []byte(sid), User: "u", Service: "ssh-connection",
		Method: "publickey", Algorithm: key.Type(), Key: key.Marshal()}
	if host != nil {
		m.Method = "publickey-hostbound-v00@openssh.com"
		m.HostKey = host.Marshal()
	}
	return m.Marshal()
}

func sshsigData(namespace string) []byte {
	m := signed.Meaning{Kind: signed.SSHSIG, Namespace: namespace, HashAlgorithm: "sha512", Hash: make([]byte, 64)}
	return m.Marshal()
}
