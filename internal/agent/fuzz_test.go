// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"vmux.app/toolkit/internal/signed"
)

// whole counts the messages in b up to what ends a connection.
func whole(b []byte) (n int) {
	for len(b) >= 4 {
		size := binary.BigEndian.Uint32(b)
		if size == 0 || size > maxFrame || uint32(len(b)-4) < size {
			break
		}
		b = b[4+size:]
		n++
	}
	return n
}

// FuzzFrames: whatever a client sends, in whatever pieces, each whole message gets one well-formed answer.
func FuzzFrames(f *testing.F) {
	key, host := newEd25519(f), newP256(f)
	login := loginData(key.PublicKey(), sidA, host.PublicKey())
	bind := bindOf(f, host, sidA, false)
	seed := func(messages ...[]byte) {
		var all []byte
		for _, m := range messages {
			all = append(all, frame(m...)...)
		}
		f.Add(all, uint16(7))
		f.Add(all[:len(all)-1], uint16(1000))
	}
	seed([]byte{msgRequestIdentities})
	seed(bindMessage(bind), []byte{msgRequestIdentities}, signMessage(key.PublicKey(), login, 0))
	seed(bindMessage(signed.Bind{}), signMessage(key.PublicKey(), sshsigData("git"), 2))
	seed(appendString([]byte{msgExtension}, "query"), appendString([]byte{msgExtension}, "status@vmux.app"))
	seed(appendString([]byte{msgLock}, "p"), appendString([]byte{msgUnlock}, "q"), appendString([]byte{msgUnlock}, "p"))
	seed([]byte{msgAdd}, []byte{msgRemoveAll}, []byte{0}, []byte{255, 1})
	f.Add([]byte{0, 0, 0, 0}, uint16(1))
	f.Add([]byte{0, 4, 0, 1, 0}, uint16(1))

	signer := &memory{}
	signer.add(key, "k")
	f.Fuzz(func(t *testing.T, sent []byte, piece uint16) {
		if len(sent) > 64<<10 {
			return
		}
		server := New(Options{Signer: signer, Extensions: map[string]Extension{
			"status": func(context.Context, Peer, []byte) (any, error) { return "fine", nil },
		}})
		server.lock.after = func(time.Duration) <-chan time.Time { c := make(chan time.Time, 1); c <- time.Time{}; return c }
		client, end := net.Pipe()
		ctx, cancel := context.WithCancelCause(t.Context())
		c := &conn{server: server, ctx: ctx, cancel: cancel, raw: end, in: frames{conn: end}}
		done := make(chan error, 1)
		go func() {
			defer end.Close()
			done <- c.loop()
		}()
		go func() {
			for rest := sent; len(rest) > 0; {
				n := min(len(rest), int(piece)+1)
				if _, err := client.Write(rest[:n]); err != nil {
					return
				}
				rest = rest[n:]
			}
		}()
		for i := range whole(sent) {
			msg, err := readFrame(client)
			if err != nil || len(msg) == 0 {
				t.Fatalf("answer %d: %x, %v", i, msg, err)
			}
			switch msg[0] {
			case msgFailure, msgSuccess, msgExtensionFailure:
				if len(msg) != 1 {
					t.Errorf("answer %d: % x", i, msg)
				}
			case msgIdentitiesAnswer, msgSignResponse, msgExtensionResponse:
			default:
				t.Errorf("answer %d is of type %d", i, msg[0])
			}
		}
		client.Close()
		if rest, _ := io.ReadAll(client); len(rest) > 0 {
			t.Errorf("more answers than messages: % x", rest)
		}
		if err := <-done; err == nil {
			t.Error("loop ended without a reason")
		}
	})
}
