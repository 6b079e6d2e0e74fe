// SPDX-License-Identifier: BSD-3-Clause

// Package signed says what the bytes mean that an SSH agent is asked to sign, and what a
// session-bind@openssh.com statement proves.
//
// It is pure: no clock, no files, no network, and memory bounded by the length of the input. What
// is not exactly one of the forms it knows is Opaque; there is no nearly.
//
// No bytes fit two forms. SSHSIG data begins with its magic, which as the length of a string would
// be more than a gigabyte. Everything else begins with a string: a login goes on with the byte 50 and
// pam_ssh_agent_auth with the byte 54, and a certificate with the length of its nonce, whose first
// byte is 0 in anything of at most maxData bytes.
package signed

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
)

const (
	// maxData is the longest data that is parsed: the frame limit of the agent's socket and of
	// OpenSSH's agent (AGENT_MAX_LEN in ssh-agent.c).
	maxData = 256 << 10
	// maxSessionID is AGENT_MAX_SID_LEN of OpenSSH's ssh-agent.c. Session ids are hashes, at
	// most 64 bytes with the key exchanges there are.
	maxSessionID = 128
	// maxKey bounds a key or certificate before x/crypto parses it, which takes a multiple of
	// it for the options of a certificate. A certificate with 256 principals of 128 bytes fits.
	maxKey = 64 << 10
	// maxName bounds user names, namespaces, key ids and principals. The longest in use are user
	// names that carry a route through a gateway. It is also what fits in a prompt.
	maxName = 1024
	// maxAlgorithm is the bound of RFC 4251 section 6 on algorithm names.
	maxAlgorithm = 64
)

const (
	service         = "ssh-connection"                      // RFC 4252 section 5
	methodPublicKey = "publickey"                           // RFC 4252 section 7
	methodHostbound = "publickey-hostbound-v00@openssh.com" // PROTOCOL section 3.1
	servicePAM      = "pam_ssh_agent_auth"

	msgUserauthRequest  = 50 // SSH_MSG_USERAUTH_REQUEST, RFC 4252 section 6
	msgUserauthTrustPAM = 54 // SSH2_MSG_USERAUTH_TRUST_REQUEST of pam_ssh_agent_auth

	sshsigMagic = "SSHSIG"
)

// Kind is the form of data to be signed.
type Kind int

const (
	Opaque      Kind = iota // none of the others
	Login                   // public key authentication to a server, RFC 4252 section 7, with or without host key
	SSHSIG                  // a signature over a file, a git commit, a message: PROTOCOL.sshsig
	Certificate             // an OpenSSH certificate without its signature: PROTOCOL.certkeys
	PAM                     // sudo and the like through pam_ssh_agent_auth
)

// String gives the word for k that logs, prompts and policies use.
func (k Kind) String() string {
	switch k {
	case Opaque:
		return "opaque"
	case Login:
		return "login"
	case SSHSIG:
		return "sshsig"
	case Certificate:
		return "certificate"
	case PAM:
		return "pam_ssh_agent_auth"
	}
	return fmt.Sprintf("kind %d", int(k))
}

// Meaning is what data to be signed says. All of its text is as received: it has no NUL, may
// not be UTF-8, and may hold control characters, which whoever displays it removes.
type Meaning struct {
	Kind Kind

	// Like and Why are for Opaque: the form the data begins like, Opaque if none, and what
	// does not fit. A policy that lets opaque data be signed should still refuse data that
	// begins like something else, since another parser may be less strict.
	Like Kind
	Why  error

	// Login, and User, Service, Method, Algorithm and Key of PAM too.
	SessionID []byte // 1 to 128 bytes
	User      string
	Service   string // "ssh-connection", or "pam_ssh_agent_auth"
	Method    string // "publickey" or "publickey-hostbound-v00@openssh.com"
	Algorithm string // public key algorithm, such as "rsa-sha2-512"; fits Key
	HostKey   []byte // wire form of the host's key or certificate; hostbound only

	// Key is the key the data names, in wire form: for Login and PAM the one that
	// authenticates, possibly a certificate; for Certificate the one being certified.
	Key []byte

	// SSHSIG.
	Namespace     string // not empty; "git" for commits and tags, "file" for files
	HashAlgorithm string // "sha256" or "sha512"
	Hash          []byte // of the message

	Certificate *CertificateBody // Certificate only
	PAM         *PAMRequest      // PAM only
}

// Hostbound reports whether the login names the server's host key.
func (m Meaning) Hostbound() bool { return m.Kind == Login && m.Method == methodHostbound }

// Parse says what data means. It does not fail: what is not exactly one of the known forms is
// Opaque, with the reason in Why. The result shares nothing with data.
func Parse(data []byte) Meaning { return (*Known)(nil).Parse(data) }

// Parse is the function of that name.
func (k *Known) Parse(data []byte) Meaning {
	if len(data) > maxData {
		return Meaning{Why: fmt.Errorf("%d bytes, at most %d", len(data), maxData)}
	}
	data = bytes.Clone(data)
	var m Meaning
	var err error
	like := begins(data)
	switch like {
	case Login:
		m, err = parseLogin(k, data)
	case SSHSIG:
		m, err = parseSSHSIG(data)
	case Certificate:
		m, err = parseCertificate(data)
	case PAM:
		m, err = parsePAM(k, data)
	default:
		return Meaning{Why: errNoForm}
	}
	if err != nil {
		return Meaning{Like: like, Why: err}
	}
	return m
}

// begins tells the one form that data can have, by its first bytes.
func begins(data []byte) Kind {
	if bytes.HasPrefix(data, []byte(sshsigMagic)) {
		return SSHSIG
	}
	r := reader{rest: data}
	first := r.bytes("first string", maxData)
	if r.err != nil {
		return Opaque
	}
	if len(r.rest) > 0 {
		switch r.rest[0] {
		case msgUserauthRequest:
			return Login
		case msgUserauthTrustPAM:
			return PAM
		}
	}
	if bytes.HasSuffix(first, []byte(certSuffix)) {
		return Certificate
	}
	return Opaque
}

// parseLogin reads what RFC 4252 section 7 has signed: session identifier, then the request
// itself. The hostbound method of OpenSSH's PROTOCOL appends the host key.
func parseLogin(k *Known, data []byte) (Meaning, error) {
	r := reader{rest: data}
	m := Meaning{Kind: Login, Service: service}
	m.SessionID = readSessionID(&r)
	if t := r.byte("message number"); t != msgUserauthRequest {
		r.failf("message number: %d", t)
	}
	m.User = r.text("user", maxName)
	r.constant("service", service)
	m.Method = r.text("method", maxAlgorithm)
	if m.Method != methodPublicKey && m.Method != methodHostbound {
		r.failf("method: not one of public keys")
	}
	readSigningKey(k, &r, &m)
	if m.Method == methodHostbound {
		m.HostKey = r.bytes("host key", maxKey)
		if r.err == nil {
			if _, err := parseKey(m.HostKey); err != nil {
				r.failf("host key: %w", err)
			}
		}
	}
	if err := r.end(); err != nil {
		return Meaning{}, err
	}
	return m, nil
}

func readSessionID(r *reader) []byte {
	id := r.bytes("session id", maxSessionID)
	if r.err == nil && len(id) == 0 {
		r.failf("session id: empty")
	}
	return id
}

// readSigningKey reads the part that Login and PAM share: the boolean that says a signature
// follows, the algorithm and the key.
func readSigningKey(k *Known, r *reader, m *Meaning) {
	if b := r.byte("signature follows"); r.err == nil && b != 1 {
		r.failf("signature follows: %d instead of 1", b)
	}
	m.Algorithm = r.text("algorithm", maxAlgorithm)
	m.Key = r.bytes("key", maxKey)
	if r.err != nil {
		return
	}
	key, err := k.parse(m.Key)
	if err != nil {
		r.failf("key: %w", err)
		return
	}
	if !algorithmFits(m.Algorithm, key.Type()) {
		r.failf("algorithm %q is not one of a key of type %s", m.Algorithm, key.Type())
	}
}

// parseSSHSIG reads the signed data of PROTOCOL.sshsig. There, reserved may hold what a later
// version says about the signature. Nobody can be shown what is not known yet, and OpenSSH
// verifies with an empty one only, so it has to be empty.
func parseSSHSIG(data []byte) (Meaning, error) {
	r := reader{rest: data}
	r.take("magic", len(sshsigMagic)) // checked by begins
	m := Meaning{Kind: SSHSIG}
	m.Namespace = r.text("namespace", maxName)
	if r.err == nil && m.Namespace == "" {
		r.failf("namespace: empty")
	}
	r.constant("reserved", "")
	m.HashAlgorithm = r.text("hash algorithm", maxAlgorithm)
	size := 0
	switch m.HashAlgorithm {
	case "sha256":
		size = sha256.Size
	case "sha512":
		size = sha512.Size
	default:
		r.failf("hash algorithm: neither sha256 nor sha512")
	}
	m.Hash = r.bytes("hash", sha512.Size)
	if r.err == nil && len(m.Hash) != size {
		r.failf("hash: %d bytes, %s has %d", len(m.Hash), m.HashAlgorithm, size)
	}
	if err := r.end(); err != nil {
		return Meaning{}, err
	}
	return m, nil
}

// Marshal gives the data that m is the meaning of, byte for byte what was parsed. It checks
// nothing, so that tests can build what Parse has to refuse. Opaque gives nil.
func (m Meaning) Marshal() []byte {
	switch m.Kind {
	case Login:
		b := appendString(nil, m.SessionID)
		b = append(b, msgUserauthRequest)
		b = m.appendRequest(b)
		if m.Method == methodHostbound {
			b = appendString(b, m.HostKey)
		}
		return b
	case SSHSIG:
		b := []byte(sshsigMagic)
		b = appendString(b, m.Namespace)
		b = appendString(b, "")
		b = appendString(b, m.HashAlgorithm)
		return appendString(b, m.Hash)
	case Certificate:
		if m.Certificate == nil {
			return nil
		}
		return m.Certificate.append(nil, m.Key)
	case PAM:
		if m.PAM == nil {
			return nil
		}
		b := appendString(nil, m.PAM.append(nil, m.User))
		b = append(b, msgUserauthTrustPAM)
		return m.appendRequest(b)
	}
	return nil
}

// appendRequest appends what a login and a pam_ssh_agent_auth request have in common.
func (m Meaning) appendRequest(b []byte) []byte {
	b = appendString(b, m.User)
	b = appendString(b, m.Service)
	b = appendString(b, m.Method)
	b = append(b, 1)
	b = appendString(b, m.Algorithm)
	return appendString(b, m.Key)
}

func appendUint32(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(b, v) }
func appendUint64(b []byte, v uint64) []byte { return binary.BigEndian.AppendUint64(b, v) }
