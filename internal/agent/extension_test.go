// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/crypto/cryptobyte"
	xagent "golang.org/x/crypto/ssh/agent"
)

// serves adds extensions, and has every client taken for a command of ours or for none.
func serves(ours bool, extensions map[string]Extension) func(*Server) {
	return func(s *Server) {
		s.extensions, s.names = extensions, extensionNames(extensions)
		s.proc.ours = func(int) bool { return ours }
	}
}

func TestQuery(t *testing.T) {
	t.Parallel()
	r := newRig(t, serves(false, map[string]Extension{"status": nil, "reload": nil}))
	answer, err := r.client().Extension("query", nil)
	if err != nil {
		t.Fatal(err)
	}
	if answer[0] != msgExtensionResponse {
		t.Fatalf("answer %d", answer[0])
	}
	var names []string
	rest := cryptobyte.String(answer[1:])
	for !rest.Empty() {
		var name []byte
		if !readString(&rest, &name) {
			t.Fatalf("malformed: %x", answer)
		}
		names = append(names, string(name))
	}
	if want := []string{"query", "query", "session-bind@openssh.com", "reload@vmux.app", "status@vmux.app"}; !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
}

func TestUnknownExtensions(t *testing.T) {
	t.Parallel()
	r := newRig(t, serves(true, nil))
	client := r.client()
	for _, name := range []string{"", "unknown@example.com", "status@vmux.app", "@vmux.app", "Query", "query@vmux.app"} {
		if _, err := client.Extension(name, []byte("x")); !errors.Is(err, xagent.ErrExtensionUnsupported) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if got := r.dial().call(msgExtension, 0, 0, 0, 9)[0]; got != msgFailure {
		t.Errorf("malformed: %d", got)
	}
	if _, err := client.List(); err != nil {
		t.Errorf("list afterwards: %v", err)
	}
}

type status struct {
	Keys int    `json:"keys"`
	Echo string `json:"echo"`
}

func TestAsk(t *testing.T) {
	t.Parallel()
	r := newRig(t, serves(true, map[string]Extension{
		"status": func(_ context.Context, _ Peer, params []byte) (any, error) { return status{2, string(params)}, nil },
		"reload": func(context.Context, Peer, []byte) (any, error) { return nil, nil },
		"broken": func(context.Context, Peer, []byte) (any, error) { return nil, errors.New("line 3: unknown key \xff") },
		"large":  func(context.Context, Peer, []byte) (any, error) { return make([]byte, maxFrame), nil },
		"wait": func(ctx context.Context, _ Peer, _ []byte) (any, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
	}))
	ctx := t.Context()
	var got status
	if err := Ask(ctx, r.socket, "status", map[string]int{"a": 1}, &got); err != nil || got != (status{2, `{"a":1}`}) {
		t.Errorf("status: %+v, %v", got, err)
	}
	if err := Ask(ctx, r.socket, "status", nil, &got); err != nil || got != (status{2, ""}) {
		t.Errorf("status: %+v, %v", got, err)
	}
	if err := Ask(ctx, r.socket, "reload", nil, nil); err != nil {
		t.Errorf("reload: %v", err)
	}
	if err := Ask(ctx, r.socket, "reload", nil, &got); !errors.Is(err, ErrNotServed) {
		t.Errorf("reload with a result: %v", err)
	}
	var failed *AnswerError
	if err := Ask(ctx, r.socket, "broken", nil, nil); !errors.As(err, &failed) || failed.Message != "line 3: unknown key \ufffd" {
		t.Errorf("broken: %v", err)
	}
	for _, name := range []string{"large", "unknown"} {
		if err := Ask(ctx, r.socket, name, nil, nil); !errors.Is(err, ErrNotServed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	impatient, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- Ask(impatient, r.socket, "wait", nil, nil) }()
	cancel()
	if err := await(t, done); !errors.Is(err, context.Canceled) {
		t.Errorf("wait: %v", err)
	}
}

func TestAskWithoutAgent(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := Ask(t.Context(), filepath.Join(dir, "none"), "status", nil, nil); !errors.Is(err, ErrNotRunning) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no socket: %v", err)
	}
	dead := filepath.Join(dir, "dead")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if err := Ask(t.Context(), dead, "status", nil, nil); !errors.Is(err, ErrNotRunning) {
		t.Errorf("dead socket: %v", err)
	}
}

// TestThreat_N03_OwnRequests: vmux's own requests are for vmux's commands on this machine.
func TestThreat_N03_OwnRequests(t *testing.T) {
	t.Parallel()
	host := newEd25519(t)
	request := appendString([]byte{msgExtension}, "status@vmux.app")
	for _, tt := range []struct {
		name   string
		ours   bool
		before func(raw)
		want   byte
	}{
		{"ours", true, func(raw) {}, msgExtensionResponse},
		{"foreign program", false, func(raw) {}, msgFailure},
		{"bound", true, func(c raw) { c.bind(bindOf(t, host, sidA, false)) }, msgFailure},
		{"forwarded", true, func(c raw) { c.bind(bindOf(t, host, sidA, true)) }, msgFailure},
		{"failed bind", true, func(c raw) { c.call(append(appendString([]byte{msgExtension}, extSessionBind), 1)...) }, msgFailure},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			called := false
			r := newRig(t, serves(tt.ours, map[string]Extension{
				"status": func(context.Context, Peer, []byte) (any, error) { called = true; return "fine", nil },
			}))
			c := r.dial()
			tt.before(c)
			if got := c.call(request...)[0]; got != tt.want {
				t.Errorf("answer %d, want %d", got, tt.want)
			}
			r.stop()
			if want := tt.want == msgExtensionResponse; called != want {
				t.Errorf("served: %v", called)
			}
		})
	}
}

// TestOwnProcess: the real answers about this test, which is a client of itself.
func TestOwnProcess(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		self string
		want error
	}{{self, nil}, {"", ErrNotServed}, {"/nonexistent/vmux-agent", ErrNotServed}} {
		r := newRig(t, func(s *Server) {
			serves(true, map[string]Extension{"reload": func(context.Context, Peer, []byte) (any, error) { return nil, nil }})(s)
			s.proc = systemProcesses(tt.self)
		})
		if err := Ask(t.Context(), r.socket, "reload", nil, nil); !errors.Is(err, tt.want) {
			t.Errorf("%q: %v, want %v", tt.self, err, tt.want)
		}
		if _, err := r.client().Sign(r.signer.Keys(nil)[0].Public, sshsigData("file")); err != nil {
			t.Fatal(err)
		}
		peer := r.signer.requests()[0].Peer
		if peer.PID != os.Getpid() || int(peer.UID) != os.Geteuid() {
			t.Errorf("peer is %d, %d", peer.PID, peer.UID)
		}
	}
	if _, err := (Peer{}).Chain(); !errors.Is(err, ErrPeerGone) {
		t.Errorf("unknown peer: %v", err)
	}
}

// What a request made lasts as long as its connection, and an error keeps its kind.
func TestClient(t *testing.T) {
	t.Parallel()
	ended := make(chan struct{})
	r := newRig(t, func(s *Server) {
		serves(true, map[string]Extension{
			"hold": func(ctx context.Context, p Peer, _ []byte) (any, error) {
				context.AfterFunc(ctx, func() { close(ended) })
				return p.PID, nil
			},
			"deny": func(context.Context, Peer, []byte) (any, error) { return nil, ErrDenied },
		})(s)
		s.kind = func(err error) string {
			if errors.Is(err, ErrDenied) {
				return "denied"
			}
			return ""
		}
	})
	c, err := Dial(t.Context(), r.socket)
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if err := c.Ask(t.Context(), "hold", nil, &pid); err != nil || pid != os.Getpid() {
		t.Errorf("hold: %d, %v", pid, err)
	}
	var failed *AnswerError
	if err := c.Ask(t.Context(), "deny", nil, nil); !errors.As(err, &failed) || failed.Kind != "denied" {
		t.Errorf("deny: %v", err)
	}
	select {
	case <-ended:
		t.Error("what was made for the connection ended before it")
	default:
	}
	c.Close()
	await(t, ended)
}
