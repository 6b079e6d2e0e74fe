// SPDX-License-Identifier: BSD-3-Clause

// Vmux-doctor examines a set-up of vmux and says how to mend it.
package main

import (
	"os"

	"vmux.app/toolkit/internal/cli"
)

func main() { os.Exit(cli.Main(app())) }
