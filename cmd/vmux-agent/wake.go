// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"vmux.app/toolkit/internal/phone"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/wake"
	"vmux.app/toolkit/internal/wake/apns"
)

// waker pushes to phones with what vmux.toml and the key file say at that
// moment: a key that is gone ends waking and nothing else.
type waker struct {
	settings *settings
	log      *slog.Logger

	mu     sync.Mutex
	client *wake.Client // keeps its connection and its token for Apple
	made   wake.Options // of client
}

// wake implements phone.Options.Wake.
func (w *waker) wake(ctx context.Context, p store.Phone) error {
	c := w.settings.Wake()
	target, err := wake.TargetOf(c, &p)
	if errors.Is(err, apns.ErrNoToken) {
		return fmt.Errorf("%w: %w", phone.ErrNoWake, err)
	}
	client, err := w.current(c)
	if missing, ok := errors.AsType[*apns.KeyError](err); ok && missing.Problem == apns.KeyMissing {
		return fmt.Errorf("%w: %w", phone.ErrNoWake, err)
	}
	if err != nil {
		return err
	}
	_, err = client.Push(ctx, target, wake.Alert, time.Time{})
	if refused, ok := errors.AsType[*apns.RefusedError](err); ok && errors.Is(err, apns.ErrTokenGone) && target.Own(&p) &&
		(refused.Since.IsZero() || !p.DeviceToken.Updated.After(refused.Since)) {
		err = known{err, phone.ErrTokenGone}
	}
	return err
}

// current gives the client for what is configured now.
func (w *waker) current(c store.Wake) (*wake.Client, error) {
	o, err := wake.Configured(c, store.Env(os.Getenv))
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.client != nil && o.Key.Equal(w.made.Key) && o.KeyID == w.made.KeyID && o.TeamID == w.made.TeamID &&
		o.Endpoint == w.made.Endpoint && o.CAFile == w.made.CAFile {
		return w.client, nil
	}
	made := o
	o.Log = w.log
	client, err := wake.New(o)
	if err != nil {
		return nil, err
	}
	if w.client != nil {
		w.client.Close()
	}
	w.client, w.made = client, made
	return client, nil
}

func (w *waker) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.client != nil {
		w.client.Close()
	}
}
