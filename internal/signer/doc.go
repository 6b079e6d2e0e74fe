// SPDX-License-Identifier: BSD-3-Clause

// Package signer is the phone's part on any computer: it keeps the identities
// and the certificate authority's key, listens for paired devices, shows their
// requests to the owner and signs what the owner approves.
//
// A signer lives in a home directory (Home). One process at a time serves it
// (Signer); commands change the home's files under its lock and then tell that
// process over the control socket (Dial).
//
// What the owner is shown has two halves. The signer reads the data to be
// signed and checks the hosts' statements itself; that half is Verified. The
// rest is what the device says; that half is Claimed.
package signer
