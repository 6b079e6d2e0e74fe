// SPDX-License-Identifier: BSD-3-Clause

package mpc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/transport"
	"vmux.app/toolkit/internal/transport/conformance"
)

// wire is a session inside the process: what one end sends, the other has received.
type wire struct {
	other *stream
	own   *stream
	most  int // the largest message
	once  sync.Once
}

func (w *wire) send(b []byte) error {
	w.most = max(w.most, len(b))
	w.other.mu.Lock()
	gone := w.other.gone
	w.other.mu.Unlock()
	if gone {
		return errors.New("not connected")
	}
	w.other.receive(bytes.Clone(b))
	return nil
}

func (w *wire) leave() {
	w.once.Do(func() {
		w.other.lost()
		w.own.lost()
	})
}

func streams(t *testing.T) (a, b *stream, wires [2]*wire) {
	var after sync.WaitGroup
	t.Cleanup(after.Wait)
	wires = [2]*wire{{}, {}}
	a = newStream(wires[0], "a", "b", &after)
	b = newStream(wires[1], "b", "a", &after)
	*wires[0], *wires[1] = wire{own: a, other: b}, wire{own: b, other: a}
	t.Cleanup(func() {
		a.Close()
		b.Close()
	})
	return a, b, wires
}

func TestStreamKeepsOrderAndBounds(t *testing.T) {
	t.Parallel()
	a, b, wires := streams(t)
	data := bytes.Repeat([]byte("0123456789abcdef!"), 10_000)
	if n, err := a.Write(data); n != len(data) || err != nil {
		t.Fatal(n, err)
	}
	if wires[0].most > maxMessage {
		t.Errorf("a message of %d bytes", wires[0].most)
	}
	got := make([]byte, len(data))
	if _, err := io.ReadFull(b, got); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("damaged, %v", err)
	}
	if b.queued != 0 {
		t.Errorf("%d bytes are still counted", b.queued)
	}
}

func TestStreamEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b, _ := streams(t)
		a.Write([]byte("last words"))
		a.Close()
		synctest.Wait()
		// What was sent before the end arrives, and the end after it.
		if got, err := io.ReadAll(b); string(got) != "last words" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read after Close: %v", err)
		}
		if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after Close: %v", err)
		}
		// The other end's Close lets the first one leave at once.
		start := time.Now()
		b.Close()
		b.after.Wait()
		if took := time.Since(start); took != 0 {
			t.Errorf("left after %v", took)
		}
	})
}

func TestStreamLeavesASilentPeer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b, _ := streams(t)
		start := time.Now()
		a.Close()
		a.after.Wait()
		if took := time.Since(start); took != closeWait {
			t.Errorf("left after %v", took)
		}
		if _, err := b.Write([]byte("x")); !errors.Is(err, ErrLost) {
			t.Errorf("error %v", err)
		}
	})
}

func TestStreamLost(t *testing.T) {
	t.Parallel()
	a, b, wires := streams(t)
	a.Write([]byte("before"))
	wires[0].leave()
	if got, err := io.ReadAll(b); string(got) != "before" || !errors.Is(err, ErrLost) {
		t.Errorf("%q, %v", got, err)
	}
}

func TestStreamDeadlines(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, _, _ := streams(t)
		a.SetDeadline(time.Now().Add(time.Second))
		start := time.Now()
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		if _, err := a.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		// A read that waits notices a new deadline.
		a.SetDeadline(time.Time{})
		time.AfterFunc(time.Minute, func() { a.SetReadDeadline(time.Now()) })
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("error %v", err)
		}
	})
}

func TestStreamHostilePeer(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		messages [][]byte
		want     error
	}{
		"no kind":      {[][]byte{{}}, errMessage},
		"unknown kind": {[][]byte{{7, 1}}, errMessage},
		"too much":     {full(maxQueued/maxMessage + 1), errOverflow},
		"after an end": {[][]byte{{kindEnd}, {kindData, 1}}, io.EOF},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, _, _ := streams(t)
			for _, m := range test.messages {
				a.receive(m)
			}
			if n, err := a.Read(make([]byte, 1)); n != 0 || !errors.Is(err, test.want) {
				t.Errorf("%d, %v", n, err)
			}
		})
	}
}

func full(n int) (all [][]byte) {
	for range n {
		all = append(all, make([]byte, maxMessage))
	}
	return all
}

// A link runs over messages as over any stream.
func TestStreamCarriesALink(t *testing.T) {
	t.Parallel()
	a, b, _ := streams(t)
	device, phone := conformance.NewIdentity(t), conformance.NewIdentity(t)
	served := make(chan struct{})
	go func() {
		defer close(served)
		c, err := transport.Server(context.Background(), b, phone, func(string, transport.Pin) error { return nil })
		if err != nil {
			t.Error(err)
			return
		}
		transport.Serve(context.Background(), c, envelope.Hello{Name: "Pocket"}, nil, nil)
	}()
	c, err := transport.Client(t.Context(), a, device, transport.ProtoLink, conformance.Pinned(phone.Pin()))
	if err != nil {
		t.Fatal(err)
	}
	l, err := transport.Open(t.Context(), c, envelope.Hello{Name: "laptop"})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	l.Close()
	<-served
}

func TestNames(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"vmuxsigner", "a", "a-1", strings.Repeat("a", 15)} {
		if err := checkService(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", "Vmux", "a_b", "_x", "-a", "a-", "a--b", "ü", strings.Repeat("a", 16)} {
		if err := checkService(bad); !errors.Is(err, errService) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, bad := range []string{"", "\xff", "a\x00b", strings.Repeat("a", 64)} {
		if err := checkName(bad); !errors.Is(err, errName) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := checkName(strings.Repeat("ü", 31)); err != nil {
		t.Error(err)
	}
	if got := addr("Pocket").String(); got != "mpc:Pocket" || addr("").Network() != "mpc" {
		t.Errorf("address %q", got)
	}
}
