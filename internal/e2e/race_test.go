// SPDX-License-Identifier: BSD-3-Clause

//go:build race

package e2e

// raceFlag builds the commands as the tests are built.
const raceFlag = "-race"
