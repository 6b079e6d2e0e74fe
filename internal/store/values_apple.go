// SPDX-License-Identifier: BSD-3-Clause

//go:build (darwin || gnustep) && cgo

package store

import (
	"os/user"
	"path/filepath"

	"vmux.app/toolkit/internal/userdefaults"
)

// domain is where vmux's state is in the user defaults.
const domain = "app.vmux.agent"

// systemValues is nil when this user's files are elsewhere than the system has them: user defaults would not be.
func systemValues(env Env) (Values, error) {
	u, err := user.Current()
	if err != nil || env("XDG_STATE_HOME") != "" || filepath.Clean(u.HomeDir) != filepath.Clean(env("HOME")) {
		return nil, err
	}
	d, err := userdefaults.Open(domain)
	if err != nil {
		return nil, err
	}
	return d, nil
}
