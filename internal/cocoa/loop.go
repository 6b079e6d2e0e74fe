// SPDX-License-Identifier: BSD-3-Clause

//go:build (darwin || gnustep) && cgo

package cocoa

// #cgo darwin LDFLAGS: -framework Foundation
// extern void *const NSDefaultRunLoopMode;
// static void *vmux_default_mode(void) { return NSDefaultRunLoopMode; }
import "C"

import (
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"

	"github.com/progrium/darwinkit/objc"
)

// The process has one main thread and so one of each of these.
var (
	mainRuns atomic.Bool
	looping  atomic.Bool
	wanted   = make(chan struct{}, 1)
)

// The main goroutine stays on the main thread, which Main may need.
func init() { runtime.LockOSThread() }

// Supported says whether Objective-C can be used: nil or ErrUnsafe.
func Supported() error {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ErrUnsafe
	}
	for _, s := range info.Settings {
		if s.Key == "-gcflags" && strings.Contains(s.Value, remedy) {
			return nil
		}
	}
	return ErrUnsafe
}

// Main runs program on a goroutine of its own and returns what it returns. The main goroutine, which must be the caller, runs the main
// run loop from StartLoop on; then nobody can end the loop, and Main ends the process with what program returns.
func Main(program func() int) int {
	mainRuns.Store(true)
	done := make(chan int, 1)
	go func() {
		status := program()
		if looping.Load() {
			os.Exit(status)
		}
		done <- status
	}()
	select {
	case status := <-done:
		return status
	case <-wanted:
	}
	Pool(func() {
		// Without a source that can fire there is nothing to wait for. The port is the process's as long as it lives.
		loop, port := Get(Class("NSRunLoop"), "currentRunLoop"), Get(Class("NSPort"), "port")
		port.Retain()
		Send(loop, "addPort:forMode:", port, objc.ObjectFrom(C.vmux_default_mode()))
	})
	for {
		Pool(func() { Send(Get(Class("NSRunLoop"), "currentRunLoop"), "run") })
	}
}

// StartLoop has the main run loop run until the process ends. The error is Supported's, or ErrNoLoop when Main does not run.
func StartLoop() error {
	if err := Supported(); err != nil {
		return err
	}
	if !mainRuns.Load() {
		return ErrNoLoop
	}
	if looping.CompareAndSwap(false, true) {
		wanted <- struct{}{} // there is room: nobody else sends
	}
	return nil
}
