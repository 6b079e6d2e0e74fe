// SPDX-License-Identifier: BSD-3-Clause

// Package ptytest gives tests a terminal to type at.
package ptytest

import (
	"bytes"
	"os"
	"sync"
	"testing"
	"time"
)

// Terminal is a pseudo terminal: TTY is what a command has as standard input and error, and what it
// prints there is waited for by Expect.
type Terminal struct {
	TTY *os.File

	t       testing.TB
	control *os.File
	mu      sync.Mutex
	changed *sync.Cond
	shown   bytes.Buffer
	read    int // bytes that Expect has passed
	closed  bool
}

// patience is how long Expect waits: reached only by a test that fails.
const patience = 30 * time.Second

// Open returns a terminal that ends with the test, which is skipped where there is none.
func Open(t testing.TB) *Terminal {
	t.Helper()
	control, tty := open(t)
	p := &Terminal{TTY: tty, t: t, control: control}
	p.changed = sync.NewCond(&p.mu)
	var reader sync.WaitGroup
	reader.Go(func() {
		b := make([]byte, 4096)
		for {
			n, err := control.Read(b)
			p.mu.Lock()
			p.shown.Write(b[:n])
			p.closed = p.closed || err != nil
			p.changed.Broadcast()
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	})
	t.Cleanup(func() {
		tty.Close()
		control.Close()
		reader.Wait()
	})
	return p
}

// HangUp takes the terminal away, as closing its window does.
func (p *Terminal) HangUp() {
	p.TTY.Close()
	p.control.Close()
}

// Type types s; "\n" is Enter, "\x04" Ctrl-D, "\x03" Ctrl-C.
func (p *Terminal) Type(s string) {
	p.t.Helper()
	if _, err := p.control.WriteString(s); err != nil {
		p.t.Errorf("typing %q: %v", s, err)
	}
}

// Expect waits until want was shown, after what was expected before, and returns everything up to its
// end. The test fails when it does not come.
func (p *Terminal) Expect(want string) string {
	p.t.Helper()
	late := false
	timer := time.AfterFunc(patience, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		late = true
		p.changed.Broadcast()
	})
	defer timer.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		fresh := p.shown.Bytes()[p.read:]
		if i := bytes.Index(fresh, []byte(want)); i >= 0 {
			p.read += i + len(want)
			return string(fresh[:i+len(want)])
		}
		if late || p.closed {
			p.t.Fatalf("the terminal shows %q, not %q", fresh, want)
		}
		p.changed.Wait()
	}
}
