// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/control"
	"vmux.app/toolkit/internal/duration"
	"vmux.app/toolkit/internal/session"
)

// due is how much time a certificate should have left, as vmux-cert check has it.
const due = 10 * time.Minute

func certificateChecks() []Check {
	return []Check{
		{ID: "certificate", Title: "the session certificate: time left, principals, authority", Needs: []string{"agent", "paired"}, Run: checkCertificate},
	}
}

func checkCertificate(ctx context.Context, e *Env) Finding {
	var all []session.Info
	ask, cancel := context.WithTimeoutCause(ctx, askTime, ErrSilent)
	defer cancel()
	if err := e.Ask(ask, control.Certificates, nil, &all); err != nil {
		return e.failure(err, "whether there is a certificate is not known")
	}
	all = slices.DeleteFunc(all, func(i session.Info) bool { return i.Job != 0 }) // serves that job only
	if len(all) == 0 {
		return ok("none: each login asks the phone, until you get one: vmux-cert")
	}
	state, err := e.state(ctx)
	if err != nil {
		return e.failure(err, "which authorities are pinned is not known")
	}
	best := slices.MaxFunc(all, func(a, b session.Info) int { return a.ValidBefore.Compare(b.ValidBefore) })
	left := best.ValidBefore.Sub(e.Now())
	pinned := false
	for _, p := range state.Phones {
		if ca, err := ssh.ParsePublicKey(p.CAKey); err == nil && ssh.FingerprintSHA256(ca) == best.CA {
			pinned = true
		}
	}
	switch {
	case !pinned:
		return e.failure(&CertificateError{Problem: fmt.Sprintf("session certificate %d is of an authority that no paired phone has", best.Serial), Drop: best.Serial},
			"servers that trust your phone's authority refuse it")
	case best.ValidAfter.After(e.Now()):
		return e.failure(&CertificateError{Problem: fmt.Sprintf("session certificate %d begins at %s, by this computer's clock in the future", best.Serial, best.ValidAfter.Format(time.RFC3339)), Clock: true},
			"servers refuse it until then")
	case !slices.Contains(best.Principals, e.User):
		return e.warning(&CertificateError{Problem: fmt.Sprintf("session certificate %d is for %s, not for %s", best.Serial, strings.Join(best.Principals, ", "), e.User), Principal: e.User},
			"servers take it for these accounts only")
	case left < due:
		return e.warning(&CertificateError{Problem: fmt.Sprintf("session certificate %d ends in %s", best.Serial, duration.Short(max(left, 0)))},
			"after that each login asks the phone")
	}
	return ok("%s left, for %s", age(left), list(best.Principals))
}
