// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"errors"
	"fmt"
	"io"

	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/safetext"
	"vmux.app/toolkit/internal/signer"
)

// maxState bounds the line that names the connected devices, in characters.
const maxState = 8000

// showStatus prints how the signer is. One that does not run is Offline, which is
// an answer.
func showStatus(c *cli.Context) error {
	h, err := openHome(c)
	if err != nil {
		return err
	}
	st, err := h.Status(c.Context)
	if errors.Is(err, signer.ErrNotRunning) {
		s, err := h.Read()
		if err != nil {
			return err
		}
		st = signer.Status{State: signer.Offline, Devices: []string{}, Locked: s.Locked(), Failures: s.Failures, AppLock: "off"}
	} else if err != nil {
		return err
	}
	cli.From(c).Result(st, func(w io.Writer) {
		fmt.Fprintln(w, safetext.Line(st.State, maxState))
		if st.Address != "" {
			fmt.Fprintf(w, "listening on %s\n", st.Address)
		}
		switch {
		case st.Waiting == 1:
			fmt.Fprintln(w, "1 request waits for approval")
		case st.Waiting > 1:
			fmt.Fprintf(w, "%d requests wait for approval\n", st.Waiting)
		}
		switch {
		case st.Locked:
			fmt.Fprintln(w, "locked until the passphrase is given: vmux-signer unlock")
		case st.NeedsPassphrase:
			fmt.Fprintln(w, "nothing is signed before the passphrase is given: vmux-signer unlock")
		}
		switch {
		case st.Failures == 1:
			fmt.Fprintln(w, "1 approval has failed")
		case st.Failures > 1:
			fmt.Fprintf(w, "%d approvals in a row have failed\n", st.Failures)
		}
		if st.AppLock != "off" {
			fmt.Fprintf(w, "App Lock is %s\n", st.AppLock)
		}
	})
	return nil
}
