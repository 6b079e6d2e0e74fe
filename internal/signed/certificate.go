// SPDX-License-Identifier: BSD-3-Clause

package signed

import (
	"fmt"
	"math"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	// maxPrincipals is SSHKEY_CERT_MAX_PRINCIPALS of OpenSSH's sshkey.h. Each principal takes
	// 16 bytes of memory beyond its text, so the list needs a bound of its own.
	maxPrincipals = 256
	// maxOptions bounds critical options and extensions, each. PROTOCOL.certkeys defines nine.
	maxOptions = 64
)

// CertificateBody is a certificate to be signed, without the certified key, which is Meaning.Key.
type CertificateBody struct {
	Nonce           []byte
	Serial          uint64
	Type            uint32 // ssh.UserCert or ssh.HostCert
	KeyID           string
	Principals      []string // empty: OpenSSH takes such a certificate for every name, or for none
	ValidAfter      uint64   // seconds since 1970; 0 is always
	ValidBefore     uint64   // seconds since 1970, exclusive; ssh.CertTimeInfinity is forever
	CriticalOptions []Option // sorted by name, each once
	Extensions      []Option // sorted by name, each once
	SignatureKey    []byte   // the CA's public key in wire form, never a certificate
}

// Option is a critical option or an extension.
type Option struct {
	Name string
	Data []byte // empty, or for options with a value a string in wire form
}

// Value gives the text inside Data, and whether Data is one such text and nothing more.
func (o Option) Value() (string, bool) {
	r := reader{rest: o.Data}
	v := r.bytes("value", maxData)
	return string(v), r.end() == nil
}

// Host reports whether the certificate is for a host.
func (c *CertificateBody) Host() bool { return c.Type == ssh.HostCert }

// Window gives the times between which the certificate is valid, in UTC. The zero time stands
// for no bound on that side, which is also what times beyond time.Unix are.
func (c *CertificateBody) Window() (after, before time.Time) {
	if c.ValidAfter != 0 {
		after = unixTime(c.ValidAfter)
	}
	if c.ValidBefore != ssh.CertTimeInfinity {
		before = unixTime(c.ValidBefore)
	}
	return after, before
}

// lastTime is the last second of the year 9999, after which times have no RFC 3339 form.
const lastTime = 253402300799

// unixTime caps s, so that a far time never becomes a past one.
func unixTime(s uint64) time.Time {
	return time.Unix(int64(min(s, lastTime)), 0).UTC()
}

// parseCertificate reads everything of PROTOCOL.certkeys but the signature. Reserved is unused
// there and has to be empty here: what nobody knows the meaning of is not signed.
func parseCertificate(data []byte) (Meaning, error) {
	r := reader{rest: data}
	name := r.text("type", maxAlgorithm)
	plain, ok := plainType(name)
	if r.err == nil && !ok {
		r.failf("type %q is not known", name)
	}
	c := &CertificateBody{Nonce: r.bytes("nonce", maxData)} // of arbitrary length, says PROTOCOL.certkeys
	key := appendString(nil, plain)
	fields := r.rest
	for range keyFields(plain) {
		r.bytes("key", maxKey)
	}
	if r.err == nil {
		key = append(key, fields[:len(fields)-len(r.rest)]...)
		if _, err := parseKey(key); err != nil {
			r.failf("key: %w", err)
		}
	}
	c.Serial = r.uint64("serial")
	c.Type = r.uint32("certificate type")
	if r.err == nil && c.Type != ssh.UserCert && c.Type != ssh.HostCert {
		r.failf("certificate type %d is neither user nor host", c.Type)
	}
	c.KeyID = r.text("key id", maxName)
	c.Principals = readPrincipals(&r)
	c.ValidAfter = r.uint64("valid after")
	c.ValidBefore = r.uint64("valid before")
	c.CriticalOptions = readOptions(&r, "critical options")
	c.Extensions = readOptions(&r, "extensions")
	r.constant("reserved", "")
	c.SignatureKey = r.bytes("signature key", maxKey)
	if r.err == nil {
		if _, err := parsePlainKey(c.SignatureKey); err != nil {
			r.failf("signature key: %w", err)
		}
	}
	if err := r.end(); err != nil {
		return Meaning{}, err
	}
	return Meaning{Kind: Certificate, Key: key, Certificate: c}, nil
}

func readPrincipals(r *reader) []string {
	in := reader{rest: r.bytes("principals", maxData), err: r.err}
	var list []string
	for in.err == nil && len(in.rest) > 0 {
		if len(list) == maxPrincipals {
			in.failf("more than %d principals", maxPrincipals)
			break
		}
		p := in.text("principal", maxName)
		if in.err == nil && p == "" {
			in.failf("principal: empty")
		}
		list = append(list, p)
	}
	r.err = in.err
	return list
}

// readOptions reads names and data. PROTOCOL.certkeys has the names sorted and each once; the
// data of the names it knows is checked, so that a prompt can show it.
func readOptions(r *reader, what string) []Option {
	in := reader{rest: r.bytes(what, maxData), err: r.err}
	var list []Option
	for in.err == nil && len(in.rest) > 0 {
		if len(list) == maxOptions {
			in.failf("%s: more than %d", what, maxOptions)
			break
		}
		o := Option{Name: in.text(what, maxName)}
		o.Data = in.bytes(what, maxData)
		if in.err != nil {
			break
		}
		if n := len(list); o.Name == "" || n > 0 && o.Name <= list[n-1].Name {
			in.failf("%s: names are not sorted, or one is empty or there twice", what)
		}
		if err := o.check(); err != nil {
			in.failf("%s: %w", what, err)
		}
		list = append(list, o)
	}
	r.err = in.err
	return list
}

// check looks at the data of the options that PROTOCOL.certkeys defines.
func (o Option) check() error {
	switch o.Name {
	case "force-command", "source-address":
		if _, ok := o.Value(); !ok {
			return fmt.Errorf("%s: value is not one string", o.Name)
		}
	case "verify-required", "no-touch-required", "permit-X11-forwarding",
		"permit-agent-forwarding", "permit-port-forwarding", "permit-pty", "permit-user-rc":
		if len(o.Data) > 0 {
			return fmt.Errorf("%s: has a value", o.Name)
		}
	}
	return nil
}

// append appends the body as it is signed. key is the certified key in wire form.
func (c *CertificateBody) append(b, key []byte) []byte {
	r := reader{rest: key}
	plain := r.bytes("type", math.MaxInt32)
	b = appendString(b, certType(string(plain)))
	b = appendString(b, c.Nonce)
	b = append(b, r.rest...)
	b = appendUint64(b, c.Serial)
	b = appendUint32(b, c.Type)
	b = appendString(b, c.KeyID)
	var list []byte
	for _, p := range c.Principals {
		list = appendString(list, p)
	}
	b = appendString(b, list)
	b = appendUint64(b, c.ValidAfter)
	b = appendUint64(b, c.ValidBefore)
	b = appendOptions(b, c.CriticalOptions)
	b = appendOptions(b, c.Extensions)
	b = appendString(b, "")
	return appendString(b, c.SignatureKey)
}

func appendOptions(b []byte, options []Option) []byte {
	var list []byte
	for _, o := range options {
		list = appendString(list, o.Name)
		list = appendString(list, o.Data)
	}
	return appendString(b, list)
}
