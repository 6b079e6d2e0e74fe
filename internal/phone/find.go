// SPDX-License-Identifier: BSD-3-Clause

package phone

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/transport"
)

// secure dials a candidate, by the network that found it or else by any, and
// does the handshake.
func secure(ctx context.Context, networks []transport.Network, c transport.Candidate, id *transport.Identity, proto string,
	accept func(transport.Pin) error) (*transport.Conn, error) {
	if c.Via != nil {
		networks = []transport.Network{c.Via}
	}
	// One network's addresses are nothing to the others, which refuse them at once.
	var errs []error
	for _, n := range networks {
		raw, err := n.Dial(ctx, c.Address)
		if err == nil {
			return transport.Client(ctx, raw, id, proto, accept)
		}
		if !errors.Is(err, transport.ErrAddress) {
			errs = append(errs, err)
		}
	}
	return nil, errors.Join(errs...)
}

// find races the known candidates and all that the networks report, until ctx
// ends. Browsing has ended when it returns.
func find[T any](ctx context.Context, networks []transport.Network, known []transport.Candidate,
	try func(context.Context, transport.Candidate) (T, error), discard func(T)) (T, error) {
	ctx, cancel := context.WithCancel(ctx)
	found := make(chan transport.Candidate)
	failures := make(chan error, len(networks))
	var browsing sync.WaitGroup
	for _, n := range networks {
		browsing.Go(func() {
			err := n.Browse(ctx, func(c transport.Candidate) {
				c.Via = n
				select {
				case found <- c:
				case <-ctx.Done():
				}
			})
			if err != nil && ctx.Err() == nil {
				failures <- fmt.Errorf("looking for phones: %w", err)
			}
		})
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		browsing.Wait()
		close(found)
	}()
	t, err := transport.Race(ctx, known, found, try, discard)
	cancel()
	<-closed
	close(failures)
	for failure := range failures {
		if err != nil {
			err = fmt.Errorf("%w (%w)", err, failure)
		}
	}
	return t, err
}

// checkKey reads one key of a phone's list, strictly: what is listed must be
// what it says.
func checkKey(k envelope.PublicKey) (store.Key, error) {
	pub, err := ssh.ParsePublicKey(k.PublicKeyBlob)
	if err != nil {
		return store.Key{}, fmt.Errorf("key %q: %w", k.DisplayName, err)
	}
	if pub.Type() != k.Algorithm {
		return store.Key{}, fmt.Errorf("key %q: it is of type %s, not %s", k.DisplayName, pub.Type(), k.Algorithm)
	}
	return store.Key{Algorithm: k.Algorithm, Blob: k.PublicKeyBlob, Comment: k.Comment,
		ProviderKind: string(k.ProviderKind), DisplayName: k.DisplayName}, nil
}
