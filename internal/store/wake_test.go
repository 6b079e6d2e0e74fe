// SPDX-License-Identifier: BSD-3-Clause

package store

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"vmux.app/toolkit/internal/wake/apns"
)

func TestWakeSettings(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "vmux.toml")
	write(t, path, `[wake]
key = "~/k.p8"
key-id = "ABC123DEFG"
team-id = "DEF123GHIJ"
device-token = "00aB"
topic = "app.file"
environment = "sandbox"
endpoint = "https://relay:8443/push"
ca-file = "/etc/ca.pem"
`, 0o600)
	want := Wake{"/home/u/k.p8", "ABC123DEFG", "DEF123GHIJ", "00aB", "app.file", "sandbox", "https://relay:8443/push", "/etc/ca.pem"}
	c, err := LoadConfig(path, true, env())
	if err != nil || c.Wake != want {
		t.Errorf("%+v, %v", c.Wake, err)
	}
	e := env("VMUX_WAKE_KEY", "/k2.p8", "VMUX_WAKE_KEY_ID", "BBBBBBBBBB", "VMUX_WAKE_TEAM_ID", "CCCCCCCCCC", "VMUX_WAKE_DEVICE_TOKEN", "ff",
		"VMUX_WAKE_TOPIC", "app.env", "VMUX_WAKE_ENVIRONMENT", "production", "VMUX_WAKE_ENDPOINT", "https://env", "VMUX_WAKE_CA_FILE", "~/ca")
	want = Wake{"/k2.p8", "BBBBBBBBBB", "CCCCCCCCCC", "ff", "app.env", "production", "https://env", "/home/u/ca"}
	if c, err := LoadConfig(path, true, e); err != nil || c.Wake != want {
		t.Errorf("%+v, %v", c.Wake, err)
	}
	write(t, path, "[wake]\n", 0o600)
	if c, err := LoadConfig(path, true, env()); err != nil || c.Wake != (Wake{}) {
		t.Errorf("an empty table: %+v, %v", c.Wake, err)
	}
}

// A device token does not get whole into a message, wherever it came from.
func TestWrongTokenIsNotRepeated(t *testing.T) {
	t.Parallel()
	const token = "0123456789abcdefg"
	path := filepath.Join(t.TempDir(), "vmux.toml")
	_, err := LoadConfig(path, false, env("VMUX_WAKE_DEVICE_TOKEN", token))
	var c Config
	for _, err := range []error{err, c.Set(env(), "wake.device-token", token, "--device-token")} {
		e, ok := errors.AsType[*ConfigError](err)
		if !ok || !strings.Contains(err.Error(), `"01234567…" is not hexadecimal`) || strings.Contains(err.Error()+e.Want, token[:9]) {
			t.Errorf("%v", err)
		}
	}
}

func TestWakeKeyFile(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	first, second := filepath.Join(home, ".ssh", "vmux-apns.p8"), filepath.Join(home, "config", "vmux", "apns-key.p8")
	e := env("HOME", home, "XDG_CONFIG_HOME", filepath.Join(home, "config"))
	_, err := e.WakeKeyFile("")
	if k, ok := errors.AsType[*apns.KeyError](err); !ok || k.Problem != apns.KeyMissing || k.Path != first || k.Also != second {
		t.Errorf("none: %v", err)
	}
	for _, want := range []string{second, first} {
		if err := os.MkdirAll(filepath.Dir(want), 0o700); err != nil {
			t.Fatal(err)
		}
		// One that cannot be used counts: it is said instead of another one being taken.
		if err := os.Symlink("nowhere", want); err != nil {
			t.Fatal(err)
		}
		if got, err := e.WakeKeyFile(""); got != want || err != nil {
			t.Errorf("%q, %v, not %q", got, err, want)
		}
	}
	if got, err := e.WakeKeyFile("/set"); got != "/set" || err != nil {
		t.Errorf("set: %q, %v", got, err)
	}
	if paths, err := env().WakeKeyFiles(); err != nil || paths != [2]string{"/home/u/.ssh/vmux-apns.p8", "/home/u/.config/vmux/apns-key.p8"} {
		t.Errorf("%q, %v", paths, err)
	}
	if _, err := env("HOME", "").WakeKeyFile(""); !errors.Is(err, ErrNoHome) {
		t.Errorf("without HOME: %v", err)
	}
}

// A token goes when it is the one that is gone, and not when the phone has sent one since.
func TestForgetToken(t *testing.T) {
	t.Parallel()
	at := somePhone().DeviceToken.Updated
	for name, c := range map[string]struct {
		pin, token string
		since      time.Time
		forgotten  bool
	}{
		"gone":           {pinA, "00aB", time.Time{}, true},
		"gone since":     {pinA, "00aB", at, true},
		"sent since":     {pinA, "00aB", at.Add(-time.Second), false},
		"another token":  {pinA, "00ac", time.Time{}, false},
		"another phone":  {pinB, "00aB", time.Time{}, false},
		"no token given": {pinA, "", time.Time{}, false},
	} {
		s := State{Phones: []Phone{somePhone()}}
		if got := s.ForgetToken(c.pin, c.token, c.since); got != c.forgotten || s.Phones[0].DeviceToken.Present() == c.forgotten {
			t.Errorf("%s: %t, %+v", name, got, s.Phones[0].DeviceToken)
		}
	}
	s := State{Phones: []Phone{{Pin: pinA}}}
	if s.ForgetToken(pinA, "", time.Time{}) {
		t.Error("forgot what there was not")
	}
}

// Without a token the file has no member for it; what a later release adds to one is kept.
func TestDeviceTokenFile(t *testing.T) {
	t.Parallel()
	s, path := newFile(t)
	p := somePhone()
	p.DeviceToken = DeviceToken{}
	if err := s.Update(func(s *State) error { s.Put(p); return nil }); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil || strings.Contains(string(b), "deviceToken") {
		t.Errorf("%s, %v", b, err)
	}
	if st, err := s.Load(); err != nil || !reflect.DeepEqual(st.Phones, []Phone{p}) {
		t.Errorf("%+v, %v", st, err)
	}
	with := strings.Replace(string(b), `"cachedKeys"`, `"deviceToken":{"token":"00","environment":"production","topic":"a","updated":"2026-01-02T03:04:05Z","more":[1]},"cachedKeys"`, 1)
	write(t, path, with, 0o600)
	if err := s.Update(func(s *State) error { s.Phones[0].Software = "x"; return nil }); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || !strings.Contains(string(b), `"more"`) {
		t.Errorf("%s, %v", b, err)
	}
	for _, bad := range []string{`"0"`, `""`, `"zz"`, `"` + strings.Repeat("0", 202) + `"`, `7`} {
		write(t, path, strings.Replace(with, `"token":"00"`, `"token":`+bad, 1), 0o600)
		if _, err := s.Load(); err == nil {
			t.Errorf("the token %s is let pass", bad)
		}
	}
}
