// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

func TestRefusedMessages(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.dial()
	for _, typ := range []byte{0, 1, 5, 9, 12, 14, 24, 28, 29, 30, 255} {
		if got := c.call(typ, 1, 2, 3); !bytes.Equal(got, []byte{msgFailure}) {
			t.Errorf("type %d: % x", typ, got)
		}
	}
	for _, typ := range []byte{msgAdd, msgAddConstrained, msgRemove, msgRemoveAll, msgAddCard, msgAddCardConstrained, msgRemoveCard} {
		before := len(r.log.lines("level=WARN", "reason="))
		if got := c.call(typ); !bytes.Equal(got, []byte{msgFailure}) {
			t.Errorf("type %d: % x", typ, got)
		}
		if len(r.log.lines("level=WARN", "reason=")) != before+1 {
			t.Errorf("type %d: log does not say why", typ)
		}
	}
	if got := len(r.log.lines("vmux-signer key")); got != 4 {
		t.Errorf("advice is given %d times, want 4", got)
	}
}

func TestFrameLimits(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	t.Run("longest", func(t *testing.T) {
		c := r.dial()
		msg := make([]byte, maxFrame)
		msg[0] = 200
		if got := c.call(msg...); !bytes.Equal(got, []byte{msgFailure}) {
			t.Errorf("% x", got)
		}
		if got := c.call(msgRequestIdentities)[0]; got != msgIdentitiesAnswer {
			t.Errorf("then: %d", got)
		}
	})
	t.Run("too long", func(t *testing.T) {
		c := r.dial()
		c.send(binary.BigEndian.AppendUint32(nil, maxFrame+1))
		c.mustClose()
	})
	t.Run("empty", func(t *testing.T) {
		c := r.dial()
		c.send([]byte{0, 0, 0, 0})
		c.mustClose()
		if len(r.log.lines("level=ERROR")) != 0 {
			t.Error(r.log)
		}
	})
	t.Run("answers before the fault arrive", func(t *testing.T) {
		c := r.dial()
		c.send(append(frame(msgRequestIdentities), 0xff, 0xff, 0xff, 0xff))
		if got := c.recv()[0]; got != msgIdentitiesAnswer {
			t.Errorf("%d", got)
		}
		c.mustClose()
	})
	t.Run("byte by byte", func(t *testing.T) {
		c := r.dial()
		for _, b := range append(frame(msgRequestIdentities), frame(99, 1, 2)...) {
			c.send([]byte{b})
		}
		if a, b := c.recv()[0], c.recv()[0]; a != msgIdentitiesAnswer || b != msgFailure {
			t.Errorf("%d, %d", a, b)
		}
	})
}

// TestAnnouncedFramesCostNothing: memory is taken for what came, not for what was announced.
func TestAnnouncedFramesCostNothing(t *testing.T) {
	const clients, announced = 1000, 200 << 10
	const allowed = 24 << 20 // both ends of every connection live in this process
	r := newRig(t)
	used := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapInuse + m.StackInuse)
	}
	before := used()
	start := append(frame(msgRequestIdentities), binary.BigEndian.AppendUint32(nil, announced)...)
	start = append(start, make([]byte, 100)...)
	all := make([]raw, clients)
	for i := range all {
		all[i] = r.dial()
		all[i].send(start)
	}
	for _, c := range all {
		c.recv()
		c.send(make([]byte, 100)) // comes after the length was seen
	}
	if got := used() - before; got > allowed {
		t.Errorf("%d MiB for %d connections, want at most %d", got>>20, clients, allowed>>20)
	} else {
		t.Logf("%d KiB per connection", got>>10/clients)
	}
	if got := r.dial().call(msgRequestIdentities)[0]; got != msgIdentitiesAnswer {
		t.Errorf("list: %d", got)
	}
}

func TestBufferGrowsWithWhatCame(t *testing.T) {
	t.Parallel()
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	f := frames{conn: server}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		client.Write(binary.BigEndian.AppendUint32(nil, maxFrame))
		for range 10 {
			client.Write(make([]byte, 100))
		}
	}()
	for len(f.buf) < 1004 {
		f.fill()
		if limit := max(firstBuffer, 2*len(f.buf)); cap(f.buf) > limit {
			t.Fatalf("%d bytes taken for %d that came", cap(f.buf), len(f.buf))
		}
	}
	<-sent
}

// pending makes the signer wait until the client hangs up or release is closed. started gets a value for each wait,
// ended the reason of each end.
func (r *rig) pending() (started chan struct{}, release chan struct{}, ended chan error) {
	started, release, ended = make(chan struct{}, 100), make(chan struct{}), make(chan error, 100)
	r.signer.owner(func(ctx context.Context, _ Request) error {
		started <- struct{}{}
		select {
		case <-ctx.Done():
			ended <- context.Cause(ctx)
			return ctx.Err()
		case <-release:
			ended <- nil
			return nil
		}
	})
	return started, release, ended
}

func await[T any](t testing.TB, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatal("waited in vain")
		panic("unreachable")
	}
}

func TestListingsDoNotWaitForAPrompt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	started, release, _ := r.pending()
	ed := r.signer.Keys(nil)[0].Public
	waiting := r.dial()
	waiting.send(frame(signMessage(ed, sshsigData("file"), 0)...))
	await(t, started)
	for range 100 {
		if keys, err := r.client().List(); err != nil || len(keys) != 2 {
			t.Fatalf("%d keys, %v", len(keys), err)
		}
	}
	close(release)
	if got := waiting.recv()[0]; got != msgSignResponse {
		t.Errorf("answer %d", got)
	}
}

func TestHangUpCancels(t *testing.T) {
	t.Parallel()
	for name, more := range map[string][]byte{
		"nothing behind":         nil,
		"requests behind":        bytes.Repeat(frame(msgRequestIdentities), 20),
		"half a request behind":  {0, 0, 1, 0, 13},
		"a bad frame behind":     {0xff, 0xff, 0xff, 0xff},
		"another prompt behind":  frame(signMessage(newEd25519(t).PublicKey(), sshsigData("git"), 0)...),
		"64 KiB of bytes behind": make([]byte, 64<<10),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			started, _, ended := r.pending()
			c := r.dial()
			c.send(append(frame(signMessage(r.signer.Keys(nil)[0].Public, sshsigData("file"), 0)...), more...))
			await(t, started)
			began := time.Now()
			c.Close()
			if err := await(t, ended); !errors.Is(err, errHungUp) {
				t.Errorf("cause is %v", err)
			}
			t.Logf("noticed after %v", time.Since(began))
			r.stop()
			if n := len(r.signer.requests()); n != 1 {
				t.Errorf("asked %d times", n)
			}
			if len(r.log.lines("outcome=withdrawn")) != 1 {
				t.Errorf("log does not say so:\n%s", r.log)
			}
		})
	}
}

// TestServeEnds: the end of the agent cancels what is pending and waits for it.
func TestServeEnds(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	started, _, ended := r.pending()
	idle, half, waiting := r.dial(), r.dial(), r.dial()
	half.send([]byte{0, 0})
	waiting.send(frame(signMessage(r.signer.Keys(nil)[0].Public, sshsigData("file"), 0)...))
	await(t, started)
	r.stop()
	await(t, ended)
	idle.mustClose()
	half.mustClose()
	waiting.mustClose()
}

func TestPipelinedAnswersKeepTheirOrder(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	started, release, _ := r.pending()
	ed := r.signer.Keys(nil)[0].Public
	c := r.dial()
	var all, want []byte
	for i := range 32 {
		switch i % 4 {
		case 0:
			all = append(all, frame(signMessage(ed, sshsigData(strings.Repeat("n", i+1)), 0)...)...)
			want = append(want, msgSignResponse)
		case 1, 3:
			all = append(all, frame(msgRequestIdentities)...)
			want = append(want, msgIdentitiesAnswer)
		case 2:
			all = append(all, frame(append(appendString([]byte{msgExtension}, "query"), make([]byte, 9000)...)...)...)
			want = append(want, msgExtensionResponse)
		}
	}
	c.send(all)
	await(t, started)
	close(release)
	for i := range want {
		got := c.recv()
		if got[0] != want[i] {
			t.Fatalf("answer %d is %d, want %d", i, got[0], want[i])
		}
		if want[i] != msgSignResponse {
			continue
		}
		sig, ok := onlyString(got[1:])
		var s ssh.Signature
		if !ok || ssh.Unmarshal(sig, &s) != nil || ed.Verify(sshsigData(strings.Repeat("n", i+1)), &s) != nil {
			t.Fatalf("answer %d is not the signature of request %d", i, i)
		}
	}
}

// TestReadAheadSparesTheRequest: what is read while a request is pending does not overwrite it.
func TestReadAheadSparesTheRequest(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	started, release, _ := r.pending()
	client, end := net.Pipe() // a write returns when the other end has read it
	defer client.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	c := &conn{server: r.server, ctx: ctx, cancel: cancel, raw: end, in: frames{conn: end}}
	done := make(chan error, 1)
	go func() { done <- c.loop() }()
	ed, data := r.signer.Keys(nil)[0].Public, sshsigData("file")
	client.Write(frame(signMessage(ed, data, 0)...))
	await(t, started)
	for range 10 {
		client.Write(frame(bytes.Repeat([]byte{99}, 300)...))
	}
	close(release)
	msg, err := readFrame(client)
	if err != nil {
		t.Fatal(err)
	}
	var s ssh.Signature
	if sig, ok := onlyString(msg[1:]); !ok || ssh.Unmarshal(sig, &s) != nil || ed.Verify(data, &s) != nil {
		t.Errorf("not a signature of what was asked: % x", msg)
	}
	for range 10 {
		if msg, err := readFrame(client); err != nil || msg[0] != msgFailure {
			t.Fatalf("% x, %v", msg, err)
		}
	}
	client.Close()
	await(t, done)
}

// TestReadAheadIsBounded: a client that floods behind a pending request is held up, not buffered, and is answered in
// the end.
func TestReadAheadIsBounded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	started, release, _ := r.pending()
	c := r.dial()
	c.send(frame(signMessage(r.signer.Keys(nil)[0].Public, sshsigData("file"), 0)...))
	await(t, started)
	big := make([]byte, 200<<10)
	big[0] = 200
	const floods = 20
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(bytes.Repeat(frame(big...), floods))
		sent <- err
	}()
	select {
	case <-sent:
		t.Error("4 MiB were taken while a request was pending")
	case <-time.After(100 * time.Millisecond): // long enough for a loop without bound
	}
	close(release)
	if got := c.recv()[0]; got != msgSignResponse {
		t.Errorf("answer %d", got)
	}
	for range floods {
		if got := c.recv()[0]; got != msgFailure {
			t.Errorf("answer %d", got)
		}
	}
	if err := await(t, sent); err != nil {
		t.Error(err)
	}
}

func TestPanicClosesOneConnection(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ed := r.signer.Keys(nil)[0].Public
	r.signer.owner(func(context.Context, Request) error { panic("broken signer") })
	other := r.dial()
	c := r.dial()
	c.send(frame(signMessage(ed, sshsigData("file"), 0)...))
	c.mustClose()
	if got := other.call(msgRequestIdentities)[0]; got != msgIdentitiesAnswer {
		t.Errorf("other connection: %d", got)
	}
	if len(r.log.lines("level=ERROR", "broken signer")) != 1 {
		t.Errorf("log does not say so:\n%s", r.log)
	}
}

func TestNotAUnixSocket(t *testing.T) {
	t.Parallel()
	s := New(Options{Signer: &memory{}})
	client, server := net.Pipe()
	defer client.Close()
	s.serve(t.Context(), server)
	if _, err := client.Read(make([]byte, 1)); err == nil {
		t.Error("connection was not closed")
	}
}

// failing is a listener that runs out of descriptors.
type failing struct {
	net.Listener
	errs chan error
}

func (f failing) Accept() (net.Conn, error) {
	if err, more := <-f.errs; more {
		return nil, err
	}
	return f.Listener.Accept()
}

func TestAcceptGoesOnAfterErrors(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l, err := net.Listen("unix", r.socket+"2")
	if err != nil {
		t.Fatal(err)
	}
	f := failing{l, make(chan error, 2)}
	f.errs <- errors.New("too many open files")
	f.errs <- errors.New("too many open files")
	close(f.errs)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.server.Serve(ctx, f) }()
	c, err := net.Dial("unix", r.socket+"2")
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	if got := (raw{t, c.(*net.UnixConn)}).call(msgRequestIdentities)[0]; got != msgIdentitiesAnswer {
		t.Errorf("answer %d", got)
	}
	cancel()
	if err := await(t, done); err != nil {
		t.Error(err)
	}
	c.Close()
}

func TestServeSaysWhenItsListenerCloses(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l, err := net.Listen("unix", r.socket+"2")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := r.server.Serve(t.Context(), l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("error %v", err)
	}
}

// TestListFollowsKeys: a listing that is kept is not given for other keys.
func TestListFollowsKeys(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	client := r.client()
	list := func() (comments []string) {
		t.Helper()
		keys, err := client.List()
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range keys {
			comments = append(comments, k.Comment)
		}
		return comments
	}
	set := func(keys []Key) {
		r.signer.mu.Lock()
		defer r.signer.mu.Unlock()
		r.signer.keys = keys
	}
	a, b := r.signer.Keys(nil)[0], r.signer.Keys(nil)[1]
	for _, keys := range [][]Key{{a, b}, {b, a}, {a}, nil, {b}, {}} {
		set(keys)
		var want []string
		for _, k := range keys {
			want = append(want, k.Comment)
		}
		for range 2 {
			if got := list(); !slices.Equal(got, want) {
				t.Errorf("%q, want %q", got, want)
			}
		}
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(s *Server) { s.limit = 4 })
	var open []raw
	for range 4 {
		c := r.dial()
		c.call(msgRequestIdentities)
		open = append(open, c)
	}
	for range 3 {
		r.dial().mustClose()
	}
	if got := len(r.log.lines("too many connections")); got != 1 {
		t.Errorf("said %d times", got)
	}
	for _, c := range open {
		if got := c.call(msgRequestIdentities)[0]; got != msgIdentitiesAnswer {
			t.Errorf("answer %d", got)
		}
	}
	open[0].Close()
	for r.server.Connections() == 4 {
		runtime.Gosched() // the agent notices by itself
	}
	if got := r.dial().call(msgRequestIdentities)[0]; got != msgIdentitiesAnswer {
		t.Errorf("answer %d", got)
	}
}
