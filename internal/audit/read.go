// SPDX-License-Identifier: BSD-3-Clause

package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"time"
)

// part is a file of the log as it was at one moment.
type part struct {
	name string
	f    *os.File
	size int64
}

// snapshot opens the newest files of the log in their order, as they all are between two Appends. Error: ErrBusy,
// *RefusedError, those of the system.
func snapshot(dir string, newest int) (parts []part, err error) {
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	unlock, err := lock(dir, false)
	if err != nil {
		return nil, err
	}
	defer unlock()
	old, err := oldFiles(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, n := range old[max(0, len(old)-newest+1):] {
		names = append(names, oldName(n))
	}
	for _, name := range append(names, fileName) {
		f, fi, err := open(filepath.Join(dir, name), os.O_RDONLY)
		if name == fileName && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			closeAll(parts)
			return nil, err
		}
		parts = append(parts, part{name, f, fi.Size()})
	}
	return parts, nil
}

func closeAll(parts []part) {
	for _, p := range parts {
		p.f.Close()
	}
}

// allFiles is more than a log has.
const allFiles = 1 << 30

// scanned is a line that scan finds.
type scanned struct {
	n     int    // from 1
	text  []byte // until the next line; nil if it is longer than maxLine
	sum   string // if it is longer than maxLine
	ended bool
}

// scan gives the lines of a part. A yield that returns false ends it.
func (p part) scan(yield func(scanned) bool) error {
	r := bufio.NewReaderSize(io.NewSectionReader(p.f, 0, p.size), maxLine+1)
	for n := 1; ; n++ {
		b, err := r.ReadSlice('\n')
		l := scanned{n: n, text: b}
		if errors.Is(err, bufio.ErrBufferFull) {
			l.text = nil
			h := sha256.New()
			for ; errors.Is(err, bufio.ErrBufferFull); b, err = r.ReadSlice('\n') {
				h.Write(b)
			}
			h.Write(bytes.TrimSuffix(b, []byte("\n")))
			l.sum = hex.EncodeToString(h.Sum(nil))
		}
		if err != nil && err != io.EOF {
			return err
		}
		if err == io.EOF && len(b) == 0 && l.sum == "" {
			return nil
		}
		l.ended = err == nil
		if l.text != nil && l.ended {
			l.text = b[:len(b)-1]
		}
		if !yield(l) || err == io.EOF {
			return nil
		}
	}
}

// Line is a line of the log that is a record.
type Line struct {
	Record
	Text string // as it is in the file, without its end
}

// Lines gives the records with a Time that is not before since, the zero time for all of them, oldest first. A line that
// is no record is a *BrokenError, after which the next line comes; not one that was cut off, nor, at the
// end of the log, the part of a line that is yet to be recovered from. Every other error is the last: ErrBusy, *RefusedError,
// those of the system. The chain is Verify's to look at.
func Lines(dir string, since time.Time) iter.Seq2[Line, error] { return lines(dir, since, allFiles) }

// Records is Lines without the text.
func Records(dir string, since time.Time) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		for l, err := range Lines(dir, since) {
			if !yield(l.Record, err) {
				return
			}
		}
	}
}

func lines(dir string, since time.Time, newest int) iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		parts, err := snapshot(dir, newest)
		if err != nil {
			yield(Line{}, err)
			return
		}
		defer closeAll(parts)
		early := earlier(since)
		var doubtful []error // parts of lines, which a recovered record explains
		more := true
		tell := func() {
			for _, err := range doubtful {
				more = more && yield(Line{}, err)
			}
			doubtful = nil
		}
		for _, p := range parts {
			err := p.scan(func(l scanned) bool {
				if early(l.text) {
					tell()
					return more
				}
				r, err := decode(l.text)
				switch {
				case err != nil && len(doubtful) < maxParts && incomplete(l.text):
					doubtful = append(doubtful, &BrokenError{p.name, l.n, errNoRecord.Error()})
					return true
				case err != nil:
					tell()
					more = more && yield(Line{}, &BrokenError{p.name, l.n, errNoRecord.Error()})
					return more
				case r.Event == EventRecovered:
					doubtful = nil
				}
				tell()
				if r.Time.Before(since) {
					return more
				}
				more = more && yield(Line{r, string(l.text)}, nil)
				return more
			})
			if !more {
				return
			}
			if err != nil {
				yield(Line{}, fmt.Errorf("%s: %w", p.name, err))
				return
			}
		}
	}
}

// earlier says of a line, without parsing it, that it is a record of before since. Those of EventRecovered are not
// among them.
func earlier(since time.Time) func(line []byte) bool {
	head := []byte(`{"time":"`)
	recovered := []byte(`"event":"` + EventRecovered + `"`)
	limit := []byte(whole(since).Format(timeForm))
	return func(line []byte) bool {
		rest, ok := bytes.CutPrefix(line, head)
		return ok && len(rest) > len(limit) && rest[len(limit)] == '"' && line[len(line)-1] == '}' &&
			bytes.Compare(rest[:len(limit)], limit) < 0 && !bytes.Contains(line, recovered)
	}
}

// Recent gives yield the records with a Time that is not before since, oldest first, of the present file and the one
// before it: what clocks that were set back have left out of order is found, too. Lines that are no
// records are passed over. Append waits until it is done, so that yield cannot append. Errors: those of yield, which end it, and
// those of Records.
func (l *Log) Recent(since time.Time, yield func(Record) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line, err := range lines(l.dir, since, 2) {
		if _, broken := errors.AsType[*BrokenError](err); broken {
			continue
		}
		if err != nil {
			return err
		}
		if err := yield(line.Record); err != nil {
			return err
		}
	}
	return nil
}
