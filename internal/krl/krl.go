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

// maxLabel bounds a label where it is for people, in characters.
const maxLabel = 100

// Entry is a key to be refused.
type Entry struct {
	Public  ssh.PublicKey // a plain key
	CA      bool          // it stands for every certificate that it has signed
	Label   string        // of another key; may come from outside
	Removed bool          // the signer does not have it any more
}

// List is a list of such keys. Text has four uses:
//
//   - ssh-keygen -k makes a KRL of it (ssh-keygen(1), KEY REVOCATION LISTS).
//   - sshd takes it as it is in RevokedKeys (sshd_config(5)), unless there are serials.
//   - grep -vFf leaves the lines with these keys out of authorized_keys and of what
//     TrustedUserCAKeys names, whatever options and comments they have. For this there
//     is nothing behind a key, no empty line, which would match all, and nothing in
//     the comments that could be part of another line.
//   - git takes it in gpg.ssh.revocationFile (ssh-keygen(1), -r), unless there are serials.
type List struct {
	Text    string   `json:"krl"`
	CA      *Key     `json:"ca,omitzero"`
	Keys    []Key    `json:"keys"`
	Serials []string `json:"serials,omitzero"`
	// Lines to be removed, without the comment that they may have.
	AuthorizedKeys    []string `json:"authorizedKeys"`
	TrustedUserCAKeys []string `json:"trustedUserCAKeys"`
}

// Key is a public half in JSON.
type Key struct {
	Label       string `json:"label,omitzero"` // not of a certificate authority
	Removed     bool   `json:"removed,omitzero"`
	Algorithm   string `json:"algorithm"`
	Fingerprint string `json:"fingerprint"`
	PublicKey   string `json:"publicKey"` // as in authorized_keys, without a comment
}

func keyOf(e Entry) Key {
	return Key{e.Label, e.Removed, e.Public.Type(), ssh.FingerprintSHA256(e.Public),
		strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(e.Public)), "\n")}
}

// Of is the list of some keys.
func Of(entries []Entry) List {
	l := List{Keys: []Key{}, AuthorizedKeys: []string{}, TrustedUserCAKeys: []string{}}
	var b strings.Builder
	for _, e := range entries {
		k := keyOf(e)
		about, line := "the key "+safetext.Line(e.Label, maxLabel), k.PublicKey
		switch {
		case e.CA:
			about, line = "the certificate authority, and all that it has signed", "cert-authority "+line
			l.CA = &k
			l.TrustedUserCAKeys = append(l.TrustedUserCAKeys, k.PublicKey)
		case e.Removed:
			about = "the removed key " + safetext.Line(e.Label, maxLabel)
			fallthrough
		default:
			l.Keys = append(l.Keys, k)
		}
		l.AuthorizedKeys = append(l.AuthorizedKeys, line)
		fmt.Fprintf(&b, "# %s, %s\n%s\n", about, k.Fingerprint, k.PublicKey)
	}
	l.Text = b.String()
	return l
}

// OfSerials is a list of single certificates. ssh-keygen is told by -s whose they
// are. No serial may be 0, which certificates without one have.
func OfSerials(ca ssh.PublicKey, serials []uint64) List {
	k := keyOf(Entry{Public: ca, CA: true})
	l := List{CA: &k, Keys: []Key{}, AuthorizedKeys: []string{}, TrustedUserCAKeys: []string{}}
	var b strings.Builder
	fmt.Fprintf(&b, "# certificates that %s has signed\n", k.Fingerprint)
	for _, n := range serials {
		s := strconv.FormatUint(n, 10)
		l.Serials = append(l.Serials, s)
		b.WriteString("serial: " + s + "\n")
	}
	l.Text = b.String()
	return l
}
