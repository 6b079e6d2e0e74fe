// SPDX-License-Identifier: BSD-3-Clause

package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// Whatever state there is, looking at it leaves it as it is.
func TestInspect(t *testing.T) {
	t.Parallel()
	good := `{"version":1,"phones":[{"name":"P","pin":"` + pinA + `","pairedAt":"2026-03-04T05:06:07Z","cachedKeys":[]}]}`
	for _, tt := range []struct {
		name, content string
		mode          fs.FileMode
		as            func(error) bool
		phones        int
	}{
		{"good", good, 0o600, func(err error) bool { return err == nil }, 1},
		{"readable", good, 0o644, isMode(0o644), 0},
		{"writable", good, 0o622, isMode(0o622), 0},
		{"damaged", "{", 0o600, func(err error) bool {
			d, ok := errors.AsType[*DamagedError](err)
			return ok && d.SetAside == ""
		}, 0},
		{"newer", `{"version":99}`, 0o600, func(err error) bool { _, ok := errors.AsType[*NewerError](err); return ok }, 0},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "agent.json")
		write(t, path, tt.content, 0o600)
		if err := os.Chmod(path, tt.mode); err != nil {
			t.Fatal(err)
		}
		s, err := New(path, nil).Inspect()
		if !tt.as(err) || len(s.Phones) != tt.phones {
			t.Errorf("%s: %+v, %v", tt.name, s, err)
		}
		b, rerr := os.ReadFile(path)
		fi, serr := os.Stat(path)
		files, _ := os.ReadDir(dir)
		if rerr != nil || serr != nil || string(b) != tt.content || fi.Mode().Perm() != tt.mode || len(files) != 1 {
			t.Errorf("%s was changed: %v, %v, %q", tt.name, fi, files, b)
		}
	}
	if s, err := New(filepath.Join(t.TempDir(), "none", "agent.json"), nil).Inspect(); err != nil || len(s.Phones) > 0 {
		t.Errorf("no state: %+v, %v", s, err)
	}
}

func isMode(mode fs.FileMode) func(error) bool {
	return func(err error) bool {
		m, ok := errors.AsType[*ModeError](err)
		return ok && m.Mode == mode
	}
}

func TestInspectLinkKey(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "device-key.pem")
	if _, err := InspectLinkKey(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no key: %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("one was made")
	}
	made, err := LinkKey(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := InspectLinkKey(path); err != nil || !got.Equal(made) {
		t.Errorf("%v", err)
	}
}

func TestTrusted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "vmux.toml")
	if err := Trusted(path); err != nil {
		t.Errorf("no file: %v", err)
	}
	if err := Trusted(filepath.Join(dir, "none", "vmux.toml")); err != nil {
		t.Errorf("no directory: %v", err)
	}
	write(t, path, "", 0o600)
	for mode, good := range map[fs.FileMode]bool{0o600: true, 0o644: true, 0o620: false, 0o602: false} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if err := Trusted(path); (err == nil) != good || err != nil && !isMode(mode)(err) {
			t.Errorf("%o: %v", mode, err)
		}
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := Trusted(path); err == nil || !isMode(0o777)(err) {
		t.Errorf("directory: %v", err)
	}
}
