// SPDX-License-Identifier: BSD-3-Clause

package cli

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"
)

// printHelp prints what --help prints, for the command that p names.
func printHelp(w io.Writer, p *parsed) {
	cmd := p.command()
	fmt.Fprintf(w, "%s - %s\n\nusage: %s\n", p.path(), cmd.Usage, synopsis(p))
	if cmd.Description != "" {
		fmt.Fprintf(w, "\n%s\n", strings.TrimSpace(cmd.Description))
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	defer tw.Flush()
	if len(cmd.Subcommands) > 0 {
		fmt.Fprint(tw, "\ncommands:\n")
		for _, c := range cmd.Subcommands {
			if !c.Hidden {
				fmt.Fprintf(tw, "  %s\t%s\n", strings.TrimSpace(c.Name+" "+c.ArgsUsage), c.Usage)
			}
		}
	}
	fmt.Fprint(tw, "\nflags:\n")
	for _, f := range cmd.Flags {
		if hidden(f) {
			continue
		}
		text, value := usage(f)
		fmt.Fprintf(tw, "  %s\t%s%s\n", strings.TrimSpace(flagForm(f)+" "+value), text, defaultText(f))
	}
}

func flagForm(f Flag) string {
	var forms []string
	for _, n := range f.Names() {
		forms = append(forms, dashes(n))
	}
	return strings.Join(forms, ", ")
}

func defaultText(f Flag) string {
	d, ok := f.(cli.DocGenerationFlag)
	if !ok || !d.TakesValue() {
		return ""
	}
	text := d.GetDefaultText()
	if text == "" {
		text = d.GetValue()
	}
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s") // as people write durations
	}
	text = strings.Trim(text, `"`)
	if text == "" || text == "[]" || text == "0" || text == "0s" {
		return ""
	}
	return " (default " + text + ")"
}

func synopsis(p *parsed) string {
	cmd := p.command()
	s := p.path() + " [flags]"
	switch {
	case len(cmd.Subcommands) == 0:
	case cmd.Action != nil:
		s += " [COMMAND]"
	default:
		s += " COMMAND"
	}
	return strings.TrimSpace(s + " " + cmd.ArgsUsage)
}

// version is set by the linker: -X vmux.app/toolkit/internal/cli.version=0.1.0.
var version string

// Version returns this build's version, "0.1.0", or "devel" when it has none.
func Version() string {
	if version != "" {
		return version
	}
	if b, ok := debug.ReadBuildInfo(); ok && strings.HasPrefix(b.Main.Version, "v") {
		return b.Main.Version[1:]
	}
	return "devel"
}

// versionInfo is what --version prints.
type versionInfo struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

func versionOf(name string) versionInfo {
	return versionInfo{name, Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH}
}

func (v versionInfo) String() string {
	return fmt.Sprintf("%s %s (%s, %s/%s)", v.Name, v.Version, v.Go, v.OS, v.Arch)
}
