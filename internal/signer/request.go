// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"time"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/audit"
	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/signed"
	"vmux.app/toolkit/internal/tpm"
	"vmux.app/toolkit/internal/transport"
)

// Causes with which a waiting request ends.
var (
	errExpired  = errors.New("no approval within a minute of the request")
	errKeyGone  = errors.New("the key was disabled or removed")
	errRekeyed  = errors.New("the keys have another passphrase since, ask again")
	errUnpaired = errors.New("the device was forgotten")
	errStopped  = errors.New("the signer was stopped")
)

// opaqueAdvice is what a device is told of data that nobody can show to a
// person.
const opaqueAdvice = "the signer signs logins, SSHSIG and pam_ssh_agent_auth only, not "

// handle answers one request of the device with the given pin. It implements
// transport.Handler once the pin is fixed.
func (s *server) handle(ctx context.Context, pin transport.Pin, id string, req envelope.Payload) (envelope.Payload, error) {
	device, ok := s.current().state.Device(pin)
	if !ok {
		return nil, envelope.Errorf(envelope.CodeNotPaired, "this device is not paired")
	}
	switch r := req.(type) {
	case *envelope.KeyListRequest:
		return s.list(device), nil
	case *envelope.SignRequest:
		return s.sign(ctx, pin, device, id, r)
	case *envelope.CertificateRequest:
		return s.certify(ctx, pin, device, id, r)
	}
	return nil, envelope.Errorf(envelope.CodeUnsupported, "%s is not supported", req.Type())
}

// list gives the enabled keys.
func (s *server) list(device Device) *envelope.KeyListResponse {
	now := s.current()
	r := &envelope.KeyListResponse{Keys: []envelope.PublicKey{}, CAKey: now.ca.Public.Marshal()}
	for _, k := range now.keys {
		if k.Enabled && k.Err == nil {
			r.Keys = append(r.Keys, envelope.PublicKey{
				Algorithm:     k.Public.Type(),
				PublicKeyBlob: k.Public.Marshal(),
				Comment:       k.Label,
				ProviderKind:  k.Provider,
				DisplayName:   k.Label,
			})
		}
	}
	s.log.Debug("keys listed", "device", device.Name, "keys", len(r.Keys))
	return r
}

// sign does what a sign request asks if the owner approves, and logs the
// outcome.
func (s *server) sign(ctx context.Context, pin transport.Pin, device Device, id string, r *envelope.SignRequest) (envelope.Payload, error) {
	start := s.now()
	e := requestEvent(device, id, r.CreatedAt.Time)
	signature, err := s.signLogged(ctx, pin, device, id, r, &e)
	if err := s.report(ctx, start, &e, err); err != nil {
		return nil, err
	}
	return &envelope.SignResponse{Signature: signature}, nil
}

// requestEvent begins what is said of a request.
func requestEvent(device Device, id string, created time.Time) Event {
	h := hashID(id)
	return Event{Event: EventRequest, Device: device.Name,
		record: audit.Record{Device: device.Name, Pin: device.Pin, ID: hex.EncodeToString(h[:]), CreatedAt: created}}
}

// report records, logs and announces what became of a request, and gives the error that
// the device is told.
func (s *server) report(ctx context.Context, start time.Time, e *Event, err error, about ...slog.Attr) error {
	level := slog.LevelInfo
	hint := ""
	e.Outcome = outcomeSigned
	refuse := func() {
		answer := answerFor(err)
		e.Outcome, e.Reason = string(answer.Code), answer.Message
		if answer.Code == envelope.CodeInternal { // the device is not told all of it
			e.Reason, hint = err.Error(), s.hint(err)
		}
		err = answer
		level = slog.LevelWarn
	}
	if err != nil {
		refuse()
	}
	tooMany, failed := s.recordAnswer(e)
	if tooMany {
		level = slog.LevelDebug
	}
	if failed != nil {
		s.log.Error("audit", "reason", failed)
		if err == nil {
			err = failed // what was signed is not given
			refuse()
		}
	}
	attrs := []slog.Attr{slog.String("device", e.Device), slog.String("operation", e.Operation),
		slog.String("key", e.Key), slog.String("outcome", e.Outcome), slog.Duration("after", s.now().Sub(start).Round(time.Millisecond))}
	attrs = append(attrs, about...)
	if e.Warning != "" {
		attrs = append(attrs, slog.String("warning", e.Warning))
	}
	if e.Reason != "" {
		attrs = append(attrs, slog.String("reason", e.Reason))
	}
	if hint != "" {
		attrs = append(attrs, slog.String("hint", hint))
	}
	s.log.LogAttrs(context.WithoutCancel(ctx), level, "request", attrs...)
	s.event(*e)
	return err
}

// answerFor is what the device is told of an error.
func answerFor(err error) *envelope.Error {
	var known *envelope.Error
	switch {
	case errors.As(err, &known):
		return known
	case errors.Is(err, ErrLocked):
		return envelope.Errorf(envelope.CodeLocked, "%v", ErrLocked)
	case errors.Is(err, ErrNotRecognized):
		return envelope.Errorf(envelope.CodeDenied, "%v", ErrNotRecognized)
	case errors.Is(err, ErrDenied):
		return envelope.Errorf(envelope.CodeDenied, "the owner said no")
	case errors.Is(err, errTooMany), errors.Is(err, errManyIDs), errors.Is(err, errManyVain):
		return envelope.Errorf(envelope.CodeTooMany, "%v", err)
	case errors.Is(err, errIDUsed):
		return envelope.Errorf(envelope.CodeBadRequest, "%v", err)
	case errors.Is(err, errExpired), errors.Is(err, context.DeadlineExceeded):
		return envelope.Errorf(envelope.CodeExpired, "%v", errExpired)
	case errors.Is(err, errRekeyed):
		return envelope.Errorf(envelope.CodeInternal, "%v", err)
	case errors.Is(err, errKeyGone):
		return envelope.Errorf(envelope.CodeUnknownKey, "%v", err)
	case errors.Is(err, errUnpaired):
		return envelope.Errorf(envelope.CodeNotPaired, "%v", err)
	case errors.Is(err, context.Canceled):
		return envelope.Errorf(envelope.CodeDenied, "withdrawn")
	}
	// Whose text may name files, programs and what else is nobody's business there.
	for _, known := range []error{tpm.ErrNoTPM, tpm.ErrLockout, tpm.ErrOwner, tpm.ErrOtherTPM, tpm.ErrTPM, audit.ErrNotRecorded, ErrHomeBusy} {
		if errors.Is(err, known) {
			return envelope.Errorf(envelope.CodeInternal, "%v; the signer's log says more", known)
		}
	}
	return envelope.Errorf(envelope.CodeInternal, "the signer could not do it; its log says why")
}

func (s *server) signLogged(ctx context.Context, pin transport.Pin, device Device, id string, r *envelope.SignRequest, e *Event) ([]byte, error) {
	now, expires, err := s.fresh(pin, id, r.CreatedAt.Time)
	if err != nil {
		return nil, err
	}
	m := signed.Parse(r.Data)
	e.Operation = m.Kind.String()
	e.record.Operation, e.record.User = e.Operation, m.User
	key := s.key(r.PublicKeyBlob)
	if key == nil {
		return nil, envelope.Errorf(envelope.CodeUnknownKey, "no such key")
	}
	e.Key = key.Label
	e.record.Key, e.record.Fingerprint = key.Label, fingerprint(key.Public)
	if !key.Enabled {
		return nil, envelope.Errorf(envelope.CodeUnknownKey, "the key %s is disabled", key.Label)
	}
	switch m.Kind {
	case signed.Login, signed.SSHSIG, signed.PAM:
	case signed.Certificate:
		return nil, envelope.Errorf(envelope.CodeDenied, opaqueAdvice+"a certificate")
	default:
		return nil, envelope.Errorf(envelope.CodeDenied, opaqueAdvice+"other data")
	}
	if err := signed.Check(m, key.Public, r.Flags); err != nil {
		return nil, envelope.Errorf(envelope.CodeBadRequest, "%v", err)
	}

	ctx, cancel := context.WithTimeoutCause(ctx, expires.Sub(now), errExpired)
	defer cancel()
	prompt := newPrompt(device, key, m, &r.Context, *s.hosts.Load())
	if prompt.Verified.warned() {
		e.Warning = otherKey
	}
	e.record.HostKey = prompt.Verified.HostKey
	approval, err := s.ask(ctx, e, promptKey{device: pin, key: string(r.PublicKeyBlob), data: sha256.Sum256(r.Data), session: string(m.SessionID)},
		prompt, expires)
	if err != nil {
		return nil, err
	}
	defer approval.done()
	// Much may have happened while the owner thought.
	mayStill := func() error {
		if err := s.stillAsked(ctx, pin, expires); err != nil {
			return err
		}
		if k := s.key(r.PublicKeyBlob); k == nil || !k.Enabled {
			return errKeyGone
		}
		return nil
	}
	if err := mayStill(); err != nil {
		return nil, err
	}
	sig, err := approval.key.Sign(rand.Reader, r.Data)
	if err != nil {
		return nil, err
	}
	if err := mayStill(); err != nil {
		return nil, err
	}
	// The owner's time and the request go on meanwhile.
	s.remember(ctx, approval.prompt, mayStill)
	if err := mayStill(); err != nil {
		return nil, err
	}
	return ssh.Marshal(sig), nil
}

// fresh marks a request's id as used and gives the present time and the end of
// the owner's time for an approval. Errors: errIDUsed, errManyIDs,
// *envelope.Error.
func (s *server) fresh(pin transport.Pin, id string, created time.Time) (now, expires time.Time, err error) {
	now = s.now()
	if err := s.seen.use(pin, hashID(id), now); err != nil {
		return now, now, err
	}
	if age := now.Sub(created); age > Freshness || age < -Freshness {
		return now, now, envelope.Errorf(envelope.CodeExpired, "the request is of %s by the device's clock, it is %s by the signer's: more than %s apart",
			created.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339), Freshness)
	}
	// A device's clock that is ahead gives the owner no more time.
	if now.Before(created) {
		created = now.Round(0)
	}
	return now, created.Add(Freshness), nil
}

// stillAsked says whether an approved request may go on: it was not withdrawn,
// is not too old, its device is paired, and the owner has not locked the signer. A
// timer does not run while the computer sleeps, so the clock is asked too.
func (s *server) stillAsked(ctx context.Context, pin transport.Pin, expires time.Time) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if s.now().After(expires) {
		return errExpired
	}
	if _, ok := s.current().state.Device(pin); !ok {
		return errUnpaired
	}
	if s.guard.isClosed() { // no prompt is left that could be withdrawn
		return ErrLocked
	}
	return nil
}

// key finds an identity by its blob, nil when there is none that can be used.
func (s *server) key(blob []byte) *Key {
	keys := s.current().keys
	for i := range keys {
		if keys[i].Err == nil && bytes.Equal(keys[i].Public.Marshal(), blob) {
			return &keys[i]
		}
	}
	return nil
}
