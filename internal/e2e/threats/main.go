// SPDX-License-Identifier: BSD-3-Clause

// Command threats runs the tests that carry the name of a promise, TestThreat_ROW_…, and prints each promise with
// pass, fail, skip or missing. It fails when a test does; a promise without a test is shown only.
package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// rows are the promises of vmux-security(7), in its order.
var rows = [...]struct{ id, promise string }{
	{"T01", "a stolen computer yields no SSH private key"},
	{"T02", "malware of the same user gets nothing without an approved prompt"},
	{"T03", "phone out of range: signing fails, listing works"},
	{"T04", "the network learns nothing of requests, keys or certificates"},
	{"T05", "the wake push carries no key material and authorizes nothing"},
	{"T06", "a stolen phone needs biometrics or the passcode"},
	{"T07", "both stolen: revocation works"},
	{"T08", "a spoofed phone gets nothing and gives nothing"},
	{"T09", "a second pairing is visible on the phone and can be declined"},
	{"T10", "other Unix users cannot use the socket"},
	{"T11", "a lie about the destination shows on the phone"},
	{"N01", "each prompt says which process asks"},
	{"N02", "prompts do not pile up"},
	{"N03", "forwarded agents are shown and can be refused"},
	{"N04", "public keys stay off the network"},
	{"N05", "a session certificate stays within its scope and time"},
	{"N06", "opaque data is not signed blindly"},
	{"C01", "phone keys are P-256 or ed25519"},
	{"C02", "the ephemeral key is fresh and never stored"},
	{"C03", "session certificates are OpenSSH's, with the lifetime asked for"},
	{"C04", "what comes back is what was asked"},
	{"C05", "old requests and used ids are refused"},
	{"C06", "push authorization is ES256 with a private key file"},
	{"G01", "unattended SSH under a session certificate"},
	{"G02", "phone lost: keys are listed, nothing signs"},
	{"G03", "shared computer: each user their own agent and phone"},
	{"G04", "App Lock asks first"},
	{"I01", "without the push key signing goes on"},
	{"I02", "caches hold public material only"},
	{"I03", "logs hold no key material"},
}

const prefix = "TestThreat_"

func main() {
	failed, err := run(os.Stdout)
	if err != nil {
		fmt.Fprintf(os.Stderr, "error: %v\nhint: go test -run %s ./...\n", err, prefix)
	}
	if err != nil || failed {
		os.Exit(1)
	}
}

func run(w io.Writer) (failed bool, err error) {
	cmd := exec.Command("go", "test", "-json", "-run", "^"+prefix, "./...")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return false, err
	}
	if err := cmd.Start(); err != nil {
		return false, err
	}
	r, err := read(out)
	if err != nil {
		cmd.Process.Kill()
		return false, errors.Join(err, cmd.Wait())
	}
	waitErr := cmd.Wait()
	failed = r.print(w)
	if waitErr != nil && !failed {
		err = fmt.Errorf("go test: %w", waitErr) // it did not build, or broke outside of a test
	}
	return failed, err
}

// results are what the tests of each row came to.
type results struct {
	byRow   map[string][]string // outcome of each test: pass, fail, skip
	strays  []string            // tests named after no row
	output  map[string]string   // of the tests that failed
	failing []string
}

// event is a line of go test -json, go doc test2json.
type event struct {
	Action, Package, Test, Output string
}

func read(in io.Reader) (*results, error) {
	r := &results{byRow: make(map[string][]string), output: make(map[string]string)}
	running := make(map[string]bool) // "package test"
	finish := func(key, action string) {
		_, test, _ := strings.Cut(key, " ")
		row, _, _ := strings.Cut(strings.TrimPrefix(test, prefix), "_")
		if !known(row) {
			r.strays = append(r.strays, test)
		}
		r.byRow[row] = append(r.byRow[row], action)
		if action == "fail" {
			r.failing = append(r.failing, key)
		} else {
			delete(r.output, key)
		}
		delete(running, key)
	}
	d := jsontext.NewDecoder(in)
	for {
		var e event
		// The names are written Action, Test, …, as the fields are.
		if err := json.UnmarshalDecode(d, &e); errors.Is(err, io.EOF) {
			return r, nil
		} else if err != nil {
			return nil, fmt.Errorf("go test -json: %w", err)
		}
		test, _, sub := strings.Cut(e.Test, "/")
		key := e.Package + " " + test
		switch {
		case e.Action == "fail" && e.Test == "":
			for _, k := range slices.Sorted(maps.Keys(running)) { // ended by a panic or a timeout
				if strings.HasPrefix(k, e.Package+" ") {
					finish(k, "fail")
				}
			}
		case !strings.HasPrefix(test, prefix):
		case e.Action == "output":
			r.output[key] += e.Output
		case sub:
		case e.Action == "run":
			running[key] = true
		case e.Action == "pass" || e.Action == "fail" || e.Action == "skip":
			finish(key, e.Action)
		}
	}
}

func known(id string) bool {
	for _, row := range rows {
		if row.id == id {
			return true
		}
	}
	return false
}

// print prints the table and what failing tests printed, and says whether there were any.
func (r *results) print(w io.Writer) (failed bool) {
	slices.Sort(r.failing)
	for _, key := range r.failing {
		fmt.Fprintf(w, "%s\n%s\n", key, r.output[key])
	}
	counts := make(map[string]int)
	for _, row := range rows {
		s := status(r.byRow[row.id])
		counts[s]++
		fmt.Fprintf(w, "%s  %-7s  %s\n", row.id, s, row.promise)
	}
	slices.Sort(r.strays)
	for _, s := range slices.Compact(r.strays) {
		fmt.Fprintf(w, "???  fail     %s names no promise\n", s)
	}
	fmt.Fprintf(w, "%d pass, %d fail, %d skip, %d missing\n", counts["pass"], counts["fail"], counts["skip"], counts["missing"])
	return len(r.failing) > 0 || len(r.strays) > 0
}

// status is pass only when every test ran and passed.
func status(outcomes []string) string {
	for _, s := range []string{"fail", "skip", "pass"} {
		if slices.Contains(outcomes, s) {
			return s
		}
	}
	return "missing"
}
