// SPDX-License-Identifier: BSD-3-Clause

package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"
)

const (
	// maxMessage bounds commands and responses in bytes; the kernel's buffer has as many (TPM_BUFSIZE).
	maxMessage = 4096
	// header is a message's tag, length and code (TPM 2.0 part 1, Command/Response Structure).
	header = 10
	// nonceSize of sessions in bytes, the least that the TPM takes.
	nonceSize = 16
)

// A channel carries commands to a TPM. It is used by one goroutine.
type channel interface {
	// exchange writes a command and reads its response, of at most maxMessage bytes. Its error begins where the
	// device's path ends: "… went away".
	exchange(command []byte, until time.Time) ([]byte, error)
	close()
}

// turns has a channel for each device, with its only element taken by who uses it: TPMs without a resource manager
// (a socket, /dev/tpm0) have room for what one call loads.
var turns sync.Map

// use calls f with a connection when it is its turn, which it has for limit and not longer.
func use(device string, limit time.Duration, f func(*conn) error) error {
	v, _ := turns.LoadOrStore(device, make(chan struct{}, 1))
	turn := v.(chan struct{})
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case turn <- struct{}{}:
	case <-late.C:
		return fmt.Errorf("%w: %s is busy with other calls for %v", ErrNoTPM, device, limit)
	}
	defer func() { <-turn }()

	until := time.Now().Add(limit)
	ch, err := dial(device, until)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoTPM, err)
	}
	defer ch.close()
	c := &conn{channel: ch, device: device, until: until}
	defer c.flush()
	return f(c)
}

// A conn is the use of a TPM by one call. It is what go-tpm wants for a transport.TPM.
type conn struct {
	channel channel
	device  string
	until   time.Time
	loaded  []tpm2.TPMHandle // to be flushed
	broken  error            // after which nothing is sent
	spoke   bool             // it has answered as a TPM does
}

// flush takes out of the TPM what the call loaded.
func (c *conn) flush() {
	for _, h := range c.loaded {
		// It can fail only when the TPM is gone or late, and what was asked of it is done or has its own error. Behind the
		// resource manager, closing does the same.
		_, _ = tpm2.FlushContext{FlushHandle: h}.Execute(c)
	}
}

// Send sends a command and returns the response. Codes that mean "again, later" are obeyed; the
// reference implementation has one for the first use of a passphrase after each start.
// Errors: ErrNoTPM.
func (c *conn) Send(command []byte) ([]byte, error) {
	for pause := time.Millisecond; ; pause = min(2*pause, time.Second) {
		if c.broken != nil {
			return nil, c.broken
		}
		response, err := c.channel.exchange(command, c.until)
		if err == nil {
			err = c.check(response)
		}
		if err != nil {
			c.broken = fmt.Errorf("%w: %s %w", ErrNoTPM, c.device, err)
			continue
		}
		c.spoke = true
		switch tpm2.TPMRC(binary.BigEndian.Uint32(response[6:])) {
		case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate:
			// The command was not begun, so the nonces in it are as good as before.
			if time.Until(c.until) < pause {
				c.broken = fmt.Errorf("%w: %s is busy", ErrNoTPM, c.device)
				continue
			}
			<-time.After(pause)
		default:
			return response, nil
		}
	}
}

// check looks at a response's header. Its error begins where the device's path ends.
func (c *conn) check(response []byte) error {
	if len(response) < header || uint64(binary.BigEndian.Uint32(response[2:])) != uint64(len(response)) {
		return c.stranger()
	}
	switch tpm2.TPMST(binary.BigEndian.Uint16(response)) {
	case tpm2.TPMSTNoSessions, tpm2.TPMSTSessions:
		return nil
	case tpm2.TPMSTRspCommand:
		return errors.New("is a TPM 1.2, not 2.0")
	default:
		return c.stranger()
	}
}

func (c *conn) stranger() error {
	if c.spoke {
		return errors.New("sent what is not a TPM's response")
	}
	return errors.New("is not a TPM")
}

// A root is the storage root key.
type root struct {
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	public tpm2.TPMTPublic
}

// root makes the storage root key: TCG template H-2 for P-256 with an empty unique field, which
// draft-bottomley-tpm2-keys prescribes for a parent that is a hierarchy.
func (c *conn) root() (*root, error) {
	t := tpm2.ECCSRKTemplate
	t.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	rsp, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(t),
	}.Execute(c)
	if err != nil {
		return nil, c.owning(err)
	}
	c.loaded = append(c.loaded, rsp.ObjectHandle)
	p, err := rsp.OutPublic.Contents()
	if err != nil {
		return nil, c.failed("making the storage root key", err)
	}
	name, err := tpm2.ObjectName(p)
	if err != nil {
		return nil, c.failed("making the storage root key", err)
	}
	return &root{handle: rsp.ObjectHandle, name: *name, public: *p}, nil
}

// with authorizes the use of a handle with a passphrase, which the root has not, in a session of one command whose first
// parameter is encrypted to root. Secrets go only that way.
func (c *conn) with(h tpm2.TPMHandle, name tpm2.TPM2BName, root *root, passphrase []byte) tpm2.AuthHandle {
	var value []byte
	if h != root.handle {
		value = authValue(passphrase)
	}
	return tpm2.AuthHandle{Handle: h, Name: name, Auth: tpm2.HMAC(tpm2.TPMAlgSHA256, nonceSize,
		tpm2.Salted(root.handle, root.public), tpm2.AESEncryption(128, tpm2.EncryptIn), tpm2.Auth(value))}
}

// failed is the error of a step, with the TPM's text.
func (c *conn) failed(step string, err error) error {
	if c.broken != nil {
		return c.broken
	}
	return fmt.Errorf("%w: %s: %w", ErrTPM, step, err)
}

// owning is the error of making the storage root key.
func (c *conn) owning(err error) error {
	switch {
	case c.broken != nil:
	case errors.Is(err, tpm2.TPMRCBadAuth), errors.Is(err, tpm2.TPMRCAuthFail):
		return fmt.Errorf("%w: the owner hierarchy has a password", ErrOwner)
	case errors.Is(err, tpm2.TPMRCHierarchy):
		return fmt.Errorf("%w: the owner hierarchy is disabled", ErrOwner)
	}
	return c.failed("making the storage root key", err)
}

// loading is the error of loading a key.
func (c *conn) loading(err error) error {
	switch {
	case c.broken != nil:
	// Which one it is depends on what the TPM looks at first.
	case errors.Is(err, tpm2.TPMRCIntegrity), errors.Is(err, tpm2.TPMRCBinding), errors.Is(err, tpm2.TPMRCSensitive),
		errors.Is(err, tpm2.TPMRCSize), errors.Is(err, tpm2.TPMRCInsufficient):
		return fmt.Errorf("%w: another one made it, or this one was cleared, or the file was changed", ErrOtherTPM)
	}
	return c.failed("loading the key", err)
}

// authorized is the error of a step that took the key's passphrase.
func (c *conn) authorized(step string, err error) error {
	switch {
	case c.broken != nil:
	case errors.Is(err, tpm2.TPMRCAuthFail), errors.Is(err, tpm2.TPMRCBadAuth):
		d, known := c.dictionary()
		switch {
		case !known:
			return ErrWrongAuth
		case d.left <= 0:
			return fmt.Errorf("%w, and the TPM is locked now%s", ErrWrongAuth, d.until())
		default:
			return fmt.Errorf("%w; the TPM locks after %d more", ErrWrongAuth, d.left)
		}
	case errors.Is(err, tpm2.TPMRCLockout):
		if d, known := c.dictionary(); known {
			return fmt.Errorf("%w%s", ErrLockout, d.until())
		}
		return ErrLockout
	}
	return c.failed(step, err)
}

// dictionary is the state of the TPM's protection against guessing.
type dictionary struct {
	left  int64         // wrong passphrases until it locks
	every time.Duration // in which one of them is forgotten
}

// until says how long it is locked. The time runs only while the TPM does.
func (d dictionary) until() string {
	return fmt.Sprintf(" for at most %v", d.every)
}

// dictionary asks the TPM, which may leave out to tell.
func (c *conn) dictionary() (d dictionary, known bool) {
	rsp, err := tpm2.GetCapability{
		Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTLockoutCounter), PropertyCount: 3,
	}.Execute(c)
	if err != nil {
		return d, false
	}
	list, err := rsp.CapabilityData.Data.TPMProperties()
	if err != nil {
		return d, false
	}
	var counter, most, interval *uint32
	for _, p := range list.TPMProperty {
		switch p.Property {
		case tpm2.TPMPTLockoutCounter:
			counter = &p.Value
		case tpm2.TPMPTMaxAuthFail:
			most = &p.Value
		case tpm2.TPMPTLockoutInterval:
			interval = &p.Value
		}
	}
	if counter == nil || most == nil || interval == nil {
		return d, false
	}
	return dictionary{left: int64(*most) - int64(*counter), every: time.Duration(*interval) * time.Second}, true
}
