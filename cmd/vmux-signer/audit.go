// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"vmux.app/toolkit/internal/audit"
	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/duration"
	"vmux.app/toolkit/internal/safetext"
)

func auditCommand() *cli.Command {
	return &cli.Command{
		Name: "audit", Usage: "show what was asked of the signer and what it did", Action: auditLog,
		Description: `Each record has the hash of the one before. Note the head that --verify prints somewhere else: with --head
you can see later that nothing before it was changed or removed.`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "verify", Usage: "check that the log is whole instead of showing it"},
			&cli.StringFlag{Name: "head", Usage: "with --verify, also find the head `HASH` of an earlier time"},
			&cli.StringFlag{Name: "since", Usage: "show what is not older than `DURATION`, as in 24h or 7d"},
		},
	}
}

func auditLog(c *cli.Context) error {
	var since time.Time
	if c.IsSet("since") {
		d, err := duration.Parse(c.String("since"))
		if err != nil {
			return &cli.UsageError{Problem: fmt.Sprintf("--since: %v", err), Hint: "write --since 24h, or 7d"}
		}
		since = time.Now().Add(-d)
	}
	verify, head := c.Bool("verify"), strings.ToLower(c.String("head"))
	sum, err := hex.DecodeString(head)
	switch {
	case verify && c.IsSet("since"):
		return &cli.UsageError{Problem: "--verify is for the whole log", Hint: "leave --since out"}
	case c.IsSet("head") && !verify:
		return &cli.UsageError{Problem: "--head is for --verify", Hint: "add --verify"}
	case c.IsSet("head") && (err != nil || len(sum) != 32):
		return &cli.UsageError{Problem: fmt.Sprintf("--head: %q is not 64 hexadecimal digits", head),
			Hint: "give the head as vmux-signer audit --verify has printed it"}
	}
	h, err := openHome(c)
	if err != nil {
		return err
	}
	if verify {
		return auditVerify(c, h.Dir(), head)
	}
	return auditShow(c, h.Dir(), since)
}

// auditShow prints the records.
func auditShow(c *cli.Context, dir string, since time.Time) error {
	t := cli.From(c)
	some := false
	for line, err := range audit.Lines(dir, since) {
		if broken, ok := errors.AsType[*audit.BrokenError](err); ok {
			t.Warnf("%v; see: vmux-signer audit --verify", broken)
			continue
		}
		if err == nil {
			err = c.Err()
		}
		if err != nil {
			return err
		}
		some = true
		t.Result(jsontext.Value(line.Text), func(w io.Writer) { fmt.Fprintln(w, recordLine(line.Record)) })
	}
	if !some && !t.JSON() {
		t.Notef("nothing is recorded")
	}
	return nil
}

// maxShown are the columns of one text of a record.
const maxShown = 200

// recordLine is a record for people. Texts in it are from outside: each is quoted where it could look like several.
func recordLine(r audit.Record) string {
	var b strings.Builder
	outcome := r.Outcome
	if outcome == "" {
		outcome = "-"
	}
	fmt.Fprintf(&b, "%s  %-9s  %-8s", r.Time.Local().Format(time.DateTime), shown(r.Event), shown(outcome))
	fingerprint, pin := r.Fingerprint, ""
	if r.Key != "" {
		fingerprint = "" // the label says which key it is
	}
	if r.Event == "pairing" {
		pin = r.Pin
	}
	for _, f := range []struct{ name, text string }{
		{"device", r.Device}, {"pin", pin}, {"operation", r.Operation}, {"user", r.User}, {"hostKey", r.HostKey},
		{"key", r.Key}, {"fingerprint", fingerprint}, {"serial", r.Serial}, {"keyId", r.KeyID}, {"reason", r.Reason},
	} {
		if f.text != "" {
			fmt.Fprintf(&b, "  %s=%s", f.name, shown(f.text))
		}
	}
	return strings.TrimRight(b.String(), " ")
}

func shown(s string) string {
	s = safetext.Line(s, maxShown)
	if strings.ContainsAny(s, ` "=`) {
		return `"` + strings.ReplaceAll(s, `"`, `\x22`) + `"`
	}
	return s
}

// auditVerify checks the chain. What it found before a break is not printed: nobody vouches for it.
func auditVerify(c *cli.Context, dir, head string) error {
	t := cli.From(c)
	var s audit.Summary
	var err error
	if head != "" {
		s, err = audit.VerifyHead(dir, head)
	} else {
		s, err = audit.Verify(dir)
	}
	if err != nil {
		if broken, ok := errors.AsType[*audit.BrokenError](err); ok {
			return fmt.Errorf("the audit log is not as it was written: %w", broken)
		}
		return err
	}
	if s.Deleted {
		t.Notef("the log begins after files that are not there any more")
	}
	if s.Recovered > 0 {
		t.Notef("lines that were cut off, and recovered from: %d", s.Recovered)
	}
	if s.CutOff {
		t.Notef("the last line was cut off; the next record will say so")
	}
	result := struct {
		Records   int       `json:"records"`
		Files     int       `json:"files"`
		First     time.Time `json:"first,omitzero"`
		Last      time.Time `json:"last,omitzero"`
		Head      string    `json:"head,omitzero"`
		Recovered int       `json:"recovered"`
		CutOff    bool      `json:"cutOff"`
		Deleted   bool      `json:"deleted"`
	}{s.Records, s.Files, s.First, s.Last, s.Head, s.Recovered, s.CutOff, s.Deleted}
	t.Result(result, func(w io.Writer) {
		if s.Records == 0 {
			fmt.Fprintln(w, "whole: no records")
			return
		}
		fmt.Fprintf(w, "whole: records %d, files %d, from %s to %s\nhead %s\n", s.Records, s.Files,
			s.First.Local().Format(time.DateTime), s.Last.Local().Format(time.DateTime), s.Head)
	})
	return nil
}
