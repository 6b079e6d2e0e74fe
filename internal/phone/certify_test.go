// SPDX-License-Identifier: BSD-3-Clause

package phone

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/transport/conformance"
)

// Which phone's authority is asked.
func TestAuthority(t *testing.T) {
	t.Parallel()
	ca := testKey(t, "ca").PublicKeyBlob
	pins := make([]string, 3)
	for i := range pins {
		pins[i] = conformance.NewIdentity(t).Pin().String()
	}
	phone := func(i int, label string, ca []byte) store.Phone {
		k := testKey(t, label)
		return store.Phone{Name: label, Pin: pins[i], PairedAt: time.Now(), CAKey: ca,
			Keys: []store.Key{{Algorithm: k.Algorithm, Blob: k.PublicKeyBlob, ProviderKind: "unknown", DisplayName: label}}}
	}
	one, two, none := phone(0, "one", ca), phone(1, "two", testKey(t, "ca").PublicKeyBlob), phone(2, "none", nil)
	for name, test := range map[string]struct {
		phones   []store.Phone
		pin, id  string
		want     string
		wanted   error
		wantedCA error
	}{
		"no phone":            {wanted: ErrNotPaired},
		"the only one":        {phones: []store.Phone{one}, want: pins[0]},
		"the only with one":   {phones: []store.Phone{none, two}, want: pins[1]},
		"none has one":        {phones: []store.Phone{none}, wanted: ErrNoCA},
		"several":             {phones: []store.Phone{one, two}, wanted: ErrWhichPhone},
		"by identity":         {phones: []store.Phone{one, two}, id: "two", want: pins[1]},
		"by pin":              {phones: []store.Phone{one, two}, pin: pins[0], want: pins[0]},
		"unknown identity":    {phones: []store.Phone{one, two}, id: "three", wanted: ErrNoIdentity},
		"unknown pin":         {phones: []store.Phone{one}, pin: pins[1], wanted: ErrNotPaired},
		"identity without CA": {phones: []store.Phone{one, none}, id: "none", want: pins[2], wantedCA: ErrNoCA},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			keep := new(store.Memory)
			if err := keep.Update(func(s *store.State) error { s.Phones = test.phones; return nil }); err != nil {
				t.Fatal(err)
			}
			r := &rig{device: conformance.NewIdentity(t), keep: keep}
			o := r.options()
			o.Networks = nil
			set, err := NewSet(o)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(set.Close)
			p, err := set.authority(test.pin, test.id)
			if !errors.Is(err, test.wanted) || err == nil && p.pin.String() != test.want {
				t.Errorf("%v, %v", p, err)
			}
			if test.wantedCA != nil {
				if _, _, err := set.Certify(t.Context(), test.pin, envelope.CertificateRequest{Identity: test.id}); !errors.Is(err, test.wantedCA) {
					t.Errorf("certify: %v", err)
				}
			}
		})
	}
}

// The request is dated and named as a signature's is, and the pinned key comes
// with the answer.
func TestCertify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		ca := testKey(t, "ca").PublicKeyBlob
		r.ca = ca
		r.certify = func(_ context.Context, q *envelope.CertificateRequest) (envelope.Payload, error) {
			if q.Context.Device != "laptop" || !q.CreatedAt.Equal(envelope.At(time.Now()).Time) || q.Validity != 60 {
				return nil, envelope.Errorf(envelope.CodeBadRequest, "%+v", q)
			}
			return &envelope.CertificateResponse{Certificate: []byte("certificate")}, nil
		}
		if err := r.keep.Update(func(s *store.State) error { s.Phones[0].CAKey = ca; return nil }); err != nil {
			t.Fatal(err)
		}
		if err := r.set.Reload(); err != nil {
			t.Fatal(err)
		}
		r.serve(t, "phone:1", r.paired)
		request := envelope.CertificateRequest{PublicKeyBlob: r.key.PublicKeyBlob, Principals: []string{"me"}, Validity: 60, KeyID: "id",
			CriticalOptions: []envelope.Option{}, Extensions: []envelope.Option{}}
		certificate, pinned, err := r.set.Certify(t.Context(), "", request)
		if err != nil || string(certificate) != "certificate" || !bytes.Equal(pinned, ca) {
			t.Errorf("%q, pinned %x, %v", certificate, pinned, err)
		}
		r.certify = func(context.Context, *envelope.CertificateRequest) (envelope.Payload, error) {
			return nil, envelope.Errorf(envelope.CodeDenied, "no")
		}
		if _, _, err := r.set.Certify(t.Context(), "", request); !errors.Is(err, ErrDenied) {
			t.Errorf("denied: %v", err)
		}
	})
}

// The authority that was pinned at pairing stays the one that counts.
func TestOtherAuthority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		pinned, other := testKey(t, "ca").PublicKeyBlob, testKey(t, "other").PublicKeyBlob
		if err := r.keep.Update(func(s *store.State) error { s.Phones[0].CAKey = pinned; return nil }); err != nil {
			t.Fatal(err)
		}
		if err := r.set.Reload(); err != nil {
			t.Fatal(err)
		}
		r.ca = other
		r.serve(t, "phone:1", r.paired)
		if _, err := r.ask(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if state, _ := r.keep.Load(); !bytes.Equal(state.Phones[0].CAKey, pinned) || state.Phones[0].Address == "" {
			t.Errorf("the pinned authority has changed: %+v", state.Phones[0])
		}
	})
}
