// SPDX-License-Identifier: BSD-3-Clause

package unixsock

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// childEnv makes the test binary play another process: it reads commands, one a line, and answers each with
// one line. It ends with its standard input.
const childEnv = "UNIXSOCK_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(childMain())
	}
	os.Exit(m.Run())
}

func childMain() int {
	var listener *Listener
	var held []io.Closer
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		verb, arg, _ := strings.Cut(in.Text(), " ")
		switch verb {
		case "umask":
			mask, _ := strconv.ParseInt(arg, 8, 32)
			syscall.Umask(int(mask))
			fmt.Println("ok")
		case "listen":
			l, err := Listen(arg)
			if err == nil {
				listener = l
				go echo(l)
			}
			fmt.Println(outcome(err))
		case "close":
			fmt.Println(outcome(listener.Close()))
		case "connect":
			c, err := net.Dial("unix", arg)
			if err == nil {
				held = append(held, c)
			}
			fmt.Println(outcome(err))
		default:
			fmt.Println(childSpecial(verb, arg))
		}
	}
	for _, c := range held {
		c.Close()
	}
	return 0
}

func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

func outcome(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, ErrInUse):
		return "in use"
	case errors.Is(err, os.ErrPermission):
		return "permission denied"
	default:
		return "error: " + err.Error()
	}
}

type child struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// startChild runs the test binary as a child; prepare may change how.
func startChild(t *testing.T, prepare func(*exec.Cmd)) *child {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childEnv+"=1", "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	if prepare != nil {
		prepare(cmd)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{t: t, cmd: cmd, in: in, out: bufio.NewReader(out)}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	return c
}

func (c *child) send(format string, args ...any) {
	c.t.Helper()
	if _, err := fmt.Fprintf(c.in, format+"\n", args...); err != nil {
		c.t.Fatal(err)
	}
}

func (c *child) answer() string {
	c.t.Helper()
	s, err := c.out.ReadString('\n')
	if err != nil {
		c.t.Fatalf("child: %v", err)
	}
	return strings.TrimSuffix(s, "\n")
}

func (c *child) do(format string, args ...any) string {
	c.t.Helper()
	c.send(format, args...)
	return c.answer()
}

// want fails the test when the child answers something else.
func (c *child) want(want, format string, args ...any) {
	c.t.Helper()
	if got := c.do(format, args...); got != want {
		c.t.Fatalf("child: %s: got %q, want %q", fmt.Sprintf(format, args...), got, want)
	}
}

// kill ends the child as kill -9 does and waits for its end.
func (c *child) kill() {
	c.t.Helper()
	if err := c.cmd.Process.Kill(); err != nil {
		c.t.Fatal(err)
	}
	_ = c.cmd.Wait()
}
