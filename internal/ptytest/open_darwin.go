// SPDX-License-Identifier: BSD-3-Clause

package ptytest

import (
	"os"
	"testing"
)

func open(t testing.TB) (control, tty *os.File) {
	t.Skip("pseudo terminals are opened on Linux only")
	return nil, nil
}
