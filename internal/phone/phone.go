// SPDX-License-Identifier: BSD-3-Clause

// Package phone is the device's view of its phones: which keys they hold, and a
// signature by one of them. It finds a phone when it is needed, keeps one link
// to it open, and gives every request one deadline.
package phone

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/transport"
)

const (
	// reachTimeout bounds looking for a phone: a client whose phone is away gets
	// its answer within this.
	reachTimeout = 3 * time.Second
	// retryTimeout is what is left at least for a second look, when a link turned
	// out to be dead.
	retryTimeout = 1 * time.Second
	// stillAway is how long after a search that found nobody the next ones are
	// short: a login that tries several keys waits once.
	stillAway = 1 * time.Second
	// glance is how short. A phone that is back answers within milliseconds, and
	// must not be refused because it was away a moment ago.
	glance = 200 * time.Millisecond
	// tooManyAgain is how often a request is made again that the phone has refused
	// for too many others, and tooManyPause the time in between.
	tooManyAgain = 4
	tooManyPause = 250 * time.Millisecond
	// knownAgain is how soon an address that is known is tried again in one search.
	knownAgain = 250 * time.Millisecond
	// refreshAfter is how old the key list of a linked phone may be before a
	// listing has it fetched anew, for the next listing.
	refreshAfter = 2 * time.Second
	// lookAfter is the same for a phone without a link, which must be looked for.
	lookAfter = 30 * time.Second
)

// Why a request failed. The phone's own words, if any, are wrapped with these.
var (
	ErrUnreachable = errors.New("the phone cannot be reached")
	ErrNotPaired   = errors.New("no phone is paired")
	ErrForgotten   = errors.New("the phone does not know this device any more")
	ErrDenied      = errors.New("denied on the phone")
	ErrTimeout     = errors.New("no answer from the phone in time")
	ErrExpired     = errors.New("the phone takes the request for too old or from the future")
	ErrLocked      = errors.New("the phone is locked")
	ErrUnknownKey  = errors.New("the phone does not have this key, or has it disabled")
	ErrTooMany     = errors.New("too many requests wait on the phone")
	ErrLost        = errors.New("the link to the phone was lost while it was asking")
	ErrFailed      = errors.New("the phone could not do it")
	ErrNoCA        = errors.New("the phone has no certificate authority that is pinned")
	ErrWhichPhone  = errors.New("several phones are paired that have a certificate authority")
	ErrNoIdentity  = errors.New("no paired phone has this identity")
)

// fromPhone maps the phone's error answers.
var fromPhone = map[envelope.Code]error{
	envelope.CodeDenied:      ErrDenied,
	envelope.CodeExpired:     ErrExpired,
	envelope.CodeLocked:      ErrLocked,
	envelope.CodeUnknownKey:  ErrUnknownKey,
	envelope.CodeNotPaired:   ErrForgotten,
	envelope.CodeTooMany:     ErrTooMany,
	envelope.CodeBadRequest:  ErrFailed,
	envelope.CodeUnsupported: ErrFailed,
	envelope.CodeInternal:    ErrFailed,
}

// Options is what every phone's view shares.
type Options struct {
	Identity *transport.Identity
	Name     string // this device's, as the phone shows it
	Software string
	Networks []transport.Network
	Store    store.Keeper
	Deadline time.Duration // for one request in all
	Log      *slog.Logger
	// Wake pushes to a phone, nil for never. It returns when the push was taken, and
	// wraps ErrNoWake when there is nothing to push with or to, ErrTokenGone when
	// the phone's device token is not valid.
	Wake func(ctx context.Context, phone store.Phone) error
}

// Prepare gives the options of this user's device: its link key, which is made if
// there is none yet, and its state file.
func Prepare(env store.Env, config store.Config, software string, networks []transport.Network, log *slog.Logger) (Options, error) {
	keyFile, err := env.LinkKeyFile()
	if err != nil {
		return Options{}, err
	}
	state, err := store.Open(env, log)
	if err != nil {
		return Options{}, err
	}
	key, err := store.LinkKey(keyFile)
	if err != nil {
		return Options{}, err
	}
	id, err := transport.NewIdentity(key)
	if err != nil {
		return Options{}, err
	}
	return Options{Identity: id, Name: config.Name, Software: software, Networks: networks,
		Store: state, Deadline: config.Deadline, Log: log}, nil
}

// Phone is one paired phone. Its methods may be called at the same time.
type Phone struct {
	o   Options
	pin transport.Pin
	ctx context.Context // the phone's own, ends at Close
	end context.CancelFunc
	own sync.WaitGroup // goroutines of this value
	// changed is called, without the lock, when what is known of the phone changes.
	changed func()
	turns   *turns

	mu      sync.Mutex
	last    store.Phone // as stored
	link    *transport.Link
	dialing *attempt
	pushed  time.Time       // when the phone was last woken
	away    time.Time       // when a search, apart from glances, last found nobody
	fetched time.Time       // when the key list was last asked for
	looked  time.Time       // when a listing last had the phone looked for
	otherCA *transport.Link // on which another certificate authority was seen and said
}

// attempt is one search for the phone, shared by all who need it.
type attempt struct {
	start  time.Time
	wanted chan struct{} // closed when a request needs the phone
	want   func()        // closes it
	done   chan struct{} // closed when there is a link or an error
	link   *transport.Link
	err    error

	mu   sync.Mutex
	end  *time.Timer // of the search
	note error       // what else there is to say when it finds nobody
}

func newAttempt() *attempt {
	wanted := make(chan struct{})
	return &attempt{start: time.Now(), wanted: wanted, want: sync.OnceFunc(func() { close(wanted) }), done: make(chan struct{})}
}

// prolong has a search end so long from now.
func (a *attempt) prolong(d time.Duration, note error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.end.Stop() { // else it has ended
		a.end.Reset(max(d, 0))
	}
	a.note = note
}

// New gives the view of a stored phone.
func New(o Options, p store.Phone) (*Phone, error) {
	pin, err := transport.ParsePin(p.Pin)
	if err != nil {
		return nil, fmt.Errorf("phone %q: %w", p.Name, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Phone{o: o, pin: pin, ctx: ctx, end: cancel, changed: func() {}, turns: newTurns(), last: p}, nil
}

// Close ends the link and whatever waits on it.
func (p *Phone) Close() {
	p.end()
	p.mu.Lock()
	link := p.link
	p.mu.Unlock()
	if link != nil {
		link.Close()
	}
	p.own.Wait()
}

// Sign asks for a signature over r.Data, and sets the request's time. The answer is the
// signature in SSH's form, unverified. ctx withdraws the request.
func (p *Phone) Sign(ctx context.Context, r envelope.SignRequest) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, p.o.Deadline, ErrTimeout)
	defer cancel()
	r.Context.Device = p.o.Name
	a, err := p.request(ctx, &r, &r.CreatedAt)
	if err != nil {
		return nil, err
	}
	s, ok := a.(*envelope.SignResponse)
	if !ok {
		return nil, fmt.Errorf("%w: it answered a signRequest with %s", ErrFailed, a.Type())
	}
	return s.Signature, nil
}

// certify asks for a certificate, as Sign does for a signature. It gives the
// phone's answer, unverified, and the authority's key that was pinned at
// pairing.
func (p *Phone) certify(ctx context.Context, r envelope.CertificateRequest) (certificate, ca []byte, err error) {
	p.mu.Lock()
	ca = p.last.CAKey
	p.mu.Unlock()
	if len(ca) == 0 {
		return nil, nil, ErrNoCA
	}
	ctx, cancel := context.WithTimeoutCause(ctx, p.o.Deadline, ErrTimeout)
	defer cancel()
	r.Context.Device = p.o.Name
	a, err := p.request(ctx, &r, &r.CreatedAt)
	if err != nil {
		return nil, nil, err
	}
	c, ok := a.(*envelope.CertificateResponse)
	if !ok {
		return nil, nil, fmt.Errorf("%w: it answered a certificateRequest with %s", ErrFailed, a.Type())
	}
	return c.Certificate, ca, nil
}

// request sends req when it is its turn, and sets its time.
func (p *Phone) request(ctx context.Context, req envelope.Payload, created *envelope.Time) (envelope.Payload, error) {
	start := time.Now()
	// First of all: nobody waits for a turn with a phone that is not there.
	if _, err := p.reach(ctx, reachTimeout); err != nil {
		return nil, err
	}
	done, waited, err := p.turns.take(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if waited {
		p.o.Log.Debug("waited for other requests", "phone", p.name(), "after", time.Since(start).Round(time.Millisecond))
		start = time.Now()
	}
	for again := 0; ; again++ {
		*created = envelope.At(time.Now())
		a, err := p.send(ctx, req, start)
		// A prompt that was withdrawn may take the phone a moment to put away.
		if !errors.Is(err, ErrTooMany) || again == tooManyAgain {
			return a, err
		}
		select {
		case <-time.After(tooManyPause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// send sends req on the phone's link, which it opens if need be. A request that
// a dead link swallowed unseen is sent once more, under the same id.
func (p *Phone) send(ctx context.Context, req envelope.Payload, start time.Time) (envelope.Payload, error) {
	id := transport.NewID()
	for again := false; ; again = true {
		link, err := p.reach(ctx, max(retryTimeout, reachTimeout-time.Since(start)))
		if err != nil {
			return nil, err
		}
		a, err := link.Call(ctx, id, req)
		var lost *transport.LostError
		switch {
		case err == nil:
			return a, nil
		case errors.As(err, &lost) && !lost.Acknowledged && !again:
			p.o.Log.Debug("link lost, trying again", "phone", p.name(), "reason", err)
			continue
		case errors.As(err, &lost) && lost.Acknowledged:
			return nil, fmt.Errorf("%w (%w)", ErrLost, err)
		case errors.As(err, &lost):
			return nil, fmt.Errorf("%w (%w)", ErrUnreachable, err)
		}
		return nil, explain(err)
	}
}

func explain(err error) error {
	var e *envelope.Error
	if !errors.As(err, &e) {
		return err
	}
	known, ok := fromPhone[e.Code]
	if !ok {
		known = ErrFailed
	}
	return fmt.Errorf("%w: %s", known, cmp.Or(e.Message, string(e.Code)))
}

func (p *Phone) name() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last.Name
}

// reach gives the open link, or looks for the phone. All who need it at the
// same time wait for one search.
func (p *Phone) reach(ctx context.Context, within time.Duration) (*transport.Link, error) {
	p.mu.Lock()
	if p.link != nil && p.link.Err() == nil {
		defer p.mu.Unlock()
		return p.link, nil
	}
	if p.ctx.Err() != nil {
		p.mu.Unlock()
		return nil, ErrNotPaired
	}
	if !p.away.IsZero() && time.Since(p.away) < stillAway && !p.mayWakeLocked() {
		within = min(within, glance)
	}
	a := p.dialing
	if a == nil {
		a = newAttempt()
		p.dialing = a
		p.own.Go(func() { p.look(a, within) })
	}
	p.mu.Unlock()
	a.want()
	select {
	case <-a.done:
		return a.link, a.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Find looks for the phone for so long, and gives the address at which it
// answered. It wakes nobody.
func (p *Phone) Find(ctx context.Context, within time.Duration) (address string, err error) {
	link, err := p.reach(ctx, within)
	if err != nil {
		return "", err
	}
	return link.Conn().RemoteAddr().String(), nil
}

// look is one search; it ends within so long, or later if a push is sent.
func (p *Phone) look(a *attempt, within time.Duration) {
	ctx, cancel := context.WithCancelCause(p.ctx)
	defer cancel(nil)
	a.mu.Lock()
	a.end = time.AfterFunc(within, func() {
		cancel(fmt.Errorf("gave up after %v", time.Since(a.start).Round(time.Millisecond)))
	})
	a.mu.Unlock()
	var waking sync.WaitGroup
	waking.Go(func() { p.wake(ctx, a) })
	start := a.start
	link, address, err := p.dial(ctx)
	a.end.Stop()
	cancel(nil)
	waking.Wait()
	if err != nil && a.note != nil {
		err = fmt.Errorf("%w; %w", err, a.note)
	}
	p.mu.Lock()
	a.link, a.err = link, err
	p.dialing = nil
	p.link = link
	switch {
	case err == nil:
		p.away = time.Time{}
	case within > glance:
		p.away = time.Now()
	}
	closed := p.ctx.Err() != nil
	name := p.last.Name
	close(a.done)
	p.mu.Unlock()
	switch {
	case err != nil:
		p.o.Log.Info("phone not reached", "phone", name, "after", time.Since(start).Round(time.Millisecond), "reason", err)
	case closed: // Close came too early to see this link
		link.Close()
	default:
		p.o.Log.Info("connected", "phone", name, "address", address.Address, "after", time.Since(start).Round(time.Microsecond),
			"skew", link.Skew().Round(time.Millisecond))
		p.own.Go(func() { p.watch(link, name) })
		p.own.Go(func() { p.tokens(link) })
		p.linked(link, address)
		if err := p.fetch(link); err != nil {
			p.o.Log.Warn("key list not updated", "phone", name, "reason", err)
		}
	}
}

// linked remembers where and what the phone is.
func (p *Phone) linked(link *transport.Link, at transport.Candidate) {
	p.remember(func(s *store.Phone) {
		s.Software = link.Peer().Software
		if !at.Passing {
			s.Address = at.Address
		}
		if at.Instance != "" {
			s.Instance = at.Instance
		}
	})
}

func (p *Phone) watch(link *transport.Link, name string) {
	select {
	case <-link.Done():
		p.o.Log.Info("disconnected", "phone", name, "reason", link.Err())
	case <-p.ctx.Done():
	}
	link.Close()
}

// dial tries the addresses that are known and whoever claims to be a phone.
func (p *Phone) dial(ctx context.Context) (*transport.Link, transport.Candidate, error) {
	p.mu.Lock()
	last := p.last
	p.mu.Unlock()
	var known []transport.Candidate
	for _, address := range []string{last.FixedAddress, last.Address} {
		if address != "" {
			known = append(known, transport.Candidate{Source: "known", Instance: last.Instance, Address: address, Again: knownAgain})
		}
	}
	t, err := find(ctx, p.o.Networks, known, func(ctx context.Context, c transport.Candidate) (outcome, error) {
		conn, err := secure(ctx, p.o.Networks, c, p.o.Identity, transport.ProtoLink, func(pin transport.Pin) error {
			if pin != p.pin {
				return transport.ErrWrongPeer
			}
			return nil
		})
		if err != nil {
			return outcome{}, err
		}
		link, err := transport.Open(ctx, conn, p.o.hello())
		if errors.Is(err, transport.ErrRefused) {
			// It is the phone, and it has its own opinion: looking on is of no use.
			return outcome{c: c, err: fmt.Errorf("%w (%w)", ErrForgotten, err)}, nil
		}
		return outcome{link, c, err}, err
	}, func(o outcome) {
		if o.link != nil {
			o.link.Close()
		}
	})
	switch {
	case err != nil && p.ctx.Err() != nil:
		return nil, t.c, ErrNotPaired
	case err != nil:
		return nil, t.c, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return t.link, t.c, t.err
}

// outcome is the end of a search: a link, or the phone's own refusal.
type outcome struct {
	link *transport.Link
	c    transport.Candidate
	err  error
}

// remember changes what is stored of this phone, if that changes anything.
func (p *Phone) remember(change func(*store.Phone)) {
	p.mu.Lock()
	next := p.last
	change(&next)
	same := p.last.Address == next.Address && p.last.Instance == next.Instance && p.last.Software == next.Software &&
		sameToken(p.last.DeviceToken, next.DeviceToken) && bytes.Equal(p.last.CAKey, next.CAKey) && slices.EqualFunc(p.last.Keys, next.Keys, sameKey)
	p.mu.Unlock()
	if same {
		return
	}
	err := p.o.Store.Update(func(s *store.State) error {
		for i := range s.Phones {
			if s.Phones[i].Pin == next.Pin {
				change(&s.Phones[i])
			}
		}
		return nil
	})
	if err != nil {
		p.o.Log.Error("what the phone said could not be stored", "phone", next.Name, "reason", err)
	}
	p.mu.Lock()
	change(&p.last)
	p.mu.Unlock()
	p.changed()
}

func sameKey(a, b store.Key) bool {
	return a.Algorithm == b.Algorithm && bytes.Equal(a.Blob, b.Blob) && a.Comment == b.Comment &&
		a.ProviderKind == b.ProviderKind && a.DisplayName == b.DisplayName
}

// fetch asks for the key list and stores it.
func (p *Phone) fetch(link *transport.Link) error {
	p.mu.Lock()
	p.fetched = time.Now()
	p.mu.Unlock()
	ctx, cancel := context.WithTimeoutCause(p.ctx, reachTimeout, ErrTimeout)
	defer cancel()
	keys, ca, err := KeyList(ctx, link)
	if err != nil {
		return err
	}
	p.mu.Lock()
	// The CA key is pinned at pairing: a phone that has another one now must be
	// paired again before its certificates count.
	changed := len(p.last.CAKey) > 0 && !bytes.Equal(p.last.CAKey, ca)
	warn := changed && p.otherCA != link
	if changed {
		p.otherCA = link
	}
	p.mu.Unlock()
	if warn {
		p.o.Log.Warn("the phone's certificate authority has changed and is not trusted; pair the phone again to trust it", "phone", p.name())
	}
	p.remember(func(s *store.Phone) {
		s.Keys = keys
		if !changed {
			s.CAKey = ca
		}
	})
	return nil
}

// KeyList asks a linked phone for its keys and its certificate authority's.
func KeyList(ctx context.Context, link *transport.Link) ([]store.Key, []byte, error) {
	a, err := link.Call(ctx, transport.NewID(), &envelope.KeyListRequest{})
	if err != nil {
		return nil, nil, explain(err)
	}
	r, ok := a.(*envelope.KeyListResponse)
	if !ok {
		return nil, nil, fmt.Errorf("%w: it answered a keyListRequest with %s", ErrFailed, a.Type())
	}
	keys := make([]store.Key, 0, len(r.Keys))
	for _, k := range r.Keys {
		key, err := checkKey(k)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: %w", ErrFailed, err)
		}
		keys = append(keys, key)
	}
	return keys, r.CAKey, nil
}

// freshen has an old cache brought up to date behind the caller's back, for the
// next listing.
func (p *Phone) freshen() {
	p.mu.Lock()
	defer p.mu.Unlock()
	linked := p.link != nil && p.link.Err() == nil
	now := time.Now()
	switch {
	case p.ctx.Err() != nil, p.dialing != nil:
	case linked && now.Sub(p.fetched) > refreshAfter:
		p.fetched = now
		link := p.link
		p.own.Go(func() {
			if err := p.fetch(link); err != nil {
				p.o.Log.Warn("key list not updated", "phone", p.name(), "reason", err)
			}
		})
	case !linked && now.Sub(p.looked) > lookAfter:
		p.looked = now
		a := newAttempt()
		p.dialing = a
		p.own.Go(func() { p.look(a, reachTimeout) })
	}
}

// Status is how things stand with one phone.
type Status struct {
	Name      string `json:"name"`
	Pin       string `json:"pin"`
	Connected bool   `json:"connected"`
	Address   string `json:"address,omitzero"` // last known
	Software  string `json:"software,omitzero"`
	Skew      int64  `json:"skewNanoseconds,omitzero"` // how far its clock is ahead
	Keys      int    `json:"keys"`
}

// Status says how things stand, without asking the phone.
func (p *Phone) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Status{Name: p.last.Name, Pin: p.last.Pin, Address: p.last.Address, Software: p.last.Software, Keys: len(p.last.Keys)}
	if p.link != nil && p.link.Err() == nil {
		s.Connected, s.Skew = true, int64(p.link.Skew())
	}
	return s
}
