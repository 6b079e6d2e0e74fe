// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestEraseAsks types other things than the signer's name, which erase nothing, and
// then the name.
func TestEraseAsks(t *testing.T) {
	t.Parallel()
	home := filepath.Join(t.TempDir(), "h")
	initialize := func() {
		t.Helper()
		cmd := exec.Command("vmux-signer", "init", "--no-passphrase", "--name", "My Pocket")
		cmd.Env = append(os.Environ(), "VMUX_SIGNER_HOME="+home)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	initialize()
	key := filepath.Join(home, "keys/default")
	for _, c := range []struct {
		asked, typed, shown string
		exit                int
	}{
		{"Type the signer's name, My Pocket, to erase: ", "y\n", `error: "y" is not My Pocket`, 1},
		{"Type the signer's name, My Pocket, to erase: ", "\n", `error: "" is not My Pocket`, 1},
		{"Type the signer's name, My Pocket, to erase: ", "erase\n", `nothing was erased`, 1},
		{"Type the signer's name, My Pocket, to erase: ", "\x03", "", 130},
		{"Type the signer's name, My Pocket, to erase: ", "My Pocket\n", "# the key default, ", 0},
	} {
		pty, cmd := onTTY(t, home, "erase")
		pty.Expect(c.asked)
		if _, err := os.Stat(key); err != nil {
			t.Fatal(err)
		}
		pty.Type(c.typed)
		pty.Expect(c.shown)
		err := cmd.Wait()
		status, exited := errors.AsType[*exec.ExitError](err)
		if c.exit == 0 && err != nil || c.exit != 0 && (!exited || status.ExitCode() != c.exit) {
			t.Errorf("%q: %v, want exit %d", c.typed, err, c.exit)
		}
		if _, err := os.Stat(key); os.IsNotExist(err) != (c.exit == 0) {
			t.Errorf("%q: the key: %v", c.typed, err)
		}
	}

	// One whose name is not known.
	initialize()
	if err := os.WriteFile(filepath.Join(home, "state.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	pty, cmd := onTTY(t, home, "erase")
	pty.Expect("Type the word erase to erase: ")
	pty.Type("erase\n")
	pty.Expect("is erased")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(home); !os.IsNotExist(err) {
		t.Errorf("the home: %v", err)
	}
}
