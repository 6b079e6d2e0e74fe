// SPDX-License-Identifier: BSD-3-Clause

// Package store keeps what the tools remember between runs: where their files are, the
// configuration (vmux.toml), the paired phones with their cached public keys (agent.json) and this
// device's link key (device-key.pem). Nothing in it is an SSH private key.
package store

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// ErrNoHome says that HOME is missing or no absolute path, so that no file has a place.
var ErrNoHome = errors.New("HOME is not set to an absolute path")

// Env finds the files of this user from environment variables; Env(os.Getenv) is the real one. An
// empty variable counts as unset.
type Env func(name string) string

func (e Env) home() (string, error) {
	if h := e("HOME"); filepath.IsAbs(h) {
		return filepath.Clean(h), nil
	}
	return "", ErrNoHome
}

// base returns an XDG base directory. The XDG Base Directory Specification says that a relative
// path in these variables is invalid and to be ignored.
func (e Env) base(name string, fallback ...string) (string, error) {
	if d := e(name); filepath.IsAbs(d) {
		return filepath.Clean(d), nil
	}
	h, err := e.home()
	if err != nil {
		return "", fmt.Errorf("%w, and neither is %s", err, name)
	}
	return filepath.Join(append([]string{h}, fallback...)...), nil
}

// ConfigDir returns the directory of vmux.toml and device-key.pem: $XDG_CONFIG_HOME/vmux, else
// ~/.config/vmux. The error is ErrNoHome.
func (e Env) ConfigDir() (string, error) { return under("vmux")(e.base("XDG_CONFIG_HOME", ".config")) }

// StateDir returns the directory of agent.json: $XDG_STATE_HOME/vmux, else ~/.local/state/vmux.
// The error is ErrNoHome.
func (e Env) StateDir() (string, error) {
	return under("vmux")(e.base("XDG_STATE_HOME", ".local", "state"))
}

// ConfigFile returns the path of vmux.toml in ConfigDir.
func (e Env) ConfigFile() (string, error) { return under("vmux.toml")(e.ConfigDir()) }

// LinkKeyFile returns the path of device-key.pem in ConfigDir.
func (e Env) LinkKeyFile() (string, error) { return under("device-key.pem")(e.ConfigDir()) }

// StateFile returns the path of agent.json in StateDir.
func (e Env) StateFile() (string, error) { return under("agent.json")(e.StateDir()) }

// SocketPath returns the default path of the agent's socket, ~/.ssh/vmux-agent.sock. It says nothing of
// the setting "socket": Config.Socket has what counts.
func (e Env) SocketPath() (string, error) {
	return under(".ssh", "vmux-agent.sock")(e.home())
}

// SignerHome returns the directory of the reference signer: $VMUX_SIGNER_HOME (a relative one is
// taken from the working directory), else $XDG_DATA_HOME/vmux-signer, else
// ~/.local/share/vmux-signer.
func (e Env) SignerHome() (string, error) {
	if d := e("VMUX_SIGNER_HOME"); d != "" {
		return filepath.Abs(d)
	}
	return under("vmux-signer")(e.base("XDG_DATA_HOME", ".local", "share"))
}

// Expand replaces a leading ~ or ~/ by the home directory, as shells do. Other users' homes (~name)
// are an error, because a file called that is never what was meant.
func (e Env) Expand(path string) (string, error) {
	if !strings.HasPrefix(path, "~") {
		return path, nil
	}
	rest, ok := strings.CutPrefix(path, "~/")
	if !ok && path != "~" {
		return "", fmt.Errorf("%q names the home of another user", path)
	}
	h, err := e.home()
	if err != nil {
		return "", err
	}
	if !ok {
		return h, nil
	}
	return filepath.Join(h, rest), nil
}

func under(elem ...string) func(string, error) (string, error) {
	return func(dir string, err error) (string, error) {
		if err != nil {
			return "", err
		}
		return filepath.Join(append([]string{dir}, elem...)...), nil
	}
}
