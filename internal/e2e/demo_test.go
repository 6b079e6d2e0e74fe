// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The demo works with OpenSSH's server and with its own, ends by itself within
// 15 s and leaves nothing behind.
func TestDemo(t *testing.T) {
	t.Parallel()
	demo := filepath.Join(t.TempDir(), "demo")
	if out, err := exec.Command("go", "build", "-buildvcs=false", raceFlag, "-o", demo, "./demo").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	need(t, "sshd")
	for _, args := range [][]string{{binDir}, {binDir, "embedded"}} {
		t.Run(args[len(args)-1], func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			tmp := h.path("tmp")
			if err := os.Mkdir(tmp, 0o700); err != nil {
				t.Fatal(err)
			}
			h.setenv("TMPDIR", tmp)
			start := time.Now()
			r := h.run(demo, args...)
			if took := time.Since(start); took > 15*time.Second {
				t.Errorf("it took %v", took)
			}
			if r.exit != 0 || r.stderr != "" {
				t.Fatalf("demo: %v", r)
			}
			for _, want := range []string{"(ECDSA)", "(ED25519)", "hello, with a key", "Permission denied", "cannot be reached"} {
				if !strings.Contains(r.stdout, want) {
					t.Errorf("it does not show %q:\n%s", want, r.stdout)
				}
			}
			if left, err := os.ReadDir(tmp); err != nil || len(left) != 0 {
				t.Errorf("it left %v (%v)", left, err)
			}
		})
	}
}
