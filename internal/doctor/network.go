// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"vmux.app/toolkit/internal/control"
	"vmux.app/toolkit/internal/phone"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/transport"
	"vmux.app/toolkit/internal/transport/dnssd"
)

const (
	// browseTime bounds looking for phones: below checkTime. A phone that advertises answers within milliseconds.
	browseTime = 1500 * time.Millisecond
	// maxClaims bounds the addresses that are dialled: whoever is in the network can make up as many as it likes.
	maxClaims = 64
	// claimsAtOnce bounds how many at a time.
	claimsAtOnce = 8
	// nearbyTime is what macOS has to say that looking for phones nearby is not allowed.
	nearbyTime = time.Second
	// agentTime is what the agent has to look for phones; it gives up by itself after 3 s.
	agentTime = 5 * time.Second
)

func networkChecks() []Check {
	return []Check{
		{ID: "multicast", Title: "multicast DNS is possible on a network interface", Routine: true, Run: checkMulticast},
		{ID: "discovery", Title: "the phone is found by DNS-SD, and on which interface", Needs: []string{"multicast", "link-key", "paired"}, Run: checkDiscovery},
		{ID: "link", Title: "the phone answers: TCP, TLS, pin, hello, round trip", Needs: []string{"link-key", "paired"}, Limit: agentTime + dialTime, Run: checkLink},
		{ID: "clock", Title: "the phone's clock and this computer's agree", Needs: []string{"link"}, Run: checkClock},
		{ID: "isolation", Title: "no VPN or client isolation keeps discovery from the phone", Needs: []string{"multicast", "link"}, Routine: true, Run: checkIsolation},
		{ID: "local-network", Title: "macOS lets this terminal and the agent into the network", Needs: []string{"agent", "link-key", "paired"}, OS: "darwin",
			Limit: agentTime + dialTime, Run: checkLocalNetwork},
		{ID: "nearby", Title: "a phone can be found without a network: MultipeerConnectivity", OS: "darwin", Run: checkNearby},
	}
}

// browsed is what came of looking for phones by DNS-SD.
type browsed struct {
	found  map[string]place // by pin: paired phones that have proved it
	others int              // instances that are no paired phone, or do not prove it
}

// place is where a phone was found.
type place struct {
	address string
	via     string // name of the interface
}

// needsDiscovery gives the phones whose address is not fixed.
func needsDiscovery(state store.State) []store.Phone {
	return slices.DeleteFunc(slices.Clone(state.Phones), func(p store.Phone) bool { return p.FixedAddress != "" })
}

// browse looks for the paired phones, until all are found or it takes too long.
func (e *Env) browse(ctx context.Context) (browsed, error) {
	return e.facts.browsed.get(ctx, e, func(ctx context.Context) (browsed, error) {
		state, _ := e.state(ctx)
		id, _ := e.device(ctx) // without it nobody can prove anything to us
		wanted := needsDiscovery(state)
		ctx, cancel := context.WithTimeout(ctx, browseTime)
		defer cancel()
		var mu sync.Mutex
		b := browsed{found: make(map[string]place)}
		instances := make(map[string]bool) // true: a paired phone's
		seen := make(map[string]bool)
		slots := make(chan struct{}, claimsAtOnce)
		var trying sync.WaitGroup
		err := e.Browse(ctx, func(c dnssd.Claim) {
			mu.Lock()
			defer mu.Unlock()
			if _, known := instances[c.Instance]; !known && len(instances) < maxClaims {
				instances[c.Instance] = false
			}
			if len(wanted) == 0 {
				cancel() // multicast works, and that is all there is to find out
			}
			for _, a := range c.Addrs {
				address := a.String()
				if id == nil || len(wanted) == 0 || seen[address] || len(seen) == maxClaims {
					continue
				}
				seen[address] = true
				trying.Go(func() {
					select {
					case slots <- struct{}{}:
						defer func() { <-slots }()
					case <-ctx.Done():
						return
					}
					pin, err := e.prove(ctx, id, address, wanted)
					if err != nil {
						return
					}
					mu.Lock()
					defer mu.Unlock()
					instances[c.Instance] = true
					if _, again := b.found[pin]; !again {
						b.found[pin] = place{address, e.interfaceName(c.Interface)}
					}
					if len(b.found) == len(wanted) {
						cancel()
					}
				})
			}
		})
		trying.Wait()
		for _, ours := range instances {
			if !ours {
				b.others++
			}
		}
		return b, err
	})
}

// prove has whoever is at an address prove that it is one of the phones, and gives its pin.
func (e *Env) prove(ctx context.Context, id *transport.Identity, address string, phones []store.Phone) (string, error) {
	raw, err := e.Dial(ctx, address)
	if err != nil {
		return "", err
	}
	conn, err := transport.Client(ctx, raw, id, transport.ProtoLink, func(pin transport.Pin) error {
		if !slices.ContainsFunc(phones, func(p store.Phone) bool { return p.Pin == pin.String() }) {
			return transport.ErrWrongPeer
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return conn.Peer().String(), conn.Close()
}

func (e *Env) interfaceName(index int) string {
	all, _ := e.Interfaces()
	for _, i := range all {
		if i.Index == index {
			return i.Name
		}
	}
	return fmt.Sprintf("interface %d", index)
}

// multicastNames are the interfaces that DNS-SD uses, as package dnssd chooses them. A Mac without a network has some all the
// same, to processors of its own (en5, anpi0) and for AWDL (awdl0, llw0), with nothing but a link-local IPv6 address.
func multicastNames(goos string, all []Interface) (names []string) {
	for _, i := range all {
		own := goos == "darwin" && !slices.ContainsFunc(i.Addrs, func(a net.Addr) bool {
			p, err := netip.ParsePrefix(a.String())
			return err != nil || p.Addr().Is4() || !p.Addr().IsLinkLocalUnicast()
		})
		if i.Flags&net.FlagUp != 0 && i.Flags&net.FlagMulticast != 0 && i.Flags&(net.FlagLoopback|net.FlagPointToPoint) == 0 && len(i.Addrs) > 0 && !own {
			names = append(names, i.Name)
		}
	}
	return names
}

// tunnels are the interfaces that look like a VPN's: point to point, with an address of more than the link.
func tunnels(all []Interface) (names []string) {
	for _, i := range all {
		global := slices.ContainsFunc(i.Addrs, func(a net.Addr) bool {
			p, err := netip.ParsePrefix(a.String())
			return err == nil && p.Addr().IsGlobalUnicast()
		})
		if i.Flags&net.FlagUp != 0 && i.Flags&net.FlagPointToPoint != 0 && global {
			names = append(names, i.Name)
		}
	}
	return names
}

// fixed says that discovery is not needed, since every phone has an address that its owner gave.
func (e *Env) fixed(ctx context.Context) (Finding, bool) {
	state, err := e.state(ctx)
	if err != nil || len(state.Phones) == 0 || len(needsDiscovery(state)) > 0 {
		return Finding{}, false
	}
	p := state.Phones[0]
	if len(state.Phones) > 1 {
		return ok("not needed: every phone has a fixed address"), true
	}
	return ok("not needed: %s has the fixed address %s", p.Name, p.FixedAddress), true
}

func checkMulticast(ctx context.Context, e *Env) Finding {
	if f, yes := e.fixed(ctx); yes {
		return f
	}
	const why = "phones are found by it, when they are paired and whenever their address has changed"
	all, err := e.Interfaces()
	if err != nil {
		return e.failure(err, why)
	}
	names := multicastNames(e.OS, all)
	if len(names) == 0 {
		return e.failure(&NoInterfaceError{tunnels(all)}, why)
	}
	if _, err := e.browse(ctx); err != nil {
		return e.failure(err, why)
	}
	return ok("on %s", list(names))
}

func checkDiscovery(ctx context.Context, e *Env) Finding {
	if f, yes := e.fixed(ctx); yes {
		return f
	}
	b, err := e.browse(ctx)
	if err != nil {
		return e.failure(err, "a phone whose address has changed is not found")
	}
	state, err := e.state(ctx)
	if err != nil {
		return e.failure(err, "which phones are paired is not known")
	}
	var well []string
	var missing []store.Phone
	for _, p := range needsDiscovery(state) {
		if at, found := b.found[p.Pin]; found {
			well = append(well, fmt.Sprintf("%s at %s on %s", p.Name, at.address, at.via))
		} else {
			missing = append(missing, p)
		}
	}
	if len(missing) == 0 {
		return ok("%s", list(well))
	}
	// Why a phone is not found is another check's to say, but for a network where others are.
	switch reached := e.answering(ctx, missing); {
	case len(reached) == 0:
		f := skipped("%s is not there to be found", missing[0].Name)
		f.Because = "link"
		return f
	case b.others == 0 && len(well) == 0:
		f := skipped("nobody is found")
		f.Because = "isolation"
		return f
	default:
		return e.warning(&NotAdvertisedError{reached[0].Name, b.others + len(well)}, "when its address changes, it is not found any more")
	}
}

// answering gives those of the phones that answer.
func (e *Env) answering(ctx context.Context, phones []store.Phone) []reached {
	all, err := e.reach(ctx)
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(all), func(r reached) bool {
		return r.err != nil || !slices.ContainsFunc(phones, func(p store.Phone) bool { return p.Pin == r.Pin })
	})
}

func checkIsolation(ctx context.Context, e *Env) Finding {
	if f, yes := e.fixed(ctx); yes {
		return f
	}
	b, err := e.browse(ctx)
	if err != nil {
		return e.failure(err, "whether discovery works is not known")
	}
	if b.others > 0 || len(b.found) > 0 {
		return ok("discovery finds somebody")
	}
	state, err := e.state(ctx)
	if err != nil {
		return e.failure(err, "which phones are paired is not known")
	}
	answering := e.answering(ctx, needsDiscovery(state))
	if len(answering) == 0 {
		return ok("no phone answers that discovery does not find")
	}
	interfaces, _ := e.Interfaces()
	return e.warning(&IsolationError{Phone: answering[0].Name, Address: answering[0].address, Tunnels: tunnels(interfaces)},
		"a VPN, an access point with client isolation or a router in between keeps multicast away; when the phone's address changes, it is not found any more")
}

// agentReach asks the agent to look for the phones.
func (e *Env) agentReach(ctx context.Context) (map[string]phone.Reached, error) {
	return e.facts.agents.get(ctx, e, func(ctx context.Context) (map[string]phone.Reached, error) {
		ctx, cancel := context.WithTimeoutCause(ctx, agentTime, ErrSilent)
		defer cancel()
		var all []phone.Reached
		if err := e.Ask(ctx, control.Reach, nil, &all); err != nil {
			return nil, err
		}
		by := make(map[string]phone.Reached)
		for _, r := range all {
			by[r.Pin] = r
		}
		return by, nil
	})
}

func checkLocalNetwork(ctx context.Context, e *Env) Finding {
	here, err := e.reach(ctx)
	if err != nil {
		return e.failure(err, "what this terminal reaches is not known")
	}
	there, err := e.agentReach(ctx)
	if err != nil {
		return e.failure(err, "what the agent reaches is not known")
	}
	for _, r := range here {
		a, known := there[r.Pin]
		switch {
		case !known:
		case r.err == nil && a.Problem != "":
			return e.failure(&LocalNetworkError{Agent: true, MacOS: true, Phone: r.Name, Problem: a.Problem}, "macOS keeps programs that were not allowed out of the local network, and says \"no route to host\"")
		case r.err != nil && a.Problem == "":
			return e.warning(&LocalNetworkError{MacOS: true, Phone: r.Name, Problem: r.err.Error()}, "vmux-pair in this terminal does not reach it either")
		}
	}
	return ok("this terminal and the agent reach the same phones")
}

func checkNearby(ctx context.Context, e *Env) Finding {
	ctx, cancel := context.WithTimeout(ctx, nearbyTime)
	defer cancel()
	if err := e.Nearby(ctx); err != nil {
		return e.warning(&NearbyError{err}, "phones are found on the local network only")
	}
	return ok("MultipeerConnectivity looks for phones")
}

// agentMisses says when the agent does not reach a phone that answers here.
func (e *Env) agentMisses(ctx context.Context, all []reached) (Finding, bool) {
	if e.OS == "darwin" {
		return Finding{}, false // is local-network's to say
	}
	if _, err := e.status(ctx); err != nil {
		return Finding{}, false // is agent's to say
	}
	there, err := e.agentReach(ctx)
	if err != nil {
		return Finding{}, false // is agent's to say
	}
	for _, r := range all {
		if a, known := there[r.Pin]; known && r.err == nil && a.Problem != "" {
			return e.failure(&LocalNetworkError{Agent: true, Phone: r.Name, Problem: a.Problem}, "something keeps the agent from the network: a sandbox, a firewall, a network of its own"), true
		}
	}
	return Finding{}, false
}
