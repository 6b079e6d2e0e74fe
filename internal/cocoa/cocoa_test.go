// SPDX-License-Identifier: BSD-3-Clause

//go:build (darwin || gnustep) && cgo

package cocoa

import (
	"errors"
	"os"
	"strings"
	"testing"
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

func TestStartLoop(t *testing.T) {
	t.Parallel()
	for range 3 {
		if err := StartLoop(); err != nil {
			t.Fatal(err)
		}
	}
}
