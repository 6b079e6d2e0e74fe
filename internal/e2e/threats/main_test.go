// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"strings"
	"testing"
)

func TestTable(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, events string
		failed       bool
		want         []string
	}{
		{"nothing", `{"Action":"start","Package":"p"}{"Action":"pass","Package":"p","Elapsed":0.1}`, false,
			[]string{"T01  missing  a stolen", "I03  missing", "0 pass, 0 fail, 0 skip, 30 missing"}},
		{"pass", `{"Action":"run","Package":"p","Test":"TestThreat_T01_Search"}{"Action":"output","Package":"p","Test":"TestThreat_T01_Search","Output":"noise\n"}
			{"Action":"run","Package":"p","Test":"TestThreat_T01_Search/sub"}{"Action":"skip","Package":"p","Test":"TestThreat_T01_Search/sub"}
			{"Action":"pass","Package":"p","Test":"TestThreat_T01_Search"}{"Action":"pass","Package":"p","Test":"TestOther"}`, false,
			[]string{"T01  pass", "1 pass, 0 fail, 0 skip, 29 missing"}},
		{"skip wins over pass", `{"Action":"pass","Package":"p","Test":"TestThreat_C05_A"}{"Action":"skip","Package":"q","Test":"TestThreat_C05_B"}`, false,
			[]string{"C05  skip"}},
		{"fail wins", `{"Action":"pass","Package":"p","Test":"TestThreat_C05_A"}{"Action":"output","Package":"q","Test":"TestThreat_C05_B/x","Output":"why\n"}
			{"Action":"fail","Package":"q","Test":"TestThreat_C05_B"}{"Action":"fail","Package":"q"}`, true,
			[]string{"q TestThreat_C05_B\nwhy\n", "C05  fail", "0 pass, 1 fail"}},
		{"panic", `{"Action":"run","Package":"p","Test":"TestThreat_G02_X"}{"Action":"fail","Package":"p"}`, true, []string{"G02  fail"}},
		{"stray", `{"Action":"pass","Package":"p","Test":"TestThreat_T99_X"}`, true, []string{"TestThreat_T99_X names no promise"}},
	} {
		r, err := read(strings.NewReader(c.events))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		var b strings.Builder
		if failed := r.print(&b); failed != c.failed {
			t.Errorf("%s: failed %t", c.name, failed)
		}
		for _, w := range c.want {
			if !strings.Contains(b.String(), w) {
				t.Errorf("%s: %q is not in\n%s", c.name, w, b.String())
			}
		}
		if strings.Contains(b.String(), "noise") {
			t.Errorf("%s shows what passing tests print", c.name)
		}
	}
	if _, err := read(strings.NewReader("FAIL")); err == nil {
		t.Error("read what is no JSON")
	}
}
