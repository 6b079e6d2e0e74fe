// SPDX-License-Identifier: BSD-3-Clause

package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"vmux.app/toolkit/internal/wake/apns"
)

// Wake is about the push that wakes a phone. Each may be empty.
type Wake struct {
	Key         string // path of the push key, absolute; empty for Env.WakeKeyFiles
	KeyID       string
	TeamID      string
	DeviceToken string // for a phone that has sent none
	Topic       string // instead of what the phone says
	Environment string // apns.Production or apns.Sandbox, instead of what the phone says
	Endpoint    string // URL instead of Apple's
	CAFile      string // PEM file of who may certify Endpoint, absolute; empty for the system's
}

func wakeSettings() []setting {
	file := func(key string, field func(*Config) *string) setting {
		return setting{"wake." + key, fmt.Sprintf(`an absolute path, or one that begins with ~/, as in %s = "~/.ssh/vmux-apns.p8"`, key),
			func(c *Config, env Env, v string) error {
				path, err := env.Expand(v)
				if err == nil && !filepath.IsAbs(path) {
					err = errors.New("is not an absolute path")
				}
				*field(c) = path
				return err
			}}
	}
	text := func(key, want string, check func(string) error, field func(*Config) *string) setting {
		return setting{"wake." + key, want, func(c *Config, _ Env, v string) error {
			*field(c) = v
			return check(v)
		}}
	}
	return []setting{
		file("key", func(c *Config) *string { return &c.Wake.Key }),
		text("key-id", `the key's 10 capital letters and digits, as in key-id = "ABC123DEFG"`, apns.CheckID,
			func(c *Config) *string { return &c.Wake.KeyID }),
		text("team-id", `the team's 10 capital letters and digits, as in team-id = "DEF123GHIJ"`, apns.CheckID,
			func(c *Config) *string { return &c.Wake.TeamID }),
		text("device-token", fmt.Sprintf("1 to %d bytes in hexadecimal, as the phone's app shows them", apns.MaxToken), checkSecret(apns.CheckToken),
			func(c *Config) *string { return &c.Wake.DeviceToken }),
		text("topic", `the bundle id of the phone's app, as in topic = "com.example.app"`, apns.CheckTopic,
			func(c *Config) *string { return &c.Wake.Topic }),
		text("environment", `production or sandbox, as in environment = "production"`, apns.CheckEnvironment,
			func(c *Config) *string { return &c.Wake.Environment }),
		text("endpoint", `an https URL, as in endpoint = "https://push.example.com"`, apns.CheckEndpoint,
			func(c *Config) *string { return &c.Wake.Endpoint }),
		file("ca-file", func(c *Config) *string { return &c.Wake.CAFile }),
	}
}

// secretError is about a value that messages do not repeat whole.
type secretError struct{ error }

func checkSecret(check func(string) error) func(string) error {
	return func(v string) error {
		if err := check(v); err != nil {
			return secretError{err}
		}
		return nil
	}
}

// shown is value as far as messages may have it.
func shown(value string, err error) string {
	if _, ok := errors.AsType[secretError](err); ok {
		return apns.Short(value)
	}
	return value
}

// WakeKeyFiles returns where the push key is looked for when no setting names it, in this order:
// ~/.ssh/vmux-apns.p8, and apns-key.p8 in ConfigDir.
func (e Env) WakeKeyFiles() ([2]string, error) {
	ssh, err := under(".ssh", "vmux-apns.p8")(e.home())
	if err != nil {
		return [2]string{}, err
	}
	config, err := under("apns-key.p8")(e.ConfigDir())
	return [2]string{ssh, config}, err
}

// WakeKeyFile returns the path of the push key: set (Wake.Key), if there is one, else the first of WakeKeyFiles that
// exists, usable or not. Errors: *apns.KeyError when none does, ErrNoHome.
func (e Env) WakeKeyFile(set string) (string, error) {
	if set != "" {
		return set, nil
	}
	paths, err := e.WakeKeyFiles()
	if err != nil {
		return "", err
	}
	for _, p := range paths {
		if _, err := os.Lstat(p); err == nil {
			return p, nil
		}
	}
	return "", &apns.KeyError{Problem: apns.KeyMissing, Path: paths[0], Also: paths[1]}
}

// DeviceToken is where pushes to a phone go, as its app has said it. The zero value is none.
type DeviceToken struct {
	Token       string // hexadecimal, 1 to apns.MaxToken bytes
	Environment string // apns.Production or apns.Sandbox
	Topic       string // bundle id of the app
	Updated     time.Time

	unknown jsontext.Value
}

// Present says whether there is a token.
func (d DeviceToken) Present() bool { return d.Token != "" }

// ForgetToken forgets the device token of the phone with this pin if it is still token, and did not come after since,
// unless that is zero. It says whether it did.
func (s *State) ForgetToken(pin, token string, since time.Time) bool {
	p := s.Phone(pin)
	if p == nil || token == "" || p.DeviceToken.Token != token || !since.IsZero() && p.DeviceToken.Updated.After(since) {
		return false
	}
	p.DeviceToken = DeviceToken{}
	return true
}

type fileToken struct {
	Token       string         `json:"token"`
	Environment string         `json:"environment"`
	Topic       string         `json:"topic"`
	Updated     time.Time      `json:"updated"`
	Unknown     jsontext.Value `json:",embed"`
}

func (f *fileToken) decode() DeviceToken {
	if f == nil {
		return DeviceToken{}
	}
	return DeviceToken{f.Token, f.Environment, f.Topic, f.Updated, f.Unknown}
}

func (d DeviceToken) encode() *fileToken {
	if !d.Present() {
		return nil
	}
	return &fileToken{d.Token, d.Environment, d.Topic, d.Updated.UTC().Truncate(time.Second), d.unknown}
}

func (d DeviceToken) check() error {
	if !d.Present() {
		if d.Environment != "" || d.Topic != "" || !d.Updated.IsZero() {
			return &InvalidError{"token", "is empty"}
		}
		return nil
	}
	for _, f := range []struct {
		name  string
		value string
		check func(string) error
	}{{"token", d.Token, apns.CheckToken}, {"environment", d.Environment, apns.CheckEnvironment}, {"topic", d.Topic, apns.CheckTopic}} {
		if err := f.check(f.value); err != nil {
			return &InvalidError{f.name, err.Error()}
		}
	}
	if y := d.Updated.Year(); y < 1 || y > 9999 {
		return &InvalidError{"updated", "is out of range"} // RFC 3339 has four digits
	}
	return nil
}
