// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"syscall"

	"github.com/go-json-experiment/json"
	"golang.org/x/crypto/cryptobyte"
)

var (
	// ErrNotRunning says that nobody serves the socket.
	ErrNotRunning = errors.New("the agent is not running")
	// ErrNotServed says that whoever serves the socket does not answer this request to us: an agent that is not
	// vmux-agent, one of another version or directory, or one at the other end of an agent forwarding.
	ErrNotServed = errors.New("the agent does not answer this request")
)

// AnswerError is what the agent's part of a request failed with.
type AnswerError struct {
	Kind    string // what Options.Kind said of the error, empty if nothing
	Message string
}

func (e *AnswerError) Error() string { return e.Message }

// Client is a connection to an agent for vmux's own requests. What a request made for the time of its connection ends
// with it. It is not safe for concurrent use.
type Client struct {
	conn net.Conn
	in   frames
}

// Dial connects to the agent at socket. Errors: ErrNotRunning, that of ctx, those of the connection.
func Dial(ctx context.Context, socket string) (*Client, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", socket)
	switch {
	case err == nil:
		return &Client{conn, frames{conn: conn}}, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w: %w", ErrNotRunning, err)
	}
	return nil, fmt.Errorf("ask agent: %w", err)
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Ask sends NAME@vmux.app and decodes the result, as JSON, into out. in goes along as JSON. Both may be nil. When ctx
// ends first, the connection is closed. Errors: ErrNotServed, *AnswerError, that of ctx, and those of the connection.
func (c *Client) Ask(ctx context.Context, name string, in, out any) error {
	defer context.AfterFunc(ctx, func() { c.conn.Close() })()
	err := c.ask(name+extOwn, in, out)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// Ask is Client.Ask on a connection of its own to the agent at socket.
func Ask(ctx context.Context, socket, name string, in, out any) error {
	c, err := Dial(ctx, socket)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Ask(ctx, name, in, out)
}

func (c *Client) ask(name string, in, out any) error {
	var params []byte
	if in != nil {
		var err error
		if params, err = json.Marshal(in); err != nil {
			return fmt.Errorf("ask agent: %w", err)
		}
	}
	request := appendString([]byte{0, 0, 0, 0, msgExtension}, name)
	request = append(request, params...)
	binary.BigEndian.PutUint32(request, uint32(len(request)-lengthField))
	if _, err := c.conn.Write(request); err != nil {
		return fmt.Errorf("ask agent: %w", err)
	}
	msg, err := c.in.next()
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
		return &AnswerError{answer.Kind, answer.Error}
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
