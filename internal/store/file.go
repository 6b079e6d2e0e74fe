// SPDX-License-Identifier: BSD-3-Clause

package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// Keeper remembers a State. Store keeps it in a file, Memory for as long as the process lives.
type Keeper interface {
	// Load returns the state, the empty one when nothing was kept yet.
	Load() (State, error)
	// Update hands the present state to change and keeps the result. Updates exclude one another, in
	// this process and in others, so change must not wait for a person or a network, nor call the Keeper. When change
	// returns an error, Update returns it and the kept state stays as it was.
	Update(change func(*State) error) error
}

// Store keeps the state in a file that only its user can read. It is safe for concurrent use.
type Store struct {
	path   string
	log    *slog.Logger
	values Values // instead of the file, if any
}

const (
	// lockWait bounds how long Update waits for another process: an update is a read and a write of
	// at most MaxStateSize, so that whoever holds the lock longer is stopped or stuck.
	lockWait  = 5 * time.Second
	lockRetry = 10 * time.Millisecond

	// maxSetAside bounds the search for a free name; a second with that many damaged files is no accident.
	maxSetAside = 100
)

// ErrBusy says that another process kept the state locked.
var ErrBusy = errors.New("the state is locked by another process")

// DamagedError says that the state could not be understood and was set aside under the name
// SetAside; that is empty if even this failed, and Err says why.
type DamagedError struct {
	Path, SetAside string
	Err            error
}

func (e *DamagedError) Error() string {
	if e.SetAside == "" {
		return fmt.Sprintf("%s is damaged: %v", e.Path, e.Err)
	}
	return fmt.Sprintf("%s is damaged and was set aside as %s: %v", e.Path, filepath.Base(e.SetAside), e.Err)
}
func (e *DamagedError) Unwrap() error { return e.Err }

// NewerError says that a later release wrote the file. It is left alone.
type NewerError struct {
	Path    string
	Version int
}

func (e *NewerError) Error() string {
	return fmt.Sprintf("%s has version %d, this program knows %d", e.Path, e.Version, stateVersion)
}

// UnwritableError says that the state could not be written. What was there before is still there.
type UnwritableError struct {
	Path string
	Err  error
}

func (e *UnwritableError) Error() string {
	return fmt.Sprintf("cannot write %s: %v", e.Path, cause(e.Err))
}
func (e *UnwritableError) Unwrap() error { return e.Err }

// ModeError says that others may change, or for secrets read, a file or directory, or that it
// belongs to somebody else.
type ModeError struct {
	Path  string
	Mode  fs.FileMode // permission bits
	Owner int         // uid, or -1 when the mode is what is wrong
	Dir   bool
}

func (e *ModeError) Error() string {
	if e.Owner >= 0 {
		return fmt.Sprintf("%s belongs to user %d, not to user %d", e.Path, e.Owner, os.Geteuid())
	}
	return fmt.Sprintf("%s is open to other users (mode %#o)", e.Path, e.Mode)
}

// New returns the store whose file is path (Env.StateFile). Nothing is opened yet. A warning goes
// to log, which may be nil, when a file that others could read was made private.
func New(path string, log *slog.Logger) *Store {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Store{path: path, log: log}
}

// Path returns the path of the state's file, or else what says where it is.
func (s *Store) Path() string {
	if s.values != nil {
		return s.values.String()
	}
	return s.path
}

// Load returns the state; without a file it is empty. Errors: *DamagedError together with the
// empty state, to be said before going on; *NewerError; *ModeError when others could have written
// the file, whose pins can then not be trusted; otherwise the file cannot be read.
func (s *Store) Load() (State, error) {
	st, err := s.read()
	var d *DamagedError
	if !errors.As(err, &d) {
		return st, err
	}
	unlock, lockErr := s.lock()
	if lockErr != nil {
		return State{}, &DamagedError{s.Path(), "", errors.Join(d.Err, lockErr)}
	}
	defer unlock()
	st, err = s.read() // another process may have set it aside and begun anew
	if errors.As(err, &d) {
		return State{}, s.setAside(d)
	}
	return st, err
}

// Update is Keeper's. It makes the directory, private, if it is absent. Errors besides change's and Load's:
// *UnwritableError, *InvalidError for a state that is out of bounds, ErrBusy. After a
// *DamagedError nothing was changed, and the next Update begins with an empty state.
func (s *Store) Update(change func(*State) error) error {
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	st, err := s.read()
	if d, ok := errors.AsType[*DamagedError](err); ok {
		return s.setAside(d)
	}
	if err != nil {
		return err
	}
	if err := change(&st); err != nil {
		return err
	}
	b, err := encodeState(st)
	if err != nil {
		return fmt.Errorf("state not written: %w", err)
	}
	if err := s.write(b); err != nil {
		return &UnwritableError{s.Path(), err}
	}
	return nil
}

// read returns a *DamagedError for a file that is there and makes no sense.
func (s *Store) read() (State, error) { return s.readAs(s.makePrivate) }

// readAs is read, with what to do about a file that others can read.
func (s *Store) readAs(see func(f *os.File) error) (State, error) {
	if s.values != nil {
		return s.readValue()
	}
	f, err := open(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, nil
	}
	if err != nil {
		return State{}, fmt.Errorf("cannot read the state: %w", err)
	}
	defer f.Close()
	if err := trusted(filepath.Dir(s.path), nil); err != nil {
		return State{}, err
	}
	if err := trusted(s.path, f); err != nil {
		return State{}, err
	}
	if err := see(f); err != nil {
		return State{}, err
	}
	b, err := io.ReadAll(io.LimitReader(f, MaxStateSize+1))
	if err != nil {
		return State{}, fmt.Errorf("cannot read the state: %w", err)
	}
	return s.decode(b)
}

// makePrivate closes a file that others can only read. It has public keys, addresses and names: worth
// mending and saying, not worth refusing to work.
func (s *Store) makePrivate(f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		return fmt.Errorf("cannot read the state: %w", err)
	}
	if fi.Mode().Perm()&0o077 == 0 {
		return nil
	}
	if err := f.Chmod(0o600); err != nil {
		s.log.Warn("other users can read the state", "path", s.path, "mode", fmt.Sprintf("%#o", fi.Mode().Perm()), "err", err)
		return nil
	}
	s.log.Warn("other users could read the state; it is private now", "path", s.path, "mode", fmt.Sprintf("%#o", fi.Mode().Perm()))
	return nil
}

// setAside gives what is damaged a name that is free. The lock is held.
func (s *Store) setAside(d *DamagedError) error {
	stamp := ".damaged-" + time.Now().UTC().Format("20060102T150405Z")
	for i := range maxSetAside {
		suffix := stamp
		if i > 0 {
			suffix = fmt.Sprintf("%s-%d", stamp, i+1)
		}
		aside, err := s.rename(suffix)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return &DamagedError{s.Path(), "", errors.Join(d.Err, &UnwritableError{s.Path(), err})}
		}
		return &DamagedError{s.Path(), aside, d.Err}
	}
	return &DamagedError{s.Path(), "", errors.Join(d.Err, &UnwritableError{s.Path(), fs.ErrExist})}
}

// renameNew renames and fails with fs.ErrExist rather than replace. Only processes that hold the lock
// come here, so that on a file system without hard links looking first is enough.
func renameNew(from, to string) error {
	err := os.Link(from, to)
	if err == nil {
		return os.Remove(from)
	}
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	if _, err := os.Lstat(to); err == nil {
		return fs.ErrExist
	}
	return os.Rename(from, to)
}

// lock takes the lock file next to the state, which is never removed: a waiter would then hold the
// lock of a file that nobody else finds.
func (s *Store) lock() (unlock func(), err error) {
	dir := filepath.Dir(s.path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, &UnwritableError{s.path, err}
	}
	if err := trusted(dir, nil); err != nil {
		return nil, err
	}
	for end := time.Now().Add(lockWait); ; time.Sleep(lockRetry) {
		unlock, err := TryLock(s.path + ".lock")
		switch e, unwritable := errors.AsType[*UnwritableError](err); {
		case err == nil:
			return unlock, nil
		case unwritable:
			return nil, &UnwritableError{s.path, e.Err}
		case time.Now().After(end):
			return nil, fmt.Errorf("%w (%s.lock)", ErrBusy, s.path)
		}
	}
}

// TryLock takes an exclusive lock that dies with the process. The file is made where there is none, and
// stays: removing it would let two processes hold locks on two files of one name. Errors: unix.EWOULDBLOCK when
// another one has the lock, *UnwritableError.
func TryLock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &UnwritableError{path, err}
	}
	_ = f.Chmod(0o600) // as in writeNew
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			err = &UnwritableError{path, err}
		}
		return nil, err
	}
	return func() {
		// Closing alone would leave the lock to a child that is forked and has not begun its program yet.
		_ = unix.Flock(int(f.Fd()), unix.LOCK_UN)
		f.Close()
	}, nil
}

// WriteFile replaces the file path by a private one with content b. After a crash or a power failure there is the old
// one or the new one, whole. Error: *UnwritableError.
func WriteFile(path string, b []byte) error {
	if err := writeFile(path, b); err != nil {
		return &UnwritableError{path, err}
	}
	return nil
}

// WriteNew makes a private file with content b, which appears whole or not at all. While it is written it
// has a name of pattern (os.CreateTemp), which a process that is killed leaves. Errors: fs.ErrExist when
// there is a file already, *UnwritableError.
func WriteNew(path, pattern string, b []byte) error {
	switch err := writeNew(path, pattern, b); {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrExist):
		return err
	default:
		return &UnwritableError{path, err}
	}
}

func writeNew(path, pattern string, b []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, pattern) // O_EXCL, 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	err = f.Chmod(0o600) // also with a umask that takes rights from the owner
	if err == nil {
		_, err = f.Write(b)
	}
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	if err := renameNew(f.Name(), path); err != nil {
		return err
	}
	return SyncDir(dir)
}

// writeFile replaces path by a private file with content b: written aside in the same directory,
// synced, renamed, and the directory synced so that the new name survives a power failure.
func writeFile(path string, b []byte) error {
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(0o600))
	if err != nil {
		return err
	}
	defer f.Cleanup()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir has the names in a directory survive a power failure.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	// Some file systems cannot sync a directory; the rename is done by then.
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	return nil
}

// Errors of ReadFile about what is there.
var (
	ErrNotRegular = errors.New("not a regular file")
	ErrTooLarge   = errors.New("larger than")
)

// ReadFile reads a regular file of at most so many bytes. It waits for nobody at a named pipe. Errors:
// ErrNotRegular, ErrTooLarge, those of the file system.
func ReadFile(path string, most int64) ([]byte, error) {
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("%w %d bytes", ErrTooLarge, most)
	}
	return b, err
}

// open opens a regular file to read. O_NONBLOCK keeps a pipe of that name from holding the process.
func open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: path, Err: ErrNotRegular}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// trusted returns a *ModeError when anybody but this user and root may write path. f, if any, is
// path's open file, so that what is checked is what is read.
func trusted(path string, f *os.File) error { return private(path, f, 0o022) }

// private returns a *ModeError when path has a bit of forbidden or belongs to neither this user nor root.
func private(path string, f *os.File, forbidden fs.FileMode) error {
	var st unix.Stat_t
	var err error
	if f != nil {
		err = unix.Fstat(int(f.Fd()), &st)
	} else {
		err = unix.Stat(path, &st)
	}
	if err != nil {
		return &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	e := &ModeError{Path: path, Mode: fs.FileMode(st.Mode).Perm(), Owner: -1, Dir: st.Mode&unix.S_IFMT == unix.S_IFDIR}
	if uid := int(st.Uid); uid != os.Geteuid() && uid != 0 {
		e.Owner = uid
		return e
	}
	if e.Mode&forbidden != 0 {
		return e
	}
	return nil
}

// cause drops the operation and path that fs errors repeat.
func cause(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	if e, ok := errors.AsType[*os.LinkError](err); ok {
		return e.Err
	}
	return err
}
