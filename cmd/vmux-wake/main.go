// SPDX-License-Identifier: BSD-3-Clause

// Vmux-wake sends a test push and says what came of it.
package main

import (
	"os"

	"vmux.app/toolkit/internal/cli"
)

func main() { os.Exit(cli.Main(app())) }
