// SPDX-License-Identifier: BSD-3-Clause

package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
)

const (
	// chunk is how much is read at once when a line's beginning is looked for.
	chunk = maxLine
	// maxParts bounds the parts of lines in a row: each is a process that was killed while it recovered from the one
	// before.
	maxParts = 64
)

// readTail finds out how a log goes on whose present file is f. It reads from the end.
func readTail(dir string, f *os.File, size int64) (tail, error) {
	b := &backward{dir: dir, f: f, end: size}
	defer b.close()
	t := tail{size: size, link: noLine}
	last, ok, err := b.next()
	if !ok || err != nil {
		return t, err
	}
	t.link = last.sum
	if size == 0 { // the line is of an old file, which is never written to
		return t, nil
	}
	if _, err := decode(last.text); err == nil {
		if !last.ended {
			t.mend = mendEnd
		}
		return t, nil
	}
	if last.ended && !incomplete(last.text) {
		return t, nil // damage, which the chain goes over
	}
	t.mend, t.needEnd = mendRecover, !last.ended
	t.before, err = before(b)
	return t, err
}

// before gives what a recovered record has as Before, where b stands before the last part. After damage it gives
// something that Verify will not accept.
func before(b *backward) (string, error) {
	var parts [][]byte
	link := noLine
	for len(parts) <= maxParts {
		l, ok, err := b.next()
		if err != nil {
			return "", err
		}
		if !ok {
			break
		}
		if _, err := decode(l.text); err == nil || l.text == nil {
			link = l.sum
			break
		}
		parts = append(parts, l.text)
	}
	for i := len(parts) - 1; i >= 0; i-- {
		link = fold(link, parts[i])
	}
	return link, nil
}

// backward reads a log's lines from its end on.
type backward struct {
	dir    string
	f      *os.File
	end    int64
	ours   bool // f is to be closed
	listed bool
	older  []int
}

// lineBefore is a line that backward finds.
type lineBefore struct {
	text  []byte // nil if it is longer than maxLine
	sum   string
	ended bool
}

func (b *backward) close() {
	if b.ours {
		b.f.Close()
		b.ours = false
	}
}

// next gives the line before, ok unless there is none.
func (b *backward) next() (l lineBefore, ok bool, err error) {
	for b.end == 0 {
		if !b.listed {
			if b.older, err = oldFiles(b.dir); err != nil {
				return lineBefore{}, false, err
			}
			b.listed = true
		}
		if len(b.older) == 0 {
			return lineBefore{}, false, nil
		}
		b.close()
		n := b.older[len(b.older)-1]
		b.older = b.older[:len(b.older)-1]
		f, fi, err := open(filepath.Join(b.dir, oldName(n)), os.O_RDONLY)
		if err != nil {
			return lineBefore{}, false, err
		}
		b.f, b.end, b.ours = f, fi.Size(), true
	}
	var last [1]byte
	if _, err := b.f.ReadAt(last[:], b.end-1); err != nil {
		return lineBefore{}, false, err
	}
	stop := b.end
	if last[0] == '\n' {
		l.ended = true
		stop--
	}
	start, err := lineStart(b.f, stop)
	if err != nil {
		return lineBefore{}, false, err
	}
	b.end = start
	if stop-start <= maxLine {
		l.text = make([]byte, stop-start)
		if _, err := b.f.ReadAt(l.text, start); err != nil {
			return lineBefore{}, false, err
		}
		l.sum = hash(l.text)
		return l, true, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(b.f, start, stop-start)); err != nil {
		return lineBefore{}, false, err
	}
	l.sum = hex.EncodeToString(h.Sum(nil))
	return l, true, nil
}

// lineStart gives where the line begins whose end is at stop.
func lineStart(f *os.File, stop int64) (int64, error) {
	buf := make([]byte, chunk)
	for stop > 0 {
		n := min(stop, chunk)
		if _, err := f.ReadAt(buf[:n], stop-n); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
			return stop - n + int64(i) + 1, nil
		}
		stop -= n
	}
	return 0, nil
}
