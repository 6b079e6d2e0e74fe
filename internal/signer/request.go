// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"log/slog"
	"time"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/signed"
	"vmux.app/toolkit/internal/transport"
)

// Causes with which a waiting request ends.
var (
	errExpired  = errors.New("no approval within a minute of the request")
	errKeyGone  = errors.New("the key was disabled or removed")
	errUnpaired = errors.New("the device was forgotten")
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
	}
	return nil, envelope.Errorf(envelope.CodeUnsupported, "%s is not supported", req.Type())
}

// list gives the enabled keys.
func (s *server) list(device Device) *envelope.KeyListResponse {
	now := s.current()
	r := &envelope.KeyListResponse{Keys: []envelope.PublicKey{}, CAKey: now.ca.Marshal()}
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
	e := Event{Event: EventRequest, Device: device.Name}
	signature, err := s.signLogged(ctx, pin, device, id, r, &e)
	level := slog.LevelInfo
	if err != nil {
		answer := answerFor(err)
		e.Outcome, err = string(answer.Code), answer
		e.Reason = answer.Message
		level = slog.LevelWarn
	} else {
		e.Outcome = "signed"
	}
	attrs := []slog.Attr{slog.String("device", e.Device), slog.String("operation", e.Operation),
		slog.String("key", e.Key), slog.String("outcome", e.Outcome), slog.Duration("after", s.now().Sub(start).Round(time.Millisecond))}
	if e.Reason != "" {
		attrs = append(attrs, slog.String("reason", e.Reason))
	}
	s.log.LogAttrs(context.WithoutCancel(ctx), level, "request", attrs...)
	s.event(e)
	if err != nil {
		return nil, err
	}
	return &envelope.SignResponse{Signature: signature}, nil
}

// answerFor is what the device is told of an error.
func answerFor(err error) *envelope.Error {
	var known *envelope.Error
	switch {
	case errors.As(err, &known):
		return known
	case errors.Is(err, ErrDenied):
		return envelope.Errorf(envelope.CodeDenied, "the owner said no")
	case errors.Is(err, errTooMany), errors.Is(err, errManyIDs):
		return envelope.Errorf(envelope.CodeTooMany, "%v", err)
	case errors.Is(err, errIDUsed):
		return envelope.Errorf(envelope.CodeBadRequest, "%v", err)
	case errors.Is(err, errExpired), errors.Is(err, context.DeadlineExceeded):
		return envelope.Errorf(envelope.CodeExpired, "%v", errExpired)
	case errors.Is(err, errKeyGone):
		return envelope.Errorf(envelope.CodeUnknownKey, "%v", err)
	case errors.Is(err, errUnpaired):
		return envelope.Errorf(envelope.CodeNotPaired, "%v", err)
	case errors.Is(err, context.Canceled):
		return envelope.Errorf(envelope.CodeDenied, "withdrawn")
	}
	return envelope.Errorf(envelope.CodeInternal, "%v", err)
}

func (s *server) signLogged(ctx context.Context, pin transport.Pin, device Device, id string, r *envelope.SignRequest, e *Event) ([]byte, error) {
	now := s.now()
	if err := s.seen.use(pin, id, now); err != nil {
		return nil, err
	}
	created := r.CreatedAt.Time
	if age := now.Sub(created); age > Freshness || age < -Freshness {
		return nil, envelope.Errorf(envelope.CodeExpired, "the request is of %s by the device's clock, it is %s by the signer's: more than %s apart",
			created.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339), Freshness)
	}
	m := signed.Parse(r.Data)
	e.Operation = m.Kind.String()
	key := s.key(r.PublicKeyBlob)
	if key == nil {
		return nil, envelope.Errorf(envelope.CodeUnknownKey, "no such key")
	}
	e.Key = key.Label
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

	// A device's clock that is ahead gives the owner no more time.
	from := created
	if now.Before(from) {
		from = now.Round(0)
	}
	expires := from.Add(Freshness)
	ctx, cancel := context.WithTimeoutCause(ctx, expires.Sub(now), errExpired)
	defer cancel()
	err := s.prompts.ask(ctx, promptKey{pin, string(r.PublicKeyBlob), sha256.Sum256(r.Data)},
		newPrompt(device, key, m, &r.Context), expires)
	if err != nil {
		return nil, err
	}
	// Much may have happened while the owner thought. The timer above does not
	// run while the computer sleeps, so the clock is asked too.
	mayStill := func() error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if s.now().After(expires) {
			return errExpired
		}
		if _, ok := s.current().state.Device(pin); !ok {
			return errUnpaired
		}
		if k := s.key(r.PublicKeyBlob); k == nil || !k.Enabled {
			return errKeyGone
		}
		return nil
	}
	if err := mayStill(); err != nil {
		return nil, err
	}
	sig, err := key.signer.Sign(rand.Reader, r.Data)
	if err != nil {
		return nil, err
	}
	if err := mayStill(); err != nil {
		return nil, err
	}
	return ssh.Marshal(sig), nil
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
