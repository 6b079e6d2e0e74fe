// SPDX-License-Identifier: BSD-3-Clause

package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// maxAnswer is what a terminal gives in one line (MAX_CANON of Linux); macOS has less.
const maxAnswer = 4096

// readLine reads one line from the terminal or pipe f until ctx ends; the end of a pipe ends its last line. A blocked
// read cannot be taken back and would eat the next line, so select(2) waits for the line or for a byte in a pipe that
// the end of ctx writes. (poll(2) does not know terminals on macOS.) Ctrl-C drops what was typed, also between select(2)
// and read(2); so the end of ctx does not wait for that either.
func readLine(ctx context.Context, f *os.File) (string, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer r.Close()
	defer w.Close()
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { defer close(woken); w.Write([]byte{0}) }) // the pipe has room for it
	defer func() {
		if !stop() {
			<-woken // before w is closed
		}
	}()
	in, wake := int(f.Fd()), int(r.Fd())
	if max(in, wake) >= unix.FD_SETSIZE {
		return "", errors.New("too many open files to wait for an answer")
	}
	var line []byte
	for {
		var set unix.FdSet
		set.Set(in)
		set.Set(wake)
		if _, err := unix.Select(max(in, wake)+1, &set, nil, nil, nil); errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil {
			return "", fmt.Errorf("cannot wait for an answer: %w", err)
		}
		if set.IsSet(wake) {
			return "", context.Cause(ctx)
		}
		b := make([]byte, maxAnswer)
		var n int
		read := make(chan error, 1) // room for the one result
		go func() {
			var err error
			n, err = unix.Read(in, b)
			read <- err
		}()
		select {
		case err = <-read:
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
		switch {
		case errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN):
			continue
		case err != nil && !errors.Is(err, unix.EIO): // EIO: the terminal hung up
			return "", fmt.Errorf("cannot read the answer: %w", err)
		case n <= 0 && len(line) > 0 && !term.IsTerminal(in):
			return string(line), nil
		case n <= 0:
			return "", ErrNoInput
		}
		line = append(line, b[:n]...)
		if i := bytes.IndexByte(line, '\n'); i >= 0 {
			return string(line[:i]), nil
		}
		if len(line) >= maxAnswer {
			return "", fmt.Errorf("the answer has more than %d bytes", maxAnswer)
		}
	}
}

// noEcho has a terminal show nothing of what is typed until restore is called. A shell that continues a command that was
// stopped (Ctrl-Z) sets the terminal to what it was before; then it is set once more, and resumed is called.
func noEcho(f *os.File, resumed func()) (restore func(), err error) {
	fd := int(f.Fd())
	was, err := unix.IoctlGetTermios(fd, getTermios)
	if err != nil {
		return nil, fmt.Errorf("cannot hide what is typed: %w", err)
	}
	now := *was
	now.Lflag &^= unix.ECHO
	now.Lflag |= unix.ICANON | unix.ISIG
	if err := unix.IoctlSetTermios(fd, setTermios, &now); err != nil {
		return nil, fmt.Errorf("cannot hide what is typed: %w", err)
	}
	continued, done := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(continued, unix.SIGCONT)
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			select {
			case <-continued:
				_ = unix.IoctlSetTermios(fd, setTermios, &now) // it worked before
				resumed()
			case <-done:
				return
			}
		}
	})
	return func() {
		signal.Stop(continued)
		close(done)
		watching.Wait()
		_ = unix.IoctlSetTermios(fd, setTermios, was) // a terminal that is gone needs none
	}, nil
}
