// SPDX-License-Identifier: BSD-3-Clause

package audit

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// usual is a record of a usual size.
var usual = Record{Event: "request", Device: "laptop", Pin: "SHA256:" + strings.Repeat("p", 43), ID: strings.Repeat("0", 64), CreatedAt: time.Unix(1e9, 0),
	Operation: "login", User: "root", HostKey: "SHA256:" + strings.Repeat("h", 43), Key: "default", Fingerprint: "SHA256:" + strings.Repeat("f", 43), Outcome: "signed"}

func BenchmarkAppend(b *testing.B) {
	for _, durable := range []bool{false, true} {
		b.Run(fmt.Sprintf("durable=%t", durable), func(b *testing.B) {
			l := open0(b, home(b))
			for b.Loop() {
				if err := l.Append(usual, durable); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkOpen is Open and the first Append to a file that is nearly full.
func BenchmarkOpen(b *testing.B) {
	dir := home(b)
	l := open0(b, dir)
	for l.tail.size < maxFile*9/10 {
		if err := l.Append(usual, false); err != nil {
			b.Fatal(err)
		}
	}
	l.Close()
	for b.Loop() {
		l, err := Open(dir)
		if err != nil {
			b.Fatal(err)
		}
		if err := l.Append(usual, false); err != nil {
			b.Fatal(err)
		}
		l.Close()
	}
}

func BenchmarkFull(b *testing.B) {
	dir := home(b)
	l := open0(b, dir)
	for i := 0; len(logFiles(b, dir)) <= maxOld; i++ {
		if err := l.Append(usual, false); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("Verify", func(b *testing.B) {
		b.SetBytes(maxOld * maxFile)
		for b.Loop() {
			verified(b, dir)
		}
	})
	b.Run("Recent", func(b *testing.B) {
		for b.Loop() {
			if err := l.Recent(time.Now().Add(time.Hour), func(Record) error { return nil }); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("RecentAll", func(b *testing.B) {
		for b.Loop() {
			if err := l.Recent(time.Time{}, func(Record) error { return nil }); err != nil {
				b.Fatal(err)
			}
		}
	})
}
