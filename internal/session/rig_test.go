// SPDX-License-Identifier: BSD-3-Clause

package session

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/process"
)

// epoch is when tests begin: a whole second, as synctest's clock has.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// clock is set by the test.
type clock struct{ wall, boot atomic.Int64 }

func newClock() *clock {
	c := new(clock)
	c.wall.Store(epoch.UnixNano())
	c.boot.Store(int64(time.Hour))
	return c
}

func (c *clock) Wall() time.Time     { return time.Unix(0, c.wall.Load()) }
func (c *clock) Boot() time.Duration { return time.Duration(c.boot.Load()) }

// pass lets time go by.
func (c *clock) pass(d time.Duration) {
	c.wall.Add(int64(d))
	c.boot.Add(int64(d))
}

func newSigner(t testing.TB) ssh.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// authority is a phone that does as it is asked, but for what the test changes.
type authority struct {
	t      testing.TB
	ca     ssh.Signer
	clock  Clock
	serial atomic.Uint64

	change func(*ssh.Certificate)                 // before it is signed
	answer func(blob, ca []byte) ([]byte, []byte) // after
	asked  func(context.Context, Spec) error

	mu   sync.Mutex
	keys [][]byte // that certificates were asked for
	made []*ssh.Certificate
}

func (a *authority) Certify(ctx context.Context, public ssh.PublicKey, s Spec) ([]byte, []byte, error) {
	if a.asked != nil {
		if err := a.asked(ctx, s); err != nil {
			return nil, nil, err
		}
	}
	c := a.draft(public, s)
	if a.change != nil {
		a.change(c)
	}
	a.sign(c)
	a.mu.Lock()
	a.keys = append(a.keys, public.Marshal())
	a.made = append(a.made, c)
	a.mu.Unlock()
	blob, ca := c.Marshal(), a.ca.PublicKey().Marshal()
	if a.answer != nil {
		blob, ca = a.answer(blob, ca)
	}
	return blob, ca, nil
}

// draft is what was asked for, not yet signed.
func (a *authority) draft(public ssh.PublicKey, s Spec) *ssh.Certificate {
	now := a.clock.Wall().Unix()
	serial := 1000 + a.serial.Add(1)
	return &ssh.Certificate{
		Key: public, Serial: serial, CertType: ssh.UserCert,
		KeyId:           strings.ReplaceAll(s.KeyID, Serial, strconv.FormatUint(serial, 10)),
		ValidPrincipals: slices.Clone(s.Principals),
		ValidAfter:      uint64(now - 60), ValidBefore: uint64(now + int64(s.Validity/time.Second)),
		Permissions: ssh.Permissions{CriticalOptions: maps.Clone(s.CriticalOptions), Extensions: maps.Clone(s.Extensions)},
	}
}

func (a *authority) sign(c *ssh.Certificate) {
	if err := c.SignCert(rand.Reader, a.ca); err != nil {
		a.t.Error(err)
	}
}

// noted keeps what is logged.
type noted struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (n *noted) Write(b []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.all.Write(b)
}

func (n *noted) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.all.String()
}

type rig struct {
	*Manager
	t         testing.TB
	authority *authority
	clock     *clock
	log       *noted
}

func newRig(t testing.TB, change ...func(*Options)) *rig {
	t.Helper()
	r := &rig{t: t, clock: newClock(), log: new(noted)}
	r.authority = &authority{t: t, ca: newSigner(t), clock: r.clock}
	o := Options{Authority: r.authority, Clock: r.clock, Log: slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	for _, f := range change {
		f(&o)
	}
	r.Manager = New(o)
	t.Cleanup(r.Close)
	return r
}

// request gets a certificate that must be given, and gives it.
func (r *rig) request(s Spec) *Certificate {
	r.t.Helper()
	info, err := r.Request(r.t.Context(), s)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, c := range r.current.Load().certs {
		if c.public.Serial == info.Serial {
			return c
		}
	}
	r.t.Fatal("the certificate is not kept")
	return nil
}

func spec(change ...func(*Spec)) Spec {
	s := Spec{
		Principals: []string{"alice", "deploy"}, Validity: time.Hour, KeyID: "vmux:alice@laptop:" + Serial,
		CriticalOptions: map[string]string{"source-address": "192.0.2.0/24"},
		Extensions:      map[string]string{"permit-pty": "", "permit-user-rc": ""},
	}
	for _, f := range change {
		f(&s)
	}
	return s
}

// named makes requests different.
func named(id string) func(*Spec) { return func(s *Spec) { s.KeyID = id + Serial } }

func toHosts(keys ...ssh.PublicKey) func(*Spec) {
	return func(s *Spec) {
		h := Host{Name: "deploy.example"}
		for _, k := range keys {
			h.Fingerprints = append(h.Fingerprints, ssh.FingerprintSHA256(k))
		}
		s.Scope.Hosts = append(s.Scope.Hosts, h)
	}
}

func uses(n int) func(*Spec) { return func(s *Spec) { s.Scope.Uses = n } }

func validity(d time.Duration) func(*Spec) { return func(s *Spec) { s.Validity = d } }

func notForwarded(s *Spec) { s.Scope.NoForwarding = true }

var job = process.Process{PID: 4242, Name: "make", Start: 7}

func inJob(s *Spec) { s.Scope.Root = job }

// family makes the processes with these pids descendants of job.
func (r *rig) family(pids ...int) {
	r.descends = func(pid int, root process.Process) (bool, error) {
		return root.PID == job.PID && root.Start == job.Start && slices.Contains(pids, pid), nil
	}
}

func alive() bool { return true }

func dead() bool { return false }

// use is a local login without a proven destination.
func use() Use { return Use{Data: []byte("data"), Login: true, PID: 1, Alive: alive} }

func serials(certs []*Certificate) []uint64 {
	all := []uint64{}
	for _, c := range certs {
		all = append(all, c.public.Serial)
	}
	return all
}
