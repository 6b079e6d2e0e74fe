// SPDX-License-Identifier: BSD-3-Clause

package phone

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/transport"
	"vmux.app/toolkit/internal/transport/mem"
)

// way is a network with addresses of its own, all of which begin with prefix.
type way struct {
	*mem.Network
	prefix string
	wait   time.Duration // before it connects
	broken error         // why it cannot look for anybody
}

func (w way) Browse(ctx context.Context, found func(transport.Candidate)) error {
	if w.broken != nil {
		return w.broken
	}
	return w.Network.Browse(ctx, func(c transport.Candidate) {
		c.Address = w.prefix + c.Address
		found(c)
	})
}

func (w way) Dial(ctx context.Context, address string) (net.Conn, error) {
	address, ours := strings.CutPrefix(address, w.prefix)
	if !ours {
		return nil, transport.ErrAddress
	}
	select {
	case <-time.After(w.wait):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return w.Network.Dial(ctx, address)
}

// The networks are tried side by side, and the first that reaches the phone is taken, whatever is wrong with another.
func TestNetworksSideBySide(t *testing.T) {
	t.Parallel()
	for name, other := range map[string]func(t *testing.T, r *rig) way{
		"it is on the one only": func(*testing.T, *rig) way { return way{Network: new(mem.Network)} },
		"the other cannot look": func(_ *testing.T, r *rig) way { return way{Network: r.net, broken: errors.New("not allowed")} },
		"the other is slow":     func(_ *testing.T, r *rig) way { return way{Network: r.net, wait: time.Second} },
		"the other hangs":       func(_ *testing.T, r *rig) way { return way{Network: r.net, wait: time.Hour} },
		"another phone is on the other": func(t *testing.T, r *rig) way {
			stranger := newRig(t)
			stranger.sign = func(context.Context, int, *envelope.SignRequest) (envelope.Payload, error) {
				t.Error("a stranger was asked")
				return nil, errors.New("stranger")
			}
			stranger.serve(t, "phone:1", func(transport.Pin) error { return nil })
			return way{Network: stranger.net}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, last := range []bool{false, true} {
				synctest.Test(t, func(t *testing.T) {
					r := newRig(t)
					r.serve(t, "phone:1", r.paired)
					w := other(t, r)
					w.prefix = "other-"
					o := r.options()
					o.Networks = []transport.Network{way{Network: r.net, prefix: "one-"}, w}
					if last {
						slices.Reverse(o.Networks)
					}
					set, err := NewSet(o)
					if err != nil {
						t.Fatal(err)
					}
					defer set.Close()
					start := time.Now()
					if _, err := set.Sign(t.Context(), envelope.SignRequest{PublicKeyBlob: r.key.PublicKeyBlob, Data: []byte("data")}); err != nil {
						t.Fatal(err)
					}
					if took := time.Since(start); took >= time.Second {
						t.Errorf("took %v", took)
					}
					synctest.Wait()
					state, err := r.keep.Load()
					if err != nil || state.Phones[0].Address != "one-phone:1" {
						t.Errorf("reached at %q, %v", state.Phones[0].Address, err)
					}
				})
			}
		})
	}
}
