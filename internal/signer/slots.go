// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"errors"
	"net"
	"net/netip"
	"sync"
)

// errPushedOut is why a connection ends whose slot somebody else needed more.
var errPushedOut = errors.New("newer connections have pushed this one out")

// slots bound how many strangers are served at once. A flood is not answered by
// refusing newcomers, since the one among them who is expected comes once: the
// oldest of the most greedy source makes room. An honest handshake takes
// milliseconds, so it is through long before it is the oldest.
type slots struct {
	all       int // at once
	perSource int // at once from one address

	mu    sync.Mutex
	taken []*slot // oldest first
}

type slot struct {
	source netip.Addr
	end    func()
}

// take gives a slot to source. end is called, from another goroutine and at most
// once, when somebody else needs the slot more. The slot must be released.
//
// release is true the first time, unless somebody has the slot already: then end
// was called or will be. After true, end is not called any more.
func (s *slots) take(source net.Addr, end func()) (release func() bool) {
	mine := &slot{source: sourceOf(source), end: end}
	s.mu.Lock()
	var evicted *slot
	if s.countLocked(mine.source) >= s.perSource {
		evicted = s.evictLocked(mine.source)
	} else if len(s.taken) >= s.all {
		evicted = s.evictLocked(s.greediestLocked())
	}
	s.taken = append(s.taken, mine)
	s.mu.Unlock()
	if evicted != nil {
		evicted.end()
	}
	return func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.removeLocked(mine)
	}
}

func (s *slots) countLocked(source netip.Addr) (n int) {
	for _, t := range s.taken {
		if t.source == source {
			n++
		}
	}
	return n
}

// greediestLocked is the source with the most slots, of equals the one with the
// oldest.
func (s *slots) greediestLocked() netip.Addr {
	count := map[netip.Addr]int{}
	for _, t := range s.taken {
		count[t.source]++
	}
	var most netip.Addr
	for _, t := range s.taken {
		if count[t.source] > count[most] {
			most = t.source
		}
	}
	return most
}

func (s *slots) evictLocked(source netip.Addr) *slot {
	for _, t := range s.taken {
		if t.source == source {
			s.removeLocked(t)
			return t
		}
	}
	return nil
}

func (s *slots) removeLocked(gone *slot) bool {
	for i, t := range s.taken {
		if t == gone {
			s.taken = append(s.taken[:i], s.taken[i+1:]...)
			return true
		}
	}
	return false
}

// sourceOf is the address without its port; a link-local one keeps its zone.
func sourceOf(a net.Addr) netip.Addr {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
