// SPDX-License-Identifier: BSD-3-Clause

package wake

import (
	"encoding/base64"
	"time"

	"github.com/golang-jwt/jwt/v4"

	"vmux.app/toolkit/internal/wake/apns"
)

// Apple refuses an authorization that is older than an hour, and one that is made anew more than once in 20 minutes,
// from however many processes of a team.
const (
	window   = 40 * 60 // seconds
	minRenew = 20 * 60 // seconds
)

// authorization is the JSON Web Token that goes along with each push. Its time is the beginning of a window of
// wall-clock time and its signature deterministic, so that the agent and each run of vmux-wake have the same one, and
// it need not be kept in a file. After it was refused it is made for the present second instead.
type authorization struct {
	bearer  string
	issued  int64 // Unix time, also what it claims
	renewed int64 // Unix time of the last renewal, 0 for none
}

// signingMethod is ES256 by apns.Key, which keeps the key to itself and signs as RFC 6979 says; jwt's own is random.
type signingMethod struct{ *jwt.SigningMethodECDSA }

func (signingMethod) Sign(text string, key any) (string, error) {
	k, ok := key.(*apns.Key)
	if !ok {
		return "", jwt.ErrInvalidKeyType
	}
	signature, err := k.Sign([]byte(text))
	if err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(signature), nil
}

// authorize returns the authorization that holds now, and the time that stands for its making at apns2's own Token.
func (c *Client) authorize() (bearer string, issued int64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// Wall-clock seconds: the monotonic clock stands still while the computer sleeps.
	now := time.Now().Unix()
	begin := now - now%window
	// One that was renewed is younger than its window. A clock that was set back makes it one of the future.
	if a := c.auth; a.bearer == "" || a.issued > now || a.issued < begin && now-a.issued >= window {
		err = c.issueLocked(begin)
	}
	return c.auth.bearer, now, err
}

// renew replaces used, which was refused, and says whether there is another one now.
func (c *Client) renew(used string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.auth.bearer != used {
		return true // somebody else has
	}
	now := time.Now().Unix()
	if since := now - c.auth.renewed; since >= 0 && since < minRenew {
		return false
	}
	if now == c.auth.issued || c.issueLocked(now) != nil {
		return false
	}
	c.auth.renewed = now
	return true
}

func (c *Client) issueLocked(issued int64) error {
	t := jwt.Token{
		Header: map[string]any{"alg": "ES256", "kid": c.options.KeyID},
		Claims: jwt.MapClaims{"iss": c.options.TeamID, "iat": issued},
		Method: signingMethod{jwt.SigningMethodES256},
	}
	bearer, err := t.SignedString(c.options.Key)
	if err != nil {
		return err
	}
	c.auth.bearer, c.auth.issued = bearer, issued
	return nil
}
