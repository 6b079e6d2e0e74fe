// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
)

// bad is an input that a command refuses.
type bad struct {
	name    string
	prepare func(h *host)
	args    []string
	exit    int
	problem string // in the error: line
	hint    string // in the hint: line
	once    bool   // a second time the answer is another one
	late    bool   // there is a result before it
}

// refuse runs the command as it is and with --json, and looks at what it prints
// and leaves.
func (h *host) refuse(t *testing.T, c bad) {
	t.Helper()
	before := tree(t, h.home)
	r := h.run(c.args[0], c.args[1:]...)
	problem, hint := c.says(t, r)
	if r.stdout != "" && !c.late {
		t.Errorf("standard output has %q", r.stdout)
	}
	if !c.once && !c.late {
		r = h.run(c.args[0], slices.Insert(slices.Clone(c.args[1:]), 0, "--json")...)
		if p, i := c.says(t, r); p != problem || i != hint {
			t.Errorf("with --json it says %q and %q, without %q and %q", p, i, problem, hint)
		}
		var o struct {
			Error struct {
				Message string `json:"message"`
				Hint    string `json:"hint"`
				Exit    int    `json:"exit"`
			} `json:"error"`
		}
		err := json.Unmarshal([]byte(r.stdout), &o, json.RejectUnknownMembers(true))
		if err != nil || strings.Count(r.stdout, "\n") != 1 || o.Error.Message != problem || o.Error.Hint != hint || o.Error.Exit != c.exit {
			t.Errorf("--json prints %s (%v), not %q, %q and %d", r.stdout, err, problem, hint, c.exit)
		}
	}
	// Nothing is lost: what there was is there, maybe under another name.
	after := slices.Collect(maps.Values(tree(t, h.home)))
	for name, content := range before {
		if !slices.Contains(after, content) {
			t.Errorf("%s is lost: %q", name, content)
		}
	}
}

// says checks the last two lines of standard error, and gives what they say.
func (c bad) says(t *testing.T, r result) (problem, hint string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(r.stderr, "\n"), "\n")
	if r.exit != c.exit || len(lines) < 2 || !strings.HasPrefix(lines[len(lines)-2], "error: ") || !strings.HasPrefix(lines[len(lines)-1], "hint: ") {
		t.Fatalf("want exit %d, an error and a hint: %v", c.exit, r)
	}
	problem, hint = strings.TrimPrefix(lines[len(lines)-2], "error: "), strings.TrimPrefix(lines[len(lines)-1], "hint: ")
	if !strings.Contains(problem, c.problem) {
		t.Errorf("error: %q does not have %q", problem, c.problem)
	}
	if hint == "" || !strings.Contains(hint, c.hint) {
		t.Errorf("hint: %q does not have %q", hint, c.hint)
	}
	return problem, hint
}

func refuseAll(t *testing.T, rows []bad) {
	for _, c := range rows {
		name := c.name
		if name == "" {
			name = strings.Join(c.args, " ")
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			if c.prepare != nil {
				c.prepare(h)
			}
			c.args = slices.Clone(c.args)
			for i := range c.args {
				c.args[i] = strings.ReplaceAll(c.args[i], "HOME", h.home)
			}
			h.refuse(t, c)
		})
	}
}

func (h *host) unset(name string) {
	h.env = slices.DeleteFunc(h.env, func(s string) bool { return strings.HasPrefix(s, name+"=") })
}

// put writes a file and the directories on the way, as private as ours are.
func (h *host) put(name, content string, mode os.FileMode) string {
	h.t.Helper()
	if err := os.MkdirAll(filepath.Dir(h.path(name)), 0o700); err != nil {
		h.t.Fatal(err)
	}
	return h.write(name, content, mode)
}

// asUser makes everything below the host's home somebody's, who runs its
// commands from then on. Only root can.
func (h *host) asUser(name string) *user.User {
	h.t.Helper()
	if os.Geteuid() != 0 {
		h.t.Skip("only root can run commands as other users")
	}
	u, err := user.Lookup(name)
	if err != nil {
		h.t.Skip(err)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err1 != nil || err2 != nil {
		h.t.Fatal(err1, err2)
	}
	h.cred = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	err = filepath.WalkDir(h.home, func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = os.Lchown(path, uid, gid)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // of a process that runs
		}
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return u
}

// notRoot makes permissions count.
func (h *host) notRoot() {
	if os.Geteuid() == 0 {
		h.asUser("nobody")
	}
}

func (h *host) chmod(name string, mode os.FileMode) {
	h.t.Helper()
	if err := os.Chmod(h.path(name), mode); err != nil {
		h.t.Fatal(err)
	}
}

const (
	stateFile  = ".local/state/vmux/agent.json"
	configFile = ".config/vmux/vmux.toml"
	keyFile    = ".config/vmux/device-key.pem"
)

func config(content string) func(*host) {
	return func(h *host) { h.put(configFile, content, 0o600) }
}

func state(content string) func(*host) {
	return func(h *host) { h.put(stateFile, content, 0o600) }
}

func signerHome(h *host) { h.ok("vmux-signer", "init", "--no-passphrase", "--name", "Pocket") }

// pairURL waits for a phone that is not there, if nothing is wrong.
var pairURL = []string{"vmux-pair", "--url", "--address", "127.0.0.1:1", "--timeout", "1s"}

// The command line.
func TestBadUsage(t *testing.T) {
	t.Parallel()
	refuseAll(t, []bad{
		{args: []string{"vmux-agent", "--sokcet", "x"}, exit: 2, problem: "there is no flag --sokcet", hint: "did you mean --socket?"},
		{args: []string{"vmux-agent", "-x"}, exit: 2, problem: "there is no flag -x", hint: "vmux-agent --help"},
		{args: []string{"vmux-agent", "extra"}, exit: 2, problem: `there is no command "extra"`, hint: "vmux-agent --help"},
		{args: []string{"vmux-agent", "--socket"}, exit: 2, problem: "--socket needs a value", hint: "--socket PATH"},
		{args: []string{"vmux-agent", "--socket", "relative"}, exit: 2, problem: "is not an absolute path", hint: "~/.ssh/vmux-agent.sock"},
		{args: []string{"vmux-agent", "--socket", "~other/x"}, exit: 2, problem: "names the home of another user", hint: "absolute path"},
		{args: []string{"vmux-agent", "--log-level", "loud"}, exit: 2, problem: `"loud" is none of debug, info, warn, error`, hint: "--log-level debug|info|warn|error"},
		{args: []string{"vmux-agent", "--deadline", "soon"}, exit: 2, problem: `"soon" is no duration`, hint: "5s to 110s"},
		{args: []string{"vmux-agent", "--deadline", "1h"}, exit: 2, problem: `"1h" is out of range`, hint: "5s to 110s"},
		{args: []string{"vmux-agent", "--config", "HOME/none.toml"}, exit: 2, problem: "there is no such file", hint: "ls -l"},
		{args: []string{"vmux-agent", "--config", "HOME"}, exit: 2, problem: "cannot be read", hint: "ls -l"},

		{args: []string{"vmux-pair", "--lost"}, exit: 2, problem: "there is no flag --lost", hint: "did you mean --list?"},
		{args: []string{"vmux-pair", "Pocket"}, exit: 2, problem: `there is no place for the argument "Pocket"`, hint: "vmux-pair [flags]"},
		{args: []string{"vmux-pair", "--forget"}, exit: 2, problem: "--forget needs a value", hint: "--forget NAME"},
		{args: []string{"vmux-pair", "--list", "--forget", "x"}, exit: 2, problem: "--list and --forget exclude one another", hint: "give one of them"},
		{args: []string{"vmux-pair", "--url", "--qr"}, exit: 2, problem: "--qr and --url exclude one another", hint: "give one of them"},
		{args: []string{"vmux-pair", "--list", "--address", "127.0.0.1:1"}, exit: 2, problem: "--address is for pairing, not for --list", hint: "leave it out"},
		{args: []string{"vmux-pair", "--forget", "x", "--timeout", "1s"}, exit: 2, problem: "--timeout is for pairing, not for --forget", hint: "leave it out"},
		{args: []string{"vmux-pair", "--list=maybe"}, exit: 2, problem: "--list takes no value", hint: "write --list alone"},
		{args: []string{"vmux-pair", "--url", "--timeout", "0s"}, exit: 2, problem: "--timeout: 0s is not between", hint: "write --timeout 2m"},
		{args: []string{"vmux-pair", "--url", "--timeout", "-1s"}, exit: 2, problem: "--timeout: -1s is not between", hint: "write --timeout 2m"},
		{args: []string{"vmux-pair", "--url", "--timeout", "2h"}, exit: 2, problem: "--timeout: 2h0m0s is not between", hint: "write --timeout 2m"},
		{args: []string{"vmux-pair", "--url", "--timeout", "1h"}, exit: 2, problem: "--timeout: a URL is good for 2m0s, not for 1h0m0s", hint: "write --timeout 2m"},
		{args: []string{"vmux-pair", "--qr", "--timeout", "121s"}, exit: 2, problem: "--timeout: a URL is good for 2m0s", hint: "write --timeout 2m"},
		{args: []string{"vmux-pair", "--url", "--timeout", "120"}, exit: 2, problem: `"120" is no value for --timeout`, hint: "--timeout 90s"},
		{args: []string{"vmux-pair", "--url", "--address", "nowhere"}, exit: 2, problem: "--address: ", hint: "vmux-signer serve"},
		{args: []string{"vmux-pair", "--url", "--address", ":4022"}, exit: 2, problem: "--address: ", hint: "vmux-signer serve"},
		{args: []string{"vmux-pair", "--url", "--address", "127.0.0.1:99999"}, exit: 2, problem: "--address: ", hint: "vmux-signer serve"},
		{args: []string{"vmux-pair"}, exit: 2, problem: "standard input is not a terminal", hint: "vmux-pair --url"},
		{args: []string{"vmux-pair", "--address", "127.0.0.1:1"}, exit: 2, problem: "standard input is not a terminal", hint: "vmux-pair --url"},

		{args: []string{"vmux-signer"}, exit: 2, problem: "no command is given", hint: "vmux-signer init|serve|pair|status|lock|unlock|passphrase|devices|forget|hosts|"},
		{args: []string{"vmux-signer", "sevre"}, exit: 2, problem: `there is no command "sevre"`, hint: "did you mean serve?"},
		{args: []string{"vmux-signer", "key"}, exit: 2, problem: "no command is given", hint: "vmux-signer key add|list|disable|enable|remove"},
		{args: []string{"vmux-signer", "key", "delete", "x"}, exit: 2, problem: `there is no command "delete"`, hint: "vmux-signer key --help"},
		{args: []string{"vmux-signer", "key", "add"}, exit: 2, problem: "LABEL is missing", hint: "vmux-signer key add [flags] LABEL"},
		{args: []string{"vmux-signer", "key", "add", "a", "b"}, exit: 2, problem: `there is no place for the argument "b"`, hint: "vmux-signer key add [flags] LABEL"},
		{args: []string{"vmux-signer", "forget"}, exit: 2, problem: "DEVICE is missing", hint: "vmux-signer forget [flags] DEVICE"},
		{args: []string{"vmux-signer", "devices", "x"}, exit: 2, problem: `there is no place for the argument "x"`, hint: "vmux-signer devices [flags]"},
		{args: []string{"vmux-signer", "init", "--no-passphrase", "--name", ""}, exit: 2, problem: "1 to 63 bytes", hint: "--name Pocket"},
		{args: []string{"vmux-signer", "init", "--no-passphrase", "--name", "a\nb"}, exit: 2, problem: "1 to 63 bytes", hint: "--name Pocket"},
		{args: []string{"vmux-signer", "init", "--no-passphrase", "--name", strings.Repeat("x", 64)}, exit: 2, problem: "1 to 63 bytes", hint: "--name Pocket"},
		{args: []string{"vmux-signer", "serve", "--approve", "never"}, exit: 2, problem: `"never" is none of terminal, askpass, command:PROGRAM, always`, hint: "terminal|askpass|command:PROGRAM|always"},
		{name: "serve without a terminal", prepare: signerHome, args: []string{"vmux-signer", "serve"}, exit: 2, problem: "standard input is no terminal", hint: "--approve askpass"},
		{name: "serve on the terminal without one", prepare: signerHome, args: []string{"vmux-signer", "serve", "--approve", "terminal"}, exit: 2, problem: "no terminal to ask on"},
		{name: "serve without SSH_ASKPASS", prepare: signerHome, args: []string{"vmux-signer", "serve", "--approve", "askpass"}, exit: 2, problem: "SSH_ASKPASS names no program", hint: "SSH_ASKPASS=/"},
		{name: "serve with an SSH_ASKPASS that is not there", prepare: func(h *host) { signerHome(h); h.setenv("SSH_ASKPASS", h.path("none")) },
			args: []string{"vmux-signer", "serve", "--approve", "askpass"}, exit: 2, problem: "SSH_ASKPASS names no program", hint: "SSH_ASKPASS=/"},
		{args: []string{"vmux-signer", "serve", "--approve", "always", "--listen", "4022"}, exit: 2, problem: `--listen: "4022" is not an address and a port`, hint: "--listen HOST:PORT"},
		{args: []string{"vmux-signer", "serve", "--approve", "always", "--listen", ":http"}, exit: 2, problem: `--listen: ":http" is not an address and a port`, hint: "--listen HOST:PORT"},
		{name: "pair without a terminal", prepare: signerHome, args: []string{"vmux-signer", "pair"}, exit: 2, problem: "no terminal to ask on", hint: "vmux-pair --url"},
		{name: "pair for no time", prepare: signerHome, args: []string{"vmux-signer", "pair", "--timeout", "0s", "x"}, exit: 2, problem: "a pairing window is open for 1 second to 10m0s", hint: "--timeout 2m"},
		{name: "pair for a day", prepare: signerHome, args: []string{"vmux-signer", "pair", "--timeout", "24h", "x"}, exit: 2, problem: "a pairing window is open for 1 second to 10m0s", hint: "--timeout 2m"},
		{name: "pair with garbage", prepare: signerHome, args: []string{"vmux-signer", "pair", "garbage"}, exit: 2, problem: "not a pairing URL", hint: "vmux-pair --url"},
		{name: "pair with the beginning of a URL", prepare: signerHome, args: []string{"vmux-signer", "pair", "vmux-pair://1/cOdYCu5YjgGRkfyhH2PXSMi8Qdfd4ChAAG1sSrsiocc/iclL"},
			exit: 2, problem: "not a pairing URL: it has 2 parts", hint: "vmux-pair --url"},
		{name: "pair with a damaged URL", prepare: signerHome, args: []string{"vmux-signer", "pair", "vmux-pair://1/cOdYCu5YjgGRkfyhH2PXSMi8Qdfd4ChAAG1sSrsiocc/iclLgLX2nqXv3IrxLfZUNR/laptop"},
			exit: 2, problem: "not a pairing URL: its secret is damaged", hint: "vmux-pair --url"},
		{name: "key of an unknown type", prepare: signerHome, args: []string{"vmux-signer", "key", "add", "x", "--type", "rsa"}, exit: 2, problem: `"rsa" is none of ecdsa, ed25519`, hint: "ecdsa|ed25519"},
		{name: "key with a bad label", prepare: signerHome, args: []string{"vmux-signer", "key", "add", "../x"}, exit: 2, problem: "a label is", hint: "vmux-signer key add work"},
		{name: "key that exists", prepare: signerHome, args: []string{"vmux-signer", "key", "add", "default"}, exit: 1, problem: "a key of this label exists already", hint: "vmux-signer key list"},
		{name: "key that does not exist", prepare: signerHome, args: []string{"vmux-signer", "key", "remove", "x"}, exit: 1, problem: "no key has this label", hint: "vmux-signer key list"},
		{name: "device that does not exist", prepare: signerHome, args: []string{"vmux-signer", "forget", "x"}, exit: 1, problem: "no such device is paired", hint: "vmux-signer devices"},
		{name: "nobody serves", prepare: signerHome, args: []string{"vmux-signer", "pair", "vmux-pair://1/cOdYCu5YjgGRkfyhH2PXSMi8Qdfd4ChAAG1sSrsiocc/iclLgLX2nqXv3IrxLfZUNQ/laptop"},
			exit: 1, problem: "vmux-signer is not running", hint: "vmux-signer serve"},
	})
}

// The surroundings: files, directories, variables.
func TestBadSurroundings(t *testing.T) {
	t.Parallel()
	refuseAll(t, []bad{
		{name: "no pairing to forget", args: []string{"vmux-pair", "--forget", "Pocket"}, exit: 7, problem: "no phone is paired", hint: ""},

		{name: "agent without HOME", prepare: func(h *host) { h.unset("HOME") }, args: []string{"vmux-agent"}, exit: 2, problem: "HOME is not set", hint: "set HOME"},
		{name: "pair without HOME", prepare: func(h *host) { h.unset("HOME") }, args: pairURL, exit: 2, problem: "HOME is not set", hint: "set HOME"},
		{name: "list with a relative HOME", prepare: func(h *host) { h.setenv("HOME", "home") }, args: []string{"vmux-pair", "--list"}, exit: 2, problem: "HOME is not set to an absolute path", hint: "set HOME"},
		{name: "signer without HOME", prepare: func(h *host) { h.unset("HOME") }, args: []string{"vmux-signer", "devices"}, exit: 2, problem: "HOME is not set", hint: "set HOME"},
		{name: "variable with a bad deadline", prepare: func(h *host) { h.setenv("VMUX_DEADLINE", "soon") }, args: []string{"vmux-agent"}, exit: 2, problem: `VMUX_DEADLINE: "soon" is no duration`, hint: "5s to 110s"},
		{name: "variable with a bad name", prepare: func(h *host) { h.setenv("VMUX_NAME", "a\x1b[2Jb") }, args: pairURL, exit: 2, problem: "VMUX_NAME: ", hint: `name = "laptop"`},
		{name: "variable with a missing file", prepare: func(h *host) { h.setenv("VMUX_CONFIG", h.path("none")) }, args: []string{"vmux-agent"}, exit: 2, problem: "none: there is no such file", hint: "ls -l"},

		{name: "configuration with an unknown key", prepare: config("\n# comment\nsokcet = \"/tmp/x\"\n"), args: []string{"vmux-agent"}, exit: 2,
			problem: `vmux.toml:3: there is no setting "sokcet"`, hint: "socket, name, log-level"},
		{name: "configuration with an unknown table", prepare: config("name = \"x\"\n[polcy]\nopaque = \"ask\"\n"), args: []string{"vmux-agent"}, exit: 2,
			problem: `vmux.toml:3: there is no setting "polcy.opaque"`, hint: "policy.default"},
		{name: "configuration with a wrong type", prepare: config("name = \"x\"\ndeadline = 60\n"), args: []string{"vmux-agent"}, exit: 2,
			problem: "vmux.toml:2: deadline is no text in quotes", hint: `deadline = "60s"`},
		{name: "configuration with a wrong value", prepare: config("[policy]\ndefault = \"allow\"\n"), args: []string{"vmux-agent"}, exit: 2,
			problem: `vmux.toml:2: policy.default "allow" is neither ask nor refuse`, hint: "ask or refuse"},
		{name: "policy without a default", prepare: config("[[policy.rule]]\naction = \"ask\"\n"), args: []string{"vmux-agent"}, exit: 2,
			problem: "vmux.toml:1: policy.default is missing", hint: `default = "ask" or default = "refuse" below a line [policy]`},
		{name: "rule with an unknown field", prepare: config("[policy]\ndefault = \"ask\"\n[[policy.rule]]\naction = \"ask\"\nhots = \"a\"\n"), args: []string{"vmux-agent"}, exit: 2,
			problem: "vmux.toml:5: rule 1: hots is no field of a rule", hint: "one of action, kind, key, host,"},
		{name: "rule with a wrong type", prepare: config("[policy]\ndefault = \"ask\"\n[[policy.rule]]\naction = \"ask\"\nforwarded = true\n"), args: []string{"vmux-agent"}, exit: 2,
			problem: "vmux.toml:5: rule 1: forwarded is no text in quotes", hint: `yes or no, as in forwarded = "yes"`},
		{name: "configuration that is no TOML", prepare: config("name = \"x\"\n\nname=\n"), args: []string{"vmux-agent"}, exit: 2,
			problem: "vmux.toml:3: ", hint: "mend line 3 of "},
		{name: "configuration with a key twice", prepare: config("name = \"x\"\nname = \"y\"\n"), args: []string{"vmux-agent"}, exit: 2,
			problem: "vmux.toml:2: ", hint: "mend line 2 of "},
		{name: "configuration that is refused by vmux-pair too", prepare: config("deadline = \"1s\"\n"), args: pairURL, exit: 2,
			problem: `vmux.toml:1: deadline "1s" is out of range`, hint: "5s to 110s"},
		{name: "configuration that is a directory", prepare: func(h *host) { h.put(configFile+"/x", "", 0o600) }, args: []string{"vmux-agent"}, exit: 2,
			problem: "vmux.toml: cannot be read", hint: "ls -l"},

		{name: "device key open to others", prepare: func(h *host) { h.put(keyFile, devicePEM(h.t, elliptic.P256()), 0o640) }, args: []string{"vmux-agent"}, exit: 1,
			problem: "device-key.pem is open to other users (mode 0640)", hint: "chmod 600 "},
		{name: "device key that is garbage", prepare: func(h *host) { h.put(keyFile, "garbage\n", 0o600) }, args: []string{"vmux-agent"}, exit: 1,
			problem: "device-key.pem is no usable device key", hint: "vmux-pair"},
		{name: "device key that is empty", prepare: func(h *host) { h.put(keyFile, "", 0o600) }, args: pairURL, exit: 1,
			problem: "device-key.pem is no usable device key", hint: "vmux-pair"},
		{name: "device key on another curve", prepare: func(h *host) { h.put(keyFile, devicePEM(h.t, elliptic.P384()), 0o600) }, args: pairURL, exit: 1,
			problem: "device-key.pem is no usable device key: not a P-256 key", hint: "vmux-pair"},
		{name: "device key in an open directory", prepare: func(h *host) {
			h.put(keyFile, devicePEM(h.t, elliptic.P256()), 0o600)
			h.chmod(filepath.Dir(keyFile), 0o777)
		}, args: []string{"vmux-agent"}, exit: 1, problem: ".config/vmux is open to other users (mode 0777)", hint: "chmod 700 "},

		{name: "damaged state, list", prepare: state("{\"version\":1,\"phones\":[{"), args: []string{"vmux-pair", "--list"}, exit: 1,
			problem: "agent.json is damaged and was set aside as agent.json.damaged-", hint: "pair again: vmux-pair", once: true},
		{name: "damaged state, forget", prepare: state("{\"version\":1,\"phones\":[{"), args: []string{"vmux-pair", "--forget", "x"}, exit: 1,
			problem: "agent.json is damaged and was set aside as agent.json.damaged-", hint: "pair again: vmux-pair", once: true},
		{name: "empty state", prepare: state(""), args: []string{"vmux-pair", "--list"}, exit: 1,
			problem: "agent.json is damaged and was set aside as agent.json.damaged-", hint: "pair again: vmux-pair", once: true},
		{name: "binary state", prepare: state("\x00\x01\x02\xff"), args: []string{"vmux-pair", "--list"}, exit: 1,
			problem: "agent.json is damaged and was set aside as agent.json.damaged-", hint: "pair again: vmux-pair", once: true},
		{name: "newer state, list", prepare: state("{\"version\":2}"), args: []string{"vmux-pair", "--list"}, exit: 1,
			problem: "agent.json has version 2, this program knows 1", hint: "update these commands"},
		{name: "newer state, pair", prepare: state("{\"version\":2}"), args: pairURL, exit: 1,
			problem: "agent.json has version 2, this program knows 1", hint: "update these commands"},
		{name: "newer state, agent", prepare: state("{\"version\":2}"), args: []string{"vmux-agent"}, exit: 1,
			problem: "agent.json has version 2, this program knows 1", hint: "update these commands"},
		{name: "state that others can write", prepare: func(h *host) { h.put(stateFile, "{\"version\":1,\"phones\":[]}", 0o666) }, args: []string{"vmux-pair", "--list"}, exit: 1,
			problem: "agent.json is open to other users (mode 0666)", hint: "chmod 600 "},
		{name: "state directory that cannot be written", prepare: func(h *host) {
			h.put(stateFile, "{\"version\":1,\"phones\":[]}", 0o600)
			h.notRoot()
			h.chmod(filepath.Dir(stateFile), 0o500)
		}, args: pairURL, exit: 1, problem: "cannot write ", hint: "make the directory yours and writable: ls -ld "},
		{name: "state directory that cannot be made", prepare: func(h *host) {
			h.put(".local/x", "", 0o600)
			h.notRoot()
			h.chmod(".local", 0o500)
		}, args: pairURL, exit: 1, problem: "cannot write ", hint: "make the directory yours and writable: ls -ld "},
		{name: "file in place of the state directory, pair", prepare: func(h *host) { h.put(".local/state", "mine", 0o600) }, args: pairURL, exit: 1,
			problem: "not a directory", hint: ""},
		{name: "configuration directory that cannot be made", prepare: func(h *host) {
			h.put(".config/x", "", 0o600)
			h.notRoot()
			h.chmod(".config", 0o500)
		}, args: []string{"vmux-agent"}, exit: 1, problem: "cannot write ", hint: "make the directory yours and writable: ls -ld "},

		{name: "socket path too long", args: []string{"vmux-agent", "--socket", "/tmp/" + strings.Repeat("x", 99)}, exit: 2,
			problem: "has 104 bytes, a socket address holds 103", hint: "--socket ~/.ssh/vmux-agent.sock"},
		{name: "socket directory open to others", prepare: func(h *host) { h.chmod(".ssh", 0o777) }, args: []string{"vmux-agent"}, exit: 1,
			problem: ".ssh (mode 0777, uid ", hint: "chmod 700 "},
		{name: "socket directory open to the group", prepare: func(h *host) { h.chmod(".ssh", 0o770) }, args: []string{"vmux-agent"}, exit: 1,
			problem: "is writable by others", hint: "chmod 700 "},
		{name: "socket in a directory of all", args: []string{"vmux-agent", "--socket", "/tmp/vmux-test.sock"}, exit: 1,
			problem: "socket directory /tmp ", hint: ""},
		{name: "file in place of the socket", prepare: func(h *host) { h.write(".ssh/vmux-agent.sock", "mine", 0o600) }, args: []string{"vmux-agent"}, exit: 1,
			problem: "vmux-agent.sock is in the way: a regular file, not a socket", hint: "mv "},
		{name: "file in place of the socket's directory", args: []string{"vmux-agent", "--socket", "HOME/f/s"}, prepare: func(h *host) { h.write("f", "mine", 0o600) }, exit: 1,
			problem: "/f is not a directory", hint: "--socket"},

		{name: "no signer home", args: []string{"vmux-signer", "serve", "--approve", "always"}, exit: 1, problem: "not a signer home", hint: "vmux-signer init"},
		{name: "no signer home to list", args: []string{"vmux-signer", "devices"}, exit: 1, problem: "not a signer home", hint: "vmux-signer init"},
		{name: "signer home that is something else", prepare: func(h *host) { h.put("d/file", "mine", 0o600); h.setenv("VMUX_SIGNER_HOME", h.path("d")) },
			args: []string{"vmux-signer", "key", "list"}, exit: 1, problem: "not a signer home", hint: "vmux-signer init"},
		{name: "signer home in a directory of something else", prepare: func(h *host) { h.put("d/file", "mine", 0o600); h.setenv("VMUX_SIGNER_HOME", h.path("d")) },
			args: []string{"vmux-signer", "init", "--no-passphrase"}, exit: 1, problem: "the directory is not empty", hint: "VMUX_SIGNER_HOME="},
		{name: "signer home that is a file", prepare: func(h *host) { h.setenv("VMUX_SIGNER_HOME", h.write("f", "mine", 0o600)) },
			args: []string{"vmux-signer", "devices"}, exit: 1, problem: "not a signer home", hint: "vmux-signer init"},
		{name: "signer home that exists", prepare: signerHome, args: []string{"vmux-signer", "init", "--no-passphrase"}, exit: 1, problem: "a signer home exists already", hint: "VMUX_SIGNER_HOME="},
		{name: "signer home open to others", prepare: func(h *host) { signerHome(h); h.chmod(".local/share/vmux-signer", 0o755) },
			args: []string{"vmux-signer", "serve", "--approve", "always"}, exit: 1, problem: "is open to others (mode 0755)", hint: "chmod 700 "},
		{name: "signer's link key open to others", prepare: func(h *host) { signerHome(h); h.chmod(".local/share/vmux-signer/link-key.pem", 0o644) },
			args: []string{"vmux-signer", "serve", "--approve", "always"}, exit: 1, problem: "link-key.pem is open to other", hint: "chmod 600 "},
		{name: "signer's link key garbage", prepare: func(h *host) { signerHome(h); h.write(".local/share/vmux-signer/link-key.pem", "garbage", 0o600) },
			args: []string{"vmux-signer", "serve", "--approve", "always"}, exit: 1, problem: "link-key.pem is no usable device key", hint: ""},
		{name: "signer's state newer", prepare: func(h *host) {
			signerHome(h)
			h.write(".local/share/vmux-signer/state.json", `{"version":99}`, 0o600)
		}, args: []string{"vmux-signer", "devices"}, exit: 1, problem: "newer", hint: "update vmux-signer"},
		{name: "address that is not of this computer", prepare: signerHome, args: []string{"vmux-signer", "serve", "--approve", "always", "--listen", "192.0.2.1:0"},
			exit: 1, problem: "cannot listen on 192.0.2.1:0", hint: "choose an address of this computer"},
		{name: "nobody at the address", args: pairURL, exit: 4, problem: "no phone with an open pairing window was found", hint: "--address HOST:PORT", late: true},
	})
}

func devicePEM(t testing.TB, curve elliptic.Curve) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// Without a pairing the agent serves and says that it has nothing.
func TestNoPairing(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	if r := h.run("ssh-add", "-l"); r.exit != 2 {
		t.Errorf("without an agent: %v", r)
	}
	h.agent()
	if r := h.run("ssh-add", "-l"); r.exit != 1 || !strings.Contains(r.stdout, "The agent has no identities.") {
		t.Errorf("ssh-add -l: %v", r)
	}
	if r := h.run("vmux-pair", "--list"); r.exit != 0 || r.stdout != "" || !strings.Contains(r.stderr, "no phone is paired") {
		t.Errorf("--list: %v", r)
	}
	if r := h.run("vmux-pair", "--list", "--json", "--quiet"); r.exit != 0 || r.stdout != "{\"phones\":[]}\n" || r.stderr != "" {
		t.Errorf("--list --json: %v", r)
	}
}

// The agent says that its state is damaged, sets it aside and serves; a
// pairing mends it.
func TestDamagedState(t *testing.T) {
	t.Parallel()
	const damaged = `{"version":1,"phones":[{"name":"Pocket","name":"Twice"}]}`
	aside := func(h *host) (found int) {
		for name, content := range tree(t, h.path(filepath.Dir(stateFile))) {
			if strings.HasPrefix(name, "agent.json.damaged-") && content == damaged {
				found++
			}
		}
		return found
	}
	d := newHost(t)
	d.put(stateFile, damaged, 0o600)
	agent := d.agent()
	agent.wait(`^error: .*agent\.json is damaged and was set aside as agent\.json\.damaged-`)
	agent.wait(`^hint: pair again: vmux-pair$`)
	if n := aside(d); n != 1 {
		t.Errorf("%d files with the damaged state", n)
	}
	if r := d.run("ssh-add", "-l"); r.exit != 1 {
		t.Errorf("ssh-add -l: %v", r)
	}

	p := newPhone(t)
	p.serve("--approve", "always")
	d.put(stateFile, damaged, 0o600) // once more, while the agent runs
	pairing := d.spawn("vmux-pair", "--url", "--address", p.address)
	pairing.wait(`^error: .*agent\.json is damaged and was set aside as agent\.json\.damaged-`)
	url := pairing.wait(`^vmux-pair://\S+`)[0]
	p.ok("vmux-signer", "pair", url)
	if exit := pairing.ended(); exit != 0 {
		t.Errorf("vmux-pair: exit %d\n%s", exit, pairing.output())
	}
	if n := aside(d); n != 2 {
		t.Errorf("%d files with the damaged state", n)
	}
	d.ok("ssh-add", "-l")
}

// The longest path that is not too long.
func TestLongestSocketPath(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	socket := h.path(".ssh", "")
	socket += "/" + strings.Repeat("x", 103-len(socket)-1)
	h.agent("--socket", socket)
	h.setenv("SSH_AUTH_SOCK", socket)
	if r := h.run("ssh-add", "-l"); r.exit != 1 {
		t.Errorf("ssh-add -l: %v", r)
	}
}

// A second signer on one home, and one on a port that is taken: refused, and
// the first serves on.
func TestSecondSigner(t *testing.T) {
	t.Parallel()
	p := newPhone(t)
	p.serve("--approve", "always")
	p.refuse(t, bad{args: []string{"vmux-signer", "serve", "--approve", "always", "--listen", "127.0.0.1:0"}, exit: 1,
		problem: "another vmux-signer serves this home", hint: "end it first", once: true})
	q := newPhone(t)
	q.refuse(t, bad{args: []string{"vmux-signer", "serve", "--approve", "always", "--no-advertise", "--listen", p.address}, exit: 1,
		problem: "cannot listen on " + p.address + ": bind: address already in use", hint: "--listen :0", once: true})
	d := newHost(t)
	pair(t, d, p)
}

// Something else answers at the phone's address.
func TestPairWithSomethingElse(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(patience))
			c.Write([]byte("SSH-2.0-something\r\n"))
			c.Close()
		}
	}()
	defer func() { l.Close(); <-served }()
	h := newHost(t)
	h.refuse(t, bad{args: []string{"vmux-pair", "--qr", "--address", l.Addr().String(), "--timeout", "1s"}, exit: 4,
		problem: "no phone with an open pairing window was found", hint: "vmux-signer pair", late: true})
}

// Every command and subcommand prints its help and the version.
func TestHelpAndVersion(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.unset("HOME") // nothing is looked at
	var walk func(words ...string) int
	walk = func(words ...string) int {
		help := h.run(words[0], append(words[1:], "--help")...)
		if help.exit != 0 || help.stderr != "" || !strings.HasPrefix(help.stdout, strings.Join(words, " ")+" - ") ||
			!strings.Contains(help.stdout, "usage: "+strings.Join(words, " ")) || !strings.Contains(help.stdout, "--json") {
			t.Errorf("%q --help: %v", words, help)
		}
		version := h.run(words[0], append(words[1:], "--version")...)
		if version.exit != 0 || version.stderr != "" || !strings.HasPrefix(version.stdout, words[0]+" ") || strings.Count(version.stdout, "\n") != 1 {
			t.Errorf("%q --version: %v", words, version)
		}
		var v struct {
			Name    string `json:"name"`
			Version string `json:"version"`
		}
		version = h.run(words[0], append(words[1:], "--version", "--json")...)
		if err := json.Unmarshal([]byte(version.stdout), &v); version.exit != 0 || err != nil || v.Name != words[0] || v.Version == "" {
			t.Errorf("%q --version --json: %v, %v", words, err, version)
		}
		n := 1
		_, list, _ := strings.Cut(help.stdout, "\ncommands:\n")
		list, _, _ = strings.Cut(list, "\n\n")
		for line := range strings.Lines(list) {
			n += walk(append(slices.Clone(words), strings.Fields(line)[0])...)
		}
		return n
	}
	n := 0
	entries, err := os.ReadDir(binDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "vmux-") {
			n += walk(e.Name())
		}
	}
	if n < 14 { // vmux-agent, vmux-pair, vmux-signer with six commands and five below key
		t.Errorf("%d commands", n)
	}
	// Help wins over what is wrong with the rest of the line.
	if r := h.run("vmux-pair", "--nonsense", "--help"); r.exit != 0 || !strings.HasPrefix(r.stdout, "vmux-pair - ") {
		t.Errorf("--nonsense --help: %v", r)
	}
}
