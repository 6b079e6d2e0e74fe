// SPDX-License-Identifier: BSD-3-Clause

package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"vmux.app/toolkit/internal/pairing"
	"vmux.app/toolkit/internal/phone"
	"vmux.app/toolkit/internal/signer"
)

// The first line of a pipe is read, with or without its end, and no more is
// needed for it to be one.
func TestReadLineOfPipe(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"one\n": "one", "one": "one", " one \r\ntwo\n": "one", "\n": "", "": "!"} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		w.WriteString(in)
		if strings.Contains(in, "\n") {
			defer w.Close() // it stays open: the line is whole
		} else {
			w.Close()
		}
		tui := newTUI(r, new(bytes.Buffer), new(bytes.Buffer), "x", false, false)
		got, err := tui.ReadLine(t.Context(), "? ")
		if want == "!" {
			if !errors.Is(err, ErrNoInput) {
				t.Errorf("%q: %v", in, err)
			}
		} else if err != nil || got != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := newTUI(r, nil, nil, "x", false, false).ReadLine(ctx, "? "); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// --quiet leaves what belongs to a question.
func TestAlwaysf(t *testing.T) {
	t.Parallel()
	var stderr bytes.Buffer
	tui := newTUI(nil, new(bytes.Buffer), &stderr, "x", false, true)
	tui.Notef("note")
	tui.Alwaysf("list %s", "a\x1bb")
	if got := stderr.String(); strings.Contains(got, "note") || strings.ContainsRune(got, 0x1b) || !strings.HasPrefix(got, "list a") {
		t.Errorf("%q", got)
	}
}

// Both ends of a pairing end with the same status for the same failure.
func TestPairingAdvice(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		exit int
		hint string
	}{
		{fmt.Errorf("%w: %v", phone.ErrURLNotTaken, pairing.ErrMethod), ExitNoAnswer, "vmux-pair --url"},
		{phone.ErrNotOpened, ExitNoAnswer, "vmux-signer pair"},
		{phone.ErrNoPhone, ExitUnreachable, "--address"},
		{pairing.ErrTime, ExitNoAnswer, ""},
		{pairing.ErrStalled, ExitNoAnswer, "begin anew"},
		{pairing.ErrStopped, ExitFailed, "begin anew"},
		{pairing.ErrDeclined, ExitDenied, ""},
		{signer.ErrURLExpired, ExitNoAnswer, "new URL"},
		{signer.ErrURLUsed, ExitFailed, "vmux-pair --url"},
		{fmt.Errorf("%w: %w", signer.ErrWindowExpired, errors.New("x")), ExitNoAnswer, "vmux-signer pair"},
	} {
		if exit, hint := Advice(c.err); exit != c.exit || !strings.Contains(hint, c.hint) {
			t.Errorf("%v: %d, %q", c.err, exit, hint)
		}
	}
}
