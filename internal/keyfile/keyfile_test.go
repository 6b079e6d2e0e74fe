// SPDX-License-Identifier: BSD-3-Clause

package keyfile

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// keygen runs ssh-keygen and gives what it prints.
func keygen(t testing.TB, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath("ssh-keygen")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("no ssh-keygen")
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	return string(out), err
}

// made is a file that ssh-keygen has made, and its public line.
func made(t testing.TB, passphrase string, args ...string) (text []byte, public string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "k")
	if out, err := keygen(t, append([]string{"-q", "-C", "comment", "-N", passphrase, "-f", path}, args...)...); err != nil {
		t.Fatalf("ssh-keygen %q: %v\n%s", args, err, out)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := os.ReadFile(path + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	return text, string(pub)
}

// signs makes sure that k is the whole of public.
func signs(t testing.TB, k *Key, public ssh.PublicKey) {
	t.Helper()
	sig, err := k.Sign(rand.Reader, []byte("data"))
	if err == nil {
		err = public.Verify([]byte("data"), sig)
	}
	if err != nil {
		t.Errorf("a signature: %v", err)
	}
}

func TestKeysOfSSHKeygen(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		passphrase string
		args       []string
	}{
		{"", []string{"-t", "ecdsa"}},
		{"", []string{"-t", "ed25519"}},
		{"secret", []string{"-t", "ecdsa"}},
		{"secret", []string{"-t", "ed25519", "-a", "1"}},
		{"sécret with spaces ", []string{"-t", "ed25519", "-Z", "aes256-cbc"}},
	} {
		text, public := made(t, c.passphrase, c.args...)
		f, err := Parse(text)
		if err != nil {
			t.Errorf("%q: %v", c.args, err)
			continue
		}
		if got := string(ssh.MarshalAuthorizedKey(f.Public)); !strings.HasPrefix(public, strings.TrimSpace(got)) || f.Encrypted != (c.passphrase != "") {
			t.Errorf("%q: public half %s of %s, encrypted %v", c.args, got, public, f.Encrypted)
		}
		k, err := f.Open([]byte(c.passphrase))
		if err != nil {
			t.Errorf("%q: %v", c.args, err)
			continue
		}
		signs(t, k, f.Public)
		if !f.Encrypted {
			continue
		}
		for _, wrong := range [][]byte{nil, {}, []byte("secret\n"), []byte("Secret"), bytes.Repeat([]byte("x"), MaxPassphrase+1)} {
			if k, err := f.Open(wrong); !errors.Is(err, ErrPassphrase) || errors.Is(err, ErrDamaged) || k != nil {
				t.Errorf("%q with passphrase %.20q: %v, %v", c.args, wrong, k, err)
			}
		}
	}
}

func TestOtherKeysOfSSHKeygen(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		passphrase, want string
		args             []string
	}{
		{"", "type ssh-rsa", []string{"-t", "rsa", "-b", "2048"}},
		{"pw", "type ssh-rsa", []string{"-t", "rsa", "-b", "2048"}},
		{"", "type ecdsa-sha2-nistp384", []string{"-t", "ecdsa", "-b", "384"}},
		{"pw", "type ecdsa-sha2-nistp521", []string{"-t", "ecdsa", "-b", "521"}},
		{"pw", `"aes128-ctr"`, []string{"-t", "ed25519", "-Z", "aes128-ctr"}},
		{"pw", `"3des-cbc"`, []string{"-t", "ed25519", "-Z", "3des-cbc"}},
		// The tag follows the fields, as nothing else does.
		{"pw", "", []string{"-t", "ed25519", "-Z", "aes256-gcm@openssh.com"}},
		{"pw", "", []string{"-t", "ed25519", "-Z", "chacha20-poly1305@openssh.com"}},
		{"secret", "no OpenSSH private key", []string{"-t", "ecdsa", "-m", "PEM"}},
		{"", "no OpenSSH private key", []string{"-t", "ecdsa", "-m", "PKCS8"}},
	} {
		text, public := made(t, c.passphrase, c.args...)
		if _, err := Parse(text); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v", c.args, err)
		}
		if _, err := Parse([]byte(public)); !errors.Is(err, ErrDamaged) {
			t.Errorf("public half of %q: %v", c.args, err)
		}
	}
}

func TestWrittenFiles(t *testing.T) {
	t.Parallel()
	long := bytes.Repeat([]byte("x"), MaxPassphrase)
	dir := t.TempDir()
	// read is what ssh-keygen finds in the file, with a passphrase.
	read := func(text, passphrase []byte) string {
		t.Helper()
		path := filepath.Join(dir, "k")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := keygen(t, "-y", "-P", string(passphrase), "-f", path)
		if err != nil {
			return "nothing"
		}
		return strings.TrimSpace(out)
	}
	for _, typ := range []Type{ECDSA, Ed25519} {
		passphrase := []byte(nil)
		text, err := New(typ, "first", passphrase)
		if err != nil {
			t.Fatal(err)
		}
		f, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		public := f.Public
		line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public)))
		for i, next := range [][]byte{[]byte("one"), long, nil} {
			if f.Encrypted != (len(passphrase) > 0) || !bytes.Equal(f.Public.Marshal(), public.Marshal()) {
				t.Fatalf("%s, change %d: %+v", typ, i, f)
			}
			if i > 0 {
				if got := read(text, passphrase); got != line+" again" {
					t.Errorf("%s, change %d: ssh-keygen reads %s, want %s again", typ, i, got, line)
				}
			}
			if f.Encrypted {
				if got := read(text, []byte("wrong")); got != "nothing" {
					t.Errorf("%s, change %d: with a wrong passphrase ssh-keygen reads %s", typ, i, got)
				}
				if _, err := f.Reprotect([]byte("wrong"), "again", next); !errors.Is(err, ErrPassphrase) {
					t.Errorf("%s, change %d by a wrong passphrase: %v", typ, i, err)
				}
			}
			if text, err = f.Reprotect(passphrase, "again", next); err != nil {
				t.Fatal(err)
			}
			passphrase = next
			if f, err = Parse(text); err != nil {
				t.Fatal(err)
			}
		}
		k, err := f.Open(passphrase)
		if err != nil {
			t.Fatal(err)
		}
		signs(t, k, public)

		if _, err := New(typ, "c", append(long, 'x')); !errors.Is(err, ErrTooLong) {
			t.Errorf("a passphrase that is too long: %v", err)
		}
		if _, err := f.Reprotect(passphrase, "c", append(long, 'x')); !errors.Is(err, ErrTooLong) {
			t.Errorf("a passphrase that is too long: %v", err)
		}
	}
	if _, err := New("rsa", "c", nil); !errors.Is(err, ErrType) {
		t.Errorf("rsa: %v", err)
	}
}

func TestWipe(t *testing.T) {
	t.Parallel()
	for _, typ := range []Type{ECDSA, Ed25519} {
		text, err := New(typ, "c", nil)
		if err != nil {
			t.Fatal(err)
		}
		f, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		k, err := f.Open(nil)
		if err != nil {
			t.Fatal(err)
		}
		signs(t, k, f.Public)
		k.Wipe()
		if sig, err := k.Sign(rand.Reader, []byte("data")); err == nil && f.Public.Verify([]byte("data"), sig) == nil {
			t.Errorf("%s: it still signs", typ)
		}
		left := 0
		switch p := k.private.(type) {
		case *ecdsa.PrivateKey:
			for _, word := range scalar(p)[:cap(scalar(p))] {
				if word != 0 {
					left++
				}
			}
		case ed25519.PrivateKey:
			for _, b := range p {
				if b != 0 {
					left++
				}
			}
		default:
			t.Errorf("%s: a %T", typ, p)
		}
		if left > 0 {
			t.Errorf("%s: %d words are left", typ, left)
		}
		k.Wipe()
	}
}

// outer is the file's form as PROTOCOL.key has it.
type outer struct {
	Cipher, KDF, Options string
	Keys                 uint32
	Public               []byte
	Private              []byte
}

func (o outer) text() []byte { return armored(ssh.Marshal(o)) }

func armored(b []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "OPENSSH PRIVATE KEY", Bytes: append([]byte("openssh-key-v1\x00"), b...)})
}

func outerOf(t testing.TB, text []byte) (o outer) {
	t.Helper()
	block, _ := pem.Decode(text)
	if err := ssh.Unmarshal(bytes.TrimPrefix(block.Bytes, []byte("openssh-key-v1\x00")), &o); err != nil {
		t.Fatal(err)
	}
	return o
}

func bcrypt(salt string, rounds uint32) string {
	return string(ssh.Marshal(struct {
		Salt   string
		Rounds uint32
	}{salt, rounds}))
}

func mustNew(t testing.TB, typ Type, passphrase string) []byte {
	t.Helper()
	text, err := New(typ, "c", []byte(passphrase))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestRefused(t *testing.T) {
	t.Parallel()
	plain, other, locked := outerOf(t, mustNew(t, Ed25519, "")), outerOf(t, mustNew(t, Ed25519, "")), outerOf(t, mustNew(t, ECDSA, "pw"))
	plainText := plain.text()
	change := func(o outer, f func(*outer)) []byte { f(&o); return o.text() }
	// A key of a token: its private half is a handle.
	sk := ssh.Marshal(struct {
		Type, Key, Application string
	}{ssh.KeyAlgoSKED25519, strings.Repeat("k", 32), "ssh:"})
	for what, text := range map[string][]byte{
		"nothing":               nil,
		"only a frame":          pem.EncodeToMemory(&pem.Block{Type: "OPENSSH PRIVATE KEY"}),
		"another type":          bytes.ReplaceAll(plainText, []byte("OPENSSH"), []byte("PRIVATE")),
		"headers":               bytes.Replace(plainText, []byte("-----\n"), []byte("-----\nA: b\n\n"), 1),
		"something before it":   append([]byte("\n"), plainText...),
		"a comment before it":   append([]byte("# retired\n"), plainText...),
		"something behind it":   append(bytes.Clone(plainText), "x\n"...),
		"two keys in two":       append(bytes.Clone(plainText), plainText...),
		"trailing data":         armored(append(ssh.Marshal(plain), 0)),
		"too large":             append(bytes.Clone(plainText), bytes.Repeat([]byte("\n"), MaxSize)...),
		"another version":       pem.EncodeToMemory(&pem.Block{Type: "OPENSSH PRIVATE KEY", Bytes: append([]byte("openssh-key-v2\x00"), ssh.Marshal(plain)...)}),
		"no keys":               change(plain, func(o *outer) { o.Keys = 0 }),
		"two keys":              change(plain, func(o *outer) { o.Keys = 2 }),
		"very many keys":        change(locked, func(o *outer) { o.Keys = 1 << 31 }),
		"no cipher":             change(locked, func(o *outer) { o.Cipher = "none" }),
		"no passphrase":         change(locked, func(o *outer) { o.KDF = "none" }),
		"neither, encrypted":    change(locked, func(o *outer) { o.Cipher, o.KDF, o.Options = "none", "none", "" }),
		"options without a KDF": change(plain, func(o *outer) { o.Options = "x" }),
		"another KDF":           change(locked, func(o *outer) { o.KDF = "scrypt" }),
		"another cipher":        change(locked, func(o *outer) { o.Cipher = "rot13" }),
		"no rounds":             change(locked, func(o *outer) { o.Options = bcrypt("0123456789abcdef", 0) }),
		"too many rounds":       change(locked, func(o *outer) { o.Options = bcrypt("0123456789abcdef", maxRounds+1) }),
		"rounds for ever":       change(locked, func(o *outer) { o.Options = bcrypt("0123456789abcdef", 1<<32-1) }),
		"no salt":               change(locked, func(o *outer) { o.Options = bcrypt("", 16) }),
		"no options":            change(locked, func(o *outer) { o.Options = "" }),
		"a salt beyond the end": change(locked, func(o *outer) { o.Options = "\xff\xff\xff\xff" + o.Options[4:] }),
		"long options":          change(locked, func(o *outer) { o.Options += "\x00" }),
		"no public half":        change(locked, func(o *outer) { o.Public = nil }),
		"a token's":             change(plain, func(o *outer) { o.Public = sk }),
		"nothing encrypted":     change(locked, func(o *outer) { o.Private = nil }),
		"half a block":          change(locked, func(o *outer) { o.Private = o.Private[:len(o.Private)-8] }),
		"no private half":       change(plain, func(o *outer) { o.Private = nil }),
		"another public half":   change(plain, func(o *outer) { o.Public = other.Public }),
		"another private half":  change(plain, func(o *outer) { o.Private = other.Private }),
		"other check bytes":     change(plain, func(o *outer) { o.Private = append([]byte{o.Private[0] ^ 1}, o.Private[1:]...) }),
		"other padding":         change(plain, func(o *outer) { o.Private = append(bytes.Clone(o.Private), 9) }),
		"a strange public half": change(plain, func(o *outer) { o.Public = append(bytes.Clone(o.Public), 0) }),
	} {
		if f, err := Parse(text); !errors.Is(err, ErrDamaged) || f != nil {
			t.Errorf("%s: %v, %v", what, f, err)
		}
	}
	if _, err := Parse(append(bytes.Clone(plainText), " \n\n"...)); err != nil {
		t.Errorf("empty lines behind it: %v", err)
	}
	for n := range plainText {
		if f, err := Parse(plainText[:n]); err == nil && n < len(bytes.TrimSpace(plainText)) || err != nil && !errors.Is(err, ErrDamaged) {
			t.Errorf("the first %d bytes: %v, %v", n, f, err)
		}
	}
	for n := range ssh.Marshal(locked) {
		if f, err := Parse(armored(ssh.Marshal(locked)[:n])); !errors.Is(err, ErrDamaged) {
			t.Errorf("encrypted, the first %d bytes: %v, %v", n, f, err)
		}
	}
	// As many rounds as a file may ask for.
	o := locked
	o.Options = bcrypt("0123456789abcdef", maxRounds)
	if _, err := Parse(o.text()); err != nil {
		t.Errorf("%d rounds: %v", maxRounds, err)
	}
}

// Whoever can write to a file, but not read what is encrypted in it, cannot have
// it pass for another key.
func TestHalvesThatDoNotBelongTogether(t *testing.T) {
	t.Parallel()
	for _, typ := range []Type{ECDSA, Ed25519} {
		o, other := outerOf(t, mustNew(t, typ, "pw")), outerOf(t, mustNew(t, typ, "pw"))
		o.Public = other.Public
		f, err := Parse(o.text())
		if err != nil {
			t.Fatal(err)
		}
		if k, err := f.Open([]byte("pw")); !errors.Is(err, ErrDamaged) || errors.Is(err, ErrPassphrase) || k != nil {
			t.Errorf("%s: %v, %v", typ, k, err)
		}
		if text, err := f.Reprotect([]byte("pw"), "c", nil); !errors.Is(err, ErrDamaged) || text != nil {
			t.Errorf("%s: made whole by a new passphrase: %v", typ, err)
		}
	}
	// An Ed25519 key carries its public half with the private one, and a signature
	// with one that is not its own gives the private half away.
	_, a, _ := ed25519.GenerateKey(rand.Reader)
	_, b, _ := ed25519.GenerateKey(rand.Reader)
	copy(a[32:], b[32:])
	block, err := ssh.MarshalPrivateKey(a, "c")
	if err != nil {
		t.Fatal(err)
	}
	if f, err := Parse(pem.EncodeToMemory(block)); !errors.Is(err, ErrDamaged) {
		t.Errorf("an Ed25519 key with another's public half: %v, %v", f, err)
	}
}

// What is encrypted and not a key of ours is refused when it is opened.
func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKeyWithPassphrase(p384, "c", []byte("pw"))
	if err != nil {
		t.Fatal(err)
	}
	inner := outerOf(t, pem.EncodeToMemory(block))
	inner.Public = outerOf(t, mustNew(t, ECDSA, "pw")).Public
	f, err := Parse(inner.text())
	if err != nil {
		t.Fatal(err)
	}
	if k, err := f.Open([]byte("pw")); !errors.Is(err, ErrDamaged) || k != nil {
		t.Errorf("P-384 inside: %v, %v", k, err)
	}
	// A passphrase beyond the bound is none, even where somebody else has used it.
	long := strings.Repeat("x", MaxPassphrase+1)
	text, _ := made(t, long, "-t", "ed25519", "-a", "1")
	if f, err = Parse(text); err != nil {
		t.Fatal(err)
	}
	if k, err := f.Open([]byte(long)); !errors.Is(err, ErrPassphrase) || k != nil {
		t.Errorf("a passphrase that is too long: %v, %v", k, err)
	}
	// What is encrypted is not sealed (PROTOCOL.key): one byte can be another one, as
	// of the comment, but the key is the file's or none.
	text, _ = made(t, "secret", "-t", "ed25519", "-a", "1")
	o := outerOf(t, text)
	opened := 0
	for i := range o.Private {
		o := o
		o.Private = bytes.Clone(o.Private)
		o.Private[i] ^= 0x40
		f, err := Parse(o.text())
		if err != nil {
			t.Fatal(err)
		}
		k, err := f.Open([]byte("secret"))
		switch {
		case err == nil:
			opened++
			signs(t, k, f.Public)
		case !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrPassphrase), k != nil:
			t.Errorf("byte %d: %v, %v", i, k, err)
		}
	}
	if n := len(o.Private); opened > n/2 {
		t.Errorf("%d of %d bytes may be others", opened, n)
	}
}

// Whatever is in a file, reading it ends in a key that signs or in an error, and
// what is read as a key can be written and read again.
func FuzzParse(f *testing.F) {
	for _, typ := range []Type{ECDSA, Ed25519} {
		for _, passphrase := range []string{"", "pw"} {
			o := outerOf(f, mustNew(f, typ, passphrase))
			if passphrase != "" {
				o.Options = bcrypt("0123456789abcdef", 1)
			}
			f.Add(ssh.Marshal(o))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = Parse(b)
		file, err := Parse(armored(b))
		if err != nil {
			if !errors.Is(err, ErrDamaged) || file != nil {
				t.Fatalf("%v, %v", file, err)
			}
			return
		}
		var passphrase []byte
		if file.Encrypted {
			passphrase = []byte("pw")
			o := outer{}
			if err := ssh.Unmarshal(b, &o); err != nil {
				t.Fatal(err)
			}
			if rounds, err := roundsOf(o.Options); err != nil || rounds > maxRounds {
				t.Fatalf("%d rounds, %v", rounds, err)
			} else if rounds > 4 {
				return // for the sake of time
			}
		}
		k, err := file.Open(passphrase)
		if err != nil {
			if !file.Encrypted || k != nil || !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrPassphrase) {
				t.Fatalf("%v, %v", k, err)
			}
			return
		}
		signs(t, k, file.Public)
		text, err := file.Reprotect(passphrase, "c", nil)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse(text)
		if err != nil || !bytes.Equal(again.Public.Marshal(), file.Public.Marshal()) {
			t.Fatalf("%v, %v", again, err)
		}
	})
}
