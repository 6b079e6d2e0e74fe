// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/pairing"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/tpm"
	"vmux.app/toolkit/internal/unixsock"
)

// The control protocol is one command per connection to a private socket: JSON
// objects, one a line.
//
//	{"command":"reload"}                          the home has changed
//	  {"event":"done"}
//	{"command":"status"}
//	  {"event":"done","status":{…}}
//	{"command":"lock"}                            withdraw prompts, wait for the passphrase
//	  {"event":"done"}
//	{"command":"unlock","passphrase":"…"}         base64; end the locks
//	  {"event":"done"}
//	{"command":"pair","url":"…","timeout":120}    open a window; url may be absent
//	  {"event":"open"}
//	  {"event":"confirm","device":{…},"code":"…"} only without url; storedAs when
//	                                              the name is taken
//	{"command":"accept"} or {"command":"decline"}
//	  {"event":"withdrawn"}                       the device has left meanwhile
//	  {"event":"done","device":{…}}
//
// An {"event":"error","kind":"…","message":"…"} may come at any time and is the
// last. The client's hang-up closes the window.
type controlCommand struct {
	Command string `json:"command"`
	URL     string `json:"url,omitzero"`
	Timeout int    `json:"timeout,omitzero"` // seconds

	Passphrase []byte `json:"passphrase,omitzero"`
}

type controlEvent struct {
	Event    string  `json:"event"`
	Device   *Device `json:"device,omitzero"`
	Code     string  `json:"code,omitzero"`
	StoredAs string  `json:"storedAs,omitzero"`
	Status   *Status `json:"status,omitzero"`
	Kind     string  `json:"kind,omitzero"`
	Message  string  `json:"message,omitzero"`
}

const (
	// maxControlLine bounds the line of a command in bytes; a pairing URL takes a
	// tenth, a passphrase a third.
	maxControlLine = 4096
	// maxControlAnswer bounds the line of an answer in bytes: a status names each
	// paired device twice, and each name may have to be escaped.
	maxControlAnswer = 4*MaxDevices*envelope.MaxName + maxControlLine
	// maxControls is how many commands are served at once.
	maxControls = 16
	// controlTime bounds the wait for a command's first line and for each write.
	controlTime = 5 * time.Second
	// controlPatience is how long a command waits for an answer that takes no person:
	// longer than the signer waits for a file that somebody else has locked.
	controlPatience = 10 * time.Second
)

// ErrNotRunning says that no process serves the home.
var ErrNotRunning = errors.New("vmux-signer is not running")

// ErrSilent says that the process that serves the home does not answer: it may be
// stopped.
var ErrSilent = errors.New("the running vmux-signer does not answer")

// ErrControl says that the running signer did not understand the command or
// failed at it.
var ErrControl = errors.New("the running vmux-signer refused")

// controlKinds are the errors that keep their identity on the control socket.
var controlKinds = []struct {
	kind string
	err  error
}{
	{"windowOpen", ErrWindowOpen},
	{"windowTime", ErrWindowTime},
	{"urlExpired", ErrURLExpired}, // before the next one, which it wraps
	{"windowExpired", ErrWindowExpired},
	{"urlUsed", ErrURLUsed},
	{"passphrase", ErrPassphrase},
	{"notProtected", ErrNotProtected},
	{"protected", ErrProtected},
	{"denied", ErrDenied},
	{"declined", pairing.ErrDeclined},
	{"wrongCode", pairing.ErrWrongCode},
	{"proof", pairing.ErrProof},
	{"method", pairing.ErrMethod},
	{"stopped", pairing.ErrStopped},
	{"stalled", pairing.ErrStalled},
	{"url", pairing.ErrBadURL},
	{"manyDevices", ErrManyDevices},
	{"pairing", ErrPairing},
	{"noTPM", tpm.ErrNoTPM},
	{"tpmLockout", tpm.ErrLockout},
	{"tpmOwner", tpm.ErrOwner},
	{"otherTPM", tpm.ErrOtherTPM},
	{"tpm", tpm.ErrTPM},
}

func controlKind(err error) string {
	for _, k := range controlKinds {
		if errors.Is(err, k.err) {
			return k.kind
		}
	}
	return ""
}

// listenControl opens the control socket: in the home, or, when that path is too
// long for a socket, in a private directory whose path the home records.
func (h *Home) listenControl() (*unixsock.Listener, error) {
	// What an earlier process recorded is not true any more.
	if err := os.Remove(h.path(controlPathName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := unixsock.Listen(h.path(controlName))
	var long *unixsock.PathTooLongError
	if !errors.As(err, &long) {
		return l, err
	}
	dir, err := h.shortDir()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, controlName)
	if l, err = unixsock.Listen(path); err != nil {
		return nil, err
	}
	if err := store.WriteFile(h.path(controlPathName), []byte(path+"\n")); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// shortDir makes a private directory with a short path. In $XDG_RUNTIME_DIR its
// name comes from the home's, so that restarts do not add more of them.
func (h *Home) shortDir() (string, error) {
	sum := sha256.Sum256([]byte(h.dir))
	name := "vmux-signer-" + hex.EncodeToString(sum[:8])
	if runtime := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(runtime) {
		dir := filepath.Join(runtime, name)
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		return dir, checkPrivate(dir, 0o700)
	}
	dir := filepath.Join(os.TempDir(), name)
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) && checkPrivate(dir, 0o700) != nil {
		// In a directory that all users share, somebody else has taken the name.
		return os.MkdirTemp("", "vmux-signer-")
	}
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	return dir, err
}

// controlPath is where the serving process listens.
func (h *Home) controlPath() (string, error) {
	f, err := os.Open(h.path(controlPathName))
	if errors.Is(err, fs.ErrNotExist) {
		return h.path(controlName), nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxControlLine))
	return strings.TrimSuffix(string(b), "\n"), err
}

// serveControl serves commands until the listener is closed, and waits for them.
func (s *server) serveControl(ctx context.Context, l *unixsock.Listener) {
	var commands sync.WaitGroup
	defer commands.Wait()
	room := make(chan struct{}, maxControls)
	for {
		c, err := l.Accept()
		if err != nil {
			return // the listener retries by itself what can be retried
		}
		select {
		case room <- struct{}{}:
		default:
			c.Close()
			continue
		}
		commands.Go(func() {
			defer func() { <-room }()
			defer c.Close()
			s.control(ctx, c.(*net.UnixConn))
		})
	}
}

// controlConn reads and writes the lines of one command.
type controlConn struct {
	c net.Conn
	r *bufio.Reader
}

func (c *controlConn) send(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := c.c.SetWriteDeadline(time.Now().Add(controlTime)); err != nil {
		return err
	}
	_, err = c.c.Write(append(b, '\n'))
	return err
}

func (c *controlConn) receive(v any) error {
	line, err := c.r.ReadSlice('\n')
	defer clear(line) // a passphrase may be in it, and the buffer stays
	if err != nil {
		return err
	}
	return json.Unmarshal(line, v, json.RejectUnknownMembers(true))
}

func newControlConn(c net.Conn, most int) *controlConn {
	return &controlConn{c, bufio.NewReaderSize(c, most)}
}

func (c *controlConn) fail(err error) {
	// The message may quote a device, whose bytes need not be UTF-8.
	e := controlEvent{Event: "error", Kind: controlKind(err), Message: strings.ToValidUTF8(cut(err.Error(), maxControlLine/4), "?")}
	_ = c.send(e) // the command has gone if this fails
}

// control serves one command.
func (s *server) control(ctx context.Context, raw *net.UnixConn) {
	peer, err := unixsock.PeerOf(raw)
	if err == nil {
		defer peer.Close()
		err = unixsock.Allowed(peer)
	}
	if err != nil {
		s.log.Warn("command refused", "reason", err)
		return
	}
	// The end of the signer ends a command that waits.
	stop := context.AfterFunc(ctx, func() { raw.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	c := newControlConn(raw, maxControlLine)
	if err := raw.SetReadDeadline(time.Now().Add(controlTime)); err != nil || ctx.Err() != nil {
		return
	}
	var cmd controlCommand
	if err := c.receive(&cmd); err != nil {
		c.fail(errors.New("not a command that this one knows")) // a passphrase may be in what it quotes
		return
	}
	if err := raw.SetReadDeadline(time.Time{}); err != nil {
		return
	}
	if ctx.Err() != nil {
		return
	}
	switch cmd.Command {
	case "reload":
		if err := s.reload(); err != nil {
			s.log.Error("reload", "reason", err)
			c.fail(err)
			return
		}
		_ = c.send(controlEvent{Event: "done"}) // the command has gone if this fails
	case "pair":
		s.controlPair(ctx, c, cmd)
	case "status":
		_ = c.send(controlEvent{Event: "done", Status: s.status()}) // as above
	case "lock":
		if err := s.lock(); err != nil {
			c.fail(err)
			return
		}
		_ = c.send(controlEvent{Event: "done"}) // as above
	case "unlock":
		s.controlUnlock(ctx, c, cmd.Passphrase)
	default:
		c.fail(fmt.Errorf("no command %q", cmd.Command))
	}
}

// controlUnlock waits with a command for its turn to try a passphrase, unless it
// leaves.
func (s *server) controlUnlock(ctx context.Context, c *controlConn, passphrase []byte) {
	ctx, cancel := context.WithCancelCause(ctx)
	var reader sync.WaitGroup
	reader.Go(func() {
		var none controlCommand
		_ = c.receive(&none) // nothing follows
		cancel(errCommandGone)
	})
	defer func() {
		cancel(nil)
		_ = c.c.SetReadDeadline(time.Unix(1, 0)) // fails when closed, and the reader ends too
		reader.Wait()
	}()
	if err := s.unlock(ctx, passphrase); err != nil {
		c.fail(err)
		return
	}
	_ = c.send(controlEvent{Event: "done"}) // the command has gone if this fails
}

var errCommandGone = errors.New("the command has ended")

func (s *server) controlPair(ctx context.Context, c *controlConn, cmd controlCommand) {
	var url *pairing.URL
	if cmd.URL != "" {
		u, err := pairing.ParseURL(cmd.URL)
		if err != nil {
			c.fail(err)
			return
		}
		url = &u
	}
	if cmd.Timeout < 0 || cmd.Timeout > int(MaxWindow/time.Second) {
		c.fail(ErrWindowTime)
		return
	}
	timeout := time.Duration(cmd.Timeout) * time.Second
	if timeout == 0 {
		timeout = DefaultWindow
	}
	ctx, cancelTime := context.WithTimeout(ctx, timeout)
	defer cancelTime()
	ctx, cancel := context.WithCancelCause(ctx)

	// The reader is the one that notices that the command has gone.
	answers := make(chan string, 1)
	var reader sync.WaitGroup
	reader.Go(func() {
		for {
			var cmd controlCommand
			if err := c.receive(&cmd); err != nil {
				cancel(errCommandGone)
				return
			}
			select {
			case answers <- cmd.Command:
			default: // an answer that nobody asked for
			}
		}
	})
	defer func() {
		cancel(nil)
		_ = c.c.SetReadDeadline(time.Unix(1, 0)) // fails when closed, and the reader ends too
		reader.Wait()
	}()

	confirm := func(ctx context.Context, a Asking) error {
		select {
		case <-answers: // given before it was asked
		default:
		}
		if err := c.send(controlEvent{Event: "confirm", Device: &Device{Name: a.Device}, Code: a.Code, StoredAs: a.StoredAs}); err != nil {
			return errCommandGone
		}
		select {
		case a := <-answers:
			if a == "accept" {
				return nil
			}
			return pairing.ErrDeclined
		case <-ctx.Done():
			_ = c.send(controlEvent{Event: "withdrawn"}) // the command has gone if this fails
			return context.Cause(ctx)
		}
	}
	opened := func() { _ = c.send(controlEvent{Event: "open"}) } // the reader notices a command that has gone
	d, err := s.pair(ctx, url, opened, confirm)
	if err != nil {
		c.fail(err)
		return
	}
	_ = c.send(controlEvent{Event: "done", Device: &d}) // the command has gone if this fails
}

// dialControl connects to the process that serves the home. Error:
// ErrNotRunning.
func (h *Home) dialControl(ctx context.Context) (*controlConn, error) {
	path, err := h.controlPath()
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if own := h.path(controlName); err != nil && path != own { // what was recorded may be damaged
		path = own
		c, err = d.DialContext(ctx, "unix", path)
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("%w (%s)", ErrNotRunning, h.dir)
	}
	// A recorded path may have become somebody else's since.
	peer, err := unixsock.PeerOf(c.(*net.UnixConn))
	if err == nil {
		err = unixsock.Allowed(peer)
		peer.Close()
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("%w: %s: %w", ErrNotRunning, path, err)
	}
	return newControlConn(c, maxControlAnswer), nil
}

// next gives the next event that is not an error.
func (c *controlConn) next(ctx context.Context) (controlEvent, error) {
	var e controlEvent
	if err := c.receive(&e); err != nil {
		if ctx.Err() != nil {
			return e, context.Cause(ctx)
		}
		return e, fmt.Errorf("%w: it has ended: %w", ErrNotRunning, err)
	}
	if e.Event != "error" {
		return e, nil
	}
	for _, k := range controlKinds {
		if e.Kind == k.kind {
			if text, ok := strings.CutPrefix(e.Message, k.err.Error()); ok && text != "" {
				return e, fmt.Errorf("%w%s", k.err, clean(text))
			}
			return e, k.err
		}
	}
	return e, fmt.Errorf("%w: %s", ErrControl, clean(e.Message))
}

// Reload tells the process that serves the home that it has changed, and waits
// until the change is in force. Errors: ErrNotRunning, when the next one will
// read the home anyway; ErrSilent.
func (h *Home) Reload(ctx context.Context) error {
	_, err := h.tellSoon(ctx, controlCommand{Command: "reload"})
	return err
}

// Status asks the process that serves the home how it is. Errors: ErrNotRunning,
// ErrSilent.
func (h *Home) Status(ctx context.Context) (Status, error) {
	e, err := h.tellSoon(ctx, controlCommand{Command: "status"})
	if err == nil && e.Status == nil {
		err = fmt.Errorf("%w: it says nothing", ErrControl)
	}
	if err != nil {
		return Status{}, err
	}
	return *e.Status, nil
}

// Lock has the process that serves the home withdraw its prompts, forget the
// passphrase, and show and sign nothing before it is given again. Errors:
// ErrNotRunning, ErrNotProtected; ErrSilent, when it does so as soon as it goes on.
func (h *Home) Lock(ctx context.Context) error {
	_, err := h.tellSoon(ctx, controlCommand{Command: "lock"})
	return err
}

// Unlock gives the passphrase to the process that serves the home, and ends the
// locks of approvals. After many wrong ones that takes minutes. Errors:
// ErrNotRunning, ErrPassphrase, ErrProtected, ErrNotProtected.
func (h *Home) Unlock(ctx context.Context, passphrase []byte) error {
	_, err := h.tell(ctx, controlCommand{Command: "unlock", Passphrase: passphrase})
	return err
}

// tellSoon is tell for what does not wait for a person. Error: ErrSilent.
func (h *Home) tellSoon(ctx context.Context, cmd controlCommand) (controlEvent, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, h.patience, ErrSilent)
	defer cancel()
	return h.tell(ctx, cmd)
}

// tell has the process that serves the home do a command, and waits for its end.
func (h *Home) tell(ctx context.Context, cmd controlCommand) (controlEvent, error) {
	c, err := h.dialControl(ctx)
	if err != nil {
		return controlEvent{}, err
	}
	defer c.c.Close()
	stop := context.AfterFunc(ctx, func() { c.c.Close() })
	defer stop()
	if err := c.send(cmd); err != nil {
		return controlEvent{}, fmt.Errorf("%w: it has ended: %w", ErrNotRunning, err)
	}
	return c.next(ctx)
}

// PairOptions say how a window is opened.
type PairOptions struct {
	URL     string        // of one device, or empty for digits
	Timeout time.Duration // DefaultWindow when 0
	Opened  func()        // called when the window is open
	// Confirm shows the device's name and the digits and returns nil when the
	// owner accepts. ctx ends when the device has left. Not used with a URL.
	Confirm func(context.Context, Asking) error
}

// errDeviceLeft is the cause that Confirm's context ends with.
var errDeviceLeft = errors.New("the device has given up")

// Pair opens a window in the process that serves the home, and waits until a
// device is paired or has failed to. The window closes when ctx ends. Errors:
// ErrNotRunning, ErrWindowOpen, ErrWindowExpired, ErrURLExpired, ErrURLUsed,
// ErrWindowTime, those of package pairing.
func (h *Home) Pair(ctx context.Context, o PairOptions) (Device, error) {
	if o.Timeout == 0 {
		o.Timeout = DefaultWindow
	}
	if o.Timeout < time.Second || o.Timeout > MaxWindow {
		return Device{}, ErrWindowTime
	}
	if o.URL != "" {
		if _, err := pairing.ParseURL(o.URL); err != nil {
			return Device{}, err
		}
	}
	c, err := h.dialControl(ctx)
	if err != nil {
		return Device{}, err
	}
	defer c.c.Close()
	stop := context.AfterFunc(ctx, func() { c.c.Close() })
	defer stop()
	cmd := controlCommand{Command: "pair", URL: o.URL, Timeout: int((o.Timeout + time.Second - 1) / time.Second)}
	if err := c.send(cmd); err != nil {
		return Device{}, fmt.Errorf("%w: it has ended: %w", ErrNotRunning, err)
	}

	confirm, withdraw := context.WithCancelCause(ctx)
	var asking sync.WaitGroup
	defer func() {
		withdraw(errDeviceLeft)
		asking.Wait()
	}()
	for {
		e, err := c.next(ctx)
		if err != nil {
			return Device{}, err
		}
		switch e.Event {
		case "open":
			if o.Opened != nil {
				o.Opened()
			}
		case "confirm":
			if e.Device == nil || o.Confirm == nil {
				return Device{}, fmt.Errorf("%w: it asks for a confirmation", ErrControl)
			}
			asking.Go(func() {
				answer := "accept"
				if o.Confirm(confirm, Asking{e.Device.Name, e.Code, e.StoredAs}) != nil {
					answer = "decline"
				}
				if confirm.Err() == nil {
					_ = c.send(controlCommand{Command: answer}) // the reader notices a signer that has ended
				}
			})
		case "withdrawn":
			withdraw(errDeviceLeft)
		case "done":
			if e.Device == nil {
				return Device{}, fmt.Errorf("%w: it names no device", ErrControl)
			}
			return *e.Device, nil
		}
	}
}
