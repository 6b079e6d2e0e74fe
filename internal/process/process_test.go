// SPDX-License-Identifier: BSD-3-Clause

package process

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
)

func TestChainFollowsParents(t *testing.T) {
	t.Parallel()
	type table []Process
	long := table{}
	for pid := 2; pid <= 100; pid++ {
		long = append(long, Process{PID: pid, Parent: pid - 1, Session: 1, Start: 5})
	}
	for _, c := range []struct {
		name  string
		table table
		first int
		want  []int
	}{
		{"to the leader and no further", table{{PID: 9, Parent: 8, Session: 7}, {PID: 8, Parent: 7, Session: 7}, {PID: 7, Parent: 6, Session: 7}, {PID: 6, Parent: 1, Session: 6}}, 9, []int{9, 8, 7}},
		{"leader itself", table{{PID: 7, Parent: 6, Session: 7}, {PID: 6, Session: 6}}, 7, []int{7}},
		{"parent is gone", table{{PID: 9, Parent: 8, Session: 7}}, 9, []int{9}},
		{"given to a reaper", table{{PID: 9, Parent: 1, Session: 7}, {PID: 1, Session: 1}}, 9, []int{9}},
		{"parent's pid given away", table{{PID: 9, Parent: 8, Session: 7, Start: 10}, {PID: 8, Parent: 7, Session: 7, Start: 11}, {PID: 7, Session: 7}}, 9, []int{9}},
		{"same tick", table{{PID: 9, Parent: 8, Session: 8, Start: 10}, {PID: 8, Parent: 7, Session: 8, Start: 10}}, 9, []int{9, 8}},
		{"own parent", table{{PID: 9, Parent: 9, Session: 7}}, 9, []int{9}},
		{"loop", table{{PID: 9, Parent: 8, Session: 7}, {PID: 8, Parent: 5, Session: 7}, {PID: 5, Parent: 9, Session: 7}}, 9, []int{9, 8, 5}},
		{"leader in another namespace", table{{PID: 9, Parent: 8}, {PID: 8, Parent: 0}}, 9, []int{9, 8}},
		{"bound", long, 100, func() (pids []int) {
			for pid := 100; len(pids) < maxChain; pid-- {
				pids = append(pids, pid)
			}
			return pids
		}()},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			looks := 0
			all, err := chain(c.first, func(pid int) (Process, error) {
				if looks++; looks > maxChain {
					t.Fatal("looks too often")
				}
				for _, p := range c.table {
					if p.PID == pid {
						return p, nil
					}
				}
				return Process{}, ErrNoProcess
			})
			if c.name == "leader itself" && looks > 1 {
				t.Error("looks beyond the leader")
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []int
			for _, p := range all {
				got = append(got, p.PID)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestNoProcess(t *testing.T) {
	t.Parallel()
	c := startChild(t, self(t), "", nil)
	c.end()
	for _, pid := range []int{0, -1, c.pid()} {
		if _, err := Chain(pid); !errors.Is(err, ErrNoProcess) {
			t.Errorf("chain of %d: %v", pid, err)
		}
		if _, err := Executable(pid); !errors.Is(err, ErrNoProcess) {
			t.Errorf("executable of %d: %v", pid, err)
		}
		if _, err := WorkingDirectory(pid); !errors.Is(err, ErrNoProcess) {
			t.Errorf("directory of %d: %v", pid, err)
		}
		if _, err := Arguments(pid); !errors.Is(err, ErrNoProcess) {
			t.Errorf("arguments of %d: %v", pid, err)
		}
		if Sibling(pid, self(t)) {
			t.Errorf("%d is a sibling", pid)
		}
	}
}

func TestChainOfRealProcesses(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	path := install(t, filepath.Join(dir, "a) S (1 2"))
	c := startChild(t, path, "xx", newSession)
	last, err := strconv.Atoi(c.do("pid"))
	if err != nil {
		t.Fatal(err)
	}
	all, err := Chain(last)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 3 || all[0].PID != last || all[2].PID != c.pid() || all[1].Parent != c.pid() {
		t.Fatalf("got %+v, want 3 from %d to %d", all, last, c.pid())
	}
	for _, p := range all {
		if p.Executable != path || p.Name != "a) S (1 2" || p.Session != c.pid() || p.Start == 0 {
			t.Errorf("got %+v", p)
		}
	}
	if all[2].Parent != os.Getpid() {
		t.Errorf("leader's parent is %d, want %d", all[2].Parent, os.Getpid())
	}
}

func TestExecutableAndDirectory(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	path := install(t, filepath.Join(dir, "tool"))
	c := startChild(t, path, "", inDir(dir))
	c.do("pid")
	if got, err := Executable(c.pid()); got != path || err != nil {
		t.Errorf("executable: %q, %v", got, err)
	}
	if got, err := WorkingDirectory(c.pid()); got != dir || err != nil {
		t.Errorf("directory: %q, %v", got, err)
	}
}

func TestSibling(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	bin, other, open := filepath.Join(dir, "bin"), filepath.Join(dir, "other"), filepath.Join(dir, "open")
	for _, d := range []string{bin, other, open} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	agent := install(t, filepath.Join(bin, "vmux-agent"))
	client := install(t, filepath.Join(bin, "vmux-cert"))
	stranger := install(t, filepath.Join(bin, "ssh"))
	elsewhere := install(t, filepath.Join(other, "vmux-cert"))
	exposed := install(t, filepath.Join(open, "vmux-agent"))
	exposedClient := install(t, filepath.Join(open, "vmux-cert"))
	writable := install(t, filepath.Join(bin, "vmux-writable"))
	linked := filepath.Join(dir, "vmux-agent")
	if err := errors.Join(os.Symlink(agent, linked), os.Chmod(open, 0o777), os.Chmod(writable, 0o757)); err != nil {
		t.Fatal(err)
	}
	removed := filepath.Join(bin, "vmux-removed")

	for _, c := range []struct {
		name, client, self string
		want               bool
	}{
		{"same file", agent, agent, true},
		{"same file by a link", agent, linked, true},
		{"same directory", client, agent, true},
		{"same directory by a link", client, linked, true},
		{"self is gone", client, removed, true},
		{"other name", stranger, agent, false},
		{"other directory", elsewhere, agent, false},
		{"same file in an open directory", exposed, exposed, true},
		{"open directory", exposedClient, exposed, false},
		{"writable by others", writable, agent, false},
		{"writable by others, same file", writable, writable, false},
		{"relative self", agent, "vmux-agent", false},
		{"no self", agent, "", false},
		{"self in a missing directory", client, filepath.Join(dir, "none", "vmux-agent"), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			ch := startChild(t, c.client, "", nil)
			ch.do("pid")
			if got := Sibling(ch.pid(), c.self); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestSiblingOfAnotherOwner(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root can give a file away")
	}
	dir := tempDir(t)
	agent, client := install(t, filepath.Join(dir, "vmux-agent")), install(t, filepath.Join(dir, "vmux-cert"))
	if err := os.Chown(client, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	c := startChild(t, client, "", nil)
	c.do("pid")
	if Sibling(c.pid(), agent) {
		t.Error("another user's file is a sibling")
	}
}

func TestReplacedFileIsNoSibling(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	agent, client := install(t, filepath.Join(dir, "vmux-agent")), install(t, filepath.Join(dir, "vmux-cert"))
	foreign := install(t, filepath.Join(dir, "ssh"))
	c := startChild(t, client, "", nil)
	f := startChild(t, foreign, "", nil)
	c.do("pid")
	f.do("pid")
	if !Sibling(c.pid(), agent) {
		t.Fatal("no sibling to begin with")
	}
	if err := os.Remove(client); err != nil {
		t.Fatal(err)
	}
	if Sibling(c.pid(), agent) {
		t.Error("deleted file is a sibling")
	}
	install(t, client)
	if Sibling(c.pid(), agent) {
		t.Error("replaced file is a sibling")
	}
	// A file with the name that the kernel makes up for the deleted one.
	install(t, client+" (deleted)")
	if Sibling(c.pid(), agent) {
		t.Error("deleted file is a sibling by its made-up name")
	}
	if Sibling(f.pid(), agent) {
		t.Error("foreign program is a sibling")
	}
}
