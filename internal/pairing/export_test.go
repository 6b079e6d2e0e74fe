// SPDX-License-Identifier: BSD-3-Clause

package pairing

import (
	"crypto/rand"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/transport"
)

// StallBeforeProof does the device's part of a pairing by URL up to its proof,
// which it keeps.
func StallBeforeProof(c *transport.Conn, me transport.Pin, secret []byte) error {
	nonce := make([]byte, envelope.NonceSize)
	rand.Read(nonce) // never fails
	x := &exchange{conn: c, device: me, phone: c.Peer(), secret: secret, deviceName: "laptop", deviceNonce: nonce}
	if err := x.send(&envelope.PairRequest{Name: x.deviceName, Commitment: x.commit(), URL: true}); err != nil {
		return err
	}
	if _, err := c.Receive(); err != nil {
		return err
	}
	return x.send(&envelope.PairConfirm{Nonce: nonce})
}
