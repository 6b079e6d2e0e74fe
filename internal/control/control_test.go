// SPDX-License-Identifier: BSD-3-Clause

package control

import (
	"reflect"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"vmux.app/toolkit/internal/phone"
	"vmux.app/toolkit/internal/session"
)

// What is said over the socket arrives as it was.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	for _, sent := range []any{
		&StatusResult{Version: "1", PID: 2, Started: at, Locked: true, Connections: 3, Certificates: 4,
			Phones:     []phone.Status{{Name: "Pocket", Pin: "SHA256:x", Connected: true, Address: "192.0.2.1:1", Software: "s", Skew: -5, Keys: 6}},
			Executable: "/bin/vmux-agent", Device: Device{"laptop", "SHA256:y"}, Protection: Protection{true, 7}, Log: Log{LogFile, "/l", "INFO"}},
		&[]phone.Reached{{Name: "Pocket", Pin: "SHA256:x", Address: "192.0.2.1:1", Trip: 8}, {Name: "Other", Problem: "away"}},
		&CertificateParams{Validity: 1, Principals: []string{"me"}, Hosts: []session.Host{{Name: "h", Fingerprints: []string{"SHA256:x"}}}, Uses: 2},
		&CertifyParams{PublicKey: []byte{1}},
		&CertifyResult{Certificate: []byte{1}, Info: session.Info{Serial: 1<<63 + 1, Principals: []string{"me"}, ValidAfter: at, ValidBefore: at}},
		&DropParams{Serial: 1<<63 + 1},
		&DropResult{Dropped: 1},
		&RunResult{Socket: "/s", Info: session.Info{Principals: []string{"me"}}},
	} {
		b, err := json.Marshal(sent)
		if err != nil {
			t.Errorf("%T: %v", sent, err)
			continue
		}
		got := reflect.New(reflect.TypeOf(sent).Elem()).Interface()
		if err := json.Unmarshal(b, got, json.RejectUnknownMembers(true)); err != nil || !reflect.DeepEqual(got, sent) {
			t.Errorf("%T: %v\n%s\n%+v\n%+v", sent, err, b, got, sent)
		}
	}
}
