// SPDX-License-Identifier: BSD-3-Clause

//go:build !((darwin || gnustep) && cgo)

package oslog

import "log/slog"

// New is nil: there is no unified log here.
func New(slog.Leveler) slog.Handler { return nil }
