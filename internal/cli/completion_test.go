// SPDX-License-Identifier: BSD-3-Clause

package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestCandidates(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"":                              "key run open all by need fail",
		"k":                             "key",
		"-":                             "--level --json --quiet --help --version",
		"--le":                          "--level",
		"--level|x|k":                   "key",
		"--level|":                      "",
		"key|":                          "add list",
		"key|add|":                      "",
		"key|add|--t":                   "--type --timeout",
		"key|add|--type|":               "ecdsa ed25519",
		"key|add|--type|ed":             "ed25519",
		"key|add|--type|ecdsa|--t":      "--timeout",
		"key|add|--type=ecdsa|label|--": "--timeout --count --file --json --quiet --help",
		"by|--means|":                   "hand tool: none",
		"by|--means|to":                 "tool:",
		"by|--means|tool:":              "tool:",
		"run|ssh|--j":                   "",
		"all|--|--j":                    "",
		"nonsense|--j":                  "--json",
	} {
		exit, stdout, stderr := run(t, append([]string{"completion", "words", "--"}, strings.Split(args, "|")...)...)
		var words []string
		for line := range strings.Lines(stdout) {
			word, _, ok := strings.Cut(line, "\t")
			if !ok {
				t.Errorf("%s: %q", args, line)
			}
			words = append(words, word)
		}
		if got := strings.Join(words, " "); got != want || exit != 0 || stderr != "" {
			t.Errorf("%s: %q, want %q", args, got, want)
		}
	}
}

// Each shell loads its script and completes with it.
func TestShells(t *testing.T) {
	t.Parallel()
	dir := install(t)
	for _, shell := range []string{"bash", "zsh", "fish"} {
		exit, script, _ := run(t, "completion", shell)
		if exit != 0 || strings.Contains(script, "@") && shell == "fish" {
			t.Errorf("%s: exit %d\n%s", shell, exit, script)
		}
		name := map[string]string{"bash": "vmux-test.bash", "zsh": "_vmux-test", "fish": "vmux-test.fish"}[shell]
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		shell, script, want string
	}{
		{"bash", `. ./vmux-test.bash; COMP_WORDS=(vmux-test key add --t); COMP_CWORD=3; _vmux_test; echo "${COMPREPLY[*]}"; complete -p vmux-test`,
			"--type --timeout\ncomplete -o default -F _vmux_test vmux-test"},
		{"bash", `. ./vmux-test.bash; COMP_WORDS=(vmux-test ""); COMP_CWORD=1; _vmux_test; echo "${COMPREPLY[*]}"`, "key run open all by need fail"},
		{"bash", `. ./vmux-test.bash; COMP_WORDS=(vmux-test key add --type ed); COMP_CWORD=4; _vmux_test; echo "${COMPREPLY[*]}"`, "ed25519"},
		{"fish", `source vmux-test.fish; complete -C "vmux-test key add --t"`, "--timeout\twait for DURATION\n--type\tthe TYPE of key"},
		{"fish", `source vmux-test.fish; complete -C "vmux-test key add --type ed"`, "ed25519"},
		{"fish", `source vmux-test.fish; complete -C "vmux-test key add --file vmux-test.f"`, "vmux-test.fish"},
		// The pieces of the completion system that print are replaced: it runs within the line editor only.
		{"zsh", `autoload -U compinit; fpath=($PWD $fpath); compinit -u -D; print $_comps[vmux-test]
			_describe() { print -l -- $found }; words=(vmux-test key add --t); CURRENT=4; autoload +X _vmux-test; _vmux-test`,
			"_vmux-test\n--type:the TYPE of key\n--timeout:wait for DURATION"},
		{"zsh", `autoload -U compinit; compinit -u -D; . ./_vmux-test; print $_comps[vmux-test]`, "_vmux_test"},
	} {
		path, err := exec.LookPath(c.shell)
		if err != nil {
			if c.shell == "bash" || os.Getenv("CI") == "true" {
				t.Error(err)
			}
			t.Logf("%s is not installed", c.shell)
			continue
		}
		args := []string{"-c", c.script}
		switch c.shell {
		case "zsh":
			args = append([]string{"-f"}, args...)
		case "fish":
			args = append([]string{"--no-config"}, args...)
		}
		cmd := exec.Command(path, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", "PATH="+dir+":"+os.Getenv("PATH"), "HOME="+dir, "XDG_CONFIG_HOME="+dir, "XDG_DATA_HOME="+dir)
		out, err := cmd.CombinedOutput()
		if got := strings.TrimSpace(string(out)); got != c.want {
			t.Errorf("%s -c %s\n%q, want %q, %v", c.shell, c.script, got, c.want, err)
		}
	}
}
