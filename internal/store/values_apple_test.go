// SPDX-License-Identifier: BSD-3-Clause

//go:build gnustep && cgo

package store

import (
	"crypto/rand"
	"os/user"
	"path/filepath"
	"testing"

	"vmux.app/toolkit/internal/cocoa"
	"vmux.app/toolkit/internal/userdefaults"
)

func init() {
	testValues["user defaults"] = func(t *testing.T) (Values, func(string)) {
		name := "app.vmux.test." + rand.Text()
		d, err := userdefaults.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		return d, func(key string) {
			cocoa.Pool(func() {
				o := cocoa.New("NSUserDefaults", "initWithSuiteName:", name)
				defer o.Release()
				cocoa.Send(o, "setObject:forKey:", "text", key)
				cocoa.Send(o, "synchronize")
			})
		}
	}
}

// The user's state is in the user defaults, unless the user's files are elsewhere.
func TestOpenUserDefaults(t *testing.T) {
	t.Parallel()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, tt := range []struct {
		home, state, path string
	}{
		{me.HomeDir, "", "user defaults of app.vmux.agent"},
		{me.HomeDir + "/", "", "user defaults of app.vmux.agent"},
		{me.HomeDir, dir, filepath.Join(dir, "vmux", "agent.json")},
		{dir, "", filepath.Join(dir, ".local", "state", "vmux", "agent.json")},
	} {
		s, err := Open(func(name string) string {
			return map[string]string{"HOME": tt.home, "XDG_STATE_HOME": tt.state}[name]
		}, nil)
		if err != nil || s.Path() != tt.path {
			t.Errorf("%+v: %v, %v", tt, s.Path(), err)
		}
		if name, ok := UserDefaults(s.Path()); ok != (tt.home != dir && tt.state == "") || ok && name != domain {
			t.Errorf("%+v: domain %q, %v", tt, name, ok)
		}
	}
}
