// SPDX-License-Identifier: BSD-3-Clause

package cli

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// urfave/cli stops reading flags at the first argument and then takes `key add LABEL --type ed25519` for three
// labels. So the command line is read here first, where flags count wherever they stand, and handed on in the order
// that urfave/cli understands: flags, command, its flags, "--", arguments. What is wrong is said here, too.

// UsageError says what is wrong with a command line and what to type instead. The status is ExitUsage.
type UsageError struct {
	Problem string
	Hint    string // empty: the command's --help
}

func (e *UsageError) Error() string { return e.Problem }

// maxWords bounds the command line, far above what the kernel passes in practice.
const maxWords = 1 << 16

// parsed is a command line as far as it was understood.
type parsed struct {
	chain                      []*Command // the root first, at least that
	normal                     []string   // for urfave/cli
	json, quiet, help, version bool
}

func (p *parsed) command() *Command { return p.chain[len(p.chain)-1] }

// path returns the words that name the command: "vmux-signer key add".
func (p *parsed) path() string {
	var names []string
	for _, c := range p.chain {
		names = append(names, c.Name)
	}
	return strings.Join(names, " ")
}

// parse reads the whole command line also after an error, so that --json and --help hold wherever they stand. The first
// error, a *UsageError, is returned.
func parse(root *Command, args []string) (*parsed, error) {
	p := &parsed{chain: []*Command{root}, normal: []string{root.Name}}
	var first error
	fail := func(problem, hint string, v ...any) {
		if first == nil {
			first = &UsageError{problem, fmt.Sprintf(hint, v...)}
		}
	}
	if len(args) > maxWords {
		fail("too many arguments", "%s", "")
		return p, first
	}
	var rest []string
	set := make(map[string]bool)
	for i := 0; i < len(args); i++ {
		word := args[i]
		cmd := p.command()
		if word == "--" {
			rest = append(rest, args[i+1:]...)
			break
		}
		if len(word) < 2 || word[0] != '-' {
			if len(cmd.Subcommands) == 0 {
				if rest = append(rest, word); foreign(cmd) {
					rest = append(rest, args[i+1:]...)
					break
				}
				continue
			}
			if sub := cmd.Command(word); sub != nil {
				p.chain = append(p.chain, sub)
				p.normal = append(p.normal, sub.Name)
				continue
			}
			if word == "help" {
				p.help = true
				continue
			}
			fail(fmt.Sprintf("there is no command %q", word), "%s", didYouMean(word, commandNames(cmd), p))
			continue
		}
		name, value, hasValue := strings.Cut(strings.TrimPrefix(word[1:], "-"), "=")
		f := findFlag(cmd, name)
		if f == nil {
			fail(fmt.Sprintf("there is no flag %s", dashes(name)), "%s", didYouMean(name, flagNames(cmd), p))
			continue
		}
		long := f.Names()[0]
		set[long] = true
		if !takesValue(f) {
			if hasValue && value != "true" && value != "false" {
				fail(fmt.Sprintf("%s takes no value", dashes(long)), "write %s alone", dashes(long))
				continue
			}
			on := value != "false"
			switch long {
			case "json":
				p.json = on
			case "quiet":
				p.quiet = on
			case "help":
				p.help = on
			case "version":
				p.version = on
			}
			p.normal = append(p.normal, fmt.Sprintf("--%s=%t", long, on))
			continue
		}
		if !hasValue {
			if i+1 == len(args) || strings.HasPrefix(args[i+1], "--") {
				fail(fmt.Sprintf("%s needs a value", dashes(name)), "write %s", example(f))
				continue
			}
			i++
			value = args[i]
		}
		p.normal = append(p.normal, "--"+long+"="+value)
	}
	cmd := p.command()
	if first == nil && !p.help && !p.version {
		if len(cmd.Subcommands) > 0 && (cmd.Action == nil || len(rest) > 0) {
			fail("no command is given", "type one of: %s %s", p.path(), strings.Join(commandNames(cmd), "|"))
		}
		for _, f := range cmd.Flags {
			if r, ok := f.(cli.RequiredFlag); ok && r.IsRequired() && !set[f.Names()[0]] {
				fail(fmt.Sprintf("%s is missing", dashes(f.Names()[0])), "add %s", example(f))
			}
		}
		if least, most := arity(cmd); len(rest) < least {
			fail(fmt.Sprintf("%s is missing", argumentName(cmd, len(rest))), "type: %s", synopsis(p))
		} else if len(rest) > most {
			fail(fmt.Sprintf("there is no place for the argument %q", rest[most]), "type: %s", synopsis(p))
		}
	}
	if len(cmd.Subcommands) == 0 {
		p.normal = append(append(p.normal, "--"), rest...)
	}
	return p, first
}

func findFlag(cmd *Command, name string) Flag {
	for _, f := range cmd.Flags {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

func takesValue(f Flag) bool {
	d, ok := f.(cli.DocGenerationFlag)
	return ok && d.TakesValue()
}

func hidden(f Flag) bool {
	v, ok := f.(cli.VisibleFlag)
	return ok && !v.IsVisible()
}

func dashes(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// usage returns what a flag does and what its value is called: that is between back quotes.
func usage(f Flag) (text, value string) {
	d, ok := f.(cli.DocGenerationFlag)
	if !ok {
		return "", ""
	}
	text = d.GetUsage()
	if before, after, ok := strings.Cut(text, "`"); ok {
		if name, end, ok := strings.Cut(after, "`"); ok {
			text, value = before+name+end, name
		}
	}
	if c, ok := f.(*choiceFlag); ok {
		value = strings.Join(c.values, "|")
	}
	if value == "" && d.TakesValue() {
		value = "VALUE"
	}
	return text, value
}

// example returns how to write a flag.
func example(f Flag) string {
	name := dashes(f.Names()[0])
	switch f.(type) {
	case *DurationFlag:
		return name + " 90s, or 2m, or 1h30m"
	case *IntFlag:
		return name + " and a whole number"
	}
	_, value := usage(f)
	return name + " " + value
}

// valueError returns the handler of what is left for urfave/cli to find: values of flags. Its message is
// `invalid value "x" for flag -timeout: parse error`.
func valueError(cmd *Command) cli.OnUsageErrorFunc {
	return func(_ *Context, err error, _ bool) error {
		head, tail, ok := strings.Cut(err.Error(), " for flag -")
		name, _, ok2 := strings.Cut(tail, ":")
		if f := findFlag(cmd, name); ok && ok2 && f != nil {
			return &UsageError{fmt.Sprintf("%s is no value for --%s", strings.TrimPrefix(head, "invalid value "), name), "write " + example(f)}
		}
		return &UsageError{Problem: err.Error()}
	}
}

// foreign says that cmd's arguments are another command's line.
func foreign(cmd *Command) bool { return strings.HasPrefix(cmd.ArgsUsage, "[--]") }

// arity reads ArgsUsage.
func arity(cmd *Command) (least, most int) {
	for _, w := range argumentWords(cmd) {
		optional := strings.HasPrefix(w, "[")
		if !optional {
			least++
		}
		if strings.Contains(w, "...") {
			return least, math.MaxInt
		}
		most++
	}
	return least, most
}

func argumentWords(cmd *Command) []string {
	return strings.Fields(strings.TrimPrefix(cmd.ArgsUsage, "[--]"))
}

func argumentName(cmd *Command, i int) string {
	words := argumentWords(cmd)
	return strings.TrimSuffix(words[min(i, len(words)-1)], "...")
}

func flagNames(cmd *Command) []string {
	var names []string
	for _, f := range cmd.Flags {
		for _, n := range f.Names() {
			if !hidden(f) && len(n) > 1 {
				names = append(names, "--"+n)
			}
		}
	}
	return names
}

func commandNames(cmd *Command) []string {
	var names []string
	for _, c := range cmd.Subcommands {
		if !c.Hidden {
			names = append(names, c.Name)
		}
	}
	return names
}

// didYouMean returns a hint: the nearest of candidates, if one is near, and the way to the help.
func didYouMean(word string, candidates []string, p *parsed) string {
	best, least := "", len(word)/2+1 // half of it wrong is another word
	for _, c := range candidates {
		bare := strings.TrimLeft(c, "-")
		d := distance(word, bare)
		if len(word) >= 2 && strings.HasPrefix(bare, word) {
			d = 1
		}
		if d < least {
			best, least = c, d
		}
	}
	help := p.path() + " --help"
	if best == "" {
		return "type: " + help
	}
	return fmt.Sprintf("did you mean %s? see %s", best, help)
}

// maxDistance bounds the work for a word of any length: names are shorter than that.
const maxDistance = 64

// distance returns how many letters are to be changed, added, removed or swapped with the next one to make b of a.
func distance(a, b string) int {
	if len(a) > maxDistance || len(b) > maxDistance {
		return maxDistance
	}
	row := make([][]int, len(a)+1)
	for i := range row {
		row[i] = make([]int, len(b)+1)
		row[i][0] = i
	}
	for j := range row[0] {
		row[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[i][j] = min(row[i-1][j]+1, row[i][j-1]+1, row[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[i][j] = min(row[i][j], row[i-2][j-2]+1)
			}
		}
	}
	return row[len(a)][len(b)]
}
