// SPDX-License-Identifier: BSD-3-Clause

package session

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	// backdated is how far before its signing a certificate may begin, for servers whose clock is behind.
	backdated = 60 * time.Second
	// skew is how far the phone's clock may be from ours. The phone refuses a request whose time is more than 60 s from
	// its own, so one that answers is within that.
	skew = 60 * time.Second
	// minNonce is the shorter of the lengths that PROTOCOL.certkeys calls typical.
	minNonce = 16
)

// Field names a field of a certificate in a MismatchError.
type Field string

// The fields of a certificate that are compared.
const (
	FieldEncoding        Field = "encoding"
	FieldType            Field = "type"
	FieldPublicKey       Field = "public key"
	FieldCA              Field = "CA"
	FieldSignature       Field = "signature"
	FieldSerial          Field = "serial"
	FieldNonce           Field = "nonce"
	FieldReserved        Field = "reserved data"
	FieldKeyID           Field = "key id"
	FieldPrincipals      Field = "principals"
	FieldValidAfter      Field = "valid after"
	FieldValidBefore     Field = "valid before"
	FieldCriticalOptions Field = "critical options"
	FieldExtensions      Field = "extensions"
)

// parse reads a certificate in wire form. What would be encoded otherwise is refused: the CA signs bytes, and
// other readers than ours may see other things in them.
func parse(blob []byte) (*ssh.Certificate, error) {
	fail := func(got string) error { return &MismatchError{FieldEncoding, "an OpenSSH certificate", got} }
	if len(blob) > maxCertificate {
		return nil, fail(fmt.Sprintf("%d bytes, more than %d", len(blob), maxCertificate))
	}
	key, err := ssh.ParsePublicKey(blob)
	if err != nil {
		return nil, fail(err.Error())
	}
	c, ok := key.(*ssh.Certificate)
	if !ok {
		return nil, fail("a key of type " + clip(key.Type()))
	}
	if !bytes.Equal(c.Marshal(), blob) {
		return nil, fail("another encoding of one")
	}
	return c, nil
}

// Check holds c against the request s for a certificate of public, and against ca, the CA's key that was pinned at pairing,
// in wire form. now is the wall clock's time when c came. Every field that deviates is a *MismatchError; they come
// joined. What s does not say has to be empty, what it does say has to be so exactly, with these exceptions: "{serial}"
// in the key id is replaced, the window may begin up to 60 s before the time of signing, and that time is known
// up to 60 s.
func Check(c *ssh.Certificate, public ssh.PublicKey, ca []byte, s Spec, now time.Time) error {
	var errs []error
	miss := func(field Field, asked, got string) {
		errs = append(errs, &MismatchError{field, asked, got})
	}

	if c.CertType != ssh.UserCert {
		got := "type " + strconv.FormatUint(uint64(c.CertType), 10)
		if c.CertType == ssh.HostCert {
			got = "a host certificate"
		}
		miss(FieldType, "a user certificate", got)
	}
	if !bytes.Equal(c.Key.Marshal(), public.Marshal()) {
		miss(FieldPublicKey, ssh.FingerprintSHA256(public), ssh.FingerprintSHA256(c.Key))
	}
	if pinned, err := ssh.ParsePublicKey(ca); err != nil {
		miss(FieldCA, "the one pinned at pairing, which cannot be read", ssh.FingerprintSHA256(c.SignatureKey))
	} else if !bytes.Equal(c.SignatureKey.Marshal(), ca) {
		miss(FieldCA, ssh.FingerprintSHA256(pinned), ssh.FingerprintSHA256(c.SignatureKey))
	}
	if got := signatureFault(c); got != "" {
		miss(FieldSignature, "one of the CA", got)
	}
	if c.Serial == 0 {
		miss(FieldSerial, "a number", "0")
	}
	if len(c.Nonce) < minNonce {
		miss(FieldNonce, fmt.Sprintf("at least %d bytes", minNonce), strconv.Itoa(len(c.Nonce)))
	}
	if len(c.Reserved) != 0 {
		miss(FieldReserved, "none", fmt.Sprintf("%d bytes", len(c.Reserved)))
	}
	if want := strings.ReplaceAll(s.KeyID, Serial, strconv.FormatUint(c.Serial, 10)); c.KeyId != want {
		miss(FieldKeyID, quote(want), quote(c.KeyId))
	}
	if !slices.Equal(slices.Sorted(slices.Values(c.ValidPrincipals)), slices.Sorted(slices.Values(s.Principals))) {
		miss(FieldPrincipals, list(s.Principals), list(c.ValidPrincipals))
	}
	checkWindow(c, s.Validity, now, miss)
	if !maps.Equal(c.CriticalOptions, s.CriticalOptions) {
		miss(FieldCriticalOptions, options(s.CriticalOptions), options(c.CriticalOptions))
	}
	if !maps.Equal(c.Extensions, s.Extensions) {
		miss(FieldExtensions, options(s.Extensions), options(c.Extensions))
	}
	return errors.Join(errs...)
}

// checkWindow has two kinds of bounds. The length needs no clock: as asked, and at most backdated more. Where the
// window lies is known up to skew. A window that is shorter than asked would let work fail midway, so it is
// refused too.
func checkWindow(c *ssh.Certificate, validity time.Duration, now time.Time, miss func(Field, string, string)) {
	at := now.Unix()
	const margin, back = int64(skew / time.Second), int64(backdated / time.Second)
	length := int64(validity / time.Second)
	after, before := seconds(c.ValidAfter), seconds(c.ValidBefore)
	stamp := func(t int64) string { return time.Unix(t, 0).UTC().Format(time.RFC3339) }

	switch earliest, latest := at-back-margin, at+margin; {
	case after < earliest:
		miss(FieldValidAfter, "not before "+stamp(earliest), stamp(after))
	case after > latest:
		miss(FieldValidAfter, "not after "+stamp(latest), stamp(after))
	}
	switch latest := at + length + margin; {
	case c.ValidBefore == ssh.CertTimeInfinity:
		miss(FieldValidBefore, "not after "+stamp(latest), "forever")
	case before > latest:
		miss(FieldValidBefore, "not after "+stamp(latest), stamp(before))
	case before <= at:
		miss(FieldValidBefore, "a time to come", stamp(before))
	case after < before && before-after > length+back:
		miss(FieldValidBefore, fmt.Sprintf("at most %v in all", validity+backdated), fmt.Sprintf("%d s", before-after))
	case before-after < length:
		miss(FieldValidBefore, fmt.Sprintf("at least %v in all", validity), fmt.Sprintf("%d s", before-after))
	}
}

// lastTime is the last second of the year 9999, after which times have no RFC 3339 form.
const lastTime = 253402300799

// seconds caps s, so that a far time never becomes a past one.
func seconds(s uint64) int64 { return int64(min(s, lastTime)) }

// signatureFault verifies c's signature with the CA key in c, which is compared elsewhere, and says what is wrong.
func signatureFault(c *ssh.Certificate) string {
	if c.Signature == nil {
		return "none"
	}
	if c.Signature.Format == ssh.KeyAlgoRSA { // SHA-1, which sshd refuses
		return "one of type " + ssh.KeyAlgoRSA
	}
	if len(c.Signature.Rest) != 0 {
		return "one with bytes after it"
	}
	unsigned := *c
	unsigned.Signature = nil
	body := unsigned.Marshal()
	body = body[:len(body)-4] // the length of the signature that is not there
	if err := c.SignatureKey.Verify(body, c.Signature); err != nil {
		return "one that does not verify"
	}
	return ""
}

func quote(s string) string { return strconv.Quote(clip(s)) }

func list(all []string) string {
	if len(all) == 0 {
		return "none"
	}
	quoted := make([]string, 0, len(all))
	for _, s := range slices.Sorted(slices.Values(all)) {
		quoted = append(quoted, quote(s))
	}
	return strings.Join(quoted, ", ")
}

func options(all map[string]string) string {
	named := make([]string, 0, len(all))
	for name, value := range all {
		if value != "" {
			name += "=" + value
		}
		named = append(named, name)
	}
	return list(named)
}
