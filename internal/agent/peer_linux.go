// SPDX-License-Identifier: BSD-3-Clause

package agent

// Alive reports whether the process that connected still runs, by its pidfd.
func (p Peer) Alive() bool { return p.sock.Alive() }
