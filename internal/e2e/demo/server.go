// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/crypto/ssh"
)

// serveSSH is a server for one connection on standard input and output, for
// computers without OpenSSH's. It takes the keys in dir/authorized_keys and
// runs commands as whoever started it.
func serveSSH(dir string) error {
	pem, err := os.ReadFile(filepath.Join(dir, "host"))
	if err != nil {
		return err
	}
	host, err := ssh.ParsePrivateKey(pem)
	if err != nil {
		return err
	}
	authorized, err := os.ReadFile(filepath.Join(dir, "authorized_keys"))
	if err != nil {
		return err
	}
	config := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		for rest := authorized; len(rest) > 0; {
			known, _, _, next, err := ssh.ParseAuthorizedKey(rest)
			if err != nil {
				break
			}
			if bytes.Equal(known.Marshal(), key.Marshal()) {
				return &ssh.Permissions{}, nil
			}
			rest = next
		}
		return nil, errors.New("unknown key")
	}}
	config.AddHostKey(host)
	conn, channels, requests, err := ssh.NewServerConn(stdio{}, config)
	if err != nil {
		return err
	}
	defer conn.Close()
	go ssh.DiscardRequests(requests)
	for c := range channels {
		if c.ChannelType() != "session" {
			c.Reject(ssh.UnknownChannelType, "only sessions")
			continue
		}
		channel, requests, err := c.Accept()
		if err != nil {
			return err
		}
		if err := session(channel, requests); err != nil {
			return err
		}
	}
	return nil
}

// session runs one command (RFC 4254 section 6.5) and gives its exit status.
func session(channel ssh.Channel, requests <-chan *ssh.Request) error {
	defer channel.Close()
	for r := range requests {
		if r.Type != "exec" {
			r.Reply(false, nil)
			continue
		}
		var command struct{ Line string }
		if err := ssh.Unmarshal(r.Payload, &command); err != nil {
			return err
		}
		r.Reply(true, nil)
		c := exec.Command("/bin/sh", "-c", command.Line)
		c.Stdout, c.Stderr = channel, channel.Stderr()
		var exit *exec.ExitError
		if err := c.Run(); err != nil && !errors.As(err, &exit) {
			return fmt.Errorf("%q: %w", command.Line, err)
		}
		status := struct{ Status uint32 }{uint32(c.ProcessState.ExitCode())}
		_, err := channel.SendRequest("exit-status", false, ssh.Marshal(&status))
		return err
	}
	return nil
}

// stdio is standard input and output as a connection.
type stdio struct{}

func (stdio) Read(p []byte) (int, error)       { return os.Stdin.Read(p) }
func (stdio) Write(p []byte) (int, error)      { return os.Stdout.Write(p) }
func (stdio) Close() error                     { return errors.Join(os.Stdin.Close(), os.Stdout.Close()) }
func (stdio) LocalAddr() net.Addr              { return &net.UnixAddr{Name: "stdio", Net: "unix"} }
func (stdio) RemoteAddr() net.Addr             { return &net.UnixAddr{Name: "stdio", Net: "unix"} }
func (stdio) SetDeadline(time.Time) error      { return nil }
func (stdio) SetReadDeadline(time.Time) error  { return nil }
func (stdio) SetWriteDeadline(time.Time) error { return nil }
