// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"vmux.app/toolkit/internal/cli"
)

func app() *cli.App {
	return &cli.App{
		Name:  "vmux-cert",
		Usage: "request, list, check and drop session certificates; run a job under one",
		Description: "Without a command: asks the phone, by way of the running agent, for a certificate of a key that is\n" +
			"made for it in the agent's memory. ssh then logs in with it until it ends, and the phone is not needed.",
		Flags: append(requestFlags(),
			&cli.StringFlag{Name: "min-remaining", Usage: "ask nobody when a certificate of the same request is valid for `DURATION` more"},
			&cli.StringFlag{Name: "public-key", Usage: "certify the key in `FILE` instead of a new one, and print the certificate"},
			&cli.StringFlag{Name: "out", Usage: "write the certificate of --public-key to `FILE` instead"},
		),
		Action: request,
		Commands: []*cli.Command{
			{Name: "list", Usage: "list the agent's certificates", Flags: agentFlags(), Action: list},
			{Name: "check", Usage: "exit 0 when a certificate is good, 1 when it is due for renewal, 2 when there is none",
				Flags: append(agentFlags(), &cli.StringFlag{Name: "expires-in", Value: "10m",
					Usage: "due when less than `TIME` is left, a duration or a percentage of the validity"}),
				Action: check},
			{Name: "drop", Usage: "end certificates now", ArgsUsage: "[SERIAL]",
				Flags: append(agentFlags(), &cli.BoolFlag{Name: "all", Usage: "all of them"}), Action: drop},
			{Name: "ca", Usage: "print the public key of the phone's certificate authority",
				Flags: []cli.Flag{
					&cli.BoolFlag{Name: "authorized-keys", Usage: "as a cert-authority line for authorized_keys"},
					&cli.StringsFlag{Name: "principal", Usage: "let that line accept the principal `NAME` only; may be repeated"},
					&cli.StringFlag{Name: "phone", Usage: "of the phone called `NAME`, or with this pin"},
				}, Action: ca},
			{Name: "run", Usage: "run a command that logs in with a certificate of its own", ArgsUsage: "[--] COMMAND [ARGUMENT...]",
				Flags: requestFlags(), Action: run},
		},
	}
}

// agentFlags say which agent is meant.
func agentFlags() []cli.Flag { return []cli.Flag{cli.SocketFlag(), cli.ConfigFlag()} }

// requestFlags describe a certificate.
func requestFlags() []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{Name: "validity", Usage: "valid for `DURATION`, as in 8h, 30m, 1d or 3600", DefaultText: "8h, or as vmux.toml says"},
		&cli.StringsFlag{Name: "principal", Usage: "the account `NAME` to log in as; may be repeated", DefaultText: "your login name"},
		&cli.StringFlag{Name: "identity", Usage: "of the phone that has the identity `LABEL`"},
		&cli.StringFlag{Name: "key-id", Usage: "`TEXT` for sshd's log; {serial} stands for the serial", DefaultText: "vmux:USER@DEVICE:SERIAL"},
		&cli.StringFlag{Name: "source-address", Usage: "servers accept it from `CIDR,...` only"},
		&cli.StringFlag{Name: "force-command", Usage: "servers run `COMMAND` whatever is asked"},
		&cli.BoolFlag{Name: "no-pty", Usage: "no terminals"},
		&cli.BoolFlag{Name: "no-port-forwarding", Usage: "no forwarding of ports"},
		&cli.BoolFlag{Name: "no-agent-forwarding", Usage: "no forwarding of the agent, and no use of the certificate through one"},
		&cli.BoolFlag{Name: "x11-forwarding", Usage: "allow X11 forwarding"},
		&cli.StringsFlag{Name: "host", Usage: "use it for `NAME` of known_hosts, or the host key SHA256:..., only; may be repeated"},
		&cli.IntFlag{Name: "uses", Usage: "use it for `N` signatures", DefaultText: "any number"},
		&cli.StringFlag{Name: "reason", Usage: "`TEXT` for the phone's prompt"},
	}, agentFlags()...)
}
