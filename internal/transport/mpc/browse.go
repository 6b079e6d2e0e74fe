// SPDX-License-Identifier: BSD-3-Clause

//go:build (darwin || gnustep) && cgo

package mpc

import "C"

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/progrium/darwinkit/objc"

	"vmux.app/toolkit/internal/cocoa"
	"vmux.app/toolkit/internal/transport"
)

// Network implements transport.Network.
type Network struct {
	o    Options
	me   cocoa.Object   // MCPeerID
	work sync.WaitGroup // connections on their way out

	mu      sync.Mutex // no callback takes it
	browser *browser   // while somebody browses or dials
	users   int
}

// New makes the main run loop run, which the framework needs. Errors are those of cocoa.StartLoop and of what cannot be
// a service or a name.
func New(o Options) (*Network, error) {
	if o.Service == "" {
		o.Service = DefaultService
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := errors.Join(checkService(o.Service), checkName(o.Name)); err != nil {
		return nil, err
	}
	if err := cocoa.StartLoop(); err != nil {
		return nil, err
	}
	defineDelegate()
	n := &Network{o: o}
	cocoa.Pool(func() { n.me = cocoa.New("MCPeerID", "initWithDisplayName:", o.Name) })
	if n.me.IsNil() {
		return nil, errNoObject
	}
	return n, nil
}

// Close waits for connections that were closed to be left, and then frees what the network has. Nobody may use it any more.
func (n *Network) Close() {
	n.work.Wait()
	n.me.Release()
}

// browser is one time of browsing.
type browser struct {
	object, delegate cocoa.Object // MCNearbyServiceBrowser and ours
	log              *slog.Logger
	events           chan event
	done             chan struct{} // closed at the end
	work             sync.WaitGroup

	emu    sync.Mutex // callbacks take it
	closed bool       // no event is queued any more

	mu      sync.Mutex              // no callback takes it
	peers   map[string]cocoa.Object // MCPeerIDs by address, retained
	failure error
	changed chan struct{} // closed at each change
}

// event is what the framework said: peer, which is retained, came or went, or browsing failed.
type event struct {
	peer  cocoa.Object
	lost  bool
	error cocoa.Object // retained
}

// acquire begins to browse, unless somebody does.
func (n *Network) acquire() (*browser, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.users == 0 {
		b := &browser{log: n.o.Log, events: make(chan event, maxEvents), done: make(chan struct{}), peers: map[string]cocoa.Object{}, changed: make(chan struct{})}
		cocoa.Pool(func() {
			b.object = cocoa.New("MCNearbyServiceBrowser", "initWithPeer:serviceType:", n.me, n.o.Service)
			if b.object.IsNil() {
				return
			}
			b.delegate = newDelegate(b)
			cocoa.Send(b.object, "setDelegate:", b.delegate)
			cocoa.Send(b.object, "startBrowsingForPeers")
		})
		if b.object.IsNil() {
			return nil, errNoObject
		}
		b.work.Go(b.run)
		n.browser = b
	}
	n.users++
	return n.browser, nil
}

// release ends browsing with the last user.
func (n *Network) release() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.users--; n.users > 0 {
		return
	}
	b := n.browser
	n.browser = nil
	cocoa.Pool(func() {
		cocoa.Send(b.object, "setDelegate:", nil)
		cocoa.Send(b.object, "stopBrowsingForPeers")
		endDelegate(b.delegate)
		b.object.Release()
	})
	b.emu.Lock() // an event may be on its way in
	b.closed = true
	b.emu.Unlock()
	close(b.done)
	b.work.Wait()
}

func (b *browser) run() {
	defer func() {
		b.drain()
		for _, p := range b.peers {
			p.Release()
		}
	}()
	for {
		select {
		case e := <-b.events:
			b.take(e)
		case <-b.done:
			return
		}
	}
}

// drain frees events that nobody takes any more.
func (b *browser) drain() {
	for {
		select {
		case e := <-b.events:
			e.peer.Release()
			e.error.Release()
		default:
			return
		}
	}
}

// enqueue never waits. What does not fit is dropped: a peer that is announced so late is announced again when it comes back.
func (b *browser) enqueue(e event) {
	b.emu.Lock()
	defer b.emu.Unlock()
	if !b.closed {
		select {
		case b.events <- e:
			return
		default:
		}
	}
	e.peer.Release()
	e.error.Release()
}

func (b *browser) take(e event) {
	cocoa.Pool(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		switch {
		case !e.error.IsNil():
			b.failure = reason(cocoa.ErrorFrom(e.error))
			b.log.Warn("phones nearby cannot be looked for", "reason", b.failure)
			e.error.Release()
		case e.lost:
			for a, p := range b.peers {
				if cocoa.Is(p, "isEqual:", e.peer) {
					delete(b.peers, a)
					p.Release()
				}
			}
			e.peer.Release()
		default:
			b.addLocked(e.peer)
		}
		close(b.changed)
		b.changed = make(chan struct{})
	})
}

// addLocked takes over peer. Two peers may have one name, of which the second gets another address.
func (b *browser) addLocked(peer cocoa.Object) {
	for _, p := range b.peers {
		if cocoa.Is(p, "isEqual:", peer) {
			peer.Release()
			return
		}
	}
	if len(b.peers) >= maxPeers { // whoever announces much must not hide who announces once
		drop := rand.IntN(len(b.peers))
		for a, p := range b.peers {
			if drop--; drop < 0 {
				delete(b.peers, a)
				p.Release()
				break
			}
		}
	}
	name := Prefix + strings.ToValidUTF8(cocoa.Text(peer, "displayName"), "?")
	address := name
	for i := 2; !b.peers[address].IsNil(); i++ {
		address = fmt.Sprintf("%s#%d", name, i)
	}
	b.peers[address] = peer
}

// Browse implements transport.Network.
func (n *Network) Browse(ctx context.Context, found func(transport.Candidate)) error {
	b, err := n.acquire()
	if err != nil {
		return err
	}
	defer n.release()
	said := map[string]unsafe.Pointer{}
	for {
		var fresh []string
		b.mu.Lock()
		changed, failure := b.changed, b.failure
		for a, p := range b.peers {
			if said[a] != p.Ptr() {
				said[a] = p.Ptr()
				fresh = append(fresh, a)
			}
		}
		for a := range said {
			if b.peers[a].IsNil() {
				delete(said, a)
			}
		}
		b.mu.Unlock()
		if failure != nil {
			return failure
		}
		for _, a := range fresh {
			found(transport.Candidate{Source: source, Address: a, Passing: true})
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// Dial implements transport.Network. It looks for the peer itself when nobody browses.
func (n *Network) Dial(ctx context.Context, address string) (net.Conn, error) {
	name, ok := strings.CutPrefix(address, Prefix)
	if !ok {
		return nil, transport.ErrAddress
	}
	ctx, cancel := context.WithTimeoutCause(ctx, inviteTime, ErrDeclined)
	defer cancel()
	b, err := n.acquire()
	if err != nil {
		return nil, err
	}
	defer n.release()
	peer, err := b.find(ctx, address)
	if err != nil {
		return nil, err
	}
	defer peer.Release()
	s, err := newSession(n.me, peer, n.o.Name, name, &n.work)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	cocoa.Pool(func() {
		cocoa.Send(b.object, "invitePeer:toSession:withContext:timeout:", peer, s.object, nil, max(time.Until(deadline), time.Second).Seconds())
	})
	select {
	case <-s.connected:
		return s.stream, nil
	case <-s.lost:
		err = ErrDeclined
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	s.leave()
	return nil, err
}

// find waits for the peer at an address and retains it.
func (b *browser) find(ctx context.Context, address string) (cocoa.Object, error) {
	for {
		b.mu.Lock()
		changed, failure := b.changed, b.failure
		peer, ok := b.peers[address]
		if ok {
			peer.Retain()
		}
		b.mu.Unlock()
		switch {
		case ok:
			return peer, nil
		case failure != nil:
			return peer, failure
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return peer, context.Cause(ctx)
		}
	}
}

// Codes by which macOS says that a program is kept out: it does not say in its Info.plist what it wants in the local network
// (NSNetServicesMissingRequiredConfigurationError), or its user does not allow it (kDNSServiceErr_PolicyDenied).
const (
	codeNotSaid = -72008
	codeDenied  = -65570
)

// reason marks the framework's error with transport.ErrNotAllowed where it is about that.
func reason(err error) error {
	if e, ok := errors.AsType[*cocoa.Error](err); ok && (e.Code == codeNotSaid || e.Code == codeDenied) {
		return fmt.Errorf("%w: %w", transport.ErrNotAllowed, err)
	}
	return err
}

//export mpcFound
func mpcFound(self, peer unsafe.Pointer) {
	if b, ok := delegate[*browser](self); ok {
		b.enqueue(event{peer: objc.ObjectFrom(peer).Retain()})
	}
}

//export mpcLost
func mpcLost(self, peer unsafe.Pointer) {
	if b, ok := delegate[*browser](self); ok {
		b.enqueue(event{peer: objc.ObjectFrom(peer).Retain(), lost: true})
	}
}

//export mpcFailed
func mpcFailed(self, failure unsafe.Pointer) {
	if b, ok := delegate[*browser](self); ok {
		b.enqueue(event{error: objc.ObjectFrom(failure).Retain()})
	}
	if l, ok := delegate[*listener](self); ok {
		cocoa.Pool(func() { l.fail(reason(cocoa.ErrorFrom(objc.ObjectFrom(failure)))) })
	}
}
