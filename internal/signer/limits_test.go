// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

// writeLimits replaces certificates.toml.
func writeLimits(t *testing.T, h *Home, text string) {
	t.Helper()
	if err := os.WriteFile(h.path(limitsName), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLimitsFile(t *testing.T) {
	t.Parallel()
	with := func(change func(*Limits)) Limits {
		l := defaultLimits()
		change(&l)
		return l
	}
	for text, want := range map[string]Limits{
		"":                      defaultLimits(),
		"# nothing\n":           defaultLimits(),
		`max-validity = "8h"`:   with(func(l *Limits) { l.MaxValidity = 8 * time.Hour }),
		`max-validity = "15s"`:  with(func(l *Limits) { l.MaxValidity = 15 * time.Second }),
		`min-validity = "1s"`:   with(func(l *Limits) { l.MinValidity = time.Second }),
		`principals = []`:       with(func(l *Limits) { l.Principals = []string{} }),
		`critical-options = []`: with(func(l *Limits) { l.CriticalOptions = []string{} }),
		"max-validity = \"8784h\"\nextensions = [\"permit-pty\", \"login@github.com\"]\nprincipals = [\"anna\", \"root\"]": with(func(l *Limits) {
			l.MaxValidity, l.Extensions, l.Principals = 366*24*time.Hour, []string{"permit-pty", "login@github.com"}, []string{"anna", "root"}
		}),
	} {
		if got, err := parseLimits(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v, want %+v", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		`max-validity`:                                 "line 1",
		"\n\nmax-validity = 8h":                        "line 3",
		`max-validity = 86400`:                         `"max-validity" is not a duration in quotes`,
		`max-validity = "a day"`:                       `"max-validity" is not a duration`,
		`max-validity = "8785h"`:                       "whole seconds from 1s to 8784h0m0s",
		`max-validity = "1.5s"`:                        "whole seconds",
		`min-validity = "0s"`:                          "whole seconds",
		`min-validity = "-15s"`:                        "whole seconds",
		`max-validity = "14s"`:                         "min-validity 15s is more than max-validity 14s",
		`min-validity = "25h"`:                         "min-validity 25h0m0s is more",
		`Max-Validity = "1h"`:                          `"Max-Validity" is not a setting`,
		`max_validity = "1h"`:                          `"max_validity" is not a setting`,
		"[limits]\nmax-validity = \"1h\"":              `"limits" is not a setting`,
		`principals = "anna"`:                          `"principals" is not a list`,
		`principals = ["anna", 1]`:                     "no name",
		`principals = [""]`:                            "no name",
		`principals = ["dev-*"]`:                       "no patterns",
		`principals = ["anna,root"]`:                   "no patterns",
		`extensions = ["*"]`:                           "no patterns",
		`critical-options = ["force-command"`:          "line 1",
		"principals = [\"\xff\"]":                      "UTF-8",
		"max-validity = \"1h\"\nmax-validity = \"2h\"": "already",
	} {
		if got, err := parseLimits(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v, want %q", text, got, err, want)
		}
	}
}

func TestLimitsFileOnDisk(t *testing.T) {
	t.Parallel()
	h := testHome(t)
	path := h.path(limitsName)
	wrong := func(what, want string) {
		t.Helper()
		_, err := h.Limits()
		var l *LimitsError
		if !errors.As(err, &l) || l.Path != path || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	if l, err := h.Limits(); err != nil || !reflect.DeepEqual(l, defaultLimits()) {
		t.Errorf("no file: %+v, %v", l, err)
	}
	writeLimits(t, h, `max-validity = "1h"`)
	for mode, ok := range map[os.FileMode]bool{0o600: true, 0o644: true, 0o400: true, 0o664: false, 0o646: false, 0o000: false} {
		if mode == 0 && os.Geteuid() == 0 {
			continue
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if ok {
			if l, err := h.Limits(); err != nil || l.MaxValidity != time.Hour {
				t.Errorf("mode %o: %+v, %v", mode, l, err)
			}
		} else {
			wrong(mode.String(), path)
		}
	}
	os.Chmod(path, 0o600)
	writeLimits(t, h, `max-validity = "1h"`+strings.Repeat("\n", maxLimitsFile))
	wrong("large", "larger than")
	os.Remove(path)
	os.Mkdir(path, 0o700)
	wrong("directory", "not a regular file")
	os.Remove(path)
	os.Symlink("nothing", path)
	wrong("symlink to nothing", "no such file")
	os.Remove(path)
	os.WriteFile(h.path("elsewhere"), []byte(`max-validity = "2h"`), 0o600)
	os.Symlink("elsewhere", path)
	if l, err := h.Limits(); err != nil || l.MaxValidity != 2*time.Hour {
		t.Errorf("symlink: %+v, %v", l, err)
	}
}
