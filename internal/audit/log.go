// SPDX-License-Identifier: BSD-3-Clause

package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Bounds of a log: 68 MiB at most, about 200,000 records.
const (
	maxFile = 4 << 20 // bytes of the present file, after which it becomes an old one
	maxOld  = 16      // old files
)

// ErrNotRecorded is wrapped by every error of Append.
var ErrNotRecorded = errors.New("not recorded in the audit log")

// Log is a log that can be written to. It is safe for concurrent use, and several processes may have one on the
// same directory.
type Log struct {
	dir string
	sys system

	maxFile int64
	maxOld  int

	mu     sync.Mutex
	closed bool
	file   *os.File    // audit.jsonl, nil before the first Append and after some failures
	info   fs.FileInfo // which file that is
	tail   tail        // of file, as long as the file has tail.size
	own    tail        // after the last Append that succeeded in file
	undo   *undo       // what could not be taken back
}

// system is what can fail when something is written, for tests.
type system struct {
	write    func(*os.File, []byte) (int, error)
	sync     func(*os.File) error
	truncate func(*os.File, int64) error
}

// tail says how the log goes on.
type tail struct {
	size int64  // of the present file
	link string // hash of the last line: what the next one is chained to
	mend mend

	// With mendRecover.
	before  string // the record's Before
	needEnd bool   // the last line has no end
}

// mend is what has to be written before the next record.
type mend int

const (
	mendNothing mend = iota
	mendEnd          // the last line is whole but for its end
	mendRecover      // the last line is the beginning of one
)

// undo is a write that failed and could not be taken back.
type undo struct {
	info     fs.FileInfo // of the file, with its size after the failure
	size     int64       // before
	original error
}

// Open returns the log in dir, the signer's home. It makes no file; Append does. Errors: *RefusedError when the directory
// or a log that is there is not its owner's alone.
func Open(dir string) (*Log, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	f, _, err := open(filepath.Join(dir, fileName), os.O_RDONLY)
	if err == nil {
		f.Close()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return &Log{dir: dir, maxFile: maxFile, maxOld: maxOld,
		sys: system{(*os.File).Write, (*os.File).Sync, (*os.File).Truncate}}, nil
}

// Close closes the log. Every later Append fails.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	return l.forget()
}

// forget closes the present file. The next Append looks anew.
func (l *Log) forget() error {
	f := l.file
	l.file, l.info, l.tail, l.own = nil, nil, tail{}, tail{}
	if f == nil {
		return nil
	}
	return f.Close()
}

// Append writes a record. Texts that are longer than 1 KiB are cut, what is not UTF-8 in them is replaced, and times
// that RFC 3339 cannot write are left out. Durable: the record is on the disk when Append returns nil; otherwise it survives
// the end of the process, but perhaps not a power failure.
//
// Every error wraps ErrNotRecorded, and nothing of the record is in the log then. Should what was written of it not
// be removable, as on a disk that fails, every Append fails until it is removed, or until another process has written
// after it. Errors: ErrBusy after 5 seconds, *RefusedError, those of the system.
func (l *Log) Append(r Record, durable bool) error {
	if err := l.append(r, durable); err != nil {
		return fmt.Errorf("%w: %w", ErrNotRecorded, err)
	}
	return nil
}

func (l *Log) append(r Record, durable bool) error {
	r.bound()
	if r.Event == "" || r.Event == EventRecovered || r.Event == EventRotated {
		return fmt.Errorf("%q is no event of a caller", r.Event)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fs.ErrClosed
	}
	if err := checkDir(l.dir); err != nil {
		return err
	}
	unlock, err := lock(l.dir, true)
	if err != nil {
		return err
	}
	defer unlock()
	if err := l.refreshLocked(); err != nil {
		return err
	}
	if err := l.undoLocked(); err != nil {
		return err
	}
	if err := l.mendLocked(); err != nil {
		return err
	}
	now := whole(time.Now())
	if r.Time.IsZero() {
		r.Time = now
	}
	r.Previous = l.tail.link
	line, err := encode(r)
	if err != nil {
		return err
	}
	if l.tail.size > 0 && l.tail.size+int64(len(line))+1 > l.maxFile {
		if err := l.rotateLocked(); err != nil {
			return err
		}
	}
	if l.tail.size == 0 && l.tail.link != noLine {
		first, err := encode(Record{Time: now, Event: EventRotated, Previous: l.tail.link})
		if err != nil {
			return err
		}
		if err := l.writeLocked(nil, first, false); err != nil {
			return err
		}
	}
	r.Previous = l.tail.link
	if line, err = encode(r); err != nil {
		return err
	}
	if err := l.writeLocked(nil, line, durable); err != nil {
		return err
	}
	l.own = l.tail
	return nil
}

// refreshLocked makes file and tail those of the present file, which another process may have written to or made.
func (l *Log) refreshLocked() error {
	path := filepath.Join(l.dir, fileName)
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		l.forget()
		if l.file, l.info, err = create(l.dir); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		if err := check(path, fi, fileMode); err != nil {
			return err
		}
		if l.file != nil && !os.SameFile(l.info, fi) {
			l.forget()
		}
		if l.file != nil && l.tail.size == fi.Size() {
			return nil
		}
		if l.file == nil {
			if l.file, l.info, err = open(path, os.O_RDWR|os.O_APPEND); err != nil {
				return err
			}
		}
	}
	if fi, err = l.file.Stat(); err != nil {
		return err
	}
	if l.tail, err = readTail(l.dir, l.file, fi.Size()); err != nil {
		l.forget()
		return err
	}
	// Processes only take back what they wrote themselves after all that was there, so whoever has made the file
	// shorter than it was after our last line is none of ours. The chain goes on from that line, for Verify to find.
	if l.own.link != "" && l.tail.size < l.own.size {
		l.tail.link = l.own.link
	}
	return nil
}

// undoLocked takes back what could not be taken back before. When the file is not as that left it, another process has
// written after it, and the chain goes over it.
func (l *Log) undoLocked() error {
	u := l.undo
	if u == nil {
		return nil
	}
	if !os.SameFile(u.info, l.info) || l.tail.size != u.info.Size() {
		l.undo = nil
		return nil
	}
	if err := l.sys.truncate(l.file, u.size); err != nil {
		return fmt.Errorf("what is left of a record that was not written cannot be removed: %w (%w)", err, u.original)
	}
	l.undo = nil
	var err error
	if l.tail, err = readTail(l.dir, l.file, u.size); err != nil {
		l.forget()
	}
	return err
}

// mendLocked makes the last line a whole one.
func (l *Log) mendLocked() error {
	switch l.tail.mend {
	case mendEnd:
		return l.writeLocked([]byte("\n"), nil, false)
	case mendRecover:
		r := Record{Time: whole(time.Now()), Event: EventRecovered, Reason: "the line before was cut off",
			Before: l.tail.before, Previous: l.tail.link}
		line, err := encode(r)
		if err != nil {
			return err
		}
		var end []byte
		if l.tail.needEnd {
			end = []byte("\n")
		}
		return l.writeLocked(end, line, false)
	}
	return nil
}

// rotateLocked makes the present file an old one and begins another. The process can end anywhere in between: a
// directory without a present file, or with an empty one, is what refreshLocked goes on from.
func (l *Log) rotateLocked() error {
	if err := l.sys.sync(l.file); err != nil {
		return err
	}
	old, err := oldFiles(l.dir)
	if err != nil {
		return err
	}
	next := 1
	if len(old) > 0 {
		next = old[len(old)-1] + 1
	}
	if err := os.Rename(filepath.Join(l.dir, fileName), filepath.Join(l.dir, oldName(next))); err != nil {
		return err
	}
	old = append(old, next)
	link := l.tail.link
	l.forget()
	if l.file, l.info, err = create(l.dir); err != nil {
		return err
	}
	l.tail = tail{link: link}
	for ; len(old) > l.maxOld; old = old[1:] {
		if err := os.Remove(filepath.Join(l.dir, oldName(old[0]))); err != nil {
			break // the next rotation tries again
		}
	}
	return nil
}

// writeLocked writes the end of the line before, if any, and a line with its end, if any, and takes them back when that
// fails.
func (l *Log) writeLocked(end, line []byte, durable bool) error {
	b := append([]byte(nil), end...)
	link := l.tail.link
	if line != nil {
		b = append(append(b, line...), '\n')
		link = hash(line)
	}
	_, err := l.sys.write(l.file, b)
	if err == nil && durable {
		err = l.sys.sync(l.file)
	}
	if err == nil {
		l.tail = tail{size: l.tail.size + int64(len(b)), link: link}
		return nil
	}
	if terr := l.sys.truncate(l.file, l.tail.size); terr != nil {
		fi, serr := l.file.Stat()
		if serr != nil { // then nobody knows what there is; the next Append goes on from what it finds
			l.forget()
			return errors.Join(err, terr, serr)
		}
		if fi.Size() != l.tail.size {
			l.undo = &undo{info: fi, size: l.tail.size, original: err}
		}
		return errors.Join(err, terr)
	}
	return err
}
