// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vmux.app/toolkit/internal/process"
)

func check(id string, run func(ctx context.Context, e *Env) Finding, needs ...string) Check {
	return Check{ID: id, Needs: needs, Run: run}
}

func well(context.Context, *Env) Finding { return ok("well") }

func ill(_ context.Context, e *Env) Finding { return e.failure(errors.New("ill"), "why") }

func advice() Env { return Env{Advice: func(error) string { return "do" }} }

func levels(results []Result) string {
	var all []string
	for _, r := range results {
		s := r.ID + " " + r.Level.String()
		if r.Because != "" {
			s += " " + r.Because
		}
		all = append(all, s)
	}
	return strings.Join(all, "; ")
}

// All run at the same time, results are in order, and what needs something ill is skipped.
func TestExamine(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		slow := func(context.Context, *Env) Finding { time.Sleep(time.Second); return ok("slow") }
		warn := func(_ context.Context, e *Env) Finding { return e.warning(errors.New("so"), "why") }
		not := func(context.Context, *Env) Finding { return skipped("does not apply") }
		start := time.Now()
		results, err := Examine(t.Context(), advice(), []Check{
			check("a", slow), check("b", slow), check("c", slow, "a"), check("d", ill), check("e", well, "b", "d"), check("f", well, "e"),
			check("g", warn), check("h", well, "g"), check("i", not), check("j", well, "i"), check("k", well, "elsewhere"),
		})
		if err != nil {
			t.Fatal(err)
		}
		const want = "a ok; b ok; c ok; d failure; e skipped d; f skipped d; g warning; h ok; i skipped; j skipped i; k ok"
		if got := levels(results); got != want {
			t.Errorf("%s\nwant\n%s", got, want)
		}
		if took := time.Since(start); took != 2*time.Second {
			t.Errorf("took %v", took)
		}
		if r := results[0]; r.Took != time.Second || r.Found != "slow" {
			t.Errorf("%+v", r)
		}
		if w := Worst(results); w != Failure {
			t.Errorf("worst: %v", w)
		}
		if f := results[3].Finding; f.Found != "ill" || f.Why != "why" || f.Do != "do" {
			t.Errorf("%+v", f)
		}
	})
}

// A check that panics fails alone, and says where.
func TestPanic(t *testing.T) {
	t.Parallel()
	results, err := Examine(t.Context(), advice(), []Check{
		check("a", func(context.Context, *Env) Finding { panic("oh\x1b") }), check("b", well),
		check("c", func(ctx context.Context, e *Env) Finding {
			_, err := e.facts.config.get(ctx, e, func(context.Context) (map[string][]string, error) { panic("fact") })
			return e.failure(err, "why")
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := levels(results); got != "a failure; b ok; c failure" {
		t.Error(got)
	}
	if f := results[0].Finding; !strings.Contains(f.Found, "panic: oh") || !strings.Contains(strings.Join(f.Lines, "\n"), "run_test.go") || len(f.Lines) > maxStack {
		t.Errorf("%+v", f)
	}
	if f := results[2].Finding; !strings.Contains(f.Found, "panic: fact") {
		t.Errorf("%+v", f)
	}
}

// A check that hangs is given up, whatever it does about its context.
func TestHang(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		never := make(chan struct{})
		deaf := func(context.Context, *Env) Finding { <-never; return ok("") }
		start := time.Now()
		obeys := func(ctx context.Context, e *Env) Finding {
			<-ctx.Done()
			return e.failure(context.Cause(ctx), "why")
		}
		results, err := Examine(t.Context(), advice(), []Check{
			check("a", deaf), check("b", well, "a"), check("c", obeys), check("d", well), {ID: "e", Limit: time.Second, Run: deaf}, {ID: "f", Limit: 20 * time.Second, Run: deaf},
			check("g", func(ctx context.Context, e *Env) Finding {
				_, err := e.facts.config.get(ctx, e, func(context.Context) (map[string][]string, error) { <-never; return nil, nil })
				return e.failure(err, "why")
			}),
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := levels(results); got != "a failure; b skipped a; c failure; d ok; e failure; f failure; g failure" {
			t.Error(got)
		}
		for i, want := range map[int]string{0: "no end after 3s", 2: "its time is over", 4: "no end after 1s", 5: "no end after 20s", 6: "its time is over"} {
			if !strings.Contains(results[i].Found, want) {
				t.Errorf("%d: %q, want %q", i, results[i].Found, want)
			}
		}
		// The longest one, then what facts get to end.
		if took := time.Since(start); took != 20*time.Second+2*lateTime {
			t.Errorf("took %v", took)
		}
		close(never)
	})
}

// When nobody waits any more, nothing goes on.
func TestCancel(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("interrupted")
		time.AfterFunc(time.Second, func() { cancel(why) })
		start := time.Now()
		never := make(chan struct{})
		results, err := Examine(ctx, advice(), []Check{check("a", func(ctx context.Context, e *Env) Finding { <-ctx.Done(); return ok("") }),
			check("b", func(context.Context, *Env) Finding { <-never; return ok("") })})
		if !errors.Is(err, why) || results != nil || time.Since(start) > time.Second+lateTime {
			t.Errorf("%v, %v after %v", results, err, time.Since(start))
		}
		close(never)
	})
}

func TestSelect(t *testing.T) {
	t.Parallel()
	all := []Check{check("a", well), check("b", well, "a"), check("c", well), check("d", well, "b"), {ID: "e", Asked: true, Needs: []string{"c"}, Run: well}}
	ids := func(checks []Check) (s string) {
		for _, c := range checks {
			s += c.ID
		}
		return s
	}
	for only, want := range map[string]string{"": "abcd", "a": "a", "d": "abd", "c b": "abc", "e": "ce"} {
		if got, err := Select(all, strings.Fields(only)...); err != nil || ids(got) != want {
			t.Errorf("%q: %s, %v, want %s", only, ids(got), err, want)
		}
	}
	var unknown *UnknownError
	if _, err := Select(all, "a", "x"); !errors.As(err, &unknown) || unknown.ID != "x" {
		t.Errorf("unknown: %v", err)
	}
	if ids(all) != "abcde" {
		t.Error("the list has changed")
	}
}

// The list itself: names that can be typed, a title, needs that are earlier.
func TestAll(t *testing.T) {
	t.Parallel()
	for _, goos := range []string{"linux", "darwin"} {
		seen := make(map[string]bool)
		for _, c := range All(goos) {
			if seen[c.ID] || c.ID == "" || strings.Trim(c.ID, "abcdefghijklmnopqrstuvwxyz-") != "" || c.Title == "" || c.Run == nil || len(c.ID) > 14 {
				t.Errorf("%s: %q %q", goos, c.ID, c.Title)
			}
			if n := len(fmt.Sprintf("%-14s  %s", c.ID, c.Title)); n > 79 {
				t.Errorf("%s: a line of %d", c.ID, n)
			}
			for _, n := range c.Needs {
				if !seen[n] {
					t.Errorf("%s: %s needs %s, which is not earlier", goos, c.ID, n)
				}
			}
			seen[c.ID] = true
		}
		if seen["local-network"] != (goos == "darwin") {
			t.Errorf("%s: local-network", goos)
		}
	}
	if i := slices.IndexFunc(All("linux"), func(c Check) bool { return c.ID == "host" }); i < 0 || !All("linux")[i].Asked {
		t.Error("host is not for those who ask for it")
	}
}

func TestLevels(t *testing.T) {
	t.Parallel()
	for i, want := range []string{"ok", "skipped", "warning", "failure"} {
		if b, err := Level(i).MarshalText(); err != nil || string(b) != want {
			t.Errorf("%d: %s, %v", i, b, err)
		}
	}
	if w := Worst([]Result{{Finding: Finding{Level: Skipped}}, {}}); w != OK {
		t.Errorf("skipped counts: %v", w)
	}
	if w := Worst([]Result{{Finding: Finding{Level: Warning}}, {}}); w != Warning {
		t.Errorf("warning: %v", w)
	}
}

// The program of an ssh-agent is not to be seen for an ordinary user, whose socket it serves.
func TestProgram(t *testing.T) {
	t.Parallel()
	for want, p := range map[string]process.Process{
		"ssh-agent":       {Name: "ssh-agent"},
		"ssh-pageant":     {Name: "agent", Executable: "/usr/bin/ssh-pageant"},
		"vmux (deleted)":  {Name: "vmux", Executable: "/tmp/vmux (deleted)"},
		"gnome-keyring-d": {Name: "gnome-keyring-d"},
		"":                {},
	} {
		if got := program(p); got != want {
			t.Errorf("%+v: %q", p, got)
		}
	}
}
