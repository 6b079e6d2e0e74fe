// SPDX-License-Identifier: BSD-3-Clause

//go:build (darwin || gnustep) && cgo

package cocoa

import (
	"errors"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestMain(m *testing.M) { os.Exit(Main(m.Run)) }

func TestSupported(t *testing.T) {
	t.Parallel()
	if err := Supported(); err != nil {
		t.Fatalf("the tests must be built as the programs are: %v", err)
	}
}

func TestMessages(t *testing.T) {
	t.Parallel()
	Pool(func() {
		s := New("NSString", "initWithString:", "grüße")
		defer s.Release()
		if got := Text(s, "uppercaseString"); !strings.HasPrefix(got, "GRÜ") {
			t.Errorf("uppercaseString gave %q", got)
		}
		if n := Number(s, "length"); n != 5 {
			t.Errorf("length %d", n)
		}
		if !Is(s, "hasPrefix:", "grü") || Is(s, "hasPrefix:", "x") {
			t.Error("hasPrefix: is wrong")
		}
		data := New("NSData", "initWithData:", []byte{1, 0, 2})
		defer data.Release()
		if got := Bytes(data); string(got) != "\x01\x00\x02" {
			t.Errorf("bytes %q", got)
		}
		var none Object
		if Text(none, "description") != "" || Number(none, "length") != 0 || Is(none, "isProxy") || !New("NoSuchClass", "init").IsNil() {
			t.Error("nil does not give zero")
		}
	})
}

func TestTry(t *testing.T) {
	t.Parallel()
	Pool(func() {
		files := Get(Class("NSFileManager"), "defaultManager")
		err := Try(files, "removeItemAtPath:error:", t.TempDir()+"/absent")
		var e *Error
		if !errors.As(err, &e) || e.Text == "" {
			t.Errorf("error %v", err)
		}
		if err := Try(files, "removeItemAtPath:error:", t.TempDir()); err != nil {
			t.Error(err)
		}
	})
}

// With VMUX_CALLS=10000000 it is the proof of the remedy; else a glance. Without the remedy it crashes: between a call's preparation
// and its end stacks move, which collections make them do, and what they leave behind is overwritten at once.
func TestManyCalls(t *testing.T) {
	t.Parallel()
	calls := 20_000
	if n, err := strconv.Atoi(os.Getenv("VMUX_CALLS")); err == nil {
		calls = n
	}
	const workers = 4
	var all, moving sync.WaitGroup
	var over atomic.Bool
	moving.Go(func() {
		for !over.Load() {
			runtime.GC() // shrinks stacks
		}
	})
	moving.Go(func() {
		for n := 0; !over.Load(); n++ {
			var one sync.WaitGroup
			one.Go(func() { deep(n % 8) }) // takes the stacks that are free
			one.Wait()
		}
	})
	start := time.Now()
	for w := range workers {
		all.Go(func() {
			for done := 0; done < calls/workers; {
				Pool(func() {
					s := New("NSString", "initWithString:", "grüße")
					a := Get(Class("NSArray"), "arrayWithObject:", s)
					for range 10 {
						deep(w + 4)
						if Number(s, "length") != 5 || !Is(s, "isEqual:", s) || Number(a, "count") != 1 || Get(a, "objectAtIndex:", uint64(0)) != s ||
							Text(s, "lowercaseString") != "grüße" {
							t.Error("a call gave something else than before")
						}
						done += 5
					}
					s.Release()
				})
			}
		})
	}
	all.Wait()
	over.Store(true)
	moving.Wait()
	t.Logf("%d calls in %v", calls, time.Since(start).Round(time.Millisecond))
}

// deep makes the stack grow, and fills it.
func deep(n int) byte {
	var b [4096]byte
	for i := range b {
		b[i] = 0xa5
	}
	if n == 0 {
		return b[len(b)-1]
	}
	b[n] = deep(n - 1)
	return b[n]
}

func TestStartLoop(t *testing.T) {
	t.Parallel()
	for range 3 {
		if err := StartLoop(); err != nil {
			t.Fatal(err)
		}
	}
}
