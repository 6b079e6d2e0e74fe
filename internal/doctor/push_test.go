// SPDX-License-Identifier: BSD-3-Clause

package doctor_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"vmux.app/toolkit/internal/doctor"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/wake/apnstest"
)

const (
	pushKey  = ".ssh/vmux-apns.p8"
	pushToml = "[wake]\nkey-id = \"ABC123DEFG\"\nteam-id = \"DEF123GHIJ\"\n"
)

// push sets up a push to the patient's phone, by way of a service that never
// gets one.
func (p *patient) push() *apnstest.Server {
	p.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		p.t.Fatal(err)
	}
	write(p.t, p.file(pushKey), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), 0o600)
	s := apnstest.New(p.t, apnstest.Options{Key: &key.PublicKey, KeyID: "ABC123DEFG", TeamID: "DEF123GHIJ"})
	p.toml(pushToml + fmt.Sprintf("endpoint = %q\nca-file = %q\n", s.URL, s.CAFile()))
	p.state(func(s *store.State) {
		s.Phones[0].DeviceToken = store.DeviceToken{Token: "ab12", Environment: "sandbox", Topic: "app.x", Updated: time.Now()}
	})
	return s
}

func TestPushIsWell(t *testing.T) {
	t.Parallel()
	p := healthy(t)
	s := p.push()
	p.turns(want{id: "push-key", level: doctor.OK, found: "P-256, key id ABC123DEFG of team DEF123GHIJ"})
	p.turns(want{id: "push-token", level: doctor.OK, found: "Pocket (sandbox, of "})
	p.turns(want{id: "push-endpoint", level: doctor.OK, found: strings.TrimPrefix(s.URL, "https://") + " in "}, "push-endpoint")
	for _, asked := range s.Pushes() {
		if asked.DeviceToken != "/" || len(asked.Payload) > 0 || asked.Header.Get("authorization") != "" {
			t.Errorf("pushed: %+v", asked)
		}
	}
	s.Problems() // what asks for nothing is no push, and none of Apple's rules is for it
}

func TestPushIsBroken(t *testing.T) {
	t.Parallel()
	const warn, fail = doctor.Warning, doctor.Failure
	for _, tt := range []struct {
		name   string
		damage func(p *patient)
		want   want
	}{
		{"key open", func(p *patient) { p.chmod(pushKey, 0o640) },
			want{id: "push-key", level: fail, found: "0640", do: "chmod 600"}},
		{"key missing", func(p *patient) { p.remove(pushKey) },
			want{id: "push-key", level: fail, found: "there is no push key", do: "move the key there"}},
		{"no key", func(p *patient) { write(p.t, p.file(pushKey), "x", 0o600) },
			want{id: "push-key", level: fail, found: "PEM", do: "AuthKey_ID.p8"}},
		{"no key id", func(p *patient) { p.toml("[wake]\nteam-id = \"DEF123GHIJ\"\n") },
			want{id: "push-key", level: fail, found: "wake.key-id is not set", do: "key-id"}},
		{"no team id", func(p *patient) { p.toml("[wake]\nkey-id = \"ABC123DEFG\"\n") },
			want{id: "push-key", level: fail, found: "wake.team-id is not set", do: "team-id"}},
		{"no token", func(p *patient) {
			p.state(func(s *store.State) { s.Phones[0].DeviceToken = store.DeviceToken{} })
		},
			want{id: "push-token", level: warn, found: "Pocket: no phone has sent a device token", do: "connect once"}},
		{"other environment", func(p *patient) { p.toml(pushToml + "environment = \"production\"\n") },
			want{id: "push-token", level: warn, found: "wake.environment is production, Pocket says sandbox", do: "wake.environment"}},
		{"other topic", func(p *patient) { p.toml(pushToml + "topic = \"app.y\"\n") },
			want{id: "push-token", level: warn, found: "wake.topic is app.y, Pocket says app.x", do: "wake.topic"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := healthy(t)
			p.push()
			tt.damage(p)
			p.turns(tt.want)
		})
	}
	t.Run("endpoint away", func(t *testing.T) {
		t.Parallel()
		p := healthy(t)
		p.push()
		p.DialPush = func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}
		}
		p.turns(want{id: "push-endpoint", level: fail, found: "cannot be reached", do: "curl -v https://"}, "push-endpoint")
	})
	t.Run("endpoint's certificate", func(t *testing.T) {
		t.Parallel()
		p := healthy(t)
		s := p.push()
		p.toml(pushToml + fmt.Sprintf("endpoint = %q\n", s.URL))
		p.turns(want{id: "push-endpoint", level: fail, found: "is not to be trusted", do: "--ca-file"}, "push-endpoint")
	})
}
