// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"vmux.app/toolkit/internal/wake/apnstest"
)

// sleeper is a device with a push key and a paired phone, which has said how it
// is woken and is asleep.
type sleeper struct {
	*pushRig
	phone *phone
	agent *process
	wake  string // the phone's wake address
}

func newSleeper(t *testing.T, args ...string) *sleeper {
	t.Helper()
	r := newPushRig(t)
	p := newPhone(t)
	push := []string{"--approve", "always", "--device-token", pushToken, "--topic", pushTopic, "--environment", "sandbox"}
	p.serve(push...)
	pair(t, r.host, p)
	s := &sleeper{pushRig: r, phone: p, agent: r.host.agent(args...)}
	r.ok("ssh-add", "-L") // has the agent connect
	eventually(t, "the device token to be stored", func() bool {
		b, _ := os.ReadFile(r.path(stateFile))
		return strings.Contains(string(b), pushToken)
	})
	p.serving.stop(syscall.SIGTERM)
	p.serving = p.spawn("vmux-signer", append([]string{"serve", "--json", "--no-advertise", "--listen", p.address, "--asleep", "127.0.0.1:0"}, push...)...)
	var e struct {
		Event   string `json:"event"`
		Address string `json:"address"`
	}
	if err := json.Unmarshal([]byte(p.serving.wait(`^\{"event":"asleep".*`)[0]), &e); err != nil || e.Address == "" {
		t.Fatalf("%v, %v", e, err)
	}
	s.wake = e.Address
	return s
}

// pushed has the phone woken by the next push.
func (s *sleeper) pushed() {
	go func() {
		if len(s.service.Await(1, patience)) == 0 {
			return
		}
		if c, err := net.Dial("tcp", s.wake); err == nil {
			c.Close()
		}
	}()
}

// A sleeping phone is woken by one push for a burst of logins, which it then
// signs; what it gets by the push alone signs nothing.
func TestThreat_T03_SleepingPhone(t *testing.T) {
	t.Parallel()
	s := newSleeper(t)
	server := newServer(t, s.ok("ssh-add", "-L"))
	s.pushed()
	var logins sync.WaitGroup
	for range 5 {
		logins.Go(func() {
			if r := server.login(s.host, "true"); r.exit != 0 {
				t.Errorf("%v", r)
			}
		})
	}
	logins.Wait()
	pushes := s.service.Pushes()
	if len(pushes) != 1 {
		t.Fatalf("%d pushes", len(pushes))
	}
	if p := pushes[0]; p.DeviceToken != pushToken || p.Header.Get("apns-topic") != pushTopic || p.Header.Get("apns-push-type") != "alert" {
		t.Errorf("%+v", p)
	}
	for _, want := range []string{`msg="push sent" phone=Pocket`, `msg=connected`} {
		s.agent.wait(want)
	}
	if strings.Contains(s.agent.output(), pushToken) {
		t.Error("the log has the device token")
	}
}

// Without anything to push with, a phone that is off is missed within 3 s, and
// listed all the same. With it, a login ends within its deadline.
func TestThreat_T03_PhoneOff(t *testing.T) {
	t.Parallel()
	for name, wake := range map[string]bool{"without wake": false, "with wake": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSleeper(t, "--deadline", "6s")
			server := newServer(t, s.ok("ssh-add", "-L"))
			if !wake {
				if err := os.Remove(s.path(pushFile)); err != nil {
					t.Fatal(err)
				}
			}
			most, pushes := 3*time.Second, 0
			if wake {
				most, pushes = 6*time.Second, 1
			}
			keys := s.ok("ssh-add", "-L")
			start := time.Now()
			if r := server.login(s.host, "true"); r.exit == 0 {
				t.Error("logged in")
			}
			s.agent.wait(`msg="sign request" outcome=failed`)
			var took time.Duration
			for line := range strings.Lines(s.agent.output()) {
				if _, d, ok := strings.Cut(strings.TrimSpace(line), " duration="); ok && strings.Contains(line, "outcome=failed") {
					took, _ = time.ParseDuration(d)
				}
			}
			if took <= 0 || took > most+time.Second/4 {
				t.Errorf("failed after %v, the login after %v", took, time.Since(start))
			}
			if n := len(s.service.Pushes()); n != pushes {
				t.Errorf("%d pushes", n)
			}
			if got := s.ok("ssh-add", "-L"); got != keys || keys == "" {
				t.Errorf("keys %q, then %q", keys, got)
			}
		})
	}
}

// The push key is deleted under a running agent: nothing is pushed any more, and
// a phone in reach signs.
func TestThreat_I01_PushKeyDeleted(t *testing.T) {
	t.Parallel()
	s := newSleeper(t)
	server := newServer(t, s.ok("ssh-add", "-L"))
	if err := os.Remove(s.path(pushFile)); err != nil {
		t.Fatal(err)
	}
	if r := server.login(s.host, "true"); r.exit == 0 {
		t.Error("logged in with the phone asleep")
	}
	if c, err := net.Dial("tcp", s.wake); err != nil { // by hand
		t.Fatal(err)
	} else {
		c.Close()
	}
	s.phone.serving.wait(`"event":"listening"`)
	eventually(t, "a login", func() bool { return server.login(s.host, "true").exit == 0 })
	if n := len(s.service.Pushes()); n != 0 {
		t.Errorf("%d pushes", n)
	}
}

// What Apple says ends up in the log, and a token that is gone is forgotten until
// the phone sends it anew.
func TestRefusedPush(t *testing.T) {
	t.Parallel()
	s := newSleeper(t)
	server := newServer(t, s.ok("ssh-add", "-L"))
	s.service.Answer(apnstest.Answer{Status: 410, Reason: "Unregistered"})
	if r := server.login(s.host, "true"); r.exit == 0 {
		t.Error("logged in")
	}
	s.agent.wait(`msg="push not sent" phone=Pocket reason=".*Unregistered`)
	s.agent.wait(`device token forgotten`)
	eventually(t, "the token to be forgotten", func() bool {
		b, _ := os.ReadFile(s.path(stateFile))
		return len(b) > 0 && !strings.Contains(string(b), pushToken)
	})
	if out := fmt.Sprint(s.service.Problems()); out != "[]" {
		t.Error(out)
	}
}

// vmux-wake --wait says when the phone has come.
func TestWakeAndWait(t *testing.T) {
	t.Parallel()
	s := newSleeper(t)
	s.pushed()
	out := s.ok("vmux-wake", "--wait")
	if !regexp.MustCompile(`(?m)^Pocket answered at ` + regexp.QuoteMeta(s.phone.address) + `, \d+\.\d s after the push$`).MatchString(out) {
		t.Errorf("%q", out)
	}
	if r := s.run("vmux-wake", "--wait", "--device-token", "abcd"); r.exit != 2 || !strings.Contains(r.stderr, "--wait needs a paired phone") {
		t.Errorf("%v", r)
	}
}

// A push wakes the phone and asks it for nothing.
func TestThreat_T05_PushSignsNothing(t *testing.T) {
	t.Parallel()
	s := newSleeper(t)
	s.pushed()
	s.ok("vmux-wake", "--wait")
	if n := len(s.service.Pushes()); n != 1 {
		t.Errorf("%d pushes", n)
	}
	if out := s.phone.serving.output(); strings.Contains(out, `"event":"request"`) || !strings.Contains(out, `"event":"connected"`) {
		t.Errorf("%s", out)
	}
}
