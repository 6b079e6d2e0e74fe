// SPDX-License-Identifier: BSD-3-Clause

//go:build gnustep && cgo

package oslog

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The stand-in reads what the compiler has made of a message, as macOS does, and writes it into a file. Text that is not marked as public
// would be hidden, and so would whatever was left out.
func TestThreat_I03_UnifiedLog(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	t.Setenv("FAKE_OSLOG", file)
	level := new(slog.LevelVar)
	level.Set(slog.LevelDebug)
	log := slog.New(New(level))
	log.Debug("d")
	log.Info("signed", "host", "größe %s %n %{private}s")
	log.Warn("odd\nline", "key", "a\x00b")
	log.Error("e", "long", strings.Repeat("x", 2500))
	log.Log(t.Context(), slog.LevelInfo+1, "between")
	level.Set(slog.LevelWarn)
	log.Info("below the level")
	New(level).Handle(t.Context(), slog.Record{Level: slog.LevelWarn, Message: "from nowhere"})
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	want := []string{
		`app.vmux.agent oslog created`,
		`app.vmux.agent oslog debug msg=d`,
		`app.vmux.agent oslog default msg=signed host="größe %s %n %{private}s"`,
		`app.vmux.agent oslog default msg="odd\nline" key="a\x00b"`,
		`app.vmux.agent oslog error msg=e long=` + strings.Repeat("x", maxEntry-len("msg=e long=")),
		`app.vmux.agent oslog error … ` + strings.Repeat("x", maxEntry-len(continued)),
		`app.vmux.agent oslog error … ` + strings.Repeat("x", 2500-2*maxEntry+len("msg=e long=")+len(continued)),
		`app.vmux.agent oslog default msg=between`,
		`app.vmux.agent vmux created`,
		`app.vmux.agent vmux default msg="from nowhere"`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%q, not\n%q", got, want)
	}
}
