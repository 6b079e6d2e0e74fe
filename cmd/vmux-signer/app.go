// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"errors"
	"fmt"
	"os"

	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/keyfile"
	"vmux.app/toolkit/internal/signer"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/tpm"
)

func app() *cli.App {
	return &cli.App{
		Name:  "vmux-signer",
		Usage: "keep SSH keys and sign what their owner approves",
		Description: `The phone's part on any computer: it answers the vmux-agent of paired devices.
The home is $VMUX_SIGNER_HOME, else vmux-signer in $XDG_DATA_HOME or ~/.local/share. Keys in it are
encrypted with a passphrase.`,
		Commands: []*cli.Command{
			{
				Name: "init", Usage: "make the home: keys, certificate authority, name",
				Flags: []cli.Flag{&cli.StringFlag{Name: "name", Usage: "be called `NAME` by devices",
					DefaultText: "the computer's name"},
					passphraseFlag, providerFlag(),
					&cli.BoolFlag{Name: "no-passphrase", Usage: "do not encrypt the keys: whoever can read them has them"},
				},
				Action: initHome,
			},
			{
				Name: "serve", Usage: "answer paired devices until interrupted",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "listen", Usage: "listen on `HOST:PORT`", Value: ":0"},
					&cli.BoolFlag{Name: "no-advertise", Usage: "do not advertise by DNS-SD"},
					&cli.BoolFlag{Name: "nearby", Usage: "let devices nearby connect without a network (macOS)"},
					&cli.StringFlag{Name: "asleep", Usage: "neither listen nor advertise until somebody connects to `HOST:PORT`"},
					&cli.StringFlag{Name: "device-token", Usage: "have devices push to `TOKEN`, hexadecimal, when this is asleep"},
					&cli.StringFlag{Name: "topic", Usage: "the push's `TOPIC`, a bundle id"},
					cli.Choice("environment", "the push service's `ENVIRONMENT`", "production", "production", "sandbox"),
					passphraseFlag,
					&cli.BoolFlag{Name: "app-lock", Usage: "ask for the passphrase before prompts are shown"},
					cli.Choice("approve", "ask for approval by `MEANS`; always is for tests and demonstrations", "",
						"terminal", "askpass", "command:PROGRAM", "always"),
					&cli.BoolFlag{Name: "no-notify", Usage: "show no notifications on the desktop"},
					cli.LogLevelFlag(),
				},
				Action: serve,
			},
			{
				Name: "pair", Usage: "let one device pair with the running signer", ArgsUsage: "[URL]",
				Description: `Without URL, the device's owner types the digits that are shown here. With the URL that
"vmux-pair --url" prints, that device is paired without digits. A window is for one try.
"-" reads the URL from standard input, where other users of this computer do not see it.`,
				Flags: []cli.Flag{&cli.DurationFlag{Name: "timeout", Usage: "close the window after `DURATION`",
					Value: signer.DefaultWindow}},
				Action: pair,
			},
			{Name: "status", Usage: "say what the running signer is doing", Action: showStatus},
			{Name: "lock", Usage: "withdraw prompts, and have the passphrase given before others", Action: lock},
			{
				Name: "unlock", Usage: "give the running signer the passphrase", Flags: []cli.Flag{passphraseFlag}, Action: unlock,
				Description: `After five approvals in a row that failed, with App Lock, and where approvals do not ask for the
passphrase by themselves. After wrong ones it takes longer.`,
			},
			{
				Name: "passphrase", Usage: "encrypt the keys with another passphrase",
				Flags: []cli.Flag{
					passphraseFlag,
					&cli.StringFlag{Name: "new-passphrase-file", Usage: "take the new one from the first line of `FILE`", TakesFile: true},
					&cli.BoolFlag{Name: "none", Usage: "decrypt the keys: whoever can read them has them"},
				},
				Action: changePassphrase,
			},
			{Name: "devices", Usage: "list the paired devices", Action: devices},
			{Name: "forget", Usage: "unpair a device and cut its links", ArgsUsage: "DEVICE", Action: forget},
			{
				Name: "hosts", Usage: "list the host keys of approved logins", Action: hostKeys,
				Description: `Prompts say whether a host key was approved before, and warn when a name comes with another key.
The names are those that devices have given.`,
				Subcommands: []*cli.Command{
					{
						Name: "remove", Usage: "forget host keys", ArgsUsage: "NAME...", Action: hostsRemove,
						Description: "NAME is that of a host, for all its keys, or a key's fingerprint, SHA256:..., for all its names.",
					},
				},
			},
			auditCommand(),
			revokeCommand,
			eraseCommand,
			{
				Name: "key", Usage: "manage the keys",
				Subcommands: []*cli.Command{
					{
						Name: "add", Usage: "make a key and print its public half", ArgsUsage: "LABEL",
						Flags: []cli.Flag{
							cli.Choice("type", "make a key of `TYPE`", string(keyfile.ECDSA), string(keyfile.ECDSA), string(keyfile.Ed25519)),
							passphraseFlag, providerFlag(),
						},
						Action: keyAdd,
					},
					{Name: "list", Usage: "list the keys", Action: keyList},
					{Name: "disable", Usage: "neither offer nor use a key", ArgsUsage: "LABEL", Action: keyEnable(false)},
					{Name: "enable", Usage: "offer and use a key again", ArgsUsage: "LABEL", Action: keyEnable(true)},
					{Name: "remove", Usage: "destroy a key and print what revokes it", ArgsUsage: "LABEL", Action: keyRemove},
				},
			},
		},
	}
}

func openHome(c *cli.Context) (*signer.Home, error) {
	dir, err := store.Env(os.Getenv).SignerHome()
	if err != nil {
		return nil, err
	}
	h, err := signer.Open(dir, func(s string) { cli.From(c).Warnf("%s", s) })
	if err != nil {
		return nil, err
	}
	h.SetTPM(tpmDevice())
	return h, nil
}

// tpmDevice is $VMUX_TPM, else the kernel's.
func tpmDevice() string {
	if d := os.Getenv("VMUX_TPM"); d != "" {
		return d
	}
	return tpm.Default
}

// changed tells a running signer that the home has changed.
func changed(c *cli.Context, h *signer.Home) error {
	err := h.Reload(c.Context)
	if errors.Is(err, signer.ErrNotRunning) {
		return nil
	}
	if err != nil {
		return cli.Fail(cli.ExitFailed, "end the running vmux-signer and start it again",
			fmt.Errorf("changed on disk, but the running vmux-signer did not take it up: %w", err))
	}
	return nil
}
