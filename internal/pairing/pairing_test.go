// SPDX-License-Identifier: BSD-3-Clause

package pairing_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/pairing"
	"vmux.app/toolkit/internal/transport"
	"vmux.app/toolkit/internal/transport/conformance"
	"vmux.app/toolkit/internal/transport/mem"
)

// rig joins a device and a phone, with an optional person in the middle.
type rig struct {
	device, phone *transport.Identity
	shown         chan string // the digits on the phone
	stored        []pairing.Peer
	deviceName    string // as the phone showed it
}

func newRig(t *testing.T) *rig {
	return &rig{device: conformance.NewIdentity(t), phone: conformance.NewIdentity(t), shown: make(chan string, 1)}
}

// conns gives the two ends of a pairing connection between identities.
func conns(t *testing.T, device, phone *transport.Identity) (d, p *transport.Conn) {
	t.Helper()
	here, there := mem.Pipe()
	served := make(chan *transport.Conn, 1)
	go func() {
		c, err := transport.Server(context.Background(), there, phone, func(string, transport.Pin) error { return nil })
		if err != nil {
			t.Error(err)
		}
		served <- c
	}()
	d, err := transport.Client(t.Context(), here, device, transport.ProtoPair, func(transport.Pin) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	return d, <-served
}

func (r *rig) phoneOptions() pairing.PhoneOptions {
	return pairing.PhoneOptions{
		Name: "Pocket",
		Confirm: func(ctx context.Context, device, code string) error {
			r.deviceName = device
			r.shown <- code
			return nil
		},
		Store: func(p pairing.Peer) error {
			r.stored = append(r.stored, p)
			return nil
		},
	}
}

// typed is a user who types what the phone shows.
func (r *rig) typed(ctx context.Context, phone string) (string, error) {
	select {
	case code := <-r.shown:
		return code, nil
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// pair runs both ends and gives what each returned.
func (r *rig) pair(t *testing.T, do pairing.DeviceOptions, po pairing.PhoneOptions) (atDevice, atPhone pairing.Peer, deviceErr, phoneErr error) {
	t.Helper()
	d, p := conns(t, r.device, r.phone)
	return r.run(t, d, p, do, po)
}

func (r *rig) run(t *testing.T, d, p *transport.Conn, do pairing.DeviceOptions, po pairing.PhoneOptions) (atDevice, atPhone pairing.Peer, deviceErr, phoneErr error) {
	t.Helper()
	var all sync.WaitGroup
	all.Go(func() {
		atPhone, phoneErr = pairing.Phone(t.Context(), p, r.phone.Pin(), envelope.Hello{Name: po.Name, Clock: envelope.At(time.Unix(0, 0))}, po)
	})
	_, deviceErr = pairing.Offer(t.Context(), d)
	if deviceErr == nil {
		atDevice, deviceErr = pairing.Device(t.Context(), d, r.device.Pin(), do)
	}
	all.Wait()
	return
}

func TestDigits(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	d, p, de, pe := r.pair(t, pairing.DeviceOptions{Name: "laptop\x1b[2J", Code: r.typed}, r.phoneOptions())
	if de != nil || pe != nil {
		t.Fatal(de, pe)
	}
	if d != (pairing.Peer{Name: "Pocket", Pin: r.phone.Pin()}) {
		t.Errorf("device paired with %v", d)
	}
	if p != (pairing.Peer{Name: "laptop[2J", Pin: r.device.Pin()}) || len(r.stored) != 1 || r.stored[0] != p {
		t.Errorf("phone paired with %v, stored %v", p, r.stored)
	}
	if r.deviceName != "laptop[2J" {
		t.Errorf("phone showed %q", r.deviceName)
	}
}

// People type digits with spaces; the code has always six of them.
func TestDigitsWithSpaces(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	_, _, de, pe := r.pair(t, pairing.DeviceOptions{Name: "laptop", Code: func(ctx context.Context, phone string) (string, error) {
		s, err := r.typed(ctx, phone)
		if len(s) != pairing.Digits {
			t.Errorf("code %q", s)
		}
		return " " + s[:3] + "-" + s[3:], err
	}}, r.phoneOptions())
	if de != nil || pe != nil {
		t.Fatal(de, pe)
	}
}

func TestWrongDigits(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	_, _, de, pe := r.pair(t, pairing.DeviceOptions{Name: "laptop", Code: func(ctx context.Context, phone string) (string, error) {
		s, err := r.typed(ctx, phone)
		return string(s[0]^1) + s[1:], err
	}}, r.phoneOptions())
	if !errors.Is(de, pairing.ErrWrongCode) || pe == nil || len(r.stored) != 0 {
		t.Errorf("device %v, phone %v, stored %v", de, pe, r.stored)
	}
}

func TestDeclined(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	po := r.phoneOptions()
	po.Confirm = func(ctx context.Context, device, code string) error {
		return pairing.ErrDeclined
	}
	_, _, de, pe := r.pair(t, pairing.DeviceOptions{Name: "laptop", Code: r.typed}, po)
	if !errors.Is(de, pairing.ErrDeclined) || !errors.Is(pe, pairing.ErrDeclined) || len(r.stored) != 0 {
		t.Errorf("device %v, phone %v, stored %v", de, pe, r.stored)
	}
}

// The owner accepts, and the device has not proved anything: nothing is stored.
func TestAcceptedWithoutProof(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	gaveUp := errors.New("user walked away")
	_, _, de, pe := r.pair(t, pairing.DeviceOptions{Name: "laptop", Code: func(context.Context, string) (string, error) {
		<-r.shown
		return "", gaveUp
	}}, r.phoneOptions())
	if !errors.Is(de, gaveUp) || pe == nil || len(r.stored) != 0 {
		t.Errorf("device %v, phone %v, stored %v", de, pe, r.stored)
	}
}

// The device leaves while the phone asks its owner: the question ends.
func TestDeviceLeaves(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	po := r.phoneOptions()
	asking := make(chan struct{})
	po.Confirm = func(ctx context.Context, device, code string) error {
		close(asking)
		<-ctx.Done()
		return ctx.Err()
	}
	d, p := conns(t, r.device, r.phone)
	_, _, de, pe := r.run(t, d, p, pairing.DeviceOptions{Name: "laptop", Code: func(context.Context, string) (string, error) {
		<-asking
		d.Close()
		return "", errors.New("gone")
	}}, po)
	if de == nil || pe == nil || len(r.stored) != 0 {
		t.Errorf("device %v, phone %v, stored %v", de, pe, r.stored)
	}
}

func TestStoreFails(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	po := r.phoneOptions()
	full := errors.New("disk full")
	po.Store = func(pairing.Peer) error { return full }
	_, _, de, pe := r.pair(t, pairing.DeviceOptions{Name: "laptop", Code: r.typed}, po)
	if de == nil || !strings.Contains(de.Error(), "disk full") || !errors.Is(pe, full) {
		t.Errorf("device %v, phone %v", de, pe)
	}
}

func TestURLPairing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	u := pairing.NewURL("laptop", r.device.Pin())
	po := r.phoneOptions()
	po.Secret, po.Expect, po.Confirm = u.Secret[:], u.Pin, nil
	d, p, de, pe := r.pair(t, pairing.DeviceOptions{Name: "laptop", Secret: u.Secret[:]}, po)
	if de != nil || pe != nil || d.Pin != r.phone.Pin() || p.Pin != r.device.Pin() {
		t.Errorf("device %v %v, phone %v %v", d, de, p, pe)
	}
}

func TestURLRefused(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		device func(*pairing.DeviceOptions)
		phone  func(*pairing.PhoneOptions)
		want   error // at either end
	}{
		"other secret at the device": {func(o *pairing.DeviceOptions) { o.Secret = make([]byte, 16) }, nil, pairing.ErrProof},
		"other device":               {nil, func(o *pairing.PhoneOptions) { o.Expect[0] ^= 1 }, pairing.ErrNoWindow},
		"digits at the device":       {func(o *pairing.DeviceOptions) { o.Secret = nil }, nil, pairing.ErrMethod},
		"digits at the phone":        {nil, func(o *pairing.PhoneOptions) { o.Secret = nil }, pairing.ErrMethod},
		"window taken": {nil, func(o *pairing.PhoneOptions) { o.Begin = func() error { return pairing.ErrNoWindow } },
			pairing.ErrNoWindow},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			u := pairing.NewURL("laptop", r.device.Pin())
			do := pairing.DeviceOptions{Name: "laptop", Secret: u.Secret[:], Code: r.typed}
			po := r.phoneOptions()
			po.Secret, po.Expect = u.Secret[:], u.Pin
			if test.device != nil {
				test.device(&do)
			}
			if test.phone != nil {
				test.phone(&po)
			}
			_, _, de, pe := r.pair(t, do, po)
			if de == nil || pe == nil || len(r.stored) != 0 {
				t.Errorf("device %v, phone %v, stored %v", de, pe, r.stored)
			}
			if !errors.Is(de, test.want) && !errors.Is(pe, test.want) {
				t.Errorf("device %v, phone %v, want %v", de, pe, test.want)
			}
		})
	}
}

// A device that pairs by the other method does not use the window up.
func TestMethodIsLookedAtFirst(t *testing.T) {
	t.Parallel()
	for _, byURL := range []bool{false, true} {
		r := newRig(t)
		u := pairing.NewURL("laptop", r.device.Pin())
		do := pairing.DeviceOptions{Name: "laptop", Code: r.typed}
		po := r.phoneOptions()
		if byURL {
			do.Secret = u.Secret[:]
		} else {
			po.Secret, po.Expect = u.Secret[:], u.Pin
		}
		po.Begin = func() error { t.Error("begun"); return nil }
		po.Spend = func() error { t.Error("spent"); return nil }
		_, _, de, pe := r.pair(t, do, po)
		if !errors.Is(de, pairing.ErrMethod) || !errors.Is(pe, pairing.ErrMethod) {
			t.Errorf("device %v, phone %v", de, pe)
		}
	}
}

// With digits the window is used up before the device gets what it could know
// them from: it cannot look and try again. With a URL it is used up by the proof
// alone.
func TestWhatUsesTheWindow(t *testing.T) {
	t.Parallel()
	for _, byURL := range []bool{false, true} {
		r := newRig(t)
		u := pairing.NewURL("laptop", r.device.Pin())
		po := r.phoneOptions()
		if byURL {
			po.Secret, po.Expect = u.Secret[:], u.Pin
		}
		var calls []string
		po.Begin = func() error { calls = append(calls, "begin"); return nil }
		po.Spend = func() error { calls = append(calls, "spend"); return nil }
		d, p := conns(t, r.device, r.phone)
		phone := make(chan error, 1)
		go func() {
			_, err := pairing.Phone(t.Context(), p, r.phone.Pin(), envelope.Hello{Name: po.Name, Clock: envelope.At(time.Unix(0, 0))}, po)
			phone <- err
		}()
		if _, err := pairing.Offer(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		if err := d.Send(envelope.Envelope{ID: "pair", Payload: &envelope.PairRequest{Name: "laptop", Commitment: make([]byte, 32), URL: byURL}}); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Receive(); err != nil { // the phone's nonce
			t.Fatal(err)
		}
		d.Close()
		if err := <-phone; err == nil {
			t.Error("paired")
		}
		if got := strings.Join(calls, " "); got != "begin" {
			t.Errorf("URL %v: %s", byURL, got)
		}
		if !byURL {
			continue
		}
		po.Spend = func() error { return pairing.ErrNoWindow }
		_, _, de, pe := r.pair(t, pairing.DeviceOptions{Name: "laptop", Secret: u.Secret[:]}, po)
		if !errors.Is(de, pairing.ErrNoWindow) || !errors.Is(pe, pairing.ErrNoWindow) || len(r.stored) != 0 {
			t.Errorf("spent already: device %v, phone %v", de, pe)
		}
	}
}

// An end that stalls where no person is asked is given up within seconds.
func TestStalled(t *testing.T) {
	t.Parallel()
	const soon = 6 * time.Second
	for name, test := range map[string]struct {
		byURL bool
		say   []envelope.Payload
	}{
		"after its request":          {false, []envelope.Payload{&envelope.PairRequest{Name: "laptop", Commitment: make([]byte, 32)}}},
		"after its request, by URL":  {true, []envelope.Payload{&envelope.PairRequest{Name: "laptop", Commitment: make([]byte, 32), URL: true}}},
		"with its proof, by URL":     {true, nil},
		"phone that answers nothing": {false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				d, p := conns(t, r.device, r.phone)
				defer d.Close()
				defer p.Close()
				hello := envelope.Hello{Name: "Pocket", Clock: envelope.At(time.Now())}
				start := time.Now()
				ended := make(chan error, 1)
				if strings.HasPrefix(name, "phone") {
					if err := p.Send(envelope.Envelope{Payload: &hello}); err != nil {
						t.Fatal(err)
					}
					go func() {
						_, err := pairing.Offer(t.Context(), d)
						if err == nil {
							_, err = pairing.Device(t.Context(), d, r.device.Pin(), pairing.DeviceOptions{Name: "laptop", Code: r.typed})
						}
						ended <- err
					}()
				} else {
					u := pairing.NewURL("laptop", r.device.Pin())
					po := r.phoneOptions()
					if test.byURL {
						po.Secret, po.Expect = u.Secret[:], u.Pin
					}
					go func() {
						_, err := pairing.Phone(t.Context(), p, r.phone.Pin(), hello, po)
						ended <- err
					}()
					if _, err := pairing.Offer(t.Context(), d); err != nil {
						t.Fatal(err)
					}
					for _, m := range test.say {
						if err := d.Send(envelope.Envelope{ID: "pair", Payload: m}); err != nil {
							t.Fatal(err)
						}
					}
					if test.say == nil { // an honest start, and no proof
						if err := pairing.StallBeforeProof(d, r.device.Pin(), u.Secret[:]); err != nil {
							t.Fatal(err)
						}
					}
				}
				if err := <-ended; !errors.Is(err, pairing.ErrStalled) || time.Since(start) > soon {
					t.Errorf("%v after %v", err, time.Since(start))
				}
			})
		})
	}
}

// Who leaves has not declined, and the other end is told so.
func TestStopped(t *testing.T) {
	t.Parallel()
	for _, deviceStops := range []bool{true, false} {
		r := newRig(t)
		d, p := conns(t, r.device, r.phone)
		ctx, stop := context.WithCancelCause(t.Context())
		interrupted := errors.New("interrupted")
		dctx, pctx := t.Context(), t.Context()
		if deviceStops {
			dctx = ctx
		} else {
			pctx = ctx
		}
		wait := func(ctx context.Context) error {
			<-ctx.Done()
			return context.Cause(ctx)
		}
		po := r.phoneOptions()
		po.Confirm = func(ctx context.Context, _, code string) error {
			stop(interrupted)
			return wait(ctx)
		}
		phone := make(chan error, 1)
		go func() {
			_, err := pairing.Phone(pctx, p, r.phone.Pin(), envelope.Hello{Name: "Pocket", Clock: envelope.At(time.Unix(0, 0))}, po)
			phone <- err
		}()
		_, de := pairing.Offer(dctx, d)
		if de == nil {
			_, de = pairing.Device(dctx, d, r.device.Pin(), pairing.DeviceOptions{Name: "laptop",
				Code: func(ctx context.Context, _ string) (string, error) { return "", wait(ctx) }})
		}
		pe := <-phone
		stopper, other := pe, de
		if deviceStops {
			stopper, other = de, pe
		}
		if !errors.Is(stopper, interrupted) || !errors.Is(other, pairing.ErrStopped) || errors.Is(other, pairing.ErrDeclined) {
			t.Errorf("who stops %v, the other end %v", stopper, other)
		}
	}
}

// TestThreat_T09_NumbersDifferInTheMiddle puts a stranger between the two ends,
// who pairs with both and passes the messages on: the digits differ, and
// nothing is stored.
func TestThreat_T09_NumbersDifferInTheMiddle(t *testing.T) {
	t.Parallel()
	for range 5 { // one in a million each
		r := newRig(t)
		middle := conformance.NewIdentity(t)
		d, mp := conns(t, r.device, middle) // the device's connection ends in the middle
		md, p := conns(t, middle, r.phone)
		var relay sync.WaitGroup
		for _, way := range [][2]*transport.Conn{{mp, md}, {md, mp}} {
			relay.Go(func() {
				for {
					e, err := way[0].Receive()
					if err != nil {
						way[1].Close()
						return
					}
					if way[1].Send(e) != nil {
						way[0].Close()
						return
					}
				}
			})
		}
		_, _, de, pe := r.run(t, d, p, pairing.DeviceOptions{Name: "laptop", Code: r.typed}, r.phoneOptions())
		relay.Wait()
		// The commitment holds the pins, so that the phone sees the fraud before any
		// digits are shown.
		if de == nil || !errors.Is(pe, pairing.ErrProof) || len(r.stored) != 0 || len(r.shown) != 0 {
			t.Errorf("device %v, phone %v, stored %v", de, pe, r.stored)
		}
	}
}

// A stranger in the middle who runs an exchange of his own on each side, and
// shows the user a number of his own: the device has another one.
func TestThreat_T09_TwoExchanges(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	middle := conformance.NewIdentity(t)
	d, mp := conns(t, r.device, middle)
	md, p := conns(t, middle, r.phone)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() { // towards the device, as a phone whose owner accepts everything
		pairing.Phone(ctx, mp, middle.Pin(), envelope.Hello{Name: "Pocket", Clock: envelope.At(time.Unix(0, 0))},
			pairing.PhoneOptions{Name: "Pocket", Confirm: func(ctx context.Context, _, code string) error { return nil },
				Store: func(pairing.Peer) error { return nil }})
	})
	all.Go(func() { // towards the phone, as a device that cannot know its code
		if _, err := pairing.Offer(ctx, md); err == nil {
			pairing.Device(ctx, md, middle.Pin(), pairing.DeviceOptions{Name: "laptop", Code: func(ctx context.Context, _ string) (string, error) {
				<-ctx.Done()
				return "", ctx.Err()
			}})
		}
	})
	phone := make(chan error, 1)
	go func() {
		_, err := pairing.Phone(ctx, p, r.phone.Pin(), envelope.Hello{Name: "Pocket", Clock: envelope.At(time.Unix(0, 0))}, r.phoneOptions())
		phone <- err
	}()
	if _, err := pairing.Offer(ctx, d); err != nil {
		t.Fatal(err)
	}
	_, de := pairing.Device(ctx, d, r.device.Pin(), pairing.DeviceOptions{Name: "laptop", Code: r.typed})
	cancel()
	pe := <-phone
	all.Wait()
	if !errors.Is(de, pairing.ErrWrongCode) || pe == nil || len(r.stored) != 0 {
		t.Errorf("device %v, phone %v, stored %v", de, pe, r.stored)
	}
}

func TestCleanName(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"Mac": "Mac", " Mac ": "Mac", "a\x00b\x1bc\nd": "abcd", "": "unnamed", "\n": "unnamed", "x\u202Ey": "xy",
		"Mac\ufe0f": "Mac", "M\u3164a\u034fc\U000e0100": "Mac", "\u2800Mac\u17b4": "Mac", "e\u0301": "e\u0301",
		"\xff\xfe": "unnamed", "Jürgens Mac": "Jürgens Mac", strings.Repeat("ü", 40): strings.Repeat("ü", 31),
	} {
		if got := pairing.CleanName(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestURL(t *testing.T) {
	t.Parallel()
	u := pairing.NewURL("Jürgen's Mac", conformance.NewIdentity(t).Pin())
	s := u.String()
	if strings.ContainsAny(s, " '\"$&?#;*()<>|\\`!~[]{}") {
		t.Errorf("%s needs quotes in a shell", s)
	}
	if got, err := pairing.ParseURL(s); err != nil || got != u {
		t.Errorf("%s read as %v, %v", s, got, err)
	}
	for _, bad := range []string{"", "vmux-pair://1/", s + "/", s + "\n", " " + s, s[:len(s)-len("Mac")-3] + "/x", strings.Replace(s, "/1/", "/2/", 1),
		strings.ToLower(s), strings.Replace(s, "%20", "+", 1), strings.Replace(s, "%20", "%1B", 1), strings.Replace(s, "M", "%4D", 1), s + strings.Repeat("x", 300)} {
		if _, err := pairing.ParseURL(bad); !errors.Is(err, pairing.ErrBadURL) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
