// SPDX-License-Identifier: BSD-3-Clause

//go:build !race

package e2e

const raceFlag = "-race=false"
