// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/crypto/ssh"
	"golang.org/x/net/dns/dnsmessage"

	"vmux.app/toolkit/internal/netnstest"
	"vmux.app/toolkit/internal/pairing"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/transport"
)

// Names that nothing else has, to be looked for on the cable.
const (
	phoneName  = "Quillfeather Handy"
	deviceName = "Zephyrine Laptop"
	keyComment = "heloise.oxbow"
	hostAlias  = "marmoset.example"
	namespace  = "velociraptor"
)

// tapAgent makes a socket before the agent's own that keeps what ssh and the
// agent say to each other.
func tapAgent(t testing.TB, d *host) (socket string, said func() []byte) {
	t.Helper()
	socket = d.path("tap.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var all []byte
	var running sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		running.Wait()
	})
	pass := func(to, from net.Conn) {
		var one []byte
		io.Copy(to, io.TeeReader(from, writer(func(b []byte) { one = append(one, b...) })))
		to.Close()
		from.Close()
		mu.Lock()
		defer mu.Unlock()
		all = append(all, one...)
	}
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			a, err := net.Dial("unix", d.socket())
			if err != nil {
				c.Close()
				t.Error(err)
				return
			}
			running.Go(func() { pass(a, c) })
			running.Go(func() { pass(c, a) })
		}
	})
	return socket, func() []byte {
		l.Close()
		running.Wait()
		return all
	}
}

type writer func([]byte)

func (w writer) Write(b []byte) (int, error) {
	w(b)
	return len(b), nil
}

// inClear sends a control text over the cable in every form that a secret may
// have, in two segments, and gives where to.
func inClear(t testing.TB, n *netnstest.Net, text string) netip.AddrPort {
	t.Helper()
	var l net.Listener
	if err := n.B.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(n.B.IPv4, 0).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	out, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	for _, form := range []string{text, hex.EncodeToString([]byte(text)), base64.StdEncoding.EncodeToString([]byte("xy" + text + "z"))} {
		for _, part := range []string{form[:7], form[7:]} {
			if _, err := io.WriteString(out, part); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(in, make([]byte, len(part))); err != nil { // so that the segments are two
				t.Fatal(err)
			}
		}
	}
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func spki(t testing.TB, keyFile string) (public []byte, pin transport.Pin) {
	t.Helper()
	key, err := store.LinkKey(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	id, err := transport.NewIdentity(key)
	if err != nil {
		t.Fatal(err)
	}
	public, err = x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return public, id.Pin()
}

func blob(t testing.TB, line string) []byte {
	t.Helper()
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return key.Marshal()
}

// Everything that passes between device and phone, from the advertisement over
// pairing, key list, logins, a signature and a cancelled login to the unpairing:
// a listener finds none of what it is about.
func TestThreat_T04_ListenerLearnsNothing(t *testing.T) {
	t.Parallel()
	wire(t, func(t *testing.T, n *netnstest.Net) {
		heard := newCapture(t, n.A)
		p := farPhone(t, n, phoneName)
		p.ok("vmux-signer", "key", "add", keyComment, "--type", "ed25519")
		owner := p.askpass()
		p.serveOn(":0", "--approve", "askpass")
		d := newHost(t)
		d.setenv("VMUX_NAME", deviceName)
		url := pairBy(t, d, p)
		agent := d.agent()
		lines := d.ok("ssh-add", "-L")
		if !strings.Contains(lines, keyComment) {
			t.Fatalf("ssh-add -L: %s", lines)
		}
		s := newServer(t, lines)
		s.write("known_hosts", hostAlias+" "+s.key+"\n")
		tap, said := tapAgent(t, d)
		ssh := func(agentSocket string) *process {
			return d.spawn("ssh", append([]string{"-o", "HostKeyAlias=" + hostAlias, "-o", "IdentityAgent=" + agentSocket}, s.args("true")...)...)
		}
		for _, socket := range []string{d.socket(), tap} {
			login := ssh(socket)
			owner.next().approve()
			if exit := login.ended(); exit != 0 {
				t.Fatalf("login: exit %d\n%s\n%s", exit, login.output(), agent.output())
			}
		}
		d.write("key.pub", lines[strings.Index(lines, "ssh-ed25519"):], 0o600)
		d.write("file", "content", 0o600)
		signing := d.spawn("ssh-keygen", "-Y", "sign", "-n", namespace, "-f", d.path("key.pub"), d.path("file"))
		owner.next().approve()
		if exit := signing.ended(); exit != 0 {
			t.Fatalf("ssh-keygen -Y sign: exit %d\n%s", exit, signing.output())
		}
		signature, err := os.ReadFile(d.path("file.sig"))
		if err != nil {
			t.Fatal(err)
		}
		login := ssh(d.socket())
		cancelled := owner.next()
		login.stop(syscall.SIGKILL)
		cancelled.withdrawn()
		var list struct {
			Phones []struct{ CAKey string } `json:"phones"`
		}
		if err := json.Unmarshal([]byte(d.ok("vmux-pair", "--list", "--json")), &list, json.MatchCaseInsensitiveNames(true)); err != nil || len(list.Phones) != 1 {
			t.Fatalf("vmux-pair --list: %v", err)
		}
		d.ok("vmux-pair", "--forget", phoneName)
		p.serving.wait(`"event":"disconnected"`)
		p.ok("vmux-signer", "forget", deviceName)
		p.serving.stop(syscall.SIGTERM)
		const control = "in clear for control"
		controlAt := inClear(t, n, control)
		packets := heard.end(t, n)

		// What a listener must not learn.
		hidden := secrets{}
		for _, w := range []string{phoneName, deviceName, keyComment, hostAlias, namespace, d.home, p.home, s.dir, "/usr/bin/ssh",
			"vmux-signer ", "vmux-agent ", "vmux-pair ", "capabilities", "publickey", "hostbound", "ssh-connection", "ssh-userauth", "SSHSIG",
			"ssh-ed25519", "ecdsa-sha2-nistp256", "nistp256", "sessionId", "session-bind", "signature", "password", "createdAt",
			"keyListRequest", "keyListResponse", "signRequest", "signResponse", "pairRequest", "pairResponse", "pairConfirm", "cancel", "payload"} {
			hidden.word(w)
		}
		me := s.args("true")
		user, _, _ := strings.Cut(me[len(me)-2], "@")
		hidden.forms(append([]byte{0, 0, 0, byte(len(user))}, user...), "the user name in SSH's form")
		hidden.forms([]byte(`"`+user+`"`), "the user name in JSON")
		for _, l := range append(strings.Split(strings.TrimSpace(lines), "\n"), s.key, list.Phones[0].CAKey) {
			hidden.bytes(blob(t, l), "a part of the key "+l)
		}
		hidden.bytes(signature, "a part of the signature")
		for who, file := range map[string]string{"device": d.path(".config", "vmux", "device-key.pem"), "phone": p.path(".local", "share", "vmux-signer", "device-key.pem")} {
			public, pin := spki(t, file)
			hidden.bytes(public, "a part of the certificate of the "+who)
			hidden.bytes(pin[:], "a part of the pin of the "+who)
		}
		u, err := pairing.ParseURL(url)
		if err != nil {
			t.Fatal(err)
		}
		hidden.bytes(u.Secret[:], "a part of the pairing secret")
		talk := said()
		for _, part := range [][]byte{[]byte("session-bind@openssh.com"), []byte("publickey-hostbound-v00@openssh.com"), blob(t, s.key)} {
			if !bytes.Contains(talk, part) {
				t.Fatalf("ssh and the agent did not speak of %q", part)
			}
		}
		hidden.bytes(talk, "a part of what ssh and the agent said")

		seen := func(b []byte, where string) {
			for _, what := range hidden.find(b) {
				t.Errorf("%s: %s", where, what)
			}
		}
		for i, k := range packets {
			if k.dst != controlAt && k.src != controlAt {
				seen(k.frame, fmt.Sprintf("packet %d", i))
			}
		}
		protocols := map[string]int{}
		bytesSeen := 0
		for _, c := range streams(t, packets) {
			bytesSeen += len(c.data)
			if c.dst == controlAt || c.src == controlAt {
				if c.dst == controlAt {
					found := secrets{}
					found.forms([]byte(control), "control")
					if f := found.find(c.data); len(f) != 3 {
						t.Errorf("the search finds %q of what was sent in clear: %q", f, c.data)
					}
				}
				continue
			}
			seen(c.data, fmt.Sprintf("%v to %v", c.src, c.dst))
			if len(c.data) == 0 {
				continue // given up for another candidate
			}
			protocols[onlyTLS13(t, c, c.dst.Port() == p.port())]++
		}
		if protocols[transport.ProtoLink] < 2 || protocols[transport.ProtoPair] < 1 || len(protocols) != 3 {
			t.Errorf("connections by protocol: %v", protocols)
		}
		kinds := map[string]int{}
		for _, k := range packets {
			switch {
			case k.udp && k.dst.Port() != mdnsPort && k.src.Port() != mdnsPort:
				t.Errorf("UDP from %v to %v: %q", k.src, k.dst, k.payload)
			case k.tcp && k.src.Port() != p.port() && k.dst.Port() != p.port() && k.src != controlAt && k.dst != controlAt:
				t.Errorf("TCP from %v to %v", k.src, k.dst)
			case k.udp:
				kinds["mDNS"]++
			case k.tcp:
				kinds["TCP"]++
			case slices.Contains([]string{"ARP", "ICMPv6", "ICMP", "IGMP", "multicast listener report"}, k.other):
				kinds[k.other]++
			default:
				t.Errorf("%s: %x", k.other, k.frame)
			}
		}
		if a := advertised(t, packets); len(a) != 1 {
			t.Errorf("advertised: %v", a)
		}
		needles := 0
		for _, of := range hidden {
			needles += len(of)
		}
		t.Logf("%d packets %v, %d bytes of TCP, connections %v, %d texts looked for", len(packets), kinds, bytesSeen, protocols, needles)
	})
}

// advertised reads every mDNS packet, checks that each name and record is one
// that says nothing of anybody, and gives the ports by instance.
func advertised(t testing.TB, packets []packet) map[string]uint16 {
	t.Helper()
	const service = "_vmuxsigner._tcp.local."
	instance := regexp.MustCompile(`^vmux-[0-9a-f]{16}\._vmuxsigner\._tcp\.local\.$`)
	computer := regexp.MustCompile(`^vmux-[0-9a-f]{16}\.local\.$`)
	ports := map[string]uint16{}
	questions := 0
	for _, k := range packets {
		if !k.udp || k.src.Port() != mdnsPort && k.dst.Port() != mdnsPort {
			continue
		}
		var m dnsmessage.Message
		if err := m.Unpack(k.payload); err != nil {
			t.Errorf("mDNS from %v: %v: %x", k.src, err, k.payload)
			continue
		}
		if rest := behind(k.payload, len(m.Questions), len(m.Answers)+len(m.Authorities)+len(m.Additionals)); len(rest) > 0 {
			t.Errorf("mDNS from %v: %q behind the records", k.src, rest)
		}
		questions += len(m.Questions)
		for _, q := range m.Questions {
			if name := q.Name.String(); name != service && !instance.MatchString(name) && !computer.MatchString(name) {
				t.Errorf("question from %v: %s", k.src, name)
			}
		}
		for _, r := range slices.Concat(m.Answers, m.Authorities, m.Additionals) {
			name, ok := r.Header.Name.String(), false
			switch b := r.Body.(type) {
			case *dnsmessage.PTRResource:
				ok = name == service && instance.MatchString(b.PTR.String())
			case *dnsmessage.SRVResource:
				ok = instance.MatchString(name) && computer.MatchString(b.Target.String()) && b.Priority == 0 && b.Weight == 0
				ports[name] = b.Port
			case *dnsmessage.TXTResource:
				ok = instance.MatchString(name) && slices.Equal(b.TXT, []string{"v=1"})
			case *dnsmessage.AResource:
				ok = computer.MatchString(name) && netip.AddrFrom4(b.A) == netip.MustParseAddr("10.86.0.2")
			case *dnsmessage.AAAAResource:
				ok = computer.MatchString(name) && netip.AddrFrom16(b.AAAA) == netip.MustParseAddr("fe80::b")
			}
			if !ok {
				t.Errorf("record from %v: %v", k.src, &r)
			}
		}
	}
	if questions == 0 {
		t.Error("nobody asked for the service")
	}
	return ports
}

// behind gives what follows the records of a well-formed DNS message.
func behind(b []byte, questions, records int) []byte {
	b = b[12:]
	name := func() {
		for b[0] != 0 && b[0] < 0xc0 {
			b = b[1+b[0]:]
		}
		if b[0] != 0 {
			b = b[1:] // a pointer has two bytes
		}
		b = b[1:]
	}
	for range questions {
		name()
		b = b[4:]
	}
	for range records {
		name()
		b = b[10+int(binary.BigEndian.Uint16(b[8:])):]
	}
	return b
}

// The advertisement, and what the device asks for, hold random names, the
// service, a port, addresses and "v=1": no person, computer or phone. The names
// are new at each start.
func TestThreat_N04_AdvertisementNamesNobody(t *testing.T) {
	t.Parallel()
	netnstest.Run(t, func(t *testing.T, n *netnstest.Net) {
		heard := newCapture(t, n.B)
		p := farPhone(t, n, phoneName)
		p.ok("vmux-signer", "key", "add", keyComment)
		d := newHost(t)
		d.setenv("VMUX_NAME", deviceName)
		want := map[uint16]bool{}
		for i := range 2 {
			p.serveOn(":0", "--approve", "always")
			want[p.port()] = true
			if i == 0 {
				pairBy(t, d, p)
			}
			claimOn(t, p.port())
			p.serving.stop(syscall.SIGTERM) // says goodbye
		}
		packets := heard.end(t, n)
		got := advertised(t, packets)
		for name, port := range got {
			if !want[port] {
				t.Errorf("%s on port %d", name, port)
			}
		}
		if len(got) != 2 {
			t.Errorf("advertised in two starts: %v", got)
		}
		nobody := secrets{}
		words := []string{phoneName, deviceName, keyComment, "Quillfeather", "Zephyrine", "heloise"}
		for _, get := range []func() (string, error){os.Hostname, os.UserHomeDir} {
			if w, err := get(); err == nil {
				words = append(words, w)
			}
		}
		for _, w := range append(words, os.Getenv("USER"), os.Getenv("LOGNAME")) {
			if len(w) >= 4 { // shorter ones are in random bytes by chance; the names' form is checked above
				nobody.word(w)
			}
		}
		for _, k := range packets {
			if k.udp {
				for _, what := range nobody.find(k.payload) {
					t.Errorf("%v to %v: %s", k.src, k.dst, what)
				}
			}
		}
	})
}

// Whoever offers the phone less than TLS 1.3 with a paired certificate and the
// link's protocol gets no byte of an envelope.
func TestThreat_T04_DowngradeRefused(t *testing.T) {
	t.Parallel()
	netnstest.Run(t, func(t *testing.T, n *netnstest.Net) {
		p := farPhone(t, n, phoneName)
		p.serveOn(":0", "--approve", "always", "--log-level", "debug")
		d := newHost(t)
		address := netip.AddrPortFrom(n.B.IPv4, p.port()).String()
		pairBy(t, d, p, "--address", address)
		p.serving.wait(`"event":"disconnected"`) // vmux-pair's own link, the only one
		before := strings.Count(p.serving.output(), `"event":"connected"`)

		key, err := store.LinkKey(d.path(".config", "vmux", "device-key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		paired := selfSigned(t, key) // the pin is of the key
		strange, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		unpaired := selfSigned(t, strange)
		rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		chain := tls.Certificate{Certificate: append(slices.Clone(paired.Certificate), unpaired.Certificate...), PrivateKey: key}
		link := []string{transport.ProtoLink}

		// offer dials with a configuration and gives the first byte of what the phone
		// says inside.
		offer := func(change func(*tls.Config)) (tls.ConnectionState, byte, error) {
			raw, err := net.DialTimeout("tcp", address, patience)
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			raw.SetDeadline(time.Now().Add(patience))
			cfg := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{paired}, NextProtos: link}
			change(cfg)
			c := tls.Client(raw, cfg)
			b := make([]byte, 1)
			_, err = io.ReadFull(c, b)
			return c.ConnectionState(), b[0], err
		}
		for _, tt := range []struct {
			name   string
			change func(*tls.Config)
		}{
			{"TLS 1.2 only", func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }},
			{"TLS 1.0 and 1.1", func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }},
			{"no application protocol", func(c *tls.Config) { c.NextProtos = nil }},
			{"an unknown application protocol", func(c *tls.Config) { c.NextProtos = []string{"h2", "vmux/2"} }},
			{"no certificate", func(c *tls.Config) { c.Certificates = nil }},
			{"an unpaired certificate", func(c *tls.Config) { c.Certificates = []tls.Certificate{unpaired} }},
			{"an RSA certificate", func(c *tls.Config) {
				c.Certificates = []tls.Certificate{selfSigned(t, rsaKey)}
			}},
			{"a chain", func(c *tls.Config) { c.Certificates = []tls.Certificate{chain} }},
		} {
			_, b, err := offer(tt.change)
			var timeout net.Error
			if err == nil || errors.As(err, &timeout) && timeout.Timeout() {
				t.Errorf("%s: the phone says %q: %v", tt.name, b, err)
			}
		}
		raw, err := net.DialTimeout("tcp", address, patience)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		raw.SetDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(raw, "{\"version\":1}\n"); err != nil {
			t.Fatal(err)
		}
		answer, _ := io.ReadAll(raw) // an alert, or nothing
		if r, rest, err := nextRecord(answer); len(answer) > 0 && (err != nil || r.kind != recordAlert || len(rest) > 0) {
			t.Errorf("without TLS: the phone says %q", answer)
		}
		if now := strings.Count(p.serving.output(), `"event":"connected"`); now != before {
			t.Errorf("%d of the refused were linked:\n%s", now-before, p.serving.output())
		}

		// The same with nothing wrong, and with an older version on offer as well.
		tickets := &ticketCache{}
		state, b, err := offer(func(c *tls.Config) {
			c.MinVersion, c.ClientSessionCache, c.ServerName = tls.VersionTLS12, tickets, "phone"
		})
		if err != nil || b != 0 || state.Version != tls.VersionTLS13 || state.NegotiatedProtocol != transport.ProtoLink {
			t.Errorf("the paired device: version %#x, protocol %q, %v", state.Version, state.NegotiatedProtocol, err)
		}
		if tickets.n != 0 {
			t.Errorf("the phone gave %d session tickets", tickets.n)
		}
	})
}

// ticketCache counts the tickets that a server gives.
type ticketCache struct{ n int }

func (c *ticketCache) Get(string) (*tls.ClientSessionState, bool) { return nil, false }

func (c *ticketCache) Put(_ string, s *tls.ClientSessionState) {
	if s != nil {
		c.n++
	}
}
