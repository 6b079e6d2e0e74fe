// SPDX-License-Identifier: BSD-3-Clause

package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	pinA = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	pinB = "SHA256:BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBA"
)

func somePhone() Phone {
	return Phone{
		Name: "Pocket", Pin: pinA, Address: "[fe80::1%eth0]:4711", FixedAddress: "10.0.0.2:99", Instance: "Pocket (2)",
		PairedAt: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC), Software: "vmux-signer 0.1.0", CAKey: []byte{1, 2, 3},
		Keys:        []Key{{Algorithm: "ssh-ed25519", Blob: []byte{4, 5}, Comment: "work ✓", ProviderKind: "secureEnclave", DisplayName: "Work"}},
		DeviceToken: DeviceToken{Token: "00aB", Environment: "sandbox", Topic: "app.vmux", Updated: time.Date(2026, 3, 4, 5, 6, 8, 0, time.UTC)},
	}
}

func newFile(t *testing.T) (*Store, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vmux", "agent.json")
	return New(path, nil), path
}

// write makes the directory private as Update does.
func write(t *testing.T, path, content string, mode fs.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// conform holds for every Keeper.
func conform(t *testing.T, open func(t *testing.T) Keeper) {
	t.Run("empty", func(t *testing.T) {
		t.Parallel()
		if s, err := open(t).Load(); err != nil || !reflect.DeepEqual(s, State{}) {
			t.Errorf("Load = %+v, %v", s, err)
		}
	})
	t.Run("round trip", func(t *testing.T) {
		t.Parallel()
		k := open(t)
		most := somePhone() // each field has as much as it may
		most.Name, most.Pin = strings.Repeat("x", MaxName), pinB
		most.Address, most.Instance, most.Software = strings.Repeat("x", MaxText-2)+":1", strings.Repeat("x", MaxText), strings.Repeat("x", MaxText)
		most.CAKey, most.Keys[0].Blob, most.Keys[0].Comment = make([]byte, MaxBlob), make([]byte, MaxBlob), strings.Repeat("x", MaxText)
		want := []Phone{somePhone(), most}
		if err := k.Update(func(s *State) error { s.Put(want[0]); s.Put(want[1]); return nil }); err != nil {
			t.Fatal(err)
		}
		s, err := k.Load()
		if err != nil || !reflect.DeepEqual(s.Phones, want) {
			t.Errorf("Load = %+v, %v, want %+v", s.Phones, err, want)
		}
	})
	t.Run("empty again", func(t *testing.T) {
		t.Parallel()
		k := open(t)
		err := errors.Join(k.Update(func(s *State) error { s.Put(somePhone()); return nil }),
			k.Update(func(s *State) error {
				if !s.Forget(pinA) || s.Forget(pinA) {
					t.Error("Forget did not say what it did")
				}
				return nil
			}))
		if s, e := k.Load(); err != nil || e != nil || len(s.Phones) != 0 {
			t.Errorf("Load = %+v, %v, %v", s.Phones, err, e)
		}
	})
	t.Run("change fails", func(t *testing.T) {
		t.Parallel()
		k := open(t)
		boom := errors.New("boom")
		if err := k.Update(func(s *State) error { s.Put(somePhone()); return boom }); !errors.Is(err, boom) {
			t.Errorf("Update = %v", err)
		}
		if s, err := k.Load(); err != nil || len(s.Phones) != 0 {
			t.Errorf("Load = %+v, %v", s, err)
		}
	})
	t.Run("nothing is shared", func(t *testing.T) {
		t.Parallel()
		k := open(t)
		p := somePhone()
		if err := k.Update(func(s *State) error { s.Put(p); return nil }); err != nil {
			t.Fatal(err)
		}
		p.CAKey[0] = 99
		s, err := k.Load()
		if err != nil {
			t.Fatal(err)
		}
		s.Phones[0].Keys[0].Blob[0] = 99
		if s, err := k.Load(); err != nil || s.Phones[0].CAKey[0] != 1 || s.Phones[0].Keys[0].Blob[0] != 4 {
			t.Errorf("Load = %+v, %v", s, err)
		}
	})
	t.Run("updates exclude one another", func(t *testing.T) {
		t.Parallel()
		k := open(t)
		if err := k.Update(func(s *State) error { s.Put(somePhone()); return nil }); err != nil {
			t.Fatal(err)
		}
		const n = 20
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() {
				if err := k.Update(func(s *State) error { s.Phones[0].Software += "x"; return nil }); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		s, err := k.Load()
		if err != nil || s.Phones[0].Software != somePhone().Software+strings.Repeat("x", n) {
			t.Errorf("Load = %+v, %v", s.Phones, err)
		}
	})
	t.Run("out of bounds", func(t *testing.T) {
		t.Parallel()
		k := open(t)
		if err := k.Update(func(s *State) error { s.Put(somePhone()); return nil }); err != nil {
			t.Fatal(err)
		}
		for field, change := range map[string]func(*State){
			"phones":                            func(s *State) { s.Phones = make([]Phone, MaxPhones+1) },
			"phone 1, name":                     func(s *State) { s.Phones[0].Name = "" },
			"phone 1, pin":                      func(s *State) { s.Phones[0].Pin = pinA[:49] },
			"phone 2, pin":                      func(s *State) { s.Phones = append(s.Phones, s.Phones[0]) },
			"phone 1, address":                  func(s *State) { s.Phones[0].Address = "nowhere" },
			"phone 1, fixedAddress":             func(s *State) { s.Phones[0].FixedAddress = ":22" },
			"phone 1, instance":                 func(s *State) { s.Phones[0].Instance = "\xff" },
			"phone 1, software":                 func(s *State) { s.Phones[0].Software = strings.Repeat("x", MaxText+1) },
			"phone 1, pairedAt":                 func(s *State) { s.Phones[0].PairedAt = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
			"phone 1, caKey":                    func(s *State) { s.Phones[0].CAKey = make([]byte, MaxBlob+1) },
			"phone 1, cachedKeys":               func(s *State) { s.Phones[0].Keys = make([]Key, MaxKeys+1) },
			"phone 1, key 1, publicKeyBlob":     func(s *State) { s.Phones[0].Keys[0].Blob = nil },
			"phone 1, key 1, comment":           func(s *State) { s.Phones[0].Keys[0].Comment = strings.Repeat("x", MaxText+1) },
			"phone 1, key 1, algorithm":         func(s *State) { s.Phones[0].Keys[0].Algorithm = strings.Repeat("x", MaxName+1) },
			"phone 1, key 1, providerKind":      func(s *State) { s.Phones[0].Keys[0].ProviderKind = "\xff" },
			"phone 1, key 1, displayName":       func(s *State) { s.Phones[0].Keys[0].DisplayName = "\xff" },
			"phone 1, deviceToken, token":       func(s *State) { s.Phones[0].DeviceToken.Token = "00a" },
			"phone 1, deviceToken, environment": func(s *State) { s.Phones[0].DeviceToken.Environment = "development" },
			"phone 1, deviceToken, topic":       func(s *State) { s.Phones[0].DeviceToken.Topic = "" },
			"phone 1, deviceToken, updated":     func(s *State) { s.Phones[0].DeviceToken.Updated = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
			"state":                             func(s *State) { s.Phones[0].Keys = manyKeys() },
		} {
			err := k.Update(func(s *State) error { change(s); return nil })
			if e, ok := errors.AsType[*InvalidError](err); !ok || e.Field != field {
				t.Errorf("%s: Update = %v", field, err)
			}
		}
		if s, err := k.Load(); err != nil || !reflect.DeepEqual(s.Phones, []Phone{somePhone()}) {
			t.Errorf("after refused updates, Load = %+v, %v", s.Phones, err)
		}
	})
}

// manyKeys is within every bound but that of the whole.
func manyKeys() []Key {
	keys := make([]Key, MaxKeys)
	for i := range keys {
		keys[i].Blob = make([]byte, MaxBlob/2)
	}
	return keys
}

func TestConformance(t *testing.T) {
	t.Parallel()
	t.Run("file", func(t *testing.T) {
		t.Parallel()
		conform(t, func(t *testing.T) Keeper { s, _ := newFile(t); return s })
	})
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		conform(t, func(*testing.T) Keeper { return new(Memory) })
	})
}

func TestUpdateIsPrivateAndWhole(t *testing.T) {
	t.Parallel()
	s, path := newFile(t)
	if err := s.Update(func(s *State) error { s.Put(somePhone()); return nil }); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]fs.FileMode{filepath.Dir(path): 0o700, path: 0o600, path + ".lock": 0o600} {
		if fi, err := os.Stat(p); err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v", p, fi.Mode(), err)
		}
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 2 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{`"version": 1`, `"cachedKeys"`, `"pin"`, `"caKey": "AQID"`, `"pairedAt": "2026-03-04T05:06:07Z"`, `"deviceToken"`, `"token": "00aB"`, `"updated": "2026-03-04T05:06:08Z"`} {
		if !bytes.Contains(b, []byte(name)) {
			t.Errorf("%s is not in %s", name, b)
		}
	}
}

func TestUnknownMembersAreKept(t *testing.T) {
	t.Parallel()
	s, path := newFile(t)
	write(t, path, `{"version":1,"wake":{"topic":"x"},"phones":[{"name":"P","pin":"`+pinA+`","pairedAt":"2026-03-04T05:06:07Z",
		"token":"t1","cachedKeys":[{"algorithm":"a","publicKeyBlob":"AQ==","comment":"","providerKind":"","displayName":"","slot":7}]}]}`, 0o600)
	err := s.Update(func(s *State) error {
		s.Put(Phone{Name: "Q", Pin: pinA, Keys: s.Phones[0].Keys})
		return nil
	})
	b, readErr := os.ReadFile(path)
	if err != nil || readErr != nil {
		t.Fatal(err, readErr)
	}
	flat := strings.Join(strings.Fields(string(b)), "")
	for _, kept := range []string{`"wake":{"topic":"x"}`, `"token":"t1"`, `"slot":7`, `"name":"Q"`} {
		if !strings.Contains(flat, kept) {
			t.Errorf("%s is not in %s", kept, b)
		}
	}
}

func TestDamagedIsSetAside(t *testing.T) {
	t.Parallel()
	for name, content := range map[string]string{
		"empty":        "",
		"zeros":        strings.Repeat("\x00", 100),
		"cut":          `{"version":1,"phones":[{"na`,
		"array":        `[]`,
		"no version":   `{"phones":[]}`,
		"version 0":    `{"version":0}`,
		"version text": `{"version":"1"}`,
		"duplicate":    `{"version":1,"phones":[],"phones":[]}`,
		"trailing":     `{"version":1,"phones":[]} x`,
		"bad pin":      `{"version":1,"phones":[{"name":"P","pin":"x","pairedAt":"2026-03-04T05:06:07Z","cachedKeys":[]}]}`,
		"wrong case":   `{"version":1,"phones":[{"Name":"P","pin":"` + pinA + `","pairedAt":"2026-03-04T05:06:07Z","cachedKeys":[]}]}`,
		"too large":    `{"version":1,"x":"` + strings.Repeat("x", MaxStateSize) + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, path := newFile(t)
			write(t, path, content, 0o600)
			st, err := s.Load()
			d, ok := errors.AsType[*DamagedError](err)
			if !ok || d.Path != path || d.SetAside == "" || len(st.Phones) != 0 {
				t.Fatalf("Load = %+v, %v", st, err)
			}
			if b, err := os.ReadFile(d.SetAside); err != nil || string(b) != content {
				t.Errorf("set aside: %v", err)
			}
			if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("still there: %v", err)
			}
			if st, err := s.Load(); err != nil || len(st.Phones) != 0 {
				t.Errorf("second Load = %+v, %v", st, err)
			}
		})
	}
}

func TestSetAsideNeverReplaces(t *testing.T) {
	t.Parallel()
	s, path := newFile(t)
	seen := make(map[string]bool)
	for i := range 5 {
		write(t, path, fmt.Sprint("damage ", i), 0o600)
		_, err := s.Load()
		d, ok := errors.AsType[*DamagedError](err)
		if !ok || seen[d.SetAside] {
			t.Fatalf("Load = %v", err)
		}
		seen[d.SetAside] = true
	}
	found, err := filepath.Glob(path + ".damaged-*")
	if err != nil || len(found) != 5 {
		t.Errorf("set aside: %v, %v", found, err)
	}
}

func TestUpdateOfDamagedChangesNothing(t *testing.T) {
	t.Parallel()
	s, path := newFile(t)
	write(t, path, "junk", 0o600)
	add := func(s *State) error { s.Put(somePhone()); return nil }
	err := s.Update(func(*State) error { t.Error("change was called"); return nil })
	if d, ok := errors.AsType[*DamagedError](err); !ok || d.SetAside == "" {
		t.Fatalf("Update = %v", err)
	}
	if err := s.Update(add); err != nil {
		t.Errorf("second Update = %v", err)
	}
}

func TestNewerIsLeftAlone(t *testing.T) {
	t.Parallel()
	s, path := newFile(t)
	const content = `{"version":2,"phones":"something else"}`
	write(t, path, content, 0o600)
	_, err := s.Load()
	if n, ok := errors.AsType[*NewerError](err); !ok || n.Version != 2 {
		t.Errorf("Load = %v", err)
	}
	err = s.Update(func(*State) error { t.Error("change was called"); return nil })
	if _, ok := errors.AsType[*NewerError](err); !ok {
		t.Errorf("Update = %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != content {
		t.Errorf("file is %q, %v", b, err)
	}
}

func TestModes(t *testing.T) {
	t.Parallel()
	const content = `{"version":1,"phones":[]}`
	t.Run("readable", func(t *testing.T) {
		t.Parallel()
		_, path := newFile(t)
		write(t, path, content, 0o644)
		var log bytes.Buffer
		s := New(path, slog.New(slog.NewTextHandler(&log, nil)))
		if _, err := s.Load(); err != nil {
			t.Fatal(err)
		}
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", fi.Mode(), err)
		}
		if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), "mode=0644") {
			t.Errorf("log: %s", log.String())
		}
		log.Reset()
		if _, err := s.Load(); err != nil || log.Len() != 0 {
			t.Errorf("second Load: %v, %s", err, log.String())
		}
	})
	for _, mode := range []fs.FileMode{0o620, 0o602} {
		t.Run(fmt.Sprintf("file %o", mode), func(t *testing.T) {
			t.Parallel()
			s, path := newFile(t)
			write(t, path, content, mode)
			for name, err := range map[string]error{"Load": second(s.Load()), "Update": s.Update(func(*State) error { return nil })} {
				if e, ok := errors.AsType[*ModeError](err); !ok || e.Path != path || e.Mode != mode || e.Dir || e.Error() != fmt.Sprintf("%s is open to other users (mode %#o)", path, mode) {
					t.Errorf("%s = %v", name, err)
				}
			}
		})
		t.Run(fmt.Sprintf("directory %o", mode|0o100), func(t *testing.T) {
			t.Parallel()
			s, path := newFile(t)
			write(t, path, content, 0o600)
			if err := os.Chmod(filepath.Dir(path), mode|0o100); err != nil {
				t.Fatal(err)
			}
			for name, err := range map[string]error{"Load": second(s.Load()), "Update": s.Update(func(*State) error { return nil })} {
				if e, ok := errors.AsType[*ModeError](err); !ok || e.Path != filepath.Dir(path) || !e.Dir {
					t.Errorf("%s = %v", name, err)
				}
			}
		})
	}
}

// A phone is named by its name, which another one may have, or by its pin, which another one may be called.
func TestNamed(t *testing.T) {
	t.Parallel()
	s := State{Phones: []Phone{{Name: "Pocket", Pin: pinA}, {Name: "Pocket", Pin: pinB}, {Name: pinA, Pin: "SHA256:C"}}}
	for name, want := range map[string][]string{"Pocket": {pinA, pinB}, pinA: {pinA}, pinB: {pinB}, "SHA256:C": {"SHA256:C"}, "pocket": nil, "": nil} {
		var got []string
		for _, p := range s.Named(name) {
			got = append(got, p.Pin)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}

func second(_ State, err error) error { return err }

func TestForeignOwner(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("giving a file away needs root")
	}
	s, path := newFile(t)
	write(t, path, `{"version":1,"phones":[]}`, 0o600)
	if err := os.Chown(path, 12345, 12345); err != nil {
		t.Fatal(err)
	}
	_, err := s.Load()
	if e, ok := errors.AsType[*ModeError](err); !ok || e.Owner != 12345 || e.Error() != path+" belongs to user 12345, not to user 0" {
		t.Errorf("Load = %v", err)
	}
}

func TestNotARegularFile(t *testing.T) {
	t.Parallel()
	s, path := newFile(t)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("Load = %v", err)
	}
	if err := s.Update(func(*State) error { return nil }); err == nil {
		t.Error("Update replaced a pipe")
	}
}

// A directory in the place of the file or of its directory stops root as well.
func TestUnwritable(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	full := filepath.Join(dir, "full", "agent.json")
	if err := os.MkdirAll(full+".lock", 0o700); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"no directory": filepath.Join(dir, "file", "vmux", "agent.json"), "no lock": full} {
		err := New(path, nil).Update(func(*State) error { return nil })
		if e, ok := errors.AsType[*UnwritableError](err); !ok || e.Path != path {
			t.Errorf("%s: Update = %v", name, err)
		}
	}
}

func TestUnwritableLosesNothing(t *testing.T) {
	t.Parallel()
	if os.Geteuid() == 0 {
		t.Skip("root writes everywhere")
	}
	s, path := newFile(t)
	if err := s.Update(func(s *State) error { s.Put(somePhone()); return nil }); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(path)
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(dir, 0o700) })
	err := s.Update(func(s *State) error { s.Phones = nil; return nil })
	if _, ok := errors.AsType[*UnwritableError](err); !ok {
		t.Errorf("Update = %v", err)
	}
	if st, err := s.Load(); err != nil || len(st.Phones) != 1 {
		t.Errorf("Load = %+v, %v", st, err)
	}
}

func FuzzState(f *testing.F) {
	f.Add([]byte(`{"version":1,"phones":[]}`))
	b, err := encodeState(State{Phones: []Phone{somePhone()}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1,"phones":[{"name":"P","pin":"` + pinB + `","pairedAt":"2026-03-04T05:06:07+01:00","x":[1e9]}],"y":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeState(b)
		if err != nil {
			return
		}
		once, err := encodeState(s)
		if e, ok := errors.AsType[*InvalidError](err); ok && e.Field == "state" {
			return // what is compact may be too large with indentation
		}
		if err != nil {
			t.Fatal(err)
		}
		s, err = decodeState(once)
		if err != nil {
			t.Fatal(err)
		}
		twice, err := encodeState(s)
		if err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%s\n%s\n%v", once, twice, err)
		}
	})
}

// A new file replaces nothing, is private, and leaves nothing else behind.
func TestWriteNew(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "new")
	if err := WriteNew(path, ".new-", []byte("one")); err != nil {
		t.Fatal(err)
	}
	if err := WriteNew(path, ".new-", []byte("two")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("once more: %v", err)
	}
	b, err := os.ReadFile(path)
	fi, e := os.Lstat(path)
	if err = errors.Join(err, e); err != nil || string(b) != "one" || fi.Mode() != 0o600 {
		t.Errorf("%q, %v, %v", b, fi.Mode(), err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
	var unwritable *UnwritableError
	if err := WriteNew(filepath.Join(path, "x"), ".new-", nil); !errors.As(err, &unwritable) || unwritable.Path != filepath.Join(path, "x") {
		t.Errorf("below a file: %v", err)
	}
}
