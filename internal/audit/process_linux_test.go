// SPDX-License-Identifier: BSD-3-Clause

package audit

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func init() { roles["disk"] = roleDisk }

// impossible begins what the role says when it cannot have a disk of its own.
const impossible = "no disk to be had: "

// TestFullDisk has a disk that is full, in a process that may make one: root in name spaces of its own.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	cmd := process(t, "disk", home(t))
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	}
	var said strings.Builder
	cmd.Stderr = &said
	err := cmd.Start()
	if err == nil {
		err = cmd.Wait()
	} else {
		said.WriteString(impossible)
	}
	switch {
	case err == nil:
	case strings.HasPrefix(said.String(), impossible) && os.Getenv("CI") != "true":
		t.Skip(said.String(), err)
	default:
		t.Errorf("%v: %s", err, said.String())
	}
}

func roleDisk(dir string) error {
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=64k,mode=0700"); err != nil {
		return fmt.Errorf(impossible+"%w", err)
	}
	l, err := Open(dir)
	if err != nil {
		return err
	}
	l.maxFile = 9000 // so that there are rotations on the full disk, too
	n := 0
	more := func() error {
		n++
		return l.Append(Record{Event: "request", Reason: strings.Repeat("x", n%1000)}, n%3 == 0)
	}
	for range 30 {
		if err := more(); err != nil {
			return err
		}
	}
	sound := func() (Summary, error) {
		s, err := Verify(dir)
		if err == nil && (s.CutOff || s.Recovered > 0) {
			err = fmt.Errorf("%+v", s)
		}
		return s, err
	}
	filler, err := os.OpenFile(filepath.Join(dir, "filler"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer filler.Close()
	if _, err := io.Copy(filler, zeros{}); !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("the disk is not full: %w", err)
	}
	failed := 0
	for range 60 { // the last block has room for some
		before, err := sound()
		if err != nil {
			return err
		}
		appendErr := more()
		after, err := sound()
		switch {
		case err != nil:
			return err
		case appendErr == nil:
		case !errors.Is(appendErr, ErrNotRecorded) || !errors.Is(appendErr, syscall.ENOSPC):
			return fmt.Errorf("on a full disk: %w", appendErr)
		default:
			if failed++; after.Records > before.Records+1 || after.Records == before.Records+1 && after.Files == before.Files {
				return fmt.Errorf("%+v, not recorded: %+v", before, after)
			}
		}
	}
	if failed < 10 {
		return fmt.Errorf("%d failed", failed)
	}
	if err := filler.Truncate(0); err != nil {
		return err
	}
	if err := more(); err != nil {
		return fmt.Errorf("with room again: %w", err)
	}
	before, err := sound()
	if err != nil {
		return err
	}

	filler.Close()
	l.Close()
	if err := unix.Mount("none", dir, "tmpfs", unix.MS_REMOUNT|unix.MS_RDONLY, "size=64k,mode=0700"); err != nil {
		return err
	}
	if l, err = Open(dir); err != nil {
		return err
	}
	if err := more(); !errors.Is(err, ErrNotRecorded) || !errors.Is(err, syscall.EROFS) {
		return fmt.Errorf("on a read-only disk: %w", err)
	}
	after, err := sound()
	if err != nil || after != before {
		return fmt.Errorf("%+v became %+v, %w", before, after, err)
	}
	return nil
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }
