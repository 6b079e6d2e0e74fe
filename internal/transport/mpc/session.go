// SPDX-License-Identifier: BSD-3-Clause

//go:build (darwin || gnustep) && cgo

package mpc

// #cgo darwin LDFLAGS: -framework MultipeerConnectivity
// #cgo gnustep LDFLAGS: -framework MultipeerConnectivity
// #include "callbacks.h"
import "C"

import (
	"errors"
	"sync"
	"time"
	"unsafe"

	"github.com/progrium/darwinkit/objc"

	"vmux.app/toolkit/internal/cocoa"
)

const (
	source = "mpc" // one for all: names cost nothing, and a rogue's must not take the turns of phones on other networks

	maxPeers       = 64               // that are remembered while browsing; a crowded hall has fewer
	maxEvents      = 256              // that wait to be looked at
	maxSessions    = 64               // of one listener
	maxInvitations = 16               // that wait to be looked at
	maxBacklog     = 16               // connections that wait for Accept
	inviteTime     = 10 * time.Second // for an invited peer to be connected
)

// Values of the framework's enumerations.
const (
	encryptionRequired = 1 // MCEncryptionRequired
	sendReliable       = 0 // MCSessionSendDataReliable

	stateNotConnected = 0
	stateConnected    = 2
)

const delegateClass = "VMUXPeerDelegate"

var delegateMethods = []cocoa.Method{
	{Selector: "session:peer:didChangeState:", Function: C.vmux_mpc_state, Types: "v@:@@q"},
	{Selector: "session:didReceiveData:fromPeer:", Function: C.vmux_mpc_data, Types: "v@:@@@"},
	{Selector: "session:didReceiveStream:withName:fromPeer:", Function: C.vmux_mpc_stream, Types: "v@:@@@@"},
	{Selector: "session:didStartReceivingResourceWithName:fromPeer:withProgress:", Function: C.vmux_mpc_resource, Types: "v@:@@@@"},
	{Selector: "session:didFinishReceivingResourceWithName:fromPeer:atURL:withError:", Function: C.vmux_mpc_resource_end, Types: "v@:@@@@@"},
	{Selector: "browser:foundPeer:withDiscoveryInfo:", Function: C.vmux_mpc_found, Types: "v@:@@@"},
	{Selector: "browser:lostPeer:", Function: C.vmux_mpc_lost, Types: "v@:@@"},
	{Selector: "browser:didNotStartBrowsingForPeers:", Function: C.vmux_mpc_failed, Types: "v@:@@"},
	{Selector: "advertiser:didReceiveInvitationFromPeer:withContext:invitationHandler:", Function: C.vmux_mpc_invited, Types: "v@:@@@@?"},
	{Selector: "advertiser:didNotStartAdvertisingPeer:", Function: C.vmux_mpc_failed, Types: "v@:@@"},
}

func defineDelegate() { cocoa.Define(delegateClass, delegateMethods) }

// delegates has what each delegate object reports to, by its address: a *peerSession, a *browser or a *listener. The framework does
// not retain delegates.
var delegates sync.Map

// newDelegate gives an object that the caller owns, until endDelegate.
func newDelegate(to any) cocoa.Object {
	d := cocoa.New(delegateClass, "init")
	delegates.Store(d.Ptr(), to)
	return d
}

// endDelegate comes after the framework was told that there is none.
func endDelegate(d cocoa.Object) {
	delegates.Delete(d.Ptr())
	d.Release()
}

func delegate[T any](self unsafe.Pointer) (to T, ok bool) {
	v, _ := delegates.Load(self)
	to, ok = v.(T)
	return to, ok
}

// peerSession is a session with one peer.
type peerSession struct {
	object, delegate cocoa.Object // MCSession and ours
	peer, peers      cocoa.Object // MCPeerID and an NSArray with it
	stream           *stream

	connected, lost         chan struct{}
	onceConnected, onceLost sync.Once

	mu   sync.Mutex // held while sending; no callback takes it
	left bool
}

var errNoObject = errors.New("MultipeerConnectivity made no object")

// newSession makes a session of me with peer, which it retains. name is the peer's. after is for what goes on after the
// stream's Close.
func newSession(me, peer cocoa.Object, myName, name string, after *sync.WaitGroup) (*peerSession, error) {
	s := &peerSession{connected: make(chan struct{}), lost: make(chan struct{})}
	s.stream = newStream(s, myName, name, after)
	cocoa.Pool(func() {
		s.object = cocoa.New("MCSession", "initWithPeer:securityIdentity:encryptionPreference:", me, nil, uint64(encryptionRequired))
		if s.object.IsNil() {
			return
		}
		s.peer = peer.Retain()
		s.peers = cocoa.Get(cocoa.Class("NSArray"), "arrayWithObject:", peer).Retain()
		s.delegate = newDelegate(s)
		cocoa.Send(s.object, "setDelegate:", s.delegate)
	})
	if s.object.IsNil() {
		return nil, errNoObject
	}
	return s, nil
}

func (s *peerSession) send(message []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left {
		return ErrLost
	}
	var err error
	cocoa.Pool(func() {
		err = cocoa.Try(s.object, "sendData:toPeers:withMode:error:", message, s.peers, uint64(sendReliable))
	})
	return err
}

func (s *peerSession) leave() {
	// Told first that nobody listens, the framework does not call the delegate when it is gone.
	cocoa.Pool(func() {
		cocoa.Send(s.object, "setDelegate:", nil)
		cocoa.Send(s.object, "disconnect")
	})
	s.mu.Lock() // a send that is under way has failed by now, or is done
	s.left = true
	s.mu.Unlock()
	cocoa.Pool(func() {
		endDelegate(s.delegate)
		s.object.Release()
		s.peers.Release()
		s.peer.Release()
	})
	s.changed(stateNotConnected)
}

// changed never waits.
func (s *peerSession) changed(state int) {
	switch state {
	case stateConnected:
		s.onceConnected.Do(func() { close(s.connected) })
	case stateNotConnected:
		// A declined invitation, a timeout and a loss are all the same to the framework.
		s.onceLost.Do(func() {
			close(s.lost)
			s.stream.lost()
		})
	}
}

//export mpcState
func mpcState(self unsafe.Pointer, state C.long) {
	if s, ok := delegate[*peerSession](self); ok {
		s.changed(int(state))
	}
}

//export mpcData
func mpcData(self, data unsafe.Pointer) {
	if s, ok := delegate[*peerSession](self); ok {
		cocoa.Pool(func() { s.stream.receive(cocoa.Bytes(objc.ObjectFrom(data))) })
	}
}
