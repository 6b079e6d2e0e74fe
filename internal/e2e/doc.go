// SPDX-License-Identifier: BSD-3-Clause

// Package e2e holds the tests across the commands: the installed programs with
// the real ssh, ssh-add, ssh-keygen and sshd.
package e2e
