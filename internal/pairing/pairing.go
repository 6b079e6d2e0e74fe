// SPDX-License-Identifier: BSD-3-Clause

// Package pairing makes a device and a phone known to each other: by six digits
// that a person compares, or by a one-time URL that both ends hold.
// vmux-protocol(7) describes the exchange and why each part of it is there.
package pairing

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/safetext"
	"vmux.app/toolkit/internal/transport"
)

// exporter is the label of the key that both ends of the connection derive.
const exporter = "EXPORTER-vmux-pair-1"

// Digits is the length of the code that people compare.
const Digits = 6

// stepTime bounds each step that no person takes part in. An end that stalls
// there must not hold the other one, and the phone's window, for minutes.
const stepTime = 5 * time.Second

// codeStopped tells the other end that a person or a program has ended this one.
const codeStopped envelope.Code = "stopped"

// Failures of a pairing.
var (
	ErrNoWindow  = errors.New("no pairing window is open on the phone")
	ErrDeclined  = errors.New("the pairing was declined")
	ErrWrongCode = errors.New("the digits are not the ones that the phone shows")
	ErrProof     = errors.New("the other end did not prove that it took part in this pairing")
	ErrMethod    = errors.New("one end pairs by digits and the other by URL")
	ErrStopped   = errors.New("the other end stopped")
	ErrHungUp    = errors.New("the other end hung up")
	ErrStalled   = fmt.Errorf("the other end did not go on within %d seconds", stepTime/time.Second)
)

// ErrTime says that one end's time was over. It is a context.DeadlineExceeded,
// and is for being the cause of such a context.
var ErrTime error = timeError{}

type timeError struct{}

func (timeError) Error() string        { return "the pairing was not finished in time" }
func (timeError) Is(target error) bool { return target == context.DeadlineExceeded }

// Peer is who was paired.
type Peer struct {
	Name string
	Pin  transport.Pin
}

// DeviceOptions is what the device brings to a pairing.
type DeviceOptions struct {
	Name string
	// Secret is that of the one-time URL, nil to pair by digits.
	Secret []byte
	// Code asks the user for the digits that the phone shows. Used without Secret.
	Code func(ctx context.Context, phone string) (string, error)
	// Typed, when set, is called once the user's part is done and the phone's
	// owner must accept.
	Typed func()
}

// Offer waits for the phone's hello, which says that its window is open. The
// connection then waits for Device. It closes c when it fails.
func Offer(ctx context.Context, c *transport.Conn) (envelope.Hello, error) {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	p, err := payload(c.Receive())
	if err == nil {
		if h, ok := p.(*envelope.Hello); ok {
			return *h, nil
		}
		err = fmt.Errorf("%s instead of hello", p.Type())
	}
	c.Close()
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return envelope.Hello{}, err
}

// Device does the device's part after Offer, and closes c. It returns who the
// phone is when both ends agreed; store it then, and not before.
func Device(ctx context.Context, c *transport.Conn, me transport.Pin, o DeviceOptions) (Peer, error) {
	x := begin(c, me, c.Peer(), o.Secret)
	defer x.end()

	nonce := make([]byte, envelope.NonceSize)
	rand.Read(nonce) // never fails
	x.deviceName, x.deviceNonce = o.Name, nonce
	x.commitment = x.commit()
	if err := x.send(&envelope.PairRequest{Name: o.Name, Commitment: x.commitment, URL: o.Secret != nil}); err != nil {
		return Peer{}, err
	}
	p, err := x.receiveSoon(ctx)
	if err != nil {
		return Peer{}, err
	}
	r, ok := p.(*envelope.PairResponse)
	if !ok {
		return Peer{}, x.refuse(fmt.Errorf("%s instead of pairResponse", p.Type()))
	}
	x.phoneName, x.phoneNonce = r.Name, r.Nonce
	if err := x.send(&envelope.PairConfirm{Nonce: nonce}); err != nil {
		return Peer{}, err
	}
	if err := x.key(); err != nil {
		return Peer{}, err
	}
	if o.Secret == nil {
		var typed string
		err := x.ask(ctx, func(ctx context.Context) (err error) {
			typed, err = o.Code(ctx, CleanName(r.Name))
			return err
		}, func(envelope.Payload) error { return fmt.Errorf("%w: it went on before its turn", ErrProof) })
		if err != nil {
			return Peer{}, x.refuse(err)
		}
		code, _ := Code(typed)
		if subtle.ConstantTimeCompare([]byte(code), []byte(x.code())) != 1 {
			return Peer{}, x.refuse(ErrWrongCode)
		}
	}
	if o.Typed != nil {
		o.Typed()
	}
	if err := x.send(&envelope.PairConfirm{Done: x.done("device")}); err != nil {
		return Peer{}, err
	}
	if p, err = x.receive(ctx); err != nil {
		return Peer{}, err
	}
	if err := x.proof("phone", p); err != nil {
		return Peer{}, err
	}
	return Peer{Name: CleanName(r.Name), Pin: x.phone}, nil
}

// PhoneOptions is what the phone brings to a pairing.
type PhoneOptions struct {
	Name string
	// Secret and Expect are those of a one-time URL; nil Secret pairs by digits.
	Secret []byte
	Expect transport.Pin
	// Confirm shows the device's name and the digits and returns nil when the
	// owner accepts, ErrDeclined when not. ctx ends when the device gives up.
	// Used without Secret.
	Confirm func(ctx context.Context, device, code string) error
	// Store keeps the device. When it fails the device is told, and nothing is
	// paired.
	Store func(Peer) error
	// Begin is called when a device has sent a request by the right method, before
	// it gets what it could know its digits from. With digits that uses the window
	// up: a device that may look at them and leave, over and over, chooses its
	// digits. An error refuses it: another device was first.
	Begin func() error
	// Spend is called when the device's proof is about to be judged, with Secret
	// only: that uses the window up. An error refuses it.
	Spend func() error
}

// Phone does the phone's part on a connection with transport.ProtoPair whose
// window is open, and closes c. It speaks first. A device that leaves before
// Begin, or with a URL before Spend, has not used the window.
func Phone(ctx context.Context, c *transport.Conn, me transport.Pin, hello envelope.Hello, o PhoneOptions) (Peer, error) {
	x := begin(c, c.Peer(), me, o.Secret)
	defer x.end()
	if o.Secret != nil && c.Peer() != o.Expect {
		return Peer{}, x.refuse(fmt.Errorf("%w: it waits for another device", ErrNoWindow))
	}
	if err := x.send(&hello); err != nil {
		return Peer{}, err
	}
	p, err := x.receive(ctx)
	if err != nil {
		return Peer{}, err
	}
	q, ok := p.(*envelope.PairRequest)
	if !ok {
		return Peer{}, x.refuse(fmt.Errorf("%s instead of pairRequest", p.Type()))
	}
	if q.URL != (o.Secret != nil) {
		return Peer{}, x.refuse(ErrMethod)
	}
	if o.Begin != nil {
		if err := o.Begin(); err != nil {
			return Peer{}, x.refuse(err)
		}
	}
	nonce := make([]byte, envelope.NonceSize)
	rand.Read(nonce) // never fails
	x.deviceName, x.commitment = q.Name, q.Commitment
	x.phoneName, x.phoneNonce = o.Name, nonce
	if err := x.send(&envelope.PairResponse{Name: o.Name, Nonce: nonce}); err != nil {
		return Peer{}, err
	}
	if p, err = x.receiveSoon(ctx); err != nil {
		return Peer{}, x.refuse(err)
	}
	opened, ok := p.(*envelope.PairConfirm)
	if !ok || opened.Nonce == nil {
		return Peer{}, x.refuse(errors.New("no nonce after the commitment"))
	}
	x.deviceNonce = opened.Nonce
	if !hmac.Equal(x.commit(), x.commitment) {
		return Peer{}, x.refuse(fmt.Errorf("%w: its nonce does not open its commitment", ErrProof))
	}
	if err := x.key(); err != nil {
		return Peer{}, err
	}
	device := Peer{Name: CleanName(q.Name), Pin: x.device}
	if err := x.agree(ctx, device, o); err != nil {
		return Peer{}, x.refuse(err)
	}
	if err := o.Store(device); err != nil {
		return Peer{}, x.refuse(fmt.Errorf("the phone could not store the pairing: %w", err))
	}
	return device, x.send(&envelope.PairConfirm{Done: x.done("phone")})
}

// agree waits for the owner's consent and the device's proof, in whichever
// order they come.
func (x *exchange) agree(ctx context.Context, device Peer, o PhoneOptions) error {
	proven := false
	proof := func(p envelope.Payload) error {
		if proven {
			return fmt.Errorf("%w: it sent more than its proof", ErrProof)
		}
		proven = true
		return x.proof("device", p)
	}
	if o.Secret == nil {
		err := x.ask(ctx, func(ctx context.Context) error { return o.Confirm(ctx, device.Name, x.code()) }, proof)
		if err != nil || proven {
			return err
		}
		p, err := x.receive(ctx)
		if err != nil {
			return err
		}
		return proof(p)
	}
	p, err := x.receiveSoon(ctx)
	if err != nil {
		return err
	}
	if o.Spend != nil {
		if err := o.Spend(); err != nil {
			return err
		}
	}
	return proof(p)
}

// exchange is one run of the protocol, seen from either end.
type exchange struct {
	conn                    *transport.Conn
	device, phone           transport.Pin
	deviceName, phoneName   string
	deviceNonce, phoneNonce []byte
	commitment              []byte
	secret                  []byte
	k, transcript           []byte

	in   chan received
	over chan struct{}
	read sync.WaitGroup
}

type received struct {
	payload envelope.Payload
	err     error
}

// begin starts to listen, so that the other end's word is heard also while a
// person is asked.
func begin(c *transport.Conn, device, phone transport.Pin, secret []byte) *exchange {
	x := &exchange{conn: c, device: device, phone: phone, secret: secret,
		in: make(chan received), over: make(chan struct{})}
	x.read.Go(func() {
		for {
			p, err := payload(c.Receive())
			select {
			case x.in <- received{p, err}:
			case <-x.over:
				return
			}
			if err != nil {
				return
			}
		}
	})
	return x
}

// end closes the connection and waits for the listener.
func (x *exchange) end() {
	close(x.over)
	x.conn.Close()
	x.read.Wait()
}

// id is the id of every envelope of a pairing: there is one exchange on a
// connection.
const id = "pair"

func (x *exchange) send(p envelope.Payload) error {
	e := envelope.Envelope{ID: id, Payload: p}
	if p.Type() == envelope.TypeHello {
		e.ID = ""
	}
	return x.conn.Send(e)
}

func (x *exchange) receive(ctx context.Context) (envelope.Payload, error) {
	select {
	case r := <-x.in:
		return r.payload, r.err
	case <-ctx.Done():
		return nil, &stoppedError{context.Cause(ctx)}
	}
}

// receiveSoon is receive for what no person decides about.
func (x *exchange) receiveSoon(ctx context.Context) (envelope.Payload, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, stepTime, ErrStalled)
	defer cancel()
	return x.receive(ctx)
}

// stoppedError is the end of this end's context: a person who leaves, or time.
type stoppedError struct{ cause error }

func (e *stoppedError) Error() string { return e.cause.Error() }
func (e *stoppedError) Unwrap() error { return e.cause }

// ask runs question, which waits for a person, and gives what the other end
// says meanwhile to hear. The question's context ends when the other end gives
// up or hear objects.
func (x *exchange) ask(ctx context.Context, question func(context.Context) error, hear func(envelope.Payload) error) error {
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	answered := make(chan error, 1)
	go func() { answered <- question(asking) }()
	for {
		var err error
		select {
		case err := <-answered:
			if cause := context.Cause(ctx); cause != nil {
				return &stoppedError{cause}
			}
			return err
		case r := <-x.in:
			if err = r.err; err == nil {
				err = hear(r.payload)
			}
		}
		if err != nil {
			cancel()
			<-answered
			return err
		}
	}
}

// payload unwraps what came, with the other end's refusal as an error.
func payload(e envelope.Envelope, err error) (envelope.Payload, error) {
	if err != nil {
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%w: %w", ErrHungUp, err)
		}
		return nil, err
	}
	if p, ok := e.Payload.(*envelope.Error); ok {
		return nil, fromWire(p)
	}
	return e.Payload, nil
}

// refuse tells the other end why, as far as it concerns it, and returns err.
func (x *exchange) refuse(err error) error {
	// The connection ends anyway; that this arrives is a courtesy.
	_ = x.send(toWire(err))
	return err
}

// toWire and fromWire carry the failures that people can do something about.
func toWire(err error) *envelope.Error {
	var e *envelope.Error
	var stopped *stoppedError
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, ErrNoWindow):
		return envelope.Errorf(envelope.CodeNotPaired, "%v", ErrNoWindow)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, ErrStalled):
		return envelope.Errorf(envelope.CodeExpired, "%v", ErrTime)
	case errors.Is(err, ErrDeclined):
		return envelope.Errorf(envelope.CodeDenied, "%v", ErrDeclined)
	case errors.As(err, &stopped), errors.Is(err, context.Canceled):
		return envelope.Errorf(codeStopped, "%v", ErrStopped)
	case errors.Is(err, ErrMethod):
		return envelope.Errorf(envelope.CodeUnsupported, "%v", ErrMethod)
	}
	return envelope.Errorf(envelope.CodeBadRequest, "%v", err)
}

func fromWire(e *envelope.Error) error {
	switch e.Code {
	case envelope.CodeNotPaired:
		return ErrNoWindow
	case envelope.CodeDenied:
		return ErrDeclined
	case envelope.CodeExpired:
		return ErrTime
	case envelope.CodeUnsupported:
		return ErrMethod
	case codeStopped:
		return ErrStopped
	}
	return fmt.Errorf("the other end refused: %s", e.Message)
}

// key derives the key of the codes and proofs. The exporter binds it to this
// connection; a URL's secret binds it to who holds the URL.
func (x *exchange) key() error {
	k, err := x.conn.Exporter(exporter, sha256.Size)
	if err != nil {
		return err
	}
	x.derive(k)
	return nil
}

// derive does key's part after the exporter, which vectors fix.
func (x *exchange) derive(exported []byte) {
	x.k = exported
	if x.secret != nil {
		x.k = mac(exported, "url", x.secret)
	}
	x.transcript = digest("transcript", []byte(x.deviceName), x.commitment,
		[]byte(x.phoneName), x.phoneNonce, x.deviceNonce)
}

func (x *exchange) commit() []byte {
	return digest("commit", x.deviceNonce, []byte(x.deviceName), x.device[:], x.phone[:])
}

// code is what people compare. The remainder's bias is below 2^-44.
func (x *exchange) code() string {
	n := binary.BigEndian.Uint64(mac(x.k, "sas", x.device[:], x.phone[:], x.transcript)) % 1_000_000
	return fmt.Sprintf("%0*d", Digits, n)
}

func (x *exchange) done(role string) []byte {
	return mac(x.k, "done "+role, x.device[:], x.phone[:], x.transcript)
}

// proof verifies the other end's message 4.
func (x *exchange) proof(role string, p envelope.Payload) error {
	c, ok := p.(*envelope.PairConfirm)
	if !ok || !hmac.Equal(c.Done, x.done(role)) {
		return ErrProof
	}
	return nil
}

// digest and mac take their fields with lengths, so that no two lists of fields
// give the same input.
func digest(label string, fields ...[]byte) []byte {
	h := sha256.New()
	put(h, label, fields)
	return h.Sum(nil)
}

func mac(key []byte, label string, fields ...[]byte) []byte {
	h := hmac.New(sha256.New, key)
	put(h, label, fields)
	return h.Sum(nil)
}

func put(h hash.Hash, label string, fields [][]byte) {
	for _, f := range append([][]byte{[]byte(label)}, fields...) {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(f))))
		h.Write(f)
	}
}

// Code reads the digits that a person typed, with spaces or dashes between them
// or not, and says whether they can be a code at all.
func Code(s string) (string, bool) {
	s = strings.Map(func(r rune) rune {
		if r == ' ' || r == '-' || r == '\t' {
			return -1
		}
		return r
	}, s)
	return s, len(s) == Digits && strings.Trim(s, "0123456789") == ""
}

// CleanName makes a name from outside fit to be shown and stored: without
// control, format and other characters that do not show, at most 63 bytes, never
// empty.
func CleanName(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !safetext.Visible(r) {
			return -1
		}
		return r
	}, s)
	s = strings.TrimSpace(s)
	for len(s) > envelope.MaxName {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	if s = strings.TrimSpace(s); s == "" {
		return "unnamed"
	}
	return s
}
