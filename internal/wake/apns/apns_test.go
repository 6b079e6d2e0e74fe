// SPDX-License-Identifier: BSD-3-Clause

package apns

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func pkcs8(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func generate(t *testing.T, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func block(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func write(t *testing.T, content string, mode fs.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key.p8")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoadKey(t *testing.T) {
	t.Parallel()
	key := generate(t, elliptic.P256())
	good := block("PRIVATE KEY", pkcs8(t, key))
	for name, content := range map[string]string{
		"as Apple writes it": strings.TrimSuffix(good, "\n"),
		"as openssl does":    good,
		"with CR LF":         strings.ReplaceAll(good, "\n", "\r\n"),
		"with blank lines":   "\n" + good + "\n \n",
	} {
		path := write(t, content, 0o600)
		k, err := LoadKey(path)
		if err != nil || !k.Public().Equal(&key.PublicKey) || k.Path() != path {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := LoadKey(write(t, good, 0o400)); err != nil {
		t.Errorf("read-only: %v", err)
	}
	link := filepath.Join(t.TempDir(), "link.p8")
	if err := os.Symlink(write(t, good, 0o600), link); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKey(link); err != nil {
		t.Errorf("by a link: %v", err)
	}
}

func TestWrongKeys(t *testing.T) {
	t.Parallel()
	key := generate(t, elliptic.P256())
	der := pkcs8(t, key)
	good := block("PRIVATE KEY", der)
	sec1, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	lockedOld := string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: []byte("x"),
		Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-128-CBC,00"}}))
	headers := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der, Headers: map[string]string{"Comment": "x"}}))
	for name, c := range map[string]struct {
		content string
		mode    fs.FileMode
		problem KeyProblem
		says    string
	}{
		"group may read":      {good, 0o640, KeyOpen, "open to other users (mode 0640)"},
		"others may read":     {good, 0o604, KeyOpen, "mode 0604"},
		"group may write":     {good, 0o620, KeyOpen, "mode 0620"},
		"open and damaged":    {"x", 0o644, KeyOpen, "mode 0644"},
		"empty":               {"", 0o600, KeyNotPEM, "is not PEM"},
		"DER":                 {string(der), 0o600, KeyNotPEM, "is not PEM"},
		"cut":                 {good[:len(good)-30], 0o600, KeyNotPEM, "is not PEM"},
		"large":               {good + strings.Repeat("\n", maxKeyFile), 0o600, KeyTooLarge, "larger than 16384 bytes"},
		"encrypted":           {block("ENCRYPTED PRIVATE KEY", der), 0o600, KeyEncrypted, "encrypted with a passphrase"},
		"encrypted, old form": {lockedOld, 0o600, KeyEncrypted, "encrypted with a passphrase"},
		"SEC 1":               {block("EC PRIVATE KEY", sec1), 0o600, KeySEC1, "SEC 1 (EC PRIVATE KEY)"},
		"SEC 1 of openssl":    {block("EC PARAMETERS", []byte{6, 8}) + block("EC PRIVATE KEY", sec1), 0o600, KeySEC1, "SEC 1"},
		"SEC 1 misnamed":      {block("PRIVATE KEY", sec1), 0o600, KeySEC1, "SEC 1"},
		"certificate":         {block("CERTIFICATE", der), 0o600, KeyOtherPEM, `"CERTIFICATE", not "PRIVATE KEY"`},
		"public key":          {block("PUBLIC KEY", public), 0o600, KeyOtherPEM, `"PUBLIC KEY"`},
		"OpenSSH":             {block("OPENSSH PRIVATE KEY", der), 0o600, KeyOtherPEM, `"OPENSSH PRIVATE KEY"`},
		"RSA in its own form": {block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey)), 0o600, KeyOtherPEM, `"RSA PRIVATE KEY"`},
		"two keys":            {good + good, 0o600, KeySeveral, "besides one key"},
		"key and certificate": {good + block("CERTIFICATE", der), 0o600, KeySeveral, "besides one key"},
		"text before":         {"my key:\n" + good, 0o600, KeySeveral, "besides one key"},
		"text after":          {good + "mine\n", 0o600, KeySeveral, "besides one key"},
		"headers":             {headers, 0o600, KeySeveral, "besides one key"},
		"no key in it":        {block("PRIVATE KEY", []byte("nothing")), 0o600, KeyDamaged, "is damaged: "},
		"public key in it":    {block("PRIVATE KEY", public), 0o600, KeyDamaged, "is damaged: "},
		"P-384":               {block("PRIVATE KEY", pkcs8(t, generate(t, elliptic.P384()))), 0o600, KeyAlgorithm, "is for P-384, not for P-256"},
		"P-224":               {block("PRIVATE KEY", pkcs8(t, generate(t, elliptic.P224()))), 0o600, KeyAlgorithm, "is for P-224"},
		"P-521":               {block("PRIVATE KEY", pkcs8(t, generate(t, elliptic.P521()))), 0o600, KeyAlgorithm, "is for P-521"},
		"RSA":                 {block("PRIVATE KEY", pkcs8(t, rsaKey)), 0o600, KeyAlgorithm, "is for RSA with 2048 bits"},
		"Ed25519":             {block("PRIVATE KEY", pkcs8(t, edKey)), 0o600, KeyAlgorithm, "is for Ed25519"},
	} {
		path := write(t, c.content, c.mode)
		k, err := LoadKey(path)
		e, ok := errors.AsType[*KeyError](err)
		if !ok || k != nil || e.Problem != c.problem || e.Path != path || !strings.Contains(e.Error(), c.says) || !strings.Contains(e.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && len(c.content) > 100 && strings.Contains(err.Error(), c.content[40:60]) {
			t.Errorf("%s: the key is in %v", name, err)
		}
	}
}

// Files that are no files, or nobody's business.
func TestWrongFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	good := block("PRIVATE KEY", pkcs8(t, generate(t, elliptic.P256())))
	check := func(path string, problem KeyProblem, says string) {
		t.Helper()
		_, err := LoadKey(path)
		if e, ok := errors.AsType[*KeyError](err); !ok || e.Problem != problem || !strings.Contains(e.Error(), says) {
			t.Errorf("%s: %v", path, err)
		}
	}
	check(filepath.Join(dir, "none"), KeyMissing, "there is no push key "+dir)
	check(dir, KeyNoFile, "no regular file")
	check(pipe, KeyNoFile, "no regular file")
	check("/dev/null", KeyNoFile, "no regular file")
	check(filepath.Join(write(t, good, 0o600), "x"), KeyUnreadable, "cannot be read: not a directory")
	if os.Geteuid() != 0 {
		check(write(t, good, 0), KeyUnreadable, "cannot be read: permission denied")
		return
	}
	foreign := write(t, good, 0o600)
	if err := os.Chown(foreign, 65534, -1); err != nil {
		t.Fatal(err)
	}
	check(foreign, KeyForeign, "belongs to user 65534, not to user 0")
}

// The signature verifies, has its 64 bytes for small numbers too, and is the same each time. The vector is RFC 6979's
// (A.2.5, SHA-256, "sample").
func TestSign(t *testing.T) {
	t.Parallel()
	raw, err := hex.DecodeString("c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721")
	if err != nil {
		t.Fatal(err)
	}
	private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), raw)
	if err != nil {
		t.Fatal(err)
	}
	k := &Key{private: private}
	got, err := k.Sign([]byte("sample"))
	want := "efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8"
	if err != nil || fmt.Sprintf("%x", got) != want {
		t.Errorf("%x, %v", got, err)
	}
	short := 0
	for i := range 600 {
		data := fmt.Append(nil, i)
		s, err := k.Sign(data)
		if err != nil || len(s) != 64 {
			t.Fatalf("%x, %v", s, err)
		}
		if s[0] == 0 || s[32] == 0 {
			short++
		}
		digest := sha256.Sum256(data)
		if !ecdsa.Verify(k.Public(), digest[:], new(big.Int).SetBytes(s[:32]), new(big.Int).SetBytes(s[32:])) {
			t.Errorf("%d: does not verify", i)
		}
	}
	if short == 0 {
		t.Error("no small number was seen")
	}
}

// documented is the table "Response error strings" of Apple's "Handling notification responses from APNs", as of
// 2025.
var documented = map[string]int{
	"BadCollapseId": 400, "BadDeviceToken": 400, "BadExpirationDate": 400, "BadMessageId": 400, "BadPriority": 400, "BadTopic": 400,
	"DeviceTokenNotForTopic": 400, "DuplicateHeaders": 400, "IdleTimeout": 400, "InvalidPushType": 400, "MissingDeviceToken": 400,
	"MissingTopic": 400, "PayloadEmpty": 400, "TopicDisallowed": 400,
	"BadCertificate": 403, "BadCertificateEnvironment": 403, "ExpiredProviderToken": 403, "Forbidden": 403, "InvalidProviderToken": 403,
	"MissingProviderToken": 403, "UnrelatedKeyIdInToken": 403, "BadEnvironmentKeyIdInToken": 403,
	"BadPath": 404, "MethodNotAllowed": 405, "ExpiredToken": 410, "Unregistered": 410, "PayloadTooLarge": 413,
	"TooManyProviderTokenUpdates": 429, "TooManyRequests": 429, "InternalServerError": 500, "ServiceUnavailable": 503, "Shutdown": 503,
}

func TestReasonsComplete(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	var gone, renew, again []string
	for _, r := range Reasons() {
		if seen[r.Code] {
			t.Errorf("%s is there twice", r.Code)
		}
		seen[r.Code] = true
		status, ok := documented[r.Code]
		if !ok && r.Code != "BadEnvironmentKeyInToken" || ok && status != r.Status {
			t.Errorf("%s: status %d, documented %d", r.Code, r.Status, status)
		}
		for _, s := range []string{r.Meaning, r.Do} {
			if s == "" || strings.HasSuffix(s, ".") || strings.Contains(s, "\n") {
				t.Errorf("%s: %q is no sentence", r.Code, s)
			}
		}
		if got := Lookup(r.Status, r.Code); got != r {
			t.Errorf("Lookup(%s) = %+v", r.Code, got)
		}
		if r.Gone {
			gone = append(gone, r.Code)
		}
		if r.Renew {
			renew = append(renew, r.Code)
		}
		if r.Again {
			again = append(again, r.Code)
		}
	}
	for code := range documented {
		if !seen[code] {
			t.Errorf("%s has no sentence", code)
		}
	}
	for _, c := range []struct{ got, want []string }{
		{gone, []string{"BadDeviceToken", "DeviceTokenNotForTopic", "ExpiredToken", "Unregistered"}},
		{renew, []string{"ExpiredProviderToken", "InvalidProviderToken"}},
		{again, []string{"IdleTimeout", "TooManyRequests", "InternalServerError", "ServiceUnavailable", "Shutdown"}},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%q, not %q", c.got, c.want)
		}
	}
}

// What Apple does not document is judged by its status.
func TestUndocumented(t *testing.T) {
	t.Parallel()
	for status, c := range map[int]struct{ gone, again bool }{301: {}, 400: {}, 401: {}, 403: {}, 404: {}, 410: {gone: true}, 429: {again: true}, 500: {again: true}, 502: {again: true}, 599: {again: true}} {
		r := Lookup(status, "Nonsense")
		if r.Code != "" || r.Status != status || r.Gone != c.gone || r.Again != c.again || r.Renew || r.Meaning == "" || r.Do == "" {
			t.Errorf("%d: %+v", status, r)
		}
	}
	if r := Lookup(418, "Unregistered"); r.Status != 418 || !r.Gone {
		t.Errorf("a known reason with another status: %+v", r)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	refused := &RefusedError{Reason: Lookup(410, "Unregistered")}
	if got, want := refused.Error(), "the push was refused: the device token is in use no more: the app was removed, or takes no pushes (410 Unregistered)"; got != want {
		t.Errorf("%q, not %q", got, want)
	}
	if !errors.Is(fmt.Errorf("x: %w", refused), ErrTokenGone) || errors.Is(&RefusedError{Reason: Lookup(403, "Forbidden")}, ErrTokenGone) {
		t.Error("ErrTokenGone for the wrong one")
	}
	if got := (&RefusedError{Reason: Lookup(502, "")}).Error(); !strings.HasSuffix(got, " (502 Bad Gateway)") {
		t.Errorf("%q", got)
	}
	if got := Short("0123456789abcdef"); got != "01234567…" {
		t.Errorf("%q", got)
	}
	if got := Short("0123"); got != "0123" {
		t.Errorf("%q", got)
	}
}

func TestChecks(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		check func(string) error
		good  []string
		bad   []string
	}{
		{"id", CheckID, []string{"ABC123DEFG", "0123456789"}, []string{"", "ABC123DEF", "ABC123DEFGH", "abc123defg", "ABC123DEF-", "ABC123DEF\x00", "ÄBC123DEF"}},
		{"token", CheckToken, []string{"00", "aAbB", strings.Repeat("0", 200)}, []string{"", "0", "0x00", "00 11", "gg", strings.Repeat("0", 202), "00\n"}},
		{"topic", CheckTopic, []string{"app.vmux.Test-1", "x"}, []string{"", "a b", "a_b", "ä", "a\n", strings.Repeat("x", 256)}},
		{"environment", CheckEnvironment, []string{Production, Sandbox}, []string{"", "development", "Production"}},
		{"endpoint", CheckEndpoint, []string{"https://h", "https://h:8443/a/b/", "https://[::1]:1", "https://127.0.0.1"},
			[]string{"", "h", "//h", "http://h", "HTTP://h", "https:h", "https://", "https://:1", "https://u@h", "https://u:p@h", "https://h?x", "https://h?", "https://h#x", "https://h\n", "https://" + strings.Repeat("h", 1024)}},
	} {
		for _, s := range c.good {
			if err := c.check(s); err != nil {
				t.Errorf("%s %q: %v", c.name, s, err)
			}
		}
		for _, s := range c.bad {
			if err := c.check(s); err == nil {
				t.Errorf("%s %q is let pass", c.name, s)
			}
		}
	}
}
