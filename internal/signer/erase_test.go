// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/keyfile"
)

// put writes files of these names into a home.
func (h *Home) put(t *testing.T, content string, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := os.MkdirAll(filepath.Dir(h.path(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(h.path(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// names are those of all files and directories below dir.
func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && path != dir {
			name, _ := filepath.Rel(dir, path)
			list = append(list, name)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return list
}

func nothingFirst() error { return nil }

// All that the signer makes goes, in whatever state, and nothing else does.
func TestErase(t *testing.T) {
	t.Parallel()
	h := testHome(t)
	mine := []string{"state.json.damaged-1", ".state.json8129", "hosts.json", ".hosts.json1", "hosts.json.damaged-12", "removed.pub", "certificates.toml",
		"audit.jsonl", "audit-2026.jsonl", "audit.1.jsonl", "audit.lock", "control.sock", "control.sock.lock", "serve.lock", "lock",
		".new-77", "keys/.new-78", "keys/work~", "keys/deep/er", "rekey/ca", "rekey/key-default", "rekey.new/ca", ".link-key.pem5", ".removed.pub99"}
	h.put(t, "x", mine...)
	theirs := []string{"notes", "state.json.damaged-", "audited", "auditors.json", "ca.pub", ".state", "keys.bak/default"}
	h.put(t, "x", theirs...)
	elsewhere := filepath.Join(t.TempDir(), "id")
	for name, to := range map[string]string{"keys/link": elsewhere, "keys/gone": "../../nowhere"} {
		if err := os.Symlink(to, h.path(name)); err != nil {
			t.Fatal(err)
		}
	}
	os.WriteFile(elsewhere, []byte("x"), 0o600)
	short := filepath.Join(t.TempDir(), "vmux-signer-0011")
	other := filepath.Join(t.TempDir(), "other")
	for _, dir := range []string{short, other} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		os.WriteFile(filepath.Join(dir, controlName), nil, 0o600)
	}
	h.put(t, filepath.Join(short, controlName)+"\n", controlPathName)

	left, err := h.Erase(nothingFirst)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, name := range theirs {
		name, _, _ = strings.Cut(name, "/")
		want = append(want, h.path(name))
	}
	want = append(want, elsewhere, filepath.Join(filepath.Dir(h.dir), "nowhere"))
	slices.Sort(left)
	slices.Sort(want)
	if !slices.Equal(left, want) {
		t.Errorf("left: %q\nwant  %q", left, want)
	}
	have, wantNames := names(t, h.dir), append(slices.Clone(theirs), "keys.bak")
	slices.Sort(have)
	slices.Sort(wantNames)
	if !slices.Equal(have, wantNames) {
		t.Errorf("in the home: %q\nwant         %q", have, wantNames)
	}
	if _, err := os.Stat(elsewhere); err != nil {
		t.Errorf("what a link led to: %v", err)
	}
	if _, err := os.Lstat(short); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket's directory: %v", err)
	}
	if _, err := Open(h.dir, nil); !errors.Is(err, ErrNotHome) {
		t.Errorf("open: %v", err)
	}
	if _, err := OpenToErase(h.dir); !errors.Is(err, ErrNotHome) {
		t.Errorf("open to erase: %v", err)
	}

	// A recorded path that is not the signer's is left alone.
	h = testHome(t)
	h.put(t, filepath.Join(other, controlName)+"\n", controlPathName)
	if left, err := h.Erase(nothingFirst); err != nil || len(left) > 0 {
		t.Errorf("left %q, %v", left, err)
	}
	if _, err := os.Lstat(filepath.Join(other, controlName)); err != nil {
		t.Errorf("a path that is not the signer's: %v", err)
	}
	if _, err := os.Lstat(h.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the home: %v", err)
	}
	if _, err := Init(h.dir, "Again", nil); err != nil {
		t.Errorf("init: %v", err)
	}
}

// Killed after whichever step, the home is good for nothing but the end of the
// erasure, and the authority's key goes before anything else.
func TestEraseCutOff(t *testing.T) {
	t.Parallel()
	h := testHome(t)
	h.put(t, "x", "hosts.json", "removed.pub", "lock")
	if err := h.markErasing(); err != nil {
		t.Fatal(err)
	}
	for _, gone := range []string{"", caName, "keys/default", keysName, linkKeyName, "hosts.json", "lock"} {
		if gone != "" {
			if err := os.Remove(h.path(gone)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Open(h.dir, nil); !errors.Is(err, ErrErasing) {
			t.Errorf("without %s: open: %v", gone, err)
		}
		if _, err := Init(h.dir, "Again", nil); !errors.Is(err, ErrErasing) {
			t.Errorf("without %s: init: %v", gone, err)
		}
		// A command that had opened it before.
		if err := h.EnableKey(FirstKey, true); !errors.Is(err, ErrNotHome) {
			t.Errorf("without %s: enable: %v", gone, err)
		}
		if _, err := h.lockServing(); !errors.Is(err, ErrNotHome) {
			t.Errorf("without %s: serve: %v", gone, err)
		}
		again, err := OpenToErase(h.dir)
		if err != nil {
			t.Fatalf("without %s: %v", gone, err)
		}
		if again.Name() != "" {
			t.Errorf("the name %q", again.Name())
		}
	}
	again, err := OpenToErase(h.dir)
	if err != nil {
		t.Fatal(err)
	}
	if left, err := again.Erase(nothingFirst); err != nil || len(left) > 0 {
		t.Errorf("left %q: %v", left, err)
	}
	if have := names(t, filepath.Dir(h.dir)); len(have) > 0 {
		t.Errorf("left: %q", have)
	}

	// What cannot be removed keeps the mark, and all that can be is gone.
	h = testHome(t)
	h.put(t, "x", "hosts.json/in/the/way")
	if _, err := h.Erase(nothingFirst); !errors.Is(err, ErrErasing) || !strings.Contains(err.Error(), "hosts.json") {
		t.Errorf("with a directory in the way: %v", err)
	}
	for _, name := range []string{caName, keysName, linkKeyName, stateName} {
		if _, err := os.Lstat(h.path(name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Open(h.dir, nil); !errors.Is(err, ErrErasing) {
		t.Errorf("open: %v", err)
	}
	os.RemoveAll(h.path("hosts.json"))
	if left, err := h.Erase(nothingFirst); err != nil || len(left) > 0 {
		t.Errorf("the second time: %q, %v", left, err)
	}
}

// Killed at any step, the home was not touched or can only be erased; no key is there
// behind the first step that a signer would use; and in the end all is gone.
func TestEraseKilled(t *testing.T) {
	t.Parallel()
	if dir := os.Getenv("VMUX_TEST_HOME"); dir != "" { // the process that dies
		h, err := OpenToErase(dir)
		if err != nil {
			t.Fatal(err)
		}
		left, err := strconv.Atoi(os.Getenv(killAt))
		if err != nil {
			t.Fatal(err)
		}
		h.kill = func() {
			if left--; left == 0 {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
			}
		}
		if _, err := h.Erase(nothingFirst); err != nil {
			t.Fatal(err)
		}
		return
	}
	original := protectedHome(t)
	original.put(t, "x", "hosts.json", "removed.pub", "serve.lock", "lock")
	all := files(t, original)
	first := map[string]int{} // the step at which it was gone
	for at := 1; ; at++ {
		if at > 100 {
			t.Fatal("it never ends")
		}
		h := copyHome(t, all)
		c := exec.Command(os.Args[0], "-test.run=^TestEraseKilled$")
		c.Env = append(os.Environ(), "VMUX_TEST_HOME="+h.dir, killAt+"="+strconv.Itoa(at))
		out, err := c.CombinedOutput()
		if err == nil {
			if at < 8 {
				t.Errorf("only %d steps", at-1)
			}
			if _, err := os.Lstat(h.dir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("in the end: %v", err)
			}
			break
		}
		if c.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("step %d: %v\n%s", at, err, out)
		}
		if _, err := Open(h.dir, nil); !errors.Is(err, ErrErasing) && !(errors.Is(err, ErrNotHome) && len(files(t, h)) == 0) {
			t.Errorf("step %d: open: %v", at, err)
		}
		for _, name := range []string{caName, keysName, linkKeyName, hostsName, serveLockName} {
			if _, err := os.Lstat(h.path(name)); errors.Is(err, fs.ErrNotExist) && first[name] == 0 {
				first[name] = at
			}
		}
		if again, err := OpenToErase(h.dir); err == nil {
			if left, err := again.Erase(nothingFirst); err != nil || len(left) > 0 {
				t.Errorf("step %d: again: %q, %v", at, left, err)
			}
			if _, err := os.Lstat(h.dir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("step %d: again: %v", at, err)
			}
		} else if have := names(t, h.dir); len(have) > 0 || !errors.Is(err, ErrNotHome) { // all but the directory
			t.Errorf("step %d: %v, with %q", at, err, have)
		}
	}
	if first[caName] < 2 || first[keysName] <= first[caName] || first[hostsName] <= first[keysName] || first[hostsName] <= first[linkKeyName] || first[serveLockName] <= first[hostsName] {
		t.Errorf("the order: %v", first)
	}
}

// Keys go before all else, locks last.
func TestEraseOrder(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]int{caName: 0, keysName: 0, rekeyName: 0, rekeyingName: 0, linkKeyName: 0, ".ca123": 0, ".new-1": 0,
		hostsName: 1, removedName: 1, "audit.jsonl": 1, "audit-000007.jsonl": 1, "audit.new": 1, lockName: 2, serveLockName: 2, erasingName: 3} {
		if got, ok := eraseStep(name); got != want || !ok {
			t.Errorf("%s: step %d, %v", name, got, ok)
		}
	}
}

// Nothing is erased when the list of what is to be revoked has no reader, nor
// under a process that serves.
func TestEraseRefused(t *testing.T) {
	t.Parallel()
	h := testHome(t)
	if _, err := h.Update(func(*State) error { return nil }); err != nil { // makes the lock
		t.Fatal(err)
	}
	release, err := h.lockServing()
	if err != nil {
		t.Fatal(err)
	}
	before := names(t, h.dir)
	if _, err := OpenToErase(h.dir); !errors.Is(err, ErrServing) {
		t.Errorf("open: %v", err)
	}
	if _, err := h.Erase(func() error { t.Error("began"); return nil }); !errors.Is(err, ErrServing) {
		t.Errorf("erase: %v", err)
	}
	release()
	unwritable := errors.New("no room")
	if _, err := h.Erase(func() error { return unwritable }); !errors.Is(err, unwritable) {
		t.Errorf("erase: %v", err)
	}
	if after := names(t, h.dir); !slices.Equal(before, after) {
		t.Errorf("%q, then %q", before, after)
	}
	if _, err := Open(h.dir, nil); err != nil {
		t.Error(err)
	}
}

// What can be said of the keys is said, whatever is wrong with others.
func TestPublicKeys(t *testing.T) {
	t.Parallel()
	h := testHome(t)
	work, err := h.AddKey("work", keyfile.Ed25519, nil)
	if err != nil {
		t.Fatal(err)
	}
	gone, err := h.AddKey("gone", keyfile.ECDSA, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.RemoveKey("gone"); err != nil {
		t.Fatal(err)
	}
	list := func() string {
		var b strings.Builder
		keys, unknown := h.PublicKeys()
		for _, k := range keys {
			b.WriteString(k.Label)
			if k.CA {
				b.WriteString("CA")
			}
			if k.Removed {
				b.WriteString("(removed)")
			}
			b.WriteString(" ")
		}
		for _, e := range unknown {
			b.WriteString("?" + e.Label)
			if e.CA {
				b.WriteString("CA")
			}
			b.WriteString(" ")
		}
		return b.String()
	}
	if got := list(); got != "CA default work gone(removed) " {
		t.Errorf("keys: %s", got)
	}
	keys, _ := h.PublicKeys()
	if ca, err := h.CA(); err != nil || ssh.FingerprintSHA256(keys[0].Public) != ssh.FingerprintSHA256(ca) ||
		string(keys[2].Public.Marshal()) != string(work.Public.Marshal()) || string(keys[3].Public.Marshal()) != string(gone.Public.Marshal()) {
		t.Errorf("keys: %v", keys)
	}

	// A key that others can read is the first to be revoked; it is not used.
	if err := os.Chmod(h.keyPath("work"), 0o644); err != nil {
		t.Fatal(err)
	}
	all, err := h.Keys()
	if err != nil || all[1].Err == nil {
		t.Errorf("keys: %v, %v", all, err)
	}
	if got := list(); got != "CA default work gone(removed) " {
		t.Errorf("with an open key: %s", got)
	}
	if err := h.RemoveKey("work"); err != nil {
		t.Errorf("removing an open key: %v", err)
	}

	// The same key again is not another one, whatever its label.
	text, err := os.ReadFile(h.keyPath(FirstKey))
	if err != nil {
		t.Fatal(err)
	}
	for _, label := range []string{"copy", "junk"} {
		h.put(t, string(text), "keys/"+label)
	}
	for _, label := range []string{"copy", FirstKey} {
		if err := h.RemoveKey(label); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(h.path(removedName))
	if err != nil || strings.Count(string(b), "\n") != 3 {
		t.Errorf("removed.pub: %v\n%s", err, b)
	}
	if got := list(); got != "CA junk gone(removed) work(removed) " {
		t.Errorf("keys: %s", got)
	}

	// Damage, each by itself.
	h.put(t, "no key", "keys/junk")
	h.put(t, "\n"+string(b)+"ssh-rsa AAAA x\nssh-ed25519 "+strings.Fields(string(b))[1]+" x\n"+strings.Fields(string(b))[0]+" "+strings.Fields(string(b))[1]+" ../x\ncut", removedName)
	if got := list(); got != "CA gone(removed) work(removed) copy(removed) ?junk ? ? ? ? ? " {
		t.Errorf("with damage: %s", got)
	}
	warned := ""
	h.warn = func(s string) { warned = s }
	if err := h.RemoveKey("junk"); err != nil || !strings.Contains(warned, "will not name the key junk") {
		t.Errorf("removing a damaged key: %v, %q", err, warned)
	}
	if _, err := h.AddKey("more", keyfile.Ed25519, nil); err != nil {
		t.Fatal(err)
	}
	if err := h.RemoveKey("more"); err != nil {
		t.Fatal(err)
	}
	if got := list(); got != "CA gone(removed) work(removed) copy(removed) more(removed) ? ? ? ? ? " {
		t.Errorf("behind damage: %s", got)
	}

	// There is an end to it, before the key is gone.
	h.put(t, strings.Repeat("x\n", maxRemoved/2), removedName)
	if _, err := h.AddKey("last", keyfile.Ed25519, nil); err != nil {
		t.Fatal(err)
	}
	if err := h.RemoveKey("last"); !errors.Is(err, ErrManyRemoved) {
		t.Errorf("a full removed.pub: %v", err)
	}
	if _, err := os.Stat(h.keyPath("last")); err != nil {
		t.Error(err)
	}
	os.Remove(h.path(caName))
	h.put(t, strings.Repeat("x", maxRemoved+1), removedName)
	if got := list(); got != "last ?CA ? " {
		t.Errorf("with too much: %s", got)
	}
}
