// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"vmux.app/toolkit/internal/tpm/tpmtest"
)

// newTPMPhone is a phone whose keys are in a TPM, and whose owner gives the word in
// a file for each approval.
func newTPMPhone(t testing.TB, m *tpmtest.TPM) (p *phone, gives func(word string)) {
	t.Helper()
	m.LockAfter(32, time.Hour) // as chips have it; swtpm begins with 3
	p = &phone{host: newHost(t)}
	gives = func(word string) {
		t.Helper()
		p.write("word.new", word+"\n", 0o600)
		if err := os.Rename(p.path("word.new"), p.path("word")); err != nil {
			t.Fatal(err)
		}
	}
	gives("correct horse")
	p.setenv("VMUX_TPM", m.Path())
	p.setenv("SSH_ASKPASS", p.write("askpass", "#!/bin/sh\n[ -z \"$SSH_ASKPASS_PROMPT\" ] || exit 1\nprintf '%s\\n' \"$1\" >>"+p.path("shown")+"\nexec cat "+p.path("word")+"\n", 0o700))
	p.ok("vmux-signer", "init", "--name", "Pocket", "--provider", "tpm", "--passphrase-file", p.path("word"))
	return p, gives
}

// provider is what the device knows of where the phone's only key is.
func (h *host) provider() string {
	h.t.Helper()
	var o struct {
		Phones []struct {
			CachedKeys []struct {
				ProviderKind string `json:"providerKind"`
			} `json:"cachedKeys"`
		} `json:"phones"`
	}
	out := h.ok("vmux-pair", "--list", "--json")
	if err := json.Unmarshal([]byte(out), &o); err != nil || len(o.Phones) != 1 || len(o.Phones[0].CachedKeys) != 1 {
		h.t.Fatalf("%v: %s", err, out)
	}
	return o.Phones[0].CachedKeys[0].ProviderKind
}

// Logins by an identity in a TPM and by a certificate of an authority in it, with the
// TPM gone and back, and everything started again.
func TestThreat_T06_KeysInTPM(t *testing.T) {
	t.Parallel()
	m := tpmtest.Start(t)
	p, gives := newTPMPhone(t, m)
	p.limits("min-validity = \"5s\"\n")
	p.serve("--approve", "askpass")
	d := certDevice(t)
	pair(t, d, p)
	d.agent()
	if got := d.provider(); got != "hardwareToken" {
		t.Errorf("the device knows the provider %q", got)
	}
	s := newServer(t, d.ok("ssh-add", "-L"))
	s.trust(d.ok("vmux-cert", "ca"))
	identity := d.identity("key.pub", strings.TrimSpace(d.ok("ssh-add", "-L")))
	s.accepts(d, identity, "true")
	d.certify()
	certificate := d.identity("key-cert.pub", d.offered()[0])
	if _, log := s.accepts(d, certificate, "true"); !strings.Contains(log, "Accepted publickey") || !strings.Contains(log, "-CERT") {
		t.Errorf("not by certificate: %s", log)
	}
	shown, err := os.ReadFile(p.path("shown"))
	if err != nil || strings.Count(string(shown), "VERIFIED") != 2 {
		t.Errorf("prompts: %v\n%s", err, shown)
	}

	// Gone while it serves: the device hears what, and not where.
	m.Stop()
	s.refuses(d, identity, "Accepted key ") // and nothing came to prove it
	r := d.run("vmux-cert")
	if r.exit != 1 || !strings.Contains(r.stderr, "no usable TPM; the signer's log says more") || strings.Contains(r.stderr, m.Path()) || strings.Contains(r.stderr, p.home) {
		t.Errorf("vmux-cert without the TPM: %v", r)
	}
	p.serving.wait(`msg=request .*operation=login .*outcome=internal.* reason="no usable TPM: ` + m.Path() + ` does not exist" hint=".*VMUX_TPM`)
	d.serving.wait(`no usable TPM; the signer's log says more`)
	if strings.Contains(d.serving.output(), filepath.Dir(m.Path())) {
		t.Errorf("the device knows paths of the signer: %s", d.serving.output())
	}
	if out := p.ok("vmux-signer", "status", "--json"); !strings.Contains(out, `"failures":0`) {
		t.Errorf("counted as failed approvals: %s", out)
	}
	m.Restart()
	s.accepts(d, identity, "true")

	// A wrong passphrase is a failure, and the right one takes it back.
	gives("wrong")
	if r := d.run("vmux-cert"); r.exit != 5 || !strings.Contains(r.stderr, "locked") {
		t.Errorf("five wrong passphrases: %v", r)
	}
	gives("correct horse")
	p.ok("vmux-signer", "unlock", "--passphrase-file", p.path("word"))

	// After the restart of both.
	address := p.address
	if exit := p.serving.stop(syscall.SIGTERM); exit != 0 {
		t.Errorf("the signer ends with %d", exit)
	}
	m.Restart()
	p.serveOn(address, "--approve", "askpass", "--no-advertise")
	s.accepts(d, identity, "true")
	d.certify("--key-id", "after")
	if n := m.Loaded(); n != 0 {
		t.Errorf("%d things are left in the TPM", n)
	}
}
