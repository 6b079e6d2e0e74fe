// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"context"
	"os"
	"path/filepath"
	"strings"
)

func sshChecks() []Check {
	return []Check{
		{ID: "auth-sock", Title: "SSH_AUTH_SOCK points to the socket", Run: checkAuthSock},
	}
}

func checkAuthSock(_ context.Context, e *Env) Finding {
	value := e.Getenv("SSH_AUTH_SOCK")
	if same(value, e.Config.Socket) {
		return ok("SSH_AUTH_SOCK is the socket")
	}
	err := &AuthSockError{value, owner(value), e.Config.Socket}
	return e.failure(err, "what asks for keys here asks another agent, or none")
}

// same says whether two paths name one file, or would.
func same(a, b string) bool {
	if a == "" || b == "" {
		return false
	}
	if filepath.Clean(a) == filepath.Clean(b) {
		return true
	}
	x, err := os.Stat(a)
	y, err2 := os.Stat(b)
	return err == nil && err2 == nil && os.SameFile(x, y)
}

// owner says whose socket has such a path.
func owner(path string) string {
	for _, o := range []struct{ part, name string }{
		{"/com.apple.launchd.", "the one of macOS"},
		{"/keyring/", "gnome-keyring's"},
		{"/gcr/", "gnome-keyring's"},
		{"S.gpg-agent.ssh", "gpg-agent's"},
		{"/.1password/", "1Password's"},
		{"/2BUA8C4S2C.com.1password/", "1Password's"},
		{"/vmux-job-", "that of a vmux-cert run"},
		{"/tmp/ssh-", "that of an ssh-agent, or a forwarded one"},
		{"/openssh_agent", "ssh-agent's"},
		{"/ssh-agent", "ssh-agent's"},
	} {
		if strings.Contains(path, o.part) {
			return o.name
		}
	}
	return ""
}
