// SPDX-License-Identifier: BSD-3-Clause

package store

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/BurntSushi/toml"

	"vmux.app/toolkit/internal/duration"
	"vmux.app/toolkit/internal/policy"
)

// Bounds of the configuration.
const (
	maxConfigSize = 64 << 10 // 256 bytes for each of policy.MaxRules

	// MinDeadline leaves time to find a phone (3 s) and to answer a prompt at all.
	MinDeadline = 5 * time.Second
	// MaxDeadline is below sshd's LoginGraceTime of 120 s, after which an approval is of no use.
	MaxDeadline = 110 * time.Second

	// LeastValidity and MostValidity bound the limits of session certificates: below the clocks of two
	// computers decide, above revocation is the only end.
	LeastValidity = 5 * time.Second
	MostValidity  = 366 * 24 * time.Hour
)

// Config is what vmux.toml(5) sets.
type Config struct {
	Socket   string        // absolute path of the agent's socket; empty for Env.SocketPath, see LoadConfig
	Name     string        // this device's name as the phone shows it, 1 to MaxName bytes
	LogLevel slog.Level    //
	Deadline time.Duration // for one request in all, MinDeadline to MaxDeadline
	Policy   policy.Policy // never changed once it is read

	Certificate Certificate
	Wake        Wake
}

// Certificate is about session certificates.
type Certificate struct {
	Validity     time.Duration // of those that do not say, MinValidity to MaxValidity
	MinValidity  time.Duration // limits of what may be asked for
	MaxValidity  time.Duration
	AfterPairing bool // a finished pairing asks for one
}

// ConfigError says what is wrong with one setting and what would be right.
type ConfigError struct {
	File    string // path, or what else set it: "VMUX_DEADLINE", "--deadline"
	Line    int    // from 1; 0 if unknown or File is none
	Key     string // as "policy.default" or "policy.rule.host"; empty when the file is no TOML
	Problem string
	Want    string // what to write instead, may be empty
	Err     error  // why the file cannot be read, nil if it could
}

func (e *ConfigError) Error() string {
	where := e.File
	if e.Line > 0 {
		where = fmt.Sprintf("%s:%d", e.File, e.Line)
	}
	return where + ": " + e.Problem
}
func (e *ConfigError) Unwrap() error { return e.Err }

// setting is one row of the configuration: its name in vmux.toml, in the environment and on the command line
// follow from key, and set parses it wherever it came from.
type setting struct {
	key  string
	want string
	set  func(c *Config, env Env, value string) error
}

// settings returns every setting there is.
func settings() []setting {
	return append([]setting{
		{"socket", `an absolute path, or one that begins with ~/, as in socket = "~/.ssh/vmux-agent.sock"`, func(c *Config, env Env, v string) (err error) {
			c.Socket, err = env.Expand(v)
			if err == nil && !filepath.IsAbs(c.Socket) {
				err = errors.New("is not an absolute path")
			}
			return err
		}},
		{"name", fmt.Sprintf(`1 to %d bytes without control characters, as in name = "laptop"`, MaxName), func(c *Config, _ Env, v string) error {
			c.Name = v
			return checkName(v)
		}},
		{"log-level", `debug, info, warn or error, as in log-level = "info"`, func(c *Config, _ Env, v string) error {
			levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
			l, ok := levels[v]
			if !ok {
				return errors.New("is no log level")
			}
			c.LogLevel = l
			return nil
		}},
		{"deadline", fmt.Sprintf(`%s to %s, as in deadline = "60s"`, seconds(MinDeadline), seconds(MaxDeadline)), func(c *Config, _ Env, v string) (err error) {
			if c.Deadline, err = time.ParseDuration(v); err != nil {
				return errors.New("is no duration")
			}
			if c.Deadline < MinDeadline || c.Deadline > MaxDeadline {
				return errors.New("is out of range")
			}
			return nil
		}},
		{policyDefault, policy.Want("default"), func(c *Config, _ Env, v string) (err error) {
			c.Policy.Default, err = policy.ParseAction(v)
			return err
		}},
		validity("certificate.validity", func(c *Config) *time.Duration { return &c.Certificate.Validity }),
		validity("certificate.min-validity", func(c *Config) *time.Duration { return &c.Certificate.MinValidity }),
		validity("certificate.max-validity", func(c *Config) *time.Duration { return &c.Certificate.MaxValidity }),
		{"certificate.after-pairing", `yes or no, as in after-pairing = "no"`, func(c *Config, _ Env, v string) error {
			if v != "yes" && v != "no" {
				return errors.New("is neither yes nor no")
			}
			c.Certificate.AfterPairing = v == "yes"
			return nil
		}},
	}, wakeSettings()...)
}

func validity(key string, field func(*Config) *time.Duration) setting {
	_, last, _ := strings.Cut(key, ".")
	return setting{key, fmt.Sprintf(`5s to 366d, as in %s = "8h"`, last), func(c *Config, _ Env, v string) error {
		d, err := duration.Parse(v)
		switch {
		case err != nil:
			return errors.New("is no length of time")
		case d < LeastValidity || d > MostValidity:
			return errors.New("is out of range")
		case d%time.Second != 0:
			return errors.New("has a part of a second")
		}
		*field(c) = d
		return nil
	}}
}

// envName returns the variable that sets key: VMUX_LOG_LEVEL for log-level.
func envName(key string) string {
	return "VMUX_" + strings.ToUpper(strings.NewReplacer("-", "_", ".", "_").Replace(key))
}

// LoadConfig returns the configuration: the defaults, then the file path (Env.ConfigFile, or what --config or
// VMUX_CONFIG says), then the VMUX_… variables of env. Flags come after it, by Set. A file that is
// absent counts as empty, unless the user named it (explicit). Errors: *ConfigError, ErrNoHome.
func LoadConfig(path string, explicit bool, env Env) (Config, error) {
	c := Config{
		Name: hostName(), LogLevel: slog.LevelInfo, Deadline: 60 * time.Second,
		Policy:      policy.Shipped(),
		Certificate: Certificate{Validity: 8 * time.Hour, MinValidity: 15 * time.Second, MaxValidity: 24 * time.Hour, AfterPairing: true},
	}
	b, err := ReadFile(path, maxConfigSize)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !explicit:
	case errors.Is(err, fs.ErrNotExist):
		return Config{}, &ConfigError{File: path, Problem: "there is no such file", Err: err}
	case err != nil:
		return Config{}, &ConfigError{File: path, Problem: fmt.Sprintf("cannot be read: %v", cause(err)), Err: err}
	default:
		if err := c.setFile(path, b, env); err != nil {
			return Config{}, err
		}
	}
	for _, s := range settings() {
		if v := env(envName(s.key)); v != "" {
			if err := c.Set(env, s.key, v, envName(s.key)); err != nil {
				return Config{}, err
			}
		}
	}
	if v := c.Certificate; v.Validity < v.MinValidity || v.Validity > v.MaxValidity {
		return Config{}, &ConfigError{File: path, Key: "certificate.validity",
			Problem: fmt.Sprintf("certificate.validity %s is not between min-validity %s and max-validity %s",
				duration.Short(v.Validity), duration.Short(v.MinValidity), duration.Short(v.MaxValidity)),
			Want: "limits that the default validity is within"}
	}
	if c.Socket == "" {
		if c.Socket, err = env.SocketPath(); err != nil {
			return Config{}, err
		}
	}
	return c, nil
}

// Set sets one setting, named as in vmux.toml ("log-level", "policy.default"), to what origin (a flag
// or variable) says. The error is a *ConfigError.
func (c *Config) Set(env Env, key, value, origin string) error {
	for _, s := range settings() {
		if s.key != key {
			continue
		}
		if err := s.set(c, env, value); err != nil {
			return &ConfigError{File: origin, Key: key, Problem: fmt.Sprintf("%q %v", shown(value, err), err), Want: s.want}
		}
		return nil
	}
	return &ConfigError{File: origin, Key: key, Problem: fmt.Sprintf("there is no setting %q", key)}
}

// setFile applies every setting in the file. All of them but the rules are strings so that each has one parser.
func (c *Config) setFile(path string, b []byte, env Env) error {
	var tree map[string]any
	if _, err := toml.Decode(string(b), &tree); err != nil {
		e := &ConfigError{File: path, Problem: err.Error()}
		if pe, ok := errors.AsType[toml.ParseError](err); ok {
			e.Line, e.Problem = pe.Position.Line, pe.Message
		}
		return e
	}
	rules, found := takeRules(path, b, tree)
	flat := make(map[string]any)
	flatten(flat, "", tree)
	known := settings()
	for _, key := range slices.Sorted(maps.Keys(flat)) {
		e := &ConfigError{File: path, Line: lineOf(b, key), Key: key}
		i := slices.IndexFunc(known, func(s setting) bool { return s.key == key })
		value, isText := flat[key].(string)
		switch {
		case i < 0:
			e.Problem, e.Want = fmt.Sprintf("there is no setting %q", key), "one of "+names(known)
		case !isText:
			e.Problem, e.Want = fmt.Sprintf("%s is no text in quotes", key), known[i].want
		default:
			err := known[i].set(c, env, value)
			if err == nil {
				continue
			}
			e.Problem, e.Want = fmt.Sprintf("%s %q %v", key, shown(value, err), err), known[i].want
		}
		found = append(found, e)
	}
	if len(found) == 0 {
		if e := noDefault(path, b, tree); e != nil {
			return e
		}
		c.Policy.Rules = rules
		return nil
	}
	return slices.MinFunc(found, func(a, b *ConfigError) int { return a.Line - b.Line })
}

func names(known []setting) string {
	var keys []string
	for _, s := range known {
		if keys = append(keys, s.key); s.key == policyDefault {
			keys = append(keys, "[["+policyRule+"]]")
		}
	}
	return strings.Join(keys, ", ")
}

func flatten(into map[string]any, prefix string, tree map[string]any) {
	for k, v := range tree {
		if t, ok := v.(map[string]any); ok && len(t) > 0 {
			flatten(into, prefix+k+".", t)
			continue
		} else if ok && (prefix+k == "policy" || prefix+k == "certificate" || prefix+k == "wake") {
			continue // a table header with nothing below it
		}
		into[prefix+k] = v
	}
}

// lineOf returns the line from 1 that sets key, for messages: the TOML decoder keeps no positions. It is 0
// for forms that it does not know (quoted keys, inline tables, a table of an array).
func lineOf(b []byte, key string) int {
	table := ""
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "["); ok {
			name, _, _ = strings.Cut(name, "]")
			table = strings.TrimSpace(name)
			if table == key {
				return n
			}
			continue
		}
		name, _, ok := strings.Cut(line, "=")
		name = strings.TrimSpace(name)
		if table != "" {
			name = table + "." + name
		}
		if ok && name == key {
			return n
		}
	}
	return 0
}

// hostName returns the first label of this computer's name, made fit to be shown.
func hostName() string {
	name, err := os.Hostname()
	if err != nil {
		return "computer"
	}
	name, _, _ = strings.Cut(name, ".")
	if checkName(name) != nil {
		return "computer"
	}
	return name
}

func checkName(s string) error {
	switch {
	case strings.TrimSpace(s) == "":
		return errors.New("is empty")
	case len(s) > MaxName:
		return fmt.Errorf("has more than %d bytes", MaxName)
	case !utf8.ValidString(s):
		return errors.New("is not UTF-8")
	case strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }):
		return errors.New("has characters that cannot be shown")
	}
	return nil
}

// seconds prints whole seconds as people write them: 110s, where String has 1m50s.
func seconds(d time.Duration) string { return fmt.Sprintf("%ds", int(d.Seconds())) }
