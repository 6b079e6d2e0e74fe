// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"vmux.app/toolkit/internal/agent"
	"vmux.app/toolkit/internal/control"
	"vmux.app/toolkit/internal/duration"
	"vmux.app/toolkit/internal/process"
	"vmux.app/toolkit/internal/unixsock"
)

// askTime bounds a request to the agent, which answers at once: below checkTime, so that a check can say who is silent.
const askTime = 2 * time.Second

func socketChecks() []Check {
	return []Check{
		{ID: "socket", Title: "the socket: there, private, in a private directory", Run: checkSocket},
		{ID: "agent", Title: "the agent: serves the socket, answers, has this version", Needs: []string{"socket"}, Run: checkAgent},
		{ID: "lock", Title: "the socket's lock: held by the agent that serves", Routine: true, Run: checkLock},
	}
}

func checkSocket(_ context.Context, e *Env) Finding {
	path := e.Config.Socket
	err := unixsock.Inspect(path)
	open, isOpen := errors.AsType[*unixsock.OpenError](err)
	dir, isDir := errors.AsType[*unixsock.DirError](err)
	switch {
	case err == nil:
		return ok("%s is private", e.short(path))
	case errors.Is(err, fs.ErrNotExist):
		return e.failure(fmt.Errorf("%w: there is no %s", agent.ErrNotRunning, path), "without it ssh has no keys of vmux")
	case isOpen && open.Owner == uint32(e.UID):
		return e.failure(err, "other users of this computer could have things signed; the agent refuses them by uid only")
	case isDir && dir.Mode.IsDir():
		return e.failure(err, "other users could put a socket of their own in its place; the agent does not start there")
	}
	return e.failure(err, "no agent can serve there")
}

// statusFact is what the agent says of itself, and who serves the socket if it says nothing.
type statusFact struct {
	control.StatusResult
	server int    // pid, 0 if unknown
	name   string // its program, empty if unknown
}

// status asks the agent how things stand.
func (e *Env) status(ctx context.Context) (statusFact, error) {
	return e.facts.status.get(ctx, e, func(ctx context.Context) (s statusFact, err error) {
		ctx, cancel := context.WithTimeoutCause(ctx, askTime, ErrSilent)
		defer cancel()
		err = e.Ask(ctx, control.Status, nil, &s.StatusResult)
		if err != nil {
			s.server, _ = unixsock.Server(e.Config.Socket)
			if chain, err := process.Chain(s.server); err == nil {
				s.name = program(chain[0])
			}
		}
		return s, err
	})
}

// program names what a process runs, by its file, or by the name that it has given itself when the file may not be seen: as ssh-agent
// is set-group-ID on Debian, that takes root.
func program(p process.Process) string {
	if p.Executable == "" {
		return p.Name
	}
	return filepath.Base(p.Executable)
}

func checkAgent(ctx context.Context, e *Env) Finding {
	s, err := e.status(ctx)
	switch {
	case errors.Is(err, agent.ErrNotServed) && s.name != "":
		return e.failure(fmt.Errorf("%w: %s, process %d, serves %s", agent.ErrNotServed, s.name, s.server, e.Config.Socket),
			"it is another agent, or a vmux-agent of another directory, and what it does is not known")
	case errors.Is(err, ErrSilent) && s.server != 0:
		return e.failure(&SilentError{s.server}, "every ssh that asks it waits too")
	case err != nil:
		return e.failure(err, "ssh has no keys of vmux")
	case s.Version != e.Version:
		return e.warning(&VersionError{s.Version, e.Version, s.PID}, "what was updated is not in use yet")
	case s.Locked:
		return e.warning(ErrLocked, "it lists no keys and signs nothing")
	}
	return ok("vmux-agent %s, process %d, up %s", s.Version, s.PID, age(e.Now().Sub(s.Started)))
}

// age is a length of time with the two units that matter.
func age(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	case d >= time.Hour:
		d = d.Truncate(time.Minute)
	}
	return duration.Short(max(d, 0))
}

func checkLock(ctx context.Context, e *Env) Finding {
	s, serr := e.status(ctx)
	l, err := unixsock.InspectLock(e.Config.Socket)
	switch {
	case errors.Is(err, fs.ErrNotExist) && serr == nil:
		return ok("none: the service manager holds the socket") // our own is made again within seconds
	case errors.Is(err, fs.ErrNotExist):
		return ok("none, and no agent that needs it")
	case err != nil:
		return e.failure(err, "the next vmux-agent does not start")
	case !l.Held && l.PID != 0:
		return ok("left by process %d, which has ended; the next agent takes it over", l.PID)
	case !l.Held:
		return ok("free")
	case serr != nil && l.PID != 0 && l.PID == s.server:
		return ok("held by process %d, which serves the socket", l.PID)
	case serr != nil:
		return e.warning(&LockError{l.Path, l.PID, 0}, "no agent answers, and none can start")
	case l.PID != s.PID && l.PID != 0:
		return e.warning(&LockError{l.Path, l.PID, s.PID}, "when the agent ends, the next one does not start")
	}
	return ok("held by the agent")
}
