// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"vmux.app/toolkit/internal/audit"
	"vmux.app/toolkit/internal/keyfile"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/tpm"
)

// Names inside a home.
const (
	linkKeyName   = "link-key.pem"
	caName        = "ca"
	keysName      = "keys"
	stateName     = "state.json"
	lockName      = "lock"       // held while files change
	serveLockName = "serve.lock" // held while a process serves the home
	controlName   = "control.sock"
	// controlPathName is a file with the control socket's path when that of the
	// home is too long for a socket.
	controlPathName = "control.path"
)

// FirstKey is the label of the identity that Init makes.
const FirstKey = "default"

// lockWait is how long a command waits for another one that is changing the
// home. Changes take milliseconds; one that takes this long is stuck, a TPM's work, or a
// passphrase for many keys, each of which takes some tenths of a second.
const lockWait = 5 * time.Second

// Errors of a home that its owner can mend.
var (
	ErrNotHome     = errors.New("not a signer home")
	ErrHomeExists  = errors.New("a signer home exists already")
	ErrDirNotEmpty = errors.New("the directory is not empty")
	ErrNoPlace     = errors.New("a signer home cannot be made there")
	ErrHomeBusy    = errors.New("another command is changing the signer home")
	ErrServing     = errors.New("another vmux-signer serves this home")
	// ErrLinkKey and ErrAuthority are of keys without which the signer is another one.
	ErrLinkKey      = errors.New("the key by which devices know this signer cannot be used")
	ErrAuthority    = errors.New("the certificate authority's key cannot be used")
	ErrStateVersion = errors.New("the state was written by a newer vmux-signer")
)

// PermissionError says that others can reach what only the owner may.
type PermissionError struct {
	Path string
	Mode fs.FileMode // permission bits
	UID  uint32      // owner
	Want fs.FileMode // the widest that is accepted
}

func (e *PermissionError) Error() string {
	if int(e.UID) != os.Geteuid() {
		return fmt.Sprintf("%s belongs to user %d", e.Path, e.UID)
	}
	return fmt.Sprintf("%s is open to others (mode %04o)", e.Path, e.Mode)
}

// Home is a signer's directory. Its methods are safe for use by several
// processes at once.
type Home struct {
	dir  string
	tpm  string // device
	warn func(string)
	kill func()                     // in tests, else nil
	log  func() (*audit.Log, error) // opened when it is first needed

	patience time.Duration // controlPatience but in tests
}

func newHome(dir string, warn func(string)) *Home {
	h := &Home{dir: dir, tpm: tpm.Default, warn: warn, patience: controlPatience}
	h.log = sync.OnceValues(func() (*audit.Log, error) { return audit.Open(h.dir) })
	return h
}

// SetTPM names the device of the TPM that has keys, tpm.Default if not called.
func (h *Home) SetTPM(device string) { h.tpm = device }

// Dir is the home's absolute path.
func (h *Home) Dir() string { return h.dir }

func (h *Home) path(name string) string { return filepath.Join(h.dir, name) }

// Init makes a home with a link key, a certificate authority's key and one P-256
// identity named FirstKey, both encrypted unless the passphrase is empty. The
// home appears whole or not at all. Errors: ErrHomeExists, ErrDirNotEmpty, ErrNoPlace,
// *store.UnwritableError.
func Init(dir, name string, passphrase []byte) (*Home, error) {
	return initHome(dir, name, tpm.Default, func(comment string) ([]byte, error) { return keyfile.New(keyfile.ECDSA, comment, passphrase) })
}

// InitTPM is Init with both keys in the TPM at device. Errors beside those: the ones
// of tpm.Create.
func InitTPM(dir, name, device string, passphrase []byte) (*Home, error) {
	return initHome(dir, name, device, func(string) ([]byte, error) { return keyfile.NewInTPM(device, passphrase) })
}

// initHome makes a home with keys that create gives the files of.
func initHome(dir, name, device string, create func(comment string) ([]byte, error)) (*Home, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := CanInit(dir, name); err != nil {
		return nil, err
	}
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return nil, &store.UnwritableError{Path: dir, Err: err}
	}
	sweepUnmade(parent)
	made, release, err := makeUnmade(parent)
	if err != nil {
		return nil, &store.UnwritableError{Path: dir, Err: err}
	}
	defer os.RemoveAll(made) // nothing is left to remove once it has been renamed
	defer release()

	h := newHome(made, func(string) {})
	h.tpm = device
	if err := h.fill(name, create); err != nil {
		if e, ok := errors.AsType[*store.UnwritableError](err); ok {
			err = &store.UnwritableError{Path: dir, Err: e.Err} // made is gone when somebody looks
		}
		return nil, err
	}
	// rename(2) replaces an empty directory and nothing else; os.Rename refuses
	// even that.
	if err := unix.Rename(made, dir); err != nil {
		switch {
		case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EEXIST):
			return nil, fmt.Errorf("%w: %s", ErrHomeExists, dir)
		case errors.Is(err, unix.EBUSY), errors.Is(err, unix.ENOTDIR): // a file system of its own, something else meanwhile
			return nil, fmt.Errorf("%w: %s: %w", ErrNoPlace, dir, err)
		}
		return nil, &store.UnwritableError{Path: dir, Err: err}
	}
	if err := store.SyncDir(parent); err != nil {
		return nil, err
	}
	h.dir = dir
	h.recordDone(audit.Record{Event: recordHome, Outcome: "made", Reason: name})
	return h, nil
}

// fill makes the files of a new home.
func (h *Home) fill(name string, create func(comment string) ([]byte, error)) error {
	if err := os.Mkdir(h.path(keysName), 0o700); err != nil {
		return &store.UnwritableError{Path: h.path(keysName), Err: err}
	}
	if _, err := store.LinkKey(h.path(linkKeyName)); err != nil {
		return err
	}
	if _, err := h.writeNewKey(h.path(caName), func() ([]byte, error) { return create("vmux-signer CA " + name) }); err != nil {
		return err
	}
	if _, err := h.writeNewKey(h.keyPath(FirstKey), func() ([]byte, error) { return create(FirstKey) }); err != nil {
		return err
	}
	s := State{Version: stateVersion, Name: name, Keys: map[string]KeyState{FirstKey: {Enabled: true}}}
	return h.writeState(&s)
}

// unmadePrefix begins the name of a home that is being made, beside the one it will
// have.
const unmadePrefix = ".vmux-signer-"

// makeUnmade makes such a directory, and locks it for sweepUnmade. The lock goes along
// with a rename.
func makeUnmade(parent string) (dir string, release func(), err error) {
	for range 10 { // others that sweep in just that moment
		if dir, err = os.MkdirTemp(parent, unmadePrefix); err != nil {
			return "", nil, err
		}
		release, err = store.TryLock(filepath.Join(dir, lockName))
		if err == nil {
			return dir, release, nil
		}
		_ = os.RemoveAll(dir) // the error that matters is err
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EWOULDBLOCK) {
			break
		}
	}
	return "", nil, err
}

// sweepUnmade removes homes that killed processes have left half made. Those that
// are being made are locked. What cannot be removed bothers nobody but who looks.
func sweepUnmade(parent string) {
	entries, _ := os.ReadDir(parent)
	for _, e := range entries {
		dir := filepath.Join(parent, e.Name())
		if !strings.HasPrefix(e.Name(), unmadePrefix) || !e.IsDir() || checkPrivate(dir, 0o700) != nil {
			continue
		}
		f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR, 0)
		if err != nil {
			_ = unix.Rmdir(dir) // nothing is in it yet; one whose process lives is made again
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = os.RemoveAll(dir)
		}
		f.Close()
	}
}

// CanInit says whether a home can be made, as far as it is known before. Errors:
// ErrName, ErrHomeExists, ErrErasing, ErrDirNotEmpty, ErrNoPlace.
func CanInit(dir, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	switch {
	case isErasing(dir):
		return fmt.Errorf("%w: %s", ErrErasing, dir)
	case isHome(dir):
		return fmt.Errorf("%w: %s", ErrHomeExists, dir)
	}
	fi, err := os.Lstat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, unix.ENOTDIR): // on the way there
		return fmt.Errorf("%w: %s: %w", ErrNoPlace, dir, unix.ENOTDIR)
	case err != nil:
		return err
	case !fi.IsDir(): // a link to one is none: a home takes its place
		return fmt.Errorf("%w: %s is not a directory", ErrNoPlace, dir)
	}
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) > 0 {
		err = fmt.Errorf("%w: %s", ErrDirNotEmpty, dir)
	}
	return err
}

// Open opens an existing home. What its user must hear, such as a damaged file
// that was set aside, goes to warn. Errors: ErrNotHome, ErrErasing,
// *PermissionError.
func Open(dir string, warn func(string)) (*Home, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if isErasing(dir) {
		return nil, fmt.Errorf("%w: %s", ErrErasing, dir)
	}
	if !isHome(dir) {
		return nil, fmt.Errorf("%w: %s", ErrNotHome, dir)
	}
	if err := checkPrivate(dir, 0o700); err != nil {
		return nil, err
	}
	if warn == nil {
		warn = func(string) {}
	}
	h := newHome(dir, warn)
	if err := h.dropRekeying(); err != nil {
		h.warn(fmt.Sprintf("%s cannot be removed, keys that are not encrypted may be in it: %v", h.path(rekeyingName), err))
	}
	return h, h.finishRekey()
}

// isHome goes by the certificate authority's key, or, where that is lost, by the link
// key and the identities, which can still be revoked. No command removes these, and the
// state may be missing after damage.
func isHome(dir string) bool {
	is := func(name string, kind fs.FileMode) bool {
		fi, err := os.Stat(filepath.Join(dir, name))
		return err == nil && fi.Mode().Type() == kind
	}
	return is(caName, 0) || is(linkKeyName, 0) && is(keysName, fs.ModeDir)
}

// LinkKey is the private key of the signer's device certificate. Where it is gone, a
// new one is made and that is said. Error: ErrLinkKey.
func (h *Home) LinkKey() (*ecdsa.PrivateKey, error) {
	path := h.path(linkKeyName)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		h.warn(fmt.Sprintf("%s is missing, and a new one is made: every device has to pair again", path))
	}
	key, err := store.LinkKey(path)
	var wrong *store.KeyError
	if errors.As(err, &wrong) {
		err = fmt.Errorf("%w: %w", ErrLinkKey, err)
	}
	return key, err
}

// CA is the public key of the certificate authority.
func (h *Home) CA() (ssh.PublicKey, error) {
	f, err := h.authority()
	if err != nil {
		return nil, err
	}
	return f.Public, nil
}

// authority is the key of the certificate authority. Errors: ErrAuthority, those of
// readKey.
func (h *Home) authority() (*keyfile.File, error) {
	f, err := h.readKey(h.path(caName))
	if errors.Is(err, keyfile.ErrDamaged) || errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", ErrAuthority, err)
	}
	return f, err
}

// lock takes the lock under which files change.
func (h *Home) lock() (release func(), err error) { return h.lockWhile(context.Background()) }

// lockWhile is lock for who may not have as long as lockWait. Errors: ErrHomeBusy,
// ErrNotHome when the home was erased meanwhile.
func (h *Home) lockWhile(ctx context.Context) (release func(), err error) {
	release, err = h.lockFile(ctx)
	if release, err = h.unlessErased(release, err); err != nil {
		return nil, err
	}
	if err := h.sweepLocked(); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// sweepLocked removes what killed processes have left of files that they wrote:
// private keys may be in them, encrypted or not. The caller holds the home's lock.
func (h *Home) sweepLocked() error {
	for _, dir := range []string{h.dir, h.path(keysName)} {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // who needs it says so
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			if !isLeft(e.Name()) {
				continue
			}
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return &store.UnwritableError{Path: filepath.Join(dir, e.Name()), Err: err}
			}
		}
	}
	return nil
}

// isLeft says whether a name is that of something that is written under the home's
// lock only, and not whole.
func isLeft(name string) bool {
	if name == rekeyingName || strings.HasPrefix(name, newPrefix) {
		return true
	}
	m := temporary.FindStringSubmatch(name)
	return m != nil && (m[1] == stateName || m[1] == hostsName || m[1] == removedName)
}

// unlessErased gives a lock up that is that of no home any more.
func (h *Home) unlessErased(release func(), err error) (func(), error) {
	if err == nil && (!isHome(h.dir) || isErasing(h.dir)) {
		release()
		return nil, fmt.Errorf("%w: %s", ErrNotHome, h.dir)
	}
	return release, err
}

func (h *Home) lockFile(ctx context.Context) (release func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	for {
		release, err := store.TryLock(h.path(lockName))
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return release, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %s", ErrHomeBusy, h.dir)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// lockServing takes the lock of the one process that serves the home. Errors:
// ErrServing, ErrNotHome when the home was erased meanwhile.
func (h *Home) lockServing() (release func(), err error) {
	release, err = h.lockServingFile()
	return h.unlessErased(release, err)
}

func (h *Home) lockServingFile() (release func(), err error) {
	release, err = store.TryLock(h.path(serveLockName))
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("%w: %s", ErrServing, h.dir)
	}
	return release, err
}

// checkPrivate makes sure that path is ours and has no permission beyond want.
func checkPrivate(path string, want fs.FileMode) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	mode := fs.FileMode(st.Mode) & fs.ModePerm
	if int(st.Uid) != os.Geteuid() || mode&^want != 0 {
		return &PermissionError{Path: path, Mode: mode, UID: st.Uid, Want: want}
	}
	return nil
}

// HostName is the name that a signer has when none is given: the first label of
// the computer's.
func HostName() string {
	name, _ := os.Hostname()
	name, _, _ = strings.Cut(name, ".")
	if CheckName(name) != nil {
		return "signer"
	}
	return name
}
