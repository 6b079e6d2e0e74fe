// SPDX-License-Identifier: BSD-3-Clause

//go:build gnustep && cgo

package store

import (
	"crypto/rand"
	"testing"

	"vmux.app/toolkit/internal/userdefaults"
)

func init() {
	testValues["user defaults"] = func(t *testing.T) Values {
		d, err := userdefaults.Open("app.vmux.test." + rand.Text())
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
}
