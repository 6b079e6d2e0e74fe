// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"context"
	"strings"

	"vmux.app/toolkit/internal/control"
)

func processChecks() []Check {
	return []Check{
		{ID: "core-dumps", Title: "the agent's memory is closed, and leaves no core file", Needs: []string{"agent"}, Routine: true, Run: checkCoreDumps},
		{ID: "log", Title: "the agent's log goes somewhere", Needs: []string{"agent"}, Run: checkLog},
	}
}

func checkCoreDumps(ctx context.Context, e *Env) Finding {
	s, err := e.status(ctx)
	if err != nil {
		return e.failure(err, "whether its memory is closed is not known")
	}
	if s.Protection.Open || s.Protection.CoreLimit > 0 {
		return e.failure(&OpenMemoryError{s.Protection.Open, s.PID}, "the keys of session certificates are in it")
	}
	return ok("its memory is closed, and there are no core files")
}

func checkLog(ctx context.Context, e *Env) Finding {
	s, err := e.status(ctx)
	if err != nil {
		return e.failure(err, "where its log goes is not known")
	}
	level := strings.ToLower(s.Log.Level)
	switch s.Log.Destination {
	case control.LogDiscarded, control.LogClosed:
		return e.warning(&LogError{s.Log.Destination, s.PID}, "it says there why a request was refused; ssh says \"agent refused operation\" only")
	case control.LogFile:
		if s.Log.Path == "" {
			return ok("to a file, level %s", level)
		}
		return ok("to %s, level %s", e.short(s.Log.Path), level)
	case control.LogJournal:
		return ok("to the journal (journalctl --user -u vmux-agent), level %s", level)
	case control.LogUnified:
		return ok("to the unified log (log stream --predicate 'subsystem == \"app.vmux.agent\"'), level %s", level)
	case control.LogTerminal:
		return ok("to the terminal that it was started in, level %s", level)
	}
	return ok("to a %s, level %s", s.Log.Destination, level)
}
