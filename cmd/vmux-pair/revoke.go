// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/krl"
	"vmux.app/toolkit/internal/phone"
	"vmux.app/toolkit/internal/store"
)

// revoke prints what servers need to refuse the keys of a phone, as far as this
// device knows them: for who has lost the phone and has no list of its own making.
func revoke(c *cli.Context) error {
	_, state, err := loadState(c)
	if err != nil {
		return err
	}
	p, err := lostPhone(c, state)
	if err != nil {
		return err
	}
	t := cli.From(c)
	var entries []krl.Entry
	var missing []error
	add := func(e krl.Entry, blob []byte) {
		var err error
		if e.Public, err = plain(blob); err != nil {
			missing = append(missing, err)
			return
		}
		entries = append(entries, e)
	}
	if len(p.CAKey) > 0 {
		add(krl.Entry{CA: true}, p.CAKey)
	}
	for _, k := range p.Keys {
		add(krl.Entry{Label: k.Comment}, k.Blob)
	}
	if len(entries)+len(missing) == 0 {
		return cli.Fail(cli.ExitFailed, "let the agent ask the phone for them: ssh-add -l", fmt.Errorf("no key of %s is known yet", p.Name))
	}
	l := krl.Of(entries)
	t.Result(l, func(w io.Writer) { fmt.Fprint(w, l.Text) })
	if len(missing) > 0 {
		return cli.Fail(cli.ExitFailed, "find its line on the servers", fmt.Errorf("the list is not complete: %w", cli.Together(missing)))
	}
	t.Notef("of the keys these are those that %s offered last; one that is disabled or was removed is not among them", p.Name)
	t.Notef("for sshd, with this output in FILE: ssh-keygen -k -f revoked.krl FILE; more in: man vmux-signer, REVOCATION")
	return nil
}

// lostPhone is the one whose keys are meant: to revoke those of another one by
// accident would lock its owner out.
func lostPhone(c *cli.Context, state store.State) (store.Phone, error) {
	found, wanted := state.Phones, c.String("phone")
	if c.IsSet("phone") {
		found = state.Named(wanted)
	}
	switch {
	case len(state.Phones) == 0:
		return store.Phone{}, phone.ErrNotPaired
	case len(found) == 0:
		return store.Phone{}, cli.Fail(cli.ExitFailed, "see the names: vmux-pair --list", fmt.Errorf("no paired phone is called %q", wanted))
	case len(found) > 1:
		return store.Phone{}, &cli.UsageError{Problem: fmt.Sprintf("%d paired phones could be meant", len(found)),
			Hint: "name one by its name or pin, as in: vmux-pair --list --revoke --phone " + found[0].Pin}
	}
	return found[0], nil
}

// plain is a key that is no certificate.
func plain(blob []byte) (ssh.PublicKey, error) {
	public, err := ssh.ParsePublicKey(blob)
	if err != nil {
		return nil, err
	}
	if _, ok := public.(*ssh.Certificate); ok {
		return nil, errors.New("it is a certificate")
	}
	return public, nil
}
