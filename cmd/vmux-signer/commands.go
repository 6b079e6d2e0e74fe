// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/keyfile"
	"vmux.app/toolkit/internal/safetext"
	"vmux.app/toolkit/internal/signer"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/tpm"
)

func app() *cli.App {
	return &cli.App{
		Name:  "vmux-signer",
		Usage: "keep SSH keys and sign what their owner approves",
		Description: `The phone's part on any computer: it answers the vmux-agent of paired devices.
The home is $VMUX_SIGNER_HOME, else vmux-signer in $XDG_DATA_HOME or ~/.local/share. Keys in it are
encrypted with a passphrase.`,
		Commands: []*cli.Command{
			{
				Name: "init", Usage: "make the home: keys, certificate authority, name",
				Flags: []cli.Flag{&cli.StringFlag{Name: "name", Usage: "be called `NAME` by devices",
					DefaultText: "the computer's name"},
					passphraseFlag, providerFlag(),
					&cli.BoolFlag{Name: "no-passphrase", Usage: "do not encrypt the keys: whoever can read them has them"},
				},
				Action: initHome,
			},
			{
				Name: "serve", Usage: "answer paired devices until interrupted",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "listen", Usage: "listen on `HOST:PORT`", Value: ":0"},
					&cli.BoolFlag{Name: "no-advertise", Usage: "do not advertise by DNS-SD"},
					&cli.BoolFlag{Name: "nearby", Usage: "let devices nearby connect without a network (macOS)"},
					&cli.StringFlag{Name: "asleep", Usage: "neither listen nor advertise until somebody connects to `HOST:PORT`"},
					&cli.StringFlag{Name: "device-token", Usage: "have devices push to `TOKEN`, hexadecimal, when this is asleep"},
					&cli.StringFlag{Name: "topic", Usage: "the push's `TOPIC`, a bundle id"},
					cli.Choice("environment", "the push service's `ENVIRONMENT`", "production", "production", "sandbox"),
					passphraseFlag,
					&cli.BoolFlag{Name: "app-lock", Usage: "ask for the passphrase before prompts are shown"},
					cli.Choice("approve", "ask for approval by `MEANS`; always is for tests and demonstrations", "",
						"terminal", "askpass", "command:PROGRAM", "always"),
					&cli.BoolFlag{Name: "no-notify", Usage: "show no notifications on the desktop"},
					cli.LogLevelFlag(),
				},
				Action: serve,
			},
			{
				Name: "pair", Usage: "let one device pair with the running signer", ArgsUsage: "[URL]",
				Description: `Without URL, the device's owner types the digits that are shown here. With the URL that
"vmux-pair --url" prints, that device is paired without digits. A window is for one try.
"-" reads the URL from standard input, where other users of this computer do not see it.`,
				Flags: []cli.Flag{&cli.DurationFlag{Name: "timeout", Usage: "close the window after `DURATION`",
					Value: signer.DefaultWindow}},
				Action: pair,
			},
			{Name: "status", Usage: "say what the running signer is doing", Action: showStatus},
			{Name: "lock", Usage: "withdraw prompts, and have the passphrase given before others", Action: lock},
			{
				Name: "unlock", Usage: "give the running signer the passphrase", Flags: []cli.Flag{passphraseFlag}, Action: unlock,
				Description: `After five approvals in a row that failed, with App Lock, and where approvals do not ask for the
passphrase by themselves. After wrong ones it takes longer.`,
			},
			{
				Name: "passphrase", Usage: "encrypt the keys with another passphrase",
				Flags: []cli.Flag{
					passphraseFlag,
					&cli.StringFlag{Name: "new-passphrase-file", Usage: "take the new one from the first line of `FILE`", TakesFile: true},
					&cli.BoolFlag{Name: "none", Usage: "decrypt the keys: whoever can read them has them"},
				},
				Action: changePassphrase,
			},
			{Name: "devices", Usage: "list the paired devices", Action: devices},
			{Name: "forget", Usage: "unpair a device and cut its links", ArgsUsage: "DEVICE", Action: forget},
			{
				Name: "hosts", Usage: "list the host keys of approved logins", Action: hostKeys,
				Description: `Prompts say whether a host key was approved before, and warn when a name comes with another key.
The names are those that devices have given.`,
				Subcommands: []*cli.Command{
					{
						Name: "remove", Usage: "forget host keys", ArgsUsage: "NAME...", Action: hostsRemove,
						Description: "NAME is that of a host, for all its keys, or a key's fingerprint, SHA256:..., for all its names.",
					},
				},
			},
			auditCommand(),
			revokeCommand,
			eraseCommand,
			{
				Name: "key", Usage: "manage the keys",
				Subcommands: []*cli.Command{
					{
						Name: "add", Usage: "make a key and print its public half", ArgsUsage: "LABEL",
						Flags: []cli.Flag{
							cli.Choice("type", "make a key of `TYPE`", string(keyfile.ECDSA), string(keyfile.ECDSA), string(keyfile.Ed25519)),
							passphraseFlag, providerFlag(),
						},
						Action: keyAdd,
					},
					{Name: "list", Usage: "list the keys", Action: keyList},
					{Name: "disable", Usage: "neither offer nor use a key", ArgsUsage: "LABEL", Action: keyEnable(false)},
					{Name: "enable", Usage: "offer and use a key again", ArgsUsage: "LABEL", Action: keyEnable(true)},
					{Name: "remove", Usage: "destroy a key and print what revokes it", ArgsUsage: "LABEL", Action: keyRemove},
				},
			},
		},
	}
}

func openHome(c *cli.Context) (*signer.Home, error) {
	dir, err := store.Env(os.Getenv).SignerHome()
	if err != nil {
		return nil, err
	}
	h, err := signer.Open(dir, func(s string) { cli.From(c).Warnf("%s", s) })
	if err != nil {
		return nil, err
	}
	h.SetTPM(tpmDevice())
	return h, nil
}

// Where a private key is.
const (
	inFile = "file"
	inTPM  = "tpm"
)

func providerFlag() cli.Flag {
	return cli.Choice("provider", "keep private keys in `PLACE`: files, or a TPM 2.0 that never gives them away", inFile, inFile, inTPM)
}

// tpmDevice is $VMUX_TPM, else the kernel's.
func tpmDevice() string {
	if d := os.Getenv("VMUX_TPM"); d != "" {
		return d
	}
	return tpm.Default
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

func initHome(c *cli.Context) error {
	t := cli.From(c)
	dir, err := store.Env(os.Getenv).SignerHome()
	if err != nil {
		return err
	}
	name := c.String("name")
	if !c.IsSet("name") {
		name = signer.HostName()
	}
	if err := signer.CanInit(dir, name); err != nil { // before a question for nothing
		return err
	}
	var secret []byte
	switch {
	case c.Bool("no-passphrase") && c.String("provider") == inTPM:
		return keyfile.ErrBare
	case c.Bool("no-passphrase") && c.IsSet("passphrase-file"):
		return &cli.UsageError{Problem: "--no-passphrase and --passphrase-file exclude one another", Hint: "leave one out"}
	case !c.Bool("no-passphrase"):
		if secret, err = newPassphrase(c, "passphrase-file", "no-passphrase"); err != nil {
			return err
		}
		defer clear(secret)
	}
	var h *signer.Home
	if c.String("provider") == inTPM {
		h, err = signer.InitTPM(dir, name, tpmDevice(), secret)
	} else {
		h, err = signer.Init(dir, name, secret)
	}
	if err != nil {
		return err
	}
	ca, err := h.CA()
	if err != nil {
		return err
	}
	keys, err := h.Keys()
	if err != nil {
		return err
	}
	result := struct {
		Home string      `json:"home"`
		Name string      `json:"name"`
		CA   string      `json:"ca"`
		Keys []keyObject `json:"keys"`
	}{h.Dir(), name, line(ca, "vmux-signer CA "+name), nil}
	for _, k := range keys {
		result.Keys = append(result.Keys, objectOf(k))
	}
	t.Notef("made %s for the signer %s", h.Dir(), name)
	if secret == nil {
		t.Warnf("the keys are not encrypted: whoever can read %s has them", h.Dir())
	}
	t.Result(result, func(w io.Writer) {
		for _, k := range result.Keys {
			fmt.Fprintln(w, k.PublicKey)
		}
	})
	return nil
}

// changed tells a running signer that the home has changed.
func changed(c *cli.Context, h *signer.Home) error {
	err := h.Reload(c.Context)
	if errors.Is(err, signer.ErrNotRunning) {
		return nil
	}
	if err != nil {
		return cli.Fail(cli.ExitFailed, "end the running vmux-signer and start it again",
			fmt.Errorf("changed on disk, but the running vmux-signer did not take it up: %w", err))
	}
	return nil
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

func devices(c *cli.Context) error {
	h, err := openHome(c)
	if err != nil {
		return err
	}
	s, err := h.Read()
	if err != nil {
		return err
	}
	result := struct {
		Devices []signer.Device `json:"devices"`
	}{s.Devices}
	if result.Devices == nil {
		result.Devices = []signer.Device{}
	}
	cli.From(c).Result(result, func(w io.Writer) {
		tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		defer tw.Flush()
		for _, d := range result.Devices {
			seen := "never seen"
			if !d.LastSeen.IsZero() {
				seen = "seen " + d.LastSeen.Local().Format(time.DateTime)
			}
			fmt.Fprintf(tw, "%s\t%s\tpaired %s\t%s\n", safetext.Line(d.Name, 100), d.Pin, d.PairedAt.Local().Format(time.DateOnly), seen)
		}
	})
	if len(result.Devices) == 0 && !cli.From(c).JSON() {
		cli.From(c).Notef("no device is paired")
	}
	return nil
}

func forget(c *cli.Context) error {
	h, err := openHome(c)
	if err != nil {
		return err
	}
	d, err := h.Forget(c.Args().First())
	if err != nil {
		return err
	}
	cli.From(c).Notef("%s is not paired any more", d.Name)
	if cli.From(c).JSON() {
		cli.From(c).Result(map[string]any{"forgotten": d}, nil)
	}
	return changed(c, h)
}

func hostKeys(c *cli.Context) error {
	h, err := openHome(c)
	if err != nil {
		return err
	}
	list, err := h.HostKeys()
	if err != nil {
		return err
	}
	result := struct {
		Hosts []signer.HostKey `json:"hosts"`
	}{list}
	cli.From(c).Result(result, func(w io.Writer) {
		tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		defer tw.Flush()
		for _, k := range result.Hosts {
			name := k.Name
			if name == "" {
				name = "-" // begins no name
			}
			fmt.Fprintf(tw, "%s\t%s\tfirst %s\tlast %s\n", name, k.Fingerprint, k.First, k.Last)
		}
	})
	if len(result.Hosts) == 0 && !cli.From(c).JSON() {
		cli.From(c).Notef("no login to a verified host was approved yet")
	}
	return nil
}

func hostsRemove(c *cli.Context) error {
	h, err := openHome(c)
	if err != nil {
		return err
	}
	gone, err := h.RemoveHosts(c.Args().Slice()...)
	if err != nil {
		return err
	}
	for _, k := range gone {
		name := k.Name
		if name == "" {
			name = "a host without a name"
		}
		cli.From(c).Notef("%s with %s is forgotten", name, k.Fingerprint)
	}
	if cli.From(c).JSON() {
		cli.From(c).Result(map[string]any{"removed": gone}, nil)
	}
	return changed(c, h)
}
