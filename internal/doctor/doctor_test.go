// SPDX-License-Identifier: BSD-3-Clause

package doctor_test

import (
	"maps"
	"slices"
	"testing"

	"vmux.app/toolkit/internal/doctor"
)

func TestHealthy(t *testing.T) {
	t.Parallel()
	p := healthy(t)
	results := p.examine()
	for _, id := range slices.Sorted(maps.Keys(results)) {
		r := results[id]
		t.Logf("%-8v %-15s %s (%v)", r.Level, id, r.Found, r.Took)
		if r.Level != doctor.OK {
			t.Errorf("%s: %v %q", id, r.Level, r.Found)
		}
	}
}
