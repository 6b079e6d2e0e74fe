// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/knownhosts"
	"vmux.app/toolkit/internal/session"
)

// resolveHost gives the host keys that --host means: a fingerprint is itself, a
// name is looked up in known_hosts.
func resolveHost(name string) (session.Host, error) {
	if strings.HasPrefix(name, "SHA256:") {
		return session.Host{Name: name, Fingerprints: []string{name}}, nil
	}
	keys, err := knownhosts.Keys(knownhosts.Files(os.Getenv("HOME")), name)
	if err != nil {
		return session.Host{}, cli.Fail(cli.ExitUsage, "mend the file, or give the host's fingerprint: --host SHA256:...", err)
	}
	if len(keys) == 0 {
		return session.Host{}, cli.Fail(cli.ExitUsage, "connect to it once with ssh, or give its fingerprint: --host SHA256:...",
			fmt.Errorf("--host: %q is not in known_hosts", name))
	}
	h := session.Host{Name: name}
	for _, k := range keys {
		if f := ssh.FingerprintSHA256(k); !slices.Contains(h.Fingerprints, f) {
			h.Fingerprints = append(h.Fingerprints, f)
		}
	}
	return h, nil
}
