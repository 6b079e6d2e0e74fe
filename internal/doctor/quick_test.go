// SPDX-License-Identifier: BSD-3-Clause

package doctor_test

// quickFlag keeps the race detector out of what a passphrase goes through, as make
// test does.
const quickFlag = "-gcflags=golang.org/x/crypto/blowfish=-race=false"
