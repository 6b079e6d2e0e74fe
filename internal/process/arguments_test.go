// SPDX-License-Identifier: BSD-3-Clause

package process

import (
	"encoding/binary"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func TestArguments(t *testing.T) {
	t.Parallel()
	long := make([]string, 100)
	for i := range long {
		long[i] = strings.Repeat("x", 999)
	}
	for _, c := range []struct {
		name       string
		args, want []string
	}{
		{"plain", []string{"ssh", "-p", "2222", "me@host"}, nil},
		{"only a name", []string{"-ssh"}, nil},
		{"any bytes", []string{"a b", "", "\n\xff=", "", "'*'"}, nil},
		{"empty ones last", []string{"ssh", "", ""}, nil},
		{"longer than the bound", long, long[:65]}, // 65 of 1000 bytes are whole in 65536
		{"one longer than the bound", []string{"ssh", "host", strings.Repeat("x", maxArguments)}, []string{"ssh", "host"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			child := startChild(t, self(t), "", func(cmd *exec.Cmd) { cmd.Args = c.args })
			child.do("pid")
			want := c.want
			if want == nil {
				want = c.args
			}
			if got, err := Arguments(child.pid()); err != nil || !slices.Equal(got, want) {
				t.Errorf("%d arguments %.200q, %v, want %d", len(got), got, err, len(want))
			}
		})
	}
}

func TestSplit(t *testing.T) {
	t.Parallel()
	whole := strings.Repeat("x", maxArguments-1) + "\x00"
	for _, c := range []struct {
		name, in string
		count    int
		want     []string
	}{
		{"nothing", "", -1, nil},
		{"rewritten line", "ssh: me@host [mux]", -1, []string{"ssh: me@host [mux]"}},
		{"rewritten line with padding", "ssh: x\x00\x00", -1, []string{"ssh: x", ""}},
		{"counted", "a\x00b\x00HOME=/\x00", 2, []string{"a", "b"}},
		{"fewer than counted", "a\x00", 2, []string{"a"}},
		{"none", "a\x00", 0, nil},
		{"as long as the bound", whole, -1, []string{whole[:maxArguments-1]}},
		{"longer", whole + "y\x00", -1, []string{whole[:maxArguments-1]}},
		{"longer in one", "y" + whole, -1, nil},
	} {
		if got := split([]byte(c.in), c.count); !slices.Equal(got, c.want) {
			t.Errorf("%s: %.200q", c.name, got)
		}
	}
}

// procArgs is an answer to kern.procargs2.
func procArgs(count int32, rest string) []byte {
	return append(binary.NativeEndian.AppendUint32(nil, uint32(count)), rest...)
}

func TestParseProcArgs(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		in   []byte
		want []string
		ok   bool
	}{
		{"as seen", procArgs(3, "/usr/bin/ssh\x00\x00\x00\x00ssh\x00\x00me@host\x00HOME=/\x00SHELL=/bin/sh\x00"), []string{"ssh", "", "me@host"}, true},
		{"no padding", procArgs(1, "/bin/ls\x00ls\x00PATH=/\x00"), []string{"ls"}, true},
		{"none", procArgs(0, "/bin/ls\x00\x00PATH=/\x00"), nil, true},
		{"shorter than counted", procArgs(1<<31-1, "/bin/ls\x00ls\x00"), []string{"ls"}, true},
		{"only a path", procArgs(1, "/bin/ls\x00"), nil, true},
		{"negative", procArgs(-1, "/bin/ls\x00ls\x00"), nil, false},
		{"path without end", procArgs(1, "/bin/ls"), nil, false},
		{"short", []byte{1, 0, 0}, nil, false},
		{"empty", nil, nil, false},
	} {
		if got, err := parseProcArgs(c.in); (err == nil) != c.ok || !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, %v", c.name, got, err)
		}
	}
}

func FuzzParseProcArgs(f *testing.F) {
	f.Add(procArgs(2, "/bin/ls\x00\x00ls\x00-l\x00PATH=/\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		args, err := parseProcArgs(b)
		if size := len(strings.Join(args, "")); err != nil && args != nil || size > maxArguments || size > len(b) {
			t.Errorf("%q: %q, %v", b, args, err)
		}
	})
}
