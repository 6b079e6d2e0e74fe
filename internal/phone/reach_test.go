// SPDX-License-Identifier: BSD-3-Clause

package phone

import (
	"strings"
	"testing"

	"vmux.app/toolkit/internal/transport"
)

// Reaching a phone says where it is, or why it is not reached, and asks nothing of it.
func TestReach(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	away := r.set.Reach(t.Context())
	if len(away) != 1 || away[0].Name != "Pocket" || away[0].Pin != r.phone.Pin().String() || away[0].Trip != 0 || !strings.Contains(away[0].Problem, ErrUnreachable.Error()) {
		t.Errorf("away: %+v", away)
	}
	stop := r.serve(t, "phone:1", func(transport.Pin) error { return nil })
	there := r.set.Reach(t.Context())
	if len(there) != 1 || there[0].Problem != "" || there[0].Trip <= 0 || there[0].Address == "" {
		t.Errorf("there: %+v", there)
	}
	r.mu.Lock()
	links, asked := r.links, len(r.ids)
	r.mu.Unlock()
	if links != 1 || asked != 0 {
		t.Errorf("%d links, %d requests", links, asked)
	}
	if again := r.set.Reach(t.Context()); again[0].Problem != "" {
		t.Errorf("again: %+v", again)
	}
	r.mu.Lock()
	if r.links != 1 {
		t.Errorf("%d links", r.links)
	}
	r.mu.Unlock()
	stop()
	if gone := r.set.Reach(t.Context()); gone[0].Problem == "" || gone[0].Trip != 0 {
		t.Errorf("gone: %+v", gone)
	}
}
