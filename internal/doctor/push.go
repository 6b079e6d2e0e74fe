// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"vmux.app/toolkit/internal/safetext"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/wake"
	"vmux.app/toolkit/internal/wake/apns"
)

func pushChecks() []Check {
	return []Check{
		{ID: "push-key", Title: "the push key: private, P-256, its ids set", Run: checkPushKey},
		{ID: "push-token", Title: "where phones are pushed to is known", Needs: []string{"state", "push-key"}, Run: checkPushToken},
		{ID: "push-endpoint", Title: "the push service can be reached", Needs: []string{"push-key"}, Asked: true, Run: checkPushEndpoint},
	}
}

// notWoken is what a set-up is like in which pushing does not work.
const notWoken = "a phone that sleeps is not woken; the owner must open its app"

// pusher gives what pushes are sent with.
func (e *Env) pusher() (*wake.Client, error) {
	o, err := wake.Configured(e.Config.Wake, e.Getenv)
	if err != nil {
		return nil, err
	}
	o.Dial = e.DialPush
	return wake.New(o)
}

// noPush says whether pusher's error means that nobody has set up a push.
func (e *Env) noPush(err error) bool {
	missing, isKey := errors.AsType[*apns.KeyError](err)
	return isKey && missing.Problem == apns.KeyMissing && e.Config.Wake == (store.Wake{})
}

func checkPushKey(ctx context.Context, e *Env) Finding {
	c, err := e.pusher()
	if e.noPush(err) {
		return ok("no push is set up: sleeping phones are not woken")
	}
	if err != nil {
		return e.failure(err, notWoken)
	}
	defer c.Close()
	return ok("private, P-256, key id %s of team %s", e.Config.Wake.KeyID, e.Config.Wake.TeamID)
}

func checkPushToken(ctx context.Context, e *Env) Finding {
	if c, err := e.pusher(); e.noPush(err) {
		return ok("no push is set up")
	} else if err == nil {
		c.Close()
	}
	s, err := e.state(ctx)
	if err != nil {
		return e.failure(err, notWoken)
	}
	var known, unknown []string
	for i := range s.Phones {
		p := &s.Phones[i]
		name := safetext.Line(p.Name, store.MaxName)
		to, err := wake.TargetOf(e.Config.Wake, p)
		switch {
		case err != nil:
			unknown = append(unknown, name)
			continue
		case p.DeviceToken.Present() && to.Environment != p.DeviceToken.Environment:
			return e.warning(&PushMismatchError{name, "environment", to.Environment, p.DeviceToken.Environment}, "the push service refuses a device token of another environment")
		case p.DeviceToken.Present() && to.Topic != p.DeviceToken.Topic:
			return e.warning(&PushMismatchError{name, "topic", to.Topic, p.DeviceToken.Topic}, "the push service refuses a device token of another app")
		}
		since := ""
		if p.DeviceToken.Present() {
			since = ", of " + p.DeviceToken.Updated.Local().Format(time.DateOnly)
		}
		known = append(known, fmt.Sprintf("%s (%s%s)", name, to.Environment, since))
	}
	switch {
	case len(unknown) > 0:
		return e.warning(fmt.Errorf("%s: %w", strings.Join(unknown, ", "), apns.ErrNoToken), notWoken)
	case len(known) == 0:
		return ok("no phone is paired")
	}
	return ok("%s", strings.Join(known, ", "))
}

// PushMismatchError says that vmux.toml says otherwise than a phone.
type PushMismatchError struct{ Phone, Setting, Configured, Said string }

func (e *PushMismatchError) Error() string {
	return fmt.Sprintf("wake.%s is %s, %s says %s", e.Setting, e.Configured, e.Phone, e.Said)
}

func checkPushEndpoint(ctx context.Context, e *Env) Finding {
	c, err := e.pusher()
	if err != nil {
		return e.failure(err, notWoken)
	}
	defer c.Close()
	environments := map[string]bool{}
	if s, err := e.state(ctx); err == nil {
		for i := range s.Phones {
			if to, err := wake.TargetOf(e.Config.Wake, &s.Phones[i]); err == nil {
				environments[to.Environment] = true
			}
		}
	}
	var hosts []string
	for _, environment := range []string{apns.Production, apns.Sandbox} {
		if !environments[environment] && (len(environments) > 0 || environment == apns.Sandbox) {
			continue
		}
		start := time.Now()
		host, err := c.Reach(ctx, environment)
		if err != nil {
			return e.failure(err, notWoken)
		}
		hosts = append(hosts, fmt.Sprintf("%s in %d ms", host, time.Since(start).Milliseconds()))
	}
	return ok("%s", strings.Join(hosts, ", "))
}
