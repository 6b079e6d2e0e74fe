// SPDX-License-Identifier: BSD-3-Clause

package oslog

import (
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
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
