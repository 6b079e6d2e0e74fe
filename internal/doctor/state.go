// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/transport"
)

// Room that the state needs. It is written to a second file, and renamed.
const (
	leastSpace = store.MaxStateSize
	goodSpace  = 16 * leastSpace
)

func stateChecks() []Check {
	return []Check{
		{ID: "state", Title: "the state file: readable, private, sound", Run: checkState},
		{ID: "disk", Title: "there is room for the state", Routine: true, Run: checkDisk},
		{ID: "link-key", Title: "the link key: private, sound, the one that the agent uses", Needs: []string{"state"}, Run: checkLinkKey},
	}
}

// state reads what is remembered.
func (e *Env) state(ctx context.Context) (store.State, error) {
	return e.facts.state.get(ctx, e, func(context.Context) (store.State, error) {
		state, err := store.Open(e.Getenv, nil)
		if err != nil {
			return store.State{}, err
		}
		return state.Inspect()
	})
}

func checkState(ctx context.Context, e *Env) Finding {
	var state store.State
	kept, err := store.Open(e.Getenv, nil)
	if err == nil {
		state, err = e.state(ctx)
	}
	if err != nil {
		return e.failure(err, "which phones are paired is not known, or others have a say in it")
	}
	// In the user defaults there is no file to look for.
	if _, err := os.Stat(kept.Path()); len(state.Phones) == 0 && errors.Is(err, fs.ErrNotExist) {
		return ok("nothing is remembered yet")
	}
	return ok("%s is private and sound", e.short(kept.Path()))
}

func checkDisk(_ context.Context, e *Env) Finding {
	const why = "pairings, keys and addresses of phones cannot be remembered"
	path, err := e.Getenv.StateFile()
	if err != nil {
		return e.failure(err, why)
	}
	dir := filepath.Dir(path)
	for { // what is there, the rest is made when it is needed
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	free, err := e.Space(dir)
	switch {
	case err != nil:
		return e.failure(&store.UnwritableError{Path: path, Err: err}, why)
	case free < leastSpace:
		return e.failure(&store.UnwritableError{Path: path, Err: fmt.Errorf("%s left: %w", bytesOf(free), syscall.ENOSPC)}, why)
	case free < goodSpace:
		return e.warning(&store.UnwritableError{Path: path, Err: fmt.Errorf("soon, %s left: %w", bytesOf(free), syscall.ENOSPC)}, why)
	}
	return ok("%s left in %s", bytesOf(free), e.short(dir))
}

// space says how many bytes this user may still write in a directory. The error is why it cannot write there at all.
func space(dir string) (uint64, error) {
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return 0, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return st.Bavail * uint64(st.Bsize), nil
}

func bytesOf(n uint64) string {
	const unit = 1024
	for _, u := range []string{"B", "KiB", "MiB", "GiB"} {
		if n < 10*unit {
			return fmt.Sprintf("%d %s", n, u)
		}
		n /= unit
	}
	return fmt.Sprintf("%d TiB", n)
}

// device is the link identity of this device.
func (e *Env) device(ctx context.Context) (*transport.Identity, error) {
	return e.facts.device.get(ctx, e, func(context.Context) (*transport.Identity, error) {
		path, err := e.Getenv.LinkKeyFile()
		if err != nil {
			return nil, err
		}
		key, err := store.InspectLinkKey(path)
		if err != nil {
			return nil, err
		}
		return transport.NewIdentity(key)
	})
}

func checkLinkKey(ctx context.Context, e *Env) Finding {
	id, err := e.device(ctx)
	s, serr := e.status(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		state, _ := e.state(ctx)
		if len(state.Phones) == 0 && serr != nil {
			return ok("none yet: the agent makes it when it starts")
		}
		path, _ := e.Getenv.LinkKeyFile()
		return e.failure(&store.KeyError{Path: path, Err: fs.ErrNotExist}, "phones know this device by it; a new one is a stranger to them")
	}
	if err != nil {
		return e.failure(err, "phones know this device by it, and who has a copy can ask them in its name")
	}
	if serr == nil && s.Device.Pin != "" && s.Device.Pin != id.Pin().String() {
		return e.failure(&KeyMismatchError{id.Pin().String(), s.Device.Pin, s.PID}, "when the agent starts again, phones may take it for a stranger")
	}
	return ok("%s", id.Pin())
}
