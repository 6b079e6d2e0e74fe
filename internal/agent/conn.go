// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime/debug"
	"time"

	"golang.org/x/crypto/cryptobyte"

	"vmux.app/toolkit/internal/unixsock"
)

// Message numbers of RFC 9987, section 6.1.
const (
	msgFailure             = 5
	msgSuccess             = 6
	msgRequestIdentities   = 11
	msgIdentitiesAnswer    = 12
	msgSignRequest         = 13
	msgSignResponse        = 14
	msgAdd                 = 17
	msgRemove              = 18
	msgRemoveAll           = 19
	msgAddCard             = 20
	msgRemoveCard          = 21
	msgLock                = 22
	msgUnlock              = 23
	msgAddConstrained      = 25
	msgAddCardConstrained  = 26
	msgExtension           = 27
	msgExtensionFailure    = 28
	msgExtensionResponse   = 29
	lengthField            = 4
	adviceKeysOnPhone      = "keys live on the phone: add and remove them there, or with vmux-signer key"
	adviceCardsNotServed   = "smartcards are served by ssh-agent, not by vmux-agent"
	adviceUnknownExtension = "extension is not served"
)

var errHungUp = errors.New("the client hung up")

// conn is one connection. All of it belongs to the goroutine of serve; while that waits for a slow answer, in belongs
// to its read-ahead.
type conn struct {
	server *Server
	ctx    context.Context // ends when the client hangs up or the server stops
	cancel context.CancelCauseFunc
	raw    net.Conn
	in     frames
	out    []byte // the last reply; its memory is used again
	peer   Peer
	binds  binds
	// executable is the client's program at the first request to sign, for the log.
	executable string
}

// serve answers one connection until the client hangs up, breaks the framing, or ctx ends.
func (s *Server) serve(ctx context.Context, raw net.Conn) {
	defer raw.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { raw.Close() })()
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("closing a connection after a fault in the agent", "fault", p, "stack", string(debug.Stack()))
		}
	}()

	unix, ok := raw.(*net.UnixConn)
	if !ok {
		s.log.Error("refusing a connection that is no Unix socket")
		return
	}
	sock, err := unixsock.PeerOf(unix)
	if err != nil {
		s.log.Warn("refusing a connection", "error", err)
		return
	}
	defer sock.Close()
	if err := unixsock.Allowed(sock); err != nil {
		s.log.Warn("refusing a connection", "error", err, "pid", sock.PID)
		return
	}
	c := &conn{
		server: s, ctx: ctx, cancel: cancel, raw: raw,
		in:   frames{conn: raw},
		peer: Peer{UID: sock.UID, PID: sock.PID, sock: sock, accepted: time.Now(), proc: s.proc},
	}
	s.log.Debug("client connected", "pid", c.peer.PID)
	switch err := c.loop(); {
	case errors.Is(err, io.EOF), ctx.Err() != nil:
		s.log.Debug("client disconnected", "pid", c.peer.PID)
	case errors.Is(err, errFrameTooLong), errors.Is(err, errFrameEmpty):
		s.log.Warn("closing a connection", "error", err, "pid", c.peer.PID)
	default:
		s.log.Debug("client disconnected", "pid", c.peer.PID, "error", err)
	}
}

// loop answers messages in order, each with one write, until the error that ends it.
func (c *conn) loop() error {
	for {
		msg, err := c.in.next()
		if err != nil {
			return err
		}
		reply := c.answer(append(c.out[:0], 0, 0, 0, 0), msg)
		if err := context.Cause(c.ctx); err != nil {
			return err
		}
		binary.BigEndian.PutUint32(reply, uint32(len(reply)-lengthField))
		if _, err := c.raw.Write(reply); err != nil {
			return err
		}
		if c.out = reply; cap(reply) > keepBuffer {
			c.out = nil
		}
	}
}

// answer appends the answer to msg to reply.
func (c *conn) answer(reply, msg []byte) []byte {
	body := msg[1:]
	switch msg[0] {
	case msgRequestIdentities:
		return c.list(reply)
	case msgSignRequest:
		return c.sign(reply, body)
	case msgExtension:
		return c.extension(reply, body)
	case msgLock, msgUnlock:
		return c.setLock(reply, body, msg[0] == msgLock)
	case msgAdd, msgAddConstrained, msgRemove, msgRemoveAll:
		c.refuse("add or remove a key", adviceKeysOnPhone)
	case msgAddCard, msgAddCardConstrained, msgRemoveCard:
		c.refuse("add or remove a smartcard", adviceCardsNotServed)
	default:
		c.server.log.Debug("refused a message of unknown type", "type", msg[0], "pid", c.peer.PID)
	}
	return append(reply, msgFailure)
}

// refuse logs why a request other than one to sign is refused.
func (c *conn) refuse(request, reason string) {
	executable, _ := c.peer.Executable() // "" when unknown
	c.server.log.Warn("refused", "request", request, "reason", reason, "executable", executable, "pid", c.peer.PID)
}

func (c *conn) list(reply []byte) []byte {
	if c.server.lock.locked.Load() {
		return append(reply, msgIdentitiesAnswer, 0, 0, 0, 0)
	}
	l := Lister{Peer: c.peer, Bound: c.binds.bound(), Forwarded: c.binds.forwarded(c.peer.isSSH)}
	if last, ok := c.binds.last(); ok && !last.Forwarding && !c.binds.failed {
		l.HostKey = last.HostKey
	}
	return append(reply, c.server.listing(c.server.signer.Keys(&l))...)
}

// listing is an answer to a listing, kept because encoding a key takes longer than the rest.
type listing struct {
	keys   []Key
	answer []byte
}

// listing encodes keys, or gives what it encoded before: the same memory holds the same keys (see Signer), and cannot
// be used again while the listing refers to it.
func (s *Server) listing(keys []Key) []byte {
	if last := s.listed.Load(); last != nil && len(keys) > 0 && len(last.keys) == len(keys) && &last.keys[0] == &keys[0] {
		return last.answer
	}
	answer := binary.BigEndian.AppendUint32([]byte{msgIdentitiesAnswer}, uint32(len(keys)))
	for _, k := range keys {
		answer = appendString(answer, k.Public.Marshal())
		answer = appendString(answer, k.Comment)
	}
	s.listed.Store(&listing{keys, answer})
	return answer
}

func (c *conn) setLock(reply, body []byte, lock bool) []byte {
	passphrase, ok := onlyString(body)
	passphrase = bytes.Clone(passphrase)
	defer clear(passphrase)
	clear(body)
	request, change := "unlock", c.server.lock.Unlock
	if lock {
		request, change = "lock", c.server.lock.Lock
	}
	if !ok {
		c.refuse(request, "malformed request")
		return append(reply, msgFailure)
	}
	var err error
	c.wait(func() { err = change(c.ctx, passphrase) })
	if err != nil {
		c.refuse(request, err.Error())
		return append(reply, msgFailure)
	}
	c.server.log.Info(request+"ed", "pid", c.peer.PID)
	return append(reply, msgSuccess)
}

// wait runs what may take long, and meanwhile notices when the client hangs up, which ends c.ctx. The message that
// is being answered is not valid in f.
func (c *conn) wait(f func()) {
	defer c.in.readAhead(func() { c.cancel(errHungUp) })()
	f()
}

// appendString appends a string of RFC 4251, section 5.
func appendString[T string | []byte](b []byte, s T) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// readString cuts a string of RFC 4251, section 5, off b.
func readString(b *cryptobyte.String, s *[]byte) bool {
	var n uint32
	return b.ReadUint32(&n) && uint64(n) <= uint64(len(*b)) && b.ReadBytes(s, int(n))
}

// onlyString reads the one string that b consists of.
func onlyString(b []byte) ([]byte, bool) {
	rest := cryptobyte.String(b)
	var s []byte
	ok := readString(&rest, &s)
	return s, ok && rest.Empty()
}
