// SPDX-License-Identifier: BSD-3-Clause

package envelope

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

var moment = At(time.Date(2026, 5, 4, 3, 2, 1, 987_654_321, time.FixedZone("", 2*60*60)))

func bytesOf(c byte, n int) []byte { return bytes.Repeat([]byte{c}, n) }

// sample is one valid envelope of each type, with every member, and of some
// types another without what may be left out.
type sample struct {
	name string
	env  Envelope
}

func samples() []sample {
	return []sample{
		{"hello", Envelope{"", &Hello{Name: "Anna’s phone", Software: "vmux-signer 1.0", Capabilities: []string{"sign"}, Clock: moment}}},
		{"hello without capabilities", Envelope{"", &Hello{Name: "x", Capabilities: []string{}, Clock: moment}}},
		{"keyListRequest", Envelope{"a1", &KeyListRequest{}}},
		{"keyListResponse", Envelope{"a1", &KeyListResponse{Keys: []PublicKey{{Algorithm: "ssh-ed25519", PublicKeyBlob: []byte("\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20" + strings.Repeat("k", 32)),
			Comment: "work", ProviderKind: HardwareToken, DisplayName: "Work key"}}, CAKey: []byte{0xfb, 0xff}}}},
		{"keyListResponse without keys", Envelope{"a1", &KeyListResponse{Keys: []PublicKey{}, CAKey: []byte{}}}},
		{"signRequest", Envelope{"B-2_c", &SignRequest{PublicKeyBlob: []byte("key"), Data: []byte{0, 1, 2, 0xff}, Flags: 4, CreatedAt: moment, Context: Context{
			Device: "laptop", Operation: "login", Destination: &Destination{HostNames: []string{"host.example"}, Forwarded: true,
				Binds: []Bind{{HostKey: []byte("host key"), SessionID: bytesOf('s', 32), Signature: []byte("signature"), Forwarding: true}}},
			Processes: []Process{{PID: 4242, Executable: "/usr/bin/ssh"}}, WorkingDirectory: "/home/anna", Reason: "deploy \"now\""}}}},
		{"signRequest with the least", Envelope{"B-2_d", &SignRequest{PublicKeyBlob: []byte("key"), Data: []byte{0}, CreatedAt: moment}}},
		{"signRequest with an empty destination", Envelope{"B-2_e", &SignRequest{PublicKeyBlob: []byte("key"), Data: []byte{0}, CreatedAt: moment,
			Context: Context{Destination: &Destination{}}}}},
		{"signResponse", Envelope{"B-2_c", &SignResponse{Signature: []byte("\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x40" + strings.Repeat("s", 64))}}},
		{"certificateRequest", Envelope{"C-1", &CertificateRequest{PublicKeyBlob: []byte("key"), Identity: "work", Principals: []string{"root", "anna"}, Validity: 28800,
			KeyID: "vmux:anna@laptop:{serial}", CriticalOptions: []Option{{"force-command", "make \"all\""}, {"source-address", "192.0.2.0/24,2001:db8::/32"}},
			Extensions: []Option{{"permit-port-forwarding", ""}, {"permit-pty", ""}}, CreatedAt: moment, Context: Context{Device: "laptop", Operation: "certificate",
				Processes: []Process{{PID: 4242, Executable: "/usr/bin/vmux-cert"}}, WorkingDirectory: "/home/anna", Reason: "deploy",
				Limits: []string{"host deploy SHA256:uNiVztksCsDhcc0u9e8BrwoCRP8", "10 signatures"}}}}},
		{"certificateRequest with the least", Envelope{"C-2", &CertificateRequest{PublicKeyBlob: []byte("key"), Principals: []string{"anna"}, Validity: 1,
			KeyID: "x", CriticalOptions: []Option{}, Extensions: []Option{}, CreatedAt: moment}}},
		{"certificateResponse", Envelope{"C-1", &CertificateResponse{Certificate: []byte("\x00\x00\x00\x28ecdsa-sha2-nistp256-cert-v01@openssh.com" + strings.Repeat("c", 32))}}},
		{"pending", Envelope{"B-2_c", &Pending{}}},
		{"cancel", Envelope{"B-2_c", &Cancel{}}},
		{"deviceTokenUpdate", Envelope{"", &DeviceTokenUpdate{Token: bytesOf('t', 32), Environment: Sandbox, Topic: "app.vmux.signer"}}},
		{"pairRequest", Envelope{"pair", &PairRequest{Name: "laptop", Commitment: bytesOf('c', NonceSize), URL: true}}},
		{"pairResponse", Envelope{"pair", &PairResponse{Name: "phone", Nonce: bytesOf('n', NonceSize)}}},
		{"pairConfirm with a nonce", Envelope{"pair", &PairConfirm{Nonce: bytesOf('n', NonceSize)}}},
		{"pairConfirm with a proof", Envelope{"pair", &PairConfirm{Done: bytesOf('d', NonceSize)}}},
		{"ping", Envelope{strings.Repeat("p", MaxID), &Ping{}}},
		{"pong", Envelope{strings.Repeat("p", MaxID), &Pong{}}},
		{"error", Envelope{"B-2_c", &Error{Code: CodeDenied, Message: "the owner said no"}}},
		{"error without message", Envelope{"", &Error{Code: CodeInternal}}},
	}
}

// all are the types that vmux-protocol(7) has.
var all = []Type{TypeHello, TypeKeyListRequest, TypeKeyListResponse, TypeSignRequest, TypeSignResponse,
	TypeCertificateRequest, TypeCertificateResponse, TypePending, TypeCancel, TypeDeviceTokenUpdate,
	TypePairRequest, TypePairResponse, TypePairConfirm, TypePing, TypePong, TypeError}

func TestEverySampleRoundTrips(t *testing.T) {
	t.Parallel()
	have := map[Type]bool{}
	for _, s := range samples() {
		have[s.env.Payload.Type()] = true
		b, err := Encode(s.env)
		if err != nil {
			t.Errorf("%s: %v", s.name, err)
			continue
		}
		got, err := Decode(b)
		if err != nil {
			t.Errorf("%s: %s: %v", s.name, b, err)
			continue
		}
		if !reflect.DeepEqual(got, s.env) {
			t.Errorf("%s: got %+v, want %+v", s.name, got, s.env)
		}
	}
	for _, typ := range all {
		if p := newPayload(typ); p == nil || p.Type() != typ {
			t.Errorf("newPayload(%q) gives %T", typ, p)
		}
		if !have[typ] {
			t.Errorf("no sample of %s", typ)
		}
	}
}

const (
	pingHead = `{"version":1,"id":"a","type":"ping","payload":`
	goodTime = `"2026-05-04T01:02:01.987Z"`
)

// sign gives a signRequest's text with old replaced by new once in its payload.
func sign(t *testing.T, old, new string) string {
	t.Helper()
	return altered(t, "signRequest", old, new)
}

// certify is sign for a certificateRequest.
func certify(t *testing.T, old, new string) string {
	t.Helper()
	return altered(t, "certificateRequest", old, new)
}

func altered(t *testing.T, sample, old, new string) string {
	t.Helper()
	var e Envelope
	for _, s := range samples() {
		if s.name == sample {
			e = s.env
		}
	}
	b, err := Encode(e)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(string(b), old) < 1 {
		t.Fatalf("%q is not in %s", old, b)
	}
	return strings.Replace(string(b), old, new, 1)
}

// refusal is a text that Decode refuses.
type refusal struct {
	name, in, id string
	code         Code
	why          string // part of the message
}

func refusals(t *testing.T) []refusal {
	t.Helper()
	return []refusal{
		{"nothing", ``, "", CodeBadRequest, "EOF"},
		{"null", `null`, "", CodeBadRequest, "without version"},
		{"list", `[]`, "", CodeBadRequest, "array"},
		{"byte order mark", "\ufeff" + pingHead + `{}}`, "", CodeBadRequest, "start of value"},
		{"trailing byte", pingHead + `{}}x`, "a", CodeBadRequest, "after top-level"},
		{"trailing object", pingHead + `{}}{}`, "a", CodeBadRequest, "after top-level"},
		{"trailing NUL", pingHead + "{}}\x00", "a", CodeBadRequest, "after top-level"},
		{"cut off", pingHead + `{}`, "a", CodeBadRequest, "EOF"},
		{"comment", pingHead + `{}/**/}`, "a", CodeBadRequest, "'/'"},
		{"too deep", pingHead + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + `}`, "a", CodeBadRequest, "depth"},
		{"too large", pingHead + `{}` + strings.Repeat(" ", MaxSize) + `}`, "", CodeBadRequest, "more than 262144"},

		{"version 2", `{"version":2,"id":"a","type":"ping","payload":{}}`, "a", CodeUnsupported, "version 2"},
		{"version -1", `{"version":-1,"id":"a","type":"ping","payload":{}}`, "a", CodeUnsupported, "version -1"},
		{"version 1.0", `{"version":1.0,"id":"a","type":"ping","payload":{}}`, "", CodeBadRequest, "1.0"},
		{"version as text", `{"version":"1","id":"a","type":"ping","payload":{}}`, "", CodeBadRequest, "string"},
		{"version null", `{"version":null,"id":"a","type":"ping","payload":{}}`, "a", CodeBadRequest, "without version"},
		{"version missing", `{"id":"a","type":"ping","payload":{}}`, "a", CodeBadRequest, "without version"},
		{"unknown type", `{"version":1,"id":"a","type":"sing","payload":{}}`, "a", CodeUnsupported, `"sing"`},
		{"wrongly cased type", `{"version":1,"id":"a","type":"Ping","payload":{}}`, "a", CodeUnsupported, `"Ping"`},
		{"type missing", `{"version":1,"id":"a","payload":{}}`, "a", CodeBadRequest, "without version or type"},
		{"type null", `{"version":1,"id":"a","type":null,"payload":{}}`, "a", CodeBadRequest, "without version or type"},
		{"id missing", `{"version":1,"type":"ping","payload":{}}`, "", CodeBadRequest, "/id is missing"},
		{"id null", `{"version":1,"id":null,"type":"ping","payload":{}}`, "", CodeBadRequest, "/id is null"},
		{"id a number", `{"version":1,"id":7,"type":"ping","payload":{}}`, "", CodeBadRequest, "number"},
		{"id too long", `{"version":1,"id":"` + strings.Repeat("a", MaxID+1) + `","type":"ping","payload":{}}`, "", CodeBadRequest, "65 bytes"},
		{"id with a space", `{"version":1,"id":"a b","type":"ping","payload":{}}`, "", CodeBadRequest, "other than letters"},
		{"id with a NUL", `{"version":1,"id":"a\u0000","type":"ping","payload":{}}`, "", CodeBadRequest, "other than letters"},
		{"id beyond ASCII", `{"version":1,"id":"ä","type":"ping","payload":{}}`, "", CodeBadRequest, "other than letters"},
		{"payload missing", `{"version":1,"id":"a","type":"ping"}`, "a", CodeBadRequest, "not an object"},
		{"payload null", pingHead + `null}`, "a", CodeBadRequest, "not an object"},
		{"payload a list", pingHead + `[]}`, "a", CodeBadRequest, "not an object"},
		{"unknown member", `{"version":1,"id":"a","type":"ping","payload":{},"more":1}`, "a", CodeBadRequest, "unknown object member"},
		{"wrongly cased member", `{"version":1,"ID":"a","type":"ping","payload":{}}`, "", CodeBadRequest, "unknown object member"},
		{"duplicate member", `{"version":1,"id":"a","id":"a","type":"ping","payload":{}}`, "a", CodeBadRequest, "duplicate"},
		{"duplicate member by an escape", `{"version":1,"id":"a","i\u0064":"a","type":"ping","payload":{}}`, "a", CodeBadRequest, "duplicate"},
		{"unknown member of an empty payload", pingHead + `{"a":1}}`, "a", CodeBadRequest, "unknown object member"},

		{"unknown member of a payload", sign(t, `"flags":4`, `"flags":4,"more":0`), "B-2_c", CodeBadRequest, "unknown object member"},
		{"unknown member of a list's element", sign(t, `"pid":4242`, `"pid":4242,"uid":0`), "B-2_c", CodeBadRequest, "unknown object member"},
		{"wrongly cased member of a payload", sign(t, `"flags"`, `"Flags"`), "B-2_c", CodeBadRequest, "unknown object member"},
		{"duplicate member of a payload", sign(t, `"flags":4`, `"flags":4,"flags":4`), "B-2_c", CodeBadRequest, "duplicate"},
		{"duplicate member deep down", sign(t, `"pid":4242`, `"pid":4242,"pid":4242`), "B-2_c", CodeBadRequest, "duplicate"},

		{"flags missing", sign(t, `"flags":4,`, ``), "B-2_c", CodeBadRequest, "/payload/flags is missing"},
		{"flags null", sign(t, `"flags":4`, `"flags":null`), "B-2_c", CodeBadRequest, "/payload/flags is null"},
		{"flags a fraction", sign(t, `"flags":4`, `"flags":4.0`), "B-2_c", CodeBadRequest, "4.0"},
		{"flags with an exponent", sign(t, `"flags":4`, `"flags":4e0`), "B-2_c", CodeBadRequest, "4e0"},
		{"flags with a leading zero", sign(t, `"flags":4`, `"flags":04`), "B-2_c", CodeBadRequest, "'4'"},
		{"flags negative", sign(t, `"flags":4`, `"flags":-1`), "B-2_c", CodeBadRequest, "-1"},
		{"flags beyond 32 bits", sign(t, `"flags":4`, `"flags":4294967296`), "B-2_c", CodeBadRequest, "out of range"},
		{"flags as text", sign(t, `"flags":4`, `"flags":"4"`), "B-2_c", CodeBadRequest, "string"},
		{"publicKeyBlob missing", sign(t, `"publicKeyBlob":"a2V5",`, ``), "B-2_c", CodeBadRequest, "publicKeyBlob is empty"},
		{"data null", sign(t, `"data":"AAEC/w=="`, `"data":null`), "B-2_c", CodeBadRequest, "data is empty"},
		{"createdAt missing", sign(t, `"createdAt":`+goodTime+`,`, ``), "B-2_c", CodeBadRequest, "createdAt is not set"},
		{"createdAt null", sign(t, goodTime, `null`), "B-2_c", CodeBadRequest, "time"},
		{"context missing", `{"version":1,"id":"a","type":"signRequest","payload":{"publicKeyBlob":"a2V5","data":"AA==","flags":0,"createdAt":` + goodTime + `}}`,
			"a", CodeBadRequest, "/payload/context is missing"},
		{"context null", `{"version":1,"id":"a","type":"signRequest","payload":{"publicKeyBlob":"a2V5","data":"AA==","flags":0,"createdAt":` + goodTime + `,"context":null}}`,
			"a", CodeBadRequest, "/payload/context is not an object"},
		{"device missing", sign(t, `"device":"laptop",`, ``), "B-2_c", CodeBadRequest, "/payload/context/device is missing"},
		{"destination null", sign(t, `"destination":{`, `"destination":null,"x":{`), "B-2_c", CodeBadRequest, "unknown object member"},
		{"forwarding missing", sign(t, `,"forwarding":true`, ``), "B-2_c", CodeBadRequest, "/payload/context/destination/binds/0/forwarding is missing"},
		{"forwarded missing", sign(t, `,"forwarded":true`, ``), "B-2_c", CodeBadRequest, "/payload/context/destination/forwarded is missing"},
		{"forwarded a number", sign(t, `"forwarded":true`, `"forwarded":1`), "B-2_c", CodeBadRequest, "number"},
		{"process null", sign(t, `{"pid":4242,"executable":"/usr/bin/ssh"}`, `null`), "B-2_c", CodeBadRequest, "/payload/context/processes/0 is not an object"},
		{"pid negative", sign(t, `4242`, `-1`), "B-2_c", CodeBadRequest, "pid -1"},
		{"pid beyond 31 bits", sign(t, `4242`, `2147483648`), "B-2_c", CodeBadRequest, "pid 2147483648"},
		{"reason empty", sign(t, `"deploy \"now\""`, `""`), "B-2_c", CodeBadRequest, "/payload/context/reason is empty, not left out"},
		{"reason null", sign(t, `"deploy \"now\""`, `null`), "B-2_c", CodeBadRequest, "/payload/context/reason is empty, not left out"},
		{"processes empty", sign(t, `[{"pid":4242,"executable":"/usr/bin/ssh"}]`, `[]`), "B-2_c", CodeBadRequest, "/payload/context/processes is empty"},
		{"keys null", `{"version":1,"id":"a","type":"keyListResponse","payload":{"keys":null,"caKey":""}}`, "a", CodeBadRequest, "/payload/keys is not a list"},
		{"keys missing", `{"version":1,"id":"a","type":"keyListResponse","payload":{"caKey":""}}`, "a", CodeBadRequest, "/payload/keys is missing"},
		{"more keys than any list may have", `{"version":1,"id":"a","type":"keyListResponse","payload":{"keys":[` + strings.Repeat("{},", MaxKeys) + `{}],"caKey":""}}`,
			"a", CodeBadRequest, "/keys: more than 256 elements"},
		{"caKey missing", `{"version":1,"id":"a","type":"keyListResponse","payload":{"keys":[]}}`, "a", CodeBadRequest, "/payload/caKey is missing"},

		{"limits of a signRequest", sign(t, `"reason":`, `"limits":["x"],"reason":`), "B-2_c", CodeBadRequest, "limits are of a certificate"},
		{"certificate's unknown member", certify(t, `"validity":28800`, `"validity":28800,"serial":1`), "C-1", CodeBadRequest, "unknown object member"},
		{"certificate's publicKeyBlob empty", certify(t, `"a2V5"`, `""`), "C-1", CodeBadRequest, "publicKeyBlob is empty"},
		{"identity empty", certify(t, `"identity":"work"`, `"identity":""`), "C-1", CodeBadRequest, "/payload/identity is empty, not left out"},
		{"principals missing", certify(t, `"principals":["root","anna"],`, ``), "C-1", CodeBadRequest, "principals are empty"},
		{"principals empty", certify(t, `["root","anna"]`, `[]`), "C-1", CodeBadRequest, "principals are empty"},
		{"principals null", certify(t, `["root","anna"]`, `null`), "C-1", CodeBadRequest, "principals are empty"},
		{"principals as text", certify(t, `["root","anna"]`, `"root"`), "C-1", CodeBadRequest, "string"},
		{"principal empty", certify(t, `"root"`, `""`), "C-1", CodeBadRequest, "principal is empty"},
		{"principal null", certify(t, `"root"`, `null`), "C-1", CodeBadRequest, "principal is empty"},
		{"principal twice", certify(t, `"root"`, `"anna"`), "C-1", CodeBadRequest, `"anna" is there twice`},
		{"validity missing", certify(t, `"validity":28800,`, ``), "C-1", CodeBadRequest, "validity is 0 s"},
		{"validity 0", certify(t, `28800`, `0`), "C-1", CodeBadRequest, "validity is 0 s"},
		{"validity negative", certify(t, `28800`, `-1`), "C-1", CodeBadRequest, "validity is -1 s"},
		{"validity a fraction", certify(t, `28800`, `28800.5`), "C-1", CodeBadRequest, "28800.5"},
		{"validity as text", certify(t, `28800`, `"8h"`), "C-1", CodeBadRequest, "string"},
		{"validity beyond a year", certify(t, `28800`, `31622401`), "C-1", CodeBadRequest, "31622401 s"},
		{"validity for ever", certify(t, `28800`, `9223372036854775807`), "C-1", CodeBadRequest, "validity is"},
		{"validity beyond 64 bits", certify(t, `28800`, `18446744073709551615`), "C-1", CodeBadRequest, "out of range"},
		{"keyId missing", certify(t, `"keyId":"vmux:anna@laptop:{serial}",`, ``), "C-1", CodeBadRequest, "keyId is empty"},
		{"wrongly cased keyId", certify(t, `"keyId"`, `"keyID"`), "C-1", CodeBadRequest, "unknown object member"},
		{"criticalOptions missing", certify(t, `"criticalOptions":[{"name":"force-command","value":"make \"all\""},{"name":"source-address","value":"192.0.2.0/24,2001:db8::/32"}],`, ``),
			"C-1", CodeBadRequest, "/payload/criticalOptions is missing"},
		{"extensions null", certify(t, `[{"name":"permit-port-forwarding","value":""},{"name":"permit-pty","value":""}]`, `null`),
			"C-1", CodeBadRequest, "/payload/extensions is not a list"},
		{"option without value", certify(t, `{"name":"permit-pty","value":""}`, `{"name":"permit-pty"}`), "C-1", CodeBadRequest, "/payload/extensions/1/value is missing"},
		{"option without name", certify(t, `{"name":"permit-port-forwarding","value":""}`, `{"value":""}`), "C-1", CodeBadRequest, "option's name is empty"},
		{"option with another member", certify(t, `"name":"permit-pty"`, `"name":"permit-pty","critical":true`), "C-1", CodeBadRequest, "unknown object member"},
		{"option's name with a space", certify(t, `"permit-pty"`, `"permit-pty x"`), "C-1", CodeBadRequest, "other than letters"},
		{"option's name with a line end", certify(t, `"permit-pty"`, `"permit-pty\n"`), "C-1", CodeBadRequest, "other than letters"},
		{"option's name beyond ASCII", certify(t, `"permit-pty"`, `"permit-pty\u0430"`), "C-1", CodeBadRequest, "other than letters"},
		{"options out of order", certify(t, `"permit-port-forwarding"`, `"permit-user-rc"`), "C-1", CodeBadRequest, "extensions are not in the order"},
		{"option twice", certify(t, `"permit-port-forwarding"`, `"permit-pty"`), "C-1", CodeBadRequest, "extensions are not in the order"},
		{"critical option twice", certify(t, `"force-command"`, `"source-address"`), "C-1", CodeBadRequest, "critical options are not in the order"},
		{"certificate's createdAt missing", certify(t, `"createdAt":`+goodTime+`,`, ``), "C-1", CodeBadRequest, "createdAt is not set"},
		{"limits empty", certify(t, `["host deploy SHA256:uNiVztksCsDhcc0u9e8BrwoCRP8","10 signatures"]`, `[]`), "C-1", CodeBadRequest, "/payload/context/limits is empty, not left out"},
		{"limit empty", certify(t, `"10 signatures"`, `""`), "C-1", CodeBadRequest, "limit is empty"},
		{"certificate empty", `{"version":1,"id":"a","type":"certificateResponse","payload":{"certificate":""}}`, "a", CodeBadRequest, "certificate is empty"},

		{"base64 without padding", sign(t, `"AAEC/w=="`, `"AAEC/w"`), "B-2_c", CodeBadRequest, "base64"},
		{"base64 with stray bits", sign(t, `"AAEC/w=="`, `"AAEC/x=="`), "B-2_c", CodeBadRequest, "/payload/data is null or not written in the one way"},
		{"base64 with too much padding", sign(t, `"AAEC/w=="`, `"AAEC/w==="`), "B-2_c", CodeBadRequest, "base64"},
		{"base64url", sign(t, `"AAEC/w=="`, `"AAEC_w=="`), "B-2_c", CodeBadRequest, "base64"},
		{"base64 with a line end", sign(t, `"AAEC/w=="`, `"AAEC\n/w=="`), "B-2_c", CodeBadRequest, `'\n'`},
		{"base64 with a space", sign(t, `"AAEC/w=="`, `"AAEC /w=="`), "B-2_c", CodeBadRequest, "base64"},
		{"bytes as numbers", sign(t, `"AAEC/w=="`, `[0,1,2,255]`), "B-2_c", CodeBadRequest, "array"},

		{"invalid UTF-8", sign(t, `laptop`, "lap\xfftop"), "B-2_c", CodeBadRequest, "UTF-8"},
		{"overlong UTF-8", sign(t, `laptop`, "lap\xc0\x80top"), "B-2_c", CodeBadRequest, "UTF-8"},
		{"surrogate in UTF-8", sign(t, `laptop`, "lap\xed\xa0\x80top"), "B-2_c", CodeBadRequest, "UTF-8"},
		{"half of a surrogate pair", sign(t, `laptop`, `lap\ud800top`), "B-2_c", CodeBadRequest, "surrogate"},
		{"raw control character", sign(t, `laptop`, "lap\ntop"), "B-2_c", CodeBadRequest, "character"},

		{"code of other than letters", `{"version":1,"id":"a","type":"error","payload":{"code":"a\u001b[1m","message":""}}`, "a", CodeBadRequest, "code has a character"},
		{"code empty", `{"version":1,"id":"a","type":"error","payload":{"code":"","message":""}}`, "a", CodeBadRequest, "code is empty"},
		{"pairConfirm empty", `{"version":1,"id":"a","type":"pairConfirm","payload":{}}`, "a", CodeBadRequest, "exactly one"},
		{"pairConfirm with an empty nonce", `{"version":1,"id":"a","type":"pairConfirm","payload":{"nonce":"","done":"` + strings.Repeat("A", 43) + `="}}`,
			"a", CodeBadRequest, "/payload/nonce is empty, not left out"},
		{"url missing", `{"version":1,"id":"a","type":"pairRequest","payload":{"name":"x","commitment":"` + strings.Repeat("A", 43) + `="}}`,
			"a", CodeBadRequest, "/payload/url is missing"},
		{"environment unknown", `{"version":1,"id":"","type":"deviceTokenUpdate","payload":{"token":"AAAA","environment":"development","topic":"a"}}`,
			"", CodeBadRequest, "environment \"development\" is not known"},
		{"topic of other than letters", `{"version":1,"id":"","type":"deviceTokenUpdate","payload":{"token":"AAAA","environment":"sandbox","topic":"a/b"}}`,
			"", CodeBadRequest, "topic has a character"},
	}
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	for _, test := range refusals(t) {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			e, err := Decode([]byte(test.in))
			var coded *Error
			if !errors.As(err, &coded) {
				t.Fatalf("got %+v, %T (%v), want an *Error", e, err, err)
			}
			if coded.Code != test.code || !strings.Contains(coded.Message, test.why) {
				t.Errorf("got %v, want %s with %q", coded, test.code, test.why)
			}
			if e.ID != test.id || e.Payload != nil {
				t.Errorf("got %+v, want id %q and no payload", e, test.id)
			}
			// The error itself must be fit to be sent.
			if _, err := Encode(Envelope{e.ID, coded}); err != nil {
				t.Errorf("the answer cannot be sent: %v", err)
			}
		})
	}
}

// spelling is a text that Decode takes and Encode does not give; it is the sample
// signRequest.
type spelling struct{ name, in string }

func spellings(t *testing.T) []spelling {
	t.Helper()
	return []spelling{
		{"white space", " \t\r\n" + sign(t, `"flags":4`, "\n\t\"flags\" : 4 ") + "\n"},
		{"members moved", sign(t, `{"version":1,"id":"B-2_c"`, `{"id":"B-2_c","version":1`)},
		{"escapes", sign(t, `"device":"laptop"`, `"dev\u0069ce":"l\u0061ptop"`)},
		{"escaped slash", sign(t, `"/usr/bin/ssh"`, `"\/usr\/bin\/ssh"`)},
		{"escaped bytes", sign(t, `"AAEC/w=="`, `"AAEC\/w=\u003d"`)},
		{"escaped time", sign(t, goodTime, `"2\u00302`+goodTime[4:])},
	}
}

func TestDecodeTakesOtherSpellings(t *testing.T) {
	t.Parallel()
	want, err := Encode(samples()[5].env)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range spellings(t) {
		e, err := Decode([]byte(s.in))
		if err != nil {
			t.Errorf("%s: %v", s.name, err)
			continue
		}
		if got, err := Encode(e); err != nil || !bytes.Equal(got, want) || s.in == string(want) {
			t.Errorf("%s: got %s, %v, want %s", s.name, got, err, want)
		}
	}
}

func TestTimeHasOneForm(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"2026-05-04T01:02:01.987Z", "2024-02-29T23:59:59.999Z", "1970-01-01T00:00:00.000Z", "9999-12-31T23:59:59.999Z", "0000-01-01T00:00:00.000Z"} {
		var v Time
		if err := v.UnmarshalJSON([]byte(`"` + good + `"`)); err != nil {
			t.Errorf("%s: %v", good, err)
			continue
		}
		if b, err := v.MarshalJSON(); err != nil || string(b) != `"`+good+`"` {
			t.Errorf("%s came back as %s, %v", good, b, err)
		}
		if v.Location() != time.UTC {
			t.Errorf("%s is in %v", good, v.Location())
		}
	}
	for name, bad := range map[string]string{
		"no fraction":          "2026-05-04T01:02:01Z",
		"one digit":            "2026-05-04T01:02:01.9Z",
		"microseconds":         "2026-05-04T01:02:01.987654Z",
		"comma":                "2026-05-04T01:02:01,987Z",
		"lower-case t":         "2026-05-04t01:02:01.987Z",
		"lower-case z":         "2026-05-04T01:02:01.987z",
		"space for T":          "2026-05-04 01:02:01.987Z",
		"no zone":              "2026-05-04T01:02:01.987",
		"offset of zero":       "2026-05-04T01:02:01.987+00:00",
		"unknown local offset": "2026-05-04T01:02:01.987-00:00",
		"another zone":         "2026-05-04T03:02:01.987+02:00",
		"leap second":          "2016-12-31T23:59:60.000Z",
		"hour 24":              "2026-05-04T24:00:00.000Z",
		"no such day":          "2026-02-29T01:02:01.987Z",
		"month 13":             "2026-13-04T01:02:01.987Z",
		"one-digit month":      "2026-5-04T01:02:01.987Z",
		"five-digit year":      "12026-05-04T01:02:01.987Z",
		"negative year":        "-026-05-04T01:02:01.987Z",
		"trailing space":       "2026-05-04T01:02:01.987Z ",
		"leading space":        " 2026-05-04T01:02:01.987Z",
		"empty":                "",
		"Unix seconds":         "1777856521",
	} {
		var v Time
		if err := v.UnmarshalJSON([]byte(`"` + bad + `"`)); err == nil {
			t.Errorf("%s: %q was taken as %v", name, bad, v)
		}
		// Through the codec too: it must be this very method that is used.
		if e, err := Decode([]byte(sign(t, goodTime, `"`+bad+`"`))); err == nil {
			t.Errorf("%s: %q was decoded as %v", name, bad, e.Payload.(*SignRequest).CreatedAt)
		}
	}
	for _, bad := range []string{`null`, `1`, `{}`, `["` + "2026-05-04T01:02:01.987Z" + `"]`, ``} {
		var v Time
		if err := v.UnmarshalJSON([]byte(bad)); err == nil {
			t.Errorf("%q was taken as %v", bad, v)
		}
	}
	for _, y := range []int{-1, 10_000} {
		if b, err := (Time{time.Date(y, 1, 1, 0, 0, 0, 0, time.UTC)}).MarshalJSON(); err == nil {
			t.Errorf("year %d was written as %s", y, b)
		}
	}
}

func TestTimeIsSentInUTCWithMilliseconds(t *testing.T) {
	t.Parallel()
	e := samples()[6].env
	e.Payload.(*SignRequest).CreatedAt = Time{time.Date(2026, 5, 4, 3, 2, 1, 987_999_999, time.FixedZone("", 2*60*60))}
	b, err := Encode(e)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(b, []byte(`"createdAt":`+goodTime)) {
		t.Errorf("got %s, want %s", b, goodTime)
	}
}

// TestBounds tries every bound from both sides, in both directions: what Encode
// refuses Decode would have refused, and what it sends Decode takes.
func TestBounds(t *testing.T) {
	t.Parallel()
	repeat := func(n int) string { return strings.Repeat("x", n) }
	sized := func(set func(*SignRequest, int)) func(n int) Payload {
		return func(n int) Payload {
			r := &SignRequest{PublicKeyBlob: []byte{1}, Data: []byte{1}, CreatedAt: moment,
				Context: Context{Destination: &Destination{Binds: []Bind{{HostKey: []byte{1}, SessionID: []byte{1}, Signature: []byte{1}}}}}}
			set(r, n)
			return r
		}
	}
	key := func(set func(*PublicKey, int)) func(n int) Payload {
		return func(n int) Payload {
			r := &KeyListResponse{Keys: []PublicKey{{PublicKeyBlob: []byte{1}, ProviderKind: Unknown}}, CAKey: []byte{}}
			set(&r.Keys[0], n)
			return r
		}
	}
	certified := func(set func(*CertificateRequest, int)) func(n int) Payload {
		return func(n int) Payload {
			r := &CertificateRequest{PublicKeyBlob: []byte{1}, Principals: []string{"a"}, Validity: 1, KeyID: "x", CreatedAt: moment}
			set(r, n)
			return r
		}
	}
	numbered := func(n int) (list []string) {
		for i := range n {
			list = append(list, fmt.Sprint(i))
		}
		return list
	}
	named := func(n int) (list []Option) {
		for i := range n {
			list = append(list, Option{Name: fmt.Sprintf("%03d", i)})
		}
		return list
	}
	tests := []struct {
		name        string
		least, most int
		with        func(n int) Payload
	}{
		{"hello.name", 1, MaxName, func(n int) Payload { return &Hello{Name: repeat(n), Clock: moment} }},
		{"hello.software", 0, MaxText, func(n int) Payload { return &Hello{Name: "x", Software: repeat(n), Clock: moment} }},
		{"hello.capabilities", 0, MaxCapabilities, func(n int) Payload {
			return &Hello{Name: "x", Capabilities: make([]string, n), Clock: moment}
		}},
		{"capability", 0, MaxName, func(n int) Payload { return &Hello{Name: "x", Capabilities: []string{"a", repeat(n)}, Clock: moment} }},
		{"keys", 0, MaxKeys, func(n int) Payload {
			r := &KeyListResponse{Keys: make([]PublicKey, n)}
			for i := range r.Keys {
				r.Keys[i] = PublicKey{PublicKeyBlob: []byte{1}, ProviderKind: Unknown}
			}
			return r
		}},
		{"caKey", 0, MaxBlob, func(n int) Payload { return &KeyListResponse{CAKey: bytesOf(1, n)} }},
		{"key's publicKeyBlob", 1, MaxBlob, key(func(k *PublicKey, n int) { k.PublicKeyBlob = bytesOf(1, n) })},
		{"algorithm", 0, MaxName, key(func(k *PublicKey, n int) { k.Algorithm = repeat(n) })},
		{"comment", 0, MaxText, key(func(k *PublicKey, n int) { k.Comment = repeat(n) })},
		{"displayName", 0, MaxText, key(func(k *PublicKey, n int) { k.DisplayName = repeat(n) })},
		{"publicKeyBlob", 1, MaxBlob, sized(func(r *SignRequest, n int) { r.PublicKeyBlob = bytesOf(1, n) })},
		{"data", 1, MaxData, sized(func(r *SignRequest, n int) { r.Data = bytesOf(1, n) })},
		{"device", 0, MaxName, sized(func(r *SignRequest, n int) { r.Context.Device = repeat(n) })},
		{"operation", 0, MaxText, sized(func(r *SignRequest, n int) { r.Context.Operation = repeat(n) })},
		{"workingDirectory", 0, MaxPath, sized(func(r *SignRequest, n int) { r.Context.WorkingDirectory = repeat(n) })},
		{"reason", 0, MaxText, sized(func(r *SignRequest, n int) { r.Context.Reason = repeat(n) })},
		{"processes", 0, MaxProcesses, sized(func(r *SignRequest, n int) { r.Context.Processes = make([]Process, n) })},
		{"executable", 0, MaxPath, sized(func(r *SignRequest, n int) { r.Context.Processes = []Process{{}, {Executable: repeat(n)}} })},
		{"hostNames", 0, MaxHostNames, sized(func(r *SignRequest, n int) { r.Context.Destination.HostNames = make([]string, n) })},
		{"host name", 0, MaxText, sized(func(r *SignRequest, n int) { r.Context.Destination.HostNames = []string{"a", repeat(n)} })},
		{"binds", 0, MaxBinds, sized(func(r *SignRequest, n int) {
			b := r.Context.Destination.Binds[0]
			r.Context.Destination.Binds = nil
			for range n {
				r.Context.Destination.Binds = append(r.Context.Destination.Binds, b)
			}
		})},
		{"hostKey", 1, MaxBlob, sized(func(r *SignRequest, n int) { r.Context.Destination.Binds[0].HostKey = bytesOf(1, n) })},
		{"sessionId", 1, MaxSessionID, sized(func(r *SignRequest, n int) { r.Context.Destination.Binds[0].SessionID = bytesOf(1, n) })},
		{"bind's signature", 1, MaxBlob, sized(func(r *SignRequest, n int) { r.Context.Destination.Binds[0].Signature = bytesOf(1, n) })},
		{"signature", 1, MaxBlob, func(n int) Payload { return &SignResponse{Signature: bytesOf(1, n)} }},
		{"certified publicKeyBlob", 1, MaxBlob, certified(func(r *CertificateRequest, n int) { r.PublicKeyBlob = bytesOf(1, n) })},
		{"identity", 0, MaxText, certified(func(r *CertificateRequest, n int) { r.Identity = repeat(n) })},
		{"principals", 1, MaxPrincipals, certified(func(r *CertificateRequest, n int) { r.Principals = numbered(n) })},
		{"principal", 1, MaxPrincipal, certified(func(r *CertificateRequest, n int) { r.Principals = []string{"a", repeat(n)} })},
		{"validity", 1, MaxValidity, certified(func(r *CertificateRequest, n int) { r.Validity = int64(n) })},
		{"keyId", 1, MaxKeyID, certified(func(r *CertificateRequest, n int) { r.KeyID = repeat(n) })},
		{"criticalOptions", 0, MaxOptions, certified(func(r *CertificateRequest, n int) { r.CriticalOptions = named(n) })},
		{"extensions", 0, MaxOptions, certified(func(r *CertificateRequest, n int) { r.Extensions = named(n) })},
		{"option's name", 1, MaxName, certified(func(r *CertificateRequest, n int) { r.Extensions = []Option{{"a", ""}, {repeat(n), ""}} })},
		{"option's value", 0, MaxText, certified(func(r *CertificateRequest, n int) { r.CriticalOptions = []Option{{"a", repeat(n)}} })},
		{"limits", 0, MaxLimits, certified(func(r *CertificateRequest, n int) { r.Context.Limits = numbered(n) })},
		{"limit", 1, MaxText, certified(func(r *CertificateRequest, n int) { r.Context.Limits = []string{"a", repeat(n)} })},
		{"certificate", 1, MaxBlob, func(n int) Payload { return &CertificateResponse{Certificate: bytesOf(1, n)} }},
		{"token", 1, MaxDeviceToken, func(n int) Payload {
			return &DeviceTokenUpdate{Token: bytesOf(1, n), Environment: Production, Topic: "a"}
		}},
		{"topic", 1, MaxTopic, func(n int) Payload {
			return &DeviceTokenUpdate{Token: []byte{1}, Environment: Production, Topic: repeat(n)}
		}},
		{"pairRequest.name", 1, MaxName, func(n int) Payload { return &PairRequest{Name: repeat(n), Commitment: bytesOf(1, NonceSize)} }},
		{"commitment", NonceSize, NonceSize, func(n int) Payload { return &PairRequest{Name: "x", Commitment: bytesOf(1, n)} }},
		{"pairResponse.name", 1, MaxName, func(n int) Payload { return &PairResponse{Name: repeat(n), Nonce: bytesOf(1, NonceSize)} }},
		{"pairResponse.nonce", NonceSize, NonceSize, func(n int) Payload { return &PairResponse{Name: "x", Nonce: bytesOf(1, n)} }},
		{"pairConfirm.nonce", NonceSize, NonceSize, func(n int) Payload { return &PairConfirm{Nonce: bytesOf(1, n)} }},
		{"done", NonceSize, NonceSize, func(n int) Payload { return &PairConfirm{Done: bytesOf(1, n)} }},
		{"both of pairConfirm", 0, 0, func(n int) Payload { return &PairConfirm{Nonce: bytesOf(1, n*NonceSize), Done: bytesOf(1, NonceSize)} }},
		{"code", 1, MaxName, func(n int) Payload { return &Error{Code: Code(repeat(n))} }},
		{"message", 0, MaxText, func(n int) Payload { return &Error{Code: CodeInternal, Message: repeat(n)} }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			for n, ok := range map[int]bool{test.least: true, test.most: true, test.least - 1: false, test.most + 1: false} {
				if n < 0 {
					continue
				}
				p := test.with(n)
				b, err := Encode(Envelope{"a", p})
				if (err == nil) != ok {
					t.Errorf("%d: Encode: %v", n, err)
				}
				if ok {
					if _, err := Decode(b); err != nil {
						t.Errorf("%d: Decode: %v", n, err)
					}
					continue
				}
				if _, err := Decode(unchecked(t, p)); err == nil {
					t.Errorf("%d: Decode takes it", n)
				}
			}
		})
	}
}

func TestProviderKinds(t *testing.T) {
	t.Parallel()
	for kind, ok := range map[ProviderKind]bool{SecureEnclave: true, HardwareToken: true, Unknown: true, "": false, "secureenclave": false, "tpm": false} {
		p := &KeyListResponse{Keys: []PublicKey{{PublicKeyBlob: []byte{1}, ProviderKind: kind}}, CAKey: []byte{}}
		if _, err := Encode(Envelope{"a", p}); (err == nil) != ok {
			t.Errorf("%q: Encode: %v", kind, err)
		}
		if _, err := Decode(unchecked(t, p)); (err == nil) != ok {
			t.Errorf("%q: Decode: %v", kind, err)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	t.Parallel()
	large := func(n int) Payload {
		return &SignRequest{PublicKeyBlob: []byte{1}, Data: bytesOf(1, MaxData), CreatedAt: moment,
			Context: Context{Processes: repeatProcess(n, strings.Repeat("x", MaxPath-64))}}
	}
	tests := []struct {
		name string
		e    Envelope
		want error
	}{
		{"no payload", Envelope{ID: "a"}, nil},
		{"long id", Envelope{strings.Repeat("a", MaxID+1), &Ping{}}, nil},
		{"id with a slash", Envelope{"a/b", &Ping{}}, nil},
		{"invalid UTF-8", Envelope{"", &Hello{Name: "x\xff", Clock: moment}}, nil},
		{"no clock", Envelope{"", &Hello{Name: "x"}}, nil},
		{"clock that rounds to none", Envelope{"", &Hello{Name: "x", Clock: Time{time.Time{}.Add(time.Microsecond)}}}, nil},
		{"year 10000", Envelope{"", &Hello{Name: "x", Clock: Time{time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)}}}, nil},
		{"negative pid", Envelope{"a", &SignRequest{PublicKeyBlob: []byte{1}, Data: []byte{1}, CreatedAt: moment, Context: Context{Processes: []Process{{PID: -1}}}}}, nil},
		{"each part within its bound, and too large", Envelope{"a", large(32)}, ErrTooLarge},
	}
	for _, test := range tests {
		b, err := Encode(test.e)
		if err == nil {
			t.Errorf("%s: got %d bytes", test.name, len(b))
		}
		if test.want != nil && !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, err, test.want)
		}
	}
	if _, err := Encode(Envelope{"a", large(20)}); err != nil {
		t.Errorf("below the limit: %v", err)
	}
}

func repeatProcess(n int, executable string) []Process {
	ps := make([]Process, n)
	for i := range ps {
		ps[i].Executable = executable
	}
	return ps
}

func TestErrorf(t *testing.T) {
	t.Parallel()
	for name, in := range map[string]string{
		"short":         "short",
		"long":          strings.Repeat("x", 5000),
		"long and wide": strings.Repeat("€", 5000),
		"widest":        strings.Repeat("\U0010ffff", MaxText),
		"invalid":       "a\xffb",
		"long, invalid": strings.Repeat("\xff", 5000),
		"cut in a rune": strings.Repeat("x", MaxText-1) + "€",
		"empty":         "",
	} {
		e := Errorf(CodeInternal, "%s", in)
		if len(e.Message) > MaxText || !utf8.ValidString(e.Message) {
			t.Errorf("%s: %d bytes, valid %t", name, len(e.Message), utf8.ValidString(e.Message))
		}
		if len(in) <= MaxText && utf8.ValidString(in) && e.Message != in {
			t.Errorf("%s: got %q", name, e.Message)
		}
		if _, err := Encode(Envelope{"", e}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := fmt.Sprint(&Error{Code: CodeDenied}); got != "denied" {
		t.Errorf("got %q", got)
	}
	if got := fmt.Sprint(&Error{Code: CodeDenied, Message: "no"}); got != "denied: no" {
		t.Errorf("got %q", got)
	}
}
