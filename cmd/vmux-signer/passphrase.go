// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/keyfile"
	"vmux.app/toolkit/internal/signer"
)

// credentialName is the systemd credential that has the passphrase.
const credentialName = "vmux-signer.passphrase"

// unlockTime bounds "vmux-signer unlock": the longest wait after wrong ones.
const unlockTime = 20 * time.Minute

var passphraseFlag = &cli.StringFlag{Name: "passphrase-file", Usage: "take the passphrase from the first line of `FILE`", TakesFile: true}

// badPassphrase is what is wrong with a passphrase that was given.
func badPassphrase(format string, a ...any) error {
	return &cli.UsageError{Problem: fmt.Sprintf(format, a...), Hint: fmt.Sprintf("write one of 1 to %d bytes on one line", keyfile.MaxPassphrase)}
}

// givenPassphrase is that of --passphrase-file or of the service manager, nil for
// none.
func givenPassphrase(c *cli.Context) ([]byte, error) {
	if c.IsSet("passphrase-file") {
		return readPassphrase(c.String("passphrase-file"), true)
	}
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return nil, nil
	}
	p, err := readPassphrase(filepath.Join(dir, credentialName), false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return p, err
}

// readPassphrase reads the first line of a file. A pipe may be named too, as a
// shell's <(...) is one; a private one must be its owner's alone.
func readPassphrase(path string, private bool) ([]byte, error) {
	failed := func(err error) error {
		return cli.Fail(cli.ExitFailed, "look at the path and the permissions: ls -l "+cli.Quote(path), fmt.Errorf("the passphrase cannot be read: %w", err))
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, failed(err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, failed(err)
	}
	if private && fi.Mode().IsRegular() && fi.Mode().Perm()&0o077 != 0 {
		return nil, &cli.UsageError{Problem: fmt.Sprintf("%s is open to others (mode %04o)", path, fi.Mode().Perm()), Hint: "chmod 600 " + cli.Quote(path)}
	}
	b, err := io.ReadAll(io.LimitReader(f, keyfile.MaxPassphrase+3)) // with \r\n, and one too many
	if err != nil {
		return nil, failed(err)
	}
	line, rest, _ := bytes.Cut(b, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	switch {
	case len(line) == 0:
		return nil, badPassphrase("%s has no passphrase in its first line", path)
	case len(line) > keyfile.MaxPassphrase:
		return nil, badPassphrase("%s has a passphrase of more than %d bytes", path, keyfile.MaxPassphrase)
	case bytes.IndexByte(line, 0) >= 0: // which nobody can type
		return nil, badPassphrase("%s has a zero byte in its passphrase", path)
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, badPassphrase("%s has more than one line", path)
	}
	return line, nil
}

// askPassphrase asks for a passphrase on the terminal, else by the program of
// $SSH_ASKPASS.
func askPassphrase(c *cli.Context, prompt string) ([]byte, error) {
	t := cli.From(c)
	var p []byte
	var err error
	if t.Interactive() && os.Getenv("SSH_ASKPASS_REQUIRE") != "force" {
		p, err = t.AskSecret(c.Context, prompt+": ")
	} else {
		var ask *signer.Askpass
		if ask, err = signer.NewAskpass(os.Getenv); err == nil {
			p, err = ask.Secret(c.Context, prompt)
		} else if errors.Is(err, signer.ErrNoAskpass) && os.Getenv("SSH_ASKPASS") == "" {
			err = signer.ErrProtected
		}
	}
	switch {
	case err != nil:
	case len(p) == 0:
		err = badPassphrase("the passphrase is empty")
	case len(p) > keyfile.MaxPassphrase:
		err = badPassphrase("the passphrase has more than %d bytes", keyfile.MaxPassphrase)
	}
	return p, err
}

// passphrase is the home's: given or asked for; nil when its keys have none.
func passphrase(c *cli.Context, h *signer.Home) ([]byte, error) {
	protected, err := h.Protected()
	if err != nil {
		return nil, err
	}
	p, err := givenPassphrase(c)
	if err != nil || len(p) > 0 && (protected || c.IsSet("passphrase-file")) {
		return p, err
	}
	if !protected {
		return nil, nil
	}
	return askPassphrase(c, "Passphrase of "+h.Dir())
}

// newPassphrase is one for keys that do not have it yet: in the file of a flag, or
// asked for twice. none is the flag to have no passphrase.
func newPassphrase(c *cli.Context, flag, none string) ([]byte, error) {
	if c.IsSet(flag) {
		return readPassphrase(c.String(flag), true)
	}
	p, err := askPassphrase(c, "New passphrase for the keys")
	if errors.Is(err, signer.ErrProtected) {
		return nil, &cli.UsageError{Problem: "there is no terminal to ask for a new passphrase on",
			Hint: fmt.Sprintf("name a file that has it, --%s FILE, or do without: --%s", flag, none)}
	}
	if err != nil {
		return nil, err
	}
	again, err := askPassphrase(c, "Again")
	if err != nil {
		return nil, err
	}
	defer clear(again)
	if !bytes.Equal(p, again) {
		return nil, &cli.UsageError{Problem: "the two passphrases differ", Hint: "nothing was changed; try again"}
	}
	return p, nil
}

// changePassphrase encrypts every key anew.
func changePassphrase(c *cli.Context) error {
	h, err := openHome(c)
	if err != nil {
		return err
	}
	if c.Bool("none") && c.IsSet("new-passphrase-file") {
		return &cli.UsageError{Problem: "--none and --new-passphrase-file exclude one another", Hint: "leave one out"}
	}
	old, err := passphrase(c, h)
	if err != nil {
		return err
	}
	defer clear(old)
	if err := h.CheckPassphrase(old); err != nil { // before two more questions
		return err
	}
	var p []byte
	if !c.Bool("none") {
		if p, err = newPassphrase(c, "new-passphrase-file", "none"); err != nil {
			return err
		}
		defer clear(p)
	}
	if err := h.ChangePassphrase(old, p); err != nil {
		return err
	}
	switch {
	case p == nil:
		cli.From(c).Warnf("the keys are not encrypted: whoever can read %s has them", h.Dir())
	case old == nil:
		cli.From(c).Notef("the keys have the new passphrase; copies of the old files are not encrypted")
	default:
		cli.From(c).Notef("the keys have the new passphrase; copies of the old files still open with the old one")
	}
	return changed(c, h)
}

// unlock gives the passphrase to the running signer.
func unlock(c *cli.Context) error {
	h, err := openHome(c)
	if err != nil {
		return err
	}
	if _, err := h.Status(c.Context); err != nil { // before a question for nothing
		return err
	}
	p, err := passphrase(c, h)
	if err != nil {
		return err
	}
	defer clear(p)
	ctx, cancel := context.WithTimeout(c.Context, unlockTime)
	defer cancel()
	stop := cli.From(c).Waiting("the signer to look at the passphrase", unlockTime)
	err = h.Unlock(ctx, p)
	stop()
	if err != nil {
		return err
	}
	cli.From(c).Notef("unlocked")
	return nil
}

func lock(c *cli.Context) error {
	h, err := openHome(c)
	if err != nil {
		return err
	}
	if err := h.Lock(c.Context); err != nil {
		return err
	}
	cli.From(c).Notef("locked: nothing is shown or signed until the passphrase is given")
	return nil
}
