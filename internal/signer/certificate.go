// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/signed"
	"vmux.app/toolkit/internal/transport"
)

// kindCertificate is Verified.Kind of a certificate request, and its operation
// in logs and events.
var kindCertificate = signed.Certificate.String()

const (
	// backdated is how long before its making a certificate is valid, for servers
	// whose clocks are behind.
	backdated = time.Minute
	// minRSA is the least size of an RSA key in bits: what is called weak below it
	// has been broken or nearly so. x/crypto reads none above 16384, as OpenSSH.
	minRSA = 2048
	// serialMark stands for the serial in the key id that a device asks for.
	serialMark = "{serial}"
)

// Options whose value this package knows (PROTOCOL.certkeys).
const (
	forceCommand   = "force-command"
	sourceAddress  = "source-address"
	verifyRequired = "verify-required"
	permit         = "permit-" // begins every extension of OpenSSH's own
)

var errCAChanged = errors.New("the certificate authority's key was changed")

// Certificate is what a certificate will say. The signer writes it, so all of it
// is verified.
type Certificate struct {
	Serial     uint64
	KeyID      string
	Principals []string
	Validity   time.Duration
	// Latest is when it ends if the owner approves at the last moment.
	Latest          time.Time
	CriticalOptions []envelope.Option
	Extensions      []envelope.Option
	KeyType         string // of the certified key, for people: "RSA 3072"
	KeyPrint        string // fingerprint
	CAType          string
	CAPrint         string
}

// certify does what a certificate request asks if the owner approves, and logs
// the outcome.
func (s *server) certify(ctx context.Context, pin transport.Pin, device Device, id string, r *envelope.CertificateRequest) (envelope.Payload, error) {
	start := s.now()
	e := requestEvent(device, id, r.CreatedAt.Time)
	e.Operation, e.record.Operation = kindCertificate, kindCertificate
	c, err := s.certifyLogged(ctx, pin, device, id, r, &e)
	about := []slog.Attr{slog.String("principals", strings.Join(r.Principals, ",")), slog.Int64("validity", r.Validity)}
	if e.Serial != "" {
		about = append(about, slog.String("serial", e.Serial), slog.String("keyId", e.KeyID))
	}
	if err == nil {
		about = append(about, slog.String("until", time.Unix(int64(c.ValidBefore), 0).UTC().Format(time.RFC3339)),
			slog.String("options", optionNames(r.CriticalOptions)), slog.String("extensions", optionNames(r.Extensions)),
			slog.String("ca", fingerprint(c.SignatureKey)))
	}
	if err := s.report(ctx, start, &e, err, about...); err != nil {
		return nil, err
	}
	return &envelope.CertificateResponse{Certificate: c.Marshal()}, nil
}

// optionNames is for the log: a value can be a command with a secret in it.
func optionNames(list []envelope.Option) string {
	var names []string
	for _, o := range list {
		names = append(names, o.Name)
	}
	return strings.Join(names, ",")
}

func (s *server) certifyLogged(ctx context.Context, pin transport.Pin, device Device, id string, r *envelope.CertificateRequest, e *Event) (*ssh.Certificate, error) {
	now, expires, err := s.fresh(pin, id, r.CreatedAt.Time)
	if err != nil {
		return nil, err
	}
	key, identity, err := s.certifiable(r)
	if key != nil {
		e.Key = fingerprint(key)
		e.record.Fingerprint = e.Key
	}
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	authority := s.current().ca
	ca := authority.Public
	prompt := certificatePrompt(device, r, &Certificate{
		Serial:          serial,
		KeyID:           strings.ReplaceAll(r.KeyID, serialMark, strconv.FormatUint(serial, 10)),
		Principals:      r.Principals,
		Validity:        time.Duration(r.Validity) * time.Second,
		Latest:          expires.Add(time.Duration(r.Validity) * time.Second),
		CriticalOptions: r.CriticalOptions,
		Extensions:      r.Extensions,
		KeyType:         keyType(key), KeyPrint: fingerprint(key),
		CAType: keyType(ca), CAPrint: fingerprint(ca),
	})
	terms := prompt.Verified.Certificate
	e.Serial, e.KeyID = strconv.FormatUint(serial, 10), terms.KeyID
	e.record.Serial, e.record.KeyID, e.record.User = e.Serial, e.KeyID, strings.Join(r.Principals, ",")
	if n := len(prompt.layout(screenWidth)); n > maxPromptLines {
		return nil, envelope.Errorf(envelope.CodeDenied, "the request is too large to show: %d lines, more than %d", n, maxPromptLines)
	}

	ctx, cancel := context.WithTimeoutCause(ctx, expires.Sub(now), errExpired)
	defer cancel()
	// The id keeps every request a prompt of its own: each is another certificate,
	// of another serial.
	prompt.file = authority
	approval, err := s.ask(ctx, e, promptKey{device: pin, key: string(identity), id: id}, prompt, expires)
	if err != nil {
		return nil, err
	}
	defer approval.done()
	// Much may have happened while the owner thought, to certificates.toml too.
	mayStill := func() error {
		if err := s.stillAsked(ctx, pin, expires); err != nil {
			return err
		}
		if !bytes.Equal(s.current().ca.Public.Marshal(), ca.Marshal()) {
			return errCAChanged
		}
		_, _, err := s.certifiable(r)
		return err
	}
	if err := mayStill(); err != nil {
		return nil, err
	}
	// The disk has the last word, also when nobody has said that it has changed.
	if now, err := s.home.CA(); err != nil || !bytes.Equal(now.Marshal(), ca.Marshal()) {
		return nil, errors.Join(errCAChanged, err)
	}
	made := s.now()
	c := &ssh.Certificate{
		Key:             key,
		Serial:          serial,
		CertType:        ssh.UserCert,
		KeyId:           terms.KeyID,
		ValidPrincipals: r.Principals,
		ValidAfter:      uint64(made.Add(-backdated).Unix()),
		ValidBefore:     uint64(made.Unix() + r.Validity),
		Permissions:     ssh.Permissions{CriticalOptions: optionMap(r.CriticalOptions), Extensions: optionMap(r.Extensions)},
	}
	if err := c.SignCert(rand.Reader, approval.key); err != nil { // draws the nonce, sorts the options
		return nil, err
	}
	if err := mayStill(); err != nil {
		return nil, err
	}
	return c, nil
}

// certifiable says whether the signer makes the certificate that r asks for, but
// for the owner's say, and gives the key to be certified and the blob of the
// identity that r names, nil when it names none. The key is there as soon as it
// could be read. Error: *envelope.Error.
func (s *server) certifiable(r *envelope.CertificateRequest) (key ssh.PublicKey, identity []byte, err error) {
	now := s.current()
	if key, err = certifiableKey(r.PublicKeyBlob); err != nil {
		return key, nil, err
	}
	for _, k := range now.keys {
		if k.Err == nil && bytes.Equal(k.Public.Marshal(), r.PublicKeyBlob) {
			return key, nil, envelope.Errorf(envelope.CodeDenied, "the public key is the signer's own key %s", k.Label)
		}
	}
	if bytes.Equal(now.ca.Public.Marshal(), r.PublicKeyBlob) {
		return key, nil, envelope.Errorf(envelope.CodeDenied, "the public key is the signer's certificate authority's")
	}
	if err := wellFormed(r); err != nil {
		return key, nil, envelope.Errorf(envelope.CodeBadRequest, "%v", err)
	}
	if r.Identity != "" {
		if identity = now.enabled(r.Identity); identity == nil {
			return key, nil, envelope.Errorf(envelope.CodeUnknownKey, "no such key")
		}
	}
	limits, err := s.home.Limits()
	if err != nil {
		s.log.Error("no certificate is signed until this is mended", "reason", err)
		return key, nil, envelope.Errorf(envelope.CodeDenied, "the signer's limits for certificates cannot be read; its log says why")
	}
	return key, identity, limits.allow(r)
}

// enabled gives the blob of the identity with a label, nil when there is none
// that can be used.
func (n *snapshot) enabled(label string) []byte {
	for _, k := range n.keys {
		if k.Label == label && k.Enabled && k.Err == nil {
			return k.Public.Marshal()
		}
	}
	return nil
}

// certifiableKey reads a key and says whether it is of a kind that is certified:
// what agents and CI runners have, no weak one, and none whose use OpenSSH ties
// to hardware that the signer knows nothing of.
func certifiableKey(blob []byte) (ssh.PublicKey, error) {
	key, err := ssh.ParsePublicKey(blob)
	if err != nil || !bytes.Equal(key.Marshal(), blob) {
		return nil, envelope.Errorf(envelope.CodeBadRequest, "the public key cannot be read")
	}
	if _, ok := key.(*ssh.Certificate); ok {
		return key, envelope.Errorf(envelope.CodeBadRequest, "the public key is a certificate already")
	}
	switch key.Type() {
	case ssh.KeyAlgoECDSA256, ssh.KeyAlgoED25519:
		return key, nil
	case ssh.KeyAlgoRSA:
		if n := rsaBits(key); n < minRSA {
			return key, envelope.Errorf(envelope.CodeDenied, "the signer certifies RSA keys of %d bits and more, not %d", minRSA, n)
		}
		return key, nil
	}
	return key, envelope.Errorf(envelope.CodeDenied, "the signer certifies P-256, Ed25519 and RSA keys, not %s", key.Type())
}

func rsaBits(key ssh.PublicKey) int {
	if c, ok := key.(ssh.CryptoPublicKey); ok {
		if k, ok := c.CryptoPublicKey().(*rsa.PublicKey); ok {
			return k.N.BitLen()
		}
	}
	return 0
}

// keyType names a key's type for people.
func keyType(key ssh.PublicKey) string {
	switch key.Type() {
	case ssh.KeyAlgoECDSA256:
		return "ECDSA P-256"
	case ssh.KeyAlgoED25519:
		return "Ed25519"
	case ssh.KeyAlgoRSA:
		return fmt.Sprintf("RSA %d", rsaBits(key))
	}
	return key.Type()
}

// wellFormed finds what no certificate can mean, or what would be shown as
// something else than it is. The envelope's own bounds hold already.
func wellFormed(r *envelope.CertificateRequest) error {
	// sshd takes a certificate without principals for any user where the CA is
	// trusted by cert-authority.
	if len(r.Principals) == 0 {
		return errors.New("a certificate needs a principal")
	}
	for _, p := range r.Principals {
		// ssh-keygen separates principals by commas, and files of them by white space.
		if !plain(p) || p == "" || strings.ContainsFunc(p, func(c rune) bool { return c == ',' || unicode.IsSpace(c) }) {
			return errors.New("a principal has a comma, a space or a character that does not print")
		}
	}
	if !plain(r.KeyID) {
		return errors.New("the key id has a character that does not print")
	}
	for _, o := range r.CriticalOptions {
		if err := checkOption(o); err != nil {
			return err
		}
		var err error
		switch o.Name {
		case forceCommand:
			if strings.TrimSpace(o.Value) == "" {
				err = errors.New("force-command is empty")
			}
		case sourceAddress:
			err = checkAddresses(o.Value)
		case verifyRequired:
			err = wantEmpty(o)
		}
		if err != nil {
			return err
		}
	}
	for _, o := range r.Extensions {
		if err := checkOption(o); err != nil {
			return err
		}
		if strings.HasPrefix(o.Name, permit) {
			if err := wantEmpty(o); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkOption(o envelope.Option) error {
	if o.Name == "" || !plain(o.Name) || !plain(o.Value) {
		return fmt.Errorf("%s has a character that does not print", clean(o.Name))
	}
	return nil
}

func wantEmpty(o envelope.Option) error {
	if o.Value != "" {
		return fmt.Errorf("%s takes no value", o.Name)
	}
	return nil
}

// checkAddresses accepts what sshd does: addresses and networks separated by
// commas, no bit of a network's address set beyond its length. A server refuses
// a certificate with any other list at every login.
func checkAddresses(list string) error {
	for item := range strings.SplitSeq(list, ",") {
		if a, err := netip.ParseAddr(item); err == nil && a.Zone() == "" {
			continue
		}
		if p, err := netip.ParsePrefix(item); err == nil && p == p.Masked() {
			continue
		}
		return fmt.Errorf("source-address has %q, which is neither an address nor a network", clean(item))
	}
	return nil
}

// plain says whether s shows as itself.
func plain(s string) bool { return clean(s) == s }

func optionMap(list []envelope.Option) map[string]string {
	m := map[string]string{}
	for _, o := range list {
		m[o.Name] = o.Value
	}
	return m
}

// newSerial is random, so that serials say nothing of how many there are and two
// of them differ without a counter on disk; below 2^63, since not all software
// has unsigned numbers; and not 0, which certificates without a serial have.
func newSerial() (uint64, error) {
	for {
		var b [8]byte
		if _, err := rand.Read(b[:]); err != nil {
			return 0, err
		}
		if n := binary.BigEndian.Uint64(b[:]) >> 1; n != 0 {
			return n, nil
		}
	}
}

// certificatePrompt says all of what a certificate request means.
func certificatePrompt(device Device, r *envelope.CertificateRequest, c *Certificate) *Prompt {
	p := &Prompt{
		Verified: Verified{
			Device:      device.Name,
			DevicePin:   device.Pin,
			Kind:        kindCertificate,
			Operation:   "user certificate for " + inWords(c.Validity),
			Certificate: c,
		},
	}
	p.Claimed.of(&r.Context)
	return p
}

// fields are the certificate's lines of a prompt. Nothing is left out or
// shortened: what does not fit is refused before.
func (c *Certificate) fields() []Field {
	f := []Field{
		{"valid", fmt.Sprintf("%s, until %s at the latest", inWords(c.Validity), c.Latest.Local().Format("Mon 2 Jan 2006, 15:04:05 MST"))},
		{"principals", clean(strings.Join(c.Principals, ", "))},
		{"key id", quoted(c.KeyID)},
		{"serial", strconv.FormatUint(c.Serial, 10)},
	}
	f = append(f, optionFields("critical", c.CriticalOptions)...)
	f = append(f, optionFields("extensions", c.Extensions)...)
	return append(f, Field{"key", c.KeyType + " " + c.KeyPrint}, Field{"CA", c.CAType + " " + c.CAPrint})
}

// optionFields has those without a value in one field, each other one in its own.
func optionFields(name string, list []envelope.Option) []Field {
	var f []Field
	var flags []string
	for _, o := range list {
		if o.Value == "" {
			flags = append(flags, clean(o.Name))
		} else {
			f = append(f, Field{name, clean(o.Name) + " " + quoted(o.Value)})
		}
	}
	if len(flags) > 0 {
		f = append(f, Field{name, strings.Join(flags, ", ")})
	}
	if len(f) == 0 {
		f = []Field{{name, "none"}}
	}
	return f
}

// quoted makes text from outside safe and shows where it begins and ends, and
// its quotes, unless nothing of that is in doubt.
func quoted(s string) string {
	if s == "" || strings.ContainsFunc(s, func(c rune) bool { return c == '"' || c == '\\' || c > unicode.MaxASCII || unicode.IsSpace(c) }) {
		return clean(strconv.Quote(s))
	}
	return clean(s)
}

// inWords writes a duration of whole seconds: "8 hours", "1 day 30 minutes".
func inWords(d time.Duration) string {
	var words []string
	n := int64(d / time.Second)
	for _, u := range []struct {
		seconds int64
		name    string
	}{{24 * 60 * 60, "day"}, {60 * 60, "hour"}, {60, "minute"}, {1, "second"}} {
		k := n / u.seconds
		n %= u.seconds
		switch {
		case k == 1:
			words = append(words, "1 "+u.name)
		case k > 1:
			words = append(words, fmt.Sprintf("%d %ss", k, u.name))
		}
	}
	return strings.Join(words, " ")
}
