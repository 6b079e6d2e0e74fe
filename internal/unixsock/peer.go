// SPDX-License-Identifier: BSD-3-Clause

package unixsock

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// A Peer is the process at the other end of a connection, as the kernel remembers it from the time it
// connected. A connection can be handed to another process afterwards; the kernel does not say so. On darwin that
// goes for UID only: PID is of who used the connection last, until PeerOf.
type Peer struct {
	UID uint32 // effective
	PID int    // 0 when unknown (a peer in another pid namespace)

	pidfd *os.File // Linux: nil when the kernel has none
	gone  bool     // had ended when it was asked about
}

// PeerOf asks who connected. The answer is to be closed with Peer.Close.
//
// Sources: SO_PEERCRED and SO_PEERPIDFD (Linux 6.5; before that pidfd_open, which leaves the time between connect
// and PeerOf in which a pid may have been given away), LOCAL_PEERCRED and LOCAL_PEERPID (darwin; xnu's uipc_ctloutput
// gives the socket's last_pid, and nothing once the other end has hung up).
func PeerOf(c *net.UnixConn) (Peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Peer{}, fmt.Errorf("peer: %w", err)
	}
	var p Peer
	var perr error
	if err := raw.Control(func(fd uintptr) { p, perr = peerOf(int(fd)) }); err != nil {
		return Peer{}, fmt.Errorf("peer: %w", err)
	}
	if perr != nil {
		return Peer{}, fmt.Errorf("peer: %w", perr)
	}
	return p, nil
}

// Alive says whether PID still is the process that connected. What is read about a pid (its executable, its
// parents) counts when Alive is true afterwards. On darwin it only says that some process has the pid.
func (p Peer) Alive() bool {
	if p.PID <= 0 || p.gone {
		return false
	}
	if p.pidfd != nil {
		return running(p.pidfd)
	}
	err := unix.Kill(p.PID, 0)
	return err == nil || errors.Is(err, unix.EPERM)
}

// Close releases what Alive needs.
func (p Peer) Close() error {
	if p.pidfd == nil {
		return nil
	}
	return p.pidfd.Close()
}

// Allowed answers nil when the peer runs as us or as root, else ErrPeerUID, wrapped with both uids. Root is let in
// because it could be let in by itself anyway (ssh-agent does the same).
func Allowed(p Peer) error {
	if p.UID == 0 || p.UID == ownUID() {
		return nil
	}
	return fmt.Errorf("%w: uid %d, the socket is for uid %d", ErrPeerUID, p.UID, ownUID())
}
