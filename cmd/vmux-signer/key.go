// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/keyfile"
	"vmux.app/toolkit/internal/safetext"
	"vmux.app/toolkit/internal/signer"
)

// Where a private key is.
const (
	inFile = "file"
	inTPM  = "tpm"
)

func providerFlag() cli.Flag {
	return cli.Choice("provider", "keep private keys in `PLACE`: files, or a TPM 2.0 that never gives them away", inFile, inFile, inTPM)
}

// keyObject is a key in JSON.
type keyObject struct {
	Label       string `json:"label"`
	Enabled     bool   `json:"enabled"`
	Provider    string `json:"providerKind"`
	Encrypted   bool   `json:"encrypted"`
	Algorithm   string `json:"algorithm,omitzero"`
	Fingerprint string `json:"fingerprint,omitzero"`
	PublicKey   string `json:"publicKey,omitzero"` // a line for authorized_keys
	Error       string `json:"error,omitzero"`
}

func objectOf(k signer.Key) keyObject {
	o := keyObject{Label: k.Label, Enabled: k.Enabled, Provider: string(k.Provider)}
	if k.Err != nil {
		o.Error = k.Err.Error()
		return o
	}
	o.Encrypted = k.Encrypted()
	o.Algorithm, o.Fingerprint, o.PublicKey = k.Public.Type(), ssh.FingerprintSHA256(k.Public), line(k.Public, k.Label)
	return o
}

func line(k ssh.PublicKey, comment string) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k))) + " " + comment
}

func keyAdd(c *cli.Context) error {
	h, err := openHome(c)
	if err != nil {
		return err
	}
	if c.String("provider") == inTPM && keyfile.Type(c.String("type")) != keyfile.ECDSA {
		return &cli.UsageError{Problem: "a TPM has keys of type ecdsa only", Hint: "leave out --type, or write --provider file"}
	}
	if err := signer.CheckLabel(c.Args().First()); err != nil { // before a question for nothing
		return err
	}
	secret, err := passphrase(c, h)
	if err != nil {
		return err
	}
	defer clear(secret)
	var k signer.Key
	if c.String("provider") == inTPM {
		k, err = h.AddTPMKey(c.Args().First(), secret)
	} else {
		k, err = h.AddKey(c.Args().First(), keyfile.Type(c.String("type")), secret)
	}
	if err != nil {
		return err
	}
	o := objectOf(k)
	cli.From(c).Result(o, func(w io.Writer) { fmt.Fprintln(w, o.PublicKey) })
	return changed(c, h)
}

func keyList(c *cli.Context) error {
	h, err := openHome(c)
	if err != nil {
		return err
	}
	keys, err := h.Keys()
	if err != nil {
		return err
	}
	result := struct {
		Keys []keyObject `json:"keys"`
	}{[]keyObject{}}
	for _, k := range keys {
		result.Keys = append(result.Keys, objectOf(k))
	}
	cli.From(c).Result(result, func(w io.Writer) {
		tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		defer tw.Flush()
		for _, k := range result.Keys {
			state := "enabled"
			if !k.Enabled {
				state = "disabled"
			}
			if k.Error != "" {
				fmt.Fprintf(tw, "%s\t%s\t%s\n", k.Label, "unusable", safetext.Line(k.Error, 200))
				continue
			}
			rest := ""
			switch {
			case k.Provider == string(envelope.HardwareToken):
				rest = "\tin a TPM"
			case k.Encrypted:
				rest = "\tencrypted"
			}
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s%s\n", k.Label, state, k.Algorithm, k.Fingerprint, rest)
		}
	})
	return nil
}

func keyEnable(on bool) func(*cli.Context) error {
	return func(c *cli.Context) error {
		h, err := openHome(c)
		if err != nil {
			return err
		}
		label := c.Args().First()
		if err := h.EnableKey(label, on); err != nil {
			return err
		}
		if on {
			cli.From(c).Notef("the key %s is enabled", label)
		} else {
			cli.From(c).Notef("the key %s is disabled", label)
		}
		k, err := h.Key(label)
		if err != nil {
			return err
		}
		if on && k.Err != nil {
			cli.From(c).Warnf("it cannot be used: %v", k.Err)
		}
		if cli.From(c).JSON() {
			cli.From(c).Result(objectOf(k), nil)
		}
		return changed(c, h)
	}
}

func keyRemove(c *cli.Context) error {
	h, err := openHome(c)
	if err != nil {
		return err
	}
	label := c.Args().First()
	k, err := h.Key(label)
	if err != nil {
		return err
	}
	o := objectOf(k)
	before, _ := h.PublicKeys() // also of a key that is not used since others can read it
	if err := h.RemoveKey(label); err != nil {
		_ = changed(c, h) // it may be disabled by now; the error that matters is err
		return err
	}
	cli.From(c).Notef("the key %s is gone for good", label)
	cli.From(c).Result(map[string]any{"removed": o}, func(w io.Writer) {
		keys, _ := h.PublicKeys() // it is there, unless RemoveKey has warned
		for _, k := range keys {
			if k.Removed && slices.ContainsFunc(before, func(was signer.PublicKey) bool {
				return !was.Removed && was.Label == label && line(was.Public, "") == line(k.Public, "")
			}) {
				fmt.Fprint(w, listOf([]signer.PublicKey{k}).Text)
			}
		}
	})
	return changed(c, h)
}
