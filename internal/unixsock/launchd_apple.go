// SPDX-License-Identifier: BSD-3-Clause

//go:build (darwin || gnustep) && cgo

package unixsock

// #include <launch.h>
// #include <stdlib.h>
import "C"

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxActivated bounds how many sockets are taken over; a property list with more is a mistake.
const maxActivated = 16

// launchdSockets takes over the sockets that launchd has under a name for this process, if it has any.
func launchdSockets(name string) ([]int, error) {
	text := C.CString(name)
	defer C.free(unsafe.Pointer(text))
	var fds *C.int
	var n C.size_t
	switch err := unix.Errno(C.launch_activate_socket(text, &fds, &n)); err {
	case 0:
	case unix.ESRCH, unix.ENOENT: // not started by launchd; no such name in the property list
		return nil, nil
	default:
		return nil, fmt.Errorf("launchd: %w", err)
	}
	defer C.free(unsafe.Pointer(fds))
	var all []int
	for _, fd := range unsafe.Slice(fds, int(n)) {
		all = append(all, int(fd))
	}
	if len(all) > maxActivated {
		for _, fd := range all {
			_ = unix.Close(fd)
		}
		return nil, errors.New("launchd passed too many sockets")
	}
	return all, nil
}
