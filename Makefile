# Everything that a developer or a CI runner does with banger. `make` lists it.

PREFIX  ?= /usr/local
DESTDIR ?=

# Version control is read here and not by the go tool, so that a build works in any checkout and is the same each time.
export GOFLAGS := -buildvcs=false $(filter-out -buildvcs=%,$(GOFLAGS))

COMMIT  := $(shell git rev-parse HEAD 2>/dev/null)$(if $(shell git status --porcelain 2>/dev/null | head -n 1),-dirty)
RELEASE := $(shell git describe --tags --match 'v*' 2>/dev/null)
BUILT   := $(or $(SOURCE_DATE_EPOCH),$(shell git log -1 --format=%ct 2>/dev/null))
VERSION := banger/internal/version
STAMP   := -X $(VERSION).release=$(RELEASE) -X $(VERSION).commit=$(COMMIT) -X $(VERSION).built=$(BUILT)

.DEFAULT_GOAL := help
.PHONY: help run test unit vm soak bench lint gen gen-check build install clean deps deps-test

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## install what is missing, build, and start a first VM; says how long each step took
	@scripts/run.sh

build: ## build bin/banger and bin/banger-guest
	@CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/banger-guest ./cmd/banger-guest
	@CGO_ENABLED=0 go build -trimpath -ldflags '-s -w $(STAMP)' -o bin/banger ./cmd/banger

test: deps-test gen-check build ## run all tests: unit and vm
	@seed=$$(scripts/seed.sh) && eval "$$seed" && go -C tools run ./tiers tools unit vm

unit: ## run the tests that need nothing: no root, no VM
	@go -C tools run ./tiers tools unit

vm: deps-test build ## run the tests that boot VMs (QEMU; no KVM needed)
	@seed=$$(scripts/seed.sh) && eval "$$seed" && go -C tools run ./tiers vm

soak: deps-test build ## crash and leak tests at length, and the image with Docker (BANGER_CRASH_SECONDS of fuzzing, BANGER_CRASH_SEED repeats one)
	@seed=$$(scripts/seed.sh) && eval "$$seed" && \
	  export BANGER_SOAK=1 && \
	  BANGER_CRASH_SECONDS=$${BANGER_CRASH_SECONDS:-600} go test -count=1 -v -timeout 0 -tags vm ./e2e/crash && \
	  go test -count=1 -v -timeout 0 -tags vm ./e2e -run TestScenarios/docker

bench: deps build ## measure banger on this machine, and fail if a budget is exceeded
	@go run ./e2e/bench -bin bin

lint: ## run the linters (the first time builds them: a minute or two)
	@go tool -modfile=tools/lint/go.mod golangci-lint run ./...

gen: ## make the Go code of the API from proto/
	@go -C tools run ./protogen

gen-check: ## fail if the code of the API is not that of proto/
	@go -C tools run ./protogen -check

install: build ## install under PREFIX (and DESTDIR), with shell completions
	install -D -m 0755 bin/banger '$(DESTDIR)$(PREFIX)/bin/banger'
	install -D -m 0755 bin/banger-guest '$(DESTDIR)$(PREFIX)/libexec/banger/banger-guest'
	mkdir -p '$(DESTDIR)$(PREFIX)/share/bash-completion/completions' '$(DESTDIR)$(PREFIX)/share/zsh/site-functions' \
	  '$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d'
	bin/banger completion bash >'$(DESTDIR)$(PREFIX)/share/bash-completion/completions/banger'
	bin/banger completion zsh >'$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_banger'
	bin/banger completion fish >'$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/banger.fish'

deps: ## install the Debian packages that banger needs and that are missing
	@scripts/deps.sh run

deps-test:
	@scripts/deps.sh test

clean: ## remove what was built
	rm -rf bin dist
