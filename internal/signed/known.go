// SPDX-License-Identifier: BSD-3-Clause

package signed

import (
	"fmt"

	"golang.org/x/crypto/ssh"
)

// Known are keys that were parsed before: parsing one costs as much as half a signature, and an agent meets its own keys
// again and again. What its methods say is what Parse and Check say. The nil Known has no keys. It is never changed.
type Known struct {
	byBlob map[string]ssh.PublicKey // what parseKey gives for these bytes
}

// NewKnown gives the Known of keys. Those of no known type are left out.
func NewKnown(keys []ssh.PublicKey) *Known {
	k := &Known{byBlob: make(map[string]ssh.PublicKey, len(keys))}
	for _, key := range keys {
		if parsed, err := parseKey(key.Marshal()); err == nil {
			k.byBlob[string(parsed.Marshal())] = parsed
		}
	}
	return k
}

// parse is parseKey.
func (k *Known) parse(blob []byte) (ssh.PublicKey, error) {
	if k != nil {
		if key, ok := k.byBlob[string(blob)]; ok {
			return key, nil
		}
	}
	return parseKey(blob)
}

// Check is the function of that name, with the asked key in wire form.
func (k *Known) Check(m Meaning, asked []byte, flags uint32) error {
	key, err := k.parse(asked)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrKey, err)
	}
	return k.check(m, asked, publicHalf(key), flags)
}
