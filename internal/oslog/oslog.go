// SPDX-License-Identifier: BSD-3-Clause

// Package oslog is a slog.Handler for the unified log of macOS. The category of a record is the package that logged it. All
// text is public: what is private, key material and data to be signed, is never logged by anybody.
package oslog

import (
	"bytes"
	"context"
	"log/slog"
	"path"
	"runtime"
	"strings"
	"sync"
	"unicode/utf8"
)

// Subsystem is vmux's in the unified log: log stream --predicate 'subsystem == "app.vmux.agent"'.
const Subsystem = "app.vmux.agent"

const (
	// maxEntry bounds a line. What is longer the unified log keeps the beginning of only: a message has 1024 bytes of what
	// is not constant (os_log in <os/log.h>; Enable-Oversize-Messages in os_log(5)).
	maxEntry = 1000
	// continued begins what goes on with the line before.
	continued = "… "
)

// sink takes a line of a category. Lines come one at a time.
type sink func(category string, level slog.Level, line string)

type handler struct {
	text slog.Handler // writes to buf
	out  *output
}

// output is shared by a handler and those derived from it.
type output struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	sink sink
}

func newHandler(level slog.Leveler, to sink) slog.Handler {
	o := &output{sink: to}
	return &handler{out: o, text: slog.NewTextHandler(&o.buf, &slog.HandlerOptions{Level: level, ReplaceAttr: trim})}
}

// trim drops what the unified log has of its own.
func trim(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
		return slog.Attr{}
	}
	return a
}

// Enabled is slog.Handler's.
func (h *handler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.text.Enabled(ctx, level)
}

// Handle is slog.Handler's.
func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	h.out.buf.Reset()
	if err := h.text.Handle(ctx, r); err != nil {
		return err
	}
	of, prefix := category(r.PC), ""
	for rest := bytes.TrimSuffix(h.out.buf.Bytes(), []byte("\n")); ; prefix = continued {
		n := cut(rest, maxEntry-len(prefix))
		h.out.sink(of, r.Level, prefix+string(rest[:n]))
		if rest = rest[n:]; len(rest) == 0 {
			return nil
		}
	}
}

// cut says how much of b to take first: at most so many bytes, and no part of a character.
func cut(b []byte, most int) int {
	if len(b) <= most {
		return len(b)
	}
	n := most
	for n > most-utf8.UTFMax && !utf8.RuneStart(b[n]) {
		n--
	}
	return n
}

// WithAttrs is slog.Handler's.
func (h *handler) WithAttrs(a []slog.Attr) slog.Handler { return &handler{h.text.WithAttrs(a), h.out} }

// WithGroup is slog.Handler's.
func (h *handler) WithGroup(name string) slog.Handler { return &handler{h.text.WithGroup(name), h.out} }

// category is the last part of the path of the package that a program counter is in, "vmux" for none.
func category(pc uintptr) string {
	if pc == 0 {
		return "vmux"
	}
	frame, _ := runtime.CallersFrames([]uintptr{pc}).Next()
	name, _, _ := strings.Cut(path.Base(frame.Function), ".")
	if name == "" || name == "main" || name == "/" {
		return "vmux"
	}
	return name
}
