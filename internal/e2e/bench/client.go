// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
)

// Messages of RFC 9987, section 6.1.
const (
	msgRequestIdentities = 11
	msgIdentitiesAnswer  = 12
	msgSignRequest       = 13
	msgSignResponse      = 14
)

// maxAnswer is what ssh takes from an agent (AGENT_MAX_LEN of authfd.c).
const maxAnswer = 256 << 10

// wire is one connection to an agent, which is asked and then read, in turn.
type wire struct {
	conn net.Conn
	buf  []byte
}

func dial(socket string) (*wire, error) {
	c, err := net.Dial("unix", socket)
	return &wire{conn: c, buf: make([]byte, 4096)}, err
}

// ask sends a whole message and gives the answer, which lives until the next one.
func (w *wire) ask(message []byte, want byte) ([]byte, error) {
	if err := w.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	if _, err := w.conn.Write(message); err != nil {
		return nil, err
	}
	// The length and most answers come with the first read.
	n, err := io.ReadAtLeast(w.conn, w.buf, 5)
	if err != nil {
		return nil, err
	}
	size := int(binary.BigEndian.Uint32(w.buf)) + 4
	switch {
	case w.buf[4] != want:
		return nil, fmt.Errorf("answer of type %d, not %d", w.buf[4], want)
	case size > maxAnswer || n > size:
		return nil, fmt.Errorf("answer of %d bytes, %d came", size, n)
	case size > len(w.buf):
		w.buf = append(w.buf, make([]byte, size-len(w.buf))...)
	}
	if _, err := io.ReadFull(w.conn, w.buf[n:size]); err != nil {
		return nil, err
	}
	return w.buf[4:size], nil
}

func frame(body []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

var listMessage = frame([]byte{msgRequestIdentities})

// certificate gives the first P-256 certificate that an agent lists.
func certificate(socket string) (*ssh.Certificate, error) {
	w, err := dial(socket)
	if err != nil {
		return nil, err
	}
	defer w.conn.Close()
	answer, err := w.ask(listMessage, msgIdentitiesAnswer)
	if err != nil {
		return nil, err
	}
	var list struct {
		Count uint32 `sshtype:"12"`
		Rest  []byte `ssh:"rest"`
	}
	if err := ssh.Unmarshal(answer, &list); err != nil {
		return nil, err
	}
	for range list.Count {
		var entry struct {
			Blob    []byte
			Comment string
			Rest    []byte `ssh:"rest"`
		}
		if err := ssh.Unmarshal(list.Rest, &entry); err != nil {
			return nil, err
		}
		list.Rest = entry.Rest
		key, err := ssh.ParsePublicKey(entry.Blob)
		if err != nil {
			return nil, err
		}
		if c, ok := key.(*ssh.Certificate); ok && c.Type() == ssh.CertAlgoECDSA256v01 {
			return c, nil
		}
	}
	return nil, errors.New("no certificate of a P-256 key is listed")
}

// signMessage is what ssh asks for when it logs in with c, and the data in it.
func signMessage(c *ssh.Certificate) (message, data []byte) {
	blob := c.Marshal()
	data = ssh.Marshal(struct {
		Session               []byte
		Message               byte
		User, Service, Method string
		HasSignature          bool
		Algorithm             string
		Key                   []byte
	}{make([]byte, 32), 50, "root", "ssh-connection", "publickey", true, c.Type(), blob}) // RFC 4252, section 7
	return frame(ssh.Marshal(struct {
		Type      byte
		Key, Data []byte
		Flags     uint32
	}{msgSignRequest, blob, data, 0})), data
}

// verifySignature makes sure that what is measured are signatures.
func verifySignature(socket string, c *ssh.Certificate) error {
	w, err := dial(socket)
	if err != nil {
		return err
	}
	defer w.conn.Close()
	message, data := signMessage(c)
	answer, err := w.ask(message, msgSignResponse)
	if err != nil {
		return err
	}
	var got struct {
		Signature []byte `sshtype:"14"`
	}
	var sig ssh.Signature
	if err := ssh.Unmarshal(answer, &got); err != nil {
		return err
	}
	if err := ssh.Unmarshal(got.Signature, &sig); err != nil {
		return err
	}
	return c.Key.Verify(data, &sig)
}

// rate asks the same over and over on some connections, each waiting for its
// answer, and gives the answers per second.
func rate(socket string, connections int, message []byte, want byte, span time.Duration) (float64, error) {
	wires := make([]*wire, connections)
	for i := range wires {
		var err error
		if wires[i], err = dial(socket); err != nil {
			return 0, err
		}
		defer wires[i].conn.Close()
		// Accepted, and what is made once for a connection made.
		if _, err := wires[i].ask(message, want); err != nil {
			return 0, err
		}
	}
	var all sync.WaitGroup
	var count atomic.Int64
	errs := make([]error, connections)
	start := time.Now()
	end := start.Add(span)
	for i, w := range wires {
		all.Go(func() {
			n := int64(0)
			for time.Now().Before(end) && errs[i] == nil {
				_, errs[i] = w.ask(message, want)
				n++
			}
			count.Add(n)
		})
	}
	all.Wait()
	return float64(count.Load()) / time.Since(start).Seconds(), cmp.Or(errs...)
}
