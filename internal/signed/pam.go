// SPDX-License-Identifier: BSD-3-Clause

package signed

const (
	// pamRequestV1 begins what stands in the place of a session id (PAM_SSH_AGENT_AUTH_REQUESTv1).
	pamRequestV1 = 101
	// minCookie and maxCookie: the module makes a random one of a random length in 16 to 255.
	minCookie, maxCookie = 16, 255
	// maxArguments bounds the command line, each argument of which takes 16 bytes of memory
	// beyond its text. The module cuts a longer one.
	maxArguments = 256
)

// PAMRequest is what pam_ssh_agent_auth 0.9.4 and later, which call it version 1, say of the
// action to be authorized. All of it is claimed by the machine that asks, and no key of that machine
// signs it. The module cuts arguments that are longer than 255 bytes.
type PAMRequest struct {
	Cookie           []byte
	TargetUser       string   // PAM_USER; Meaning.User is PAM_RUSER, who asks
	Service          string   // PAM service, such as "sudo"
	WorkingDirectory string   // empty if the module could not tell
	Command          []string // empty if the module could not tell
	HostName         string   // empty if the module could not tell
	Time             uint64   // seconds since 1970 by the clock of the machine that asks
}

// parsePAM reads what userauth_pubkey_from_id.c and iterate_ssh_agent_keys.c of
// pam_ssh_agent_auth put together: a request in the place of the session id, and the rest as in a
// login with another message number and service name. The user in both is the same.
func parsePAM(k *Known, data []byte) (Meaning, error) {
	r := reader{rest: data}
	m := Meaning{Kind: PAM, Service: servicePAM, Method: methodPublicKey, PAM: new(PAMRequest)}
	inner := reader{rest: r.bytes("request", maxData), err: r.err}
	if v := inner.uint32("request version"); inner.err == nil && v != pamRequestV1 {
		inner.failf("request version: %d instead of %d", v, pamRequestV1)
	}
	p := m.PAM
	p.Cookie = inner.bytes("cookie", maxCookie)
	if inner.err == nil && len(p.Cookie) < minCookie {
		inner.failf("cookie: %d bytes, at least %d", len(p.Cookie), minCookie)
	}
	p.TargetUser = inner.text("target user", maxName)
	user := inner.text("user", maxName)
	p.Service = inner.text("PAM service", maxName)
	p.WorkingDirectory = inner.text("working directory", maxData)
	p.Command = readCommand(&inner)
	p.HostName = inner.text("host name", maxName)
	p.Time = inner.uint64("time")
	r.err = inner.end()

	if t := r.byte("message number"); r.err == nil && t != msgUserauthTrustPAM {
		r.failf("message number: %d", t)
	}
	m.User = r.text("user", maxName)
	if r.err == nil && m.User != user {
		r.failf("user: two different ones")
	}
	r.constant("service", servicePAM)
	r.constant("method", methodPublicKey)
	readSigningKey(k, &r, &m)
	if err := r.end(); err != nil {
		return Meaning{}, err
	}
	return m, nil
}

// readCommand reads the action: a string with a count and as many strings, or with nothing where
// the module has no way to know.
func readCommand(r *reader) []string {
	in := reader{rest: r.bytes("command", maxData), err: r.err}
	if len(in.rest) == 0 {
		return nil
	}
	n := in.uint32("argument count")
	if in.err == nil && (n == 0 || n > maxArguments) {
		in.failf("argument count: %d, wanted 1 to %d", n, maxArguments)
	}
	var command []string
	for in.err == nil && len(command) < int(n) {
		command = append(command, in.text("argument", maxData))
	}
	r.err = in.end()
	return command
}

// append appends the request that stands in the place of a session id.
func (p *PAMRequest) append(b []byte, user string) []byte {
	b = appendUint32(b, pamRequestV1)
	b = appendString(b, p.Cookie)
	b = appendString(b, p.TargetUser)
	b = appendString(b, user)
	b = appendString(b, p.Service)
	b = appendString(b, p.WorkingDirectory)
	var action []byte
	if len(p.Command) > 0 {
		action = appendUint32(action, uint32(len(p.Command)))
		for _, a := range p.Command {
			action = appendString(action, a)
		}
	}
	b = appendString(b, action)
	b = appendString(b, p.HostName)
	return appendUint64(b, p.Time)
}
