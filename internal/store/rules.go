// SPDX-License-Identifier: BSD-3-Clause

package store

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"vmux.app/toolkit/internal/policy"
)

// Names in vmux.toml.
const (
	policyTable   = "policy"
	policyDefault = "policy.default"
	policyRule    = "policy.rule"
)

// takeRules reads the rules of the policy and takes them out of tree, which leaves settings.
func takeRules(path string, b []byte, tree map[string]any) (rules []policy.Rule, found []*ConfigError) {
	table, _ := tree[policyTable].(map[string]any)
	value, ok := table["rule"]
	if !ok {
		return nil, nil
	}
	delete(table, "rule")
	tables, ok := tablesOf(value)
	if !ok {
		return nil, []*ConfigError{{File: path, Line: lineOf(b, policyRule), Key: policyRule,
			Problem: "policy.rule is no list of rules", Want: "each rule below a line [[policy.rule]]"}}
	}
	if len(tables) > policy.MaxRules {
		return nil, []*ConfigError{{File: path, Key: policyRule, Problem: fmt.Sprintf("%d rules, more than %d", len(tables), policy.MaxRules),
			Want: "fewer rules, with several values or patterns in each"}}
	}
	lines := ruleLines(b)
	if len(lines) != len(tables) { // written in a way that ruleLines does not know
		lines = make([]int, len(tables))
	}
	for i, t := range tables {
		rule, wrong := takeRule(i+1, lines[i], b, t)
		for _, e := range wrong {
			e.File = path
		}
		rules, found = append(rules, rule), append(found, wrong...)
	}
	return rules, found
}

func takeRule(n, line int, b []byte, fields map[string]any) (policy.Rule, []*ConfigError) {
	rule := policy.Rule{Line: line}
	var found []*ConfigError
	fail := func(e *policy.FieldError) {
		found = append(found, &ConfigError{Line: fieldLine(b, line, e.Field), Key: policyRule + "." + e.Field,
			Problem: fmt.Sprintf("rule %d: %v", n, e), Want: e.Want})
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		values, ok := textsOf(fields[name])
		want := policy.Want(name)
		if e, wrong := errors.AsType[*policy.FieldError](rule.Set(name, values)); want != "" && !ok {
			fail(&policy.FieldError{Field: name, Problem: "is no text in quotes", Want: want})
		} else if wrong {
			fail(e)
		}
	}
	if e, wrong := errors.AsType[*policy.FieldError](rule.Check()); wrong && len(found) == 0 { // a misspelt field is not a missing one
		fail(e)
	}
	return rule, found
}

// noDefault says that a policy leaves open what holds when no rule matches, nil if it does not.
func noDefault(path string, b []byte, tree map[string]any) *ConfigError {
	table, ok := tree[policyTable].(map[string]any)
	if _, has := table["default"]; !ok || has {
		return nil
	}
	line := lineOf(b, policyTable)
	if rules := ruleLines(b); line == 0 && len(rules) > 0 {
		line = rules[0]
	}
	return &ConfigError{File: path, Line: line, Key: policyDefault, Problem: "policy.default is missing",
		Want: `default = "ask" or default = "refuse" below a line [policy], before the rules`}
}

// tablesOf gives an array of tables, however it is written.
func tablesOf(value any) ([]map[string]any, bool) {
	if tables, ok := value.([]map[string]any); ok {
		return tables, true
	}
	all, ok := value.([]any)
	var tables []map[string]any
	for _, v := range all {
		t, isTable := v.(map[string]any)
		tables, ok = append(tables, t), ok && isTable
	}
	return tables, ok
}

// textsOf gives a text or a list of texts.
func textsOf(value any) ([]string, bool) {
	if s, ok := value.(string); ok {
		return []string{s}, true
	}
	all, ok := value.([]any)
	var texts []string
	for _, v := range all {
		s, isText := v.(string)
		texts, ok = append(texts, s), ok && isText
	}
	return texts, ok
}

// ruleLines gives the lines from 1 that begin a rule.
func ruleLines(b []byte) (lines []int) {
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "[["); ok {
			if name, _, _ = strings.Cut(name, "]"); strings.TrimSpace(name) == policyRule {
				lines = append(lines, n)
			}
		}
	}
	return lines
}

// fieldLine gives the line that sets a field of the rule that begins in line first, or else first.
func fieldLine(b []byte, first int, field string) int {
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		if n <= first || first == 0 {
			continue
		}
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "[") {
			break
		}
		if name, _, ok := strings.Cut(line, "="); ok && strings.TrimSpace(name) == field {
			return n
		}
	}
	return first
}
