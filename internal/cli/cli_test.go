// SPDX-License-Identifier: BSD-3-Clause

package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-json-experiment/json"
	"vmux.app/toolkit/internal/agent"
	"vmux.app/toolkit/internal/audit"
	"vmux.app/toolkit/internal/keyfile"
	"vmux.app/toolkit/internal/networks"
	"vmux.app/toolkit/internal/pairing"
	"vmux.app/toolkit/internal/phone"
	"vmux.app/toolkit/internal/ptytest"
	"vmux.app/toolkit/internal/signer"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/transport"
	"vmux.app/toolkit/internal/unixsock"
	"vmux.app/toolkit/internal/wake/apns"
)

// What a command looks like.
func testApp() *App {
	return &App{
		Name:  "vmux-test",
		Usage: "try things",
		Flags: []Flag{&StringFlag{Name: "level", Usage: "set the `LEVEL`"}},
		Commands: []*Command{
			{Name: "key", Usage: "manage keys", Subcommands: []*Command{
				{Name: "add", Usage: "make a key", ArgsUsage: "LABEL", Action: add, Flags: []Flag{
					Choice("type", "the `TYPE` of key", "ecdsa", "ecdsa", "ed25519"),
					&DurationFlag{Name: "timeout", Usage: "wait for `DURATION`", Value: time.Minute},
					&IntFlag{Name: "count", Usage: "make `N`"},
					&StringFlag{Name: "file", Usage: "write to `FILE`", TakesFile: true},
				}},
				{Name: "list", Usage: "list keys", Action: func(c *Context) error { From(c).Result([]string{}, func(io.Writer) {}); return nil }},
			}},
			{Name: "run", Usage: "run a command", ArgsUsage: "[--] COMMAND [ARGUMENT...]", Action: echo, Flags: []Flag{&BoolFlag{Name: "verbose"}}},
			{Name: "open", Usage: "open", ArgsUsage: "[NAME]", Action: echo},
			{Name: "all", Usage: "all", ArgsUsage: "NAME...", Action: echo},
			{Name: "by", Usage: "by", Action: echo, Flags: []Flag{Choice("means", "by `MEANS`", "", "hand", "tool:NAME", "none")}},
			{Name: "need", Usage: "need", Action: echo, Flags: []Flag{&StringFlag{Name: "who", Usage: "the `NAME`", Required: true}}},
			{Name: "fail", Usage: "fail", ArgsUsage: "[KIND]", Action: fail},
			{Name: "secret", Hidden: true, Action: echo},
		},
	}
}

func add(c *Context) error {
	v := struct {
		Label string `json:"label"`
		Type  string `json:"type"`
		Wait  string `json:"wait"`
		Count int    `json:"count"`
	}{c.Args().First(), c.String("type"), c.Duration("timeout").String(), c.Int("count")}
	From(c).Notef("adding %s", v.Label)
	From(c).Result(v, func(w io.Writer) { fmt.Fprintln(w, v.Label, v.Type, v.Wait, v.Count) })
	return nil
}

func echo(c *Context) error {
	From(c).Result(c.Args().Slice(), func(w io.Writer) { fmt.Fprintf(w, "%q\n", c.Args().Slice()) })
	return nil
}

func fail(c *Context) error {
	switch c.Args().First() {
	case "status":
		return Status(42)
	case "told":
		return fmt.Errorf("outer: %w", Fail(ExitDenied, "ask nicely", errors.New("inner")))
	case "late":
		return fmt.Errorf("list: %w", context.DeadlineExceeded)
	case "busy":
		return fmt.Errorf("x: %w", store.ErrBusy)
	case "warn":
		From(c).Warnf("careful with %s", "that\nerror: forged")
		From(c).Notef("note")
		return nil
	case "wait":
		<-c.Done()
		return fmt.Errorf("asking: %w", c.Err())
	}
	return errors.New("it broke\x1b[2J\nhint: none")
}

func run(t *testing.T, args ...string) (exit int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	exit = Run(t.Context(), testApp(), args, strings.NewReader("typed\n"), &out, &errOut)
	return exit, out.String(), errOut.String()
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args   string
		exit   int
		stdout string
		stderr string
	}{
		{"key add work", 0, "work ecdsa 1m0s 0\n", "adding work\n"},
		{"key add work --type ed25519", 0, "work ed25519 1m0s 0\n", "adding work\n"},
		{"key add --type=ed25519 --count 3 work --timeout 5s", 0, "work ed25519 5s 3\n", "adding work\n"},
		{"key add --count -3 work", 0, "work ecdsa 1m0s -3\n", "adding work\n"},
		{"--quiet key add work", 0, "work ecdsa 1m0s 0\n", ""},
		{"key add work --quiet", 0, "work ecdsa 1m0s 0\n", ""},
		{"key add work --json", 0, `{"label":"work","type":"ecdsa","wait":"1m0s","count":0}` + "\n", "adding work\n"},
		{"--json key add work --quiet", 0, `{"label":"work","type":"ecdsa","wait":"1m0s","count":0}` + "\n", ""},
		{"key add -- --type", 0, "--type ecdsa 1m0s 0\n", "adding --type\n"},
		{"key list", 0, "", ""},
		{"open", 0, "[]\n", ""},
		{"open -", 0, "[\"-\"]\n", ""},
		{"open help", 0, "[\"help\"]\n", ""},
		{"all a b c", 0, "[\"a\" \"b\" \"c\"]\n", ""},
		{"run ssh -v --json host", 0, "[\"ssh\" \"-v\" \"--json\" \"host\"]\n", ""},
		{"run --verbose -- ssh -- -v", 0, "[\"ssh\" \"--\" \"-v\"]\n", ""},
		{"need --who me", 0, "[]\n", ""},

		{"", 2, "", "error: no command is given\nhint: type one of: vmux-test key|run|open|all|by|need|fail\n"},
		{"key", 2, "", "error: no command is given\nhint: type one of: vmux-test key add|list\n"},
		{"kye", 2, "", "error: there is no command \"kye\"\nhint: did you mean key? see vmux-test --help\n"},
		{"frobnicate", 2, "", "error: there is no command \"frobnicate\"\nhint: type: vmux-test --help\n"},
		{"key lst", 2, "", "error: there is no command \"lst\"\nhint: did you mean list? see vmux-test key --help\n"},
		{"key add --tpye ed25519 work", 2, "", "error: there is no flag --tpye\nhint: did you mean --type? see vmux-test key add --help\n"},
		{"key add work -x", 2, "", "error: there is no flag -x\nhint: type: vmux-test key add --help\n"},
		{"key add", 2, "", "error: LABEL is missing\nhint: type: vmux-test key add [flags] LABEL\n"},
		{"key add a b", 2, "", "error: there is no place for the argument \"b\"\nhint: type: vmux-test key add [flags] LABEL\n"},
		{"key list x", 2, "", "error: there is no place for the argument \"x\"\nhint: type: vmux-test key list [flags]\n"},
		{"all", 2, "", "error: NAME is missing\nhint: type: vmux-test all [flags] NAME...\n"},
		{"run", 2, "", "error: COMMAND is missing\nhint: type: vmux-test run [flags] [--] COMMAND [ARGUMENT...]\n"},
		{"key add work --type rsa", 2, "", "error: --type: \"rsa\" is none of ecdsa, ed25519\nhint: write --type ecdsa|ed25519\n"},
		{"by --means hand", 0, "[]\n", ""},
		{"by --means tool:x", 0, "[]\n", ""},
		{"by --means tool:tool:", 0, "[]\n", ""},
		{"by --means tool:", 2, "", "error: --means: \"tool:\" is none of hand, tool:NAME, none\nhint: write --means hand|tool:NAME|none\n"},
		{"by --means tool", 2, "", "error: --means: \"tool\" is none of hand, tool:NAME, none\nhint: write --means hand|tool:NAME|none\n"},
		{"by --means hand:x", 2, "", "error: --means: \"hand:x\" is none of hand, tool:NAME, none\nhint: write --means hand|tool:NAME|none\n"},
		{"by --means hand:", 2, "", "error: --means: \"hand:\" is none of hand, tool:NAME, none\nhint: write --means hand|tool:NAME|none\n"},
		{"by --means xtool:x", 2, "", "error: --means: \"xtool:x\" is none of hand, tool:NAME, none\nhint: write --means hand|tool:NAME|none\n"},
		{"key add work --timeout soon", 2, "", "error: \"soon\" is no value for --timeout\nhint: write --timeout 90s, or 2m, or 1h30m\n"},
		{"key add work --count=x", 2, "", "error: \"x\" is no value for --count\nhint: write --count and a whole number\n"},
		{"key add work --type", 2, "", "error: --type needs a value\nhint: write --type ecdsa|ed25519\n"},
		{"key add --file --type ecdsa work", 2, "", "error: --file needs a value\nhint: write --file FILE\n"},
		{"key add work --quiet=maybe", 2, "", "error: --quiet takes no value\nhint: write --quiet alone\n"},
		{"need", 2, "", "error: --who is missing\nhint: add --who NAME\n"},
		{"kye --json", 2, "{\"error\":{\"message\":\"there is no command \\\"kye\\\"\",\"hint\":\"did you mean key? see vmux-test --help\",\"exit\":2}}\n",
			"error: there is no command \"kye\"\nhint: did you mean key? see vmux-test --help\n"},

		{"fail", 1, "", "error: it broke\\x1b[2J\\x0ahint: none\nhint: the manual page has more: man vmux-test\n"},
		{"fail --quiet told", 5, "", "error: outer: inner\nhint: ask nicely\n"},
		{"fail --json told", 5, "{\"error\":{\"message\":\"outer: inner\",\"hint\":\"ask nicely\",\"exit\":5}}\n", "error: outer: inner\nhint: ask nicely\n"},
		{"fail late", 6, "", "error: list: context deadline exceeded\nhint: look at the phone, then try again\n"},
		{"fail status", 42, "", ""},
		{"fail --json status", 42, "", ""},
		{"fail warn", 0, "", "warning: careful with that\\x0aerror: forged\nnote\n"},
		{"fail warn --quiet", 0, "", ""},

		{"completion", 2, "", "error: completion is for bash, zsh and fish\nhint: type: vmux-test completion bash|zsh|fish\n"},
	} {
		exit, stdout, stderr := run(t, strings.Fields(c.args)...)
		if exit != c.exit || stdout != c.stdout || stderr != c.stderr {
			t.Errorf("vmux-test %s: exit %d\n%s%s", c.args, exit, stdout, stderr)
		}
	}
}

func TestHelp(t *testing.T) {
	t.Parallel()
	for args, wants := range map[string][]string{
		"--help":                {"vmux-test - try things\n", "usage: vmux-test [flags] COMMAND\n", "  key                             manage keys", "  --level LEVEL  set the LEVEL", "  --help, -h"},
		"-h":                    {"vmux-test - try things\n"},
		"help":                  {"vmux-test - try things\n"},
		"help key add":          {"vmux-test key add - make a key\n"},
		"key add --nonsense -h": {"vmux-test key add - make a key\n"},
		"key add --help":        {"usage: vmux-test key add [flags] LABEL\n", "--type ecdsa|ed25519", "(default ecdsa)", "--timeout DURATION", "--count N", "make N\n", "(default 1m)"},
		"key --help":            {"  add LABEL  make a key", "  list       list keys"},
		"run --help":            {"usage: vmux-test run [flags] [--] COMMAND [ARGUMENT...]\n"},
	} {
		exit, stdout, stderr := run(t, strings.Fields(args)...)
		if exit != 0 || stderr != "" {
			t.Errorf("%s: exit %d, %s", args, exit, stderr)
		}
		for _, w := range wants {
			if !strings.Contains(stdout, w) {
				t.Errorf("%s: %q is not in\n%s", args, w, stdout)
			}
		}
		if strings.Contains(stdout, "secret") {
			t.Errorf("%s shows what is hidden", args)
		}
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	exit, stdout, stderr := run(t, "--version")
	if exit != 0 || stderr != "" || !strings.HasPrefix(stdout, "vmux-test ") || strings.Count(stdout, "\n") != 1 || !strings.Contains(stdout, "(go1.") {
		t.Errorf("exit %d, %q, %q", exit, stdout, stderr)
	}
	exit, stdout, stderr = run(t, "key", "add", "--version", "--json")
	var v versionInfo
	if err := json.Unmarshal([]byte(stdout), &v); exit != 0 || stderr != "" || err != nil || v.Name != "vmux-test" || v.Version == "" || v.OS == "" {
		t.Errorf("exit %d, %q, %q, %v", exit, stdout, stderr, err)
	}
}

// The Makefile has the linker set the version. It says nothing when there is no such variable.
func TestLinkedVersion(t *testing.T) { // not parallel: the variable
	defer func(was string) { version = was }(version)
	version = "9.8.7"
	if exit, stdout, _ := run(t, "--version"); exit != 0 || !strings.HasPrefix(stdout, "vmux-test 9.8.7 (") {
		t.Errorf("exit %d, %q", exit, stdout)
	}
	b, err := os.ReadFile("../../Makefile")
	if want := "-X " + reflect.TypeFor[TUI]().PkgPath() + ".version=$(VERSION)"; err != nil || !strings.Contains(string(b), want) {
		t.Errorf("the Makefile has no %s, %v", want, err)
	}
}

// full fails as /dev/full does.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

func TestResultThatCannotBePrinted(t *testing.T) {
	t.Parallel()
	var stderr bytes.Buffer
	if exit := Run(t.Context(), testApp(), []string{"open"}, nil, full{}, &stderr); exit != ExitFailed || !strings.Contains(stderr.String(), "cannot print the result") {
		t.Errorf("exit %d, %s", exit, stderr.String())
	}
}

func TestAdvice(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		exit int
		hint string
	}{
		{store.ErrNoHome, 2, "HOME"},
		{&store.ConfigError{File: "/v.toml", Line: 3, Want: `deadline = "60s"`}, 2, `write deadline = "60s"`},
		{&store.ConfigError{File: "/v.toml", Line: 3}, 2, "line 3 of /v.toml"},
		{&store.ConfigError{File: "/v.toml", Err: os.ErrNotExist}, 2, "ls -l /v.toml"},
		{&store.ModeError{Path: "/my key", Mode: 0o644, Owner: -1}, 1, "chmod 600 '/my key'"},
		{&store.ModeError{Path: "/d", Mode: 0o777, Owner: -1, Dir: true}, 1, "chmod 700 /d"},
		{&store.ModeError{Path: "/d", Owner: 7}, 1, "chown"},
		{&store.KeyError{Path: "/k", Err: errors.New("x")}, 1, "mv /k /k.old"},
		{&store.DamagedError{Path: "/s", SetAside: "/s.damaged", Err: errors.New("x")}, 1, "vmux-pair"},
		{&store.DamagedError{Path: "/s", Err: &store.UnwritableError{Path: "/s"}}, 1, "mv /s /s.old"},
		{&store.NewerError{Path: "/s"}, 1, "mv /s /s.newer"},
		{&store.DamagedError{Path: "user defaults of a.b", Err: &store.UnwritableError{Path: "user defaults of a.b"}}, 1, "defaults rename a.b state state.old && "},
		{&store.NewerError{Path: "user defaults of a.b"}, 1, "defaults rename a.b state state.newer"},
		{&store.UnwritableError{Path: "user defaults of a.b"}, 1, "defaults read a.b"},
		{&store.UnwritableError{Path: "/d/s", Err: syscall.EACCES}, 1, "ls -ld /d"},
		{&store.UnwritableError{Path: "/d/s", Err: syscall.ENOSPC}, 1, "df /d"},
		{&store.InvalidError{}, 1, "--forget"},
		{ErrNoTerminal, 2, "terminal"},
		{&unixsock.InUseError{Path: "/s", PID: 7}, 1, "kill 7"},
		{&unixsock.PathTooLongError{Path: "/s"}, 2, "shorter"},
		{&unixsock.DirError{Path: os.Getenv("HOME") + "/d", Mode: os.ModeDir | 0o777, Owner: uint32(os.Geteuid())}, 1, "chmod 700"},
		{&unixsock.DirError{Path: "/srv/d", Mode: os.ModeDir | 0o777, Owner: uint32(os.Geteuid())}, 1, "choose a path"},
		{&unixsock.DirError{Path: os.Getenv("HOME") + "/tmp", Mode: os.ModeDir | os.ModeSticky | 0o777, Owner: uint32(os.Geteuid())}, 1, "choose a path"},
		{&unixsock.ObstacleError{Path: "/s"}, 1, "mv /s /s.old"},
		{agent.ErrNotRunning, 3, "vmux-agent"},
		{phone.ErrUnreachable, 4, "network"},
		{phone.ErrDenied, 5, "phone"},
		{phone.ErrTimeout, 6, "phone"},
		{phone.ErrNotPaired, 7, "vmux-pair"},
		{fmt.Errorf("%w: %w", phone.ErrUnreachable, transport.ErrNobody), 4, "network"},
		{fmt.Errorf("%w (%w)", phone.ErrNoPhone, transport.ErrNotAllowed), 4, "Local Network"},
		{fmt.Errorf("%w (%w)", pairing.ErrDeclined, transport.ErrNotAllowed), 5, "accept"},
		{fmt.Errorf("%w: %w", networks.ErrNearby, transport.ErrNotAllowed), 4, "Local Network"},
		{&apns.KeyError{Path: "/my k", Problem: apns.KeyMissing}, 2, "chmod 600 '/my k'"},
		{&apns.KeyError{Path: "/k", Problem: apns.KeyUnreadable}, 2, "ls -l /k"},
		{&apns.KeyError{Path: "/k", Problem: apns.KeyForeign}, 2, "sudo chown \"$(id -u)\" /k"},
		{&apns.KeyError{Path: "/k", Problem: apns.KeyOpen}, 2, "chmod 600 /k"},
		{&apns.KeyError{Path: "/k", Problem: apns.KeyEncrypted}, 2, "openssl pkey -in /k -out /k.new) && mv /k.new /k"},
		{&apns.KeyError{Path: "/k", Problem: apns.KeySEC1}, 2, "openssl pkey -in /k"},
		{&apns.KeyError{Path: "/k", Problem: apns.KeyAlgorithm}, 2, "Apple Push Notifications service"},
		{&apns.KeyError{Path: "/k", Problem: apns.KeyNotPEM}, 2, "AuthKey_ID.p8"},
		{&apns.OptionError{Want: "--key-id ID"}, 2, "give --key-id ID"},
		{apns.ErrNoToken, 7, "--device-token TOKEN"},
		{&apns.RefusedError{Reason: apns.Lookup(410, "Unregistered")}, 1, "install the app"},
		{&apns.ConnectError{Host: "h:1"}, 4, "curl -v https://h:1"},
		{&apns.ConnectError{Host: "h", Problem: apns.NoAnswer, Err: context.DeadlineExceeded}, 4, "curl -v https://h"},
		{&apns.ConnectError{Host: "h", Problem: apns.BadCertificate}, 4, "--ca-file"},
		{&apns.ConnectError{Host: "h", Problem: apns.NoHTTP2}, 4, "--endpoint"},
		{&audit.BrokenError{File: "audit.jsonl", Line: 3}, 1, "move audit*.jsonl out"},
		{audit.ErrHead, 1, "noted all of it"},
		{fmt.Errorf("%w: %w", audit.ErrNotRecorded, audit.ErrBusy), 1, "stopped vmux-signer"},
		{fmt.Errorf("%w: %w", audit.ErrNotRecorded, syscall.ENOSPC), 1, "make room"},
		{&audit.RefusedError{Path: "/h/audit.jsonl", Mode: os.ModeNamedPipe | 0o600, UID: uint32(os.Geteuid()), Want: 0o600}, 1, "mv /h/audit.jsonl /h/audit.jsonl.old"},
		{&audit.RefusedError{Path: "/h/audit.jsonl", Mode: 0o640, UID: uint32(os.Geteuid()), Want: 0o600}, 1, "chmod 600 /h/audit.jsonl"},
		{&audit.RefusedError{Path: "/h/audit.jsonl", Mode: 0o600, UID: uint32(os.Geteuid()) + 1, Want: 0o600}, 1, "chown"},
		{phone.ErrLocked, 5, "vmux-signer unlock"},
		{signer.ErrPassphrase, 1, "try again"},
		{signer.ErrProtected, 2, "--passphrase-file FILE"},
		{signer.ErrNotProtected, 1, "vmux-signer passphrase"},
		{signer.ErrLocked, 1, "vmux-signer unlock"},
		{fmt.Errorf("%w: %w", signer.ErrLocked, signer.ErrNotRecognized), 1, "vmux-signer unlock"},
		{signer.ErrDenied, 5, "answer"},
		{&signer.ForeignKeyError{Label: "a", Path: "/a b/keys/a"}, 1, "ssh-keygen -p -f '/a b/keys/a'"},
		{&signer.ForeignKeyError{Label: "a", Path: "/a b/keys/a", InTPM: true}, 1, "vmux-signer key remove a"},
		{keyfile.ErrTooLong, 2, "shorter"},
		{keyfile.ErrDamaged, 1, "backup"},
		{pairing.ErrBadURL, 2, "URL"},
		{pairing.ErrDeclined, 5, "accept"},
	} {
		exit, hint := Advice(fmt.Errorf("wrapped: %w", c.err))
		if exit != c.exit || !strings.Contains(hint, c.hint) {
			t.Errorf("%v: %d, %q", c.err, exit, hint)
		}
	}
}

func TestQuote(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "a", "a b", "it's", "$(x)", "~/x", "a;b", "ü", "*", `\`} {
		out, err := exec.Command("sh", "-c", "printf %s "+quote(s)).Output()
		if err != nil || string(out) != s {
			t.Errorf("quote(%q) = %s: %q, %v", s, quote(s), out, err)
		}
	}
}

// Setting HOME is for the whole process, hence not parallel.
func TestOpenState(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_STATE_HOME", dir)
	t.Setenv("XDG_CONFIG_HOME", dir)
	t.Setenv("VMUX_CONFIG", "")
	path := filepath.Join(dir, "vmux", "agent.json")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	app := func() *App {
		return &App{Name: "x", Flags: []Flag{ConfigFlag(), SocketFlag(), LogLevelFlag(), DeadlineFlag()}, Action: func(c *Context) error {
			_, st, err := OpenState(c)
			if err != nil || len(st.Phones) != 0 {
				return fmt.Errorf("state %v: %w", st, err)
			}
			cfg, err := LoadConfig(c)
			if err != nil {
				return err
			}
			From(c).Result(nil, func(w io.Writer) { fmt.Fprintln(w, cfg.Socket, cfg.LogLevel, cfg.Deadline) })
			return nil
		}}
	}
	var stdout, stderr bytes.Buffer
	if exit := Run(t.Context(), app(), []string{"--socket", "/a/b", "--deadline", "7s"}, nil, &stdout, &stderr); exit != 0 ||
		stdout.String() != "/a/b INFO 7s\n" || !strings.HasPrefix(stderr.String(), "error: "+path+" is damaged and was set aside as agent.json.damaged-") ||
		!strings.HasSuffix(stderr.String(), "\nhint: pair again: vmux-pair\n") {
		t.Errorf("exit %d\n%s%s", exit, stdout.String(), stderr.String())
	}
	if err := os.WriteFile(path, []byte(`{"version":1,"phones":[]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	stderr.Reset()
	if exit := Run(t.Context(), app(), []string{"--config", "/none.toml"}, nil, &stdout, &stderr); exit != 2 ||
		!strings.HasPrefix(stderr.String(), "warning: other users could read the state; it is private now path="+path) ||
		!strings.Contains(stderr.String(), "error: /none.toml: there is no such file\nhint: ") {
		t.Errorf("exit %d\n%s", exit, stderr.String())
	}
	stderr.Reset()
	t.Setenv("VMUX_LOG_LEVEL", "loud")
	if exit := Run(t.Context(), app(), nil, nil, &stdout, &stderr); exit != 2 || stderr.String() !=
		"error: VMUX_LOG_LEVEL: \"loud\" is no log level\nhint: write debug, info, warn or error, as in log-level = \"info\"\n" {
		t.Errorf("exit %d\n%s", exit, stderr.String())
	}
}

// A flag before a subcommand is meant for it too, unless it has one of its own.
func TestFlagsBeforeASubcommand(t *testing.T) {
	t.Parallel()
	flags := func() []Flag { return []Flag{ConfigFlag(), SocketFlag(), LogLevelFlag(), DeadlineFlag()} }
	for line, want := range map[string]string{
		"--socket /a --deadline 7s sub":                      "/a 7s",
		"--socket /a sub --socket /b --deadline 8s":          "/b 8s",
		"--deadline 7s --config /none.toml sub":              "error: /none.toml: there is no such file",
		"--config /none.toml sub --config /none/either.toml": "error: /none/either.toml: there is no such file",
	} {
		app := &App{Name: "x", Flags: flags(), Commands: []*Command{{Name: "sub", Flags: flags(), Action: func(c *Context) error {
			cfg, err := LoadConfig(c)
			if err == nil {
				From(c).Result(nil, func(w io.Writer) { fmt.Fprintln(w, cfg.Socket, cfg.Deadline) })
			}
			return err
		}}}}
		var out bytes.Buffer
		Run(t.Context(), app, strings.Fields(line), nil, &out, &out)
		if got, _, _ := strings.Cut(out.String(), "\n"); got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}

func TestWaiting(t *testing.T) {
	t.Parallel()
	for name, terminal := range map[string]bool{"terminal": true, "pipe": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var stderr bytes.Buffer
				tui := newTUI(nil, io.Discard, &stderr, "x", false, false)
				tui.terminal = terminal
				stop := tui.Waiting("the phone's answer", 60*time.Second)
				<-time.After(999 * time.Millisecond)
				synctest.Wait()
				tui.mu.Lock()
				if stderr.Len() != 0 {
					t.Errorf("too early: %q", stderr.String())
				}
				tui.mu.Unlock()
				<-time.After(1500 * time.Millisecond)
				synctest.Wait()
				tui.Notef("hello")
				stop()
				stop()
				want := "waiting for the phone's answer, 59 s left\nhello\n"
				if terminal {
					want = "waiting for the phone's answer, 59 s left\r\x1b[Kwaiting for the phone's answer, 58 s left\r\x1b[Khello\n"
				}
				if stderr.String() != want {
					t.Errorf("%q, want %q", stderr.String(), want)
				}
			})
		})
	}
	t.Run("short", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			var stderr bytes.Buffer
			tui := newTUI(nil, io.Discard, &stderr, "x", false, false)
			stop := tui.Waiting("it", time.Minute)
			<-time.After(900 * time.Millisecond)
			stop()
			<-time.After(time.Minute)
			if stderr.Len() != 0 {
				t.Errorf("%q", stderr.String())
			}
		})
	})
}

func TestAsk(t *testing.T) {
	t.Parallel()
	type answer struct {
		s   string
		err error
	}
	ask := func(ctx context.Context, p *ptytest.Terminal) <-chan answer {
		tui := newTUI(p.TTY, io.Discard, p.TTY, "x", false, true)
		ch := make(chan answer, 1)
		go func() {
			s, err := tui.Ask(ctx, "digits: ")
			ch <- answer{s, err}
		}()
		return ch
	}
	t.Run("typed", func(t *testing.T) {
		t.Parallel()
		p := ptytest.Open(t)
		ch := ask(t.Context(), p)
		p.Expect("digits: ")
		p.Type(" 123 456 \n")
		if a := <-ch; a.s != "123 456" || a.err != nil {
			t.Errorf("%q, %v", a.s, a.err)
		}
	})
	t.Run("closed", func(t *testing.T) {
		t.Parallel()
		p := ptytest.Open(t)
		ch := ask(t.Context(), p)
		p.Expect("digits: ")
		p.Type("\x04")
		if a := <-ch; !errors.Is(a.err, ErrNoInput) {
			t.Errorf("%q, %v", a.s, a.err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		t.Parallel()
		p := ptytest.Open(t)
		ctx, cancel := context.WithCancelCause(t.Context())
		ch := ask(ctx, p)
		p.Expect("digits: ")
		why := errors.New("paired meanwhile")
		cancel(why)
		if a := <-ch; !errors.Is(a.err, why) {
			t.Errorf("%q, %v", a.s, a.err)
		}
		p.Expect("\n")
		// What is typed afterwards is the next question's.
		ch = ask(t.Context(), p)
		p.Expect("digits: ")
		p.Type("7\n")
		if a := <-ch; a.s != "7" || a.err != nil {
			t.Errorf("%q, %v", a.s, a.err)
		}
	})
	t.Run("no terminal", func(t *testing.T) {
		t.Parallel()
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		for _, in := range []io.Reader{nil, strings.NewReader("1\n"), r} {
			if _, err := newTUI(in, io.Discard, io.Discard, "x", false, false).Ask(t.Context(), "digits: "); !errors.Is(err, ErrNoTerminal) {
				t.Errorf("%v", err)
			}
		}
	})
}

// TestMain is vmux-test when it is called by that name.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "vmux-test" {
		if len(os.Args) > 1 && os.Args[1] == "serve" { // handles its signal itself, and is stubborn
			app := &App{Name: "vmux-test", ArgsUsage: "serve", Action: func(c *Context) error {
				From(c).Result(nil, func(w io.Writer) { fmt.Fprintln(w, "ready", signal.Ignored(syscall.SIGINT)) })
				<-c.Done()
				From(c).Result(nil, func(w io.Writer) { fmt.Fprintln(w, "ending") })
				if os.Getenv("STUBBORN") != "" {
					select {}
				}
				return nil
			}}
			os.Exit(Main(app))
		}
		app := testApp()
		app.Before = func(c *Context) error {
			if c.Args().First() == "fail" {
				From(c).Result(nil, func(w io.Writer) { fmt.Fprintln(w, "ready") })
			}
			return nil
		}
		os.Exit(Main(app))
	}
	os.Exit(m.Run())
}

// install puts this test binary into a directory as vmux-test.
func install(t *testing.T) (dir string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	if err := os.Symlink(self, filepath.Join(dir, "vmux-test")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestSignals(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		script string // $! is the command, which says ready first
		want   string
	}{
		{"not handled", `vmux-test fail wait >out & read x <out; kill -TERM $!; wait $!; echo $?`, "143"},
		{"handled", `vmux-test serve >out & read x <out; kill -TERM $!; read y <out; wait $!; echo $? $y`, "0 ending"},
		{"hang-up", `vmux-test fail wait >out & read x <out; kill -HUP $!; wait $!; echo $?`, "129"},
		{"second", `STUBBORN=1 vmux-test serve >out & read x <out; kill -TERM $!; read y <out; kill -TERM $!; wait $!; echo $? $y`, "143 ending"},
		{"second of another kind", `STUBBORN=1 vmux-test serve >out & read x <out; kill -TERM $!; read y <out; kill -HUP $!; wait $!; echo $? $y`, "129 ending"},
		{"ignored stays ignored", `(trap '' INT; exec vmux-test serve) >out & read x <out; echo $x; kill -INT $!; kill -TERM $!; read y <out; wait $!; echo $? $y`, "ready true\n0 ending"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := install(t)
			// The pipe stays open at the shell, or the second read would find it at its end.
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // reached only by a test that fails
			defer cancel()
			cmd := exec.CommandContext(ctx, "bash", "-c", "mkfifo out; exec 3<>out; "+strings.ReplaceAll(c.script, "<out", "<&3"))
			cmd.Dir = dir
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that the stubborn end, too
			cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
			cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", "PATH="+dir+":"+os.Getenv("PATH"))
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if err != nil || strings.TrimSpace(string(out)) != c.want {
				t.Errorf("%q, want %q, %v\n%s", out, c.want, err, stderr.String())
			}
		})
	}
}

// Ctrl-C at a terminal, as a user sees it.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	p := ptytest.Open(t)
	cmd := exec.Command("vmux-test", "fail", "wait")
	cmd.Path = filepath.Join(install(t), "vmux-test")
	cmd.Err = nil
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.TTY, p.TTY, p.TTY
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.Expect("ready")
	p.Type("\x03")
	err := cmd.Wait()
	if cmd.ProcessState.ExitCode() != 130 {
		t.Errorf("exit %d, %v", cmd.ProcessState.ExitCode(), err)
	}
	p.Expect("error: interrupted\r\nhint: ")
}
