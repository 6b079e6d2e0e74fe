// SPDX-License-Identifier: BSD-3-Clause

package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const nobody = 65534

func newSession(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }

func inDir(dir string) func(*exec.Cmd) { return func(cmd *exec.Cmd) { cmd.Dir = dir } }

// childSpecial has what the processes of the tests can be told to do.
func childSpecial(verb, arg string) string {
	switch verb {
	case "pid":
		return strconv.Itoa(os.Getpid())
	case "protected":
		open, _, err := Protected()
		return fmt.Sprint(open, err)
	case "harden":
		if err := Harden(); err != nil {
			return err.Error()
		}
		var core unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_CORE, &core); err != nil {
			return err.Error()
		}
		dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
		if err != nil {
			return err.Error()
		}
		if open, limit, err := Protected(); err != nil || open || limit != 0 {
			return fmt.Sprintf("protected: open %v, core %d, %v", open, limit, err)
		}
		// Our own view must stay whole.
		all, err := Chain(os.Getpid())
		if err != nil || len(all) == 0 || all[0].Executable == "" {
			return fmt.Sprintf("own chain: %+v, %v", all, err)
		}
		return fmt.Sprintf("dumpable %d core %d %d", dumpable, core.Cur, core.Max)
	case "open":
		f, err := os.Open(arg)
		if err != nil {
			return "no"
		}
		_ = f.Close()
		return "yes"
	case "attach":
		pid, err := strconv.Atoi(arg)
		if err == nil {
			err = unix.PtraceSeize(pid)
		}
		if err != nil {
			return "no"
		}
		return "yes"
	case "executable":
		pid, err := strconv.Atoi(arg)
		if err != nil {
			return err.Error()
		}
		exe, err := Executable(pid)
		all, cerr := Chain(pid)
		if cerr != nil {
			return cerr.Error()
		}
		return fmt.Sprintf("%q %q %v sibling %v", exe, all[0].Executable, err != nil, Sibling(pid, ownFile()))
	default:
		return "what?"
	}
}

func ownFile() string {
	exe, err := os.Executable()
	if err != nil {
		return ""
	}
	return exe
}

// TestHarden has one process that is hardened, one that is not, and a third of the same user that tries both. Root sees
// everything, so root's tests play another user.
func TestHarden(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "v") // t.TempDir has two levels, one of them shut
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		t.Fatal(err)
	}
	path := install(t, filepath.Join(dir, "tool"))
	unprivileged := func(cmd *exec.Cmd) {
		if os.Getuid() == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		}
	}
	hard, soft := startChild(t, path, "", unprivileged), startChild(t, path, "", unprivileged)
	checker := startChild(t, path, "", unprivileged)
	if got := soft.do("protected"); got != "true <nil>" {
		t.Errorf("an ordinary process is protected: %s", got)
	}
	if got, want := hard.do("harden"), "dumpable 0 core 0 0"; got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
	for _, file := range []string{"mem", "environ", "maps"} {
		if got := checker.do("open /proc/%d/%s", hard.pid(), file); got != "no" {
			t.Errorf("%s of the hardened process can be opened", file)
		}
		// Without this the test could not fail. Yama may protect memory of any process that is no child.
		if got := checker.do("open /proc/%d/%s", soft.pid(), file); got != "yes" && (file != "mem" || !yama()) {
			t.Errorf("%s of an ordinary process cannot be opened", file)
		}
	}
	if got, want := checker.do("executable %d", soft.pid()), fmt.Sprintf("%q %q false sibling true", path, path); got != want {
		t.Errorf("ordinary process: got %s, want %s", got, want)
	}
	if got, want := checker.do("executable %d", hard.pid()), `"" "" true sibling false`; got != want {
		t.Errorf("hardened process: got %s, want %s", got, want)
	}
	if got := checker.do("attach %d", hard.pid()); got != "no" {
		t.Error("the hardened process can be traced")
	}
}

func yama() bool {
	b, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope")
	return err == nil && strings.TrimSpace(string(b)) != "0"
}

func TestDeletedExecutable(t *testing.T) {
	t.Parallel()
	path := install(t, filepath.Join(tempDir(t), "tool"))
	c := startChild(t, path, "", nil)
	c.do("pid")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if got, err := Executable(c.pid()); got != path+" (deleted)" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestOpenDirectoryOutlivesItsProcess(t *testing.T) {
	t.Parallel()
	c := startChild(t, self(t), "", nil)
	c.do("pid")
	d, err := open(c.pid())
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	c.end()
	if _, err := d.link("exe"); err == nil {
		t.Error("answers for a process that has ended")
	}
}

func TestParseStat(t *testing.T) {
	t.Parallel()
	const rest = " S 8 9 7 34816 9 4194304 1 2 3 4 5 6 7 8 20 0 1 0 12345 1000"
	for _, c := range []struct {
		in   string
		want Process
		ok   bool
	}{
		{"9 (cat)" + rest, Process{PID: 9, Parent: 8, Session: 7, Name: "cat", Start: 12345}, true},
		{"9 (a) S 1 (b c)" + rest, Process{PID: 9, Parent: 8, Session: 7, Name: "a) S 1 (b c", Start: 12345}, true},
		{"9 ())" + rest, Process{PID: 9, Parent: 8, Session: 7, Name: ")", Start: 12345}, true},
		{"9 ()" + rest + "\n", Process{PID: 9, Parent: 8, Session: 7, Start: 12345}, true},
		{"9 (a\nb)" + rest, Process{PID: 9, Parent: 8, Session: 7, Name: "a\nb", Start: 12345}, true},
		{"", Process{}, false},
		{"9 cat" + rest, Process{}, false},
		{"9 )cat(" + rest, Process{}, false},
		{"x (cat)" + rest, Process{}, false},
		{"0 (cat)" + rest, Process{}, false},
		{"-9 (cat)" + rest, Process{}, false},
		{"9 (cat) S 8 9 7", Process{}, false},
		{"9 (cat) S x 9 7" + rest, Process{}, false},
		{"9 (cat) S 8 9 -7" + rest, Process{}, false},
	} {
		got, err := parseStat([]byte(c.in))
		if (err == nil) != c.ok || got != c.want {
			t.Errorf("%q: got %+v, %v", c.in, got, err)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("9 (a) S 1 (b c) S 8 9 7 34816 9 4194304 1 2 3 4 5 6 7 8 20 0 1 0 12345 1000"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := parseStat(b); err == nil && (p.PID <= 0 || p.Parent < 0 || p.Session < 0) {
			t.Errorf("%q: %+v", b, p)
		}
	})
}
