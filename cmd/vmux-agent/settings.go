// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"vmux.app/toolkit/internal/control"
	"vmux.app/toolkit/internal/policy"
	"vmux.app/toolkit/internal/store"
)

// settings is the configuration of a running agent. The policy, the log level
// and how phones are woken follow vmux.toml when it is read again; the rest is
// as it was at the start.
type settings struct {
	load  func() (store.Config, error)
	file  string // that load reads, if it is there
	start store.Config
	quiet bool
	level *slog.LevelVar // of the log

	mu      sync.Mutex
	policy  *policy.Policy
	wake    store.Wake
	written bool      // the file had something in it
	read    time.Time // when the policy was
	problem error     // of the last attempt to read it
}

// newSettings reads the configuration for the first time.
func newSettings(quiet bool, file string, level *slog.LevelVar, load func() (store.Config, error)) (*settings, error) {
	s := &settings{load: load, file: file, quiet: quiet, level: level}
	written := hasContent(file)
	var err error
	if s.start, err = load(); err != nil {
		return nil, err
	}
	s.take(s.start, written)
	return s, nil
}

// hasContent says whether a file is there and not empty.
func hasContent(file string) bool {
	fi, err := os.Stat(file)
	return err == nil && fi.Size() > 0
}

func (s *settings) take(c store.Config, written bool) {
	level := c.LogLevel
	if s.quiet {
		level = max(level, slog.LevelError)
	}
	s.level.Set(level)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.policy, s.wake, s.written, s.read, s.problem = &c.Policy, c.Wake, written, time.Now(), nil
}

// Policy is the one that counts now.
func (s *settings) Policy() *policy.Policy {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.policy
}

// Wake is how phones are woken now.
func (s *settings) Wake() store.Wake {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wake
}

// reload reads the configuration again. One that is wrong changes nothing.
func (s *settings) reload(log *slog.Logger) {
	written := hasContent(s.file)
	c, err := s.load()
	s.mu.Lock()
	if err == nil && s.written && !written {
		// An editor may be at work; and nobody does away with a policy by mistake.
		err = fmt.Errorf("%s is gone or empty; for the defaults, start the agent again", s.file)
	}
	if err != nil {
		s.problem = err
	}
	s.mu.Unlock()
	if err != nil {
		attrs := []any{"reason", err}
		if wrong, ok := errors.AsType[*store.ConfigError](err); ok && wrong.Want != "" {
			attrs = append(attrs, "wanted", wrong.Want)
		}
		log.Error("configuration not taken up, the former one stays", attrs...)
		return
	}
	s.take(c, written)
	log.Info("configuration read again", "rules", len(c.Policy.Rules), "default", string(c.Policy.Default))
	if late := s.later(c); len(late) > 0 {
		log.Warn("these settings count from the next start on", "settings", strings.Join(late, " "))
	}
}

// later names what differs from the start and needs another one.
func (s *settings) later(c store.Config) (names []string) {
	for _, f := range []struct {
		name   string
		differ bool
	}{
		{"socket", c.Socket != s.start.Socket},
		{"name", c.Name != s.start.Name},
		{"deadline", c.Deadline != s.start.Deadline},
		{"certificate", c.Certificate != s.start.Certificate},
	} {
		if f.differ {
			names = append(names, f.name)
		}
	}
	return names
}

// status is what vmux-doctor and others want to know.
func (s *settings) status() control.Configuration {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := control.Configuration{Read: s.read.UTC().Truncate(time.Second)}
	if s.problem != nil {
		c.Problem = s.problem.Error()
	}
	return c
}
