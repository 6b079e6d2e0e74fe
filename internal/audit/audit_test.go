// SPDX-License-Identifier: BSD-3-Clause

package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// home is a directory that Open accepts.
func home(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func open0(t testing.TB, dir string) *Log {
	t.Helper()
	l, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func appended(t testing.TB, l *Log, reasons ...string) {
	t.Helper()
	for _, r := range reasons {
		if err := l.Append(Record{Event: "request", Device: "laptop", Outcome: "signed", Reason: r}, false); err != nil {
			t.Fatal(err)
		}
	}
}

func verified(t testing.TB, dir string) Summary {
	t.Helper()
	s, err := Verify(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// reasons are those of all records with the event request; other events stand as themselves.
func reasons(t testing.TB, dir string) (all []string) {
	t.Helper()
	for r, err := range Records(dir, time.Time{}) {
		if err != nil {
			t.Fatal(err)
		}
		if r.Event == "request" {
			all = append(all, r.Reason)
		} else {
			all = append(all, r.Event)
		}
	}
	return all
}

func read(t testing.TB, dir, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t testing.TB, dir, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// logFiles gives the names of the log's files in their order.
func logFiles(t testing.TB, dir string) (names []string) {
	t.Helper()
	old, err := oldFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range old {
		names = append(names, oldName(n))
	}
	if _, err := os.Stat(filepath.Join(dir, fileName)); err == nil {
		names = append(names, fileName)
	}
	return names
}

// copied is a home with the same log.
func copied(t testing.TB, dir string) string {
	t.Helper()
	to := home(t)
	for _, name := range logFiles(t, dir) {
		write(t, to, name, read(t, dir, name))
	}
	return to
}

func TestAppend(t *testing.T) {
	t.Parallel()
	dir := home(t)
	l := open0(t, dir)
	if s := verified(t, dir); s != (Summary{}) {
		t.Errorf("an empty log: %+v", s)
	}
	full := Record{
		Time: time.Date(2026, 11, 23, 20, 8, 30, 120_999_999, time.FixedZone("", 3600)), Event: "request", Device: "laptop",
		Pin: "SHA256:x", ID: "00ff", CreatedAt: time.Date(2026, 11, 23, 19, 8, 29, 0, time.UTC), Operation: "login", User: "root",
		HostKey: "SHA256:h", Key: "default", Fingerprint: "SHA256:f", Serial: "18446744073709551615", KeyID: "me",
		Outcome: "signed", Reason: "why \"not\"\n",
	}
	before := time.Now().Add(-time.Millisecond)
	if err := errors.Join(l.Append(full, true), l.Append(Record{Event: "lock", Previous: "x", Before: "y"}, false)); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(read(t, dir, fileName)), "\n")
	const want = `{"time":"2026-11-23T19:08:30.120Z","event":"request","device":"laptop","pin":"SHA256:x","id":"00ff",` +
		`"createdAt":"2026-11-23T19:08:29.000Z","operation":"login","user":"root","hostKey":"SHA256:h","key":"default",` +
		`"fingerprint":"SHA256:f","serial":"18446744073709551615","keyId":"me","outcome":"signed","reason":"why \"not\"\n",` +
		`"previous":"0000000000000000000000000000000000000000000000000000000000000000"}`
	if lines[0] != want {
		t.Errorf("%s\nis not\n%s", lines[0], want)
	}
	var second map[string]string
	if err := json.Unmarshal([]byte(lines[1]), &second); err != nil || len(second) != 3 || second["event"] != "lock" || second["previous"] != hash([]byte(want)) {
		t.Errorf("%v, %v", second, err)
	}
	if at, err := time.Parse(timeForm, second["time"]); err != nil || at.Before(before) || at.After(time.Now()) {
		t.Errorf("%v, %v", at, err)
	}
	if len(lines) != 3 || lines[2] != "" {
		t.Errorf("%q", lines)
	}
	s := verified(t, dir)
	if s.Head != hash([]byte(lines[1])) || s.Records != 2 || s.Files != 1 || !s.First.Equal(full.Time.Truncate(time.Millisecond)) || s.Deleted || s.CutOff || s.Recovered != 0 {
		t.Errorf("%+v", s)
	}
	full.Time, full.Previous = full.Time.UTC().Truncate(time.Millisecond), noLine
	for r, err := range Records(dir, time.Time{}) {
		if err != nil || r != full {
			t.Errorf("%+v, %v", r, err)
		}
		break
	}
	// A log that is there goes on.
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Append(Record{Event: "x"}, false); !errors.Is(err, ErrNotRecorded) || !errors.Is(err, fs.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	appended(t, open0(t, dir), "again")
	if s := verified(t, dir); s.Records != 3 {
		t.Errorf("%+v", s)
	}
	for _, event := range []string{"", EventRecovered, EventRotated} {
		if err := open0(t, dir).Append(Record{Event: event}, false); !errors.Is(err, ErrNotRecorded) {
			t.Errorf("the event %q: %v", event, err)
		}
	}
}

func TestBounds(t *testing.T) {
	t.Parallel()
	dir := home(t)
	l := open0(t, dir)
	for _, text := range []string{
		strings.Repeat("a", 5000), strings.Repeat("a", 1023) + "ü", strings.Repeat("a", 1021) + "😀", strings.Repeat("😀", 999),
		strings.Repeat("\x00", 5000), strings.Repeat("\xff", 5000), strings.Repeat("\"\\\n\x7f\u2028<", 999), "a\xffb", strings.Repeat("\u202e", 999),
	} {
		r := Record{Time: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), CreatedAt: time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC)}
		for _, field := range r.texts() {
			*field = text
		}
		if err := l.Append(r, false); err != nil {
			t.Errorf("%.20q: %v", text, err)
		}
		lines := bytes.Split(read(t, dir, fileName), []byte("\n"))
		line := lines[len(lines)-2]
		got, err := decode(line)
		if err != nil || len(line) > maxLine || len(line) > 13*maxField+600 {
			t.Errorf("%.20q: a line of %d bytes, %v", text, len(line), err)
		}
		clean := strings.ReplaceAll(text, "\xff", "\ufffd")
		written, err := json.Marshal(got.KeyID)
		if err != nil || !strings.HasPrefix(clean, got.KeyID) || !utf8.ValidString(got.KeyID) || len(got.KeyID) < 160 && got.KeyID != clean || got.KeyID != got.Reason || len(written) == 2 {
			t.Errorf("%.20q became %d bytes %.20q", text, len(got.KeyID), got.KeyID)
		}
		if !got.CreatedAt.IsZero() {
			t.Errorf("CreatedAt %v", got.CreatedAt)
		}
	}
	for text, want := range map[string]int{strings.Repeat("a", 5000): 1024, strings.Repeat("a", 1023) + "ü": 1023, strings.Repeat("a", 1021) + "😀": 1021} {
		if got := cut(text); len(got) != want {
			t.Errorf("%d bytes of %d", len(got), len(text))
		}
	}
	verified(t, dir)
}

// A process can be killed at any byte of what it writes. Whatever it left, the log goes on, has what was whole, and
// verifies, before and after.
func TestCutAnywhere(t *testing.T) {
	t.Parallel()
	for name, limit := range map[string]int64{"one file": maxFile, "two files": 500} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := home(t)
			l := open0(t, dir)
			l.maxFile = limit
			appended(t, l, "a\"\\\n", "ü😀\x00", "c")
			stream := read(t, dir, fileName)
			if limit < maxFile { // the present file is what is written to
				if len(logFiles(t, dir)) != 2 {
					t.Fatal(logFiles(t, dir))
				}
			}
			for n := range len(stream) + 1 {
				dir := copied(t, dir)
				write(t, dir, fileName, stream[:n])
				left := verified(t, dir)
				lines := bytes.Count(stream[:n], []byte("\n"))
				torn := n > 0 && stream[n-1] != '\n' && stream[n] != '\n'
				if left.CutOff != torn || left.Recovered != 0 {
					t.Fatalf("cut at %d: %+v", n, left)
				}
				old := reasons(t, dir)
				l := open0(t, dir)
				appended(t, l, "on")
				s := verified(t, dir)
				want := left.Records + 1
				if torn {
					want++
				}
				rotated := n == 0 && limit < maxFile
				if rotated {
					want++
				}
				if s.Records != want || s.CutOff || (s.Recovered == 1) != torn {
					t.Fatalf("cut at %d after %d lines: %+v, then %+v", n, lines, left, s)
				}
				now := read(t, dir, fileName)
				if !bytes.HasPrefix(now, stream[:n]) {
					t.Fatalf("cut at %d: what was there was changed", n)
				}
				wantReasons := slices.Clone(old)
				if torn {
					wantReasons = append(wantReasons, EventRecovered)
				}
				if rotated {
					wantReasons = append(wantReasons, EventRotated)
				}
				if got := reasons(t, dir); !slices.Equal(got, append(wantReasons, "on")) {
					t.Fatalf("cut at %d: %q", n, got)
				}
				l.Close()
			}
		})
	}
}

// Recovering can be cut off, too, again and again.
func TestCutWhileRecovering(t *testing.T) {
	t.Parallel()
	dir := home(t)
	once := func(reason string) []byte {
		t.Helper()
		l := open0(t, dir)
		defer l.Close()
		appended(t, l, reason)
		return read(t, dir, fileName)
	}
	once("a")
	whole := once("b")
	for _, begin := range []int{20, len(whole) - 2} {
		write(t, dir, fileName, whole[:begin])
		first := once("c")
		for n := begin; n <= len(first); n++ {
			write(t, dir, fileName, first[:n])
			verified(t, dir)
			second := once("d")
			if s := verified(t, dir); s.Recovered == 0 || s.CutOff {
				t.Fatalf("%d, %d: %+v", begin, n, s)
			}
			if n != begin+100 {
				continue
			}
			for m := n; m < len(second); m++ {
				write(t, dir, fileName, second[:m])
				verified(t, dir)
				once("e")
				verified(t, dir)
			}
			// What was cut off is chained, too: no byte before the last line can be another one.
			for i := range bytes.LastIndexByte(second[:len(second)-1], '\n') + 1 {
				wrong := bytes.Clone(second)
				wrong[i] ^= 1
				write(t, dir, fileName, wrong)
				if _, err := Verify(dir); err == nil {
					t.Fatalf("%d, %d: %s\nverifies with another byte at %d", begin, n, wrong, i)
				}
			}
		}
	}
}

// The first line that is kept can be one that was cut off: what was before it is in the record that follows.
func TestCutOffAfterDeleted(t *testing.T) {
	t.Parallel()
	dir := home(t)
	l := open0(t, dir)
	appended(t, l, "a", "b")
	head := verified(t, dir).Head
	l.maxFile = 300
	appended(t, l, "c")
	write(t, dir, fileName, read(t, dir, fileName)[:50])
	appended(t, open0(t, dir), "d")
	if s := verified(t, dir); s.Records != 4 || s.Deleted || s.Recovered != 1 {
		t.Errorf("%+v", s)
	}
	if err := os.Remove(filepath.Join(dir, oldName(1))); err != nil {
		t.Fatal(err)
	}
	if s, err := VerifyHead(dir, head); err != nil || s.Records != 2 || !s.Deleted || s.Recovered != 1 {
		t.Errorf("%+v, %v", s, err)
	}
}

// A crash can come between any two steps of a rotation.
func TestCutWhileRotating(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(dir string) error{
		"renamed": func(dir string) error {
			return os.Rename(filepath.Join(dir, fileName), filepath.Join(dir, oldName(1)))
		},
		"made": func(dir string) error {
			return errors.Join(os.Rename(filepath.Join(dir, fileName), filepath.Join(dir, oldName(1))),
				os.WriteFile(filepath.Join(dir, newName), []byte("x"), 0))
		},
		"named": func(dir string) error {
			return errors.Join(os.Rename(filepath.Join(dir, fileName), filepath.Join(dir, oldName(1))),
				os.WriteFile(filepath.Join(dir, fileName), nil, 0o600))
		},
	} {
		dir := home(t)
		appended(t, open0(t, dir), "a", "b")
		if err := change(dir); err != nil {
			t.Fatal(err)
		}
		if s := verified(t, dir); s.Records != 2 {
			t.Errorf("%s: %+v", name, s)
		}
		appended(t, open0(t, dir), "c")
		if got := reasons(t, dir); !slices.Equal(got, []string{"a", "b", EventRotated, "c"}) {
			t.Errorf("%s: %q", name, got)
		}
		if s := verified(t, dir); s.Records != 4 || s.Deleted {
			t.Errorf("%s: %+v", name, s)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 3 {
			t.Errorf("%s: %v, %v", name, entries, err)
		}
	}
}

func TestRotation(t *testing.T) {
	t.Parallel()
	dir := home(t)
	l := open0(t, dir)
	l.maxFile, l.maxOld = 700, 3
	var heads []string
	for i := range 40 {
		appended(t, l, fmt.Sprint(i))
		heads = append(heads, verified(t, dir).Head)
	}
	names := logFiles(t, dir)
	if len(names) != 4 || names[3] != fileName || names[0] == oldName(1) {
		t.Fatal(names)
	}
	for _, name := range names {
		b := read(t, dir, name)
		if len(b) > 700 || !bytes.Contains(b[:bytes.IndexByte(b, '\n')], []byte(`"event":"rotated"`)) {
			t.Errorf("%s: %s", name, b)
		}
	}
	s := verified(t, dir)
	if !s.Deleted || s.Files != 4 {
		t.Errorf("%+v", s)
	}
	all := slices.DeleteFunc(reasons(t, dir), func(r string) bool { return r == EventRotated })
	for i, r := range all {
		if r != fmt.Sprint(40-len(all)+i) {
			t.Errorf("%q", all)
			break
		}
	}
	// Hashes that were noted are found, also that of the last line that is gone; those before are not.
	for i, head := range heads {
		_, err := VerifyHead(dir, head)
		if gone := i < 40-len(all)-1; errors.Is(err, ErrHead) != gone || err != nil && !gone {
			t.Errorf("record %d of the last %d: %v", i, len(all), err)
		}
	}
	var recent []string
	if err := l.Recent(time.Time{}, func(r Record) error { recent = append(recent, r.Reason); return nil }); err != nil {
		t.Error(err)
	}
	if n := bytes.Count(read(t, dir, names[2]), []byte("\n")) + bytes.Count(read(t, dir, names[3]), []byte("\n")); len(recent) != n || recent[len(recent)-1] != "39" {
		t.Errorf("%q", recent)
	}
	stop := errors.New("stop")
	if err := l.Recent(time.Time{}, func(Record) error { return stop }); err != stop {
		t.Error(err)
	}
}

func TestSince(t *testing.T) {
	t.Parallel()
	dir := home(t)
	l := open0(t, dir)
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i, after := range []time.Duration{0, time.Millisecond, time.Hour, -time.Hour, 2 * time.Hour} { // a clock is set back in between
		if err := l.Append(Record{Event: "request", Time: start.Add(after), Reason: fmt.Sprint(i)}, false); err != nil {
			t.Fatal(err)
		}
	}
	for since, want := range map[time.Time]string{
		{}: "01234", start: "0124", start.Add(1): "124", start.Add(time.Millisecond): "124", start.Add(time.Hour): "24",
		start.Add(3 * time.Hour): "", start.Add(-2 * time.Hour).In(time.FixedZone("", 7200)): "01234",
	} {
		got, recent := "", ""
		for r, err := range Records(dir, since) {
			if err != nil {
				t.Fatal(err)
			}
			got += r.Reason
		}
		if err := l.Recent(since, func(r Record) error { recent += r.Reason; return nil }); err != nil || got != want || recent != want {
			t.Errorf("since %v: %s, %s, not %s (%v)", since, got, recent, want, err)
		}
	}
}

// Whatever is done to a log, Verify finds it, and says where.
func TestVerifyFinds(t *testing.T) {
	t.Parallel()
	dir := home(t)
	l := open0(t, dir)
	l.maxFile = 620
	appended(t, l, "a", "b", "c", "d", "e", "f")
	names := logFiles(t, dir)
	if len(names) != 3 {
		t.Fatal(names)
	}
	head := verified(t, dir).Head
	try := func(what, where string, change func(dir string)) {
		t.Helper()
		dir := copied(t, dir)
		change(dir)
		_, err := Verify(dir)
		broken, ok := errors.AsType[*BrokenError](err)
		if !ok || !strings.HasPrefix(broken.Error(), where) {
			t.Errorf("%s: %v, not at %s", what, err, where)
		}
		if _, err := VerifyHead(dir, head); err == nil {
			t.Errorf("%s: the head is found", what)
		}
	}
	edit := func(name string, f func(lines []string) []string) func(string) {
		return func(dir string) {
			lines := strings.SplitAfter(string(read(t, dir, name)), "\n")
			write(t, dir, name, []byte(strings.Join(f(lines[:len(lines)-1]), "")))
		}
	}
	for _, name := range names {
		lines := bytes.Count(read(t, dir, name), []byte("\n"))
		for i := range lines {
			last := name == fileName && i == lines-1
			at := fmt.Sprintf("%s:%d:", name, i+1)
			if i == lines-1 && !last {
				at = names[slices.Index(names, name)+1] + ":1:"
			}
			if !last {
				try("a line removed", at, edit(name, func(l []string) []string { return slices.Delete(l, i, i+1) }))
				try("a line twice", "audit", edit(name, func(l []string) []string { return slices.Insert(l, i, l[i]) }))
				try("a line put in", "audit", edit(name, func(l []string) []string {
					return slices.Insert(l, i, strings.Replace(l[i], "laptop", "tablet", 1))
				}))
				try("an empty line", fmt.Sprintf("%s:%d:", name, i+1), edit(name, func(l []string) []string { return slices.Insert(l, i, "\n") }))
			}
			if i+1 < lines {
				try("two lines swapped", fmt.Sprintf("%s:%d:", name, i+1), edit(name, func(l []string) []string { l[i], l[i+1] = l[i+1], l[i]; return l }))
			}
		}
	}
	try("a file removed", fileName+":1:", func(dir string) { os.Remove(filepath.Join(dir, names[1])) })
	try("two files swapped", names[1]+":1:", func(dir string) {
		a, b := read(t, dir, names[0]), read(t, dir, names[1])
		write(t, dir, names[0], b)
		write(t, dir, names[1], a)
	})
	try("a file without its last end", names[1]+":", func(dir string) { b := read(t, dir, names[1]); write(t, dir, names[1], b[:len(b)-1]) })
	// Lines that are chained as they should be, but are not to follow one another.
	chained := func(event, rest string) func(l []string) []string {
		return func(l []string) []string {
			for _, text := range strings.SplitAfter(rest, "\n") {
				if text == "" {
					text = fmt.Sprintf(`{"time":"2026-01-01T00:00:00.000Z","event":%q,"previous":%q}`+"\n", event, hash([]byte(strings.TrimSpace(l[len(l)-1]))))
				}
				l = append(l, text)
			}
			return l
		}
	}
	lines := bytes.Count(read(t, dir, fileName), []byte("\n"))
	try("recovering from nothing", fmt.Sprintf("%s:%d:", fileName, lines+1), edit(fileName, chained(EventRecovered, "")))
	try("a part that nothing recovers from", fmt.Sprintf("%s:%d:", fileName, lines+1), edit(fileName, chained("request", "{\"time\n")))
	try("recovering without Before", fmt.Sprintf("%s:%d:", fileName, lines+2), edit(fileName, chained(EventRecovered, "{\"time\n")))
	try("a long line", names[0]+":1:", edit(names[0], func(l []string) []string { return slices.Insert(l, 0, strings.Repeat("x", 3*maxLine)+"\n") }))

	// Each bit of each byte but of the last line, in which no later one vouches for a change; the head does.
	for _, name := range names {
		b := read(t, dir, name)
		all := len(b)
		if name == fileName {
			all = bytes.LastIndexByte(b[:len(b)-1], '\n') + 1
		}
		changed := copied(t, dir)
		for i := range b {
			wrong := bytes.Clone(b)
			wrong[i] ^= 1 << (i % 8)
			write(t, changed, name, wrong)
			if _, err := Verify(changed); i < all {
				if _, ok := errors.AsType[*BrokenError](err); !ok {
					t.Errorf("byte %d of %s: %v", i, name, err)
				}
			}
			if _, err := VerifyHead(changed, head); err == nil && i != len(b)-1 {
				t.Errorf("byte %d of %s: the head is found", i, name)
			}
		}
	}

	// What the chain alone cannot know.
	for what, change := range map[string]func(dir string){
		"the last line gone":  edit(fileName, func(l []string) []string { return l[:len(l)-1] }),
		"the last file gone":  func(dir string) { os.Remove(filepath.Join(dir, fileName)) },
		"the first file gone": func(dir string) { os.Remove(filepath.Join(dir, names[0])) },
	} {
		dir := copied(t, dir)
		change(dir)
		s := verified(t, dir)
		first := strings.Contains(what, "first")
		if _, err := VerifyHead(dir, head); s.Deleted != first || errors.Is(err, ErrHead) == first {
			t.Errorf("%s: %+v, %v", what, s, err)
		}
	}
}

// The chain is over bytes: it goes on after damage, which Verify finds and Records passes over.
func TestDamage(t *testing.T) {
	t.Parallel()
	for what, damage := range map[string]string{"no JSON": "no JSON", "another JSON": `{"a":1}`, "a part of another JSON": `["a`, "empty": "", "long": strings.Repeat("\n", 20) + strings.Repeat("long", maxLine)} {
		dir := home(t)
		appended(t, open0(t, dir), "a")
		b := append(read(t, dir, fileName), damage+"\n"...)
		write(t, dir, fileName, b)
		appended(t, open0(t, dir), "b", "c")
		_, err := Verify(dir)
		broken, ok := errors.AsType[*BrokenError](err)
		if !ok || broken.File != fileName || broken.Line != 2 {
			t.Errorf("%s: %v", what, err)
		}
		var got []string
		for r, err := range Records(dir, time.Time{}) {
			if broken, ok := errors.AsType[*BrokenError](err); ok {
				if broken.Line != 2+len(got)-1 && what != "long" {
					t.Errorf("%s: %v", what, err)
				}
				continue
			}
			got = append(got, r.Reason)
		}
		if !slices.Equal(got, []string{"a", "b", "c"}) {
			t.Errorf("%s: %q", what, got)
		}
		var recent []string
		if err := open0(t, dir).Recent(time.Time{}, func(r Record) error { recent = append(recent, r.Reason); return nil }); err != nil || len(recent) != 3 {
			t.Errorf("%s: %q, %v", what, recent, err)
		}
		// The line after is chained to it as to any other.
		var line struct{ Previous string }
		after := bytes.Split(read(t, dir, fileName)[len(b):], []byte("\n"))
		lines := bytes.Split(bytes.TrimSuffix(b, []byte("\n")), []byte("\n"))
		if err := json.Unmarshal(after[0], &line); err != nil || line.Previous != hash(lines[len(lines)-1]) {
			t.Errorf("%s: %v, %v", what, line, err)
		}
	}
	// Garbage at the end that no record begins with is recovered from, and found all the same.
	dir := home(t)
	appended(t, open0(t, dir), "a")
	write(t, dir, fileName, append(read(t, dir, fileName), "garbage"...))
	if _, err := Verify(dir); err == nil {
		t.Error("garbage verifies")
	}
	appended(t, open0(t, dir), "b")
	if _, err := Verify(dir); err == nil || !strings.HasPrefix(err.Error(), fileName+":2:") {
		t.Error(err)
	}
	// Zeros are what a power failure leaves.
	dir = home(t)
	appended(t, open0(t, dir), "a")
	write(t, dir, fileName, append(read(t, dir, fileName), "{\"time\":\"20\x00\x00\x00"...))
	appended(t, open0(t, dir), "b")
	if s := verified(t, dir); s.Recovered != 1 {
		t.Errorf("%+v", s)
	}
	// What was recovered from is not told, however old it is.
	for r, err := range Records(dir, time.Now().Add(time.Hour)) {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestDecode(t *testing.T) {
	t.Parallel()
	start := `{"time":"2026-11-23T19:08:30.120Z","event":"x"`
	good := start + `,"previous":"` + noLine + `"}`
	for _, line := range []string{good, strings.Replace(good, "{", `{"later":[1],`, 1)} {
		if _, err := decode([]byte(line)); err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
	for _, line := range []string{
		"", "{}", start + "}", good + good, good + "\x00", `{"time":"2026-11-23T19:08:30.120Z","previous":"` + noLine + `"}`, `{"event":"x","previous":"` + noLine + `"}`,
		strings.Replace(good, "{", `{"event":"y",`, 1), strings.Replace(good, "0000", "AAAA", 1), strings.Replace(good, "0000", "000", 1),
		strings.Replace(good, "0000", "000g", 1), strings.Replace(good, `"x"`, "1", 1), strings.Replace(good, "2026", "x", 1), strings.Replace(good, `"x"`, "\"\xff\"", 1),
		strings.Replace(good, "{", `{"later":"`+strings.Repeat("x", maxLine)+`",`, 1),
	} {
		if _, err := decode([]byte(line)); !errors.Is(err, errNoRecord) || incomplete([]byte(line)) {
			t.Errorf("%.200s: %v", line, err)
		}
	}
}

// More parts in a row than anybody was ever killed at are damage, too.
func TestManyParts(t *testing.T) {
	t.Parallel()
	dir := home(t)
	appended(t, open0(t, dir), "a")
	write(t, dir, fileName, append(read(t, dir, fileName), strings.Repeat("{\"time\n", maxParts+6)...))
	for range 2 {
		broken := 0
		_, err := Verify(dir)
		if b, ok := errors.AsType[*BrokenError](err); !ok || b.Line < 2 {
			t.Errorf("Verify: %v", err)
		}
		for _, err := range Records(dir, time.Time{}) {
			if err != nil {
				broken++
			}
		}
		if broken < maxParts {
			t.Errorf("%d lines are broken", broken)
		}
		appended(t, open0(t, dir), "b")
	}
}

func TestOldFiles(t *testing.T) {
	t.Parallel()
	dir := home(t)
	for _, name := range []string{"audit-1000000.jsonl", "audit-999999.jsonl", "audit-000002.jsonl", "audit-1.jsonl", "audit-0000003.jsonl", "audit-000000.jsonl",
		"audit-+00001.jsonl", "audit-00000x.jsonl", "audit-000004.jsonl.old", "audit.jsonl", "xaudit-000005.jsonl", "000006"} {
		write(t, dir, name, nil)
	}
	if got, err := oldFiles(dir); err != nil || !slices.Equal(got, []int{2, 999999, 1000000}) {
		t.Errorf("%v, %v", got, err)
	}
}

// Nobody may take lines away under a running signer: the next one is chained to what it had written.
func TestShortenedWhileOpen(t *testing.T) {
	t.Parallel()
	dir := home(t)
	l := open0(t, dir)
	appended(t, l, "a", "b", "c")
	b := read(t, dir, fileName)
	if err := os.Truncate(filepath.Join(dir, fileName), int64(bytes.IndexByte(b, '\n')+1)); err != nil {
		t.Fatal(err)
	}
	verified(t, dir)
	appended(t, l, "d")
	if _, err := Verify(dir); err == nil || !strings.HasPrefix(err.Error(), fileName+":2:") {
		t.Error(err)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	for what, make := range map[string]func(path string) error{
		"open to others":      func(p string) error { return errors.Join(os.WriteFile(p, nil, 0o600), os.Chmod(p, 0o644)) },
		"a symbolic link":     func(p string) error { return errors.Join(os.WriteFile(p+".x", nil, 0o600), os.Symlink(p+".x", p)) },
		"a link to nothing":   func(p string) error { return os.Symlink(p+".x", p) },
		"a named pipe":        func(p string) error { return unix.Mkfifo(p, 0o600) },
		"a directory":         func(p string) error { return os.Mkdir(p, 0o600) },
		"somebody else's":     func(p string) error { return errors.Join(os.WriteFile(p, nil, 0o600), os.Chown(p, 12345, -1)) },
		"group may write":     func(p string) error { return errors.Join(os.WriteFile(p, nil, 0o600), os.Chmod(p, 0o620)) },
		"somebody else's dir": func(p string) error { return os.Chown(filepath.Dir(p), 12345, -1) },
		"an open directory":   func(p string) error { return os.Chmod(filepath.Dir(p), 0o750) },
	} {
		for _, name := range []string{fileName, lockName, oldName(1)} {
			if os.Geteuid() != 0 && strings.HasPrefix(what, "somebody") {
				continue
			}
			dir := home(t)
			l := open0(t, dir)
			if err := make(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
			err := l.Append(Record{Event: "x"}, true)
			refused, ok := errors.AsType[*RefusedError](err)
			if !ok || !errors.Is(err, ErrNotRecorded) || refused.Error() == "" {
				t.Errorf("%s as %s: Append: %v", what, name, err)
			}
			if _, err := Verify(dir); !errors.As(err, &refused) {
				t.Errorf("%s as %s: Verify: %v", what, name, err)
			}
			for _, err := range Records(dir, time.Time{}) {
				if !errors.As(err, &refused) {
					t.Errorf("%s as %s: Records: %v", what, name, err)
				}
			}
			if _, err := Open(dir); (name == fileName || strings.Contains(what, "dir")) && name != lockName && name != oldName(1) && !errors.As(err, &refused) {
				t.Errorf("%s as %s: Open: %v", what, name, err)
			}
		}
	}
	if _, err := Open(filepath.Join(home(t), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// What an old file ends with is not mended, least of all in the next one.
func TestOldFileCutOff(t *testing.T) {
	t.Parallel()
	dir := home(t)
	appended(t, open0(t, dir), "a", "b")
	b := read(t, dir, fileName)
	for _, gone := range []int{1, 9} {
		write(t, dir, oldName(1), b[:len(b)-gone])
		write(t, dir, fileName, nil)
		appended(t, open0(t, dir), "c")
		if now := read(t, dir, fileName); !bytes.Contains(now[:60], []byte(`"event":"rotated"`)) || !bytes.Equal(read(t, dir, oldName(1)), b[:len(b)-gone]) {
			t.Errorf("%s", now)
		}
		if _, err := Verify(dir); err == nil || !strings.HasPrefix(err.Error(), oldName(1)+":2: has no end") {
			t.Error(err)
		}
	}
}

// What is there already is checked for each record.
func TestOpenedToOthersLater(t *testing.T) {
	t.Parallel()
	dir := home(t)
	l := open0(t, dir)
	appended(t, l, "a")
	if err := os.Chmod(filepath.Join(dir, fileName), 0o660); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(Record{Event: "x"}, false); !errors.Is(err, ErrNotRecorded) {
		t.Error(err)
	}
	if err := os.Chmod(filepath.Join(dir, fileName), 0o600); err != nil {
		t.Fatal(err)
	}
	appended(t, l, "b")
	if s := verified(t, dir); s.Records != 2 {
		t.Errorf("%+v", s)
	}
}

func TestModes(t *testing.T) {
	t.Parallel()
	dir := home(t)
	l := open0(t, dir)
	l.maxFile = 300
	appended(t, l, "a", "b", "c")
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) < 4 {
		t.Fatal(entries, err)
	}
	for _, e := range entries {
		if fi, err := e.Info(); err != nil || fi.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", e.Name(), fi.Mode(), err)
		}
	}
}

// What fails is taken back; what cannot be taken back holds everything up.
func TestFailures(t *testing.T) {
	t.Parallel()
	fail := errors.New("failed")
	for what, c := range map[string]struct {
		change  func(s *system)
		durable bool
	}{
		"write":       {func(s *system) { s.write = func(*os.File, []byte) (int, error) { return 0, fail } }, false},
		"short write": {func(s *system) { s.write = func(f *os.File, b []byte) (int, error) { f.Write(b[:9]); return 9, fail } }, false},
		"late write":  {func(s *system) { s.write = func(f *os.File, b []byte) (int, error) { f.Write(b); return len(b), fail } }, false},
		"sync":        {func(s *system) { s.sync = func(*os.File) error { return fail } }, true},
	} {
		dir := home(t)
		l := open0(t, dir)
		appended(t, l, "a")
		good, before := l.sys, read(t, dir, fileName)
		c.change(&l.sys)
		if err := l.Append(Record{Event: "x"}, c.durable); !errors.Is(err, ErrNotRecorded) || !errors.Is(err, fail) {
			t.Errorf("%s: %v", what, err)
		}
		if now := read(t, dir, fileName); !bytes.Equal(now, before) {
			t.Errorf("%s: left %s", what, now[len(before):])
		}
		l.sys = good
		appended(t, l, "b")

		before = read(t, dir, fileName)
		c.change(&l.sys)
		l.sys.truncate = func(*os.File, int64) error { return syscall.EIO }
		if err := l.Append(Record{Event: "x"}, c.durable); !errors.Is(err, ErrNotRecorded) || !errors.Is(err, fail) || !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: %v", what, err)
		}
		left := read(t, dir, fileName)
		l.sys.write, l.sys.sync = good.write, good.sync
		for range 2 {
			err := l.Append(Record{Event: "x"}, false)
			switch {
			case len(left) == len(before) && err == nil:
			case len(left) > len(before) && errors.Is(err, ErrNotRecorded) && errors.Is(err, syscall.EIO) && errors.Is(err, fail):
			default:
				t.Errorf("%s, %d bytes not taken back: %v", what, len(left)-len(before), err)
			}
		}
		l.sys = good
		appended(t, l, "c")
		got := slices.DeleteFunc(reasons(t, dir), func(s string) bool { return s == "x" && len(left) == len(before) })
		if s := verified(t, dir); s.Recovered != 0 || !slices.Equal(got, []string{"a", "b", "c"}) {
			t.Errorf("%s: %q, %+v", what, got, s)
		}
		if len(left) == len(before) {
			continue
		}

		// Another process that comes in between has what is left as its past; it is not taken from under it.
		c.change(&l.sys)
		l.sys.truncate = func(*os.File, int64) error { return syscall.EIO }
		if err := l.Append(Record{Event: "x"}, c.durable); err == nil {
			t.Error(what)
		}
		appended(t, open0(t, dir), "other")
		l.sys = good
		appended(t, l, "d")
		all := reasons(t, dir)
		if s := verified(t, dir); (s.Recovered == 1) != (what == "short write") || !slices.Contains(all, "other") || all[len(all)-1] != "d" {
			t.Errorf("%s: %q, %+v", what, all, s)
		}
	}
}

func TestReadOnly(t *testing.T) {
	t.Parallel()
	if os.Geteuid() == 0 {
		t.Skip("root may write anywhere; TestFullDisk has a file system that is read-only")
	}
	dir := home(t)
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(dir, 0o700) })
	if err := open0(t, dir).Append(Record{Event: "x"}, false); !errors.Is(err, ErrNotRecorded) || !errors.Is(err, fs.ErrPermission) {
		t.Error(err)
	}
	verified(t, dir)
}

// A rotation that fails changes nothing but, at most, the name of the file.
func TestRotationFails(t *testing.T) {
	t.Parallel()
	dir := home(t)
	l := open0(t, dir)
	l.maxFile = 300
	appended(t, l, "a")
	good := l.sys
	l.sys.sync = func(*os.File) error { return syscall.EIO }
	if err := l.Append(Record{Event: "x"}, false); !errors.Is(err, ErrNotRecorded) || !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	if names := logFiles(t, dir); len(names) != 1 {
		t.Error(names)
	}
	l.sys = good
	writes := 0
	l.sys.write = func(f *os.File, b []byte) (int, error) { // the new file has its first line, and no room for more
		if writes++; writes == 2 {
			return 0, syscall.ENOSPC
		}
		return f.Write(b)
	}
	if err := l.Append(Record{Event: "x"}, false); !errors.Is(err, ErrNotRecorded) || !errors.Is(err, syscall.ENOSPC) {
		t.Error(err)
	}
	l.sys, l.maxFile = good, maxFile
	appended(t, l, "b")
	if got := reasons(t, dir); !slices.Equal(got, []string{"a", EventRotated, "b"}) {
		t.Errorf("%q", got)
	}
	verified(t, dir)
}

// Two logs in one process stand for two processes: each has its own idea of the end.
func TestSeveral(t *testing.T) {
	t.Parallel()
	dir := home(t)
	a, b := open0(t, dir), open0(t, dir)
	a.maxFile, b.maxFile = 900, 900
	var want []string
	for i := range 30 {
		appended(t, []*Log{a, b, a, a, b, b}[i%6], fmt.Sprint(i))
		want = append(want, fmt.Sprint(i))
	}
	got := slices.DeleteFunc(reasons(t, dir), func(s string) bool { return s == EventRotated })
	if s := verified(t, dir); !slices.Equal(got, want) || s.Files < 3 {
		t.Errorf("%q, %+v", got, s)
	}
}

func TestBusy(t *testing.T) {
	t.Parallel()
	dir := home(t)
	l := open0(t, dir)
	appended(t, l, "a")
	unlock, err := lock(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Append(Record{Event: "x"}, false); !errors.Is(err, ErrNotRecorded) || !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
	unlock()
	appended(t, l, "b")
}

// Of a log that is there only the end is read.
func TestOnlyTheEndIsRead(t *testing.T) {
	t.Parallel()
	dir := home(t)
	appended(t, open0(t, dir), "a")
	line := read(t, dir, fileName)
	f, err := os.OpenFile(filepath.Join(dir, fileName), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const far = 1 << 40 // sparse; nobody reads that much
	if _, err := f.WriteAt(append([]byte("\n"), line...), far); err != nil {
		t.Skip("no file of this size here: ", err)
	}
	tail, err := readTail(dir, f, far+1+int64(len(line)))
	if err != nil || tail.link != hash(bytes.TrimSpace(line)) || tail.mend != mendNothing {
		t.Errorf("%+v, %v", tail, err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"time":"2026-11-23T19:08:30.120Z","event":"x","previous":"` + noLine + `"}`))
	f.Add([]byte(`{"time":"20`))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := decode(line)
		if err != nil {
			return
		}
		if incomplete(line) {
			t.Fatalf("%q is a record and the beginning of one", line)
		}
		again, err := encode(r)
		if err != nil {
			return // times that are read but not written
		}
		if r2, err := decode(again); err == nil && r2.Event != r.Event {
			t.Fatalf("%q became %q", line, again)
		}
	})
}
