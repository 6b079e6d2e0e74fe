// SPDX-License-Identifier: BSD-3-Clause

package store

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

// Values is where the system keeps programs' values: the user defaults of macOS. Whoever uses it holds the state's lock.
type Values interface {
	String() string                      // where it is, for messages
	Get(key string) ([]byte, error)      // nil when there is none; an error when what is there is no data
	Set(key string, value []byte) error  // replaces
	Rename(from, to string) (fail error) // fs.ErrExist when to is taken
}

// UserDefaults gives the domain of a path that is none, but says that the state is in macOS's user defaults: Store.Path, and
// that of an error.
func UserDefaults(path string) (domain string, ok bool) {
	return strings.CutPrefix(path, "user defaults of ")
}

// stateKey has the whole state as agent.json has it, so that it is replaced at once.
const stateKey = "state"

// NewIn returns the store that keeps the state in values instead of the file path, next to which its lock is.
func NewIn(values Values, path string, log *slog.Logger) *Store {
	s := New(path, log)
	s.values = values
	return s
}

// Open returns the store of this user's state: in the user defaults where there are such, and HOME and XDG_STATE_HOME do not
// point elsewhere, else in a file. The error is ErrNoHome.
func Open(env Env, log *slog.Logger) (*Store, error) {
	path, err := env.StateFile()
	if err != nil {
		return nil, err
	}
	values, err := systemValues(env)
	s := NewIn(values, path, log)
	if err != nil {
		s.log.Warn("the state is kept in a file", "path", path, "reason", err)
	}
	return s, nil
}

func (s *Store) readValue() (State, error) {
	b, err := s.values.Get(stateKey)
	switch {
	case err != nil:
		return State{}, &DamagedError{Path: s.Path(), Err: err}
	case b == nil:
		return State{}, nil
	}
	return s.decode(b)
}

func (s *Store) decode(b []byte) (State, error) {
	st, err := decodeState(b)
	if v, ok := errors.AsType[errNewer](err); ok {
		return State{}, &NewerError{s.Path(), int(v)}
	}
	if err != nil {
		return State{}, &DamagedError{Path: s.Path(), Err: err}
	}
	return st, nil
}

// write replaces what is kept.
func (s *Store) write(b []byte) error {
	if s.values != nil {
		return s.values.Set(stateKey, b)
	}
	return writeFile(s.path, b)
}

// rename gives what is kept another name, and says it.
func (s *Store) rename(suffix string) (string, error) {
	if s.values != nil {
		return fmt.Sprintf("%s, %s%s", s.values, stateKey, suffix), s.values.Rename(stateKey, stateKey+suffix)
	}
	return s.path + suffix, renameNew(s.path, s.path+suffix)
}
