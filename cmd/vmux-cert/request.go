// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/agent"
	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/control"
	"vmux.app/toolkit/internal/duration"
	"vmux.app/toolkit/internal/session"
	"vmux.app/toolkit/internal/store"
)

// maxKeyFile bounds a file with one public key.
const maxKeyFile = 64 << 10

// usage makes an error of a flag's value.
func usage(flag string, err error, hint string) error {
	return &cli.UsageError{Problem: fmt.Sprintf("--%s: %v", flag, err), Hint: hint}
}

// seconds reads a flag that is a length of time; 0 when it is not given.
func seconds(c *cli.Context, flag string) (int64, error) {
	if !c.IsSet(flag) {
		return 0, nil
	}
	d, err := duration.Parse(c.String(flag))
	if err == nil && d%time.Second != 0 {
		err = fmt.Errorf("%q has a part of a second", c.String(flag))
	}
	if err != nil {
		return 0, usage(flag, err, fmt.Sprintf("write --%s 8h", flag))
	}
	return int64(d / time.Second), nil
}

// params reads what the flags ask for.
func params(c *cli.Context) (control.CertificateParams, error) {
	p := control.CertificateParams{
		Principals: c.StringSlice("principal"),
		KeyID:      c.String("key-id"),
		Identity:   c.String("identity"),
		Reason:     c.String("reason"),
		// As ssh-keygen has it, but for X11, which gives a server the screen.
		Extensions:      map[string]string{"permit-user-rc": ""},
		CriticalOptions: map[string]string{},
		NoForwarding:    c.Bool("no-agent-forwarding"),
		Uses:            c.Int("uses"),
	}
	for name, on := range map[string]bool{
		"permit-pty":              !c.Bool("no-pty"),
		"permit-port-forwarding":  !c.Bool("no-port-forwarding"),
		"permit-agent-forwarding": !c.Bool("no-agent-forwarding"),
		"permit-X11-forwarding":   c.Bool("x11-forwarding"),
	} {
		if on {
			p.Extensions[name] = ""
		}
	}
	var err error
	if p.Validity, err = seconds(c, "validity"); err != nil {
		return p, err
	}
	if c.IsSet("uses") && p.Uses < 1 {
		return p, usage("uses", fmt.Errorf("%d is not a number of signatures", p.Uses), "write --uses 1 or more")
	}
	if c.IsSet("source-address") {
		list, err := addresses(c.String("source-address"))
		if err != nil {
			return p, usage("source-address", err, "write --source-address 192.0.2.0/24,2001:db8::/32")
		}
		p.CriticalOptions["source-address"] = list
	}
	if c.IsSet("force-command") {
		if strings.TrimSpace(c.String("force-command")) == "" {
			return p, usage("force-command", fmt.Errorf("the command is empty"), "leave it out to allow every command")
		}
		p.CriticalOptions["force-command"] = c.String("force-command")
	}
	for _, name := range c.StringSlice("host") {
		h, err := resolveHost(name)
		if err != nil {
			return p, err
		}
		p.Hosts = append(p.Hosts, h)
	}
	return p, nil
}

// addresses checks a list of CIDR blocks and addresses as sshd would.
func addresses(list string) (string, error) {
	var all []string
	for _, s := range strings.Split(list, ",") {
		s = strings.TrimSpace(s)
		if _, err := netip.ParseAddr(s); err == nil {
			all = append(all, s)
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return "", fmt.Errorf("%q is no address or CIDR block", s)
		}
		if p != p.Masked() {
			return "", fmt.Errorf("%q has bits beyond its mask; did you mean %s?", s, p.Masked())
		}
		all = append(all, s)
	}
	return strings.Join(all, ","), nil
}

// asking asks the agent something that a person must approve. Ctrl-C withdraws
// the prompt.
func asking(c *cli.Context, client *agent.Client, config store.Config, name string, in, out any) error {
	defer cli.From(c).Waiting("the owner's answer on the phone", config.Deadline)()
	// The agent keeps the deadline; this is for one that hangs.
	ctx, cancel := context.WithTimeout(c.Context, config.Deadline+10*time.Second)
	defer cancel()
	return client.Ask(ctx, name, in, out)
}

// dial connects to the agent that the flags and the configuration name.
func dial(c *cli.Context) (*agent.Client, store.Config, error) {
	config, err := cli.LoadConfig(c)
	if err != nil {
		return nil, config, err
	}
	client, err := agent.Dial(c.Context, config.Socket)
	return client, config, err
}

func request(c *cli.Context) error {
	p, err := params(c)
	if err != nil {
		return err
	}
	if p.MinRemaining, err = seconds(c, "min-remaining"); err != nil {
		return err
	}
	if c.IsSet("public-key") {
		return certify(c, p)
	}
	if c.IsSet("out") {
		return &cli.UsageError{Problem: "--out is for --public-key only", Hint: "leave it out; the agent keeps the certificate"}
	}
	client, config, err := dial(c)
	if err != nil {
		return err
	}
	defer client.Close()
	validity := p.Validity
	if validity == 0 {
		validity = int64(config.Certificate.Validity / time.Second)
	}
	if p.MinRemaining >= validity {
		return usage("min-remaining", fmt.Errorf("no certificate of %s has so much left", duration.Short(time.Duration(validity)*time.Second)),
			"write less than the validity, as in --validity 8h --min-remaining 1h")
	}
	var info session.Info
	if err := asking(c, client, config, control.Certificate, p, &info); err != nil {
		return err
	}
	show(c, info)
	return nil
}

// certify asks for a certificate of a key that is in a file.
func certify(c *cli.Context, p control.CertificateParams) error {
	for _, f := range []string{"host", "uses", "min-remaining"} {
		if c.IsSet(f) {
			return &cli.UsageError{Problem: fmt.Sprintf("--%s does not go with --public-key: the agent does not keep that certificate", f),
				Hint: "limit it by --validity, --source-address or --force-command"}
		}
	}
	p.NoForwarding = false // the extension is left out; there is nothing here to hold it to
	public, comment, err := readPublicKey(c.String("public-key"))
	if err != nil {
		return usage("public-key", err, "name a file such as ~/.ssh/id_ed25519.pub")
	}
	client, config, err := dial(c)
	if err != nil {
		return err
	}
	defer client.Close()
	var r control.CertifyResult
	if err := asking(c, client, config, control.Certify, control.CertifyParams{CertificateParams: p, PublicKey: public.Marshal()}, &r); err != nil {
		return err
	}
	certificate, err := ssh.ParsePublicKey(r.Certificate)
	if err != nil {
		return fmt.Errorf("the agent's answer is no certificate: %w", err)
	}
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(certificate)))
	if comment != "" {
		line += " " + comment
	}
	t := cli.From(c)
	if out := c.String("out"); out != "" {
		if err := renameio.WriteFile(out, []byte(line+"\n"), 0o644); err != nil {
			return cli.Fail(cli.ExitFailed, "name a file in a directory that you can write to: --out FILE", fmt.Errorf("the certificate was not written: %w", err))
		}
		t.Notef("wrote %s", out)
		show(c, r.Info)
		return nil
	}
	t.Result(struct {
		Certificate string       `json:"certificate"`
		Info        session.Info `json:"info"`
	}{line, r.Info}, func(w io.Writer) { fmt.Fprintln(w, line) })
	return nil
}

func readPublicKey(path string) (ssh.PublicKey, string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, "", err
	}
	public, comment, _, rest, err := ssh.ParseAuthorizedKey(b)
	switch {
	case len(b) > maxKeyFile, err != nil:
		return nil, "", fmt.Errorf("%s holds no public key", path)
	case len(strings.TrimSpace(string(rest))) > 0:
		return nil, "", fmt.Errorf("%s holds more than one public key", path)
	}
	if _, ok := public.(*ssh.Certificate); ok {
		return nil, "", fmt.Errorf("%s holds a certificate already", path)
	}
	return public, comment, nil
}
