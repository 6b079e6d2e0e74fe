// SPDX-License-Identifier: BSD-3-Clause

package apnstest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
)

const (
	keyID, teamID, topic = "ABC123DEFG", "DEF123GHIJ", "app.vmux.test"

	alert      = `{"aps":{"alert":{"title":"x"}}}`
	background = `{"aps":{"content-available":1}}`
)

// request is a push as it goes out; the zero value but for key is a good one.
type request struct {
	key          *ecdsa.PrivateKey
	jwtHeader    string
	claims       string
	cut          int // bytes off the signature
	bearer       string
	method, path string
	set          map[string]string // "" deletes
	twice        string
	body         string
	proto1       bool
}

func (q request) send(t *testing.T, s *Server) (status int, reason string) {
	t.Helper()
	or := func(v, def string) string {
		if v == "" {
			return def
		}
		return v
	}
	text := base64.RawURLEncoding.EncodeToString([]byte(or(q.jwtHeader, `{"alg":"ES256","kid":"`+keyID+`"}`))) + "." +
		base64.RawURLEncoding.EncodeToString([]byte(or(q.claims, fmt.Sprintf(`{"iss":%q,"iat":%d}`, teamID, time.Now().Unix()))))
	digest := sha256.Sum256([]byte(text))
	r, v, err := ecdsa.Sign(rand.Reader, q.key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	v.FillBytes(signature[32:])
	bearer := or(q.bearer, text+"."+base64.RawURLEncoding.EncodeToString(signature[q.cut:]))
	body := or(q.body, alert)
	if body == "none" {
		body = ""
	}
	req, err := http.NewRequestWithContext(t.Context(), or(q.method, "POST"), s.URL+or(q.path, "/3/device/00ff"), strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{"Authorization": {"bearer " + bearer}, "Apns-Topic": {topic}, "Apns-Push-Type": {"alert"}, "Apns-Priority": {"10"},
		"Apns-Expiration": {"0"}, "Apns-Id": {"123e4567-e89b-42d3-a456-426655440000"}, "Apns-Collapse-Id": {"x"}}
	for name, value := range q.set {
		req.Header.Set(name, value)
		if value == "" {
			req.Header.Del(name)
		}
	}
	if q.twice != "" {
		req.Header.Add(q.twice, req.Header.Get(q.twice))
	}
	client := s.s.Client()
	if q.proto1 {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: client.Transport.(*http.Transport).TLSClientConfig.RootCAs}}
		client = &http.Client{Transport: tr}
		defer tr.CloseIdleConnections()
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var a struct {
		Reason string `json:"reason"`
	}
	if len(b) > 0 {
		if err := json.Unmarshal(b, &a); err != nil {
			t.Errorf("%s: %v", b, err)
		}
	}
	return resp.StatusCode, a.Reason
}

// The service finds each fault that it is to find.
func TestRules(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Unix()
	iat := func(d time.Duration) string {
		return fmt.Sprintf(`{"iss":%q,"iat":%d}`, teamID, now+int64(d.Seconds()))
	}
	header := func(name, value string) request { return request{set: map[string]string{name: value}} }
	for name, c := range map[string]struct {
		q       request
		status  int
		reason  string
		problem bool // though it is taken
	}{
		"good":                 {request{}, 200, "", false},
		"good, an hour old":    {request{claims: iat(-59 * time.Minute)}, 200, "", false},
		"good, silent":         {request{body: background, set: map[string]string{"apns-push-type": "background", "apns-priority": "5"}}, 200, "", false},
		"HTTP/1.1":             {request{proto1: true}, 505, "", false},
		"GET":                  {request{method: "GET"}, 405, "MethodNotAllowed", false},
		"path":                 {request{path: "/4/device/00"}, 404, "BadPath", false},
		"query":                {request{path: "/3/device/00?x"}, 404, "BadPath", false},
		"no token":             {request{path: "/3/device/"}, 400, "MissingDeviceToken", false},
		"odd token":            {request{path: "/3/device/00f"}, 400, "BadDeviceToken", false},
		"another token":        {request{path: "/3/device/00fe"}, 400, "BadDeviceToken", false},
		"long token":           {request{path: "/3/device/" + strings.Repeat("00", 101)}, 400, "BadDeviceToken", false},
		"no authorization":     {header("authorization", ""), 403, "MissingProviderToken", false},
		"another scheme":       {header("authorization", "basic x"), 403, "InvalidProviderToken", false},
		"two parts":            {request{bearer: "a.b"}, 403, "InvalidProviderToken", false},
		"no base64":            {request{bearer: "a=.b.c"}, 403, "InvalidProviderToken", false},
		"alg none":             {request{jwtHeader: `{"alg":"none","kid":"` + keyID + `"}`}, 403, "InvalidProviderToken", false},
		"another kid":          {request{jwtHeader: `{"alg":"ES256","kid":"ABC123DEFH"}`}, 403, "InvalidProviderToken", false},
		"a name in the header": {request{jwtHeader: `{"alg":"ES256","kid":"` + keyID + `","device":"x"}`}, 403, "InvalidProviderToken", false},
		"another iss":          {request{claims: fmt.Sprintf(`{"iss":"DEF123GHIK","iat":%d}`, now)}, 403, "InvalidProviderToken", false},
		"a name in the claims": {request{claims: fmt.Sprintf(`{"iss":%q,"iat":%d,"sub":"x"}`, teamID, now)}, 403, "InvalidProviderToken", false},
		"iat as text":          {request{claims: fmt.Sprintf(`{"iss":%q,"iat":"%d"}`, teamID, now)}, 403, "InvalidProviderToken", false},
		"another key":          {request{key: other}, 403, "InvalidProviderToken", false},
		"short signature":      {request{cut: 1}, 403, "InvalidProviderToken", false},
		"old":                  {request{claims: iat(-61 * time.Minute)}, 403, "ExpiredProviderToken", false},
		"to come":              {request{claims: iat(time.Hour)}, 403, "InvalidProviderToken", false},
		"no topic":             {header("apns-topic", ""), 400, "MissingTopic", false},
		"another topic":        {header("apns-topic", "app.other"), 400, "DeviceTokenNotForTopic", false},
		"push type":            {header("apns-push-type", "loud"), 400, "InvalidPushType", false},
		"no push type":         {header("apns-push-type", ""), 400, "InvalidPushType", false},
		"priority":             {header("apns-priority", "7"), 400, "BadPriority", false},
		"silent at once":       {request{body: background, set: map[string]string{"apns-push-type": "background"}}, 400, "BadPriority", false},
		"id":                   {header("apns-id", "1"), 400, "BadMessageId", false},
		"expiration":           {header("apns-expiration", "soon"), 400, "BadExpirationDate", false},
		"collapse id":          {header("apns-collapse-id", strings.Repeat("x", 65)), 400, "BadCollapseId", false},
		"twice":                {request{twice: "Apns-Topic"}, 400, "DuplicateHeaders", false},
		"empty":                {request{body: "none"}, 400, "PayloadEmpty", false},
		"large":                {request{body: `{"aps":{"alert":{"title":"` + strings.Repeat("x", 4096) + `"}}}`}, 413, "PayloadTooLarge", false},
		"no JSON":              {request{body: "x"}, 200, "", true},
		"no aps":               {request{body: `{"x":1}`}, 200, "", true},
		"alert without text":   {request{body: `{"aps":{"content-available":1}}`}, 200, "", true},
		"content-available 2":  {request{body: `{"aps":{"alert":{"title":"x"},"content-available":2}}`}, 200, "", true},
		"interruption-level":   {request{body: `{"aps":{"alert":{"title":"x"},"interruption-level":"loud"}}`}, 200, "", true},
		"silent with an alert": {request{body: `{"aps":{"alert":{"title":"x"},"content-available":1}}`, set: map[string]string{"apns-push-type": "background", "apns-priority": "5"}}, 200, "", true},
	} {
		s := New(t, Options{Key: &key.PublicKey, KeyID: keyID, TeamID: teamID, Topic: topic, Token: "00FF"})
		if c.q.key == nil {
			c.q.key = key
		}
		status, reason := c.q.send(t, s)
		if status != c.status || reason != c.reason {
			t.Errorf("%s: %d %s", name, status, reason)
		}
		p := s.Pushes()
		if problems := s.Problems(); (len(problems) > 0) != (c.problem || c.status != 200) || len(p) != 1 || p[0].Status != c.status {
			t.Errorf("%s: %q, %+v", name, problems, p)
		}
		if n := s.Connections(); n != 1 {
			t.Errorf("%s: %d connections", name, n)
		}
	}
}

// One new authorization in 20 minutes; the old ones stay good. What a test wants is answered once.
func TestUpdatesAndAnswers(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var taken int
	s := New(t, Options{Key: &key.PublicKey, KeyID: keyID, TeamID: teamID, OnPush: func(Push) { taken++ }})
	q := request{key: key} // each has a random signature and so is new
	for i, want := range []int{200, 200, 429} {
		if status, _ := q.send(t, s); status != want {
			t.Errorf("authorization %d: %d", i+1, status)
		}
	}
	q.bearer = s.Pushes()[0].Bearer
	s.Answer(Answer{Status: 410, Reason: "Unregistered"}, Answer{}, Answer{Status: 502, Body: bytes.Repeat([]byte(" "), 3)})
	if status, reason := q.send(t, s); status != 410 || reason != "Unregistered" {
		t.Errorf("%d %s", status, reason)
	}
	if status, _ := q.send(t, s); status != 200 {
		t.Errorf("%d", status)
	}
	if got := len(s.Await(5, 10*time.Second)); got != 5 || taken != 3 {
		t.Errorf("%d requests, %d taken", got, taken)
	}
	if problems := s.Problems(); len(problems) != 1 || !strings.Contains(problems[0], "TooManyProviderTokenUpdates") {
		t.Errorf("%q", problems)
	}
}
