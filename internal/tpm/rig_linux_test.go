// SPDX-License-Identifier: BSD-3-Clause

package tpm

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"vmux.app/toolkit/internal/tpm/tpmtest"
)

var pin = []byte("correct horse battery staple")

func newTestKey(t testing.TB, m *tpmtest.TPM) *Key {
	t.Helper()
	k, err := Create(m.Path(), pin)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// A wire is a socket before a TPM, or before nothing.
type wire struct {
	path string
	// between gets command number n of all, from 0, and passes it on with forward, or not. Without a response the
	// connection is closed.
	between func(n int, command []byte, forward func([]byte) []byte) []byte

	mu   sync.Mutex
	n    int
	seen []byte // both ways
}

// tap serves a wire until the test ends. behind is the TPM's path, or "".
func tap(t testing.TB, behind string, between func(n int, command []byte, forward func([]byte) []byte) []byte) *wire {
	t.Helper()
	w := &wire{path: filepath.Join(shortDir(t), "w"), between: between}
	l, err := net.Listen("unix", w.path)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() { // until l is closed
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.serve(c, behind)
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		all.Wait()
	})
	return w
}

func (w *wire) serve(c net.Conn, behind string) {
	defer c.Close()
	var tpm net.Conn
	if behind != "" {
		var err error
		if tpm, err = net.Dial("unix", behind); err != nil {
			return
		}
		defer tpm.Close()
	}
	for {
		command, err := message(c)
		if err != nil {
			return
		}
		w.mu.Lock()
		n := w.n
		w.n++
		w.seen = append(w.seen, command...)
		w.mu.Unlock()
		response := w.between(n, command, func(command []byte) []byte {
			if _, err := tpm.Write(command); err != nil {
				return nil
			}
			response, err := message(tpm)
			if err != nil {
				return nil
			}
			w.mu.Lock()
			w.seen = append(w.seen, response...)
			w.mu.Unlock()
			return response
		})
		if response == nil {
			return
		}
		if _, err := c.Write(response); err != nil {
			return
		}
	}
}

func message(r io.Reader) ([]byte, error) {
	b := make([]byte, header)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	b = append(b, make([]byte, binary.BigEndian.Uint32(b[2:])-header)...)
	_, err := io.ReadFull(r, b[header:])
	return b, err
}

// code returns a response that has only a code.
func code(c uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{0x80, 0x01, 0, 0, 0, header}, c)
}

func pass(_ int, command []byte, forward func([]byte) []byte) []byte { return forward(command) }
