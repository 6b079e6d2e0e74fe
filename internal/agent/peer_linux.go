// SPDX-License-Identifier: BSD-3-Clause

package agent

// alive reports whether the process that connected still runs, by its pidfd.
func (p Peer) alive() bool { return p.sock.Alive() }
