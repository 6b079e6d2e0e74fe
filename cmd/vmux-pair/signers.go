// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/phone"
	"vmux.app/toolkit/internal/safetext"
	"vmux.app/toolkit/internal/store"
)

const (
	// namespace is what git signs for.
	namespace = "git"
	// maxPrincipal is the length of the longest mail address (RFC 5321, section
	// 4.5.3.1: 64 bytes, @, 255 bytes).
	maxPrincipal = 320
	// maxPrincipals bounds a line that every verification reads.
	maxPrincipals = 64
	// gitTimeout bounds asking git, which reads a few files.
	gitTimeout = 5 * time.Second
)

// nameOne is the hint when nobody is named whose keys they are.
const nameOne = "say whose keys they are: vmux-pair --list --allowed-signers --principal me@example.org"

// jsonSigner is a line of an allowed signers file as --json prints it.
type jsonSigner struct {
	Line        string   `json:"line"`
	Principals  []string `json:"principals"`
	Namespaces  []string `json:"namespaces"`
	PublicKey   string   `json:"publicKey"` // authorized_keys form with the comment
	Fingerprint string   `json:"fingerprint"`
}

// allowedSigners prints the phones' keys as ssh-keygen(1), ALLOWED SIGNERS, has
// them, for git's signatures only.
func allowedSigners(c *cli.Context) error {
	principals := c.StringSlice("principal")
	if len(principals) == 0 {
		email, err := gitEmail(c.Context)
		if err != nil {
			return cli.Fail(cli.ExitUsage, nameOne, fmt.Errorf("nobody is named by --principal, and %w", err))
		}
		if err := checkPrincipal(email); err != nil {
			return cli.Fail(cli.ExitUsage, nameOne, fmt.Errorf("git's user.email: %w", err))
		}
		principals = []string{email}
	}
	_, state, err := loadState(c)
	if err != nil {
		return err
	}
	if len(state.Phones) == 0 {
		return phone.ErrNotPaired
	}
	t := cli.From(c)
	signers := []jsonSigner{}
	seen := make(map[string]bool) // two phones may have one key
	for _, p := range state.Phones {
		for _, k := range p.Keys {
			public, err := ssh.ParsePublicKey(k.Blob)
			if _, certificate := public.(*ssh.Certificate); err != nil || certificate {
				t.Warnf("%s has something else than a plain key, %q, which is left out", p.Name, k.Comment)
				continue
			}
			if seen[string(k.Blob)] {
				continue
			}
			seen[string(k.Blob)] = true
			signers = append(signers, signer(principals, public, k.Comment))
		}
	}
	if len(signers) == 0 {
		return cli.Fail(cli.ExitFailed, "let the agent ask the phone for them: ssh-add -l", errors.New("no key of a paired phone is known yet"))
	}
	t.Result(map[string]any{"allowedSigners": signers}, func(w io.Writer) {
		for _, s := range signers {
			fmt.Fprintln(w, s.Line)
		}
	})
	return nil
}

// signer makes the line of one key. The principals have been checked.
func signer(principals []string, public ssh.PublicKey, comment string) jsonSigner {
	key := strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(public)), "\n")
	if comment = safetext.Line(comment, store.MaxText); comment != "" {
		key += " " + comment
	}
	return jsonSigner{
		Line:        strings.Join(principals, ",") + ` namespaces="` + namespace + `" ` + key,
		Principals:  principals,
		Namespaces:  []string{namespace},
		PublicKey:   key,
		Fingerprint: ssh.FingerprintSHA256(public),
	}
}

// checkPrincipal says what makes s no principal that stands for itself in an
// allowed signers file: that has patterns, lists, quotes and comments there.
func checkPrincipal(s string) error {
	switch {
	case s == "":
		return errors.New("a principal is empty")
	case len(s) > maxPrincipal:
		return fmt.Errorf("a principal of %d bytes is longer than %d", len(s), maxPrincipal)
	case strings.Contains(s, " ") || !utf8.ValidString(s) || safetext.Line(s, len(s)) != s:
		return fmt.Errorf("the principal %q has spaces or characters that do not show", s)
	case strings.ContainsAny(s, `"*?,`) || strings.ContainsAny(s[:1], "!#"):
		return fmt.Errorf("the principal %q has a meaning as a pattern, a list, a quotation or a comment", s)
	}
	return nil
}

func checkPrincipals(list []string) error {
	if len(list) > maxPrincipals {
		return &cli.UsageError{Problem: fmt.Sprintf("--principal: %d are more than %d", len(list), maxPrincipals), Hint: "leave some out"}
	}
	for _, p := range list {
		if err := checkPrincipal(p); err != nil {
			return &cli.UsageError{Problem: "--principal: " + err.Error(), Hint: "write it as git's user.email is, once for each: --principal me@example.org"}
		}
	}
	return nil
}

// gitEmail gives git's user.email, as it holds in this directory. The error goes
// on after "and".
func gitEmail(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, gitTimeout)
	defer cancel()
	c := exec.CommandContext(ctx, "git", "config", "--get", "user.email")
	c.WaitDelay = gitTimeout // something that git has started may keep its output open
	out, err := c.Output()
	exit, ended := errors.AsType[*exec.ExitError](err)
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return "", errors.New("git is not installed")
	case ctx.Err() != nil:
		return "", fmt.Errorf("git does not tell its user.email: %w", ctx.Err())
	case ended && exit.ExitCode() == 1 || err == nil && strings.TrimSpace(string(out)) == "": // git-config(1)
		return "", errors.New("git's user.email is not set")
	case ended:
		first, _, _ := strings.Cut(string(exit.Stderr), "\n")
		return "", fmt.Errorf("git does not tell its user.email: %s", strings.TrimPrefix(first, "fatal: "))
	case err != nil:
		return "", fmt.Errorf("git does not tell its user.email: %w", err)
	}
	return strings.TrimSuffix(string(out), "\n"), nil
}
