// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"slices"
	"strings"
	"time"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/safetext"
)

// ErrNoCommand says that there is no such program to approve by.
var ErrNoCommand = errors.New("there is no program to approve by")

const (
	// Exit statuses of the program that approves. Any other one, and an end by a
	// signal, is ErrNotRecognized.
	commandApproves = 0
	commandDenies   = 2
	// maxNote bounds what is kept of the program's standard error, in bytes.
	maxNote = 200
)

// Command has a program approve, one request at a time: fingerprint readers can
// do no more.
type Command struct {
	program string
	args    []string
	turn    turn
	log     *slog.Logger
}

// NewCommand takes a command line: the program's path, or its name that is found
// in PATH, and arguments, with blanks in between. There is no quoting, and no
// shell. Error: ErrNoCommand.
func NewCommand(line string, log *slog.Logger) (*Command, error) {
	words := strings.Fields(line)
	if len(words) == 0 {
		return nil, fmt.Errorf("%w: none is named", ErrNoCommand)
	}
	program, err := exec.LookPath(words[0])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoCommand, err)
	}
	return &Command{program: program, args: words[1:], log: log}, nil
}

// Approve implements Approver.
func (c *Command) Approve(ctx context.Context, p *Prompt) error {
	if p.NeedsPassphrase() {
		return errCannotAsk
	}
	if err := c.turn.take(ctx, p.Verified.Device); err != nil {
		return err
	}
	defer c.turn.give()
	if err := p.MayShow(); err != nil {
		return err
	}
	prompt, err := json.Marshal(jsonOf(p))
	if err != nil {
		return fmt.Errorf("cannot describe the request: %w", err)
	}
	var note note
	cmd := exec.CommandContext(ctx, c.program, c.args...)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(append(prompt, '\n')), &note
	cmd.WaitDelay = askpassEnd
	ownGroup(cmd)
	err = cmd.Run()
	if cmd.ProcessState != nil { // it ran
		c.log.Debug("asked", "program", c.program, "ended", cmd.ProcessState.String(), "stderr", note.line())
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case cmd.ProcessState == nil:
		return fmt.Errorf("cannot run the program that approves, %s: %w", c.program, err)
	}
	// Not err: it is also about the pipes, which the program need not read, and which
	// what it has started may hold open.
	switch cmd.ProcessState.ExitCode() {
	case commandApproves:
		return nil
	case commandDenies:
		return ErrDenied
	}
	return fmt.Errorf("%w (%s: %s)", ErrNotRecognized, c.program, cmd.ProcessState)
}

// note keeps the first line that is written to it.
type note struct {
	text  []byte
	ended bool
}

func (n *note) Write(b []byte) (int, error) {
	if !n.ended {
		line, _, ended := bytes.Cut(b, []byte("\n"))
		n.text = append(n.text, line[:min(len(line), maxNote-len(n.text))]...)
		n.ended = ended || len(n.text) == maxNote
	}
	return len(b), nil
}

func (n *note) line() string { return safetext.Line(string(n.text), maxNote) }

// promptJSON is a prompt for a program. Its strings are as they came but for what
// is not UTF-8, so that they are not fit for a terminal.
type promptJSON struct {
	Title    string       `json:"title"`
	Heading  string       `json:"heading"` // safe
	Verified verifiedJSON `json:"verified"`
	Claimed  claimedJSON  `json:"claimed"`
	Expires  time.Time    `json:"expires"`
}

type verifiedJSON struct {
	Device         string           `json:"device"`
	DevicePin      string           `json:"devicePin"`
	Operation      string           `json:"operation"`
	Kind           string           `json:"kind"`
	User           string           `json:"user,omitzero"`
	Namespace      string           `json:"namespace,omitzero"`
	HostKey        string           `json:"hostKey,omitzero"`
	HostKeyType    string           `json:"hostKeyType,omitzero"`
	Unverified     string           `json:"unverified,omitzero"`
	Warning        string           `json:"warning,omitzero"`
	Known          []HostKey        `json:"known,omitzero"`
	OtherKeys      []HostKey        `json:"otherKeys,omitzero"`
	Hops           []string         `json:"hops,omitzero"`
	KeyLabel       string           `json:"keyLabel,omitzero"`
	KeyFingerprint string           `json:"keyFingerprint,omitzero"`
	Certificate    *certificateJSON `json:"certificate,omitzero"`
}

type certificateJSON struct {
	Serial               string            `json:"serial"` // JSON's numbers are too small
	KeyID                string            `json:"keyId"`
	Principals           []string          `json:"principals"`
	ValidSeconds         int64             `json:"validSeconds"`
	Latest               time.Time         `json:"latest"`
	CriticalOptions      []envelope.Option `json:"criticalOptions"`
	Extensions           []envelope.Option `json:"extensions"`
	KeyType              string            `json:"keyType"`
	KeyFingerprint       string            `json:"keyFingerprint"`
	AuthorityType        string            `json:"authorityType"`
	AuthorityFingerprint string            `json:"authorityFingerprint"`
}

type claimedJSON struct {
	HostNames        []string      `json:"hostNames,omitzero"`
	HostKey          string        `json:"hostKey,omitzero"`
	Forwarded        bool          `json:"forwarded"`
	Hops             []string      `json:"hops,omitzero"`
	Processes        []processJSON `json:"processes,omitzero"`
	WorkingDirectory string        `json:"workingDirectory,omitzero"`
	Reason           string        `json:"reason,omitzero"`
	Limits           []string      `json:"limits,omitzero"`
}

type processJSON struct {
	PID        int    `json:"pid"`
	Executable string `json:"executable"`
}

func jsonOf(p *Prompt) promptJSON {
	v, c := &p.Verified, &p.Claimed
	out := promptJSON{
		Title: p.Title(), Heading: p.Heading(), Expires: p.Expires().UTC(),
		Verified: verifiedJSON{
			Device: v.Device, DevicePin: v.DevicePin, Operation: v.Operation, Kind: v.Kind, User: v.User, Namespace: v.Namespace,
			HostKey: v.HostKey, HostKeyType: v.HostKeyType, Unverified: v.Unverified, Hops: v.Hops,
			KeyLabel: v.KeyLabel, KeyFingerprint: v.KeyPrint,
		},
		Claimed: claimedJSON{
			HostNames: c.HostNames, HostKey: c.HostKey, Forwarded: c.Forwarded, Hops: c.Hops,
			WorkingDirectory: c.WorkingDirectory, Reason: c.Reason, Limits: c.Limits,
		},
	}
	for _, p := range c.Processes {
		out.Claimed.Processes = append(out.Claimed.Processes, processJSON(p))
	}
	if m := v.Memory; m != nil {
		out.Verified.Known = knownOf(slices.Concat(m.Names, m.Elsewhere))
		out.Verified.OtherKeys = knownOf(m.Other)
	}
	if v.warned() {
		out.Verified.Warning = otherKey
	}
	if t := v.Certificate; t != nil {
		out.Verified.Certificate = &certificateJSON{
			Serial: fmt.Sprint(t.Serial), KeyID: t.KeyID, Principals: append([]string{}, t.Principals...),
			ValidSeconds: int64(t.Validity / time.Second), Latest: t.Latest.UTC(),
			CriticalOptions: append([]envelope.Option{}, t.CriticalOptions...), Extensions: append([]envelope.Option{}, t.Extensions...),
			KeyType: t.KeyType, KeyFingerprint: t.KeyPrint, AuthorityType: t.CAType, AuthorityFingerprint: t.CAPrint,
		}
	}
	return out
}

func knownOf(list []Known) (all []HostKey) {
	for _, k := range list {
		all = append(all, k.HostKey)
	}
	return all
}
