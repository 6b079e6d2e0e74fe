// SPDX-License-Identifier: BSD-3-Clause

package envelope

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ErrTooLarge says that an envelope exceeds MaxSize.
var ErrTooLarge = errors.New("envelope too large")

// ErrFraming says that the stream is not a sequence of frames: it has an empty
// or too large one, or ends inside one. Nothing after it can be read.
var ErrFraming = errors.New("broken framing")

// ReadFrame reads one frame: a big-endian uint32 length, from 1 to MaxSize, and
// so many bytes. The length is checked before memory is taken for it, and
// memory is taken as bytes arrive. The end of the stream between frames is
// io.EOF; errors of r are returned as they are.
func ReadFrame(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("%w: stream ends inside a length", ErrFraming)
		}
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > MaxSize {
		return nil, fmt.Errorf("%w: length %d is not between 1 and %d", ErrFraming, n, MaxSize)
	}
	// A peer that announces much and sends little costs one step, not MaxSize.
	const step = 16 << 10
	b := make([]byte, 0, min(n, step))
	for len(b) < int(n) {
		want := min(int(n)-len(b), step)
		b = append(b, make([]byte, want)...)
		if _, err := io.ReadFull(r, b[len(b)-want:]); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return nil, fmt.Errorf("%w: stream ends inside an envelope", ErrFraming)
			}
			return nil, err
		}
	}
	return b, nil
}

// WriteFrame writes one frame in a single Write.
func WriteFrame(w io.Writer, b []byte) error {
	if len(b) == 0 {
		return fmt.Errorf("%w: empty envelope", ErrFraming)
	}
	if len(b) > MaxSize {
		return fmt.Errorf("%w: %d bytes", ErrTooLarge, len(b))
	}
	frame := make([]byte, 4, 4+len(b))
	binary.BigEndian.PutUint32(frame, uint32(len(b)))
	_, err := w.Write(append(frame, b...))
	return err
}
