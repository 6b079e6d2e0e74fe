// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestLock(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	client, ed := r.client(), r.signer.Keys(nil)[0].Public
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	mustNot := func(err error) {
		t.Helper()
		if err == nil {
			t.Fatal("no error")
		}
	}
	mustNot(client.Unlock([]byte("secret")))
	mustNot(client.Lock(nil))
	must(client.Lock([]byte("secret")))
	if !r.server.Locked() {
		t.Error("not locked")
	}
	mustNot(client.Lock([]byte("secret")))
	other := r.client()
	if keys, err := other.List(); err != nil || len(keys) != 0 {
		t.Errorf("%d keys listed, %v", len(keys), err)
	}
	if _, err := other.Sign(ed, sshsigData("file")); err == nil {
		t.Error("signed while locked")
	}
	if n := len(r.signer.requests()); n != 0 {
		t.Errorf("asked %d times while locked", n)
	}
	mustNot(other.Unlock(nil))
	mustNot(other.Unlock([]byte("secreT")))
	must(other.Unlock([]byte("secret")))
	if keys, err := client.List(); err != nil || len(keys) != 2 {
		t.Errorf("%d keys listed, %v", len(keys), err)
	}
	if _, err := client.Sign(ed, sshsigData("file")); err != nil {
		t.Error(err)
	}
	for _, typ := range []byte{msgLock, msgUnlock} {
		for _, body := range [][]byte{nil, {0}, {0, 0, 0, 9, 'x'}, {0, 0, 0, 1, 'x', 'y'}} {
			if got := r.dial().call(append([]byte{typ}, body...)...)[0]; got != msgFailure {
				t.Errorf("type %d, body % x: %d", typ, body, got)
			}
		}
	}
	if r.server.Locked() {
		t.Error("a malformed request locked the agent")
	}
	if len(r.log.lines("secre")) != 0 {
		t.Error("log has the passphrase")
	}
}

// TestLockDuringPrompt: a signature that comes back to a locked agent is not handed out.
func TestLockDuringPrompt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	started, release, _ := r.pending()
	c := r.dial()
	c.send(frame(signMessage(r.signer.Keys(nil)[0].Public, sshsigData("file"), 0)...))
	await(t, started)
	if err := r.client().Lock([]byte("secret")); err != nil {
		t.Fatal(err)
	}
	close(release)
	if got := c.recv()[0]; got != msgFailure {
		t.Errorf("answer %d", got)
	}
}

func TestWrongPassphraseDelays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, ctx := newLock(), t.Context()
		if err := l.Lock(ctx, []byte("secret")); err != nil {
			t.Fatal(err)
		}
		took := func(passphrase string, want error) time.Duration {
			t.Helper()
			began := time.Now()
			if err := l.Unlock(ctx, []byte(passphrase)); !errors.Is(err, want) {
				t.Fatalf("error %v, want %v", err, want)
			}
			return time.Since(began)
		}
		for i := 1; i <= 3; i++ {
			if got, want := took("wrong", errWrongPassphrase), time.Duration(i)*lockDelayStep; got != want {
				t.Errorf("attempt %d took %v, want %v", i, got, want)
			}
		}
		l.failed = 1000
		if got := took("wrong", errWrongPassphrase); got != lockDelayMax {
			t.Errorf("took %v, want %v", got, lockDelayMax)
		}
		if got := took("secret", nil); got != 0 {
			t.Errorf("the right one took %v", got)
		}
		// And the count starts again.
		if err := l.Lock(ctx, []byte("secret")); err != nil {
			t.Fatal(err)
		}
		if got := took("wrong", errWrongPassphrase); got != lockDelayStep {
			t.Errorf("after a lock: %v", got)
		}
	})
}

// TestDelayIsNotBypassed: not by asking on many connections at once, and not by hanging up.
func TestDelayIsNotBypassed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLock()
		if err := l.Lock(t.Context(), []byte("secret")); err != nil {
			t.Fatal(err)
		}
		const attempts = 5
		began := time.Now()
		var all sync.WaitGroup
		for range attempts {
			all.Go(func() {
				if err := l.Unlock(t.Context(), []byte("wrong")); !errors.Is(err, errWrongPassphrase) {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if got, want := time.Since(began), (1+2+3+4+5)*lockDelayStep; got != want {
			t.Errorf("%d attempts took %v, want %v", attempts, got, want)
		}

		began = time.Now()
		gone, hangUp := context.WithCancel(t.Context())
		all.Go(func() {
			if err := l.Unlock(gone, []byte("wrong")); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		synctest.Wait()
		hangUp()
		all.Wait()
		if got := time.Since(began); got != 0 {
			t.Errorf("hanging up took %v", got)
		}
		if err := l.Unlock(t.Context(), []byte("secret")); err != nil {
			t.Fatal(err)
		}
		if got, want := time.Since(began), (attempts+1)*lockDelayStep; got != want {
			t.Errorf("next attempt took %v, want %v", got, want)
		}
	})
}
