// SPDX-License-Identifier: BSD-3-Clause

// Package cocoa sends messages to Objective-C objects through darwinkit, and gives the main thread to the run loop that
// some of Apple's frameworks need. It is on macOS with cgo only, and on Linux with the build tag gnustep, where
// its tests and those of its users run; elsewhere Supported says so and the program runs as ever.
package cocoa

import "errors"

// Why Objective-C is not used.
var (
	ErrNotBuilt = errors.New("this program was built without Objective-C")
	ErrUnsafe   = errors.New("this program was built without -gcflags=" + remedy + ", so that calls to Objective-C could crash; build it with make")
	ErrNoLoop   = errors.New("the main thread runs no run loop")
)

// remedy keeps what libffi holds the address of off the stacks of goroutines, which move: since Go 1.25 small slices of a
// length that is no constant begin there, and darwinkit 0.5.0 hands such slices over as numbers.
const remedy = "all=-d=variablemakehash=qn"
