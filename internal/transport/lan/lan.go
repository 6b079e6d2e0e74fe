// SPDX-License-Identifier: BSD-3-Clause

// Package lan is the transport over the local network: TCP to addresses that
// DNS-SD found or that a person gave.
package lan

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"syscall"
	"time"

	"vmux.app/toolkit/internal/transport"
	"vmux.app/toolkit/internal/transport/dnssd"
)

// userTimeout ends a connection whose peer acknowledges nothing for so long.
// It and keep-alive are backstops below the link's own pings.
const userTimeout = 10 * time.Second

// keepAlive probes an idle connection from 30 s on and gives up after 45 s.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 5 * time.Second, Count: 3}

// Network implements transport.Network.
type Network struct {
	DNSSD dnssd.Options
}

// New gives the local network with the service that vmux's phones offer.
func New(log *slog.Logger) *Network { return &Network{DNSSD: dnssd.Options{Log: log}} }

// Browse implements transport.Network.
func (n *Network) Browse(ctx context.Context, found func(transport.Candidate)) error {
	return dnssd.Browse(ctx, n.DNSSD, func(c dnssd.Claim) {
		for _, a := range c.Addrs {
			found(transport.Candidate{Source: c.Source.String(), Instance: c.Instance, Address: a.String()})
		}
	})
}

// Dial implements transport.Network.
func (n *Network) Dial(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: keepAlive, Control: control}
	return d.DialContext(ctx, "tcp", address)
}

// Listen opens the phone's side: a TCP listener on HOST:PORT, whose connections
// have the same backstops.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	c := net.ListenConfig{KeepAliveConfig: keepAlive, Control: control}
	return c.Listen(ctx, "tcp", address)
}

// ErrAddress says that a text is no HOST:PORT.
var ErrAddress = errors.New("not an address of the form HOST:PORT")

// CheckAddress refuses what Dial can never reach.
func CheckAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return fmt.Errorf("%q is %w", address, ErrAddress)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q is %w: the port is not between 1 and 65535", address, ErrAddress)
	}
	return nil
}

func control(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) { err = setUserTimeout(int(fd), userTimeout) }); e != nil {
		return e
	}
	return err
}
