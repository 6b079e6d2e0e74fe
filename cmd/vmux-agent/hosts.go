// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/agent"
	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/knownhosts"
)

// hosts tells names of host keys. The zero value uses the user's own files and
// the system's; they are read each time, as ssh does.
type hosts struct{ config knownhosts.Config }

// names gives the names that known_hosts has for a host key, at most 256, the
// likeliest first. Hashed names, and those that a pattern there is for, are told
// when they are among also, what peer's command line mentions, or what ssh's
// configuration does.
func (h *hosts) names(hostKey []byte, peer agent.Peer, also []string) []string {
	key, err := ssh.ParsePublicKey(hostKey)
	if err != nil {
		return nil
	}
	args, _ := peer.Arguments() // it tells nothing when it has gone
	return h.known(key, args, also)
}

func (h *hosts) known(key ssh.PublicKey, args, also []string) []string {
	candidates, files := h.config.Mentioned(args, also)
	names := knownhosts.Names(files, key, candidates)
	for i, n := range names {
		names[i] = fit(n, envelope.MaxText)
	}
	return names
}

// files gives the known_hosts files that are used when no command line names
// others.
func (h *hosts) files() []string {
	_, files := h.config.Mentioned(nil, nil)
	return files
}
