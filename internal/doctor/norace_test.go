// SPDX-License-Identifier: BSD-3-Clause

//go:build !race

package doctor_test

const raceFlag = "-race=false"
