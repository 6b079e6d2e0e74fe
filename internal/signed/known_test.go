// SPDX-License-Identifier: BSD-3-Clause

package signed

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// A Known says what the functions say, of any data and whichever key is asked.
func TestKnown(t *testing.T) {
	t.Parallel()
	var keys []ssh.PublicKey
	var blobs [][]byte
	var meanings []Meaning
	var all [][]byte
	for name, data := range goldens(t) {
		if strings.HasPrefix(name, "bind") {
			continue
		}
		all = append(all, data)
		m := Parse(data)
		meanings = append(meanings, m)
		if m.Key == nil {
			continue
		}
		key, err := ssh.ParsePublicKey(m.Key)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key, publicHalf(key))
		blobs = append(blobs, m.Key, publicHalf(key).Marshal(), flip(m.Key, len(m.Key)-1))
	}
	known := NewKnown(keys)
	if len(known.byBlob) < 4 {
		t.Fatalf("%d keys", len(known.byBlob))
	}
	for _, data := range all {
		for at := -1; at < len(data); at++ {
			d := data
			if at >= 0 {
				d = flip(data, at)
			}
			if got, want := known.Parse(d), Parse(d); !reflect.DeepEqual(got, want) {
				t.Fatalf("%x: %+v, not %+v", d, got, want)
			}
		}
	}
	asked := 0
	for _, m := range meanings {
		for _, blob := range blobs {
			key, err := ssh.ParsePublicKey(blob)
			if err != nil || !bytes.Equal(key.Marshal(), blob) {
				if known.Check(m, blob, 0) == nil {
					t.Errorf("%x is checked", blob)
				}
				continue
			}
			for _, flags := range []uint32{0, 1, 2, 4, 6} {
				asked++
				want, got := Check(m, key, flags), known.Check(m, blob, flags)
				if (want == nil) != (got == nil) || want != nil && want.Error() != got.Error() {
					t.Errorf("%s of %s: %v, not %v", m.Kind, ssh.FingerprintSHA256(key), got, want)
				}
			}
		}
	}
	if asked < 100 {
		t.Errorf("%d checks", asked)
	}
}
