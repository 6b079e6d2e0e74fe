// SPDX-License-Identifier: BSD-3-Clause

package tpm

import (
	"bufio"
	"crypto/ecdsa"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmux.app/toolkit/internal/tpm/tpmtest"
)

// soon is the limit of calls that are to run out of time.
const soon = 50 * time.Millisecond

func TestNoTPM(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	k := newTestKey(t, m)
	dir := shortDir(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	all := func(path string, words ...string) {
		t.Helper()
		words = append(words, path)
		_, err := Create(path, pin)
		want(t, err, ErrNoTPM, words...)
		_, err = k.Sign(path, pin, make([]byte, 32))
		want(t, err, ErrNoTPM, words...)
		want(t, k.Check(path, pin), ErrNoTPM, words...)
		_, err = k.ChangeAuth(path, pin, pin)
		want(t, err, ErrNoTPM, words...)
	}
	all(filepath.Join(dir, "absent"), "does not exist")
	all(file, "is not a TPM")
	all(dir, "is not a TPM")
	all("/dev/null", "is not a TPM")
	all(stale, "nothing serves")
	long := strings.Repeat("x", 5000)
	all(long, "no usable TPM: "+long+": file name too long")
	all(filepath.Join(file, "below"), "not a directory")
	m.Stop()
	all(m.Path(), "does not exist")
	m.Restart()
	if err := k.Check(m.Path(), pin); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("the file is now %q, %v", b, err)
	}
}

func TestNoPermission(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	if err := os.Chmod(m.Path(), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(m.Path()), 0o711); err != nil {
		t.Fatal(err)
	}
	const nobody = 65534
	done := make(chan error, 1)
	go func() {
		// Only this thread, which ends with the goroutine, is another user as far as files go.
		runtime.LockOSThread()
		if os.Getuid() == 0 {
			_ = unix.Setfsuid(nobody) // tells nothing; the next one tells who we are
			if uid, _ := unix.SetfsuidRetUid(-1); uid != nobody {
				done <- nil
				return
			}
		}
		_, err := Create(m.Path(), pin)
		done <- err
	}()
	if err := <-done; err != nil {
		want(t, err, ErrNoTPM, "no permission for "+m.Path(), "group tss")
	} else {
		t.Error("permitted, or this namespace has no other user")
	}
}

// The connection ends before each command in turn.
func TestGoneMidway(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	k := newTestKey(t, m)
	for what, f := range map[string]func(string) error{
		"create": func(p string) error { _, err := Create(p, pin); return err },
		"sign":   func(p string) error { _, err := k.Sign(p, pin, make([]byte, 32)); return err },
		"change": func(p string) error { _, err := k.ChangeAuth(p, pin, pin); return err },
		"check":  func(p string) error { return k.Check(p, pin) },
	} {
		work := 0
		w := tap(t, m.Path(), func(_ int, command []byte, forward func([]byte) []byte) []byte {
			if binary.BigEndian.Uint32(command[6:]) != 0x165 { // TPM2_FlushContext, after which no answer is needed
				work++
			}
			return forward(command)
		})
		if err := f(w.path); err != nil {
			t.Fatal(err)
		}
		if work < 4 {
			t.Errorf("%s: %d commands", what, work)
		}
		for at := range work {
			w := tap(t, m.Path(), func(n int, command []byte, forward func([]byte) []byte) []byte {
				if n >= at {
					return nil
				}
				return forward(command)
			})
			if err := f(w.path); !errors.Is(err, ErrNoTPM) || err.Error() != "no usable TPM: "+w.path+" went away" {
				t.Errorf("%s, command %d: %v", what, at, err)
			}
			m.Restart() // nobody else could take out what was loaded
		}
	}
}

// A TPM that stops answering holds nobody up for longer than promised.
func TestHangs(t *testing.T) {
	t.Parallel()
	t.Run("stopped", func(t *testing.T) { // for as long as a user would wait
		t.Parallel()
		m := tpmtest.Start(t)
		k := newTestKey(t, m)
		m.Hang()
		start := time.Now()
		_, err := k.Sign(m.Path(), pin, make([]byte, 32))
		want(t, err, ErrNoTPM, "does not answer")
		if d := time.Since(start); d < 10*time.Second || d > 15*time.Second { // as documented
			t.Errorf("it took %v", d)
		}
		m.Resume()
		if err := k.Check(m.Path(), pin); err != nil {
			t.Errorf("after it answers again: %v", err)
		}
	})
	t.Run("mute", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(shortDir(t), "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		err = use(path, soon, func(c *conn) error { _, err := create(c, pin); return err })
		want(t, err, ErrNoTPM, path+" does not answer")
	})
	t.Run("later", func(t *testing.T) { // after each command in turn, with a shorter limit
		t.Parallel()
		m := tpmtest.Start(t)
		k := newTestKey(t, m)
		for at := range 4 {
			stop := make(chan struct{})
			w := tap(t, m.Path(), func(n int, command []byte, forward func([]byte) []byte) []byte {
				if n >= at {
					<-stop
					return nil
				}
				return forward(command)
			})
			err := use(w.path, 2*time.Second, func(c *conn) error {
				_, err := k.sign(c, pin, make([]byte, 32))
				return err
			})
			close(stop)
			want(t, err, ErrNoTPM, "does not answer")
			m.Restart()
		}
	})
}

func TestTurns(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	err := use(m.Path(), time.Minute, func(*conn) error {
		err := use(m.Path(), soon, func(*conn) error {
			t.Error("two at once")
			return nil
		})
		want(t, err, ErrNoTPM, "is busy")
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if err := use(m.Path(), time.Minute, func(*conn) error { return nil }); err != nil {
		t.Error(err)
	}
}

// Another process has the TPM, and yet others wait.
func TestFullQueue(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	full := false
	for range 4 {
		c, err := net.Dial("unix", path)
		if err != nil {
			full = true
			break
		}
		defer c.Close()
	}
	if !full {
		t.Fatal("the queue never fills")
	}
	start := time.Now()
	err = use(path, soon, func(*conn) error { return nil })
	want(t, err, ErrNoTPM, path+" does not answer")
	if d := time.Since(start); d < soon/2 {
		t.Errorf("gave up after %v", d)
	}
}

func TestBusyTPM(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	k := newTestKey(t, m)
	for _, c := range []uint32{0x922, 0x908, 0x90a, 0x920} { // TPM_RC_RETRY, _YIELDED, _TESTING, _NV_RATE
		w := tap(t, m.Path(), func(n int, command []byte, forward func([]byte) []byte) []byte {
			if n%3 != 2 {
				return code(c)
			}
			return forward(command)
		})
		if _, err := k.Sign(w.path, pin, make([]byte, 32)); err != nil {
			t.Errorf("%#x: %v", c, err)
		}
		if n := m.Loaded(); n != 0 {
			t.Errorf("%#x: %d things are left in the TPM", c, n)
		}
	}
	never := tap(t, "", func(int, []byte, func([]byte) []byte) []byte { return code(0x922) })
	// Pauses double, so half of the time is left when there is too little for the next one.
	err := use(never.path, 10*soon, func(c *conn) error { _, err := c.root(); return err })
	want(t, err, ErrNoTPM, never.path+" is busy")
}

func TestOtherRefusals(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	k := newTestKey(t, m)
	for c, words := range map[uint32]string{0x100: "TPM_RC_INITIALIZE", 0x101: "TPM_RC_FAILURE", 0x902: "TPM_RC_OBJECT_MEMORY", 0x12345678: "0x12345678"} {
		w := tap(t, "", func(int, []byte, func([]byte) []byte) []byte { return code(c) })
		_, err := k.Sign(w.path, pin, make([]byte, 32))
		want(t, err, ErrTPM, "storage root key", words)
	}
}

func TestStrangers(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	k := newTestKey(t, m)
	for _, s := range []struct{ answer, words string }{
		{"HTTP/1.1 400 Bad Request\r\n\r\n", "is not a TPM"},
		{"\x00\xc4\x00\x00\x00\x0a\x00\x00\x00\x0a", "is a TPM 1.2"},
		{"\x80\x01\x00\x00\x00\x09\x00\x00\x00\x00", "is not a TPM"},
		{"\x80\x01\x00\x00\x00\x00\x00\x00\x00\x00", "is not a TPM"},
		{"\x80\x01\xff\xff\xff\xff\x00\x00\x00\x00", "is not a TPM"},
		{"\x80\x01\x00\x00\x10\x01\x00\x00\x00\x00", "is not a TPM"},
		{"\x80\x03\x00\x00\x00\x0a\x00\x00\x00\x00", "is not a TPM"},
	} {
		w := tap(t, "", func(int, []byte, func([]byte) []byte) []byte { return []byte(s.answer) })
		_, err := k.Sign(w.path, pin, make([]byte, 32))
		want(t, err, ErrNoTPM, s.words)
		w = tap(t, m.Path(), func(n int, command []byte, forward func([]byte) []byte) []byte {
			if n < 1 {
				return forward(command)
			}
			return []byte(s.answer)
		})
		_, err = k.Sign(w.path, pin, make([]byte, 32))
		if s.words == "is not a TPM" {
			want(t, err, ErrNoTPM, "sent what is not")
		} else {
			want(t, err, ErrNoTPM, s.words)
		}
		m.Restart()
	}
	for _, part := range []string{"\x80\x01\x00\x00\x00\x0a", "\x80\x01\x00\x00\x00\x14\x00\x00\x00\x00ab"} {
		w := tap(t, "", func(int, []byte, func([]byte) []byte) []byte { return []byte(part) })
		err := use(w.path, soon, func(c *conn) error { _, err := c.root(); return err })
		want(t, err, ErrNoTPM, w.path+" does not answer")
	}
}

// Whatever is wrong with a response, no wrong signature and no panic comes of it.
func TestChangedResponses(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	m.LockAfter(1_000_000, time.Hour)
	k := newTestKey(t, m)
	digest := make([]byte, 32)
	refused := 0
	for command := range 4 {
		for at := header; ; at += 9 {
			end := false
			w := tap(t, m.Path(), func(n int, b []byte, forward func([]byte) []byte) []byte {
				b = forward(b)
				if n == command && b != nil {
					if end = at >= len(b); !end {
						b[at] ^= 0xff
					}
				}
				return b
			})
			var sig []byte
			err := use(w.path, 5*time.Second, func(c *conn) (err error) {
				sig, err = k.sign(c, pin, digest)
				return err
			})
			switch {
			case err != nil:
				refused++
			case !ecdsa.VerifyASN1(k.Public(), digest, sig):
				t.Errorf("command %d, byte %d: a wrong signature", command, at)
			}
			if m.Loaded() != 0 {
				m.Restart()
			}
			if end {
				break
			}
		}
	}
	if refused < 20 {
		t.Errorf("only %d changes were refused", refused)
	}
}

// pipe is a descriptor that gives messages as a TPM's device does, before m.
func pipe(t *testing.T, m *tpmtest.TPM) int {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	far := os.NewFile(uintptr(fds[1]), "far")
	w := &wire{between: pass}
	done := make(chan struct{})
	go func() { // until the near end is closed
		defer close(done)
		c, err := net.FileConn(far)
		_ = far.Close()
		if err != nil {
			t.Error(err)
			return
		}
		w.serve(packets{c, bufio.NewReaderSize(c, maxMessage)}, m.Path())
	}()
	t.Cleanup(func() { <-done })
	return fds[0]
}

// packets reads messages in pieces.
type packets struct {
	net.Conn
	r *bufio.Reader
}

func (p packets) Read(b []byte) (int, error) { return p.r.Read(b) }

// The kernel's device, as far as a pair of sockets that keep messages apart is like it.
func TestDevice(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	k := newTestKey(t, m)
	digest := make([]byte, 32)
	sign := func(d *device, limit time.Duration) ([]byte, error) {
		c := &conn{channel: d, device: "the device", until: time.Now().Add(limit)}
		defer c.flush()
		return k.sign(c, pin, digest)
	}

	d := &device{fd: pipe(t, m)}
	for range 3 {
		sig, err := sign(d, patience)
		if err != nil || !ecdsa.VerifyASN1(k.Public(), digest, sig) {
			t.Errorf("%v", err)
		}
	}
	d.close()
	if n := m.Loaded(); n != 0 {
		t.Errorf("%d things are left in the TPM", n)
	}

	d = &device{fd: pipe(t, m)}
	m.Hang()
	_, err := sign(d, soon)
	want(t, err, ErrNoTPM, "the device does not answer")
	if !d.stuck {
		t.Error("closing would wait for it")
	}
	m.Resume()
	d.close()

	d = &device{fd: pipe(t, m)}
	m.Stop()
	_, err = sign(d, patience)
	want(t, err, ErrNoTPM, "the device went away")
	d.close()
}
