// SPDX-License-Identifier: BSD-3-Clause

package process

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"
)

func TestDescendsTable(t *testing.T) {
	t.Parallel()
	root := Process{PID: 7, Parent: 6, Session: 7, Start: 100}
	deep := func(n int) []Process {
		all := []Process{root}
		for i := range n {
			all = append(all, Process{PID: 1000 + i, Parent: 1000 + i - 1, Session: 7, Start: 200})
		}
		all[1].Parent = root.PID
		return all
	}
	denied := errors.New("permission denied")
	for _, c := range []struct {
		name  string
		table []Process
		pid   int
		want  bool
	}{
		{"itself", []Process{root}, 7, true},
		{"itself, pid given away", []Process{{PID: 7, Start: 101}}, 7, false},
		{"child", []Process{root, {PID: 8, Parent: 7, Session: 7, Start: 100}}, 8, true},
		{"grandchild in another session", []Process{root, {PID: 8, Parent: 7, Session: 8, Start: 100}, {PID: 9, Parent: 8, Session: 9, Start: 101}}, 9, true},
		{"parent", []Process{root, {PID: 6, Parent: 1, Start: 50}, {PID: 1, Start: 1}}, 6, false},
		{"sibling", []Process{root, {PID: 6, Parent: 1, Start: 50}, {PID: 1, Start: 1}, {PID: 8, Parent: 6, Start: 110}}, 8, false},
		{"given to init", []Process{root, {PID: 8, Parent: 1, Start: 110}, {PID: 1, Start: 1}}, 8, false},
		{"given to another reaper", []Process{root, {PID: 8, Parent: 6, Start: 110}, {PID: 6, Parent: 1, Start: 50}, {PID: 1, Start: 1}}, 8, false},
		{"root's pid given away after the child began", []Process{{PID: 7, Parent: 1, Start: 300}, {PID: 8, Parent: 7, Start: 200}}, 8, false},
		{"root's pid given away before the child began", []Process{{PID: 7, Parent: 1, Start: 150}, {PID: 8, Parent: 7, Start: 200}}, 8, false},
		{"one between has its pid given away", []Process{root, {PID: 8, Parent: 7, Start: 300}, {PID: 9, Parent: 8, Start: 200}}, 9, false},
		{"one between is gone", []Process{root, {PID: 9, Parent: 8, Start: 200}}, 9, false},
		{"parent in another pid namespace", []Process{root, {PID: 9, Parent: 0, Start: 200}}, 9, false},
		{"own parent", []Process{root, {PID: 9, Parent: 9, Start: 200}}, 9, false},
		{"loop", []Process{root, {PID: 9, Parent: 8, Start: 200}, {PID: 8, Parent: 9, Start: 200}}, 9, false},
		{"deepest", deep(maxAncestors - 1), 1000 + maxAncestors - 2, true},
		{"too deep", deep(maxAncestors), 1000 + maxAncestors - 1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			looks := 0
			look := func(pid int) (Process, error) {
				if looks++; looks > maxAncestors+2 {
					t.Fatal("looks too often")
				}
				for _, p := range c.table {
					if p.PID == pid {
						return p, nil
					}
				}
				return Process{}, ErrNoProcess
			}
			if got, err := descends(c.pid, root, look); got != c.want || err != nil {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}

	table := map[int]Process{7: root, 8: {PID: 8, Parent: 7, Start: 200}}
	looks := map[int]int{}
	look := func(second Process, err error) func(int) (Process, error) {
		clear(looks)
		return func(pid int) (Process, error) {
			if looks[pid]++; pid == 8 && looks[pid] == 2 {
				return second, err
			}
			return table[pid], nil
		}
	}
	if got, err := descends(8, root, look(Process{PID: 8, Parent: 1, Start: 201}, nil)); got || err != nil {
		t.Errorf("pid given away meanwhile: %v, %v", got, err)
	}
	if got, err := descends(8, root, look(Process{}, ErrNoProcess)); got || !errors.Is(err, ErrNoProcess) {
		t.Errorf("ended meanwhile: %v, %v", got, err)
	}
	if got, err := descends(8, root, func(int) (Process, error) { return Process{}, denied }); got || !errors.Is(err, denied) {
		t.Errorf("cannot be read: %v, %v", got, err)
	}
	if got, err := descends(8, Process{}, look(table[8], nil)); got || err != nil {
		t.Errorf("no root: %v, %v", got, err)
	}
}

// TestDescends has real processes: descendants stay such in a session of their own, and are none any more when the one
// between has ended.
func TestDescends(t *testing.T) {
	t.Parallel()
	here, err := Chain(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	me := here[0]
	is := func(pid int, root Process) bool {
		t.Helper()
		got, err := Descends(pid, root)
		if err != nil {
			t.Error(err)
		}
		return got
	}
	if !is(os.Getpid(), me) {
		t.Error("not oneself")
	}
	if is(os.Getppid(), me) {
		t.Error("one's parent descends from one")
	}
	other := startChild(t, self(t), "", nil)
	other.do("pid")
	// Three processes, each in a session of its own: root, between, and the one that answers.
	c := startChild(t, self(t), "xx", newSession)
	answering, err := strconv.Atoi(c.do("pid"))
	if err != nil {
		t.Fatal(err)
	}
	chain, err := Chain(answering)
	if err != nil || len(chain) != 3 {
		t.Fatalf("%+v, %v", chain, err)
	}
	root := chain[2]
	for _, pid := range []int{answering, chain[1].PID, c.pid()} {
		if !is(pid, root) || !is(pid, me) {
			t.Errorf("%d does not descend", pid)
		}
	}
	if is(other.pid(), root) || is(os.Getpid(), root) {
		t.Error("a stranger descends")
	}
	late := root
	late.Start++
	if is(answering, late) || is(root.PID, late) {
		t.Error("another process with the pid is taken for it")
	}
	c.end()
	if got, err := Descends(answering, root); got || !errors.Is(err, ErrNoProcess) {
		t.Errorf("ended: %v, %v", got, err)
	}
}

// TestDescendsNotWhenDaemonized has a shell that leaves a process behind.
func TestDescendsNotWhenDaemonized(t *testing.T) {
	t.Parallel()
	// The inner shell ends at once, and its child is given to a reaper. It holds the pipe, so it ends with the test.
	cmd := exec.Command("sh", "-c", `exec 3<&0; sh -c 'cat <&3 & echo $!'; cat <&3`)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	chain, err := Chain(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	root := chain[0]
	// The inner shell ends after it has written.
	for {
		p, err := look(pid)
		if err != nil {
			t.Fatal(err)
		}
		if parent, err := look(p.Parent); err != nil || parent.Parent != root.PID {
			break
		}
	}
	if got, err := Descends(pid, root); got || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
	if got, err := Descends(root.PID, root); !got || err != nil {
		t.Errorf("the shell itself: %v, %v", got, err)
	}
}
