// SPDX-License-Identifier: BSD-3-Clause

// Package krl writes lists of the keys that servers are to refuse from now on.
package krl

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/safetext"
)

// maxAbout bounds what is said of a key, in characters.
const maxAbout = 200

// Entry is a key to be refused.
type Entry struct {
	// Public is a plain key. That of a certificate authority stands for every
	// certificate that it has signed.
	Public ssh.PublicKey
	About  string // for people; may come from outside
}

// Line is a key as it stands in a list, and in authorized_keys without options and
// comment.
func Line(k ssh.PublicKey) string {
	return strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(k)), "\n")
}

// Text is a list of keys. It has three uses:
//
//   - ssh-keygen -k makes a KRL of it (ssh-keygen(1), KEY REVOCATION LISTS).
//   - sshd takes it as it is in RevokedKeys (sshd_config(5)).
//   - grep -vFf leaves the lines with these keys out of authorized_keys and of what
//     TrustedUserCAKeys names, whatever options and comments they have. For this there
//     is nothing behind a key, no empty line, which would match all, and nothing in
//     the comments that could be part of another line.
func Text(entries []Entry) string {
	var b strings.Builder
	for _, e := range entries {
		fmt.Fprintf(&b, "# %s, %s\n%s\n", safetext.Line(e.About, maxAbout), ssh.FingerprintSHA256(e.Public), Line(e.Public))
	}
	return b.String()
}

// SerialText is a specification of single certificates for ssh-keygen -k, which is
// told by -s whose they are. No serial may be 0, which certificates without one have.
func SerialText(ca ssh.PublicKey, serials []uint64) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# certificates that %s has signed\n", ssh.FingerprintSHA256(ca))
	for _, n := range serials {
		b.WriteString("serial: " + strconv.FormatUint(n, 10) + "\n")
	}
	return b.String()
}
