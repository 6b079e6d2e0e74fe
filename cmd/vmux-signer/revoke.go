// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"

	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/krl"
	"vmux.app/toolkit/internal/signer"
)

// maxSerials bounds --serial.
const maxSerials = 1000

var revokeCommand = &cli.Command{
	Name: "revoke", Usage: "print what servers need to refuse the keys", ArgsUsage: "[LABEL...]",
	Description: `Without arguments: the certificate authority, for all that it has signed, and every key, also those that
are disabled or were removed. Nothing changes here. What is printed goes to "ssh-keygen -k", into RevokedKeys of
sshd_config as it is, and to "grep -vFf", which leaves the lines out of authorized_keys. It takes no passphrase.`,
	Flags: []cli.Flag{
		&cli.BoolFlag{Name: "ca", Usage: "the certificate authority, and of the keys those that are named"},
		&cli.StringsFlag{Name: "serial", Usage: "only the certificate with this `SERIAL`; more than once for more"},
	},
	Action: revoke,
}

// listOf is what revoke and erase print.
func listOf(keys []signer.PublicKey) krl.List {
	var entries []krl.Entry
	for _, k := range keys {
		entries = append(entries, krl.Entry{Public: k.Public, CA: k.CA, Label: k.Label, Removed: k.Removed})
	}
	return krl.Of(entries)
}

func printList(t *cli.TUI, l krl.List) {
	t.Result(l, func(w io.Writer) { fmt.Fprint(w, l.Text) })
}

func revoke(c *cli.Context) error {
	labels, serials := c.Args().Slice(), c.StringSlice("serial")
	if len(serials) > 0 && (len(labels) > 0 || c.Bool("ca")) {
		return &cli.UsageError{Problem: "--serial is for single certificates, neither for keys nor with --ca", Hint: "run it once for each"}
	}
	numbers, err := parseSerials(serials)
	if err != nil {
		return err
	}
	h, err := openHome(c)
	if err != nil {
		return err
	}
	keys, unknown := h.PublicKeys()
	t := cli.From(c)
	if len(numbers) > 0 {
		return revokeSerials(t, keys, unknown, numbers)
	}
	if len(labels) > 0 || c.Bool("ca") {
		for _, l := range labels {
			known := slices.ContainsFunc(keys, func(k signer.PublicKey) bool { return !k.CA && k.Label == l }) ||
				slices.ContainsFunc(unknown, func(e *signer.UnknownKeyError) bool { return !e.CA && e.Label == l })
			if !known {
				return fmt.Errorf("%w: %s", signer.ErrNoKey, l)
			}
		}
		other := func(ca bool, label string) bool {
			if ca {
				return !c.Bool("ca")
			}
			return !slices.Contains(labels, label)
		}
		keys = slices.DeleteFunc(keys, func(k signer.PublicKey) bool { return other(k.CA, k.Label) })
		unknown = slices.DeleteFunc(unknown, func(e *signer.UnknownKeyError) bool { return other(e.CA, e.Label) })
	}
	printList(t, listOf(keys))
	if err := incomplete(unknown); err != nil {
		return err
	}
	t.Notef("for sshd, with this output in FILE: ssh-keygen -k -f revoked.krl FILE (with -u it is added to one)")
	t.Notef("on every server: RevokedKeys /etc/ssh/revoked.krl in sshd_config; the file must be there before sshd is reloaded")
	t.Notef("then take the lines out: grep -vFf FILE ~/.ssh/authorized_keys, and where TrustedUserCAKeys points")
	t.Notef("keep a copy away from this computer: who loses the signer cannot run this")
	return nil
}

// incomplete is the error of a list that lacks keys.
func incomplete(unknown []*signer.UnknownKeyError) error {
	if len(unknown) == 0 {
		return nil
	}
	var all []error
	for _, e := range unknown {
		all = append(all, e)
	}
	return cli.Fail(cli.ExitFailed, "find its line on the servers, by its label, or a device that knows it: vmux-pair --list --json",
		fmt.Errorf("the list is not complete: %w", cli.Together(all)))
}

func revokeSerials(t *cli.TUI, keys []signer.PublicKey, unknown []*signer.UnknownKeyError, serials []uint64) error {
	i := slices.IndexFunc(keys, func(k signer.PublicKey) bool { return k.CA })
	if i < 0 {
		return incomplete(unknown)
	}
	printList(t, krl.OfSerials(keys[i].Public, serials))
	t.Notef("for sshd, with this output in FILE: vmux-signer revoke --ca >ca.pub; ssh-keygen -k -f revoked.krl -s ca.pub FILE")
	t.Notef("on every server: RevokedKeys /etc/ssh/revoked.krl in sshd_config; the file must be there before sshd is reloaded")
	return nil
}

// parseSerials reads certificates' serials, which are decimal.
func parseSerials(list []string) ([]uint64, error) {
	if len(list) > maxSerials {
		return nil, &cli.UsageError{Problem: fmt.Sprintf("--serial: %d are more than %d", len(list), maxSerials), Hint: "run it several times"}
	}
	var numbers []uint64
	for _, s := range list {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil || n == 0 || strconv.FormatUint(n, 10) != s {
			return nil, &cli.UsageError{Problem: fmt.Sprintf("--serial: %q is no serial", s), Hint: "write it as vmux-cert list, or ssh-keygen -L, prints it"}
		}
		numbers = append(numbers, n)
	}
	return numbers, nil
}
