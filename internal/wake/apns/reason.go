// SPDX-License-Identifier: BSD-3-Clause

package apns

import (
	"net/http"
	"slices"
)

// Reason is one of Apple's answers to a push.
type Reason struct {
	Code    string // Apple's, as in "BadDeviceToken"; empty when the answer had none that is known
	Status  int    // HTTP's
	Meaning string // what it means, a sentence without a full stop
	Do      string // what to do

	Gone  bool // the device token is of no use any more, as far as it was sent with its own topic and environment
	Renew bool // a new authorization may help
	Again bool // the same push, a little later, may be taken
}

// What to do about what only a fault in this software brings about, or a relay.
const (
	report   = "report it with the apns-id; if there is a relay in between (--endpoint), look there first"
	newToken = "let the phone connect once, so that it sends its token anew"
	account  = "see on developer.apple.com, under Keys, that key id and team id belong to the key, and set the clock right: date -u"
	later    = "try again later; developer.apple.com/system-status shows whether Apple has trouble"
	topic    = "set the topic to the bundle id of the phone's app, with --topic or wake.topic in vmux.toml"
	otherEnv = "use a key for this environment or for both, or change the environment: --environment production|sandbox"
)

// Reasons returns all that Apple documents in "Handling notification responses from APNs", and BadEnvironmentKeyInToken,
// which Apple sends where it documents BadEnvironmentKeyIdInToken.
func Reasons() []Reason {
	return []Reason{
		{Code: "BadCollapseId", Status: 400, Meaning: "the collapse id is longer than 64 bytes", Do: report},
		{Code: "BadDeviceToken", Status: 400, Meaning: "the device token is none of this environment", Gone: true,
			Do: "a development build of the app has tokens of the sandbox (--environment sandbox); else " + newToken},
		{Code: "BadExpirationDate", Status: 400, Meaning: "the time at which the push expires is not valid", Do: report},
		{Code: "BadMessageId", Status: 400, Meaning: "the push's id is not valid", Do: report},
		{Code: "BadPriority", Status: 400, Meaning: "the priority is not valid", Do: report},
		{Code: "BadTopic", Status: 400, Meaning: "the topic is not valid", Do: topic},
		{Code: "DeviceTokenNotForTopic", Status: 400, Meaning: "the device token is another app's than the topic says", Gone: true, Do: topic},
		{Code: "DuplicateHeaders", Status: 400, Meaning: "a header was sent twice", Do: report},
		{Code: "IdleTimeout", Status: 400, Meaning: "the connection was idle for too long", Again: true, Do: "try again"},
		{Code: "InvalidPushType", Status: 400, Meaning: "the type of the push is not valid", Do: report},
		{Code: "MissingDeviceToken", Status: 400, Meaning: "the request names no device token", Do: report},
		{Code: "MissingTopic", Status: 400, Meaning: "the request has no topic", Do: topic},
		{Code: "PayloadEmpty", Status: 400, Meaning: "the push is empty", Do: report},
		{Code: "TopicDisallowed", Status: 400, Meaning: "this key may not push to the topic",
			Do: "use a key of the team that the app is from, and one that is not for other topics only; see developer.apple.com, under Keys"},

		{Code: "BadCertificate", Status: 403, Meaning: "the sender's certificate is not valid, though vmux has none",
			Do: "look at the relay in between (--endpoint)"},
		{Code: "BadCertificateEnvironment", Status: 403, Meaning: "the sender's certificate is for the other environment, though vmux has none",
			Do: "look at the relay in between (--endpoint)"},
		{Code: "ExpiredProviderToken", Status: 403, Meaning: "the authorization is older than an hour, by Apple's clock", Renew: true,
			Do: "set this computer's clock right: date -u"},
		{Code: "Forbidden", Status: 403, Meaning: "Apple does not allow it", Do: account},
		{Code: "InvalidProviderToken", Status: 403, Meaning: "Apple cannot verify the authorization", Renew: true, Do: account},
		{Code: "MissingProviderToken", Status: 403, Meaning: "no authorization has arrived", Do: report},
		{Code: "UnrelatedKeyIdInToken", Status: 403, Meaning: "the key is another one than the connection began with",
			Do: "try again, and restart vmux-agent after a change of keys"},
		{Code: "BadEnvironmentKeyIdInToken", Status: 403, Meaning: "the key is for the other environment", Do: otherEnv},
		{Code: "BadEnvironmentKeyInToken", Status: 403, Meaning: "the key is for the other environment", Do: otherEnv},

		{Code: "BadPath", Status: 404, Meaning: "the request's path is not valid", Do: report},
		{Code: "MethodNotAllowed", Status: 405, Meaning: "the request was no POST", Do: report},

		{Code: "ExpiredToken", Status: 410, Meaning: "the device token has expired", Gone: true, Do: newToken},
		{Code: "Unregistered", Status: 410, Meaning: "the device token is in use no more: the app was removed, or takes no pushes", Gone: true,
			Do: "install the app, allow its notifications, and " + newToken},

		{Code: "PayloadTooLarge", Status: 413, Meaning: "the push is larger than 4096 bytes", Do: report},

		// Not again: it would last 20 minutes.
		{Code: "TooManyProviderTokenUpdates", Status: 429, Meaning: "the authorization was renewed more than once in 20 minutes",
			Do: "wait 20 minutes; use one key on one device, and set its clock right: date -u"},
		{Code: "TooManyRequests", Status: 429, Meaning: "too many pushes in a row went to this phone", Again: true, Do: "wait a minute and try again"},

		{Code: "InternalServerError", Status: 500, Meaning: "Apple's server has failed", Again: true, Do: later},
		{Code: "ServiceUnavailable", Status: 503, Meaning: "Apple's server is not available", Again: true, Do: later},
		{Code: "Shutdown", Status: 503, Meaning: "Apple's server is shutting down", Again: true, Do: later},
	}
}

// Lookup returns what an answer means. A code that Apple does not document is judged by its status and comes
// back as an empty Code.
func Lookup(status int, code string) Reason {
	all := Reasons()
	if i := slices.IndexFunc(all, func(r Reason) bool { return r.Code == code }); i >= 0 {
		r := all[i]
		r.Status = status
		return r
	}
	r := Reason{Status: status, Meaning: "no reason that Apple documents", Do: report}
	switch {
	case status == http.StatusGone:
		r.Meaning, r.Do, r.Gone = "the device token is in use no more", newToken, true
	case status == http.StatusTooManyRequests:
		r.Meaning, r.Do, r.Again = "too many pushes", "wait a minute and try again", true
	case status >= 500:
		r.Meaning, r.Do, r.Again = "the server has failed", later, true
	case status >= 300 && status < 400:
		r.Meaning, r.Do = "the endpoint names another place, which is not followed", "name the right one: --endpoint"
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		r.Meaning, r.Do = "the authorization was refused", account
	}
	return r
}
