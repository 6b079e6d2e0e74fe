// SPDX-License-Identifier: BSD-3-Clause

// Package wake sends the push that wakes a phone, by Apple's push service (APNs) or a relay. The push says nothing but
// that somebody asks, and authorizes nothing: what is asked goes over the link.
package wake

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sideshow/apns2"
	"github.com/sideshow/apns2/payload"
	"github.com/sideshow/apns2/token"

	"vmux.app/toolkit/internal/wake/apns"
)

// Kind is what a push does on the phone.
type Kind int

const (
	// Alert shows a notification and has the app run in the background.
	Alert Kind = iota
	// Silent has the app run in the background, when iOS finds the time, and is dropped at will.
	Silent
)

const (
	// Life is for how long a push is good that does not say: as long as a request.
	Life = 60 * time.Second

	// What the phone shows. It is the same for everybody: Apple and the lock screen see it.
	alertTitle = "SSH Sign Request"
	alertBody  = "A device that is paired with this phone asks."
	// collapseID makes a later push replace an earlier one instead of piling up. The same for everybody, too.
	collapseID = "vmux"

	// attempts bounds how often a push is sent: four within the delays, about 4 s, are what fits into the 20 s
	// for which a request looks for its phone.
	attempts     = 4
	firstDelay   = 500 * time.Millisecond // doubled each time
	maxRetryWait = 15 * time.Second       // Retry-After beyond it outlasts the request
)

// Target is where a push goes.
type Target struct {
	Token       string // device token, hexadecimal
	Topic       string // bundle id of the app
	Environment string // apns.Production or apns.Sandbox
}

// Options are what a Client is made of.
type Options struct {
	Key      *apns.Key
	KeyID    string // the key's, 10 characters
	TeamID   string // the developer team's, 10 characters
	Endpoint string // URL of a relay; empty for Apple's hosts
	CAFile   string // PEM file of who may certify Endpoint's certificate; empty for the system's
	Log      *slog.Logger

	// Dial connects to addr; nil for TCP.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Result is what came of a push.
type Result struct {
	ID       string // apns-id, a UUID that names the push in Apple's log
	UniqueID string // apns-unique-id, of the sandbox only: names the push in Apple's console
	Status   int    // HTTP's of the last answer, 0 for none
	Attempts int
}

// Client sends pushes. It is safe for concurrent use, keeps the connection for a while, and makes none before
// the first push.
type Client struct {
	options   Options
	log       *slog.Logger
	transport *http.Transport

	mu   sync.Mutex // guards auth; no network under it
	auth authorization
}

// New checks o and returns a client. Errors: *apns.OptionError.
func New(o Options) (*Client, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	transport, err := newTransport(o)
	if err != nil {
		return nil, err
	}
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Client{options: o, log: log, transport: transport}, nil
}

// Close closes connections that no push is using. One that is about to become idle closes by itself after idleTimeout.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

func (o Options) check() error {
	if o.Key == nil {
		return &apns.OptionError{Option: "wake.key", Problem: "is not set", Want: "--key FILE, or wake.key in vmux.toml"}
	}
	return first(
		option("wake.key-id", o.KeyID, apns.CheckID, "--key-id ID, or wake.key-id in vmux.toml: the 10 characters in the name AuthKey_ID.p8 that the key came with"),
		option("wake.team-id", o.TeamID, apns.CheckID, "--team-id ID, or wake.team-id in vmux.toml: the 10 characters on developer.apple.com under Membership"),
		o.checkEndpoint())
}

func (o Options) checkEndpoint() error {
	switch {
	case o.Endpoint != "":
		return option("wake.endpoint", o.Endpoint, apns.CheckEndpoint, "--endpoint https://HOST:PORT")
	case o.CAFile != "":
		// Apple's hosts have certificates that every system knows.
		return &apns.OptionError{Option: "wake.ca-file", Problem: "is for an endpoint only", Want: "--endpoint https://HOST:PORT with it, or neither"}
	}
	return nil
}

func (t Target) check() error {
	return first(
		option("wake.device-token", t.Token, apns.CheckToken, "--device-token TOKEN, in hexadecimal"),
		option("wake.topic", t.Topic, apns.CheckTopic, "--topic, or wake.topic in vmux.toml: the bundle id of the phone's app"),
		option("wake.environment", t.Environment, apns.CheckEnvironment, "--environment production|sandbox"))
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// option checks one value, which the error does not repeat.
func option(name, value string, check func(string) error, want string) error {
	if value == "" {
		return &apns.OptionError{Option: name, Problem: "is not set", Want: want}
	}
	if err := check(value); err != nil {
		return &apns.OptionError{Option: name, Problem: err.Error(), Want: want}
	}
	return nil
}

// Push sends one push, good until expires (zero: for Life), and returns when it was taken or not, at the latest when
// ctx ends. What may help is tried again within that time, with growing delays: a broken connection, 429, 5xx, and once
// an authorization that was refused. Errors: *apns.OptionError before anything is sent, *apns.RefusedError (which may
// be apns.ErrTokenGone), *apns.ConnectError, context.Canceled.
func (c *Client) Push(ctx context.Context, to Target, kind Kind, expires time.Time) (Result, error) {
	if err := to.check(); err != nil {
		return Result{}, err
	}
	if expires.IsZero() {
		expires = time.Now().Add(Life)
	}
	n := notification(to, kind, expires)
	res := Result{ID: n.ApnsID}
	log := c.log.With("apns_id", n.ApnsID, "token", apns.Short(to.Token))
	var failed error // of the last attempt
	delay, renewed := firstDelay, false
	for {
		res.Attempts++
		answer, err := c.send(ctx, to.Environment, n)
		wait := delay/2 + mathrand.N(delay/2) // so that devices that failed together do not come back together
		again := false
		switch refused, ok := errors.AsType[*apns.RefusedError](err); {
		case err == nil:
			res.Status, res.ID, res.UniqueID = answer.status, answer.id, answer.uniqueID
			log.Debug("push taken", "attempts", res.Attempts)
			return res, nil
		case ok:
			res.Status, res.ID, res.UniqueID = answer.status, answer.id, answer.uniqueID
			failed = err
			again = refused.Reason.Again && answer.retryAfter <= maxRetryWait
			wait = max(wait, answer.retryAfter)
			if refused.Reason.Renew && !renewed && c.renew(answer.bearer) {
				renewed, again, wait = true, true, 0
			}
		case ctx.Err() == nil || failed == nil:
			failed = err
			e, ok := errors.AsType[*apns.ConnectError](err)
			again = ok && e.Problem == apns.NoConnection
		}
		if errors.Is(ctx.Err(), context.Canceled) {
			return res, ctx.Err()
		}
		log.Debug("push not taken", "attempts", res.Attempts, "err", failed)
		if end, ok := ctx.Deadline(); !again || res.Attempts == attempts || ok && time.Until(end) <= wait {
			return res, failed
		}
		if errors.Is(sleep(ctx, wait), context.Canceled) {
			return res, context.Canceled
		}
		delay *= 2
	}
}

// sleep returns ctx's error when that ends before d has passed.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func notification(to Target, kind Kind, expires time.Time) *apns2.Notification {
	n := &apns2.Notification{
		ApnsID:      newID(), // the same for every attempt
		DeviceToken: to.Token,
		Topic:       to.Topic,
		Expiration:  expires,
	}
	if kind == Silent {
		n.PushType, n.Priority = apns2.PushTypeBackground, apns2.PriorityLow
		n.Payload = payload.NewPayload().ContentAvailable()
		return n
	}
	n.PushType, n.Priority, n.CollapseID = apns2.PushTypeAlert, apns2.PriorityHigh, collapseID
	n.Payload = payload.NewPayload().AlertTitle(alertTitle).AlertBody(alertBody).
		InterruptionLevel(payload.InterruptionLevelTimeSensitive).ContentAvailable()
	return n
}

// newID returns a random UUID in the canonical form that Apple asks for (RFC 9562 section 5.4).
func newID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// answer is what one attempt brought.
type answer struct {
	status       int
	id, uniqueID string
	retryAfter   time.Duration
	bearer       string // what authorized it
}

// send sends n once. The errors are Push's, context.DeadlineExceeded apart.
func (c *Client) send(ctx context.Context, environment string, n *apns2.Notification) (answer, error) {
	bearer, issued, err := c.authorize()
	if err != nil {
		return answer{}, err
	}
	a := answer{id: n.ApnsID, bearer: bearer}
	host := c.host(environment)
	rt := &exchange{next: c.transport}
	client := apns2.Client{
		Host:       host,
		Token:      &token.Token{Bearer: bearer, IssuedAt: issued}, // younger than it renews by itself
		HTTPClient: &http.Client{Transport: rt, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	}
	r, err := client.PushWithContext(ctx, n)
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return a, connectError(host, err)
	}
	a.status, a.retryAfter = r.StatusCode, rt.retryAfter
	if isID(r.ApnsID) {
		a.id = r.ApnsID
	}
	if isID(r.ApnsUniqueID) {
		a.uniqueID = r.ApnsUniqueID
	}
	if r.Sent() {
		return a, nil
	}
	return a, &apns.RefusedError{Reason: apns.Lookup(r.StatusCode, r.Reason), ID: a.id, Since: r.Timestamp.Time}
}

// host is where pushes of an environment are sent.
func (c *Client) host(environment string) string {
	switch {
	case c.options.Endpoint != "":
		return strings.TrimSuffix(c.options.Endpoint, "/")
	case environment == apns.Sandbox:
		return apns2.HostDevelopment
	}
	return apns2.HostProduction
}

// Reach connects to where pushes of an environment are sent and asks for nothing, without an authorization. It gives the
// host. Errors: *apns.ConnectError, context.Canceled.
func (c *Client) Reach(ctx context.Context, environment string) (string, error) {
	host := c.host(environment)
	r, err := http.NewRequestWithContext(ctx, http.MethodHead, host+"/", nil)
	if err != nil {
		return hostOf(host), err
	}
	answer, err := c.transport.RoundTrip(r) // whatever it answers, it is there
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return hostOf(host), connectError(host, err)
	}
	return hostOf(host), answer.Body.Close()
}

// isID says whether s looks like a UUID, which is all that is shown of what the other end calls a push.
func isID(s string) bool {
	return len(s) == 36 && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'f') && (r < 'A' || r > 'F') && r != '-'
	})
}

// hostOf returns the host of a URL for messages, and its port unless that is the usual one.
func hostOf(endpoint string) string {
	u, err := url.Parse(endpoint)
	if err != nil {
		return endpoint
	}
	return strings.TrimSuffix(u.Host, ":"+strconv.Itoa(443))
}
