// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/doctor"
)

// setup prints what leads ssh and others to the socket. Nothing is written: the files are the user's.
func setup(c *cli.Context, e doctor.Env) {
	file, shell := shellLine(filepath.Base(e.Getenv("SHELL")), e)
	config := []string{"Host *", "    IdentityAgent " + configPath(e.Config.Socket, e.Home)}
	result := struct {
		SSHConfig []string `json:"sshConfig"` // lines for ~/.ssh/config
		ShellFile string   `json:"shellFile"`
		Shell     []string `json:"shell"` // lines for ShellFile
	}{config, file, []string{shell}}
	cli.From(c).Result(result, func(w io.Writer) {
		fmt.Fprintf(w, "# at the end of ~/.ssh/config: ssh, scp, sftp and git, wherever they are started\n%s\n\n", strings.Join(config, "\n"))
		fmt.Fprintf(w, "# in %s: ssh-add, git's signatures and everything else that asks an agent\n%s\n", file, shell)
	})
}

// shellLine gives the user's start-up file and the line for it.
func shellLine(shell string, e doctor.Env) (file, line string) {
	rest, inHome := strings.CutPrefix(e.Config.Socket, e.Home+"/")
	path := cli.Quote(e.Config.Socket)
	if inHome {
		path = "~/" + cli.Quote(rest)
	}
	switch shell {
	case "fish":
		return "~/.config/fish/config.fish", "set -gx SSH_AUTH_SOCK " + path
	case "csh", "tcsh":
		return "~/.cshrc", "setenv SSH_AUTH_SOCK " + path
	case "zsh":
		return "~/.zshrc", "export SSH_AUTH_SOCK=" + path
	case "bash":
		return "~/.bashrc", "export SSH_AUTH_SOCK=" + path
	}
	return "~/.profile", "export SSH_AUTH_SOCK=" + path
}

// configPath writes a path as ssh_config(5) takes it.
func configPath(path, home string) string {
	if rest, ok := strings.CutPrefix(path, home+"/"); ok {
		path = "~/" + rest
	}
	path = strings.ReplaceAll(path, "%", "%%")
	if strings.ContainsAny(path, " \t#'\"\\") {
		path = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(path) + `"`
	}
	return path
}
