// SPDX-License-Identifier: BSD-3-Clause

package store

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
)

// testValues makes each kind of Values that this system has, and one of the tests' own. spoil has a key be no data.
var testValues = map[string]func(*testing.T) (v Values, spoil func(key string)){
	"map": func(*testing.T) (Values, func(string)) {
		v := &values{m: map[string][]byte{}}
		return v, func(key string) { v.m[key] = noData }
	},
}

// noData stands for a value of another kind.
var noData = []byte("(number)")

// values fails with fail where that is set.
type values struct {
	mu        sync.Mutex
	m         map[string][]byte
	fail      error // of Set
	failNames error // of Rename
}

func (v *values) String() string { return "values" }

func (v *values) Get(key string) ([]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if bytes.Equal(v.m[key], noData) {
		return nil, errors.New("it is no data")
	}
	return bytes.Clone(v.m[key]), nil
}

func (v *values) Set(key string, b []byte) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.fail != nil {
		return v.fail
	}
	v.m[key] = append([]byte{}, b...)
	return nil
}

func (v *values) Rename(from, to string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.failNames != nil:
		return v.failNames
	case v.m[to] != nil:
		return fs.ErrExist
	}
	v.m[to] = v.m[from]
	delete(v.m, from)
	return nil
}

func TestValues(t *testing.T) {
	t.Parallel()
	for name, open := range testValues {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "vmux", "agent.json")
			t.Run("conformance", func(t *testing.T) {
				conform(t, func(t *testing.T) Keeper {
					v, _ := open(t)
					return NewIn(v, filepath.Join(t.TempDir(), "vmux", "agent.json"), nil)
				})
			})
			t.Run("damaged", func(t *testing.T) {
				v, spoil := open(t)
				s := NewIn(v, path, nil)
				seen := map[string]bool{}
				for _, junk := range []string{"", "junk", `{"version":0}`, `{"version":1,"phones":[],"phones":[]}`, strings.Repeat("x", MaxStateSize+1)} {
					if err := v.Set(stateKey, []byte(junk)); err != nil {
						t.Fatal(err)
					}
					st, err := s.Load()
					d, ok := errors.AsType[*DamagedError](err)
					if !ok || d.SetAside == "" || seen[d.SetAside] || len(st.Phones) != 0 {
						t.Fatalf("%.20q: Load = %+v, %v", junk, st, err)
					}
					seen[d.SetAside] = true
					_, key, _ := strings.Cut(d.SetAside, ", ")
					if b, err := v.Get(key); err != nil || string(b) != junk {
						t.Errorf("set aside: %v", err)
					}
					if _, err := s.Load(); err != nil {
						t.Errorf("second Load = %v", err)
					}
				}
				// What is no data is kept, too, and the state begins anew.
				spoil(stateKey)
				err := s.Update(func(*State) error { t.Error("change was called"); return nil })
				d, ok := errors.AsType[*DamagedError](err)
				if !ok || d.SetAside == "" || seen[d.SetAside] {
					t.Fatalf("no data: Update = %v", err)
				}
				_, key, _ := strings.Cut(d.SetAside, ", ")
				if _, err := v.Get(key); err == nil {
					t.Errorf("%s is data now", key)
				}
				if err := s.Update(func(s *State) error { s.Put(somePhone()); return nil }); err != nil {
					t.Fatal(err)
				}
				if st, err := s.Load(); err != nil || !reflect.DeepEqual(st.Phones, []Phone{somePhone()}) {
					t.Errorf("afterwards Load = %+v, %v", st, err)
				}
			})
			t.Run("newer", func(t *testing.T) {
				v, _ := open(t)
				s := NewIn(v, path, nil)
				const content = `{"version":2,"phones":"something else"}`
				v.Set(stateKey, []byte(content))
				err := s.Update(func(*State) error { t.Error("change was called"); return nil })
				if _, ok := errors.AsType[*NewerError](err); !ok {
					t.Errorf("Update = %v", err)
				}
				if b, _ := v.Get(stateKey); string(b) != content {
					t.Errorf("it is %q now", b)
				}
			})
			t.Run("from nothing", func(t *testing.T) {
				v, _ := open(t)
				path := filepath.Join(t.TempDir(), "vmux", "agent.json")
				s := NewIn(v, path, nil)
				if st, err := s.Load(); err != nil || !reflect.DeepEqual(st, State{}) {
					t.Errorf("Load = %+v, %v", st, err)
				}
				if b, err := v.Get(stateKey); b != nil || err != nil {
					t.Errorf("reading has written %q, %v", b, err)
				}
				if err := s.Update(func(s *State) error { s.Put(somePhone()); return nil }); err != nil {
					t.Fatal(err)
				}
				b, err := v.Get(stateKey)
				if err != nil {
					t.Fatal(err)
				}
				// As the file has it.
				file := filepath.Join(t.TempDir(), "agent.json")
				write(t, file, string(b), 0o600)
				if st, err := New(file, nil).Load(); err != nil || !reflect.DeepEqual(st.Phones, []Phone{somePhone()}) {
					t.Errorf("as a file: %+v, %v", st, err)
				}
				// Beside the values there is the lock, and no state.
				if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 || entries[0].Name() != "agent.json.lock" {
					t.Errorf("left behind: %v, %v", entries, err)
				}
			})
			t.Run("unknown members", func(t *testing.T) {
				v, _ := open(t)
				if err := v.Set(stateKey, []byte(`{"version":1,"wake":{"topic":"x"},"phones":[]}`)); err != nil {
					t.Fatal(err)
				}
				err := NewIn(v, path, nil).Update(func(s *State) error { s.Put(somePhone()); return nil })
				b, getErr := v.Get(stateKey)
				if flat := strings.Join(strings.Fields(string(b)), ""); err != nil || getErr != nil || !strings.Contains(flat, `"wake":{"topic":"x"}`) || !strings.Contains(flat, pinA) {
					t.Errorf("%v, %v: %s", err, getErr, b)
				}
			})
		})
	}
}

// What cannot be written is said, and what cannot be set aside is left where it is.
func TestValuesFail(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	v := &values{m: map[string][]byte{}, fail: boom}
	s := NewIn(v, filepath.Join(t.TempDir(), "vmux", "agent.json"), nil)
	err := s.Update(func(s *State) error { s.Put(somePhone()); return nil })
	if e, ok := errors.AsType[*UnwritableError](err); !ok || !errors.Is(err, boom) || e.Path != "values" {
		t.Errorf("Update = %v", err)
	}
	v.m[stateKey], v.failNames = []byte("junk"), boom
	for range 2 {
		_, err := s.Load()
		if d, ok := errors.AsType[*DamagedError](err); !ok || d.SetAside != "" || d.Path != "values" {
			t.Errorf("Load = %v", err)
		}
	}
	if string(v.m[stateKey]) != "junk" || len(v.m) != 1 {
		t.Errorf("it is %q now", v.m)
	}
}
