// SPDX-License-Identifier: BSD-3-Clause

//go:build goexperiment.runtimesecret

package session

import "runtime/secret"

// erases says that what secretly leaves behind is overwritten. On Linux, amd64 and arm64, that is so when the toolkit is built with
// GOEXPERIMENT=runtimesecret.
const erases = true

// secretly runs f. The registers and the stack that f used are overwritten before it returns, its memory once the garbage
// collector finds it unused.
func secretly(f func()) { secret.Do(f) }
