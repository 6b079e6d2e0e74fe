// SPDX-License-Identifier: BSD-3-Clause

package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/process"
)

// TestThreat_N05_TwoClocks has each clock at, before and after the end of a certificate of an hour.
func TestThreat_N05_TwoClocks(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	for _, c := range []struct {
		name       string
		wall, boot time.Duration // since the request
		over       bool
	}{
		{"at once", 0, 0, false},
		{"1 ms before the end", time.Hour - ms, time.Hour - ms, false},
		{"at the end", time.Hour, time.Hour, true},
		{"1 ms after the end", time.Hour + ms, time.Hour + ms, true},
		{"at the end by the wall clock", time.Hour, time.Minute, true},
		{"at the end by boot time", time.Minute, time.Hour, true},
		{"wall clock set back, 1 ms before the end", -24 * time.Hour, time.Hour - ms, false},
		{"wall clock set back, at the end", -24 * time.Hour, time.Hour, true},
		{"wall clock set forward, 1 ms before the end", time.Hour - ms, 0, false},
		{"wall clock set forward beyond it", 24 * time.Hour, 0, true},
		{"asleep, wall clock not set on waking", 0, 24 * time.Hour, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			cert := r.request(spec())
			later := r.request(spec(named("later"), validity(12*time.Hour)))
			r.clock.wall.Add(int64(c.wall))
			r.clock.boot.Add(int64(c.boot))
			_, err := cert.Sign(use())
			if (err != nil) != c.over || err != nil && !errors.Is(err, ErrExpired) {
				t.Errorf("sign: %v", err)
			}
			for name, all := range map[string][]*Certificate{"current": r.Current(), "for": r.For(Lister{})} {
				if slices.Contains(all, cert) == c.over {
					t.Errorf("%s: %v", name, serials(all))
				}
				if c.wall < 12*time.Hour && c.boot < 12*time.Hour && !slices.Contains(all, later) {
					t.Errorf("%s lost the other one", name)
				}
			}
			if _, ok := r.Enough(spec(), 0); ok == c.over {
				t.Errorf("enough: %v", ok)
			}
			// What has been over stays so when the clock is set back.
			r.clock.wall.Add(-int64(c.wall))
			if _, err := cert.Sign(use()); (err != nil) != c.over {
				t.Errorf("after the clock was set back: %v", err)
			}
		})
	}
}

// sleeper is synctest's clock; the test adds time asleep, which timers do not count.
type sleeper struct {
	began time.Time
	clock
}

func (s *sleeper) Wall() time.Time     { return time.Now().Add(s.clock.Boot()) }
func (s *sleeper) Boot() time.Duration { return time.Since(s.began) + s.clock.Boot() }

func inBubble(t *testing.T, f func(t *testing.T, r *rig, s *sleeper)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &sleeper{began: time.Now()}
		r := newRig(t, func(o *Options) { o.Clock = s })
		r.authority.clock = s
		f(t, r, s)
	})
}

// TestTimerWipes: nobody asks for anything, and the key is gone at the end.
func TestTimerWipes(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig, s *sleeper) {
		<-time.After(300 * time.Millisecond) // so that the end is not on a look that comes anyway
		c := r.request(spec(validity(15 * time.Second)))
		<-time.After(14700*time.Millisecond - time.Millisecond)
		synctest.Wait()
		if wipedKey(c.key) {
			t.Error("wiped before the end")
		}
		<-time.After(time.Millisecond)
		synctest.Wait()
		if !wipedKey(c.key) || len(r.current.Load().certs) != 0 {
			t.Error("not wiped at the end")
		}
		if !strings.Contains(r.log.String(), "it has expired") {
			t.Error("it is not logged")
		}
	})
}

// TestTimerAfterSleep: after a sleep beyond the end the key is gone within a second of waking.
func TestTimerAfterSleep(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig, s *sleeper) {
		c := r.request(spec())
		<-time.After(10*time.Minute + time.Second/3)
		s.clock.pass(time.Hour)
		<-time.After(time.Second)
		synctest.Wait()
		if !wipedKey(c.key) {
			t.Error("not wiped a second after waking")
		}
	})
}

// TestNoTimerWithoutCertificates: without certificates nobody looks at the clock.
func TestNoTimerWithoutCertificates(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &sleeper{began: time.Now()}
		counting := &counter{Clock: s}
		r := newRig(t, func(o *Options) { o.Clock = counting })
		r.authority.clock = s
		r.request(spec())
		<-time.After(10 * time.Second)
		synctest.Wait()
		if n := counting.Load(); n < 10 || n > 50 {
			t.Errorf("%d looks in ten seconds", n)
		}
		r.DropAll()
		<-time.After(2 * time.Second) // a timer that was set already
		synctest.Wait()
		counting.Store(0)
		<-time.After(24 * time.Hour)
		synctest.Wait()
		if n := counting.Load(); n != 0 {
			t.Errorf("%d looks in a day without certificates", n)
		}
	})
}

// counter counts looks at the wall clock.
type counter struct {
	Clock
	atomic.Int64
}

func (c *counter) Wall() time.Time {
	c.Add(1)
	return c.Clock.Wall()
}

// TestJobEnds: the certificate of a job that has ended is dropped within a second.
func TestJobEnds(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig, s *sleeper) {
		var mu sync.Mutex
		var answer error
		running := true
		r.descends = func(pid int, root process.Process) (bool, error) {
			mu.Lock()
			defer mu.Unlock()
			return running && pid == root.PID && root.Start == job.Start, answer
		}
		set := func(r bool, err error) {
			mu.Lock()
			defer mu.Unlock()
			running, answer = r, err
		}
		c := r.request(spec(inJob))
		other := r.request(spec())
		<-time.After(10 * time.Second)
		set(false, errors.New("permission denied"))
		<-time.After(10 * time.Second)
		synctest.Wait()
		if wipedKey(c.key) {
			t.Fatal("dropped while the job runs")
		}
		set(false, fmt.Errorf("process 4242: %w", process.ErrNoProcess))
		<-time.After(time.Second)
		synctest.Wait()
		if !wipedKey(c.key) || wipedKey(other.key) {
			t.Error("not dropped, or the wrong one")
		}
		if _, err := c.Sign(use()); !errors.Is(err, ErrDropped) {
			t.Error(err)
		}
		set(true, nil)
		c = r.request(spec(inJob))
		<-time.After(2 * time.Second)
		set(false, nil) // the pid is another's
		<-time.After(time.Second)
		synctest.Wait()
		if !wipedKey(c.key) {
			t.Error("not dropped when the pid was given away")
		}
	})
}

// TestFailedRequestWipes: whatever a request fails for, its key is wiped.
func TestFailedRequestWipes(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(r *rig){
		"denied": func(r *rig) {
			r.authority.asked = func(context.Context, Spec) error { return errors.New("denied") }
		},
		"mismatch": func(r *rig) { r.authority.change = func(c *ssh.Certificate) { c.ValidBefore++ } },
		"rubbish":  func(r *rig) { r.authority.answer = func(_, ca []byte) ([]byte, []byte) { return nil, ca } },
		"closed": func(r *rig) {
			r.authority.asked = func(context.Context, Spec) error { r.Close(); return nil }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			var k *key
			r.newKey = func() (_ *key, err error) {
				k, err = newKey()
				return k, err
			}
			fail(r)
			if _, err := r.Request(t.Context(), spec()); err == nil {
				t.Fatal("it does not fail")
			}
			if !wipedKey(k) {
				t.Error("its key is not wiped")
			}
		})
	}
}

func TestReplace(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first, other := r.request(spec()), r.request(spec(named("other")))
	r.clock.pass(time.Minute)
	second := r.request(spec(func(s *Spec) { s.Reason = "again" }))
	if all := r.Current(); !slices.Contains(all, second) || slices.Contains(all, first) || !slices.Contains(all, other) {
		t.Errorf("got %v", serials(all))
	}
	if _, err := first.Sign(use()); !errors.Is(err, ErrDropped) {
		t.Errorf("got %v", err)
	}
	for _, c := range []*Certificate{second, other} {
		if _, err := c.Sign(use()); err != nil {
			t.Error(err)
		}
	}
	// A request that fails replaces nothing.
	r.authority.change = func(c *ssh.Certificate) { c.CertType = ssh.HostCert }
	if _, err := r.Request(t.Context(), spec()); err == nil {
		t.Fatal("a host certificate passes")
	}
	denied := errors.New("denied")
	r.authority.asked = func(context.Context, Spec) error { return denied }
	if _, err := r.Request(t.Context(), spec()); !errors.Is(err, denied) {
		t.Errorf("got %v", err)
	}
	if !slices.Contains(r.Current(), second) {
		t.Error("a failed request replaces")
	}
}

func TestEnough(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	want := r.request(spec())
	r.clock.pass(10 * time.Minute)
	for d, enough := range map[time.Duration]bool{0: true, 50 * time.Minute: true, 50*time.Minute + 1: false, 8 * time.Hour: false} {
		i, ok := r.Enough(spec(), d)
		if ok != enough || ok && i.Serial != want.public.Serial {
			t.Errorf("%v: %v, %+v", d, ok, i)
		}
	}
	r.clock.boot.Add(int64(40 * time.Minute))
	if _, ok := r.Enough(spec(), 11*time.Minute); ok {
		t.Error("goes by one clock only")
	}
	if _, ok := r.Enough(spec(named("other")), 0); ok {
		t.Error("another request is enough")
	}
	if _, ok := r.Enough(Spec{}, 0); ok {
		t.Error("an empty request is enough")
	}
	if len(r.authority.keys) != 1 {
		t.Error("the phone was asked")
	}
}

// A phone can be forgotten between its answer and the moment in which that is kept.
func TestForgottenOnTheWay(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var k *key
	r.newKey = func() (_ *key, err error) {
		k, err = newKey()
		return k, err
	}
	r.authority.answer = func(blob, ca []byte) ([]byte, []byte) {
		r.DropCA(ca)
		return blob, ca
	}
	if _, err := r.Request(t.Context(), spec()); !errors.Is(err, ErrDropped) {
		t.Errorf("got %v", err)
	}
	if len(r.Current()) != 0 || !wipedKey(k) {
		t.Error("it is kept")
	}
	// Another one's end is not its own, nor that of who asks when it is paired again.
	other := newSigner(t)
	r.authority.answer = func(blob, ca []byte) ([]byte, []byte) {
		r.DropCA(other.PublicKey().Marshal())
		r.DropCA(ca)
		r.authority.answer = nil
		r.request(spec(named("again")))
		return blob, ca
	}
	if _, err := r.Request(t.Context(), spec()); !errors.Is(err, ErrDropped) {
		t.Errorf("got %v", err)
	}
	r.authority.answer = func(blob, ca []byte) ([]byte, []byte) {
		r.DropCA(other.PublicKey().Marshal())
		return blob, ca
	}
	r.request(spec())
	if len(r.Current()) != 2 {
		t.Errorf("%d are kept", len(r.Current()))
	}
}

func TestDrop(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	a, b := r.request(spec(named("a"))), r.request(spec(named("b")))
	second := newSigner(t)
	first := r.authority.ca
	r.authority.ca = second
	r.authority.serial.Store(0)
	c := r.request(spec(named("c"))) // has a's serial
	if r.Drop(5) || len(r.Current()) != 3 {
		t.Error("an unknown serial drops")
	}
	if n := r.DropCA(second.PublicKey().Marshal()); n != 1 || !wipedKey(c.key) || wipedKey(a.key) {
		t.Errorf("%d of the second CA dropped", n)
	}
	if n := r.DropCA(nil); n != 0 {
		t.Errorf("%d of no CA dropped", n)
	}
	if !r.Drop(a.public.Serial) || wipedKey(b.key) || !wipedKey(a.key) || r.Drop(a.public.Serial) {
		t.Error("dropped the wrong one")
	}
	if n := r.DropCA(first.PublicKey().Marshal()); n != 1 || !wipedKey(b.key) {
		t.Errorf("%d of the first CA dropped", n)
	}
	r.authority.ca = first
	r.request(spec())
	if n := r.DropAll(); n != 1 || r.DropAll() != 0 || len(r.List()) != 0 {
		t.Errorf("%d dropped", n)
	}
}

func TestBounds(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for i := range maxLive {
		r.request(spec(named(fmt.Sprint(i))))
	}
	asked := len(r.authority.keys)
	if _, err := r.Request(t.Context(), spec(named("more"))); !errors.Is(err, ErrTooMany) {
		t.Errorf("got %v", err)
	}
	if len(r.authority.keys) != asked {
		t.Error("the phone was asked for nothing")
	}
	r.request(spec(named("7"))) // replaces one
	if n := len(r.Current()); n != maxLive {
		t.Errorf("%d are live", n)
	}
	r.clock.pass(30 * time.Minute)
	r.Drop(r.Current()[0].public.Serial)
	r.request(spec(named("more")))
	r.clock.pass(30 * time.Minute) // all but that one are over
	r.request(spec(named("even more")))
	if n := len(r.Current()); n != 2 {
		t.Errorf("%d are live", n)
	}
}

func TestBoundOfBytes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	long := func(s *Spec) {
		s.CriticalOptions = map[string]string{"force-command": strings.Repeat("a", 4000)}
		s.Extensions = map[string]string{"x": strings.Repeat("b", 3900)}
	}
	n := 0
	var err error
	for ; err == nil && n < maxLive; n++ {
		_, err = r.Request(t.Context(), spec(long, named(fmt.Sprint(n))))
	}
	size := 0
	for _, c := range r.Current() {
		size += len(c.Public().Marshal())
	}
	if !errors.Is(err, ErrTooMany) || size > maxListing || size < maxListing-maxRequest-1024 {
		t.Errorf("%d certificates of %d bytes in all, then %v", n, size, err)
	}
	if wiped := len(r.Current()); wiped != n-1 {
		t.Errorf("%d are kept of %d", wiped, n-1)
	}
}

// TestPendingIsBounded has as many requests wait for the phone as may be live.
func TestPendingIsBounded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	arrived, goOn := make(chan struct{}), make(chan struct{})
	r.authority.asked = func(context.Context, Spec) error {
		arrived <- struct{}{}
		<-goOn
		return nil
	}
	var all sync.WaitGroup
	for i := range maxLive {
		all.Go(func() {
			if _, err := r.Request(t.Context(), spec(named(fmt.Sprint(i)))); err != nil {
				t.Error(err)
			}
		})
		<-arrived
	}
	if _, err := r.Request(t.Context(), spec()); !errors.Is(err, ErrTooMany) {
		t.Errorf("got %v", err)
	}
	close(goOn)
	all.Wait()
	if n := len(r.Current()); n != maxLive {
		t.Errorf("%d are live", n)
	}
	r.DropAll()
	r.authority.asked = nil
	r.request(spec())
}

// TestNothingWaitsForThePhone: while the owner decides, everything else goes on.
func TestNothingWaitsForThePhone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.request(spec())
	arrived := make(chan struct{})
	r.authority.asked = func(ctx context.Context, _ Spec) error {
		close(arrived)
		<-ctx.Done()
		return ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := r.Request(ctx, spec(named("slow")))
		done <- err
	}()
	<-arrived
	if _, err := c.Sign(use()); err != nil {
		t.Error(err)
	}
	r.List()
	r.DropAll()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestClose(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	arrived, goOn := make(chan struct{}), make(chan struct{})
	r.request(spec())
	r.authority.asked = func(context.Context, Spec) error {
		close(arrived)
		<-goOn
		return nil
	}
	done := make(chan error)
	go func() {
		_, err := r.Request(t.Context(), spec(named("late")))
		done <- err
	}()
	<-arrived
	r.Close()
	r.Close()
	close(goOn)
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
	if _, err := r.Request(t.Context(), spec()); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
	if len(r.Current()) != 0 || len(r.For(Lister{})) != 0 || r.DropAll() != 0 {
		t.Error("something is left")
	}
}

func TestCertify(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	public := newSigner(t).PublicKey()
	blob, info, err := r.Certify(t.Context(), public, spec())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(blob, r.authority.made[0].Marshal()) || info.Serial != 1001 || info.Key != ssh.FingerprintSHA256(public) || info.CA != ssh.FingerprintSHA256(r.authority.ca.PublicKey()) {
		t.Errorf("got %+v", info)
	}
	if len(r.Current()) != 0 {
		t.Error("it is kept")
	}
	var se *SpecError
	for _, change := range []func(*Spec){uses(1), notForwarded, inJob, toHosts(public), validity(0)} {
		if _, _, err := r.Certify(t.Context(), public, spec(change)); !errors.As(err, &se) {
			t.Errorf("got %v", err)
		}
	}
	if _, _, err := r.Certify(t.Context(), r.authority.made[0], spec()); !errors.As(err, &se) {
		t.Errorf("certificate of a certificate: %v", err)
	}
	if len(r.authority.keys) != 1 {
		t.Error("the phone was asked")
	}
}

// TestTogether does everything at once, for the race detector.
func TestTogether(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.family(1, job.PID)
	host := newSigner(t).PublicKey()
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for j := range 20 {
				s := spec(named(fmt.Sprint(j%5)), []func(*Spec){toHosts(host), notForwarded, inJob, uses(3)}[i])
				info, err := r.Request(t.Context(), s)
				if err != nil {
					t.Error(err)
					return
				}
				for _, c := range r.For(Lister{HostKey: host.Marshal(), Bound: true, PID: 1, Alive: alive}) {
					u := use()
					u.HostKey, u.Bound = host.Marshal(), true
					_, err := c.Sign(u)
					var se *ScopeError
					if err != nil && !errors.Is(err, ErrDropped) && !(errors.As(err, &se) && se.Limit == LimitUses) {
						t.Error(err)
					}
					c.Info()
				}
				r.List()
				r.Enough(s, time.Minute)
				if j%7 == 0 {
					r.Drop(info.Serial)
				}
			}
		})
	}
	all.Wait()
	certs := slices.Clone(r.Current())
	r.Close()
	for _, c := range certs {
		if !wipedKey(c.key) {
			t.Error("not wiped")
		}
	}
}

func TestLogs(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.request(spec())
	if _, err := c.Sign(use()); err != nil {
		t.Fatal(err)
	}
	r.DropAll()
	log := r.log.String()
	for _, want := range []string{"serial=1001", "key_id=vmux:alice@laptop:1001", "it was dropped", "all were dropped"} {
		if strings.Contains(log, want) == (want == "it was dropped") {
			t.Errorf("%q: %s", want, log)
		}
	}
	if n := strings.Count(log, "\n"); n != 2 {
		t.Errorf("%d lines: %s", n, log)
	}
}

func TestSystemClock(t *testing.T) {
	t.Parallel()
	var s System
	first := s.Boot()
	if first <= 0 || s.Boot() < first {
		t.Errorf("boot time %v", first)
	}
	if w := s.Wall(); time.Since(w).Abs() > time.Minute || strings.Contains(w.String(), "m=") {
		t.Errorf("wall clock %v", w)
	}
}
