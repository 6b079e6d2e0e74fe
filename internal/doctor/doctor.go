// SPDX-License-Identifier: BSD-3-Clause

// Package doctor examines a set-up of vmux: one small check for each thing that can be wrong, what it found, why
// that matters and what to type. It changes nothing, and asks for a signature only in the check that logs in to a
// server.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// checkTime bounds a check that does not say otherwise.
	checkTime = 3 * time.Second
	// lateTime is what a check has to come to its end when its time is over, before it is given up.
	lateTime = 250 * time.Millisecond
	// overallTime bounds all checks together: three that need one another and each use up their time. Checks with a
	// longer time of their own are added.
	overallTime = 10 * time.Second
)

// Level is how well a check went.
type Level int

// The levels, from good to bad. Skipped is not known: what the check needs is not well, or it does not apply.
const (
	OK Level = iota
	Skipped
	Warning
	Failure
)

func (l Level) String() string {
	return [...]string{"ok", "skipped", "warning", "failure"}[l]
}

// MarshalText makes levels words in JSON.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// Finding is what a check found. Texts may have parts from outside, which are the printer's to make safe.
type Finding struct {
	Level   Level
	Found   string   // one line
	Why     string   // why that matters; of a warning or failure
	Do      string   // what to type; of a warning or failure
	Lines   []string // to be copied as they are, such as lines for a server's authorized_keys
	Because string   // of a skipped one: the check that is not well and is needed, empty if it does not apply
}

// Check is one thing to look at.
type Check struct {
	ID    string
	Title string // what it looks at
	// Needs are other checks whose failure makes this one pointless: it is then reported as skipped. They are earlier
	// in the list.
	Needs []string
	// Routine says that a healthy finding is of no interest to who reads all of them.
	Routine bool
	// Asked says that it runs only when it is asked for.
	Asked bool
	Limit time.Duration // for Run, checkTime if 0
	OS    string        // runtime.GOOS where it makes sense, any if empty
	Run   func(ctx context.Context, e *Env) Finding
}

// Result is a check and what it found.
type Result struct {
	Check
	Finding
	Took time.Duration
}

// All are the checks of an operating system in their order.
func All(goos string) []Check {
	all := slices.Concat(configChecks(), socketChecks(), serviceChecks(), sshChecks(), stateChecks(), phoneChecks(), keyChecks(),
		networkChecks(), pushChecks(), certificateChecks(), processChecks(), hostChecks())
	return slices.DeleteFunc(all, func(c Check) bool { return c.OS != "" && c.OS != goos })
}

// UnknownError says that there is no check of this name.
type UnknownError struct{ ID string }

func (e *UnknownError) Error() string { return fmt.Sprintf("there is no check %q", e.ID) }

// Select gives the checks with these ids, or all but those that must be asked for when there are no ids, together
// with what they need, in their order. The error is an *UnknownError.
func Select(checks []Check, ids ...string) ([]Check, error) {
	wanted := make(map[string]bool)
	for _, id := range ids {
		if !slices.ContainsFunc(checks, func(c Check) bool { return c.ID == id }) {
			return nil, &UnknownError{id}
		}
		wanted[id] = true
	}
	for _, c := range slices.Backward(checks) { // what is needed is earlier
		if len(ids) == 0 && !c.Asked {
			wanted[c.ID] = true
		}
		if wanted[c.ID] {
			for _, n := range c.Needs {
				wanted[n] = true
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(checks), func(c Check) bool { return !wanted[c.ID] }), nil
}

// Longest is the time after which Examine gives up.
func Longest(checks []Check) time.Duration {
	most := overallTime
	for _, c := range checks {
		if c.Limit > checkTime {
			most += c.Limit
		}
	}
	return most
}

// errTime is the end of a check's time.
var errTime = errors.New("its time is over")

// Examine runs checks at the same time, those that need others after them, and gives their results in the order of
// the checks. A check that panics or hangs fails alone. When ctx ends, its cause is the error.
func Examine(ctx context.Context, e Env, checks []Check) ([]Result, error) {
	all, cancel := context.WithTimeoutCause(ctx, Longest(checks), errTime)
	defer cancel()
	e.facts = &facts{ctx: all}
	e.complete()
	defer e.facts.end(cancel)

	results := make([]Result, len(checks))
	done := make(map[string]chan struct{})
	at := make(map[string]int)
	for i, c := range checks {
		done[c.ID], at[c.ID] = make(chan struct{}), i
	}
	var running sync.WaitGroup
	for i, c := range checks {
		running.Go(func() {
			defer close(done[c.ID])
			results[i].Check = c
			for _, n := range c.Needs {
				if done[n] == nil {
					continue // left out by who chose the checks
				}
				<-done[n] // is closed: needs are earlier in the list, and every check ends in its time
				if r := results[at[n]]; r.Level == Failure || r.Level == Skipped {
					results[i].Finding = needs(r)
					return
				}
			}
			start := time.Now()
			results[i].Finding = run(all, &e, c)
			results[i].Took = time.Since(start)
		})
	}
	running.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return results, nil
}

func needs(r Result) Finding {
	because := r.ID
	if r.Because != "" {
		because = r.Because
	}
	return Finding{Level: Skipped, Found: because + " is not well", Because: because}
}

// run runs one check within its time.
func run(ctx context.Context, e *Env, c Check) Finding {
	limit := c.Limit
	if limit == 0 {
		limit = checkTime
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errTime)
	defer cancel()
	found := make(chan Finding, 1) // has room, so that a check that is given up can end
	go func() {                    // one that hangs lives as long as the process
		defer func() {
			if p := recover(); p != nil {
				f := e.failure(fmt.Errorf("%w: panic: %v", ErrCheck, p), "nothing is known about what it looks at")
				f.Lines = stack()
				found <- f
			}
		}()
		found <- c.Run(ctx, e)
	}()
	late := time.NewTimer(limit + lateTime)
	defer late.Stop()
	select {
	case f := <-found:
		return f
	case <-late.C:
		return e.failure(fmt.Errorf("%w: no end after %v", ErrCheck, limit), "what it looks at does not answer")
	case <-e.facts.ctx.Done():
		select {
		case f := <-found:
			return f
		case <-late.C:
		case <-time.After(lateTime):
		}
		return e.failure(fmt.Errorf("%w: no end in time", ErrCheck), "what it looks at does not answer")
	}
}

// maxStack bounds what is shown of a stack: where the panic was.
const maxStack = 12

func stack() []string {
	var lines []string
	for line := range strings.Lines(string(debug.Stack())) {
		if lines = append(lines, strings.TrimSuffix(line, "\n")); len(lines) == maxStack {
			break
		}
	}
	return lines
}

// Worst is the level of all results together.
func Worst(results []Result) Level {
	worst := OK
	for _, r := range results {
		if r.Level != Skipped {
			worst = max(worst, r.Level)
		}
	}
	return worst
}
