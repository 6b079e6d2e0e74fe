// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"vmux.app/toolkit/internal/wake/apns"
	"vmux.app/toolkit/internal/wake/apnstest"
)

const (
	pushKeyID  = "ABC123DEFG"
	pushTeamID = "DEF123GHIJ"
	pushTopic  = "app.vmux.test"
	pushToken  = "d1e2f3a4b5c6d7e8f9a0b1c2d3e4f5a6b7c8d9e0f1a2b3c4d5e6f7a8b9c0d1e2"
	pushFile   = ".ssh/vmux-apns.p8"
	phonePin   = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	otherPin   = "SHA256:BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBA"
)

// pushRig is a device with a push key, and a push service that knows the key.
type pushRig struct {
	*host
	service *apnstest.Server
	key     *ecdsa.PrivateKey
}

func newPushKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func pushPEM(t testing.TB, key any) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func newPushRig(t testing.TB) *pushRig {
	t.Helper()
	r := &pushRig{host: newHost(t), key: newPushKey(t)}
	r.service = apnstest.New(t, apnstest.Options{Key: &r.key.PublicKey, KeyID: pushKeyID, TeamID: pushTeamID, Topic: pushTopic})
	r.write(pushFile, pushPEM(t, r.key), 0o600)
	r.use(r.service)
	return r
}

// use has the device's pushes go to s.
func (r *pushRig) use(s *apnstest.Server) {
	r.t.Helper()
	ca, err := os.ReadFile(s.CAFile())
	if err != nil {
		r.t.Fatal(err)
	}
	r.setenv("VMUX_WAKE_CA_FILE", r.write("relay.pem", string(ca), 0o644))
	r.setenv("VMUX_WAKE_ENDPOINT", s.URL)
	r.setenv("VMUX_WAKE_KEY_ID", pushKeyID)
	r.setenv("VMUX_WAKE_TEAM_ID", pushTeamID)
}

// phones writes the state of a device that is paired with these.
func (r *pushRig) phones(list ...string) {
	r.t.Helper()
	r.put(stateFile, `{"version":1,"phones":[`+strings.Join(list, ",")+`]}`, 0o600)
}

// pushPhone is a paired phone in a state.
func pushPhone(name, pin, token, topic, environment string) string {
	p := fmt.Sprintf(`{"name":%q,"pin":%q,"pairedAt":"2026-01-02T03:04:05Z","cachedKeys":[]`, name, pin)
	if token != "" {
		p += fmt.Sprintf(`,"deviceToken":{"token":%q,"environment":%q,"topic":%q,"updated":"2026-01-02T03:04:05Z"}`, token, environment, topic)
	}
	return p + "}"
}

// pushResult is what vmux-wake --json prints.
type pushResult struct {
	Push struct {
		APNsID       string `json:"apnsId"`
		APNsUniqueID string `json:"apnsUniqueId"`
		Status       int    `json:"status"`
		Reason       string `json:"reason"`
		Meaning      string `json:"meaning"`
		Hint         string `json:"hint"`
		Phone        string `json:"phone"`
		DeviceToken  string `json:"deviceToken"`
		Topic        string `json:"topic"`
		Environment  string `json:"environment"`
		Silent       bool   `json:"silent"`
		Attempts     int    `json:"attempts"`
		Milliseconds int64  `json:"milliseconds"`
	} `json:"push"`
}

// wake runs vmux-wake, looks that nothing leaks, and gives the first line of its JSON.
func (r *pushRig) wake(exit int, args ...string) (pushResult, result) {
	r.t.Helper()
	got := r.run("vmux-wake", append([]string{"--json"}, args...)...)
	if got.exit != exit {
		r.t.Fatalf("vmux-wake %q: want exit %d: %v", args, exit, got)
	}
	r.tight(got)
	var v pushResult
	line, _, _ := strings.Cut(got.stdout, "\n")
	if err := json.Unmarshal([]byte(line), &v, json.RejectUnknownMembers(true)); err != nil && strings.Contains(line, `"push"`) {
		r.t.Errorf("%s: %v", line, err)
	}
	return v, got
}

// tight looks for what must not be printed: more of the device token than its beginning, the authorization, the key.
func (r *pushRig) tight(got result) {
	r.t.Helper()
	secrets := []string{pushToken[:9], strings.Split(pushPEM(r.t, r.key), "\n")[1][:20], "bearer"}
	for _, p := range r.service.Pushes() {
		secrets = append(secrets, strings.Split(p.Bearer, ".")...)
	}
	for _, s := range secrets {
		if strings.Contains(got.stdout+got.stderr, s) {
			r.t.Errorf("%q is printed: %v", s, got)
		}
	}
}

// Where the device token comes from, and what is printed.
func TestWake(t *testing.T) {
	t.Parallel()
	r := newPushRig(t)
	r.phones(pushPhone("Pocket", phonePin, pushToken, pushTopic, "sandbox"), pushPhone("Mute", otherPin, "", "", ""))

	got := r.run("vmux-wake")
	r.tight(got)
	p := r.service.Pushes()[0]
	if want := fmt.Sprintf("apns-id  %s\nstatus   200 OK\n", p.Header.Get("apns-id")); got.exit != 0 || got.stdout != want || !strings.HasPrefix(got.stderr, "the push was taken") {
		t.Errorf("%v, want %s", got, want)
	}
	if p.DeviceToken != pushToken || p.Header.Get("apns-push-type") != "alert" || p.Header.Get("apns-priority") != "10" {
		t.Errorf("%+v", p)
	}
	if got := r.run("vmux-wake", "--quiet"); got.exit != 0 || got.stderr != "" || strings.Count(got.stdout, "\n") != 2 {
		t.Errorf("--quiet: %v", got)
	}

	v, _ := r.wake(0, "--silent")
	p = r.service.Pushes()[2]
	if w := v.Push; w.APNsID != p.Header.Get("apns-id") || w.Status != 200 || w.Reason != "" || w.Meaning == "" || w.Phone != "Pocket" || w.DeviceToken != pushToken[:8]+"…" ||
		w.Topic != pushTopic || w.Environment != "sandbox" || !w.Silent || w.Attempts != 1 {
		t.Errorf("%+v", w)
	}
	if p.Header.Get("apns-push-type") != "background" || p.Header.Get("apns-priority") != "5" || string(p.Payload) != `{"aps":{"content-available":1}}` {
		t.Errorf("%+v", p)
	}

	if v, _ := r.wake(0, "--device-token", "00ff", "--topic", pushTopic); v.Push.Phone != "" || v.Push.DeviceToken != "00ff" || v.Push.Environment != "production" {
		t.Errorf("%+v", v)
	}
	if v, _ := r.wake(0, "--phone", "Pocket", "--environment", "production"); v.Push.Environment != "production" {
		t.Errorf("%+v", v)
	}
	r.setenv("VMUX_WAKE_DEVICE_TOKEN", "00aa")
	r.setenv("VMUX_WAKE_TOPIC", pushTopic)
	if v, _ := r.wake(0); v.Push.Phone != "Pocket" {
		t.Errorf("the phone's token is not used: %+v", v)
	}
	if v, _ := r.wake(0, "--phone", phonePin); v.Push.Phone != "Pocket" {
		t.Errorf("by its pin: %+v", v)
	}
	if v, _ := r.wake(0, "--phone", "Mute"); v.Push.Phone != "Mute" || v.Push.DeviceToken != "00aa" {
		t.Errorf("the setting is not used: %+v", v)
	}
	r.phones()
	if v, _ := r.wake(0); v.Push.Phone != "" || v.Push.DeviceToken != "00aa" {
		t.Errorf("the setting is not used without phones: %+v", v)
	}
}

// Every reason that Apple documents comes with a sentence, what to do, and exit status 1.
func TestWakeReasons(t *testing.T) {
	t.Parallel()
	for _, reason := range apns.Reasons() {
		t.Run(reason.Code, func(t *testing.T) {
			t.Parallel()
			r := newPushRig(t)
			a := apnstest.Answer{Status: reason.Status, Reason: reason.Code}
			r.service.Answer(a, a, a, a)
			v, got := r.wake(1, "--device-token", pushToken, "--topic", pushTopic)
			if w := v.Push; w.Status != reason.Status || w.Reason != reason.Code || w.Meaning != reason.Meaning || w.Hint != reason.Do {
				t.Errorf("%+v", w)
			}
			want := fmt.Sprintf("error: the push was refused: %s (%d %s)\nhint: %s\n", reason.Meaning, reason.Status, reason.Code, reason.Do)
			if !strings.HasSuffix(got.stderr, want) || strings.Count(got.stdout, "\n") != 2 {
				t.Errorf("%v, want %s", got, want)
			}
		})
	}
}

// A stored device token that is gone is forgotten, and no other.
func TestWakeForgets(t *testing.T) {
	t.Parallel()
	gone := apnstest.Answer{Status: 410, Reason: "Unregistered"}
	later, earlier := gone, gone
	later.Timestamp = time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC)
	earlier.Timestamp = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		answer    apnstest.Answer
		args      []string
		forgotten bool
	}{
		"unregistered":        {gone, nil, true},
		"since it was sent":   {later, nil, true},
		"before it was sent":  {earlier, nil, false},
		"bad":                 {apnstest.Answer{Status: 400, Reason: "BadDeviceToken"}, nil, true},
		"another environment": {apnstest.Answer{Status: 400, Reason: "BadDeviceToken"}, []string{"--environment", "production"}, false},
		"another token":       {gone, []string{"--device-token", pushToken, "--topic", pushTopic}, false},
		"refused":             {apnstest.Answer{Status: 403, Reason: "Forbidden"}, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newPushRig(t)
			r.phones(pushPhone("Pocket", phonePin, pushToken, pushTopic, "sandbox"), pushPhone("Other", otherPin, "", "", ""))
			r.service.Answer(c.answer)
			_, got := r.wake(1, c.args...)
			said := strings.Contains(got.stderr, "the device token of Pocket is forgotten; it sends another one when it connects\n")
			if said != c.forgotten {
				t.Errorf("%v", got)
			}
			state, err := os.ReadFile(r.path(stateFile))
			if err != nil || strings.Contains(string(state), pushToken) == c.forgotten || !strings.Contains(string(state), phonePin) || !strings.Contains(string(state), otherPin) {
				t.Errorf("%s, %v", state, err)
			}
			if c.forgotten {
				if got := r.run("vmux-wake"); got.exit != 7 || !strings.Contains(got.stderr, "no phone has sent a device token") {
					t.Errorf("once more: %v", got)
				}
			}
		})
	}
}

// --key, the variable, vmux.toml, ~/.ssh and ~/.config, in that order.
func TestWakeKeyOrder(t *testing.T) {
	t.Parallel()
	r := newPushRig(t)
	args := []string{"--device-token", pushToken, "--topic", pushTopic}
	good, wrong := pushPEM(t, r.key), func() string { return pushPEM(t, newPushKey(t)) }
	if err := os.Remove(r.path(pushFile)); err != nil {
		t.Fatal(err)
	}
	var places []func(key string)
	places = append(places,
		func(key string) { r.put(".config/vmux/apns-key.p8", key, 0o600) },
		func(key string) { r.put(pushFile, key, 0o600) },
		func(key string) {
			r.put("toml.p8", key, 0o600)
			r.put(configFile, "[wake]\nkey = \"~/toml.p8\"\n", 0o600)
		},
		func(key string) { r.setenv("VMUX_WAKE_KEY", r.put("env.p8", key, 0o600)) },
		func(key string) { r.put("flag.p8", key, 0o600); args = append(args, "--key", "flag.p8") })
	for i, place := range places {
		place(good)
		if v, _ := r.wake(0, args...); v.Push.Status != 200 {
			t.Errorf("place %d: %+v", i, v)
		}
		place(wrong()) // covered by the next one
	}
	if v, _ := r.wake(1, args...); v.Push.Reason != "InvalidProviderToken" {
		t.Errorf("%+v", v)
	}
	if n := len(r.service.Problems()); n == 0 { // the wrong key at the end
		t.Error("the service takes any key")
	}
}

// The agent and each run have the same authorization: Apple would refuse a second new one in 20 minutes.
func TestWakeAuthorizationShared(t *testing.T) {
	t.Parallel()
	r := newPushRig(t)
	for range 4 {
		r.wake(0, "--device-token", pushToken, "--topic", pushTopic)
	}
	bearers := make(map[string]bool)
	for _, p := range r.service.Pushes() {
		bearers[p.Bearer] = true
	}
	if len(bearers) > 2 { // the clock may pass into another window
		t.Errorf("%d authorizations for 4 pushes", len(bearers))
	}
}

// Nobody there, somebody else there, nobody to trust there.
func TestWakeUnreachable(t *testing.T) {
	t.Parallel()
	plain := httptest.NewUnstartedServer(http.NotFoundHandler())
	plain.Config.ErrorLog = log.New(io.Discard, "", 0)
	plain.StartTLS()
	t.Cleanup(plain.Close)
	plainCA := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: plain.Certificate().Raw})
	for name, c := range map[string]struct {
		args    func(r *pushRig) []string
		problem string
		hint    string
	}{
		"nobody":       {func(r *pushRig) []string { return []string{"--endpoint", "https://127.0.0.1:1"} }, "127.0.0.1:1 cannot be reached: ", "curl -v https://127.0.0.1:1"},
		"no such host": {func(r *pushRig) []string { return []string{"--endpoint", "https://nobody.invalid"} }, "nobody.invalid cannot be reached: ", "curl -v https://nobody.invalid"},
		"HTTP/1.1": {func(r *pushRig) []string {
			return []string{"--endpoint", plain.URL, "--ca-file", r.write("plain.pem", string(plainCA), 0o644)}
		}, "does not speak HTTP/2", "--endpoint https://HOST:PORT"},
		"another authority": {func(r *pushRig) []string { return []string{"--endpoint", r.service.URL} }, "is not to be trusted", "--ca-file FILE"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newPushRig(t)
			r.unset("VMUX_WAKE_CA_FILE")
			args := append(c.args(r), "--device-token", pushToken, "--topic", pushTopic)
			_, got := r.wake(4, args...)
			(&bad{exit: 4, problem: c.problem, hint: c.hint}).says(t, got)
			if n := len(r.service.Pushes()); n != 0 || strings.Contains(got.stdout, `"push"`) {
				t.Errorf("%d pushes: %v", n, got)
			}
		})
	}
}

// Through a proxy, which sees the host and nothing else.
func TestWakeProxy(t *testing.T) {
	t.Parallel()
	r := newPushRig(t)
	var asked atomic.Value
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		asked.Store(fmt.Sprint(q.Method, " ", q.Host, " ", q.Header))
		there, err := net.Dial("tcp", strings.TrimPrefix(r.service.URL, "https://"))
		if err != nil {
			return
		}
		defer there.Close()
		w.WriteHeader(http.StatusOK)
		here, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer here.Close()
		var both sync.WaitGroup
		both.Go(func() { io.Copy(there, buffered); there.Close() })
		both.Go(func() { io.Copy(here, there); here.Close() })
		both.Wait()
	}))
	t.Cleanup(proxy.Close)
	r.setenv("VMUX_WAKE_ENDPOINT", "https://example.com") // a name of the service's certificate
	r.setenv("HTTPS_PROXY", proxy.URL)
	if v, _ := r.wake(0, "--device-token", pushToken, "--topic", pushTopic); v.Push.Status != 200 {
		t.Errorf("%+v", v)
	}
	if got := asked.Load(); got != "CONNECT example.com:443 map[]" && got != "CONNECT example.com:443 map[User-Agent:[Go-http-client/1.1]]" {
		t.Errorf("the proxy was asked %v", got)
	}
}

// Ctrl-C ends it at once, while the service says nothing.
func TestWakeInterrupted(t *testing.T) {
	t.Parallel()
	r := newPushRig(t)
	r.service.Answer(apnstest.Answer{Hang: true})
	p := r.spawn("vmux-wake", "--device-token", pushToken, "--topic", pushTopic)
	r.service.Await(1, patience)
	p.wait(`^waiting for the push service's answer, 1\d s left$`)
	if exit := p.stop(syscall.SIGINT); exit != 130 || !strings.Contains(p.output(), "error: interrupted") {
		t.Errorf("exit %d: %s", exit, p.output())
	}
}

// What is wrong is said before anybody is asked.
func TestWakeBadInput(t *testing.T) {
	t.Parallel()
	key := func(h *host) { h.write(pushFile, pushPEM(t, newPushKey(t)), 0o600) }
	ids := []string{"--key-id", pushKeyID, "--team-id", pushTeamID}
	wake := func(args ...string) []string { return append([]string{"vmux-wake"}, args...) }
	paired := func(list ...string) func(*host) {
		return func(h *host) { key(h); (&pushRig{host: h}).phones(list...) }
	}
	refuseAll(t, []bad{
		{args: wake("--silnt"), exit: 2, problem: "there is no flag --silnt", hint: "did you mean --silent?"},
		{args: wake("now"), exit: 2, problem: `there is no place for the argument "now"`, hint: "vmux-wake [flags]"},
		{args: wake("--phone", "Pocket", "--device-token", "00"), exit: 2, problem: "--phone and --device-token exclude one another", hint: "one of them"},
		{args: wake("--environment", "development"), exit: 2, problem: `"development" is none of production, sandbox`, hint: "production|sandbox"},
		{args: wake("--key-id", "abc"), exit: 2, problem: `--key-id: "abc" is not 10 capital letters and digits`, hint: "ABC123DEFG"},
		{args: wake("--team-id", "abc"), exit: 2, problem: `--team-id: "abc" is not 10 capital letters and digits`, hint: "DEF123GHIJ"},
		{args: wake("--device-token", "0123456789x"), exit: 2, problem: `--device-token: "01234567…" is not hexadecimal`, hint: "hexadecimal"},
		{args: wake("--topic", "a b"), exit: 2, problem: `--topic: "a b" is no bundle id`, hint: "com.example.app"},
		{args: wake("--endpoint", "http://127.0.0.1:1"), exit: 2, problem: "does not begin with https://", hint: "https://push.example.com"},
		{args: wake("--key", ""), exit: 2, problem: `--key: "" is not an absolute path`, hint: "~/.ssh/vmux-apns.p8"},
		{name: "a setting", prepare: config("[wake]\nkey-id = \"x\"\n"), args: wake(), exit: 2, problem: `vmux.toml:2: wake.key-id "x" is not 10`, hint: "ABC123DEFG"},
		{name: "a variable", prepare: func(h *host) { h.setenv("VMUX_WAKE_TOPIC", "a b") }, args: wake(), exit: 2, problem: `VMUX_WAKE_TOPIC: "a b" is no bundle id`, hint: "com.example.app"},
		{name: "a relative key in a setting", prepare: config("[wake]\nkey = \"k.p8\"\n"), args: wake(), exit: 2, problem: "is not an absolute path", hint: "~/"},

		{name: "not paired", args: wake(), exit: 7, problem: "no phone is paired", hint: "vmux-pair"},
		{name: "not paired, with a name", args: wake("--phone", "Pocket"), exit: 7, problem: "no phone is paired", hint: "vmux-pair"},
		{name: "no token", prepare: paired(pushPhone("Pocket", phonePin, "", "", "")), args: wake(ids...), exit: 7, problem: "no phone has sent a device token", hint: "--device-token TOKEN"},
		{name: "no token of this phone", prepare: paired(pushPhone("Pocket", phonePin, "", "", ""), pushPhone("Other", otherPin, "00", "a", "sandbox")),
			args: wake("--phone", "Pocket"), exit: 7, problem: "no phone has sent a device token", hint: "--device-token TOKEN"},
		{name: "another name", prepare: paired(pushPhone("Pocket", phonePin, "00", "a", "sandbox")), args: wake("--phone", "Other"), exit: 2, problem: `no paired phone is called "Other"`, hint: "vmux-pair --list"},
		{name: "two phones", prepare: paired(pushPhone("Pocket", phonePin, "00", "a", "sandbox"), pushPhone("Other", otherPin, "01", "a", "sandbox")),
			args: wake(), exit: 2, problem: "2 phones can be pushed to", hint: "--phone " + phonePin},
		{name: "two phones of a name", prepare: paired(pushPhone("Pocket", phonePin, "00", "a", "sandbox"), pushPhone("Pocket", otherPin, "01", "a", "sandbox")),
			args: wake("--phone", "Pocket"), exit: 2, problem: "2 phones can be pushed to", hint: "--phone " + phonePin},
		{name: "damaged token", prepare: state(`{"version":1,"phones":[` + pushPhone("Pocket", phonePin, "0", "a", "sandbox") + `]}`), args: wake(), exit: 7, once: true, problem: "no phone is paired", hint: "vmux-pair"},

		{name: "no key", args: wake("--device-token", "00"), exit: 2, problem: "there is no push key, neither ", hint: "chmod 600 "},
		{name: "no key id", prepare: key, args: wake("--device-token", "00", "--topic", "a"), exit: 2, problem: "wake.key-id is not set", hint: "--key-id ID"},
		{name: "no team id", prepare: key, args: wake("--device-token", "00", "--topic", "a", "--key-id", pushKeyID), exit: 2, problem: "wake.team-id is not set", hint: "--team-id ID"},
		{name: "no topic", prepare: key, args: wake(append(ids, "--device-token", "00")...), exit: 2, problem: "wake.topic is not set", hint: "--topic"},
		{name: "authority without endpoint", prepare: key, args: wake(append(ids, "--device-token", "00", "--topic", "a", "--ca-file", "HOME/.ssh/vmux-apns.p8")...), exit: 2,
			problem: "wake.ca-file is for an endpoint only", hint: "--endpoint"},
		{name: "no authority in the file", prepare: key, args: wake(append(ids, "--device-token", "00", "--topic", "a", "--endpoint", "https://127.0.0.1:1", "--ca-file", "HOME/.ssh/vmux-apns.p8")...), exit: 2,
			problem: "has no certificate", hint: "BEGIN CERTIFICATE"},
	})
}

// The wake push carries no key material and names nobody: what goes out is the same for everybody but for where it goes,
// when it expires, and a random id.
func TestThreat_T05_PushSaysNothing(t *testing.T) {
	t.Parallel()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	key := newPushKey(t)
	service := apnstest.New(t, apnstest.Options{Key: &key.PublicKey, KeyID: pushKeyID, TeamID: pushTeamID, Topic: pushTopic})
	names := []string{me.Username, me.HomeDir, "laptop-of-ann", "desk-of-bob", "Ann's phone", "Bob's phone", "rig.example.org", phonePin[7:20], otherPin[7:20]}
	if name, err := os.Hostname(); err == nil {
		names = append(names, name)
	}
	for i, device := range []string{"laptop-of-ann", "desk-of-bob"} {
		r := &pushRig{host: newHost(t), key: key, service: service}
		r.use(service)
		r.write(pushFile, pushPEM(t, key), 0o600)
		r.setenv("VMUX_NAME", device)
		r.setenv("USER", "ann-"+device)
		r.write(".ssh/known_hosts", "rig.example.org ssh-ed25519 AAAA\n", 0o600)
		r.phones(pushPhone([]string{"Ann's phone", "Bob's phone"}[i], []string{phonePin, otherPin}[i], pushToken, pushTopic, "sandbox"))
		names = append(names, r.home)
		r.wake(0)
		r.wake(0, "--silent")
	}
	allowed := []string{"Apns-Collapse-Id", "Apns-Expiration", "Apns-Id", "Apns-Priority", "Apns-Push-Type", "Apns-Topic", "Authorization", "Content-Length", "Content-Type"}
	pushes := service.Pushes() // the service has verified each authorization: ES256 by the key, with key id, team id and time only
	ids := make(map[string]bool)
	for i, p := range pushes {
		if string(p.Payload) != string(pushes[i%2].Payload) {
			t.Errorf("payloads differ: %s, %s", p.Payload, pushes[i%2].Payload)
		}
		all := string(p.Payload)
		for name, values := range p.Header {
			if !slices.Contains(allowed, name) {
				t.Errorf("header %s %q", name, values)
			}
			if name != "Apns-Id" && name != "Apns-Expiration" && name != "Authorization" && !slices.Equal(values, pushes[i%2].Header[name]) {
				t.Errorf("header %s differs: %q, %q", name, values, pushes[i%2].Header[name])
			}
			all += "\n" + strings.Join(values, " ")
		}
		for _, name := range names {
			if len(name) > 5 && strings.Contains(all, name) { // shorter ones may be part of a random id
				t.Errorf("%q is in the push: %s", name, all)
			}
		}
		ids[p.Header.Get("apns-id")] = true
	}
	if len(pushes) != 4 || len(ids) != 4 {
		t.Errorf("%d pushes with %d ids", len(pushes), len(ids))
	}
	if want := `{"aps":{"alert":{"body":"A device that is paired with this phone asks.","title":"SSH Sign Request"},"content-available":1,"interruption-level":"time-sensitive"}}`; string(pushes[0].Payload) != want {
		t.Errorf("%s", pushes[0].Payload)
	}
}

// Push authorization is ES256 with a private key file: anything else is a clear error, and nobody is connected to.
func TestThreat_C06_PushKey(t *testing.T) {
	t.Parallel()
	good := newPushKey(t)
	curve := func(c elliptic.Curve) *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	sec1, err := x509.MarshalECPrivateKey(good)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, b []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}))
	}
	p8 := pushPEM(t, good)
	pkcs8, _ := pem.Decode([]byte(p8))
	r := newPushRig(t)
	for name, c := range map[string]struct {
		content       string
		mode          os.FileMode
		problem, hint string
	}{
		"readable by the group": {p8, 0o640, "is open to other users (mode 0640)", "chmod 600 "},
		"readable by everybody": {p8, 0o644, "is open to other users (mode 0644)", "chmod 600 "},
		"writable by the group": {p8, 0o620, "is open to other users (mode 0620)", "chmod 600 "},
		"P-384":                 {pushPEM(t, curve(elliptic.P384())), 0o600, "is for P-384, not for P-256", "developer.apple.com"},
		"P-521":                 {pushPEM(t, curve(elliptic.P521())), 0o600, "is for P-521, not for P-256", "developer.apple.com"},
		"RSA":                   {pushPEM(t, rsaKey), 0o600, "is for RSA with 2048 bits, not for P-256", "developer.apple.com"},
		"Ed25519":               {pushPEM(t, edKey), 0o600, "is for Ed25519, not for P-256", "developer.apple.com"},
		"SEC 1":                 {block("EC PRIVATE KEY", sec1), 0o600, "SEC 1 (EC PRIVATE KEY), not PKCS #8", "openssl pkey"},
		"encrypted":             {block("ENCRYPTED PRIVATE KEY", pkcs8.Bytes), 0o600, "encrypted with a passphrase", "openssl pkey"},
		"two keys":              {p8 + p8, 0o600, "something besides one key", "openssl pkey"},
		"DER":                   {string(pkcs8.Bytes), 0o600, "is not PEM", "AuthKey_ID.p8"},
		"certificate":           {block("CERTIFICATE", pkcs8.Bytes), 0o600, `PEM of type "CERTIFICATE"`, "AuthKey_ID.p8"},
		"empty":                 {"", 0o600, "is not PEM", "AuthKey_ID.p8"},
		"damaged":               {block("PRIVATE KEY", pkcs8.Bytes[:50]), 0o600, "is damaged", "AuthKey_ID.p8"},
		"too large":             {p8 + strings.Repeat("\n", 1<<20), 0o600, "larger than 16384 bytes", "AuthKey_ID.p8"},
	} {
		file := strings.ReplaceAll(name, " ", "-") + ".p8"
		r.write(file, c.content, c.mode)
		r.refuse(t, bad{args: []string{"vmux-wake", "--device-token", pushToken, "--topic", pushTopic, "--key", file}, exit: 2, problem: c.problem, hint: c.hint})
	}
	for path, problem := range map[string]string{r.path("none.p8"): "there is no push key " + r.path("none.p8"), r.home: "is no regular file", "/dev/null": "is no regular file"} {
		r.refuse(t, bad{args: []string{"vmux-wake", "--device-token", pushToken, "--topic", pushTopic, "--key", path}, exit: 2, problem: problem})
	}
	if os.Geteuid() == 0 {
		foreign := r.write("foreign.p8", p8, 0o600)
		if err := os.Chown(foreign, 65534, -1); err != nil {
			t.Fatal(err)
		}
		r.refuse(t, bad{args: []string{"vmux-wake", "--device-token", pushToken, "--topic", pushTopic, "--key", foreign}, exit: 2, problem: "belongs to user 65534", hint: "chown"})
	}
	if n := r.service.Connections(); n != 0 {
		t.Errorf("%d connections to the push service", n)
	}
	// With the right one it would have gone through.
	if err := os.Chmod(filepath.Join(r.home, pushFile), 0o600); err != nil {
		t.Fatal(err)
	}
	if v, _ := r.wake(0, "--device-token", pushToken, "--topic", pushTopic); v.Push.Status != 200 {
		t.Errorf("%+v", v)
	}
	if n := r.service.Connections(); n != 1 {
		t.Errorf("%d connections for one push", n)
	}
}
