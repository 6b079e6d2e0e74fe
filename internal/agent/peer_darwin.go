// SPDX-License-Identifier: BSD-3-Clause

package agent

import "vmux.app/toolkit/internal/process"

// Alive reports whether the process that connected still runs. There are no pidfds: a process that started after the
// connection was accepted is another one with the same pid.
func (p Peer) Alive() bool {
	if !p.sock.Alive() {
		return false
	}
	chain, err := process.Chain(p.PID)
	return err == nil && chain[0].Start <= uint64(p.accepted.UnixMicro())
}
