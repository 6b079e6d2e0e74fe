// SPDX-License-Identifier: BSD-3-Clause

package wake

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vmux.app/toolkit/internal/wake/apns"
	"vmux.app/toolkit/internal/wake/apnstest"
)

const (
	keyID  = "ABC123DEFG"
	teamID = "DEF123GHIJ"
	topic  = "app.vmux.test"
	device = "d1e2f3a4b5c6d7e8f9a0b1c2d3e4f5a6b7c8d9e0f1a2b3c4d5e6f7a8b9c0d1e2"
)

var target = Target{device, topic, apns.Production}

// writeKey writes a push key and gives its path.
func writeKey(t *testing.T) string {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "key.p8")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func newKey(t *testing.T) *apns.Key {
	t.Helper()
	k, err := apns.LoadKey(writeKey(t))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// rig is a push service and a client of it.
type rig struct {
	*apnstest.Server
	key    *apns.Key
	client *Client
	log    *bytes.Buffer
}

func newRig(t *testing.T, change func(*apnstest.Options, *Options)) *rig {
	t.Helper()
	r := &rig{key: newKey(t), log: new(bytes.Buffer)}
	so := apnstest.Options{Key: r.key.Public(), KeyID: keyID, TeamID: teamID, Topic: topic, Token: device}
	co := Options{Key: r.key, KeyID: keyID, TeamID: teamID, Log: slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	if change != nil {
		change(&so, &co)
	}
	r.Server = apnstest.New(t, so)
	if co.Endpoint == "" {
		co.Endpoint = r.URL
	}
	if co.CAFile == "" {
		co.CAFile = r.CAFile()
	}
	c, err := New(co)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	r.client = c
	return r
}

// push pushes with a deadline.
func (r *rig) push(t *testing.T, kind Kind) (Result, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return r.client.Push(ctx, target, kind, time.Time{})
}

// bubble runs f where time is synctest's, with the network in memory.
func bubble(t *testing.T, f func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := &memory{conns: make(chan net.Conn), done: make(chan struct{})}
		r := newRig(t, func(so *apnstest.Options, co *Options) { so.Listener, co.Dial = l, l.dial })
		f(t, r)
		r.client.Close()
	})
}

// memory is a listener without a network.
type memory struct {
	conns chan net.Conn
	done  chan struct{}
}

func (l *memory) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return client, nil
	case <-l.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *memory) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *memory) Close() error {
	select {
	case <-l.done:
	default:
		close(l.done)
	}
	return nil
}

func (l *memory) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 443} }

// The whole of what goes out.
func TestPush(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		kind    Kind
		headers map[string]string
		payload string
	}{
		{Alert, map[string]string{"apns-push-type": "alert", "apns-priority": "10", "apns-collapse-id": "vmux"},
			`{"aps":{"alert":{"body":"A device that is paired with this phone asks.","title":"SSH Sign Request"},"content-available":1,"interruption-level":"time-sensitive"}}`},
		{Silent, map[string]string{"apns-push-type": "background", "apns-priority": "5"}, `{"aps":{"content-available":1}}`},
	} {
		r := newRig(t, nil)
		before := time.Now()
		res, err := r.push(t, c.kind)
		if err != nil {
			t.Fatal(err)
		}
		p := r.Pushes()[0]
		if res.Status != 200 || res.Attempts != 1 || res.ID != p.Header.Get("apns-id") {
			t.Errorf("%+v", res)
		}
		if string(p.Payload) != c.payload {
			t.Errorf("payload %s, not %s", p.Payload, c.payload)
		}
		expires, err := strconv.ParseInt(p.Header.Get("apns-expiration"), 10, 64)
		if at := time.Unix(expires, 0); err != nil || at.Before(before.Add(59*time.Second)) || at.After(time.Now().Add(time.Minute)) {
			t.Errorf("expires at %v: %v", at, err)
		}
		want := map[string]string{"apns-topic": topic, "apns-id": res.ID, "apns-expiration": fmt.Sprint(expires), "authorization": "bearer " + p.Bearer,
			"content-type": "application/json; charset=utf-8", "content-length": fmt.Sprint(len(c.payload))}
		for name, value := range c.headers {
			want[name] = value
		}
		for name := range p.Header {
			if value := want[strings.ToLower(name)]; p.Header.Get(name) != value {
				t.Errorf("%s is %q, not %q", name, p.Header.Get(name), value)
			}
			delete(want, strings.ToLower(name))
		}
		if len(want) != 0 {
			t.Errorf("not sent: %v", want)
		}
	}
}

// A push ends with the request that it is for.
func TestExpires(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	end := time.Now().Add(17 * time.Second)
	if _, err := r.client.Push(t.Context(), target, Alert, end); err != nil {
		t.Fatal(err)
	}
	if got := r.Pushes()[0].Header.Get("apns-expiration"); got != fmt.Sprint(end.Unix()) {
		t.Errorf("expires at %s, not %d", got, end.Unix())
	}
}
