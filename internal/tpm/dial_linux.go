// SPDX-License-Identifier: BSD-3-Clause

package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// redial is how long to wait before one more try when the server's queue is full.
const redial = 10 * time.Millisecond

// dial opens the device. Its error begins with the path.
func dial(path string, until time.Time) (channel, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, explain(path, err)
	}
	switch {
	case info.Mode()&fs.ModeSocket != 0:
		return dialSocket(path, until)
	case info.Mode()&fs.ModeCharDevice != 0 && isTPM(info):
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
		if err != nil {
			return nil, explain(path, err)
		}
		return &device{fd: fd}, nil
	default:
		return nil, fmt.Errorf("%s is not a TPM", path)
	}
}

// explain is an error of opening path in the words of somebody who has to do something about it.
func explain(path string, err error) error {
	var late net.Error
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%s does not exist", path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("no permission for %s; the user must be in the group tss", path)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s is in use by another program, which %s would allow", path, Default)
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("nothing serves %s", path)
	case errors.As(err, &late) && late.Timeout(): // EAGAIN too: the queue is full
		return fmt.Errorf("%s does not answer", path)
	}
	var p *fs.PathError
	if errors.As(err, &p) {
		err = p.Err
	}
	return fmt.Errorf("%s: %w", path, err)
}

// isTPM says whether the kernel has the character device for a TPM. Opening another one could do things: a watchdog
// restarts the computer. Where sysfs is not mounted it is believed.
func isTPM(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return false
	}
	number := fmt.Sprintf("%d:%d", unix.Major(stat.Rdev), unix.Minor(stat.Rdev))
	class, err := os.Readlink("/sys/dev/char/" + number + "/subsystem")
	if err != nil {
		return true
	}
	name := filepath.Base(class)
	return name == "tpm" || name == "tpmrm"
}

// A device is a TPM's character device.
type device struct {
	fd    int
	stuck bool // the kernel has not answered in time
}

// exchange writes, waits and reads. A TPM's device that is not to block takes the command at once and can be polled
// for the response, which it gives in one piece; a read too early would say that there is none. Kernels that
// cannot do so yet answer before the write returns and have limits of their own.
func (d *device) exchange(command []byte, until time.Time) ([]byte, error) {
	for {
		n, err := unix.Write(d.fd, command)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, gone(err)
		}
		if n != len(command) {
			return nil, errors.New("took a part of the command")
		}
		break
	}
	for {
		left := time.Until(until)
		if left <= 0 {
			d.stuck = true
			return nil, errLate
		}
		fds := []unix.PollFd{{Fd: int32(d.fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int((left+time.Millisecond-1)/time.Millisecond))
		if err != nil && err != unix.EINTR {
			return nil, gone(err)
		}
		if n > 0 {
			break
		}
	}
	response := make([]byte, maxMessage)
	for {
		n, err := unix.Read(d.fd, response)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return nil, gone(err)
		case n == 0:
			return nil, gone(io.EOF)
		}
		return response[:n], nil
	}
}

func (d *device) close() {
	if d.stuck {
		// The kernel waits for the TPM's answer before it closes. It gives up after minutes at most.
		go func() { _ = unix.Close(d.fd) }()
		return
	}
	_ = unix.Close(d.fd)
}

// errLate is the error of a channel whose time is over.
var errLate = errors.New("does not answer")

// gone is the error of a TPM that was there.
func gone(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errLate
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.EPIPE),
		errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.ENODEV), errors.Is(err, unix.EIO):
		return errors.New("went away")
	}
	return fmt.Errorf("went away: %w", err)
}

// A socket is a connection to a TPM that serves one, which others wait for meanwhile.
type socket struct{ conn net.Conn }

func dialSocket(path string, until time.Time) (channel, error) {
	for {
		d := net.Dialer{Deadline: until}
		conn, err := d.Dial("unix", path)
		if err == nil {
			err = conn.SetDeadline(until)
			if err == nil {
				return &socket{conn}, nil
			}
			_ = conn.Close()
		}
		if !errors.Is(err, unix.EAGAIN) || time.Until(until) < redial {
			return nil, explain(path, err)
		}
		<-time.After(redial) // another process uses it
	}
}

func (s *socket) exchange(command []byte, _ time.Time) ([]byte, error) {
	if _, err := s.conn.Write(command); err != nil {
		return nil, gone(err)
	}
	response := make([]byte, maxMessage)
	if _, err := io.ReadFull(s.conn, response[:header]); err != nil {
		return nil, gone(err)
	}
	n := binary.BigEndian.Uint32(response[2:])
	if n < header || n > maxMessage {
		return response[:header], nil // which the length does not agree with
	}
	if _, err := io.ReadFull(s.conn, response[header:n]); err != nil {
		return nil, gone(err)
	}
	return response[:n], nil
}

func (s *socket) close() { _ = s.conn.Close() }
