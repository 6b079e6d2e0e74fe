// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"vmux.app/toolkit/internal/tpm/tpmtest"
)

// tpmUser is somebody with a TPM and a passphrase in a file.
type tpmUser struct {
	t    *testing.T
	home string
	tpm  string
}

func newTPMUser(t *testing.T, m *tpmtest.TPM) *tpmUser {
	t.Helper()
	dir := shortDir(t)
	m.LockAfter(32, time.Hour)
	u := &tpmUser{t, dir, m.Path()}
	u.write("pass", "correct horse")
	u.write("wrong", "wrong")
	u.write("next", "next")
	return u
}

func (u *tpmUser) write(name, line string) {
	u.t.Helper()
	if err := os.WriteFile(filepath.Join(u.home, name), []byte(line+"\n"), 0o600); err != nil {
		u.t.Fatal(err)
	}
}

func (u *tpmUser) run(args string) (exit int, stdout, stderr string) {
	u.t.Helper()
	c := exec.CommandContext(u.t.Context(), "vmux-signer", strings.Fields(args)...)
	c.Dir = u.home
	c.Env = append(os.Environ(), "HOME="+u.home, "VMUX_SIGNER_HOME="+u.signer(), "VMUX_TPM="+u.tpm, "SSH_ASKPASS=", "GORACE=atexit_sleep_ms=10")
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	var status *exec.ExitError
	if err != nil && !errors.As(err, &status) {
		u.t.Fatal(err)
	}
	return c.ProcessState.ExitCode(), out.String(), errs.String()
}

func (u *tpmUser) signer() string { return filepath.Join(u.home, "h") }

// says runs a command whose exit status and outputs match.
func (u *tpmUser) says(args string, exit int, stdout, stderr string) {
	u.t.Helper()
	e, out, errs := u.run(args)
	for _, m := range []struct{ pattern, text string }{{stdout, out}, {stderr, errs}} {
		if !regexp.MustCompile("(?m)" + m.pattern).MatchString(m.text) {
			u.t.Errorf("vmux-signer %s: %q does not match %q", args, m.text, m.pattern)
		}
	}
	if e != exit {
		u.t.Errorf("vmux-signer %s: exit %d\n%s%s", args, e, out, errs)
	}
}

func TestTPMCommands(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	u := newTPMUser(t, m)
	u.says("init --provider tpm --no-passphrase", 2, `\A\z`, `\Aerror: a key in a TPM always has a passphrase\nhint: leave out --no-passphrase`)
	u.says("init --provider card --passphrase-file pass", 2, `\A\z`, `^error: --provider: "card" is none of file, tpm$`)
	m.Stop()
	u.says("init --provider tpm --passphrase-file pass", 1, `\A\z`,
		`\Aerror: no usable TPM: `+regexp.QuoteMeta(u.tpm)+` does not exist\nhint: see what there is: ls -l /dev/tpmrm0; .*VMUX_TPM\n\z`)
	m.Restart()
	if left, err := filepath.Glob(filepath.Join(u.home, "[.h]*")); err != nil || len(left) > 0 {
		t.Errorf("init has left %v", left)
	}
	u.says("init --provider tpm --passphrase-file pass --name Pocket", 0, `\Aecdsa-sha2-nistp256 \S+ default\n\z`, `^made `)

	u.says("key add hard --provider tpm --passphrase-file pass", 0, `\Aecdsa-sha2-nistp256 \S+ hard\n\z`, `\A\z`)
	u.says("key add soft --type ed25519 --passphrase-file pass", 0, `\Assh-ed25519 \S+ soft\n\z`, `\A\z`)
	u.says("key add x --provider tpm --type ed25519 --passphrase-file pass", 2, `\A\z`,
		`\Aerror: a TPM has keys of type ecdsa only\nhint: leave out --type, or write --provider file\n\z`)
	u.says("key add x --provider tpm --passphrase-file wrong", 1, `\A\z`, `\Aerror: wrong passphrase; the TPM locks after \d+ more\nhint: `)
	u.says("key add x --provider tpm", 2, `\A\z`, `\Aerror: .*encrypted.*\nhint: run it in a terminal`)
	list := func(names ...string) {
		t.Helper()
		want := `\A`
		for _, n := range names {
			rest := `in a TPM`
			if n == "soft" {
				rest = `encrypted`
			}
			want += fmt.Sprintf(`%s +enabled +\S+ +SHA256:\S+ +%s\n`, n, rest)
		}
		u.says("key list", 0, want+`\z`, `\A\z`)
	}
	list("default", "hard", "soft")
	u.says("key list --json", 0, `\{"label":"hard","enabled":true,"providerKind":"hardwareToken","encrypted":true,"algorithm":"ecdsa-sha2-nistp256",`, `\A\z`)

	// A file of a TPM's key is what others of this format read, and has no secret of ours.
	text, err := os.ReadFile(filepath.Join(u.signer(), "keys", "hard"))
	if err != nil || !bytes.HasPrefix(text, []byte("-----BEGIN TSS2 PRIVATE KEY-----\n")) {
		t.Errorf("%v: %s", err, text)
	}

	// The passphrase of all changes, or of none.
	u.says("passphrase --passphrase-file pass --none", 2, `\A\z`, `\Aerror: .*a key in a TPM always has a passphrase\nhint: leave out --no-passphrase or --none`)
	m.Stop()
	u.says("passphrase --passphrase-file pass --new-passphrase-file next", 1, `\A\z`, `\Aerror: no usable TPM: .*\nhint: see what there is`)
	m.Restart()
	u.says("passphrase --passphrase-file wrong --new-passphrase-file next", 1, `\A\z`, `\Aerror: wrong passphrase; the TPM locks after \d+ more\nhint: `)
	u.says("passphrase --passphrase-file pass --new-passphrase-file next", 0, `\A\z`, `\Athe keys have the new passphrase`)
	u.says("key add x --provider tpm --passphrase-file pass", 1, `\A\z`, `\Aerror: wrong passphrase; the TPM locks after \d+ more\n`)
	u.says("key add another --provider tpm --passphrase-file next", 0, ` another\n`, `\A\z`)
	list("another", "default", "hard", "soft")

	// Each way in which a TPM is the wrong one.
	other := tpmtest.Start(t)
	mine := u.tpm
	u.tpm = other.Path()
	u.says("key add x --provider tpm --passphrase-file next", 1, `\A\z`, `\Aerror: the key is not of this TPM.*\nhint: use the TPM that made it`)
	u.tpm = mine
	m.DisableOwner()
	u.says("key add x --provider tpm --passphrase-file next", 1, `\A\z`, `\Aerror: wrong owner of the TPM.*\nhint: if it has a password, .*: tpm2_changeauth -c owner -p PASSWORD; if it is disabled, enable it`)
	m.Restart()
	m.LockAfter(1, time.Hour) // which the wrong ones before are enough for
	u.says("key add x --provider tpm --passphrase-file next", 1, `\A\z`, `\Aerror: the TPM is locked after wrong passphrases for at most .*\nhint: wait .*tpm2_dictionarylockout`)
	u.says("serve --approve true --passphrase-file next --listen 127.0.0.1:0", 2, ``, ``)
	u.says("serve --approve command:true --passphrase-file next --listen 127.0.0.1:0", 1, `\A\z`, `\Aerror: the TPM is locked after wrong passphrases`)
	m.LockAfter(32, time.Hour)
	m.Unlock()
	list("another", "default", "hard", "soft")

	// What needs none works without the TPM.
	m.Stop()
	list("another", "default", "hard", "soft")
	u.says("status", 0, `\AOffline\n`, `\A\z`)
	u.says("key disable hard", 0, `\A\z`, `the key hard is disabled`)
	u.says("key remove hard", 0, `^# the removed key hard, SHA256:`, `the key hard is gone for good`)
	list("another", "default", "soft")
	u.says("revoke", 0, `^# the removed key hard, SHA256:`, `.*`)
	u.says("audit --verify", 0, `\Awhole: `, `\A\z`)
	u.says("erase --yes", 0, `^# the removed key hard, SHA256:`, `.*`)
	if _, err := os.Lstat(u.signer()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after erase: %v", err)
	}
	m.Restart()
}

// In a home whose keys have no passphrase, a TPM's key cannot be.
func TestTPMKeyInBareHome(t *testing.T) {
	t.Parallel()
	u := newTPMUser(t, tpmtest.Start(t))
	u.says("init --no-passphrase --quiet", 0, ` default\n`, `warning|\A\z`)
	u.says("key add hard --provider tpm", 2, `\A\z`, `\Aerror: a key in a TPM always has a passphrase\nhint: .*vmux-signer passphrase\n`)
	u.says("key add hard --provider tpm --passphrase-file pass", 1, `\A\z`, `\Aerror: the keys are not encrypted.*\nhint: give the keys one: vmux-signer passphrase\n`)
	u.says("passphrase --new-passphrase-file pass", 0, `\A\z`, `the new passphrase`)
	u.says("key add hard --provider tpm --passphrase-file pass", 0, ` hard\n`, `\A\z`)
}
