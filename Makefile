# Every target sets up what it needs in .venv by itself; only Python >= 3.11, make and git have to be there.
# As root, test installs etcd-server, iproute2, iptables and systemd from Debian; without them it skips what needs them.
#   PYTHON=/path/to/python3.13   another interpreter than the first suitable one
#   IMAGES=folder OUTPUT=folder  pictures and results of the demo
#   QUICK=1 CHART=file.png       a short run of the benchmarks; a chart of their results

VENV := .venv
RUN := $(VENV)/bin/python -m
SOURCES := rpc_kit registry examples benchmarks tests
CREATED := $(VENV)/.created$(subst /,-,$(PYTHON))

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test lint types bench clean
MAKEFLAGS += --no-print-directory
# Nothing else is written outside this folder: pip keeps no cache, and rustup, whose rustc pip asks for its version, no
# settings.
export PIP_NO_CACHE_DIR := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export RUSTUP_HOME := $(CURDIR)/$(VENV)/rustup

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14
	@sed -n 's/^#   //p' $(MAKEFILE_LIST)

demo: $(VENV)/.installed-demo ## run a camera, a registry and a client: examples/camera
	@$(RUN) examples.camera.demo $(if $(IMAGES),--images "$(IMAGES)") $(if $(OUTPUT),--output "$(OUTPUT)")

test: lint types ## check style and types, run the tests
	@$(RUN) tests.real.install
	@echo "tests …"
	@$(RUN) pytest -q

lint: $(VENV)/.installed-test ## check style: flake8, isort
	@echo "style …"
	@$(RUN) flake8 $(SOURCES)
	@$(RUN) isort --check-only --diff --quiet $(SOURCES)

types: $(VENV)/.installed-test ## check types: mypy --strict
	@echo "types …"
	@$(RUN) mypy

bench: $(VENV)/.installed-bench ## compare with other RPC libraries
	@$(RUN) benchmarks $(if $(QUICK),--quick) $(if $(CHART),--chart "$(CHART)")

clean: ## remove everything that was made here
	rm -rf $(VENV) build dist demo-output *.egg-info .mypy_cache .pytest_cache .hypothesis
	find $(wildcard $(SOURCES)) -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.installed-demo: EXTRAS := examples
$(VENV)/.installed-test: EXTRAS := examples,test
$(VENV)/.installed-bench: EXTRAS := bench

$(VENV)/.installed-%: $(CREATED) setup.cfg pyproject.toml
	@echo "installing rpc-kit[$(EXTRAS)] …"
	@$(RUN) pip install -e ".[$(EXTRAS)]" >$(VENV)/pip.log 2>&1 || { \
		reason=$$({ grep -a '^ *ERROR' $(VENV)/pip.log || grep -a . $(VENV)/pip.log; } | tail -n 1); \
		echo "pip failed: $${reason:-no output} (whole log: $(VENV)/pip.log)" >&2; exit 1; }
	@touch $@

$(CREATED):
	@for python in $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11 python); do \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
		python=; \
	done; \
	if [ -z "$$python" ]; then \
		found=$$($(if $(PYTHON),"$(PYTHON)",python3) --version 2>/dev/null); \
		echo "rpc-kit needs Python 3.11 or newer, but $(or $(PYTHON),python3) is $${found:-not there}:" \
			"install python3.11, or name another one with PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "Python $$version cannot make virtual environments: install the Debian package" \
			"python$$version-venv (sudo apt install python$$version-venv)" >&2; exit 1; \
	fi; \
	echo "setting up $(VENV) with Python $$version …"; \
	reason=$$("$$python" -m venv --clear $(VENV) 2>&1) || { \
		echo "$$python -m venv failed: $$(echo "$$reason" | tail -n 1)" >&2; exit 1; }
	@touch $(VENV)/.created $@
