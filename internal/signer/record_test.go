// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vmux.app/toolkit/internal/audit"
	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/transport"
)

// recorded gives the audit log as lines of what matters here.
func recorded(t *testing.T, h *Home) string {
	t.Helper()
	var b strings.Builder
	for r, err := range audit.Records(h.dir, time.Time{}) {
		if err != nil {
			t.Fatal(err)
		}
		var words []string
		for _, w := range []string{r.Event, r.Outcome, r.Device, r.Operation, r.User, r.Key, r.Reason} {
			if w != "" {
				words = append(words, w)
			}
		}
		b.WriteString(strings.Join(words, " ") + "\n")
	}
	if _, err := audit.Verify(h.dir); err != nil {
		t.Error(err)
	}
	return b.String()
}

func TestRequestsAreRecorded(t *testing.T) {
	t.Parallel()
	owner := &said{}
	s := testServer(t, owner)
	ask := func(id string, r *envelope.SignRequest, want envelope.Code) {
		t.Helper()
		p, err := s.handle(t.Context(), testPin, id, r)
		wantCode(t, p, err, want)
	}
	begin := len(recorded(t, s.home))
	r := request(s, "work", 1)
	ask("a", r, "")
	ask("a", r, envelope.CodeBadRequest)
	owner.answer = ErrDenied
	ask("b", request(s, "work", 2), envelope.CodeDenied)
	old := request(s, "work", 3)
	old.CreatedAt = envelope.At(time.Now().Add(-time.Hour))
	ask("c", old, envelope.CodeExpired)
	got := recorded(t, s.home)[begin:]
	for i, want := range []string{
		"request laptop ", "decision signed laptop ", "decision badRequest laptop this request id was used before",
		"request laptop ", "decision denied laptop ", "decision expired laptop the request is of ",
	} {
		lines := strings.Split(got, "\n")
		if i >= len(lines) || !strings.HasPrefix(lines[i], want) {
			t.Errorf("line %d is not %q:\n%s", i, want, got)
		}
	}
}

// C05: an id that was used before a restart is used.
func TestThreat_C05_IDOnceAcrossRestart(t *testing.T) {
	t.Parallel()
	owner := &said{answer: ErrDenied}
	s := testServer(t, owner)
	r := request(s, "work", 1)
	p, err := s.handle(t.Context(), testPin, "a", r)
	wantCode(t, p, err, envelope.CodeDenied)

	owner = &said{}
	again, err := newServer(s.home, Options{Approver: owner})
	if err != nil {
		t.Fatal(err)
	}
	p, err = again.handle(t.Context(), testPin, "a", r)
	wantCode(t, p, err, envelope.CodeBadRequest)
	if owner.asked > 0 {
		t.Error("the owner was asked")
	}
	p, err = again.handle(t.Context(), testPin, "b", r)
	wantCode(t, p, err, "")
}

// breaksLog makes the log unwritable before it says yes.
type breaksLog struct {
	t *testing.T
	h *Home
}

func (b *breaksLog) Approve(_ context.Context, _ *Prompt) error {
	breakLog(b.t, b.h)
	return nil
}

func breakLog(t *testing.T, h *Home) {
	t.Helper()
	path := h.path("audit.jsonl")
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
		t.Error(err)
	}
}

// What cannot be recorded is neither shown nor signed.
func TestNothingIsSignedUnrecorded(t *testing.T) {
	t.Parallel()
	b := &breaksLog{t: t}
	s := testServer(t, b)
	b.h = s.home
	p, err := s.handle(t.Context(), testPin, "a", request(s, "work", 1))
	wantCode(t, p, err, envelope.CodeInternal)
	if !strings.Contains(err.Error(), "not recorded in the audit log") {
		t.Error(err)
	}

	owner := &said{}
	s = testServer(t, owner)
	breakLog(t, s.home)
	p, err = s.handle(t.Context(), testPin, "a", request(s, "work", 1))
	wantCode(t, p, err, envelope.CodeInternal)
	if owner.asked > 0 {
		t.Error("the owner was asked")
	}
}

// A device cannot push others out of the log by what nobody sees, nor fill the
// signer's own.
func TestUnseenRefusalsAreBounded(t *testing.T) {
	t.Parallel()
	s := testServer(t, yes{})
	var log bytes.Buffer
	s.log = slog.New(slog.NewTextHandler(&log, nil))
	now := time.Now()
	s.now = func() time.Time { return now }
	begin := len(recorded(t, s.home))
	refused := func(id string) {
		r := request(s, "work", 1)
		r.CreatedAt = envelope.At(now.Add(-time.Hour))
		p, err := s.handle(t.Context(), testPin, id, r)
		wantCode(t, p, err, envelope.CodeExpired)
	}
	for range 5 * maxUnseen {
		refused(transport.NewID())
	}
	now = now.Add(unseenTime + time.Second)
	refused("last")
	got := strings.Split(strings.TrimSpace(recorded(t, s.home)[begin:]), "\n")
	if len(got) != maxUnseen+1 || !strings.HasSuffix(got[maxUnseen], "(120 more like it were not recorded)") {
		t.Errorf("%d lines, the last one %q", len(got), got[len(got)-1])
	}
	said := strings.Split(strings.TrimSpace(log.String()), "\n")
	if len(said) != maxUnseen+1 || !strings.HasSuffix(said[len(said)-1], `(120 more like it were not recorded)"`) {
		t.Errorf("%d lines are logged, the last one %q", len(said), said[len(said)-1])
	}
}

// Nor can it do that by links that come and go.
func TestLinksInTheLogAreBounded(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	now := time.Now()
	r := serveWith(t, testHome(t), Options{Approver: yes{}, Log: slog.New(slog.NewTextHandler(&log, nil)), Now: func() time.Time { return now }})
	d := newDevice(t, "laptop")
	pairByURL(t, r, d)
	for range 2 * maxUnseen {
		l, err := d.link(t, r)
		if err != nil {
			t.Fatal(err)
		}
		r.expect(EventConnected)
		l.Close()
		r.expect(EventDisconnected)
	}
	r.stop()
	for _, msg := range []string{"msg=connected ", "msg=disconnected "} {
		if n := strings.Count(log.String(), msg); n != maxUnseen {
			t.Errorf("%s %d times", msg, n)
		}
	}
}

// What is refused before anybody is asked is not recorded as if it had been shown.
func TestHeldUpIsUnseen(t *testing.T) {
	t.Parallel()
	owner := &said{answer: ErrDenied}
	s := testServer(t, owner)
	ask := func(n int) {
		p, err := s.handle(t.Context(), testPin, transport.NewID(), request(s, "work", byte(n)))
		wantCode(t, p, err, envelope.CodeDenied)
	}
	for n := range freeRefusals {
		ask(n)
	}
	begin := len(recorded(t, s.home))
	for n := range 2 * maxUnseen {
		ask(n)
	}
	got := recorded(t, s.home)[begin:]
	if owner.asked != freeRefusals || strings.Contains(got, "request laptop") || strings.Count(got, "\n") != maxUnseen {
		t.Errorf("asked %d times, recorded after that:\n%s", owner.asked, got)
	}
}

// Nor can it do so by requests that are shown and come to nothing, such as those
// that it withdraws.
func TestShownInVainIsBounded(t *testing.T) {
	t.Parallel()
	owner := &said{answer: errors.New("nobody there")}
	s := testServer(t, owner)
	now := time.Now()
	s.now = func() time.Time { return now }
	ask := func(want envelope.Code) {
		t.Helper()
		r := request(s, "work", 1)
		r.CreatedAt = envelope.At(now)
		p, err := s.handle(t.Context(), testPin, transport.NewID(), r)
		wantCode(t, p, err, want)
	}
	for range 2 * maxVain {
		owner.answer = nil
		ask("") // what is signed does not count
	}
	owner.answer = errors.New("nobody there")
	for range maxVain {
		ask(envelope.CodeInternal)
	}
	asked, begin := owner.asked, len(recorded(t, s.home))
	for range 2 * maxUnseen {
		ask(envelope.CodeTooMany)
	}
	if n := strings.Count(recorded(t, s.home)[begin:], "\n"); owner.asked != asked || n != maxUnseen {
		t.Errorf("asked %d more times, %d lines", owner.asked-asked, n)
	}
	now = now.Add(unseenTime + time.Second)
	owner.answer = nil
	ask("")
}

// recordedAfter gives the lines that were recorded after the first n bytes.
func recordedAfter(t *testing.T, h *Home, n int) []string {
	t.Helper()
	return strings.Split(strings.TrimSuffix(recorded(t, h)[n:], "\n"), "\n")
}

// T06: each wrong passphrase is recorded, wherever it was given, and what ends in
// a lock is, too.
func TestThreat_T06_WrongPassphrasesAreRecorded(t *testing.T) {
	t.Parallel()
	h := protectedHome(t)
	synctest.Test(t, func(t *testing.T) {
		o := newOwner()
		s := guarded(t, h, Options{Approver: o})
		begin := len(recorded(t, h))
		// The one of "vmux-signer unlock", at a prompt, and in place of a prompt.
		wants(t, "unlock", s.unlock(t.Context(), wrong()), ErrPassphrase)
		done := start(t.Context(), s, "a", request(s, "work", 1))
		q := <-o.asked
		for range 3 {
			wants(t, "prompt", q.prompt.Unlock(wrong()), ErrPassphrase)
		}
		wants(t, "none", q.prompt.Unlock(nil), ErrPassphrase) // is no try
		wants(t, "prompt", q.prompt.Unlock(wrong()), ErrLocked)
		q.reply <- ErrLocked
		ends(t, done, envelope.CodeLocked)
		done = start(t.Context(), s, "b", request(s, "work", 2))
		d := <-o.doors
		wants(t, "door", d.try(wrong()), ErrPassphrase)
		wants(t, "door", d.try(right()), nil)
		d.reply <- ErrDenied
		ends(t, done, envelope.CodeDenied)
		want := []string{
			"lock failed wrong passphrase, failures in a row: 1",
			"request laptop",
			"lock failed wrong passphrase, failures in a row: 2",
			"lock failed wrong passphrase, failures in a row: 3",
			"lock failed wrong passphrase, failures in a row: 4",
			"lock failed wrong passphrase, failures in a row: 5",
			"lock locked 5 failed approvals in a row",
			"decision locked laptop",
			"request laptop",
			"lock failed wrong passphrase, failures in a row: 6",
			"lock unlocked",
			"decision denied laptop",
		}
		got := recordedAfter(t, h, begin)
		for i := range max(len(got), len(want)) {
			if i >= len(got) || i >= len(want) || !strings.HasPrefix(got[i], want[i]) {
				t.Fatalf("line %d:\n%s\nwant\n%s", i, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		}
		for _, secret := range []string{testPassphrase, string(wrong())} {
			if strings.Contains(recorded(t, h), secret) {
				t.Errorf("%q is recorded", secret)
			}
		}
	})
}

// T06: who only tries passphrases cannot push anything out of the log: the lock
// holds tries up, and none is not a try.
func TestThreat_T06_TriesDoNotFloodTheLog(t *testing.T) {
	t.Parallel()
	h := protectedHome(t)
	synctest.Test(t, func(t *testing.T) {
		s := guarded(t, h, Options{Approver: newOwner()})
		begin := len(recorded(t, h))
		ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
		defer cancel()
		tries := 0
		for ; ctx.Err() == nil; tries++ {
			for range 3 {
				_ = s.unlock(ctx, nil) // an error, as the next one
			}
			_ = s.unlock(ctx, wrong())
		}
		// A second doubles to 15 minutes within ten tries.
		const most = 24*4 + 10 + maxFailures + 1
		if n := len(recordedAfter(t, h, begin)); n < tries-1 || n > most {
			t.Errorf("%d records of %d tries in a day, at most %d are expected", n, tries, most)
		}
	})
}

// Pairings, locks, keys and what else the owner does are recorded.
func TestOwnersDeedsAreRecorded(t *testing.T) {
	t.Parallel()
	h := protectedHome(t)
	s := guarded(t, h, Options{Approver: newOwner()})
	begin := len(recorded(t, h))
	wants(t, "lock", s.lock(), nil)
	wants(t, "unlock", s.unlock(t.Context(), right()), nil)
	wants(t, "disable", h.EnableKey("work", false), nil)
	wants(t, "enable", h.EnableKey("work", true), nil)
	wants(t, "remove", h.RemoveKey("work"), nil)
	_, err := h.Forget("laptop")
	wants(t, "forget", err, nil)
	wants(t, "passphrase", h.ChangePassphrase(right(), []byte("another")), nil)
	got := strings.Join(recordedAfter(t, h, begin), "\n")
	if want := `lock locked
lock unlocked
key disabled work
key enabled work
key removed work
device forgotten laptop
home passphrase changed`; got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	if all := recorded(t, h); !strings.HasPrefix(all, "home made Pocket\n") || !strings.Contains(all, "\nkey added work\n") {
		t.Error(all)
	}
}

// What is done and cannot be recorded is said, in the log, where --quiet leaves it.
func TestUnrecordedIsSaid(t *testing.T) {
	t.Parallel()
	h := protectedHome(t)
	var log strings.Builder
	s := guarded(t, h, Options{Approver: newOwner(), Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelError}))})
	breakLog(t, h)
	wants(t, "lock", s.lock(), nil)
	wants(t, "unlock", s.unlock(t.Context(), wrong()), ErrPassphrase)
	for _, want := range []string{`msg=audit reason="lock locked is not recorded in the audit log`, `msg=audit reason="lock failed is not recorded in the audit log`} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no %s in\n%s", want, log.String())
		}
	}
	if !s.guard.isClosed() || failuresOnDisk(t, h) != 1 {
		t.Error("not locked, or not counted")
	}
}
