// SPDX-License-Identifier: BSD-3-Clause

//go:build goexperiment.runtimesecret && !race && (amd64 || arm64)

package session

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestThreat_T01_NothingOfTheKeyIsLeft searches this process's memory for a key that has signed a thousand times and was
// dropped: its bytes, and its limbs. It measures the whole process, so nothing runs beside it.
func TestThreat_T01_NothingOfTheKeyIsLeft(t *testing.T) {
	r := newRig(t)
	c := r.request(spec())
	s := newSearch(t)
	scalar(c.key.private).FillBytes(s.needle[:32])
	for i := range 32 {
		s.needle[i] ^= mask
		s.needle[63-i] = s.needle[i]
	}
	for range 1000 {
		if _, err := c.Sign(use()); err != nil {
			t.Fatal(err)
		}
	}
	if s.count() == 0 {
		t.Fatal("the search finds no live key")
	}
	r.DropAll()
	var left int
	for range 100 { // the collections are a second apart
		if left = s.count(); left == 0 {
			return
		}
		<-time.After(100 * time.Millisecond)
	}
	t.Errorf("%d copies are left", left)
}

// mask keeps the search from finding what it looks for in its own memory.
const mask = 0x5a

type search struct {
	t      *testing.T
	needle []byte // big-endian, then little-endian, masked
	buf    []byte
}

func newSearch(t *testing.T) *search {
	t.Helper()
	page := func(n int) []byte {
		b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Munmap(b) })
		return b
	}
	return &search{t, page(64), page(1 << 20)}
}

func (s *search) count() int {
	s.t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		s.t.Fatal(err)
	}
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		s.t.Fatal(err)
	}
	defer mem.Close()
	n := 0
	lines := bufio.NewScanner(strings.NewReader(string(maps)))
	for lines.Scan() {
		var from, to uint64
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode); err != nil {
			s.t.Fatal(err)
		}
		if own := uint64(uintptr(unsafe.Pointer(&s.buf[0]))); !strings.HasPrefix(mode, "rw") || from <= own && own < to && to-from == uint64(len(s.buf)) {
			continue
		}
		for at := from; at < to; at += uint64(len(s.buf) - 32) {
			got, _ := mem.ReadAt(s.buf[:min(uint64(len(s.buf)), to-at)], int64(at))
			n += matches(s.buf[:got], s.needle[:32]) + matches(s.buf[:got], s.needle[32:64])
		}
	}
	clear(s.buf)
	return n
}

func matches(b, needle []byte) int {
	n := 0
	for i := 0; i+len(needle) <= len(b); i++ {
		for j := range needle {
			if b[i+j]^mask != needle[j] {
				break
			}
			if j == len(needle)-1 {
				n++
			}
		}
	}
	return n
}
