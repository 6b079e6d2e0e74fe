// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/netnstest"
	"vmux.app/toolkit/internal/pairing"
	"vmux.app/toolkit/internal/transport"
)

const rogues = 30

// rogueAddr is the address of one rogue. They are the far computer's by a route
// and on no interface of it, so that the real phone does not advertise them.
func rogueAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 86, 0, byte(128 + i)}) }

// gang is many rogue phones: they advertise the real one's name, each from its
// own address, and write down what they get to know.
type gang struct {
	t        testing.TB
	running  sync.WaitGroup
	port     [rogues]uint16
	identity tls.Certificate

	mu           sync.Mutex
	closers      []io.Closer
	closed       bool
	dialled      [rogues]bool
	heard        [rogues][]byte // what came in clear
	certificates int            // that devices showed
	inside       []byte         // what came encrypted to us
}

// newGang starts the rogues; their advertisements answer for instance.
func newGang(t testing.TB, n *netnstest.Net, instance string) *gang {
	t.Helper()
	if err := n.B.IP("route", "add", "local", "10.86.0.128/25", "dev", "lo"); err != nil {
		t.Fatal(err)
	}
	g := &gang{t: t}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	g.identity = selfSigned(t, key)
	t.Cleanup(g.end)
	for i := range rogues {
		if i%3 == 0 { // refuses: nobody listens on the discard port
			g.port[i] = 9
			continue
		}
		var l net.Listener
		if err := n.B.Do(func() (err error) {
			l, err = net.Listen("tcp", netip.AddrPortFrom(rogueAddr(i), 0).String())
			return err
		}); err != nil {
			t.Fatal(err)
		}
		g.keep(l)
		g.port[i] = l.Addr().(*net.TCPAddr).AddrPort().Port()
		g.running.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				if g.keep(c) {
					g.running.Go(func() { g.meet(i, c) })
				}
			}
		})
	}
	g.advertise(n, instance)
	return g
}

// keep closes c at the end, or at once when that is over.
func (g *gang) keep(c io.Closer) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		c.Close()
		return false
	}
	g.closers = append(g.closers, c)
	return true
}

func (g *gang) end() {
	g.mu.Lock()
	g.closed = true
	for _, c := range g.closers {
		c.Close()
	}
	g.mu.Unlock()
	g.running.Wait()
}

// meet is a rogue with a caller: a tarpit, or a phone with a key of its own.
func (g *gang) meet(i int, raw net.Conn) {
	defer raw.Close()
	g.mu.Lock()
	g.dialled[i] = true
	g.mu.Unlock()
	tapped := &listening{Conn: raw, heard: func(b []byte) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.heard[i] = append(g.heard[i], b...)
	}}
	if i%3 == 1 {
		io.Copy(io.Discard, tapped) // ends when the caller gives up
		return
	}
	c := tls.Server(tapped, &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{g.identity}, NextProtos: []string{transport.ProtoLink, transport.ProtoPair},
		ClientAuth: tls.RequireAnyClientCert,
		VerifyPeerCertificate: func([][]byte, [][]*x509.Certificate) error {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.certificates++
			return nil
		},
	})
	if c.Handshake() != nil {
		return
	}
	// A device that has come so far is greeted, and would say something now.
	if b, err := envelope.Encode(envelope.Envelope{Payload: &envelope.Hello{Name: "Pocket", Software: "rogue", Capabilities: []string{}, Clock: envelope.At(time.Now())}}); err == nil {
		envelope.WriteFrame(c, b)
	}
	b, _ := io.ReadAll(c)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside = append(g.inside, b...)
}

// listening is a connection of which each byte that arrives is noted.
type listening struct {
	net.Conn
	heard func([]byte)
}

func (l *listening) Read(b []byte) (int, error) {
	n, err := l.Conn.Read(b)
	l.heard(b[:n])
	return n, err
}

// advertise answers every question at once, to the asker and to all, in the
// name of each rogue and from its address.
func (g *gang) advertise(n *netnstest.Net, instance string) {
	g.t.Helper()
	var p *ipv4.PacketConn
	var index int
	err := n.B.Do(func() error {
		ifi, err := net.InterfaceByName(n.B.Interface)
		if err != nil {
			return err
		}
		index = ifi.Index
		shared := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
			if e := c.Control(func(fd uintptr) {
				err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
			}); e != nil {
				return e
			}
			return err
		}}
		u, err := shared.ListenPacket(context.Background(), "udp4", fmt.Sprintf("224.0.0.251:%d", mdnsPort))
		if err != nil {
			return err
		}
		g.keep(u)
		p = ipv4.NewPacketConn(u)
		return errors.Join(p.JoinGroup(ifi, &net.UDPAddr{IP: net.IPv4(224, 0, 0, 251)}), p.SetMulticastTTL(255), p.SetTTL(255))
	})
	if err != nil {
		g.t.Fatalf("rogue advertisements: %v", err)
	}
	g.running.Go(func() {
		for b := make([]byte, 9000); ; {
			size, _, from, err := p.ReadFrom(b)
			if err != nil {
				return
			}
			var q dnsmessage.Message
			if q.Unpack(b[:size]) != nil || q.Response || len(q.Questions) == 0 {
				continue
			}
			for i := range rogues {
				for _, to := range []*net.UDPAddr{from.(*net.UDPAddr), {IP: net.IPv4(224, 0, 0, 251), Port: mdnsPort}} {
					direct := to.Port != mdnsPort
					m, err := g.claim(i, instance, q, direct)
					if err != nil {
						g.t.Error(err)
						return
					}
					p.WriteTo(m, &ipv4.ControlMessage{Src: rogueAddr(i).AsSlice(), IfIndex: index}, to)
				}
			}
		}
	})
}

// claim is one rogue's advertisement.
func (g *gang) claim(i int, instance string, q dnsmessage.Message, direct bool) ([]byte, error) {
	m := dnsmessage.Message{Header: dnsmessage.Header{Response: true, Authoritative: true}}
	if direct {
		m.ID, m.Questions = q.ID, q.Questions
	}
	service := dnsmessage.MustNewName("_vmuxsigner._tcp.local.")
	name, err := dnsmessage.NewName(instance + "._vmuxsigner._tcp.local.")
	if err != nil {
		return nil, err
	}
	rogue := dnsmessage.MustNewName(fmt.Sprintf("vmux-%016x.local.", i))
	header := func(n dnsmessage.Name) dnsmessage.ResourceHeader {
		return dnsmessage.ResourceHeader{Name: n, Class: dnsmessage.ClassINET, TTL: 120}
	}
	m.Answers = []dnsmessage.Resource{{Header: header(service), Body: &dnsmessage.PTRResource{PTR: name}}}
	m.Additionals = []dnsmessage.Resource{
		{Header: header(name), Body: &dnsmessage.SRVResource{Port: g.port[i], Target: rogue}},
		{Header: header(name), Body: &dnsmessage.TXTResource{TXT: []string{"v=1"}}},
		{Header: header(rogue), Body: &dnsmessage.AResource{A: rogueAddr(i).As4()}},
	}
	return m.Pack()
}

// met says how many tarpits and how many wrong phones have been dialled.
func (g *gang) met() (tarpits, wrong int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, d := range g.dialled {
		switch {
		case d && i%3 == 1:
			tarpits++
		case d:
			wrong++
		}
	}
	return tarpits, wrong
}

// check fails when a rogue has learnt anything.
func (g *gang) check() {
	g.t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.certificates != 0 {
		g.t.Errorf("rogues were shown %d certificates", g.certificates)
	}
	if len(g.inside) != 0 {
		g.t.Errorf("rogues were told %q", g.inside)
	}
	for i, b := range g.heard {
		if i%3 != 1 {
			continue
		}
		// A tarpit has ClientHellos and nothing else.
		for len(b) > 0 {
			r, rest, err := nextRecord(b)
			if err != nil || r.kind != recordHandshake || len(r.body) == 0 || r.body[0] != clientHello {
				g.t.Errorf("tarpit %d has heard more than ClientHellos: %v %x", i, err, b)
				break
			}
			b = rest
		}
	}
}

func selfSigned(t testing.TB, key crypto.Signer) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// Thirty rogues with the phone's own name, each with an address of its own and
// faster than the phone: some refuse, some let the device hang, some are TLS
// servers with another key. They learn nothing, and the phone is found.
func TestThreat_T08_SpoofedPhones(t *testing.T) {
	t.Parallel()
	wire(t, func(t *testing.T, n *netnstest.Net) {
		p := farPhone(t, n, "Pocket")
		p.serveOn(":0", "--approve", "always")
		d := newHost(t)
		pairBy(t, d, p)
		agent := d.agent()
		s := newServer(t, d.ok("ssh-add", "-L"))
		g := newGang(t, n, claimOn(t, p.port()).Instance)

		// Without the phone: the rogues have the device to themselves.
		p.serving.stop(syscall.SIGTERM)
		start := time.Now()
		if r := s.login(d, "true"); r.exit == 0 {
			t.Error("logged in by a rogue")
		}
		if took := time.Since(start); took > 5*time.Second { // 3 s, and ssh's own time
			t.Errorf("the login failed after %v", took)
		}
		if tarpits, wrong := g.met(); tarpits <= rogues/6 || wrong <= rogues/6 {
			t.Errorf("only %d tarpits and %d wrong phones were tried:\n%s", tarpits, wrong, agent.output())
		}
		g.check()
		agent.wait(`phone not reached.*reason="the phone cannot be reached`)
		agent.stop(syscall.SIGTERM)

		// Beside the phone, which has another port now: 3 s is what a search takes
		// at most, so a login is proof enough.
		p.serveOn(":0", "--approve", "always")
		agent = d.agent()
		if r := s.login(d, "echo", "in"); r.exit != 0 || r.stdout != "in\n" {
			t.Fatalf("login beside the rogues: %v\n%s", r, agent.output())
		}
		found := agent.wait(fmt.Sprintf(`msg=connected .*:%d"? after=(\S+)`, p.port()))
		t.Logf("found among %d rogues after %s", rogues, found[1])
		g.end()
		g.check()
	})
}

// impostor is a phone that was paired and is not the one whose key it claims.
type impostor struct {
	t       testing.TB
	id      *transport.Identity
	address string
	key     envelope.PublicKey // the one it claims
	url     chan string        // what the owner gives it to pair with
	running sync.WaitGroup

	mu     sync.Mutex
	answer func(*envelope.SignRequest) ([]byte, error)
	asked  int
}

func newImpostor(t testing.TB, n *netnstest.Net, key envelope.PublicKey) *impostor {
	t.Helper()
	link, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	m := &impostor{t: t, key: key, url: make(chan string, 1)}
	if m.id, err = transport.NewIdentity(link); err != nil {
		t.Fatal(err)
	}
	var l net.Listener
	if err := n.B.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(n.B.IPv4, 0).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	m.address = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		l.Close()
		m.running.Wait()
	})
	m.running.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			m.running.Go(func() { m.serve(ctx, raw) })
		}
	})
	return m
}

func (m *impostor) serve(ctx context.Context, raw net.Conn) {
	c, err := transport.Server(ctx, raw, m.id, func(string, transport.Pin) error { return nil })
	if err != nil {
		return
	}
	defer c.Close()
	hello := envelope.Hello{Name: "Pocket too", Software: "impostor", Capabilities: []string{}, Clock: envelope.At(time.Now())}
	if c.Proto() == transport.ProtoPair {
		select {
		case text := <-m.url:
			u, err := pairing.ParseURL(text)
			if err == nil {
				_, err = pairing.Phone(ctx, c, m.id.Pin(), hello, pairing.PhoneOptions{Name: hello.Name, Secret: u.Secret[:], Expect: u.Pin,
					Store: func(pairing.Peer) error { return nil }})
			}
			if err != nil {
				m.t.Errorf("pairing: %v", err)
			}
		case <-ctx.Done():
		}
		return
	}
	transport.Serve(ctx, c, hello, func(_ context.Context, _ string, req envelope.Payload) (envelope.Payload, error) {
		switch q := req.(type) {
		case *envelope.KeyListRequest:
			return &envelope.KeyListResponse{Keys: []envelope.PublicKey{m.key}}, nil
		case *envelope.SignRequest:
			m.mu.Lock()
			m.asked++
			answer := m.answer
			m.mu.Unlock()
			s, err := answer(q)
			return &envelope.SignResponse{Signature: s}, err
		}
		return nil, errors.New("unexpected")
	}, nil)
}

// A phone that is paired, but answers for another phone's key: whatever it
// signs with, ssh is told of a refusal and gets no signature, and the agent's
// log says why. Without it the key's own phone logs in.
func TestThreat_T08_PairedButWrong(t *testing.T) {
	t.Parallel()
	wire(t, func(t *testing.T, n *netnstest.Net) {
		p := farPhone(t, n, "Pocket")
		p.serveOn(":0", "--approve", "always")
		line := strings.TrimSpace(p.ok("vmux-signer", "key", "add", "shared"))
		public, comment, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		m := newImpostor(t, n, envelope.PublicKey{Algorithm: public.Type(), PublicKeyBlob: public.Marshal(), Comment: comment,
			ProviderKind: envelope.Unknown, DisplayName: "shared"})

		d := newHost(t)
		pairing := d.spawn("vmux-pair", "--url", "--address", m.address)
		m.url <- pairing.wait(`^vmux-pair://\S+`)[0]
		if exit := pairing.ended(); exit != 0 {
			t.Fatalf("vmux-pair: exit %d\n%s", exit, pairing.output())
		}
		agent := d.agent()
		if out := d.ok("ssh-add", "-L"); strings.TrimSpace(out) != line {
			t.Fatalf("the impostor's keys: %s\nnot %s", out, line)
		}

		signer := func(key any) ssh.Signer {
			k, err := ssh.NewSignerFromKey(key)
			if err != nil {
				t.Fatal(err)
			}
			return k
		}
		own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(p.path(".local", "share", "vmux-signer", "keys", "shared"))
		if err != nil {
			t.Fatal(err)
		}
		stolen, err := ssh.ParseRawPrivateKey(content)
		if err != nil {
			t.Fatal(err)
		}
		sign := func(k ssh.Signer, data []byte) ([]byte, error) {
			sig, err := k.Sign(rand.Reader, data)
			if err != nil {
				return nil, err
			}
			return ssh.Marshal(sig), nil
		}
		for i, tt := range []struct {
			name   string
			answer func(*envelope.SignRequest) ([]byte, error)
			why    string
		}{
			{"by another key", func(q *envelope.SignRequest) ([]byte, error) { return sign(signer(own), q.Data) },
				`the signer's answer is not the signature that was asked for: it does not verify`},
			{"of something else", func(q *envelope.SignRequest) ([]byte, error) { return sign(signer(stolen), append(q.Data, 0)) },
				`the signer's answer is not the signature that was asked for: it does not verify`},
			{"and more", func(q *envelope.SignRequest) ([]byte, error) {
				s, err := sign(signer(stolen), q.Data)
				return append(s, 0), err
			}, `the phone's answer is no signature`},
			{"none", func(q *envelope.SignRequest) ([]byte, error) { return []byte("signature"), nil }, `the phone's answer is no signature`},
		} {
			m.mu.Lock()
			m.answer = tt.answer
			m.mu.Unlock()
			s := newServer(t, line+"\n")
			r := s.login(d, "true")
			if r.exit == 0 || !strings.Contains(r.stderr, "agent refused operation") {
				t.Errorf("a signature %s: %v", tt.name, r)
			}
			if strings.Contains(s.log(), "Failed publickey") || strings.Contains(s.log(), "Accepted publickey for") {
				t.Errorf("a signature %s reached the server:\n%s", tt.name, s.log())
			}
			agent.wait(`outcome=failed reason="` + tt.why)
			m.mu.Lock()
			if m.asked != i+1 {
				t.Errorf("a signature %s: the impostor was asked %d times in all", tt.name, m.asked)
			}
			m.mu.Unlock()
		}

		pairBy(t, d, p, "--address", netip.AddrPortFrom(n.B.IPv4, p.port()).String())
		d.ok("vmux-pair", "--forget", "Pocket too")
		s := newServer(t, line+"\n")
		if r := s.login(d, "true"); r.exit != 0 {
			t.Errorf("login by the key's own phone: %v\n%s", r, agent.output())
		}
	})
}
