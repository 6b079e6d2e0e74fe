// SPDX-License-Identifier: BSD-3-Clause

// Vmux-cert asks for session certificates, looks after them, and runs jobs under
// one.
package main

import (
	"os"

	"vmux.app/toolkit/internal/cli"
)

func main() { os.Exit(cli.Main(app())) }
