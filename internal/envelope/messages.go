// SPDX-License-Identifier: BSD-3-Clause

package envelope

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"unicode/utf8"
)

// Bounds of the members, in bytes or elements. They keep a prompt readable and
// what the phone must remember small; the frame's bound holds on top of them.
const (
	MaxName         = 63   // device and phone names, as a DNS label
	MaxText         = 1024 // every other text
	MaxPath         = 4096 // PATH_MAX
	MaxKeys         = 256  // identities of one phone
	MaxBlob         = 16 << 10
	MaxData         = 128 << 10 // what may be signed, before base64
	MaxBinds        = 16        // as OpenSSH's ssh-agent has it
	MaxSessionID    = 128       // as OpenSSH's ssh-agent has it
	MaxProcesses    = 32
	MaxHostNames    = 16
	MaxCapabilities = 32
	MaxPrincipals   = 16
	MaxPrincipal    = 128 // an account, its realm or mail domain included
	MaxKeyID        = 256 // what sshd writes into its log at each login
	MaxOptions      = 16  // critical options, and as many extensions
	MaxLimits       = 16
	MaxDeviceToken  = 100 // Apple promises no length; it has been 32 for long
	MaxTopic        = 155 // a bundle id
	// MaxValidity bounds a certificate's validity in seconds, 366 days. Revocation
	// is the only end before that, and few servers have it set up.
	MaxValidity = 366 * 24 * 60 * 60
)

// CapabilityCertificate is in the hello of a phone that has a certificate
// authority.
const CapabilityCertificate = "certificate"

// Hello is the first message of both ends; the phone speaks first.
type Hello struct {
	Name         string   `json:"name"`
	Software     string   `json:"software"`
	Capabilities []string `json:"capabilities"`
	Clock        Time     `json:"clock"`
}

// KeyListRequest asks for the identities that the phone offers to this device.
type KeyListRequest struct{}

// KeyListResponse is their public halves.
type KeyListResponse struct {
	Keys []PublicKey `json:"keys"`
	// CAKey is the public key of the phone's certificate authority, an SSH key
	// blob, or empty when the phone has none.
	CAKey []byte `json:"caKey"`
}

// ProviderKind says where a private key is kept.
type ProviderKind string

// The kinds of provider.
const (
	SecureEnclave ProviderKind = "secureEnclave"
	HardwareToken ProviderKind = "hardwareToken"
	Unknown       ProviderKind = "unknown"
)

// PublicKey is one identity, the RemoteSignerPublicKey of vmux's documentation.
type PublicKey struct {
	Algorithm     string       `json:"algorithm"`     // SSH name: ecdsa-sha2-nistp256, ssh-ed25519
	PublicKeyBlob []byte       `json:"publicKeyBlob"` // RFC 4253 section 6.6
	Comment       string       `json:"comment"`
	ProviderKind  ProviderKind `json:"providerKind"`
	DisplayName   string       `json:"displayName"`
}

// SignRequest asks for a signature over Data by the key with the given blob.
type SignRequest struct {
	PublicKeyBlob []byte  `json:"publicKeyBlob"`
	Data          []byte  `json:"data"`
	Flags         uint32  `json:"flags"` // as in SSH_AGENTC_SIGN_REQUEST
	CreatedAt     Time    `json:"createdAt"`
	Context       Context `json:"context"`
}

// Context is what the device says about a request. The phone takes none of it
// on trust: the binds carry their own proof, the rest is shown as claimed.
type Context struct {
	Device           string       `json:"device"`
	Operation        string       `json:"operation"`
	Destination      *Destination `json:"destination,omitempty"`
	Processes        []Process    `json:"processes,omitempty"` // the client first
	WorkingDirectory string       `json:"workingDirectory,omitempty"`
	Reason           string       `json:"reason,omitempty"`
	// Limits are what the device says it will hold a certificate to, beside what
	// is in it. Only a CertificateRequest has them.
	Limits []string `json:"limits,omitempty"`
}

// Destination is where a login goes, as the device saw it.
type Destination struct {
	HostNames []string `json:"hostNames,omitempty"` // from known_hosts
	// Binds are the session-bind@openssh.com statements of the connection in
	// their order, one a hop; the last one is the destination's.
	Binds     []Bind `json:"binds,omitempty"`
	Forwarded bool   `json:"forwarded"`
}

// Bind is one session-bind@openssh.com statement (PROTOCOL.agent).
type Bind struct {
	HostKey    []byte `json:"hostKey"`
	SessionID  []byte `json:"sessionId"`
	Signature  []byte `json:"signature"` // the host's, over SessionID
	Forwarding bool   `json:"forwarding"`
}

// Process is one process of the chain that leads to the agent's client.
type Process struct {
	PID        int    `json:"pid"`
	Executable string `json:"executable"`
}

// SignResponse carries a signature in SSH's form (RFC 4253 section 6.6).
type SignResponse struct {
	Signature []byte `json:"signature"`
}

// CertificateRequest asks for an OpenSSH user certificate by the phone's
// certificate authority.
type CertificateRequest struct {
	PublicKeyBlob []byte `json:"publicKeyBlob"` // the key to be certified
	// Identity is the label of an identity that the phone must have and have
	// enabled. It tells phones apart; the certificate does not depend on it.
	Identity   string   `json:"identity,omitempty"`
	Principals []string `json:"principals"` // no one twice
	Validity   int64    `json:"validity"`   // seconds
	// KeyID is the certificate's. Each "{serial}" in it stands for the
	// certificate's serial in decimal.
	KeyID           string   `json:"keyId"`
	CriticalOptions []Option `json:"criticalOptions"` // by name, no name twice
	Extensions      []Option `json:"extensions"`      // by name, no name twice
	CreatedAt       Time     `json:"createdAt"`
	Context         Context  `json:"context"`
}

// Option is a critical option or extension of a certificate. One that only is
// there or not, as permit-pty, has the empty value.
type Option struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// CertificateResponse carries a certificate in SSH's form (PROTOCOL.certkeys).
type CertificateResponse struct {
	Certificate []byte `json:"certificate"`
}

// Pending says that the request of its id has arrived and waits for a person.
type Pending struct{}

// Cancel withdraws the request of its id.
type Cancel struct{}

// PushEnvironment says which of Apple's push services a device token is for.
type PushEnvironment string

// The push environments.
const (
	Production PushEnvironment = "production"
	Sandbox    PushEnvironment = "sandbox"
)

// DeviceTokenUpdate tells the device by which push the phone is woken. The phone
// sends it, with the empty id, after hello and when anything in it changes;
// nothing answers it.
type DeviceTokenUpdate struct {
	Token       []byte          `json:"token"` // as APNs gave it to the phone's app
	Environment PushEnvironment `json:"environment"`
	Topic       string          `json:"topic"` // the app's bundle id
}

// PairRequest opens a pairing: the device's name and its commitment.
type PairRequest struct {
	Name       string `json:"name"`
	Commitment []byte `json:"commitment"`
	// URL says that both ends hold the secret of a one-time URL, so that no
	// person compares numbers.
	URL bool `json:"url"`
}

// PairResponse is the phone's half of the exchange.
type PairResponse struct {
	Name  string `json:"name"`
	Nonce []byte `json:"nonce"`
}

// PairConfirm carries the device's nonce, which opens its commitment, or an
// end's proof that it agrees. Exactly one is set.
type PairConfirm struct {
	Nonce []byte `json:"nonce,omitempty"`
	Done  []byte `json:"done,omitempty"`
}

// Ping asks for a Pong of the same id.
type Ping struct{}

// Pong answers a Ping.
type Pong struct{}

// Code classifies an Error for programs.
type Code string

// The codes.
const (
	CodeDenied      Code = "denied"      // the owner said no, or the phone's own policy did
	CodeExpired     Code = "expired"     // too old, from the future, or not answered in time
	CodeLocked      Code = "locked"      // the phone takes no approvals now
	CodeUnknownKey  Code = "unknownKey"  // no such identity, or it is disabled
	CodeNotPaired   Code = "notPaired"   // this device is not, or no window is open
	CodeTooMany     Code = "tooMany"     // too many prompts wait
	CodeBadRequest  Code = "badRequest"  // the request breaks the protocol
	CodeUnsupported Code = "unsupported" // the phone's software does not have this
	CodeInternal    Code = "internal"    // the phone's software failed
)

// Error answers a request that failed. It is a Go error too.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
}

// Errorf makes an Error; the message is cut to what the link carries.
func Errorf(code Code, format string, a ...any) *Error {
	m := fmt.Sprintf(format, a...)
	for len(m) > MaxText || !utf8.ValidString(m) {
		m = string([]rune(m)[:min(len([]rune(m)), MaxText/utf8.UTFMax)])
	}
	return &Error{Code: code, Message: m}
}

func (e *Error) Error() string {
	if e.Message == "" {
		return string(e.Code)
	}
	return fmt.Sprintf("%s: %s", e.Code, e.Message)
}

func (*Hello) Type() Type               { return TypeHello }               // Type implements Payload.
func (*KeyListRequest) Type() Type      { return TypeKeyListRequest }      // Type implements Payload.
func (*KeyListResponse) Type() Type     { return TypeKeyListResponse }     // Type implements Payload.
func (*SignRequest) Type() Type         { return TypeSignRequest }         // Type implements Payload.
func (*SignResponse) Type() Type        { return TypeSignResponse }        // Type implements Payload.
func (*CertificateRequest) Type() Type  { return TypeCertificateRequest }  // Type implements Payload.
func (*CertificateResponse) Type() Type { return TypeCertificateResponse } // Type implements Payload.
func (*Pending) Type() Type             { return TypePending }             // Type implements Payload.
func (*Cancel) Type() Type              { return TypeCancel }              // Type implements Payload.
func (*DeviceTokenUpdate) Type() Type   { return TypeDeviceTokenUpdate }   // Type implements Payload.
func (*PairRequest) Type() Type         { return TypePairRequest }         // Type implements Payload.
func (*PairResponse) Type() Type        { return TypePairResponse }        // Type implements Payload.
func (*PairConfirm) Type() Type         { return TypePairConfirm }         // Type implements Payload.
func (*Ping) Type() Type                { return TypePing }                // Type implements Payload.
func (*Pong) Type() Type                { return TypePong }                // Type implements Payload.
func (*Error) Type() Type               { return TypeError }               // Type implements Payload.

// NonceSize is the size of a pairing nonce, commitment or proof in bytes.
const NonceSize = 32

// first gives the first failure, so that a message about it is one line.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func text(member, s string, most int) error {
	if len(s) > most {
		return fmt.Errorf("%s has %d bytes, more than %d", member, len(s), most)
	}
	return nil
}

// some is text that is not empty.
func some(member, s string, most int) error {
	if s == "" {
		return fmt.Errorf("%s is empty", member)
	}
	return text(member, s, most)
}

func name(s string) error { return some("name", s, MaxName) }

func blob(member string, b []byte, most int) error {
	switch {
	case len(b) == 0:
		return fmt.Errorf("%s is empty", member)
	case len(b) > most:
		return fmt.Errorf("%s has %d bytes, more than %d", member, len(b), most)
	}
	return nil
}

func exactly(member string, b []byte) error {
	if len(b) != NonceSize {
		return fmt.Errorf("%s has %d bytes, not %d", member, len(b), NonceSize)
	}
	return nil
}

func count(member string, n, most int) error {
	if n > most {
		return fmt.Errorf("%d %s, more than %d", n, member, most)
	}
	return nil
}

func stamp(member string, t Time) error {
	if At(t.Time).IsZero() {
		return fmt.Errorf("%s is not set", member)
	}
	return nil
}

func (h *Hello) validate() error {
	errs := []error{name(h.Name), text("software", h.Software, MaxText), stamp("clock", h.Clock),
		count("capabilities", len(h.Capabilities), MaxCapabilities)}
	for _, c := range h.Capabilities {
		errs = append(errs, text("capability", c, MaxName))
	}
	return first(errs...)
}

func (*KeyListRequest) validate() error { return nil }

func (r *KeyListResponse) validate() error {
	errs := []error{count("keys", len(r.Keys), MaxKeys)}
	for i := range r.Keys {
		errs = append(errs, r.Keys[i].validate())
	}
	if len(r.CAKey) > 0 {
		errs = append(errs, blob("caKey", r.CAKey, MaxBlob))
	}
	return first(errs...)
}

func (k *PublicKey) validate() error {
	errs := []error{blob("publicKeyBlob", k.PublicKeyBlob, MaxBlob), text("algorithm", k.Algorithm, MaxName),
		text("comment", k.Comment, MaxText), text("displayName", k.DisplayName, MaxText)}
	switch k.ProviderKind {
	case SecureEnclave, HardwareToken, Unknown:
	default:
		errs = append(errs, fmt.Errorf("providerKind %q is not known", clip(string(k.ProviderKind))))
	}
	return first(errs...)
}

func (r *SignRequest) validate() error {
	errs := []error{blob("publicKeyBlob", r.PublicKeyBlob, MaxBlob), blob("data", r.Data, MaxData),
		stamp("createdAt", r.CreatedAt), r.Context.validate()}
	if len(r.Context.Limits) > 0 {
		errs = append(errs, errors.New("limits are of a certificate, not of a signature"))
	}
	return first(errs...)
}

func (c *Context) validate() error {
	errs := []error{text("device", c.Device, MaxName), text("operation", c.Operation, MaxText),
		text("workingDirectory", c.WorkingDirectory, MaxPath), text("reason", c.Reason, MaxText),
		count("processes", len(c.Processes), MaxProcesses), count("limits", len(c.Limits), MaxLimits)}
	for _, l := range c.Limits {
		errs = append(errs, some("limit", l, MaxText))
	}
	for _, p := range c.Processes {
		errs = append(errs, text("executable", p.Executable, MaxPath))
		if p.PID < 0 || p.PID > math.MaxInt32 { // pid_t
			errs = append(errs, fmt.Errorf("pid %d is not a process's", p.PID))
		}
	}
	if d := c.Destination; d != nil {
		errs = append(errs, count("host names", len(d.HostNames), MaxHostNames), count("binds", len(d.Binds), MaxBinds))
		for _, h := range d.HostNames {
			errs = append(errs, text("host name", h, MaxText))
		}
		for _, b := range d.Binds {
			errs = append(errs, blob("hostKey", b.HostKey, MaxBlob), blob("sessionId", b.SessionID, MaxSessionID),
				blob("signature", b.Signature, MaxBlob))
		}
	}
	return first(errs...)
}

func (r *SignResponse) validate() error { return blob("signature", r.Signature, MaxBlob) }

func (r *CertificateRequest) validate() error {
	errs := []error{blob("publicKeyBlob", r.PublicKeyBlob, MaxBlob), text("identity", r.Identity, MaxText),
		count("principals", len(r.Principals), MaxPrincipals), some("keyId", r.KeyID, MaxKeyID),
		options("critical options", r.CriticalOptions), options("extensions", r.Extensions),
		stamp("createdAt", r.CreatedAt), r.Context.validate()}
	// sshd takes a certificate without principals for any user where the CA is
	// trusted by cert-authority.
	if len(r.Principals) == 0 {
		errs = append(errs, errors.New("principals are empty"))
	}
	for i, p := range r.Principals {
		errs = append(errs, some("principal", p, MaxPrincipal))
		if slices.Contains(r.Principals[:i], p) {
			errs = append(errs, fmt.Errorf("principal %q is there twice", clip(p)))
		}
	}
	if r.Validity < 1 || r.Validity > MaxValidity {
		errs = append(errs, fmt.Errorf("validity is %d s, not between 1 and %d", r.Validity, MaxValidity))
	}
	return first(errs...)
}

// options demands the order that a certificate has (PROTOCOL.certkeys), so that
// there is one form and no name twice.
func options(member string, list []Option) error {
	if err := count(member, len(list), MaxOptions); err != nil {
		return err
	}
	for i, o := range list {
		if err := first(some("option's name", o.Name, MaxName), text("option's value", o.Value, MaxText)); err != nil {
			return err
		}
		for _, c := range []byte(o.Name) {
			switch {
			case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.', c == '@':
			default:
				return errors.New("option's name has a character other than letters, digits, - _ . and @")
			}
		}
		if i > 0 && list[i-1].Name >= o.Name {
			return fmt.Errorf("%s are not in the order of their names, each once", member)
		}
	}
	return nil
}

func (r *CertificateResponse) validate() error { return blob("certificate", r.Certificate, MaxBlob) }

func (*Pending) validate() error { return nil }

func (*Cancel) validate() error { return nil }

func (u *DeviceTokenUpdate) validate() error {
	errs := []error{blob("token", u.Token, MaxDeviceToken), some("topic", u.Topic, MaxTopic)}
	if u.Environment != Production && u.Environment != Sandbox {
		errs = append(errs, fmt.Errorf("environment %q is not known", clip(string(u.Environment))))
	}
	for _, c := range []byte(u.Topic) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.':
		default:
			errs = append(errs, errors.New("topic has a character other than letters, digits, dash and dot"))
		}
	}
	return first(errs...)
}

func (r *PairRequest) validate() error {
	return first(name(r.Name), exactly("commitment", r.Commitment))
}

func (r *PairResponse) validate() error { return first(name(r.Name), exactly("nonce", r.Nonce)) }

func (r *PairConfirm) validate() error {
	switch {
	case (len(r.Nonce) > 0) == (len(r.Done) > 0):
		return errors.New("exactly one of nonce and done must be set")
	case len(r.Nonce) > 0:
		return exactly("nonce", r.Nonce)
	}
	return exactly("done", r.Done)
}

func (*Ping) validate() error { return nil }

func (*Pong) validate() error { return nil }

func (e *Error) validate() error {
	if e.Code == "" {
		return errors.New("code is empty")
	}
	// A newer phone may have more codes, but they are words: they reach terminals.
	for _, c := range []byte(e.Code) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return errors.New("code has a character other than letters")
		}
	}
	return first(text("code", string(e.Code), MaxName), text("message", e.Message, MaxText))
}
