// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"vmux.app/toolkit/internal/control"
	"vmux.app/toolkit/internal/ptytest"
)

func TestLogging(t *testing.T) { // not parallel: the environment
	open := func(name string) *os.File {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	path := filepath.Join(t.TempDir(), "log")
	file, null := open(path), open(os.DevNull)
	r, pipe, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer pipe.Close()
	closed := open(path)
	closed.Close()
	if runtime.GOOS != "linux" {
		path = "" // is not known
	}
	for what, tt := range map[string]struct {
		f    *os.File
		want control.Log
	}{
		"file":     {file, control.Log{Destination: control.LogFile, Path: path, Level: "WARN"}},
		"null":     {null, control.Log{Destination: control.LogDiscarded, Level: "WARN"}},
		"pipe":     {pipe, control.Log{Destination: control.LogPipe, Level: "WARN"}},
		"closed":   {closed, control.Log{Destination: control.LogClosed, Level: "WARN"}},
		"terminal": {ptytest.Open(t).TTY, control.Log{Destination: control.LogTerminal, Level: "WARN"}},
	} {
		if got := logging(tt.f, false, slog.LevelWarn); got != tt.want {
			t.Errorf("%s: %+v, want %+v", what, got, tt.want)
		}
	}
	if got := logging(&bytes.Buffer{}, false, slog.LevelInfo); got.Destination != control.LogPipe {
		t.Errorf("no file: %+v", got)
	}
	if got, want := logging(null, true, slog.LevelInfo), (control.Log{Destination: control.LogUnified, Level: "INFO"}); got != want {
		t.Errorf("unified: %+v, want %+v", got, want)
	}
	// What systemd says of the stream that it made.
	fi, err := pipe.Stat()
	if err != nil {
		t.Fatal(err)
	}
	st := fi.Sys().(*syscall.Stat_t)
	t.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", st.Dev, st.Ino))
	if got := logging(pipe, false, slog.LevelInfo); got.Destination != control.LogJournal {
		t.Errorf("journal: %+v", got)
	}
	if got := logging(file, false, slog.LevelInfo); got.Destination != control.LogFile {
		t.Errorf("a file beside the journal: %+v", got)
	}
}
