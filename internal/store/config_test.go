// SPDX-License-Identifier: BSD-3-Clause

package store

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"vmux.app/toolkit/internal/policy"
)

func env(pairs ...string) Env {
	m := map[string]string{"HOME": "/home/u"}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return func(name string) string { return m[name] }
}

func TestPaths(t *testing.T) {
	t.Parallel()
	abs, err := filepath.Abs("rel")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		get  func(Env) (string, error)
		env  Env
		want string // empty: ErrNoHome
	}{
		{"config", Env.ConfigFile, env(), "/home/u/.config/vmux/vmux.toml"},
		{"config XDG", Env.ConfigFile, env("XDG_CONFIG_HOME", "/c"), "/c/vmux/vmux.toml"},
		{"config relative XDG", Env.ConfigFile, env("XDG_CONFIG_HOME", "c"), "/home/u/.config/vmux/vmux.toml"},
		{"config without HOME", Env.ConfigFile, env("XDG_CONFIG_HOME", "/c", "HOME", ""), "/c/vmux/vmux.toml"},
		{"link key", Env.LinkKeyFile, env(), "/home/u/.config/vmux/device-key.pem"},
		{"state", Env.StateFile, env(), "/home/u/.local/state/vmux/agent.json"},
		{"state XDG", Env.StateFile, env("XDG_STATE_HOME", "/s/"), "/s/vmux/agent.json"},
		{"state without HOME", Env.StateFile, env("HOME", ""), ""},
		{"relative HOME", Env.StateFile, env("HOME", "u"), ""},
		{"socket", Env.SocketPath, env("XDG_CONFIG_HOME", "/c"), "/home/u/.ssh/vmux-agent.sock"},
		{"socket without HOME", Env.SocketPath, env("HOME", ""), ""},
		{"signer", Env.SignerHome, env(), "/home/u/.local/share/vmux-signer"},
		{"signer XDG", Env.SignerHome, env("XDG_DATA_HOME", "/d"), "/d/vmux-signer"},
		{"signer own", Env.SignerHome, env("XDG_DATA_HOME", "/d", "VMUX_SIGNER_HOME", "/x", "HOME", ""), "/x"},
		{"signer relative", Env.SignerHome, env("VMUX_SIGNER_HOME", "rel"), abs},
		{"signer without HOME", Env.SignerHome, env("HOME", ""), ""},
	} {
		got, err := c.get(c.env)
		if got != c.want || errors.Is(err, ErrNoHome) != (c.want == "") {
			t.Errorf("%s: %q, %v, want %q", c.name, got, err, c.want)
		}
	}
}

func TestExpand(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"~": "/home/u", "~/a/b": "/home/u/a/b", "/a/~": "/a/~", "a": "a", "~root/a": ""} {
		if got, err := env().Expand(in); got != want || (err != nil) != (want == "") {
			t.Errorf("Expand(%q) = %q, %v", in, got, err)
		}
	}
}

func TestConfigPrecedence(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "vmux.toml")
	write(t, path, "socket = \"~/s\"\nname = \"from file\"\nlog-level = \"debug\"\n\n[policy]\ndefault = \"ask\"\n", 0o644)
	e := env("VMUX_NAME", "from env", "VMUX_POLICY_DEFAULT", "refuse", "VMUX_LOG_LEVEL", "error")
	c, err := LoadConfig(path, true, e)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Set(e, "log-level", "warn", "--log-level"); err != nil {
		t.Fatal(err)
	}
	want := Config{"/home/u/s", "from env", slog.LevelWarn, time.Minute, policy.Policy{Default: policy.Refuse}, Certificate{8 * time.Hour, 15 * time.Second, 24 * time.Hour, true}, Wake{}}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("%+v, want %+v", c, want)
	}
}

func TestConfigDefaults(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "none", "vmux.toml")
	c, err := LoadConfig(path, false, env())
	if err != nil {
		t.Fatal(err)
	}
	host, err := os.Hostname()
	if name, _, _ := strings.Cut(host, "."); c.Name != name && (err == nil && checkName(name) == nil || c.Name != "computer") {
		t.Errorf("the name is %q on the host %q, %v", c.Name, host, err)
	}
	c.Name = ""
	want := Config{"/home/u/.ssh/vmux-agent.sock", "", slog.LevelInfo, time.Minute, policy.Policy{Default: policy.Ask}, Certificate{8 * time.Hour, 15 * time.Second, 24 * time.Hour, true}, Wake{}}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("%+v, want %+v", c, want)
	}
	if _, err := LoadConfig(path, false, env("HOME", "")); !errors.Is(err, ErrNoHome) {
		t.Errorf("without HOME: %v", err)
	}
	if _, err := LoadConfig(path, true, env()); !errors.Is(err, fs.ErrNotExist) || err.Error() != path+": there is no such file" {
		t.Errorf("explicit: %v", err)
	}
}

// What is just within the bounds is taken; TestConfigErrors has what is beyond.
func TestConfigBounds(t *testing.T) {
	t.Parallel()
	for _, c := range [][2]string{
		{"deadline", "5s"}, {"deadline", "110s"}, {"name", "x"}, {"name", strings.Repeat("x", MaxName)},
		{"certificate.min-validity", "5s"}, {"certificate.max-validity", "366d"},
	} {
		if err := new(Config).Set(env(), c[0], c[1], "--"+c[0]); err != nil {
			t.Error(err)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		file    string
		line    int
		key     string
		problem string
		want    string
	}{
		{"socket = \"a\"", 1, "socket", `"a" is not an absolute path`, "~/"},
		{"socket = \"~bob/a\"", 1, "socket", "another user", "~/"},
		{"\nsockett = \"/a\"", 2, "sockett", `no setting "sockett"`, "socket, name"},
		{"# name = \"x\"\nname = \"\"", 2, "name", "is empty", "63 bytes"},
		{"name = \"" + strings.Repeat("x", 64) + "\"", 1, "name", "more than 63", ""},
		{"name = \"a\\u202Eb\"", 1, "name", "cannot be shown", ""},
		{"log-level = \"loud\"", 1, "log-level", `"loud" is no log level`, "debug, info, warn or error"},
		{"[certificate]\nvalidity = \"1x\"", 2, "certificate.validity", "is no length of time", "8h"},
		{"[certificate]\nmin-validity = \"4s\"", 2, "certificate.min-validity", "out of range", "5s to 366d"},
		{"[certificate]\nmax-validity = \"367d\"", 2, "certificate.max-validity", "out of range", "366d"},
		{"[certificate]\nmin-validity = \"5500ms\"", 2, "certificate.min-validity", "part of a second", "8h"},
		{"[certificate]\nafter-pairing = \"true\"", 2, "certificate.after-pairing", "neither yes nor no", "yes or no"},
		{"[certificate]\nvalidity = \"25h\"", 0, "certificate.validity", "not between", "limits"},
		{"deadline = 60", 1, "deadline", "no text in quotes", `deadline = "60s"`},
		{"deadline = \"60\"", 1, "deadline", "is no duration", "5s to 110s"},
		{"deadline = \"4s\"", 1, "deadline", "out of range", "5s to 110s"},
		{"deadline = \"111s\"", 1, "deadline", "out of range", "5s to 110s"},
		{"[policy]\n default=\"allow\"", 2, "policy.default", "neither ask nor refuse", `default = "refuse"`},
		{"[policy]\nDefault = \"ask\"", 2, "policy.Default", "no setting", "policy.default"},
		{"[policy]\nopaque = \"ask\"", 2, "policy.opaque", "no setting", "[[policy.rule]]"},
		{"policy.default = true", 1, "policy.default", "no text", "ask or refuse"},
		{"\n[sleep]\n", 2, "sleep", "no setting", ""},
		{"[wake]\nkey = \"apns.p8\"", 2, "wake.key", `"apns.p8" is not an absolute path`, "~/.ssh/vmux-apns.p8"},
		{"  [wake]\n  key = \"apns.p8\"", 2, "wake.key", "is not an absolute path", ""},
		{"[wake]\nkey-id = \"abc\"", 2, "wake.key-id", `"abc" is not 10 capital letters and digits`, "ABC123DEFG"},
		{"[wake]\nteam-id = \"abc\"", 2, "wake.team-id", "is not 10 capital letters and digits", "DEF123GHIJ"},
		{"[wake]\ntopic = \"a b\"", 2, "wake.topic", "is no bundle id", "com.example.app"},
		{"[wake]\nenvironment = \"development\"", 2, "wake.environment", "neither production nor sandbox", "sandbox"},
		{"[wake]\nendpoint = \"http://x\"", 2, "wake.endpoint", "does not begin with https://", "https URL"},
		{"[wake]\nca-file = \"~x/ca\"", 2, "wake.ca-file", "another user", "~/"},
		{"[wake]\ndevice-token = \"0123456789abcdefg\"", 2, "wake.device-token", `wake.device-token "01234567…" is not hexadecimal`, "hexadecimal"},
		{"policy = \"ask\"", 1, "policy", "no setting", ""},
		{"a = 1\nb = 2", 1, "a", "no setting", ""},
		{"name = \"a\"\nname = \"b\"", 2, "", "already", ""},
		{"name = ", 1, "", "", ""},
	} {
		path := filepath.Join(t.TempDir(), "vmux.toml")
		write(t, path, c.file, 0o600)
		_, err := LoadConfig(path, false, env())
		e, ok := errors.AsType[*ConfigError](err)
		if !ok {
			t.Errorf("%q: %v", c.file, err)
			continue
		}
		if e.File != path || e.Line != c.line || e.Key != c.key || !strings.Contains(e.Problem, c.problem) || !strings.Contains(e.Want, c.want) {
			t.Errorf("%q: %+v", c.file, e)
		}
		where := path
		if c.line > 0 {
			where = fmt.Sprintf("%s:%d", path, c.line)
		}
		if e.Error() != where+": "+e.Problem {
			t.Errorf("%q: %v", c.file, e)
		}
	}
	path := filepath.Join(t.TempDir(), "vmux.toml")
	write(t, path, strings.Repeat("#", maxConfigSize+1), 0o600)
	if _, err := LoadConfig(path, false, env()); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Errorf("too large: %v", err)
	}
	_, err := LoadConfig("/none", false, env("VMUX_DEADLINE", "soon"))
	if e, ok := errors.AsType[*ConfigError](err); !ok || e.File != "VMUX_DEADLINE" || e.Want == "" {
		t.Errorf("environment: %v", err)
	}
	if e, ok := errors.AsType[*ConfigError](new(Config).Set(env(), "nonsense", "x", "--nonsense")); !ok || e.File != "--nonsense" {
		t.Errorf("Set: %v", e)
	}
}
