// SPDX-License-Identifier: BSD-3-Clause

//go:build !((darwin || gnustep) && cgo)

package cli

func onMain(program func() int) int { return program() }
