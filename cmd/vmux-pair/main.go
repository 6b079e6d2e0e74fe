// SPDX-License-Identifier: BSD-3-Clause

// Vmux-pair finds, pairs, lists and forgets phones.
package main

import (
	"os"

	"vmux.app/toolkit/internal/cli"
)

func main() { os.Exit(cli.Main(app())) }
