// SPDX-License-Identifier: BSD-3-Clause

//go:build cgo

package main

// Without these words in the program macOS refuses it the local network when launchd has started it, and says nothing.

// #cgo LDFLAGS: -Wl,-sectcreate,__TEXT,__info_plist,${SRCDIR}/Info.plist
import "C"
