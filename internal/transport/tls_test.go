// SPDX-License-Identifier: BSD-3-Clause

package transport_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"strings"
	"testing"
	"time"

	"vmux.app/toolkit/internal/transport"
	"vmux.app/toolkit/internal/transport/conformance"
	"vmux.app/toolkit/internal/transport/mem"
)

// A stranger's TLS stack, as an attacker may set it up, against the phone.
func TestServerRefusesForeignHandshakes(t *testing.T) {
	t.Parallel()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	good := certificate(t, ec, ec.Public())
	protos := []string{transport.ProtoLink}
	for name, test := range map[string]struct {
		cfg  *tls.Config
		want string // in the server's error; empty when it must accept
	}{
		"as ours":           {&tls.Config{Certificates: []tls.Certificate{good}, NextProtos: protos}, ""},
		"TLS 1.2":           {&tls.Config{Certificates: []tls.Certificate{good}, NextProtos: protos, MaxVersion: tls.VersionTLS12}, "version"},
		"no certificate":    {&tls.Config{NextProtos: protos}, "certificate"},
		"no protocol":       {&tls.Config{Certificates: []tls.Certificate{good}}, "application protocol"},
		"other protocol":    {&tls.Config{Certificates: []tls.Certificate{good}, NextProtos: []string{"h2"}}, "application protocol"},
		"RSA certificate":   {&tls.Config{Certificates: []tls.Certificate{certificate(t, rsaKey, rsaKey.Public())}, NextProtos: protos}, "P-256"},
		"P-384 certificate": {&tls.Config{Certificates: []tls.Certificate{certificate(t, p384, p384.Public())}, NextProtos: protos}, "P-256"},
		"two certificates":  {&tls.Config{Certificates: []tls.Certificate{chain(good, good)}, NextProtos: protos}, "2 certificates"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			here, there := mem.Pipe()
			accepted := make(chan error, 1)
			go func() {
				c, err := transport.Server(context.Background(), there, conformance.NewIdentity(t), func(string, transport.Pin) error { return nil })
				if err == nil {
					defer c.Close()
				}
				accepted <- err
			}()
			test.cfg.InsecureSkipVerify = true
			client := tls.Client(here, test.cfg)
			client.HandshakeContext(t.Context())
			err := <-accepted
			here.Close()
			switch {
			case test.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("error %v, want one about %q", err, test.want)
			}
		})
	}
}

func certificate(t *testing.T, key, public any) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func chain(a, b tls.Certificate) tls.Certificate {
	a.Certificate = append(a.Certificate[:1:1], b.Certificate...)
	return a
}

func TestPin(t *testing.T) {
	t.Parallel()
	p := conformance.NewIdentity(t).Pin()
	if got, err := transport.ParsePin(p.String()); err != nil || got != p {
		t.Errorf("%s read as %v, %v", p, got, err)
	}
	for _, s := range []string{"", "SHA256:", p.String() + "=", p.String()[:40], "MD5:00", strings.ToLower(p.String())} {
		if got, err := transport.ParsePin(s); err == nil && got == p {
			t.Errorf("%q accepted", s)
		}
	}
}
