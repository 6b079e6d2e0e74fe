// SPDX-License-Identifier: BSD-3-Clause

package cli

import (
	_ "embed"
	"fmt"
	"io"
	"strings"
)

// completionCommand is the first argument, left out of the help, that serves shells: `completion bash`, zsh or fish
// prints the script that is installed, and `completion words -- WORD...` what may stand for the last word, one
// "word TAB meaning" for each line. The scripts have no knowledge of their own and stay right when a flag is added.
const completionCommand = "completion"

var (
	//go:embed completion.bash
	bashScript string
	//go:embed completion.zsh
	zshScript string
	//go:embed completion.fish
	fishScript string
)

func completion(root *Command, args []string, t *TUI) int {
	scripts := map[string]string{"bash": bashScript, "zsh": zshScript, "fish": fishScript}
	switch {
	case len(args) == 1 && scripts[args[0]] != "":
		s := strings.ReplaceAll(scripts[args[0]], "@NAME@", root.Name)
		s = strings.ReplaceAll(s, "@FUNCTION@", "_"+strings.ReplaceAll(root.Name, "-", "_"))
		t.Result(nil, func(w io.Writer) { fmt.Fprint(w, s) })
		return t.finish(nil)
	case len(args) >= 2 && args[0] == "words" && args[1] == "--":
		t.Result(nil, func(w io.Writer) {
			for _, c := range candidates(root, args[2:]) {
				fmt.Fprintf(w, "%s\t%s\n", c[0], c[1])
			}
		})
		return t.finish(nil)
	}
	return t.finish(&UsageError{"completion is for bash, zsh and fish", fmt.Sprintf("type: %s completion bash|zsh|fish", root.Name)})
}

// candidates returns words and their meaning that may stand for the last of words. None means that a file name or
// something only the user knows belongs there.
func candidates(root *Command, words []string) [][2]string {
	if len(words) == 0 {
		words = []string{""}
	}
	before, last := words[:len(words)-1], words[len(words)-1]
	cmd := root
	var pending Flag // its value comes next
	used := make(map[string]bool)
	for _, w := range before {
		switch {
		case pending != nil:
			pending = nil
		case w == "--":
			return nil
		case len(w) > 1 && w[0] == '-':
			name, _, hasValue := strings.Cut(strings.TrimLeft(w, "-"), "=")
			if f := findFlag(cmd, name); f != nil {
				used[f.Names()[0]] = true
				if takesValue(f) && !hasValue {
					pending = f
				}
			}
		case len(cmd.Subcommands) == 0:
			if foreign(cmd) {
				return nil
			}
		default:
			if sub := cmd.Command(w); sub != nil {
				cmd, used = sub, make(map[string]bool)
			}
		}
	}
	var found [][2]string
	add := func(word, meaning string) {
		if strings.HasPrefix(word, last) {
			found = append(found, [2]string{word, meaning})
		}
	}
	if pending != nil {
		if c, ok := pending.(*choiceFlag); ok {
			for _, v := range c.values {
				if open := openChoice(v); open != "" {
					v = open
				}
				add(v, "")
			}
		}
		return found
	}
	if !strings.HasPrefix(last, "-") {
		for _, c := range cmd.Subcommands {
			if !c.Hidden {
				add(c.Name, c.Usage)
			}
		}
		return found
	}
	for _, f := range cmd.Flags {
		if name := f.Names()[0]; !hidden(f) && !used[name] {
			text, _ := usage(f)
			add(dashes(name), text)
		}
	}
	return found
}
