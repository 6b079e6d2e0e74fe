// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"bytes"
	"cmp"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// The agent's units, the one first that is enabled as a rule.
const (
	socketUnit  = "vmux-agent.socket"
	serviceUnit = "vmux-agent.service"
	launchLabel = "app.vmux.agent"
)

func serviceChecks() []Check {
	return []Check{
		{ID: "service", Title: "systemd or launchd starts the agent, and this program", Run: checkService},
	}
}

const whyService = "after the next start of this computer there is no agent until you start it"

func checkService(ctx context.Context, e *Env) Finding {
	running := ""
	if s, err := e.status(ctx); err == nil {
		running = s.Executable
	}
	if e.OS == "darwin" {
		return e.launchd(ctx, running)
	}
	return e.systemd(ctx, running)
}

// unitDirs are where a user manager looks for units, first come first served (systemd.unit(5)), without those of the
// manager's own making.
func (e *Env) unitDirs() []string {
	config, data, run := e.Getenv("XDG_CONFIG_HOME"), e.Getenv("XDG_DATA_HOME"), e.Getenv("XDG_RUNTIME_DIR")
	if !filepath.IsAbs(config) {
		config = filepath.Join(e.Home, ".config")
	}
	if !filepath.IsAbs(data) {
		data = filepath.Join(e.Home, ".local", "share")
	}
	dirs := []string{filepath.Join(config, "systemd", "user"), e.Root + "/etc/systemd/user"}
	if filepath.IsAbs(run) {
		dirs = append(dirs, filepath.Join(run, "systemd", "user"))
	}
	dirs = append(dirs, e.Root+"/run/systemd/user", filepath.Join(data, "systemd", "user"))
	for _, d := range []string{"/usr/local/lib", "/usr/local/share", "/usr/lib", "/usr/share", "/lib"} {
		dirs = append(dirs, e.Root+d+"/systemd/user")
	}
	return dirs
}

func (e *Env) systemd(ctx context.Context, running string) Finding {
	if _, err := os.Stat(e.Root + "/run/systemd/system"); err != nil { // sd_booted(3)
		return skipped("no systemd here; start vmux-agent when you log in")
	}
	path := ""
	enabled := false
	for _, dir := range e.unitDirs() {
		if _, err := os.Stat(filepath.Join(dir, serviceUnit)); err == nil && path == "" {
			path = filepath.Join(dir, serviceUnit)
		}
		for _, unit := range []string{socketUnit, serviceUnit} {
			for _, kind := range []string{"wants", "requires", "upholds"} {
				if links, err := filepath.Glob(filepath.Join(dir, "*."+kind, unit)); err == nil && len(links) > 0 {
					enabled = true
				}
			}
		}
	}
	if path == "" {
		return e.warning(&ServiceError{Problem: "there is no unit " + serviceUnit, Do: ServiceInstall}, whyService)
	}
	text, err := readStart(path)
	if real, lerr := filepath.EvalSymlinks(path); lerr == nil && real == os.DevNull || err == nil && len(text) == 0 {
		return e.warning(&ServiceError{Problem: serviceUnit + " is masked", Do: ServiceUnmask}, whyService)
	}
	if err != nil {
		return e.warning(&ServiceError{Problem: fmt.Sprintf("%s cannot be read: %v", path, err), Do: ServiceInstall}, whyService)
	}
	if !enabled {
		out, err := e.Run(ctx, "systemctl", "--user", "is-enabled", socketUnit, serviceUnit)
		for word := range strings.FieldsSeq(out.Stdout) {
			enabled = enabled || err == nil && (word == "enabled" || word == "enabled-runtime")
		}
	}
	if !enabled {
		return e.warning(&ServiceError{Problem: e.short(path) + " is not enabled", Do: ServiceEnable}, whyService)
	}
	if f, wrong := e.program(e.unitValue(string(text), "ExecStart"), path, running); wrong {
		return f
	}
	if socket, err := readStart(filepath.Join(filepath.Dir(path), socketUnit)); err == nil {
		if listens := e.unitValue(string(socket), "ListenStream"); listens != "" && filepath.Clean(listens) != filepath.Clean(e.Config.Socket) {
			return e.warning(&ServiceError{Problem: fmt.Sprintf("%s listens on %s, the socket is %s", socketUnit, listens, e.Config.Socket), Do: ServiceSocket},
				"after the next start of this computer the agent is at the other socket")
		}
	}
	return ok("systemd starts it: %s", e.short(path))
}

// program says when a unit starts another program than the one that runs, or none.
func (e *Env) program(starts, unit, running string) (Finding, bool) {
	if !filepath.IsAbs(starts) {
		return Finding{}, false // looked for by the service manager
	}
	if _, err := os.Stat(starts); err != nil {
		return e.warning(&ServiceError{Problem: fmt.Sprintf("%s starts %s, which there is not", unit, starts), Do: ServiceInstall}, whyService), true
	}
	if running = strings.TrimSuffix(running, " (deleted)"); running != "" && !same(starts, running) {
		return e.warning(&ServiceError{Problem: fmt.Sprintf("%s starts %s, the agent that runs is %s", unit, starts, running), Do: ServiceOther},
			"after the next start of this computer it is another agent, perhaps of another version"), true
	}
	return Finding{}, false
}

// unitValue gives the first word of a unit's setting, as far as this needs (systemd.unit(5), systemd.service(5)).
func (e *Env) unitValue(unit, key string) string {
	first := ""
	for line := range strings.Lines(unit) {
		value, ok := strings.CutPrefix(strings.TrimSpace(line), key+"=")
		if !ok {
			continue
		}
		value = strings.TrimLeft(strings.TrimSpace(value), "@-:+!|")
		if quoted, ok := strings.CutPrefix(value, `"`); ok {
			value, _, _ = strings.Cut(quoted, `"`)
		} else if words := strings.Fields(value); len(words) > 0 {
			value = words[0]
		}
		first = strings.NewReplacer("%h", e.Home, "%u", e.User, "%t", e.Getenv("XDG_RUNTIME_DIR"), "%%", "%").Replace(value)
	}
	return first
}

func (e *Env) launchd(ctx context.Context, running string) Finding {
	var path string
	var text []byte
	for _, dir := range []string{filepath.Join(e.Home, "Library", "LaunchAgents"), e.Root + "/Library/LaunchAgents"} {
		path = filepath.Join(dir, launchLabel+".plist")
		b, err := readStart(path)
		if err == nil {
			text = b
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return e.warning(&ServiceError{Problem: fmt.Sprintf("%s cannot be read: %v", path, err), Do: LaunchInstall}, whyService)
		}
	}
	if text == nil {
		return e.warning(&ServiceError{Problem: "there is no " + launchLabel + ".plist", Do: LaunchInstall}, whyService)
	}
	domain := fmt.Sprintf("gui/%d", e.UID)
	out, err := e.Run(ctx, "launchctl", "print-disabled", domain)
	for line := range strings.Lines(out.Stdout) {
		name, state, _ := strings.Cut(strings.TrimSpace(line), "=>")
		if state = strings.TrimSpace(state); err == nil && strings.Contains(name, `"`+launchLabel+`"`) && (state == "disabled" || state == "true") {
			return e.warning(&ServiceError{Problem: launchLabel + " is disabled", Do: LaunchEnable, UID: e.UID}, whyService)
		}
	}
	if out, err := e.Run(ctx, "launchctl", "print", domain+"/"+launchLabel); err == nil && out.Exit != 0 {
		return e.warning(&ServiceError{Problem: launchLabel + " is not loaded", Do: LaunchLoad, Path: path, UID: e.UID}, whyService)
	}
	if bytes.HasPrefix(text, []byte("bplist")) {
		if out, err := e.Run(ctx, "plutil", "-convert", "xml1", "-o", "-", path); err == nil && out.Exit == 0 {
			text = []byte(out.Stdout)
		}
	}
	program, socket := plistStarts(text)
	if f, wrong := e.program(program, path, running); wrong {
		return f
	}
	if socket != "" && filepath.Clean(socket) != filepath.Clean(e.Config.Socket) {
		return e.warning(&ServiceError{Problem: fmt.Sprintf("%s has the socket %s, the socket is %s", path, socket, e.Config.Socket), Do: LaunchSocket, Path: path},
			"after the next login the agent is at the other socket")
	}
	return ok("launchd starts it: %s", e.short(path))
}

// plistStarts gives the program of a launchd.plist(5), which is Program, else the first of ProgramArguments, and the path of
// its socket.
func plistStarts(plist []byte) (program, socket string) {
	d := xml.NewDecoder(bytes.NewReader(plist))
	d.Strict = false
	key, first := "", ""
	for {
		t, err := d.Token()
		if err != nil {
			return cmp.Or(program, first), socket
		}
		start, ok := t.(xml.StartElement)
		if !ok {
			continue
		}
		var text string
		if name := start.Name.Local; name != "key" && name != "string" {
			continue
		} else if d.DecodeElement(&text, &start) != nil {
			return cmp.Or(program, first), socket
		} else if name == "key" {
			key = text
			continue
		}
		switch {
		case key == "Program":
			program = text
		case key == "ProgramArguments" && first == "":
			first = text
		case key == "SockPathName":
			socket = text
		}
	}
}
