// SPDX-License-Identifier: BSD-3-Clause

package wake

import (
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/wake/apns"
)

// Configured reads the key and returns the options that the settings say, for New, which checks the rest. Errors:
// *apns.KeyError, store.ErrNoHome.
func Configured(c store.Wake, env store.Env) (Options, error) {
	path, err := env.WakeKeyFile(c.Key)
	if err != nil {
		return Options{}, err
	}
	key, err := apns.LoadKey(path)
	if err != nil {
		return Options{}, err
	}
	return Options{Key: key, KeyID: c.KeyID, TeamID: c.TeamID, Endpoint: c.Endpoint, CAFile: c.CAFile}, nil
}

// TargetOf returns where pushes to a phone go, p being nil for a device token of the settings alone: the token that the
// phone has sent, else the settings'; topic and environment of the settings, else the phone's. The phone's own is
// told by Own. The error is apns.ErrNoToken; Push checks the rest.
func TargetOf(c store.Wake, p *store.Phone) (Target, error) {
	var said store.DeviceToken
	if p != nil {
		said = p.DeviceToken
	}
	t := Target{Token: said.Token, Topic: said.Topic, Environment: said.Environment}
	if t.Token == "" {
		t = Target{Token: c.DeviceToken, Environment: apns.Production}
	}
	if t.Token == "" {
		return Target{}, apns.ErrNoToken
	}
	if c.Topic != "" {
		t.Topic = c.Topic
	}
	if c.Environment != "" {
		t.Environment = c.Environment
	}
	return t, nil
}

// Own says whether t is all as the phone has sent it. Only then does apns.ErrTokenGone speak of the token that is
// stored, which is then to be forgotten (store.State.ForgetToken); else it may speak of the settings.
func (t Target) Own(p *store.Phone) bool {
	return p != nil && p.DeviceToken.Present() && t == Target{p.DeviceToken.Token, p.DeviceToken.Topic, p.DeviceToken.Environment}
}
