// SPDX-License-Identifier: BSD-3-Clause

package cli

import (
	"context"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"
)

// signals ends a command by SIGINT, SIGTERM and SIGHUP, or hands on the last.
type signals struct {
	ch       chan os.Signal
	hangups  atomic.Pointer[chan struct{}]
	terminal bool // that there was one at the start
}

type signalsKey struct{}

// hangupGrace is how long after SIGHUP the terminal must be there still: a shell that ends sends the signal first
// and gives up the terminal then.
const hangupGrace = time.Second

// catch starts to wait for signals, other than those that are ignored. The first that ends the command calls end.
func catch(end func(syscall.Signal)) *signals {
	s := &signals{ch: make(chan os.Signal, 1), terminal: hasTerminal()}
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(sig) {
			signal.Notify(s.ch, sig)
		}
	}
	go func() { // lives as long as the process
		var gone <-chan time.Time
		for {
			select {
			case sig := <-s.ch:
				hangups := s.hangups.Load()
				if sig != syscall.SIGHUP || hangups == nil {
					signal.Stop(s.ch)
					end(sig.(syscall.Signal))
					return
				}
				select {
				case *hangups <- struct{}{}:
				default: // there is one to be seen to already
				}
				gone = time.After(hangupGrace)
			case <-gone:
				if s.terminal && !hasTerminal() {
					signal.Stop(s.ch)
					end(syscall.SIGHUP)
					return
				}
			}
		}
	}()
	return s
}

// Hangups gives a channel on which each SIGHUP arrives, several at once as one. From then on the signal does not end the command,
// unless the terminal that it was started from has gone. Where SIGHUP was ignored at the start nothing arrives.
func Hangups(c *Context) <-chan struct{} {
	hangups := make(chan struct{}, 1)
	if s, ok := c.Context.Value(signalsKey{}).(*signals); ok {
		s.hangups.Store(&hangups)
	}
	return hangups
}

func withSignals(ctx context.Context, s *signals) context.Context {
	return context.WithValue(ctx, signalsKey{}, s)
}

// hasTerminal reports whether this process has a controlling terminal.
func hasTerminal() bool {
	f, err := os.OpenFile("/dev/tty", os.O_RDWR|syscall.O_NOCTTY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	f.Close()
	return true
}
