// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

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
	Kind   string         `json:"kind,omitzero"` // of the error, see Options.Kind
}

// ownExtension answers one of vmux's own requests, with a message of
//
//	byte    SSH_AGENT_EXTENSION_RESPONSE
//	string  name of the extension
//	string  JSON object with "result", or "error" and perhaps "kind"
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
		if result, err = serve(c.ctx, c.peer, params); err == nil && result != nil {
			answer.Result, err = json.Marshal(result)
		}
	})
	if err != nil {
		answer = ownAnswer{Error: err.Error()}
		if c.server.kind != nil {
			answer.Kind = c.server.kind(err)
		}
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
