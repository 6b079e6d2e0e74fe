// SPDX-License-Identifier: BSD-3-Clause

package pairing

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/transport"
)

// SecretSize is the size of a URL's secret in bytes.
const SecretSize = 16

// urlPrefix names the form of the rest. It has no character that a shell takes
// for its own, so that the URL can be pasted without quotes.
const urlPrefix = "vmux-pair://1/"

// maxURL bounds what is parsed: a name's every byte may be escaped.
const maxURL = len(urlPrefix) + 43 + 1 + 22 + 1 + 3*envelope.MaxName

// ErrBadURL says that a text is no pairing URL.
var ErrBadURL = errors.New("not a pairing URL")

// URL is the one-time secret that a device shows, as a QR code or text, and a
// phone takes: vmux-pair://1/PIN/SECRET/NAME, with the device's pin and the
// secret in base64url without padding and the device's name percent-encoded.
type URL struct {
	Name   string
	Pin    transport.Pin
	Secret [SecretSize]byte
}

// NewURL makes a URL with a fresh secret.
func NewURL(name string, pin transport.Pin) URL {
	u := URL{Name: CleanName(name), Pin: pin}
	rand.Read(u.Secret[:]) // never fails
	return u
}

var b64 = base64.RawURLEncoding.Strict()

// String gives the URL. It holds the secret: show it to the owner only.
func (u URL) String() string {
	return urlPrefix + b64.EncodeToString(u.Pin[:]) + "/" + b64.EncodeToString(u.Secret[:]) + "/" + escape(u.Name)
}

// ParseURL reads exactly what String gives.
func ParseURL(s string) (URL, error) {
	var u URL
	if len(s) > maxURL {
		return u, fmt.Errorf("%w: it is longer than %d characters", ErrBadURL, maxURL)
	}
	rest, ok := strings.CutPrefix(s, urlPrefix)
	if !ok {
		return u, fmt.Errorf("%w: it does not begin with %s", ErrBadURL, urlPrefix)
	}
	parts := strings.Split(rest, "/")
	if len(parts) != 3 {
		return u, fmt.Errorf("%w: it has %d parts, not 3", ErrBadURL, len(parts))
	}
	pin, err := b64.DecodeString(parts[0])
	if err != nil || len(pin) != len(u.Pin) {
		return u, fmt.Errorf("%w: its pin is damaged", ErrBadURL)
	}
	secret, err := b64.DecodeString(parts[1])
	if err != nil || len(secret) != len(u.Secret) {
		return u, fmt.Errorf("%w: its secret is damaged", ErrBadURL)
	}
	name, err := url.PathUnescape(parts[2])
	if err != nil || name != CleanName(name) {
		return u, fmt.Errorf("%w: its name is damaged", ErrBadURL)
	}
	copy(u.Pin[:], pin)
	copy(u.Secret[:], secret)
	u.Name = name
	if u.String() != s {
		return URL{}, fmt.Errorf("%w: it is not written as vmux-pair writes it", ErrBadURL)
	}
	return u, nil
}

// escape leaves letters, digits, '-', '_' and '.' and escapes everything else.
func escape(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
