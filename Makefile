# SPDX-License-Identifier: BSD-3-Clause

VERSION ?= 0.1.0
PREFIX ?= /usr/local
DESTDIR ?=
FUZZTIME ?= 10s
TESTFLAGS ?=
GO ?= go
STATICCHECK ?= $(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2

COMMANDS = $(notdir $(wildcard cmd/*))
MANUALS = $(wildcard man/*.[1-9])
UNITS = $(wildcard cmd/*/systemd/*)
LABEL = app.vmux.agent
SYSTEM := $(shell uname -s)
out = bin

bindir = $(DESTDIR)$(PREFIX)/bin
mandir = $(DESTDIR)$(PREFIX)/share/man
bashdir = $(DESTDIR)$(PREFIX)/share/bash-completion/completions
zshdir = $(DESTDIR)$(PREFIX)/share/zsh/site-functions
fishdir = $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
# systemd looks for users' units in lib below /usr and /usr/local, but in share below ~/.local.
unitdir = $(PREFIX)/$(if $(filter $(HOME)/.local,$(PREFIX)),share,lib)/systemd/user
# launchd does not look here: what is in /Library/LaunchAgents would start for every user.
launchdir = $(PREFIX)/share/vmux

# What cocoa needs of the compiler, and who macOS takes a program for.
ifeq ($(SYSTEM),Darwin)
REMEDY = -gcflags=all=-d=variablemakehash=qn
SIGN = codesign --force --sign - --identifier app.vmux.$${c\#vmux-}
else
REMEDY =
SIGN = :
endif

.PHONY: all build test check check-darwin check-darwin-long deps fmt fmt-check vet staticcheck tidy lint-man demo threats bench fuzz clean \
	install uninstall install-user uninstall-user prefix
.NOTPARALLEL:

all: build

# The version comes from above instead of git, which refuses to look into somebody else's checkout. The tags leave out
# what is not used and takes half of a command's start.
build:
	@mkdir -p '$(out)'
	$(GO) build -trimpath -buildvcs=false $(REMEDY) -tags urfave_cli_no_docs,urfave_cli_no_suggest -ldflags '-X vmux.app/toolkit/internal/cli.version=$(VERSION)' -o '$(out)/' ./cmd/...

# What the tests talk to: real sshd, ip, mandoc, shells.
deps:
	@sh .ci/deps

# Tests of commands wait more than they work, hence more at once than there may be cores. What a passphrase goes through
# takes fifteen times as long with the race detector, and has no goroutines to look at.
test: deps
	$(GO) test -race -gcflags=golang.org/x/crypto/blowfish=-race=false -shuffle=on -parallel 4 $(TESTFLAGS) ./...

check: fmt-check vet staticcheck tidy test lint-man

# What is meant for macOS, on Debian: types, linking, and running against a stand-in for Apple's frameworks.
check-darwin: deps
	@GO='$(GO)' internal/darwintest/check

# The longer proofs of the same: ten million calls to Objective-C, and faults planted into a copy, which the tests must catch.
check-darwin-long:
	@GO='$(GO)' internal/darwintest/check calls
	@GO='$(GO)' internal/darwintest/faults

fmt:
	gofmt -w .

fmt-check:
	@files=$$(gofmt -l .); if [ -n "$$files" ]; then \
		echo "error: not formatted:" $$files >&2; echo "hint: make fmt" >&2; exit 1; fi

vet:
	GOOS=linux $(GO) vet ./...
	CGO_ENABLED=0 GOOS=darwin $(GO) vet ./...

staticcheck:
	$(STATICCHECK) ./...

tidy:
	$(GO) mod tidy -diff

lint-man: deps
ifeq ($(MANUALS),)
	@echo "no manual pages to check"
else
	@out=$$(mandoc -T lint -W warning $(MANUALS) 2>&1); status=$$?; \
	if [ -n "$$out" ] || [ $$status -ne 0 ]; then echo "$$out" >&2; exit 1; fi
endif

demo: build
	@$(GO) run ./internal/e2e/demo bin

# Each promise of vmux-security(7) with the result of its tests, TestThreat_ROW_….
threats:
	@$(GO) run ./internal/e2e/threats

# vmux-agent beside OpenSSH's ssh-agent: rates, memory, start.
bench: build
	@$(GO) run ./internal/e2e/bench bin

fuzz:
	@set -e; grep -rE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*\(' . | \
	sed -E 's|^(.*)/[^/]*:func (Fuzz[A-Za-z0-9_]*).*|\1 \2|' | sort -u | while read -r dir name; do \
		echo "$$dir $$name"; \
		$(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) "$$dir"; \
	done

# The path of the programs is written into units, where other characters would mean something.
prefix:
	@case '$(PREFIX)' in \
	*[!A-Za-z0-9/._+@~\ -]*) why='has a character that a unit cannot have';; \
	/*) exit 0;; \
	*) why='does not begin with /';; \
	esac; printf '%s\n' 'error: PREFIX=$(PREFIX) '"$$why" 'hint: make $(firstword $(MAKECMDGOALS)) PREFIX=/usr/local' >&2; exit 1

install: prefix build
	install -d '$(bindir)' '$(bashdir)' '$(zshdir)' '$(fishdir)'
	@set -e; tmp=$$(mktemp); trap 'rm -f "$$tmp"' EXIT; \
	for c in $(COMMANDS); do \
		echo "$$c"; \
		install -m 0755 "$(out)/$$c" '$(bindir)/'; \
		$(SIGN) "$(bindir)/$$c"; \
		"$(out)/$$c" completion bash >"$$tmp" && install -m 0644 "$$tmp" "$(bashdir)/$$c"; \
		"$(out)/$$c" completion zsh >"$$tmp" && install -m 0644 "$$tmp" "$(zshdir)/_$$c"; \
		"$(out)/$$c" completion fish >"$$tmp" && install -m 0644 "$$tmp" "$(fishdir)/$$c.fish"; \
	done; \
	for m in $(MANUALS); do \
		section=$${m##*.}; \
		install -d "$(mandir)/man$$section"; \
		install -m 0644 "$$m" "$(mandir)/man$$section/"; \
	done; \
	unit() { \
		echo "$${1##*/}"; \
		sed 's|@bindir@|$(PREFIX)/bin|' "$$1" >"$$tmp"; \
		install -d "$(DESTDIR)$$2"; \
		install -m 0644 "$$tmp" "$(DESTDIR)$$2/$${1##*/}"; \
	}; \
	case '$(SYSTEM)' in \
	Darwin) unit cmd/vmux-agent/launchd/$(LABEL).plist '$(launchdir)';; \
	*) for u in $(UNITS); do unit "$$u" '$(unitdir)'; done;; \
	esac

uninstall: prefix
	@set -e; for c in $(COMMANDS); do \
		rm -f "$(bindir)/$$c" "$(bashdir)/$$c" "$(zshdir)/_$$c" "$(fishdir)/$$c.fish"; \
	done; \
	for m in $(MANUALS); do rm -f "$(mandir)/man$${m##*.}/$${m##*/}"; done; \
	for u in $(UNITS); do rm -f "$(DESTDIR)$(unitdir)/$${u##*/}"; done; \
	rm -f '$(DESTDIR)$(launchdir)/$(LABEL).plist'

# What was installed serves the socket of the user who calls this, from now on and at each login.
install-user: prefix
	@SYSTEM='$(SYSTEM)' LABEL='$(LABEL)' BINDIR='$(PREFIX)/bin' UNITDIR='$(unitdir)' LAUNCHDIR='$(launchdir)' DESTDIR='$(DESTDIR)' sh cmd/vmux-agent/service.sh enable

uninstall-user: prefix
	@SYSTEM='$(SYSTEM)' LABEL='$(LABEL)' BINDIR='$(PREFIX)/bin' UNITDIR='$(unitdir)' LAUNCHDIR='$(launchdir)' DESTDIR='$(DESTDIR)' sh cmd/vmux-agent/service.sh disable

clean:
	rm -rf bin
