// SPDX-License-Identifier: BSD-3-Clause

package duration

import (
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]time.Duration{
		"8h": 8 * time.Hour, "30m": 30 * time.Minute, "1d": 24 * time.Hour, "3600": time.Hour, "1h30m": 90 * time.Minute,
		"2w": 14 * 24 * time.Hour, "1D12H": 36 * time.Hour, "90": 90 * time.Second, "1.5h": 90 * time.Minute,
		"500ms": 500 * time.Millisecond, "1m30": 90 * time.Second, "15s": 15 * time.Second,
	} {
		if got, err := Parse(in); err != nil || got != want {
			t.Errorf("%q: %v, %v, want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "0", "0s", "-1h", "h", "1x", "1 h", "8h ", "1h-1m", "99999999999999999999", "999999999999w", "٣h"} {
		if got, err := Parse(in); err == nil {
			t.Errorf("%q: %v", in, got)
		}
	}
}

func TestShort(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{8 * time.Hour: "8h", 90 * time.Minute: "1h30m", 45 * time.Second: "45s", 0: "0s",
		time.Hour + time.Second: "1h0m1s", 10 * time.Minute: "10m", 20 * time.Second: "20s", 24 * time.Hour: "24h"} {
		if got := Short(d); got != want {
			t.Errorf("%v: %q, want %q", time.Duration(d), got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("1h30m")
	f.Fuzz(func(t *testing.T, s string) {
		d, err := Parse(s)
		if err != nil {
			return
		}
		if d <= 0 {
			t.Fatalf("%q: %v", s, d)
		}
		if d%time.Second == 0 {
			if again, err := Parse(Short(d)); err != nil || again != d {
				t.Fatalf("%q: %v, written %q, read %v, %v", s, d, Short(d), again, err)
			}
		}
	})
}
