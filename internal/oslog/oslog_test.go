// SPDX-License-Identifier: BSD-3-Clause

package oslog

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"
)

func TestHandler(t *testing.T) {
	t.Parallel()
	var got []string
	log := slog.New(newHandler(slog.LevelInfo, func(category string, level slog.Level, line string) {
		got = append(got, fmt.Sprint(category, " ", level, " ", line))
	}))
	log.Debug("not shown")
	log.Info("connected", "phone", "Pocket 1")
	log.With("a", 1).WithGroup("g").Warn("odd\nline", "b", "x=y")
	want := []string{
		`oslog INFO msg=connected phone="Pocket 1"`,
		`oslog WARN msg="odd\nline" a=1 g.b="x=y"`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%q, not\n%q", got, want)
	}
}

// The unified log keeps the first 1024 bytes of a message; what matters may come later.
func TestLongLines(t *testing.T) {
	t.Parallel()
	for _, long := range []string{strings.Repeat("x", 5000), strings.Repeat("größe", 700), strings.Repeat("\U0001f511", 800), strings.Repeat("y", 987), strings.Repeat("y", 988)} {
		var got []string
		slog.New(newHandler(slog.LevelInfo, func(_ string, _ slog.Level, line string) { got = append(got, line) })).
			Warn("m", "long", long, "pid", 7)
		whole := got[0]
		for _, line := range got {
			if len(line) > 1024 || !utf8.ValidString(line) {
				t.Errorf("a line of %d bytes, valid %v", len(line), utf8.ValidString(line))
			}
		}
		for _, line := range got[1:] {
			rest, ok := strings.CutPrefix(line, "… ")
			if !ok || rest == "" {
				t.Errorf("goes on with %q", line)
			}
			whole += rest
		}
		if want := "msg=m long=" + long + " pid=7"; whole != want {
			t.Errorf("%d lines with %d bytes, not %d", len(got), len(whole), len(want))
		}
	}
}

func TestHandlerIsShared(t *testing.T) {
	t.Parallel()
	lines := 0
	log := slog.New(newHandler(slog.LevelInfo, func(_ string, _ slog.Level, line string) {
		if line != "msg=x a=1" {
			t.Errorf("mixed: %q", line)
		}
		lines++
	}))
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 100 {
				log.With("a", 1).Info("x")
			}
		})
	}
	all.Wait()
	if lines != 800 {
		t.Errorf("%d lines", lines)
	}
}
