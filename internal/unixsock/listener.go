// SPDX-License-Identifier: BSD-3-Clause

package unixsock

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	// DefaultRecheck is how often a listener looks whether its socket file is still there: often enough
	// that a person who deleted it does not wait, rare enough to cost nothing (two stats).
	DefaultRecheck = time.Second
	// maxServing bounds the descriptors that are accepted from. A deleted file leads nobody to its
	// descriptor any more; it is kept for those who connected just before, and for a file that was renamed.
	maxServing = 4
	// Accept errors (no descriptors, no memory) pass when connections end. Waiting starts at acceptBackoffMin and
	// doubles to acceptBackoffMax.
	acceptBackoffMin = 5 * time.Millisecond
	acceptBackoffMax = time.Second
)

// Config has what a listener may be told. Its zero value is good.
type Config struct {
	Recheck time.Duration // between two looks at the socket file; DefaultRecheck when 0
	Log     *slog.Logger  // nothing is logged when nil
}

// A Listener accepts connections on a socket. It is made by Listen or Activated and is safe for concurrent use.
type Listener struct {
	log  *slog.Logger
	addr *net.UnixAddr

	conns chan net.Conn
	done  chan struct{} // closed by Close
	wg    sync.WaitGroup

	mu       sync.Mutex
	closed   bool
	closeErr error
	serving  []*net.UnixListener // oldest first
	lock     *os.File            // nil when activated
	file     os.FileInfo         // our socket file; nil when activated
	trouble  string              // what check logged last, so that it is said once
}

// Listen is Config{}.Listen.
func Listen(path string) (*Listener, error) { return Config{}.Listen(path) }

// Listen serves a socket at path, mode 0600, after creating its directory (0700) where there is none.
// The lock file PATH.lock decides who serves; it stays when the listener is closed. A dead socket is
// replaced, a live one never, another kind of file never.
//
// Errors: *PathTooLongError, *DirError, *ObstacleError, *InUseError (errors.Is ErrInUse), and those of the
// file system, wrapped.
func (c Config) Listen(path string) (*Listener, error) {
	abs, err := resolve(path)
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(abs)
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	lock, err := acquire(abs)
	if err != nil {
		return nil, err
	}
	ln, fi, err := place(abs)
	if err != nil {
		return nil, errors.Join(err, release(lock))
	}
	l := newListener(c.Log, abs)
	l.lock, l.file = lock, fi
	l.mu.Lock()
	l.serveLocked(ln)
	l.mu.Unlock()
	recheck := c.Recheck
	if recheck <= 0 {
		recheck = DefaultRecheck
	}
	l.wg.Go(func() { l.watch(recheck) })
	return l, nil
}

func newListener(log *slog.Logger, path string) *Listener {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Listener{
		log:   log,
		addr:  &net.UnixAddr{Name: path, Net: "unix"},
		conns: make(chan net.Conn),
		done:  make(chan struct{}),
	}
}

// Addr answers the socket's address.
func (l *Listener) Addr() net.Addr { return l.addr }

// Accept answers the next connection, always a *net.UnixConn. Its only error is net.ErrClosed, wrapped, after
// Close: a lack of descriptors or memory is waited out and logged.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, l.errClosed()
	default:
	}
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, l.errClosed()
	}
}

func (l *Listener) errClosed() error {
	return &net.OpError{Op: "accept", Net: "unix", Addr: l.addr, Err: net.ErrClosed}
}

// Close stops accepting, removes the socket file if it is still ours, and gives the lock up, in this order, so
// that a successor finds everything in place. Accepted connections stay open. A second call does nothing and
// answers as the first.
func (l *Listener) Close() error {
	l.mu.Lock()
	defer l.wg.Wait() // runs last: the goroutines take the lock
	defer l.mu.Unlock()
	if l.closed {
		return l.closeErr
	}
	l.closed = true
	close(l.done)
	var errs []error
	if l.file != nil {
		// Before the descriptors are closed: until then no other file can have our inode number.
		if err := removeSame(l.addr.Name, l.file); err != nil {
			errs = append(errs, fmt.Errorf("remove socket: %w", err))
		}
	}
	for _, ln := range l.serving {
		errs = append(errs, ln.Close())
	}
	l.serving = nil
	if l.lock != nil {
		errs = append(errs, release(l.lock))
	}
	l.closeErr = errors.Join(errs...)
	return l.closeErr
}

// serveLocked accepts from one more descriptor.
func (l *Listener) serveLocked(ln *net.UnixListener) {
	l.serving = append(l.serving, ln)
	l.wg.Go(func() { l.accept(ln) })
	if len(l.serving) > maxServing {
		_ = l.serving[0].Close() // ends its goroutine
		l.serving = l.serving[1:]
	}
}

// accept hands on the connections of one descriptor until it is closed.
func (l *Listener) accept(ln *net.UnixListener) {
	wait := time.Duration(0)
	for {
		c, err := ln.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			if wait == 0 {
				wait = acceptBackoffMin
				l.log.Warn("cannot accept connections, trying on", "socket", l.addr.Name, "error", err)
			} else {
				wait = min(2*wait, acceptBackoffMax)
			}
			if !l.pause(wait) {
				return
			}
			continue
		}
		if wait != 0 {
			wait = 0
			l.log.Info("accepting connections again", "socket", l.addr.Name)
		}
		select {
		case l.conns <- c:
		case <-l.done:
			_ = c.Close()
			return
		}
	}
}

// pause waits and answers false when the listener is closed meanwhile.
func (l *Listener) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-l.done:
		return false
	}
}

func (l *Listener) watch(every time.Duration) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			l.check()
		case <-l.done:
			return
		}
	}
}

// check makes the socket and the lock file again when they are gone.
func (l *Listener) check() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	made, err := l.restoreLocked()
	switch {
	case err != nil && err.Error() != l.trouble:
		l.trouble = err.Error()
		l.log.Warn("socket file is not ours and cannot be made again", "socket", l.addr.Name, "error", err)
	case err == nil:
		if made {
			l.log.Info("socket made again", "socket", l.addr.Name)
		} else if l.trouble != "" {
			l.log.Info("socket is back", "socket", l.addr.Name)
		}
		l.trouble = ""
	}
}

func (l *Listener) restoreLocked() (made bool, err error) {
	path := l.addr.Name
	fi, err := os.Lstat(path)
	missing := err != nil || !os.SameFile(fi, l.file)
	if !missing && holds(l.lock, path+lockSuffix) {
		return false, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("socket: %w", err)
	}
	// The directory may be another one by now. It is not created: who deletes it means it.
	if err := checkDir(filepath.Dir(path)); err != nil {
		return false, err
	}
	if !holds(l.lock, path+lockSuffix) {
		// A lock on a file without a name keeps nobody out.
		lock, err := acquire(path)
		if err != nil {
			return false, err
		}
		_ = release(l.lock)
		l.lock = lock
	}
	if !missing {
		return false, nil
	}
	ln, fi, err := place(path)
	if err != nil {
		return false, err
	}
	l.file = fi
	l.serveLocked(ln)
	return true, nil
}
