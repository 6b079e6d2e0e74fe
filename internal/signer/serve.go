// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"vmux.app/toolkit/internal/audit"
	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/keyfile"
	"vmux.app/toolkit/internal/transport"
	"vmux.app/toolkit/internal/transport/dnssd"
	"vmux.app/toolkit/internal/transport/lan"
)

const (
	// handshakeTime bounds a TLS handshake, which a stranger can leave hanging.
	handshakeTime = 10 * time.Second
	// Handshakes at once, in all and from one address. Memory and CPU of strangers
	// stay small; slots says what happens beyond.
	maxHandshakes          = 32
	maxHandshakesPerSource = 8
	// Connections at once that wait for their pairing to begin.
	maxPairings          = 16
	maxPairingsPerSource = 4
	// maxLinks is how many links one device may have: its agent's, and those of
	// other commands. One more ends the oldest, which is likely to be dead.
	maxLinks = 8
	// seenEvery is how often a device's last time is written, so that a device
	// that comes and goes does not wear out a disk.
	seenEvery = time.Minute
	// Accept errors (no descriptors, no memory) pass when connections end.
	acceptRetry = 50 * time.Millisecond
	// advertiseRetry is how long after a refusal to advertise it is tried again.
	advertiseRetry = 10 * time.Second
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

// Kinds of Event.
const (
	EventAsleep       = "asleep"
	EventListening    = "listening"
	EventConnected    = "connected"
	EventDisconnected = "disconnected"
	EventRequest      = "request"
	EventPairing      = "pairing"
	EventLocked       = "locked"
)

// Event is one thing that happened, for programs. It never has key material or
// data to be signed.
type Event struct {
	Event     string `json:"event"`
	Address   string `json:"address,omitzero"`   // listening; asleep: the wake address
	Device    string `json:"device,omitzero"`    // all others
	Operation string `json:"operation,omitzero"` // request: login, sshsig, certificate, …
	Key       string `json:"key,omitzero"`       // request: label; of a certificate request, the certified key's fingerprint
	Serial    string `json:"serial,omitzero"`    // certificate request: decimal; JSON's numbers are too small
	KeyID     string `json:"keyId,omitzero"`     // certificate request
	Warning   string `json:"warning,omitzero"`   // request: of a login that the prompt warned of
	Outcome   string `json:"outcome,omitzero"`   // request: signed or an error's code; pairing: paired or failed
	Reason    string `json:"reason,omitzero"`

	record audit.Record // of a request: what the audit log says of it
	shown  bool         // the owner was asked
}

// outcomeSigned is a request's Outcome when a signature or a certificate was made.
const outcomeSigned = "signed"

// ListenError says that the signer cannot listen on an address.
type ListenError struct {
	Address string
	Err     error
}

func (e *ListenError) Error() string { return fmt.Sprintf("cannot listen on %s: %v", e.Address, e.Err) }

// Unwrap gives the reason.
func (e *ListenError) Unwrap() error { return e.Err }

// snapshot is what the signer knows of its home. It is replaced, not changed.
type snapshot struct {
	state   State
	pending int // of the state's failures: a passphrase that is being looked at
	keys    []Key
	ca      *keyfile.File
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

// link is a paired device's connection.
type link struct {
	pin    transport.Pin
	from   net.Addr
	cancel context.CancelCauseFunc
	level  slog.Level // of what is logged of it
	up     bool       // it has said hello; guarded by server.mu
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

// listenError is a *ListenError.
func listenError(address string, err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err // the address is said already
	}
	return &ListenError{address, err}
}

// sleep waits for a connection to the wake address, or ctx's end, which is no
// error.
func (s *server) sleep(ctx context.Context, address string) error {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return listenError(address, err)
	}
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	s.event(Event{Event: EventAsleep, Address: l.Addr().String()})
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			s.log.Info("woken", "address", c.RemoteAddr())
			c.Close()
			return nil
		}
		s.log.Warn("accept", "reason", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(acceptRetry):
		}
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

func (s *server) event(e Event) {
	if s.onEvent == nil {
		return
	}
	e.Reason = strings.ToValidUTF8(e.Reason, "?") // it may quote a device
	e.record, e.shown = audit.Record{}, false
	s.eventMu.Lock()
	defer s.eventMu.Unlock()
	s.onEvent(e)
}

func (s *server) hello() envelope.Hello {
	return envelope.Hello{Name: s.current().state.Name, Software: s.software, Capabilities: []string{envelope.CapabilityCertificate}, Clock: envelope.At(s.now())}
}

func (s *server) current() *snapshot { return s.snap.Load() }

// reload reads the home anew and ends what is not allowed any more.
func (s *server) reload() error {
	s.homeMu.Lock()
	defer s.homeMu.Unlock()
	st, err := s.home.Read()
	if err != nil {
		return err
	}
	if err := s.publishLocked(st); err != nil {
		return err
	}
	s.hostsTurn <- struct{}{}
	defer func() { <-s.hostsTurn }() // it holds the token
	known, err := s.home.hosts()
	if err != nil {
		return err
	}
	s.hosts.Store(&known)
	return nil
}

// otherKey is the warning of a login's event and log line.
const otherKey = "another host key than the one approved before"

// errNotInTime is why a host key was not remembered after rememberWait.
var errNotInTime = fmt.Errorf("it took longer than %v", rememberWait)

// remember notes that the owner has approved a login, with which a signature was
// made. It returns when ctx ends, and after rememberWait in any case. Unless
// mayStill agrees when the key's turn has come, it is not remembered.
func (s *server) remember(ctx context.Context, p *Prompt, mayStill func() error) {
	if p.Verified.HostKey == "" {
		return // no login, or to a host that is not verified
	}
	shown := p.Claimed.HostNames[:len(p.Claimed.readable())]
	names, key, day := fitNames(shown), p.Verified.HostKey, s.now().Local().Format(time.DateOnly)
	if s.hosts.Load().has(names, key, day) {
		return
	}
	ctx, cancel := context.WithTimeoutCause(ctx, rememberWait, errNotInTime)
	defer cancel()
	done := make(chan struct{})
	s.memory.Go(func() {
		defer close(done)
		err := s.changeHosts(ctx, func(h approvals) (bool, error) {
			if ctx.Err() != nil { // the signature is given by now
				return false, context.Cause(ctx)
			}
			if err := mayStill(); err != nil || h.has(names, key, day) {
				return false, err
			}
			h.add(names, key, day)
			return true, nil
		})
		if err != nil {
			s.log.Warn("host key not remembered", "hostKey", key, "reason", err)
		}
	})
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// changeHosts changes what is remembered, on disk first. Errors: the cause of ctx
// or ErrHomeBusy, when it ends before the turn.
func (s *server) changeHosts(ctx context.Context, change func(approvals) (bool, error)) error {
	select {
	case s.hostsTurn <- struct{}{}:
		defer func() { <-s.hostsTurn }() // it holds the token
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	known, err := s.home.updateHosts(ctx, change)
	if err != nil {
		return err
	}
	s.hosts.Store(&known)
	return nil
}

// update changes the state, on disk first.
func (s *server) update(change func(*State) error) error {
	s.homeMu.Lock()
	defer s.homeMu.Unlock()
	st, err := s.home.Update(change)
	if err != nil {
		return err
	}
	return s.publishLocked(st)
}

func (s *server) publishLocked(st State) error {
	ca, err := s.home.authority()
	if err != nil {
		return err
	}
	keys, err := s.home.keys(&st)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if k.Err != nil {
			s.log.Warn("key cannot be used", "key", k.Label, "reason", k.Err)
		}
	}
	if old := s.current(); old != nil && !old.ca.Same(ca) {
		s.guard.forget() // it has another passphrase now, or none
		// A prompt that waits opens the old file: it would take the old passphrase, and
		// count the new one as wrong.
		s.prompts.withdraw(func(promptKey) bool { return true }, errRekeyed)
	}
	s.snap.Store(&snapshot{state: st, pending: s.pending, keys: keys, ca: ca})

	s.prompts.withdraw(func(k promptKey) bool {
		if k.key == "" {
			return false
		}
		key := s.key([]byte(k.key))
		return key == nil || !key.Enabled
	}, errKeyGone)
	s.prompts.withdraw(func(k promptKey) bool { _, ok := st.Device(k.device); return !ok }, errUnpaired)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.links {
		if _, ok := st.Device(l.pin); !ok {
			l.cancel(errUnpaired)
		}
	}
	return nil
}

func (s *server) advertise(ctx context.Context, port uint16) {
	instance := dnssd.RandomName()
	insist(ctx, s.log, func() error { return dnssd.Advertise(ctx, dnssd.Options{Log: s.log}, instance, port) })
}

// insist advertises until ctx ends, and begins anew after a refusal. macOS refuses at first, too, while it asks the owner.
func insist(ctx context.Context, log *slog.Logger, advertise func() error) {
	for said := ""; ; {
		err := advertise()
		if err == nil || ctx.Err() != nil {
			return
		}
		if err.Error() != said {
			said = err.Error()
			log.Warn("not advertised: devices must be given the address", "reason", err)
		}
		select {
		case <-time.After(advertiseRetry):
		case <-ctx.Done():
			return
		}
	}
}

// accept serves connections until the listener is closed.
func (s *server) accept(ctx context.Context, l net.Listener) {
	for {
		raw, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				raw.Close()
			}
			return
		}
		if errors.Is(err, net.ErrClosed) {
			return // the others go on
		}
		if err != nil {
			s.log.Warn("accept", "reason", err)
			select {
			case <-ctx.Done():
			case <-time.After(acceptRetry):
			}
			continue
		}
		// In the order of arrival: an honest newcomer must not be the oldest at once.
		release := s.handshakes.take(raw.RemoteAddr(), func() { raw.Close() })
		s.conns.Go(func() { s.connection(ctx, raw, release) })
	}
}

// connection does the handshake with a stranger and hands on who passes. release
// gives back the handshake's slot.
func (s *server) connection(ctx context.Context, raw net.Conn, release func() bool) {
	hctx, cancel := context.WithTimeout(ctx, handshakeTime)
	c, err := transport.Server(hctx, raw, s.identity, s.admit)
	cancel()
	if held := release(); err == nil && !held {
		c.Close()
		err = errPushedOut
	}
	if err != nil {
		// Strangers cannot fill the log at its usual level.
		s.log.Debug("connection refused", "address", raw.RemoteAddr(), "reason", err)
		return
	}
	defer c.Close()
	switch c.Proto() {
	case transport.ProtoPair:
		settle := sync.OnceValue(s.pairings.take(raw.RemoteAddr(), func() { raw.Close() }))
		defer settle()
		s.servePairing(ctx, c, settle)
	case transport.ProtoLink:
		s.serveLink(ctx, c)
	}
}

// admit decides about a peer within the handshake. Pairing is open to anybody,
// and answers only when a window is open.
func (s *server) admit(proto string, pin transport.Pin) error {
	if proto == transport.ProtoPair {
		return nil
	}
	if _, ok := s.current().state.Device(pin); !ok {
		return errors.New("this device is not paired")
	}
	return nil
}

func (s *server) serveLink(ctx context.Context, c *transport.Conn) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	l := &link{pin: c.Peer(), from: c.RemoteAddr(), cancel: cancel}
	s.addLink(l)
	defer s.removeLink(l)
	// Forgotten between the handshake and addLink, nobody would cut the link.
	device, ok := s.current().state.Device(l.pin)
	if !ok {
		return
	}
	s.seen.sweep(s.now(), func(pin transport.Pin) bool { _, ok := s.current().state.Device(pin); return ok })
	s.sawDevice(device)
	err := transport.Serve(ctx, c, s.hello(), func(ctx context.Context, id string, req envelope.Payload) (envelope.Payload, error) {
		return s.handle(ctx, l.pin, id, req)
	}, func() []envelope.Payload {
		s.greeted(ctx, l, device)
		return s.tell
	})
	if cause := context.Cause(ctx); err == nil && cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	e := Event{Event: EventDisconnected, Device: device.Name}
	if err != nil {
		e.Reason = err.Error()
	}
	attrs := []any{"device", device.Name}
	if e.Reason != "" {
		attrs = append(attrs, "reason", e.Reason)
	}
	if !l.up {
		s.log.Debug("a device has not said hello", attrs...)
		return
	}
	s.log.Log(context.WithoutCancel(ctx), l.level, "disconnected", attrs...)
	s.event(e)
}

// greeted notes that a device has said hello.
func (s *server) greeted(ctx context.Context, l *link, device Device) {
	s.mu.Lock()
	l.up = true
	s.mu.Unlock()
	if l.level = slog.LevelInfo; !s.linkTurn(device.Pin) {
		l.level = slog.LevelDebug
	}
	s.log.Log(context.WithoutCancel(ctx), l.level, "connected", "device", device.Name, "address", l.from)
	s.event(Event{Event: EventConnected, Device: device.Name})
}

var errNewerLink = errors.New("the device has opened too many newer links")

func (s *server) addLink(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.links = append(s.links, l)
	n, oldest := 0, (*link)(nil)
	for _, o := range s.links {
		if o.pin == l.pin {
			if n++; oldest == nil {
				oldest = o
			}
		}
	}
	if n > maxLinks {
		oldest.cancel(errNewerLink)
	}
}

func (s *server) removeLink(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.links = slices.DeleteFunc(s.links, func(o *link) bool { return o == l })
}

// sawDevice writes the device's last time, seldom.
func (s *server) sawDevice(d Device) {
	now := s.now().UTC().Truncate(time.Second)
	if now.Sub(d.LastSeen) < seenEvery {
		return
	}
	err := s.update(func(st *State) error {
		for i := range st.Devices {
			if st.Devices[i].Pin == d.Pin {
				st.Devices[i].LastSeen = now
			}
		}
		return nil
	})
	if err != nil {
		s.log.Warn("cannot note when a device was seen", "device", d.Name, "reason", err)
	}
}
