// SPDX-License-Identifier: BSD-3-Clause

package pairing

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/transport"
)

var update = flag.Bool("update", false, "write testdata/vectors.json anew")

const vectorFile = "testdata/vectors.json"

// octets are written in hexadecimal.
type octets []byte

func (b octets) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, b), nil }

func (b *octets) UnmarshalText(s []byte) (err error) {
	*b, err = hex.AppendDecode(nil, s)
	return err
}

type vectors struct {
	About     []string         `json:"about"`
	Exchanges []exchangeVector `json:"exchanges"`
	URLs      []urlVector      `json:"urls"`
	BadURLs   []badURLVector   `json:"badUrls"`
}

// exchangeVector has what goes in, then each hash's input and value.
type exchangeVector struct {
	Name        string `json:"name"`
	DeviceName  string `json:"deviceName"`
	PhoneName   string `json:"phoneName"`
	DevicePin   octets `json:"devicePin"`
	PhonePin    octets `json:"phonePin"`
	DeviceNonce octets `json:"deviceNonce"`
	PhoneNonce  octets `json:"phoneNonce"`
	Exporter    octets `json:"exporter"`
	Secret      octets `json:"secret,omitempty"`

	CommitInput     octets `json:"commitInput"`
	Commitment      octets `json:"commitment"`
	TranscriptInput octets `json:"transcriptInput"`
	Transcript      octets `json:"transcript"`
	URLInput        octets `json:"urlInput,omitempty"`
	K               octets `json:"k"`
	SASInput        octets `json:"sasInput"`
	SAS             octets `json:"sas"`
	Code            string `json:"code"`
	DeviceDoneInput octets `json:"deviceDoneInput"`
	DeviceDone      octets `json:"deviceDone"`
	PhoneDoneInput  octets `json:"phoneDoneInput"`
	PhoneDone       octets `json:"phoneDone"`
}

type urlVector struct {
	URL    string `json:"url"`
	Name   string `json:"name"`
	Pin    octets `json:"pin"`
	Secret octets `json:"secret"`
}

type badURLVector struct {
	Name string `json:"name"`
	URL  string `json:"url"`
}

// count gives n bytes that go up from first.
func count(first byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = first + byte(i)
	}
	return b
}

// given are the exchanges of the file, the first half of each.
func given() []exchangeVector {
	digitsCase := exchangeVector{
		Name: "digits", DeviceName: "laptop", PhoneName: "Anna’s phone",
		DevicePin: count(0x00, 32), PhonePin: count(0x20, 32), DeviceNonce: count(0x40, 32), PhoneNonce: count(0x60, 32), Exporter: count(0x80, 32),
	}
	byURL := digitsCase
	byURL.Name, byURL.Secret = "one-time URL", count(0xa0, SecretSize)
	long := digitsCase
	long.Name, long.DeviceName, long.PhoneName = "longest names", strings.Repeat("d", envelope.MaxName), strings.Repeat("p", envelope.MaxName)
	long.Exporter = bytes.Repeat([]byte{0xff}, 32)
	zero := digitsCase
	zero.Name = "code with leading zeros"
	zero.Exporter = binary.BigEndian.AppendUint64(make([]byte, 24), leadingZeros)
	return []exchangeVector{digitsCase, byURL, long, zero}
}

// leadingZeros makes a code below 1000; found by trying.
const leadingZeros = 2300

// compute fills in the second half by the package's own code.
func compute(v exchangeVector) exchangeVector {
	x := &exchange{device: transport.Pin(v.DevicePin), phone: transport.Pin(v.PhonePin), deviceName: v.DeviceName, phoneName: v.PhoneName,
		deviceNonce: v.DeviceNonce, phoneNonce: v.PhoneNonce}
	if len(v.Secret) > 0 {
		x.secret = v.Secret
		v.URLInput = input("url", v.Secret)
	}
	x.commitment = x.commit()
	x.derive(v.Exporter)
	v.CommitInput = input("commit", v.DeviceNonce, []byte(v.DeviceName), v.DevicePin, v.PhonePin)
	v.Commitment = x.commitment
	v.TranscriptInput = input("transcript", []byte(v.DeviceName), x.commitment, []byte(v.PhoneName), v.PhoneNonce, v.DeviceNonce)
	v.Transcript = x.transcript
	v.K = x.k
	v.SASInput = input("sas", v.DevicePin, v.PhonePin, x.transcript)
	v.SAS = mac(x.k, "sas", v.DevicePin, v.PhonePin, x.transcript)
	v.Code = x.code()
	v.DeviceDoneInput = input("done device", v.DevicePin, v.PhonePin, x.transcript)
	v.DeviceDone = x.done("device")
	v.PhoneDoneInput = input("done phone", v.DevicePin, v.PhonePin, x.transcript)
	v.PhoneDone = x.done("phone")
	return v
}

// input is what is hashed: a second writing of what put does.
func input(fields ...any) []byte {
	var b []byte
	for _, f := range fields {
		switch f := f.(type) {
		case string:
			b = append(append(b, 0, 0, 0, byte(len(f))), f...)
		case octets:
			b = append(append(b, 0, 0, 0, byte(len(f))), f...)
		case []byte:
			b = append(append(b, 0, 0, 0, byte(len(f))), f...)
		}
	}
	return b
}

func urls() []URL {
	pin, secret := transport.Pin(count(0xe0, 32)), [SecretSize]byte(count(0xf8, SecretSize))
	return []URL{
		{"laptop", pin, secret},
		{"Anna’s laptop (2)", pin, secret},
		{"a-b_c.d~e/f%g+h", transport.Pin{}, [SecretSize]byte{}},
		{strings.Repeat("%", envelope.MaxName), transport.Pin(bytes.Repeat([]byte{0xff}, 32)), secret},
	}
}

func badURLs() []badURLVector {
	good := urls()[0].String()
	pin, secret := strings.Split(good, "/")[3], strings.Split(good, "/")[4]
	at := func(pin, secret, name string) string { return urlPrefix + pin + "/" + secret + "/" + name }
	return []badURLVector{
		{"empty", ""},
		{"another scheme", strings.Replace(good, "vmux-pair", "https", 1)},
		{"upper-case scheme", strings.Replace(good, "vmux-pair", "VMUX-PAIR", 1)},
		{"another version", strings.Replace(good, "//1/", "//2/", 1)},
		{"no name", at(pin, secret, "")},
		{"no name and no slash", urlPrefix + pin + "/" + secret},
		{"another part", good + "/x"},
		{"query", good + "?x"},
		{"fragment", good + "#x"},
		{"line end", good + "\n"},
		{"leading space", " " + good},
		{"pin too short", at(pin[:42], secret, "x")},
		{"pin too long", at(pin+"A", secret, "x")},
		{"pin with stray bits", at(pin[:42]+"9", secret, "x")},
		{"pin in base64, not base64url", at(strings.Repeat("/", 43), secret, "x")},
		{"pin with padding", at(pin+"=", secret, "x")},
		{"secret too short", at(pin, secret[:21], "x")},
		{"secret with stray bits", at(pin, secret[:21]+"x", "x")},
		{"secret with a line end", at(pin, secret[:11]+"\n"+secret[11:], "x")},
		{"name with lower-case hexadecimal", at(pin, secret, "a%2fb")},
		{"name with a needless escape", at(pin, secret, "%61")},
		{"name with a space", at(pin, secret, "a b")},
		{"name with a half escape", at(pin, secret, "a%2")},
		{"name with a control character", at(pin, secret, "a%1Bb")},
		{"name with a direction override", at(pin, secret, "a%E2%80%AEb")},
		{"name in no UTF-8", at(pin, secret, "a%FFb")},
		{"name that begins with a space", at(pin, secret, "%20a")},
		{"name of 64 bytes", at(pin, secret, strings.Repeat("a", envelope.MaxName+1))},
		{"too long", at(pin, secret, strings.Repeat("%25", envelope.MaxName+1))},
	}
}

func makeVectors() vectors {
	v := vectors{About: []string{
		"Test vectors of vmux-protocol(7): the arithmetic of a pairing and its URLs.",
		"Names are text, code is six digits, everything else of an exchange is hexadecimal.",
		"exporter is what the TLS exporter gives; secret is there when a one-time URL is used, and then k differs from exporter.",
		"Each value comes after the bytes that are hashed for it: commitment and transcript are SHA-256, k (of a URL), sas, deviceDone and phoneDone are HMAC-SHA-256.",
		"urls: each is read as its parts and written from them. badUrls: each is refused.",
	}, BadURLs: badURLs()}
	for _, g := range given() {
		v.Exchanges = append(v.Exchanges, compute(g))
	}
	for _, u := range urls() {
		v.URLs = append(v.URLs, urlVector{u.String(), u.Name, u.Pin[:], u.Secret[:]})
	}
	return v
}

func TestVectors(t *testing.T) {
	t.Parallel()
	want, err := json.Marshal(makeVectors(), jsontext.WithIndent("  "))
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, '\n')
	if *update {
		if err := os.WriteFile(vectorFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what this code gives; if the protocol is to change, run go test -update", vectorFile)
	}

	// What follows reads the file as a stranger does: with the standard library's
	// hashes and the inputs that the file gives.
	var v vectors
	if err := json.Unmarshal(got, &v, json.RejectUnknownMembers(true)); err != nil {
		t.Fatal(err)
	}
	if len(v.Exchanges) < 4 || len(v.URLs) < 4 || len(v.BadURLs) < 20 {
		t.Errorf("%d exchanges, %d URLs, %d bad URLs: some are missing", len(v.Exchanges), len(v.URLs), len(v.BadURLs))
	}
	for _, e := range v.Exchanges {
		t.Run(e.Name, func(t *testing.T) {
			t.Parallel()
			checkExchange(t, e)
		})
	}
	for _, u := range v.URLs {
		parts := URL{u.Name, transport.Pin(u.Pin), [SecretSize]byte(u.Secret)}
		if got, err := ParseURL(u.URL); err != nil || got != parts {
			t.Errorf("%s: got %+v, %v, want %+v", u.URL, got, err, parts)
		}
		if got := parts.String(); got != u.URL {
			t.Errorf("got %s, want %s", got, u.URL)
		}
	}
	for _, u := range v.BadURLs {
		if got, err := ParseURL(u.URL); !errors.Is(err, ErrBadURL) || got != (URL{}) {
			t.Errorf("%s: %q: got %+v, %v, want ErrBadURL", u.Name, u.URL, got, err)
		}
	}
}

func checkExchange(t *testing.T, e exchangeVector) {
	t.Helper()
	hashed := func(in []byte) []byte { s := sha256.Sum256(in); return s[:] }
	keyed := func(key, in []byte) []byte {
		h := hmac.New(sha256.New, key)
		h.Write(in)
		return h.Sum(nil)
	}
	k := []byte(e.Exporter)
	if len(e.Secret) > 0 {
		k = keyed(e.Exporter, e.URLInput)
	}
	for name, pair := range map[string][2][]byte{
		"commitment": {hashed(e.CommitInput), e.Commitment},
		"transcript": {hashed(e.TranscriptInput), e.Transcript},
		"k":          {k, e.K},
		"sas":        {keyed(k, e.SASInput), e.SAS},
		"deviceDone": {keyed(k, e.DeviceDoneInput), e.DeviceDone},
		"phoneDone":  {keyed(k, e.PhoneDoneInput), e.PhoneDone},
	} {
		if !bytes.Equal(pair[0], pair[1]) {
			t.Errorf("%s: input gives %x, the file has %x", name, pair[0], pair[1])
		}
	}
	if got := fmt.Sprintf("%06d", binary.BigEndian.Uint64(e.SAS[:8])%1_000_000); got != e.Code || len(e.Code) != Digits {
		t.Errorf("sas gives the code %s, the file has %s", got, e.Code)
	}
	if strings.Contains(e.Name, "leading zeros") && !strings.HasPrefix(e.Code, "000") {
		t.Errorf("code %s has no leading zeros", e.Code)
	}
	if bytes.Equal(e.DeviceDone, e.PhoneDone) {
		t.Error("an end's proof can be sent back to it")
	}
	// The proofs are taken from the right end only.
	x := &exchange{device: transport.Pin(e.DevicePin), phone: transport.Pin(e.PhonePin), transcript: e.Transcript, k: e.K}
	for _, role := range []string{"device", "phone"} {
		for from, done := range map[string][]byte{"device": e.DeviceDone, "phone": e.PhoneDone, "nobody": nil} {
			err := x.proof(role, &envelope.PairConfirm{Done: done})
			if (err == nil) != (role == from) {
				t.Errorf("the %s's proof where the %s's is due: %v", from, role, err)
			}
		}
	}
}

// Each input of an exchange changes what is compared and proven.
func TestEveryInputCounts(t *testing.T) {
	t.Parallel()
	base := compute(given()[1])
	flip := func(b octets) octets { b = bytes.Clone(b); b[len(b)-1] ^= 1; return b }
	for name, change := range map[string]func(*exchangeVector){
		"device name":  func(v *exchangeVector) { v.DeviceName += "x" },
		"phone name":   func(v *exchangeVector) { v.PhoneName += "x" },
		"device pin":   func(v *exchangeVector) { v.DevicePin = flip(v.DevicePin) },
		"phone pin":    func(v *exchangeVector) { v.PhonePin = flip(v.PhonePin) },
		"device nonce": func(v *exchangeVector) { v.DeviceNonce = flip(v.DeviceNonce) },
		"phone nonce":  func(v *exchangeVector) { v.PhoneNonce = flip(v.PhoneNonce) },
		"exporter":     func(v *exchangeVector) { v.Exporter = flip(v.Exporter) },
		"secret":       func(v *exchangeVector) { v.Secret = flip(v.Secret) },
		"no secret":    func(v *exchangeVector) { v.Secret = nil },
		"pins swapped": func(v *exchangeVector) { v.DevicePin, v.PhonePin = v.PhonePin, v.DevicePin },
	} {
		g := given()[1]
		change(&g)
		v := compute(g)
		if bytes.Equal(v.SAS, base.SAS) || bytes.Equal(v.DeviceDone, base.DeviceDone) || bytes.Equal(v.PhoneDone, base.PhoneDone) {
			t.Errorf("%s: changes nothing", name)
		}
	}
}
