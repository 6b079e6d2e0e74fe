// SPDX-License-Identifier: BSD-3-Clause

package audit

import (
	"errors"
	"fmt"
	"time"
)

// ErrHead says that no line of a log has the hash that its owner has noted.
var ErrHead = errors.New("no line of the audit log has this hash")

// BrokenError says where the chain does not hold: in this line, or just before it.
type BrokenError struct {
	File string // in the home
	Line int    // from 1
	Why  string
}

func (e *BrokenError) Error() string { return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Why) }

// Summary is what a log has.
type Summary struct {
	Files   int
	Records int
	// Head is the hash of the last record, empty without one. Who notes it elsewhere can find out later
	// whether the log is still the same up to this record.
	Head        string
	First, Last time.Time // of the first record and of the last one, as the log has them

	Recovered int  // lines that were cut off, and the next record says so
	CutOff    bool // the last line was cut off, and no record says so yet
	Deleted   bool // the log begins after files that are gone
}

// Verify reads the whole log and checks that each line is chained to the one before, over all its files. It finds each
// line that was changed, removed, inserted or moved, when the lines after it are as they were. By itself it cannot find that
// lines are gone from the end or whole files from the beginning, nor a log that was written anew; see VerifyHead. A home without
// a log is an empty one. Errors: *BrokenError, with the summary of what is before it; ErrBusy, *RefusedError, those of the
// system.
func Verify(dir string) (Summary, error) {
	s, _, err := verify(dir, "")
	return s, err
}

// VerifyHead is Verify that also finds the line with the hash head, 64 hexadecimal digits: a Summary.Head of before. When it
// finds it and the chain holds, the log is up to this line what it was then. Errors: those of Verify, and ErrHead: lines are
// gone or others than they were, or the line was in a file that was full and deleted since.
func VerifyHead(dir, head string) (Summary, error) {
	s, found, err := verify(dir, head)
	if err == nil && !found {
		err = fmt.Errorf("%w: %s", ErrHead, head)
	}
	return s, err
}

func verify(dir, head string) (s Summary, found bool, err error) {
	parts, err := snapshot(dir, allFiles)
	if err != nil {
		return Summary{}, false, err
	}
	defer closeAll(parts)
	v := &verifier{head: head, anchor: noLine}
	for _, p := range parts {
		v.s.Files++
		var broken error
		err := p.scan(func(l scanned) bool {
			broken = v.line(p.name, l)
			return broken == nil
		})
		if err != nil {
			return v.s, v.found, fmt.Errorf("%s: %w", p.name, err)
		}
		if broken != nil {
			return v.s, v.found, broken
		}
	}
	v.s.CutOff = len(v.doubtful) > 0
	return v.s, v.found, nil
}

// verifier follows the chain.
type verifier struct {
	s     Summary
	head  string
	found bool

	begun  bool   // there was a record
	link   string // hash of the last line, whatever it is; empty before the first
	anchor string // what a part of a line that comes now would have as Before
	// doubtful are the parts of lines since the last record: where the first one is, and Before for the last one.
	doubtful []BrokenError
	before   string
}

func (v *verifier) line(file string, l scanned) error {
	broken := func(why string) error { return &BrokenError{file, l.n, why} }
	if !l.ended && file != fileName {
		return broken("has no end")
	}
	r, err := decode(l.text)
	if err != nil {
		if !incomplete(l.text) || len(v.doubtful) == maxParts {
			return broken(errNoRecord.Error())
		}
		v.doubtful = append(v.doubtful, BrokenError{file, l.n, errNoRecord.Error()})
		v.before, v.anchor, v.link = v.anchor, fold(v.anchor, l.text), hash(l.text)
		return nil
	}
	switch {
	case len(v.doubtful) > 0 && r.Event != EventRecovered:
		first := v.doubtful[0]
		return &first
	case r.Event == EventRecovered && len(v.doubtful) == 0:
		return broken("recovers from nothing")
	case r.Event == EventRecovered && r.Previous != v.link:
		return broken("is not chained to the line before")
	case r.Event == EventRecovered && r.Before != v.before:
		// Only the hash of one line can be compared with what is not there any more.
		if v.begun || len(v.doubtful) > 1 || !isHash(r.Before) {
			return broken("is not chained to the last record")
		}
		v.s.Deleted = true
		v.found = v.found || r.Before == v.head
	case r.Event == EventRecovered:
	case !v.begun && r.Previous != noLine:
		if r.Event != EventRotated {
			return broken("is not chained to anything, lines before it are gone")
		}
		v.s.Deleted = true
		v.found = r.Previous == v.head
	case v.begun && r.Previous != v.link:
		return broken("is not chained to the line before")
	}
	v.s.Recovered += len(v.doubtful)
	v.doubtful = nil
	v.link = hash(l.text)
	v.anchor = v.link
	v.found = v.found || v.link == v.head
	if !v.begun {
		v.begun, v.s.First = true, r.Time
	}
	v.s.Records++
	v.s.Head, v.s.Last = v.link, r.Time
	return nil
}
