// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmux.app/toolkit/internal/keyfile"
	"vmux.app/toolkit/internal/signer"
)

// survivor is a home whose commands are killed.
type survivor struct {
	t         *testing.T
	dir, home string
}

// laptopPin is of a device that is paired, so that it can be forgotten.
const laptopPin = "SHA256:M01FTCoycGu+I/pf8Tyq3FuZOzmqpV28OMSfRDR+c2M"

func newSurvivor(t *testing.T) *survivor {
	t.Helper()
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	v := &survivor{t, dir, filepath.Join(dir, "h")}
	for _, name := range []string{"pass", "next"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	v.ok("init --no-passphrase --quiet --name Pocket")
	v.ok("key add work --type ed25519")
	h, err := signer.Open(v.home, nil)
	if err == nil {
		_, err = h.Update(func(s *signer.State) error {
			s.Devices = append(s.Devices, signer.Device{Name: "laptop", Pin: laptopPin, PairedAt: time.Now().UTC().Truncate(time.Second)})
			return nil
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	v.write("hosts.json", fmt.Sprintf(`{"version":1,"hosts":{"prod":[{"key":%q,"first":"2026-11-01","last":"2026-11-20"}]}}`, laptopPin))
	return v
}

func (v *survivor) write(name, content string) {
	v.t.Helper()
	if err := os.WriteFile(filepath.Join(v.home, name), []byte(content), 0o600); err != nil {
		v.t.Fatal(err)
	}
}

// copied is the same home once more, in another directory.
func (v *survivor) copied(t *testing.T) *survivor {
	t.Helper()
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if out, err := exec.Command("cp", "-a", v.dir+"/.", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return &survivor{t, dir, filepath.Join(dir, "h")}
}

func (v *survivor) cmd(args string) *exec.Cmd {
	c := exec.Command("vmux-signer", strings.Fields(args)...)
	c.Dir = v.dir
	c.Env = append(os.Environ(), "HOME="+v.dir, "VMUX_SIGNER_HOME="+v.home, "XDG_RUNTIME_DIR="+v.dir, "SSH_ASKPASS=", "GORACE=atexit_sleep_ms=0")
	return c
}

func (v *survivor) run(args string) (exit int, stdout, stderr string) {
	v.t.Helper()
	c := v.cmd(args)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	var status *exec.ExitError
	if err != nil && !errors.As(err, &status) {
		v.t.Fatal(err)
	}
	return c.ProcessState.ExitCode(), out.String(), errs.String()
}

// ok is run for what must succeed without a warning.
func (v *survivor) ok(args string) string {
	v.t.Helper()
	exit, out, errs := v.run(args + " --quiet")
	if exit != 0 || errs != "" {
		v.t.Fatalf("vmux-signer %s: exit %d\n%s%s", args, exit, out, errs)
	}
	return out
}

// killed runs a command and kills it as soon as it has done n things to files in the
// home or beside it. It is false when the command was done before.
func (v *survivor) killed(args string, n int) bool {
	v.t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		v.t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	defer f.Close()
	const changes = unix.IN_CREATE | unix.IN_MODIFY | unix.IN_CLOSE_WRITE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE
	watch := func(dir string) {
		if _, err := unix.InotifyAddWatch(fd, dir, changes); err != nil && err != unix.ENOENT {
			v.t.Error(err)
		}
	}
	watch(v.dir)
	watch(v.home)
	watch(filepath.Join(v.home, "keys"))
	c := v.cmd(args)
	if err := c.Start(); err != nil {
		v.t.Fatal(err)
	}
	ended := make(chan struct{})
	seen := make(chan bool, 1)
	go func() { // ends with the file, which is closed when the process has ended
		for b := make([]byte, 16<<10); ; {
			got, err := f.Read(b)
			if err != nil {
				seen <- false
				return
			}
			for b := b[:got]; len(b) >= unix.SizeofInotifyEvent; {
				next := unix.SizeofInotifyEvent + int(b[12]) + int(b[13])<<8
				name := string(bytes.TrimRight(b[unix.SizeofInotifyEvent:next], "\x00"))
				if name == "rekey.new" || name == "rekey" { // what is in there is written, too
					watch(filepath.Join(v.home, name))
				}
				b = b[next:]
				if n--; n == 0 {
					_ = c.Process.Kill() // fails when it has ended
					seen <- true
					return
				}
			}
		}
	}()
	go func() {
		_ = c.Wait() // its status is looked at below
		close(ended)
	}()
	<-ended
	_ = f.SetReadDeadline(time.Now()) // after what has happened before
	hit := <-seen
	if ws := c.ProcessState.Sys().(syscall.WaitStatus); !ws.Signaled() && ws.ExitStatus() != 0 {
		v.t.Fatalf("vmux-signer %s: exit %d", args, ws.ExitStatus())
	}
	return hit
}

// keys are fingerprint and state of each key, by its label.
func (v *survivor) keys() map[string]string {
	v.t.Helper()
	var o struct {
		Keys []struct {
			Label, Fingerprint string
			Enabled, Encrypted bool
		}
	}
	out := v.ok("key list --json")
	if err := json.Unmarshal([]byte(out), &o); err != nil {
		v.t.Fatalf("%v: %s", err, out)
	}
	keys := map[string]string{}
	for _, k := range o.Keys {
		if k.Fingerprint == "" {
			v.t.Errorf("the key %s cannot be used: %s", k.Label, out)
		}
		keys[k.Label] = fmt.Sprint(k.Fingerprint, k.Enabled, k.Encrypted)
	}
	return keys
}

// opens says whether all private keys are there and take a passphrase, or none.
// Whether it is the right one is not looked at each time, since that takes long.
func (v *survivor) opens(passphrase string, look bool) bool {
	v.t.Helper()
	files, err := filepath.Glob(filepath.Join(v.home, "keys", "*"))
	if err != nil || len(files) == 0 {
		v.t.Fatalf("no keys: %v", err)
	}
	for _, file := range append(files, filepath.Join(v.home, "ca")) {
		text, err := os.ReadFile(file)
		if err != nil {
			v.t.Fatal(err)
		}
		f, err := keyfile.Parse(text)
		if err != nil {
			v.t.Fatalf("%s: %v", file, err)
		}
		if f.Encrypted != (passphrase != "") {
			return false
		}
		if f.Encrypted && !look {
			continue
		}
		k, err := f.Open([]byte(passphrase))
		if err != nil {
			v.t.Fatalf("%s: %v", file, err)
		}
		k.Wipe()
	}
	return true
}

// known are the names of what a home may have.
var known = regexp.MustCompile(`^(ca|keys|keys/[a-z][a-z0-9]*|link-key\.pem|state\.json|hosts\.json|removed\.pub|audit\.jsonl|audit\.lock|lock|serve\.lock)$`)

// clean reports what a killed command has left, in the home and beside it.
func (v *survivor) clean() {
	v.t.Helper()
	err := filepath.WalkDir(v.home, func(path string, d fs.DirEntry, err error) error {
		name, _ := filepath.Rel(v.home, path)
		if err == nil && name != "." && !known.MatchString(name) {
			v.t.Errorf("%s is left", name)
		}
		return err
	})
	if err != nil {
		v.t.Error(err)
	}
	entries, err := os.ReadDir(v.dir)
	if err != nil {
		v.t.Error(err)
	}
	for _, e := range entries {
		if !slices.Contains([]string{"h", "pass", "next"}, e.Name()) {
			v.t.Errorf("%s is left beside the home", e.Name())
		}
	}
}

// Killed at whatever it does to a file, a command has done all or nothing, nothing
// else is lost, the log is whole, and the next command leaves nothing of it.
func TestKilled(t *testing.T) {
	t.Parallel()
	bare := newSurvivor(t)
	few := newSurvivor(t) // a passphrase takes its time with each key
	few.ok("key remove work")
	shut := few.copied(t)
	shut.ok("passphrase --new-passphrase-file pass")
	for name, c := range map[string]struct {
		from *survivor
		args string
		// least is how many things it does to files at least.
		least int
		// done says whether it is done, whole after a kill.
		done func(v *survivor, before map[string]string) bool
		next string // the next change
	}{
		"key add": {bare, "key add new", 8, func(v *survivor, before map[string]string) bool {
			keys := v.keys()
			if k, ok := keys["new"]; ok && strings.Contains(k, "false false") { // the file without the state: a disabled key
				delete(keys, "new")
			}
			return len(keys) != len(before)
		}, "key add probe"},
		"key disable": {bare, "key disable work", 4, func(v *survivor, before map[string]string) bool {
			return v.keys()["work"] != before["work"]
		}, "key enable default"},
		"key remove": {bare, "key remove work", 8, func(v *survivor, before map[string]string) bool {
			if k, ok := v.keys()["work"]; ok && strings.Contains(k, "false false") { // as above
				return false
			} else if ok && k != before["work"] {
				t.Errorf("the key is %s now", k)
			}
			return v.keys()["work"] == ""
		}, "key add probe"},
		"forget": {bare, "forget laptop", 4, func(v *survivor, _ map[string]string) bool {
			return !strings.Contains(v.ok("devices"), "laptop")
		}, "key disable work"},
		"hosts remove": {bare, "hosts remove prod", 3, func(v *survivor, _ map[string]string) bool {
			return !strings.Contains(v.ok("hosts --json"), "prod")
		}, "key disable work"},
		"passphrase": {few, "passphrase --new-passphrase-file pass", 14, func(v *survivor, before map[string]string) bool {
			if len(v.keys()) != len(before) {
				t.Errorf("keys %v", v.keys())
			}
			return v.opens("pass", false)
		}, ""},
		"passphrase gone": {shut, "passphrase --passphrase-file pass --none", 14, func(v *survivor, before map[string]string) bool {
			if len(v.keys()) != len(before) {
				t.Errorf("keys %v", v.keys())
			}
			return v.opens("", true)
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			before, n, outcomes := c.from.keys(), 0, map[bool]int{}
			for hit := true; hit; {
				if n++; strings.HasPrefix(name, "passphrase") { // which takes its time: some of them, others each time
					n += 1 + rand.IntN(5)
				}
				v := c.from.copied(t)
				hit = v.killed(c.args, n)
				done := c.done(v, before)
				outcomes[done]++
				if !hit && !done {
					t.Errorf("%d: it was not killed, and is not done", n)
				}
				after := v.keys()
				for label, was := range before {
					if now := after[label]; label != "work" && !strings.HasPrefix(name, "passphrase") && now != was {
						t.Errorf("%d: the key %s is %q, was %q", n, label, now, was)
					}
				}
				if strings.HasPrefix(name, "passphrase") && !done {
					if c.from == few && !v.opens("", true) || c.from == shut && !v.opens("pass", false) {
						t.Errorf("%d: not all keys have the old passphrase, nor all the new one", n)
					}
				}
				if !hit && name == "passphrase" && !v.opens("pass", true) {
					t.Errorf("%d: the passphrase opens nothing", n)
				}
				if out := v.ok("audit --verify"); !strings.HasPrefix(out, "whole: ") {
					t.Errorf("%d: %s", n, out)
				}
				if name != "forget" && !strings.Contains(v.ok("devices"), "laptop") {
					t.Errorf("%d: the device is gone", n)
				}
				next := c.next
				if next == "" { // where a change may take a passphrase, and opening has cleaned up
					next = "key disable default"
				}
				v.ok(next)
				v.clean()
			}
			if n <= c.least || outcomes[false] == 0 || outcomes[true] == 0 {
				t.Errorf("%d kills, of which %d before it was done: fewer than it has steps", n-1, outcomes[false])
			}
		})
	}
	t.Run("init", func(t *testing.T) {
		t.Parallel()
		n := 0
		for hit := true; hit; {
			n++
			dir, err := os.MkdirTemp("", "v")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			v := &survivor{t, dir, filepath.Join(dir, "h")}
			hit = v.killed("init --no-passphrase --quiet --name Pocket", n)
			if _, err := os.Lstat(v.home); err != nil {
				v.ok("init --no-passphrase --name Pocket")
			}
			if keys := v.keys(); len(keys) != 1 || !strings.HasSuffix(keys["default"], "true false") {
				t.Errorf("%d: keys %v", n, keys)
			}
			if out := v.ok("audit --verify"); !strings.HasPrefix(out, "whole: ") {
				t.Errorf("%d: %s", n, out)
			}
			v.clean()
		}
		if n < 2 {
			t.Error("it was never killed")
		}
	})
}
