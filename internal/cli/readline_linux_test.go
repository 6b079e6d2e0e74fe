// SPDX-License-Identifier: BSD-3-Clause

package cli

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmux.app/toolkit/internal/ptytest"
)

// Ctrl-C drops what was typed, so that a read that select(2) has promised something waits. Here the terminal's modes
// make it wait: with both set, select(2) is content with one byte, and read(2) goes on to MIN.
func TestAskInterruptedWithinARead(t *testing.T) {
	t.Parallel()
	p := ptytest.Open(t)
	modes, err := unix.IoctlGetTermios(int(p.TTY.Fd()), getTermios)
	if err != nil {
		t.Fatal(err)
	}
	modes.Lflag &^= unix.ICANON
	modes.Cc[unix.VMIN], modes.Cc[unix.VTIME] = 5, 255 // bytes, tenths of a second
	if err := unix.IoctlSetTermios(int(p.TTY.Fd()), setTermios, modes); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := newTUI(p.TTY, io.Discard, p.TTY, "x", false, true).Ask(ctx, "digits: ")
		done <- err
	}()
	p.Expect("digits: ")
	p.Type("1")
	p.Expect("1")
	for left := 1; left > 0; <-time.After(time.Millisecond) { // until the read has it
		if left, err = unix.IoctlGetInt(int(p.TTY.Fd()), unix.TIOCINQ); err != nil {
			t.Fatal(err)
		}
	}
	why := errors.New("interrupted")
	cancel(why)
	select {
	case err := <-done:
		if !errors.Is(err, why) {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("it waits for what was dropped")
	}
	p.HangUp() // ends the read
}
