// SPDX-License-Identifier: BSD-3-Clause

package phone

import (
	"context"
	"sync"
	"time"
)

// Reached says whether a phone can be reached, and how.
type Reached struct {
	Name    string `json:"name"`
	Pin     string `json:"pin"`
	Address string `json:"address,omitzero"`
	Trip    int64  `json:"roundTripNanoseconds,omitzero"` // of a ping
	Problem string `json:"problem,omitzero"`              // why it is not reached, empty if it is
}

// Reach looks for every phone as a request would, without asking anything of it, and gives what came of it in the
// order of pairing.
func (s *Set) Reach(ctx context.Context) []Reached {
	s.mu.RLock()
	phones := s.phones
	s.mu.RUnlock()
	all := make([]Reached, len(phones))
	var looking sync.WaitGroup
	for i, p := range phones {
		looking.Go(func() { all[i] = p.reached(ctx) })
	}
	looking.Wait()
	return all
}

func (p *Phone) reached(ctx context.Context) Reached {
	status := p.Status()
	r := Reached{Name: status.Name, Pin: status.Pin}
	link, err := p.reach(ctx, reachTimeout)
	if err == nil {
		r.Address = link.Conn().RemoteAddr().String()
		start := time.Now()
		if err = link.Ping(ctx); err != nil { // a link that was dead, which is known now
			if link, err = p.reach(ctx, retryTimeout); err == nil {
				start = time.Now()
				err = link.Ping(ctx)
			}
		}
		r.Trip = int64(time.Since(start))
	}
	if err != nil {
		r.Trip, r.Problem = 0, err.Error()
	}
	return r
}
