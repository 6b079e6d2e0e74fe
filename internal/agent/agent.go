// SPDX-License-Identifier: BSD-3-Clause

// Package agent is the socket side of vmux-agent: the SSH agent protocol (RFC 9987, and OpenSSH's PROTOCOL.agent for
// session-bind@openssh.com), one goroutine per connection, and the decision which requests reach the owner.
//
// A listing is answered from Signer.Keys and waits for nobody. A request to sign is parsed, held against the asked
// key, the connection's session binds (see binds.go for the rules) and the policy, and only then given to
// Signer.Sign, whose answer is verified before the client gets it. No lock is held meanwhile.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/policy"
	"vmux.app/toolkit/internal/signed"
)

const (
	// maxConnections leaves room below common limits of open files, at two for each connection (socket and pidfd).
	// Further ones are closed at once, which clients report, instead of hanging.
	maxConnections = 4096
	// Accept fails when descriptors run out; the pause between attempts doubles from the first to the last.
	acceptPauseFirst = 5 * time.Millisecond
	acceptPauseLast  = time.Second
)

var (
	// ErrDenied is wrapped by what Signer.Sign returns when the owner said no. Such a refusal sticks: for a while no
	// further request for the same session, or for the same data, is asked.
	ErrDenied = errors.New("denied by the owner")
	// ErrUnanswered is wrapped when the owner said nothing in time. For a login that sticks as well: a client that
	// goes on with its next key asks somebody who is not there.
	ErrUnanswered = errors.New("the owner did not answer")
	// ErrRefused is wrapped when the signer itself does not allow it, for example by a certificate's scope.
	ErrRefused = errors.New("refused")
)

// Key is a key that the agent offers.
type Key struct {
	Public  ssh.PublicKey // a certificate stands for itself and for its bare key
	Comment string
	// Local says that Sign makes the signature in this process: at once, asking nobody, and with no need to be
	// verified.
	Local bool
}

// Lister is who lists, as far as the agent knows.
type Lister struct {
	Peer      Peer
	HostKey   []byte // of the last bind, if that is not for forwarding: where a login would go; nil if unknown
	Bound     bool   // a session bind was tried on the connection
	Forwarded bool   // comes from the far side of an agent forwarding, or may
}

// Signer holds the keys.
type Signer interface {
	// Keys gives what to list for l, in order, from a cache: it is called for every listing and must not block.
	// When l is nil it gives all keys that a request may name. The slice is never changed afterwards, by either
	// side: other keys come in another slice.
	Keys(l *Lister) []Key
	// Sign asks the owner and signs r.Data with r.Key, in the format that signed.SignatureAlgorithm gives for
	// r.Key.Public and r.Flags. It is called from many connections at once. ctx ends when the client hangs up;
	// Sign then returns soon.
	Sign(ctx context.Context, r Request) (*ssh.Signature, error)
}

// Request is a request to sign that the agent itself has no objection to.
type Request struct {
	Key     Key    // one of Signer.Keys
	Data    []byte // to be signed; the request's own copy
	Flags   uint32 // as in RFC 9987, section 3.6
	Meaning signed.Meaning

	Binds     []signed.Bind // the connection's, verified, in order
	Bound     bool          // a session bind was tried on the connection
	Forwarded bool          // comes from the far side of an agent forwarding, or may
	// HostKey is the host key that the connection's binds give for this login's session, nil if none does: the
	// destination is then unverified. A local client that lies can bind any key to its session, unless
	// Meaning.HostKey, which the server checks, names the same one.
	HostKey []byte

	Peer Peer // the process that connected; what it tells is a claim

	fingerprint string // of Key
}

// Extension serves one of vmux's own requests. params is the JSON text that came with it, empty if none did. The
// result, or the error's text, goes back to Ask. ctx ends with the connection, which may be long after the answer: what
// is made for that time is undone by context.AfterFunc.
type Extension func(ctx context.Context, peer Peer, params []byte) (result any, err error)

// Options are what a Server needs.
type Options struct {
	Signer Signer
	// Policy gives the policy that counts now, nil for policy.Shipped. It is called for each request.
	Policy func() *policy.Policy
	Log    *slog.Logger // nil discards
	// HostNames gives the names that are known for a host key, for rules of the policy; among hashed ones, those that
	// peer or also mention. nil knows none.
	HostNames func(hostKey []byte, peer Peer, also []string) []string
	// Extensions are served as NAME@vmux.app, to commands of ours on this machine only.
	Extensions map[string]Extension
	// Kind names the kind of an extension's error for AnswerError.Kind. It may be nil.
	Kind func(error) string
	// SelfExecutable is this program's own path. What process.Sibling says belongs to it is "ours". When it is
	// empty nothing is, and no extension of Extensions is served.
	SelfExecutable string
}

// Server serves the agent protocol. Its methods may be called at any time, from any goroutine.
type Server struct {
	signer     Signer
	policy     func() *policy.Policy
	hostNames  func(hostKey []byte, peer Peer, also []string) []string
	log        *slog.Logger
	extensions map[string]Extension
	kind       func(error) string
	names      []string // what the query extension answers

	listed      atomic.Pointer[listing]
	knows       atomic.Pointer[known]
	lock        *lock
	refusals    refusals
	asks        asks
	connections atomic.Int64
	full        atomic.Bool // maxConnections was reached and said

	// For tests.
	now   func() time.Time
	proc  processes
	limit int64 // maxConnections
}

// New makes a Server.
func New(o Options) *Server {
	s := &Server{
		signer:     o.Signer,
		log:        o.Log,
		extensions: o.Extensions,
		kind:       o.Kind,
		policy:     o.Policy,
		hostNames:  o.HostNames,
		names:      extensionNames(o.Extensions),
		lock:       newLock(),
		now:        time.Now,
		limit:      maxConnections,
		proc:       systemProcesses(o.SelfExecutable),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.policy == nil {
		s.policy = func() *policy.Policy { return nil }
	}
	return s
}

// Locked reports whether ssh-add -x has locked the agent.
func (s *Server) Locked() bool { return s.lock.locked.Load() }

// Connections gives the number of open connections.
func (s *Server) Connections() int { return int(s.connections.Load()) }

// Serve answers on l until ctx ends or l is closed, and closes l and all connections before it returns. The end of
// ctx is no error. Several listeners may be served at once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var connections sync.WaitGroup
	defer connections.Wait()
	defer cancel()
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()

	pause := acceptPauseFirst
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept: %w", err)
		default:
			s.log.Warn("cannot accept a connection", "error", err)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			pause = min(2*pause, acceptPauseLast)
			continue
		}
		pause = acceptPauseFirst
		if s.connections.Add(1) > s.limit {
			s.connections.Add(-1)
			conn.Close()
			if s.full.CompareAndSwap(false, true) {
				s.log.Warn("too many connections, closing new ones", "limit", s.limit)
			}
			continue
		}
		connections.Go(func() {
			defer func() {
				if s.connections.Add(-1) < s.limit/2 {
					s.full.Store(false)
				}
			}()
			s.serve(ctx, conn)
		})
	}
}
