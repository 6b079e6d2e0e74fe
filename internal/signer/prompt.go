// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync/atomic"
	"time"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/keyfile"
	"vmux.app/toolkit/internal/safetext"
)

// Ends of a prompt.
var (
	// ErrDenied is the owner's no.
	ErrDenied = errors.New("denied by the owner")
	// ErrNotRecognized says that whoever approved was not shown to be the owner: a
	// fingerprint that does not match. maxFailures of them in a row lock approvals.
	ErrNotRecognized = errors.New("the owner was not recognized")
	// ErrPassphrase says that a passphrase is not the right one. It counts as
	// ErrNotRecognized does.
	ErrPassphrase = keyfile.ErrPassphrase
	// ErrLocked says that nothing is approved until the passphrase is given.
	ErrLocked = errors.New("approvals are locked until the passphrase is given")
)

// Approver asks the owner about one request. It returns nil when the owner
// approves, ErrDenied when not, ErrNotRecognized when somebody else may have
// answered, and the context's error as soon as the request is withdrawn or has
// expired; the prompt is gone by then. When the prompt needs the passphrase, nil
// counts after a successful Unlock only. An Approver that has prompts wait for each
// other shows one only after its MayShow has returned nil when its turn has come, and
// returns that error otherwise. Approve is called from many goroutines.
type Approver interface {
	Approve(ctx context.Context, p *Prompt) error
}

// PassphraseAsker is an Approver that can ask for the passphrase alone, before
// prompts are shown. It shows why, which is safe text, and calls try with what is
// typed, again after each ErrPassphrase, until try returns something else, which
// it returns. It returns ErrDenied when the owner gives none, and the context's
// error as Approve does.
type PassphraseAsker interface {
	AskPassphrase(ctx context.Context, why string, try func(passphrase []byte) error) error
}

// Prompt is what the owner is asked. Verified and Claimed do not change once it
// is shown.
type Prompt struct {
	Verified Verified
	Claimed  Claimed

	expires atomic.Int64  // Unix nanoseconds
	file    *keyfile.File // of the key that an approval uses
	// unlock opens the key that an approval uses, nil when that takes no passphrase.
	unlock  func(passphrase []byte) error
	mayShow func() error
}

// MayShow says whether the prompt may be shown now: approvals may have been locked
// since Approve was called.
func (p *Prompt) MayShow() error {
	if p.mayShow == nil {
		return nil
	}
	return p.mayShow()
}

// NeedsPassphrase says whether an approval takes the passphrase, for Unlock.
func (p *Prompt) NeedsPassphrase() bool { return p.unlock != nil }

// Unlock tries a passphrase and overwrites it. nil: it is right, which is the
// approval. ErrPassphrase: it is wrong and may be asked for again. Anything else
// ends the prompt: ErrLocked after too many wrong ones, or what is the matter
// with the key.
func (p *Prompt) Unlock(passphrase []byte) error { return p.unlock(passphrase) }

// Verified is what the signer knows by itself: from the pairing, from the data
// to be signed and from the hosts' own signatures.
type Verified struct {
	Device    string // the name as it was paired
	DevicePin string
	Operation string // for people: "log in as root"
	Kind      string // signed.Kind's name
	User      string // the remote user of a login
	Namespace string // of an SSHSIG signature
	// HostKey is the fingerprint of the only host that takes the login, empty when
	// the login names none; Unverified then says what is known.
	HostKey     string
	HostKeyType string
	Unverified  string
	Memory      *Memory  // of a login's host, nil for others
	Hops        []string // fingerprints of the hosts that the request was forwarded through, the nearest first
	KeyLabel    string
	KeyPrint    string // fingerprint
	// Certificate is what is asked for by a certificate request, nil for others. No
	// identity of the signer's takes part in that one.
	Certificate *Certificate
}

// Claimed is what the device says, and could lie about.
type Claimed struct {
	HostNames        []string
	HostKey          string // fingerprint of a host that vouches for the session, when the login names none
	Forwarded        bool
	Hops             []string  // as Verified.Hops, of statements that do not lead to this login
	Processes        []Process // the client first
	WorkingDirectory string
	Reason           string
	Limits           []string // that the device will hold a certificate to
}

// Process is one process of the claimed chain.
type Process struct {
	PID        int
	Executable string
}

// Expires is when an approval comes too late. It moves on when the same request
// is made again while the prompt waits.
func (p *Prompt) Expires() time.Time { return time.Unix(0, p.expires.Load()) }

// extend moves the expiry on, never back.
func (p *Prompt) extend(t time.Time) {
	for {
		old := p.expires.Load()
		if t.UnixNano() <= old || p.expires.CompareAndSwap(old, t.UnixNano()) {
			return
		}
	}
}

// Titles of prompts: for a signature and for a certificate.
const (
	Title            = "SSH Sign Request"
	CertificateTitle = "SSH Certificate Request"
)

// Title heads the prompt.
func (p *Prompt) Title() string {
	if p.Verified.Certificate != nil {
		return CertificateTitle
	}
	return Title
}

// Heading is the line below the title. A host's name is always the device's
// claim, and says so.
func (p *Prompt) Heading() string {
	to := "unknown host"
	switch {
	case p.Verified.Kind != kindLogin:
		to = p.Verified.Operation
	case p.Verified.warned():
		to = p.Verified.Memory.Other[0].short() + " (claimed, OTHER KEY)"
	case len(p.Claimed.HostNames) > 0:
		text, fit := spelled(p.Claimed.HostNames[0])
		to = shown(text, 40) + " (claimed)"
		if !fit {
			to = shown(text, 40) + " (claimed, " + noHostName + ")"
		}
	case p.Verified.HostKey != "":
		to = p.Verified.HostKey
	}
	return "From " + shown(p.Verified.Device, 40) + " → " + to
}

// Field is one line of a prompt.
type Field struct{ Name, Value string }

// maxShown bounds one value of a prompt in characters, so that no value pushes
// another one off an 80 by 24 screen.
const maxShown = 120

// Fields gives the two halves of the prompt as safe text for a terminal or a
// dialog.
func (p *Prompt) Fields() (verified, claimed []Field) {
	v, c := &p.Verified, &p.Claimed
	if v.Certificate != nil {
		verified = append(v.Certificate.fields(), Field{"device", clean(v.Device)})
		for _, l := range c.Limits {
			claimed = append(claimed, Field{"limit", clean(l)})
		}
		if c.Reason != "" {
			claimed = append(claimed, Field{"reason", clean(c.Reason)})
		}
		return verified, append(claimed, p.origin()...)
	}
	verified = append(v.warnings(), Field{"operation", v.Operation})
	if v.Kind == kindLogin {
		if v.HostKey != "" {
			verified = append(verified, Field{"host key", v.HostKey + " (" + shown(v.HostKeyType, 40) + ")"})
		} else {
			verified = append(verified, Field{"host key", "NOT VERIFIED: " + v.Unverified})
		}
		verified = append(verified, p.known()...)
	}
	if n := len(v.Hops); n > 0 {
		verified = append(verified, Field{"forwarded", fmt.Sprintf("through %s: %s", hosts(n), some(v.Hops))})
	}
	verified = append(verified,
		Field{"device", shown(v.Device, maxShown)},
		Field{"key", shown(v.KeyLabel, maxShown) + ", " + v.KeyPrint})

	claimed = p.origin()
	if c.Reason != "" {
		claimed = append(claimed, Field{"reason", shown(c.Reason, maxShown)})
	}
	return verified, claimed
}

// noHostName marks what a device claims for a name and hostName does not take for
// one.
const noHostName = "no host name"

// hostText is a claimed name for a prompt.
func hostText(claimed string, most int) string {
	text, fit := spelled(claimed)
	if text = shown(text, most); !fit {
		text += " (" + noHostName + ")"
	}
	return text
}

// readable are the first names of the host that the prompt shows whole, as safe
// text: as many as fit, and the first one if it could be one. The owner approves
// no others.
func (c *Claimed) readable() (whole []string) {
	used := 0
	for _, name := range c.HostNames {
		text := hostText(name, math.MaxInt)
		used += breadth(text)
		if _, fit := hostName(name); used > maxShown && (len(whole) > 0 || !fit) {
			break
		}
		whole = append(whole, text)
		used += len(", ")
	}
	return whole
}

// origin is where the request comes from and goes to, as the device says.
func (p *Prompt) origin() (claimed []Field) {
	c := &p.Claimed
	if n := len(c.HostNames); n > 0 {
		text := hostText(c.HostNames[0], maxShown)
		if whole := c.readable(); len(whole) > 0 {
			text = strings.Join(whole, ", ")
			n -= len(whole)
		} else {
			n--
		}
		if n > 0 {
			text += fmt.Sprintf(" and %d more", n)
		}
		claimed = append(claimed, Field{"host", text})
	}
	if c.HostKey != "" {
		claimed = append(claimed, Field{"host key", c.HostKey})
	}
	if n := len(c.Hops); n > 0 {
		claimed = append(claimed, Field{"forwarded", fmt.Sprintf("through %s: %s", hosts(n), some(c.Hops))})
	} else if c.Forwarded && len(p.Verified.Hops) == 0 { // it is proven otherwise
		claimed = append(claimed, Field{"forwarded", "yes"})
	}
	if len(c.Processes) > 0 {
		var chain []string
		for _, p := range c.Processes {
			chain = append(chain, fmt.Sprintf("%s (%d)", p.Executable, p.PID))
		}
		claimed = append(claimed, Field{"process", shown(strings.Join(chain, " < "), 3*maxShown/2)})
	}
	if c.WorkingDirectory != "" {
		claimed = append(claimed, Field{"directory", shown(c.WorkingDirectory, maxShown)})
	}
	return claimed
}

// Headings of the two halves.
const (
	headVerified = "VERIFIED"
	headClaimed  = "CLAIMED by the device"
)

// Text is the whole prompt but for the question, for a dialog or a log.
func (p *Prompt) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%s\n", p.Title(), p.Heading())
	verified, claimed := p.Fields()
	part := func(head string, fields []Field) {
		if len(fields) == 0 {
			return
		}
		fmt.Fprintf(&b, "\n%s\n", head)
		for _, f := range fields {
			fmt.Fprintf(&b, "  %s: %s\n", f.Name, f.Value)
		}
	}
	part(headVerified, verified)
	part(headClaimed, claimed)
	return b.String()
}

func hosts(n int) string {
	if n == 1 {
		return "1 host"
	}
	return fmt.Sprintf("%d hosts", n)
}

// some joins the first two of list and says how many more there are.
func some(list []string) string {
	if len(list) <= 2 {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s, %s and %d more", list[0], list[1], len(list)-2)
}

// shown makes text from outside fit for a screen: safe, on one line, and with
// its middle left out when it is longer than most characters, so that neither
// end can be hidden.
func shown(s string, most int) string {
	r := []rune(clean(s))
	if len(r) <= most {
		return string(r)
	}
	mark := []rune(" … ")
	keep := (most - len(mark)) / 2
	return string(r[:keep]) + string(mark) + string(r[len(r)-keep:])
}

// clean makes text from outside safe for one line of a terminal. The limit is
// above what a message of the link can hold, one character escaped to four and
// more.
func clean(s string) string { return safetext.Line(s, 10*envelope.MaxSize) }
