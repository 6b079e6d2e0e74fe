// SPDX-License-Identifier: BSD-3-Clause

// Package tpmtest starts swtpm, a TPM 2.0 in software, for tests.
package tpmtest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
)

// patience is how long swtpm may take to start or to end.
const patience = 20 * time.Second

// A TPM is a swtpm of its own state. Its methods are for one goroutine and fail the test.
type TPM struct {
	t     testing.TB
	dir   string
	cmd   *exec.Cmd
	ended chan struct{}
	err   error // why it ended; valid after ended
	out   output
}

// Start starts a new TPM, which ends with the test. Without swtpm the test is skipped, or fails if CI=true; on other
// systems than Linux it is skipped.
func Start(t testing.TB) *TPM {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("TPMs are used on Linux only")
	}
	if _, err := exec.LookPath("swtpm"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("swtpm is not installed; make deps installs it")
		}
		t.Skip("swtpm is not installed; make deps installs it")
	}
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	m := &TPM{t: t, dir: dir}
	t.Cleanup(func() {
		m.Stop()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	m.start()
	return m
}

// Path is the Unix socket on which the TPM takes commands. It stays the same for Restart.
func (m *TPM) Path() string { return filepath.Join(m.dir, "t") }

func (m *TPM) start() {
	m.t.Helper()
	m.out.reset()
	m.cmd = exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+m.dir,
		"--server", "type=unixio,path="+m.Path(), "--flags", "not-need-init,startup-clear")
	m.cmd.Stdout, m.cmd.Stderr = &m.out, &m.out
	endWithParent(m.cmd)
	cmd, started, ended := m.cmd, make(chan error), make(chan struct{})
	m.ended = ended
	go func() { // ends with the process
		// The kernel's idea of the parent is the thread, which has to live on.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			m.err = cmd.Wait()
		}
		close(ended)
	}()
	if err := <-started; err != nil {
		m.cmd = nil
		m.t.Fatal(err)
	}
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for {
		c, err := net.Dial("unix", m.Path())
		if err == nil {
			_ = c.Close()
			return
		}
		select {
		case <-tick.C:
		case <-ended:
			m.t.Fatalf("swtpm: %v\n%s", m.err, m.out.String())
		case <-late:
			m.t.Fatalf("swtpm does not serve: %v\n%s", err, m.out.String())
		}
	}
}

// Stop ends the TPM without telling it first, as if the power was cut; what it has stored remains for Restart. The
// socket is gone then. It does nothing when the TPM has ended.
func (m *TPM) Stop() {
	m.t.Helper()
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Kill() // fails when it has ended, which is what it is for
	select {
	case <-m.ended:
	case <-time.After(patience):
		m.t.Fatal("swtpm does not end")
	}
	m.cmd = nil
	if err := os.Remove(m.Path()); err != nil && !os.IsNotExist(err) {
		m.t.Error(err)
	}
}

// Hang stops the process, which keeps its socket and answers nothing, until Resume.
func (m *TPM) Hang() {
	m.t.Helper()
	if err := m.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		m.t.Fatal(err)
	}
}

// Resume ends Hang.
func (m *TPM) Resume() {
	m.t.Helper()
	if err := m.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		m.t.Fatal(err)
	}
}

// Restart is what a reboot is for the TPM: told of it (TPM2_Shutdown), ended if it runs, and started with what it has
// stored.
func (m *TPM) Restart() {
	m.t.Helper()
	if m.cmd != nil {
		m.Do(func(c transport.TPM) error {
			_, err := tpm2.Shutdown{ShutdownType: tpm2.TPMSUClear}.Execute(c)
			return err
		})
	}
	m.Stop()
	m.start()
}

// Clear is TPM2_Clear, with which an owner gives up all keys. It also takes away the owner's password.
func (m *TPM) Clear() {
	m.t.Helper()
	m.Do(func(c transport.TPM) error {
		_, err := tpm2.Clear{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)},
		}.Execute(c)
		return err
	})
}

// SetOwner gives the owner hierarchy, which has none, a password.
func (m *TPM) SetOwner(password string) {
	m.t.Helper()
	m.Do(func(c transport.TPM) error {
		_, err := tpm2.HierarchyChangeAuth{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			NewAuth:    tpm2.TPM2BAuth{Buffer: []byte(password)},
		}.Execute(c)
		return err
	})
}

// DisableOwner disables the owner hierarchy until Restart.
func (m *TPM) DisableOwner() {
	m.t.Helper()
	m.administer(hierarchyControl, tpm2.TPMRHPlatform, binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMRHOwner)), []byte{0})
}

// LockAfter lets n wrong passphrases lock the TPM, one of which is forgotten in each interval, of whole seconds.
func (m *TPM) LockAfter(n uint32, interval time.Duration) {
	m.t.Helper()
	seconds := binary.BigEndian.AppendUint32(nil, uint32(interval/time.Second))
	m.administer(lockParameters, tpm2.TPMRHLockout, binary.BigEndian.AppendUint32(nil, n), seconds, seconds)
}

// Unlock makes the TPM forget wrong passphrases.
func (m *TPM) Unlock() {
	m.t.Helper()
	m.administer(lockReset, tpm2.TPMRHLockout)
}

// Codes of commands that go-tpm does not have (TPM 2.0 part 2, TPM_CC).
const (
	hierarchyControl tpm2.TPMCC = 0x121 // TPM2_HierarchyControl
	lockReset        tpm2.TPMCC = 0x139 // TPM2_DictionaryAttackLockReset
	lockParameters   tpm2.TPMCC = 0x13a // TPM2_DictionaryAttackParameters
)

// administer sends a command for a hierarchy that has no password.
func (m *TPM) administer(command tpm2.TPMCC, hierarchy tpm2.TPMHandle, parameters ...[]byte) {
	m.t.Helper()
	rest := bytes.Join(parameters, nil)
	b := binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMSTSessions))
	b = binary.BigEndian.AppendUint32(b, uint32(10+4+4+9+len(rest)))
	b = binary.BigEndian.AppendUint32(b, uint32(command))
	b = binary.BigEndian.AppendUint32(b, uint32(hierarchy))
	b = binary.BigEndian.AppendUint32(b, 9) // of the password's session: handle, no nonce, no attributes, nothing
	b = binary.BigEndian.AppendUint32(b, uint32(tpm2.TPMRSPW))
	b = append(b, 0, 0, 0, 0, 0)
	b = append(b, rest...)
	m.Do(func(c transport.TPM) error {
		response, err := c.Send(b)
		if err != nil {
			return err
		}
		if len(response) < 10 {
			return fmt.Errorf("a response of %d bytes", len(response))
		}
		if code := tpm2.TPMRC(binary.BigEndian.Uint32(response[6:])); code != tpm2.TPMRCSuccess {
			return code
		}
		return nil
	})
}

// Loaded returns how many objects and sessions are in the TPM, or saved from it, that somebody has yet to flush.
func (m *TPM) Loaded() int {
	m.t.Helper()
	n := 0
	m.Do(func(c transport.TPM) error {
		for _, first := range []uint32{transientFirst, loadedFirst, savedFirst} {
			rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 254}.Execute(c)
			if err != nil {
				return err
			}
			list, err := rsp.CapabilityData.Data.Handles()
			if err != nil {
				return err
			}
			n += len(list.Handle)
		}
		return nil
	})
	return n
}

// First handles of their kinds (TPM 2.0 part 2, TPM_HC). As properties of capabilities, sessions are of the first two
// whatever their kind is.
const (
	loadedFirst    = 0x02000000
	savedFirst     = 0x03000000
	transientFirst = 0x80000000
)

// Do calls f with a way to send commands of one's own.
func (m *TPM) Do(f func(transport.TPM) error) {
	m.t.Helper()
	c, err := linuxudstpm.Open(m.Path())
	if err != nil {
		m.t.Fatal(err)
	}
	defer func() { _ = c.Close() }() // it closes for itself after each response
	if err := f(c); err != nil {
		m.t.Fatal(err)
	}
}

// output keeps what swtpm says.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func (o *output) reset() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.buf.Reset()
}
