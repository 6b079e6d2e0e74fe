// SPDX-License-Identifier: BSD-3-Clause

//go:build (darwin || gnustep) && cgo

package mpc

// #include "callbacks.h"
import "C"

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"unsafe"

	"github.com/progrium/darwinkit/objc"

	"vmux.app/toolkit/internal/cocoa"
)

// listener accepts the connections of one time of advertising.
type listener struct {
	net              *Network
	me               cocoa.Object // MCPeerID
	name             string
	object, delegate cocoa.Object // MCNearbyServiceAdvertiser and ours
	log              *slog.Logger

	invitations chan invitation
	backlog     chan *peerSession
	room        chan struct{} // has one for each session that is not left
	ctx         context.Context
	end         context.CancelCauseFunc
	work        sync.WaitGroup
	once        sync.Once

	emu    sync.Mutex // the callback takes it
	closed bool       // no invitation is queued any more
}

// invitation is a peer, which is retained, that waits for an answer through handler, a block that is copied.
type invitation struct {
	peer    cocoa.Object
	handler unsafe.Pointer
}

// answer takes the invitation into session, or declines it when that is nil.
func (i invitation) answer(session cocoa.Object) {
	take := C.int(0)
	if !session.IsNil() {
		take = 1
	}
	cocoa.Pool(func() { C.vmux_mpc_answer(i.handler, take, session.Ptr()) })
	i.peer.Release()
}

// Listen advertises under name, 1 to 63 bytes of UTF-8. Whoever is nearby may connect. Accept says it when the framework
// cannot advertise, with a net.ErrClosed that wraps the reason.
func (n *Network) Listen(name string) (net.Listener, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	l := &listener{net: n, name: name, log: n.o.Log, invitations: make(chan invitation, maxInvitations), backlog: make(chan *peerSession, maxBacklog),
		room: make(chan struct{}, maxSessions), ctx: ctx, end: cancel}
	cocoa.Pool(func() {
		l.me = cocoa.New("MCPeerID", "initWithDisplayName:", name)
		l.object = cocoa.New("MCNearbyServiceAdvertiser", "initWithPeer:discoveryInfo:serviceType:", l.me, nil, n.o.Service)
		if l.object.IsNil() {
			return
		}
		l.delegate = newDelegate(l)
		cocoa.Send(l.object, "setDelegate:", l.delegate)
		cocoa.Send(l.object, "startAdvertisingPeer")
	})
	if l.object.IsNil() {
		l.me.Release()
		return nil, errNoObject
	}
	l.work.Go(l.run)
	return l, nil
}

func (l *listener) Accept() (net.Conn, error) {
	if l.ctx.Err() != nil {
		return nil, context.Cause(l.ctx)
	}
	select {
	case s := <-l.backlog:
		return s.stream, nil
	case <-l.ctx.Done():
		return nil, context.Cause(l.ctx)
	}
}

func (l *listener) Addr() net.Addr { return addr(l.name) }

// closedError is a net.ErrClosed that has a reason.
type closedError struct{ reason error }

func (e *closedError) Error() string { return e.reason.Error() }

func (e *closedError) Unwrap() []error { return []error{net.ErrClosed, e.reason} }

// fail is the framework's word that it cannot advertise.
func (l *listener) fail(err error) {
	l.log.Warn("not advertised to devices nearby", "reason", err)
	l.end(&closedError{err})
}

// Close stops advertising. Connections that were accepted go on.
func (l *listener) Close() error {
	err := error(net.ErrClosed)
	l.once.Do(func() {
		err = nil
		cocoa.Pool(func() {
			cocoa.Send(l.object, "setDelegate:", nil)
			cocoa.Send(l.object, "stopAdvertisingPeer")
			endDelegate(l.delegate)
			l.object.Release()
		})
		l.emu.Lock() // an invitation may be on its way in
		l.closed = true
		l.emu.Unlock()
		l.end(net.ErrClosed)
		l.work.Wait()
		for {
			select {
			case i := <-l.invitations:
				i.answer(cocoa.Object{})
				continue
			case s := <-l.backlog:
				s.leave()
				continue
			default:
			}
			break
		}
		l.me.Release()
	})
	return err
}

func (l *listener) run() {
	for {
		select {
		case <-l.ctx.Done():
			return
		case i := <-l.invitations:
			select {
			case l.room <- struct{}{}:
				l.work.Go(func() { l.take(i) })
			default:
				l.log.Warn("invitation declined: too many peers are connected")
				i.answer(cocoa.Object{})
			}
		}
	}
}

// take accepts an invitation and hands the connection on when it is there.
func (l *listener) take(i invitation) {
	var name string
	cocoa.Pool(func() { name = cocoa.Text(i.peer, "displayName") })
	s, err := newSession(l.me, i.peer, l.name, name, &l.net.work)
	if err != nil {
		l.log.Warn("invitation declined", "reason", err)
		i.answer(cocoa.Object{})
		<-l.room
		return
	}
	l.net.work.Go(func() {
		<-s.lost
		<-l.room
	})
	i.answer(s.object)
	ctx, cancel := context.WithTimeout(l.ctx, inviteTime)
	defer cancel()
	select {
	case <-s.connected:
		select {
		case l.backlog <- s:
			return
		case <-l.ctx.Done():
		}
	case <-s.lost:
	case <-ctx.Done():
	}
	s.leave()
}

// mpcInvited says whether the answer comes later. It never waits.
//
//export mpcInvited
func mpcInvited(self, peer, handler unsafe.Pointer) C.int {
	l, ok := delegate[*listener](self)
	if !ok {
		return 0
	}
	i := invitation{objc.ObjectFrom(peer).Retain(), handler}
	l.emu.Lock()
	defer l.emu.Unlock()
	if !l.closed {
		select {
		case l.invitations <- i:
			return 1
		default:
		}
	}
	i.peer.Release()
	return 0
}
