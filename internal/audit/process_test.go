// SPDX-License-Identifier: BSD-3-Clause

package audit

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// roles are what the test binary does as another process: it runs what the variable names, on the directory that is
// its argument.
const roleVariable = "VMUX_AUDIT_TEST"

var roles = map[string]func(dir string) error{
	"hundred": func(dir string) error { return roleAppend(dir, 100) },
	"forever": func(dir string) error { return roleAppend(dir, 1<<30) },
	"limited": roleLimited,
	"umask":   roleUmask,
}

func TestMain(m *testing.M) {
	role := os.Getenv(roleVariable)
	if role == "" {
		os.Exit(m.Run())
	}
	if err := roles[role](os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func process(t *testing.T, role, dir string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, dir)
	cmd.Env = append(os.Environ(), roleVariable+"="+role, "GORACE=atexit_sleep_ms=10")
	cmd.Stderr = os.Stderr
	return cmd
}

// roleAppend appends records and prints the reason of each when it is in the log.
func roleAppend(dir string, count int) error {
	l, err := Open(dir)
	if err != nil {
		return err
	}
	l.maxFile, l.maxOld = 3000, 1<<20
	for i := range count {
		reason := fmt.Sprintf("%d-%d", os.Getpid(), i)
		if err := l.Append(Record{Event: "request", Device: strings.Repeat("x", i%200), Reason: reason}, i%16 == 0); err != nil {
			return err
		}
		fmt.Println(reason)
	}
	return l.Close()
}

func TestProcesses(t *testing.T) {
	t.Parallel()
	dir := home(t)
	var all []*exec.Cmd
	for range 4 {
		cmd := process(t, "hundred", dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		all = append(all, cmd)
	}
	// Who looks meanwhile sees a whole log.
	for range 20 {
		if s := verified(t, dir); s.CutOff || s.Recovered > 0 {
			t.Errorf("%+v", s)
		}
	}
	for _, cmd := range all {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	if s := verified(t, dir); s.CutOff || s.Recovered > 0 || s.Files < 10 {
		t.Errorf("%+v", s)
	}
	next := make(map[string]int)
	for _, r := range reasons(t, dir) {
		if r == EventRotated {
			continue
		}
		pid, n, _ := strings.Cut(r, "-")
		if n != strconv.Itoa(next[pid]) {
			t.Fatalf("%s after %d", r, next[pid])
		}
		next[pid]++
	}
	if len(next) != 4 {
		t.Errorf("%v", next)
	}
	for pid, n := range next {
		if n != 100 {
			t.Errorf("%s has %d", pid, n)
		}
	}
}

// A process is killed while it writes, and the next one goes on.
func TestKilled(t *testing.T) {
	t.Parallel()
	dir := home(t)
	var acknowledged []string
	for range 12 {
		cmd := process(t, "forever", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for i := 0; lines.Scan(); i++ {
			if acknowledged = append(acknowledged, lines.Text()); i == 25 {
				cmd.Process.Kill() // what is in the pipe was in the log before
			}
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("it was to be killed")
		}
		verified(t, dir)
	}
	l := open0(t, dir)
	appended(t, l, "last")
	got := reasons(t, dir)
	for _, r := range append(acknowledged, "last") {
		if !slices.Contains(got, r) {
			t.Errorf("%s is lost", r)
		}
	}
	if s := verified(t, dir); s.CutOff {
		t.Errorf("%+v", s)
	}
}

// roleLimited meets the largest size that it may make files of: the system writes as much of a line as fits, as on a
// full disk.
func roleLimited(dir string) error {
	signal.Ignore(syscall.SIGXFSZ)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	limit.Cur = 5000
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	l, err := Open(dir)
	if err != nil {
		return err
	}
	short := 0
	good := l.sys.write
	l.sys.write = func(f *os.File, b []byte) (int, error) {
		n, err := good(f, b)
		if err != nil && n > 0 && n < len(b) {
			short++
		}
		return n, err
	}
	n := 0
	for ; ; n++ {
		if err = l.Append(Record{Event: "request", Reason: strconv.Itoa(n)}, n%2 == 0); err != nil {
			break
		}
	}
	fi, serr := os.Stat(filepath.Join(dir, fileName))
	if serr != nil || !errors.Is(err, ErrNotRecorded) || !errors.Is(err, syscall.EFBIG) || short != 1 || fi.Size() >= 5000 || n < 10 {
		return fmt.Errorf("after %d records and %d short writes: %w, %w, %d bytes", n, short, err, serr, fi.Size())
	}
	for range 3 {
		if err := l.Append(Record{Event: "request"}, true); !errors.Is(err, ErrNotRecorded) {
			return fmt.Errorf("recorded: %w", err)
		}
	}
	if s, err := Verify(dir); err != nil || s.Records != n || s.CutOff {
		return fmt.Errorf("%+v, %w", s, err)
	}
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	if err := l.Append(Record{Event: "request"}, true); err != nil {
		return err
	}
	if s, err := Verify(dir); err != nil || s.Records != n+1 || s.Recovered != 0 {
		return fmt.Errorf("%+v, %w", s, err)
	}
	return nil
}

func TestShortWrite(t *testing.T) {
	t.Parallel()
	if err := process(t, "limited", home(t)).Run(); err != nil {
		t.Error(err)
	}
}

func roleUmask(dir string) error {
	for _, mask := range []int{0, 0o777, 0o277, 0o022} {
		unix.Umask(mask)
		sub := filepath.Join(dir, strconv.Itoa(mask))
		if err := errors.Join(os.Mkdir(sub, 0o700), os.Chmod(sub, 0o700)); err != nil {
			return err
		}
		l, err := Open(sub)
		if err != nil {
			return err
		}
		l.maxFile = 300
		for range 5 {
			if err := l.Append(Record{Event: "request"}, false); err != nil {
				return err
			}
		}
		entries, err := os.ReadDir(sub)
		if err != nil || len(entries) < 4 {
			return fmt.Errorf("%v, %w", entries, err)
		}
		for _, e := range entries {
			if fi, err := e.Info(); err != nil || fi.Mode() != fileMode {
				return fmt.Errorf("umask %o: %s has %v, %w", mask, e.Name(), fi.Mode(), err)
			}
		}
	}
	return nil
}

// Files have the same mode whatever the umask is.
func TestUmask(t *testing.T) {
	t.Parallel()
	if err := process(t, "umask", home(t)).Run(); err != nil {
		t.Error(err)
	}
}
