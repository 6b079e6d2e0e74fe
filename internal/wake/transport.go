// SPDX-License-Identifier: BSD-3-Clause

package wake

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/wake/apns"
)

const (
	maxBody   = 4 << 10  // an answer has one short JSON object
	maxHeader = 16 << 10 // of an answer
	maxReason = 64       // the longest code that Apple documents has 27 letters
	maxCAFile = 1 << 20  // the system's own bundle has a quarter of it

	dialTimeout = 5 * time.Second
	// pingAfter and pingTimeout find a connection dead that was kept while the computer slept, before the request
	// that uses it runs out of time.
	pingAfter   = 3 * time.Second
	pingTimeout = 2 * time.Second
	// idleTimeout: Apple wants connections to be kept, a laptop moves on.
	idleTimeout = 5 * time.Minute
)

// errNoHTTP2 says what the other end does not speak.
var errNoHTTP2 = errors.New("another protocol was agreed on")

// newTransport returns what apns2's own client does not: dials end with their context, and nothing but HTTP/2 over TLS
// 1.2 or later is spoken, directly or through the proxy of HTTPS_PROXY. Errors: *apns.OptionError.
func newTransport(o Options) (*http.Transport, error) {
	roots, err := readRoots(o.CAFile)
	if err != nil {
		return nil, err
	}
	dial := o.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	t := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            dial,
		TLSHandshakeTimeout:    dialTimeout,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxHeader,
		DisableCompression:     true,
		Protocols:              new(http.Protocols),
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS12,
			RootCAs:    roots,
			// Before the authorization is sent: a server that knows no ALPN would get it as HTTP/1.1.
			VerifyConnection: func(s tls.ConnectionState) error {
				if s.NegotiatedProtocol != "h2" {
					return errNoHTTP2
				}
				return nil
			},
		},
	}
	t.Protocols.SetHTTP2(true)
	return t, nil
}

// readRoots returns nil, the system's, without a path.
func readRoots(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	wrong := func(problem string, err error) error {
		return &apns.OptionError{Option: "wake.ca-file", Problem: problem, Err: err, Want: "--ca-file FILE, with a certificate in PEM (-----BEGIN CERTIFICATE-----)"}
	}
	b, err := store.ReadFile(path, maxCAFile)
	switch {
	case errors.Is(err, store.ErrTooLarge):
		return nil, wrong(fmt.Sprintf("%s is %v", path, err), err)
	case err != nil:
		return nil, wrong(fmt.Sprintf("cannot be read: %v", err), err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(b) {
		return nil, wrong(path+" has no certificate", nil)
	}
	return roots, nil
}

// exchange sends one request, and hands to apns2 an answer that it can decode: apns2 reads without a limit, and
// drops the status when the body is not what it expects.
type exchange struct {
	next       http.RoundTripper
	retryAfter time.Duration // out: what the answer asked for
}

func (e *exchange) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("User-Agent", "") // none
	resp, err := e.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	resp.Body.Close()
	if err != nil {
		return nil, err
	}
	e.retryAfter = retryAfter(resp.Header.Get("Retry-After"), time.Now())
	// Members that Apple may add are let pass.
	var v struct {
		Reason    string `json:"reason,omitzero"`
		Timestamp int64  `json:"timestamp,omitzero"` // milliseconds
	}
	if len(b) > maxBody || json.Unmarshal(b, &v) != nil || len(v.Reason) > maxReason || v.Timestamp < 0 {
		v.Reason, v.Timestamp = "", 0
	}
	if b, err = json.Marshal(v); err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(b))
	return resp, nil
}

// retryAfter reads the header (RFC 9110 section 10.2.3), zero for none.
func retryAfter(s string, now time.Time) time.Duration {
	if s == "" {
		return 0
	}
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(s); err == nil {
		return max(t.Sub(now), 0)
	}
	return 0
}

// connectError sorts why no answer came. The URL in an *url.Error has the device token and is dropped.
func connectError(endpoint string, err error) error {
	if errors.Is(err, context.Canceled) {
		return context.Canceled
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	e := &apns.ConnectError{Host: hostOf(endpoint), Problem: apns.NoConnection, Err: err}
	_, bad := errors.AsType[*tls.CertificateVerificationError](err)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		e.Problem = apns.NoAnswer
	case bad:
		e.Problem = apns.BadCertificate
	case errors.Is(err, errNoHTTP2), errors.Is(err, http.ErrSchemeMismatch), strings.Contains(err.Error(), "tls: "): // alerts have no exported type
		e.Problem = apns.NoHTTP2
	}
	return e
}
