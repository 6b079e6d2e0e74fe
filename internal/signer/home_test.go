// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/keyfile"

	"vmux.app/toolkit/internal/transport"
)

// testHome makes a home. Its path is short enough for a socket.
func testHome(t *testing.T) *Home {
	t.Helper()
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h, err := Init(filepath.Join(dir, "h"), "Pocket", nil)
	if err != nil {
		t.Fatal(err)
	}
	h.warn = func(s string) { t.Errorf("unexpected warning: %s", s) }
	return h
}

func TestInit(t *testing.T) {
	t.Parallel()
	h := testHome(t)
	for name, want := range map[string]fs.FileMode{
		".": 0o700, caName: 0o600, linkKeyName: 0o600, stateName: 0o600, keysName: 0o700, "keys/default": 0o600,
	} {
		fi, err := os.Stat(h.path(name))
		if err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want mode %o", name, fi, err, want)
		}
	}
	if _, err := Init(h.dir, "Pocket", nil); !errors.Is(err, ErrHomeExists) {
		t.Errorf("second init: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(h.dir), ".vmux*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}

	dir := t.TempDir()
	if _, err := Init(dir, "Pocket", nil); err != nil {
		t.Errorf("init in an empty directory: %v", err)
	}
	dir = t.TempDir()
	os.WriteFile(filepath.Join(dir, "f"), nil, 0o600)
	if _, err := Init(dir, "Pocket", nil); !errors.Is(err, ErrDirNotEmpty) {
		t.Errorf("init in a full directory: %v", err)
	}
	for _, name := range []string{"", " x", "a\nb", "\x1b[2J", strings.Repeat("x", 64), "\xff"} {
		if _, err := Init(filepath.Join(dir, "n"), name, nil); !errors.Is(err, ErrName) {
			t.Errorf("name %q: %v", name, err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	if _, err := Open(t.TempDir(), nil); !errors.Is(err, ErrNotHome) {
		t.Errorf("empty directory: %v", err)
	}
	if _, err := Open("/dev/null", nil); !errors.Is(err, ErrNotHome) {
		t.Errorf("no directory: %v", err)
	}
	h := testHome(t)
	if err := os.Chmod(h.dir, 0o750); err != nil {
		t.Fatal(err)
	}
	var open *PermissionError
	if _, err := Open(h.dir, nil); !errors.As(err, &open) || open.Mode != 0o750 {
		t.Errorf("open home: %v", err)
	}
}

func TestLabels(t *testing.T) {
	t.Parallel()
	for _, l := range []string{"a", "work", "A.b_c-9", strings.Repeat("x", 64)} {
		if err := CheckLabel(l); err != nil {
			t.Errorf("%q: %v", l, err)
		}
	}
	for _, l := range []string{"", ".", "..", ".hidden", "-rf", "a/b", "a b", "ä", "a\n", strings.Repeat("x", 65)} {
		if err := CheckLabel(l); !errors.Is(err, ErrLabel) {
			t.Errorf("%q: %v", l, err)
		}
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	h := testHome(t)
	if _, err := h.AddKey("work", keyfile.Ed25519, nil); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		label string
		typ   keyfile.Type
		want  error
	}{{"work", keyfile.ECDSA, ErrKeyExists}, {"../x", keyfile.ECDSA, ErrLabel}, {"rsa", "rsa", keyfile.ErrType}} {
		if _, err := h.AddKey(c.label, c.typ, nil); !errors.Is(err, c.want) {
			t.Errorf("add %s %s: %v", c.label, c.typ, err)
		}
	}
	states := func() string {
		keys, err := h.Keys()
		if err != nil {
			t.Fatal(err)
		}
		var s []string
		for _, k := range keys {
			v := k.Label + ":off"
			if k.Enabled {
				v = k.Label + ":on"
			}
			if k.Err != nil {
				v += ":bad"
			}
			s = append(s, v)
		}
		return strings.Join(s, " ")
	}
	check := func(want string) {
		t.Helper()
		if got := states(); got != want {
			t.Errorf("keys %q, want %q", got, want)
		}
	}
	check("default:on work:on")
	if err := h.EnableKey("work", false); err != nil {
		t.Error(err)
	}
	check("default:on work:off")
	if err := h.EnableKey("work", true); err != nil {
		t.Error(err)
	}
	if err := h.EnableKey("none", true); !errors.Is(err, ErrNoKey) {
		t.Error(err)
	}
	if err := h.RemoveKey("none"); !errors.Is(err, ErrNoKey) {
		t.Error(err)
	}
	if err := h.RemoveKey("work"); err != nil {
		t.Error(err)
	}
	check("default:on")

	// A file that no command made is disabled, and one that cannot be used says so.
	other := testHome(t)
	b, _ := os.ReadFile(other.keyPath(FirstKey))
	os.WriteFile(h.keyPath("copied"), b, 0o600)
	os.WriteFile(h.keyPath("loose"), b, 0o600)
	os.Chmod(h.keyPath("loose"), 0o644)
	os.WriteFile(h.keyPath("junk"), []byte("junk"), 0o600)
	os.WriteFile(h.keyPath("x~"), []byte("junk"), 0o600)
	check("copied:off default:on junk:off:bad loose:off:bad")
}

// TestKeyFiles has the real ssh-keygen read the files.
func TestKeyFiles(t *testing.T) {
	t.Parallel()
	keygen, err := exec.LookPath("ssh-keygen")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	h := testHome(t)
	if _, err := h.AddKey("work", keyfile.Ed25519, nil); err != nil {
		t.Fatal(err)
	}
	keys, err := h.Keys()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		out, err := exec.Command(keygen, "-y", "-f", h.keyPath(k.Label)).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v: %s", k.Label, err, out)
			continue
		}
		want := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k.Public))) + " " + k.Label
		if got := strings.TrimSpace(string(out)); got != want {
			t.Errorf("ssh-keygen -y: %q, want %q", got, want)
		}
		out, err = exec.Command(keygen, "-l", "-f", h.keyPath(k.Label)).CombinedOutput()
		if err != nil || !strings.Contains(string(out), ssh.FingerprintSHA256(k.Public)+" "+k.Label) {
			t.Errorf("ssh-keygen -l: %v: %s", err, out)
		}
	}
	ca, err := h.CA()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(keygen, "-y", "-f", h.path(caName)).CombinedOutput()
	if want := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(ca))); err != nil || !strings.HasPrefix(string(out), want) {
		t.Errorf("CA: %v: %s", err, out)
	}
	// One that ssh-keygen has encrypted opens with that passphrase.
	if out, err := exec.Command(keygen, "-p", "-N", "secret", "-f", h.keyPath("work")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f, err := h.readKey(h.keyPath("work"))
	if err != nil || !f.Encrypted {
		t.Fatalf("encrypted key: %v", err)
	}
	if _, err := f.Open([]byte("wrong")); !errors.Is(err, ErrPassphrase) {
		t.Errorf("wrong passphrase: %v", err)
	}
	if k, err := f.Open([]byte("secret")); err != nil || !bytes.Equal(k.PublicKey().Marshal(), f.Public.Marshal()) {
		t.Errorf("right passphrase: %v", err)
	}
}

func TestDamagedState(t *testing.T) {
	t.Parallel()
	pin := strings.Repeat("A", 43)
	for name, content := range map[string]string{
		"empty":     "",
		"cut":       `{"version":1,"name":"Poc`,
		"unknown":   `{"version":1,"name":"P","keys":{},"devices":[],"x":1}`,
		"case":      `{"version":1,"Name":"P","keys":{},"devices":[]}`,
		"twice":     `{"version":1,"name":"P","name":"Q","keys":{},"devices":[]}`,
		"trailing":  `{"version":1,"name":"P","keys":{},"devices":[]}x`,
		"old":       `{"version":0,"name":"P","keys":{},"devices":[]}`,
		"name":      `{"version":1,"name":"P\u001b","keys":{},"devices":[]}`,
		"label":     `{"version":1,"name":"P","keys":{"../x":{"enabled":true}},"devices":[]}`,
		"pin":       `{"version":1,"name":"P","keys":{},"devices":[{"name":"d","pin":"x","pairedAt":"2026-01-01T00:00:00Z"}]}`,
		"two names": `{"version":1,"name":"P","keys":{},"devices":[{"name":"d","pin":"SHA256:` + pin + `","pairedAt":"2026-01-01T00:00:00Z"},{"name":"d","pin":"SHA256:` + pin + `","pairedAt":"2026-01-01T00:00:00Z"}]}`,
		"large":     strings.Repeat(" ", maxState+1),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := testHome(t)
			var said []string
			h.warn = func(s string) { said = append(said, s) }
			for n := 1; n <= 2; n++ {
				if err := os.WriteFile(h.path(stateName), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
				keys, err := h.Keys()
				if err != nil {
					t.Fatal(err)
				}
				if len(keys) != 1 || keys[0].Enabled {
					t.Errorf("keys after damage: %+v", keys)
				}
				aside, err := os.ReadFile(h.path(stateName) + ".damaged-" + string(rune('0'+n)))
				if err != nil || string(aside) != content {
					t.Errorf("set aside: %v", err)
				}
				if len(said) != n || !strings.Contains(said[n-1], ".damaged-") {
					t.Errorf("said %q", said)
				}
			}
			if _, err := h.Read(); err != nil || len(said) != 2 {
				t.Errorf("second reading: %v, %q", err, said)
			}
		})
	}
	t.Run("missing", func(t *testing.T) {
		t.Parallel()
		h := testHome(t)
		said := 0
		h.warn = func(string) { said++ }
		os.Remove(h.path(stateName))
		if _, err := h.Read(); err != nil || said != 1 {
			t.Errorf("%v, said %d", err, said)
		}
	})
	t.Run("newer", func(t *testing.T) {
		t.Parallel()
		h := testHome(t)
		content := `{"version":3,"more":[]}`
		os.WriteFile(h.path(stateName), []byte(content), 0o600)
		if _, err := h.Read(); !errors.Is(err, ErrStateVersion) {
			t.Errorf("newer version: %v", err)
		}
		if b, _ := os.ReadFile(h.path(stateName)); string(b) != content {
			t.Errorf("newer state was changed: %s", b)
		}
	})
}

func TestDevices(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	s := &State{Version: stateVersion, Name: "P"}
	add := func(name string, pin byte) string {
		t.Helper()
		d, err := s.addDevice(name, transport.Pin{pin}, now)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.check(); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		return d.Name
	}
	long := strings.Repeat("ä", 31) // 62 bytes
	for _, c := range []struct {
		name string
		pin  byte
		want string
	}{
		{"laptop", 1, "laptop"}, {"laptop", 2, "laptop-2"}, {"laptop", 3, "laptop-3"},
		{"laptop", 2, "laptop-2"}, // known pin: the same row
		{"desk", 1, "desk"},       // renamed
		{"laptop", 4, "laptop"},   // free again
		{"\x1b[2J", 5, "[2J"}, {"\n", 6, "unnamed"}, {"desk\U000e0100", 9, "desk-2"},
		{long, 7, long}, {long, 8, strings.Repeat("ä", 30) + "-2"},
	} {
		if got := add(c.name, c.pin); got != c.want {
			t.Errorf("%q of pin %d is called %q, want %q", c.name, c.pin, got, c.want)
		}
	}
	if len(s.Devices) != 9 {
		t.Errorf("%d devices", len(s.Devices))
	}
	for i := range 60 {
		if _, err := s.addDevice("x", transport.Pin{100, byte(i)}, now); err != nil {
			if !errors.Is(err, ErrManyDevices) || len(s.Devices) != MaxDevices {
				t.Errorf("%d devices: %v", len(s.Devices), err)
			}
			return
		}
	}
	t.Error("no bound on devices")
}

func TestForget(t *testing.T) {
	t.Parallel()
	h := testHome(t)
	pins := []transport.Pin{{1}, {2}}
	_, err := h.Update(func(s *State) error {
		_, err := s.addDevice("a", pins[0], time.Now())
		_, err2 := s.addDevice("b", pins[1], time.Now())
		return errors.Join(err, err2)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Forget("c"); !errors.Is(err, ErrNoDevice) {
		t.Error(err)
	}
	if d, err := h.Forget("a"); err != nil || d.Name != "a" {
		t.Error(d, err)
	}
	// A pin is one device's, whatever another one calls itself.
	_, err = h.Update(func(s *State) error {
		_, err := s.addDevice(pins[1].String(), transport.Pin{3}, time.Now())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if d, err := h.Forget(pins[1].String()); err != nil || d.Name != "b" {
		t.Error(d, err)
	}
}

// TestConcurrentUpdates loses no change.
func TestConcurrentUpdates(t *testing.T) {
	t.Parallel()
	h := testHome(t)
	var all sync.WaitGroup
	labels := []string{"a", "b", "c", "d", "e", "f"}
	for _, l := range labels {
		all.Go(func() {
			other, err := Open(h.dir, nil)
			if err == nil {
				_, err = other.AddKey(l, keyfile.Ed25519, nil)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	s, err := h.Read()
	if err != nil || len(s.Keys) != len(labels)+1 {
		t.Errorf("%v: %v", err, s.Keys)
	}
}

func TestServeLock(t *testing.T) {
	t.Parallel()
	h := testHome(t)
	release, err := h.lockServing()
	if err != nil {
		t.Fatal(err)
	}
	if err := Serve(t.Context(), h, Options{Approver: Always{}}); !errors.Is(err, ErrServing) {
		t.Errorf("second serve: %v", err)
	}
	release()
	if release, err = h.lockServing(); err != nil {
		t.Fatal(err)
	}
	release()
}

func TestShown(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in   string
		most int
		want string
	}{
		{"abc", 10, "abc"},
		{"a\x1b[2Jb\n", 99, `a\x1b[2Jb\x0a`},
		{"abcdefghijkl", 11, "abcd … ijkl"},
	} {
		if got := shown(c.in, c.most); got != c.want {
			t.Errorf("shown(%q) = %q, want %q", c.in, got, c.want)
		}
	}
	if got := some(slices.Repeat([]string{"x"}, 5)); got != "x, x and 3 more" {
		t.Error(got)
	}
}
