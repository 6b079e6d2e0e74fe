// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/policy"
	"vmux.app/toolkit/internal/process"
	"vmux.app/toolkit/internal/signed"
)

// Destination gives the host key that a login goes to as far as that is proven, nil if it is not: that which the data
// names, since no server with another one takes the login, else HostKey.
func (r *Request) Destination() []byte {
	if r.Meaning.HostKey != nil {
		return r.Meaning.HostKey
	}
	return r.HostKey
}

// facts is what the policy p is told of r. What costs something is looked up when a rule needs it.
func (s *Server) facts(r *Request, p *policy.Policy) *policy.Facts {
	return &policy.Facts{
		Kind:      r.Meaning.Kind.String(),
		Namespace: r.Meaning.Namespace,
		Key:       r.fingerprint,
		Comment:   r.Key.Comment,
		User:      r.Meaning.User,
		Forwarded: r.Forwarded,
		Host: func() (string, []string) {
			key, err := ssh.ParsePublicKey(r.Destination())
			if err != nil {
				return "", nil
			}
			key = publicHalf(key)
			if s.hostNames == nil || r.Meaning.Kind != signed.Login {
				return ssh.FingerprintSHA256(key), nil
			}
			return ssh.FingerprintSHA256(key), s.hostNames(r.Destination(), r.Peer, p.Hosts())
		},
		Executable: func() string {
			path, _ := r.Peer.Executable() // "" when unknown
			return process.Undeleted(path)
		},
		Ancestors: func() []string {
			chain, err := r.Peer.Chain()
			if err != nil {
				return []string{""}
			}
			paths := make([]string, 0, len(chain))
			for _, p := range chain[1:] {
				paths = append(paths, process.Undeleted(p.Executable))
			}
			if !chain[len(chain)-1].Leads() {
				paths = append(paths, "") // others that have ended, or are too far up
			}
			return paths
		},
	}
}
