// SPDX-License-Identifier: BSD-3-Clause

package wake

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"vmux.app/toolkit/internal/wake/apns"
	"vmux.app/toolkit/internal/wake/apnstest"
)

// otherServer starts a server that is no push service, and gives a client for it.
func otherServer(t *testing.T, r *rig, h2 bool, h http.HandlerFunc, change ...func(*httptest.Server)) *Client {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = h2
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	for _, f := range change {
		f(s)
	}
	s.StartTLS()
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	o := r.client.options
	o.Endpoint, o.CAFile = s.URL, ca
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// Nothing but HTTP/2 over TLS 1.2 or later, with a certificate to trust, ever gets the authorization.
func TestOnlyHTTP2(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		h2      bool
		change  func(*httptest.Server)
		problem apns.ConnectProblem
	}{
		"HTTP/1.1": {false, func(*httptest.Server) {}, apns.NoHTTP2},
		"no ALPN":  {false, func(s *httptest.Server) { s.TLS = &tls.Config{NextProtos: nil, GetConfigForClient: withoutALPN(s)} }, apns.NoHTTP2},
		"TLS 1.1": {true, func(s *httptest.Server) {
			s.TLS = &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
		}, apns.NoHTTP2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var requests atomic.Int32
			r := newRig(t, nil)
			client := otherServer(t, r, c.h2, func(http.ResponseWriter, *http.Request) { requests.Add(1) }, c.change)
			_, err := client.Push(t.Context(), target, Alert, time.Time{})
			if e, ok := errors.AsType[*apns.ConnectError](err); !ok || e.Problem != c.problem || requests.Load() != 0 {
				t.Errorf("%v, %d requests", err, requests.Load())
			}
		})
	}
	t.Run("no TLS", func(t *testing.T) {
		t.Parallel()
		var requests atomic.Int32
		plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { requests.Add(1) }))
		defer plain.Close()
		r := newRig(t, nil)
		o := r.client.options
		o.Endpoint = "https" + strings.TrimPrefix(plain.URL, "http")
		client, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		_, err = client.Push(t.Context(), target, Alert, time.Time{})
		if e, ok := errors.AsType[*apns.ConnectError](err); !ok || e.Problem != apns.NoHTTP2 || requests.Load() != 0 {
			t.Errorf("%v, %d requests", err, requests.Load())
		}
	})
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		r := newRig(t, func(so *apnstest.Options, _ *Options) {
			so.Config = func(s *httptest.Server) { s.TLS = &tls.Config{MinVersion: version, MaxVersion: version} }
		})
		if _, err := r.push(t, Alert); err != nil {
			t.Errorf("TLS %#x: %v", version, err)
		}
	}
}

// withoutALPN makes a server that knows no ALPN, as old ones: what it gets it takes for HTTP/1.1.
func withoutALPN(s *httptest.Server) func(*tls.ClientHelloInfo) (*tls.Config, error) {
	return func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{Certificates: s.TLS.Certificates}, nil
	}
}

// A certificate of somebody else gets nothing.
func TestWrongCertificate(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*rig, *Options){
		"the system's authorities": func(_ *rig, o *Options) { o.CAFile = "" },
		"another name":             func(_ *rig, o *Options) { o.Endpoint = strings.Replace(o.Endpoint, "127.0.0.1", "localhost", 1) },
	} {
		r := newRig(t, nil)
		o := r.client.options
		change(r, &o)
		client, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		res, err := client.Push(ctx, target, Alert, time.Time{})
		if e, ok := errors.AsType[*apns.ConnectError](err); !ok || e.Problem != apns.BadCertificate || res.Attempts != 1 || len(r.Pushes()) != 0 {
			t.Errorf("%s: %+v, %v, %d pushes", name, res, err, len(r.Pushes()))
		}
	}
}
