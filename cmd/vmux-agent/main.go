// SPDX-License-Identifier: BSD-3-Clause

// Vmux-agent serves the SSH agent protocol with keys that are on a phone.
package main

import (
	"os"

	"vmux.app/toolkit/internal/cli"
)

func main() { os.Exit(cli.Main(app())) }
