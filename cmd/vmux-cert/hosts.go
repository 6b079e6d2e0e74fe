// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"fmt"
	"os"

	"vmux.app/toolkit/internal/knownhosts"
	"vmux.app/toolkit/internal/session"
)

// resolveHost gives the host keys that --host means: a fingerprint is itself, a
// name is looked up in known_hosts.
func resolveHost(name string) (session.Host, error) {
	keys, err := knownhosts.Lookup(knownhosts.Files(os.Getenv("HOME")), name)
	if err != nil {
		return session.Host{}, fmt.Errorf("--host: %w", err)
	}
	h := session.Host{Name: name}
	for _, k := range keys {
		h.Fingerprints = append(h.Fingerprints, k.Fingerprint)
	}
	return h, nil
}
