// SPDX-License-Identifier: BSD-3-Clause

// Package apnstest is a push service for tests: HTTP/2 over TLS on a port of its own, with Apple's rules for the
// authorization, the headers and the payload. It answers as Apple does, or what a test wants. It shares no code with
// what it tests.
package apnstest

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
)

// Apple's limits, from "Sending notification requests to APNs" and "Establishing a token-based connection to APNs".
const (
	maxPayload  = 4096
	maxCollapse = 64
	maxAge      = time.Hour        // of an authorization
	minRenew    = 20 * time.Minute // between authorizations
)

// Options say what the service knows.
type Options struct {
	Key    *ecdsa.PublicKey // public half of the push key
	KeyID  string
	TeamID string
	Topic  string // of the app; empty for any
	Token  string // of the phone; empty for any

	Listener net.Listener           // nil for a loopback port
	OnPush   func(Push)             // called for each push that is taken; may be nil
	Config   func(*httptest.Server) // before it starts; may be nil
}

// Push is a request that came in, taken or not.
type Push struct {
	Time        time.Time
	DeviceToken string
	Header      http.Header
	Payload     []byte
	Bearer      string    // the whole JSON Web Token
	IssuedAt    time.Time // what it claims
	Status      int       // what was answered
	Reason      string
}

// Answer is what a test wants to be answered to one push. The zero value is Apple's own.
type Answer struct {
	Status     int
	Reason     string
	Timestamp  time.Time // with 410
	RetryAfter string
	Body       []byte      // instead of Apple's JSON
	Header     http.Header // more of them
	ID         string      // apns-id, instead of the request's
	Hang       bool        // answers when the client goes away
	Break      bool        // the connection breaks
}

// Server is the push service.
type Server struct {
	URL string

	t  testing.TB
	o  Options
	s  *httptest.Server
	mu sync.Mutex

	pushes   []Push
	answers  []Answer
	problems []string
	accepted []string        // addresses of who connected
	own      map[string]bool // of these, Connections'
	bearers  []seen
	changed  chan struct{} // closed at each push and connection
}

type seen struct {
	bearer string
	first  time.Time
}

// New starts a push service, which ends with the test. The test fails when a request broke a rule, unless that was
// looked at by Problems.
func New(t testing.TB, o Options) *Server {
	t.Helper()
	s := &Server{t: t, o: o, own: make(map[string]bool), changed: make(chan struct{})}
	s.s = httptest.NewUnstartedServer(s)
	if o.Listener != nil {
		s.s.Listener.Close()
		s.s.Listener = o.Listener
	}
	s.s.EnableHTTP2 = true
	s.s.Listener = listener{s.s.Listener, s}
	s.s.Config.ErrorLog = log.New(io.Discard, "", 0) // clients that do not trust it are part of the tests
	if o.Config != nil {
		o.Config(s.s)
	}
	s.s.StartTLS()
	s.URL = s.s.URL
	t.Cleanup(func() {
		s.s.CloseClientConnections()
		s.s.Close()
		for _, p := range s.Problems() {
			t.Errorf("the push service: %s", p)
		}
	})
	return s
}

// CAFile writes the certificate that the service has to a file, and gives its path.
func (s *Server) CAFile() string {
	s.t.Helper()
	f, err := os.CreateTemp(s.t.TempDir(), "ca-*.pem")
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	if err := pem.Encode(f, &pem.Block{Type: "CERTIFICATE", Bytes: s.s.Certificate().Raw}); err != nil {
		s.t.Fatal(err)
	}
	return f.Name()
}

// Answer has the next pushes answered so, one each, after which Apple's rules alone hold again.
func (s *Server) Answer(a ...Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers = append(s.answers, a...)
}

// Pushes gives the requests so far.
func (s *Server) Pushes() []Push {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.pushes)
}

// Await waits until there are n requests, and gives them.
func (s *Server) Await(n int, patience time.Duration) []Push {
	s.t.Helper()
	late := time.After(patience)
	for {
		s.mu.Lock()
		pushes, changed := slices.Clone(s.pushes), s.changed
		s.mu.Unlock()
		if len(pushes) >= n {
			return pushes
		}
		select {
		case <-changed:
		case <-late:
			s.t.Fatalf("%d pushes within %v, not %d", len(pushes), patience, n)
		}
	}
}

// Problems gives, once, what broke a rule so far.
func (s *Server) Problems() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.problems
	s.problems = nil
	return p
}

// Connections gives how many clients have connected, whether they sent something or not.
func (s *Server) Connections() int {
	s.t.Helper()
	// Connections are accepted in their order: one more makes sure that those before it are counted.
	c, err := net.Dial("tcp", s.s.Listener.Addr().String())
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	mine := c.LocalAddr().String()
	late := time.After(10 * time.Second)
	for {
		s.mu.Lock()
		s.own[mine] = true
		counted, n := slices.Contains(s.accepted, mine), 0
		for _, a := range s.accepted {
			if !s.own[a] {
				n++
			}
		}
		changed := s.changed
		s.mu.Unlock()
		if counted {
			return n
		}
		select {
		case <-changed:
		case <-late:
			s.t.Fatal("the push service does not accept")
		}
	}
}

// listener notes who connects.
type listener struct {
	net.Listener
	s *Server
}

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.s.mu.Lock()
		l.s.accepted = append(l.s.accepted, c.RemoteAddr().String())
		l.s.changedLocked()
		l.s.mu.Unlock()
	}
	return c, err
}

func (s *Server) changedLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// ServeHTTP answers one push.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 2*maxPayload))
	if err != nil {
		return // the client went away
	}
	p := Push{Time: time.Now(), Header: r.Header.Clone(), Payload: body}
	p.DeviceToken, _ = strings.CutPrefix(r.URL.Path, "/3/device/")
	p.Bearer, _ = strings.CutPrefix(r.Header.Get("Authorization"), "bearer ")

	s.mu.Lock()
	own := Answer{Status: http.StatusOK}
	if why := s.checkLocked(r, &p); why != nil {
		s.problems = append(s.problems, why.Error())
		own = Answer{Status: why.status, Reason: why.reason}
	}
	s.problems = append(s.problems, checkPayload(p.Header.Get("apns-push-type"), body)...)
	a := own
	if len(s.answers) > 0 {
		if s.answers[0].Status != 0 || s.answers[0].Hang || s.answers[0].Break {
			a = s.answers[0]
		}
		s.answers = s.answers[1:]
	}
	p.Status, p.Reason = a.Status, a.Reason
	s.pushes = append(s.pushes, p)
	s.changedLocked()
	s.mu.Unlock()

	if a.Status == http.StatusOK && s.o.OnPush != nil {
		s.o.OnPush(p)
	}
	switch {
	case a.Hang && a.Status == 0:
		<-r.Context().Done()
		return
	case a.Break:
		panic(http.ErrAbortHandler) // resets the stream
	}
	header := w.Header()
	header["Date"] = nil
	id := r.Header.Get("apns-id")
	if a.ID != "" {
		id = a.ID
	}
	header.Set("apns-id", id)
	if a.RetryAfter != "" {
		header.Set("Retry-After", a.RetryAfter)
	}
	maps.Copy(header, a.Header)
	if a.Body == nil && a.Status != http.StatusOK {
		v := struct {
			Reason    string `json:"reason"`
			Timestamp int64  `json:"timestamp,omitzero"`
		}{Reason: a.Reason}
		if !a.Timestamp.IsZero() {
			v.Timestamp = a.Timestamp.UnixMilli()
		}
		a.Body, _ = json.Marshal(v)
	}
	w.WriteHeader(a.Status)
	w.Write(a.Body)
	if a.Hang {
		_ = http.NewResponseController(w).Flush() // the client may be gone
		<-r.Context().Done()
	}
}

// refusal is a rule that a request broke, and what Apple says then.
type refusal struct {
	status int
	reason string
	detail string
}

func (r *refusal) Error() string { return fmt.Sprintf("%d %s: %s", r.status, r.reason, r.detail) }

var (
	uuid      = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	pushTypes = []string{"alert", "background", "controls", "location", "voip", "complication", "fileprovider", "mdm", "liveactivity", "pushtotalk", "widgets"}
)

func (s *Server) checkLocked(r *http.Request, p *Push) *refusal {
	h := r.Header
	no := func(status int, reason, format string, a ...any) *refusal {
		return &refusal{status, reason, fmt.Sprintf(format, a...)}
	}
	switch {
	case r.ProtoMajor != 2 || r.TLS == nil || r.TLS.Version < 0x0303:
		return no(http.StatusHTTPVersionNotSupported, "", "%s", r.Proto)
	case r.Method != http.MethodPost:
		return no(405, "MethodNotAllowed", "%s", r.Method)
	case !strings.HasPrefix(r.URL.Path, "/3/device/") || r.URL.RawQuery != "":
		return no(404, "BadPath", "%s", r.URL)
	}
	for name, values := range h {
		if len(values) > 1 {
			return no(400, "DuplicateHeaders", "%s %q", name, values)
		}
	}
	if why := s.checkBearerLocked(p); why != nil {
		return why
	}
	token, err := hex.DecodeString(p.DeviceToken)
	pushType, priority, topic := h.Get("apns-push-type"), h.Get("apns-priority"), h.Get("apns-topic")
	switch {
	case p.DeviceToken == "":
		return no(400, "MissingDeviceToken", "%s", r.URL)
	case err != nil || len(token) > 100 || s.o.Token != "" && !strings.EqualFold(p.DeviceToken, s.o.Token):
		return no(400, "BadDeviceToken", "%s", p.DeviceToken)
	case topic == "":
		return no(400, "MissingTopic", "none")
	case s.o.Topic != "" && topic != s.o.Topic:
		return no(400, "DeviceTokenNotForTopic", "%s", topic)
	case !slices.Contains(pushTypes, pushType):
		return no(400, "InvalidPushType", "%q", pushType)
	case priority != "" && priority != "1" && priority != "5" && priority != "10", pushType == "background" && priority != "5":
		return no(400, "BadPriority", "%q for %s", priority, pushType)
	case h.Get("apns-id") != "" && !uuid.MatchString(h.Get("apns-id")):
		return no(400, "BadMessageId", "%q", h.Get("apns-id"))
	case len(h.Get("apns-collapse-id")) > maxCollapse:
		return no(400, "BadCollapseId", "%q", h.Get("apns-collapse-id"))
	case len(p.Payload) == 0:
		return no(400, "PayloadEmpty", "none")
	case len(p.Payload) > maxPayload:
		return no(413, "PayloadTooLarge", "%d bytes", len(p.Payload))
	}
	if v := h.Get("apns-expiration"); v != "" {
		if _, err := strconv.ParseInt(v, 10, 64); err != nil {
			return no(400, "BadExpirationDate", "%q", v)
		}
	}
	return nil
}

// checkBearerLocked checks the JSON Web Token (RFC 7519, RFC 7518 section 3.4).
func (s *Server) checkBearerLocked(p *Push) *refusal {
	no := func(reason, format string, a ...any) *refusal {
		return &refusal{http.StatusForbidden, reason, fmt.Sprintf(format, a...)}
	}
	if p.Bearer == "" {
		return no("MissingProviderToken", "%q", p.Header.Get("Authorization"))
	}
	parts := strings.Split(p.Bearer, ".")
	if len(parts) != 3 {
		return no("InvalidProviderToken", "%d parts", len(parts))
	}
	var raw [3][]byte
	for i, part := range parts {
		b, err := base64.RawURLEncoding.Strict().DecodeString(part)
		if err != nil {
			return no("InvalidProviderToken", "part %d: %v", i, err)
		}
		raw[i] = b
	}
	var header struct {
		Alg string `json:"alg"`
		Kid string `json:"kid"`
		Typ string `json:"typ"`
	}
	var claims struct {
		Iss string `json:"iss"`
		Iat int64  `json:"iat"`
	}
	if err := json.Unmarshal(raw[0], &header, json.RejectUnknownMembers(true)); err != nil || header.Alg != "ES256" || header.Kid != s.o.KeyID {
		return no("InvalidProviderToken", "header %s: %v", raw[0], err)
	}
	if err := json.Unmarshal(raw[1], &claims, json.RejectUnknownMembers(true)); err != nil || claims.Iss != s.o.TeamID {
		return no("InvalidProviderToken", "claims %s: %v", raw[1], err)
	}
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if len(raw[2]) != 64 || !ecdsa.Verify(s.o.Key, digest[:], new(big.Int).SetBytes(raw[2][:32]), new(big.Int).SetBytes(raw[2][32:])) {
		return no("InvalidProviderToken", "the signature does not verify")
	}
	p.IssuedAt = time.Unix(claims.Iat, 0)
	switch age := p.Time.Sub(p.IssuedAt); {
	case age > maxAge:
		return no("ExpiredProviderToken", "issued at %v", p.IssuedAt)
	case age < -time.Second:
		return no("InvalidProviderToken", "issued at %v, which is to come", p.IssuedAt)
	}
	if !slices.ContainsFunc(s.bearers, func(b seen) bool { return b.bearer == p.Bearer }) {
		// The first one is no update.
		for _, b := range s.bearers[min(1, len(s.bearers)):] {
			if p.Time.Sub(b.first) < minRenew {
				return &refusal{http.StatusTooManyRequests, "TooManyProviderTokenUpdates", "a second update within 20 minutes"}
			}
		}
		s.bearers = append(s.bearers, seen{p.Bearer, p.Time})
	}
	return nil
}

// checkPayload looks at what Apple does not refuse and a phone does not show.
func checkPayload(pushType string, body []byte) (problems []string) {
	bad := func(format string, a ...any) {
		problems = append(problems, fmt.Sprintf("payload %s: ", body)+fmt.Sprintf(format, a...))
	}
	var v struct {
		APS map[string]any `json:"aps"`
	}
	if err := json.Unmarshal(body, &v); err != nil || v.APS == nil {
		bad("no aps object: %v", err)
		return problems
	}
	if c, ok := v.APS["content-available"]; ok && c != 1.0 {
		bad("content-available is %v", c)
	}
	if l, ok := v.APS["interruption-level"]; ok && !slices.Contains([]any{"passive", "active", "time-sensitive", "critical"}, l) {
		bad("interruption-level is %v", l)
	}
	switch pushType {
	case "alert":
		if alert, _ := v.APS["alert"].(map[string]any); len(alert) == 0 {
			bad("an alert without text")
		}
	case "background":
		if len(v.APS) != 1 || v.APS["content-available"] == nil {
			bad("a background push has content-available and nothing else")
		}
	}
	return problems
}
