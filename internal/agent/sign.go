// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/policy"
	"vmux.app/toolkit/internal/signed"
)

// skRest is what follows a security key's signature: flags and counter (PROTOCOL.u2f).
const skRest = 5

// sign answers a request to sign and logs what became of it, in one line.
func (c *conn) sign(reply, body []byte) []byte {
	began := c.server.now()
	var r Request
	sig, err := c.decide(&r, bytes.Clone(body)) // the message does not outlive a wait
	c.logDecision(r, err, c.server.now().Sub(began))
	if err != nil {
		return append(reply, msgFailure)
	}
	reply = append(reply, msgSignResponse)
	reply = binary.BigEndian.AppendUint32(reply, uint32(2*lengthField+len(sig.Format)+len(sig.Blob)+len(sig.Rest)))
	reply = appendString(reply, sig.Format)
	reply = appendString(reply, sig.Blob)
	return append(reply, sig.Rest...)
}

// decide makes r from the body of a sign request and gets it signed. r is filled as far as it came.
func (c *conn) decide(r *Request, body []byte) (*ssh.Signature, error) {
	s := c.server
	r.Peer = c.peer
	if s.lock.locked.Load() {
		return nil, refusal("the agent is locked")
	}
	asked, err := c.parseSignRequest(r, body)
	if err != nil {
		return nil, err
	}
	if r.Meaning.Kind == signed.Opaque && r.Meaning.Like != signed.Opaque {
		// Another parser may be less strict than ours, so this is refused whatever the policy says.
		return nil, refusal(fmt.Sprintf("data begins like %s and is not: %v", r.Meaning.Like, r.Meaning.Why))
	}
	r.Binds = slices.Clone(c.binds.list)
	r.Bound = c.binds.bound()
	r.Forwarded = c.binds.forwarded(c.peer.isSSH)
	if r.Meaning.Kind == signed.Login {
		if r.HostKey, err = c.binds.login(r.Meaning, r.Forwarded); err != nil {
			return nil, err
		}
	}
	if err := s.allows(r); err != nil {
		return nil, err
	}
	if r.Key.Local {
		return s.signer.Sign(c.ctx, *r)
	}
	about := subjectOf(r.Meaning, r.Data)
	// Asked again after each wait: much may have happened.
	mayAsk := func() error {
		if err := s.allows(r); err != nil {
			return err
		}
		if s.refusals.has(about, s.now()) {
			return refusal("the owner has denied this already, or has not answered")
		}
		return nil
	}
	var sig *ssh.Signature
	c.wait(func() {
		sig, err = s.asks.do(c.ctx, about, questionOf(asked, r.Data, r.Flags), mayAsk, func(ctx context.Context) (*ssh.Signature, error) {
			return s.ask(ctx, *r, asked, about)
		})
	})
	return sig, err
}

// ask has the owner asked, and checks the answer.
func (s *Server) ask(ctx context.Context, r Request, asked ssh.PublicKey, about subject) (*ssh.Signature, error) {
	sig, err := s.signer.Sign(ctx, r)
	switch {
	case errors.Is(err, ErrDenied), errors.Is(err, ErrUnanswered) && r.Meaning.Kind == signed.Login:
		s.refusals.add(about, s.now())
		return nil, err
	case err != nil:
		return nil, err
	}
	if err := verify(sig, asked, r.Flags, r.Data); err != nil {
		return nil, err
	}
	if err := s.allows(&r); err != nil {
		return nil, err
	}
	return sig, nil
}

// allows says whether the lock and the policy let a request through now.
func (s *Server) allows(r *Request) error {
	if s.lock.locked.Load() {
		return refusal("the agent is locked")
	}
	rules := s.policy()
	if d := rules.Decide(s.facts(r, rules)); d.Action != policy.Ask {
		return refusal("policy: " + d.String())
	}
	return nil
}

// parseSignRequest fills in what the client sent, and gives the key as the client named it, which may be the bare key
// of a listed certificate or a certificate for a listed key. The data names that key, too.
func (c *conn) parseSignRequest(r *Request, body []byte) (asked ssh.PublicKey, err error) {
	rest := cryptobyte.String(body)
	var blob, data []byte
	if !readString(&rest, &blob) || !readString(&rest, &data) || !rest.ReadUint32(&r.Flags) || !rest.Empty() {
		return nil, refusal("malformed request")
	}
	r.Data = data
	k := c.server.known(c.server.signer.Keys(nil))
	r.Meaning = k.signed.Parse(r.Data)
	i := k.find(blob)
	if i < 0 {
		return nil, refusal("key is not one of the phone's")
	}
	r.Key, r.fingerprint = k.keys[i], k.fingerprints[i]
	asked = r.Key.Public
	if string(blob) != k.blobs[i] {
		if asked, err = ssh.ParsePublicKey(blob); err != nil {
			return nil, refusal("malformed key")
		}
	}
	if err := k.signed.Check(r.Meaning, blob, r.Flags); err != nil {
		return nil, refusal(err.Error())
	}
	return asked, nil
}

// known is what is worked out once for keys that requests name again and again.
type known struct {
	keys         []Key
	blobs        []string // wire form
	fingerprints []string
	byBlob       map[string]int // the first of several
	signed       *signed.Known
}

// known gives what is known of keys. As with listing, the same memory holds the same keys.
func (s *Server) known(keys []Key) *known {
	if last := s.knows.Load(); last != nil && len(keys) > 0 && len(last.keys) == len(keys) && &last.keys[0] == &keys[0] {
		return last
	}
	k := &known{keys: keys, byBlob: make(map[string]int, len(keys))}
	all := make([]ssh.PublicKey, 0, len(keys))
	for i, key := range keys {
		blob := key.Public.Marshal()
		if _, twice := k.byBlob[string(blob)]; !twice {
			k.byBlob[string(blob)] = i
		}
		k.blobs = append(k.blobs, string(blob))
		k.fingerprints = append(k.fingerprints, ssh.FingerprintSHA256(publicHalf(key.Public)))
		all = append(all, key.Public)
	}
	k.signed = signed.NewKnown(all)
	s.knows.Store(k)
	return k
}

// find gives the index of the key that blob is or certifies, or that certifies blob; -1 if there is none.
func (k *known) find(blob []byte) int {
	if i, ok := k.byBlob[string(blob)]; ok {
		return i
	}
	return slices.IndexFunc(k.blobs, func(b string) bool { return signed.SameKey([]byte(b), blob) })
}

// publicHalf is the key that a certificate is for, or the key itself: what ssh-add -l has the fingerprint of.
func publicHalf(key ssh.PublicKey) ssh.PublicKey {
	if c, ok := key.(*ssh.Certificate); ok {
		return c.Key
	}
	return key
}

// errBadSignature is for a signer that answers with something else than the asked signature.
var errBadSignature = errors.New("the signer's answer is not the signature that was asked for")

// verify checks a signature before the client gets it.
func verify(sig *ssh.Signature, asked ssh.PublicKey, flags uint32, data []byte) error {
	if sig == nil {
		return fmt.Errorf("%w: it is empty", errBadSignature)
	}
	format, err := signed.SignatureAlgorithm(asked, flags)
	if err != nil {
		return err
	}
	if sig.Format != format {
		return fmt.Errorf("%w: it has another format than %s", errBadSignature, format)
	}
	rest := 0
	if format == ssh.KeyAlgoSKECDSA256 || format == ssh.KeyAlgoSKED25519 {
		rest = skRest
	}
	if len(sig.Rest) != rest {
		return fmt.Errorf("%w: bytes follow it", errBadSignature)
	}
	if publicHalf(asked).Verify(data, sig) != nil {
		return fmt.Errorf("%w: it does not verify", errBadSignature)
	}
	return nil
}

// route gives the fingerprints of the host that a request is for, and of the nearest one that it was forwarded through,
// as far as they are known.
func (c *conn) route(r *Request) (host, via string) {
	to := r.Destination()
	for _, b := range c.binds.list {
		if b.Forwarding {
			via = hostFingerprint(b.HostKey)
		} else if to == nil {
			to = b.HostKey
		}
	}
	return hostFingerprint(to), via
}

// hostFingerprint is that of a host key or a host certificate's key, as ssh-keygen -l has it; empty for what is no key.
func hostFingerprint(blob []byte) string {
	key, err := ssh.ParsePublicKey(blob)
	if err != nil {
		return ""
	}
	return ssh.FingerprintSHA256(publicHalf(key))
}

// logDecision writes the line that each request to sign gets: never the data, a session id or a signature.
func (c *conn) logDecision(r Request, err error, took time.Duration) {
	level, outcome, reason := slog.LevelInfo, "signed", ""
	if err != nil {
		reason = err.Error()
		var refused refusal
		switch {
		case errors.As(err, &refused), errors.Is(err, ErrRefused):
			level, outcome = slog.LevelWarn, "refused"
		case errors.Is(err, ErrDenied):
			level, outcome = slog.LevelWarn, "denied"
		case errors.Is(context.Cause(c.ctx), errHungUp):
			level, outcome, reason = slog.LevelInfo, "withdrawn", errHungUp.Error()
		case errors.Is(err, errBadSignature):
			level, outcome = slog.LevelError, "failed"
		default:
			level, outcome = slog.LevelWarn, "failed"
		}
	}
	log := c.server.log
	if !log.Enabled(context.Background(), level) {
		return
	}
	attrs := make([]slog.Attr, 0, 11)
	add := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, value))
		}
	}
	add("outcome", outcome)
	add("reason", reason)
	if r.Data != nil { // the request could be read
		add("kind", r.Meaning.Kind.String())
	}
	if r.Key.Public != nil {
		add("key", r.fingerprint)
		add("comment", r.Key.Comment)
	}
	host, via := c.route(&r)
	add("host", host)
	add("via", via)
	if c.executable == "" {
		c.executable, _ = c.peer.Executable() // "" when unknown
	}
	add("executable", c.executable)
	attrs = append(attrs, slog.Int("pid", c.peer.PID))
	if r.Forwarded {
		attrs = append(attrs, slog.Bool("forwarded", true))
	}
	attrs = append(attrs, slog.Duration("duration", took.Round(time.Microsecond)))
	log.LogAttrs(context.Background(), level, "sign request", attrs...)
}
