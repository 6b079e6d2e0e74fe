// SPDX-License-Identifier: BSD-3-Clause

package process

import (
	"bytes"
	"encoding/binary"
	"errors"
)

const (
	// maxArguments bounds what is used of a command line: Linux passes megabytes on, and nobody types 64 KiB.
	maxArguments = 64 << 10
	// argcSize is that of the count in front of what kern.procargs2 gives.
	argcSize = 4
)

// Arguments answers the command line of the process, the name that it was started by first. Of a line longer than
// 64 KiB the arguments that fit whole are answered; a process that has none, as one that ended and was not waited
// for, has an empty answer. The error is as that of Executable.
//
// The line is read from memory that the process can write at any time, so it is what the process says about
// itself. A process that means harm can make the read wait (by memory that another program pages in), so
// no lock may be held meanwhile.
func Arguments(pid int) ([]string, error) { return arguments(pid) }

// split reads arguments that end with a zero byte each, at most count of them if that is not negative. What does not
// end within maxArguments is left out, but for the last one of a shorter text, which a process that rewrites its
// line may leave without its end.
func split(b []byte, count int) []string {
	if len(b) > maxArguments {
		b = b[:bytes.LastIndexByte(b[:maxArguments], 0)+1]
	}
	var args []string
	for len(b) > 0 && len(args) != count {
		arg, rest, _ := bytes.Cut(b, []byte{0})
		args = append(args, string(arg))
		b = rest
	}
	return args
}

var errProcArgs = errors.New("malformed answer to kern.procargs2")

// parseProcArgs reads what darwin's kern.procargs2 gives: the number of arguments, the program's path, zero bytes up
// to the next boundary, the arguments, the environment. An empty first argument cannot be told from the padding.
func parseProcArgs(b []byte) ([]string, error) {
	if len(b) < argcSize {
		return nil, errProcArgs
	}
	count := int(int32(binary.NativeEndian.Uint32(b)))
	path := bytes.IndexByte(b[argcSize:], 0)
	if count < 0 || path < 0 {
		return nil, errProcArgs
	}
	return split(bytes.TrimLeft(b[argcSize+path:], "\x00"), count), nil
}
