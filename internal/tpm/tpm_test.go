// SPDX-License-Identifier: BSD-3-Clause

package tpm

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"testing"

	"vmux.app/toolkit/internal/tpm/tpmtest"
)

func TestSign(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	pin := []byte("1234")
	k, err := Create(m.Path(), pin)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("what is signed"))
	sig, err := k.Sign(m.Path(), pin, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	if !ecdsa.VerifyASN1(k.Public(), digest[:], sig) {
		t.Error("wrong signature")
	}
	t.Logf("%s", k.Marshal())
	if err := k.Check(m.Path(), pin); err != nil {
		t.Error(err)
	}
	t.Log(k.Check(m.Path(), []byte("12345")))
	t.Log(m.Loaded())
}
