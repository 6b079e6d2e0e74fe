// SPDX-License-Identifier: BSD-3-Clause

package store

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func pkcs8(t *testing.T, key any) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der}))
}

func TestLinkKeyIsMadeOnce(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "vmux", "device-key.pem")
	const n = 8
	keys := make([]*ecdsa.PrivateKey, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			key, err := LinkKey(path)
			if err != nil {
				t.Error(err)
			}
			keys[i] = key
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	for _, k := range keys {
		if !k.Equal(keys[0]) || k.Curve != elliptic.P256() {
			t.Error("processes disagree on the key")
		}
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestLinkKeyRefusesOpenFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "device-key.pem")
	if _, err := LinkKey(path); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o620} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := LinkKey(path)
		if e, ok := errors.AsType[*ModeError](err); !ok || e.Path != path || e.Mode != mode {
			t.Errorf("%o: %v", mode, err)
		}
	}
	if err := os.Chmod(path, 0o400); err != nil {
		t.Fatal(err)
	}
	if _, err := LinkKey(path); err != nil {
		t.Errorf("0400: %v", err)
	}
}

func TestLinkKeyRefusesWhatIsNone(t *testing.T) {
	t.Parallel()
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := pkcs8(t, p256)
	block, _ := pem.Decode([]byte(good))
	for name, content := range map[string]string{
		"empty":     "",
		"garbage":   "garbage",
		"P-384":     pkcs8(t, p384),
		"ed25519":   pkcs8(t, ed),
		"cut":       good[:len(good)/2],
		"two keys":  good + good,
		"wrong PEM": string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: block.Bytes})),
		"not DER":   string(pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: []byte{1}})),
		"header":    string(pem.EncodeToMemory(&pem.Block{Type: pemType, Headers: map[string]string{"a": "b"}, Bytes: block.Bytes})),
		"too large": good + string(make([]byte, maxKeyFile)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "device-key.pem")
			write(t, path, content, 0o600)
			_, err := LinkKey(path)
			if e, ok := errors.AsType[*KeyError](err); !ok || e.Path != path {
				t.Errorf("LinkKey = %v", err)
			}
			if b, err := os.ReadFile(path); err != nil || string(b) != content {
				t.Errorf("the file was changed: %v", err)
			}
		})
	}
}

func TestLinkKeyUnwritable(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file"), "", 0o600)
	// ENOTDIR is not ErrNotExist: reading says so.
	if _, err := LinkKey(filepath.Join(dir, "file", "device-key.pem")); err == nil {
		t.Error("made a key below a file")
	}
	if err := os.Symlink("/proc/vmux-no-such", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	_, err := LinkKey(filepath.Join(dir, "link", "device-key.pem"))
	if e, ok := errors.AsType[*UnwritableError](err); !ok {
		t.Errorf("LinkKey = %v, %v", e, err)
	}
}
