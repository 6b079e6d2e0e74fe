// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "vmux.app/toolkit/"

// imports says which packages of ours each package may import: data flows one
// way, from the socket to the phone. What parses bytes from outside, or speaks
// to the kernel, stands alone.
var imports = map[string][]string{
	"internal/audit":                 {},
	"internal/cocoa":                 {},
	"internal/darwintest/typecheck":  {},
	"internal/duration":              {},
	"internal/envelope":              {},
	"internal/fingerprint":           {},
	"internal/keyfile":               {"internal/tpm"},
	"internal/krl":                   {"internal/safetext"},
	"internal/knownhosts":            {"internal/fingerprint", "internal/pattern"},
	"internal/netnstest":             {},
	"internal/networks":              {"internal/transport", "internal/transport/dnssd", "internal/transport/lan", "internal/transport/mpc"},
	"internal/oslog":                 {},
	"internal/pattern":               {},
	"internal/policy":                {"internal/fingerprint", "internal/pattern"},
	"internal/process":               {},
	"internal/ptytest":               {},
	"internal/safetext":              {},
	"internal/signed":                {},
	"internal/store":                 {"internal/duration", "internal/policy", "internal/userdefaults", "internal/wake/apns"},
	"internal/tpm":                   {},
	"internal/tpm/tpmtest":           {},
	"internal/transport/dnssd":       {},
	"internal/unixsock":              {},
	"internal/userdefaults":          {"internal/cocoa"},
	"internal/wake":                  {"internal/store", "internal/wake/apns"},
	"internal/wake/apns":             {},
	"internal/wake/apnstest":         {},
	"internal/agent":                 {"internal/policy", "internal/process", "internal/signed", "internal/unixsock"},
	"internal/transport":             {"internal/envelope"},
	"internal/transport/mem":         {"internal/transport"},
	"internal/transport/mpc":         {"internal/cocoa", "internal/transport"},
	"internal/transport/lan":         {"internal/transport", "internal/transport/dnssd"},
	"internal/transport/conformance": {"internal/envelope", "internal/transport"},
	"internal/control":               {"internal/phone", "internal/session"},
	"internal/session":               {"internal/fingerprint", "internal/process"},
	"internal/pairing":               {"internal/envelope", "internal/safetext", "internal/transport"},
	"internal/phone":                 {"internal/envelope", "internal/pairing", "internal/store", "internal/transport"},
	"internal/signer": {"internal/audit", "internal/envelope", "internal/keyfile", "internal/pairing", "internal/safetext", "internal/signed", "internal/store",
		"internal/tpm", "internal/transport", "internal/transport/dnssd", "internal/transport/lan", "internal/unixsock"},
	"internal/doctor": {"internal/agent", "internal/control", "internal/duration", "internal/envelope", "internal/networks", "internal/phone", "internal/policy",
		"internal/process", "internal/safetext", "internal/session", "internal/store", "internal/transport", "internal/transport/dnssd",
		"internal/transport/lan", "internal/unixsock", "internal/wake", "internal/wake/apns"},
	// The table of advice knows the errors of all.
	"internal/cli": {"internal/agent", "internal/audit", "internal/cocoa", "internal/networks", "internal/doctor", "internal/keyfile", "internal/knownhosts", "internal/pairing", "internal/phone", "internal/safetext", "internal/session",
		"internal/signer", "internal/store", "internal/tpm", "internal/transport", "internal/transport/dnssd", "internal/unixsock", "internal/wake/apns"},
}

// What is for macOS is in no program for another system.
func TestNothingOfMacOSElsewhere(t *testing.T) {
	t.Parallel()
	for what, env := range map[string][]string{"for Linux": {"GOOS=linux"}, "for macOS without cgo": {"GOOS=darwin", "CGO_ENABLED=0"}} {
		c := exec.Command("go", "list", "-deps", "../../cmd/...")
		c.Env = append(c.Environ(), env...)
		out, err := c.Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range strings.Fields(string(out)) {
			switch name := strings.TrimPrefix(p, module); {
			case strings.Contains(p, "darwinkit"), name == "internal/cocoa", name == "internal/userdefaults", name == "internal/transport/mpc":
				t.Errorf("%s is in a program %s", p, what)
			}
		}
	}
}

// The direction of imports is part of the design: the agent never knows the
// phone, and only commands know cli.
func TestImports(t *testing.T) {
	t.Parallel()
	c := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "../../...")
	out, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		fields := strings.Fields(strings.ReplaceAll(line, module, ""))
		name := fields[0]
		if strings.HasPrefix(name, "internal/e2e") {
			continue
		}
		allowed, known := imports[name]
		if !known && !strings.HasPrefix(name, "cmd/") {
			t.Errorf("%s is not in the table", name)
		}
		seen++
		for _, i := range fields[1:] {
			switch {
			case strings.HasPrefix(i, "cmd/"), strings.HasPrefix(i, "internal/e2e"):
				t.Errorf("%s imports %s", name, i)
			case !strings.HasPrefix(i, "internal/") || strings.HasPrefix(name, "cmd/"):
			case !slices.Contains(allowed, i):
				t.Errorf("%s imports %s, which it must not", name, i)
			}
		}
	}
	if seen < len(imports) {
		t.Errorf("%d packages, fewer than in the table", seen)
	}
}
