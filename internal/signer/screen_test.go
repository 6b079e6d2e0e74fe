// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// screen is what a person sees on a terminal of 80 by 24. It knows the control
// sequences that prompts are drawn with, and fails on others.
type screen struct {
	t        testing.TB
	rows     [][]rune
	row, col int
	bells    int
}

func newScreen(t testing.TB) *screen {
	s := &screen{t: t, rows: make([][]rune, screenHeight)}
	return s
}

// feed draws text and gives it back.
func (s *screen) feed(text string) string {
	s.t.Helper()
	for in := text; in != ""; {
		r, size := utf8.DecodeRuneInString(in)
		switch {
		case strings.HasPrefix(in, "\x1b["):
			end := strings.IndexFunc(in[2:], func(r rune) bool { return r >= '@' && r <= '~' })
			if end < 0 {
				s.t.Fatalf("half a control sequence: %q", in)
			}
			n := 0
			for _, c := range in[2 : 2+end] {
				n = 10*n + int(c-'0')
			}
			switch in[2+end] {
			case 'J':
				s.rows[s.row] = s.rows[s.row][:min(s.col, len(s.rows[s.row]))]
				for i := s.row + 1; i < len(s.rows); i++ {
					s.rows[i] = nil
				}
			case 'A':
				s.row = max(0, s.row-n)
			case 'C':
				s.col = min(screenWidth-1, s.col+n)
			case 'm':
			default:
				s.t.Fatalf("control sequence %q", in[:3+end])
			}
			size = 3 + end
		case r == '\r':
			s.col = 0
		case r == '\n':
			s.down()
		case r == '\a':
			s.bells++
		case r < ' ':
			s.t.Fatalf("control character %q", r)
		default:
			if s.col == screenWidth {
				s.col = 0
				s.down()
			}
			for len(s.rows[s.row]) <= s.col {
				s.rows[s.row] = append(s.rows[s.row], ' ')
			}
			s.rows[s.row][s.col] = r
			s.col++
		}
		in = in[size:]
	}
	return text
}

func (s *screen) down() {
	if s.row++; s.row == len(s.rows) {
		s.rows = append(s.rows[1:], nil)
		s.row--
	}
}

func (s *screen) String() string {
	var b strings.Builder
	for _, r := range s.rows {
		b.WriteString(strings.TrimRight(string(r), " ") + "\n")
	}
	return b.String()
}

// wants fails unless the screen has each line, in this order.
func (s *screen) wants(lines ...string) {
	s.t.Helper()
	rest := "\n" + s.String()
	for _, l := range lines {
		_, after, ok := strings.Cut(rest, "\n"+l)
		if !ok {
			s.t.Errorf("no %q in its place on the screen:\n%s", l, s)
			return
		}
		rest = after
	}
}
