// SPDX-License-Identifier: BSD-3-Clause

package transport_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/transport"
	"vmux.app/toolkit/internal/transport/conformance"
	"vmux.app/toolkit/internal/transport/mem"
)

// pair gives a link and the raw stream below its phone's end, inside a bubble.
func pair(t *testing.T, h transport.Handler, tell ...envelope.Payload) (*transport.Link, net.Conn) {
	t.Helper()
	device, phone := conformance.NewIdentity(t), conformance.NewIdentity(t)
	here, there := mem.Pipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		c, err := transport.Server(context.Background(), there, phone, func(string, transport.Pin) error { return nil })
		if err != nil {
			t.Error(err)
			return
		}
		transport.Serve(context.Background(), c, envelope.Hello{Name: "Pocket"}, h, func() []envelope.Payload { return tell })
	}()
	c, err := transport.Client(t.Context(), here, device, transport.ProtoLink, conformance.Pinned(phone.Pin()))
	if err != nil {
		t.Fatal(err)
	}
	l, err := transport.Open(t.Context(), c, envelope.Hello{Name: "laptop"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.Close()
		there.Close()
		<-served
	})
	return l, there
}

func request() *envelope.SignRequest {
	return &envelope.SignRequest{PublicKeyBlob: []byte("k"), Data: []byte("d"), CreatedAt: envelope.At(time.Now())}
}

// A phone that thinks for a minute is not taken for a phone that is gone.
func TestPendingKeepsARequestAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := pair(t, func(ctx context.Context, id string, req envelope.Payload) (envelope.Payload, error) {
			select {
			case <-time.After(time.Minute):
			case <-ctx.Done():
			}
			return &envelope.SignResponse{Signature: []byte("s")}, nil
		})
		start := time.Now()
		if _, err := l.Call(t.Context(), "a", request()); err != nil {
			t.Fatalf("after %v: %v", time.Since(start), err)
		}
	})
}

func TestSilentPhone(t *testing.T) {
	for name, test := range map[string]struct {
		stallAfter   time.Duration // the black hole begins so long after the request
		idle         time.Duration // before the request
		failsWithin  time.Duration
		acknowledged bool
	}{
		"never a word":       {0, 0, 3 * time.Second, false},
		"idle for a while":   {0, 6 * time.Second, 1 * time.Second, false},
		"in mid-request":     {2 * time.Second, 0, 9 * time.Second, true},
		"after many a while": {31 * time.Second, 0, 39 * time.Second, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, phone := pair(t, func(ctx context.Context, id string, req envelope.Payload) (envelope.Payload, error) {
					<-ctx.Done()
					return nil, ctx.Err()
				})
				<-time.After(test.idle)
				time.AfterFunc(test.stallAfter, func() { mem.Stall(phone) })
				synctest.Wait()
				start := time.Now()
				_, err := l.Call(t.Context(), "a", request())
				var lost *transport.LostError
				if !errors.As(err, &lost) || lost.Acknowledged != test.acknowledged {
					t.Errorf("error %v", err)
				}
				if d := time.Since(start); d > test.failsWithin {
					t.Errorf("noticed after %v, not within %v", d, test.failsWithin)
				}
				phone.Close()
			})
		})
	}
}

// An idle link lives on, and its loss is noticed without a request.
func TestIdleLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, phone := pair(t, nil)
		<-time.After(time.Hour)
		if err := l.Err(); err != nil {
			t.Fatalf("an idle link ended: %v", err)
		}
		mem.Stall(phone)
		select {
		case <-l.Done():
		case <-time.After(32 * time.Second):
			t.Error("a black hole went unnoticed for 32 s")
		}
		phone.Close()
	})
}

// The phone gives up a device that is gone.
func TestPhoneDropsSilentDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		device, phone := conformance.NewIdentity(t), conformance.NewIdentity(t)
		here, there := mem.Pipe()
		served := make(chan error, 1)
		go func() {
			c, err := transport.Server(context.Background(), there, phone, func(string, transport.Pin) error { return nil })
			if err != nil {
				served <- err
				return
			}
			served <- transport.Serve(context.Background(), c, envelope.Hello{Name: "Pocket"}, nil, nil)
		}()
		c, err := transport.Client(t.Context(), here, device, transport.ProtoLink, conformance.Pinned(phone.Pin()))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Receive(); err != nil {
			t.Fatal(err)
		}
		if err := c.Send(envelope.Envelope{Payload: &envelope.Hello{Name: "laptop", Clock: envelope.At(time.Now())}}); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := <-served; err == nil {
			t.Error("the silent device's end came as an orderly one")
		}
		if d := time.Since(start); d > 90*time.Second {
			t.Errorf("gave up after %v", d)
		}
		c.Close()
	})
}

// An approval that comes after the request was withdrawn reaches nobody.
func TestLateAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		device, phone := conformance.NewIdentity(t), conformance.NewIdentity(t)
		here, there := mem.Pipe()
		served := make(chan struct{})
		go func() {
			defer close(served)
			c, err := transport.Server(context.Background(), there, phone, func(string, transport.Pin) error { return nil })
			if err != nil {
				t.Error(err)
				return
			}
			transport.Serve(context.Background(), c, envelope.Hello{Name: "Pocket"}, func(ctx context.Context, id string, req envelope.Payload) (envelope.Payload, error) {
				<-ctx.Done()
				return &envelope.SignResponse{Signature: []byte("too late")}, nil
			}, nil)
		}()
		c, err := transport.Client(t.Context(), here, device, transport.ProtoLink, conformance.Pinned(phone.Pin()))
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			c.Close()
			<-served
		}()
		if _, err := c.Receive(); err != nil {
			t.Fatal(err)
		}
		for _, e := range []envelope.Envelope{
			{Payload: &envelope.Hello{Name: "laptop", Clock: envelope.At(time.Now())}},
			{ID: "a", Payload: request()},
			{ID: "a", Payload: &envelope.Cancel{}},
			{ID: "b", Payload: &envelope.Ping{}},
		} {
			if err := c.Send(e); err != nil {
				t.Fatal(err)
			}
		}
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		var got []envelope.Type
		for {
			e, err := c.Receive()
			if err != nil {
				break // nothing more came
			}
			if got = append(got, e.Payload.Type()); e.Payload.Type() == envelope.TypeSignResponse || e.Payload.Type() == envelope.TypeError {
				t.Errorf("a withdrawn request was answered with %s", e.Payload.Type())
			}
		}
		if !slices.Contains(got, envelope.TypePong) {
			t.Errorf("the link did not go on: %v", got)
		}
	})
}

// What the phone tells without being asked arrives, the latest only, and holds
// up no answer while nobody takes it.
func TestTokens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		told := []envelope.Payload{
			&envelope.DeviceTokenUpdate{Token: []byte("old"), Environment: envelope.Sandbox, Topic: "app"},
			&envelope.DeviceTokenUpdate{Token: []byte("new"), Environment: envelope.Production, Topic: "app"},
		}
		l, _ := pair(t, func(context.Context, string, envelope.Payload) (envelope.Payload, error) {
			return &envelope.SignResponse{Signature: []byte("s")}, nil
		}, told...)
		synctest.Wait()
		if _, err := l.Call(t.Context(), transport.NewID(), request()); err != nil {
			t.Fatal(err)
		}
		u := <-l.Tokens()
		if string(u.Token) != "new" || u.Environment != envelope.Production || u.Topic != "app" {
			t.Errorf("%+v", u)
		}
		select {
		case u := <-l.Tokens():
			t.Errorf("one more: %+v", u)
		default:
		}
	})
}
