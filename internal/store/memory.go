// SPDX-License-Identifier: BSD-3-Clause

package store

import (
	"fmt"
	"sync"
)

// Memory keeps the state for as long as the process lives. The zero value is empty and ready.
type Memory struct {
	mu   sync.Mutex
	data []byte // encoded, so that callers share no slices with it and the bounds are the file's
}

func (m *Memory) loadLocked() (State, error) {
	if m.data == nil {
		return State{}, nil
	}
	return decodeState(m.data)
}

// Load is Keeper's.
func (m *Memory) Load() (State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.loadLocked()
}

// Update is Keeper's; besides change's error it returns *InvalidError.
func (m *Memory) Update(change func(*State) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	st, err := m.loadLocked()
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
	m.data = b
	return nil
}
