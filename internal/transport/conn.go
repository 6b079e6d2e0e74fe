// SPDX-License-Identifier: BSD-3-Clause

// Package transport finds the other end of a link and carries envelopes to it
// and back: TLS 1.3 with pinned certificates over any reliable stream, framing,
// and requests that are answered out of order.
//
// The streams come from a Network: package lan over TCP, package mem in tests.
package transport

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"vmux.app/toolkit/internal/envelope"
)

// The application protocols of a link (RFC 7301). A connection is for one of
// them from its handshake on.
const (
	ProtoLink = "vmux/1"
	ProtoPair = "vmux-pair/1"
)

// writeTimeout bounds one envelope's way into the network. A peer that takes
// nothing for so long is gone.
const writeTimeout = 10 * time.Second

var (
	// ErrWrongPeer says that the other end showed a certificate that is not the
	// pinned one.
	ErrWrongPeer = errors.New("the other end is not the one that was paired")
	// ErrRefused says that the other end does not accept our certificate.
	ErrRefused = errors.New("the other end does not know this device")

	// errEncode says that an envelope could not be sent and the connection is as
	// it was.
	errEncode = errors.New("envelope cannot be sent")
)

// Conn is one authenticated, encrypted connection that carries envelopes. One
// goroutine may receive while others send.
type Conn struct {
	tls   *tls.Conn
	peer  Pin
	proto string
	in    *bufio.Reader
	wmu   sync.Mutex
}

// Server does the phone's part of the handshake on raw, within ctx. It asks
// accept about the protocol and the peer's pin before the handshake completes,
// and closes raw when anything fails.
func Server(ctx context.Context, raw net.Conn, id *Identity, accept func(proto string, peer Pin) error) (*Conn, error) {
	cfg := config(id, []string{ProtoLink, ProtoPair}, func(cs tls.ConnectionState, peer Pin) error {
		return accept(cs.NegotiatedProtocol, peer)
	})
	cfg.ClientAuth = tls.RequireAnyClientCert
	return handshake(ctx, raw, tls.Server(raw, cfg))
}

// Client does the device's part of the handshake on raw for proto, within ctx.
// It asks accept about the peer's pin before it shows its own certificate, and
// closes raw when anything fails.
//
// A server that refuses our certificate shows that at the first Receive only.
func Client(ctx context.Context, raw net.Conn, id *Identity, proto string, accept func(peer Pin) error) (*Conn, error) {
	cfg := config(id, []string{proto}, func(_ tls.ConnectionState, peer Pin) error { return accept(peer) })
	return handshake(ctx, raw, tls.Client(raw, cfg))
}

// config is what both ends share. The certificate's chain and name mean
// nothing here, so that verification is ours alone; it is in VerifyConnection,
// which runs on every handshake.
func config(id *Identity, protos []string, accept func(tls.ConnectionState, Pin) error) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{id.cert},
		NextProtos:             protos,
		SessionTicketsDisabled: true,
		InsecureSkipVerify:     true, // no authority is involved: VerifyConnection checks the pin
		VerifyConnection: func(cs tls.ConnectionState) error {
			peer, err := check(cs, protos)
			if err != nil {
				return err
			}
			return accept(cs, peer)
		},
	}
}

// check reads the peer's pin from a handshake and refuses what our own ends
// never do.
func check(cs tls.ConnectionState, protos []string) (Pin, error) {
	switch {
	case cs.Version != tls.VersionTLS13:
		return Pin{}, errors.New("not TLS 1.3")
	case cs.DidResume:
		return Pin{}, errors.New("resumed session")
	case len(cs.PeerCertificates) != 1:
		return Pin{}, fmt.Errorf("%d certificates, not 1", len(cs.PeerCertificates))
	}
	leaf := cs.PeerCertificates[0]
	if key, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		return Pin{}, errors.New("certificate key is not on P-256")
	}
	for _, p := range protos {
		if cs.NegotiatedProtocol == p {
			return pinOf(leaf), nil
		}
	}
	return Pin{}, errors.New("no application protocol in common")
}

func handshake(ctx context.Context, raw net.Conn, t *tls.Conn) (*Conn, error) {
	if err := t.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	cs := t.ConnectionState()
	return &Conn{tls: t, peer: pinOf(cs.PeerCertificates[0]), proto: cs.NegotiatedProtocol, in: bufio.NewReader(t)}, nil
}

// asRefused tells a TLS alert of the other end from other failures. After our
// part of the handshake, in which the other end has proved its pin, there is one
// reason for it: our certificate.
func asRefused(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		return fmt.Errorf("%w (%w)", ErrRefused, err)
	}
	return err
}

// Peer is the pin that the other end proved in the handshake.
func (c *Conn) Peer() Pin { return c.peer }

// Proto is the application protocol of the connection.
func (c *Conn) Proto() string { return c.proto }

// RemoteAddr is where the other end is.
func (c *Conn) RemoteAddr() net.Addr { return c.tls.RemoteAddr() }

// Exporter derives n bytes from the handshake that only the two ends of this
// very connection have (RFC 8446 section 7.5).
func (c *Conn) Exporter(label string, n int) ([]byte, error) {
	cs := c.tls.ConnectionState()
	return cs.ExportKeyingMaterial(label, nil, n)
}

// Send writes one envelope. It fails when the other end takes nothing for 10 s.
// After a failure the connection is of no more use, unless the envelope itself
// was at fault.
func (c *Conn) Send(e envelope.Envelope) error {
	b, err := envelope.Encode(e)
	if err != nil {
		return fmt.Errorf("%w: %w", errEncode, err)
	}
	return c.SendFrame(b)
}

// SendFrame writes one envelope that is encoded already.
func (c *Conn) SendFrame(b []byte) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if err := c.tls.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	return envelope.WriteFrame(c.tls, b)
}

// Receive reads the next envelope. An *envelope.Error is about that envelope
// alone and the connection goes on; after any other error it is of no more use.
// io.EOF is the other end's orderly close.
func (c *Conn) Receive() (envelope.Envelope, error) {
	b, err := envelope.ReadFrame(c.in)
	if err != nil {
		return envelope.Envelope{}, asRefused(err)
	}
	return envelope.Decode(b)
}

// SetReadDeadline bounds Receive.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.tls.SetReadDeadline(t) }

// Close ends the connection, whoever waits on it.
func (c *Conn) Close() error { return c.tls.Close() }
