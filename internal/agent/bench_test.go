// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
)

// benchmark sends the same message over and over on some connections.
func benchmark(b *testing.B, connections int, message func(*rig) []byte, answer byte) {
	r := newRig(b)
	r.server = New(Options{Signer: r.signer}) // without a log
	r.stop()
	r.serve()
	request := frame(message(r)...)
	b.ReportAllocs()
	b.ResetTimer()
	var all sync.WaitGroup
	for i := range connections {
		n := b.N / connections
		if i == 0 {
			n += b.N % connections
		}
		all.Go(func() {
			c, err := net.Dial("unix", r.socket)
			if err != nil {
				b.Error(err)
				return
			}
			defer c.Close()
			buf := make([]byte, 4096)
			for range n {
				if _, err := c.Write(request); err != nil {
					b.Error(err)
					return
				}
				if _, err := io.ReadFull(c, buf[:5]); err != nil || buf[4] != answer {
					b.Error(err, buf[:5])
					return
				}
				if _, err := io.ReadFull(c, buf[5:4+binary.BigEndian.Uint32(buf)]); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
}

func BenchmarkList(b *testing.B) {
	for _, n := range []int{1, 16, 256} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			benchmark(b, n, func(*rig) []byte { return []byte{msgRequestIdentities} }, msgIdentitiesAnswer)
		})
	}
}

// BenchmarkSign is with a P-256 key in memory and includes the check of the signature.
func BenchmarkSign(b *testing.B) {
	for _, n := range []int{1, 16, 256} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			benchmark(b, n, func(r *rig) []byte {
				return signMessage(r.signer.Keys(nil)[1].Public, sshsigData("file"), 0)
			}, msgSignResponse)
		})
	}
}
