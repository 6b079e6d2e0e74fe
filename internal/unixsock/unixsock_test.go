// SPDX-License-Identifier: BSD-3-Clause

package unixsock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// shortDir is a directory whose sockets fit an address, which t.TempDir does not promise.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// quiet never looks at its file by itself: tests call check.
var quiet = Config{Recheck: time.Hour}

func listen(t *testing.T, c Config, path string) *Listener {
	t.Helper()
	l, err := c.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return l
}

// meet connects to path and answers both ends of the connection that l accepts.
func meet(t *testing.T, l net.Listener, path string) (client, server *net.UnixConn) {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.(*net.UnixConn), accepted(t, l)
}

func accepted(t *testing.T, l net.Listener) *net.UnixConn {
	t.Helper()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s.(*net.UnixConn)
}

func mode(t *testing.T, path string) fs.FileMode {
	t.Helper()
	fi, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Mode().Perm()
}

// deadSocket leaves a socket file that nobody listens on. No process may be forked meanwhile: it would listen
// until it is executed.
func deadSocket(t *testing.T, path string) {
	t.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	_ = ln.Close()
}

func TestListenServesAndCleansUp(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	path := filepath.Join(dir, "new", "s")
	l := listen(t, quiet, path)
	if got := mode(t, filepath.Dir(path)); got != 0o700 {
		t.Errorf("directory has mode %#o", got)
	}
	if got := mode(t, path); got != 0o600 {
		t.Errorf("socket has mode %#o", got)
	}
	if got := mode(t, path+".lock"); got != 0o600 {
		t.Errorf("lock file has mode %#o", got)
	}
	if b, err := os.ReadFile(path + ".lock"); err != nil || string(b) != strconv.Itoa(os.Getpid())+"\n" {
		t.Errorf("lock file: %q, %v", b, err)
	}
	if l.Addr().String() != path {
		t.Errorf("address is %s", l.Addr())
	}
	client, server := meet(t, l, path)
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if n, err := server.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Fatalf("read: %d, %v", n, err)
	}
	for range 2 {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after close: %v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("socket after close: %v", err)
	}
	if b, err := os.ReadFile(path + ".lock"); err != nil || len(b) != 0 {
		t.Errorf("lock file after close: %q, %v", b, err)
	}
	if _, err := client.Write([]byte("x")); err != nil {
		t.Errorf("close of the listener ended a connection: %v", err)
	}
	listen(t, quiet, path)
}

func TestCloseEndsAWaitingAccept(t *testing.T) {
	t.Parallel()
	l := listen(t, quiet, filepath.Join(shortDir(t), "s"))
	got := make(chan error)
	go func() {
		_, err := l.Accept()
		got <- err
	}()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept: %v", err)
	}
}

func TestSecondListenerIsRefusedAndTheFirstServesOn(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	l := listen(t, quiet, path)
	_, err := Listen(path)
	var inUse *InUseError
	if !errors.Is(err, ErrInUse) || !errors.As(err, &inUse) {
		t.Fatalf("got %v", err)
	}
	if inUse.PID != os.Getpid() || inUse.Path != path {
		t.Errorf("got %+v", inUse)
	}
	meet(t, l, path)
	if b, err := os.ReadFile(path + ".lock"); err != nil || string(b) != strconv.Itoa(os.Getpid())+"\n" {
		t.Errorf("lock file after the refusal: %q, %v", b, err)
	}
}

func TestPathLength(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	fits := filepath.Join(dir, strings.Repeat("x", MaxPath-len(dir)-1))
	if len(fits) != MaxPath {
		t.Fatal("test is wrong")
	}
	listen(t, quiet, fits)
	_, err := Listen(fits + "x")
	var long *PathTooLongError
	if !errors.As(err, &long) || long.Path != fits+"x" {
		t.Fatalf("got %v", err)
	}
	for _, bad := range []string{"", "a\x00b"} {
		if _, err := Listen(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	if _, err := Listen(filepath.Join(dir, "d", strings.Repeat("x", MaxPath))); err == nil {
		t.Error("long path is accepted")
	}
	if _, err := os.Lstat(filepath.Join(dir, "d")); err == nil {
		t.Error("a directory was made for a path that does not fit")
	}
}

func TestDirectoryMode(t *testing.T) {
	t.Parallel()
	for mode, ok := range map[fs.FileMode]bool{
		0o700: true, 0o755: true, 0o750: true, 0o711: true,
		0o720: false, 0o702: false, 0o775: false, 0o777: false, 0o777 | fs.ModeSticky: false,
	} {
		t.Run(fmt.Sprintf("%#o", mode), func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(shortDir(t), "d")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(dir, mode); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "s")
			if ok {
				listen(t, quiet, path)
				return
			}
			_, err := Listen(path)
			var de *DirError
			if !errors.As(err, &de) {
				t.Fatalf("got %v", err)
			}
			if de.Path != dir || de.Mode.Perm() != mode.Perm() || de.Owner != ownUID() {
				t.Errorf("got %+v", de)
			}
			if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
				t.Errorf("left behind: %v, %v", entries, err)
			}
		})
	}
}

func TestDirectoryOwner(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root can give a directory away")
	}
	dir := filepath.Join(shortDir(t), "d")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	_, err := Listen(filepath.Join(dir, "s"))
	var de *DirError
	if !errors.As(err, &de) || de.Owner != 65534 {
		t.Fatalf("got %v", err)
	}
	if !strings.Contains(err.Error(), "uid 65534") || !strings.Contains(err.Error(), "0700") || !strings.Contains(err.Error(), dir) {
		t.Errorf("message lacks path, mode or owner: %v", err)
	}
}

func TestDirectoryThatIsNone(t *testing.T) {
	t.Parallel()
	file := filepath.Join(shortDir(t), "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Listen(filepath.Join(file, "s"))
	var de *DirError
	if !errors.As(err, &de) || de.Mode.IsDir() {
		t.Fatalf("got %v", err)
	}
}

func TestOtherFilesAreNeverRemoved(t *testing.T) {
	t.Parallel()
	for name, make := range map[string]func(path string) error{
		"regular file": func(p string) error { return os.WriteFile(p, []byte("precious"), 0o600) },
		"directory":    func(p string) error { return os.Mkdir(p, 0o700) },
		"named pipe":   func(p string) error { return unix.Mkfifo(p, 0o600) },
		"dangling":     func(p string) error { return os.Symlink("nowhere", p) },
	} {
		for suffix, want := range map[string]string{"": "socket", lockSuffix: "lock file"} {
			if suffix == lockSuffix && name == "regular file" {
				continue // is a lock file
			}
			t.Run(name+" for "+want, func(t *testing.T) {
				t.Parallel()
				path := filepath.Join(shortDir(t), "s")
				if err := make(path + suffix); err != nil {
					t.Fatal(err)
				}
				before, err := os.Lstat(path + suffix)
				if err != nil {
					t.Fatal(err)
				}
				_, err = Listen(path)
				var o *ObstacleError
				if !errors.As(err, &o) || o.Path != path+suffix || o.Want != want {
					t.Fatalf("got %v", err)
				}
				after, err := os.Lstat(path + suffix)
				if err != nil || !os.SameFile(before, after) {
					t.Errorf("file was touched: %v", err)
				}
			})
		}
	}
}

func TestLiveForeignSocketIsNotReplaced(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	before, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Listen(path)
	var inUse *InUseError
	if !errors.As(err, &inUse) || !errors.Is(err, ErrInUse) {
		t.Fatalf("got %v", err)
	}
	if inUse.PID != os.Getpid() {
		t.Errorf("pid %d, want that of the listener", inUse.PID)
	}
	if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("socket was touched: %v", err)
	}
	// The lock has been given up again.
	_ = ln.Close()
	listen(t, quiet, path)
}

func TestForeignDatagramSocketIsNotReplaced(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := Listen(path); !errors.Is(err, ErrInUse) {
		t.Fatalf("got %v", err)
	}
}

func TestFullQueueIsAlive(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	fd, err := newSocket()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	full := false
	for range 10 {
		c, err := newSocket()
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(c)
		if err := unix.Connect(c, &unix.SockaddrUnix{Name: path}); err != nil {
			full = true
			break
		}
	}
	if !full {
		t.Fatal("queue does not fill")
	}
	if _, err := Listen(path); !errors.Is(err, ErrInUse) {
		t.Fatalf("got %v", err)
	}
}

func TestDeadSocketIsReplaced(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	deadSocket(t, path)
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	l := listen(t, quiet, path)
	if got := mode(t, path); got != 0o600 {
		t.Errorf("mode %#o", got)
	}
	meet(t, l, path)
}

func TestKilledProcessIsSucceeded(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	c := startChild(t, nil)
	c.want("ok", "listen %s", path)
	_, err := Listen(path)
	var inUse *InUseError
	if !errors.As(err, &inUse) || inUse.PID != c.cmd.Process.Pid {
		t.Fatalf("got %v, want in use by %d", err, c.cmd.Process.Pid)
	}
	c.kill()
	if _, err := os.Lstat(path); err != nil {
		t.Fatalf("the killed process left no socket: %v", err)
	}
	l := listen(t, quiet, path)
	meet(t, l, path)
}

func TestTwoProcessesRace(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	children := []*child{startChild(t, nil), startChild(t, nil)}
	for round := range 20 {
		if round%2 == 1 {
			deadSocket(t, path)
		}
		for _, c := range children {
			c.send("listen %s", path)
		}
		var winner *child
		for _, c := range children {
			switch got := c.answer(); got {
			case "ok":
				if winner != nil {
					t.Fatalf("round %d: both serve", round)
				}
				winner = c
			case "in use":
			default:
				t.Fatalf("round %d: %s", round, got)
			}
		}
		if winner == nil {
			t.Fatalf("round %d: nobody serves", round)
		}
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		_ = c.Close()
		winner.want("ok", "close")
	}
}

func TestManyListenersInOneProcessRace(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	deadSocket(t, path)
	const n = 16
	var wg sync.WaitGroup
	won := make(chan *Listener, n)
	start := make(chan struct{})
	for range n {
		wg.Go(func() {
			<-start
			l, err := quiet.Listen(path)
			switch {
			case err == nil:
				won <- l
			case !errors.Is(err, ErrInUse):
				t.Errorf("got %v", err)
			}
		})
	}
	close(start)
	wg.Wait()
	close(won)
	if len(won) != 1 {
		t.Errorf("%d serve", len(won))
	}
	for l := range won {
		_ = l.Close()
	}
}

func TestUmask(t *testing.T) {
	t.Parallel()
	for _, mask := range []string{"0", "22", "77", "777"} {
		t.Run(mask, func(t *testing.T) {
			t.Parallel()
			dir := shortDir(t)
			path := filepath.Join(dir, "d", "s")
			c := startChild(t, nil)
			c.want("ok", "umask %s", mask)
			c.want("ok", "listen %s", path)
			for name, want := range map[string]fs.FileMode{path: 0o600, path + lockSuffix: 0o600, filepath.Dir(path): 0o700} {
				if got := mode(t, name); got != want {
					t.Errorf("%s has mode %#o, want %#o", name, got, want)
				}
			}
			conn, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.Close()
		})
	}
}

// renameLink stands for the exclusive rename of the other system.
func renameLink(from, to string) error {
	if err := os.Link(from, to); err != nil {
		return err
	}
	return os.Remove(from)
}

func TestBindApart(t *testing.T) {
	t.Parallel()
	short := shortDir(t)
	deep := filepath.Join(short, strings.Repeat("d", MaxPath-len(short)-3))
	if err := os.Mkdir(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"fits": filepath.Join(short, "s"), "does not fit": filepath.Join(deep, "s")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bind := func() (os.FileInfo, int, error) {
				fd, err := newSocket()
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = unix.Close(fd) })
				fi, err := bindApart(fd, path, renameLink)
				return fi, fd, err
			}
			fi, _, err := bind()
			if err != nil {
				t.Fatal(err)
			}
			now, err := os.Lstat(path)
			if err != nil || !os.SameFile(fi, now) || now.Mode().Perm() != 0o600 {
				t.Errorf("got %v, %v", now, err)
			}
			c, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			_ = c.Close()
			if _, _, err := bind(); !errors.Is(err, fs.ErrExist) && !errors.Is(err, unix.EADDRINUSE) {
				t.Errorf("second bind: %v", err)
			}
			entries, err := os.ReadDir(filepath.Dir(path))
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if strings.HasPrefix(e.Name(), ".v") {
					t.Errorf("%s is left behind", e.Name())
				}
			}
		})
	}
}

func TestDeletedSocketIsMadeAgain(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	l := listen(t, quiet, path)
	// One more time than descriptors are kept, so that the bound is reached.
	for range maxServing + 1 {
		early, err := net.Dial("unix", path) // waits in the queue of the old descriptor
		if err != nil {
			t.Fatal(err)
		}
		defer early.Close()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		l.check()
		if got := mode(t, path); got != 0o600 {
			t.Fatalf("mode %#o", got)
		}
		late, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer late.Close()
		accepted(t, l)
		accepted(t, l)
	}
	if len(l.serving) != maxServing {
		t.Errorf("%d descriptors are kept", len(l.serving))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("socket that was made again survives close: %v", err)
	}
}

func TestRenamedSocketStillLeadsToUs(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	l := listen(t, quiet, path)
	if err := os.Rename(path, path+"2"); err != nil {
		t.Fatal(err)
	}
	l.check()
	meet(t, l, path)
	meet(t, l, path+"2")
}

func TestReplacedByDeadSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	l := listen(t, quiet, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	deadSocket(t, path)
	l.check()
	meet(t, l, path)
}

func TestLiveForeignSocketInOurPlaceStays(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	said := make(messages, 10)
	l := listen(t, Config{Recheck: time.Hour, Log: slog.New(said)}, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	foreign, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	before, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		l.check()
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("foreign socket was touched: %v", err)
	}
	if len(said) != 1 {
		t.Errorf("said %d times, want once", len(said))
	}
}

func TestOtherFileInOurPlaceStays(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	l := listen(t, quiet, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	l.check()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("file is gone: %q, %v", b, err)
	}
}

func TestDeletedLockFileIsMadeAgain(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	l := listen(t, quiet, path)
	if err := os.Remove(path + lockSuffix); err != nil {
		t.Fatal(err)
	}
	// The live socket keeps others out meanwhile.
	if _, err := Listen(path); !errors.Is(err, ErrInUse) {
		t.Fatalf("got %v", err)
	}
	l.check()
	if !holds(l.lock, path+lockSuffix) {
		t.Fatal("lock is not held")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); !errors.Is(err, ErrInUse) {
		t.Fatalf("got %v", err)
	}
}

func TestLockOnADeletedFileDoesNotCount(t *testing.T) {
	t.Parallel()
	name := filepath.Join(shortDir(t), "s.lock")
	f, err := openLock(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if ours, err := tryLock(f, name); ours || err != nil {
		t.Errorf("got %v, %v", ours, err)
	}
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if ours, err := tryLock(f, name); ours || err != nil {
		t.Errorf("got %v, %v", ours, err)
	}
}

func TestReleaseIsForSharedDescriptorsToo(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	f, err := acquire(path)
	if err != nil {
		t.Fatal(err)
	}
	shared, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(shared)
	if err := release(f); err != nil {
		t.Fatal(err)
	}
	g, err := acquire(path)
	if err != nil {
		t.Fatal(err)
	}
	_ = release(g)
}

func TestSuccessorWithTheLockIsLeftAlone(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	l := listen(t, quiet, path)
	// Socket and lock file both deleted, and somebody else is faster.
	if err := errors.Join(os.Remove(path+lockSuffix), os.Remove(path)); err != nil {
		t.Fatal(err)
	}
	successor := listen(t, quiet, path)
	l.check()
	meet(t, successor, path)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	meet(t, successor, path)
}

func TestDirectoryOpenedLaterIsRefused(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	path := filepath.Join(dir, "s")
	l := listen(t, quiet, path)
	if err := errors.Join(os.Remove(path), os.Chmod(dir, 0o777)); err != nil {
		t.Fatal(err)
	}
	l.check()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("socket in an open directory: %v", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l.check()
	meet(t, l, path)
}

// messages hands log messages to a test.
type messages chan string

func (m messages) Enabled(context.Context, slog.Level) bool { return true }
func (m messages) WithAttrs([]slog.Attr) slog.Handler       { return m }
func (m messages) WithGroup(string) slog.Handler            { return m }
func (m messages) Handle(_ context.Context, r slog.Record) error {
	select {
	case m <- r.Message:
	default:
	}
	return nil
}

func TestFileIsWatched(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	said := make(messages, 10)
	l := listen(t, Config{Recheck: time.Millisecond, Log: slog.New(said)}, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if got := <-said; got != "socket made again" {
		t.Fatalf("said %q", got)
	}
	meet(t, l, path)
}

func TestOwnPeer(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	_, server := meet(t, listen(t, quiet, path), path)
	p, err := PeerOf(server)
	if err != nil {
		t.Fatal(err)
	}
	if p.UID != ownUID() || p.PID != os.Getpid() || !p.Alive() {
		t.Errorf("got %+v", p)
	}
	if err := Allowed(p); err != nil {
		t.Error(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

func TestAllowed(t *testing.T) {
	t.Parallel()
	for uid, ok := range map[uint32]bool{0: true, ownUID(): true, ownUID() + 1: false, 65534: ownUID() == 65534} {
		if err := Allowed(Peer{UID: uid}); (err == nil) != ok || (err != nil && !errors.Is(err, ErrPeerUID)) {
			t.Errorf("uid %d: %v", uid, err)
		}
	}
	if (Peer{}).Alive() {
		t.Error("nobody is alive")
	}
}

func TestPeerThatHasEnded(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	l := listen(t, quiet, path)
	c := startChild(t, nil)
	c.want("ok", "connect %s", path)
	p, err := PeerOf(accepted(t, l))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.PID != c.cmd.Process.Pid || !p.Alive() {
		t.Fatalf("got %+v, want %d alive", p, c.cmd.Process.Pid)
	}
	c.want("ok", "connect %s", path)
	late := accepted(t, l)
	c.kill()
	if p.Alive() {
		t.Error("alive after its end")
	}
	q, err := PeerOf(late)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if q.Alive() {
		t.Error("alive although it had ended before it was asked about")
	}
}
