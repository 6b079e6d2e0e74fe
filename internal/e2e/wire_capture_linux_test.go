// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"vmux.app/toolkit/internal/netnstest"
)

const mdnsPort = 5353

// packet is what passed on the cable.
type packet struct {
	frame    []byte // all of it
	src, dst netip.AddrPort
	tcp, udp bool
	syn      bool
	seq      uint32 // TCP
	payload  []byte // of TCP or UDP
	other    string // what it is, when it is neither
}

// capture keeps every packet on an interface.
type capture struct {
	file *os.File
	read chan struct{} // closed when the reader has ended

	mu      sync.Mutex
	packets []packet
	err     error
}

// newCapture listens at one end of the cable, from now on.
func newCapture(t testing.TB, ns *netnstest.Namespace) *capture {
	t.Helper()
	c := &capture{read: make(chan struct{})}
	err := ns.Do(func() error {
		ifi, err := net.InterfaceByName(ns.Interface)
		if err != nil {
			return err
		}
		// Without a protocol nothing is heard before it is bound to the interface.
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		c.file = os.NewFile(uintptr(fd), "capture")
		const room = 32 << 20 // far above what a session has
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room) != nil {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, room); err != nil {
				return err
			}
		}
		all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: ifi.Index})
	})
	if err != nil {
		t.Fatalf("capture: %v", err)
	}
	go c.reader()
	t.Cleanup(func() {
		c.file.Close()
		<-c.read
	})
	return c
}

func (c *capture) reader() {
	defer close(c.read)
	for b := make([]byte, 1<<17); ; {
		n, err := c.file.Read(b)
		if err == nil {
			var k packet
			if k, err = parsePacket(bytes.Clone(b[:n])); err == nil {
				c.mu.Lock()
				c.packets = append(c.packets, k)
				c.mu.Unlock()
				continue
			}
		}
		c.mu.Lock()
		c.err = err
		c.mu.Unlock()
		return
	}
}

// count says how many packets are such.
func (c *capture) count(such func(packet) bool) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.packets {
		if such(k) {
			n++
		}
	}
	return n
}

// end gives all that passed until now. It says so on the cable itself, and when
// that is heard so is everything before it.
func (c *capture) end(t testing.TB, n *netnstest.Net) []packet {
	t.Helper()
	const last = "that was all"
	u, err := net.Dial("udp", netip.AddrPortFrom(n.B.IPv4, 9).String())
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if _, err := u.Write([]byte(last)); err != nil {
		t.Fatal(err)
	}
	var all []packet
	eventually(t, "the capture to be complete", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.err != nil {
			t.Fatalf("capture: %v", c.err)
		}
		at := slices.IndexFunc(c.packets, func(k packet) bool { return k.udp && string(k.payload) == last })
		if at >= 0 {
			all = c.packets[:at]
		}
		return at >= 0
	})
	raw, err := c.file.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var stats *unix.TpacketStats
	var statsErr error
	if err := raw.Control(func(fd uintptr) {
		stats, statsErr = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	}); err != nil || statsErr != nil {
		t.Fatal(err, statsErr)
	}
	if stats.Drops != 0 || len(all) == 0 {
		t.Fatalf("the capture has %d packets and lost %d", len(all), stats.Drops)
	}
	return all
}

// parsePacket reads Ethernet, IPv4 or IPv6, and TCP or UDP.
func parsePacket(frame []byte) (packet, error) {
	k := packet{frame: frame}
	short := fmt.Errorf("malformed packet: %x", frame)
	if len(frame) < 14 {
		return k, short
	}
	b := frame[14:]
	var proto byte
	var src, dst netip.Addr
	switch kind := binary.BigEndian.Uint16(frame[12:]); kind {
	case unix.ETH_P_ARP:
		k.other = "ARP"
		return k, nil
	case unix.ETH_P_IP:
		if len(b) < 20 {
			return k, short
		}
		header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
		if header < 20 || total < header || total > len(b) || binary.BigEndian.Uint16(b[6:])&0x3fff != 0 {
			return k, short // fragments too: nothing here is that large
		}
		proto = b[9]
		src, dst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		b = b[header:total]
	case unix.ETH_P_IPV6:
		if len(b) < 40 {
			return k, short
		}
		proto = b[6]
		total := 40 + int(binary.BigEndian.Uint16(b[4:]))
		if total > len(b) {
			return k, short
		}
		src, dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
		b = b[40:total]
	default:
		k.other = fmt.Sprintf("Ethernet type %#x", kind)
		return k, nil
	}
	switch proto {
	case unix.IPPROTO_TCP:
		if len(b) < 20 || int(b[12]>>4)*4 > len(b) {
			return k, short
		}
		k.tcp, k.seq, k.syn, k.payload = true, binary.BigEndian.Uint32(b[4:]), b[13]&2 != 0, b[int(b[12]>>4)*4:]
	case unix.IPPROTO_UDP:
		if len(b) < 8 {
			return k, short
		}
		k.udp, k.payload = true, b[8:]
	case unix.IPPROTO_ICMP:
		k.other = "ICMP"
		return k, nil
	case unix.IPPROTO_IGMP:
		k.other = "IGMP"
		return k, nil
	case unix.IPPROTO_ICMPV6:
		k.other = "ICMPv6"
		return k, nil
	case unix.IPPROTO_HOPOPTS:
		k.other = "multicast listener report"
		return k, nil
	default:
		k.other = fmt.Sprintf("IP protocol %d", proto)
		return k, nil
	}
	k.src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(b))
	k.dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:]))
	return k, nil
}

// stream is one direction of a TCP connection.
type stream struct {
	src, dst netip.AddrPort
	data     []byte
}

// streams puts the TCP connections together, each from its SYN on.
func streams(t testing.TB, packets []packet) (all []stream) {
	t.Helper()
	type direction struct{ src, dst netip.AddrPort }
	begun := map[direction]*stream{}
	first := map[direction]uint32{}
	var order []direction
	const most = 1 << 22
	filled := map[direction][]bool{}
	for _, k := range packets {
		if !k.tcp {
			continue
		}
		d := direction{k.src, k.dst}
		seq := k.seq
		if k.syn {
			if _, again := first[d]; !again {
				first[d] = seq + 1
				begun[d] = &stream{src: k.src, dst: k.dst}
				order = append(order, d)
			}
			continue
		}
		if len(k.payload) == 0 {
			continue // the number after a FIN counts no byte
		}
		s := begun[d]
		if s == nil {
			t.Errorf("%v to %v: its beginning is not in the capture", k.src, k.dst)
			continue
		}
		at := int(int32(seq - first[d]))
		if at < 0 || at+len(k.payload) > most {
			continue // keep-alive probes are one before
		}
		for end := at + len(k.payload); len(s.data) < end; {
			s.data = append(s.data, 0)
			filled[d] = append(filled[d], false)
		}
		copy(s.data[at:], k.payload)
		for i := range k.payload {
			filled[d][at+i] = true
		}
	}
	for _, d := range order {
		if slices.Contains(filled[d], false) {
			t.Errorf("%v to %v: a part is not in the capture", d.src, d.dst)
		}
		all = append(all, *begun[d])
	}
	return all
}
