// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"vmux.app/toolkit/internal/audit"
	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/keyfile"
	"vmux.app/toolkit/internal/transport"
	"vmux.app/toolkit/internal/transport/lan"
)

// Options say how a home is served.
type Options struct {
	Approver Approver
	// Passphrase opens the keys for an Approver that is no PassphraseAsker; without
	// it, Unlock does. Serve overwrites it once it has a copy, so that a lock leaves
	// none.
	Passphrase []byte
	// AppLock has the passphrase asked before prompts are shown.
	AppLock   bool
	Listen    string // HOST:PORT; ":0" when empty
	Advertise bool   // by DNS-SD, unless the address is a loopback one
	// Nearby, when set, opens another listener, once the first one listens.
	Nearby   func() (net.Listener, error)
	Software string // in hello: "vmux-signer 1.2"
	// WakeAddress is HOST:PORT to sleep on at first: the signer neither listens nor
	// advertises until somebody connects there. That only wakes it, and may be
	// anybody. Empty for awake.
	WakeAddress string
	// Push is how a device can have the signer woken, nil for not at all.
	Push *envelope.DeviceTokenUpdate
	Log  *slog.Logger
	// Event, when set, is told what happens, one event at a time. It must be
	// quick.
	Event func(Event)
	// Hint, when set, is what the log advises its reader to do about an error of the
	// signer's own, empty for nothing.
	Hint func(error) string
	// Now is the clock for freshness and dates, time.Now when nil.
	Now func() time.Time
}

type server struct {
	home     *Home
	identity *transport.Identity
	log      *slog.Logger
	now      func() time.Time
	software string
	prompts  *prompts
	guard    *guard
	hint     func(error) string                                // never nil
	openKey  func(*keyfile.File, []byte) (*keyfile.Key, error) // File.Open but in tests
	seen     seenIDs
	conns    sync.WaitGroup // goroutines of connections

	handshakes slots
	pairings   slots

	eventMu sync.Mutex
	onEvent func(Event)

	tell []envelope.Payload // to each device when it connects

	snap atomic.Pointer[snapshot]
	// homeMu keeps the order of writes to the disk and to snap the same.
	homeMu  sync.Mutex
	pending int // as in snap, guarded by homeMu

	hosts atomic.Pointer[approvals] // never nil; a new map replaces the old one
	// hostsTurn is homeMu for hosts: who has put a token into it has it. homeMu is
	// taken first.
	hostsTurn chan struct{}
	memory    sync.WaitGroup // goroutines of remember

	mu       sync.Mutex
	address  string              // that it listens on, empty for not at all
	unseen   map[string]*unseen  // by pin
	window   *window             // nil when none is open
	usedURLs [][sha256.Size]byte // hashes of their secrets, oldest first
	links    []*link             // oldest first
}

// Serve serves a home until ctx ends, which is no error. Errors: ErrServing,
// *ListenError, those of Home, and those of the control socket.
func Serve(ctx context.Context, home *Home, o Options) error {
	// The order matters. The control socket comes before the state is read: a
	// command that finds no socket has written before that.
	unlock, err := home.lockServing()
	if err != nil {
		return err
	}
	defer unlock()
	control, err := home.listenControl()
	if err != nil {
		return err
	}
	defer control.Close()
	s, err := newServer(home, o)
	if err != nil {
		return err
	}
	// What waits ends with a reason of its own: ctx's is for who has started this.
	parent := ctx
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(parent))
	defer cancel(errStopped)
	defer context.AfterFunc(parent, func() { cancel(errStopped) })()
	context.AfterFunc(ctx, func() { control.Close() })
	var services sync.WaitGroup
	services.Go(func() { s.serveControl(ctx, control) })
	stop := func() {
		cancel(errStopped)
		services.Wait()
	}
	if o.WakeAddress != "" {
		if err := s.sleep(ctx, o.WakeAddress); err != nil || ctx.Err() != nil {
			stop()
			return err
		}
	}
	if o.Listen == "" {
		o.Listen = ":0"
	}
	listener, err := lan.Listen(ctx, o.Listen)
	if err != nil {
		stop()
		return listenError(o.Listen, err)
	}
	context.AfterFunc(ctx, func() { listener.Close() })
	if local := listener.Addr().(*net.TCPAddr); o.Advertise && !local.IP.IsLoopback() {
		services.Go(func() { s.advertise(ctx, uint16(local.Port)) })
	}
	s.mu.Lock()
	s.address = listener.Addr().String()
	s.mu.Unlock()
	s.log.Debug("listening", "address", listener.Addr())
	s.event(Event{Event: EventListening, Address: listener.Addr().String()})
	if o.Nearby != nil {
		near, err := o.Nearby()
		if err != nil {
			listener.Close()
			stop()
			return err
		}
		services.Go(func() {
			defer context.AfterFunc(ctx, func() { near.Close() })()
			defer near.Close()
			s.accept(ctx, near)
		})
	}
	s.recordLife(ctx, recordStarted)
	services.Go(s.checkLog)
	s.accept(ctx, listener)
	stop()
	defer s.recordLife(ctx, recordStopped)
	s.conns.Wait()
	s.prompts.wait()
	s.memory.Wait()
	return nil
}

// checkLog says when the audit log is not whole. The signer goes on with it.
func (s *server) checkLog() {
	_, err := audit.Verify(s.home.dir)
	var broken *audit.BrokenError
	if errors.As(err, &broken) {
		s.log.Error("the audit log is not as it was written", "reason", err, "hint", s.hint(err))
	}
}

func newServer(home *Home, o Options) (*server, error) {
	key, err := home.LinkKey()
	if err != nil {
		return nil, err
	}
	identity, err := transport.NewIdentity(key)
	if err != nil {
		return nil, err
	}
	s := &server{
		home: home, identity: identity, log: o.Log, now: o.Now, software: o.Software, onEvent: o.Event,
		guard:      newGuard(o.Approver, o.AppLock, o.Passphrase),
		handshakes: slots{all: maxHandshakes, perSource: maxHandshakesPerSource},
		pairings:   slots{all: maxPairings, perSource: maxPairingsPerSource},
		hostsTurn:  make(chan struct{}, 1),
	}
	clear(o.Passphrase)
	s.prompts = newPrompts(s.counted)
	s.openKey = (*keyfile.File).Open
	if s.hint = o.Hint; s.hint == nil {
		s.hint = func(error) string { return "" }
	}
	if o.Push != nil {
		s.tell = append(s.tell, o.Push)
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.software == "" {
		s.software = "vmux-signer"
	}
	if err := s.reload(); err != nil {
		return nil, err
	}
	if o.AppLock && !s.current().ca.Encrypted {
		return nil, ErrNotProtected
	}
	if len(s.guard.held) > 0 {
		if err := home.CheckPassphrase(s.guard.held); err != nil {
			return nil, err
		}
	}
	if err := s.rememberIDs(); err != nil {
		return nil, fmt.Errorf("the requests of the last minutes cannot be read: %w", err)
	}
	if _, err := home.Limits(); err != nil {
		s.log.Error("no certificate is signed until this is mended", "reason", err)
	}
	return s, nil
}

func (s *server) hello() envelope.Hello {
	return envelope.Hello{Name: s.current().state.Name, Software: s.software, Capabilities: []string{envelope.CapabilityCertificate}, Clock: envelope.At(s.now())}
}
