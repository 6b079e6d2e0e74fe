// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"syscall"

	"vmux.app/toolkit/internal/control"
	"vmux.app/toolkit/internal/process"
)

// protection says how closed this process is. What cannot be found out counts
// as open.
func protection() control.Protection {
	open, core, err := process.Protected()
	if err != nil {
		return control.Protection{Open: true, CoreLimit: math.MaxInt64}
	}
	return control.Protection{Open: open, CoreLimit: core}
}

// logging says where the log goes: to the unified one or to w.
func logging(w io.Writer, unified bool, level slog.Level) control.Log {
	l := control.Log{Destination: control.LogPipe, Level: level.String()}
	if unified {
		l.Destination = control.LogUnified
		return l
	}
	f, ok := w.(*os.File)
	if !ok {
		return l
	}
	fi, err := f.Stat()
	if err != nil {
		l.Destination = control.LogClosed
		return l
	}
	switch m := fi.Mode(); {
	case m.IsRegular():
		l.Destination = control.LogFile
		if path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd())); err == nil { // Linux
			l.Path = path
		}
	case m&fs.ModeCharDevice != 0:
		l.Destination = control.LogTerminal
		if null, err := os.Stat(os.DevNull); err == nil && os.SameFile(null, fi) {
			l.Destination = control.LogDiscarded
		}
	case journal(fi):
		l.Destination = control.LogJournal
	}
	return l
}

// journal says whether a stream is the one that systemd made for its journal
// (systemd.exec(5), JOURNAL_STREAM).
func journal(fi fs.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && os.Getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}
