// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"vmux.app/toolkit/internal/audit"
)

// signerHome is a home that vmux-signer made, and run runs vmux-signer on it.
func signerHome(t *testing.T) (dir string, run func(args ...string) (exit int, stdout, stderr string)) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "h")
	run = func(args ...string) (int, string, string) {
		t.Helper()
		cmd := exec.Command("vmux-signer", args...)
		cmd.Env = append(os.Environ(), "VMUX_SIGNER_HOME="+dir, "TZ=UTC", "GORACE=atexit_sleep_ms=10")
		var out, errOut strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &errOut
		err := cmd.Run()
		var status *exec.ExitError
		if err != nil && !errors.As(err, &status) {
			t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode(), out.String(), errOut.String()
	}
	if exit, _, stderr := run("init", "--no-passphrase", "--quiet", "--name", "Pocket"); exit != 0 {
		t.Fatal(stderr)
	}
	for _, name := range []string{"audit.jsonl", "audit.lock"} { // with the record of its making
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir, run
}

func record(t *testing.T, dir string, records ...audit.Record) {
	t.Helper()
	l, err := audit.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, r := range records {
		if err := l.Append(r, false); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAudit(t *testing.T) {
	t.Parallel()
	dir, run := signerHome(t)
	want := func(args string, exit int, stdout, stderr string) {
		t.Helper()
		e, out, errOut := run(append([]string{"audit"}, strings.Fields(args)...)...)
		match := func(pattern, s string) bool { return regexp.MustCompile(`\A(?:` + pattern + `)\z`).MatchString(s) }
		if e != exit || !match(stdout, out) || !match(stderr, errOut) {
			t.Errorf("audit %s: exit %d\n%s%s", args, e, out, errOut)
		}
	}
	// There is none yet, and looking makes none.
	want("", 0, "", "nothing is recorded\n")
	want("--json", 0, "", "")
	want("--verify", 0, "whole: no records\n", "")
	want("--verify --json", 0, `\{"records":0,"files":0,"recovered":0,"cutOff":false,"deleted":false\}`+"\n", "")
	if found, err := filepath.Glob(filepath.Join(dir, "audit*")); err != nil || len(found) > 0 {
		t.Errorf("made %q, %v", found, err)
	}

	at := time.Date(2026, 11, 20, 10, 0, 0, 7e6, time.UTC)
	record(t, dir,
		audit.Record{Time: at, Event: "pairing", Device: "laptop", Pin: "SHA256:pin", Outcome: "paired"},
		audit.Record{Time: at.Add(time.Second), Event: "request", Device: "laptop", Pin: "SHA256:pin", ID: "00ff", CreatedAt: at, Operation: "login",
			User: "root", HostKey: "SHA256:host", Key: "default", Fingerprint: "SHA256:key", Outcome: "denied", Reason: "the owner said \"no\""},
		audit.Record{Time: at.Add(time.Minute), Event: "request", Device: "lap\x1b[2J\u202etop", Operation: "certificate", User: "a outcome=signed",
			Fingerprint: "SHA256:key", Serial: "18446744073709551615", KeyID: "me", Outcome: "signed"},
		audit.Record{Event: "started"})
	want("", 0, `2026-11-20 10:00:00  pairing    paired    device=laptop  pin=SHA256:pin
2026-11-20 10:00:01  request    denied    device=laptop  operation=login  user=root  hostKey=SHA256:host  key=default  reason="the owner said \\x22no\\x22"
2026-11-20 10:01:00  request    signed    device=lap\\x1b\[2J\\u202etop  operation=certificate  user="a outcome=signed"  fingerprint=SHA256:key  serial=18446744073709551615  keyId=me
20..-..-.. ..:..:..  started    -
`, "")
	want("--since 1h", 0, "20..-..-.. ..:..:..  started    -\n", "")
	want("--since 7000d --quiet", 0, "(?s:.*)paired(?s:.*)started    -\n", "")

	// In JSON the lines are those of the file, which can be followed by hand.
	file := filepath.Join(dir, "audit.jsonl")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want("--json", 0, regexp.QuoteMeta(string(text)), "")
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	hash := func(s string) string { sum := sha256.Sum256([]byte(s)); return hex.EncodeToString(sum[:]) }
	for i, line := range lines {
		var r audit.Record
		if err := json.Unmarshal([]byte(line), &r); err != nil || i > 0 && r.Previous != hash(lines[i-1]) {
			t.Errorf("%v: %s", err, line)
		}
	}
	head := hash(lines[3])
	whole := "whole: records 4, files 1, from 2026-11-20 10:00:00 to 20..-..-.. ..:..:..\nhead " + head + "\n"
	want("--verify", 0, whole, "")
	want("--verify --json", 0, `\{"records":4,"files":1,"first":"2026-11-20T10:00:00.007Z","last":"[^"]*Z","head":"`+head+`","recovered":0,"cutOff":false,"deleted":false\}`+"\n", "")
	want("--verify --head "+head, 0, whole, "")
	want("--verify --head "+strings.ToUpper(hash(lines[0])), 0, whole, "")
	want("--verify --head "+hash("x"), 1, "", "error: no line of the audit log has this hash: "+hash("x")+"\nhint: look whether you noted all of it, .*\n")

	for args, line := range map[string]string{
		"--verify --since 1h":  "--verify is for the whole log",
		"--head " + head:       "--head is for --verify",
		"--verify --head 00ff": `--head: "00ff" is not 64 hexadecimal digits`,
		"--since soon":         `--since: "soon" is no length of time such as 8h, 30m, 1d or 3600`,
		"more":                 `there is no place for the argument "more"`,
	} {
		want(args, 2, "", "error: "+regexp.QuoteMeta(line)+"\nhint: .*\n")
	}

	// A line that was cut off.
	change := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	change(text[:len(text)-20])
	want("--verify", 0, "whole: records 3, (?s:.*)", "the last line was cut off; the next record will say so\n")
	want("--since 1h", 0, "", "nothing is recorded\n")
	want("--verify --head "+head, 1, "", "error: no line (?s:.*)")
	record(t, dir, audit.Record{Event: "stopped"})
	want("--verify", 0, "whole: records 5, (?s:.*)", "lines that were cut off, and recovered from: 1\n")
	want("--since 1h", 0, "[^\n]*recovered  -         reason=\"the line before was cut off\"\n[^\n]*stopped    -\n", "")
	want("--verify --json", 0, `\{"records":5,.*"recovered":1,"cutOff":false,.*\n`, "lines .*\n")

	// A line that was changed, and one that cannot be read.
	change(bytes.Replace(text, []byte("denied"), []byte("signed"), 1))
	broken := "error: the audit log is not as it was written: audit.jsonl:3: is not chained to the line before\nhint: compare the files with a backup; .*\n"
	want("--verify", 1, "", broken)
	want("--verify --quiet --head "+head, 1, "", broken)
	want("--verify --json", 1, `\{"error":\{"message":"the audit log is not [^\n]*"exit":1\}\}`+"\n", broken)
	change(bytes.Replace(text, []byte(`"denied"`), []byte("denied"), 1))
	want("--json", 0, regexp.QuoteMeta(lines[0]+"\n"+lines[2]+"\n"+lines[3]+"\n"), "warning: audit.jsonl:2: is no record; see: vmux-signer audit --verify\n")
	want("--verify", 1, "", "error: the audit log is not as it was written: audit.jsonl:2: is no record\nhint: .*\n")

	// What is not the owner's alone.
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"", "--verify"} {
		want(args, 1, "", "error: "+regexp.QuoteMeta(file)+` is open to others \(mode 0644\)`+"\nhint: look whether it is as you left it, then: chmod 600 "+regexp.QuoteMeta(file)+"\n")
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	want("", 1, "", "error: not a signer home: .*\nhint: make one: vmux-signer init\n")
}
