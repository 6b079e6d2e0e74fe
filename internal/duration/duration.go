// SPDX-License-Identifier: BSD-3-Clause

// Package duration reads lengths of time as people write them for SSH.
package duration

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// units are those of sshd_config(5), TIME FORMATS. Case does not matter there.
var units = map[byte]time.Duration{
	's': time.Second, 'm': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour, 'w': 7 * 24 * time.Hour,
}

// Parse reads a length of time, at least 1 ns, in the form of sshd_config(5) and ssh-keygen(1)
// ("3600", "90m", "1h30m", "1d", "2w") or of Go ("1.5h", "500ms").
func Parse(s string) (time.Duration, error) {
	d, ok := parseSSH(s)
	if !ok {
		var err error
		if d, err = time.ParseDuration(s); err != nil {
			return 0, fmt.Errorf("%q is no length of time such as 8h, 30m, 1d or 3600", s)
		}
	}
	if d <= 0 {
		return 0, fmt.Errorf("%q is no time at all", s)
	}
	return d, nil
}

func parseSSH(s string) (time.Duration, bool) {
	if s == "" {
		return 0, false
	}
	var sum time.Duration
	for s != "" {
		digits := len(s) - len(strings.TrimLeft(s, "0123456789"))
		n, err := strconv.ParseInt(s[:digits], 10, 64)
		if err != nil {
			return 0, false
		}
		unit := time.Second
		if s = s[digits:]; s != "" {
			var ok bool
			if unit, ok = units[s[0]|0x20]; !ok {
				return 0, false
			}
			s = s[1:]
		}
		if n > int64(math.MaxInt64-sum)/int64(unit) {
			return 0, false
		}
		sum += time.Duration(n) * unit
	}
	return sum, true
}

// Short writes whole seconds without the zeros of time.Duration.String: 8h,
// 1h30m, 45s.
func Short(d time.Duration) string {
	d = d.Round(time.Second)
	if d == 0 {
		return "0s"
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
