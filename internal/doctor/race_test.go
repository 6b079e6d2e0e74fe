// SPDX-License-Identifier: BSD-3-Clause

//go:build race

package doctor_test

// raceFlag builds the commands as the tests are built.
const raceFlag = "-race"
