// SPDX-License-Identifier: BSD-3-Clause

package store

import (
	"bytes"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// testValues makes each kind of Values that this system has, and one of the tests' own.
var testValues = map[string]func(*testing.T) Values{
	"map": func(*testing.T) Values { return &values{m: map[string][]byte{}} },
}

type values struct {
	mu sync.Mutex
	m  map[string][]byte
}

func (v *values) String() string { return "values" }

func (v *values) Get(key string) ([]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return bytes.Clone(v.m[key]), nil
}

func (v *values) Set(key string, b []byte) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.m[key] = append([]byte{}, b...)
	return nil
}

func (v *values) Rename(from, to string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.m[to] != nil {
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
					return NewIn(open(t), filepath.Join(t.TempDir(), "vmux", "agent.json"), nil)
				})
			})
			t.Run("damaged", func(t *testing.T) {
				v := open(t)
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
			})
			t.Run("newer", func(t *testing.T) {
				v := open(t)
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
		})
	}
}
