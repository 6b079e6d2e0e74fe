// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// What the owner allows when macOS has asked is advertised from then on, and said once to be missing before.
func TestInsist(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var out bytes.Buffer
		tries, start := 0, time.Now()
		insist(ctx, slog.New(slog.NewTextHandler(&out, nil)), func() error {
			switch tries++; tries {
			case 1, 2:
				return errors.New("no route to host")
			case 3:
				return errors.New("another reason")
			}
			cancel()
			return nil
		})
		if said := out.String(); strings.Count(said, "not advertised") != 2 || strings.Count(said, "no route to host") != 1 {
			t.Errorf("said %q", said)
		}
		if took := time.Since(start); tries != 4 || took != 3*advertiseRetry {
			t.Errorf("%d tries in %v", tries, took)
		}
		tries, start = 0, time.Now()
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		insist(ctx, slog.New(slog.DiscardHandler), func() error { tries++; return errors.New("no") })
		if took := time.Since(start); tries != 1 || took != time.Second {
			t.Errorf("at the end: %d tries in %v", tries, took)
		}
	})
}
