// SPDX-License-Identifier: BSD-3-Clause

//go:build (darwin || gnustep) && cgo

package userdefaults

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"testing"

	"vmux.app/toolkit/internal/cocoa"
)

// otherEnv has a copy of this program print what the domain that it names has, and write "next" there.
const otherEnv = "VMUX_TEST_DOMAIN"

func TestMain(m *testing.M) {
	os.Exit(cocoa.Main(func() int {
		name := os.Getenv(otherEnv)
		if name == "" {
			return m.Run()
		}
		d, err := Open(name)
		if err != nil {
			panic(err)
		}
		v, err := d.Get("a")
		os.Stdout.Write(v)
		if err := errors.Join(err, d.Set("a", []byte("next"))); err != nil {
			panic(err)
		}
		return 0
	}))
}

// newDomain gives a domain of the test's own, and its name.
func newDomain(t *testing.T) (*Domain, string) {
	t.Helper()
	name := "app.vmux.test." + rand.Text()
	d, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cocoa.Pool(func() {
			for _, key := range []string{"a", "b", "c", "d"} {
				cocoa.Send(d.object, "removeObjectForKey:", key)
			}
			cocoa.Send(d.object, "synchronize")
		})
	})
	return d, name
}

// put gives a key a value that is no data.
func put(d *Domain, key string) {
	cocoa.Pool(func() {
		cocoa.Send(d.object, "setObject:forKey:", "text", key)
		cocoa.Send(d.object, "synchronize")
	})
}

func TestSetAndGet(t *testing.T) {
	t.Parallel()
	d, name := newDomain(t)
	if v, err := d.Get("a"); v != nil || err != nil {
		t.Errorf("nothing: %q, %v", v, err)
	}
	for _, want := range [][]byte{[]byte("text"), {}, {0, 1, 0, 255}, bytes.Repeat([]byte{7}, 1<<20)} {
		if err := d.Set("a", want); err != nil {
			t.Fatal(err)
		}
		if v, err := d.Get("a"); v == nil || !bytes.Equal(v, want) || err != nil {
			t.Errorf("%d bytes: %d, %v", len(want), len(v), err)
		}
	}
	put(d, "a")
	if v, err := d.Get("a"); v != nil || !errors.Is(err, errForm) {
		t.Errorf("no data: %q, %v", v, err)
	}
	if !strings.HasSuffix(d.String(), name) {
		t.Errorf("it is called %s", d)
	}
}

func TestRename(t *testing.T) {
	t.Parallel()
	d, _ := newDomain(t)
	if err := d.Rename("a", "b"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
	if err := errors.Join(d.Set("a", []byte("1")), d.Set("b", []byte("2"))); err != nil {
		t.Fatal(err)
	}
	if err := d.Rename("a", "b"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("taken: %v", err)
	}
	if v, err := d.Get("b"); string(v) != "2" || err != nil {
		t.Errorf("b is %q, %v", v, err)
	}
	if err := d.Rename("a", "c"); err != nil {
		t.Fatal(err)
	}
	if v, err := d.Get("a"); v != nil || err != nil {
		t.Errorf("a is %q, %v", v, err)
	}
	if v, err := d.Get("c"); string(v) != "1" || err != nil {
		t.Errorf("c is %q, %v", v, err)
	}
	put(d, "a")
	if err := d.Rename("a", "d"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Get("d"); !errors.Is(err, errForm) {
		t.Errorf("what is no data has become some: %v", err)
	}
}

// What one process writes the next one reads. (GNUstep does not see what others write after it has read, as macOS does.)
func TestOtherProcess(t *testing.T) {
	t.Parallel()
	d, name := newDomain(t)
	if err := d.Set("a", []byte("ours")); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"ours", "next"} {
		c := exec.Command(self)
		c.Env = append(os.Environ(), otherEnv+"="+name)
		if out, err := c.CombinedOutput(); err != nil || string(out) != want {
			t.Errorf("process %d: %q, %v", i+1, out, err)
		}
	}
}
