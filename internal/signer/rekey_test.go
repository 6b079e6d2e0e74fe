// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"vmux.app/toolkit/internal/keyfile"
)

// killAt has TestRekeyKilled change the passphrase of a home and die there.
const killAt = "VMUX_TEST_KILL_AT"

// files is what a home has, but for locks.
func files(t *testing.T, h *Home) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(h.dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || strings.HasSuffix(path, "lock") {
			return err
		}
		b, err := os.ReadFile(path)
		all[strings.TrimPrefix(path, h.dir)] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// encrypted says of which files the key is encrypted, in the order of labels and
// the authority's last.
func encrypted(t *testing.T, h *Home) (all []bool) {
	t.Helper()
	keys, err := h.Keys()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if k.Err != nil {
			t.Errorf("%s: %v", k.Label, k.Err)
		}
		all = append(all, k.Encrypted())
	}
	ca, err := h.Protected()
	if err != nil {
		t.Fatal(err)
	}
	return append(all, ca)
}

// Killed at any step, a change of the passphrase is done or not, for all keys.
func TestRekeyKilled(t *testing.T) {
	t.Parallel()
	if dir := os.Getenv("VMUX_TEST_HOME"); dir != "" { // the process that dies
		h, err := Open(dir, nil)
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
		if err := h.ChangePassphrase(right(), nil); err != nil {
			t.Fatal(err)
		}
		return
	}
	original := protectedHome(t)
	blank := files(t, original)
	public := func(h *Home) (all []string) {
		keys, err := h.Keys()
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range keys {
			all = append(all, shortOf(k))
		}
		return all
	}
	keys := public(original)
	seen := map[bool]int{}
	for at := 1; ; at++ {
		if at > 100 {
			t.Fatal("it never ends")
		}
		h := copyHome(t, blank)
		c := exec.Command(os.Args[0], "-test.run=^TestRekeyKilled$")
		c.Env = append(os.Environ(), "VMUX_TEST_HOME="+h.dir, killAt+"="+strconv.Itoa(at))
		out, err := c.CombinedOutput()
		if err == nil {
			if at < 8 {
				t.Errorf("only %d steps", at-1)
			}
			break
		}
		if c.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("step %d: %v\n%s", at, err, out)
		}
		h, err = Open(h.dir, func(s string) { t.Errorf("step %d: %s", at, s) })
		if err != nil {
			t.Errorf("step %d: %v", at, err)
			continue
		}
		is := encrypted(t, h)
		if len(is) != 3 || slices.Contains(is, !is[0]) {
			t.Errorf("step %d: encrypted are %v", at, is)
		}
		if got := public(h); !slices.Equal(got, keys) {
			t.Errorf("step %d: other keys: %q", at, got)
		}
		seen[is[0]]++
		was, next := right(), []byte(nil)
		if !is[0] {
			was, next = next, was
		}
		if _, err := h.AddKey("more", keyfile.Ed25519, was); err != nil {
			t.Errorf("step %d: a key beside the others: %v", at, err)
		}
		if at%3 == 0 { // it takes its time
			if err := h.ChangePassphrase(was, next); err != nil {
				t.Errorf("step %d: changed after it: %v", at, err)
			}
			if again := encrypted(t, h); len(again) != 4 || slices.Contains(again, is[0]) {
				t.Errorf("step %d: encrypted are %v after the next change", at, again)
			}
			for name := range files(t, h) {
				if strings.HasPrefix(name, "/"+rekeyName) {
					t.Errorf("step %d: %s is left", at, name)
				}
			}
		}
	}
	if seen[true] < 3 || seen[false] < 4 {
		t.Errorf("unchanged and changed: %v", seen)
	}
}

func shortOf(k Key) string { return k.Label + " " + fingerprint(k.Public) }

// copyHome makes a home of files.
func copyHome(t *testing.T, all map[string]string) *Home {
	t.Helper()
	h := testHome(t)
	if err := os.RemoveAll(h.dir); err != nil {
		t.Fatal(err)
	}
	for name, content := range all {
		if err := os.MkdirAll(filepath.Dir(h.dir+name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(h.dir+name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// cutOff is a home whose passphrase was changed to none but for putting the files
// in place.
func cutOff(t *testing.T) *Home {
	t.Helper()
	h := protectedHome(t)
	plain := copyHome(t, files(t, h))
	if err := plain.ChangePassphrase(right(), nil); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(h.path(rekeyName), 0o700); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{caName: caName, "keys/default": "key-default", "keys/work": "key-work"} {
		if err := os.Rename(plain.path(from), filepath.Join(h.path(rekeyName), to)); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func TestRekeyFinished(t *testing.T) {
	t.Parallel()
	// A key that was removed meanwhile stays removed, and what is not of a change is
	// not put anywhere.
	h := cutOff(t)
	for _, name := range []string{"key-../ca", "key-.hidden", "other", "state.json"} {
		os.WriteFile(filepath.Join(h.path(rekeyName), name), []byte("x"), 0o600)
	}
	if err := os.Remove(h.keyPath("work")); err != nil {
		t.Fatal(err)
	}
	state := files(t, h)["/"+stateName]
	if _, err := Open(h.dir, nil); err != nil {
		t.Fatal(err)
	}
	if got := encrypted(t, h); !slices.Equal(got, []bool{false, false}) {
		t.Errorf("encrypted are %v", got)
	}
	now := files(t, h)
	if _, err := os.Stat(h.path(rekeyName)); err == nil || now["/"+stateName] != state {
		t.Errorf("left: %q", slices.Sorted(maps.Keys(now)))
	}

	// Commands that opened the home before finish it, too, before they look at a
	// passphrase.
	h = cutOff(t)
	if _, err := h.AddKey("more", keyfile.Ed25519, right()); !errors.Is(err, ErrNotProtected) {
		t.Errorf("a key under the old passphrase: %v", err)
	}
	h = cutOff(t)
	if err := h.ChangePassphrase(right(), []byte("x")); !errors.Is(err, ErrNotProtected) {
		t.Errorf("changed by the old passphrase: %v", err)
	}
	if got := encrypted(t, h); slices.Contains(got, true) {
		t.Errorf("encrypted are %v", got)
	}

	// What cannot be read replaces nothing.
	h = cutOff(t)
	if err := os.WriteFile(filepath.Join(h.path(rekeyName), caName), []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := files(t, h)
	if _, err := Open(h.dir, nil); !errors.Is(err, keyfile.ErrDamaged) {
		t.Errorf("damaged: %v", err)
	}
	if !maps.Equal(before, files(t, h)) {
		t.Error("something has changed")
	}
}

func TestChangePassphrase(t *testing.T) {
	t.Parallel()
	h := protectedHome(t)
	var said []string
	h.warn = func(s string) { said = append(said, s) }
	before := files(t, h)
	same := func(what string) {
		t.Helper()
		if !maps.Equal(before, files(t, h)) {
			t.Errorf("%s: something has changed", what)
		}
	}
	for _, c := range []struct {
		old  []byte
		want error
	}{{wrong(), ErrPassphrase}, {nil, ErrProtected}, {slices.Repeat([]byte("x"), 5000), ErrPassphrase}} {
		wants(t, string(c.old), h.ChangePassphrase(c.old, []byte("new")), c.want)
		same(string(c.old))
	}
	wants(t, "too long", h.ChangePassphrase(right(), slices.Repeat([]byte("x"), keyfile.MaxPassphrase+1)), keyfile.ErrTooLong)
	same("too long")

	// One that has another passphrase: all or none.
	text, err := keyfile.New(keyfile.Ed25519, "foreign", []byte("elsewhere"))
	if err != nil {
		t.Fatal(err)
	}
	write := func(label, text string) {
		t.Helper()
		if err := os.WriteFile(h.keyPath(label), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("foreign", string(text))
	before = files(t, h)
	var foreign *ForeignKeyError
	if err := h.ChangePassphrase(right(), nil); !errors.As(err, &foreign) || foreign.Label != "foreign" || foreign.Path != h.keyPath("foreign") || errors.Is(err, ErrPassphrase) {
		t.Errorf("with a foreign key: %v", err)
	}
	same("with a foreign key")
	if len(said) > 0 {
		t.Errorf("said: %q", said)
	}

	// A damaged one stays as it is and is said; a plain one gets the passphrase.
	write("foreign", "junk")
	plain, err := keyfile.New(keyfile.Ed25519, "plain", nil)
	if err != nil {
		t.Fatal(err)
	}
	write("plain", string(plain))
	if err := h.ChangePassphrase(right(), []byte("new")); err != nil {
		t.Fatal(err)
	}
	if len(said) != 1 || !strings.Contains(said[0], "foreign") || files(t, h)["/keys/foreign"] != "junk" {
		t.Errorf("said: %q", said)
	}
	keys, err := h.Keys()
	if err != nil || len(keys) != 4 {
		t.Fatalf("%v, %v", keys, err)
	}
	for _, k := range keys {
		if k.Label == "foreign" {
			continue
		}
		if !k.Encrypted() {
			t.Errorf("%s is not encrypted", k.Label)
		}
	}
	k, err := keys[2].file.Open([]byte("new")) // the plain one's
	if err != nil || keys[2].Label != "plain" || k.PublicKey() == nil {
		t.Errorf("%s: %v", keys[2].Label, err)
	}
	wants(t, "the old one", h.CheckPassphrase(right()), ErrPassphrase)
	wants(t, "the new one", h.CheckPassphrase([]byte("new")), nil)
}

// A state of an earlier vmux-signer is read, and written as one of this.
func TestStateVersion1(t *testing.T) {
	t.Parallel()
	h := pairedHome(t)
	text := files(t, h)["/"+stateName]
	old := strings.Replace(text, `"version": 2`, `"version": 1`, 1)
	if old == text {
		t.Fatalf("no version 2: %s", text)
	}
	if err := os.WriteFile(h.path(stateName), []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	st, err := h.Read()
	if err != nil || len(st.Devices) != 1 || len(st.Keys) != 2 || st.Failures != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	if files(t, h)["/"+stateName] != old {
		t.Error("reading has changed it")
	}
	if _, err := h.Update(func(s *State) error { s.Failures = 3; return nil }); err != nil {
		t.Fatal(err)
	}
	if now := files(t, h)["/"+stateName]; !strings.Contains(now, `"version": 2`) || !strings.Contains(now, `"failures": 3`) {
		t.Errorf("written: %s", now)
	}
	for _, bad := range []string{`"version": 0`, `"version": 3`, `"version": -1`} {
		if err := os.WriteFile(h.path(stateName), []byte(strings.Replace(text, `"version": 2`, bad, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := h.readState(); err == nil {
			t.Errorf("%s is read", bad)
		}
	}
	if err := os.WriteFile(h.path(stateName), []byte(strings.Replace(text, `"version": 2,`, `"version": 2, "failures": -1,`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h.readState(); err == nil {
		t.Error("-1 failures are read")
	}
}
