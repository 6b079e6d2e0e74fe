// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os/user"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/agent"
	"vmux.app/toolkit/internal/control"
	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/phone"
	"vmux.app/toolkit/internal/policy"
	"vmux.app/toolkit/internal/session"
	"vmux.app/toolkit/internal/store"
)

// certificates serves the requests of vmux-cert.
type certificates struct {
	sessions *session.Manager
	phones   *phone.Set
	config   store.Config
	policy   func() *policy.Policy
	hosts    hosts
	user     string // of this account
	log      *slog.Logger
	locked   func() bool
	jobs     sync.WaitGroup
}

// extensions are the requests, by name.
func (c *certificates) extensions() map[string]agent.Extension {
	return map[string]agent.Extension{
		control.Certificate:  c.request,
		control.Certify:      c.certify,
		control.Certificates: func(context.Context, agent.Peer, []byte) (any, error) { return c.list(), nil },
		control.Drop:         c.drop,
		control.Run:          c.run,
		control.Reload:       func(context.Context, agent.Peer, []byte) (any, error) { return nil, c.reload() },
	}
}

// authority asks a phone's certificate authority. It implements
// session.Authority.
type authority struct{ phones *phone.Set }

// askerKey is the context key of the process that asks for a certificate.
type askerKey struct{}

func (a authority) Certify(ctx context.Context, public ssh.PublicKey, s session.Spec) (certificate, ca []byte, err error) {
	peer, _ := ctx.Value(askerKey{}).(agent.Peer)
	about := claims(peer, "certificate", nil)
	about.Reason, about.Limits = s.Reason, s.Scope.Limits()
	r := envelope.CertificateRequest{
		PublicKeyBlob:   public.Marshal(),
		Identity:        s.Identity,
		Principals:      s.Principals,
		Validity:        int64(s.Validity / time.Second),
		KeyID:           s.KeyID,
		CriticalOptions: options(s.CriticalOptions),
		Extensions:      options(s.Extensions),
		Context:         about,
	}
	if err := fits(r); err != nil {
		return nil, nil, err
	}
	return a.phones.Certify(ctx, "", r)
}

// fits says what of a request the link does not carry, which is for the user to change: session allows more.
func fits(r envelope.CertificateRequest) error {
	r.CreatedAt = envelope.At(time.Now())
	if _, err := envelope.Encode(envelope.Envelope{Payload: &r}); err != nil {
		return &session.SpecError{Field: "request", Why: strings.TrimPrefix(err.Error(), string(r.Type())+": ")}
	}
	return nil
}

func options(m map[string]string) []envelope.Option {
	list := make([]envelope.Option, 0, len(m))
	for _, name := range slices.Sorted(maps.Keys(m)) {
		list = append(list, envelope.Option{Name: name, Value: m[name]})
	}
	return list
}

// defaultExtensions are what ssh-keygen permits, less the screen.
var defaultExtensions = []string{"permit-agent-forwarding", "permit-port-forwarding", "permit-pty", "permit-user-rc"}

// spec completes what a command asked for.
func (c *certificates) spec(p control.CertificateParams) session.Spec {
	s := session.Spec{
		Principals:      p.Principals,
		Validity:        time.Duration(p.Validity) * time.Second,
		KeyID:           p.KeyID,
		CriticalOptions: p.CriticalOptions,
		Extensions:      p.Extensions,
		Identity:        p.Identity,
		Reason:          p.Reason,
		Scope:           session.Scope{Hosts: p.Hosts, Uses: p.Uses, NoForwarding: p.NoForwarding},
	}
	if len(s.Principals) == 0 {
		s.Principals = []string{c.user}
	}
	if s.Validity == 0 {
		s.Validity = c.config.Certificate.Validity
	}
	if s.KeyID == "" {
		s.KeyID = fmt.Sprintf("vmux:%s@%s:%s", c.user, c.config.Name, session.Serial)
	}
	if s.Extensions == nil {
		s.Extensions = map[string]string{}
		for _, name := range defaultExtensions {
			s.Extensions[name] = ""
		}
	}
	return s
}

var (
	errLocked = errors.New("the agent is locked")
	errParams = errors.New("the request cannot be read; is this command of another version than the agent?")
)

// read decodes a command's parameters and refuses everything while the agent is
// locked.
func (c *certificates) read(params []byte, into any) error {
	if c.locked() {
		return errLocked
	}
	if err := json.Unmarshal(params, into, json.RejectUnknownMembers(true)); err != nil {
		return fmt.Errorf("%w (%w)", errParams, err)
	}
	return nil
}

func (c *certificates) request(ctx context.Context, peer agent.Peer, params []byte) (any, error) {
	var p control.CertificateParams
	if err := c.read(params, &p); err != nil {
		return nil, err
	}
	s := c.spec(p)
	if p.MinRemaining > 0 {
		if info, ok := c.sessions.Enough(s, time.Duration(p.MinRemaining)*time.Second); ok {
			return info, nil
		}
	}
	return c.sessions.Request(context.WithValue(ctx, askerKey{}, peer), s)
}

func (c *certificates) certify(ctx context.Context, peer agent.Peer, params []byte) (any, error) {
	var p control.CertifyParams
	if err := c.read(params, &p); err != nil {
		return nil, err
	}
	public, err := ssh.ParsePublicKey(p.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", errParams, err)
	}
	certificate, info, err := c.sessions.Certify(context.WithValue(ctx, askerKey{}, peer), public, c.spec(p.CertificateParams))
	if err != nil {
		return nil, err
	}
	return control.CertifyResult{Certificate: certificate, Info: info}, nil
}

func (c *certificates) list() []session.Info {
	all := c.sessions.List()
	if all == nil {
		all = []session.Info{}
	}
	return all
}

func (c *certificates) drop(_ context.Context, _ agent.Peer, params []byte) (any, error) {
	var p control.DropParams
	if err := json.Unmarshal(params, &p, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("%w (%w)", errParams, err)
	}
	if p.All {
		return control.DropResult{Dropped: c.sessions.DropAll()}, nil
	}
	if c.sessions.Drop(p.Serial) {
		return control.DropResult{Dropped: 1}, nil
	}
	return control.DropResult{}, nil
}

// reload takes up changed pairings. The certificates of a phone that was
// forgotten end.
func (c *certificates) reload() error {
	before := c.phones.Authorities()
	err := c.phones.Reload()
	after := c.phones.Authorities()
	for _, old := range before {
		if !slices.ContainsFunc(after, func(a phone.Authority) bool { return slices.Equal(a.Key, old.Key) }) {
			c.sessions.DropCA(old.Key)
		}
	}
	return err
}

// loginName is this account's, which servers are likely to have too.
func loginName() (string, error) {
	me, err := user.Current()
	if err != nil {
		return "", fmt.Errorf("own login name: %w", err)
	}
	return me.Username, nil
}
