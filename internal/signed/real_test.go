// SPDX-License-Identifier: BSD-3-Clause

package signed

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"flag"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

var update = flag.Bool("update", false, "write testdata from what the real peers send")

const sshd = "/usr/sbin/sshd"

// need skips the test where a real peer is missing, which is a failure in CI.
func need(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("real peer is missing: %v", err)
			}
			t.Skipf("real peer is missing: %v", err)
		}
	}
}

type signRequest struct {
	key   ssh.PublicKey
	data  []byte
	flags uint32
}

// recorder is an agent that signs and keeps what it was asked.
type recorder struct {
	agent.ExtendedAgent
	socket string

	mu    sync.Mutex
	signs []signRequest
	binds [][]byte
}

func (r *recorder) SignWithFlags(key ssh.PublicKey, data []byte, flags agent.SignatureFlags) (*ssh.Signature, error) {
	r.mu.Lock()
	r.signs = append(r.signs, signRequest{key, bytes.Clone(data), uint32(flags)})
	r.mu.Unlock()
	return r.ExtendedAgent.SignWithFlags(key, data, flags)
}

func (r *recorder) Sign(key ssh.PublicKey, data []byte) (*ssh.Signature, error) {
	return r.SignWithFlags(key, data, 0)
}

func (r *recorder) Extension(name string, contents []byte) ([]byte, error) {
	if name != "session-bind@openssh.com" {
		return nil, agent.ErrExtensionUnsupported
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.binds = append(r.binds, bytes.Clone(contents))
	return nil, nil
}

// seen gives everything asked since the last call.
func (r *recorder) seen() (signs []signRequest, binds [][]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	signs, binds, r.signs, r.binds = r.signs, r.binds, nil, nil
	return signs, binds
}

// record serves an agent with keys until the test ends.
func record(t *testing.T, keys ...agent.AddedKey) *recorder {
	t.Helper()
	ring, ok := agent.NewKeyring().(agent.ExtendedAgent)
	if !ok {
		t.Fatal("keyring has no extensions")
	}
	for _, k := range keys {
		if err := ring.Add(k); err != nil {
			t.Fatal(err)
		}
	}
	r := &recorder{ExtendedAgent: ring, socket: filepath.Join(shortDir(t), "s")}
	l, err := net.Listen("unix", r.socket)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				_ = agent.ServeAgent(r, c) // ends with EOF
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return r
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// run runs a program with no environment but PATH and the agent, and gives its output.
func (r *recorder) run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "SSH_AUTH_SOCK=" + r.socket}
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(name), strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (r *recorder) one(t *testing.T) signRequest {
	t.Helper()
	signs, _ := r.seen()
	if len(signs) != 1 {
		t.Fatalf("%d sign requests, want 1", len(signs))
	}
	return signs[0]
}

var rsaKeys = sync.OnceValue(func() [2]*rsa.PrivateKey {
	var keys [2]*rsa.PrivateKey
	for i := range keys {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		keys[i] = k
	}
	return keys
})

// newKey makes a key of a plain type. There are two of RSA: the second is "ssh-rsa/2".
func newKey(t testing.TB, typ string) crypto.Signer {
	t.Helper()
	var k crypto.Signer
	var err error
	switch typ {
	case ssh.KeyAlgoED25519:
		_, k, err = ed25519.GenerateKey(rand.Reader)
	case ssh.KeyAlgoECDSA256:
		k, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case ssh.KeyAlgoECDSA384:
		k, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case ssh.KeyAlgoECDSA521:
		k, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case ssh.KeyAlgoRSA:
		k = rsaKeys()[0]
	case ssh.KeyAlgoRSA + "/2":
		k = rsaKeys()[1]
	default:
		t.Fatalf("no keys of type %q", typ)
	}
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func signerOf(t testing.TB, k crypto.Signer) ssh.Signer {
	t.Helper()
	s, err := ssh.NewSignerFromSigner(k)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// added gives k as the agent takes it.
func added(k crypto.Signer, cert *ssh.Certificate) agent.AddedKey {
	if e, ok := k.(ed25519.PrivateKey); ok {
		return agent.AddedKey{PrivateKey: &e, Certificate: cert}
	}
	return agent.AddedKey{PrivateKey: k, Certificate: cert}
}

func writeFile(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func writePrivate(t *testing.T, path string, k crypto.Signer) {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(k, "")
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, path, pem.EncodeToMemory(block))
}

// certify makes a certificate for key by ca.
func certify(t testing.TB, ca ssh.Signer, key ssh.PublicKey, certType uint32, principals ...string) *ssh.Certificate {
	t.Helper()
	c := &ssh.Certificate{
		Key: key, CertType: certType, KeyId: "an id", Serial: 7, ValidPrincipals: principals,
		ValidBefore: ssh.CertTimeInfinity,
	}
	if certType == ssh.UserCert {
		c.Extensions = map[string]string{"permit-pty": ""}
	}
	if err := c.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}
	return c
}

// checked parses data that a real peer wanted signed, wants it to be of kind, to print the same and
// to pass Check for the key asked and no other.
func checked(t *testing.T, req signRequest, kind Kind) Meaning {
	t.Helper()
	m := Parse(req.data)
	if m.Kind != kind {
		t.Fatalf("kind is %s (%v), want %s\n%x", m.Kind, m.Why, kind, req.data)
	}
	if kind != Opaque && !bytes.Equal(m.Marshal(), req.data) {
		t.Fatalf("prints as\n%x, was\n%x", m.Marshal(), req.data)
	}
	if err := Check(m, req.key, req.flags); err != nil {
		t.Fatal(err)
	}
	other := signerOf(t, newKey(t, ssh.KeyAlgoED25519)).PublicKey()
	if strings.HasPrefix(req.key.Type(), ssh.KeyAlgoRSA) {
		other = signerOf(t, newKey(t, ssh.KeyAlgoRSA+"/2")).PublicKey()
	}
	if err := Check(m, other, req.flags); m.Key != nil && err == nil {
		t.Fatal("another key passes")
	}
	return m
}

// golden keeps data for the machines that have no real peer, and for the fuzzer.
func golden(t *testing.T, name string, data []byte) {
	t.Helper()
	if !*update {
		return
	}
	path := filepath.Join("testdata", name+".hex")
	if err := os.WriteFile(path, []byte(hex.EncodeToString(data)+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// rig is a real sshd that ssh starts for each login.
type rig struct {
	dir, user string
	args      []string
}

// newRig sets up sshd with one host key, and its certificate if not nil, that lets keys and
// certificates by ca in.
func newRig(t *testing.T, host crypto.Signer, hostCert *ssh.Certificate, ca ssh.PublicKey, keys ...ssh.PublicKey) *rig {
	t.Helper()
	need(t, "ssh", sshd)
	if os.Getuid() == 0 {
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // privilege separation directory
			t.Fatal(err)
		}
	}
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	dir := shortDir(t)
	file := func(name string) string { return filepath.Join(dir, name) }
	writePrivate(t, file("host"), host)
	hostPub := signerOf(t, host).PublicKey()
	known := "rig " + string(ssh.MarshalAuthorizedKey(hostPub))
	config := []string{
		"HostKey " + file("host"), "PidFile none", "UsePAM no", "StrictModes no",
		"PasswordAuthentication no", "KbdInteractiveAuthentication no",
		"PermitRootLogin prohibit-password", "LogLevel VERBOSE", "MaxStartups 200",
		"AuthorizedKeysFile " + file("keys"), "TrustedUserCAKeys " + file("ca"),
	}
	if hostCert != nil {
		writeFile(t, file("host-cert.pub"), ssh.MarshalAuthorizedKey(hostCert))
		config = append(config, "HostCertificate "+file("host-cert.pub"))
		known = "@cert-authority rig " + string(ssh.MarshalAuthorizedKey(hostCert.SignatureKey))
	}
	var authorized []byte
	for _, k := range keys {
		authorized = append(authorized, ssh.MarshalAuthorizedKey(k)...)
	}
	writeFile(t, file("keys"), authorized)
	var cas []byte
	if ca != nil {
		cas = ssh.MarshalAuthorizedKey(ca)
	}
	writeFile(t, file("ca"), cas)
	writeFile(t, file("sshd_config"), []byte(strings.Join(config, "\n")+"\n"))
	writeFile(t, file("known"), []byte(known))
	return &rig{dir: dir, user: u.Username, args: []string{
		"-F", "none", "-o", "ProxyCommand=" + sshd + " -i -f " + file("sshd_config") + " -E " + file("log"),
		"-o", "HostKeyAlias=rig", "-o", "UserKnownHostsFile=" + file("known"),
		"-o", "GlobalKnownHostsFile=none", "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes",
		"-o", "ControlPath=none", "-o", "UpdateHostKeys=no", "-o", "LogLevel=ERROR",
	}}
}

// login logs in through the agent of r and runs true.
func (g *rig) login(t *testing.T, r *recorder, options ...string) {
	t.Helper()
	if !slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "IdentityFile=") }) {
		options = append(options, "IdentityFile=none")
	}
	args := slices.Clone(g.args)
	for _, o := range append(options, "IdentityAgent="+r.socket) {
		args = append(args, "-o", o)
	}
	defer func() {
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(g.dir, "log"))
			t.Logf("sshd: %s", log)
		}
	}()
	r.run(t, g.dir, "ssh", append(args, g.user+"@rig", "true")...)
}

// TestLoginsOfOpenSSH logs in to a real sshd with keys of every type, in both methods, and reads
// what the agent was asked.
func TestLoginsOfOpenSSH(t *testing.T) {
	t.Parallel()
	ca := signerOf(t, newKey(t, ssh.KeyAlgoED25519))
	host := newKey(t, ssh.KeyAlgoED25519)
	hostKey := signerOf(t, host).PublicKey()
	for _, tt := range []struct {
		name, key string
		cert      string // "", "agent": the agent has it, "file": the agent has the bare key
		method    string
		options   []string
		algorithm string
	}{
		{"hostbound-ecdsa", ssh.KeyAlgoECDSA256, "", methodHostbound, nil, ssh.KeyAlgoECDSA256},
		{"plain-ecdsa", ssh.KeyAlgoECDSA256, "", methodPublicKey, []string{"PubkeyAuthentication=unbound"}, ssh.KeyAlgoECDSA256},
		{"hostbound-ecdsa384", ssh.KeyAlgoECDSA384, "", methodHostbound, nil, ssh.KeyAlgoECDSA384},
		{"hostbound-ecdsa521", ssh.KeyAlgoECDSA521, "", methodHostbound, nil, ssh.KeyAlgoECDSA521},
		{"plain-ed25519", ssh.KeyAlgoED25519, "", methodPublicKey, []string{"PubkeyAuthentication=unbound"}, ssh.KeyAlgoED25519},
		{"hostbound-rsa", ssh.KeyAlgoRSA, "", methodHostbound, nil, ssh.KeyAlgoRSASHA512},
		{"plain-rsa256", ssh.KeyAlgoRSA, "", methodPublicKey, []string{"PubkeyAuthentication=unbound", "PubkeyAcceptedAlgorithms=rsa-sha2-256"}, ssh.KeyAlgoRSASHA256},
		{"hostbound-ecdsa-cert", ssh.KeyAlgoECDSA256, "agent", methodHostbound, nil, ssh.CertAlgoECDSA256v01},
		{"plain-rsa-cert", ssh.KeyAlgoRSA, "agent", methodPublicKey, []string{"PubkeyAuthentication=unbound"}, ssh.CertAlgoRSASHA512v01},
		{"hostbound-cert-file", ssh.KeyAlgoED25519, "file", methodHostbound, nil, ssh.CertAlgoED25519v01},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			key := newKey(t, tt.key)
			pub := signerOf(t, key).PublicKey()
			g := newRig(t, host, nil, ca.PublicKey())
			var cert *ssh.Certificate
			options := tt.options
			if tt.cert == "" {
				writeFile(t, filepath.Join(g.dir, "keys"), ssh.MarshalAuthorizedKey(pub))
			} else {
				cert = certify(t, ca, pub, ssh.UserCert, g.user)
			}
			want := pub
			r := record(t, added(key, nil))
			switch tt.cert {
			case "agent":
				want = cert
				r = record(t, added(key, cert))
			case "file":
				want = cert
				// IdentityFile is the public key, so that the private one is found in the agent.
				writeFile(t, filepath.Join(g.dir, "id.pub"), ssh.MarshalAuthorizedKey(pub))
				writeFile(t, filepath.Join(g.dir, "c.pub"), ssh.MarshalAuthorizedKey(cert))
				options = append(options, "IdentityFile="+filepath.Join(g.dir, "id.pub"),
					"CertificateFile="+filepath.Join(g.dir, "c.pub"), "IdentitiesOnly=yes")
			}
			g.login(t, r, options...)

			signs, binds := r.seen()
			if len(signs) != 1 || len(binds) != 1 {
				t.Fatalf("%d sign requests and %d binds, want 1 of each", len(signs), len(binds))
			}
			m := checked(t, signs[0], Login)
			bind, err := ParseBind(binds[0])
			if err != nil {
				t.Fatal(err)
			}
			if err := bind.Verify(); err != nil {
				t.Fatal(err)
			}
			if m.User != g.user || m.Service != "ssh-connection" || m.Method != tt.method || m.Algorithm != tt.algorithm {
				t.Errorf("user %q service %q method %q algorithm %q", m.User, m.Service, m.Method, m.Algorithm)
			}
			if !bytes.Equal(m.SessionID, bind.SessionID) {
				t.Error("session id is not the one of the bind")
			}
			if !bytes.Equal(m.Key, want.Marshal()) || !SameKey(m.Key, pub.Marshal()) {
				t.Error("key is not the one that logged in")
			}
			switch tt.method {
			case methodHostbound:
				if !m.Hostbound() || !bytes.Equal(m.HostKey, hostKey.Marshal()) || !bytes.Equal(m.HostKey, bind.HostKey) {
					t.Error("host key is not the server's")
				}
			default:
				if m.Hostbound() || m.HostKey != nil {
					t.Error("plain login has a host key")
				}
			}
			if tt.cert == "file" && signs[0].key.Type() != tt.key {
				t.Errorf("asked is a %s, not the bare key", signs[0].key.Type())
			}
			golden(t, "login-"+tt.name, signs[0].data)
		})
	}
}

// TestBindsOfOpenSSH verifies what ssh says of a real sshd with each type of host key.
func TestBindsOfOpenSSH(t *testing.T) {
	t.Parallel()
	key := newKey(t, ssh.KeyAlgoED25519)
	pub := signerOf(t, key).PublicKey()
	for _, tt := range []struct {
		name, host, ca string
	}{
		{"ed25519", ssh.KeyAlgoED25519, ""},
		{"ecdsa256", ssh.KeyAlgoECDSA256, ""},
		{"ecdsa384", ssh.KeyAlgoECDSA384, ""},
		{"ecdsa521", ssh.KeyAlgoECDSA521, ""},
		{"rsa", ssh.KeyAlgoRSA, ""},
		{"cert-ed25519-by-ecdsa", ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256},
		{"cert-ecdsa-by-rsa", ssh.KeyAlgoECDSA256, ssh.KeyAlgoRSA},
		{"cert-rsa-by-ed25519", ssh.KeyAlgoRSA, ssh.KeyAlgoED25519},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			host := newKey(t, tt.host)
			want := signerOf(t, host).PublicKey()
			var cert *ssh.Certificate
			if tt.ca != "" {
				cert = certify(t, signerOf(t, newKey(t, tt.ca)), want, ssh.HostCert, "rig")
				want = cert
			}
			r := record(t, added(key, nil))
			newRig(t, host, cert, nil, pub).login(t, r)
			signs, binds := r.seen()
			if len(signs) != 1 || len(binds) != 1 {
				t.Fatalf("%d sign requests and %d binds, want 1 of each", len(signs), len(binds))
			}
			b, err := ParseBind(binds[0])
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b.HostKey, want.Marshal()) || b.Forwarding {
				t.Errorf("host key is not the server's, or forwarding")
			}
			if !bytes.Equal(b.Marshal(), binds[0]) {
				t.Error("prints differently")
			}
			if err := b.Verify(); err != nil {
				t.Fatal(err)
			}
			if m := checked(t, signs[0], Login); !bytes.Equal(m.HostKey, b.HostKey) || !bytes.Equal(m.SessionID, b.SessionID) {
				t.Error("login and bind are of different hosts or sessions")
			}
			b.SessionID[0] ^= 1
			if err := b.Verify(); !errors.Is(err, ErrHostSignature) {
				t.Errorf("another session id: %v", err)
			}
			golden(t, "bind-"+tt.name, binds[0])
		})
	}
}

// TestForwardedBinds reads the chain that ssh -A builds: the bind of the hop says forwarding.
func TestForwardedBinds(t *testing.T) {
	t.Parallel()
	key := newKey(t, ssh.KeyAlgoED25519)
	pub := signerOf(t, key).PublicKey()
	g := newRig(t, newKey(t, ssh.KeyAlgoECDSA256), nil, nil, pub)
	need(t, "ssh-add")
	r := record(t, added(key, nil))
	args := append(slices.Clone(g.args), "-A", "-o", "IdentityFile=none", "-o", "IdentityAgent="+r.socket, g.user+"@rig")
	r.run(t, g.dir, "ssh", append(args, "ssh-add -l")...)
	_, binds := r.seen()
	forwarding := 0
	for _, raw := range binds {
		b, err := ParseBind(raw)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Verify(); err != nil {
			t.Fatal(err)
		}
		if b.Forwarding {
			forwarding++
			golden(t, "bind-forwarding", raw)
		}
	}
	if forwarding == 0 {
		t.Fatalf("none of %d binds is a forwarding one", len(binds))
	}
}

func TestSSHSIGOfOpenSSH(t *testing.T) {
	t.Parallel()
	need(t, "ssh-keygen")
	for _, tt := range []struct {
		key, namespace, hash string
	}{
		{ssh.KeyAlgoED25519, "git", "sha512"},
		{ssh.KeyAlgoECDSA256, "file", "sha256"},
		{ssh.KeyAlgoRSA, "mail@example.org", "sha512"},
	} {
		t.Run(tt.namespace, func(t *testing.T) {
			t.Parallel()
			dir := shortDir(t)
			key := newKey(t, tt.key)
			r := record(t, added(key, nil))
			writeFile(t, filepath.Join(dir, "id.pub"), ssh.MarshalAuthorizedKey(signerOf(t, key).PublicKey()))
			writeFile(t, filepath.Join(dir, "m"), []byte("a message\n"))
			r.run(t, dir, "ssh-keygen", "-q", "-Y", "sign", "-f", "id.pub", "-n", tt.namespace, "-O", "hashalg="+tt.hash, "m")
			req := r.one(t)
			m := checked(t, req, SSHSIG)
			h := map[string]crypto.Hash{"sha256": crypto.SHA256, "sha512": crypto.SHA512}[tt.hash].New()
			h.Write([]byte("a message\n"))
			if m.Namespace != tt.namespace || m.HashAlgorithm != tt.hash || !bytes.Equal(m.Hash, h.Sum(nil)) {
				t.Errorf("namespace %q hash algorithm %q hash %x", m.Namespace, m.HashAlgorithm, m.Hash)
			}
			golden(t, "sshsig-"+strings.ReplaceAll(tt.namespace, "@", "-at-"), req.data)
		})
	}
}

func TestGitCommit(t *testing.T) {
	t.Parallel()
	need(t, "git", "ssh-keygen")
	dir := shortDir(t)
	key := newKey(t, ssh.KeyAlgoECDSA256)
	r := record(t, added(key, nil))
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signerOf(t, key).PublicKey())))
	r.run(t, dir, "git", "init", "-q", ".")
	r.run(t, dir, "git", "-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "gpg.format=ssh",
		"-c", "user.signingkey=key::"+line, "commit", "-q", "-S", "--allow-empty", "-m", "signed")
	if m := checked(t, r.one(t), SSHSIG); m.Namespace != "git" {
		t.Errorf("namespace %q", m.Namespace)
	}
}

func TestCertificatesOfOpenSSH(t *testing.T) {
	t.Parallel()
	need(t, "ssh-keygen")
	sk := skKey(t, ssh.KeyAlgoSKED25519)
	skEC := skKey(t, ssh.KeyAlgoSKECDSA256)
	for _, tt := range []struct {
		name, ca string
		key      ssh.PublicKey
		args     []string
	}{
		{"user-ecdsa", ssh.KeyAlgoECDSA256, signerOf(t, newKey(t, ssh.KeyAlgoECDSA256)).PublicKey(), nil},
		{"user-ed25519", ssh.KeyAlgoED25519, signerOf(t, newKey(t, ssh.KeyAlgoED25519)).PublicKey(), nil},
		{"user-rsa", ssh.KeyAlgoRSA, signerOf(t, newKey(t, ssh.KeyAlgoRSA+"/2")).PublicKey(), nil},
		{"user-ecdsa384", ssh.KeyAlgoED25519, signerOf(t, newKey(t, ssh.KeyAlgoECDSA384)).PublicKey(), nil},
		{"user-ecdsa521", ssh.KeyAlgoED25519, signerOf(t, newKey(t, ssh.KeyAlgoECDSA521)).PublicKey(), nil},
		{"user-sk-ed25519", ssh.KeyAlgoED25519, sk.public, nil},
		{"user-sk-ecdsa", ssh.KeyAlgoED25519, skEC.public, nil},
		{"host", ssh.KeyAlgoED25519, signerOf(t, newKey(t, ssh.KeyAlgoED25519)).PublicKey(), []string{"-h"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := shortDir(t)
			ca := newKey(t, tt.ca)
			caPub := signerOf(t, ca).PublicKey()
			r := record(t, added(ca, nil))
			writeFile(t, filepath.Join(dir, "ca.pub"), ssh.MarshalAuthorizedKey(caPub))
			writeFile(t, filepath.Join(dir, "id.pub"), ssh.MarshalAuthorizedKey(tt.key))
			args := []string{"-q", "-s", "ca.pub", "-U", "-I", "vmux:u@d:7", "-n", "alice,bob", "-z", "7",
				"-V", "20260101000000Z:20260102000000Z"}
			if tt.args == nil {
				args = append(args, "-O", "clear", "-O", "force-command=uptime -p", "-O", "source-address=10.0.0.0/8",
					"-O", "permit-pty", "-O", "extension:who@example.org=me", "-O", "extension:flag@example.org")
			}
			args = append(args, tt.args...)
			r.run(t, dir, "ssh-keygen", append(args, "id.pub")...)
			req := r.one(t)
			m := checked(t, req, Certificate)
			c := m.Certificate
			after, before := c.Window()
			if c.Host() != (tt.args != nil) || c.Serial != 7 || c.KeyID != "vmux:u@d:7" ||
				!slices.Equal(c.Principals, []string{"alice", "bob"}) ||
				!after.Equal(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)) ||
				!before.Equal(time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)) {
				t.Errorf("%+v", c)
			}
			if !bytes.Equal(m.Key, tt.key.Marshal()) || !bytes.Equal(c.SignatureKey, caPub.Marshal()) {
				t.Error("keys differ")
			}
			if tt.args == nil {
				want := []string{"force-command=uptime -p", "source-address=10.0.0.0/8", "flag@example.org", "permit-pty", "who@example.org=me"}
				var got []string
				for _, o := range append(slices.Clone(c.CriticalOptions), c.Extensions...) {
					v, ok := o.Value()
					if ok {
						v = "=" + v
					}
					got = append(got, o.Name+v)
				}
				if !slices.Equal(got, want) {
					t.Errorf("options %q, want %q", got, want)
				}
			} else if len(c.CriticalOptions)+len(c.Extensions) != 0 {
				t.Errorf("%v %v", c.CriticalOptions, c.Extensions)
			}
			golden(t, "certificate-"+tt.name, req.data)
		})
	}
}

// TestOpaqueOfOpenSSH has ssh-add -T ask for a signature over random bytes.
func TestOpaqueOfOpenSSH(t *testing.T) {
	t.Parallel()
	need(t, "ssh-add")
	dir := shortDir(t)
	key := newKey(t, ssh.KeyAlgoECDSA256)
	r := record(t, added(key, nil))
	writeFile(t, filepath.Join(dir, "id.pub"), ssh.MarshalAuthorizedKey(signerOf(t, key).PublicKey()))
	r.run(t, dir, "ssh-add", "-T", "id.pub")
	m := checked(t, r.one(t), Opaque)
	if m.Why == nil {
		t.Error("no reason")
	}
}
