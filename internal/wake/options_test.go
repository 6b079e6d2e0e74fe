// SPDX-License-Identifier: BSD-3-Clause

package wake

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/wake/apns"
	"vmux.app/toolkit/internal/wake/apnstest"
)

func file(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// What is wrong is said before anything is sent, and not repeated.
func TestWrongOptions(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		option, problem string
		change          func(*Options, *Target)
	}{
		{"wake.key", "is not set", func(o *Options, _ *Target) { o.Key = nil }},
		{"wake.key-id", "is not set", func(o *Options, _ *Target) { o.KeyID = "" }},
		{"wake.key-id", "is not 10 capital letters and digits", func(o *Options, _ *Target) { o.KeyID = "abc123defg" }},
		{"wake.key-id", "is not 10 capital letters and digits", func(o *Options, _ *Target) { o.KeyID = "ABC123DEFGH" }},
		{"wake.team-id", "is not set", func(o *Options, _ *Target) { o.TeamID = "" }},
		{"wake.team-id", "is not 10 capital letters and digits", func(o *Options, _ *Target) { o.TeamID = "DEF123GH\nX" }},
		{"wake.endpoint", "does not begin with https://", func(o *Options, _ *Target) { o.Endpoint = "http://127.0.0.1:1" }},
		{"wake.endpoint", "has no host", func(o *Options, _ *Target) { o.Endpoint = "https://:443/x" }},
		{"wake.endpoint", "has more than a host, a port and a path", func(o *Options, _ *Target) { o.Endpoint = "https://me:secret@host" }},
		{"wake.endpoint", "has more than a host, a port and a path", func(o *Options, _ *Target) { o.Endpoint = "https://host/?x" }},
		{"wake.endpoint", "is no URL", func(o *Options, _ *Target) { o.Endpoint = "https://host\x00" }},
		{"wake.ca-file", "is for an endpoint only", func(o *Options, _ *Target) { o.Endpoint = "" }},
		{"wake.ca-file", "cannot be read: ", func(o *Options, _ *Target) { o.CAFile = "/none/ca.pem" }},
		{"wake.ca-file", ": not a regular file", func(o *Options, _ *Target) { o.CAFile = t.TempDir() }},
		{"wake.ca-file", ": not a regular file", func(o *Options, _ *Target) { o.CAFile = pipe }},
		{"wake.ca-file", " has no certificate", func(o *Options, _ *Target) { o.CAFile = file(t, "no PEM") }},
		{"wake.ca-file", " is larger than 1048576 bytes", func(o *Options, _ *Target) { o.CAFile = file(t, strings.Repeat("#", maxCAFile+1)) }},
		{"wake.device-token", "is not set", func(_ *Options, to *Target) { to.Token = "" }},
		{"wake.device-token", "is not hexadecimal", func(_ *Options, to *Target) { to.Token = device[1:] }},
		{"wake.device-token", "is not hexadecimal", func(_ *Options, to *Target) { to.Token = device + "/x" }},
		{"wake.device-token", "has more than 100 bytes", func(_ *Options, to *Target) { to.Token = strings.Repeat("0", 202) }},
		{"wake.topic", "is not set", func(_ *Options, to *Target) { to.Topic = "" }},
		{"wake.topic", "is no bundle id", func(_ *Options, to *Target) { to.Topic = "app.vmux\r\nx: y" }},
		{"wake.topic", "is no bundle id", func(_ *Options, to *Target) { to.Topic = strings.Repeat("x", 256) }},
		{"wake.environment", "is not set", func(_ *Options, to *Target) { to.Environment = "" }},
		{"wake.environment", "is neither production nor sandbox", func(_ *Options, to *Target) { to.Environment = "development" }},
	} {
		o, to := r.client.options, target
		c.change(&o, &to)
		client, err := New(o)
		if err == nil {
			var res Result
			res, err = client.Push(t.Context(), to, Alert, time.Time{})
			if res.Attempts != 0 {
				t.Errorf("%s %s: %+v", c.option, c.problem, res)
			}
			client.Close()
		}
		e, ok := errors.AsType[*apns.OptionError](err)
		if !ok || e.Option != c.option || !strings.Contains(e.Problem, c.problem) || e.Want == "" {
			t.Errorf("%s %s: %v", c.option, c.problem, err)
		}
	}
	if n := r.Connections(); n != 0 {
		t.Errorf("%d connections", n)
	}
}

// Nothing of the device token but its beginning, of the authorization and of the key is in errors and logs, whatever
// happens.
func TestNothingLeaks(t *testing.T) {
	t.Parallel()
	var said strings.Builder
	var secrets []string
	for _, answers := range [][]apnstest.Answer{
		nil, {{Status: 410, Reason: "Unregistered"}}, {{Status: 403, Reason: "InvalidProviderToken"}}, {{Break: true}}, {{Status: 400, Body: []byte(device)}},
		{{Status: 307, Header: http.Header{"Location": {"https://127.0.0.1:1/" + device}}}},
	} {
		r := newRig(t, nil)
		r.Answer(answers...)
		_, err := r.push(t, Alert)
		said.WriteString(r.log.String())
		if err != nil {
			said.WriteString(err.Error())
		}
		for _, p := range r.Pushes() {
			secrets = append(secrets, p.Bearer)
		}
		// And where nobody answers.
		o := r.client.options
		o.Endpoint = "https://127.0.0.1:1"
		c, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), firstDelay/2) // no time for a second attempt
		_, err = c.Push(ctx, target, Alert, time.Time{})
		cancel()
		if err == nil {
			t.Fatal("somebody answers")
		}
		c.Close()
		said.WriteString(err.Error() + r.log.String())
	}
	text := said.String()
	if !strings.Contains(text, device[:8]) || !strings.Contains(text, "127.0.0.1:1 cannot be reached") {
		t.Errorf("not the log and the errors: %s", text)
	}
	if strings.Contains(text, device[:9]) || strings.Contains(text, device[len(device)-9:]) {
		t.Errorf("the device token: %s", text)
	}
	for _, s := range secrets {
		for part := range strings.SplitSeq(s, ".") {
			if strings.Contains(text, part) {
				t.Errorf("the authorization: %s", text)
			}
		}
	}
}

// The settings come first, then what the phone has said.
func TestTarget(t *testing.T) {
	t.Parallel()
	said := &store.Phone{DeviceToken: store.DeviceToken{Token: "aa", Topic: "app.said", Environment: apns.Sandbox}}
	for name, c := range map[string]struct {
		settings store.Wake
		phone    *store.Phone
		want     Target
		own      bool
	}{
		"the phone's":            {store.Wake{}, said, Target{"aa", "app.said", "sandbox"}, true},
		"another token set":      {store.Wake{DeviceToken: "bb"}, said, Target{"aa", "app.said", "sandbox"}, true},
		"another topic set":      {store.Wake{Topic: "app.set"}, said, Target{"aa", "app.set", "sandbox"}, false},
		"another environment":    {store.Wake{Environment: "production"}, said, Target{"aa", "app.said", "production"}, false},
		"the same topic set":     {store.Wake{Topic: "app.said"}, said, Target{"aa", "app.said", "sandbox"}, true},
		"a phone that sent none": {store.Wake{DeviceToken: "bb", Topic: "app.set"}, &store.Phone{}, Target{"bb", "app.set", "production"}, false},
		"no phone":               {store.Wake{DeviceToken: "bb", Environment: "sandbox"}, nil, Target{"bb", "", "sandbox"}, false},
		"nothing":                {store.Wake{Topic: "app.set", Environment: "sandbox"}, nil, Target{}, false},
		"nothing from a phone":   {store.Wake{}, &store.Phone{}, Target{}, false},
	} {
		got, err := TargetOf(c.settings, c.phone)
		if got != c.want || errors.Is(err, apns.ErrNoToken) != (c.want.Token == "") || got.Own(c.phone) != c.own {
			t.Errorf("%s: %+v, %v, own %t", name, got, err, got.Own(c.phone))
		}
	}
}

func TestConfigured(t *testing.T) {
	t.Parallel()
	path := writeKey(t)
	home := t.TempDir()
	env := store.Env(func(name string) string { return map[string]string{"HOME": home}[name] })
	c := store.Wake{Key: path, KeyID: keyID, TeamID: teamID, Endpoint: "https://h", CAFile: "/ca"}
	o, err := Configured(c, env)
	if err != nil || o.Key.Path() != path || o.KeyID != keyID || o.TeamID != teamID || o.Endpoint != "https://h" || o.CAFile != "/ca" {
		t.Errorf("%+v, %v", o, err)
	}
	c.Key = ""
	_, err = Configured(c, env)
	if e, ok := errors.AsType[*apns.KeyError](err); !ok || e.Problem != apns.KeyMissing || e.Also == "" {
		t.Errorf("%v", err)
	}
	if err := os.MkdirAll(filepath.Join(home, ".ssh"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path, filepath.Join(home, ".ssh", "vmux-apns.p8")); err != nil {
		t.Fatal(err)
	}
	if o, err := Configured(c, env); err != nil || o.Key.Path() != filepath.Join(home, ".ssh", "vmux-apns.p8") {
		t.Errorf("%v", err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	_, err = Configured(c, env)
	if e, ok := errors.AsType[*apns.KeyError](err); !ok || e.Problem != apns.KeyOpen {
		t.Errorf("%v", err)
	}
}
