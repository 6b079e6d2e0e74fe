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

	"vmux.app/toolkit/internal/envelope"
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
	dir := shortDir(t)
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
	dir := shortDir(t)
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
// home or beside it. It is false when it does fewer.
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
	seen := make(chan bool, 1)
	const last = "last" // a file that is made when the process has ended
	go func() {         // until then
		for b := make([]byte, 16<<10); ; {
			got, err := f.Read(b)
			if err != nil {
				v.t.Errorf("inotify: %v", err)
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
				if name == last {
					seen <- n <= 0
					return
				}
				if n--; n == 0 {
					_ = c.Process.Kill() // fails when it has ended
				}
			}
		}
	}()
	_ = c.Wait() // its status is looked at below
	mark := filepath.Join(v.dir, last)
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		v.t.Fatal(err)
	}
	hit := <-seen
	if err := os.Remove(mark); err != nil {
		v.t.Error(err)
	}
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
		"passphrase": {few, "passphrase --new-passphrase-file pass", 8, func(v *survivor, before map[string]string) bool {
			if len(v.keys()) != len(before) {
				t.Errorf("keys %v", v.keys())
			}
			return v.opens("pass", false)
		}, ""},
		"passphrase gone": {shut, "passphrase --passphrase-file pass --none", 8, func(v *survivor, before map[string]string) bool {
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
				if n++; n > 1 && strings.HasPrefix(name, "passphrase") { // which takes its time: some of them, others each time
					n += 1 + rand.IntN(4)
				}
				v := c.from.copied(t)
				hit = v.killed(c.args, n)
				done := c.done(v, before)
				outcomes[done]++
				if !hit && !done {
					t.Errorf("%d: it was not killed, and is not done", n)
				}
				after := v.keys()
				if _, err := os.Lstat(filepath.Join(v.home, "rekey.new")); err == nil {
					t.Errorf("%d: rekey.new is there after the home was opened", n)
				}
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
			// A kill may come late, but not where it has long to do.
			if n <= c.least || outcomes[false] == 0 && strings.HasPrefix(name, "passphrase") || outcomes[true] == 0 {
				t.Errorf("%d kills, of which %d before it was done: fewer than it has steps", n-1, outcomes[false])
			}
		})
	}
	t.Run("init", func(t *testing.T) {
		t.Parallel()
		n := 0
		for hit := true; hit; {
			n++
			dir := shortDir(t)
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

// says runs a command whose exit status and standard error match.
func (v *survivor) says(args string, exit int, stderr string) {
	v.t.Helper()
	e, out, errs := v.run(args)
	if e != exit || !regexp.MustCompile(stderr).MatchString(errs) {
		v.t.Errorf("vmux-signer %s: exit %d, want %d\n%s%swant %s", args, e, exit, out, errs, stderr)
	}
}

// serves starts the signer, waits until it listens and its log has matched, and ends
// it.
func (v *survivor) serves(log string, meanwhile func()) {
	v.t.Helper()
	c := v.cmd("serve --approve always --no-advertise --listen 127.0.0.1:0")
	r, w, err := os.Pipe()
	if err != nil {
		v.t.Fatal(err)
	}
	defer r.Close()
	c.Stderr = w
	if err := c.Start(); err != nil {
		v.t.Fatal(err)
	}
	w.Close()
	_ = r.SetReadDeadline(time.Now().Add(30 * time.Second)) // a pipe has deadlines
	var text []byte
	re := regexp.MustCompile("(?s)" + log)
	for b := make([]byte, 4096); !re.Match(text) || !bytes.Contains(text, []byte("listening on ")); {
		n, err := r.Read(b)
		text = append(text, b[:n]...)
		if err != nil {
			v.t.Errorf("serve says %s, which does not match %s", text, log)
			break
		}
	}
	if meanwhile != nil {
		meanwhile()
	}
	_ = c.Process.Signal(syscall.SIGTERM) // fails when it has ended, which Wait tells
	if err := c.Wait(); err != nil {
		v.t.Errorf("serve: %v\n%s", err, text)
	}
}

// holds reports whether a file somewhere in the home has this content, and nothing
// else was lost: what was damaged is there for its owner to look at.
func (v *survivor) holds(content string) bool {
	v.t.Helper()
	found := false
	err := filepath.WalkDir(v.home, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			b, err := os.ReadFile(path)
			found = found || err == nil && bytes.HasPrefix(b, []byte(content))
		}
		return err
	})
	if err != nil {
		v.t.Error(err)
	}
	return found
}

// A damaged file is said, with what to do, and set aside or left as it is. What does
// not need it goes on.
func TestDamagedFiles(t *testing.T) {
	t.Parallel()
	from := newSurvivor(t)
	from.ok("key add gone")
	from.ok("key remove gone")
	const junk = "junk\n"
	const state = `warning: \S+/state\.json was damaged \(.*\) and is now \S+/state\.json\.damaged-1: no device is paired and every key is disabled; use "vmux-signer key enable"`
	all := []string{"key list", "status", "devices", "hosts", "audit", "key add other"}
	for file, c := range map[string]struct {
		// args are commands that say it, with exit status and what they say; "serve" with
		// status 0 goes on.
		args map[string]string
		// goOn are commands that work and say nothing.
		goOn []string
	}{
		"link-key.pem": {map[string]string{
			"1 serve": `(?m)^error: the key by which devices know this signer cannot be used: \S+/link-key\.pem .*\nhint: restore link-key\.pem from a backup, or move it away; every device`,
		}, append(all, "revoke", "audit --verify")},
		"ca": {map[string]string{
			"1 serve":         `(?m)^error: the certificate authority's key cannot be used: \S+/ca: .*\nhint: restore the file ca from a backup; without one, revoke`,
			"1 key add other": `\Aerror: the certificate authority's key cannot be used: \S+/ca: .*\nhint: restore the file ca`,
			"1 revoke":        `error: the list is not complete: the certificate authority's key is not known: .*\nhint: find its line`,
		}, []string{"key list", "status", "devices", "hosts", "audit", "audit --verify", "key remove work"}},
		"keys/work": {map[string]string{
			"0 serve":  `msg="key cannot be used" key=work reason="\S+/keys/work: not a private key`,
			"1 revoke": `error: the list is not complete: the key work is not known: .*\nhint: find its line`,
		}, append(all, "audit --verify")},
		"state.json": {map[string]string{
			"0 serve": state, "0 key list": state, "0 status": state, "0 devices": state, "0 key add other": state,
			"0 passphrase --new-passphrase-file pass": state,
		}, []string{"hosts", "revoke", "audit", "audit --verify"}},
		"hosts.json": {map[string]string{
			"0 serve": `warning: \S+/hosts\.json was damaged \(.*\) and is now \S+/hosts\.json\.damaged-1: no host key is remembered`,
			"0 hosts": `warning: \S+/hosts\.json was damaged`,
		}, []string{"key list", "status", "devices", "revoke", "audit", "audit --verify", "key add other"}},
		"certificates.toml": {map[string]string{
			"0 serve": `level=ERROR msg="no certificate is signed until this is mended" reason="\S+/certificates\.toml: line 1`,
		}, append(all, "revoke", "audit --verify")},
		"audit.jsonl": {map[string]string{
			"0 serve":          `level=ERROR msg="the audit log is not as it was written" reason="audit\.jsonl:1: .*hint="compare the files with a backup`,
			"0 audit":          `\Awarning: audit\.jsonl:1: .*; see: vmux-signer audit --verify\n`,
			"1 audit --verify": `\Aerror: the audit log is not as it was written: audit\.jsonl:1: .*\nhint: compare`,
		}, []string{"key list", "status", "devices", "hosts", "revoke", "key add other"}},
		"removed.pub": {map[string]string{
			"1 revoke": `error: the list is not complete: \S+/removed\.pub, line 1: .*\nhint: find its line`,
		}, append(all, "audit --verify", "key remove work")},
	} {
		t.Run(strings.ReplaceAll(file, "/", "-"), func(t *testing.T) {
			t.Parallel()
			damaged := func() *survivor {
				v := from.copied(t)
				v.write(file, junk)
				return v
			}
			check := func(v *survivor, args string) {
				t.Helper()
				if !v.holds(junk) {
					t.Errorf("%s: what was in %s is gone", args, file)
				}
				lost := []string{"ca", "link-key.pem", "keys/default", "certificates.toml", "hosts.json", "removed.pub"}
				for _, name := range lost {
					was, _ := os.ReadFile(filepath.Join(from.home, name))
					changes := strings.HasPrefix(args, "key remove") || strings.HasPrefix(args, "passphrase")
					if now, _ := os.ReadFile(filepath.Join(v.home, name)); name != file && !changes && !bytes.Equal(was, now) {
						t.Errorf("%s: %s has changed as well", args, name)
					}
				}
			}
			for said, want := range c.args {
				status, args, _ := strings.Cut(said, " ")
				v := damaged()
				switch said {
				case "0 serve":
					v.serves(want, nil)
				case "1 serve":
					v.says("serve --approve always --no-advertise --listen 127.0.0.1:0", 1, want)
				default:
					v.says(args, int(status[0]-'0'), want)
				}
				check(v, args)
			}
			for _, args := range c.goOn {
				v := damaged()
				v.ok(args)
				check(v, args)
			}
		})
	}

	// What has the path of the control socket is of the running one.
	v := from.copied(t)
	v.serves("", func() {
		for _, junk := range []string{junk, "", "/nowhere\n", strings.Repeat("x", 9000), "\x00"} {
			v.write("control.path", junk)
			if out := v.ok("status"); !strings.HasPrefix(out, "Advertising\n") {
				t.Errorf("status with control.path %q: %s", junk, out)
			}
			v.ok("key disable work")
		}
	})
	// A signer without its key is another one, and says so.
	if err := os.Remove(filepath.Join(v.home, "link-key.pem")); err != nil {
		t.Fatal(err)
	}
	v.serves(`warning: \S+/link-key\.pem is missing, and a new one is made: every device has to pair again`, nil)
}

// A home whose authority's key is gone is one still: its keys can be revoked, and it
// can be erased.
func TestAuthorityGone(t *testing.T) {
	t.Parallel()
	v := newSurvivor(t)
	if err := os.Remove(filepath.Join(v.home, "ca")); err != nil {
		t.Fatal(err)
	}
	const gone = `(?m)^error: the certificate authority's key cannot be used: .*/ca: no such file or directory\nhint: restore the file ca from a backup`
	v.says("serve --approve always --no-advertise --listen 127.0.0.1:0", 1, gone)
	v.says("key add other", 1, gone)
	v.says("passphrase --new-passphrase-file pass", 1, gone)
	v.says("init --no-passphrase", 1, `\Aerror: a signer home exists already: `)
	if keys := v.keys(); len(keys) != 2 {
		t.Errorf("%d keys", len(keys))
	}
	exit, out, errs := v.run("revoke --quiet")
	want := `\Aerror: the list is not complete: the certificate authority's key is not known: .*\nhint: find its line`
	if exit != 1 || strings.Count(out, "# the key ") != 2 || !regexp.MustCompile(want).MatchString(errs) {
		t.Errorf("revoke: exit %d\n%s%s", exit, out, errs)
	}
	exit, out, errs = v.run("erase --yes")
	if exit != 0 || strings.Count(out, "# the key ") != 2 {
		t.Errorf("erase: exit %d\n%s%s", exit, out, errs)
	}
	if _, err := os.Lstat(v.home); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the home: %v", err)
	}
}

// Somebody has put more keys into the home than there may be: what the hint says works.
func TestTooManyKeys(t *testing.T) {
	t.Parallel()
	v := newSurvivor(t)
	b, err := os.ReadFile(filepath.Join(v.home, "keys/work"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range envelope.MaxKeys - 1 {
		v.write(fmt.Sprintf("keys/more%d", i), string(b))
	}
	v.says("key list", 1, `\Aerror: 256 keys exist, no more fit\nhint: remove one that is not used: vmux-signer key remove LABEL\n`)
	v.ok("key remove more0")
	if keys := v.keys(); len(keys) != envelope.MaxKeys {
		t.Errorf("%d keys", len(keys))
	}
}

// What is wrong in several places is said in one line, and what keeps an erasure from
// its end can be looked for.
func TestSeveralAtOnce(t *testing.T) {
	t.Parallel()
	v := newSurvivor(t)
	v.write("keys/default", "junk")
	v.write("keys/work", "junk")
	v.says("revoke --quiet", 1, `(?m)^error: the list is not complete: the key default is not known: [^;\\]*; the key work is not known: [^;\\]*\nhint: `)
	for _, name := range []string{"removed.pub", "certificates.toml"} {
		if err := os.MkdirAll(filepath.Join(v.home, name, "in the way"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	v.says("erase --yes", 1, `(?m)^error: the signer home is half erased: remove \S+/certificates.toml: directory not empty; remove \S+/removed.pub: directory not empty\n`+
		`hint: see what keeps these \(ls -ld, lsattr, mount\), then finish it: vmux-signer erase\n\z`)
}

// What is no file where one should be keeps nobody waiting, and is damage like any other.
func TestNoFiles(t *testing.T) {
	t.Parallel()
	from := newSurvivor(t)
	from.ok("key add gone")
	from.ok("key remove gone")
	for name, c := range map[string]struct {
		args, says string
		exit       int
	}{
		"state.json":        {"status", `(?m)^warning: \S+/state\.json was damaged \(.*not a regular file\) and is now \S+\.damaged-1: `, 0},
		"removed.pub":       {"revoke", `(?m)^error: the list is not complete: .*/removed\.pub: not a regular file\nhint: `, 1},
		"keys/work":         {"revoke", `(?m)^error: the list is not complete: the key work is not known: .*/keys/work: not a regular file\nhint: `, 1},
		"certificates.toml": {"serve --approve always --no-advertise --listen 127.0.0.1:0", `reason="\S+/certificates.toml: is not a regular file`, 0},
	} {
		v := from.copied(t)
		path := filepath.Join(v.home, name)
		os.Remove(path) // it need not be there
		if err := unix.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(c.args, "serve") {
			v.serves(c.says, nil)
			continue
		}
		v.says(c.args, c.exit, c.says)
	}
}

// A key whose file cannot be removed is not used any more, and that is said; what a link
// leads to is left, and named.
func TestRemovalFails(t *testing.T) {
	t.Parallel()
	v := newSurvivor(t)
	v.serves("", func() {
		v.write("hosts.json", "junk") // which it sees when it is told of a change
		exit, out, errs := v.mounted("mount --bind h/keys/work h/keys/work", "key remove work")
		want := fmt.Sprintf(`\Aerror: cannot write %s/keys/work: device or resource busy\nhint: make the directory yours and writable: ls -ld %[1]s/keys\n\z`, v.home)
		if exit != 1 || out != "" || !regexp.MustCompile(want).MatchString(errs) {
			t.Errorf("exit %d\n%s%s", exit, out, errs)
		}
		if _, err := os.Stat(filepath.Join(v.home, "hosts.json.damaged-1")); err != nil {
			t.Errorf("serve was not told: %v", err)
		}
	})
	if keys := v.keys(); !strings.Contains(keys["work"], "false") {
		t.Errorf("%v", keys)
	}
	mine := filepath.Join(v.dir, "mine")
	if err := os.Rename(filepath.Join(v.home, "keys/work"), mine); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(mine, filepath.Join(v.home, "keys/work")); err != nil {
		t.Fatal(err)
	}
	v.says("key remove work", 0, `(?m)^warning: not the signer's, and left: `+regexp.QuoteMeta(mine)+`$`)
	if _, err := os.Stat(mine); err != nil {
		t.Error(err)
	}
}

// A key that cannot be used is not enabled without a word.
func TestUnusableKeyEnabled(t *testing.T) {
	t.Parallel()
	v := newSurvivor(t)
	if err := os.Chmod(filepath.Join(v.home, "keys/work"), 0o644); err != nil {
		t.Fatal(err)
	}
	v.says("key enable work", 0, `\Athe key work is enabled\nwarning: it cannot be used: \S+/keys/work is open to others \(mode 0644\)\n\z`)
}

// The second signer of a home is refused, and the first goes on as if nothing had
// been.
func TestTwoSigners(t *testing.T) {
	t.Parallel()
	v := newSurvivor(t)
	v.serves("", func() {
		before := v.ok("status --json")
		for range 3 {
			v.says("serve --approve always --no-advertise --listen 127.0.0.1:0", 1,
				`(?m)^error: another vmux-signer serves this home: \S+/h\nhint: use the one that runs, or end it first\n\z`)
		}
		v.says("erase --yes", 1, `(?m)^error: another vmux-signer serves this home`)
		if after := v.ok("status --json"); after != before {
			t.Errorf("the first one's status is %s, was %s", after, before)
		}
		v.ok("key disable work")
	})
	if out := v.ok("audit --verify"); !strings.HasPrefix(out, "whole: ") || strings.Count(v.ok("audit"), "started") != 1 {
		t.Errorf("%s%s", out, v.ok("audit"))
	}
}

// On a file system that is read-only, what only reads works, and what writes says
// why not.
func TestReadOnlyHome(t *testing.T) {
	t.Parallel()
	v := newSurvivor(t)
	v.ok("key add gone")
	v.ok("key remove gone")
	const readOnly = `mount --bind "$VMUX_SIGNER_HOME" "$VMUX_SIGNER_HOME" && mount -o remount,bind,ro "$VMUX_SIGNER_HOME"`
	run := func(args string) (exit int, stdout, stderr string) {
		t.Helper()
		return v.mounted(readOnly, args)
	}
	for args, want := range map[string]string{
		"key list": `(?m)^work +enabled`, "status": `\AOffline\n`, "devices": `\Alaptop `, "hosts": `\Aprod `,
		"revoke": `(?m)^# the removed key gone, `, "audit": `(?m) key .*removed`, "audit --verify": `\Awhole: `,
	} {
		exit, out, errs := run(args + " --quiet")
		if exit != 0 || errs != "" || !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("vmux-signer %s: exit %d\n%s%s", args, exit, out, errs)
		}
	}
	for args, file := range map[string]string{
		"serve --approve always --no-advertise --listen 127.0.0.1:0": "serve.lock", "key add new": "lock", "key remove work": "lock",
		"key disable work": "lock", "forget laptop": "lock", "hosts remove prod": "lock", "passphrase --new-passphrase-file pass": "lock", "erase --yes": "serve.lock",
	} {
		exit, _, errs := run(args + " --quiet")
		want := fmt.Sprintf("(?m)^error: cannot write %s/%s: read-only file system\nhint: it is on a file system that is read-only; see which one: df %[1]s\n\\z", v.home, file)
		if exit != 1 || !regexp.MustCompile(want).MatchString(errs) {
			t.Errorf("vmux-signer %s: exit %d\n%swant %s", args, exit, errs, want)
		}
	}
	v.ok("key disable work") // it is writable again
}

// mounted runs a command in a mount namespace of its own, after a line of shell that
// mounts.
func (v *survivor) mounted(mount, args string) (exit int, stdout, stderr string) {
	v.t.Helper()
	c := v.cmd(args)
	script := "mount --make-rprivate / && " + mount + ` || exit 99; exec vmux-signer "$@"`
	c.Path, c.Args = "/bin/sh", append([]string{"sh", "-c", script}, c.Args...)
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if uid := os.Getuid(); uid != 0 {
		c.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		c.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		c.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	if c.ProcessState == nil || c.ProcessState.ExitCode() == 99 {
		if os.Getenv("CI") == "true" {
			v.t.Fatalf("no mount namespace: %v %s", err, &errs)
		}
		v.t.Skipf("no mount namespace: %v %s", err, &errs)
	}
	return c.ProcessState.ExitCode(), out.String(), errs.String()
}

// On a full disk, what cannot be written is said, with a directory that is there to
// look at, and nothing has changed; what needs no room works. A file system of its own
// is no place for a home, a directory in it is.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	v := newSurvivor(t)
	m := filepath.Join(v.dir, "m")
	if err := os.Mkdir(m, 0o700); err != nil {
		t.Fatal(err)
	}
	const empty = "mount -t tmpfs -o size=64k,mode=700 tmpfs m"
	const full = empty + " && cp -a h m/h && { cat /dev/zero >m/fill; true; } 2>/dev/null"
	for _, c := range []struct {
		home, mount, args string
		exit              int
		says              string
	}{
		{"m", empty, "init --no-passphrase", 1, `\Aerror: a signer home cannot be made there: M: device or resource busy\nhint: name a directory of yours that does not exist yet`},
		{"m/h", empty, "init --no-passphrase", 0, `\Amade M/h `},
		{"m/new", full, "init --no-passphrase", 1, `\Aerror: cannot write M/new: no space left on device\nhint: make room: df M\n\z`},
		{"m/h", full, "key add new", 1, `\Aerror: cannot write M/h/keys/new: no space left on device\nhint: make room: df M/h/keys\n\z`},
		{"m/h", full, "key disable work", 1, `\Aerror: cannot write M/h/state\.json: no space left on device\nhint: make room: df M/h\n\z`},
		{"m/h", full, "passphrase --new-passphrase-file pass", 1, `\Aerror: cannot write M/h/rekey\.new: no space left on device\nhint: make room: df M/h\n\z`},
		{"m/h", full, "key list", 0, `\A\z`},
		{"m/h", full, "erase --yes", 0, `\Athe signer in M/h is erased`},
	} {
		v := *v
		v.home = filepath.Join(v.dir, c.home)
		exit, out, errs := v.mounted(c.mount, c.args)
		want := strings.ReplaceAll(c.says, "M", regexp.QuoteMeta(m))
		if exit != c.exit || !regexp.MustCompile(want).MatchString(errs) {
			t.Errorf("vmux-signer %s in %s: exit %d\n%s%swant %s", c.args, c.home, exit, out, errs, want)
		}
	}
	left, err := filepath.Glob(filepath.Join(v.dir, ".vmux-signer-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

// Nobody else of the same user gets at the passphrase while it is asked for: serve is
// hardened before.
func TestHardenedBeforeThePassphrase(t *testing.T) {
	t.Parallel()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil || limit.Max == 0 {
		t.Skipf("nothing to see it by: no core files here anyway, %v", err)
	}
	v := newSurvivor(t)
	v.ok("passphrase --new-passphrase-file pass")
	pty, cmd := onTTY(t, v.home, "serve", "--approve", "command:true", "--listen", "127.0.0.1:0", "--no-advertise")
	pty.Expect("Passphrase of ")
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^Max core file size +0 +0 `).Match(limits) {
		t.Errorf("serve asks for the passphrase and is not hardened:\n%s", limits)
	}
}
