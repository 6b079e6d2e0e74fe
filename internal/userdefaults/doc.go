// SPDX-License-Identifier: BSD-3-Clause

//go:build !((darwin || gnustep) && cgo)

// Package userdefaults is on macOS with cgo only.
package userdefaults
