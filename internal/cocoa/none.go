// SPDX-License-Identifier: BSD-3-Clause

//go:build !((darwin || gnustep) && cgo)

package cocoa

// Supported is ErrNotBuilt.
func Supported() error { return ErrNotBuilt }

// Main is program().
func Main(program func() int) int { return program() }
