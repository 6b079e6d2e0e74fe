// SPDX-License-Identifier: BSD-3-Clause

package wake

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"vmux.app/toolkit/internal/wake/apns"
	"vmux.app/toolkit/internal/wake/apnstest"
)

// For six hours, by two processes: each authorization is used for 40 minutes, by both, and the service, which allows one
// new one in 20 minutes, refuses none.
func TestAuthorizationReused(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, r *rig) {
		other, err := New(r.client.options)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		const step, n = 13 * time.Minute, 28
		for range n {
			for _, c := range []*Client{r.client, other} {
				if _, err := c.Push(t.Context(), target, Alert, time.Time{}); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(step)
		}
		first := make(map[string]time.Time)
		for _, p := range r.Pushes() {
			if first[p.Bearer].IsZero() {
				first[p.Bearer] = p.Time
			}
			if age := p.Time.Sub(first[p.Bearer]); age >= 40*time.Minute {
				t.Errorf("an authorization is used for %v", age)
			}
		}
		if want := int((n-1)*step/(40*time.Minute)) + 1; len(first) != want {
			t.Errorf("%d authorizations, not %d", len(first), want)
		}
	})
}

// Setting the clock does not make it use one that Apple takes for too old or for one to come.
func TestAuthorizationClock(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, r *rig) {
		time.Sleep(time.Hour)
		for _, issued := range []time.Duration{0, -window * time.Second, -3 * window * time.Second, time.Second, 24 * time.Hour} {
			r.client.auth = authorization{bearer: "old", issued: time.Now().Add(issued).Unix()}
			bearer, _, err := r.client.authorize()
			if old := bearer == "old"; err != nil || old != (issued == 0) {
				t.Errorf("issued %v from now: old %t, %v", issued, old, err)
			}
		}
	})
}

// A refused authorization is made anew once, and not again within 20 minutes.
func TestRenew(t *testing.T) {
	t.Parallel()
	for _, code := range []string{"ExpiredProviderToken", "InvalidProviderToken"} {
		bubble(t, func(t *testing.T, r *rig) {
			no := apnstest.Answer{Status: 403, Reason: code}
			time.Sleep(5 * time.Minute)
			push := func(attempts int, taken bool) {
				t.Helper()
				begin := time.Now()
				res, err := r.push(t, Alert)
				if refused, ok := errors.AsType[*apns.RefusedError](err); res.Attempts != attempts || (err == nil) != taken || !taken && (!ok || refused.Reason.Code != code) {
					t.Errorf("%s: %+v, %v, want %d attempts, taken %t", code, res, err, attempts, taken)
				}
				if d := time.Since(begin); d != 0 {
					t.Errorf("%s: renewing took %v", code, d)
				}
			}
			r.Answer(no)
			push(2, true)
			time.Sleep(18 * time.Minute)
			r.Answer(no)
			push(1, false) // it was renewed
			time.Sleep(time.Minute)
			push(1, true)
			time.Sleep(2 * time.Minute)
			r.Answer(no, no)
			push(2, false)
			push(1, true)
			p := r.Pushes()
			if p[0].Bearer == p[1].Bearer || p[1].Bearer != p[2].Bearer || p[2].Bearer != p[3].Bearer || p[4].Bearer == p[5].Bearer || p[5].Bearer != p[6].Bearer {
				t.Errorf("%s: not renewed when it should be, or the other way round", code)
			}
			for _, i := range []int{1, 5} {
				if !p[i].IssuedAt.Equal(p[i].Time) {
					t.Errorf("%s: renewed at %v, issued at %v", code, p[i].Time, p[i].IssuedAt)
				}
			}
			if p[0].Header.Get("apns-id") != p[1].Header.Get("apns-id") {
				t.Errorf("%s: the second attempt has another id", code)
			}
		})
	}
}

// Two pushes at once that are both refused renew once.
func TestRenewTogether(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, r *rig) {
		time.Sleep(time.Minute)
		used, _, err := r.client.authorize()
		if err != nil || !r.client.renew(used) {
			t.Fatalf("not renewed: %v", err)
		}
		now, _, _ := r.client.authorize()
		if !r.client.renew(used) {
			t.Error("the second one has no other authorization")
		}
		if again, _, _ := r.client.authorize(); again != now || now == used {
			t.Error("renewed twice, or not at all")
		}
	})
}

// What may help is tried again, with growing delays, while there is time.
func TestBackOff(t *testing.T) {
	t.Parallel()
	unavailable := apnstest.Answer{Status: 503, Reason: "ServiceUnavailable"}
	busy := apnstest.Answer{Status: 429, Reason: "TooManyRequests"}
	after := func(s string) apnstest.Answer {
		return apnstest.Answer{Status: 429, Reason: "TooManyRequests", RetryAfter: s}
	}
	const ms = time.Millisecond
	for name, c := range map[string]struct {
		answers     []apnstest.Answer
		deadline    time.Duration
		attempts    int
		taken       bool
		least, most time.Duration
	}{
		"503 once":            {[]apnstest.Answer{unavailable}, 20 * time.Second, 2, true, 250 * ms, 500 * ms},
		"429 twice":           {[]apnstest.Answer{busy, busy}, 20 * time.Second, 3, true, 750 * ms, 1500 * ms},
		"500, 503":            {[]apnstest.Answer{{Status: 500, Reason: "InternalServerError"}, {Status: 503, Reason: "Shutdown"}}, 20 * time.Second, 3, true, 750 * ms, 1500 * ms},
		"503 for ever":        {[]apnstest.Answer{unavailable, unavailable, unavailable, unavailable}, 20 * time.Second, 4, false, 1750 * ms, 3500 * ms},
		"502 of a relay":      {[]apnstest.Answer{{Status: 502, Body: []byte("<html>")}}, 20 * time.Second, 2, true, 250 * ms, 500 * ms},
		"idle":                {[]apnstest.Answer{{Status: 400, Reason: "IdleTimeout"}}, 20 * time.Second, 2, true, 250 * ms, 500 * ms},
		"Retry-After 3":       {[]apnstest.Answer{after("3")}, 20 * time.Second, 2, true, 3 * time.Second, 3 * time.Second},
		"Retry-After a date":  {[]apnstest.Answer{after("Sat, 01 Jan 2000 00:00:04 GMT")}, 20 * time.Second, 2, true, 4 * time.Second, 4 * time.Second},
		"Retry-After past":    {[]apnstest.Answer{after("Sat, 01 Jan 1999 00:00:04 GMT")}, 20 * time.Second, 2, true, 250 * ms, 500 * ms},
		"Retry-After 0":       {[]apnstest.Answer{after("0")}, 20 * time.Second, 2, true, 250 * ms, 500 * ms},
		"Retry-After word":    {[]apnstest.Answer{after("soon")}, 20 * time.Second, 2, true, 250 * ms, 500 * ms},
		"Retry-After an hour": {[]apnstest.Answer{after("3600")}, 2 * time.Hour, 1, false, 0, 0},
		"Retry-After huge":    {[]apnstest.Answer{after("99999999999999999999")}, 20 * time.Second, 2, true, 250 * ms, 500 * ms},
		"no time to wait":     {[]apnstest.Answer{after("5")}, 3 * time.Second, 1, false, 0, 0},
		"deadline":            {[]apnstest.Answer{busy, busy, busy, busy}, 600 * ms, 2, false, 250 * ms, 500 * ms},
		"authorizations":      {[]apnstest.Answer{{Status: 429, Reason: "TooManyProviderTokenUpdates"}}, 20 * time.Second, 1, false, 0, 0},
		"bad token":           {[]apnstest.Answer{{Status: 400, Reason: "BadDeviceToken"}}, 20 * time.Second, 1, false, 0, 0},
		"broken off":          {[]apnstest.Answer{{Break: true}}, 20 * time.Second, 2, true, 250 * ms, 500 * ms},
		"broken off for ever": {[]apnstest.Answer{{Break: true}, {Break: true}, {Break: true}, {Break: true}}, 20 * time.Second, 4, false, 1750 * ms, 3500 * ms},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T, r *rig) {
				r.Answer(c.answers...)
				ctx, cancel := context.WithTimeout(t.Context(), c.deadline)
				defer cancel()
				begin := time.Now()
				res, err := r.client.Push(ctx, target, Alert, time.Time{})
				took := time.Since(begin)
				if res.Attempts != c.attempts || (err == nil) != c.taken || took < c.least || took > c.most {
					t.Errorf("%+v, %v after %v", res, err, took)
				}
				if errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("the reason is lost: %v", err)
				}
				ids := make(map[string]bool)
				for _, p := range r.Pushes() {
					ids[p.Header.Get("apns-id")] = true
				}
				if len(ids) != 1 || len(r.Pushes()) != c.attempts {
					t.Errorf("%d requests with %d ids", len(r.Pushes()), len(ids))
				}
			})
		})
	}
}

// Delays differ.
func TestJitter(t *testing.T) {
	t.Parallel()
	waits := make(map[time.Duration]bool)
	for range 5 {
		bubble(t, func(t *testing.T, r *rig) {
			r.Answer(apnstest.Answer{Status: 503})
			begin := time.Now()
			if _, err := r.push(t, Alert); err != nil {
				t.Error(err)
			}
			waits[time.Since(begin)] = true
		})
	}
	if len(waits) < 3 {
		t.Errorf("%v", waits)
	}
}

// Everything ends with the context, at once, and leaves nothing behind: the bubble would not end.
func TestContext(t *testing.T) {
	t.Parallel()
	hang := []apnstest.Answer{{Hang: true}, {Hang: true}, {Hang: true}, {Hang: true}}
	block := func(ctx context.Context, _, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
	mute := func(ctx context.Context, _, _ string) (net.Conn, error) { // accepts and says nothing
		client, server := net.Pipe()
		context.AfterFunc(ctx, func() { server.Close() })
		return client, nil
	}
	for name, c := range map[string]struct {
		answers []apnstest.Answer
		dial    func(context.Context, string, string) (net.Conn, error)
		problem apns.ConnectProblem // after the deadline
	}{
		"no answer":      {hang, nil, apns.NoAnswer},
		"no connection":  {nil, block, apns.NoAnswer},
		"no handshake":   {nil, mute, apns.NoAnswer},
		"waiting":        {[]apnstest.Answer{{Status: 429, RetryAfter: "10"}}, nil, -1},
		"refused before": {[]apnstest.Answer{{Status: 503, Reason: "Shutdown"}, {Hang: true}}, nil, -1},
		"ended at first": {nil, nil, -1},
	} {
		for _, cancelled := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, cancelled %t", name, cancelled), func(t *testing.T) {
				t.Parallel()
				bubble(t, func(t *testing.T, r *rig) {
					r.Answer(c.answers...)
					client := r.client
					if c.dial != nil {
						o := client.options
						o.Dial = c.dial
						var err error
						if client, err = New(o); err != nil {
							t.Fatal(err)
						}
						defer client.Close()
					}
					d := 2 * time.Second
					if name == "ended at first" {
						d = 0
					}
					ctx, cancel := context.WithTimeout(t.Context(), d)
					if cancelled {
						ctx, cancel = context.WithCancel(t.Context())
						time.AfterFunc(d, cancel)
					}
					defer cancel()
					if d == 0 {
						if cancelled {
							cancel()
						}
						<-ctx.Done()
					}
					begin := time.Now()
					res, err := client.Push(ctx, target, Alert, time.Time{})
					took := time.Since(begin)
					if name == "waiting" && res.Attempts != 1 {
						t.Errorf("%+v", res)
					}
					e, ok := errors.AsType[*apns.ConnectError](err)
					switch {
					case cancelled:
						if !errors.Is(err, context.Canceled) || ok || took != d {
							t.Errorf("%v after %v", err, took)
						}
					case name == "waiting": // there is no time for it
						if refused, ok := errors.AsType[*apns.RefusedError](err); !ok || refused.Reason.Status != 429 || took != 0 {
							t.Errorf("%v after %v", err, took)
						}
					case name == "refused before": // is better than that there is no answer now
						if refused, ok := errors.AsType[*apns.RefusedError](err); !ok || refused.Reason.Code != "Shutdown" || took != d {
							t.Errorf("%v after %v", err, took)
						}
					case !ok || e.Problem != apns.NoAnswer || took != d:
						t.Errorf("%v after %v", err, took)
					}
					if d == 0 && len(r.Pushes()) != 0 {
						t.Error("it was sent all the same")
					}
				})
			})
		}
	}
}

// blackhole is a connection whose other end has gone without a word.
type blackhole struct {
	net.Conn
	dead atomic.Bool
	once sync.Once
	done chan struct{}
}

func (b *blackhole) Read(p []byte) (int, error) {
	n, err := b.Conn.Read(p)
	if b.dead.Load() {
		<-b.done
		return 0, net.ErrClosed
	}
	return n, err
}

func (b *blackhole) Write(p []byte) (int, error) {
	if b.dead.Load() {
		return len(p), nil
	}
	return b.Conn.Write(p)
}

func (b *blackhole) Close() error {
	b.once.Do(func() { close(b.done) })
	return b.Conn.Close()
}

// A connection that died while the computer slept is found dead, and the push goes over a new one.
func TestDeadConnection(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, r *rig) {
		o := r.client.options
		dial, dialled := o.Dial, []*blackhole(nil)
		o.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			b := &blackhole{Conn: c, done: make(chan struct{})}
			dialled = append(dialled, b)
			return b, nil
		}
		client, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		for range 2 {
			if _, err := client.Push(t.Context(), target, Alert, time.Time{}); err != nil {
				t.Fatal(err)
			}
		}
		if len(dialled) != 1 {
			t.Fatalf("%d connections for two pushes", len(dialled))
		}
		dialled[0].dead.Store(true)
		begin := time.Now()
		res, err := client.Push(t.Context(), target, Alert, time.Time{})
		if took := time.Since(begin); err != nil || took > 8*time.Second || len(dialled) != 2 {
			t.Errorf("%+v, %v after %v over %d connections", res, err, took, len(dialled))
		}
	})
}

// Nobody listens at first.
func TestNetworkComesUp(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, r *rig) {
		o := r.client.options
		dial, down := o.Dial, 2
		o.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if down--; down >= 0 {
				return nil, errors.New("network is unreachable")
			}
			return dial(ctx, network, addr)
		}
		client, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		if res, err := client.Push(t.Context(), target, Alert, time.Time{}); err != nil || res.Attempts != 3 {
			t.Errorf("%+v, %v", res, err)
		}
		down = 1000
		other, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		res, err := other.Push(t.Context(), target, Alert, time.Time{})
		if e, ok := errors.AsType[*apns.ConnectError](err); !ok || e.Problem != apns.NoConnection || res.Attempts != attempts || res.Status != 0 ||
			!strings.HasSuffix(err.Error(), " cannot be reached: network is unreachable") {
			t.Errorf("%+v, %v", res, err)
		}
	})
}

// Every reason that Apple documents, over the wire.
func TestReasons(t *testing.T) {
	t.Parallel()
	since := time.Date(1999, 12, 31, 23, 0, 0, 0, time.UTC)
	for _, want := range append(apns.Reasons(), apns.Reason{Code: "SomethingNew", Status: 400}, apns.Reason{Status: 410, Gone: true}, apns.Reason{Status: 418}) {
		bubble(t, func(t *testing.T, r *rig) {
			a := apnstest.Answer{Status: want.Status, Reason: want.Code, Timestamp: since}
			r.Answer(a, a, a, a)
			time.Sleep(time.Minute)
			res, err := r.push(t, Alert)
			e, ok := errors.AsType[*apns.RefusedError](err)
			if !ok {
				t.Fatalf("%s: %v", want.Code, err)
			}
			tries := 1
			switch {
			case want.Again:
				tries = attempts
			case want.Renew:
				tries = 2
			}
			if res.Status != want.Status || res.Attempts != tries || e.ID != res.ID || !e.Since.Equal(since) {
				t.Errorf("%s: %+v, %+v", want.Code, res, e)
			}
			if want.Meaning != "" && e.Reason != want {
				t.Errorf("%+v is taken for %+v", want, e.Reason)
			}
			if errors.Is(err, apns.ErrTokenGone) != want.Gone {
				t.Errorf("%s: gone %t", want.Code, !want.Gone)
			}
			if !strings.Contains(err.Error(), fmt.Sprint(want.Status)) || e.Reason.Do == "" || e.Reason.Meaning == "" {
				t.Errorf("%s: %v, %s", want.Code, err, e.Reason.Do)
			}
		})
	}
}

// An answer that is not Apple's keeps its status, and what is in it is not believed.
func TestStrangeAnswers(t *testing.T) {
	t.Parallel()
	for _, body := range []string{
		"", "<html>bad gateway</html>", "null", "[]", "{", `{"reason":7}`, `{"reason":"Unregistered","reason":"BadDeviceToken"}`,
		`{"reason":"Unregistered","timestamp":"1"}`, `{"reason":"Unregistered","timestamp":-1}`, `{"Reason":"Unregistered"}`,
		`{"reason":"Unregistered"} x`, `{"reason":"Unregistered"}` + strings.Repeat(" ", 2*maxBody), `{"reason":"` + strings.Repeat("x", 100) + `"}`, strings.Repeat(" ", maxBody) + "{}",
	} {
		r := newRig(t, nil)
		r.Answer(apnstest.Answer{Status: 400, Body: []byte(body), ID: strings.Repeat("x", 36)})
		res, err := r.push(t, Alert)
		e, ok := errors.AsType[*apns.RefusedError](err)
		if !ok || res.Status != 400 || e.Reason.Code != "" || errors.Is(err, apns.ErrTokenGone) || !e.Since.IsZero() {
			t.Errorf("%.40q: %+v, %v", body, res, err)
		}
		if res.ID != r.Pushes()[0].Header.Get("apns-id") {
			t.Errorf("its id is %q", res.ID)
		}
	}
	r := newRig(t, nil)
	r.Answer(apnstest.Answer{Status: 410, Body: []byte(`{"reason":"Unregistered","timestamp":1700000000000,"more":{}}`)})
	_, err := r.push(t, Alert)
	if e, ok := errors.AsType[*apns.RefusedError](err); !ok || e.Reason.Code != "Unregistered" || e.Since.Unix() != 1700000000 {
		t.Errorf("with one more member: %v", err)
	}
}

// What is beyond the limit is not waited for.
func TestEndlessAnswer(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, r *rig) {
		r.Answer(apnstest.Answer{Status: 400, Body: bytes.Repeat([]byte("x"), 2*maxBody), Hang: true})
		begin := time.Now()
		_, err := r.push(t, Alert)
		if e, ok := errors.AsType[*apns.RefusedError](err); !ok || e.Reason.Status != 400 || time.Since(begin) != 0 {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
	})
}

// Memory is taken for neither a large body nor many headers.
func TestLargeAnswer(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, r *rig) {
		r.Answer(apnstest.Answer{Status: 410, Reason: "Unregistered", Body: bytes.Repeat([]byte("x"), 8<<20)})
		_, err := r.push(t, Alert)
		if e, ok := errors.AsType[*apns.RefusedError](err); !ok || e.Reason.Code != "" || e.Reason.Status != 410 {
			t.Errorf("%v", err)
		}
		a := apnstest.Answer{Status: 200, Header: make(http.Header)}
		for i := range 2 * maxHeader >> 10 {
			a.Header.Set(fmt.Sprint("X-", i), strings.Repeat("x", 1<<10))
		}
		r.Answer(a, a, a, a)
		res, err := r.push(t, Alert)
		if _, ok := errors.AsType[*apns.ConnectError](err); !ok {
			t.Errorf("%+v, %v", res, err)
		}
	})
}

// A redirection is not followed: the authorization would go along.
func TestRedirect(t *testing.T) {
	t.Parallel()
	for _, status := range []int{301, 302, 307, 308} {
		r := newRig(t, nil)
		r.Answer(apnstest.Answer{Status: status, Header: http.Header{"Location": {r.URL + "/3/device/" + device}}})
		_, err := r.push(t, Alert)
		if e, ok := errors.AsType[*apns.RefusedError](err); !ok || e.Reason.Status != status || !strings.Contains(e.Reason.Do, "--endpoint") {
			t.Errorf("%d: %v", status, err)
		}
		if n := len(r.Pushes()); n != 1 {
			t.Errorf("%d: %d requests", status, n)
		}
	}
}

// Pushes at the same time share a connection and an authorization.
func TestTogether(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := r.push(t, Silent); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	bearers := make(map[string]bool)
	for _, p := range r.Pushes() {
		bearers[p.Bearer] = true
	}
	if n := len(r.Pushes()); n != 20 || len(bearers) > 2 { // the clock may pass into another window
		t.Errorf("%d pushes with %d authorizations", n, len(bearers))
	}
}

// A relay behind a path, and an endpoint that ends in a slash.
func TestEndpointPath(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	paths := make(chan string, 1)
	for _, path := range []string{"", "/", "/relay/", "/relay"} {
		client := otherServer(t, r, true, func(w http.ResponseWriter, r *http.Request) { paths <- r.URL.Path })
		o := client.options
		o.Endpoint += path
		client, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		if _, err := client.Push(t.Context(), target, Alert, time.Time{}); err != nil {
			t.Errorf("%q: %v", path, err)
		}
		if got := <-paths; got != strings.TrimSuffix(path, "/")+"/3/device/"+device {
			t.Errorf("%q: %s", path, got)
		}
	}
}

// Apple's hosts, by environment.
func TestHosts(t *testing.T) {
	t.Parallel()
	for environment, host := range map[string]string{apns.Production: "api.push.apple.com", apns.Sandbox: "api.sandbox.push.apple.com"} {
		synctest.Test(t, func(t *testing.T) {
			var addrs []string
			c, err := New(Options{Key: newKey(t), KeyID: keyID, TeamID: teamID, Dial: func(_ context.Context, _, addr string) (net.Conn, error) {
				addrs = append(addrs, addr)
				return nil, errors.New("stop")
			}})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			ctx, cancel := context.WithTimeout(t.Context(), firstDelay/2) // no time for a second attempt
			defer cancel()
			to := target
			to.Environment = environment
			_, err = c.Push(ctx, to, Alert, time.Time{})
			if e, ok := errors.AsType[*apns.ConnectError](err); !ok || e.Host != host || !slices.Equal(addrs, []string{host + ":443"}) {
				t.Errorf("%s: %v, %q", environment, err, addrs)
			}
		})
	}
}
