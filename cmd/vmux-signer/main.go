// SPDX-License-Identifier: BSD-3-Clause

// Vmux-signer is the phone's part on any computer.
package main

import (
	"os"

	"vmux.app/toolkit/internal/cli"
)

func main() { os.Exit(cli.Main(app())) }
