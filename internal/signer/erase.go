// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vmux.app/toolkit/internal/store"
)

// erasingName is what state.json is called from the first step of an erasure on,
// so that nothing but its end can be done with the home any more. A rename takes
// no room on a full disk.
const erasingName = "erasing"

// ErrErasing says that an erasure was cut off.
var ErrErasing = errors.New("the signer home is half erased")

// EraseError says what an erasure could not remove. It is ErrErasing.
type EraseError struct{ Errs []error }

func (e *EraseError) Error() string {
	text := ErrErasing.Error() + ": "
	for i, err := range e.Errs {
		if i > 0 {
			text += "; "
		}
		text += err.Error()
	}
	return text
}

// Is says that it is ErrErasing.
func (e *EraseError) Is(target error) bool { return target == ErrErasing }

// isErasing says whether an erasure of the home was begun.
func isErasing(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, erasingName))
	return err == nil
}

// OpenToErase opens a home for its erasure only: also one that is half erased, or
// open to others. Errors: ErrNotHome, ErrServing.
func OpenToErase(dir string) (*Home, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if !isHome(dir) && !isErasing(dir) {
		return nil, fmt.Errorf("%w: %s", ErrNotHome, dir)
	}
	h := newHome(dir, func(string) {})
	release, err := h.lockServingFile()
	if err != nil {
		return nil, err
	}
	release() // a person will be asked before Erase
	return h, nil
}

// Name is the signer's name, empty where the state cannot tell.
func (h *Home) Name() string {
	s, err := h.readState()
	if err != nil {
		return ""
	}
	return s.Name
}

// Steps of an erasure. What can sign goes first; what keeps others out goes last.
const (
	eraseKeys = iota
	eraseRest
	eraseLocks
	eraseMark
	eraseSteps
)

var (
	// temporary is the name of a file that is being written (package renameio,
	// os.CreateTemp): a dot, the name that it will have, a random number.
	temporary = regexp.MustCompile(`^\.(.*?)[0-9]+$`)
	aside     = regexp.MustCompile(`^(.*)\.damaged-[0-9]+$`)             // see setAside
	auditFile = regexp.MustCompile(`^audit([.-].*)?\.(jsonl|lock|new)$`) // package audit
)

// eraseStep says when a file in the home goes. ok is false for what is not the
// signer's.
func eraseStep(name string) (step int, ok bool) {
	if strings.HasPrefix(name, newPrefix) {
		return eraseKeys, true
	}
	if m := temporary.FindStringSubmatch(name); m != nil {
		name = m[1]
	}
	if m := aside.FindStringSubmatch(name); m != nil {
		name = m[1]
	}
	switch name {
	case caName, keysName, rekeyName, rekeyingName, linkKeyName:
		return eraseKeys, true
	case stateName, hostsName, limitsName, removedName, controlName, controlName + ".lock", controlPathName:
		return eraseRest, true
	case lockName, serveLockName:
		return eraseLocks, true
	case erasingName:
		return eraseMark, true
	}
	return eraseRest, auditFile.MatchString(name)
}

// Erase removes everything of the signer: keys, certificate authority, link key,
// pairings and all else that it has written. begin is called when nothing can keep
// it from beginning; nothing is erased when it returns an error. What is left are
// the paths of files that are not the signer's, and of those that links in the
// home lead to. After a crash nothing but another Erase is possible. Errors:
// ErrServing, ErrHomeBusy, *EraseError.
func (h *Home) Erase(begin func() error) (left []string, err error) {
	releaseServing, err := h.lockServingFile()
	if err != nil {
		return nil, err
	}
	defer releaseServing()
	release, err := h.lockFile(context.Background())
	if err != nil {
		return nil, err
	}
	defer release()
	if !isHome(h.dir) && !isErasing(h.dir) {
		return nil, fmt.Errorf("%w: %s", ErrNotHome, h.dir) // another one was faster
	}
	if err := begin(); err != nil {
		return nil, err
	}
	if err := h.markErasing(); err != nil {
		return nil, err
	}
	h.killed()
	socket, _ := h.controlPath() // of a process that was killed

	entries, err := os.ReadDir(h.dir)
	if err != nil {
		return nil, err
	}
	var steps [eraseSteps][]string
	for _, e := range entries {
		path := h.path(e.Name())
		step, ok := eraseStep(e.Name())
		if !ok {
			left = append(left, path)
			continue
		}
		left = append(left, leadsTo(path)...)
		steps[step] = append(steps[step], path)
	}
	slices.Sort(steps[eraseKeys]) // ca comes before keys; it can do most
	var failed []error
	for step, paths := range steps {
		if step == eraseLocks && len(failed) > 0 {
			break // the mark stays, so that it can be done again
		}
		for _, path := range paths {
			remove := os.Remove
			switch filepath.Base(path) {
			case keysName, rekeyName, rekeyingName: // the signer's, with all that is in them
				remove = os.RemoveAll
			}
			if err := remove(path); err != nil {
				failed = append(failed, err)
			}
			h.killed()
		}
		failed = append(failed, store.SyncDir(h.dir)) // errors.Join drops those that are nil
		failed = slices.DeleteFunc(failed, func(err error) bool { return err == nil })
	}
	if len(failed) > 0 {
		return left, &EraseError{failed}
	}
	removeShortDir(socket, h.dir)
	switch err := unix.Rmdir(h.dir); {
	case err == nil:
		return left, store.SyncDir(filepath.Dir(h.dir))
	case len(left) > 0, errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EBUSY), errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return left, nil // with files of others in it, a link, a file system, in a directory that is not ours
	default:
		return left, &os.PathError{Op: "rmdir", Path: h.dir, Err: err}
	}
}

// markErasing makes the home one that can only be erased.
func (h *Home) markErasing() error {
	err := os.Rename(h.path(stateName), h.path(erasingName))
	if errors.Is(err, fs.ErrNotExist) {
		var f *os.File
		if f, err = os.OpenFile(h.path(erasingName), os.O_WRONLY|os.O_CREATE, 0o600); err == nil {
			err = f.Close()
		}
	}
	if err != nil {
		return err
	}
	return store.SyncDir(h.dir)
}

// leadsTo are the files that links at path, and in it when it is a directory, lead
// to.
func leadsTo(path string) (targets []string) {
	if to, err := os.Readlink(path); err == nil {
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		return []string{to}
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil // no directory; if it is one, its removal fails and says why
	}
	for _, e := range entries {
		targets = append(targets, leadsTo(filepath.Join(path, e.Name()))...)
	}
	return targets
}

// removeShortDir removes the directory that shortDir has made, as far as nobody
// else has put anything there.
func removeShortDir(socket, home string) {
	dir := filepath.Dir(socket)
	if dir == home || filepath.Base(socket) != controlName || !strings.HasPrefix(filepath.Base(dir), "vmux-signer-") || checkPrivate(dir, 0o700) != nil {
		return
	}
	// What cannot be removed is nothing but a socket's name.
	_ = os.Remove(socket)
	_ = os.Remove(socket + ".lock")
	_ = unix.Rmdir(dir)
}
