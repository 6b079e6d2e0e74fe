// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"slices"
	"strings"
	"syscall"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/ssh"
)

const (
	extQuery       = "query"                    // RFC 9987, section 3.8.1
	extSessionBind = "session-bind@openssh.com" // PROTOCOL.agent, section 1
	extOwn         = "@vmux.app"
)

func extensionNames(own map[string]Extension) []string {
	names := []string{extQuery, extSessionBind}
	for name := range own {
		names = append(names, name+extOwn)
	}
	slices.Sort(names[2:])
	return names
}

// extension answers a request of type 27: a name, and contents that the name defines.
func (c *conn) extension(reply, body []byte) []byte {
	contents := cryptobyte.String(body)
	var name []byte
	if !readString(&contents, &name) {
		c.refuse("extension", "malformed request")
		return append(reply, msgFailure)
	}
	switch string(name) {
	case extQuery:
		reply = append(reply, msgExtensionResponse)
		reply = appendString(reply, extQuery)
		for _, name := range c.server.names {
			reply = appendString(reply, name)
		}
		return reply
	case extSessionBind:
		return c.sessionBind(reply, contents)
	}
	if own, ok := strings.CutSuffix(string(name), extOwn); ok {
		if serve, ok := c.server.extensions[own]; ok {
			return c.ownExtension(reply, string(name), contents, serve)
		}
	}
	// The name comes from the client: bounded by the frame, but not worth a long line.
	c.server.log.Debug("refused", "request", "extension", "reason", adviceUnknownExtension, "name", fmt.Sprintf("%.100q", name), "pid", c.peer.PID)
	return append(reply, msgFailure)
}

func (c *conn) sessionBind(reply, contents []byte) []byte {
	bind, err := c.binds.add(contents)
	if err != nil {
		c.refuse(extSessionBind, err.Error())
		return append(reply, msgExtensionFailure)
	}
	host := ""
	if key, err := ssh.ParsePublicKey(bind.HostKey); err == nil {
		host = ssh.FingerprintSHA256(key)
	}
	c.server.log.Debug("session bind", "host", host, "forwarding", bind.Forwarding, "pid", c.peer.PID)
	return append(reply, msgSuccess)
}

// ownAnswer is the JSON text in the answer to one of vmux's own requests.
type ownAnswer struct {
	Result jsontext.Value `json:"result,omitzero"`
	Error  string         `json:"error,omitzero"`
}

// ownExtension answers one of vmux's own requests, with a message of
//
//	byte    SSH_AGENT_EXTENSION_RESPONSE
//	string  name of the extension
//	string  JSON object with "result" or "error"
//
// or with SSH_AGENT_FAILURE to whoever has no business asking. A client that is bound may be the far side of a
// forwarding; one whose program is not ours may forward without saying so.
func (c *conn) ownExtension(reply []byte, name string, params []byte, serve Extension) []byte {
	switch {
	case c.binds.bound():
		c.refuse(name, "the connection is bound to a session")
		return append(reply, msgFailure)
	case !c.peer.isOurs():
		c.refuse(name, "not asked by a vmux command installed next to the agent")
		return append(reply, msgFailure)
	}
	params = bytes.Clone(params)
	var answer ownAnswer
	var err error
	c.wait(func() {
		var result any
		if result, err = serve(c.ctx, params); err == nil && result != nil {
			answer.Result, err = json.Marshal(result)
		}
	})
	if err != nil {
		answer = ownAnswer{Error: err.Error()}
	}
	text, err := json.Marshal(answer, jsontext.AllowInvalidUTF8(true))
	if err == nil && len(text)+len(name)+16 > maxFrame {
		err = errFrameTooLong
	}
	if err != nil {
		c.server.log.Error("cannot answer", "request", name, "error", err)
		return append(reply, msgExtensionFailure)
	}
	c.server.log.Debug("answered", "request", name, "error", answer.Error, "pid", c.peer.PID)
	reply = append(reply, msgExtensionResponse)
	reply = appendString(reply, name)
	return appendString(reply, text)
}

var (
	// ErrNotRunning says that nobody serves the socket.
	ErrNotRunning = errors.New("the agent is not running")
	// ErrNotServed says that whoever serves the socket does not answer this request to us: an agent that is not
	// vmux-agent, one of another version or directory, or one at the other end of an agent forwarding.
	ErrNotServed = errors.New("the agent does not answer this request")
)

// AnswerError is what the agent's part of a request failed with.
type AnswerError struct{ Message string }

func (e *AnswerError) Error() string { return "agent: " + e.Message }

// Ask sends NAME@vmux.app to the agent at socket and decodes the result, as JSON, into out. in goes along as JSON. Both
// may be nil. Errors: ErrNotRunning, ErrNotServed, *AnswerError, that of ctx, and those of the connection.
func Ask(ctx context.Context, socket, name string, in, out any) error {
	err := askAgent(ctx, socket, name+extOwn, in, out)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func askAgent(ctx context.Context, socket, name string, in, out any) error {
	var params []byte
	if in != nil {
		var err error
		if params, err = json.Marshal(in); err != nil {
			return fmt.Errorf("ask agent: %w", err)
		}
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", socket)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: %w", ErrNotRunning, err)
	case err != nil:
		return fmt.Errorf("ask agent: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	request := appendString([]byte{0, 0, 0, 0, msgExtension}, name)
	request = append(request, params...)
	binary.BigEndian.PutUint32(request, uint32(len(request)-lengthField))
	if _, err := conn.Write(request); err != nil {
		return fmt.Errorf("ask agent: %w", err)
	}
	answers := frames{conn: conn}
	msg, err := answers.next()
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("ask agent: %w", err)
	}
	return decodeAnswer(msg, name, out)
}

func decodeAnswer(msg []byte, name string, out any) error {
	if msg[0] == msgFailure || msg[0] == msgExtensionFailure {
		return ErrNotServed
	}
	rest := cryptobyte.String(msg[1:])
	var echo, text []byte
	if msg[0] != msgExtensionResponse || !readString(&rest, &echo) || string(echo) != name ||
		!readString(&rest, &text) || !rest.Empty() {
		return fmt.Errorf("%w: unexpected answer", ErrNotServed)
	}
	var answer ownAnswer
	if err := json.Unmarshal(text, &answer); err != nil {
		return fmt.Errorf("ask agent: %w", err)
	}
	if answer.Error != "" {
		return &AnswerError{answer.Error}
	}
	if out == nil {
		return nil
	}
	if len(answer.Result) == 0 {
		return fmt.Errorf("%w: answer without a result", ErrNotServed)
	}
	if err := json.Unmarshal(answer.Result, out); err != nil {
		return fmt.Errorf("ask agent: %w", err)
	}
	return nil
}
