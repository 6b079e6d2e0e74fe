// SPDX-License-Identifier: BSD-3-Clause

package unixsock

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestInspect(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	path := filepath.Join(dir, "s")
	if err := Inspect(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no socket: %v", err)
	}
	if _, err := InspectLock(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no lock: %v", err)
	}
	if _, err := Server(path); err == nil {
		t.Error("nobody serves")
	}
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := Inspect(path); err != nil {
		t.Errorf("as it should be: %v", err)
	}
	if lock, err := InspectLock(path); err != nil || lock != (Lock{path + ".lock", os.Getpid(), true}) {
		t.Errorf("held: %+v, %v", lock, err)
	}
	if pid, err := Server(path); err != nil || pid != os.Getpid() {
		t.Errorf("server: %d, %v", pid, err)
	}
	if _, err := Listen(path); !errors.Is(err, ErrInUse) {
		t.Errorf("the lock was lost: %v", err)
	}

	if err := os.Chmod(path, 0o660); err != nil {
		t.Fatal(err)
	}
	var open *OpenError
	if err := Inspect(path); !errors.As(err, &open) || open.Mode.Perm() != 0o660 || !strings.Contains(err.Error(), "open to others (mode 0660)") {
		t.Errorf("open: %v", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o720); err != nil {
		t.Fatal(err)
	}
	var d *DirError
	if err := Inspect(path); !errors.As(err, &d) {
		t.Errorf("open directory: %v", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}

	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if lock, err := InspectLock(path); err != nil || lock.Held || lock.PID != 0 {
		t.Errorf("free: %+v, %v", lock, err)
	}
	// As a process leaves it that was killed.
	if err := os.WriteFile(path+".lock", []byte("123\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if lock, err := InspectLock(path); err != nil || lock.Held || lock.PID != 123 {
		t.Errorf("left: %+v, %v", lock, err)
	}
	// It was looked at and no more: it can be had.
	l, err = Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

func TestInspectObstacles(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	for name, make := range map[string]func(path string) error{
		"file":      func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"link":      func(path string) error { return os.Symlink("/dev/null", path) },
	} {
		var o *ObstacleError
		path := filepath.Join(dir, name)
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		if err := Inspect(path); !errors.As(err, &o) || o.Want != "socket" {
			t.Errorf("%s: %v", name, err)
		}
		if name == "file" {
			continue // is what a lock file is
		}
		if err := make(path + "x.lock"); err != nil {
			t.Fatal(err)
		}
		if _, err := InspectLock(path + "x"); !errors.As(err, &o) || o.Want != "lock file" {
			t.Errorf("lock is a %s: %v", name, err)
		}
	}
	var long *PathTooLongError
	if err := Inspect("/" + strings.Repeat("x", MaxPath)); !errors.As(err, &long) {
		t.Errorf("long: %v", err)
	}
	var none *DirError
	if err := Inspect(filepath.Join(dir, "file", "s")); !errors.As(err, &none) || none.Mode.IsDir() {
		t.Errorf("no directory: %v", err)
	}
}
