// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"vmux.app/toolkit/internal/agent"
	"vmux.app/toolkit/internal/envelope"
)

func hostKey(t *testing.T) (ssh.PublicKey, string) {
	t.Helper()
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return key, string(ssh.MarshalAuthorizedKey(key))
}

func TestNames(t *testing.T) {
	t.Parallel()
	var h hosts
	h.config.Home, h.config.System = t.TempDir(), t.TempDir()
	key, line := hostKey(t)
	other, otherLine := hostKey(t)
	own := filepath.Join(h.config.Home, ".ssh")
	if err := os.Mkdir(own, 0o700); err != nil {
		t.Fatal(err)
	}
	known := knownhosts.HashHostname("deploy") + " " + line + knownhosts.HashHostname("db.example") + " " + line +
		strings.Repeat("\xff", 2) + " " + otherLine + strings.Repeat("x", 2000) + " " + otherLine
	for name, text := range map[string]string{"known_hosts": known, "config": "Host data\nHostName db.example\n"} {
		if err := os.WriteFile(filepath.Join(own, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	if got, want := h.known(key, []string{"ssh", "me@Deploy"}, nil), []string{"deploy", "db.example"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := h.known(other, nil, nil), []string{"\uFFFD", strings.Repeat("x", envelope.MaxText)}; !slices.Equal(got, want) {
		t.Errorf("not fit for the link: %.200q", got)
	}
	// A client that has gone is no hindrance.
	if got, want := h.names(key.Marshal(), agent.Peer{}, []string{"deploy"}), []string{"deploy", "db.example"}; !slices.Equal(got, want) {
		t.Errorf("of a client that has gone: %q", got)
	}
	for _, blob := range [][]byte{nil, []byte("no key")} {
		if got := h.names(blob, agent.Peer{}, []string{"deploy"}); got != nil {
			t.Errorf("%q has names: %q", blob, got)
		}
	}
}
