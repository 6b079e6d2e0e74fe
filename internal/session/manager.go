// SPDX-License-Identifier: BSD-3-Clause

package session

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/process"
)

// checkEvery is the longest time between two looks at the clocks while there are certificates. Go's timers stand still
// while the computer sleeps, and no timer notices a clock that is set.
const checkEvery = time.Second

// Options are what a Manager needs.
type Options struct {
	Authority Authority
	Log       *slog.Logger // nil discards
	Clock     Clock        // nil: System

	// Bounds of what may be asked; 0 stands for 15 s, 24 h and 32.
	MinValidity, MaxValidity time.Duration
	MaxPrincipals            int
}

// Manager keeps the certificates. Its methods may be called at any time, from any goroutine.
type Manager struct {
	authority Authority
	log       *slog.Logger
	clock     Clock
	limits    limits

	// For tests.
	newKey   func() (*key, error)
	descends func(pid int, root process.Process) (bool, error)

	current atomic.Pointer[snapshot]

	mu      sync.Mutex        // held for changes, never while somebody is asked or something is signed
	pending int               // requests on their way
	asked   uint64            // requests there were
	dropped map[string]uint64 // by CA, while requests are on their way: asked when it was dropped
	erase   int               // collections still to be run, see sweep
	closed  bool

	wake chan struct{} // a certificate was added or has ended
	stop chan struct{}
	done chan struct{} // watch has returned
}

// New makes a Manager, which owns a goroutine until Close.
func New(o Options) *Manager {
	m := &Manager{
		authority: o.Authority,
		log:       o.Log,
		clock:     o.Clock,
		limits: limits{
			cmp.Or(o.MinValidity, defaultMinValidity), cmp.Or(o.MaxValidity, defaultMaxValidity), cmp.Or(o.MaxPrincipals, defaultMaxPrincipals),
		},
		newKey:   newKey,
		descends: process.Descends,
		wake:     make(chan struct{}, 1),
		stop:     make(chan struct{}),
		done:     make(chan struct{}),
	}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	if m.clock == nil {
		m.clock = System{}
	}
	m.current.Store(&snapshot{})
	go m.watch()
	return m
}

// Close drops all certificates and waits for the Manager's goroutine. A request that is still on its way gives ErrClosed.
func (m *Manager) Close() {
	m.mu.Lock()
	first := !m.closed
	m.closed = true
	m.mu.Unlock()
	if first {
		close(m.stop)
	}
	<-m.done
	m.remove(func(*Certificate) bool { return true }, ErrDropped, "the agent ends")
}

// Request makes a key, asks the Authority for a certificate of it, checks what comes and keeps it. It takes the place of one
// that was asked for in the same way, if there is one. It waits for the Authority, whose errors it passes on; its own are
// *SpecError, ErrTooMany, ErrClosed, ErrDropped, *MismatchError (joined).
func (m *Manager) Request(ctx context.Context, s Spec) (Info, error) {
	s, err := m.limits.check(s)
	if err != nil {
		return Info{}, err
	}
	number, err := m.reserve(s)
	if err != nil {
		return Info{}, err
	}
	defer m.unreserve()
	k, err := m.newKey()
	if err != nil {
		return Info{}, err
	}
	cert, ca, blob, err := m.ask(ctx, k.public, s)
	if err == nil {
		c := m.newCertificate(cert, ca, len(blob), s, k)
		if err = m.keep(c, number); err == nil {
			return c.Info(), nil
		}
	}
	k.end()
	return Info{}, err
}

// Certify asks for a certificate of a key that is somebody else's, and checks it. It is given in wire form and
// not kept, so s can have no scope.
func (m *Manager) Certify(ctx context.Context, public ssh.PublicKey, s Spec) ([]byte, Info, error) {
	s, err := m.limits.check(s)
	if err != nil {
		return nil, Info{}, err
	}
	if !s.Scope.unlimited() {
		return nil, Info{}, &SpecError{"scope", "the agent cannot hold another's key to it"}
	}
	if _, ok := public.(*ssh.Certificate); ok {
		return nil, Info{}, &SpecError{"public key", "it is a certificate already"}
	}
	cert, _, blob, err := m.ask(ctx, public, s)
	if err != nil {
		return nil, Info{}, err
	}
	return blob, describe(cert, s), nil
}

// ask asks the Authority and checks the answer.
func (m *Manager) ask(ctx context.Context, public ssh.PublicKey, s Spec) (cert *ssh.Certificate, ca, blob []byte, err error) {
	blob, ca, err = m.authority.Certify(ctx, public, s)
	if err != nil {
		return nil, nil, nil, err
	}
	if cert, err = parse(blob); err == nil {
		err = Check(cert, public, ca, s, m.clock.Wall())
	}
	if err != nil {
		m.log.Error("refused a certificate that is not what was asked for", "error", err)
		return nil, nil, nil, err
	}
	return cert, ca, blob, nil
}

// reserve counts a request on its way, so that nobody is asked for a certificate that cannot be kept, and numbers it.
func (m *Manager) reserve(s Spec) (number uint64, err error) {
	m.expire()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return 0, ErrClosed
	}
	n := m.pending
	for _, c := range m.current.Load().certs {
		if !c.spec.same(s) {
			n++
		}
	}
	if n >= maxLive {
		return 0, fmt.Errorf("%w: %d is the limit", ErrTooMany, maxLive)
	}
	m.pending++
	m.asked++
	return m.asked, nil
}

func (m *Manager) unreserve() {
	m.mu.Lock()
	if m.pending--; m.pending == 0 {
		clear(m.dropped)
	}
	m.mu.Unlock()
}

func (m *Manager) newCertificate(cert *ssh.Certificate, ca []byte, size int, s Spec, k *key) *Certificate {
	wall, boot := m.clock.Wall(), m.clock.Boot()
	c := &Certificate{
		manager: m, public: cert, size: size, ca: bytes.Clone(ca), spec: s, key: k,
		end: time.Unix(seconds(cert.ValidBefore), 0),
	}
	c.bootEnd = boot + c.end.Sub(wall)
	for _, h := range s.Scope.Hosts {
		for _, text := range h.Fingerprints {
			f, _ := parseFingerprint(text) // checked with the Spec
			c.hosts = append(c.hosts, f)
		}
	}
	return c
}

// keep adds c, which was asked for by the request of this number, to the current ones.
func (m *Manager) keep(c *Certificate, number uint64) error {
	replaced, err := m.keepLocked(c, number)
	if err != nil {
		return err
	}
	for _, o := range replaced {
		m.gone(o, ErrDropped, "another takes its place")
	}
	m.log.Info("session certificate", "serial", c.public.Serial, "key_id", c.public.KeyId, "ca", ssh.FingerprintSHA256(c.public.SignatureKey),
		"principals", c.public.ValidPrincipals, "until", c.end.UTC(), "scope", c.spec.Scope.Limits())
	m.rouse()
	return nil
}

// rouse makes watch look at once.
func (m *Manager) rouse() {
	select {
	case m.wake <- struct{}{}:
	default: // it is about to look anyway
	}
}

// keepLocked is keep up to the lock's release.
func (m *Manager) keepLocked(c *Certificate, number uint64) (replaced []*Certificate, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	if number <= m.dropped[string(c.ca)] { // its phone was forgotten after it had answered
		return nil, ErrDropped
	}
	kept, size := []*Certificate{c}, c.size
	for _, o := range m.current.Load().certs {
		if o.spec.same(c.spec) {
			replaced = append(replaced, o)
			continue
		}
		kept = append(kept, o)
		size += o.size
	}
	if len(kept) > maxLive {
		return nil, fmt.Errorf("%w: %d is the limit", ErrTooMany, maxLive)
	}
	if size > maxListing {
		return nil, fmt.Errorf("%w: together they have %d bytes, %d is the limit", ErrTooMany, size, maxListing)
	}
	m.current.Store(newSnapshot(kept))
	return replaced, nil
}

// remove ends the certificates that match and gives their number.
func (m *Manager) remove(match func(*Certificate) bool, why error, words string) int {
	m.mu.Lock()
	var kept, removed []*Certificate
	for _, c := range m.current.Load().certs {
		if match(c) {
			removed = append(removed, c)
		} else {
			kept = append(kept, c)
		}
	}
	if len(removed) > 0 {
		m.current.Store(newSnapshot(kept))
	}
	m.mu.Unlock()
	for _, c := range removed {
		m.gone(c, why, words)
	}
	return len(removed)
}

// gone ends a certificate that is no longer among the current ones.
func (m *Manager) gone(c *Certificate, why error, words string) {
	c.finish(why)
	if erases {
		m.mu.Lock()
		m.erase = collections
		m.mu.Unlock()
		m.rouse()
	}
	m.log.Info("session certificate has ended", "serial", c.public.Serial, "key_id", c.public.KeyId, "reason", words)
}

// expire removes what has expired.
func (m *Manager) expire() {
	wall, boot := m.clock.Wall(), m.clock.Boot()
	if !m.current.Load().expired(wall, boot) {
		return
	}
	m.remove(func(c *Certificate) bool { return c.expired(wall, boot) }, ErrExpired, "it has expired")
}

// Drop forgets the certificate with the serial; several CAs may have given the same one.
func (m *Manager) Drop(serial uint64) bool {
	return m.remove(func(c *Certificate) bool { return c.public.Serial == serial }, ErrDropped, "it was dropped") > 0
}

// DropAll forgets all certificates and gives their number.
func (m *Manager) DropAll() int {
	return m.remove(func(*Certificate) bool { return true }, ErrDropped, "all were dropped")
}

// DropCA forgets the certificates of the CA whose key, in wire form, is ca, and gives their number. One that is on its way
// is not kept.
func (m *Manager) DropCA(ca []byte) int {
	m.mu.Lock()
	if m.pending > 0 {
		if m.dropped == nil {
			m.dropped = make(map[string]uint64)
		}
		m.dropped[string(ca)] = m.asked
	}
	m.mu.Unlock()
	return m.remove(func(c *Certificate) bool { return bytes.Equal(c.ca, ca) }, ErrDropped, "its phone was forgotten")
}

// Enough gives the certificate that was asked for in the same way (everything but the reason) and is valid for at least that
// much longer, by either clock.
func (m *Manager) Enough(s Spec, minRemaining time.Duration) (Info, bool) {
	s, err := m.limits.check(s)
	if err != nil {
		return Info{}, false
	}
	wall, boot := m.clock.Wall(), m.clock.Boot()
	for _, c := range m.Current() {
		if c.spec.same(s) && c.remaining(wall, boot) >= minRemaining {
			return c.Info(), true
		}
	}
	return Info{}, false
}

// List describes the live certificates, in the order of Current.
func (m *Manager) List() []Info {
	all := []Info{}
	for _, c := range m.Current() {
		all = append(all, c.Info())
	}
	return all
}

// remaining is the time that is left, by the clock whose end comes first.
func (c *Certificate) remaining(wall time.Time, boot time.Duration) time.Duration {
	return min(c.end.Sub(wall), c.bootEnd-boot)
}

// watch removes certificates when their time is over or their job has ended. With none it waits without a timer.
func (m *Manager) watch() {
	defer close(m.done)
	for {
		m.expire()
		m.reap()
		again := m.sweep()
		var timer <-chan time.Time
		switch s := m.current.Load(); {
		case len(s.certs) > 0:
			timer = time.After(s.next(m.clock.Wall(), m.clock.Boot()))
		case again:
			timer = time.After(checkEvery)
		}
		select {
		case <-m.stop:
			return
		case <-m.wake:
		case <-timer:
		}
	}
}

// collections is how often the garbage collector has to run until nothing of a key is left: the key is found unused, then
// the copy in crypto/ecdsa's cache, and once more for a signature that was under way.
const collections = 3

// sweep runs the garbage collector after a certificate has ended, if that is what overwrites memory (secretly); Go runs it by
// itself every two minutes only. It reports whether it has to run again, after a while.
func (m *Manager) sweep() bool {
	m.mu.Lock()
	due := m.erase > 0
	if due {
		m.erase--
	}
	again := m.erase > 0
	m.mu.Unlock()
	if due {
		runtime.GC()
	}
	return again
}

// reap removes the certificates of jobs that have ended: nothing descends from them.
func (m *Manager) reap() {
	var ended []*Certificate
	for _, c := range m.current.Load().certs {
		if root := c.spec.Scope.Root; root.PID != 0 {
			if is, err := m.descends(root.PID, root); !is && (err == nil || errors.Is(err, process.ErrNoProcess)) {
				ended = append(ended, c)
			}
		}
	}
	if len(ended) > 0 {
		m.remove(func(c *Certificate) bool { return slices.Contains(ended, c) }, ErrDropped, "its job has ended")
	}
}

// outside says why the process is none of root and its descendants; "" when it is one.
func (m *Manager) outside(pid int, alive func() bool, root process.Process) string {
	if pid <= 0 || alive == nil {
		return "the process that asks is not known"
	}
	is, err := m.descends(pid, root)
	switch {
	case err != nil:
		return "the ancestors of the process that asks cannot be read: " + err.Error()
	case !is:
		return fmt.Sprintf("process %d is not part of the job (process %d)", pid, root.PID)
	case !alive():
		return "the process that asks has ended"
	}
	return ""
}
