// SPDX-License-Identifier: BSD-3-Clause

//go:build (darwin || gnustep) && cgo

package oslog

// #include <os/log.h>
// #include <stdlib.h>
//
// static os_log_t vmux_log_create(const char *subsystem, const char *category) { return os_log_create(subsystem, category); }
// static void vmux_log(os_log_t log, int type, const char *text) { os_log_with_type(log, (os_log_type_t)type, "%{public}s", text); }
import "C"

import (
	"log/slog"
	"unsafe"
)

// New gives the handler for records of at least this level; nil where there is no unified log.
func New(level slog.Leveler) slog.Handler {
	logs := map[string]C.os_log_t{} // they live as long as the process, as os_log_create has it
	subsystem := C.CString(Subsystem)
	return newHandler(level, func(category string, level slog.Level, line string) {
		log, ok := logs[category]
		if !ok {
			name := C.CString(category)
			defer C.free(unsafe.Pointer(name))
			log = C.vmux_log_create(subsystem, name)
			logs[category] = log
		}
		text := C.CString(line)
		defer C.free(unsafe.Pointer(text))
		C.vmux_log(log, C.int(kind(level)), text)
	})
}

// kind is the OS_LOG_TYPE of a level. What is of the type info is not kept on disk, and vmux's info is what people look for.
func kind(level slog.Level) int {
	switch {
	case level >= slog.LevelError:
		return C.OS_LOG_TYPE_ERROR
	case level >= slog.LevelInfo:
		return C.OS_LOG_TYPE_DEFAULT
	default:
		return C.OS_LOG_TYPE_DEBUG
	}
}
