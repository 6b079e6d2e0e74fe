// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"

	"vmux.app/toolkit/internal/policy"
	"vmux.app/toolkit/internal/store"
)

func configChecks() []Check {
	return []Check{
		{ID: "config", Title: "vmux.toml: right, nobody else's, what the agent goes by", Run: checkConfig},
	}
}

func checkConfig(ctx context.Context, e *Env) Finding {
	if e.ConfigErr != nil {
		return e.failure(e.ConfigErr, "no command starts until it is mended; the checks below go by the defaults")
	}
	if err := store.Trusted(e.ConfigFile); err != nil {
		return e.failure(err, "who can write it decides what is asked of the phone")
	}
	if p := e.Config.Policy; p.Default != policy.Ask && !slices.ContainsFunc(p.Rules, func(r policy.Rule) bool { return r.Action == policy.Ask }) {
		return e.warning(ErrRefuses, "no request reaches the phone")
	}
	s, err := e.status(ctx)
	if err == nil && s.Configuration.Problem != "" {
		return e.failure(&ReloadError{What: "vmux.toml, says the agent: " + s.Configuration.Problem, PID: s.PID}, "the agent goes by what it read before")
	}
	fi, serr := os.Stat(e.ConfigFile)
	if err == nil && serr == nil && fi.ModTime().After(s.Configuration.Read) {
		return e.warning(&ReloadError{What: "vmux.toml has changed since the agent read it", PID: s.PID}, "the agent goes by what it read before")
	}
	rules := ""
	if n := len(e.Config.Policy.Rules); n > 0 {
		rules = ", " + count(n, "rule")
	}
	if errors.Is(serr, fs.ErrNotExist) {
		return ok("no vmux.toml: the defaults")
	}
	return ok("%s%s, default: %s", e.short(e.ConfigFile), rules, e.Config.Policy.Default)
}
