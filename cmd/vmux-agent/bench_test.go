// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/agent"
	"vmux.app/toolkit/internal/phone"
	"vmux.app/toolkit/internal/session"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/unixsock"
)

// localCA is a certificate authority that nobody needs to ask.
type localCA struct{ signer ssh.Signer }

func (a localCA) Certify(_ context.Context, public ssh.PublicKey, s session.Spec) (certificate, ca []byte, err error) {
	now := time.Now()
	c := &ssh.Certificate{Key: public, CertType: ssh.UserCert, Serial: 1, KeyId: s.KeyID, ValidPrincipals: s.Principals,
		ValidAfter: uint64(now.Add(-time.Minute).Unix()), ValidBefore: uint64(now.Add(s.Validity).Unix()),
		Permissions: ssh.Permissions{Extensions: s.Extensions}}
	if err := c.SignCert(rand.Reader, a.signer); err != nil {
		return nil, nil, err
	}
	return c.Marshal(), a.signer.PublicKey().Marshal(), nil
}

// BenchmarkSign is a login's signature with a session certificate, from the
// socket to the log's line and back.
func BenchmarkSign(b *testing.B) {
	for _, n := range []int{1, 16, 256} {
		b.Run(fmt.Sprint(n), func(b *testing.B) { benchmarkSign(b, n) })
	}
}

func benchmarkSign(b *testing.B, connections int) {
	home, err := os.MkdirTemp("", "v")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(home)
	logFile, err := os.Create(filepath.Join(home, "log"))
	if err != nil {
		b.Fatal(err)
	}
	defer logFile.Close()
	log := slog.New(slog.NewTextHandler(logFile, nil))
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	ca, err := ssh.NewSignerFromKey(private)
	if err != nil {
		b.Fatal(err)
	}
	sessions := session.New(session.Options{Authority: localCA{ca}, Log: log})
	defer sessions.Close()
	_, err = sessions.Request(b.Context(), session.Spec{Principals: []string{"root"}, Validity: time.Hour, KeyID: "bench",
		Extensions: map[string]string{"permit-pty": "", "permit-user-rc": "", "permit-port-forwarding": "", "permit-agent-forwarding": ""}})
	if err != nil {
		b.Fatal(err)
	}
	env := store.Env(func(name string) string {
		if name == "HOME" {
			return home
		}
		return ""
	})
	options, err := phone.Prepare(env, store.Config{}, "bench", nil, log)
	if err != nil {
		b.Fatal(err)
	}
	phones, err := phone.NewSet(options)
	if err != nil {
		b.Fatal(err)
	}
	defer phones.Close()

	socket := filepath.Join(home, "s")
	l, err := unixsock.Listen(socket)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	server := agent.New(agent.Options{Signer: &signer{sessions: sessions, phones: phones}, Log: log})
	var served sync.WaitGroup
	served.Go(func() { _ = server.Serve(ctx, l) })
	defer served.Wait()
	defer cancel()

	blob := sessions.Current()[0].Public().Marshal()
	data := ssh.Marshal(struct {
		Session               []byte
		Message               byte
		User, Service, Method string
		HasSignature          bool
		Algorithm             string
		Key                   []byte
	}{make([]byte, 32), 50, "root", "ssh-connection", "publickey", true, ssh.CertAlgoECDSA256v01, blob})
	body := ssh.Marshal(struct {
		Type      byte
		Key, Data []byte
		Flags     uint32
	}{13, blob, data, 0})
	message := append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)

	b.ReportAllocs()
	b.ResetTimer()
	var all sync.WaitGroup
	for i := range connections {
		n := b.N / connections
		if i < b.N%connections {
			n++
		}
		all.Go(func() {
			conn, err := net.Dial("unix", socket)
			if err != nil {
				b.Error(err)
				return
			}
			defer conn.Close()
			buf := make([]byte, 1024)
			for range n {
				if _, err := conn.Write(message); err != nil {
					b.Error(err)
					return
				}
				if _, err := io.ReadFull(conn, buf[:5]); err != nil || buf[4] != 14 {
					b.Error(err, buf[4])
					return
				}
				if _, err := io.ReadFull(conn, buf[5:4+binary.BigEndian.Uint32(buf)]); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "signatures/s")
	if lines, err := os.ReadFile(logFile.Name()); err != nil || bytes.Count(lines, []byte("outcome=signed")) != b.N {
		b.Errorf("the log has not one line for each of %d signatures (%v)", b.N, err)
	}
}
