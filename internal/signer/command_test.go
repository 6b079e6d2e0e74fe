// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func command(t *testing.T, line string) *Command {
	t.Helper()
	c, err := NewCommand(line, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCommand(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]error{
		"exit 0":                       nil,
		"exit 1":                       ErrNotRecognized,
		"exit 2":                       ErrDenied,
		"exit 3":                       ErrNotRecognized,
		"exit 127":                     ErrNotRecognized,
		"kill -9 $$":                   ErrNotRecognized,
		"kill -15 $$":                  ErrNotRecognized,
		"cat >/dev/null":               nil,
		"exec 0<&-; exec 1>&- 2>&-":    nil,
		"exec 0<&-; exit 2":            ErrDenied,
		"yes | head -c 300000 >&2":     nil,
		"yes | head -c 300000":         nil,
		"cat >/dev/null; exec false":   ErrNotRecognized,
		"sleep 1000 & echo $! >$0.pid": nil, // which holds the pipes
	} {
		path := script(t, body)
		err := command(t, path).Approve(t.Context(), testPrompt("work"))
		if !errors.Is(err, want) || errors.Is(err, ErrDenied) && errors.Is(err, ErrNotRecognized) {
			t.Errorf("%s: %v, want %v", body, err, want)
		}
		if b, err := os.ReadFile(path + ".pid"); err == nil {
			var pid int
			fmt.Sscan(string(b), &pid)
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Error(err)
			}
		}
	}
}

// The program is looked for at the start. Its words are separated by blanks, and
// nothing is quoted or expanded.
func TestNewCommand(t *testing.T) {
	t.Parallel()
	out := filepath.Join(t.TempDir(), "out")
	path := script(t, `for a; do echo "$a"; done >`+out)
	if err := command(t, "  "+path+` a  'b	c' $HOME;id "d `).Approve(t.Context(), testPrompt("work")); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(out); err != nil || string(b) != "a\n'b\nc'\n$HOME;id\n\"d\n" {
		t.Errorf("%v: %q", err, b)
	}
	if c := command(t, "true"); !filepath.IsAbs(c.program) {
		t.Errorf("%s", c.program)
	}
	for _, line := range []string{"", " ", "/nonexistent", "no-such-program-here -x", t.TempDir()} {
		if _, err := NewCommand(line, nil); !errors.Is(err, ErrNoCommand) {
			t.Errorf("%q: %v", line, err)
		}
	}
}

// A program that cannot be started is neither a yes nor somebody else's finger.
func TestCommandGone(t *testing.T) {
	t.Parallel()
	path := script(t, "exit 0")
	c := command(t, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	err := c.Approve(t.Context(), testPrompt("work"))
	if err == nil || errors.Is(err, ErrNotRecognized) || errors.Is(err, ErrDenied) || !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "cannot run the program that approves, "+path) {
		t.Error(err)
	}
}

// The program gets the whole prompt, each half for what it is.
func TestCommandJSON(t *testing.T) {
	t.Parallel()
	said := func(p *Prompt) map[string]any {
		t.Helper()
		out := filepath.Join(t.TempDir(), "out")
		if err := command(t, script(t, "cat >"+out)).Approve(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(out)
		if err != nil || bytes.Count(b, []byte("\n")) != 1 || b[len(b)-1] != '\n' {
			t.Fatalf("%v: %q", err, b)
		}
		var got map[string]any
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		return got
	}
	wants := func(got, want map[string]any) {
		t.Helper()
		if !reflect.DeepEqual(got, want) {
			g, _ := json.MarshalIndent(got, "", " ")
			w, _ := json.MarshalIndent(want, "", " ")
			t.Errorf("%s\nwant\n%s", g, w)
		}
	}

	p := testPrompt("work")
	p.expires.Store(time.Date(2026, 11, 23, 21, 0, 5, 500, time.Local).UnixNano())
	p.Verified.DevicePin = "SHA256:pin"
	p.Verified.Hops = []string{"SHA256:hop"}
	known := Known{HostKey{"build.example.org", "SHA256:old", "2026-11-01", "2026-11-02"}, 1}
	p.Verified.Memory = &Memory{Other: []Known{known}, Names: []Known{known}, Elsewhere: []Known{known}}
	p.Claimed.Reason = "a\x1b[2J\xff\u202e<b>\n"
	p.Claimed.Forwarded = true
	entry := map[string]any{"name": "build.example.org", "fingerprint": "SHA256:old", "first": "2026-11-01", "last": "2026-11-02"}
	wants(said(p), map[string]any{
		"title": Title, "heading": p.Heading(), "expires": p.Expires().UTC().Format(time.RFC3339Nano),
		"verified": map[string]any{
			"device": "laptop", "devicePin": "SHA256:pin", "operation": "log in as root", "kind": "login", "user": "root",
			"hostKey": p.Verified.HostKey, "hostKeyType": "ssh-ed25519", "warning": "another host key than the one approved before",
			"known": []any{entry, entry}, "otherKeys": []any{entry}, "hops": []any{"SHA256:hop"},
			"keyLabel": "work", "keyFingerprint": p.Verified.KeyPrint,
		},
		"claimed": map[string]any{
			"hostNames": []any{"build.example.org"}, "forwarded": true, "workingDirectory": "/home/\x1b[2Jme", "reason": "a\x1b[2J\ufffd\u202e<b>\n",
			"processes": []any{map[string]any{"pid": 42.0, "executable": "/usr/bin/ssh"}, map[string]any{"pid": 41.0, "executable": "/usr/bin/git"}},
		},
	})

	p = &Prompt{Verified: Verified{Device: "laptop", Kind: kindLogin, Operation: "log in as me", User: "me", Unverified: "no host key", Namespace: "n"},
		Claimed: Claimed{HostKey: "SHA256:c", Hops: []string{"SHA256:h"}}}
	got := said(p)
	wants(got["verified"].(map[string]any), map[string]any{"device": "laptop", "devicePin": "", "operation": "log in as me", "kind": "login",
		"user": "me", "unverified": "no host key", "namespace": "n"})
	wants(got["claimed"].(map[string]any), map[string]any{"forwarded": false, "hostKey": "SHA256:c", "hops": []any{"SHA256:h"}})

	got = said(certificateFixture(t, nil))
	if got["title"] != CertificateTitle {
		t.Error(got["title"])
	}
	certificate := got["verified"].(map[string]any)["certificate"].(map[string]any)
	option := func(name, value string) any { return map[string]any{"name": name, "value": value} }
	wants(certificate, map[string]any{
		"serial": "1234567890123456789", "keyId": "vmux:anna@laptop:1234567890123456789", "principals": []any{"anna", "root"},
		"validSeconds": 28800.0, "latest": time.Date(2026, 12, 2, 18, 1, 5, 0, time.Local).UTC().Format(time.RFC3339),
		"criticalOptions": []any{option("force-command", `make "all"`), option("source-address", "192.0.2.0/24,2001:db8::1")},
		"extensions":      []any{option("permit-agent-forwarding", ""), option("permit-port-forwarding", ""), option("permit-pty", "")},
		"keyType":         "ECDSA P-256", "keyFingerprint": "SHA256:" + strings.Repeat("k", 43),
		"authorityType": "ECDSA P-256", "authorityFingerprint": "SHA256:" + strings.Repeat("c", 43),
	})
	if limits := got["claimed"].(map[string]any)["limits"]; !reflect.DeepEqual(limits, []any{"host deploy SHA256:" + strings.Repeat("d", 43), "10 signatures"}) {
		t.Errorf("%q", limits)
	}
}

// What the program says goes to the log, a line of it.
func TestCommandSays(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		`printf 'no \033[2Jfinger\nsecond' >&2; exit 1`:           `ended="exit status 1" stderr="no \\x1b[2Jfinger"`,
		`printf 'one'; printf 'half ' >&2; printf 'and half' >&2`: `ended="exit status 0" stderr="half and half"`,
		`head -c 5000 /dev/zero | tr '\0' z >&2`:                  `stderr=` + strings.Repeat("z", 200) + "\n",
		`kill -9 $$`:                                              `ended="signal: killed" stderr=""`,
	} {
		var log bytes.Buffer
		c, err := NewCommand(script(t, body), slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
		if err != nil {
			t.Fatal(err)
		}
		c.Approve(t.Context(), testPrompt("work"))
		if !strings.Contains(log.String(), want) || !strings.Contains(log.String(), "level=DEBUG") || strings.Contains(log.String(), "second") {
			t.Errorf("%s: %q, want %q", body, &log, want)
		}
	}
}

// The program ends with its request, with everything it started; meanwhile others
// wait their turn, and go when they are withdrawn.
func TestCommandKilled(t *testing.T) {
	t.Parallel()
	for _, cause := range []error{errUnpaired, errExpired} {
		pids := filepath.Join(t.TempDir(), "pids")
		if err := unix.Mkfifo(pids, 0o600); err != nil {
			t.Fatal(err)
		}
		c := command(t, script(t, "trap '' INT TERM; sleep 1000 & echo $! >"+pids+"; wait; exit 0"))
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		done := approving(ctx, c, testPrompt("one"))
		b, err := os.ReadFile(pids) // waits for the script
		if err != nil {
			t.Fatal(err)
		}
		second, cancelSecond := context.WithCancelCause(t.Context())
		queued := approving(second, c, testPrompt("two"))
		unanswered(t, queued, "out of turn")
		cancelSecond(errUnpaired)
		if err := <-queued; !errors.Is(err, errUnpaired) {
			t.Errorf("second: %v", err)
		}
		cancel(cause)
		if err := <-done; !errors.Is(err, cause) || errors.Is(err, ErrNotRecognized) {
			t.Errorf("first: %v", err)
		}
		var pid int
		fmt.Sscan(string(b), &pid)
		gone(t, pid)
		c.program = script(t, "exit 0")
		if err := c.Approve(t.Context(), testPrompt("three")); err != nil {
			t.Errorf("third: %v", err)
		}
	}
}

// gone waits until a process has ended.
func gone(t *testing.T, pid int) {
	for unix.Kill(pid, 0) == nil && state(pid) != "Z" {
		select {
		case <-t.Context().Done():
			return
		case <-time.After(time.Millisecond):
		}
	}
}

func TestCommandOneAtATime(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := command(t, script(t, "mkdir "+dir+"/one || exit 1; rmdir "+dir+"/one"))
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if err := c.Approve(t.Context(), testPrompt("x")); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}
