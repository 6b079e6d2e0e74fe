// SPDX-License-Identifier: BSD-3-Clause

// Package audit is the signer's log of what was asked of it and what it did: one JSON object a line, each with the
// hash of the line before.
//
// # What the chain shows
//
// The chain has no secret. Whoever can write the log can write another one, whole and wrong. What it gives is
// that no line can be changed, removed, inserted or moved while all lines after it stay as they are; and that an
// owner who has noted the hash of one line (Summary.Head) elsewhere can tell whether all lines up to that one are still
// as they were. Without a noted hash nobody can tell that lines are gone from the end, or files from the beginning.
//
// # Files
//
// audit.jsonl is written to. When it is full it becomes audit-000001.jsonl, or the number after the highest one that
// is there. All files in the order of their numbers, audit.jsonl last, are one log; only its end is ever written to.
// audit.lock is locked (flock) by whoever writes, and never removed.
//
// # Lines that were cut off
//
// A process that is killed, or a computer that loses its power, can leave a beginning of a line at the end of the log.
// It stays, for it shows that somebody was about to write something. The next Append ends the line and writes a
// record with the event "recovered" first. Since nobody can say to which line a part of a line is chained, that record
// is chained twice: Previous is the hash of the part, Before that of what was before it. If several such lines
// are in a row, since recovering was cut off, too, Before is SHA-256 of the hash of the last whole line, a line
// end and the first part; of that hash, a line end and the second part; and so on for all but the last part.
package audit
