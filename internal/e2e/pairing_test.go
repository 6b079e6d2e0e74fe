// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"vmux.app/toolkit/internal/envelope"
	"vmux.app/toolkit/internal/pairing"
	"vmux.app/toolkit/internal/ptytest"
	"vmux.app/toolkit/internal/transport"
)

// console is a command at a terminal of its own: standard input, output and
// error.
type console struct {
	*ptytest.Terminal
	t    testing.TB
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

func (h *host) console(name string, args ...string) *console {
	h.t.Helper()
	c := &console{Terminal: ptytest.Open(h.t), t: h.t, name: name, cmd: h.cmd(context.Background(), name, args...), done: make(chan struct{})}
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = c.TTY, c.TTY, c.TTY
	if c.cmd.SysProcAttr == nil {
		c.cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	c.cmd.SysProcAttr.Setsid, c.cmd.SysProcAttr.Setctty = true, true
	if err := h.start(c.cmd); err != nil {
		h.t.Fatalf("%s: %v", name, err)
	}
	go func() {
		c.cmd.Wait()
		close(c.done)
	}()
	h.t.Cleanup(func() {
		c.cmd.Process.Kill()
		<-c.done
	})
	return c
}

// ended waits for the end and gives the exit status.
func (c *console) ended() int {
	c.t.Helper()
	select {
	case <-c.done:
	case <-time.After(patience):
		c.t.Fatalf("%s has not ended after %v", c.name, patience)
	}
	return c.cmd.ProcessState.ExitCode()
}

// fails expects the two lines of an error, and the exit status.
func (c *console) fails(exit int, problem, hint string) {
	c.t.Helper()
	c.Expect("error: ")
	if line := c.Expect("\n"); !strings.Contains(line, problem) {
		c.t.Errorf("%s: error %q, not %q", c.name, line, problem)
	}
	c.Expect("hint: ")
	if line := c.Expect("\n"); !strings.Contains(line, hint) {
		c.t.Errorf("%s: hint %q, not %q", c.name, line, hint)
	}
	if got := c.ended(); got != exit {
		c.t.Errorf("%s: exit %d, not %d", c.name, got, exit)
	}
}

// typing is how often to type for a question that takes nothing for a moment after
// it has appeared, and then not before nothing is typed for as long.
const typing = 500 * time.Millisecond

// replies types until the question takes it.
func (c *console) replies(typed, shown string) {
	c.t.Helper()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(typing)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				c.Type(typed)
			}
		}
	}()
	defer func() {
		close(stop)
		<-stopped
	}()
	c.Expect(shown)
}

// window opens a pairing window at a terminal.
func (p *phone) window(args ...string) *console {
	p.t.Helper()
	c := p.console("vmux-signer", append([]string{"pair"}, args...)...)
	c.Expect("the pairing window is open: run vmux-pair on the device")
	return c
}

var codeShown = regexp.MustCompile(`The device (.*) wants to pair\.\r\n(?s:.*)    ([0-9]{3}) ([0-9]{3})\r\n`)

// asks waits for the phone's question and gives the device's name and the
// digits.
func (c *console) asks() (device, code string) {
	c.t.Helper()
	text := c.Expect("Accept? [y/N]")
	m := codeShown.FindStringSubmatch(text)
	if m == nil {
		c.t.Fatalf("%s shows %q", c.name, text)
	}
	return m[1], m[2] + m[3]
}

// wrong gives other digits.
func wrong(code string) string {
	return string((code[0]-'0'+1)%10+'0') + code[1:]
}

func newDevice(t testing.TB, name string) *host {
	t.Helper()
	d := newHost(t)
	d.setenv("VMUX_NAME", name)
	return d
}

// listed is what vmux-pair --list --json prints of a phone.
type listed struct {
	Name       string `json:"name"`
	Pin        string `json:"pin"`
	Address    string `json:"address"`
	PairedAt   string `json:"pairedAt"`
	CAKey      string `json:"caKey"`
	CachedKeys []struct {
		Algorithm   string `json:"algorithm"`
		PublicKey   string `json:"publicKey"`
		Fingerprint string `json:"fingerprint"`
		Comment     string `json:"comment"`
	} `json:"cachedKeys"`
}

func (h *host) phones() []listed {
	h.t.Helper()
	var o struct {
		Phones []listed `json:"phones"`
	}
	out := h.ok("vmux-pair", "--list", "--json")
	if err := json.Unmarshal([]byte(out), &o); err != nil || strings.Count(out, "\n") != 1 || o.Phones == nil {
		h.t.Fatalf("--list --json: %v: %s", err, out)
	}
	return o.Phones
}

// devices are the names and pins that the phone knows.
func (p *phone) devices() map[string]string {
	p.t.Helper()
	var o struct {
		Devices []struct {
			Name string `json:"name"`
			Pin  string `json:"pin"`
		} `json:"devices"`
	}
	out := p.ok("vmux-signer", "devices", "--json")
	if err := json.Unmarshal([]byte(out), &o); err != nil || o.Devices == nil {
		p.t.Fatalf("devices --json: %v: %s", err, out)
	}
	known := map[string]string{}
	for _, d := range o.Devices {
		known[d.Name] = d.Pin
	}
	if len(known) != len(o.Devices) {
		p.t.Errorf("two devices of one name: %s", out)
	}
	return known
}

// tree gives the content of every file below a directory by its path; sockets
// and pipes have none.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasPrefix(d.Name(), "audit.") { // which says what was refused
			return err
		}
		content := d.Type().String()
		if d.Type().IsRegular() {
			b, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				return nil // a temporary file of a process that runs
			}
			if err != nil {
				return err
			}
			content = string(b)
		}
		name, err := filepath.Rel(dir, path)
		files[name] = content
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// same reports what differs between two trees.
func same(t testing.TB, before, after map[string]string) {
	t.Helper()
	for name, content := range before {
		if now, ok := after[name]; !ok {
			t.Errorf("%s is gone", name)
		} else if now != content {
			t.Errorf("%s has changed from %q to %q", name, content, now)
		}
	}
	for name, content := range after {
		if _, ok := before[name]; !ok {
			t.Errorf("%s is new: %q", name, content)
		}
	}
}

// raw is an end of the link that is no command: it can say what it likes.
type raw struct {
	t  testing.TB
	id *transport.Identity
}

func newRaw(t testing.TB) *raw {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := transport.NewIdentity(key)
	if err != nil {
		t.Fatal(err)
	}
	return &raw{t, id}
}

func (r *raw) dial(ctx context.Context, address, proto string) (*transport.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return transport.Client(ctx, c, r.id, proto, func(transport.Pin) error { return nil })
}

// offer asks for a pairing window.
func (r *raw) offer(ctx context.Context, p *phone) (*transport.Conn, error) {
	c, err := r.dial(ctx, p.address, transport.ProtoPair)
	if err != nil {
		return nil, err
	}
	_, err = pairing.Offer(ctx, c)
	return c, err
}

// pair pairs by the digits that code gives, or by the secret.
func (r *raw) pair(ctx context.Context, p *phone, name string, secret []byte, code func(context.Context) string) error {
	c, err := r.offer(ctx, p)
	if err != nil {
		return err
	}
	_, err = pairing.Device(ctx, c, r.id.Pin(), pairing.DeviceOptions{Name: name, Secret: secret,
		Code: func(ctx context.Context, _ string) (string, error) { return code(ctx), nil }})
	return err
}

// closed makes sure that no window is open.
func (p *phone) closed() {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := newRaw(p.t).offer(ctx, p); !errors.Is(err, pairing.ErrNoWindow) {
		p.t.Errorf("the pairing window is not closed: %v", err)
	}
}

const digitsPrompt = "the 6 digits that Pocket shows: "

// Six digits, on terminals at both ends, in either order of the two people.
func TestPairByDigits(t *testing.T) {
	t.Parallel()
	for _, ownerFirst := range []bool{false, true} {
		t.Run(map[bool]string{false: "device first", true: "owner first"}[ownerFirst], func(t *testing.T) {
			t.Parallel()
			p, d := newPhone(t), newDevice(t, "laptop")
			p.serve("--approve", "always")
			d.agent()
			owner := p.window()
			user := d.console("vmux-pair", "--address", p.address)
			name, code := owner.asks()
			if name != "laptop" {
				t.Errorf("the phone names the device %q", name)
			}
			user.Expect(digitsPrompt)
			if ownerFirst {
				owner.replies("y\n", "approved")
				owner.Expect("waiting for the digits to be typed on the device")
			}
			// What is not six digits does not use the window up.
			for _, slip := range []string{"12345\n", "1234567\n", "12345x\n", "\n", "١٢٣٤٥٦\n"} {
				user.Type(slip)
				user.Expect("that is not 6 digits")
				user.Expect(digitsPrompt)
			}
			user.Type(code[:3] + " " + code[3:] + "\n")
			if !ownerFirst {
				owner.replies("y\n", "approved")
			}
			user.Expect("paired with Pocket, which holds 1 key")
			owner.Expect("paired with laptop")
			if a, b := user.ended(), owner.ended(); a != 0 || b != 0 {
				t.Errorf("vmux-pair: exit %d, vmux-signer pair: exit %d", a, b)
			}
			known := d.phones()
			if len(known) != 1 || known[0].Name != "Pocket" || len(known[0].CachedKeys) != 1 || known[0].CAKey == "" {
				t.Errorf("the device knows %+v", known)
			}
			if devices := p.devices(); len(devices) != 1 || devices["laptop"] == "" {
				t.Errorf("the phone knows %v", devices)
			}
			if out := d.ok("ssh-add", "-l"); !strings.Contains(out, known[0].CachedKeys[0].Fingerprint) {
				t.Errorf("the running agent lists %s", out)
			}
			p.closed()
		})
	}
}

// Every way in which a pairing by digits can fail leaves nothing on either
// side, and no window.
func TestPairByDigitsFails(t *testing.T) {
	t.Parallel()
	const (
		again = "vmux-signer pair"
	)
	for _, c := range []struct {
		name string
		act  func(owner, user *console, code string)
	}{
		{"wrong digits", func(owner, user *console, code string) {
			user.Type(wrong(code) + "\n")
			user.fails(1, "the digits are not the ones that the phone shows", "vmux-pair")
			owner.Expect("withdrawn")
			owner.fails(1, "refused", again)
		}},
		{"wrong digits after the owner has accepted", func(owner, user *console, code string) {
			owner.replies("y\n", "approved")
			user.Type(wrong(code) + "\n")
			user.fails(1, "the digits are not the ones that the phone shows", "vmux-pair")
			owner.fails(1, "refused", again)
		}},
		{"declined", func(owner, user *console, code string) {
			user.Type(code + "\n")
			owner.replies("n\n", "denied")
			user.fails(5, "the pairing was declined", "vmux-pair")
			owner.fails(5, "the pairing was declined", again)
		}},
		{"declined before the digits", func(owner, user *console, code string) {
			owner.replies("\n", "denied")
			user.fails(5, "the pairing was declined", "vmux-pair")
			owner.fails(5, "the pairing was declined", again)
		}},
		{"Ctrl-C at the digits", func(owner, user *console, code string) {
			user.Type("\x03")
			user.fails(130, "interrupted", "")
			owner.Expect("withdrawn")
			owner.fails(1, "the other end stopped", again)
		}},
		{"Ctrl-C while the owner decides", func(owner, user *console, code string) {
			user.Type(code + "\n")
			user.Expect("\n")
			user.Type("\x03")
			user.fails(130, "interrupted", "")
			owner.Expect("withdrawn")
			owner.fails(1, "", again)
		}},
		{"Ctrl-D at the digits", func(owner, user *console, code string) {
			user.Type("\x04")
			user.fails(1, "no answer was typed", "Enter")
			owner.Expect("withdrawn")
			owner.fails(1, "", again)
		}},
		{"Ctrl-C at the phone", func(owner, user *console, code string) {
			owner.Type("\x03")
			owner.fails(130, "interrupted", "")
			user.fails(1, "the other end stopped", "")
		}},
		{"Ctrl-C at the phone after the digits", func(owner, user *console, code string) {
			user.Type(code + "\n")
			user.Expect("\n")
			owner.Type("\x03")
			owner.fails(130, "interrupted", "")
			user.fails(1, "the other end stopped", "")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p, d := newPhone(t), newDevice(t, "laptop")
			p.serve("--approve", "always")
			owner := p.window()
			user := d.console("vmux-pair", "--address", p.address)
			user.Expect(digitsPrompt)
			_, code := owner.asks()
			before, state := tree(t, p.homeDir()), tree(t, d.path(".local"))
			c.act(owner, user, code)
			same(t, before, tree(t, p.homeDir()))
			same(t, state, tree(t, d.path(".local")))
			if known := d.phones(); len(known) != 0 {
				t.Errorf("the device knows %+v", known)
			}
			if devices := p.devices(); len(devices) != 0 {
				t.Errorf("the phone knows %v", devices)
			}
			p.closed()
		})
	}
}

// Ctrl-C while nobody is there yet ends either side, and the window.
func TestPairInterruptedBeforeAnybodyCame(t *testing.T) {
	t.Parallel()
	p, d := newPhone(t), newDevice(t, "laptop")
	p.serve("--approve", "always")
	user := d.console("vmux-pair", "--address", p.address)
	user.Expect("waiting for a phone with Pair open")
	user.Type("\x03")
	user.fails(130, "interrupted", "")
	owner := p.window()
	owner.Expect("waiting for the device")
	owner.Type("\x03")
	owner.fails(130, "interrupted", "")
	eventually(t, "the window to close", func() bool {
		c, err := newRaw(t).offer(t.Context(), p)
		if err == nil {
			c.Close()
		}
		return errors.Is(err, pairing.ErrNoWindow)
	})
	if len(d.phones()) != 0 || len(p.devices()) != 0 {
		t.Error("somebody is paired")
	}
}

// A window is for one device: whoever comes second gets nothing, and does not
// disturb the first.
func TestPairWindowIsForOne(t *testing.T) {
	t.Parallel()
	p, d, second := newPhone(t), newDevice(t, "laptop"), newDevice(t, "second")
	p.serve("--approve", "always")
	owner := p.window()
	user := d.console("vmux-pair", "--address", p.address)
	user.Expect(digitsPrompt)
	_, code := owner.asks()
	late := second.console("vmux-pair", "--address", p.address, "--timeout", "1s")
	late.fails(6, "no phone with an open pairing window was found in time", "vmux-signer pair")
	p.closed()
	user.Type(code + "\n")
	owner.replies("y\n", "approved")
	if a, b := user.ended(), owner.ended(); a != 0 || b != 0 {
		t.Errorf("vmux-pair: exit %d, vmux-signer pair: exit %d", a, b)
	}
	if devices := p.devices(); len(devices) != 1 || devices["laptop"] == "" {
		t.Errorf("the phone knows %v", devices)
	}
	if len(second.phones()) != 0 {
		t.Error("the second device is paired")
	}
}

// Of two windows at once the second is refused.
func TestPairSecondWindow(t *testing.T) {
	t.Parallel()
	p, d := newPhone(t), newDevice(t, "laptop")
	p.serve("--approve", "always")
	owner := p.window()
	p.console("vmux-signer", "pair").fails(1, "a pairing window is open already", "vmux-signer pair")
	user := d.console("vmux-pair", "--address", p.address, "--phone", "pocket")
	_, code := owner.asks()
	user.Expect(digitsPrompt)
	user.Type(code + "\n")
	owner.replies("y\n", "approved")
	if a, b := user.ended(), owner.ended(); a != 0 || b != 0 {
		t.Errorf("vmux-pair: exit %d, vmux-signer pair: exit %d", a, b)
	}
}

// --phone leaves other phones alone.
func TestPairAnotherPhone(t *testing.T) {
	t.Parallel()
	p, d := newPhone(t), newDevice(t, "laptop")
	p.serve("--approve", "always")
	owner := p.window()
	user := d.console("vmux-pair", "--address", p.address, "--phone", "Other", "--timeout", "1s")
	user.fails(4, "no phone with an open pairing window was found", "vmux-pair --address")
	owner.Type("\x03")
	owner.fails(130, "interrupted", "")
}

// A window that nobody used closes by itself.
func TestPairWindowExpires(t *testing.T) {
	t.Parallel()
	p := newPhone(t)
	p.serve("--approve", "always")
	p.window("--timeout", "1s").fails(6, "the pairing window closed before a device was paired", "vmux-signer pair")
	p.closed()
}

// A question that nobody answers ends with the window.
func TestPairQuestionExpires(t *testing.T) {
	t.Parallel()
	p, d := newPhone(t), newDevice(t, "laptop")
	p.serve("--approve", "always")
	user := d.console("vmux-pair", "--address", p.address)
	owner := p.window("--timeout", "2s")
	owner.asks()
	user.Expect(digitsPrompt)
	owner.fails(6, "the pairing window closed before a device was paired", "vmux-signer pair")
	user.fails(6, "the pairing was not finished in time", "try again")
	if len(d.phones()) != 0 || len(p.devices()) != 0 {
		t.Error("somebody is paired")
	}
}

// A device that gives up is a question withdrawn.
func TestPairDeviceGivesUp(t *testing.T) {
	t.Parallel()
	p, d := newPhone(t), newDevice(t, "laptop")
	p.serve("--approve", "always")
	owner := p.window()
	user := d.console("vmux-pair", "--address", p.address, "--timeout", "2s")
	user.Expect(digitsPrompt)
	owner.asks()
	user.fails(6, "the pairing was not finished in time", "try again")
	owner.Expect("withdrawn")
	owner.fails(6, "the pairing window closed before a device was paired", "vmux-signer pair")
	if len(d.phones()) != 0 || len(p.devices()) != 0 {
		t.Error("somebody is paired")
	}
}

// A URL is good once, for the run of vmux-pair that made it.
func TestPairUsedURL(t *testing.T) {
	t.Parallel()
	p, d := newPhone(t), newDevice(t, "laptop")
	p.serve("--approve", "always")
	first := d.spawn("vmux-pair", "--url", "--address", p.address)
	used := first.wait(`^vmux-pair://\S+`)[0]
	p.ok("vmux-signer", "pair", used)
	if exit := first.ended(); exit != 0 {
		t.Fatalf("vmux-pair: exit %d\n%s", exit, first.output())
	}
	known, devices := d.phones(), p.devices()

	second := d.spawn("vmux-pair", "--url", "--address", p.address)
	fresh := second.wait(`^vmux-pair://\S+`)[0]
	if fresh == used {
		t.Fatal("the same URL again")
	}
	r := p.run("vmux-signer", "pair", used)
	if r.exit != 1 || !strings.Contains(r.stderr, "error: this pairing URL was used before") || !strings.Contains(r.stderr, "hint: make a new one on the device: vmux-pair --url") {
		t.Errorf("used URL: %v", r)
	}
	if now := d.phones(); fmt.Sprint(now) != fmt.Sprint(known) {
		t.Errorf("the device knows %+v", now)
	}
	if now := p.devices(); fmt.Sprint(now) != fmt.Sprint(devices) {
		t.Errorf("the phone knows %+v", now)
	}
	// A wrong one costs the right one nothing.
	p.ok("vmux-signer", "pair", fresh)
	if exit := second.ended(); exit != 0 {
		t.Errorf("vmux-pair: exit %d\n%s", exit, second.output())
	}
}

// A pipe takes the URL from one command to the other, and no list of processes
// has it.
func TestPairURLByPipe(t *testing.T) {
	t.Parallel()
	p, d := newPhone(t), newDevice(t, "laptop")
	p.serve("--approve", "always")
	first := d.spawn("vmux-pair", "--url", "--address", p.address)
	url := first.wait(`^vmux-pair://\S+`)[0]
	if r := p.runInput(url+"\n", "vmux-signer", "pair", "-"); r.exit != 0 || !strings.Contains(r.stderr, "paired with laptop") {
		t.Errorf("vmux-signer pair -: %v", r)
	}
	if exit := first.ended(); exit != 0 {
		t.Errorf("vmux-pair: exit %d\n%s", exit, first.output())
	}
	// At a terminal it is asked for.
	second := d.spawn("vmux-pair", "--url", "--address", p.address)
	url = second.wait(`^vmux-pair://\S+`)[0]
	owner := p.console("vmux-signer", "pair", "-")
	owner.Expect("the URL that vmux-pair --url prints: ")
	owner.Type(url + "\n")
	owner.Expect("paired with laptop")
	if a, b := second.ended(), owner.ended(); a != 0 || b != 0 {
		t.Errorf("vmux-pair: exit %d, vmux-signer pair: exit %d", a, b)
	}
	// Nothing is opened for nothing.
	if r := p.runInput("", "vmux-signer", "pair", "-"); r.exit != 2 || !strings.Contains(r.stderr, "error: not a pairing URL: it is empty") {
		t.Errorf("vmux-signer pair - of nothing: %v", r)
	}
}

// The owner is told that the name is that of another device.
func TestPairNameIsTaken(t *testing.T) {
	t.Parallel()
	p, d, double := newPhone(t), newDevice(t, "laptop"), newDevice(t, "laptop")
	p.serve("--approve", "always")
	pair(t, d, p)
	owner := p.window()
	user := double.console("vmux-pair", "--address", p.address)
	text := owner.Expect("Accept? [y/N]")
	if !strings.Contains(text, "Another device called laptop is paired already. This one would be laptop-2.\r\n") {
		t.Errorf("the phone asks %q", text)
	}
	m := codeShown.FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("the phone asks %q", text)
	}
	user.Expect(digitsPrompt)
	user.Type(m[2] + m[3] + "\n")
	owner.replies("y\n", "approved")
	owner.Expect("paired with laptop-2")
	if a, b := user.ended(), owner.ended(); a != 0 || b != 0 {
		t.Errorf("vmux-pair: exit %d, vmux-signer pair: exit %d", a, b)
	}
}

func TestPairExpiredURL(t *testing.T) {
	t.Parallel()
	p, d := newPhone(t), newDevice(t, "laptop")
	p.serve("--approve", "always")
	r := d.run("vmux-pair", "--url", "--address", p.address, "--timeout", "1s")
	url := strings.TrimSpace(r.stdout)
	if r.exit != 6 || !strings.HasPrefix(url, "vmux-pair://1/") ||
		!strings.Contains(r.stderr, "error: no phone took the URL in time") || !strings.Contains(r.stderr, "hint: give the URL to the phone") {
		t.Errorf("vmux-pair: %v", r)
	}
	r = p.run("vmux-signer", "pair", url, "--timeout", "1s")
	if r.exit != 6 || !strings.Contains(r.stderr, "error: the pairing window closed before a device was paired: the URL was used, has expired, or vmux-pair no longer waits for it") ||
		!strings.Contains(r.stderr, "hint: make a new URL on the device") {
		t.Errorf("vmux-signer pair: %v", r)
	}
	if len(d.phones()) != 0 || len(p.devices()) != 0 {
		t.Error("somebody is paired")
	}
	p.closed()
}

// With a URL the window is for its device alone.
func TestPairURLIsForItsDevice(t *testing.T) {
	t.Parallel()
	p, d, other := newPhone(t), newDevice(t, "laptop"), newDevice(t, "other")
	p.serve("--approve", "always", "--log-level", "debug")
	url := strings.TrimSpace(d.run("vmux-pair", "--url", "--address", p.address, "--timeout", "1s").stdout)
	intruder := other.spawn("vmux-pair", "--url", "--address", p.address)
	intruder.wait(`^vmux-pair://`)
	p.serving.wait(`pairing refused, no window is open for it`)
	r := p.run("vmux-signer", "pair", url, "--timeout", "1s")
	if r.exit != 6 {
		t.Errorf("vmux-signer pair: %v", r)
	}
	if len(p.devices()) != 0 || len(other.phones()) != 0 {
		t.Error("another device was paired")
	}
}

// A device that waits with a URL does not disturb who pairs by digits, and goes
// on waiting for its URL to be used.
func TestPairMethodsDiffer(t *testing.T) {
	t.Parallel()
	p, d, other := newPhone(t), newDevice(t, "laptop"), newDevice(t, "other")
	p.serve("--approve", "always")
	byURL := d.spawn("vmux-pair", "--url", "--address", p.address)
	url := byURL.wait(`^vmux-pair://\S+`)[0]
	owner := p.window()
	user := other.console("vmux-pair", "--address", p.address)
	name, code := owner.asks()
	if name != "other" {
		t.Errorf("the phone names %q", name)
	}
	user.Expect(digitsPrompt)
	user.Type(code + "\n")
	owner.replies("y\n", "approved")
	if a, b := user.ended(), owner.ended(); a != 0 || b != 0 {
		t.Errorf("vmux-pair: exit %d, vmux-signer pair: exit %d", a, b)
	}
	p.ok("vmux-signer", "pair", url)
	if exit := byURL.ended(); exit != 0 {
		t.Errorf("vmux-pair: exit %d\n%s", exit, byURL.output())
	}
	if devices := p.devices(); len(devices) != 2 {
		t.Errorf("the phone knows %v", devices)
	}
}

func TestPairQR(t *testing.T) {
	t.Parallel()
	p, d := newPhone(t), newDevice(t, "laptop")
	p.serve("--approve", "always")
	pairing := d.spawn("vmux-pair", "--qr", "--address", p.address)
	url := pairing.wait(`^vmux-pair://\S+`)[0]
	text, err := readQR(qrModules(pairing.output()))
	if err != nil || text != url {
		t.Errorf("the picture says %q (%v), not %q:\n%s", text, err, url, pairing.output())
	}
	p.ok("vmux-signer", "pair", text)
	if exit := pairing.ended(); exit != 0 {
		t.Errorf("vmux-pair: exit %d\n%s", exit, pairing.output())
	}
}

// qrModules reads a picture of half blocks, two rows of modules in a line of
// text. Black is what is not drawn: the picture is for light on dark.
func qrModules(out string) [][]bool {
	var rows [][]bool
	for _, line := range strings.Split(out, "\n") {
		if line == "" || strings.Trim(line, "█▀▄ ") != "" {
			continue
		}
		var upper, lower []bool
		for _, r := range line {
			upper = append(upper, r == ' ' || r == '▄')
			lower = append(lower, r == ' ' || r == '▀')
		}
		rows = append(rows, upper, lower)
	}
	return rows
}

// readQR decodes a QR code of up to version 5, level L, in byte mode (ISO/IEC
// 18004), which is what a URL with a short name takes. It corrects nothing: the
// picture must be perfect.
func readQR(rows [][]bool) (string, error) {
	const quiet = 4
	size := 0
	if len(rows) > quiet {
		size = len(rows[0]) - 2*quiet
	}
	version := (size - 17) / 4
	if size < 21 || size%4 != 1 || version > 5 || len(rows) < size+2*quiet {
		return "", fmt.Errorf("%d rows", len(rows))
	}
	for y := range quiet {
		for x, black := range rows[y] {
			if black || rows[size+quiet+y][x] {
				return "", errors.New("the quiet zone is not quiet")
			}
		}
	}
	at := func(x, y int) bool { return rows[y+quiet][x+quiet] }
	for _, corner := range [][2]int{{0, 0}, {size - 7, 0}, {0, size - 7}} { // what cameras look for
		for y := range 7 {
			for x := range 7 {
				if ring := max(abs(x-3), abs(y-3)); at(corner[0]+x, corner[1]+y) != (ring != 2) {
					return "", errors.New("no finder pattern")
				}
			}
		}
	}
	fixed := func(x, y int) bool {
		finder := x < 9 && y < 9 || x >= size-8 && y < 9 || x < 9 && y >= size-8
		align := version > 1 && abs(x-(size-7)) <= 2 && abs(y-(size-7)) <= 2
		return finder || align || x == 6 || y == 6
	}
	bits := func(n int, next func(i int) bool) (v int) {
		for i := range n {
			if next(i) {
				v |= 1 << i
			}
		}
		return v
	}
	format := bits(15, func(i int) bool {
		switch {
		case i < 6:
			return at(8, i)
		case i < 8:
			return at(8, i+1)
		case i == 8:
			return at(7, 8)
		}
		return at(14-i, 8)
	}) ^ 0x5412
	if format>>13 != 1 {
		return "", fmt.Errorf("error correction level %d, not L", format>>13)
	}
	masked := func(x, y int) bool {
		switch format >> 10 & 7 {
		case 0:
			return (x+y)%2 == 0
		case 1:
			return y%2 == 0
		case 2:
			return x%3 == 0
		case 3:
			return (x+y)%3 == 0
		case 4:
			return (x/3+y/2)%2 == 0
		case 5:
			return x*y%2+x*y%3 == 0
		case 6:
			return (x*y%2+x*y%3)%2 == 0
		}
		return ((x+y)%2+x*y%3)%2 == 0
	}
	var stream []bool // up and down, in pairs of columns from the right
	up := true
	for right := size - 1; right >= 1; right -= 2 {
		if right == 6 {
			right = 5
		}
		for i := range size {
			y := i
			if up {
				y = size - 1 - i
			}
			for _, x := range []int{right, right - 1} {
				if !fixed(x, y) {
					stream = append(stream, at(x, y) != masked(x, y))
				}
			}
		}
		up = !up
	}
	read := func(n int) (v int) {
		for _, b := range stream[:n] {
			v <<= 1
			if b {
				v |= 1
			}
		}
		stream = stream[n:]
		return v
	}
	if mode := read(4); mode != 4 {
		return "", fmt.Errorf("mode %d, not bytes", mode)
	}
	text := make([]byte, read(8))
	if len(text)*8 > len(stream) {
		return "", fmt.Errorf("%d bytes are too long", len(text))
	}
	for i := range text {
		text[i] = byte(read(8))
	}
	return string(text), nil
}

func abs(n int) int { return max(n, -n) }

// What a picture that is not the right one would say.
func TestReadQRRefuses(t *testing.T) {
	t.Parallel()
	d := newDevice(t, "laptop")
	out := d.run("vmux-pair", "--qr", "--address", "127.0.0.1:1", "--timeout", "1s")
	url := strings.TrimSpace(out.stdout)
	rows := qrModules(out.stderr)
	if text, err := readQR(rows); err != nil || text != url {
		t.Fatalf("%q, %v", text, err)
	}
	for y := range rows { // inverted
		for x := range rows[y] {
			rows[y][x] = !rows[y][x]
		}
	}
	if text, err := readQR(rows); err == nil {
		t.Errorf("inverted: %q", text)
	}
}

// List and forget, with two phones of one name.
func TestListAndForget(t *testing.T) {
	t.Parallel()
	d := newDevice(t, "laptop")
	if r := d.run("vmux-pair", "--list"); r.exit != 0 || r.stdout != "" || !strings.Contains(r.stderr, "no phone is paired") {
		t.Errorf("--list of nothing: %v", r)
	}
	p, q := newPhone(t), newPhone(t)
	p.serve("--approve", "always")
	q.serve("--approve", "always")
	d.agent()
	pair(t, d, p)
	pair(t, d, q)
	known := d.phones()
	if len(known) != 2 || known[0].Pin == known[1].Pin {
		t.Fatalf("the device knows %+v", known)
	}
	for i, at := range []string{p.address, q.address} {
		if k := known[i]; k.Name != "Pocket" || k.Address != at || !strings.HasPrefix(k.Pin, "SHA256:") || k.PairedAt == "" ||
			!strings.HasPrefix(k.CAKey, "ecdsa-sha2-nistp256 ") || len(k.CachedKeys) != 1 ||
			k.CachedKeys[0].Algorithm != "ecdsa-sha2-nistp256" || k.CachedKeys[0].Comment != "default" {
			t.Errorf("listed: %+v", k)
		}
	}
	text := d.ok("vmux-pair", "--list")
	for _, k := range known {
		for _, want := range []string{k.Pin, k.Address, k.CachedKeys[0].Fingerprint} {
			if !strings.Contains(text, want) {
				t.Errorf("--list does not have %s:\n%s", want, text)
			}
		}
	}

	// The same phone again, at another address: one entry, the new one.
	p.serving.stop(syscall.SIGTERM)
	p.serve("--approve", "always")
	pair(t, d, p)
	now := d.phones()
	if len(now) != 2 || now[0].Pin != known[1].Pin || now[1].Pin != known[0].Pin || now[1].Address != p.address {
		t.Errorf("paired again: %+v", now)
	}
	if devices := p.devices(); len(devices) != 1 || devices["laptop"] == "" {
		t.Errorf("the phone knows %v", devices)
	}

	before := tree(t, d.path(".local"))
	if r := d.run("vmux-pair", "--forget", "Pocket"); r.exit != 1 || !strings.Contains(r.stderr, `error: 2 paired phones are called "Pocket"`) ||
		!strings.Contains(r.stderr, "hint: name it by its pin, as in: vmux-pair --forget SHA256:") {
		t.Errorf("--forget by a name of two: %v", r)
	}
	if r := d.run("vmux-pair", "--forget", "Nobody"); r.exit != 1 || !strings.Contains(r.stderr, `error: no paired phone is called "Nobody"`) ||
		!strings.Contains(r.stderr, "hint: see the names: vmux-pair --list") {
		t.Errorf("--forget by a wrong name: %v", r)
	}
	same(t, before, tree(t, d.path(".local")))
	if out := d.ok("vmux-pair", "--forget", known[0].Pin); out != "forgot Pocket\n" {
		t.Errorf("--forget by pin: %q", out)
	}
	if now := d.phones(); len(now) != 1 || now[0].Pin != known[1].Pin {
		t.Errorf("after --forget by pin: %+v", now)
	}
	if out := d.ok("vmux-pair", "--forget", "Pocket", "--json"); !strings.Contains(out, `"forgotten":{`) || !strings.Contains(out, known[1].Pin) {
		t.Errorf("--forget by name: %s", out)
	}
	if now := d.phones(); len(now) != 0 {
		t.Errorf("after --forget by name: %+v", now)
	}
	r := d.run("vmux-pair", "--forget", "Pocket")
	if r.exit != 7 || !strings.Contains(r.stderr, "error: no phone is paired") || !strings.Contains(r.stderr, "hint: ") {
		t.Errorf("--forget of nothing: %v", r)
	}
}

// hostile is a name that would do things to a terminal: colours, a new line
// that looks like ours, and text from right to left.
const hostile = "Po\x1b[31mck\u202eet\nerror: x\x07"

// A device's name is shown on the phone without what could move its cursor.
func TestPairHostileDeviceName(t *testing.T) {
	t.Parallel()
	p := newPhone(t)
	p.serve("--approve", "always")
	owner := p.window()
	r := newRaw(t)
	paired := make(chan error, 1)
	codes := make(chan string, 1)
	go func() {
		paired <- r.pair(t.Context(), p, hostile, nil, func(context.Context) string { return <-codes })
	}()
	name, code := owner.asks()
	if want := "Po[31mcketerror: x"; name != want {
		t.Errorf("the phone shows %q, not %q", name, want)
	}
	codes <- code
	owner.replies("y\n", "approved")
	if err := soon(t, "pairing", paired); err != nil {
		t.Error(err)
	}
	if text := owner.Expect("\n") + owner.Expect("\n"); !strings.Contains(text, "paired with Po[31mcketerror: x\r\n") {
		t.Errorf("the phone says %q", text)
	}
	if out := p.ok("vmux-signer", "devices"); strings.ContainsAny(out, "\x1b\a\u202e") || strings.Count(out, "\n") != 1 {
		t.Errorf("devices: %q", out)
	}
}

// The same for a phone's name on the device.
func TestPairHostilePhoneName(t *testing.T) {
	t.Parallel()
	d := newDevice(t, "laptop")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := newRaw(t)
	codes := make(chan string, 1)
	phone := make(chan error, 1)
	go func() {
		phone <- func() error {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			conn, err := transport.Server(t.Context(), c, r.id, func(string, transport.Pin) error { return nil })
			if err != nil {
				return err
			}
			_, paired := pairing.Phone(t.Context(), conn, r.id.Pin(), envelope.Hello{Name: hostile, Software: "test", Capabilities: []string{}, Clock: envelope.At(time.Now())},
				pairing.PhoneOptions{Name: hostile,
					Confirm: func(_ context.Context, _, code string) error { codes <- code; return nil },
					Store:   func(pairing.Peer) error { return nil }})
			if c, err = l.Accept(); err != nil { // for its keys, which are not to be had
				return err
			}
			defer c.Close()
			transport.Server(t.Context(), c, r.id, func(string, transport.Pin) error { return errors.New("no") })
			return paired
		}()
	}()
	user := d.console("vmux-pair", "--address", l.Addr().String())
	text := user.Expect(" shows: ")
	if want := "the 6 digits that Po[31mcketerror: x shows: "; !strings.HasSuffix(text, want) {
		t.Errorf("the device asks %q, not %q", text, want)
	}
	user.Type(soon(t, "digits", codes) + "\n")
	user.Expect("paired with Po[31mcketerror: x, which holds 0 keys")
	if err := soon(t, "end of the phone", phone); err != nil {
		t.Error(err)
	}
	if exit := user.ended(); exit != 0 {
		t.Errorf("vmux-pair: exit %d", exit)
	}
	if out := d.ok("vmux-pair", "--list"); strings.ContainsAny(out, "\x1b\a\u202e") || !strings.HasPrefix(out, "Po[31mcketerror: x\n") {
		t.Errorf("--list: %q", out)
	}
	if known := d.phones(); len(known) != 1 || known[0].Name != "Po[31mcketerror: x" {
		t.Errorf("--list --json: %+v", known)
	}
}
