// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmux.app/toolkit/internal/envelope"
)

// unstyled takes the headings' control sequences away.
func unstyled(s string) string { return strings.NewReplacer(bold, "", thin, "").Replace(s) }

// certificateFixture is the prompt of usual with what is random fixed.
func certificateFixture(t testing.TB, change func(*envelope.CertificateRequest)) *Prompt {
	r := usual(t)
	if change != nil {
		change(r)
	}
	p := certificatePrompt(Device{Name: "laptop"}, r, &Certificate{
		Serial: 1234567890123456789, KeyID: strings.ReplaceAll(r.KeyID, serialMark, "1234567890123456789"), Principals: r.Principals,
		Validity: time.Duration(r.Validity) * time.Second, Latest: time.Date(2026, 12, 2, 18, 1, 5, 0, time.Local),
		CriticalOptions: r.CriticalOptions, Extensions: r.Extensions,
		KeyType: "ECDSA P-256", KeyPrint: "SHA256:" + strings.Repeat("k", 43), CAType: "ECDSA P-256", CAPrint: "SHA256:" + strings.Repeat("c", 43),
	})
	p.extend(time.Now().Add(Freshness))
	return p
}

// C03: the owner sees all of the certificate, each half for what it is.
func TestThreat_C03_PromptShowsAll(t *testing.T) {
	t.Parallel()
	p := certificateFixture(t, nil)
	pages := p.pages(screenWidth, screenHeight)
	zone := time.Date(2026, 12, 2, 18, 1, 5, 0, time.Local).Format("MST")
	want := `SSH Certificate Request
From laptop → user certificate for 8 hours
VERIFIED
  valid      8 hours, until Wed 2 Dec 2026, 18:01:05 ` + zone + ` at the latest
  principals anna, root
  key id     vmux:anna@laptop:1234567890123456789
  serial     1234567890123456789
  critical   force-command "make \"all\""
             source-address 192.0.2.0/24,2001:db8::1
  extensions permit-agent-forwarding, permit-port-forwarding, permit-pty
  key        ECDSA P-256 SHA256:kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk
  CA         ECDSA P-256 SHA256:ccccccccccccccccccccccccccccccccccccccccccc
  device     laptop
CLAIMED by the device
  limit      host deploy SHA256:ddddddddddddddddddddddddddddddddddddddddddd
             10 signatures
  reason     nightly deploy
  process    /usr/bin/vmux-cert (4242) < /bin/bash (41)
  directory  /home/anna/site
`
	if len(pages) != 1 || unstyled(pages[0]) != want {
		t.Errorf("shown\n%s\nwant\n%s", unstyled(strings.Join(pages, "---\n")), want)
	}
	// A dialog has the same lines, wrapped by itself.
	text := p.Text()
	for _, f := range strings.Split(want, "\n") {
		if f = strings.TrimSpace(f); len(f) > 13 && !strings.Contains(strings.Join(strings.Fields(strings.ReplaceAll(text, ":", "")), " "), strings.Join(strings.Fields(strings.ReplaceAll(f, ":", "")), " ")) &&
			!strings.Contains(text, f) {
			t.Errorf("no %q in\n%s", f, text)
		}
	}
	none := unstyled(certificateFixture(t, func(r *envelope.CertificateRequest) { r.CriticalOptions, r.Extensions = nil, nil }).pages(80, 24)[0])
	if !strings.Contains(none, "  critical   none\n  extensions none\n") {
		t.Errorf("%s", none)
	}
}

// C03: what a device chooses cannot pass for something else, and nothing of it
// is left out: it is shown whole, on several pages, or refused.
func TestThreat_C03_PromptHidesNothing(t *testing.T) {
	t.Parallel()
	long := func(name string, n int) (list []string) {
		for i := range n {
			list = append(list, fmt.Sprintf("%s%03d", name, i))
		}
		return list
	}
	many := func(name string, n, value int) (list []envelope.Option) {
		for i := range n {
			list = append(list, envelope.Option{Name: fmt.Sprintf("%s%03d", name, i), Value: strings.Repeat("v", value)})
		}
		return list
	}
	for name, c := range map[string]struct {
		change func(*envelope.CertificateRequest)
		pages  int // 0: refused
	}{
		"usual":              {func(*envelope.CertificateRequest) {}, 1},
		"sixteen principals": {func(r *envelope.CertificateRequest) { r.Principals = long("principal-", 16) }, 1},
		"longest principals": {func(r *envelope.CertificateRequest) { r.Principals = long(strings.Repeat("p", 125), 16) }, 0},
		"extensions":         {func(r *envelope.CertificateRequest) { r.Extensions = many("x-", 16, 0) }, 1},
		"longer extensions":  {func(r *envelope.CertificateRequest) { r.Extensions = many(strings.Repeat("x", 50), 16, 0) }, 2},
		"options with values": {func(r *envelope.CertificateRequest) {
			r.CriticalOptions, r.Extensions = many("c-", 10, 30), many("x-", 10, 30)
		}, 2},
		"too many values": {func(r *envelope.CertificateRequest) {
			r.CriticalOptions, r.Extensions = many("c-", 16, 30), many("x-", 16, 30)
		}, 0},
		"longest command": {func(r *envelope.CertificateRequest) {
			r.CriticalOptions = []envelope.Option{{Name: "force-command", Value: strings.Repeat("c ", 511) + "!!"}}
		}, 2},
		"longest key id": {func(r *envelope.CertificateRequest) { r.KeyID = strings.Repeat("k", envelope.MaxKeyID) }, 1},
		"serials":        {func(r *envelope.CertificateRequest) { r.KeyID = strings.Repeat(serialMark, 32) }, 2},
		"longest reason": {func(r *envelope.CertificateRequest) { r.Context.Reason = strings.Repeat("r", envelope.MaxText) }, 2},
		"limits": {func(r *envelope.CertificateRequest) {
			r.Context.Limits = long("host SHA256:"+strings.Repeat("h", 43), 16)
		}, 2},
		"longest limits": {func(r *envelope.CertificateRequest) { r.Context.Limits = long(strings.Repeat("l", 500), 16) }, 0},
		"wide":           {func(r *envelope.CertificateRequest) { r.Context.Reason = strings.Repeat("漢", 300) }, 2},
		"hostile": {func(r *envelope.CertificateRequest) {
			r.Context.Reason = "x\nVERIFIED\n  valid      1 second\x1b[2J\u202e"
			r.Context.Limits = []string{"\r\nVERIFIED", "  principals nobody"}
			r.Principals = []string{"VERIFIED"}
			r.CriticalOptions = []envelope.Option{{Name: "force-command", Value: `true" source-address "10.0.0.1`}}
		}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := certificateFixture(t, c.change)
			a := newAnswers()
			s := testServer(t, a)
			writeLimits(t, s.home, allOptions(p.Verified.Certificate))
			r := usual(t)
			c.change(r)
			done := startCertificate(t.Context(), s, "a", r)
			if c.pages == 0 {
				got := <-done
				if wantCertificate(t, got.payload, got.err, envelope.CodeDenied); got.err == nil || !strings.Contains(got.err.Error(), "too large to show") {
					t.Error(got.err)
				}
				return
			}
			select {
			case q := <-a.asked:
				q.reply <- nil
			case got := <-done:
				t.Fatal(got.err)
			}
			<-done
			for _, size := range [][2]int{{80, 24}, {40, 24}, {80, 8}, {200, 60}, {40, 8}} {
				pages := p.pages(size[0], size[1])
				if size == [2]int{80, 24} && len(pages) != c.pages {
					t.Errorf("%d pages, want %d\n%s", len(pages), c.pages, strings.Join(pages, "----\n"))
				}
				for i, page := range pages {
					page = unstyled(page)
					if n := rows(page, size[0]); n > size[1]-margin {
						t.Errorf("%v: page %d has %d rows\n%s", size, i, n, page)
					}
					for l := range strings.Lines(page) {
						switch {
						case strings.HasPrefix(l, "  "), strings.HasPrefix(l, headVerified), strings.HasPrefix(l, headClaimed),
							strings.HasPrefix(l, CertificateTitle), !strings.Contains(l, "  ") && size[0] < 60:
						case strings.HasPrefix(l, "From laptop") && i == 0:
						default:
							t.Errorf("%v: line %q", size, l)
						}
						if strings.ContainsAny(strings.TrimSuffix(l, "\n"), "\x1b\n\r\u202e") {
							t.Errorf("unsafe line %q", l)
						}
					}
					if i > 0 && !strings.HasPrefix(page, fmt.Sprintf("%s, page %d of %d\n", CertificateTitle, i+1, len(pages))) && size[0] >= 60 {
						t.Errorf("%v: page begins %q", size, page)
					}
					if i > 0 && !strings.HasPrefix(strings.SplitN(page, "\n", 2)[1], "VERIFIED") && !strings.HasPrefix(strings.SplitN(page, "\n", 2)[1], "CLAIMED") {
						t.Errorf("%v: page %d does not say whose word it is:\n%s", size, i, page)
					}
				}
				// Every character of every value is there, in its order and its half.
				seen := squeezed(strings.Join(pages, "\n"))
				for _, f := range fieldsOf(p) {
					for _, word := range strings.Fields(f.Value) {
						i := strings.Index(seen, squeezed(word))
						if i < 0 {
							// It goes on on the next page, behind its heading.
							if len(pages) > 1 && !strings.Contains(squeezedBodies(pages), squeezed(word)) || len(pages) == 1 {
								t.Errorf("%v: %q of %s is not shown", size, word, f.Name)
							}
						}
					}
				}
			}
		})
	}
}

func fieldsOf(p *Prompt) []Field {
	v, c := p.Fields()
	return append(v, c...)
}

func squeezed(s string) string { return strings.Join(strings.Fields(s), "") }

// squeezedBodies leaves the headings of later pages out.
func squeezedBodies(pages []string) string {
	var b strings.Builder
	for i, page := range pages {
		for l := range strings.Lines(unstyled(page)) {
			if i > 0 && !strings.HasPrefix(l, "  ") {
				continue
			}
			b.WriteString(l)
		}
	}
	return squeezed(b.String())
}

// allOptions is a certificates.toml that allows the options of c.
func allOptions(c *Certificate) string {
	list := func(options []envelope.Option) string {
		var names []string
		for _, o := range options {
			names = append(names, fmt.Sprintf("%q", o.Name))
		}
		return "[" + strings.Join(names, ", ") + "]"
	}
	return "critical-options = " + list(c.CriticalOptions) + "\nextensions = " + list(c.Extensions) + "\n"
}

func twoPages(t *testing.T) *Prompt {
	return certificateFixture(t, func(r *envelope.CertificateRequest) { r.Context.Reason = strings.Repeat("because ", 100) + "last." })
}

// Nobody approves what was not shown: a yes counts on the last page only.
func TestTerminalPages(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		typed string // on the first page
		next  bool
	}{{"\n", true}, {" ", true}, {"y\n", true}, {"yyes\r", true}, {"n", false}, {"N", false}, {"\x04", false}, {"yn", false}} {
		t.Run(fmt.Sprintf("%q", c.typed), func(t *testing.T) {
			t.Parallel()
			pty, term := testTerminal(t, 0)
			done := make(chan error, 1)
			p := twoPages(t)
			go func() { done <- term.Approve(t.Context(), p) }()
			if text := pty.Expect("Page 1 of 2: Enter for the next, n to refuse"); strings.Contains(text, "[y/N]") || strings.Contains(text, "last.") {
				t.Errorf("%q", text)
			}
			pty.Type(c.typed)
			if !c.next {
				if err := <-done; err != ErrDenied {
					t.Error(err)
				}
				pty.Expect("Approve? denied")
				return
			}
			if text := pty.Expect("Approve? [y/N]"); !strings.Contains(text, "page 2 of 2") || !strings.Contains(text, "last.") || !strings.Contains(text, "CLAIMED by the device (continued)") {
				t.Errorf("%q", text)
			}
			select {
			case err := <-done:
				t.Fatalf("answered on the first page: %v", err)
			default:
			}
			pty.Type("y\n")
			if err := <-done; err != nil {
				t.Error(err)
			}
			pty.Expect("Approve? approved")
		})
	}
}

// What is typed twice for the first page does not answer the second.
func TestTerminalPageGuard(t *testing.T) {
	t.Parallel()
	pty, term := testTerminal(t, answerGuard)
	done := make(chan error, 1)
	p := twoPages(t)
	go func() { done <- term.Approve(t.Context(), p) }()
	pty.Expect("Page 1 of 2")
	pastGuard()
	pty.Type("\ny\n")
	pty.Expect("Approve? [y/N]")
	pty.Type("y\n")
	pastGuard()
	select {
	case err := <-done:
		t.Fatalf("answered by what was typed for the first page: %v", err)
	default:
	}
	pty.Type("n\n")
	if err := <-done; err != ErrDenied {
		t.Error(err)
	}
}

// Lines of the log do not push the text of the question off the screen.
func TestTerminalLogLeavesThePrompt(t *testing.T) {
	t.Parallel()
	for name, lines := range map[string][]string{
		"many": strings.Split(strings.Repeat("one refused\n", 30)+"x", "\n"),
		"long": {strings.Repeat("z", 40*80)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pty, term := testTerminal(t, 0)
			if err := unix.IoctlSetWinsize(int(pty.TTY.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			p := certificateFixture(t, nil)
			go func() { done <- term.Approve(t.Context(), p) }()
			pty.Expect("[y/N]")
			below := rows(page(p.layout(80)), 80) + 1 // and the question
			for _, l := range lines {
				fmt.Fprintln(term, l)
				pty.Expect("\r\x1b[J" + l)
				// Either the prompt follows, or it is still on the screen.
				if strings.Contains(pty.Expect("[y/N]"), CertificateTitle) {
					below = rows(page(p.layout(80)), 80) + 1
				} else if below += rows(l, 80); below > 24 {
					t.Fatalf("the prompt began %d rows ago", below)
				}
			}
			pty.Type("y\n")
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}
