// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"time"

	"vmux.app/toolkit/internal/agent"
	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/control"
	"vmux.app/toolkit/internal/duration"
	"vmux.app/toolkit/internal/session"
	"vmux.app/toolkit/internal/store"
)

// firstCertificate has the running agent ask the phone for a session
// certificate, as vmux.toml says. The pairing stands whatever comes of it.
func firstCertificate(c *cli.Context, config store.Config, paired store.Phone) {
	if !config.Certificate.AfterPairing || len(paired.CAKey) == 0 {
		return
	}
	t := cli.From(c)
	params := control.CertificateParams{Reason: "the pairing has finished"}
	if _, state, err := cli.OpenState(c); err == nil && len(state.Phones) > 1 && len(paired.Keys) > 0 {
		params.Identity = paired.Keys[0].DisplayName // tells the phones apart
	}
	stop := t.Waiting("the owner to approve a session certificate on the phone", config.Deadline)
	ctx, cancel := context.WithTimeout(c.Context, config.Deadline+reloadTimeout)
	defer cancel()
	var info session.Info
	err := agent.Ask(ctx, config.Socket, control.Certificate, params, &info)
	stop()
	if err != nil {
		t.Warnf("no session certificate: %v; ask for one when you like: vmux-cert", err)
		return
	}
	t.Notef("session certificate %d, valid for %s", info.Serial, duration.Short(time.Until(info.ValidBefore)))
}
