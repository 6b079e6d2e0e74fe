// SPDX-License-Identifier: BSD-3-Clause

package session

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/process"
)

// TestThreat_C02_FreshKeys: no two certificates share a key, the same request made again included.
func TestThreat_C02_FreshKeys(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for i := range 20 {
		r.request(spec())
		r.request(spec(named(fmt.Sprint(i))))
	}
	seen := map[string]bool{}
	for _, k := range r.authority.keys {
		public, err := ssh.ParsePublicKey(k)
		if err != nil || public.Type() != ssh.KeyAlgoECDSA256 {
			t.Errorf("key of type %v, %v", public.Type(), err)
		}
		if seen[string(k)] {
			t.Error("a key is used twice")
		}
		seen[string(k)] = true
	}
	if len(seen) != 40 {
		t.Errorf("%d keys for 40 certificates", len(seen))
	}
}

func TestSignatures(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.request(spec())
	lengths := map[int]int{}
	for i := range 600 { // one in 256 has an r with its first byte 0, and one an s
		data := bytes.Repeat([]byte{byte(i), byte(i >> 8)}, i)
		u := use()
		u.Data = data
		sig, err := c.Sign(u)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Public().(*ssh.Certificate).Key.Verify(data, sig); err != nil || sig.Format != "ecdsa-sha2-nistp256" || sig.Rest != nil {
			t.Fatalf("%v, %+v", err, sig)
		}
		var rs struct{ R, S *big.Int }
		if err := ssh.Unmarshal(sig.Blob, &rs); err != nil || !bytes.Equal(ssh.Marshal(rs), sig.Blob) {
			t.Fatalf("not two mpints: %x, %v", sig.Blob, err)
		}
		lengths[len(sig.Blob)]++
	}
	if len(lengths) < 3 { // 70 to 74, and seldom less
		t.Errorf("lengths of signatures: %v", lengths)
	}
}

func hostCertificate(t *testing.T, host ssh.PublicKey) []byte {
	t.Helper()
	c := &ssh.Certificate{Key: host, CertType: ssh.HostCert, ValidBefore: ssh.CertTimeInfinity}
	if err := c.SignCert(rand.Reader, newSigner(t)); err != nil {
		t.Fatal(err)
	}
	return c.Marshal()
}

// TestThreat_N05_Scope has each limit on both sides.
func TestThreat_N05_Scope(t *testing.T) {
	t.Parallel()
	host, second, other := newSigner(t).PublicKey(), newSigner(t).PublicKey(), newSigner(t).PublicKey()
	to := func(key []byte) func(*Use) {
		return func(u *Use) { u.HostKey, u.Bound = key, true }
	}
	hosts := toHosts(host, second)
	none := func(*Spec) {}
	from := func(pid int) func(*Use) { return func(u *Use) { u.PID = pid } }
	for _, c := range []struct {
		name  string
		scope func(*Spec)
		use   []func(*Use)
		limit Limit // "" when it is signed
	}{
		{"no scope, anything", none, nil, ""},
		{"no scope, SSHSIG", none, []func(*Use){func(u *Use) { u.Login = false }}, ""},
		{"no scope, forwarded", none, []func(*Use){func(u *Use) { u.Forwarded = true }}, ""},
		{"no scope, unknown process", none, []func(*Use){func(u *Use) { u.PID, u.Alive = 0, nil }}, ""},

		{"host", hosts, []func(*Use){to(host.Marshal())}, ""},
		{"host's second key", hosts, []func(*Use){to(second.Marshal())}, ""},
		{"host by its certificate", hosts, []func(*Use){to(hostCertificate(t, host))}, ""},
		{"host, named by hostbound data only", hosts, []func(*Use){to(host.Marshal()), func(u *Use) { u.Bound = false }}, ""},
		{"host, forwarded and proven", hosts, []func(*Use){to(host.Marshal()), func(u *Use) { u.Forwarded = true }}, ""},
		{"another host", hosts, []func(*Use){to(other.Marshal())}, LimitHosts},
		{"another host by its certificate", hosts, []func(*Use){to(hostCertificate(t, other))}, LimitHosts},
		{"host key with a byte more", hosts, []func(*Use){to(append(host.Marshal(), 0))}, LimitHosts},
		{"host key that is none", hosts, []func(*Use){to([]byte("x"))}, LimitHosts},
		{"host certificate that is none", hosts, []func(*Use){to([]byte("\x00\x00\x00\x20ssh-ed25519-cert-v01@openssh.com"))}, LimitHosts},
		{"unbound", hosts, nil, LimitHosts},
		{"unverified destination", hosts, []func(*Use){func(u *Use) { u.Bound = true }}, LimitHosts},
		{"empty host key", hosts, []func(*Use){to([]byte{})}, LimitHosts},
		{"SSHSIG on a connection to the host", hosts, []func(*Use){to(host.Marshal()), func(u *Use) { u.Login = false }}, LimitHosts},
		{"the zero use", hosts, []func(*Use){func(u *Use) { *u = Use{} }}, LimitHosts},

		{"not forwarded", notForwarded, nil, ""},
		{"forwarded", notForwarded, []func(*Use){func(u *Use) { u.Forwarded = true }}, LimitForwarding},
		{"forwarded, to the host", func(s *Spec) { hosts(s); notForwarded(s) }, []func(*Use){to(host.Marshal()), func(u *Use) { u.Forwarded = true }}, LimitForwarding},

		{"of the job", inJob, []func(*Use){from(11)}, ""},
		{"the job itself", inJob, []func(*Use){from(job.PID)}, ""},
		{"not of the job", inJob, []func(*Use){from(12)}, LimitProcesses},
		{"cannot be read", inJob, []func(*Use){from(13)}, LimitProcesses},
		{"has ended meanwhile", inJob, []func(*Use){from(11), func(u *Use) { u.Alive = dead }}, LimitProcesses},
		{"not known to live", inJob, []func(*Use){from(11), func(u *Use) { u.Alive = nil }}, LimitProcesses},
		{"unknown process", inJob, []func(*Use){from(0)}, LimitProcesses},
		{"of the job, to another host", func(s *Spec) { hosts(s); inJob(s) }, []func(*Use){from(11), to(other.Marshal())}, LimitHosts},
		{"not of the job, to the host", func(s *Spec) { hosts(s); inJob(s) }, []func(*Use){from(12), to(host.Marshal())}, LimitProcesses},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.descends = func(pid int, root process.Process) (bool, error) {
				if pid == 13 {
					return true, errors.New("permission denied")
				}
				return root == job && (pid == 11 || pid == job.PID), nil
			}
			limited := r.request(spec(c.scope, uses(1), named("a")))
			unlimited := r.request(spec(c.scope, named("b")))
			u := use()
			for _, f := range c.use {
				f(&u)
			}
			for range 3 {
				_, err := unlimited.Sign(u)
				var se *ScopeError
				if (err == nil) != (c.limit == "") || err != nil && (!errors.As(err, &se) || se.Limit != c.limit) {
					t.Fatalf("got %v, want %q", err, c.limit)
				}
			}
			// What is refused does not count.
			for range 3 {
				_, err := limited.Sign(u)
				if c.limit == "" {
					break
				}
				if err == nil || limited.Info().UsesLeft != 1 {
					t.Fatalf("%v, %d uses left", err, limited.Info().UsesLeft)
				}
			}
			if live := len(r.Current()); (live == 1) != (c.limit == "") {
				t.Errorf("%d certificates are left", live)
			}
		})
	}
}

// TestUses has more askers than uses, all at once.
func TestUses(t *testing.T) {
	t.Parallel()
	const n, askers = 10, 64
	r := newRig(t)
	c := r.request(spec(uses(n)))
	var signed, refused atomic.Int64
	var all sync.WaitGroup
	start := make(chan struct{})
	for range askers {
		all.Go(func() {
			<-start
			_, err := c.Sign(use())
			var se *ScopeError
			switch {
			case err == nil:
				signed.Add(1)
			case errors.As(err, &se) && se.Limit == LimitUses:
				refused.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	close(start)
	all.Wait()
	if signed.Load() != n || refused.Load() != askers-n {
		t.Errorf("%d signed, %d refused", signed.Load(), refused.Load())
	}
	if len(r.Current()) != 0 {
		t.Error("it is still listed")
	}
	if !wipedKey(c.key) {
		t.Error("its key is not wiped")
	}
}

// TestTake has two at once for the one use of each of many certificates.
func TestTake(t *testing.T) {
	t.Parallel()
	type round struct {
		c       *Certificate
		arrived atomic.Int64
		taken   atomic.Int64
	}
	rounds := make([]round, 5000)
	once := spec(uses(1))
	for i := range rounds {
		rounds[i].c = &Certificate{spec: once}
	}
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			for i := range rounds {
				r := &rounds[i]
				r.arrived.Add(1)
				for r.arrived.Load() < 2 {
					runtime.Gosched()
				}
				if r.c.take() {
					r.taken.Add(1)
				}
			}
		})
	}
	all.Wait()
	for i := range rounds {
		if n, counted := rounds[i].taken.Load(), rounds[i].c.taken.Load(); n != 1 || counted != 1 {
			t.Fatalf("%d took, %d are counted", n, counted)
		}
	}
}

// TestFailedSignatureDoesNotCount breaks the key, mends it, and uses all that was asked for.
func TestFailedSignatureDoesNotCount(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.request(spec(uses(2)))
	d := scalar(c.key.private)
	words := d.Bits()
	for range 5 {
		d.SetInt64(0)
		if sig, err := c.Sign(use()); err == nil || sig != nil {
			t.Fatal("a broken key signs")
		}
		d.SetBits(words)
	}
	for left := 2; left > 0; left-- {
		if got := c.Info().UsesLeft; got != left {
			t.Errorf("%d uses left, want %d", got, left)
		}
		if _, err := c.Sign(use()); err != nil {
			t.Fatal(err)
		}
	}
	var se *ScopeError
	if _, err := c.Sign(use()); !errors.As(err, &se) || se.Limit != LimitUses {
		t.Errorf("got %v", err)
	}
}

// ending is a clock on which a certificate ends between two readings.
type ending struct {
	*clock
	left atomic.Int64 // readings of the wall clock until an hour passes
}

func (e *ending) Wall() time.Time {
	if e.left.Add(-1) == 0 {
		e.pass(time.Hour)
	}
	return e.clock.Wall()
}

// TestEndsWhileSigning: a signature that is done after the end is not given.
func TestEndsWhileSigning(t *testing.T) {
	t.Parallel()
	e := &ending{clock: newClock()}
	r := newRig(t, func(o *Options) { o.Clock = e })
	r.authority.clock = e
	c := r.request(spec(uses(1)))
	e.left.Store(2) // before and after the signature
	if sig, err := c.Sign(use()); sig != nil || !errors.Is(err, ErrExpired) {
		t.Errorf("got %v, %v", sig, err)
	}
	if got := c.Info().UsesLeft; got != 1 {
		t.Errorf("%d uses left", got)
	}
	if e.left.Load() > 0 {
		t.Error("the clock was not read after the signature")
	}
}

func wipedKey(k *key) bool { return k.state.Load()&wiped != 0 && k.private == nil }

// TestWipe: however a certificate ends, its key is zero, and collected although the certificate is still held, as the
// agent's kept listing does.
func TestWipe(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(r *rig, c *Certificate){
		"drop":     func(r *rig, c *Certificate) { r.Drop(c.public.Serial) },
		"drop all": func(r *rig, c *Certificate) { r.DropAll() },
		"forget":   func(r *rig, c *Certificate) { r.DropCA(r.authority.ca.PublicKey().Marshal()) },
		"replace":  func(r *rig, c *Certificate) { r.request(spec()) },
		"close":    func(r *rig, c *Certificate) { r.Close() },
		"expire":   func(r *rig, c *Certificate) { r.clock.pass(time.Hour); r.Current() },
		"expire when it is used": func(r *rig, c *Certificate) {
			r.clock.pass(time.Hour)
			if _, err := c.Sign(use()); !errors.Is(err, ErrExpired) {
				r.t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			c := r.request(spec())
			if _, err := c.Sign(use()); err != nil { // crypto/ecdsa keeps it now
				t.Fatal(err)
			}
			d := scalar(c.key.private).Bits()
			collected := make(chan struct{})
			runtime.AddCleanup(c.key.private, func(done chan struct{}) { close(done) }, collected)
			end(r, c)
			for _, word := range d {
				if word != 0 {
					t.Fatal("the key is not zero")
				}
			}
			if !wipedKey(c.key) {
				t.Error("the key is not gone")
			}
			if _, err := c.Sign(use()); err == nil {
				t.Error("it signs")
			}
			deadline := time.After(30 * time.Second)
			for done := false; !done; {
				runtime.GC()
				select {
				case <-collected:
					done = true
				case <-deadline:
					t.Fatal("the key is not collected")
				default:
					runtime.Gosched()
				}
			}
			runtime.KeepAlive(c)
		})
	}
}

// TestWipeWaitsForSignatures: the last signature under way wipes.
func TestWipeWaitsForSignatures(t *testing.T) {
	t.Parallel()
	k, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if !k.acquire() {
			t.Fatal("a new key has ended")
		}
	}
	k.end()
	k.end()
	if k.acquire() {
		t.Error("a signature begins after the end")
	}
	for range 2 {
		if wipedKey(k) {
			t.Fatal("wiped during a signature")
		}
		if _, err := k.sign([]byte("data")); err != nil {
			t.Error(err)
		}
		k.release()
	}
	if !wipedKey(k) {
		t.Error("not wiped")
	}
	if k.acquire() || !wipedKey(k) {
		t.Error("a signature begins after wiping")
	}
	k.end()
}

// TestEndDuringSignatures drops certificates that are being used: each signature given is a good one.
func TestEndDuringSignatures(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for range 20 {
		c := r.request(spec())
		var all sync.WaitGroup
		var signed atomic.Int64
		for range 4 {
			all.Go(func() {
				for {
					sig, err := c.Sign(use())
					if err != nil {
						if !errors.Is(err, ErrDropped) {
							t.Error(err)
						}
						return
					}
					if err := c.public.Key.Verify([]byte("data"), sig); err != nil {
						t.Error(err)
						return
					}
					signed.Add(1)
				}
			})
		}
		for signed.Load() < 8 {
			runtime.Gosched()
		}
		r.DropAll()
		all.Wait()
		if !wipedKey(c.key) {
			t.Fatal("not wiped")
		}
	}
}

// TestMemory: ten thousand signatures leave memory where it was. It measures the whole process, so nothing runs beside it.
func TestMemory(t *testing.T) {
	r := newRig(t)
	c := r.request(spec(uses(1 << 20)))
	measure := func() uint64 {
		for range 3 {
			runtime.GC()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	sign := func(n int) {
		for range n {
			if _, err := c.Sign(use()); err != nil {
				t.Fatal(err)
			}
			r.Current()
			r.For(Lister{PID: 1, Alive: alive})
		}
	}
	sign(100)
	before := measure()
	sign(10_000)
	if after := measure(); after > before+16<<10 {
		t.Errorf("%d bytes before, %d after", before, after)
	}
}

func benchmarkSign(b *testing.B, sign func() error) {
	for _, n := range []int{1, 16} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			var all sync.WaitGroup
			for i := range n {
				rounds := b.N / n
				if i == 0 {
					rounds += b.N % n
				}
				all.Go(func() {
					for range rounds {
						if err := sign(); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			all.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "signatures/s")
		})
	}
}

// BenchmarkSign is to be held against BenchmarkFloor: the same signature through x/crypto/ssh, with no certificate around it.
func BenchmarkSign(b *testing.B) {
	r := newRig(b, func(o *Options) { o.Clock = nil })
	r.authority.clock = System{}
	c := r.request(spec(uses(1<<30), notForwarded))
	u := use()
	u.Data = make([]byte, 200)
	benchmarkSign(b, func() error {
		_, err := c.Sign(u)
		return err
	})
}

func BenchmarkFloor(b *testing.B) {
	k, err := newKey()
	if err != nil {
		b.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(k.private)
	if err != nil {
		b.Fatal(err)
	}
	data := make([]byte, 200)
	benchmarkSign(b, func() error {
		_, err := s.Sign(rand.Reader, data)
		return err
	})
}
